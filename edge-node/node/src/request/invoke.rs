//! Running an instance with its requests: one, or several if it is kept and its manifest allows that.
//!
//! ```text
//!  load? ─▶ begin ─▶ run here ──Yielded──▶ run on a worker ─┐
//!             ▲         ▲   └──Parked──▶ wait ──┐           │
//!   joins ────┘         └───────────────────────┴──Parked───┘
//!
//!  Answered or Failed ends a request from anywhere, and so does a caller that goes away.
//! ```
//! The task of the first request runs the instance until the last has ended. While the guest waits, more of
//! the requests' bodies is handed in, and the instance's door is open for a further request.

mod kept;
mod wait;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use holm_model::ids::RequestId;
use holm_model::manifest::Isolation;
use holm_vmm::{Failure, Limits, Request, RequestPlace, Slot, Step, VmmError};

use super::job::{Ending, Job};
use super::problem::Problem;
use super::retire::{Remains, log, retire};
use crate::deploy::prepare::nanos;
use crate::deploy::routes::Live;
use crate::lane::Lane;
use crate::limits::{FIRST_QUANTUM, INLINE_BUDGET, LEAST_TURN};
use crate::pool::Lease;
use crate::pool::door::Door;

/// Runs `first`, and those that join it, in the leased slot, and sees to the slot after that.
pub(crate) async fn invoke(lane: Rc<Lane>, live: Arc<Live>, lease: Lease, mut first: Job) {
    let Lease {
        mut slot, id, load, ..
    } = lease;
    let request = first.call.id;
    if load {
        let began = Instant::now();
        if let Err(error) = slot.load(&live.snapshot) {
            let why = format!("the snapshot cannot be restored: {error}");
            first.end(Ending::Node(why));
            let remains = Remains::Broken(Some(slot));
            return retire(&lane, &live, id, request, remains);
        }
        (first.cost.restore_ns, first.cost.cold) = (nanos(began.elapsed()), true);
    }
    // One that is kept has its connections still.
    if !slot.has_outbound() {
        slot.set_outbound(live.outbound());
    }
    let kept = live.isolation == Isolation::Instance;
    let mut instance = Instance {
        lane,
        live,
        jobs: Vec::new(),
        leaving: None,
        door: kept.then(Door::new),
        inline: INLINE_BUDGET,
        quantum: FIRST_QUANTUM,
        turn: FIRST_QUANTUM,
        uncharged: Duration::ZERO,
        spent: false,
        last: request,
    };
    if let Some(door) = &instance.door {
        instance.lane.pool.add_door(instance.live.key, door);
    }
    let remains = match instance.begin(&mut slot, first) {
        Ok(()) => instance.run(slot).await,
        Err(()) => Remains::Broken(Some(slot)),
    };
    if let Some(door) = &instance.door {
        instance.lane.pool.remove_door(door);
    }
    instance.send_away().await;
    if let Some(job) = instance.leaving.take() {
        job.end(Ending::Gone);
    }
    let Instance {
        lane,
        live,
        last,
        uncharged,
        ..
    } = instance;
    // The connection's task is before this one in the thread's queue: it writes the answer to the socket
    // first. With HTTP/2 there are two tasks on the way.
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    lane.shared.workers.charge(live.whose(), uncharged);
    retire(&lane, &live, id, last, remains);
}

/// An instance with its requests.
struct Instance {
    lane: Rc<Lane>,
    live: Arc<Live>,
    jobs: Vec<(RequestPlace, Job)>,
    /// The last one, whose caller has gone: what the guest still does is at its cost.
    leaving: Option<Job>,
    /// Where others come in.
    door: Option<Rc<Door<Job>>>,
    /// What CPU time it may still take of this thread, how much of that at a time, and what is left of this time.
    inline: Duration,
    quantum: Duration,
    turn: Duration,
    /// What it took of this thread since the workers had it last.
    uncharged: Duration,
    /// It gets no new requests.
    spent: bool,
    /// The request that ended last.
    last: RequestId,
}

