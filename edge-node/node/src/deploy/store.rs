//! What the node keeps on disk of its deployments.
//!
//! ```text
//! desired.bin            the last desired state, a file of holm_model::codec
//! artifacts/HEX          a program, named by its SHA-256; HEX.part while it is being fetched
//! artifacts/HEX.index    its chunks, by which others find what they have in common with it
//! snapshots/HEX.snap     a version's snapshot, named by the version's id
//! ```
//! Everything is verified when it is read: artifacts by digest, snapshots by the VMM, versions in the
//! desired state by their signature. What cannot be verified is made or fetched anew.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use holm_model::artifact::Statement;
use holm_model::chunks::{Index, MAX_INDEX_BYTES};
use holm_model::codec;
use holm_model::control::Desired;
use holm_model::ids::{Digest, VersionId};
use holm_model::limits::{MAX_ARTIFACT_BYTES, MAX_CONTROL_FRAME_BYTES};

use crate::files::{self, FileError};

/// The format of `desired.bin`. Another one needs a conversion from this, as long as there are nodes that have it.
const DESIRED_FORMAT: u16 = 5;

/// The deployment files under a state directory.
#[derive(Clone, Debug)]
pub(crate) struct DeployStore {
    dir: PathBuf,
}

impl DeployStore {
    pub(crate) fn open(dir: &Path) -> Result<Self, FileError> {
        files::make_dir(&dir.join("artifacts"))?;
        files::make_dir(&dir.join("snapshots"))?;
        Ok(DeployStore {
            dir: dir.to_owned(),
        })
    }

    pub(crate) fn artifact(&self, digest: Digest) -> PathBuf {
        self.dir.join("artifacts").join(digest.hex())
    }

    pub(crate) fn part(&self, digest: Digest) -> PathBuf {
        self.dir
            .join("artifacts")
            .join(format!("{}.part", digest.hex()))
    }

    pub(crate) fn index(&self, digest: Digest) -> PathBuf {
        self.dir
            .join("artifacts")
            .join(format!("{}.index", digest.hex()))
    }

    /// The index of an artifact, if there is one that can be read.
    pub(crate) fn read_index(&self, digest: Digest) -> Result<Option<Index>, FileError> {
        let bytes = files::read_if_there(&self.index(digest), MAX_INDEX_BYTES as u64)?;
        Ok(bytes.and_then(|bytes| Index::parse(&bytes).ok()))
    }

