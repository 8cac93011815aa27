//! The thread pointer, where a program asks for it.

use crate::errno::{Errno, SysResult};
use crate::{host, user};

/// `arch_prctl`: the thread pointer.
pub fn architecture(operation: u64, value: u64) -> SysResult {
    const ARCH_SET_GS: u64 = 0x1001;
    const ARCH_SET_FS: u64 = 0x1002;
    const ARCH_GET_FS: u64 = 0x1003;
    const ARCH_GET_GS: u64 = 0x1004;
    const NON_CANONICAL_FROM: u64 = 1 << 47;
    match operation {
        ARCH_SET_FS | ARCH_SET_GS if value >= NON_CANONICAL_FROM => Err(Errno::EPERM),
        ARCH_SET_FS => {
            host::set_fs_base(value);
            Ok(0)
        }
        ARCH_SET_GS => {
            host::set_gs_base(value);
            Ok(0)
        }
        ARCH_GET_FS => zero(value, host::fs_base()),
        ARCH_GET_GS => zero(value, host::gs_base()),
        _ => Err(Errno::EINVAL),
    }
}

fn zero<T: user::Plain>(to: u64, value: T) -> SysResult {
    user::write(to, value)?;
    Ok(0)
}
