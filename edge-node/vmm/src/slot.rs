//! A VM shell and the instance in it: load, begin, run, reset.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use holm_hostcall::{
    BOOT_ADDR, BootPage, EXCEPTION_PORT, FAULT_ADDR, FaultPage, HOSTCALL_PORT, HOSTCALL_VECTOR,
    KERNEL_END, LOG_ADDR, LOG_CAPACITY_BYTES, LogHeader, NEWS_ADDR, NewsPage, PREEMPTION_VECTOR,
    PROGRAM_ADDR, WAIT_ENDED,
};

use crate::cpu::{GATE_FRAME_ADDR, InterruptFrame};
use crate::hostcall::{Action, Exchange, Offer, Parked, instant_of, set_result};
use crate::image::Image;
use crate::layout::{Layout, RANDOM_BYTES, View};
use crate::machine::{Exit, Machine, tsc_khz};
use crate::memory::{self, GuestMemory, Sharing};
use crate::pagemap::{self, Written};
use crate::symbols::Symbols;
use crate::{
    CrashReport, Failure, Hypervisor, Limits, Outbound, Request, RequestPlace, Response, Rest,
    RunStats, Snapshot, Step, VmmError, crash,
};

/// Most text of a program's log kept until it is taken: of more, its beginning and its end.
const MAX_LOG_BYTES: usize = 64 << 10;
const MAX_BEGINNING_BYTES: usize = MAX_LOG_BYTES / 2;
/// More written pages than these are not copied back one by one: the mapping is made anew, which
/// also gives their memory back.
const MAX_COPIED_PAGES: u64 = 8192;
/// How long one thread of a guest runs at a time while others could.
const TURN: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Holds no snapshot.
    Empty,
    /// A pristine instance.
    Ready,
    /// An instance whose guest waits for a request alone, with what it did before.
    Waiting(Offer),
    /// Requests are in it.
    Running,
    /// It has answered them all; its guest is where it answered the last.
    Answered,
    /// Its guest goes on from there to its next wait for a request.
    GoingOn,
    /// Something failed. To be dropped.
    Broken,
}

/// A VM shell. Costs about a millisecond to make and up to twelve to drop: never on a request's path.
#[derive(Debug)]
pub struct Slot {
    vm: Runner,
    snapshot: Option<Arc<Snapshot>>,
    state: State,
    written: Vec<Written>,
}

impl Slot {
    /// An empty shell.
    pub fn new(hypervisor: &Hypervisor) -> Result<Self, VmmError> {
        Ok(Slot {
            vm: Runner::new(hypervisor)?,
            snapshot: None,
            state: State::Empty,
            written: Vec::new(),
        })
    }

    /// Gives an empty shell a memory slot for snapshots of the size of `like`, so that the first that is loaded
    /// need not wait for one.
    pub fn make_room(&mut self, like: &Snapshot) -> Result<(), VmmError> {
        if self.state != State::Empty {
            return Err(VmmError::Misuse("room in a slot that is not empty"));
        }
        let bytes = like.layout.total_bytes();
        let nothing = memory::anonymous_file(bytes)?;
        let memory = GuestMemory::map(&nothing, 0, bytes, Sharing::CopyOnWrite)?;
        self.vm.machine.attach(memory, like.layout.pml4())
    }

    /// Whether it holds an instance that has answered requests and waits for another.
    pub fn is_kept(&self) -> bool {
        matches!(self.state, State::Waiting(_))
    }

    /// The snapshot it holds, pristine or not.
    pub fn holds(&self) -> Option<&Arc<Snapshot>> {
        self.snapshot.as_ref()
    }

    /// Makes the slot a pristine instance of `snapshot`, whatever it held before.
    pub fn load(&mut self, snapshot: &Arc<Snapshot>) -> Result<(), VmmError> {
        let held = self.snapshot.as_ref();
        let in_place =
            self.state == State::Ready && held.is_some_and(|held| held.has_tables_of(snapshot));
        self.map(
            snapshot,
            in_place || self.vm.machine.has_room(snapshot.layout.total_bytes()),
        )
    }

