//! Writing a tree.

use super::{
    ENTRY_BYTES, EXECUTABLE, HEAD_BYTES, Kind, MAGIC, MAX_ENTRIES, Placing, TreeError, VERSION,
    check_entry, is_good_target, split,
};
use crate::PAGE_BYTES;
use crate::message::Sink;

/// Something to be put into a tree.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Absolute and plain: `/`, or `/a/b`.
    pub path: &'a [u8],
    /// What it is.
    pub kind: Kind,
    /// Of a file: whether it may be executed.
    pub executable: bool,
    /// Seconds since 1970 UTC.
    pub modified_s: u32,
    /// A file's content, or where a link leads. Empty for a directory.
    pub content: &'a [u8],
}

/// Writes the tree of `sources`, which are in [`order`] and whole: with the root and every directory that
/// something lies in. `sink` has to take all of it.
pub fn encode(sink: &mut impl Sink, sources: &[Source<'_>]) -> Result<(), TreeError> {
    if sources.len() > MAX_ENTRIES {
        return Err(TreeError::TooMany);
    }
    let mut before = None;
    let mut texts = 0u64;
    let mut links = 0u32;
    for source in sources {
        check_entry(before, source.path, source.kind)?;
        before = Some(source.path);
        texts += source.path.len() as u64;
        if source.kind == Kind::Link {
            if !is_good_target(source.content) {
                return Err(TreeError::BadLink);
            }
            texts += source.content.len() as u64;
            links += 1;
        }
    }
    let texts_at = (HEAD_BYTES + sources.len() * ENTRY_BYTES) as u64;
    let contents_at = (texts_at + texts).next_multiple_of(PAGE_BYTES);
    let files = || sources.iter().filter(|one| one.kind == Kind::File);
    let mut placing = Placing(contents_at);
    for file in files() {
        placing
            .next(file.content.len() as u64)
            .ok_or(TreeError::Damaged)?;
    }

    let mut out = Out { sink, at: 0 };
    out.put(MAGIC)?;
    out.put(&VERSION.to_le_bytes())?;
    out.put(&(sources.len() as u32).to_le_bytes())?;
    for word in [placing.0, texts, contents_at] {
        out.put(&word.to_le_bytes())?;
    }
    out.put(&links.to_le_bytes())?;
    out.fill_to(HEAD_BYTES as u64)?;
    let mut text = 0u32;
    let mut placing = Placing(contents_at);
    for source in sources {
        let path_bytes = source.path.len() as u16;
        let (start, bytes) = match source.kind {
            Kind::File => {
                let bytes = source.content.len() as u64;
                (placing.next(bytes).ok_or(TreeError::Damaged)?, bytes)
            }
            Kind::Link => (
                texts_at + u64::from(text) + u64::from(path_bytes),
                source.content.len() as u64,
            ),
            Kind::Directory => children(sources, source.path),
        };
        out.put(&text.to_le_bytes())?;
        out.put(&path_bytes.to_le_bytes())?;
        let executable = source.executable && source.kind == Kind::File;
        out.put(&[source.kind as u8, u8::from(executable) * EXECUTABLE])?;
        out.put(&start.to_le_bytes())?;
        out.put(&bytes.to_le_bytes())?;
        out.put(&source.modified_s.to_le_bytes())?;
        out.put(&[0; 4])?;
        text += u32::from(path_bytes);
        if source.kind == Kind::Link {
            text += source.content.len() as u32;
        }
    }
    for source in sources {
        out.put(source.path)?;
        if source.kind == Kind::Link {
            out.put(source.content)?;
        }
    }
    out.fill_to(contents_at)?;
    let mut placing = Placing(contents_at);
    for file in files() {
        let start = placing.next(file.content.len() as u64);
        out.fill_to(start.ok_or(TreeError::Damaged)?)?;
        out.put(file.content)?;
    }
    Ok(())
}

/// The first of the entries in a directory, and their number.
fn children(sources: &[Source<'_>], directory: &[u8]) -> (u64, u64) {
    let first = sources.partition_point(|one| split(one.path).0 < directory);
    let end = sources.partition_point(|one| split(one.path).0 <= directory);
    match end - first {
        0 => (0, 0),
        count => (first as u64, count as u64),
    }
}

/// A sink that counts.
struct Out<'s, S: Sink> {
    sink: &'s mut S,
    at: u64,
}

impl<S: Sink> Out<'_, S> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), TreeError> {
        self.at += bytes.len() as u64;
        match self.sink.put(bytes) {
            true => Ok(()),
            false => Err(TreeError::Damaged),
        }
    }

    fn fill_to(&mut self, at: u64) -> Result<(), TreeError> {
        const ZEROES: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];
        while self.at < at {
            let part = (at - self.at).min(PAGE_BYTES) as usize;
            self.put(&ZEROES[..part])?;
        }
        Ok(())
    }
}
