//! A machine at work: runs the vCPU, serves its hostcalls, and keeps to quantum, deadline and limits.

use std::io;
use std::mem::offset_of;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use holm_hostcall::{
    BOOT_ADDR, BootPage, EXCEPTION_PORT, FAULT_ADDR, FaultPage, HOSTCALL_PORT, HOSTCALL_VECTOR,
    KERNEL_END, NEWS_ADDR, NewsPage, PREEMPTION_VECTOR, PROGRAM_ADDR,
};

use crate::cpu::{GATE_FRAME_ADDR, InterruptFrame};
use crate::hostcall::{Action, Exchange, Offer, Parked, instant_of, set_result};
use crate::image::Image;
use crate::layout::{Layout, RANDOM_BYTES, View};
use crate::log::Log;
use crate::machine::{Exit, Machine, tsc_khz};
use crate::memory::GuestMemory;
use crate::symbols::Symbols;
use crate::{CrashReport, Failure, Hypervisor, Outbound, RequestPlace, RunStats, VmmError, crash};

/// How long one thread of a guest runs at a time while others could.
const TURN: Duration = Duration::from_millis(5);

/// Why a run of a guest stopped.
pub(crate) enum Stop {
    /// A request is answered in full.
    Answered(RequestPlace),
    /// One of several will not be.
    Dropped(RequestPlace, Failure),
    Yielded,
    /// Until then, at the latest. If it waits for a request, there is an [`Offer`].
    Parked(Instant),
    Failed(Failure),
}

/// A machine with the exchange that goes on in it.
#[derive(Debug)]
pub(crate) struct Runner {
    pub(crate) machine: Machine,
    pub(crate) layout: Layout,
    pub(crate) exchange: Exchange,
    pub(crate) stats: RunStats,
    pub(crate) log: Log,
    /// What the instance may reach.
    pub(crate) outbound: Option<Box<dyn Outbound>>,
    /// What the guest waits for, while it does.
    parked: Option<Parked>,
    /// What it was told last of what has come.
    news: NewsPage,
    /// How far its monotonic clock is ahead of the host's.
    clock_ahead_ns: u64,
    ns_per_tick_q32: u64,
    /// How long the guest may still run before another of its threads has its turn.
    turn: Duration,
}

impl Runner {
    pub(crate) fn new(hypervisor: &Hypervisor) -> Result<Self, VmmError> {
        let machine = Machine::new(hypervisor)?;
        let khz = tsc_khz(&machine)?;
        Ok(Runner {
            machine,
            layout: Layout::new(PROGRAM_ADDR, 0, 0),
            exchange: Exchange::default(),
            stats: RunStats::default(),
            log: Log::default(),
            outbound: None,
            parked: None,
            news: NewsPage::default(),
            clock_ahead_ns: 0,
            ns_per_tick_q32: (1_000_000u64 << 32) / u64::from(khz.max(1)),
            turn: TURN,
        })
    }

    /// Tells the guest what is new at every restore: generation, seed and the time, and to the program the
    /// random bytes that the kernel gives it. Its monotonic clock reads `since_ns` at the least: the host's began
    /// anew if the host did, and no program's may go back.
    pub(crate) fn write_moment(&mut self, since_ns: u64) -> Result<(), VmmError> {
        const AT: usize = offset_of!(BootPage, generation);
        const CLOCK: usize = offset_of!(BootPage, realtime_ns);
        const END: usize = offset_of!(BootPage, memory_bytes);
        let mut bytes = [0; END - AT];
        bytes[..8].copy_from_slice(&next_generation().to_le_bytes());
        getrandom::fill(&mut bytes[8..40])
            .map_err(|error| VmmError::memory("getting random bytes")(io::Error::other(error)))?;
        let mut random = [0; RANDOM_BYTES as usize];
        getrandom::fill(&mut random)
            .map_err(|error| VmmError::memory("getting random bytes")(io::Error::other(error)))?;
        self.machine
            .memory()?
            .write(self.layout.random_bytes(), &random)?;
        let realtime = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let monotonic = monotonic_ns();
        self.clock_ahead_ns = since_ns.saturating_sub(monotonic);
        let clock = [
            realtime.as_nanos() as u64,
            monotonic.max(since_ns),
            self.machine.tsc_now(),
            self.ns_per_tick_q32,
        ];
        for (word, room) in clock.iter().zip(bytes[CLOCK - AT..].chunks_exact_mut(8)) {
            room.copy_from_slice(&word.to_le_bytes());
        }
        self.machine.memory()?.write(BOOT_ADDR + AT as u64, &bytes)
    }

