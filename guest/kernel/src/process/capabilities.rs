//! Capabilities, of which there are none.

use super::is_here;
use crate::errno::{Errno, SysResult};
use crate::{state, user};

/// The thread that the header of a call about capabilities names, and the bytes of the sets that go with its version;
/// no bytes for a version that there is not, for which the header is told the newest.
fn capability_header(header: u64) -> Result<(u32, Option<u64>), Errno> {
    const VERSION_1: u32 = 0x1998_0330;
    const VERSION_2: u32 = 0x2007_1026;
    const VERSION_3: u32 = 0x2008_0522;
    let [version, id] = user::read::<[u32; 2]>(header)?;
    let words = match version {
        VERSION_1 => 3,
        VERSION_2 | VERSION_3 => 6,
        _ => {
            user::write(header, VERSION_3)?;
            return Ok((id, None));
        }
    };
    Ok((id, Some(words * 4)))
}

/// `capget`: none. The newest version is told to those who ask for one that there is not.
pub fn capabilities(header: u64, to: u64) -> SysResult {
    let (id, bytes) = capability_header(header)?;
    let Some(bytes) = bytes else {
        return if to == 0 { Ok(0) } else { Err(Errno::EINVAL) };
    };
    if (id as i32) < 0 {
        return Err(Errno::EINVAL);
    }
    is_here(u64::from(id))?;
    if to != 0 {
        user::slice_mut(to, bytes)?.fill(0);
    }
    Ok(0)
}

/// `capset`: there is none that could be had; to have none is granted.
pub fn set_capabilities(header: u64, from: u64) -> SysResult {
    let (id, bytes) = capability_header(header)?;
    let bytes = bytes.ok_or(Errno::EINVAL)?;
    if id != 0 && state::threads().id() != id {
        return Err(Errno::EPERM);
    }
    match user::slice(from, bytes)?.iter().all(|byte| *byte == 0) {
        true => Ok(0),
        false => Err(Errno::EPERM),
    }
}
