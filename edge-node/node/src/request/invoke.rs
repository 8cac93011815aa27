//! Running one request through one slot.
//!
//! ```text
//!  load? ─▶ begin ─▶ run here ──Yielded──▶ run on a worker ─┐
//!                       ▲   └──Parked──▶ sleep ──┐          │
//!                       └────────────────────────┴──Parked──┘
//!                  Answered or Failed ends it from anywhere, and so does a caller that goes away
//! ```

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use holm_vmm::{Failure, Limits, Place, Request, Response, Slot, Step, VmmError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::{Answer, Call};
use crate::deploy::prepare::nanos;
use crate::deploy::routes::Live;
use crate::lane::Lane;
use crate::limits::{FIRST_QUANTUM, INLINE_BUDGET};
use crate::pool::Lease;
use crate::pool::core::SlotId;

/// How running it ended.
#[derive(Debug)]
pub(crate) enum Ending {
    Answered(Response),
    Failed(Failure),
    /// The caller went away.
    Gone,
    /// The guest has no room for a head that large.
    HeadTooLarge,
    /// The node failed; says how.
    Node(String),
}

/// What is to become of the slot.
#[derive(Debug)]
pub(crate) enum Remains {
    /// It answered: to be reset, or kept.
    Answered(Box<Slot>, SlotId),
    /// It got no request: it is as it was.
    Untouched(Box<Slot>, SlotId),
    /// It was stopped on its way: to be made fresh.
    Stopped(Box<Slot>, SlotId),
    /// Not to be used again. Without the slot when that was lost with its worker.
    Broken(Option<Box<Slot>>, SlotId),
}

/// What it took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) queue_ns: u64,
    pub(crate) restore_ns: u64,
    pub(crate) run_ns: u64,
    pub(crate) cpu_ns: u64,
    pub(crate) exits: u32,
    /// Of the connections that the function made.
    pub(crate) egress_bytes: u64,
    pub(crate) ingress_bytes: u64,
    pub(crate) cold: bool,
}

/// Runs `call` in the leased slot until it is answered, has failed or nobody wants it any more.
pub(crate) async fn invoke(
    lane: &Lane,
    live: &Live,
    call: &Call,
    lease: Lease,
    deadline: Instant,
    reply: &mut oneshot::Sender<Answer>,
    cost: &mut Cost,
) -> (Ending, Remains) {
    let Lease { mut slot, id, load } = lease;
    if load {
        let began = Instant::now();
        if let Err(error) = slot.load(&live.snapshot) {
            let why = format!("the snapshot cannot be restored: {error}");
            return (Ending::Node(why), Remains::Broken(Some(slot), id));
        }
        (cost.restore_ns, cost.cold) = (nanos(began.elapsed()), true);
    }
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
    let limits = Limits {
        deadline,
        cpu: Duration::from_millis(live.limits.cpu_ms),
        response_body_bytes: live.limits.response_body_bytes,
        streams: false,
    };
    // One that is kept has its connections still.
    if !slot.has_outbound() {
        slot.set_outbound(live.outbound());
    }
    let began = Instant::now();
    if let Err(error) = slot.begin(&request, limits) {
        if matches!(error, VmmError::RequestTooLarge(_)) {
            return (Ending::HeadTooLarge, Remains::Untouched(slot, id));
        }
        let why = format!("the request cannot be handed over: {error}");
        return (Ending::Node(why), Remains::Broken(Some(slot), id));
    }
    let (ending, remains) = run(lane, slot, id, deadline, reply).await;
    cost.run_ns = nanos(began.elapsed());
    if let Remains::Answered(slot, _) | Remains::Stopped(slot, _) | Remains::Broken(Some(slot), _) =
        &remains
    {
        let stats = slot.stats();
        (cost.cpu_ns, cost.exits) = (nanos(stats.cpu), stats.exits);
        (cost.egress_bytes, cost.ingress_bytes) = (stats.egress_bytes, stats.ingress_bytes);
    }
    (ending, remains)
}

async fn run(
    lane: &Lane,
    mut slot: Box<Slot>,
    id: SlotId,
    deadline: Instant,
    reply: &mut oneshot::Sender<Answer>,
) -> (Ending, Remains) {
    let mut inline = INLINE_BUDGET;
    let mut step = run_here(&mut slot, &mut inline);
    loop {
        match step {
            Step::Answered(response) => {
                return (Ending::Answered(response), Remains::Answered(slot, id));
            }
            Step::Failed(failure) | Step::Dropped(_, failure) => {
                return (Ending::Failed(failure), Remains::Broken(Some(slot), id));
            }
            Step::Yielded => {
                let mut handed = lane.shared.workers.run(slot);
                let mut gone = false;
                let done = tokio::select! {
                    biased;
                    done = &mut handed.done => done,
                    () = reply.closed() => {
                        gone = true;
                        handed.cancel();
                        handed.done.await
                    }
                };
                let Ok((back, next)) = done else {
                    let why = "its worker ended".to_owned();
                    return (Ending::Node(why), Remains::Broken(None, id));
                };
                if gone {
                    let remains = match next {
                        Step::Answered(_) => Remains::Answered(back, id),
                        Step::Failed(_) | Step::Dropped(..) => Remains::Broken(Some(back), id),
                        Step::Yielded | Step::Parked(_) => Remains::Stopped(back, id),
                    };
                    return (Ending::Gone, remains);
                }
                (slot, step) = (back, next);
            }
            Step::Parked(until) => {
                if Instant::now() >= deadline {
                    return (
                        Ending::Failed(Failure::Deadline(Place::default())),
                        Remains::Broken(Some(slot), id),
                    );
                }
                let gone = tokio::select! {
                    () = tokio::time::sleep_until(until.min(deadline).into()) => false,
                    () = woken(slot.wake()) => false,
                    () = reply.closed() => true,
                };
                if gone {
                    return (Ending::Gone, Remains::Stopped(slot, id));
                }
                step = match inline.is_zero() {
                    true => Step::Yielded,
                    false => run_here(&mut slot, &mut inline),
                };
            }
        }
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
