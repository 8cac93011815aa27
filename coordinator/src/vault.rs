//! Secrets at rest: sealed ([`crate::sealed`]) with a key that is in a file, and not in the database.
//!
//! Each value is encrypted by itself, and belongs to the function and the commitment that is in the signed statement, so
//! that no ciphertext can take another's place.
//!
//! The key's file is made at the first start, with mode 0600. Its fingerprint is in the database from the first secret
//! on, or from the start where several coordinators share that: one with another key, or none, does not start.
//! [`Vault::renew`] changes the key.

use std::path::{Path, PathBuf};

use holm_model::configuration::Secret;
use holm_model::ids::{Digest, FunctionName};

use crate::ca::{CaError, random, write_first_secret};
use crate::sealed::{KEY_BYTES, SealingKey};
use crate::store::{Store, StoreError};

/// Secrets cannot be encrypted or read.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// There are secrets, and the key is not here.
    #[error(
        "the database's secrets are encrypted with a key that {0} is to hold, which is not there; copy it from another \
         coordinator on this database or from a backup, or say where it is with --secrets-key"
    )]
    NoKey(PathBuf),
    /// The key is another one.
    #[error(
        "the key in {path} (fingerprint {own}) is not the one that the database's secrets are encrypted with \
         (fingerprint {wanted}); copy that from another coordinator on this database or from a backup"
    )]
    OtherKey {
        /// The file.
        path: PathBuf,
        /// Of the key in it.
        own: String,
        /// Of the key that it should have.
        wanted: String,
    },
    /// The file is no key.
    #[error(
        "{0} is no key for secrets: it has to be 64 hexadecimal digits; restore it from a backup"
    )]
    BadKey(PathBuf),
    /// The key's file cannot be read or written.
    #[error(transparent)]
    File(#[from] CaError),
    /// What is stored is not what was encrypted.
    #[error(
        "a secret of `{0}` in the database cannot be decrypted: it was altered or mixed up there; restore the database \
         from a backup, or set the secret again"
    )]
    Altered(FunctionName),
    /// A configuration names a secret that is not there.
    #[error(
        "the secret `{name}` of `{function}` is not in the database; restore that from a backup"
    )]
    Gone {
        /// Whose.
        function: FunctionName,
        /// Which.
        name: String,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Encrypts and decrypts secrets.
#[derive(Debug)]
pub(crate) struct Vault {
    key: SealingKey,
    fingerprint: Digest,
}

impl Vault {
    /// The vault of a database, whose key is in `path`. The file is made if the database knows of none.
    pub(crate) async fn open(path: &Path, store: &Store) -> Result<Self, VaultError> {
        let wanted = store.secrets_key(None).await?;
        let vault = match (read(path)?, wanted) {
            (Some(vault), _) => vault,
            (None, Some(_)) => return Err(VaultError::NoKey(path.to_owned())),
            (None, None) => make(path)?,
        };
        let own = store.is_shared().then_some(vault.fingerprint);
        match store.secrets_key(own).await? {
            Some(wanted) if wanted != vault.fingerprint => renewed(path, vault, wanted),
            _ => Ok(vault),
        }
    }

    /// Encrypts all secrets of the database with a new key, which takes the place of the one in `path`. Returns how
    /// many.
    pub(crate) async fn renew(path: &Path, store: &Store) -> Result<u64, VaultError> {
        let old = Vault::open(path, store).await?;
        // Until the database has it, the old one is needed; from then on this one is.
        let next = beside(path);
        // Of a renewal that came to nothing: the database has the old one.
        match std::fs::remove_file(&next) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(file("removing", &next, error));
            }
            _ => {}
        }
        let new = make(&next)?;
        let again = store.encrypt_again(new.fingerprint, |function, row| {
            match old.decrypt(function, row.commitment, &row.ciphertext) {
                Ok(secret) => Ok(new.encrypt(function, &secret)),
                // It is lost with either key, and no reason for the others to stay with the old one.
                Err(error @ VaultError::Altered(_)) => {
                    tracing::error!(%error, "a secret stays as it is");
                    Ok(row.ciphertext.clone())
                }
                Err(error) => Err(error),
            }
        });
        let count = again.await?;
        replace(path)?;
        Ok(count)
    }

    /// By which the database knows the key.
    pub(crate) fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    /// What is stored of a secret.
    pub(crate) fn encrypt(&self, function: &FunctionName, secret: &Secret) -> Vec<u8> {
        let mut plain = secret.salt().to_vec();
        plain.extend_from_slice(secret.value().as_bytes());
        self.key
            .seal(&belongs(function, secret.commitment()), plain)
    }

    /// The secret that was stored so.
    pub(crate) fn decrypt(
        &self,
        function: &FunctionName,
        commitment: Digest,
        stored: &[u8],
    ) -> Result<Secret, VaultError> {
        let altered = || VaultError::Altered(function.clone());
        let opened = self.key.open(&belongs(function, commitment), stored);
        let opened = opened.ok_or_else(altered)?;
        let (salt, value) = opened.split_first_chunk().ok_or_else(altered)?;
        let value = String::from_utf8(value.to_vec()).map_err(|_| altered())?;
        Ok(Secret::new(*salt, value))
    }
}

/// What is authenticated with a secret: the function's name ends at the first line's end.
fn belongs(function: &FunctionName, commitment: Digest) -> Vec<u8> {
    [function.to_string().as_bytes(), b"\n", &commitment.0].concat()
}

