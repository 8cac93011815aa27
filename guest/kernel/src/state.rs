//! The state of the library OS: one static for each part, each behind its own accessor, so that two
//! parts can be in use at a time and no part is in use twice.

use core::cell::UnsafeCell;

use holm_hostcall::tree::Tree;

use crate::files::directory::OpenDirectories;
use crate::files::locks::Locks;
use crate::files::map::Copies;
use crate::files::open::NotFound;
use crate::files::paths::Path;
use crate::files::piece::Cells;
use crate::files::temporary::Temporary;
use crate::files::watch::Watches;
use crate::files::{Files, builtin};
use crate::memory::Memory;
use crate::pipes::{MAX_QUEUES, Queue};
use crate::poll::Epolls;
use crate::process::Process;
use crate::random::Random;
use crate::signals::Signals;
use crate::signals::timers::Timers as SignalTimers;
use crate::sockets::Server;
use crate::sockets::rights::Rights;
use crate::sockets::table::Sockets;
use crate::threads::Threads;
use crate::time::CpuTime;
use crate::timers::{MAX_TIMERS, Timer};

struct Part<T>(UnsafeCell<T>);

// SAFETY: the guest has one vCPU, and the library OS is entered only by a system call or a door
// call of the running thread, never from an interrupt; threads change only where they wait.
unsafe impl<T> Sync for Part<T> {}

macro_rules! placed {
    ([$($attribute:meta)?] $part:item) => {
        $(#[$attribute])?
        $part
    };
}

macro_rules! parts {
    ($place:tt $($(#[$doc:meta])* $name:ident: $type:ty = $initial:expr;)*) => {
        $(
            $(#[$doc])*
            ///
            /// A function that holds this reference calls nothing that asks for the same part again, and
            /// nothing that waits.
            pub fn $name() -> &'static mut $type {
                placed! { $place static PART: Part<$type> = Part(UnsafeCell::new($initial)); }
                // SAFETY: see `Part` for other threads; in this one the rule above holds.
                unsafe { &mut *PART.0.get() }
            }
        )*
    };
}

// The large ones lie below the library OS, where there is more room; the linker script knows these
// sections, and nothing else is in them.
parts! {
    [unsafe(link_section = ".data.low")]
    /// Program memory.
    memory: Memory = Memory::new();
    /// The epoll instances.
    epolls: Epolls = Epolls::new();
    /// The locks of files.
    locks: Locks = Locks::new();
    /// The descriptors that travel through sockets.
    rights: Rights = Rights::new();
    /// What the process has said of itself.
    process: Process = Process::new();
}

parts! {
    [unsafe(link_section = ".bss.low")]
    /// /tmp.
    temporary: Temporary = Temporary::new();
    /// What a built-in file holds, while it is read.
    content: builtin::Content = builtin::Content::new();
    /// The queues of pipes and of sockets that are connected within the guest.
    queues: [Queue; MAX_QUEUES] = [const { Queue::new() }; MAX_QUEUES];
    /// Who is told what happens to files.
    watches: Watches = Watches::new();
    /// The open directories.
    open_directories: OpenDirectories = OpenDirectories::new();
    /// Signals.
    signals: Signals = Signals::new();
}

parts! {
    []
    /// File descriptors and what they stand for.
    files: Files = Files::new();
    /// The files that the artifact brought.
    artifact: Option<Tree<'static>> = None;
    /// Private mappings of files.
    copies: Copies = Copies::new();
    /// Small pieces of program memory.
    cells: Cells = Cells::new();
    /// The working directory.
    working_directory: Path = Path::ROOT;
    /// `umask`: the permissions that new files do not get.
    file_mask: u32 = 0o022;
    /// The sockets.
    sockets: Sockets = Sockets::new();
    /// The timers that send signals.
    signal_timers: SignalTimers = SignalTimers::new();
    /// What of the time the CPU was not used for.
    cpu_time: CpuTime = CpuTime::new();
    /// The timers that are read like files.
    timers: [Timer; MAX_TIMERS] = [const { Timer::new() }; MAX_TIMERS];
    /// The request being served.
    server: Server = Server::new();
    /// The threads.
    threads: Threads = Threads::new();
    /// Whether the program has waited for a request.
    ready: bool = false;
    /// Bytes and parts of the CPU's extended state, once they are known.
    extended_state: (u64, u64) = (0, 0);
    /// When the host was last asked what the connections out of the guest are ready for.
    outbound_asked_at: u64 = 0;
    /// The last file that a program looked for and did not find before it was ready.
    not_found: NotFound = NotFound::new();
    /// Random bytes.
    random: Random = Random::new();
}
