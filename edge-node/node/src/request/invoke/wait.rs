//! A guest that waits: for a caller that is slow, for a connection of its own, or for another request.

use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use holm_vmm::{RequestPlace, Slot};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Instance;
use crate::limits::{BODY_WINDOW_BYTES, PLACE_LOOK};
use crate::request::body::{Pace, Rest};
use crate::request::job::{Ending, Job};
use crate::request::problem::Problem;

impl Instance {
    /// The guest is parked: waits until it can go on, or until a job cannot, for a reason of its caller's: then
    /// says which and how it ends.
    pub(super) async fn wait(
        &mut self,
        slot: &mut Slot,
        until: Instant,
    ) -> Option<(usize, Ending)> {
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
            if let Some(at) = self.slow(slot) {
                break Some((at, Ending::Refused(Problem::BodyTooSlow)));
            }
            let hungry: Vec<bool> = self
                .jobs
                .iter()
                .map(|(place, _)| slot.body_left(*place) < BODY_WINDOW_BYTES)
                .collect();
            let can_begin = slot.can_begin();
            let (since, look) = (Instant::now(), self.next_look(slot));
            let come = tokio::select! {
                biased;
                come = std::future::poll_fn(|cx| self.poll(&hungry, can_begin, cx)) => come,
                () = woken(slot.wake()) => Come::Event,
                () = tokio::time::sleep_until(until.into()) => Come::Event,
                () = tokio::time::sleep(look.unwrap_or_default()), if look.is_some() => Come::Look,
            };
            for pace in self.paces(slot) {
                pace.waited(since.elapsed());
            }
            match come {
                Come::Look => {}
                Come::Joined | Come::Event => break None,
                Come::Gone(at) => break Some((at, Ending::Gone)),
                Come::Body(at, Err(problem)) => break Some((at, Ending::Refused(problem))),
                Come::Body(at, Ok((more, end))) => {
                    if let Some((place, job)) = self.jobs.get_mut(at) {
                        slot.add_body(*place, &more, end);
                        if let Some(rest) = &mut job.call.rest {
                            rest.pace.came(more.len());
                        }
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

    /// The callers that the guest has to wait for, if it wants more of their bodies.
    fn paces(&mut self, slot: &Slot) -> impl Iterator<Item = &mut Pace> {
        self.jobs.iter_mut().filter_map(|(place, job)| {
            awaited(slot, *place, job)?;
            Some(&mut job.call.rest.as_mut()?.pace)
        })
    }

    /// When to look whether one of them is to make room.
    fn next_look(&mut self, slot: &Slot) -> Option<Duration> {
        let next = self.paces(slot).map(|pace| pace.patience()).min()?;
        Some(next.max(PLACE_LOOK))
    }

    /// The job whose caller is too slow, while others want its place.
    fn slow(&self, slot: &Slot) -> Option<usize> {
        let waiting = self.live.waiting.load(Ordering::Relaxed);
        if waiting == 0 && !self.lane.pool.is_wanted() {
            return None;
        }
        self.jobs.iter().position(|(place, job)| {
            awaited(slot, *place, job).is_some_and(|rest| rest.pace.is_slow())
        })
    }

    /// A caller has much to take: waits until it has taken some of it, or until a job cannot go on, for a reason of
    /// its caller's or because its deadline is over; then says which and how it ends.
    pub(super) async fn wait_for_room(&mut self, at: usize) -> Option<(usize, Ending)> {
        let left = until_room(
            &mut self.jobs,
            at,
            |(_, job)| job.deadline,
            |(_, job)| job.is_full(),
            |(_, job), cx| job.poll_gone(cx),
        );
        Some(match left.await {
            Left::Nobody => return None,
            Left::Gone(gone) => (gone, Ending::Gone),
            Left::Late(late) if late == at => (late, Ending::Gone),
            // The instance waits for another caller, so its version is not to blame.
            Left::Late(late) => {
                let function = self.live.function.clone();
                let problem = Problem::TimedOut(function, "deadline");
                (late, Ending::Refused(problem))
            }
        })
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
    /// What the guest waits for of its own connections, or the end of its wait.
    Event,
    /// A caller has gone.
    Gone(usize),
    /// Nothing: it is time to look whether the guest has waited for too long.
    Look,
    /// More of a body, and whether that was the last.
    Body(usize, Result<(Vec<u8>, bool), Problem>),
}

/// Who cannot go on while an instance waits for a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// All can.
    Nobody,
    /// Its caller has gone.
    Gone(usize),
    /// Its deadline is over.
    Late(usize),
}

/// Waits until the job `at` is not full, or another end comes, to whichever job.
async fn until_room<J>(
    jobs: &mut [J],
    at: usize,
    deadline: impl Fn(&J) -> Instant,
    is_full: impl Fn(&J) -> bool,
    mut poll_gone: impl FnMut(&mut J, &mut Context<'_>) -> Poll<()>,
) -> Left {
    let first = (0..jobs.len()).min_by_key(|at| deadline(&jobs[*at]));
    let Some(first) = first else {
        return Left::Nobody;
    };
    let late = tokio::time::sleep_until(deadline(&jobs[first]).into());
    let room = std::future::poll_fn(|cx| {
        // Each is polled, so that each can wake this.
        let gone = jobs.iter_mut().map(|job| poll_gone(job, cx).is_ready());
        let gone: Vec<bool> = gone.collect();
        if let Some(gone) = gone.iter().position(|gone| *gone) {
            return Poll::Ready(Left::Gone(gone));
        }
        match jobs.get(at).is_some_and(&is_full) {
            true => Poll::Pending,
            false => Poll::Ready(Left::Nobody),
        }
    });
    tokio::select! {
        biased;
        left = room => left,
        () = late => Left::Late(first),
    }
}

/// What is still to come of a job's body, if the guest has taken all that has come.
pub(super) fn awaited<'a>(slot: &Slot, place: RequestPlace, job: &'a Job) -> Option<&'a Rest> {
    let rest = job.call.rest.as_ref();
    rest.filter(|_| slot.body_left(place) == 0)
}

/// Waits until a guest's connections have something for it; for ever if it waits for none.
#[expect(
    deprecated,
    reason = "what replaces it is unsafe; the descriptor is borrowed for as long as it is watched"
)]
pub(super) async fn woken(wake: Option<BorrowedFd<'_>>) {
    // Where it cannot be watched, the guest goes on at its time or at its deadline.
    if let Some(wake) = wake
        && let Ok(watched) = AsyncFd::with_interest(wake, Interest::READABLE)
    {
        let _ = watched.readable().await;
    } else {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Write as _;
    use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
    use std::pin::Pin;
    use std::rc::Rc;
    use std::sync::Arc;

    use tokio::sync::oneshot;

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

    /// One of an instance's requests.
    struct One {
        deadline: Instant,
        full: Rc<Cell<bool>>,
        gone: oneshot::Receiver<()>,
    }

    async fn left(ones: &mut [One], at: usize) -> Left {
        let gone = |one: &mut One, cx: &mut Context<'_>| Pin::new(&mut one.gone).poll(cx).map(drop);
        until_room(ones, at, |one| one.deadline, |one| one.full.get(), gone).await
    }

    #[tokio::test]
    async fn who_waits_for_one_caller_keeps_to_the_deadlines_of_all_and_sees_each_go() {
        let soon = Duration::from_millis(20);
        let (mut ones, mut callers) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let (caller, gone) = oneshot::channel();
            callers.push(caller);
            ones.push(One {
                deadline: Instant::now() + Duration::from_secs(60),
                full: Rc::default(),
                gone,
            });
        }
        assert_eq!(left(&mut ones, 1).await, Left::Nobody);
        ones[1].full.set(true);
        ones[2].deadline = Instant::now() + soon;
        assert_eq!(left(&mut ones, 1).await, Left::Late(2));
        ones[2].deadline = ones[0].deadline;
        let first = callers.remove(0);
        let goes = async move {
            tokio::time::sleep(soon).await;
            drop(first);
            std::future::pending::<Left>().await
        };
        let who = tokio::select! {
            who = left(&mut ones, 1) => who,
            never = goes => never,
        };
        assert_eq!(who, Left::Gone(0));
        ones.remove(0);
        ones[0].deadline = Instant::now() + soon;
        assert_eq!(left(&mut ones, 0).await, Left::Late(0));
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
