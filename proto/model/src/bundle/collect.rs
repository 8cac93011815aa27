//! Putting a file tree together, from whatever order its files come in.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use holm_hostcall::message::Sink;
use holm_hostcall::tree::{self, Kind, MAX_ENTRIES, MAX_PATH_BYTES, Source};
use sha2::{Digest as _, Sha256};

use super::Files;
use crate::limits::MAX_ARTIFACT_BYTES;

/// The first second that a file's time can be: 1980-01-01 UTC.
const EARLIEST_S: u32 = 315_532_800;
/// Files' times lie within so many seconds from then on.
const TIMES_S: u32 = 1 << 28;

/// Why something cannot be a part of a file tree. The message names its path in the guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CollectError {
    /// Not a path that the guest could have.
    #[error(
        "`{0}` cannot be a path in the guest: it has to be absolute and plain, of at most 1023 bytes, \
         and no name in it longer than 255"
    )]
    BadPath(String),
    /// In a directory that is the guest's own.
    #[error("`{0}` cannot be brought: /dev, /proc, /sys and /tmp are the guest's own")]
    Reserved(String),
    /// Taken twice, or a file where a directory has to be.
    #[error(
        "`{0}` is there twice: as a directory or link and as something else, or from two places"
    )]
    Twice(String),
    /// Empty or too long.
    #[error("the symbolic link `{0}` has an empty text, or one longer than 1023 bytes")]
    BadLink(String),
    /// More than [`MAX_ENTRIES`].
    #[error("there are more than {MAX_ENTRIES} files, directories and links")]
    TooMany,
    /// Larger than [`MAX_ARTIFACT_BYTES`].
    #[error("the files have more than the {MAX_ARTIFACT_BYTES} bytes allowed together")]
    TooLarge,
}

/// A path in the order of a tree's entries.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key(Vec<u8>);

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        tree::order(&self.0, &other.0)
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[derive(Clone, Debug)]
struct Node {
    kind: Kind,
    executable: bool,
    content: Vec<u8>,
}

/// A file tree in the making. Directories on the way to a file come by themselves.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    nodes: BTreeMap<Key, Node>,
    bytes: u64,
}

impl Collected {
    /// A file.
    pub fn file(
        &mut self,
        path: &[u8],
        executable: bool,
        content: Vec<u8>,
    ) -> Result<(), CollectError> {
        self.bytes = self.bytes.saturating_add(content.len() as u64);
        if self.bytes > MAX_ARTIFACT_BYTES {
            return Err(CollectError::TooLarge);
        }
        let node = Node {
            kind: Kind::File,
            executable,
            content,
        };
        self.add(path, node)
    }

    /// A directory; it may be there already.
    pub fn directory(&mut self, path: &[u8]) -> Result<(), CollectError> {
        let node = Node {
            kind: Kind::Directory,
            executable: false,
            content: Vec::new(),
        };
        self.add(path, node)
    }

    /// A symbolic link, and where it leads.
    pub fn link(&mut self, path: &[u8], to: &[u8]) -> Result<(), CollectError> {
        if to.is_empty() || to.len() > MAX_PATH_BYTES || to.contains(&0) {
            return Err(CollectError::BadLink(text(path)));
        }
        let node = Node {
            kind: Kind::Link,
            executable: false,
            content: to.to_vec(),
        };
        self.add(path, node)
    }

    /// Files, directories and links so far.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    fn add(&mut self, path: &[u8], node: Node) -> Result<(), CollectError> {
        if !tree::is_plain(path) {
            return Err(CollectError::BadPath(text(path)));
        }
        if tree::is_reserved(path) {
            return Err(CollectError::Reserved(text(path)));
        }
        if path != b"/" {
            let slash = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            self.directory(path.get(..slash.max(1)).unwrap_or_default())?;
        }
        let kind = node.kind;
        let known = self.nodes.get(&Key(path.to_vec())).map(|known| known.kind);
        match (known, kind) {
            (None, _) if self.nodes.len() >= MAX_ENTRIES => Err(CollectError::TooMany),
            // The guest has entries of its own in /etc, so it has to be a directory.
            (None, Kind::File | Kind::Link) if path == b"/etc" || path == b"/" => {
                Err(CollectError::Twice(text(path)))
            }
            (None, _) => {
                self.nodes.insert(Key(path.to_vec()), node);
                Ok(())
            }
            (Some(Kind::Directory), Kind::Directory) => Ok(()),
            (Some(_), _) => Err(CollectError::Twice(text(path))),
        }
    }

    /// The tree.
    pub fn finish(&self) -> Result<Files, CollectError> {
        if self.nodes.is_empty() {
            return Ok(Files::default());
        }
        let sources: Vec<Source<'_>> = self
            .nodes
            .iter()
            .map(|(path, node)| Source {
                path: &path.0,
                kind: node.kind,
                executable: node.executable,
                modified_s: modified_s(node),
                content: &node.content,
            })
            .collect();
        let mut all = All(Vec::new());
        match tree::encode(&mut all, &sources) {
            Ok(()) => Ok(Files(all.0.into())),
            // Everything else was seen to when it was added.
            Err(_) => Err(CollectError::TooLarge),
        }
    }
}

/// Bytes up to the largest artifact.
struct All(Vec<u8>);

impl Sink for All {
    fn put(&mut self, bytes: &[u8]) -> bool {
        let fits = (self.0.len() + bytes.len()) as u64 <= MAX_ARTIFACT_BYTES;
        if fits {
            self.0.extend_from_slice(bytes);
        }
        fits
    }
}

/// The time that the guest sees of a file. It says nothing of when the file was written, so that the same
/// files always make the same artifact. But it changes with the content, because servers tell caches by
/// time and size what is new.
fn modified_s(node: &Node) -> u32 {
    match node.kind {
        Kind::Directory => EARLIEST_S,
        Kind::File | Kind::Link => {
            let digest = Sha256::digest(&node.content);
            let start = digest
                .iter()
                .take(4)
                .fold(0u32, |number, byte| number << 8 | u32::from(*byte));
            EARLIEST_S + start % TIMES_S
        }
    }
}

fn text(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    text.chars().take(200).collect()
}