    /// Has the snapshot's memory mapped, and nothing of what was.
    ///
    /// Where the mapping is replaced in place KVM forgets all that it has derived from the leaf page tables,
    /// because it must forget the pages that they lead to; that it does under shadow paging and on hardware
    /// alike, and it takes a tenth of the time of a new memory slot, for which KVM waits until no CPU uses the
    /// old ones. What it has derived from the tables above those it keeps, so `in_place` asks that they are what
    /// they were when it did, or that it has derived nothing yet.
    fn map(&mut self, snapshot: &Arc<Snapshot>, in_place: bool) -> Result<(), VmmError> {
        self.state = State::Broken;
        let (machine, pml4) = (&mut self.vm.machine, snapshot.layout.pml4());
        match in_place {
            true => machine.replace(|memory| snapshot.map_over(memory), pml4)?,
            false => machine.attach(snapshot.map()?, pml4)?,
        }
        self.vm.renew();
        self.snapshot = Some(Arc::clone(snapshot));
        self.vm.layout = snapshot.layout;
        self.state = State::Ready;
        Ok(())
    }

    /// Whether a request can be handed over now: the instance waits for one, and may have others.
    pub fn can_begin(&self) -> bool {
        match self.state {
            State::Ready | State::Waiting(_) => true,
            State::Running => self.vm.offer().is_some(),
            State::Empty | State::Answered | State::GoingOn | State::Broken => false,
        }
    }

    /// Hands a request to an instance that waits; says at what place it is until it is answered. Refuses a
    /// request whose head is too large; the slot is then as it was.
    pub fn begin(
        &mut self,
        request: &Request<'_>,
        limits: Limits,
    ) -> Result<RequestPlace, VmmError> {
        self.begin_with(request, Some(request.body.len() as u64), limits)
    }

    /// The same with the start of a body that has `length` bytes in all, if that is known; the rest comes by
    /// [`Slot::add_body`].
    pub fn begin_with(
        &mut self,
        request: &Request<'_>,
        length: Option<u64>,
        limits: Limits,
    ) -> Result<RequestPlace, VmmError> {
        let Some(snapshot) = &self.snapshot else {
            return Err(VmmError::Misuse("a request for an empty slot"));
        };
        let offer = match self.state {
            State::Ready => Some(snapshot.first_offer()),
            State::Waiting(offer) => Some(offer),
            State::Running => self.vm.offer(),
            State::Empty | State::Answered | State::GoingOn | State::Broken => None,
        };
        let offer = offer.ok_or(VmmError::Misuse("a request for a slot that is not ready"))?;
        let view = View {
            memory: self.vm.machine.memory()?,
            layout: &self.vm.layout,
        };
        if self.vm.exchange.is_idle() {
            self.vm.stats = RunStats::default();
        }
        let exchange = &mut self.vm.exchange;
        exchange.begin(view, offer, request, length, &limits)?;
        match self.state {
            // One that was kept goes on with the clock it has, so that no clock of its goes back.
            State::Ready => {
                self.vm.write_moment()?;
                self.vm.machine.set_state(&snapshot.state)?;
            }
            _ => self.vm.take_offer(),
        }
        self.state = State::Running;
        Ok(offer.place)
    }

    /// More of a request's body; with `end` the last of it.
    pub fn add_body(&mut self, place: RequestPlace, bytes: &[u8], end: bool) {
        self.vm.exchange.add_body(place, bytes, end);
    }

    /// Bytes of a request's body that have been handed over and that the guest has not read.
    pub fn body_left(&self, place: RequestPlace) -> usize {
        self.vm.exchange.body_left(place)
    }

    /// Whether the guest is parked for more of some request's body, of which there is some by now.
    pub fn has_body_wanted(&self) -> bool {
        self.vm.has_body_wanted()
    }

    /// The caller has gone: the guest is told, and its answer is not heard. The instance goes on.
    pub fn abandon(&mut self, place: RequestPlace) {
        self.vm.exchange.leave(place);
        self.settle();
    }

