//! The system that the process finds itself on.

use crate::errno::SysResult;
use crate::{state, time, user};

/// The release of Linux that programs see.
pub const RELEASE: &str = "6.1.0-holm";

/// `uname`
pub fn names(to: u64) -> SysResult {
    let fields: [&[u8]; 6] = [
        b"Linux",
        b"holm",
        RELEASE.as_bytes(),
        b"#1 Holm",
        b"x86_64",
        b"(none)",
    ];
    let room = user::slice_mut(to, 6 * 65)?;
    room.fill(0);
    for (field, room) in fields.iter().zip(room.chunks_mut(65)) {
        room[..field.len()].copy_from_slice(field);
    }
    Ok(0)
}

/// `sysinfo`
pub fn system_information(to: u64) -> SysResult {
    let room = user::slice_mut(to, 112)?;
    room.fill(0);
    let memory = state::memory();
    let mut put = |at: usize, value: u64| room[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(0, time::monotonic_ns() / 1_000_000_000);
    put(32, memory.total_bytes());
    put(40, memory.free_bytes());
    // One process; sizes are in bytes.
    put(80, 1);
    room[104..108].copy_from_slice(&1u32.to_le_bytes());
    Ok(0)
}
