//! Bulk streams: artifacts out, usage in, certificates renewed. One request and one answer each.

use std::io::SeekFrom;
use std::sync::Arc;
use std::time::Duration;

use holm_model::control::{BulkAnswer, BulkRequest};
use holm_model::ids::{Digest, Name};
use holm_model::limits::MAX_LEASE_ASKS;
use quinn::{RecvStream, SendStream};
use rustls_pki_types::CertificateDer;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::time::timeout;

use super::frames::{self, WireError};
use super::server::{Services, delivered};
use crate::limits::{BULK_ARTIFACT, BULK_USAGE};

const CHUNK_BYTES: usize = 64 << 10;

/// Serves one bulk stream. An error that is the peer's breach costs it the link.
pub(super) async fn serve(
    services: Arc<Services>,
    node: Name,
    certificate: CertificateDer<'static>,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), WireError> {
    let request = match within(BULK_USAGE, frames::expect(&mut recv)).await {
        Some(Ok(request)) => request,
        Some(Err(error)) => {
            if error.is_breach() {
                refuse(&mut send, format!("the request cannot be read: {error}")).await?;
            }
            return Err(error);
        }
        None => return refuse(&mut send, "the request took too long to arrive".into()).await,
    };
    match request {
        BulkRequest::FetchArtifact { digest, offset } => {
            match within(
                BULK_ARTIFACT,
                artifact(&services, &mut send, digest, offset),
            )
            .await
            {
                Some(result) => result,
                // Reset, so that the node does not take a part for the whole.
                None => {
                    let _ = send.reset(quinn::VarInt::from_u32(0));
                    Ok(())
                }
            }
        }
        BulkRequest::Lease(asks) if asks.asks.len() > MAX_LEASE_ASKS => {
            refuse(
                &mut send,
                format!("it asks about more than {MAX_LEASE_ASKS} budgets at once"),
            )
            .await
        }
        BulkRequest::Lease(asks) => {
            let now_ms = services.clock.now_ms();
            match services.store.lease(&node, &asks, now_ms).await {
                Ok(answers) => {
                    frames::write(&mut send, &BulkAnswer::Leases(answers)).await?;
                    delivered(&mut send).await;
                    Ok(())
                }
                Err(error) => {
                    tracing::error!(%node, %error, "budget cannot be leased");
                    refuse(&mut send, error.to_string()).await
                }
            }
        }
        BulkRequest::Usage(batch) => match services.ledger.add(&node, &certificate, &batch).await {
            Ok((new, known)) => {
                frames::write(&mut send, &BulkAnswer::UsageStored { new, known }).await?;
                delivered(&mut send).await;
                Ok(())
            }
            Err(error) => {
                tracing::error!(%node, %error, "a usage batch is refused");
                refuse(&mut send, error.to_string()).await
            }
        },
        BulkRequest::Renew { csr_der } => {
            let renewed = services.joins.renew(&node, &certificate, &csr_der);
            match renewed.await {
                Ok(renewed) => {
                    tracing::info!(%node, "a node's certificate is renewed");
                    let certificate_der = renewed.to_vec();
                    frames::write(&mut send, &BulkAnswer::Renewed { certificate_der }).await?;
                    delivered(&mut send).await;
                    Ok(())
                }
                Err(error) => {
                    tracing::error!(%node, %error, "a node's certificate is not renewed");
                    refuse(&mut send, error.to_string()).await
                }
            }
        }
    }
}

async fn artifact(
    services: &Services,
    send: &mut SendStream,
    digest: Digest,
    offset: u64,
) -> Result<(), WireError> {
    let (mut file, length) = match services.registry.artifacts().file(digest).await {
        Ok(found) => found,
        Err(error) => return refuse(send, error.to_string()).await,
    };
    let Some(bytes) = length.checked_sub(offset) else {
        let reason = format!("offset {offset} is behind the end of artifact {digest}");
        return refuse(send, reason).await;
    };
    if let Err(error) = file.seek(SeekFrom::Start(offset)).await {
        return refuse(send, format!("artifact {digest} cannot be read: {error}")).await;
    }
    frames::write(send, &BulkAnswer::Artifact { bytes }).await?;
    match copy(file, bytes, send).await? {
        Ok(()) => {
            delivered(send).await;
        }
        Err(error) => {
            tracing::error!(%digest, %error, "an artifact cannot be read");
            let _ = send.reset(quinn::VarInt::from_u32(0));
        }
    }
    Ok(())
}

/// Sends `bytes` bytes of the file. The inner error is the disk's.
async fn copy(
    mut file: File,
    mut bytes: u64,
    send: &mut SendStream,
) -> Result<std::io::Result<()>, WireError> {
    let mut chunk = vec![0; CHUNK_BYTES];
    while bytes > 0 {
        let want = usize::try_from(bytes)
            .unwrap_or(usize::MAX)
            .min(CHUNK_BYTES);
        let have = match file.read(&mut chunk[..want]).await {
            Ok(0) => return Ok(Err(std::io::ErrorKind::UnexpectedEof.into())),
            Ok(have) => have,
            Err(error) => return Ok(Err(error)),
        };
        send.write_all(&chunk[..have]).await?;
        bytes -= have as u64;
    }
    Ok(Ok(()))
}

async fn refuse(send: &mut SendStream, reason: String) -> Result<(), WireError> {
    frames::write(send, &BulkAnswer::Refused { reason }).await?;
    delivered(send).await;
    Ok(())
}

async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    timeout(limit, work).await.ok()
}
