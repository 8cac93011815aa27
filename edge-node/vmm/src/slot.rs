//! A VM shell and the instance in it: load, begin, run, reset.

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holm_hostcall::{LOG_ADDR, PAGE_BYTES, WAIT_ENDED};
use kvm_bindings::kvm_regs;

use crate::hostcall::{Offer, set_result};
use crate::image::Image;
use crate::layout::View;
use crate::machine::Exit;
use crate::memory::GuestMemory;
use crate::pagemap::{self, Written};
use crate::restore::{MAX_COPIED_PAGES, MAX_PARTS, Reset, Strategy};
use crate::runner::{Runner, Stop};
use crate::snapshot::MAX_SNAPSHOT_PARTS;
use crate::{
    Failure, Hypervisor, Limits, Outbound, Request, RequestPlace, Response, Rest, RunStats,
    Snapshot, Step, VmmError,
};

/// Most pages that are touched ahead: a page full of their addresses.
const MAX_TOUCHED: usize = (PAGE_BYTES / 8) as usize;
/// How long that may take, which is some 20 µs for each on PVM; far more where the machine is busy.
const TOUCH_DEADLINE: Duration = Duration::from_millis(250);
/// Bytes that an instance has written up to which they are put back, or given back, at once. Copying so much takes a
/// millisecond or two.
const MAX_SOON_BYTES: u64 = 8 << 20;

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
    /// How its memory was filled.
    strategy: Strategy,
    state: State,
    written: Vec<Written>,
}

impl Slot {
    /// Mappings of the process that one can need: the parts of a snapshot and what lies between them, of which an
    /// instance with a file of its own has those of several versions, what is fixed, and what KVM shares.
    pub const MAX_MAPPINGS: usize = 2 * (MAX_PARTS + MAX_SNAPSHOT_PARTS) + 8;

