//! The state of the library OS: one static for each part, each behind its own accessor, so that two
//! parts can be in use at a time and no part is in use twice.

use core::cell::UnsafeCell;

use crate::files::paths::Path;
use crate::files::temporary::Temporary;
use crate::files::{Files, MAX_DIRECTORIES, builtin};
use crate::host::Text;
use crate::memory::Memory;
use crate::pipes::{MAX_QUEUES, Queue};
use crate::poll::Epoll;
use crate::process::Process;
use crate::random::Random;
use crate::signals::Signals;
use crate::sockets::Server;
use crate::threads::Threads;

/// Most epoll instances.
pub const MAX_EPOLLS: usize = 8;

struct Part<T>(UnsafeCell<T>);

// SAFETY: the guest has one vCPU, and the library OS is entered only by a system call or a door
// call of the running thread, never from an interrupt; threads change only where they wait.
unsafe impl<T> Sync for Part<T> {}

macro_rules! parts {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $initial:expr;)*) => {
        $(
            $(#[$doc])*
            ///
            /// A function that holds this reference calls nothing that asks for the same part again, and
            /// nothing that waits.
            pub fn $name() -> &'static mut $type {
                static PART: Part<$type> = Part(UnsafeCell::new($initial));
                // SAFETY: see `Part` for other threads; in this one the rule above holds.
                unsafe { &mut *PART.0.get() }
            }
        )*
    };
}

parts! {
    /// Program memory.
    memory: Memory = Memory::new();
    /// File descriptors and what they stand for.
    files: Files = Files::new();
    /// /tmp.
    temporary: Temporary = Temporary::new();
    /// The open directories: whether each is, and its path.
    open_directories: [(bool, Path); MAX_DIRECTORIES] = [(false, Path::ROOT); MAX_DIRECTORIES];
    /// The working directory.
    working_directory: Path = Path::ROOT;
    /// `umask`: the permissions that new files do not get.
    file_mask: u32 = 0o022;
    /// What a built-in file holds, while it is read.
    content: builtin::Content = Text { bytes: [0; builtin::MAX_CONTENT_BYTES], used: 0 };
    /// The epoll instances.
    epolls: [Epoll; MAX_EPOLLS] = [const { Epoll::new() }; MAX_EPOLLS];
    /// The queues of pipes and socket pairs.
    queues: [Queue; MAX_QUEUES] = [const { Queue::new() }; MAX_QUEUES];
    /// The listener's queue and the request being served.
    server: Server = Server::new();
    /// The threads.
    threads: Threads = Threads::new();
    /// Whether the program has waited for a request.
    ready: bool = false;
    /// Signals.
    signals: Signals = Signals::new();
    /// Bytes and parts of the CPU's extended state, once they are known.
    extended_state: (u64, u64) = (0, 0);
    /// What the process has said of itself.
    process: Process = Process::new();
    /// Random bytes.
    random: Random = Random::new();
    /// System calls that were refused and have been named in the log, one bit each.
    named: [u64; 8] = [0; 8];
}
