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
            if here.iter().all(|own| *own) {
                break;
            }
            // One that has gone meanwhile, or cannot be read, is fetched as if it had never been here.
            let Ok(Some(index)) = store.read_index(other) else {
                continue;
            };
            let Ok(from) = File::open(store.artifact(other)) else {
                continue;
            };
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

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, bytes: usize) -> Vec<u8> {
        let mut random = holm_test_support::random_below(seed);
        (0..bytes).map(|_| random(256) as u8).collect()
    }

    fn chunks(artifact: &[u8], wanted: &[Wanted]) -> Vec<u8> {
        let placed: Vec<_> = Index::of(artifact).placed().collect();
        let chunk = |wanted: &Wanted| {
            let at = placed[wanted.place as usize].0 as usize;
            artifact[at..at + wanted.chunk.bytes as usize].to_vec()
        };
        wanted.iter().flat_map(chunk).collect()
    }

    /// Fills the file of an artifact; returns how many bytes had to be sent.
    fn fill(store: &DeployStore, artifact: &[u8]) -> usize {
        let (digest, index) = (Digest::of(artifact), Index::of(artifact));
        let (part, wanted) = Part::open(store, digest, &index).unwrap();
        let sent = chunks(artifact, &wanted);
        let bytes = sent.len();
        let (left, rest) = part.take(wanted.into(), sent).unwrap();
        assert!(left.is_empty() && rest.is_empty());
        part.sync().unwrap();
        assert!(std::fs::read(store.part(digest)).unwrap() == artifact);
        store.complete(digest).unwrap();
        let index = index.to_bytes();
        std::fs::write(store.index(digest), index).unwrap();
        bytes
    }

    #[test]
    fn what_other_artifacts_here_have_is_not_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let store = DeployStore::open(dir.path()).unwrap();
        let old = [noise(1, 2 << 20), vec![0; 300_000]].concat();
        let sent = fill(&store, &old);
        assert!(sent < old.len() - 150_000, "zeroes are sent once: {sent}");
        let mut new = old.clone();
        new.splice(1_000_000..1_000_000, *b"one line more");
        let sent = fill(&store, &new);
        assert!((1..200_000).contains(&sent), "{sent}");
    }

    #[test]
    fn what_was_altered_in_another_artifact_here_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let store = DeployStore::open(dir.path()).unwrap();
        let old = noise(1, 1 << 20);
        fill(&store, &old);
        let path = store.artifact(Digest::of(&old));
        std::fs::write(&path, noise(2, 1 << 20)).unwrap();
        let new = [&old[..], b"more"].concat();
        assert_eq!(fill(&store, &new), new.len());
        // Nor does it help to say that it is one and have nothing.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(store.index(Digest([7; 32])), b"nonsense").unwrap();
        let newer = [b"more", &new[..]].concat();
        assert!(fill(&store, &newer) < 200_000);
    }

    #[test]
    fn what_is_in_the_file_already_is_not_wanted_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = DeployStore::open(dir.path()).unwrap();
        let artifact = noise(1, 1 << 20);
        let (digest, index) = (Digest::of(&artifact), Index::of(&artifact));
        let (part, wanted) = Part::open(&store, digest, &index).unwrap();
        assert_eq!(wanted.len(), index.chunks().len());
        let sent = chunks(&artifact, &wanted);
        let (left, rest) = part.take(wanted.into(), sent[..500_000].to_vec()).unwrap();
        assert!(rest.len() < 64 << 10, "less than a chunk is left over");
        drop(part);
        let (_, wanted) = Part::open(&store, digest, &index).unwrap();
        let places = |wanted: &[Wanted]| wanted.iter().map(|w| w.place).collect::<Vec<_>>();
        assert_eq!(places(&wanted), places(Vec::from(left).as_slice()));
        // A file of another length is of no use.
        std::fs::write(store.part(digest), &artifact[1..]).unwrap();
        let (_, wanted) = Part::open(&store, digest, &index).unwrap();
        assert_eq!(wanted.len(), index.chunks().len());
    }

    #[test]
    fn a_chunk_that_is_not_what_the_index_says_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = DeployStore::open(dir.path()).unwrap();
        let artifact = noise(1, 200_000);
        let (digest, index) = (Digest::of(&artifact), Index::of(&artifact));
        let (part, wanted) = Part::open(&store, digest, &index).unwrap();
        let mut sent = chunks(&artifact, &wanted);
        sent[100_000] ^= 1;
        let refused = part.take(wanted.into(), sent);
        assert!(matches!(refused, Err(FetchError::WrongChunk(_))));
        // What came before it is there.
        let (_, wanted) = Part::open(&store, digest, &index).unwrap();
        assert!(wanted.len() < index.chunks().len());
    }
}
