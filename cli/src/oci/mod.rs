//! A version of a function as an OCI 1.1 artifact, byte for byte what was signed and deployed.
//!
//! ```text
//! image manifest   artifactType application/vnd.holm.function.v1
//!   config         application/vnd.holm.statement.v1+json   the signed statement: its digest is the version's id
//!   layer          application/vnd.holm.bundle.v1           the artifact: its digest is the signed one
//!   annotations    run.holm.publisher-key, run.holm.signature: base64, as the API has them
//! ```
//! So what signs, scans and copies OCI artifacts needs to know nothing of Holm, and Holm's own signature goes along.
//! The same version always gives the same manifest. See the OCI image specification 1.1, `manifest.md` and
//! `image-layout.md`.

mod layout;
mod registry;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use holm_model::artifact::{SignedVersion, Statement};
use holm_model::bundle::Bundle;
use holm_model::ids::Digest;
use holm_model::limits::{MAX_ARTIFACT_BYTES, MAX_MANIFEST_BYTES};

use crate::exit::Failure;
use layout::Layout;
use registry::Repository;

/// The `artifactType`.
const FUNCTION: &str = "application/vnd.holm.function.v1";
const STATEMENT: &str = "application/vnd.holm.statement.v1+json";
const BUNDLE: &str = "application/vnd.holm.bundle.v1";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const KEY: &str = "run.holm.publisher-key";
const SIGNATURE: &str = "run.holm.signature";
const TITLE: &str = "org.opencontainers.image.title";
const VERSION: &str = "org.opencontainers.image.version";
/// Largest manifest or index that is read; the specification asks registries for as much.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// Longest tag.
const MAX_TAG_CHARS: usize = 128;

/// Where a version is to go, or to come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    /// The image layout in this directory.
    Layout {
        /// The directory.
        path: PathBuf,
        /// The one of its manifests, if it is said.
        tag: Option<String>,
    },
    /// In a registry.
    Registry(oci_client::Reference),
}

impl FromStr for Reference {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!(
                "`{text}` {why}; give oci:PATH:TAG with the path of an OCI image layout, or docker://HOST/REPOSITORY:TAG"
            )
        };
        if let Some(name) = text.strip_prefix("docker://") {
            return match name.parse() {
                Ok(reference) => Ok(Reference::Registry(reference)),
                Err(error) => Err(wrong(&format!("is no reference to a registry: {error}"))),
            };
        }
        let rest = text.strip_prefix("oci:");
        let rest = rest.ok_or_else(|| wrong("begins with neither oci: nor docker://"))?;
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        if path.is_empty() {
            return Err(wrong("has no path"));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(wrong(
                "has a tag that is none: up to 128 letters, digits, `.`, `_` and `-`",
            ));
        }
        Ok(Reference::Layout {
            path: path.into(),
            tag: tag.map(str::to_owned),
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Layout { path, tag: None } => write!(f, "oci:{}", path.display()),
            Reference::Layout {
                path,
                tag: Some(tag),
            } => write!(f, "oci:{}:{tag}", path.display()),
            Reference::Registry(reference) => write!(f, "docker://{}", reference.whole()),
        }
    }
}

fn is_tag(tag: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=MAX_TAG_CHARS).contains(&tag.len())
        && tag.chars().all(part)
        && !tag.starts_with(['.', '-'])
}

impl Reference {
    /// Puts a version there; in a layout under its label, if no tag is said. Returns the manifest's digest and where
    /// it is.
    pub(crate) async fn put(&self, package: &Package) -> Result<(Digest, Reference), Failure> {
        match self {
            Reference::Layout { path, tag } => {
                let label = &package.statement.label;
                let tag = tag.as_ref().unwrap_or(label);
                if !is_tag(tag) {
                    let what = format!("the version's label `{label}` cannot be a tag");
                    return Err(Failure::usage(what).hint("give one, as oci:PATH:TAG"));
                }
                let manifest = Layout::at(path).put(package, tag)?;
                let (path, tag) = (path.clone(), Some(tag.clone()));
                Ok((manifest, Reference::Layout { path, tag }))
            }
            Reference::Registry(at) => {
                let manifest = Repository::at(at).put(package).await?;
                Ok((manifest, self.clone()))
            }
        }
    }

    /// The version there.
    pub(crate) async fn get(&self) -> Result<Package, Failure> {
        match self {
            Reference::Layout { path, tag } => Layout::at(path).get(tag.as_deref()),
            Reference::Registry(at) => Repository::at(at).get().await,
        }
    }
}

/// A version and its artifact, which belong together.
#[derive(Clone, Debug)]
pub(crate) struct Package {
    /// What was signed, verbatim, and the signature.
    pub(crate) signed: SignedVersion,
    /// What it says.
    pub(crate) statement: Statement,
    /// The program, with its files if it has any.
    pub(crate) artifact: Vec<u8>,
}