    /// Runs until the guest needs something, or `quantum` or a limit of a request is over; without one, until
    /// `deadline`.
    pub(crate) fn run(
        &mut self,
        quantum: Duration,
        deadline: Option<Instant>,
        symbols: &Symbols,
    ) -> Stop {
        let (start, cpu_start, before) = (Instant::now(), thread_cpu(), self.stats);
        let stop = self.run_inner(start, quantum, deadline, symbols);
        self.stats.wall += start.elapsed();
        self.stats.cpu = before.cpu + thread_cpu().saturating_sub(cpu_start);
        self.exchange.share(&self.stats.since(&before));
        match stop {
            Ok(Stop::Yielded) => match self.exchange.cpu_left() {
                Some((Duration::ZERO, place)) => {
                    self.read_last_log();
                    let failure = Failure::CpuLimit(crash::place_of(&self.machine, symbols));
                    self.limit_reached(place, failure)
                }
                _ => Stop::Yielded,
            },
            Ok(stop) => stop,
            Err(error) => Stop::Failed(Failure::Host(error)),
        }
    }

    /// What a guest that is stopped wrote since its last exit. That it cannot be read is not what it fails of.
    fn read_last_log(&mut self) {
        if let Ok(memory) = self.machine.memory() {
            let _ = self.log.read(memory);
        }
    }

    /// A request reaches a limit: the end of the instance, unless it serves others.
    fn limit_reached(&self, place: RequestPlace, failure: Failure) -> Stop {
        match self.exchange.serves_others(place) {
            true => Stop::Dropped(place, failure),
            false => Stop::Failed(failure),
        }
    }

    fn run_inner(
        &mut self,
        start: Instant,
        quantum: Duration,
        deadline: Option<Instant>,
        symbols: &Symbols,
    ) -> Result<Stop, VmmError> {
        self.resume()?;
        let first = self.exchange.first_deadline();
        let deadline = match (first, deadline) {
            (Some((first, _)), Some(deadline)) => first.min(deadline),
            (Some((first, _)), None) => first,
            (None, Some(deadline)) => deadline,
            (None, None) => return Err(VmmError::Misuse("a run without an end")),
        };
        let cpu_left = self.exchange.cpu_left();
        let cpu_left = cpu_left.map_or(Duration::MAX, |(left, _)| left);
        let until = start.checked_add(quantum.min(cpu_left)).unwrap_or(deadline);
        loop {
            let now = Instant::now();
            if now >= deadline {
                self.read_last_log();
                let failure = Failure::Deadline(crash::place_of(&self.machine, symbols));
                return Ok(match first {
                    Some((_, place)) => self.limit_reached(place, failure),
                    None => Stop::Failed(failure),
                });
            }
            let left = until.min(deadline).saturating_duration_since(now);
            if left.is_zero() {
                return Ok(Stop::Yielded);
            }
            let exit = self.machine.run(left.min(self.turn))?;
            self.turn = self.turn.saturating_sub(now.elapsed());
            if self.turn.is_zero() {
                self.turn = TURN;
                if exit == Exit::Timer {
                    self.preempt()?;
                }
            }
            if exit == Exit::Timer {
                continue;
            }
            self.stats.exits = self.stats.exits.saturating_add(1);
            self.log.read(self.machine.memory()?)?;
            let crash = |report| Ok(Stop::Failed(Failure::Crash(report)));
            match exit {
                Exit::Port(HOSTCALL_PORT) => {
                    if !self.came_through_gate()? {
                        if self.hand_over_breakpoint()? {
                            continue;
                        }
                        return crash(crash::of_breakpoint(&self.machine, self.view()?, symbols)?);
                    }
                }
                Exit::Port(EXCEPTION_PORT) => {
                    return crash(crash::of_exception(&self.machine, self.view()?, symbols)?);
                }
                Exit::Shutdown => {
                    return crash(CrashReport::of(
                        "the program brought its virtual CPU to a state from which no exception can \
                         be delivered (triple fault)",
                    ));
                }
                _ => {
                    return crash(CrashReport::of(
                        "the program made its virtual CPU do what this KVM cannot carry out",
                    ));
                }
            }
            let view = View {
                memory: self.machine.memory()?,
                layout: &self.layout,
            };
            let outbound = self.outbound.as_mut().map(|outbound| &mut **outbound as _);
            match self.exchange.serve(view, outbound, &mut self.stats)? {
                Action::Continue => {}
                Action::Answered(place) => return Ok(Stop::Answered(place)),
                Action::Part => return Ok(Stop::Yielded),
                Action::Drop(place, failure) => return Ok(Stop::Dropped(place, failure)),
                Action::Park(parked) => {
                    let now_ns = monotonic_ns().saturating_add(self.clock_ahead_ns);
                    let awaits_request = parked.offer.is_some() && self.exchange.is_idle();
                    self.parked = Some(parked);
                    self.exchange.rest();
                    if awaits_request || !self.has_news() && parked.until_ns > now_ns {
                        let until = instant_of(parked.until_ns, now_ns);
                        return Ok(Stop::Parked(until.min(deadline)));
                    }
                    self.resume()?;
                }
                Action::Fault {
                    signal,
                    vector,
                    error_code,
                    address,
                    registers,
                } => {
                    let fault = crash::Fault {
                        signal,
                        vector,
                        error_code,
                        address,
                        registers: crash::read_registers(view, registers)?,
                    };
                    return crash(crash::of_fault(&fault, view, symbols)?);
                }
                Action::Fail(Failure::Crash(mut report)) => {
                    report.what += &crash::refused_memory(self.machine.memory()?)?;
                    return crash(report);
                }
                Action::Fail(failure) => return Ok(Stop::Failed(failure)),
                Action::GiveUp(report, registers) => {
                    let registers = crash::read_registers(view, registers)?;
                    return crash(crash::with_place(*report, &registers, view, symbols));
                }
            }
        }
    }

