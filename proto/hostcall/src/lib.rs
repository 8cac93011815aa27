//! The contract between a guest and its host.
//!
//! This is the one file that both sides share in meaning: the guest kernel and the VMM compile the
//! same constants and the same fixed layouts, and there is no other way out of a guest. It has no
//! dependencies and does no I/O.
//!
//! ```text
//! guest physical = guest virtual address (the page tables only give permissions)
//!
//! 0x0000_0000  never mapped, so a null pointer faults
//! 0x0000_1000  GDT and TSS      supervisor, read by the CPU only
//! 0x0000_2000  IDT              supervisor
//! 0x0000_3000  stub stack       supervisor, the interrupt stack (IST1)
//! 0x0000_4000  stub scratch     supervisor
//! 0x0000_8000  stub code        supervisor, execute only: the CPL 0 stub
//! 0x0001_0000  boot page        user, read only: what the host tells the guest
//! 0x0001_1000  call page        user, read/write: the arguments of a hostcall
//! 0x0001_2000  CPUID table      user, read only: what the vCPU answers to CPUID
//! 0x0002_0000  log ring         user, read/write: stdout and stderr, read by the host at exits
//! 0x0003_0000  call stubs       user, execute only: system calls and CPUID of the program that were made
//!              jumps
//! 0x0005_0000  low data         user, read/write: a part of the library OS's data
//! 0x0010_0000  kernel image     user: the library OS, W^X by segment
//! 0x0020_0000  or above: program memory, from the program's lowest page on; user; as many bytes as the
//!              manifest's memory limit
//! …            page tables      supervisor, from the next 2 MiB on, those of the sparse space included
//! …            file tree        user, read only: the artifact's files, if it has any
//! ```
//!
//! The page tables can be read by the user at [`TABLES_ALIAS`].
//!
//! Beside this there is the *sparse space*: all virtual addresses from [`SPARSE_START`] on that a process
//! of Linux can have, in which nothing is mapped at first. The library OS backs it with pages of program
//! memory when it is touched, by way of the stub.
//!
//! A hostcall is: fill in the call page, `int3` at the gate. The stub answers with one `out` to
//! [`HOSTCALL_PORT`], which is the exit; the host reads the call page once, validates the copy, acts
//! and lets the guest go on. Every guest value is an allegation.
#![no_std]
#![forbid(unsafe_code)]

pub mod message;
pub mod tree;

/// Version of everything in this crate. A snapshot and a guest kernel carry it; a host serves only
/// its own.
pub const ABI_VERSION: u32 = 4;

/// Bytes in a page. Every address and size below is a multiple of it.
pub const PAGE_BYTES: u64 = 4096;

/// GDT and TSS.
pub const TABLES_ADDR: u64 = 0x1000;
/// Offset of the 64-bit TSS within the page at [`TABLES_ADDR`].
pub const TSS_OFFSET: u64 = 0x100;
/// IDT: 256 gates of 16 bytes.
pub const IDT_ADDR: u64 = 0x2000;
/// The one stack of the CPL 0 stub; its top is the next page's start.
pub const STUB_STACK_ADDR: u64 = 0x3000;
/// Scratch memory of the stub.
pub const STUB_SCRATCH_ADDR: u64 = 0x4000;
/// The code of the stub. The entry of exception vector `v` is at `STUB_ADDR + v * STUB_ENTRY_BYTES`,
/// but for [`HOSTCALL_VECTOR`].
pub const STUB_ADDR: u64 = 0x8000;
/// Bytes between the exception entries of the stub.
pub const STUB_ENTRY_BYTES: u64 = 16;
/// Where the hostcall gate leads.
pub const STUB_HOSTCALL_ADDR: u64 = STUB_ADDR + 0x200;
/// What the stub's page gate checks against, written by the host: [`OperationBounds`] of each operation.
pub const STUB_BOUNDS_ADDR: u64 = STUB_SCRATCH_ADDR;
/// CR3, for the PVH entry, which has no host to set it.
pub const STUB_CR3_ADDR: u64 = STUB_SCRATCH_ADDR + 0xF00;
/// All memory below is for the supervisor only.
pub const USER_START: u64 = 0x1_0000;
/// The boot page.
pub const BOOT_ADDR: u64 = 0x1_0000;
/// The call page.
pub const CALL_ADDR: u64 = 0x1_1000;
/// [`FaultPage`]: within the call page.
pub const FAULT_ADDR: u64 = CALL_ADDR + 0x800;
/// [`LackingPage`]: within the call page.
pub const LACKING_ADDR: u64 = CALL_ADDR + 0x400;
/// [`NewsPage`]: within the call page.
pub const NEWS_ADDR: u64 = CALL_ADDR + 0x600;
/// The CPUID table: [`CpuidTable`].
pub const CPUID_ADDR: u64 = 0x1_2000;
/// Most entries of the CPUID table.
pub const MAX_CPUID_ENTRIES: usize = 255;
/// The log ring: [`LogHeader`], then [`LOG_CAPACITY_BYTES`] bytes.
pub const LOG_ADDR: u64 = 0x2_0000;
/// Bytes of log text that fit between two exits; a full ring is flushed by [`Call::LOG_FLUSH`].
pub const LOG_CAPACITY_BYTES: u64 = 0x1_0000 - 64;
/// The stubs of system calls and CPUID that the host has made jumps, from here to [`CALLS_END`].
pub const CALLS_ADDR: u64 = 0x3_0000;
/// The end of their room.
pub const CALLS_END: u64 = LOW_DATA_ADDR;
/// A part of the library OS's data: the large tables, for which there is no room in the kernel image.
pub const LOW_DATA_ADDR: u64 = 0x5_0000;
/// The end of it. Above, a PC has no memory, which the PVH entry meets.
pub const LOW_DATA_END: u64 = 0x9_F000;
/// Where the kernel image is linked, and where its `syscall` entry is.
pub const KERNEL_ADDR: u64 = 0x10_0000;
/// The end of what the kernel image may use.
pub const KERNEL_END: u64 = 0x20_0000;
/// The lowest start of program memory.
pub const PROGRAM_ADDR: u64 = KERNEL_END;