    /// An empty shell.
    pub fn new(hypervisor: &Hypervisor) -> Result<Self, VmmError> {
        Ok(Slot {
            vm: Runner::new(hypervisor)?,
            snapshot: None,
            strategy: Strategy::WorkingSet,
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
        self.vm.machine.attach(room(like)?, like.layout.pml4())
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
        self.load_by(snapshot, snapshot.strategy())
    }

    /// The same by a strategy that need not be the chosen one.
    pub(crate) fn load_by(
        &mut self,
        snapshot: &Arc<Snapshot>,
        strategy: Strategy,
    ) -> Result<(), VmmError> {
        if !matches!(self.state, State::Empty | State::Ready) {
            self.vm.machine.forget_events()?;
        }
        let held = self.snapshot.as_ref();
        let in_place =
            self.state == State::Ready && held.is_some_and(|held| held.has_tables_of(snapshot));
        let held = held
            .filter(|_| in_place && self.strategy == strategy)
            .cloned();
        let in_place = in_place || self.vm.machine.has_room(snapshot.layout.total_bytes());
        self.fill(snapshot, strategy, in_place, held.as_deref())
    }

    /// The same ahead of any request, so that the first finds what others have used not only in memory but translated
    /// as well, as the second one does. That takes about as long as it saves, so it is for when nobody waits.
    pub fn load_ahead(&mut self, snapshot: &Arc<Snapshot>) -> Result<(), VmmError> {
        self.load(snapshot)?;
        let pages = snapshot.touched_addrs().take(MAX_TOUCHED);
        let list: Vec<[u8; 8]> = pages.map(u64::to_le_bytes).collect();
        if list.is_empty() {
            return Ok(());
        }
        self.state = State::Broken;
        let machine = &mut self.vm.machine;
        // To where the guest may read, and what is put back like all else.
        machine.memory()?.write(LOG_ADDR, list.as_flattened())?;
        let regs = kvm_regs {
            rip: Image::get().touch_pages,
            rsi: LOG_ADDR,
            rcx: list.len() as u64,
            rflags: 0x202,
            ..Default::default()
        };
        machine.set_state(&regs.into());
        let until = Instant::now() + TOUCH_DEADLINE;
        loop {
            match machine.run(until.saturating_duration_since(Instant::now()))? {
                // By its own end, or by that of the library OS if it could not go on: nothing is under way then.
                Exit::Port(_) => break,
                Exit::Timer if Instant::now() < until => {}
                Exit::Timer => return self.renew(),
                _ => {
                    return Err(VmmError::Misuse(
                        "an instance that does not touch its pages",
                    ));
                }
            }
        }
        self.state = State::Ready;
        self.reset()
    }

    /// Has the snapshot in its memory, and nothing of what was.
    ///
    /// Where memory is filled in place KVM forgets what it has derived from the leaf page tables for pages that are
    /// taken away; that it does under shadow paging and on hardware alike, and it takes a tenth of the time of a new
    /// memory slot, for which KVM waits until no CPU uses the old ones. What it has derived from the tables above
    /// those it keeps, so `in_place` asks that they are what they were when it did, or that it has derived nothing
    /// yet. `held` is the pristine instance that is there by the same strategy, if there is one.
    fn fill(
        &mut self,
        snapshot: &Arc<Snapshot>,
        strategy: Strategy,
        in_place: bool,
        held: Option<&Snapshot>,
    ) -> Result<(), VmmError> {
        self.state = State::Broken;
        let (machine, pml4) = (&mut self.vm.machine, snapshot.layout.pml4());
        match in_place {
            true => machine.replace(|memory| strategy.refill(snapshot, memory, held), pml4)?,
            false => {
                let mut memory = room(snapshot)?;
                strategy.fill(snapshot, &mut memory)?;
                machine.attach(memory, pml4)?;
            }
        }
        self.vm.renew();
        self.snapshot = Some(Arc::clone(snapshot));
        self.strategy = strategy;
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
                self.vm.write_moment(snapshot.since_ns)?;
                self.vm.machine.set_state(&snapshot.state);
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
        match self.try_reset(MAX_COPIED_PAGES)? {
            Some(in_place) => self.fill_again(in_place),
            None => Ok(()),
        }
    }

    /// The same if it is soon done, which the guest decides by what it has changed. Otherwise says so by `false`, and
    /// the slot is to be [renewed](Slot::renew) where nobody waits. On error drop it.
    pub fn reset_soon(&mut self) -> Result<bool, VmmError> {
        match self.try_reset(MAX_SOON_BYTES / PAGE_BYTES)? {
            None => Ok(true),
            Some(in_place) => {
                let written = self.written.iter().map(|run| run.end - run.start);
                if !in_place || written.sum::<u64>() > MAX_SOON_BYTES {
                    return Ok(false);
                }
                self.fill_again(in_place).map(|()| true)
            }
        }
    }

    fn fill_again(&mut self, in_place: bool) -> Result<(), VmmError> {
        let snapshot = self.snapshot.clone();
        let snapshot = snapshot.ok_or(VmmError::Misuse("a reset of an empty slot"))?;
        self.fill(&snapshot, self.strategy, in_place, None)
    }

    /// Makes it a pristine instance of what it holds, whatever its guest is in the middle of. KVM takes milliseconds
    /// for that where the machine is busy: never on a request's path.
    pub fn renew(&mut self) -> Result<(), VmmError> {
        if matches!(self.state, State::Answered | State::Waiting(_)) {
            return self.reset();
        }
        let snapshot = self.snapshot.clone();
        self.load(&snapshot.ok_or(VmmError::Misuse("an empty slot is to be renewed"))?)
    }

    /// Puts back what was written, if that suffices and is no more than `most` pages. Otherwise the memory has to be filled anew, and this says whether
    /// that may be done in its place; the slot is as it was then.
    fn try_reset(&mut self, most: u64) -> Result<Option<bool>, VmmError> {
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
        let before = std::mem::replace(&mut self.state, State::Broken);
        let memory = self.vm.machine.memory()?;
        let written = &mut self.written;
        match self.strategy.reset(snapshot, memory, written, most)? {
            Reset::Done => {
                self.vm.renew();
                self.state = State::Ready;
                Ok(None)
            }
            Reset::Anew { in_place } => {
                self.state = before;
                Ok(Some(in_place))
            }
        }
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
        if !self.is_kept() {
            return Err(VmmError::Misuse(
                "a guest is to end that does not wait for a second request",
            ));
        }
        self.state = State::Broken;
        set_result(self.vm.machine.memory()?, WAIT_ENDED)?;
        self.vm.take_offer();
        self.state = State::GoingOn;
        let end = self.again(deadline).err();
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

    /// Its memory.
    pub(crate) fn memory(&self) -> Result<&GuestMemory, VmmError> {
        self.vm.machine.memory()
    }

    /// Bytes of memory that are this slot's own, not shared with its snapshot.
    pub fn private_bytes(&mut self) -> Result<u64, VmmError> {
        pagemap::written_pages(self.vm.machine.memory()?, &mut self.written)?;
        let written: u64 = self.written.iter().map(|run| run.end - run.start).sum();
        let copied = match (self.strategy, &self.snapshot) {
            (Strategy::OwnFile, Some(snapshot)) => snapshot.own_bytes(),
            _ => 0,
        };
        Ok(written + copied)
    }
}

/// Memory for a snapshot's instances, in which there is nothing of it yet.
fn room(of: &Snapshot) -> Result<GuestMemory, VmmError> {
    let image = Image::get();
    GuestMemory::instance(of.layout.total_bytes(), image.fixed(), image.fixed_file()?)
}

#[cfg(test)]
mod reset_tests;
