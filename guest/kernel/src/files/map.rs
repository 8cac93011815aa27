//! Files as memory.

use super::Object;
use super::read_write::read_at;
use crate::errno::{Errno, SysResult};
use crate::memory::guest;
use crate::{state, user};

/// `mmap` of a file: a copy. What is written to it stays with the program.
pub fn map(hint: u64, bytes: u64, prot: u64, flags: u64, descriptor: u64, at: u64) -> SysResult {
    const PROT_READ_WRITE: u64 = 3;
    const PROT_WRITE: u64 = 2;
    const MAP_SHARED: u64 = 1;
    const MAP_TYPE: u64 = 15;
    const MAP_ANONYMOUS: u64 = 0x20;
    match state::files().get(descriptor)?.object {
        Object::File(_) | Object::Brought(_) | Object::Made(_) => {}
        _ => return Err(Errno::ENODEV),
    }
    if flags & MAP_TYPE == MAP_SHARED && prot & PROT_WRITE != 0 {
        // Nobody would see what is written.
        return Err(Errno::ENODEV);
    }
    if !at.is_multiple_of(holm_hostcall::PAGE_BYTES) {
        return Err(Errno::EINVAL);
    }
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
    if let Err(error) = done {
        memory().unmap(start, bytes, &mut guest())?;
        return Err(error);
    }
    Ok(start)
}

fn copy_in(descriptor: u64, at: u64, start: u64, bytes: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes {
        let to = user::buffer_mut(start + done, bytes - done)?;
        match read_at(descriptor, at + done, to)? {
            0 => break,
            read => done += read,
        }
    }
    Ok(())
}
