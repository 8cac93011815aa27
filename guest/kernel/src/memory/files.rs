//! The files of /tmp that are mapped, each by its place among them: where the content of each is.

use holm_hostcall::PAGE_BYTES;

/// Most files that are mapped at a time.
pub const MAX_FILES: usize = 512;

#[derive(Clone, Copy)]
struct Content {
    start: u64,
    pages: u64,
}

/// Where in program memory the content of each file is that is mapped.
pub(super) struct MappedFiles([Content; MAX_FILES]);

impl MappedFiles {
    /// All of them empty.
    pub(super) const fn new() -> Self {
        MappedFiles([Content { start: 0, pages: 0 }; MAX_FILES])
    }

    /// A file has so many bytes at `start`, from the start of a page on.
    pub(super) fn set(&mut self, file: u16, start: u64, bytes: u64) {
        if let Some(content) = self.0.get_mut(usize::from(file)) {
            *content = Content {
                start,
                pages: bytes.div_ceil(PAGE_BYTES),
            };
        }
    }

    /// Pages of a file.
    pub(super) fn pages(&self, file: u16) -> u64 {
        self.0.get(usize::from(file)).map_or(0, |one| one.pages)
    }

    /// Where a page of a file is, which has that many.
    pub(super) fn page(&self, file: u16, page: u64) -> u64 {
        let start = self.0.get(usize::from(file)).map_or(0, |one| one.start);
        start + page * PAGE_BYTES
    }
}