/// A package is not what it should be. Whoever made or carried it is to blame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackageError {
    #[error("its manifest cannot be read: {0}")]
    Manifest(serde_json::Error),
    #[error("it is a `{0}` and not a function of Holm's, `{FUNCTION}`")]
    OtherKind(String),
    #[error("{what} of its manifest is missing or not as Holm writes it")]
    Lacks { what: &'static str },
    #[error("its {what} has {bytes} bytes, more than any can have")]
    TooLarge { what: &'static str, bytes: u64 },
    #[error("its {what} has the digest {found} and not {expected}: it was altered or mixed up")]
    OtherDigest {
        what: &'static str,
        expected: Digest,
        found: Digest,
    },
    #[error(transparent)]
    Version(#[from] holm_model::artifact::VersionError),
    #[error(transparent)]
    Bundle(#[from] holm_model::bundle::BundleError),
}

/// A descriptor, as far as Holm reads it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

/// An image manifest, as far as Holm reads it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ImageManifest {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

/// What a manifest points to.
#[derive(Clone, Debug)]
struct Parts {
    statement: Descriptor,
    bundle: Descriptor,
    key: String,
    signature: String,
}

impl Descriptor {
    fn of(media_type: &str, bytes: &[u8]) -> Self {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            artifact_type: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Whether `bytes` are what it describes.
    fn check(&self, what: &'static str, bytes: &[u8]) -> Result<(), PackageError> {
        let found = Digest::of(bytes);
        match found == self.digest && self.size == bytes.len() as u64 {
            true => Ok(()),
            false => Err(PackageError::OtherDigest {
                what,
                expected: self.digest,
                found,
            }),
        }
    }
}

impl Package {
    /// Checks that the signature is good for the key that comes with it, and the artifact what was signed. Whether
    /// the key is the tenant's is for the coordinator and the nodes to say.
    pub(crate) fn new(signed: SignedVersion, artifact: Vec<u8>) -> Result<Self, PackageError> {
        let statement = signed.verify(&[signed.key])?.statement;
        statement.check_artifact(&artifact)?;
        Bundle::parse(&artifact)?;
        Ok(Package {
            signed,
            statement,
            artifact,
        })
    }

    /// The image manifest.
    fn manifest(&self) -> Vec<u8> {
        let function = &self.statement.function;
        let mut layer = Descriptor::of(BUNDLE, &self.artifact);
        let title = format!("{}.holm", function.function);
        layer.annotations.insert(TITLE.to_owned(), title);
        let annotations = [
            (KEY, self.signed.key.to_string()),
            (SIGNATURE, BASE64.encode(&self.signed.signature)),
            (TITLE, function.to_string()),
            (VERSION, self.statement.label.clone()),
        ];
        let manifest = ImageManifest {
            schema_version: 2,
            media_type: Some(MANIFEST.to_owned()),
            artifact_type: Some(FUNCTION.to_owned()),
            config: Descriptor::of(STATEMENT, &self.signed.statement),
            layers: vec![layer],
            annotations: annotations
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
        };
        serde_json::to_vec(&manifest).expect("a manifest has no map with keys that are not text")
    }
}

impl Parts {
    /// Reads an image manifest.
    fn read(manifest: &[u8]) -> Result<Self, PackageError> {
        let manifest: ImageManifest =
            serde_json::from_slice(manifest).map_err(PackageError::Manifest)?;
        let kind = manifest.artifact_type.unwrap_or_default();
        if kind != FUNCTION {
            return Err(PackageError::OtherKind(kind.chars().take(80).collect()));
        }
        let lacks = |what| PackageError::Lacks { what };
        let [bundle] = &manifest.layers[..] else {
            return Err(lacks("the one layer"));
        };
        let bundle = bundle.clone();
        if bundle.media_type != BUNDLE {
            return Err(lacks("the media type of the layer"));
        }
        let statement = manifest.config;
        if statement.media_type != STATEMENT {
            return Err(lacks("the media type of the config"));
        }
        for (what, part, most) in [
            ("statement", &statement, 2 * MAX_MANIFEST_BYTES),
            ("artifact", &bundle, MAX_ARTIFACT_BYTES),
        ] {
            if part.size > most {
                let bytes = part.size;
                return Err(PackageError::TooLarge { what, bytes });
            }
        }
        let mut annotations = manifest.annotations;
        let mut take = |name: &str| annotations.remove(name);
        Ok(Parts {
            statement,
            bundle,
            key: take(KEY).ok_or(lacks("the annotation run.holm.publisher-key"))?,
            signature: take(SIGNATURE).ok_or(lacks("the annotation run.holm.signature"))?,
        })
    }

    /// Makes a package of the blobs that belong to it.
    fn package(self, statement: Vec<u8>, artifact: Vec<u8>) -> Result<Package, PackageError> {
        self.statement.check("statement", &statement)?;
        self.bundle.check("artifact", &artifact)?;
        let lacks = |what| PackageError::Lacks { what };
        let key = self.key.parse();
        let signature = BASE64.decode(&self.signature);
        let signed = SignedVersion {
            statement,
            key: key.map_err(|_| lacks("the annotation run.holm.publisher-key"))?,
            signature: signature.map_err(|_| lacks("the annotation run.holm.signature"))?,
        };
        Package::new(signed, artifact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_a_path_and_maybe_a_tag_or_one_to_a_registry() {
        let read = |text: &str| match text.parse().unwrap() {
            Reference::Layout { path, tag } => (path.display().to_string(), tag),
            Reference::Registry(at) => (at.whole(), at.tag().map(str::to_owned)),
        };
        let tagged = |path: &str, tag: &str| (path.to_owned(), Some(tag.to_owned()));
        assert_eq!(read("oci:a/b"), ("a/b".to_owned(), None));
        assert_eq!(read("oci:/a:b/c"), ("/a:b/c".to_owned(), None));
        assert_eq!(read("oci:a:v1.2-x"), tagged("a", "v1.2-x"));
        assert_eq!(read("oci:/a:b/c:latest"), tagged("/a:b/c", "latest"));
        let at = "localhost:5000/a/b:v1";
        assert_eq!(read(&format!("docker://{at}")), tagged(at, "v1"));
        for text in [
            "",
            "a",
            "oci:",
            "oci::v1",
            "oci:a:",
            "oci:a:-x",
            "oci:a:ü",
            "docker://",
            "docker://A B",
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(error.contains("oci:PATH:TAG"), "{text}: {error}");
        }
    }
}
