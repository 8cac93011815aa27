//! The library OS: serves a static Linux program inside the guest, at CPL 3, in the program's own
//! address space.
//!
//! The program's `syscall` instructions arrive in [`syscall::handle`]. Whatever can be served from
//! memory is served here without leaving the guest; [`host`] is the only way out. The program shares
//! its privilege with the library OS and may damage it, which harms nobody else: the wall is the
//! virtual machine, and inside it the CPL 0 stub with the page tables.
//!
//! This crate is a library so that its pure parts ([`http`], [`memory`], [`log`]) are tested on the
//! development machine; the image itself is `src/main.rs`.
#![cfg_attr(not(test), no_std)]

pub mod buffers;
pub mod cpuid;
pub mod door;
pub mod errno;
pub mod fault;
pub mod files;
pub mod host;
pub mod http;
pub mod identity;
pub mod log;
pub mod memory;
pub mod pipes;
pub mod poll;
pub mod process;
pub mod random;
pub mod ready;
pub mod signals;
pub mod sockets;
pub mod stat;
pub mod state;
pub mod syscall;
pub mod threads;
pub mod time;
pub mod timers;
pub mod user;

use holm_hostcall::{ABI_VERSION, abort_reason, boot_flags};

/// Where the image begins to run: at CPL 3, on the kernel's own stack. Goes over to the program.
pub extern "C" fn start(stack_top: u64, thread_start: u64) -> ! {
    let boot = host::boot();
    if boot.abi_version != ABI_VERSION {
        host::abort_with(
            abort_reason::KERNEL_PANIC,
            0,
            format_args!(
                "the host speaks ABI {}, the guest kernel {ABI_VERSION}",
                boot.abi_version
            ),
        );
    }
    state::threads().start(stack_top, thread_start);
    state::memory().start(&boot);
    files::artifact::start();
    let inetd = boot.flags & boot_flags::INETD != 0;
    // The table of sockets is empty: there is room for one.
    let connection = inetd.then(|| sockets::expected(state::server().expect()).ok());
    state::files().start(connection.flatten());
    host::enter(boot.entry, boot.stack_pointer)
}