impl Instance {
    /// Hands a request over. It ends here if that cannot be; an error if the slot is not to be used any more.
    fn begin(&mut self, slot: &mut Slot, mut job: Job) -> Result<(), ()> {
        let call = &job.call;
        let headers: Vec<(&[u8], &[u8])> = call
            .head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
            .collect();
        let request = Request {
            method: call.method.as_str(),
            target: &call.target,
            headers: &headers,
            body: &call.body.bytes,
        };
        let length = match &call.rest {
            None => Some(call.body.bytes.len() as u64),
            Some(rest) => rest.length,
        };
        let limits = Limits {
            deadline: job.deadline,
            cpu: Duration::from_millis(self.live.limits.cpu_ms),
            response_body_bytes: self.live.limits.response_body_bytes,
            streams: true,
        };
        match slot.begin_with(&request, length, limits) {
            Ok(place) => {
                job.begin();
                self.jobs.push((place, job));
                self.inline = INLINE_BUDGET;
                self.quantum = self.lane.first_quantum(&self.live);
                self.turn = self.quantum;
                if let Some(door) = &self.door {
                    self.lane.pool.hope(door, self.opens());
                }
                Ok(())
            }
            Err(VmmError::RequestTooLarge(_)) => {
                job.end(Ending::Refused(Problem::HeadTooLarge));
                Ok(())
            }
            Err(error) => {
                let why = format!("the request cannot be handed over: {error}");
                job.end(Ending::Node(why));
                Err(())
            }
        }
    }

    /// Runs it until nobody is to be answered any more.
    async fn run(&mut self, mut slot: Box<Slot>) -> Remains {
        loop {
            while let Some(job) = self.next(&slot) {
                if self.begin(&mut slot, job).is_err() {
                    return self.broken(Some(slot), "the instance takes no request any more");
                }
            }
            if self.jobs.is_empty() {
                slot = match self.go_on(slot).await {
                    Ok(slot) => slot,
                    Err(remains) => return remains,
                };
                continue;
            }
            if let Some(at) = self.full()
                && let Some((at, ending)) = self.wait_for_room(at).await
            {
                if self.leave(&mut slot, at, ending) {
                    return Remains::Stopped(slot);
                }
                continue;
            }
            let step = match self.inline.is_zero() {
                false => self.run_here(&mut slot),
                true => {
                    let (back, step, gone) = match self.run_on_worker(slot).await {
                        Ok(run) => run,
                        Err(remains) => return remains,
                    };
                    slot = back;
                    if let Some(gone) = gone
                        && matches!(step, Step::Yielded | Step::Parked(_))
                    {
                        if self.leave(&mut slot, gone, Ending::Gone) {
                            return Remains::Stopped(slot);
                        }
                        continue;
                    }
                    step
                }
            };
            self.pass_on(&mut slot);
            match step {
                Step::Answered(response) => {
                    if let Some(job) = self.take(&slot, response.place) {
                        job.end(Ending::Answered(response));
                    }
                    if !self.jobs.is_empty() {
                        log(&self.lane, &self.live, self.last, &mut slot);
                        // Its connection first.
                        tokio::task::yield_now().await;
                    }
                }
                Step::Dropped(place, failure) => {
                    // What was to come of it may still take time that is not its own.
                    self.spent |= matches!(failure, Failure::Deadline(_) | Failure::CpuLimit(_));
                    if let Some(job) = self.take(&slot, place) {
                        fail(job, &Rc::new(failure), &slot, place);
                    }
                    if self.spent {
                        self.send_away().await;
                    }
                }
                Step::Failed(failure) => {
                    let failure = Rc::new(failure);
                    while let Some((place, _)) = self.jobs.first() {
                        let place = *place;
                        if let Some(job) = self.take(&slot, place) {
                            fail(job, &failure, &slot, place);
                        }
                    }
                    return Remains::Broken(Some(slot));
                }
                // Somebody else had the core meanwhile, or a part of the answer is to leave.
                Step::Yielded if self.turn >= LEAST_TURN && !self.inline.is_zero() => {
                    tokio::task::yield_now().await;
                }
                Step::Yielded => self.inline = Duration::ZERO,
                Step::Parked(until) => {
                    if let Some((at, ending)) = self.wait(&mut slot, until).await
                        && self.leave(&mut slot, at, ending)
                    {
                        return Remains::Stopped(slot);
                    }
                }
            }
        }
    }

    /// The job whose caller has so much to take that the instance had better wait for it: if there are others,
    /// only when the thread holds as much as it may.
    fn full(&self) -> Option<usize> {
        let waits = self.jobs.len() == 1 || !self.lane.answers.has_room();
        let full = |(_, job): &(RequestPlace, Job)| waits && job.is_full();
        self.jobs.iter().position(full)
    }

    /// Takes a job out, with what it has cost.
    fn take(&mut self, slot: &Slot, place: RequestPlace) -> Option<Job> {
        let at = self.jobs.iter().position(|(at, _)| *at == place)?;
        let (_, mut job) = self.jobs.swap_remove(at);
        job.cost.taken = slot.stats_of(place);
        self.last = job.call.id;
        Some(job)
    }

