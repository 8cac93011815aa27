//! An artifact as chunks: what travels, and is kept, once.
//!
//! Cuts are where the content says (FastCDC, 2020), so that an insertion moves no cut but those beside it. A
//! chunk is named by its SHA-256. An artifact's *index* is the list of its chunks:
//!
//! ```text
//! 0    magic "HOLMCHNK" | version u32 | chunks u32
//! 16   for each chunk: SHA-256 (32 bytes) | length u32
//! ```
//! Numbers are little-endian. The index is no part of what is signed: whoever puts chunks together checks each
//! against the index, and then the whole against the artifact's own digest. Where the cuts are is a part of the
//! format's version all the same: with other cuts nothing would be found again. It is held by a test.
//!
//! Where chunks travel without an index, each is a *frame*: its length as a u32, then its bytes.

use std::ops::Range;

use fastcdc::v2020::FastCDC;

use crate::ids::Digest;
use crate::limits::MAX_ARTIFACT_BYTES;

/// Shortest chunk, but for the last of an artifact.
pub const MIN_CHUNK_BYTES: usize = 4 << 10;
/// What chunks have on average, about. A function's program is some MiB; a change in one place moves addresses
/// in many others, so that short chunks pay.
pub const AVERAGE_CHUNK_BYTES: usize = 16 << 10;
/// Longest chunk.
pub const MAX_CHUNK_BYTES: usize = 64 << 10;
/// Most chunks of an artifact.
pub const MAX_CHUNKS: usize = MAX_ARTIFACT_BYTES as usize / MIN_CHUNK_BYTES + 1;
/// Longest index.
pub const MAX_INDEX_BYTES: usize = HEAD_BYTES + MAX_CHUNKS * ENTRY_BYTES;
/// Longest body of chunks of one artifact, each after its length.
pub const MAX_FRAMES_BYTES: u64 = MAX_ARTIFACT_BYTES + 4 * MAX_CHUNKS as u64;

const MAGIC: &[u8; 8] = b"HOLMCHNK";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 16;
const ENTRY_BYTES: usize = 36;

/// One chunk of an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chunk {
    /// Of its bytes.
    pub digest: Digest,
    /// How many they are; at most [`MAX_CHUNK_BYTES`].
    pub bytes: u32,
}

impl Chunk {
    /// The chunk with these bytes, at most [`MAX_CHUNK_BYTES`].
    pub fn of(bytes: &[u8]) -> Self {
        Chunk {
            digest: Digest::of(bytes),
            bytes: u32::try_from(bytes.len()).expect("a chunk has at most MAX_CHUNK_BYTES"),
        }
    }
}

/// An artifact's chunks in their order, within the bounds above.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    chunks: Vec<Chunk>,
    bytes: u64,
}

/// An index is refused; whoever made it is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// It does not begin as one.
    #[error("it is no index of an artifact's chunks")]
    NoIndex,
    /// It is one of another time.
    #[error(
        "it is an index of version {0}, and version {VERSION} is known here; use the same version of Holm"
    )]
    Version(u32),
    /// It has another length than its head says.
    #[error("the index of chunks is cut short or too long")]
    Length,
    /// It names more than there can be.
    #[error("the index names more chunks than the {MAX_CHUNKS} that an artifact can have")]
    TooMany,
    /// A chunk has a length that none can have.
    #[error(
        "chunk {place} has {bytes} bytes, and a chunk has {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES}"
    )]
    Chunk {
        /// From 0.
        place: usize,
        /// Its length as the index has it.
        bytes: u32,
    },
    /// The artifact would be too large.
    #[error("its chunks have more than the {MAX_ARTIFACT_BYTES} bytes that an artifact may have")]
    TooLarge,
}

impl Index {
    /// The index of `artifact`.
    pub fn of(artifact: &[u8]) -> Self {
        let mut index = Index::default();
        for range in cuts(artifact) {
            index.push(&artifact[range]);
        }
        index
    }

    /// Adds a chunk behind the others.
    pub fn push(&mut self, chunk: &[u8]) {
        self.bytes += chunk.len() as u64;
        self.chunks.push(Chunk::of(chunk));
    }

    /// An index of chunks that are known, checked as if it were read.
    pub fn from_chunks(chunks: Vec<Chunk>) -> Result<Self, IndexError> {
        if chunks.len() > MAX_CHUNKS {
            return Err(IndexError::TooMany);
        }
        let mut whole = 0_u64;
        for (place, chunk) in chunks.iter().enumerate() {
            let last = place + 1 == chunks.len();
            let least = if last { 1 } else { MIN_CHUNK_BYTES };
            if !(least..=MAX_CHUNK_BYTES).contains(&(chunk.bytes as usize)) {
                let bytes = chunk.bytes;
                return Err(IndexError::Chunk { place, bytes });
            }
            whole += u64::from(chunk.bytes);
        }
        if whole > MAX_ARTIFACT_BYTES {
            return Err(IndexError::TooLarge);
        }
        Ok(Index {
            chunks,
            bytes: whole,
        })
    }

