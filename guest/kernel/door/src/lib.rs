//! The program's side of the guest kernel's direct-call interface.
//!
//! Inside Holm a program finds, in its auxiliary vector, the address of a table of functions of the
//! library OS. It runs at the same privilege level as the program, so calling it takes no system
//! call and no HTTP. This crate holds the `unsafe` that finding and calling need, and nothing else;
//! the SDK is built on it. Outside Holm [`find`] gives `None`.

use holm_hostcall::{ABI_VERSION, AT_HOLM, respond_flags};

unsafe extern "C" {
    // Part of glibc and of musl, which std links in any case. 0 when there is no such entry.
    safe fn getauxval(kind: u64) -> u64;
}

/// A negative `errno` of Linux, made positive.
pub type Errno = i32;

/// `EINVAL`: what a library OS that returns nonsense is read as.
const EINVAL: Errno = 22;

type Receive = unsafe extern "C" fn(buffer: *mut u8, capacity: usize) -> isize;
type Respond = unsafe extern "C" fn(
    head: *const u8,
    head_bytes: usize,
    body: *const u8,
    body_bytes: usize,
    flags: u32,
) -> isize;
type ResponseBody = unsafe extern "C" fn(body: *const u8, body_bytes: usize, flags: u32) -> isize;

/// The library OS's functions, found and checked.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    wait_request: Receive,
    request_body: Receive,
    respond: Respond,
    response_body: ResponseBody,
    random: Receive,
}

/// Whether a part of a response is its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// More of the body follows.
    More,
    /// The response is complete.
    Last,
}

impl Part {
    fn flags(self) -> u32 {
        match self {
            Part::More => 0,
            Part::Last => respond_flags::END,
        }
    }
}

/// The door of the Holm kernel that this program runs on; `None` outside Holm, and on a kernel of
/// another ABI version, where the program is still served by plain sockets.
pub fn find() -> Option<Door> {
    let table = getauxval(AT_HOLM) as *const holm_hostcall::Door;
    if table.is_null() || !table.is_aligned() {
        return None;
    }
    // SAFETY: Linux has no entry of this type, so it is Holm's kernel that put it there, and it
    // promises (holm_hostcall::AT_HOLM) the address of a `Door` in its image, which is mapped
    // readable and does not change while the program lives. Null and misaligned were ruled out.
    let abi_version = unsafe { (*table).abi_version };
    if abi_version != ABI_VERSION {
        return None;
    }
    // SAFETY: as above; with the version checked, the whole struct is the one compiled here.
    let table = unsafe { table.read() };
    if [
        table.wait_request,
        table.request_body,
        table.respond,
        table.response_body,
        table.random,
    ]
    .contains(&0)
    {
        return None;
    }
    // SAFETY: the table of this ABI version holds addresses of `extern "C"` functions with exactly
    // these signatures (holm_hostcall::Door documents each), in the kernel image, which stays
    // mapped executable while the program lives. None of them is zero.
    unsafe {
        Some(Door {
            wait_request: core::mem::transmute::<usize, Receive>(table.wait_request),
            request_body: core::mem::transmute::<usize, Receive>(table.request_body),
            respond: core::mem::transmute::<usize, Respond>(table.respond),
            response_body: core::mem::transmute::<usize, ResponseBody>(table.response_body),
            random: core::mem::transmute::<usize, Receive>(table.random),
        })
    }
}

impl Door {
    /// Waits for a request and returns how many bytes of `buffer` now hold it, encoded as
    /// [`holm_hostcall::message::Request`]. The first call is where the snapshot is taken.
    pub fn wait_request(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        touch_stack();
        receive(self.wait_request, buffer)
    }

    /// Reads on in the body of the request; 0 bytes at its end.
    pub fn request_body(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        receive(self.request_body, buffer)
    }

    /// Answers with an encoded [`holm_hostcall::message::Response`] head and the first or only
    /// part of the body.
    pub fn respond(&self, head: &[u8], body: &[u8], part: Part) -> Result<(), Errno> {
        // SAFETY: both pairs describe live slices, which the library OS only reads, and only until
        // it returns.
        let result = unsafe {
            (self.respond)(
                head.as_ptr(),
                head.len(),
                body.as_ptr(),
                body.len(),
                part.flags(),
            )
        };
        count(result, usize::MAX).map(|_| ())
    }

    /// Sends more of the response's body.
    pub fn response_body(&self, body: &[u8], part: Part) -> Result<(), Errno> {
        // SAFETY: as in `respond`.
        let result = unsafe { (self.response_body)(body.as_ptr(), body.len(), part.flags()) };
        count(result, usize::MAX).map(|_| ())
    }

    /// Fills `buffer` with random bytes that no other instance gets.
    pub fn random(&self, buffer: &mut [u8]) -> Result<(), Errno> {
        receive(self.random, buffer).map(|_| ())
    }
}

/// Touches the stack that the library OS will use of this thread's: it takes no page fault itself. What was
/// touched once stays, and is touched again in every instance by the first call.
#[inline(never)]
fn touch_stack() {
    const DEPTH: usize = 16 << 10;
    const PAGE: usize = 4 << 10;
    let mut room = [const { core::mem::MaybeUninit::<u8>::uninit() }; DEPTH];
    for byte in room.iter_mut().step_by(PAGE) {
        byte.write(0);
    }
    core::hint::black_box(&mut room);
}

fn receive(call: Receive, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the pair describes a live slice that nothing else refers to during the call; the
    // library OS (and the host, which it asks) writes at most `capacity` bytes to it and keeps no
    // pointer to it after it has returned.
    let result = unsafe { call(buffer.as_mut_ptr(), buffer.len()) };
    count(result, buffer.len())
}

/// Reads a result: a count of at most `most`, or a negative `errno`.
fn count(result: isize, most: usize) -> Result<usize, Errno> {
    match usize::try_from(result) {
        Ok(bytes) if bytes <= most => Ok(bytes),
        Ok(_) => Err(EINVAL),
        Err(_) => Err(Errno::try_from(result.unsigned_abs()).unwrap_or(EINVAL)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_door_outside_holm() {
        assert!(find().is_none());
    }

    #[test]
    fn a_result_is_a_count_within_the_buffer_or_an_errno() {
        assert_eq!(count(5, 8), Ok(5));
        assert_eq!(count(9, 8), Err(EINVAL));
        assert_eq!(count(-11, 8), Err(11));
        assert_eq!(count(isize::MIN, 8), Err(EINVAL));
    }
}
