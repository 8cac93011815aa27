//! A request that a version is to answer, from its admission to its end: what it costs, what its caller has
//! been sent, and the one usage record that it leaves.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use holm_model::usage::{Outcome, UsageRecord};
use holm_vmm::{Failure, RunStats};
use hyper::body::Bytes;
use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Version};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::admission::Refusal;
use super::parts::{Outgoing, Writer, parts};
use super::problem::Problem;
use super::{Answer, Call, head, refuse, sign};
use crate::budget::gauge::Ticket;
use crate::deploy::prepare::{self, nanos};
use crate::deploy::routes::Live;
use crate::lane::Lane;
use crate::meter::SpillError;
use crate::outbound::egress::Share;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const HOLM_VERSION: HeaderName = HeaderName::from_static("x-holm-version");

/// What stands for the status of an answer in records and logs where the caller went away before there was one. HTTP has
/// no such status; nginx began it, and what reads logs knows it.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// How it ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// With this answer, or the rest of one that has begun.
    Answered(holm_vmm::Response),
    /// The function failed, or the machine under it. Others may have been in the instance.
    Failed(Rc<Failure>),
    /// The caller went away, or did not take its answer in time.
    Gone,
    /// There was no way in.
    TurnedAway(Refusal),
    /// It cannot be answered, through no fault of the function's.
    Refused(Problem),
    /// The node failed; says how.
    Node(String),
    /// The node stopped before it was over.
    Stopped,
}

/// What it took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) queue_ns: u64,
    pub(crate) restore_ns: u64,
    pub(crate) run_ns: u64,
    pub(crate) cold: bool,
    pub(crate) taken: RunStats,
}

/// What the caller has so far.
#[derive(Debug)]
enum Reply {
    /// Nothing. Closed when it goes away.
    Owed(oneshot::Sender<Answer>),
    /// The head, and parts of the body.
    Begun(Writer),
    /// All, or nothing that makes sense.
    Over,
}

/// A request under way. Ends by [`Job::end`].
#[derive(Debug)]
pub(crate) struct Job {
    lane: Rc<Lane>,
    live: Arc<Live>,
    pub(crate) call: Call,
    pub(crate) deadline: Instant,
    pub(crate) cost: Cost,
    reply: Reply,
    /// Of an answer that has begun.
    status: u16,
    sent_bytes: u64,
    /// Since when it runs.
    began: Option<Instant>,
    permit: Option<OwnedSemaphorePermit>,
    /// What is reserved of budgets.
    ticket: Option<Ticket>,
    /// What it may send over connections of its own, if that is bounded.
    share: Option<Share>,
    ended: bool,
}

/// One whose task ends before it does, which is so with what is still under way when a stopping node's time is
/// over, is on record all the same.
impl Drop for Job {
    fn drop(&mut self) {
        if !self.ended {
            self.finish(Ending::Stopped);
        }
    }
}

impl Job {
    pub(crate) fn new(
        lane: &Rc<Lane>,
        live: &Arc<Live>,
        call: Call,
        reply: oneshot::Sender<Answer>,
    ) -> Self {
        Job {
            lane: lane.clone(),
            live: live.clone(),
            deadline: call.accepted + live.deadline(),
            call,
            cost: Cost::default(),
            reply: Reply::Owed(reply),
            status: 0,
            sent_bytes: 0,
            began: None,
            permit: None,
            ticket: None,
            share: None,
            ended: false,
        }
    }

    /// Has reserved what it can cost.
    pub(crate) fn has_reserved(&self) -> bool {
        self.ticket.is_some()
    }

    pub(crate) fn reserved(&mut self, ticket: Ticket) {
        self.ticket = Some(ticket);
    }

    /// Has a way in.
    pub(crate) fn admitted(&mut self, permit: OwnedSemaphorePermit) {
        self.permit = Some(permit);
    }

    /// Its way in has come to nothing.
    pub(crate) fn leave(&mut self) {
        self.permit = None;
    }