    /// Reads an index and checks all of it.
    pub fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        let word = |at: usize| {
            let bytes = bytes.get(at..)?.first_chunk::<4>()?;
            Some(u32::from_le_bytes(*bytes))
        };
        if !bytes.starts_with(MAGIC) {
            return Err(IndexError::NoIndex);
        }
        let (Some(version), Some(count)) = (word(8), word(12)) else {
            return Err(IndexError::Length);
        };
        if version != VERSION {
            return Err(IndexError::Version(version));
        }
        let count = count as usize;
        if count > MAX_CHUNKS {
            return Err(IndexError::TooMany);
        }
        let (entries, rest) = bytes[HEAD_BYTES..].as_chunks::<ENTRY_BYTES>();
        if entries.len() != count || !rest.is_empty() {
            return Err(IndexError::Length);
        }
        let read = |entry: &[u8; ENTRY_BYTES]| {
            let (digest, bytes) = entry.split_at(32);
            Chunk {
                digest: Digest(digest.try_into().expect("these are 32 bytes")),
                bytes: u32::from_le_bytes(bytes.try_into().expect("these are four bytes")),
            }
        };
        Index::from_chunks(entries.iter().map(read).collect())
    }

    /// As [`Index::parse`] reads it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.chunks.len() * ENTRY_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let count = u32::try_from(self.chunks.len()).expect("there are at most MAX_CHUNKS");
        bytes.extend_from_slice(&count.to_le_bytes());
        for chunk in &self.chunks {
            bytes.extend_from_slice(&chunk.digest.0);
            bytes.extend_from_slice(&chunk.bytes.to_le_bytes());
        }
        bytes
    }

    /// The chunks in their order.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The artifact's length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Each chunk, and where it begins in the artifact.
    pub fn placed(&self) -> impl Iterator<Item = (u64, Chunk)> {
        self.chunks.iter().scan(0, |next, chunk| {
            let at = *next;
            *next += u64::from(chunk.bytes);
            Some((at, *chunk))
        })
    }
}

/// Where the chunks of a whole artifact are.
pub fn cuts(artifact: &[u8]) -> impl Iterator<Item = Range<usize>> {
    FastCDC::new(
        artifact,
        MIN_CHUNK_BYTES,
        AVERAGE_CHUNK_BYTES,
        MAX_CHUNK_BYTES,
    )
    .map(|chunk| chunk.offset..chunk.offset + chunk.length)
}

/// Cuts an artifact whose bytes come one after the other; holds less than two chunks beside what it is given.
#[derive(Clone, Debug, Default)]
pub struct Chunker {
    held: Vec<u8>,
}

impl Chunker {
    /// Takes the next bytes and gives to `each` every chunk that is complete now.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) {
        self.held.extend_from_slice(bytes);
        let mut begin = 0;
        // Where a chunk ends is decided by no more bytes than the longest has.
        while let Some(longest) = self.held.get(begin..begin + MAX_CHUNK_BYTES) {
            let cut = cuts(longest).next().map_or(MAX_CHUNK_BYTES, |cut| cut.end);
            each(&longest[..cut]);
            begin += cut;
        }
        self.held.drain(..begin);
    }

    /// The chunks of what is left: the artifact has ended.
    pub fn finish(self, mut each: impl FnMut(&[u8])) {
        cuts(&self.held).for_each(|cut| each(&self.held[cut]));
    }
}

/// What a chunk's frame begins with.
pub fn frame_head(chunk: &[u8]) -> [u8; 4] {
    let bytes = u32::try_from(chunk.len()).expect("a chunk has at most MAX_CHUNK_BYTES");
    bytes.to_le_bytes()
}

/// A frame announces a chunk that cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a chunk of {0} bytes is announced, and a chunk has 1 to {MAX_CHUNK_BYTES}")]
pub struct FrameError(pub u32);

/// Reads frames whose bytes come one after the other; holds less than one frame beside what it is given.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    held: Vec<u8>,
}