    /// The artifacts whose index is here.
    pub(crate) fn indexes(&self) -> Result<Vec<Digest>, FileError> {
        let dir = self.dir.join("artifacts");
        let wrong = |error| FileError::new("read", &dir, error);
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(wrong)? {
            let name = entry.map_err(wrong)?.file_name();
            let hex = name.to_str().and_then(|name| name.strip_suffix(".index"));
            found.extend(hex.and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok()));
        }
        Ok(found)
    }

    pub(crate) fn snapshot(&self, version: VersionId) -> PathBuf {
        self.dir
            .join("snapshots")
            .join(format!("{}.snap", version.hex()))
    }

    /// The artifact's bytes if they are here and are what was signed.
    pub(crate) fn verified_artifact(
        &self,
        statement: &Statement,
    ) -> Result<Option<Vec<u8>>, FileError> {
        let path = self.artifact(statement.artifact);
        let Some(bytes) = files::read_if_there(&path, MAX_ARTIFACT_BYTES)? else {
            return Ok(None);
        };
        match statement.check_artifact(&bytes) {
            Ok(()) => Ok(Some(bytes)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the file is fetched again");
                files::remove_if_there(&path)?;
                Ok(None)
            }
        }
    }

    /// Makes the verified `.part` file the artifact.
    pub(crate) fn complete(&self, digest: Digest) -> Result<(), FileError> {
        let (part, path) = (self.part(digest), self.artifact(digest));
        fs::rename(&part, &path).map_err(|error| FileError::new("rename", &part, error))?;
        files::sync_parent(&path)
    }

    /// Removes what a version left behind.
    pub(crate) fn remove(
        &self,
        version: VersionId,
        artifact: Option<Digest>,
    ) -> Result<(), FileError> {
        files::remove_if_there(&self.snapshot(version))?;
        if let Some(digest) = artifact {
            files::remove_if_there(&self.artifact(digest))?;
            files::remove_if_there(&self.part(digest))?;
            files::remove_if_there(&self.index(digest))?;
        }
        Ok(())
    }

    /// Removes every artifact and snapshot that is not to be kept.
    pub(crate) fn sweep(
        &self,
        artifacts: &BTreeSet<Digest>,
        versions: impl Fn(&str) -> bool,
    ) -> Result<(), FileError> {
        let kept: BTreeSet<String> = artifacts.iter().map(Digest::hex).collect();
        self.sweep_dir("artifacts", |name| {
            kept.contains(name.trim_end_matches(".part").trim_end_matches(".index"))
        })?;
        self.sweep_dir("snapshots", |name| {
            name.strip_suffix(".snap").is_some_and(&versions)
        })
    }

    fn sweep_dir(&self, dir: &str, keep: impl Fn(&str) -> bool) -> Result<(), FileError> {
        let dir = self.dir.join(dir);
        let wrong = |error| FileError::new("read", &dir, error);
        for entry in fs::read_dir(&dir).map_err(wrong)? {
            let entry = entry.map_err(wrong)?;
            if !entry.file_name().to_str().is_some_and(&keep) {
                files::remove_if_there(&entry.path())?;
            }
        }
        Ok(())
    }

    /// The last desired state. One that cannot be read is left out, with a word in the log: the
    /// coordinator will send it again.
    pub(crate) fn desired(&self) -> Result<Option<Desired>, FileError> {
        let path = self.dir.join("desired.bin");
        let max = MAX_CONTROL_FRAME_BYTES as u64 + 4;
        let Some(bytes) = files::read_if_there(&path, max)? else {
            return Ok(None);
        };
        match codec::decode_file(&bytes, DESIRED_FORMAT..=DESIRED_FORMAT) {
            Ok(desired) => Ok(Some(desired)),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the last desired state is lost; waiting for the coordinator");
                Ok(None)
            }
        }
    }

    /// Keeps the desired state for a restart without coordinator.
    pub(crate) fn keep_desired(&self, desired: &Desired) -> Result<(), FileError> {
        let path = self.dir.join("desired.bin");
        let frame = codec::encode_file(desired, DESIRED_FORMAT).map_err(|error| {
            FileError::new("write", &path, std::io::Error::other(error.to_string()))
        })?;
        files::write_atomically(&path, &frame, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::testing::{program, statement};

    #[test]
    fn desired_state_comes_back_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = DeployStore::open(dir.path()).unwrap();
        assert_eq!(store.desired().unwrap(), None);
        let desired = Desired {
            generation: 7,
            functions: vec![],
            draining: Default::default(),
        };
        store.keep_desired(&desired).unwrap();
        assert_eq!(store.desired().unwrap(), Some(desired));
        fs::write(dir.path().join("desired.bin"), b"nonsense").unwrap();
        assert_eq!(store.desired().unwrap(), None);
    }

    /// As protocol version 5 has written it: two versions of `acme/hello`, drained. A change of these bytes needs a
    /// new [`DESIRED_FORMAT`] and a conversion: nodes that are updated have such files.
    fn desired_of_version_5() -> Vec<u8> {
        let signed = format!("077b2261223a317d{}40{}", "aa".repeat(32), "bb".repeat(64));
        let file = format!(
            "1401000005000201{name}01{key}{signed}01{signed}01010e687474703a2f2f6e323a38303830",
            name = "0a61636d652f68656c6c6f",
            key = "cc".repeat(32)
        );
        hex::decode(file).unwrap()
    }

    #[test]
    fn desired_state_from_before_an_update_is_read_and_written_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let store = DeployStore::open(dir.path()).unwrap();
        let path = dir.path().join("desired.bin");
        fs::write(&path, desired_of_version_5()).unwrap();
        let desired = store.desired().unwrap().unwrap();
        assert_eq!((desired.generation, desired.draining.drained), (2, true));
        assert_eq!(desired.functions[0].function.to_string(), "acme/hello");
        fs::remove_file(&path).unwrap();
        // So the node can go back to the version that it was updated from.
        store.keep_desired(&desired).unwrap();
        assert_eq!(fs::read(&path).unwrap(), desired_of_version_5());
    }

    #[test]
    fn an_artifact_altered_on_disk_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let store = DeployStore::open(dir.path()).unwrap();
        let statement = statement("v1", 1);
        let path = store.artifact(statement.artifact);
        fs::write(&path, program("v1")).unwrap();
        assert!(store.verified_artifact(&statement).unwrap().is_some());
        let mut altered = program("v1");
        altered[0] ^= 1;
        fs::write(&path, altered).unwrap();
        assert!(store.verified_artifact(&statement).unwrap().is_none());
        assert!(!path.exists());
    }

    #[test]
    fn a_sweep_removes_what_nothing_refers_to() {
        let dir = tempfile::tempdir().unwrap();
        let store = DeployStore::open(dir.path()).unwrap();
        let (kept, gone) = (Digest::of(b"kept"), Digest::of(b"gone"));
        for digest in [kept, gone] {
            fs::write(store.artifact(digest), "x").unwrap();
            fs::write(store.part(digest), "x").unwrap();
            fs::write(store.snapshot(digest), "x").unwrap();
        }
        store
            .sweep(&BTreeSet::from([kept]), |hex| hex == kept.hex())
            .unwrap();
        assert!(store.artifact(kept).exists() && store.part(kept).exists());
        assert!(store.snapshot(kept).exists());
        assert!(!store.artifact(gone).exists() && !store.part(gone).exists());
        assert!(!store.snapshot(gone).exists());
    }
}