/// The key in the file, if there is one.
fn read(path: &Path) -> Result<Option<Vault>, VaultError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(file("reading", path, source)),
    };
    let mut key = [0; KEY_BYTES];
    hex::decode_to_slice(bytes.trim_ascii(), &mut key)
        .map_err(|_| VaultError::BadKey(path.to_owned()))?;
    Ok(Some(of(&key)))
}

/// The key in the file, which is made unless somebody else is quicker: coordinators that share it may start at once.
fn make(path: &Path) -> Result<Vault, VaultError> {
    let key: [u8; KEY_BYTES] = random();
    write_first_secret(path, format!("{}\n", hex::encode(key)).as_bytes())?;
    read(path)?.ok_or_else(|| VaultError::NoKey(path.to_owned()))
}

fn of(key: &[u8; KEY_BYTES]) -> Vault {
    let fingerprint = Digest::of(&[&b"holm secrets key\n"[..], key].concat());
    let key = SealingKey::new(key);
    Vault { key, fingerprint }
}

/// Where the next key is until the database has it.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".next");
    name.into()
}

/// The next key takes the place of this one.
fn replace(path: &Path) -> Result<(), VaultError> {
    std::fs::rename(beside(path), path).map_err(|source| file("replacing", path, source))
}

/// The key in `path` is not the one that the database wants. Perhaps a renewal was cut short behind its commit.
fn renewed(path: &Path, found: Vault, wanted: Digest) -> Result<Vault, VaultError> {
    match read(&beside(path))? {
        Some(next) if next.fingerprint == wanted => {
            replace(path)?;
            Ok(next)
        }
        _ => Err(VaultError::OtherKey {
            path: path.to_owned(),
            own: found.fingerprint.short(),
            wanted: wanted.short(),
        }),
    }
}

fn file(operation: &'static str, path: &Path, source: std::io::Error) -> VaultError {
    VaultError::File(CaError::File {
        operation,
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::TestDatabase;

    fn function() -> FunctionName {
        "acme/hello".parse().unwrap()
    }

    fn secret() -> Secret {
        Secret::new([3; 32], "hunter2".into())
    }

    #[test]
    fn a_secret_comes_back_only_for_its_function_and_commitment_and_unaltered() {
        let vault = of(&[1; KEY_BYTES]);
        let (function, secret) = (function(), secret());
        let stored = vault.encrypt(&function, &secret);
        let commitment = secret.commitment();
        assert_eq!(
            vault.decrypt(&function, commitment, &stored).unwrap(),
            secret
        );
        let other = "acme/other".parse().unwrap();
        assert!(vault.decrypt(&other, commitment, &stored).is_err());
        assert!(
            vault
                .decrypt(&function, Digest::of(b"other"), &stored)
                .is_err()
        );
        for index in 0..stored.len() {
            let mut altered = stored.clone();
            altered[index] ^= 1;
            assert!(
                vault.decrypt(&function, commitment, &altered).is_err(),
                "{index}"
            );
            assert!(
                vault
                    .decrypt(&function, commitment, &stored[..index])
                    .is_err(),
                "{index}"
            );
        }
        assert!(
            of(&[2; KEY_BYTES])
                .decrypt(&function, commitment, &stored)
                .is_err()
        );
    }

    #[test]
    fn the_same_secret_is_never_stored_twice_as_the_same_bytes() {
        let vault = of(&[1; KEY_BYTES]);
        let stored = vault.encrypt(&function(), &secret());
        assert_ne!(stored, vault.encrypt(&function(), &secret()));
        let shown = String::from_utf8_lossy(&stored).into_owned();
        assert!(!shown.contains("hunter2"));
    }

    #[tokio::test]
    async fn a_key_that_is_lost_or_another_one_is_named_at_the_start() {
        let database = TestDatabase::sqlite().await;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secrets.key");
        let made = Vault::open(&path, &database.store).await.unwrap();
        let noted = database.store.secrets_key(Some(made.fingerprint())).await;
        assert_eq!(noted.unwrap(), Some(made.fingerprint()));
        let again = Vault::open(&path, &database.store).await.unwrap();
        assert_eq!(made.fingerprint(), again.fingerprint());
        let kept = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let lost = Vault::open(&path, &database.store).await.unwrap_err();
        assert!(
            matches!(&lost, VaultError::NoKey(of) if *of == path),
            "{lost}"
        );
        make(&path).unwrap();
        let other = Vault::open(&path, &database.store).await.unwrap_err();
        assert!(
            other.to_string().contains(&made.fingerprint().short()),
            "{other}"
        );
        std::fs::write(&path, "not a key").unwrap();
        let bad = Vault::open(&path, &database.store).await.unwrap_err();
        assert!(matches!(bad, VaultError::BadKey(_)), "{bad}");
        std::fs::write(&path, kept).unwrap();
        Vault::open(&path, &database.store).await.unwrap();
    }

    #[tokio::test]
    async fn a_renewal_that_was_cut_short_is_completed_at_the_next_start() {
        let database = TestDatabase::sqlite().await;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secrets.key");
        let old = Vault::open(&path, &database.store).await.unwrap();
        let kept = std::fs::read(&path).unwrap();
        assert_eq!(Vault::renew(&path, &database.store).await.unwrap(), 0);
        let new = std::fs::read(&path).unwrap();
        // As it is behind the commit and before the new file has its name.
        std::fs::write(beside(&path), &new).unwrap();
        std::fs::write(&path, kept).unwrap();
        let opened = Vault::open(&path, &database.store).await.unwrap();
        assert_ne!(opened.fingerprint(), old.fingerprint());
        assert_eq!(std::fs::read(&path).unwrap(), new);
        assert!(!beside(&path).exists());
    }
}