/// Bytes below the program's stack that are never mapped and never given out.
pub const STACK_GUARD_BYTES: u64 = 16 * PAGE_BYTES;

/// Where the page tables are seen by CPL 3, read only: within the reach of one directory.
pub const TABLES_ALIAS: u64 = SPARSE_START - DIRECTORY_REACH_BYTES;
/// The sparse space, above all of the guest's physical memory.
pub const SPARSE_START: u64 = 16 << 30;
/// The end of what a process of Linux can have.
pub const SPARSE_END: u64 = LOWER_HALF_BYTES - PAGE_BYTES;
/// Bytes that one leaf page table maps.
pub const TABLE_REACH_BYTES: u64 = 512 * PAGE_BYTES;
/// Bytes that one directory of leaf page tables leads to.
pub const DIRECTORY_REACH_BYTES: u64 = 512 * TABLE_REACH_BYTES;
/// Bytes that one table of pointers to directories leads to: what one entry of the highest page table covers.
pub const POINTERS_REACH_BYTES: u64 = 512 * DIRECTORY_REACH_BYTES;
/// All addresses that the tables of pointers lead to.
pub const LOWER_HALF_BYTES: u64 = 1 << 47;

/// Exception vector of a hostcall: `int3` at the kernel image's symbol `hostcall_gate`.
pub const HOSTCALL_VECTOR: u8 = 3;
/// I/O port of the exit that a hostcall makes.
pub const HOSTCALL_PORT: u16 = 0x0F0;
/// Vector by which [`FaultPage`] tells that the host has interrupted the program, for another thread's
/// turn.
pub const PREEMPTION_VECTOR: u64 = 32;
/// I/O port of the exit that an exception makes which the library OS cannot be given: one of its own.
pub const EXCEPTION_PORT: u16 = 0x0F8;

/// Selectors in the GDT. Those of user mode are the values that Linux programs see.
pub mod selector {
    /// 64-bit code at CPL 0.
    pub const KERNEL_CODE: u16 = 0x10;
    /// Data at CPL 0.
    pub const KERNEL_DATA: u16 = 0x18;
    /// Data at CPL 3, as `syscall`/`sysret` derive it.
    pub const USER_DATA: u16 = 0x2B;
    /// 64-bit code at CPL 3.
    pub const USER_CODE: u16 = 0x33;
    /// The TSS.
    pub const TSS: u16 = 0x40;
}

