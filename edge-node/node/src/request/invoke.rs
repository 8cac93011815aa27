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

use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use holm_model::ids::RequestId;
use holm_model::manifest::Isolation;
use holm_vmm::{Failure, Limits, Request, RequestPlace, Rest, Slot, Step, VmmError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::enter;
use super::job::{Ending, Job};
use super::problem::Problem;
use super::retire::{Remains, log, retire};
use crate::deploy::prepare::nanos;
use crate::deploy::routes::Live;
use crate::lane::Lane;
use crate::limits::{AGAIN_DEADLINE, BODY_WINDOW_BYTES, FIRST_QUANTUM, INLINE_BUDGET};
use crate::pool::Lease;
use crate::pool::door::Door;
use crate::worker::Bounds;

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
        lane, live, last, ..
    } = instance;
    // The connection's task is before this one in the thread's queue: it writes the answer to the socket
    // first. With HTTP/2 there are two tasks on the way.
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
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
    /// What it may still take of this thread.
    inline: Duration,
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
                && let Some((_, job)) = self.jobs.get_mut(at)
            {
                let deadline = job.deadline;
                tokio::select! {
                    () = job.room() => {}
                    () = tokio::time::sleep_until(deadline.into()) => {
                        if self.leave(&mut slot, at, Ending::Gone) {
                            return Remains::Stopped(slot);
                        }
                        continue;
                    }
                }
            }
            let step = match self.inline.is_zero() {
                false => run_here(&mut slot, &mut self.inline),
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

    /// The next request that has joined, if the guest can take it now.
    fn next(&self, slot: &Slot) -> Option<Job> {
        let door = self.door.as_ref()?;
        if !slot.can_begin() || self.spent {
            return None;
        }
        door.next()
    }

    /// Nobody is to be answered: an instance that is kept goes on to its next wait for a request. Gives the slot
    /// if there is another request then.
    async fn go_on(&mut self, mut slot: Box<Slot>) -> Result<Box<Slot>, Remains> {
        let Some(door) = self.door.clone() else {
            return Err(match slot.can_begin() {
                true => Remains::Waiting(slot),
                false => Remains::Answered(slot),
            });
        };
        log(&self.lane, &self.live, self.last, &mut slot);
        if !self.spent && !slot.can_begin() {
            // Its connection first, of which HTTP/2 makes two tasks.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            // Who comes meanwhile had better wait for it than have an instance with another state.
            let open = self
                .opens()
                .then(|| self.lane.pool.open(self.live.key, &door));
            let again = self.until_wait(slot).await;
            if open.is_some() {
                self.lane.pool.shut(&door);
            }
            slot = again?;
        }
        if let Some(job) = self.leaving.take() {
            job.end(Ending::Gone);
        }
        if self.spent {
            return Err(Remains::Broken(Some(slot)));
        }
        match std::future::poll_fn(|cx| door.poll_joined(cx)).await {
            true => Ok(slot),
            false => Err(Remains::Waiting(slot)),
        }
    }

    /// Has the guest go on to its next wait for a request, for as long as it may.
    async fn until_wait(&mut self, mut slot: Box<Slot>) -> Result<Box<Slot>, Remains> {
        let before = slot.stats();
        let mut bounds = Bounds {
            deadline: Instant::now() + AGAIN_DEADLINE,
            cpu: before.cpu + AGAIN_DEADLINE,
        };
        if let Some(job) = &self.leaving {
            let cpu = Duration::from_millis(self.live.limits.cpu_ms);
            bounds.deadline = bounds.deadline.max(job.deadline);
            bounds.cpu = before.cpu + cpu.saturating_sub(job.cost.taken.cpu);
        }
        // Most are there at once. What takes longer is not for this thread.
        let mut rest = slot.go_on(FIRST_QUANTUM, bounds.deadline);
        let waits = loop {
            match rest {
                Ok(Rest::Waiting) => break true,
                Ok(Rest::Yielded) => {}
                Ok(Rest::Parked(until)) => tokio::select! {
                    () = woken(slot.wake()) => {}
                    () = tokio::time::sleep_until(until.into()) => {}
                },
                Err(failure) => {
                    let (function, version) = (&self.live.function, self.live.version.short());
                    tracing::warn!(%function, version, %failure, "the instance could not be kept; the next request gets a fresh one");
                    break false;
                }
            }
            match self.lane.shared.workers.go_on(slot, bounds).await {
                Ok(came) => (slot, rest) = came,
                Err(_) => return Err(Remains::Broken(None)),
            }
        };
        if let Some(job) = &mut self.leaving {
            job.cost.taken.add(&slot.stats().since(&before));
        }
        match waits {
            true => Ok(slot),
            false => Err(Remains::Broken(Some(slot))),
        }
    }

    /// Whether it may get another request.
    fn opens(&self) -> bool {
        let expected = self.door.as_ref().map_or(0, |door| door.expected());
        let room = self.jobs.len() + expected < self.live.requests_per_instance as usize;
        room && !self.spent && self.lane.serves(&self.live)
    }

    /// Has those that joined, or are about to, look for another instance.
    async fn send_away(&self) {
        let Some(door) = &self.door else {
            return;
        };
        while std::future::poll_fn(|cx| door.poll_joined(cx)).await {
            if let Some(mut job) = door.next() {
                job.leave();
                let (lane, live) = (self.lane.clone(), self.live.clone());
                tokio::task::spawn_local(enter(lane, live, job));
            }
        }
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

    /// Has a worker run it until it parks, ends something or has a part of an answer, or until a caller goes:
    /// then says which.
    async fn run_on_worker(
        &mut self,
        slot: Box<Slot>,
    ) -> Result<(Box<Slot>, Step, Option<usize>), Remains> {
        let mut handed = self.lane.shared.workers.run(slot);
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

    /// The guest is parked: waits until it can go on, or until a job cannot, for a reason of its caller's: then
    /// says which and how it ends.
    async fn wait(&mut self, slot: &mut Slot, until: Instant) -> Option<(usize, Ending)> {
        let open = self
            .door
            .clone()
            .filter(|_| slot.can_begin() && self.opens());
        if let Some(door) = &open {
            self.lane.pool.open(self.live.key, door);
        } else if let Some(door) = &self.door {
            // It waits, but for no request.
            self.lane.pool.hope(door, false);
        }
        let left = loop {
            let hungry: Vec<bool> = self
                .jobs
                .iter()
                .map(|(place, _)| slot.body_left(*place) < BODY_WINDOW_BYTES)
                .collect();
            let can_begin = slot.can_begin();
            let come = tokio::select! {
                biased;
                come = std::future::poll_fn(|cx| self.poll(&hungry, can_begin, cx)) => come,
                () = woken(slot.wake()) => break None,
                () = tokio::time::sleep_until(until.into()) => break None,
            };
            match come {
                Come::Joined => break None,
                Come::Gone(at) => break Some((at, Ending::Gone)),
                Come::Body(at, Err(problem)) => break Some((at, Ending::Refused(problem))),
                Come::Body(at, Ok((more, end))) => {
                    if let Some((place, job)) = self.jobs.get_mut(at) {
                        slot.add_body(*place, &more, end);
                        if end {
                            job.call.end_body();
                        }
                    }
                    if slot.has_body_wanted() {
                        break None;
                    }
                }
            }
        };
        if let Some(door) = &open {
            self.lane.pool.shut(door);
        }
        if let Some(door) = &self.door {
            self.lane.pool.hope(door, self.opens());
        }
        left
    }

    fn poll(&mut self, hungry: &[bool], can_begin: bool, cx: &mut Context<'_>) -> Poll<Come> {
        if let Some(door) = &self.door
            && can_begin
            && door.poll_joined(cx) == Poll::Ready(true)
        {
            return Poll::Ready(Come::Joined);
        }
        for (at, (_, job)) in self.jobs.iter_mut().enumerate() {
            if job.poll_gone(cx).is_ready() {
                return Poll::Ready(Come::Gone(at));
            }
            if let Some(rest) = &mut job.call.rest
                && hungry.get(at) == Some(&true)
                && let Poll::Ready(more) = rest.poll_more(cx)
            {
                return Poll::Ready(Come::Body(at, more));
            }
        }
        Poll::Pending
    }
}

/// What came while a guest was parked.
enum Come {
    /// Another request.
    Joined,
    /// A caller has gone.
    Gone(usize),
    /// More of a body, and whether that was the last.
    Body(usize, Result<(Vec<u8>, bool), Problem>),
}

/// Ends a job whose request will not be answered. A function is not to blame for a caller that was too slow.
fn fail(job: Job, failure: &Rc<Failure>, slot: &Slot, place: RequestPlace) {
    let waited = job.call.rest.is_some() && slot.body_left(place) == 0;
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

/// Waits until a guest's connections have something for it; for ever if it waits for none.
#[expect(
    deprecated,
    reason = "what replaces it is unsafe; the descriptor is borrowed for as long as it is watched"
)]
async fn woken(wake: Option<BorrowedFd<'_>>) {
    // Where it cannot be watched, the guest goes on at its time or at its deadline.
    if let Some(wake) = wake
        && let Ok(watched) = AsyncFd::with_interest(wake, Interest::READABLE)
    {
        let _ = watched.readable().await;
    } else {
        std::future::pending().await
    }
}

/// Runs the vCPU on this thread, which serves nobody else meanwhile.
fn run_here(slot: &mut Slot, left: &mut Duration) -> Step {
    let began = Instant::now();
    let step = slot.run(FIRST_QUANTUM.min(*left));
    *left = left.saturating_sub(began.elapsed());
    step
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
    use std::sync::Arc;

    use super::*;
    use crate::outbound::{Allowed, Means, Outside};

    #[derive(Debug)]
    struct Loopback;

    impl Means for Loopback {
        fn resolve(&self, _: &str) -> std::io::Result<Vec<IpAddr>> {
            Ok(Vec::new())
        }

        fn dial(&self, address: SocketAddr) -> SocketAddr {
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port())
        }
    }

    #[tokio::test]
    async fn a_guest_is_woken_by_what_it_asked_for_and_by_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let places = vec![format!("192.0.2.1:{port}").parse().unwrap()];
        let mut outbound = Allowed::of(places, &Outside::with(Vec::new(), Arc::new(Loopback)))
            .outbound()
            .unwrap();
        let ip = Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped();
        let place = outbound.connect(ip, port).unwrap() & 0xff;
        let (mut peer, _) = listener.accept().unwrap();
        let readable = 1u64 << place;
        let soon = Duration::from_millis(50);
        let long = Duration::from_secs(10);
        let early = tokio::time::timeout(soon, woken(outbound.wake(readable))).await;
        assert!(early.is_err(), "nothing has come yet");
        let writer = std::thread::spawn(move || {
            std::thread::sleep(soon);
            peer.write_all(b"x").unwrap();
            peer
        });
        let came = tokio::time::timeout(long, woken(outbound.wake(readable))).await;
        assert!(came.is_ok() && outbound.ready(readable) == readable);
        drop(writer.join().unwrap());
        // It has something to read, and its end: nobody asks.
        let unasked = tokio::time::timeout(soon, woken(outbound.wake(1 << 15))).await;
        assert!(unasked.is_err());
        let never = tokio::time::timeout(soon, woken(None)).await;
        assert!(never.is_err());
    }
}
