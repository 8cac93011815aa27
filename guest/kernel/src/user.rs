//! The program's pointers. Each is checked to lie in program memory before it is used; a page in
//! there that the program made inaccessible is its own crash.

use crate::errno::Errno;
use crate::state;

fn check(addr: u64, bytes: u64) -> Result<(), Errno> {
    match state::memory().contains(addr, bytes) {
        true => Ok(()),
        false => Err(Errno::EFAULT),
    }
}

/// The `bytes` bytes of the program at `addr`.
pub fn slice(addr: u64, bytes: u64) -> Result<&'static [u8], Errno> {
    if bytes == 0 {
        return Ok(&[]);
    }
    check(addr, bytes)?;
    let start = core::ptr::with_exposed_provenance::<u8>(addr as usize);
    // SAFETY: the range lies in program memory, which is always backed, and the program's one thread
    // waits in this system call.
    Ok(unsafe { core::slice::from_raw_parts(start, bytes as usize) })
}

/// The same, to be written.
pub fn slice_mut(addr: u64, bytes: u64) -> Result<&'static mut [u8], Errno> {
    if bytes == 0 {
        return Ok(&mut []);
    }
    check(addr, bytes)?;
    let start = core::ptr::with_exposed_provenance_mut::<u8>(addr as usize);
    // SAFETY: as in `slice`; the library OS holds no other reference to program memory meanwhile
    // (each system call makes at most one of these at a time from one argument).
    Ok(unsafe { core::slice::from_raw_parts_mut(start, bytes as usize) })
}

/// The buffer of a call that reads or writes up to `bytes` bytes; Linux takes any size there.
pub fn buffer(addr: u64, bytes: u64) -> Result<&'static [u8], Errno> {
    slice(addr, state::memory().clamp(addr, bytes))
}

/// The same, to be written.
pub fn buffer_mut(addr: u64, bytes: u64) -> Result<&'static mut [u8], Errno> {
    slice_mut(addr, state::memory().clamp(addr, bytes))
}

/// Reads a plain value.
pub fn read<T: Plain>(addr: u64) -> Result<T, Errno> {
    check(addr, size_of::<T>() as u64)?;
    // SAFETY: in program memory; any bytes are a valid `T`, which is `Plain`.
    Ok(unsafe { core::ptr::with_exposed_provenance::<T>(addr as usize).read_unaligned() })
}

/// Writes a plain value.
pub fn write<T: Plain>(addr: u64, value: T) -> Result<(), Errno> {
    check(addr, size_of::<T>() as u64)?;
    // SAFETY: in program memory.
    unsafe { core::ptr::with_exposed_provenance_mut::<T>(addr as usize).write_unaligned(value) };
    Ok(())
}

/// A text that ends with a zero byte, at most 4096 bytes.
pub fn path(addr: u64) -> Result<&'static [u8], Errno> {
    for length in 0..4096 {
        if read::<u8>(addr.wrapping_add(length))? == 0 {
            return slice(addr, length);
        }
    }
    Err(Errno::ENAMETOOLONG)
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
    u8, u16, u32, i32, u64, i64, [u8; 16], [u32; 2], [u64; 2], [u64; 3], [u64; 14]
);
