//! An artifact that is coming: a file of its full length, filled chunk by chunk in whatever order.
//!
//! What is in it is told by its bytes alone: a chunk is there if the bytes in its place have its digest. So nothing
//! else has to survive a crash, and what was written by half is asked for again.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use holm_model::chunks::{Chunk, Index};
use holm_model::ids::Digest;

use super::fetch::FetchError;
use super::store::DeployStore;
use crate::files::FileError;

/// The file.
pub(super) struct Part {
    file: File,
    path: PathBuf,
}

/// A chunk that is nowhere here.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Its first place in the index.
    pub(super) place: u32,
    chunk: Chunk,
    /// Where it is to go, everywhere that the artifact has it.
    offsets: Vec<u64>,
}

impl Wanted {
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.chunk.bytes)
    }
}

impl Part {
    /// Opens the file of the artifact, puts in what other artifacts on this disk have, and returns what is left,
    /// by rising places.
    pub(super) fn open(
        store: &DeployStore,
        digest: Digest,
        index: &Index,
    ) -> Result<(Part, Vec<Wanted>), FileError> {
        let path = store.part(digest);
        let wrong = |error| FileError::new("write", &path, error);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(wrong)?;
        let resumed = file.metadata().map_err(wrong)?.len() == index.bytes();
        if !resumed {
            file.set_len(0).map_err(wrong)?;
            file.set_len(index.bytes()).map_err(wrong)?;
        }
        let mut buffer = Vec::new();
        let mut wanted: Vec<Wanted> = Vec::new();
        let mut known: HashMap<Digest, usize> = HashMap::new();
        for (place, (offset, chunk)) in (0..).zip(index.placed()) {
            if resumed && read_chunk(&file, offset, chunk, &mut buffer) {
                continue;
            }
            let own = *known.entry(chunk.digest).or_insert(wanted.len());
            match wanted.get_mut(own) {
                Some(before) => before.offsets.push(offset),
                None => wanted.push(Wanted {
                    place,
                    chunk,
                    offsets: vec![offset],
                }),
            }
        }
        let part = Part { file, path };
        let mut here = vec![false; wanted.len()];
        for other in store.indexes()? {
            // One that has gone meanwhile, or cannot be read, is fetched as if it had never been here.
            let Ok(Some(index)) = store.read_index(other) else { continue };
            let Ok(from) = File::open(store.artifact(other)) else { continue };
            for (offset, chunk) in index.placed() {
                let Some(own) = known.get(&chunk.digest).copied().filter(|own| !here[*own]) else {
                    continue;
                };
                if read_chunk(&from, offset, wanted[own].chunk, &mut buffer) {
                    part.put(&wanted[own], &buffer)?;
                    here[own] = true;
                }
            }
        }
        let mut here = here.into_iter();
        wanted.retain(|_| !here.next().unwrap_or_default());
        Ok((part, wanted))
    }

    /// Puts in the chunks of which all bytes are in `read`, one after the other; returns what is left of both.
    pub(super) fn take(
        &self,
        mut wanted: VecDeque<Wanted>,
        mut read: Vec<u8>,
    ) -> Result<(VecDeque<Wanted>, Vec<u8>), FetchError> {
        let mut begin = 0;
        while let Some(next) = wanted.front()
            && let Some(bytes) = read.get(begin..begin + next.chunk.bytes as usize)
        {
            if Digest::of(bytes) != next.chunk.digest {
                return Err(FetchError::WrongChunk(next.chunk.digest));
            }
            self.put(next, bytes)?;
            begin += bytes.len();
            wanted.pop_front();
        }
        read.drain(..begin);
        Ok((wanted, read))
    }

    fn put(&self, wanted: &Wanted, bytes: &[u8]) -> Result<(), FileError> {
        for offset in &wanted.offsets {
            let written = self.file.write_all_at(bytes, *offset);
            written.map_err(|error| self.wrong(error))?;
        }
        Ok(())
    }

    /// Has all of it on disk.
    pub(super) fn sync(&self) -> Result<(), FileError> {
        self.file.sync_all().map_err(|error| self.wrong(error))
    }

    fn wrong(&self, error: io::Error) -> FileError {
        FileError::new("write", &self.path, error)
    }
}

/// Reads the chunk at `offset` into `buffer`. Whether it is that chunk.
fn read_chunk(file: &File, offset: u64, chunk: Chunk, buffer: &mut Vec<u8>) -> bool {
    buffer.resize(chunk.bytes as usize, 0);
    file.read_exact_at(buffer, offset).is_ok() && Digest::of(buffer) == chunk.digest
}
