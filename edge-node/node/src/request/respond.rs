//! From admission to the slot's return: carries a request through, meters it, answers it, and only
//! then looks after the slot.

use std::rc::Rc;
use std::sync::Arc;

use holm_model::ids::RequestId;
use holm_model::manifest::Isolation;
use holm_model::usage::{Outcome, UsageRecord};
use holm_vmm::{Failure, Slot, VmmError};
use hyper::body::Body as _;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::oneshot;

use super::admission::{Refusal, admit};
use super::invoke::{Cost, Ending, Remains, invoke};
use super::problem::Problem;
use super::{Answer, Call, head};
use crate::deploy::prepare::{self, nanos};
use crate::deploy::routes::Live;
use crate::lane::Lane;
use crate::limits::MAX_LOGGED_BYTES;
use crate::pool::core::{Holds, SlotId};

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const HOLM_NODE: HeaderName = HeaderName::from_static("x-holm-node");
const HOLM_VERSION: HeaderName = HeaderName::from_static("x-holm-version");

/// A request that never got to a version.
pub(crate) fn refuse(lane: &Lane, id: RequestId, problem: &Problem) -> Answer {
    let mut answer = problem.response(&lane.shared.name);
    put_id(answer.headers_mut(), lane, id);
    answer
}

/// Carries the request through. The answer goes to `reply`, which closes when the caller goes away.
pub(crate) async fn carry(
    lane: Rc<Lane>,
    live: Arc<Live>,
    call: Call,
    mut reply: oneshot::Sender<Answer>,
) {
    if !lane.meter.borrow_mut().has_room() {
        // It does not run, so it needs no record, for which there may be no room either.
        live.counts.add(Outcome::Shed, 0);
        // If the caller has gone, there is nobody to tell.
        let _ = reply.send(refuse(&lane, call.id, &Problem::Unmetered));
        return;
    }
    let deadline = call.accepted + live.deadline();
    let mut cost = Cost::default();
    let admitted = admit(&lane, &live, deadline, &mut reply).await;
    cost.queue_ns = nanos(call.accepted.elapsed());
    let mut remains = None;
    let mut permit = None;
    let (outcome, answer) = match admitted {
        Err(refusal) => turned_away(refusal, &live),
        Ok((taken, lease)) => {
            permit = Some(taken);
            let (ending, left) =
                invoke(&lane, &live, &call, lease, deadline, &mut reply, &mut cost).await;
            remains = Some(left);
            concluded(&lane, ending, &live, &call)
        }
    };
    let answer = answer.map(|answer| match answer {
        Ok(mut answer) => {
            put_about(answer.headers_mut(), &live, &cost);
            put_id(answer.headers_mut(), &lane, call.id);
            answer
        }
        Err(problem) => {
            let mut answer = refuse(&lane, call.id, &problem);
            put_about(answer.headers_mut(), &live, &cost);
            answer
        }
    });

    let record = UsageRecord {
        boot_epoch: 0,
        sequence: 0,
        request: call.id,
        function: live.function.clone(),
        version: live.version,
        accepted_ms: call.accepted_ms,
        outcome,
        // Nothing was sent to a caller that had gone.
        status: answer.as_ref().map_or(0, |answer| answer.status().as_u16()),
        queue_ns: cost.queue_ns,
        restore_ns: cost.restore_ns,
        run_ns: cost.run_ns,
        cpu_ns: cost.cpu_ns,
        memory_bytes: live.limits.memory_bytes,
        request_bytes: call.body.bytes.len() as u64,
        response_bytes: answer
            .as_ref()
            .and_then(|answer| answer.body().size_hint().exact())
            .unwrap_or(0),
        egress_bytes: cost.egress_bytes,
        ingress_bytes: cost.ingress_bytes,
        cold: cost.cold,
        exits: cost.exits,
        probe: false,
    };
    live.counts.add(outcome, cost.run_ns);
    let recorded = lane.meter.borrow_mut().record(record);
    if let Some(answer) = answer {
        // An execution that is not on record must not be answered as if it were.
        let answer = match recorded {
            Err(error) if remains.is_some() => {
                tracing::error!(request = %call.id, %error, "the request cannot be metered");
                refuse(&lane, call.id, &Problem::Node)
            }
            _ => answer,
        };
        // If the caller has just gone, there is nobody to tell.
        let _ = reply.send(answer);
    }
    drop(permit);
    let id = call.id;
    drop(call);

    if let Some(remains) = remains {
        // The connection's task is before this one in the thread's queue: it writes the answer to
        // the socket first. With HTTP/2 there are two tasks on the way.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        retire(&lane, &live, id, remains).await;
    }
}

