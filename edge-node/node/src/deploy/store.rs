//! What the node keeps on disk of its deployments.
//!
//! ```text
//! desired.bin            the last desired state, a file of holm_model::codec, and another with its configurations
//!                        if there are any
//! artifacts/HEX          a program, named by its SHA-256; HEX.part while it is being fetched
//! artifacts/HEX.index    its chunks, by which others find what they have in common with it
//! snapshots/HEX.snap     a release's snapshot, named by the release's id
//! ```
//! Desired state and snapshots have values of secrets in them, as the program's memory has: the file and the directory
//! are for the node's user alone, and what else protects them is the disk's own encryption.
//!
//! Everything is verified when it is read: artifacts by digest, snapshots by the VMM, versions in the
//! desired state by their signature. What cannot be verified is made or fetched anew.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use holm_model::artifact::Statement;
use holm_model::chunks::{Index, MAX_INDEX_BYTES};
use holm_model::codec;
use holm_model::configuration::ReleaseId;
use holm_model::control::{Configured, Desired};
use holm_model::ids::Digest;
use holm_model::limits::{MAX_ARTIFACT_BYTES, MAX_CONTROL_FRAME_BYTES};

use crate::files::{self, FileError};

/// The format of `desired.bin`. Another one needs a conversion from this, as long as there are nodes that have it.
const DESIRED_FORMAT: u16 = 5;
/// That of the configurations behind it.
const CONFIGURATIONS_FORMAT: u16 = 6;

/// The deployment files under a state directory.
#[derive(Clone, Debug)]
pub(crate) struct DeployStore {
    dir: PathBuf,
}

impl DeployStore {
    pub(crate) fn open(dir: &Path) -> Result<Self, FileError> {
        files::make_dir(&dir.join("artifacts"))?;
        files::make_private_dir(&dir.join("snapshots"))?;
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

    pub(crate) fn snapshot(&self, release: ReleaseId) -> PathBuf {
        self.dir
            .join("snapshots")
            .join(format!("{}.snap", release.hex()))
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

    /// Removes what a release left behind.
    pub(crate) fn remove(
        &self,
        release: ReleaseId,
        artifact: Option<Digest>,
    ) -> Result<(), FileError> {
        files::remove_if_there(&self.snapshot(release))?;
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
        releases: impl Fn(&str) -> bool,
    ) -> Result<(), FileError> {
        let kept: BTreeSet<String> = artifacts.iter().map(Digest::hex).collect();
        self.sweep_dir("artifacts", |name| {
            kept.contains(name.trim_end_matches(".part").trim_end_matches(".index"))
        })?;
        self.sweep_dir("snapshots", |name| {
            name.strip_suffix(".snap").is_some_and(&releases)
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
    pub(crate) fn desired(&self) -> Result<Option<Configured>, FileError> {
        let path = self.dir.join("desired.bin");
        let max = 2 * (MAX_CONTROL_FRAME_BYTES as u64 + 4);
        let Some(bytes) = files::read_if_there(&path, max)? else {
            return Ok(None);
        };
        match read_desired(&bytes) {
            Ok(desired) => Ok(Some(desired)),
            Err(why) => {
                tracing::error!(path = %path.display(), why, "the last desired state is lost; waiting for the coordinator");
                Ok(None)
            }
        }
    }

    /// Keeps the desired state for a restart without coordinator.
    pub(crate) fn keep_desired(&self, wanted: &Configured) -> Result<(), FileError> {
        let path = self.dir.join("desired.bin");
        let wrong = |error: codec::FrameError| {
            FileError::new("write", &path, std::io::Error::other(error.to_string()))
        };
        let mut frames = codec::encode_file(&wanted.desired, DESIRED_FORMAT).map_err(wrong)?;
        if !wanted.configurations.is_empty() {
            let configurations = &wanted.configurations;
            frames
                .extend(codec::encode_file(configurations, CONFIGURATIONS_FORMAT).map_err(wrong)?);
        }
        files::write_atomically(&path, &frames, 0o600)
    }
}

fn read_desired(bytes: &[u8]) -> Result<Configured, String> {
    let told = |error: codec::FrameError| error.to_string();
    let (first, rest) = split_frame(bytes)?;
    let desired: Desired =
        codec::decode_file(first, DESIRED_FORMAT..=DESIRED_FORMAT).map_err(told)?;
    let mut wanted = Configured::from(desired);
    if !rest.is_empty() {
        let (second, rest) = split_frame(rest)?;
        let formats = CONFIGURATIONS_FORMAT..=CONFIGURATIONS_FORMAT;
        wanted.configurations = codec::decode_file(second, formats).map_err(told)?;
        if !rest.is_empty() {
            return Err("bytes after its end".into());
        }
    }
    Ok(wanted)
}

/// The first frame, and what is behind it.
fn split_frame(bytes: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let cut = || "it is cut short".to_owned();
    let length = bytes.first_chunk::<4>().ok_or_else(cut)?;
    let following = codec::following_bytes(*length).map_err(|error| error.to_string())?;
    bytes.split_at_checked(4 + following).ok_or_else(cut)
}

#[cfg(test)]
mod tests {
    use holm_model::control::DesiredConfiguration;

    use super::*;
    use crate::deploy::testing::{configuration, program, statement};
    use std::os::unix::fs::PermissionsExt as _;

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
        let mut wanted = Configured::from(desired);
        store.keep_desired(&wanted).unwrap();
        assert_eq!(store.desired().unwrap(), Some(wanted.clone()));
        wanted.configurations = vec![DesiredConfiguration {
            function: "acme/hello".parse().unwrap(),
            version: Some(configuration(1, "hunter2")),
            previous: None,
        }];
        store.keep_desired(&wanted).unwrap();
        assert_eq!(store.desired().unwrap(), Some(wanted));
        let path = dir.path().join("desired.bin");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut cut = fs::read(&path).unwrap();
        cut.pop();
        fs::write(&path, cut).unwrap();
        assert_eq!(store.desired().unwrap(), None);
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
        let wanted = store.desired().unwrap().unwrap();
        let desired = &wanted.desired;
        assert_eq!((desired.generation, desired.draining.drained), (2, true));
        assert_eq!(desired.functions[0].function.to_string(), "acme/hello");
        fs::remove_file(&path).unwrap();
        // So the node can go back to the version that it was updated from.
        store.keep_desired(&wanted).unwrap();
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
        // As it is where a node from before has made it.
        fs::create_dir(dir.path().join("snapshots")).unwrap();
        let store = DeployStore::open(dir.path()).unwrap();
        let snapshots = fs::metadata(dir.path().join("snapshots")).unwrap();
        assert_eq!(snapshots.permissions().mode() & 0o777, 0o700);
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
