//! Versions in an OCI registry (distribution specification 1.1), by `oci-client`.
//!
//! Plain HTTP is spoken to a registry on this machine only. Who has to sign in does so by HOLM_REGISTRY_USER and
//! HOLM_REGISTRY_PASSWORD.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::header::HeaderValue;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use tokio::io::AsyncWrite;

use holm_model::ids::Digest;

use super::{Descriptor, MANIFEST, Package, PackageError, Parts};
use crate::exit::{Exit, Failure};

/// How long to wait for a connection, and how long for the next bytes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// A repository in a registry, and the tag or digest in it.
pub(crate) struct Repository {
    client: Client,
    auth: RegistryAuth,
    at: Reference,
}

impl Repository {
    pub(crate) fn at(at: &Reference) -> Self {
        let registry = at.resolve_registry().to_owned();
        let host = registry
            .rsplit_once(':')
            .map_or(&registry[..], |(host, _)| host);
        let protocol = match host {
            "localhost" | "127.0.0.1" | "[::1]" => ClientProtocol::Http,
            _ => ClientProtocol::Https,
        };
        let variable = |name| std::env::var(name).unwrap_or_default();
        let auth = match variable("HOLM_REGISTRY_USER") {
            user if user.is_empty() => RegistryAuth::Anonymous,
            user => RegistryAuth::Basic(user, variable("HOLM_REGISTRY_PASSWORD")),
        };
        let client = Client::new(ClientConfig {
            protocol,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            ..ClientConfig::default()
        });
        Repository {
            client,
            auth,
            at: at.clone(),
        }
    }

    /// Puts a version in, under its tag. Returns the manifest's digest.
    pub(crate) async fn put(&self, package: &Package) -> Result<Digest, Failure> {
        let failed = |error: OciDistributionError| self.failed("taken", &error);
        let operation = RegistryOperation::Push;
        let signed_in = self.client.auth(&self.at, &self.auth, operation).await;
        signed_in.map_err(failed)?;
        for blob in [&package.signed.statement, &package.artifact] {
            let digest = Digest::of(blob).to_string();
            let there = self.client.blob_exists(&self.at, &digest).await;
            if !there.unwrap_or(false) {
                let pushed = self.client.push_blob(&self.at, blob.clone(), &digest);
                pushed.await.map_err(failed)?;
            }
        }
        let manifest = package.manifest();
        let digest = Digest::of(&manifest);
        let kind = HeaderValue::from_static(MANIFEST);
        let pushed = self.client.push_manifest_raw(&self.at, manifest, kind);
        pushed.await.map_err(failed)?;
        Ok(digest)
    }

    /// The version under its tag or digest.
    pub(crate) async fn get(&self) -> Result<Package, Failure> {
        let pulled = self
            .client
            .pull_manifest_raw(&self.at, &self.auth, &[MANIFEST]);
        let (manifest, _) = pulled.await.map_err(|error| self.failed("given", &error))?;
        let bad = |error: PackageError| {
            let what = format!("{} cannot be used: {error}", self.at.whole());
            Failure::new(Exit::Refused, what)
                .hint("get it once more from whoever made it, with `holm push` or a copy of that")
        };
        let parts = Parts::read(&manifest).map_err(bad)?;
        let statement = self.blob(&parts.statement).await?;
        let artifact = self.blob(&parts.bundle).await?;
        parts.package(statement, artifact).map_err(bad)
    }

    async fn blob(&self, of: &Descriptor) -> Result<Vec<u8>, Failure> {
        let mut blob = Bounded {
            bytes: Vec::new(),
            most: of.size,
        };
        let digest = of.digest.to_string();
        let pulled = self
            .client
            .pull_blob(&self.at, &digest[..], &mut blob)
            .await;
        pulled.map_err(|error| self.failed("given", &error))?;
        Ok(blob.bytes)
    }

    fn failed(&self, what: &str, error: &OciDistributionError) -> Failure {
        let exit = match error {
            OciDistributionError::RequestError(error) if error.is_connect() => Exit::Unreachable,
            _ => Exit::Refused,
        };
        let error = crate::remote::client::text(error);
        let what = format!("{} is not {what} by the registry: {error}", self.at.whole());
        Failure::new(exit, what).hint(
            "look at the name and the registry; sign in with HOLM_REGISTRY_USER and HOLM_REGISTRY_PASSWORD if it asks \
             for that",
        )
    }
}

/// As many bytes as were announced and no more.
struct Bounded {
    bytes: Vec<u8>,
    most: u64,
}

impl AsyncWrite for Bounded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.bytes.len() as u64 + bytes.len() as u64 > self.most {
            let error = "the registry sends more than the manifest says";
            return Poll::Ready(Err(io::Error::other(error)));
        }
        self.bytes.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
