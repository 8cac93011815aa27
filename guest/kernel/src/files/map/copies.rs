//! Private mappings of files. Each is a copy, and of which file is kept here: a program that gives up what it has written
//! there (MADV_DONTNEED) finds what the file has.

use holm_hostcall::PAGE_BYTES;

use crate::errno::Errno;
use crate::files::piece::Table;
use crate::files::{Object, artifact};
use crate::memory::guest;
use crate::{state, user};

const PROT_READ: u64 = 1;
const PROT_WRITE: u64 = 2;

/// Whether an advice is that a program gives up what it has in memory.
pub(super) fn is_dropped(advice: u64) -> bool {
    const DONTNEED: u32 = 4;
    const DONTNEED_LOCKED: u32 = 24;
    matches!(advice as u32, DONTNEED | DONTNEED_LOCKED)
}

/// A mapping, or a part of one. It holds the file as a descriptor does.
#[derive(Clone, Copy)]
struct Copied {
    start: u64,
    /// The same as the start where there is none.
    end: u64,
    /// A file of /tmp, or one that the artifact brought.
    object: Object,
    /// The place in the file that is at the start.
    at: u64,
}

impl Copied {
    fn content(&self) -> &'static [u8] {
        match self.object {
            Object::File(number) => state::temporary().node(number).content(),
            Object::Brought(number) => artifact::content_of(number),
            _ => &[],
        }
    }

    /// The part of it in a range.
    fn part(&self, start: u64, end: u64) -> Option<Copied> {
        let (from, to) = (start.max(self.start), end.min(self.end));
        (from < to).then(|| Copied {
            start: from,
            end: to,
            at: self.at + (from - self.start),
            ..*self
        })
    }

    /// Fills a part with what the file has; what is behind its end is zero already.
    fn fill(&self) -> Result<(), Errno> {
        for page in (self.start..self.end).step_by(PAGE_BYTES as usize) {
            let at = self.at + (page - self.start);
            let Some(from) = self
                .content()
                .get(at as usize..)
                .filter(|from| !from.is_empty())
            else {
                break;
            };
            let from = &from[..from.len().min(PAGE_BYTES as usize)];
            let before = state::memory().protection_at(page);
            let protect = |prot| state::memory().protect(page, PAGE_BYTES, prot, &mut guest());
            protect(PROT_READ | PROT_WRITE)?;
            let to = user::slice_mut(page, from.len() as u64).map_err(|_| Errno::ENOMEM)?;
            to.copy_from_slice(from);
            protect(before)?;
        }
        Ok(())
    }
}

/// All of them.
pub struct Copies {
    all: Table<Copied>,
}

impl Copies {
    /// None.
    pub const fn new() -> Self {
        Copies { all: Table::new() }
    }

    /// A mapping of a file from `at` on. Where there is no memory to keep it in mind, it is not.
    pub(super) fn add(&mut self, start: u64, bytes: u64, object: Object, at: u64) {
        let end = start.saturating_add(bytes).next_multiple_of(PAGE_BYTES);
        if matches!(object, Object::File(_) | Object::Brought(_)) {
            self.put(Copied {
                start,
                end,
                object,
                at,
            });
        }
    }

    fn put(&mut self, new: Copied) {
        let is_free = |one: &&mut Copied| one.start == one.end;
        let done = match self.all.all_mut().iter_mut().find(is_free) {
            Some(free) => {
                *free = new;
                Ok(())
            }
            None => self.all.add(new),
        };
        if let (Ok(()), Object::File(number)) = (done, new.object) {
            state::temporary().opened(number);
        }
    }

    /// Something else is in a range, or nothing.
    pub(super) fn forget(&mut self, start: u64, end: u64) {
        // Mappings are of whole pages, whatever length was asked for.
        let end = end.checked_next_multiple_of(PAGE_BYTES).unwrap_or(end);
        for place in 0..self.all.all().len() {
            let one = self.all.all()[place];
            if one.part(start, end).is_none() {
                continue;
            }
            let rests = [one.part(0, start), one.part(end, u64::MAX)];
            for rest in rests.into_iter().flatten() {
                self.put(rest);
            }
            self.all.all_mut()[place].end = one.start;
            if let Object::File(number) = one.object {
                state::temporary().closed(number);
            }
        }
    }

    /// A mapping has moved, or has another size.
    pub(super) fn moved(&mut self, start: u64, old_bytes: u64, to: u64, new_bytes: u64) {
        let old_end = start.saturating_add(old_bytes).next_multiple_of(PAGE_BYTES);
        let end = start.saturating_add(old_bytes.min(new_bytes));
        let all = self.all.all().iter();
        let part = all.filter_map(|one| one.part(start, end)).next();
        // Its file is let go of only after it is held again.
        if let Some(part) = part {
            if let Object::File(number) = part.object {
                state::temporary().opened(number);
            }
            self.forget(start, old_end);
            self.forget(to, to.saturating_add(new_bytes));
            self.add(
                to + (part.start - start),
                part.end - part.start,
                part.object,
                part.at,
            );
            if let Object::File(number) = part.object {
                state::temporary().closed(number);
            }
        } else {
            self.forget(start, old_end);
            self.forget(to, to.saturating_add(new_bytes));
        }
    }

    /// What was written in a range is given up.
    pub(super) fn make_anew(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        let end = end.checked_next_multiple_of(PAGE_BYTES).unwrap_or(end);
        for place in 0..self.all.all().len() {
            if let Some(part) = self.all.all()[place].part(start, end) {
                part.fill()?;
            }
        }
        Ok(())
    }
}

impl Default for Copies {
    fn default() -> Self {
        Copies::new()
    }
}