/// What the host tells the guest, on the boot page. `generation`, `seed` and the clock are new at
/// every restore, before the first instruction of the program.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BootPage {
    /// [`ABI_VERSION`] of the host.
    pub abi_version: u32,
    /// [`boot_flags`].
    pub flags: u32,
    /// Changes at every restore; never the same twice on a node.
    pub generation: u64,
    /// 256 bits from the host's random number generator, new at every restore.
    pub seed: [u8; 32],
    /// Nanoseconds since 1970 UTC when the guest's TSC read `tsc_at`.
    pub realtime_ns: u64,
    /// Nanoseconds of the host's monotonic clock when the guest's TSC read `tsc_at`.
    pub monotonic_ns: u64,
    /// The guest's TSC at that moment.
    pub tsc_at: u64,
    /// Nanoseconds per TSC tick, times 2^32.
    pub ns_per_tick_q32: u64,
    /// Bytes of program memory.
    pub memory_bytes: u64,
    /// First address after the program's segments, rounded up to a page: where `brk` starts.
    pub brk_start: u64,
    /// The program's entry point.
    pub entry: u64,
    /// Initial stack pointer, with argc, argv, envp and auxv laid out above it by the host.
    pub stack_pointer: u64,
    /// Lowest mapped address of the program's stack.
    pub stack_start: u64,
    /// TCP port the program is to listen on (`$PORT`).
    pub port: u32,
    /// Unused, zero.
    pub reserved: u32,
    /// Where program memory begins: the page of the program's lowest segment.
    pub program_start: u64,
    /// The page table entries: that of page `n` of the identity mapping is `8 * n` further.
    pub tables: u64,
    /// The pointers of the sparse space: an entry for each directory there could be from address 0 on.
    pub sparse_pointers: u64,
    /// Directories for the sparse space, all zero at the start. Its tables come right after them.
    pub sparse_directories: u64,
    /// Leaf tables for the sparse space, all zero at the start.
    pub sparse_tables: u64,
    /// Number of those.
    pub sparse_table_count: u64,
    /// The artifact's file tree, as [`tree`] describes it.
    pub files_start: u64,
    /// Bytes of it, in whole pages; 0 if there is none.
    pub files_bytes: u64,
}

impl BootPage {
    /// Bytes of the program's stack.
    pub fn stack_bytes(&self) -> u64 {
        (self.program_start + self.memory_bytes).saturating_sub(self.stack_start)
    }
}

/// Flags of [`BootPage`].
pub mod boot_flags {
    /// The program finds the caller's connection as its standard input and output.
    pub const INETD: u32 = 1;
    /// The instance is kept, and may be given several requests at a time.
    pub const SHARED: u32 = 2;
    /// The program was built to execute what is on its stack.
    pub const EXECUTABLE_STACK: u32 = 4;
}

/// What the stub's page gate allows an operation.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct OperationBounds {
    /// The first slot that may be written, and one past the last, as addresses.
    pub slots: [u64; 2],
    /// The same for what rsi says.
    pub sources: [u64; 2],
    /// Bits that rsi may not have.
    pub source_mask: u64,
    /// What an entry is given beside an address.
    pub bits: u64,
    /// Unused, zero.
    pub reserved: [u64; 2],
}

/// What the stub (or, for a preemption, the host) says of the program when it sends the vCPU to the
/// library OS's `fault_entry`. All other registers are still the program's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultPage {
    /// The program's rax.
    pub rax: u64,
    /// The address that could not be accessed, for a page fault.
    pub cr2: u64,
    /// The exception, or [`PREEMPTION_VECTOR`].
    pub vector: u64,
    /// The exception's error code, or 0.
    pub error_code: u64,
    /// Where the program was.
    pub rip: u64,
    /// Written by the library OS: not 0 while it wants to be interrupted, because more than one thread
    /// could run.
    pub wants_ticks: u64,
    /// Written by the host instead of a preemption while the library OS itself runs; cleared by it.
    pub tick_missed: u64,
}

/// The program's registers as the library OS has them on a stack while it serves a system call or a
/// fault, in the order in which its entry pushes them.
#[expect(missing_docs, reason = "the registers' own names")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub r10: u64,
    pub r8: u64,
    pub r9: u64,
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub rcx: u64,
    pub rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// A system call, or a CPUID, that the host has made a jump at the program's start: `jmp` to a stub within
/// [`CALLS_ADDR`] and [`CALLS_END`], whose bytes reach over the instruction after the call.
pub mod rewritten_call {
    /// The opcode of that `jmp`, where the call was.
    pub const JUMP: u8 = 0xE9;
    /// What is found at the next instruction's old place: no instruction in 64-bit mode.
    pub const NOT_AN_INSTRUCTION: u8 = 0x06;
    /// Where that instruction is now, from the stub's start.
    pub const AFTER: u64 = 15;
    /// Where the call can be made again, as before by its two bytes, from the stub's start.
    pub const RESTART: u64 = AFTER - 2;
    /// Where the address of the call in the program is, from the stub's start: four bytes.
    pub const SITE: u64 = 28;
    /// Bytes from one stub to the next; each begins at a multiple of them.
    pub const STUB_BYTES: usize = 32;
}

