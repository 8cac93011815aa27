//! Where the bytes of artifacts are: objects with a name, stored whole and never changed, in a directory or in an
//! S3-compatible store.
//!
//! ```text
//! fleet           which fleet's artifacts these are
//! packs/NAME      chunks, one after the other; NAME is 32 random hexadecimal digits
//! usage/…         files of exported usage
//! ```
//! The names are the same in both, so that objects can be copied from one to the other. What is in an object and
//! whether anybody needs it is not known here.

mod directory;
mod s3;

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

pub(super) use directory::{disk, if_there};
pub use s3::{S3Place, S3PlaceError};

use super::ArtifactError;
use directory::Directory;
use s3::S3;

/// The object that tells whose the others are.
const FLEET: &str = "fleet";
/// Before the names of packs.
const PACKS: &str = "packs";

/// A place for objects. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum Objects {
    /// Files.
    Directory(Directory),
    /// Objects of an S3-compatible store.
    S3(S3),
}

impl Objects {
    /// Those of a directory, which is made if it is not there.
    pub(crate) async fn in_directory(dir: PathBuf) -> Result<Self, ArtifactError> {
        Directory::open(dir).await.map(Objects::Directory)
    }

    /// Those of an S3-compatible store. It is not asked yet.
    pub(crate) fn in_s3(place: &S3Place) -> Result<Self, ArtifactError> {
        S3::new(place).map(Objects::S3)
    }

    /// Where they are, for people.
    pub(crate) fn place(&self) -> String {
        match self {
            Objects::Directory(directory) => directory.place(),
            Objects::S3(s3) => s3.place(),
        }
    }

    async fn owner(&self) -> Result<Option<Vec<u8>>, ArtifactError> {
        match self {
            Objects::Directory(directory) => directory.owner().await,
            Objects::S3(s3) => s3.owner().await,
        }
    }

    /// Refuses objects of another fleet, and a place that has none where there `should_be` some. Those that are
    /// nobody's are `fleet`'s from now on.
    pub(crate) async fn claim(&self, fleet: &str, should_be: bool) -> Result<(), ArtifactError> {
        match self.owner().await? {
            Some(owner) if owner == fleet.as_bytes() => return Ok(()),
            Some(_) => return Err(ArtifactError::OtherFleet(self.place())),
            None if should_be => {
                return Err(ArtifactError::Elsewhere {
                    place: self.place(),
                    fleet: fleet.to_owned(),
                });
            }
            None => {}
        }
        match self {
            Objects::Directory(directory) => directory.own(fleet).await,
            Objects::S3(s3) => s3.own(fleet).await,
        }
    }

    /// Refuses to go on where the place itself is not there, however briefly: then what cannot be found in it is not
    /// lost.
    pub(crate) async fn look(&self) -> Result<(), ArtifactError> {
        match self.owner().await? {
            Some(_) => Ok(()),
            None => Err(ArtifactError::Away(self.place())),
        }
    }

    /// Stores a pack durably. Nobody may know its name before that.
    pub(crate) async fn put(&self, pack: &str, bytes: Vec<u8>) -> Result<(), ArtifactError> {
        match self {
            Objects::Directory(directory) => directory.put(pack, bytes).await,
            Objects::S3(s3) => s3.put(pack, bytes).await,
        }
    }

    /// These bytes of a pack; none if it is not there or has not as many.
    pub(crate) async fn read(
        &self,
        pack: &str,
        range: Range<u64>,
    ) -> Result<Option<Vec<u8>>, ArtifactError> {
        match self {
            Objects::Directory(directory) => directory.read(pack, range).await,
            Objects::S3(s3) => s3.read(pack, range).await,
        }
    }

    /// Removes a pack, if it is there.
    pub(crate) async fn remove(&self, pack: &str) -> Result<(), ArtifactError> {
        match self {
            Objects::Directory(directory) => directory.remove(pack).await,
            Objects::S3(s3) => s3.remove(pack).await,
        }
    }

    /// Stores a file with a name of several parts durably, in place of one that has it: what was written by a
    /// coordinator that was killed is written again.
    pub(crate) async fn put_file(&self, name: &str, bytes: Vec<u8>) -> Result<(), ArtifactError> {
        match self {
            Objects::Directory(directory) => directory.put_file(name, bytes).await,
            Objects::S3(s3) => s3.put_file(name, bytes).await,
        }
    }

    /// Such a file; none if it is not there.
    pub(crate) async fn read_file(&self, name: &str) -> Result<Option<Vec<u8>>, ArtifactError> {
        match self {
            Objects::Directory(directory) => directory.read_file(name).await,
            Objects::S3(s3) => s3.read_file(name).await,
        }
    }

    /// The names of all packs, and how long ago each was stored.
    pub(crate) async fn list(&self) -> Result<Vec<(String, Duration)>, ArtifactError> {
        match self {
            Objects::Directory(directory) => directory.list().await,
            Objects::S3(s3) => s3.list().await,
        }
    }
}

/// Whether that is a name of ours.
fn is_pack(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}