    /// Runs the vCPU on this thread for at most `quantum`.
    pub fn run(&mut self, quantum: Duration) -> Step {
        let (State::Running, Some(snapshot)) = (self.state, &self.snapshot) else {
            return Step::Failed(VmmError::Misuse("a run of a slot without a request").into());
        };
        let snapshot = Arc::clone(snapshot);
        let step = match self.vm.run(quantum, None, &snapshot.symbols) {
            Stop::Answered(place) => match self.vm.exchange.finish(place) {
                Some(response) => Step::Answered(response),
                None => Step::Failed(VmmError::Misuse("an answer to no request").into()),
            },
            Stop::Dropped(place, failure) => {
                self.vm.exchange.leave(place);
                Step::Dropped(place, failure)
            }
            Stop::Yielded => Step::Yielded,
            Stop::Parked(until) => Step::Parked(until),
            Stop::Failed(failure) => Step::Failed(failure),
        };
        if matches!(step, Step::Failed(_)) {
            self.state = State::Broken;
        }
        self.settle();
        step
    }

    /// Without an open request nothing runs.
    fn settle(&mut self) {
        if self.state == State::Running && self.vm.exchange.is_idle() {
            self.state = match self.vm.offer() {
                Some(offer) => State::Waiting(offer),
                None => State::Answered,
            };
        }
    }

    /// Whether there are such parts.
    pub fn has_part(&self) -> bool {
        self.vm.exchange.has_part()
    }

    /// The parts of responses, where more is to come, that may be passed on already.
    pub fn take_parts(&mut self) -> Vec<Response> {
        self.vm.exchange.take_parts()
    }

    /// Whether the instance has been given what it may reach.
    pub fn has_outbound(&self) -> bool {
        self.vm.outbound.is_some()
    }

    /// Says what the instance may reach, from its next request on until it is reset; none is nothing.
    pub fn set_outbound(&mut self, outbound: Option<Box<dyn Outbound>>) {
        self.vm.set_outbound(outbound);
    }

