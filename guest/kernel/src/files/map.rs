//! Files as memory, and the calls that may end a mapping of one.

use holm_hostcall::PAGE_BYTES;

use super::held::Held;
use super::read_write::read_at;
use super::{O_ACCESS, O_RDWR, O_WRONLY, Object, seals};
use crate::buffers::Place;
use crate::errno::{Errno, SysResult};
use crate::memory::{Share, guest};
use crate::state;

mod copies;

pub use copies::Copies;
use copies::is_dropped;

const PROT_READ_WRITE: u64 = 3;
const PROT_WRITE: u64 = 2;
const MAP_SHARED: u64 = 1;
const MAP_SHARED_VALIDATE: u64 = 3;
const MAP_TYPE: u64 = 15;
const MAP_ANONYMOUS: u64 = 0x20;

/// `mmap`
pub fn map(hint: u64, bytes: u64, prot: u64, flags: u64, descriptor: u64, at: u64) -> SysResult {
    if !at.is_multiple_of(PAGE_BYTES) {
        return Err(Errno::EINVAL);
    }
    let mapped = match flags & MAP_ANONYMOUS {
        0 => map_file(hint, bytes, prot, flags, descriptor, at),
        _ => {
            let mapped = state::memory().map(hint, bytes, prot, flags, &mut guest());
            if let Ok(start) = mapped {
                state::copies().forget(start, start.saturating_add(bytes));
            }
            mapped
        }
    };
    let_go_of_unmapped();
    mapped
}

/// `madvise`
pub fn advise(start: u64, bytes: u64, advice: u64) -> SysResult {
    let advised = state::memory().advise(start, bytes, advice, &mut guest());
    if is_dropped(advice) && advised != Err(Errno::EINVAL) {
        state::copies().make_anew(start, start.saturating_add(bytes))?;
    }
    advised
}

/// `munmap`
pub fn unmap(start: u64, bytes: u64) -> SysResult {
    let unmapped = state::memory().unmap(start, bytes, &mut guest());
    if unmapped.is_ok() {
        state::copies().forget(start, start.saturating_add(bytes));
    }
    let_go_of_unmapped();
    unmapped
}

/// `mremap`
pub fn remap(start: u64, old_bytes: u64, new_bytes: u64, flags: u64, to: u64) -> SysResult {
    let moved = state::memory().remap(start, old_bytes, new_bytes, flags, to, &mut guest());
    if let Ok(at) = moved {
        state::copies().moved(start, old_bytes, at, new_bytes);
    }
    let_go_of_unmapped();
    moved
}

/// Files of which the last mapping has gone may be gone themselves.
fn let_go_of_unmapped() {
    if state::memory().has_lost_file() {
        state::temporary().unmapped();
    }
}

fn map_file(hint: u64, bytes: u64, prot: u64, flags: u64, descriptor: u64, at: u64) -> SysResult {
    let open = state::files().get(descriptor)?;
    if open.is_name() {
        return Err(Errno::EBADF);
    }
    if bytes == 0 {
        return Err(Errno::EINVAL);
    }
    let is_shared = matches!(flags & MAP_TYPE, MAP_SHARED | MAP_SHARED_VALIDATE);
    let refuses = match open.object {
        Object::File(_) | Object::Brought(_) | Object::Made(_) => {
            let may_write = open.access() == O_RDWR;
            matches!(open.access(), O_WRONLY | O_ACCESS)
                || is_shared && prot & PROT_WRITE != 0 && !may_write
        }
        _ => return Err(Errno::ENODEV),
    };
    match open.object {
        _ if refuses => Err(Errno::EACCES),
        Object::File(file) if is_shared => {
            let is_sealed = state::temporary().node(file).seals & seals::NO_WRITE != 0;
            if is_sealed && prot & PROT_WRITE != 0 {
                return Err(Errno::EPERM);
            }
            let share = Share {
                file: state::temporary().map(file)?,
                may_write: open.access() == O_RDWR && !is_sealed,
                page: first_page(at, bytes)?,
            };
            let mapped = state::memory().map_file(hint, bytes, prot, flags, share, &mut guest());
            match mapped {
                Ok(start) => state::copies().forget(start, start.saturating_add(bytes)),
                Err(_) => state::temporary().unmapped(),
            }
            mapped
        }
        _ => map_copy(hint, bytes, prot, flags, descriptor, at),
    }
}

/// The page of a file at which a mapping begins, if that which follows its last one has a number too.
fn first_page(at: u64, bytes: u64) -> Result<u32, Errno> {
    let end = at.checked_add(bytes).ok_or(Errno::EOVERFLOW)?;
    u32::try_from(end.div_ceil(PAGE_BYTES)).map_err(|_| Errno::EOVERFLOW)?;
    Ok((at / PAGE_BYTES) as u32)
}

/// A copy: what is written to it stays with the program, and what others write to the file is not seen, which
/// is as good where nobody can. What the file has can be had again by `madvise`.
fn map_copy(hint: u64, bytes: u64, prot: u64, flags: u64, descriptor: u64, at: u64) -> SysResult {
    let memory = state::memory;
    let start = memory().map(
        hint,
        bytes,
        PROT_READ_WRITE,
        flags | MAP_ANONYMOUS,
        &mut guest(),
    )?;
    let copied = copy_in(descriptor, at, start, bytes);
    let done = copied.and_then(|()| match prot {
        PROT_READ_WRITE => Ok(0),
        prot => memory().protect(start, bytes, prot, &mut guest()),
    });
    state::copies().forget(start, start.saturating_add(bytes));
    if let Err(error) = done {
        memory().unmap(start, bytes, &mut guest())?;
        return Err(error);
    }
    state::copies().add(start, bytes, state::files().get(descriptor)?.object, at);
    Ok(start)
}

fn copy_in(descriptor: u64, at: u64, start: u64, bytes: u64) -> Result<(), Errno> {
    let held = Held::of(descriptor)?;
    let mut done = 0;
    while done < bytes {
        let to = Place::Program {
            start: start + done,
            bytes: bytes - done,
        };
        match read_at(&held, at + done, to)? {
            0 => break,
            read => done += read,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_mapping_reaches_behind_the_last_page_that_has_a_number() {
        const MOST: u64 = u32::MAX as u64 * PAGE_BYTES;
        assert_eq!(first_page(PAGE_BYTES, MOST - PAGE_BYTES), Ok(1));
        assert_eq!(
            first_page(PAGE_BYTES, MOST - PAGE_BYTES + 1),
            Err(Errno::EOVERFLOW)
        );
        assert_eq!(first_page(1 << 63, 1 << 63), Err(Errno::EOVERFLOW));
    }
}