/// What the vCPU answers to CPUID, where that does not depend on the moment or on the host's core: what is
/// not here, the instruction has to tell.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CpuidTable {
    /// How many of the entries there are.
    pub count: u32,
    /// Unused, zero.
    pub reserved: [u32; 7],
    /// In no particular order, no two for the same question.
    pub entries: [CpuidEntry; MAX_CPUID_ENTRIES],
}

/// The answer to a leaf, or to a subleaf of it.
#[expect(missing_docs, reason = "the registers' own names")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuidEntry {
    pub leaf: u32,
    pub subleaf: u32,
    /// 0 if the answer is the same for all subleaves.
    pub by_subleaf: u32,
    /// Unused, zero.
    pub reserved: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// What the stub's page gate does, by the number in rdx. Slots are entries of page tables, by address: the
/// first is in rdi, their number in rcx. [`OperationBounds`] says which.
pub mod page_operation {
    /// Pages of program memory become inaccessible.
    pub const CLOSE: u64 = 0;
    /// They become read only.
    pub const READ: u64 = 1;
    /// They become readable and writable.
    pub const WRITE: u64 = 2;
    /// They become readable and executable.
    pub const EXECUTE: u64 = 3;
    /// To be added to these, for backed pages of the sparse space.
    pub const SPARSE: u64 = 4;
    /// Slots of the sparse pages tables become empty, those of its directories and pointers included.
    pub const UNMAP: u64 = 8;
    /// Slots of the sparse tables become what those of program memory from rsi on are.
    pub const MAP: u64 = 9;
    /// A slot of the pointers leads to the directory at rsi.
    pub const LINK_DIRECTORY: u64 = 10;
    /// A slot of a directory leads to the table at rsi.
    pub const LINK_TABLE: u64 = 11;
    /// How many there are.
    pub const COUNT: u64 = 12;
}

/// The arguments and the result of a hostcall, on the call page.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CallPage {
    /// One of [`Call`]'s numbers.
    pub number: u32,
    /// One of [`respond_flags`] where the call has flags, else zero.
    pub flags: u32,
    /// Arguments; unused ones are zero.
    pub args: [u64; 4],
    /// The place of the request that the call is about, below [`MAX_REQUESTS`].
    pub request: u64,
    /// For a wait or a park: a bit for the place of each request of whose body more is wanted.
    pub wanted: u64,
    /// Written by the host: zero or a count on success, a negative `errno` of Linux on failure.
    pub result: i64,
    /// The guest's TSC when it made the call.
    pub tsc: u64,
}

/// Most requests in an instance at a time. Each has a place below that, which the guest gives it.
pub const MAX_REQUESTS: usize = 64;

/// What has come while the guest was out in a [`Call::WAIT_REQUEST`] or a [`Call::PARK`], written by the host
/// before it goes on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewsPage {
    /// Which events of connections are there, of those that the call was made for: see [`socket_events`].
    pub events: u64,
    /// A bit for the place of each request whose caller has gone, until the place is used again: nothing
    /// that is said to it is heard.
    pub gone: u64,
    /// A bit for the place of each request of whose body there is more, or of which it is known that there is
    /// not, of those that the call was made for.
    pub readable: u64,
}

/// System calls that the program made and that are not served, one bit each, written by the guest.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LackingPage {
    /// Those that the library OS has named in the log.
    pub named: [u64; 8],
    /// Those that some kernels refuse as well, so that programs mostly do without.
    pub silent: [u64; 8],
}

/// The numbers of the hostcalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call(pub u32);