    /// The instance is a new one, of which nothing is known.
    pub(crate) fn renew(&mut self) {
        self.set_outbound(None);
        self.exchange.clear();
        self.parked = None;
        self.news = NewsPage::default();
        // When its threads take turns has nothing to do with who was here before.
        self.turn = TURN;
    }

    pub(crate) fn set_outbound(&mut self, outbound: Option<Box<dyn Outbound>>) {
        self.outbound = outbound;
    }

    /// How the guest takes its next request, while it waits for one.
    pub(crate) fn offer(&self) -> Option<Offer> {
        self.parked?.offer
    }

    /// The request that it waited for has been written.
    pub(crate) fn take_offer(&mut self) {
        if let Some(parked) = &mut self.parked {
            (parked.offer, parked.begun) = (None, true);
        }
    }

    pub(crate) fn wake(&mut self) -> Option<BorrowedFd<'_>> {
        match self.parked?.events {
            0 => None,
            events => self.outbound.as_mut()?.wake(events),
        }
    }

    pub(crate) fn has_body_wanted(&self) -> bool {
        let parked = self.parked.as_ref();
        parked.is_some_and(|parked| self.exchange.readable(parked.wanted) != 0)
    }

    /// Whether something has come for which the guest is parked.
    fn has_news(&mut self) -> bool {
        let Some(parked) = self.parked else {
            return false;
        };
        let (_, told) = self.exchange.gone();
        !told
            || self.exchange.readable(parked.wanted) != 0
            || parked.events != 0 && self.events(parked.events) != 0
    }

    /// Which of the events are there.
    fn events(&mut self, wanted: u64) -> u64 {
        let outbound = self.outbound.as_mut();
        outbound.map_or(0, |outbound| outbound.ready(wanted)) & wanted
    }

    /// It goes on: tells it what has come while it was parked.
    fn resume(&mut self) -> Result<(), VmmError> {
        let Some(parked) = self.parked.take() else {
            return Ok(());
        };
        let news = NewsPage {
            events: match parked.events {
                0 => 0,
                events => self.events(events),
            },
            gone: self.exchange.gone().0,
            readable: self.exchange.readable(parked.wanted),
        };
        self.exchange.tell_gone();
        let memory = self.machine.memory()?;
        if news != self.news {
            self.news = news;
            for (word, value) in [
                (offset_of!(NewsPage, events), news.events),
                (offset_of!(NewsPage, gone), news.gone),
                (offset_of!(NewsPage, readable), news.readable),
            ] {
                memory.write(NEWS_ADDR + word as u64, &value.to_le_bytes())?;
            }
        }
        match parked.begun {
            true => Ok(()),
            false => set_result(memory, 0),
        }
    }

    /// The guest's memory by its own addresses.
    pub(crate) fn view(&self) -> Result<View<'_>, VmmError> {
        Ok(View {
            memory: self.machine.memory()?,
            layout: &self.layout,
        })
    }

    /// Sends the program to the library OS for another thread's turn, if there are others: as the stub
    /// does with an exception, so that the guest needs no interrupts. In the library OS a flag has to do.
    fn preempt(&mut self) -> Result<(), VmmError> {
        let field = |offset: usize| FAULT_ADDR + offset as u64;
        let memory = self.machine.memory()?;
        if memory.read_u64(field(offset_of!(FaultPage, wants_ticks)))? == 0 {
            return Ok(());
        }
        let mut regs = self.machine.regs()?;
        if regs.rip < KERNEL_END || !self.machine.can_be_redirected()? {
            return memory.write(
                field(offset_of!(FaultPage, tick_missed)),
                &1u64.to_le_bytes(),
            );
        }
        tell(memory, regs.rax, PREEMPTION_VECTOR, regs.rip)?;
        regs.rip = Image::get().fault_entry;
        self.machine.set_regs(&regs)
    }

    /// Sends a breakpoint of the program's to the library OS, as the stub does with other exceptions: hostcalls
    /// come by the same one, and are not to pay for the difference. `false` for one that is below the program.
    fn hand_over_breakpoint(&mut self) -> Result<bool, VmmError> {
        let memory = self.machine.memory()?;
        let frame = InterruptFrame::read(memory, GATE_FRAME_ADDR)?;
        if frame.rip < KERNEL_END {
            return Ok(false);
        }
        let rax = self.machine.regs()?.rax;
        tell(memory, rax, u64::from(HOSTCALL_VECTOR), frame.rip)?;
        // Where the stub goes back to.
        let fault_entry = Image::get().fault_entry;
        memory.write(GATE_FRAME_ADDR, &fault_entry.to_le_bytes())?;
        Ok(true)
    }

    /// Whether the breakpoint that led to this exit was the library OS's gate and not the program's.
    fn came_through_gate(&self) -> Result<bool, VmmError> {
        let frame = InterruptFrame::read(self.machine.memory()?, GATE_FRAME_ADDR)?;
        Ok(frame.rip == Image::get().hostcall_return)
    }
}