fn turned_away(refusal: Refusal, live: &Live) -> (Outcome, Option<Result<Answer, Problem>>) {
    let function = live.function.clone();
    match refusal {
        Refusal::Full => (Outcome::Shed, Some(Err(Problem::Overloaded(function)))),
        // It never ran, so its version is not to blame: shed, not timed out.
        Refusal::Waited => (Outcome::Shed, Some(Err(Problem::QueuedTooLong(function)))),
        Refusal::Gone => (Outcome::Cancelled, None),
        Refusal::Stopping => (Outcome::Shed, Some(Err(Problem::NotReady))),
    }
}

fn concluded(
    lane: &Lane,
    ending: Ending,
    live: &Live,
    call: &Call,
) -> (Outcome, Option<Result<Answer, Problem>>) {
    let name = || live.function.clone();
    let (function, version, request) = (&live.function, live.version.short(), call.id);
    match ending {
        Ending::Answered(response) => match head::outward(response, &call.method) {
            Ok(answer) if answer.status().is_server_error() => {
                (Outcome::FunctionError, Some(Ok(answer)))
            }
            Ok(answer) => (Outcome::Answered, Some(Ok(answer))),
            Err(why) => {
                tracing::warn!(%function, version, %request, why, "the function's answer is not HTTP");
                lane.shared.logs.add(live, request, true, &why);
                (Outcome::Crash, Some(Err(Problem::BadAnswer(name(), why))))
            }
        },
        Ending::Failed(failure) => {
            let report = failure.to_string();
            let outcome = prepare::outcome(&failure);
            match outcome {
                Outcome::PlatformFault => {
                    tracing::error!(%function, version, %request, report, "the node failed a request");
                }
                _ => {
                    tracing::warn!(%function, version, %request, report, "the function failed");
                    lane.shared.logs.add(live, request, true, &report);
                }
            }
            let problem = match failure {
                Failure::Crash(_) => Problem::Crashed(name()),
                Failure::Deadline(_) => Problem::TimedOut(name(), "deadline"),
                Failure::CpuLimit(_) => Problem::TimedOut(name(), "CPU limit"),
                Failure::BadResponse(why) => Problem::BadAnswer(name(), why),
                Failure::Host(_) => Problem::Node,
            };
            (outcome, Some(Err(problem)))
        }
        Ending::Gone => (Outcome::Cancelled, None),
        Ending::HeadTooLarge => (Outcome::Shed, Some(Err(Problem::HeadTooLarge))),
        Ending::Node(why) => {
            tracing::error!(%function, version, %request, why, "the node failed a request");
            (Outcome::PlatformFault, Some(Err(Problem::Node)))
        }
    }
}