impl Call {
    /// Wait for a request: `args = [buffer, capacity, monotonic_ns, events]`. The first one is the snapshot
    /// point. Returns when a request is there, which then has the place that the call names: the buffer
    /// holds an encoded [`message::Request`] with as much of the body as fits; result is the number of bytes
    /// written, or [`WAIT_ENDED`]. While others are not answered, returns with 0 at that time, and as a
    /// [`Call::PARK`] does.
    pub const WAIT_REQUEST: Call = Call(1);
    /// Read more of the request's body: `args = [buffer, capacity, 0, 0]`. Result is the number of
    /// bytes written, 0 at its end; EAGAIN while more has not come yet.
    pub const REQUEST_BODY: Call = Call(2);
    /// Answer: `args = [head, head_bytes, body, body_bytes]` with an encoded [`message::Response`]
    /// head and the first, or with [`respond_flags::END`] the only, part of the body. EPIPE if the caller
    /// has gone.
    pub const RESPOND: Call = Call(3);
    /// More of the response's body: `args = [body, body_bytes, 0, 0]`, flags as in `RESPOND`.
    pub const RESPONSE_BODY: Call = Call(4);
    /// The log ring is full: the host takes what is in it.
    pub const LOG_FLUSH: Call = Call(5);
    /// The program ended: `args = [status, 0, 0, 0]`. Does not return.
    pub const EXIT: Call = Call(6);
    /// The library OS gives up on the program: `args = [reason, text, text_bytes, detail]`, reason
    /// one of [`abort_reason`], which tells what the detail is. Does not return.
    pub const ABORT: Call = Call(7);
    /// Nothing to do before: `args = [monotonic_ns, events, 0, 0]`. Returns at that time or later, when one
    /// of the events is there, and when a caller has gone, which [`NewsPage`] tells. Result is 0.
    pub const PARK: Call = Call(8);
    /// The program took an exception or a signal that nobody handles: `args = [vector, error code, address,
    /// registers]`, the last the address of [`Registers`]; the vector is [`FIRST_SIGNAL`] and the signal's
    /// number for one that no exception led to. Does not return.
    pub const FAULT: Call = Call(9);
    /// The addresses of a host: `args = [name, name_bytes, buffer, capacity]`. Result is the bytes written,
    /// 16 for each address, those of version 4 as version 6 maps them; EAGAIN while it is not known yet,
    /// ENOENT if there is no such host or the function may not reach it.
    pub const RESOLVE: Call = Call(10);
    /// Begin a connection: `args = [first half of the address, second half, port, 0]`, the halves
    /// big-endian. Result is a handle, whose low byte is its place in [`socket_events`]. It is connected,
    /// or has failed, when it can be written to.
    pub const CONNECT: Call = Call(11);
    /// Send on a connection: `args = [handle, buffer, bytes, 0]`. Result is the bytes taken.
    pub const SEND: Call = Call(12);
    /// Receive from a connection: `args = [handle, buffer, capacity, 0]`, flags as in [`receive_flags`].
    /// Result is the bytes written, 0 at its end.
    pub const RECEIVE: Call = Call(13);
    /// End a connection or its sending half: `args = [handle, how, 0, 0]`, one of [`shut_how`].
    pub const SHUT: Call = Call(14);
    /// The error of a connection, which is then forgotten: `args = [handle, 0, 0, 0]`. Result is an
    /// `errno`, or 0.
    pub const SOCKET_ERROR: Call = Call(15);
    /// One request of several cannot be answered, the others can: `args = [reason, text, text_bytes, 0]`,
    /// reason one of [`abort_reason`]. If it is the only one, this is an [`Call::ABORT`].
    pub const FAIL_REQUEST: Call = Call(16);
}

/// What a word of events says: a bit for each connection's place, four times.
pub mod socket_events {
    /// Most connections of an instance at a time.
    pub const MAX_CONNECTIONS: usize = 15;
    /// First bit of those that can be read.
    pub const READABLE: u32 = 0;
    /// First bit of those that can be written to.
    pub const WRITABLE: u32 = 16;
    /// First bit of those whose other end sends nothing any more.
    pub const ENDED: u32 = 32;
    /// First bit of those that failed.
    pub const FAILED: u32 = 48;
    /// A host's addresses have become known.
    pub const RESOLVED: u64 = 1 << 15;
}

/// Flags of [`Call::RECEIVE`].
pub mod receive_flags {
    /// What is received stays there.
    pub const PEEK: u32 = 1;
}

/// What [`Call::SHUT`] ends.
pub mod shut_how {
    /// The sending half.
    pub const SENDING: u64 = 1;
    /// All of it; the handle is gone.
    pub const ALL: u64 = 2;
}

/// See [`Call::FAULT`]; above all vectors.
pub const FIRST_SIGNAL: u64 = 256;

/// Result of [`Call::WAIT_REQUEST`] in an instance that is kept: no more requests will come, and the program
/// is to end, by SIGTERM. It is EINTR.
pub const WAIT_ENDED: i64 = -4;