    /// After [`Step::Parked`]: what becomes readable when the guest can go on before its time.
    pub fn wake(&mut self) -> Option<BorrowedFd<'_>> {
        self.vm.wake()
    }

    /// After [`Step::Parked`]: blocks until the guest can go on, or `until`.
    pub fn wait(&mut self, until: Instant) {
        let left = until.saturating_duration_since(Instant::now());
        let Some(wake) = self.vm.wake() else {
            return std::thread::sleep(left);
        };
        let mut poll = libc::pollfd {
            fd: wake.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // Rounded up, so that the time has come then.
        let left_ms = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        // SAFETY: one live entry, whose descriptor is borrowed until the end of this function.
        unsafe { libc::poll(&raw mut poll, 1, left_ms) };
    }

    /// What the instance has taken since it had no request.
    pub fn stats(&self) -> RunStats {
        self.vm.stats
    }

    /// What the request that is or was last at the place has taken of it.
    pub fn stats_of(&self, place: RequestPlace) -> RunStats {
        self.vm.exchange.stats(place)
    }

    /// What the program wrote since the last call; at most 64 KiB, and a note of what was dropped.
    pub fn take_log(&mut self) -> Vec<u8> {
        self.vm.log.take()
    }

    /// Back to the pristine snapshot, whatever the guest did with its memory. On error drop the slot.
    pub fn reset(&mut self) -> Result<(), VmmError> {
        let Some(snapshot) = &self.snapshot else {
            return Err(VmmError::Misuse("a reset of an empty slot"));
        };
        if !matches!(
            self.state,
            State::Answered | State::Waiting(_) | State::Ready
        ) {
            return Err(VmmError::Misuse(
                "a reset of a slot whose guest has not answered",
            ));
        }
        self.state = State::Broken;
        let snapshot = Arc::clone(snapshot);
        self.vm.renew();
        let memory = self.vm.machine.memory()?;
        pagemap::written_pages(memory, &mut self.written)?;
        // A page table that was written: copying it back does not make KVM forget what it derived.
        let tables = self
            .written
            .last()
            .is_some_and(|run| run.end > snapshot.layout.tables);
        let anew = |pages| tables || pages > MAX_COPIED_PAGES;
        let is_new = snapshot.chunks.are_new_in(&self.written);
        if is_new {
            let used = snapshot.chunks.decide(memory, &self.written, anew)?;
            snapshot.working_set.get_or_init(|| used);
        }
        let pages = self.written.iter().map(|run| (run.end - run.start) / 4096);
        if is_new || anew(pages.sum()) {
            let (upper, leaves) = snapshot.layout.upper_tables();
            let is_upper = |run: &Written| run.start < leaves && run.end > upper;
            let in_place = !self.written.iter().any(is_upper);
            return self.map(&snapshot, in_place);
        }
        snapshot.working_set.get_or_init(|| self.written.clone());
        for run in &self.written {
            snapshot.put_back(memory, run.start, run.end)?;
        }
        self.state = State::Ready;
        Ok(())
    }

    /// Keeps the state: lets the guest go on, after its answers, to its next wait for a request.
    pub fn again(&mut self, deadline: Instant) -> Result<(), Failure> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.go_on(left, deadline)? {
                Rest::Waiting => return Ok(()),
                Rest::Yielded => {}
                Rest::Parked(until) => self.wait(until),
            }
        }
    }

    /// The same for at most `quantum` on this thread; says how far it came. On error drop the slot.
    pub fn go_on(&mut self, quantum: Duration, deadline: Instant) -> Result<Rest, Failure> {
        let (State::Answered | State::Waiting(_) | State::GoingOn, Some(snapshot)) =
            (self.state, &self.snapshot)
        else {
            return Err(VmmError::Misuse("a guest is to go on that has not answered").into());
        };
        if self.is_kept() {
            return Ok(Rest::Waiting);
        }
        let snapshot = Arc::clone(snapshot);
        self.toward_wait(&snapshot, quantum, deadline)
    }

    /// Asks a kept instance that waits to end, by SIGTERM, and lets it go on until it has, or waits again,
    /// or `deadline`. The slot is to be dropped after that. Says how it ended, if it did.
    pub fn terminate(&mut self, deadline: Instant) -> Result<Option<Failure>, VmmError> {
        let (State::Waiting(_), Some(snapshot)) = (self.state, &self.snapshot) else {
            return Err(VmmError::Misuse(
                "a guest is to end that does not wait for a second request",
            ));
        };
        let snapshot = Arc::clone(snapshot);
        self.state = State::Broken;
        set_result(self.vm.machine.memory()?, WAIT_ENDED)?;
        self.vm.take_offer();
        let end = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.toward_wait(&snapshot, left, deadline) {
                Ok(Rest::Waiting) => break None,
                Ok(Rest::Yielded) => {}
                Ok(Rest::Parked(until)) => self.wait(until),
                Err(failure) => break Some(failure),
            }
        };
        self.state = State::Broken;
        Ok(end)
    }

    /// Lets the guest go on, without a request, toward its next wait for one.
    fn toward_wait(
        &mut self,
        snapshot: &Snapshot,
        quantum: Duration,
        deadline: Instant,
    ) -> Result<Rest, Failure> {
        self.state = State::Broken;
        let rest = match self.vm.run(quantum, Some(deadline), &snapshot.symbols) {
            Stop::Parked(until) => match self.vm.offer() {
                Some(offer) => {
                    self.state = State::Waiting(offer);
                    return Ok(Rest::Waiting);
                }
                None => Rest::Parked(until),
            },
            Stop::Yielded => Rest::Yielded,
            Stop::Failed(failure) | Stop::Dropped(_, failure) => return Err(failure),
            Stop::Answered(_) => {
                return Err(VmmError::Misuse("an answer without a request").into());
            }
        };
        self.state = State::GoingOn;
        Ok(rest)
    }

    /// Bytes of memory that are this slot's own, not shared with its snapshot.
    pub fn private_bytes(&mut self) -> Result<u64, VmmError> {
        pagemap::written_pages(self.vm.machine.memory()?, &mut self.written)?;
        Ok(self.written.iter().map(|run| run.end - run.start).sum())
    }
}

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
    outbound: Option<Box<dyn Outbound>>,
    /// What the guest waits for, while it does.
    parked: Option<Parked>,
    /// What it was told last of what has come.
    news: NewsPage,
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
            ns_per_tick_q32: (1_000_000u64 << 32) / u64::from(khz.max(1)),
            turn: TURN,
        })
    }

    /// Tells the guest what is new at every restore: generation, seed and the time, and to the program the
    /// random bytes that the kernel gives it.
    pub(crate) fn write_moment(&self) -> Result<(), VmmError> {
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
        let clock = [
            realtime.as_nanos() as u64,
            monotonic_ns(),
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
                    let now_ns = monotonic_ns();
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
}

impl Runner {
    /// The instance is a new one, of which nothing is known.
    fn renew(&mut self) {
        self.set_outbound(None);
        self.exchange.clear();
        self.parked = None;
        self.news = NewsPage::default();
    }

    fn set_outbound(&mut self, outbound: Option<Box<dyn Outbound>>) {
        self.outbound = outbound;
    }

    /// How the guest takes its next request, while it waits for one.
    pub(crate) fn offer(&self) -> Option<Offer> {
        self.parked?.offer
    }

    /// The request that it waited for has been written.
    fn take_offer(&mut self) {
        if let Some(parked) = &mut self.parked {
            (parked.offer, parked.begun) = (None, true);
        }
    }

    fn wake(&mut self) -> Option<BorrowedFd<'_>> {
        match self.parked?.events {
            0 => None,
            events => self.outbound.as_mut()?.wake(events),
        }
    }

    fn has_body_wanted(&self) -> bool {
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
        for (offset, value) in [
            (offset_of!(FaultPage, rax), regs.rax),
            (offset_of!(FaultPage, vector), PREEMPTION_VECTOR),
            (offset_of!(FaultPage, rip), regs.rip),
        ] {
            memory.write(field(offset), &value.to_le_bytes())?;
        }
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
        for (offset, value) in [
            (offset_of!(FaultPage, rax), self.machine.regs()?.rax),
            (offset_of!(FaultPage, vector), u64::from(HOSTCALL_VECTOR)),
            (offset_of!(FaultPage, error_code), 0),
            (offset_of!(FaultPage, rip), frame.rip),
        ] {
            memory.write(FAULT_ADDR + offset as u64, &value.to_le_bytes())?;
        }
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
fn thread_cpu() -> Duration {
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

/// What the program wrote and nobody has taken yet.
#[derive(Debug, Default)]
pub(crate) struct Log {
    text: Vec<u8>,
    dropped: u64,
}

impl Log {
    /// Empties the guest's log ring.
    pub(crate) fn read(&mut self, memory: &GuestMemory) -> Result<(), VmmError> {
        let used = memory.read_u64(LOG_ADDR)?.min(LOG_CAPACITY_BYTES);
        if used == 0 {
            return Ok(());
        }
        let before = self.text.len();
        self.text.resize(before + used as usize, 0);
        memory.read(
            LOG_ADDR + size_of::<LogHeader>() as u64,
            &mut self.text[before..],
        )?;
        self.shorten();
        memory.write(LOG_ADDR, &0u64.to_le_bytes())
    }

    /// Drops what is too much, from the middle.
    fn shorten(&mut self) {
        let excess = self.text.len().saturating_sub(MAX_LOG_BYTES);
        if excess > 0 {
            self.text
                .drain(MAX_BEGINNING_BYTES..MAX_BEGINNING_BYTES + excess);
            self.dropped += excess as u64;
        }
    }

    pub(crate) fn take(&mut self) -> Vec<u8> {
        let mut text = std::mem::take(&mut self.text);
        if self.dropped > 0 {
            let note = format!("\nholm: {} bytes dropped\n", self.dropped);
            text.splice(MAX_BEGINNING_BYTES..MAX_BEGINNING_BYTES, note.into_bytes());
            self.dropped = 0;
        }
        text
    }
}

#[cfg(test)]
mod reset_tests;