impl Frames {
    /// Takes the next bytes and gives to `each` every chunk that is complete now.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), FrameError> {
        self.held.extend_from_slice(bytes);
        let mut left = &self.held[..];
        while let Some((head, following)) = left.split_first_chunk::<4>() {
            let announced = u32::from_le_bytes(*head);
            if announced == 0 || announced as usize > MAX_CHUNK_BYTES {
                return Err(FrameError(announced));
            }
            let Some((chunk, after)) = following.split_at_checked(announced as usize) else {
                break;
            };
            each(chunk);
            left = after;
        }
        let read = self.held.len() - left.len();
        self.held.drain(..read);
        Ok(())
    }

    /// Whether a frame has begun and not ended.
    pub fn is_amid(&self) -> bool {
        !self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holm_test_support::noise;
    use proptest::prelude::*;

    #[test]
    fn cuts_are_where_they_always_were() {
        // If this fails, nothing that fleets have is found again: raise VERSION, or do not change the cuts.
        let lengths: Vec<usize> = cuts(&noise(1, 200_000)).map(|cut| cut.len()).collect();
        let as_ever = [
            18_174, 21_824, 16_356, 28_249, 12_390, 25_899, 4_344, 19_698, 19_105, 31_116, 2_845,
        ];
        assert_eq!(lengths, as_ever);
        let zeroes: Vec<usize> = cuts(&[0; 150_000]).map(|cut| cut.len()).collect();
        assert_eq!(zeroes, [65_536, 65_536, 18_928]);
    }

    #[test]
    fn an_insertion_leaves_most_chunks_what_they_were() {
        let old = noise(2, 4 << 20);
        let mut new = old.clone();
        new.splice(1_000_000..1_000_000, *b"one line more");
        let (old, new) = (Index::of(&old), Index::of(&new));
        let known: std::collections::HashSet<_> = old.chunks().iter().collect();
        let others = new.chunks().iter().filter(|chunk| !known.contains(chunk));
        assert!((1..=3).contains(&others.count()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_stream_is_cut_as_the_whole_is(
            seed in any::<u64>(),
            bytes in 0_usize..400_000,
            pieces in prop::collection::vec(1_usize..100_000, 1..20),
        ) {
            let artifact = noise(seed, bytes);
            let (mut chunker, mut streamed) = (Chunker::default(), Index::default());
            let mut each = |chunk: &[u8]| streamed.push(chunk);
            let (mut left, mut piece) = (&artifact[..], pieces.iter().cycle());
            while !left.is_empty() {
                let (now, later) = left.split_at(left.len().min(*piece.next().unwrap()));
                chunker.push(now, &mut each);
                left = later;
            }
            chunker.finish(&mut each);
            prop_assert_eq!(&streamed, &Index::of(&artifact));
            prop_assert_eq!(Index::parse(&streamed.to_bytes()).unwrap(), streamed);
        }

        #[test]
        fn no_bytes_are_an_index_that_breaks_a_bound(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            head in any::<bool>(),
        ) {
            if head && bytes.len() >= 16 {
                let count = (bytes.len() - 16) as u32 / 36;
                bytes[..8].copy_from_slice(MAGIC);
                bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
                bytes[12..16].copy_from_slice(&count.to_le_bytes());
            }
            if let Ok(index) = Index::parse(&bytes) {
                prop_assert!(index.bytes() <= MAX_ARTIFACT_BYTES);
                prop_assert_eq!(index.to_bytes(), bytes);
            }
        }
    }

    #[test]
    fn an_index_that_breaks_a_bound_is_refused() {
        let good = Index::of(&noise(3, 100_000)).to_bytes();
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bad = good.clone();
            change(&mut bad);
            Index::parse(&bad).unwrap_err()
        };
        assert_eq!(refused(&|bytes| bytes[0] ^= 1), IndexError::NoIndex);
        assert_eq!(refused(&|bytes| bytes[8] = 2), IndexError::Version(2));
        assert_eq!(refused(&|bytes| bytes.truncate(12)), IndexError::Length);
        assert_eq!(refused(&|bytes| bytes.truncate(90)), IndexError::Length);
        assert_eq!(refused(&|bytes| bytes.push(0)), IndexError::Length);
        let many = refused(&|bytes| bytes[12..16].fill(0xff));
        assert_eq!(many, IndexError::TooMany);
        let long = |bytes: &mut Vec<u8>| bytes[48..52].copy_from_slice(&65_537_u32.to_le_bytes());
        let error = refused(&long);
        assert_eq!(
            error,
            IndexError::Chunk {
                place: 0,
                bytes: 65_537
            }
        );
        let short = |bytes: &mut Vec<u8>| bytes[48..52].copy_from_slice(&1_u32.to_le_bytes());
        assert!(matches!(
            refused(&short),
            IndexError::Chunk { place: 0, .. }
        ));
        let whole = Chunk {
            digest: Digest([0; 32]),
            bytes: MAX_CHUNK_BYTES as u32,
        };
        let most = MAX_ARTIFACT_BYTES as usize / MAX_CHUNK_BYTES;
        assert!(Index::from_chunks(vec![whole; most]).is_ok());
        let error = Index::from_chunks(vec![whole; most + 1]).unwrap_err();
        assert_eq!(error, IndexError::TooLarge);
    }
}