/// Tells the library OS why the program is sent to it, as the stub does for an exception without an error code.
fn tell(memory: &GuestMemory, rax: u64, vector: u64, rip: u64) -> Result<(), VmmError> {
    for (offset, value) in [
        (offset_of!(FaultPage, rax), rax),
        (offset_of!(FaultPage, vector), vector),
        (offset_of!(FaultPage, error_code), 0),
        (offset_of!(FaultPage, rip), rip),
    ] {
        memory.write(FAULT_ADDR + offset as u64, &value.to_le_bytes())?;
    }
    Ok(())
}

/// Generations count up from the time of the process's first, so that those of two processes differ
/// too.
fn next_generation() -> u64 {
    static FIRST: OnceLock<u64> = OnceLock::new();
    static MORE: AtomicU64 = AtomicU64::new(0);
    let first = FIRST.get_or_init(|| {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos() as u64
    });
    first.wrapping_add(MORE.fetch_add(1, Ordering::Relaxed))
}

/// Nanoseconds of the host's monotonic clock.
pub(crate) fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// CPU time of this thread.
pub(crate) fn thread_cpu() -> Duration {
    Duration::from_nanos(clock_ns(libc::CLOCK_THREAD_CPUTIME_ID))
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a live local; both clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    (time.tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(time.tv_nsec as u64)
}