/// Flags of [`Call::RESPOND`] and [`Call::RESPONSE_BODY`].
pub mod respond_flags {
    /// The response is complete.
    pub const END: u32 = 1;
}

/// Why the library OS gave up.
pub mod abort_reason {
    /// The library OS found a fault of its own.
    pub const KERNEL_PANIC: u64 = 1;
    /// The program answered something that is not HTTP.
    pub const MALFORMED_RESPONSE: u64 = 2;
    /// The program killed itself with a signal, whose number is the detail.
    pub const SIGNAL: u64 = 3;
    /// Every thread waits for something that can never come. The detail is the address of the [`Registers`] of one.
    pub const DEADLOCK: u64 = 4;
    /// The program closed the connection without answering.
    pub const NO_RESPONSE: u64 = 5;
    /// The program touched memory that it has, but the memory limit is reached. The detail is the address of its
    /// [`Registers`].
    pub const OUT_OF_MEMORY: u64 = 6;
}

/// Start of the log ring. The guest writes, the host reads and empties at exits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct LogHeader {
    /// Bytes of text after this header, at most [`LOG_CAPACITY_BYTES`].
    pub used: u64,
    /// Bytes the guest had to drop.
    pub dropped: u64,
    /// Allocations the library OS refused because the memory limit was reached.
    pub memory_refusals: u64,
    /// Bytes of the last such allocation.
    pub refused_bytes: u64,
    /// Most bytes of program memory in use at a time.
    pub peak_bytes: u64,
    /// Unused, zero.
    pub reserved: [u64; 3],
}

/// Type of the auxiliary-vector entry by which a program finds the [`Door`]: "HOLM".
pub const AT_HOLM: u64 = 0x484F_4C4D;

/// The library OS's table of functions for programs built with the SDK, which call it without a
/// system call. Its address is the value of the [`AT_HOLM`] entry. All addresses are `extern "C"`
/// functions; they return a count, or a negative `errno`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Door {
    /// [`ABI_VERSION`] of the guest kernel.
    pub abi_version: u32,
    /// Unused, zero.
    pub reserved: u32,
    /// `fn(buffer: *mut u8, capacity: usize) -> isize`: [`Call::WAIT_REQUEST`].
    pub wait_request: usize,
    /// `fn(buffer: *mut u8, capacity: usize) -> isize`: [`Call::REQUEST_BODY`].
    pub request_body: usize,
    /// `fn(head: *const u8, head_bytes: usize, body: *const u8, body_bytes: usize, flags: u32) -> isize`.
    pub respond: usize,
    /// `fn(body: *const u8, body_bytes: usize, flags: u32) -> isize`.
    pub response_body: usize,
    /// `fn(buffer: *mut u8, bytes: usize) -> isize`: random bytes, never the same in two instances.
    pub random: usize,
}

const _: () = {
    assert!(size_of::<BootPage>() == 192);
    assert!(size_of::<OperationBounds>() == 64);
    assert!(STUB_BOUNDS_ADDR + page_operation::COUNT * 64 <= STUB_CR3_ADDR);
    assert!(size_of::<CallPage>() == 72);
    assert!(size_of::<FaultPage>() == 56 && size_of::<Registers>() == 160);
    assert!(CALL_ADDR + size_of::<CallPage>() as u64 <= LACKING_ADDR);
    assert!(size_of::<LackingPage>() == 128);
    assert!(LACKING_ADDR + size_of::<LackingPage>() as u64 <= NEWS_ADDR);
    assert!(size_of::<NewsPage>() == 24);
    assert!(NEWS_ADDR + size_of::<NewsPage>() as u64 <= FAULT_ADDR);
    assert!(MAX_REQUESTS <= 64);
    assert!(size_of::<LogHeader>() == 64);
    assert!(size_of::<CpuidEntry>() == 32 && size_of::<CpuidTable>() == 2 * PAGE_BYTES as usize);
    assert!(CALL_ADDR + PAGE_BYTES == CPUID_ADDR && CPUID_ADDR + 2 * PAGE_BYTES <= LOG_ADDR);
    assert!(size_of::<Door>() == 48);
    assert!(LOG_ADDR + size_of::<LogHeader>() as u64 + LOG_CAPACITY_BYTES <= KERNEL_ADDR);
    assert!(STUB_ADDR + 32 * STUB_ENTRY_BYTES <= STUB_HOSTCALL_ADDR);
    assert!(STUB_HOSTCALL_ADDR < USER_START && USER_START == BOOT_ADDR);
};
