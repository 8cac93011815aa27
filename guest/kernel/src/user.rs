//! The program's pointers. Each is checked page by page before it is used, and what is only promised is
//! backed, so that the library OS never takes a fault: what the program may not touch is EFAULT.

use holm_hostcall::abort_reason;

use crate::errno::Errno;
use crate::memory::{Refusal, guest};
use crate::{host, state, threads};

/// How much of a range can be used: all of it, or EFAULT, if `whole`.
// Not inlined: the image has 1 MiB, and this is called from everywhere.
#[inline(never)]
fn access(addr: u64, bytes: u64, write: bool, whole: bool) -> Result<u64, Errno> {
    match state::memory().access(addr, bytes, write, whole, &mut guest()) {
        Ok(bytes) => Ok(bytes),
        Err(Refusal::Unmapped | Refusal::Protected | Refusal::BehindEnd) => Err(Errno::EFAULT),
        Err(Refusal::NoMemory) => out_of_memory(),
    }
}

/// The running thread touches memory that was promised, and there is none left.
pub fn out_of_memory() -> ! {
    host::abort_with(
        abort_reason::OUT_OF_MEMORY,
        threads::last_registers(),
        format_args!(
            "the program uses more memory than [limits] memory allows ({} bytes)",
            state::memory().total_bytes()
        ),
    )
}

/// The `bytes` bytes of the program at `addr`.
///
/// Like all slices of the program's memory they are there until the running thread waits: then another one may
/// unmap them. So who may wait keeps the address, and asks again afterwards.
pub fn slice(addr: u64, bytes: u64) -> Result<&'static [u8], Errno> {
    view(addr, bytes, true)
}

/// The same, to be written.
pub fn slice_mut(addr: u64, bytes: u64) -> Result<&'static mut [u8], Errno> {
    view_mut(addr, bytes, true)
}

/// The buffer of a call that reads or writes up to `bytes` bytes; Linux takes any size there. May be
/// shorter than asked for.
pub fn buffer(addr: u64, bytes: u64) -> Result<&'static [u8], Errno> {
    view(addr, bytes, false)
}

/// The same, to be written.
pub fn buffer_mut(addr: u64, bytes: u64) -> Result<&'static mut [u8], Errno> {
    view_mut(addr, bytes, false)
}

fn view(addr: u64, bytes: u64, whole: bool) -> Result<&'static [u8], Errno> {
    if bytes == 0 {
        return Ok(&[]);
    }
    let bytes = access(addr, bytes, false, whole)?;
    let start = core::ptr::with_exposed_provenance::<u8>(addr as usize);
    // SAFETY: the range is mapped, and stays so until the thread waits, for which nobody keeps the slice (see
    // `slice`).
    Ok(unsafe { core::slice::from_raw_parts(start, bytes as usize) })
}

fn view_mut(addr: u64, bytes: u64, whole: bool) -> Result<&'static mut [u8], Errno> {
    if bytes == 0 {
        return Ok(&mut []);
    }
    let bytes = access(addr, bytes, true, whole)?;
    let start = core::ptr::with_exposed_provenance_mut::<u8>(addr as usize);
    // SAFETY: as in `view`; the library OS holds no other reference to program memory meanwhile
    // (each system call makes at most one of these at a time from one argument).
    Ok(unsafe { core::slice::from_raw_parts_mut(start, bytes as usize) })
}

/// Reads a plain value.
pub fn read<T: Plain>(addr: u64) -> Result<T, Errno> {
    access(addr, size_of::<T>() as u64, false, true)?;
    // SAFETY: mapped; any bytes are a valid `T`, which is `Plain`.
    Ok(unsafe { core::ptr::with_exposed_provenance::<T>(addr as usize).read_unaligned() })
}

/// Writes a plain value.
pub fn write<T: Plain>(addr: u64, value: T) -> Result<(), Errno> {
    access(addr, size_of::<T>() as u64, true, true)?;
    // SAFETY: mapped.
    unsafe { core::ptr::with_exposed_provenance_mut::<T>(addr as usize).write_unaligned(value) };
    Ok(())
}

/// Whether a range can be a program's at all, mapped or not.
pub fn range(addr: u64, bytes: u64) -> Result<(), Errno> {
    const END: u64 = (1 << 47) - 4096;
    match addr.checked_add(bytes) {
        Some(end) if end <= END => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// A text up to its zero byte, or the first `most` bytes of a longer one.
pub fn text(addr: u64, most: u64) -> Result<&'static [u8], Errno> {
    let there = access(addr, most, false, false)?;
    let bytes = slice(addr, there)?;
    match bytes.iter().position(|byte| *byte == 0) {
        Some(end) => Ok(&bytes[..end]),
        None if there == most => Ok(bytes),
        None => Err(Errno::EFAULT),
    }
}

/// A text that ends with a zero byte, at most 4096 bytes.
pub fn path(addr: u64) -> Result<&'static [u8], Errno> {
    const MOST: u64 = 4096;
    let most = access(addr, MOST, false, false)?;
    let length = slice(addr, most)?.iter().position(|byte| *byte == 0);
    match length {
        Some(length) => slice(addr, length as u64),
        None if most == MOST => Err(Errno::ENAMETOOLONG),
        None => Err(Errno::EFAULT),
    }
}

/// Values without padding or invalid bit patterns, as C structs of integers are.
///
/// # Safety
/// Every bit pattern is a valid value, and there are no references inside.
pub unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($type:ty),* $(,)?) => {
        $(
            // SAFETY: integers, or arrays and `repr(C)` structs of them.
            unsafe impl $crate::user::Plain for $type {}
        )*
    };
}
pub(crate) use plain;

plain!(
    u8, u16, u32, i32, u64, i64, [u8; 16], [u32; 2], [u64; 2], [u64; 3], [u64; 4], [u64; 14]
);