    /// Ends a job before its answer is complete; whether that stops the instance.
    fn leave(&mut self, slot: &mut Slot, at: usize, ending: Ending) -> bool {
        let place = self.jobs.get(at).map(|(place, _)| *place);
        let kept = self.live.isolation == Isolation::Instance;
        if let Some(place) = place
            && let Some(job) = self.take(slot, place)
        {
            slot.abandon(place);
            match ending {
                Ending::Gone if kept && self.jobs.is_empty() => self.leaving = Some(job),
                ending => job.end(ending),
            }
        }
        !kept
    }

    /// The slot is not to be used any more, through no fault of the function's.
    fn broken(&mut self, slot: Option<Box<Slot>>, why: &str) -> Remains {
        for (place, mut job) in self.jobs.drain(..) {
            if let Some(slot) = &slot {
                job.cost.taken = slot.stats_of(place);
            }
            self.last = job.call.id;
            job.end(Ending::Node(why.to_owned()));
        }
        Remains::Broken(slot)
    }

    /// Sends callers what there is of their answers.
    fn pass_on(&mut self, slot: &mut Slot) {
        for part in slot.take_parts() {
            let job = self.jobs.iter_mut().find(|(place, _)| *place == part.place);
            let Some((place, job)) = job else {
                continue;
            };
            let place = *place;
            if let Err(why) = job.pass_on(part)
                && let Some(job) = self.take(slot, place)
            {
                slot.abandon(place);
                job.end(Ending::Failed(Rc::new(Failure::BadResponse(why))));
            }
        }
    }

    /// Runs the vCPU on this thread, which serves nobody else meanwhile. What counts is the CPU time: a guest that
    /// waited for the core is not to wait for a worker too.
    fn run_here(&mut self, slot: &mut Slot) -> Step {
        let before = slot.stats().cpu;
        let step = slot.run(self.turn.min(self.inline));
        let took = slot.stats().cpu.saturating_sub(before);
        self.inline = self.inline.saturating_sub(took);
        self.turn = match step {
            Step::Yielded => self.turn.saturating_sub(took),
            _ => self.quantum,
        };
        self.uncharged += took;
        step
    }

    /// Has a worker run it until it parks, ends something or has a part of an answer, or until a caller goes:
    /// then says which.
    async fn run_on_worker(
        &mut self,
        slot: Box<Slot>,
    ) -> Result<(Box<Slot>, Step, Option<usize>), Remains> {
        let first = self.jobs.iter().map(|(_, job)| job.deadline).min();
        // There are some whenever it runs.
        let first = first.unwrap_or_else(Instant::now);
        let here = std::mem::take(&mut self.uncharged);
        let workers = &self.lane.shared.workers;
        let mut handed = workers.run(slot, self.live.whose(), first, here);
        let _there = AtWorkers::of(&self.live);
        let mut gone = None;
        let done = tokio::select! {
            biased;
            done = &mut handed.done => done,
            who = std::future::poll_fn(|cx| poll_gone(&mut self.jobs, cx)) => {
                gone = Some(who);
                handed.cancel();
                handed.done.await
            }
        };
        match done {
            Ok((slot, step)) => Ok((slot, step, gone)),
            Err(_) => Err(self.broken(None, "its worker ended")),
        }
    }
}

/// Ends a job whose request will not be answered. A function is not to blame for a caller that was too slow.
fn fail(job: Job, failure: &Rc<Failure>, slot: &Slot, place: RequestPlace) {
    let waited = wait::awaited(slot, place, &job).is_some();
    job.end(match **failure {
        Failure::Deadline(_) if waited => Ending::Refused(Problem::BodyTooSlow),
        _ => Ending::Failed(failure.clone()),
    });
}

/// Ready with the first job whose caller has gone.
fn poll_gone(jobs: &mut [(RequestPlace, Job)], cx: &mut Context<'_>) -> Poll<usize> {
    let gone = |(_, job): &mut (RequestPlace, Job)| job.poll_gone(cx).is_ready();
    match jobs.iter_mut().position(gone) {
        Some(at) => Poll::Ready(at),
        None => Poll::Pending,
    }
}

/// An instance of a version that the workers have.
struct AtWorkers(Arc<Live>);

impl AtWorkers {
    fn of(live: &Arc<Live>) -> Self {
        for count in [&live.at_workers, &live.tenant.at_workers] {
            count.fetch_add(1, Ordering::Relaxed);
        }
        AtWorkers(live.clone())
    }
}

impl Drop for AtWorkers {
    fn drop(&mut self) {
        for count in [&self.0.at_workers, &self.0.tenant.at_workers] {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
