//! Artifacts on disk, by the SHA-256 of their bytes.
//!
//! ```text
//! artifacts/<64 hexadecimal digits>    whole, synced, never changed
//! artifacts/incoming/<random>          being received; removed at start
//! ```
//! Where there are several coordinators, the directory is on a file system that all of them mount.
//!
//! A file gets its final name only when its digest has been checked and its bytes are on disk.

use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use holm_model::ids::Digest;
use holm_model::limits::MAX_ARTIFACT_BYTES;
use sha2::{Digest as _, Sha256};
use tokio::fs::{self, File};
use tokio::io::AsyncWriteExt as _;

use crate::ca::random;
use crate::limits::ORPHAN_ARTIFACT_AGE;
use crate::store::{Store, StoreError};

/// Why an artifact cannot be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The disk failed.
    #[error(
        "{operation} artifact file {path} failed: {source}; look at the state directory's disk"
    )]
    Disk {
        /// What was to be done.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// Too long.
    #[error("the artifact has more than the {MAX_ARTIFACT_BYTES} bytes allowed; make it smaller")]
    TooLarge,
    /// Its bytes are not what was announced.
    #[error(
        "the bytes received have the digest {found}, not {announced}: they were altered or mixed \
         up on the way; send them again"
    )]
    WrongDigest {
        /// In the request.
        announced: Digest,
        /// Of the bytes.
        found: Digest,
    },
    /// There is no such artifact.
    #[error("there is no artifact {0} here")]
    Missing(Digest),
}

/// The artifact directory.
#[derive(Clone, Debug)]
pub(crate) struct Artifacts {
    dir: PathBuf,
}

/// An artifact being received. Dropped before [`Incoming::finish`] has named it, as when the sender
/// goes away, its file goes with it.
pub(crate) struct Incoming {
    announced: Digest,
    path: PathBuf,
    file: File,
    digest: Sha256,
    bytes: u64,
}