/// Brings the slot back to the pool, as fresh as its version's isolation asks for.
async fn retire(lane: &Rc<Lane>, live: &Arc<Live>, id: RequestId, remains: Remains) {
    match remains {
        Remains::Broken(slot, at) => {
            let slot = slot.map(|mut slot| {
                log(lane, live, id, &mut slot);
                slot
            });
            lane.pool.discard(slot, at);
        }
        Remains::Answered(mut slot, at) if live.isolation == Isolation::Instance => {
            log(lane, live, id, &mut slot);
            // It may take a while to get to its next wait, so not on this thread.
            match lane.shared.workers.again(slot).await {
                Ok((slot, Ok(()))) if lane.serves(live.key) => {
                    lane.pool.finish(slot, at, Holds::Kept(live.key));
                }
                // Its version was replaced meanwhile.
                Ok((slot, Ok(()))) => lane.pool.discard(Some(slot), at),
                Ok((slot, Err(failure))) => {
                    let (function, version) = (&live.function, live.version.short());
                    tracing::warn!(%function, version, %failure, "the instance could not be kept; the next request gets a fresh one");
                    lane.pool.discard(Some(slot), at);
                }
                Err(_) => lane.pool.discard(None, at),
            }
        }
        Remains::Answered(mut slot, at) => {
            log(lane, live, id, &mut slot);
            let fresh = slot.reset();
            give_back(lane, live, slot, at, fresh);
        }
        Remains::Untouched(slot, at) => match (lane.serves(live.key), slot.is_kept()) {
            (true, true) => lane.pool.finish(slot, at, Holds::Kept(live.key)),
            (true, false) => lane.pool.finish(slot, at, Holds::Pristine(live.key)),
            (false, true) => lane.pool.discard(Some(slot), at),
            (false, false) => lane.pool.finish(slot, at, Holds::Nothing),
        },
        Remains::Stopped(mut slot, at) => {
            log(lane, live, id, &mut slot);
            // A guest in the middle of something cannot be reset, but can be replaced.
            let fresh = slot.load(&live.snapshot);
            give_back(lane, live, slot, at, fresh);
        }
    }
}

fn give_back(lane: &Lane, live: &Live, slot: Box<Slot>, at: SlotId, fresh: Result<(), VmmError>) {
    match fresh {
        Ok(()) => {
            // Nobody asks for a version that was replaced meanwhile, and the pool was told so already.
            let holds = match lane.serves(live.key) {
                true => Holds::Pristine(live.key),
                false => Holds::Nothing,
            };
            lane.pool.finish(slot, at, holds);
        }
        Err(error) => {
            tracing::error!(function = %live.function, %error, "a slot could not be reset; another takes its place");
            lane.pool.discard(Some(slot), at);
        }
    }
}

/// Passes on what the program wrote.
fn log(lane: &Lane, live: &Live, request: RequestId, slot: &mut Slot) {
    let log = slot.take_log();
    if log.is_empty() {
        return;
    }
    let (function, version) = (&live.function, live.version.short());
    let shown = &log[..log.len().min(MAX_LOGGED_BYTES)];
    let text = String::from_utf8_lossy(shown);
    let cut_bytes = log.len() - shown.len();
    tracing::info!(target: "holm::function", %function, version, %request, cut_bytes, text = text.trim_end());
    lane.shared.logs.add(live, request, false, &text);
}

fn put_id(headers: &mut HeaderMap, lane: &Lane, id: RequestId) {
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(head::REQUEST_ID, id);
    }
    headers.insert(HOLM_NODE, lane.shared.name_header.clone());
}

fn put_about(headers: &mut HeaderMap, live: &Live, cost: &Cost) {
    headers.insert(HOLM_VERSION, live.label.clone());
    let timing = format!(
        "queue;dur={}, restore;dur={}, run;dur={}",
        Millis(cost.queue_ns),
        Millis(cost.restore_ns),
        Millis(cost.run_ns)
    );
    if let Ok(timing) = HeaderValue::from_str(&timing) {
        headers.append(SERVER_TIMING, timing);
    }
}

/// Nanoseconds, shown as milliseconds with three decimals.
struct Millis(u64);

impl std::fmt::Display for Millis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1_000_000, self.0 / 1000 % 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_milliseconds_to_the_microsecond() {
        assert_eq!(Millis(0).to_string(), "0.000");
        assert_eq!(Millis(1_234_567).to_string(), "1.234");
        assert_eq!(Millis(61_000_999).to_string(), "61.000");
    }
}
