//! The publisher's key: Ed25519, kept as PKCS#8 PEM in a file for its owner alone.
//!
//! Whoever has this key may publish for the tenants that trust it. It is made on first use, which is
//! said, and never replaced.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use base64::Engine as _;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _};

use crate::exit::Failure;
use crate::output::Output;
use crate::remote::settings::{config_directory, read_small, write_private};

/// Which key to publish with.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct KeyFile {
    /// The publisher's key [default: ~/.config/holm/publisher.pem, made on first use].
    #[arg(long = "key", env = "HOLM_PUBLISHER_KEY", value_name = "FILE")]
    pub(crate) path: Option<PathBuf>,
}

impl KeyFile {
    /// The key; makes the file, and says so, if it is not there.
    pub(crate) fn load_or_create(&self, output: Output) -> Result<SigningKey, Failure> {
        let path = match &self.path {
            Some(path) => path.clone(),
            None => config_directory()?.join("publisher.pem"),
        };
        match std::fs::metadata(&path) {
            Ok(metadata) => {
                if metadata.permissions().mode() & 0o077 != 0 {
                    output.warn(format!(
                        "others on this machine may use the publisher key {}; run `chmod 600` on it",
                        path.display()
                    ));
                }
                let unusable = |error: &dyn std::fmt::Display| {
                    Failure::usage(format!(
                        "the publisher key {} cannot be used: {error}",
                        path.display()
                    ))
                    .hint("it has to be an Ed25519 key as PKCS#8 PEM; give another with --key")
                };
                let pem = read_small(&path).map_err(|error| unusable(&error))?;
                SigningKey::from_pkcs8_pem(&pem).map_err(|error| unusable(&error))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = create(&path)?;
                output.note(format!(
                    "made a publisher key, {}: keep it, it is what your tenants trust",
                    path.display()
                ));
                Ok(key)
            }
            Err(error) => Err(Failure::usage(format!(
                "the publisher key {} cannot be read: {error}",
                path.display()
            ))),
        }
    }
}

/// The public half as the coordinator wants it.
pub(crate) fn public_base64(key: &SigningKey) -> String {
    base64::engine::general_purpose::STANDARD.encode(key.verifying_key().to_bytes())
}

fn create(path: &std::path::Path) -> Result<SigningKey, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::other(format!(
            "the publisher key {} cannot be made: {error}",
            path.display()
        ))
    };
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|error| failed(&error))?;
    let key = SigningKey::from_bytes(&secret);
    let pem = key
        .to_pkcs8_pem(LineEnding::LF)
        .map_err(|error| failed(&error))?;
    write_private(path, pem.as_bytes(), false).map_err(|error| failed(&error))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENT: Output = Output {
        json: false,
        quiet: true,
    };

    #[test]
    fn a_key_is_made_once_and_is_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let file = KeyFile {
            path: Some(directory.path().join("new/publisher.pem")),
        };
        let made = file.load_or_create(SILENT).unwrap();
        let read = file.load_or_create(SILENT).unwrap();
        assert_eq!(made.to_bytes(), read.to_bytes());
        let path = file.path.unwrap();
        assert_eq!(
            std::fs::metadata(path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn a_file_that_is_not_a_key_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("publisher.pem");
        std::fs::write(&path, "not a key").unwrap();
        let failure = KeyFile {
            path: Some(path.clone()),
        }
        .load_or_create(SILENT)
        .unwrap_err();
        assert_eq!(failure.exit, crate::exit::Exit::Usage);
        assert!(failure.message.contains("publisher.pem"), "{failure}");
        assert_eq!(std::fs::read(&path).unwrap(), b"not a key");
    }
}