    /// The function gets it now.
    pub(crate) fn begin(&mut self) {
        self.began = Some(Instant::now());
        let allowed = &self.live.allowed;
        if !allowed.is_empty() {
            match self.ticket {
                Some(_) => self.share = Some(allowed.egress().share()),
                None => allowed.egress().open(),
            }
        }
        let waited = nanos(self.call.accepted.elapsed());
        self.cost.queue_ns = waited.saturating_sub(self.cost.restore_ns);
    }

    /// Waits until the caller goes away.
    pub(crate) async fn gone(&mut self) {
        std::future::poll_fn(|cx| self.poll_gone(cx)).await;
    }

    /// Ready when the caller has gone away.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.reply {
            Reply::Owed(reply) => reply.poll_closed(cx),
            Reply::Begun(writer) => writer.poll_gone(cx),
            Reply::Over => Poll::Ready(()),
        }
    }

    /// Whether the caller has so much to take that the function had better wait.
    pub(crate) fn is_full(&self) -> bool {
        matches!(&self.reply, Reply::Begun(writer) if writer.is_full())
    }

    /// Sends the caller a part of the answer, of which more is to come. The error says why it cannot be.
    pub(crate) fn pass_on(&mut self, mut part: holm_vmm::Response) -> Result<(), String> {
        self.leave_out_body(&mut part);
        self.sent_bytes += part.body.len() as u64;
        if part.continues {
            if let Reply::Begun(writer) = &self.reply {
                writer.add(part.body.into());
            }
            return Ok(());
        }
        let (mut answer, body) = head::begun(part)?;
        self.status = answer.status().as_u16();
        self.describe(answer.headers_mut());
        let (writer, reader) = parts(&self.lane.answers);
        writer.add(body);
        if let Reply::Owed(reply) = std::mem::replace(&mut self.reply, Reply::Begun(writer)) {
            // If the caller has just gone, the writer will know.
            let _ = reply.send(answer.map(|()| Outgoing::Parts(reader)));
        }
        Ok(())
    }

    /// Puts it on record and answers, or completes or cuts the answer that has begun.
    pub(crate) fn end(mut self, ending: Ending) {
        let is_owed = matches!(self.reply, Reply::Owed(_));
        self.finish(match ending {
            // Its caller was told so, and has not gone before.
            Ending::Gone | Ending::TurnedAway(Refusal::Gone)
                if is_owed && self.lane.shared.is_over() =>
            {
                Ending::Stopped
            }
            ending => ending,
        });
    }

    fn finish(&mut self, ending: Ending) {
        self.ended = true;
        match self.began {
            Some(began) => self.cost.run_ns = run_ns(began, Instant::now(), self.deadline),
            None => self.cost.queue_ns = nanos(self.call.accepted.elapsed()),
        }
        let (outcome, answer) = match (ending, &self.reply) {
            (Ending::Answered(rest), Reply::Begun(_)) => self.completed(rest),
            (ending, _) => self.concluded(ending),
        };
        // What the node says in the function's place is not the tenant's.
        let whole_bytes = match &answer {
            Some(Ok(answer)) => answer.body().whole_bytes(),
            Some(Err(_)) | None => 0,
        };
        let answer = answer.map(|answer| match answer {
            Ok(mut answer) => {
                self.describe(answer.headers_mut());
                answer
            }
            Err(problem) => {
                let mut answer = refuse(&self.lane, self.call.id, &problem);
                self.describe(answer.headers_mut());
                // What is left of the body will not be read, so there is no next request.
                if self.call.rest.is_some() && self.call.head.version <= Version::HTTP_11 {
                    let close = HeaderValue::from_static("close");
                    answer.headers_mut().insert(CONNECTION, close);
                }
                answer
            }
        });
        let status = answer.as_ref().map(|answer| answer.status().as_u16());
        let recorded = self.record(outcome, status, whole_bytes);
        // An execution that is not on record must not be answered as if it were.
        let unmetered = recorded.is_err() && self.began.is_some();
        if let (true, Err(error)) = (unmetered, recorded) {
            tracing::error!(request = %self.call.id, %error, "the request cannot be metered");
        }
        match (std::mem::replace(&mut self.reply, Reply::Over), answer) {
            (Reply::Owed(reply), Some(answer)) => {
                // If the caller has just gone, there is nobody to tell.
                let _ = reply.send(match unmetered {
                    true => refuse(&self.lane, self.call.id, &Problem::Node),
                    false => answer,
                });
            }
            // Complete, or else cut by being dropped.
            (Reply::Begun(writer), None)
                if !unmetered && matches!(outcome, Outcome::Answered | Outcome::FunctionError) =>
            {
                writer.end();
            }
            _ => {}
        }
    }

    /// The rest of an answer that has begun.
    fn completed(
        &mut self,
        mut rest: holm_vmm::Response,
    ) -> (Outcome, Option<Result<Answer, Problem>>) {
        let outcome = match self.status {
            500.. => Outcome::FunctionError,
            _ => Outcome::Answered,
        };
        self.leave_out_body(&mut rest);
        self.sent_bytes += rest.body.len() as u64;
        if let Reply::Begun(writer) = &self.reply {
            writer.add(Bytes::from(rest.body));
        }
        (outcome, None)
    }

    /// Whatever a function answers to HEAD, it has no body.
    fn leave_out_body(&self, part: &mut holm_vmm::Response) {
        if self.call.method == Method::HEAD {
            part.body.clear();
        }
    }

    fn concluded(&mut self, ending: Ending) -> (Outcome, Option<Result<Answer, Problem>>) {
        let live = &self.live;
        let name = || live.function.clone();
        let (function, version, request) = (&live.function, live.version.short(), self.call.id);
        match ending {
            Ending::Answered(response) => match head::outward(response, &self.call.method) {
                Ok(answer) => {
                    let outcome = match answer.status().is_server_error() {
                        true => Outcome::FunctionError,
                        false => Outcome::Answered,
                    };
                    (outcome, Some(Ok(answer.map(Outgoing::from))))
                }
                Err(why) => {
                    tracing::warn!(%function, version, %request, why, "the function's answer is not HTTP");
                    self.lane.shared.logs.add(live, request, true, &why);
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
                        self.lane.shared.logs.add(live, request, true, &report);
                    }
                }
                let problem = match &*failure {
                    Failure::Crash(_) => Problem::Crashed(name()),
                    Failure::Deadline(_) => Problem::TimedOut(name(), "deadline"),
                    Failure::CpuLimit(_) => Problem::TimedOut(name(), "CPU limit"),
                    Failure::BadResponse(why) => Problem::BadAnswer(name(), why.clone()),
                    Failure::Host(_) => Problem::Node,
                };
                (outcome, Some(Err(problem)))
            }
            Ending::Gone => {
                tracing::info!(%function, version, %request, status = CLIENT_CLOSED_REQUEST, "the caller went away before it had its answer");
                (Outcome::Cancelled, None)
            }
            Ending::TurnedAway(refusal) => match refusal {
                Refusal::Full => (Outcome::Shed, Some(Err(Problem::Overloaded(name())))),
                // It never ran, so its version is not to blame: shed, not timed out.
                Refusal::Waited => (Outcome::Shed, Some(Err(Problem::QueuedTooLong(name())))),
                Refusal::Gone => {
                    tracing::info!(%function, version, %request, status = CLIENT_CLOSED_REQUEST, "the caller went away before its request was run");
                    (Outcome::Cancelled, None)
                }
                Refusal::Spent(seconds) => (
                    Outcome::Shed,
                    Some(Err(Problem::BudgetSpent(name(), seconds))),
                ),
                Refusal::Stopping => (Outcome::Shed, Some(Err(Problem::NotReady))),
            },
            Ending::Refused(problem) => match self.began {
                Some(_) => (Outcome::Cancelled, Some(Err(problem))),
                None => (Outcome::Shed, Some(Err(problem))),
            },
            Ending::Node(why) => {
                tracing::error!(%function, version, %request, why, "the node failed a request");
                (Outcome::PlatformFault, Some(Err(Problem::Node)))
            }
            Ending::Stopped => {
                tracing::error!(%function, version, %request, "the node stopped before a request was over");
                (Outcome::PlatformFault, Some(Err(Problem::Stopped)))
            }
        }
    }

    /// `status` and `whole_bytes` are those of an answer that is sent as a whole.
    fn record(
        &mut self,
        outcome: Outcome,
        status: Option<u16>,
        whole_bytes: u64,
    ) -> Result<(), SpillError> {
        let (live, cost) = (&self.live, &self.cost);
        let status = match status {
            Some(status) => status,
            // Nothing was sent to a caller that had gone.
            None if self.status == 0 && outcome == Outcome::Cancelled => CLIENT_CLOSED_REQUEST,
            None => self.status,
        };
        live.counts.add(outcome, cost.run_ns, !cost.cold);
        let record = UsageRecord {
            boot_epoch: 0,
            sequence: 0,
            request: self.call.id,
            function: live.function.clone(),
            version: live.version,
            accepted_ms: self.call.accepted_ms,
            outcome,
            status,
            queue_ns: cost.queue_ns,
            restore_ns: cost.restore_ns,
            run_ns: cost.run_ns,
            cpu_ns: nanos(cost.taken.cpu),
            memory_bytes: live.limits.memory_bytes,
            request_bytes: self.call.received_bytes(),
            response_bytes: self.sent_bytes + whole_bytes,
            egress_bytes: cost.taken.egress_bytes,
            ingress_bytes: cost.taken.ingress_bytes,
            cold: cost.cold,
            exits: cost.taken.exits,
            probe: false,
        };
        if let Some(share) = self.share.take() {
            share.end(record.egress_bytes);
        }
        let ticket = self.ticket.take();
        self.lane.meter.borrow_mut().record(record, ticket)
    }

    /// Says in an answer's head where it comes from, and what it took so far.
    fn describe(&self, headers: &mut HeaderMap) {
        headers.insert(HOLM_VERSION, self.live.label.clone());
        let cost = &self.cost;
        let mut timing = format!(
            "queue;dur={}, restore;dur={}",
            Millis(cost.queue_ns),
            Millis(cost.restore_ns),
        );
        // An answer that begins before the end cannot say when that was.
        if self.status == 0 {
            timing += &format!(", run;dur={}", Millis(cost.run_ns));
        }
        if let Ok(timing) = HeaderValue::from_str(&timing) {
            headers.append(SERVER_TIMING, timing);
        }
        sign(headers, &self.lane, self.call.id);
    }
}

/// How long a function that began ran, of which 0 says that it never did. A thread or a machine that stood still may see
/// the end long after the deadline; what is beyond that was not the function's.
fn run_ns(began: Instant, ended: Instant, deadline: Instant) -> u64 {
    let ran = ended.min(deadline).saturating_duration_since(began);
    nanos(ran).max(1)
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
    fn run_time_ends_with_the_deadline_and_is_never_nothing() {
        use std::time::Duration;
        let began = Instant::now();
        let after = |millis| began + Duration::from_millis(millis);
        assert_eq!(run_ns(began, after(3), after(10)), 3_000_000);
        assert_eq!(run_ns(began, after(86_400_000), after(10)), 10_000_000);
        assert_eq!(run_ns(began, began, after(10)), 1);
        // It began at its deadline.
        assert_eq!(run_ns(after(11), after(12), after(10)), 1);
    }

    #[test]
    fn times_are_milliseconds_to_the_microsecond() {
        assert_eq!(Millis(0).to_string(), "0.000");
        assert_eq!(Millis(1_234_567).to_string(), "1.234");
        assert_eq!(Millis(61_000_999).to_string(), "61.000");
    }
}