impl Artifacts {
    /// Opens the directory; removes what was being received when the coordinator last stopped, but
    /// for what other coordinators may be receiving into a `shared` one.
    pub(crate) async fn open(dir: PathBuf, shared: bool) -> Result<Self, ArtifactError> {
        let incoming = dir.join("incoming");
        fs::create_dir_all(&incoming)
            .await
            .map_err(disk("making", &incoming))?;
        let failed = |operation| disk(operation, &incoming);
        let mut entries = fs::read_dir(&incoming).await.map_err(failed("listing"))?;
        while let Some(entry) = entries.next_entry().await.map_err(failed("listing"))? {
            // Another coordinator may be done with it by now.
            let Some(metadata) = if_there(entry.metadata().await).map_err(failed("measuring"))?
            else {
                continue;
            };
            if !shared || age(&metadata) > ORPHAN_ARTIFACT_AGE {
                if_there(fs::remove_file(entry.path()).await).map_err(failed("clearing"))?;
            }
        }
        Ok(Artifacts { dir })
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    /// Whether the artifact is here.
    pub(crate) async fn has(&self, digest: Digest) -> Result<bool, ArtifactError> {
        let path = self.path(digest);
        fs::try_exists(&path)
            .await
            .map_err(disk("looking for", &path))
    }

    /// Its length; 0 if it is not here.
    pub(crate) async fn bytes(&self, digest: Digest) -> Result<u64, ArtifactError> {
        let path = self.path(digest);
        let metadata = if_there(fs::metadata(&path).await).map_err(disk("measuring", &path))?;
        Ok(metadata.map_or(0, |metadata| metadata.len()))
    }

    /// Whether it is here; if so, it counts as new, so that a deploy that has been told so finds it still.
    pub(crate) async fn has_for_deploy(&self, digest: Digest) -> Result<bool, ArtifactError> {
        let path = self.path(digest);
        let file = if_there(File::options().append(true).open(&path).await)
            .map_err(disk("opening", &path))?;
        let Some(file) = file else { return Ok(false) };
        let file = file.into_std().await;
        file.set_modified(SystemTime::now())
            .map_err(disk("touching", &path))?;
        Ok(true)
    }

    /// Removes the artifact.
    pub(crate) async fn remove(&self, digest: Digest) -> Result<(), ArtifactError> {
        let path = self.path(digest);
        if_there(fs::remove_file(&path).await).map_err(disk("removing", &path))?;
        Ok(())
    }

    /// Removes it if it is still old: a deploy may have touched it meanwhile.
    async fn remove_old(&self, digest: Digest) -> Result<bool, ArtifactError> {
        let path = self.path(digest);
        let metadata = if_there(fs::metadata(&path).await).map_err(disk("measuring", &path))?;
        let old = metadata.is_some_and(|metadata| age(&metadata) > ORPHAN_ARTIFACT_AGE);
        if old {
            self.remove(digest).await?;
        }
        Ok(old)
    }

    /// Begins to receive an artifact.
    pub(crate) async fn receive(&self, announced: Digest) -> Result<Incoming, ArtifactError> {
        let path = self.dir.join("incoming").join(hex::encode(random::<16>()));
        let file = File::create_new(&path)
            .await
            .map_err(disk("making", &path))?;
        Ok(Incoming {
            announced,
            path,
            file,
            digest: Sha256::new(),
            bytes: 0,
        })
    }

    /// The whole artifact, for checks. At most [`MAX_ARTIFACT_BYTES`].
    pub(crate) async fn read(&self, digest: Digest) -> Result<Vec<u8>, ArtifactError> {
        let path = self.path(digest);
        let bytes = if_there(fs::read(&path).await).map_err(disk("reading", &path))?;
        bytes.ok_or(ArtifactError::Missing(digest))
    }

    /// The artifact's file and its length.
    pub(crate) async fn file(&self, digest: Digest) -> Result<(File, u64), ArtifactError> {
        let path = self.path(digest);
        let file = if_there(File::open(&path).await).map_err(disk("opening", &path))?;
        let file = file.ok_or(ArtifactError::Missing(digest))?;
        let metadata = file.metadata().await.map_err(disk("measuring", &path))?;
        Ok((file, metadata.len()))
    }

    /// Removes artifacts that no version names and that are old enough not to be part of a deploy
    /// under way. Returns how many.
    pub(crate) async fn sweep(&self, store: &Store) -> Result<usize, SweepError> {
        let failed = |operation| disk(operation, &self.dir);
        let mut removed = 0;
        let mut entries = fs::read_dir(&self.dir).await.map_err(failed("listing"))?;
        while let Some(entry) = entries.next_entry().await.map_err(failed("listing"))? {
            let name = entry.file_name();
            let Some(Ok(digest)) = name
                .to_str()
                .map(|digits| format!("sha256:{digits}").parse::<Digest>())
            else {
                continue;
            };
            let Some(metadata) = if_there(entry.metadata().await).map_err(failed("measuring"))?
            else {
                continue;
            };
            // Asked first without a turn, which most do not need.
            if age(&metadata) <= ORPHAN_ARTIFACT_AGE || store.names_artifact(digest).await? {
                continue;
            }
            if let Some(done) = store.unless_named(digest, self.remove_old(digest)).await? {
                removed += usize::from(done?);
            }
        }
        Ok(removed)
    }
}

/// None where there is nothing any more.
fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// A sweep failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SweepError {
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Incoming {
    /// Takes the next bytes.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), ArtifactError> {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        if self.bytes > MAX_ARTIFACT_BYTES {
            return Err(ArtifactError::TooLarge);
        }
        self.digest.update(bytes);
        self.file
            .write_all(bytes)
            .await
            .map_err(disk("writing", &self.path))
    }

    /// Checks the digest and gives the file its name, durably. Whether it was new.
    pub(crate) async fn finish(mut self, artifacts: &Artifacts) -> Result<bool, ArtifactError> {
        let found = Digest(std::mem::take(&mut self.digest).finalize().into());
        if found != self.announced {
            let announced = self.announced;
            return Err(ArtifactError::WrongDigest { announced, found });
        }
        let new = !artifacts.has(found).await?;
        self.file
            .sync_all()
            .await
            .map_err(disk("syncing", &self.path))?;
        let path = artifacts.path(found);
        fs::rename(&self.path, &path)
            .await
            .map_err(disk("naming", &path))?;
        let dir = File::open(&artifacts.dir)
            .await
            .map_err(disk("opening", &artifacts.dir))?;
        dir.sync_all()
            .await
            .map_err(disk("syncing", &artifacts.dir))?;
        Ok(new)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Under its final name it is no longer at this path. What cannot be removed now is removed
        // at the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// How long ago the file was last written to.
fn age(metadata: &Metadata) -> Duration {
    let then = metadata.modified().ok();
    then.and_then(|then| SystemTime::now().duration_since(then).ok())
        .unwrap_or_default()
}

fn disk(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> ArtifactError {
    let path = path.to_owned();
    move |source| ArtifactError::Disk {
        operation,
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_start_clears_what_was_being_received_but_not_what_others_may_be_receiving() {
        let dir = tempfile::tempdir().unwrap();
        let open = |shared| Artifacts::open(dir.path().to_owned(), shared);
        let artifacts = open(true).await.unwrap();
        let digest = Digest::of(b"a program");
        let mut incoming = artifacts.receive(digest).await.unwrap();
        incoming.write(b"a pro").await.unwrap();
        let left = dir.path().join("incoming/left");
        fs::write(&left, b"long ago").await.unwrap();
        let long_ago = SystemTime::now() - 2 * ORPHAN_ARTIFACT_AGE;
        let file = std::fs::File::options().write(true).open(&left).unwrap();
        file.set_modified(long_ago).unwrap();

        let other = open(true).await.unwrap();
        assert!(!fs::try_exists(&left).await.unwrap());
        incoming.write(b"gram").await.unwrap();
        assert!(incoming.finish(&artifacts).await.unwrap());
        assert_eq!(other.read(digest).await.unwrap(), b"a program");

        let mut incoming = artifacts.receive(digest).await.unwrap();
        incoming.write(b"a program").await.unwrap();
        open(false).await.unwrap();
        let cleared = incoming.finish(&artifacts).await.unwrap_err();
        assert!(matches!(cleared, ArtifactError::Disk { .. }), "{cleared}");
    }
}
