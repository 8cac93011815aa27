//! The way out: hostcalls, and the two fixed pages shared with the host.

use core::arch::{asm, global_asm};
use core::fmt::Write as _;

use crate::time;
use holm_hostcall::{
    BOOT_ADDR, BootPage, CALL_ADDR, Call, CallPage, FAULT_ADDR, FaultPage, LACKING_ADDR,
    LackingPage, NEWS_ADDR, NewsPage,
};

// The two gates into CPL 0. Plain exceptions, because PVM delivers those natively while it refuses
// `int n` in a guest whose selectors are Linux's own. The stub and the host know the gates by their
// addresses; the same instructions anywhere else are the program's own fault.
global_asm!(
    r#"
    .section .text.gates, "ax"
    .global hostcall_gate
    .global page_gate
    .balign 16
hostcall_gate:
    int3
    // Every restore goes on here. PVM sets no data selectors, so the guest does: null, as on Linux.
    // Loading FS and GS may clear their bases.
    xor eax, eax
    mov ds, eax
    mov es, eax
    rdfsbase rcx
    mov fs, eax
    wrfsbase rcx
    rdgsbase rcx
    mov gs, eax
    wrgsbase rcx
    ret
    .balign 16
page_gate:
    ud2
    ret

    // The host sends an instance here before its first request, with a list of pages at rsi and their number in rcx:
    // what KVM does for the first touch of a page is done before somebody waits for it. It never goes on from here.
    .global touch_pages
touch_pages:
    mov rax, [rsi]
    mov al, [rax]
    add rsi, 8
    dec rcx
    jnz touch_pages
    int3

    // The same with the extended state in memory meanwhile, which a restore brings back with all else. So the
    // host need not set it, which would be a call of its own into KVM for each request.
waiting_gate:
    lea rcx, [rip + extended_state]
    mov eax, -1
    mov edx, -1
    xsave64 [rcx]
    call hostcall_gate
    lea rcx, [rip + extended_state]
    mov eax, -1
    mov edx, -1
    xrstor64 [rcx]
    ret
    .text

    // A page has room for all that a guest may use of it.
    .section .bss.extended_state, "aw", @nobits
    .balign 64
extended_state:
    .skip 4096
    .text
    "#
);

unsafe extern "C" {
    fn hostcall_gate();
    fn waiting_gate();
    /// Answers 0, or -1 if the stub refuses.
    fn page_gate(slot: u64, second: u64, operation: u64, count: u64) -> i64;
}

/// What the host wrote before the guest went on. New after every restore.
pub fn boot() -> BootPage {
    // SAFETY: the host maps the boot page readable at this fixed address and fills it in before the
    // vCPU runs. Volatile, because the host changes it behind the compiler's back.
    unsafe { core::ptr::with_exposed_provenance::<BootPage>(BOOT_ADDR as usize).read_volatile() }
}

/// The generation alone: changes at every restore.
pub fn generation() -> u64 {
    let page = core::ptr::with_exposed_provenance::<BootPage>(BOOT_ADDR as usize);
    // SAFETY: as in `boot`.
    unsafe { (&raw const (*page).generation).read_volatile() }
}

