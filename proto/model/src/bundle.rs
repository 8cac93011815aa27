//! An artifact: what is uploaded, signed by its digest, and started on a node.
//!
//! Without files of its own it is the program's ELF file and nothing else. With files it is a *bundle*:
//!
//! ```text
//! 0    magic "HOLMBNDL" | version u32 | 0 u32 | bytes of the program u64 | bytes of the files u64 | 0 …
//! 64   the program
//! …    from a page on: the files, as `holm_hostcall::tree` describes them
//! ```
//! The same program and files always give the same bytes. The bytes come from a tenant: nothing in them is
//! believed before it is checked.

mod collect;

use std::fmt;
use std::sync::Arc;

use holm_hostcall::PAGE_BYTES;
use holm_hostcall::tree::{Tree, TreeError};

pub use collect::{CollectError, Collected};

use crate::limits::MAX_ARTIFACT_BYTES;
use crate::program::{Program, ProgramError};

const MAGIC: &[u8; 8] = b"HOLMBNDL";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 64;

/// A program with the files that it brings.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The program.
    pub program: Program,
    /// Its files, or none.
    pub files: Files,
}

/// A file tree that has been checked, or none. Cheap to clone.
#[derive(Clone, Default)]
pub struct Files(Arc<[u8]>);

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Files({} entries, {} bytes)", self.count(), self.0.len())
    }
}

/// Why an artifact is refused. Whoever made it is to blame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// The program in it, or the artifact if it is a program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// It begins as a bundle and does not go on as one.
    #[error("the artifact is damaged: {0}; build and deploy it again")]
    Damaged(&'static str),
    /// The file tree in it.
    #[error("the artifact's files are refused: {0}; build and deploy it again")]
    Files(#[from] TreeError),
    /// Larger than [`MAX_ARTIFACT_BYTES`].
    #[error(
        "the program and its files have {0} bytes together, more than the {MAX_ARTIFACT_BYTES} \
         allowed; take fewer or smaller files"
    )]
    TooLarge(u64),
}

impl Files {
    /// Checks `bytes`, which are a whole tree.
    pub fn parse(bytes: &[u8]) -> Result<Files, TreeError> {
        Tree::check(bytes)?;
        Ok(Files(bytes.into()))
    }

    /// The tree's bytes; none if there is no tree.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Files, directories and links; the root and the directories on the way included.
    pub fn count(&self) -> u32 {
        self.tree().map_or(0, |tree| tree.count())
    }

    /// To be looked into.
    pub fn tree(&self) -> Option<Tree<'_>> {
        Tree::open(&self.0).ok()
    }
}

impl Bundle {
    /// A program alone.
    pub fn of(program: Program) -> Self {
        Bundle {
            program,
            files: Files::default(),
        }
    }

    /// Reads an artifact and checks all of it.
    pub fn parse(bytes: &[u8]) -> Result<Bundle, BundleError> {
        if bytes.len() as u64 > MAX_ARTIFACT_BYTES {
            return Err(BundleError::TooLarge(bytes.len() as u64));
        }
        if !bytes.starts_with(MAGIC) {
            return Ok(Bundle::of(Program::parse(bytes)?));
        }
        let word = |at: usize| {
            let bytes = bytes.get(at..)?.first_chunk::<8>()?;
            usize::try_from(u64::from_le_bytes(*bytes)).ok()
        };
        let cut = BundleError::Damaged("it is cut short");
        let (program, files) = match (word(8), word(16), word(24)) {
            (Some(version), Some(program), Some(files)) if version == VERSION as usize => {
                (program, files)
            }
            (Some(_), Some(_), Some(_)) => {
                return Err(BundleError::Damaged("it is of another version of Holm"));
            }
            _ => return Err(cut),
        };
        let program_end = HEAD_BYTES.checked_add(program);
        let files_at =
            program_end.and_then(|end| end.checked_next_multiple_of(PAGE_BYTES as usize));
        let parts = program_end
            .zip(files_at)
            .and_then(|(program_end, files_at)| {
                let end = files_at.checked_add(files)?;
                let program = bytes.get(HEAD_BYTES..program_end)?;
                let between = [
                    bytes.get(32..HEAD_BYTES)?,
                    bytes.get(program_end..files_at)?,
                ];
                Some((program, between, bytes.get(files_at..end)?, end))
            });
        let Some((program, between, files, end)) = parts else {
            return Err(cut);
        };
        if end != bytes.len()
            || between
                .iter()
                .any(|part| part.iter().any(|byte| *byte != 0))
        {
            return Err(BundleError::Damaged("there is something between its parts"));
        }
        Ok(Bundle {
            program: Program::parse(program)?,
            files: Files::parse(files)?,
        })
    }

    /// The artifact's bytes.
    pub fn to_bytes(&self) -> Result<Arc<[u8]>, BundleError> {
        let (program, files) = (&self.program.bytes, self.files.bytes());
        if files.is_empty() {
            return Ok(Arc::clone(program));
        }
        let files_at = (HEAD_BYTES + program.len()).next_multiple_of(PAGE_BYTES as usize);
        let total = files_at + files.len();
        if total as u64 > MAX_ARTIFACT_BYTES {
            return Err(BundleError::TooLarge(total as u64));
        }
        let mut bytes = Vec::with_capacity(total);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&(program.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&(files.len() as u64).to_le_bytes());
        bytes.resize(HEAD_BYTES, 0);
        bytes.extend_from_slice(program);
        bytes.resize(files_at, 0);
        bytes.extend_from_slice(files);
        Ok(bytes.into())
    }
}

#[cfg(test)]
mod tests;
