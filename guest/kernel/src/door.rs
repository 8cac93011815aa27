//! The door: what a program built with the SDK calls instead of being a server. No system call, no
//! HTTP text; one hostcall each.

use holm_hostcall::{ABI_VERSION, Call, Door};

use crate::errno::Errno;
use crate::{host, ready, state, user};

/// The table whose address a program finds in its auxiliary vector.
#[unsafe(no_mangle)]
#[used]
pub static HOLM_DOOR: DoorTable = DoorTable {
    abi_version: ABI_VERSION,
    reserved: 0,
    wait_request,
    request_body,
    respond,
    response_body,
    random,
};

/// [`Door`] with the functions' types.
#[repr(C)]
pub struct DoorTable {
    abi_version: u32,
    reserved: u32,
    wait_request: extern "C" fn(u64, u64) -> i64,
    request_body: extern "C" fn(u64, u64) -> i64,
    respond: extern "C" fn(u64, u64, u64, u64, u32) -> i64,
    response_body: extern "C" fn(u64, u64, u32) -> i64,
    random: extern "C" fn(u64, u64) -> i64,
}

const _: () = assert!(size_of::<DoorTable>() == size_of::<Door>());

/// The result of a call whose buffers were looked at: promised memory is backed, since the host only
/// finds what is.
fn checked(buffers: Result<(), Errno>, call: impl FnOnce() -> i64) -> i64 {
    match buffers {
        Ok(()) => call(),
        Err(Errno(number)) => -i64::from(number),
    }
}

extern "C" fn wait_request(buffer: u64, capacity: u64) -> i64 {
    let buffers = user::slice_mut(buffer, capacity).map(|_| ());
    checked(buffers, || {
        ready::wait_for_request(0, [buffer, capacity, u64::MAX, 0], 0)
    })
}

extern "C" fn request_body(buffer: u64, capacity: u64) -> i64 {
    let buffers = user::slice_mut(buffer, capacity).map(|_| ());
    checked(buffers, || {
        loop {
            let result = host::call(Call::REQUEST_BODY, 0, [buffer, capacity, 0, 0]);
            if result != -i64::from(Errno::EAGAIN.0) {
                return result;
            }
            // The one request of such a program is at the first place.
            host::leave(0, Call::PARK, [u64::MAX, 0, 0, 0], 1);
            if host::news().gone & 1 != 0 {
                return 0;
            }
        }
    })
}

extern "C" fn respond(head: u64, head_bytes: u64, body: u64, body_bytes: u64, flags: u32) -> i64 {
    let buffers = user::slice(head, head_bytes).and(user::slice(body, body_bytes));
    checked(buffers.map(|_| ()), || {
        host::call(Call::RESPOND, flags, [head, head_bytes, body, body_bytes])
    })
}

extern "C" fn response_body(body: u64, body_bytes: u64, flags: u32) -> i64 {
    let buffers = user::slice(body, body_bytes).map(|_| ());
    checked(buffers, || {
        host::call(Call::RESPONSE_BODY, flags, [body, body_bytes, 0, 0])
    })
}

extern "C" fn random(buffer: u64, bytes: u64) -> i64 {
    let room = user::slice_mut(buffer, bytes);
    checked(room.map(|room| state::random().fill(room)), || bytes as i64)
}