/// The address of the first page table.
pub fn tables() -> u64 {
    let page = core::ptr::with_exposed_provenance::<BootPage>(BOOT_ADDR as usize);
    // SAFETY: as in `boot`.
    unsafe { (&raw const (*page).tables).read_volatile() }
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: the instruction has no precondition; CR4.TSD is clear.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Makes a hostcall and gives its result: a count, or a negative `errno`.
pub fn call(call: Call, flags: u32, args: [u64; 4]) -> i64 {
    call_about(0, call, flags, args)
}

/// The same, about the request at `place`.
pub fn call_about(place: u8, call: Call, flags: u32, args: [u64; 4]) -> i64 {
    make(CallPage {
        flags,
        ..call_page(place, call, args)
    })
}

/// The same, to wait in: more of the bodies of the requests at the places `wanted` ends it, too.
pub fn leave(place: u8, call: Call, args: [u64; 4], wanted: u64) -> i64 {
    time::away(|| {
        make(CallPage {
            wanted,
            ..call_page(place, call, args)
        })
    })
}

fn call_page(place: u8, call: Call, args: [u64; 4]) -> CallPage {
    CallPage {
        number: call.0,
        flags: 0,
        args,
        request: u64::from(place),
        wanted: 0,
        result: 0,
        tsc: tsc(),
    }
}

fn make(call: CallPage) -> i64 {
    let page = core::ptr::with_exposed_provenance_mut::<CallPage>(CALL_ADDR as usize);
    // SAFETY: the call page is mapped read/write at this fixed address and only used here. The gates
    // switch to the stub's stack and change no register that a function must keep; each is a function call to the
    // compiler, so that memory named by `args` is taken for read and written.
    unsafe {
        page.write_volatile(call);
        match call.number == Call::WAIT_REQUEST.0 {
            // Where a snapshot is taken.
            true => waiting_gate(),
            false => hostcall_gate(),
        }
        (&raw const (*page).result).read_volatile()
    }
}

/// What came while the guest was out, in the wait or the park that has just returned.
pub fn news() -> NewsPage {
    let page = core::ptr::with_exposed_provenance::<NewsPage>(NEWS_ADDR as usize);
    // SAFETY: within the call page, which is mapped; only the host writes it, while the guest is out.
    unsafe { page.read_volatile() }
}

/// Keeps for the host that the program made a call which is not served; whether for the first time.
pub fn lacks(number: u64, silent: bool) -> bool {
    let page = core::ptr::with_exposed_provenance_mut::<LackingPage>(LACKING_ADDR as usize);
    // SAFETY: within the call page, which is mapped; there is one vCPU, and the host only reads it.
    unsafe {
        let calls = match silent {
            true => &raw mut (*page).silent,
            false => &raw mut (*page).named,
        };
        let mut known = calls.read_volatile();
        let is_first = known.get_mut((number / 64) as usize).is_some_and(|word| {
            let bit = 1 << (number % 64);
            let is_first = *word & bit == 0;
            *word |= bit;
            is_first
        });
        if is_first {
            calls.write_volatile(known);
        }
        is_first
    }
}

/// Leaves the guest until the monotonic clock reads `until`, one of `events` is there, or a caller goes. Gives
/// the events that are there.
pub fn park(until: u64, events: u64) -> u64 {
    time::away(|| call(Call::PARK, 0, [until, events, 0, 0]));
    news().events
}

/// Asks the stub to change page tables: one of [`holm_hostcall::page_operation`]. `false` if it refuses.
pub fn change_pages(slot: u64, second: u64, operation: u64, count: u64) -> bool {
    // SAFETY: the gate changes only registers that a function may; the stub checks its arguments. The
    // caller answers for the program's use of the pages.
    unsafe { page_gate(slot, second, operation, count) == 0 }
}

/// The page by which the stub tells of a fault.
pub fn fault_page() -> *mut FaultPage {
    core::ptr::with_exposed_provenance_mut(FAULT_ADDR as usize)
}

/// The exceptions that the program's SSE unit has seen and does not mask.
pub fn sse_exceptions() -> u16 {
    let mut state = 0u32;
    // SAFETY: it writes four bytes. The library OS computes nothing with floating point, so this is the program's.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut state, options(nostack, preserves_flags)) };
    state as u16 & !(state >> 7) as u16 & 0x3f
}

/// The same of its x87 unit.
pub fn x87_exceptions() -> u16 {
    let (mut status, mut control) = (0u16, 0u16);
    // SAFETY: each writes two bytes, and waits for no exception.
    unsafe {
        asm!("fnstsw [{}]", "fnstcw [{}]", in(reg) &raw mut status, in(reg) &raw mut control,
            options(nostack, preserves_flags));
    }
    status & !control & 0x3f
}

/// Sets the base of FS, which holds the thread pointer.
pub fn set_fs_base(base: u64) {
    // SAFETY: CR4.FSGSBASE is set by the host; the caller checked that the address is canonical. The
    // library OS itself uses no thread-local storage.
    unsafe { asm!("wrfsbase {}", in(reg) base, options(nostack, preserves_flags)) };
}

/// Sets the base of GS.
pub fn set_gs_base(base: u64) {
    // SAFETY: as in `set_fs_base`.
    unsafe { asm!("wrgsbase {}", in(reg) base, options(nostack, preserves_flags)) };
}

/// The base of FS.
pub fn fs_base() -> u64 {
    let base: u64;
    // SAFETY: as in `set_fs_base`.
    unsafe { asm!("rdfsbase {}", out(reg) base, options(nostack, preserves_flags)) };
    base
}

/// The base of GS.
pub fn gs_base() -> u64 {
    let base: u64;
    // SAFETY: as in `set_fs_base`.
    unsafe { asm!("rdgsbase {}", out(reg) base, options(nostack, preserves_flags)) };
    base
}

/// Goes over to the program at `entry` with the stack that the host laid out.
pub fn enter(entry: u64, stack_pointer: u64) -> ! {
    // SAFETY: both values come from the host, which loaded the program and its stack. Registers are
    // cleared as Linux does; rdx = 0 says that there is no function to run at exit.
    unsafe {
        asm!(
            "mov rsp, rsi",
            "xor edx, edx", "xor ebx, ebx", "xor ebp, ebp", "xor esi, esi", "xor edi, edi",
            "xor r8d, r8d", "xor r9d, r9d", "xor r10d, r10d", "xor r11d, r11d",
            "jmp rax",
            in("rax") entry, in("rsi") stack_pointer, options(noreturn)
        )
    }
}

/// Tells the host why the library OS gives up on the program. The vCPU does not run again.
pub fn abort_with(reason: u64, detail: u64, text: core::fmt::Arguments<'_>) -> ! {
    say(0, Call::ABORT, reason, detail, text);
    halt()
}

/// Tells the host why the request at `place` cannot be answered. Comes back if there are others.
pub fn fail_request(place: u8, reason: u64, text: core::fmt::Arguments<'_>) {
    say(place, Call::FAIL_REQUEST, reason, 0, text);
}

fn say(place: u8, verdict: Call, reason: u64, detail: u64, text: core::fmt::Arguments<'_>) {
    let mut buffer = Text::<1024>::new();
    // Cutting a text that is too long is right here.
    let _ = buffer.write_fmt(text);
    let (bytes, used) = (buffer.bytes.as_ptr() as u64, buffer.used as u64);
    call_about(place, verdict, 0, [reason, bytes, used, detail]);
}

/// The program has ended. The vCPU does not run again.
pub fn exit(status: u64) -> ! {
    call(Call::EXIT, 0, [status, 0, 0, 0]);
    halt()
}

/// The vCPU does not run again.
pub fn halt() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// A bounded text buffer; what does not fit is cut.
pub struct Text<const N: usize> {
    /// The text.
    pub bytes: [u8; N],
    /// Bytes in use.
    pub used: usize,
}

impl<const N: usize> Text<N> {
    /// No text.
    pub const fn new() -> Self {
        Text {
            bytes: [0; N],
            used: 0,
        }
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Text::new()
    }
}

impl<const N: usize> core::fmt::Write for Text<N> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = &mut self.bytes[self.used..];
        let fits = text.len().min(room.len());
        room[..fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.used += fits;
        Ok(())
    }
}
