//! The life of a request. Read this first.
//!
//! ```text
//!  ingress      a thread accepts the connection and owns it from then on
//!     │ match   by path or host name ([route]); unknown: 404, not ready: 503
//!     │ read    the body, or the start of a long one ([body])
//!  admission    a permit of the version and a slot of the thread's pool, or a bounded wait for them;
//!     │         over the bound: 503, deadline reached: 504
//!  pool         the slot holds the snapshot already, or gets it now
//!     │
//!  invoke       this thread runs the vCPU for a first quantum; what takes longer goes on with a
//!     │         worker while this thread serves others
//!  job          the end: one usage record, which outlives the process before the answer leaves, and the
//!     │         answer is handed to the connection; one that goes on for longer has begun before
//!     │         ([parts]), and is completed now
//!  retire       then the slot is reset (or kept, or given up) and goes back to the pool
//! ```
//! From admission on, the request is a task of its own. The connection only waits for its answer, and
//! when the caller goes away, that is how the task learns of it. So whatever happens to a connection,
//! the slot comes back and the record is written.

mod admission;
pub(crate) mod answers;
pub(crate) mod body;
pub(crate) mod handover;
mod head;
mod invoke;
pub(crate) mod job;
pub(crate) mod parts;
mod problem;
mod retire;
pub(crate) mod route;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use holm_model::ids::RequestId;
use holm_model::usage::Outcome;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, Version};
use tokio::sync::oneshot;

use crate::deploy::routes::{Found, Live};
use crate::lane::Lane;
use crate::limits::SEAT_PATIENCE;
use crate::pool::Way;
use admission::{Refusal, admit, reserve};
use job::{Ending, Job};
use parts::Outgoing;
use problem::Problem;
use route::Target;

/// What goes back to a caller.
pub(crate) type Answer = Response<Outgoing>;

const HOLM_NODE: HeaderName = HeaderName::from_static("x-holm-node");

/// A request that a function is to answer, with its body as one thread has it, or as it goes to another.
#[derive(Debug)]
pub(crate) struct Call<B = body::Held> {
    id: RequestId,
    accepted: Instant,
    accepted_ms: u64,
    method: Method,
    /// Path and query as the function sees them.
    target: String,
    head: Parts,
    /// The body, as far as it was there at the start.
    body: B,
    /// What is to come of it.
    rest: Option<body::Rest>,
    /// Bytes of it, when all has come.
    body_bytes: u64,
}

impl<B> Call<B> {
    /// The same with another form of the body.
    fn with<C>(self, form: impl FnOnce(B) -> C) -> Call<C> {
        Call {
            id: self.id,
            accepted: self.accepted,
            accepted_ms: self.accepted_ms,
            method: self.method,
            target: self.target,
            head: self.head,
            body: form(self.body),
            rest: self.rest,
            body_bytes: self.body_bytes,
        }
    }
}

impl Call {
    /// All of the body has come.
    fn end_body(&mut self) {
        self.body_bytes = self.received_bytes();
        self.rest = None;
    }

    /// Bytes of the body that have come.
    fn received_bytes(&self) -> u64 {
        self.rest.as_ref().map_or(self.body_bytes, |rest| rest.come)
    }
}

/// Serves one request of a connection that `lane` owns.
pub(crate) async fn serve(lane: Rc<Lane>, peer: SocketAddr, request: Request<Incoming>) -> Answer {
    let id = lane.next_id();
    // What is refused may not have been read, and then there is no next request on the connection. In
    // HTTP/2 the end of a stream says so.
    let http1 = request.version() <= Version::HTTP_11;
    let last = http1 && !request.body().is_end_stream();
    let taken = tokio::select! {
        biased;
        taken = take(&lane, peer, id, request) => taken,
        () = lane.ended() => Err(Problem::Stopped),
    };
    match taken {
        Ok(answer) => answer,
        Err(problem) => {
            let mut answer = refuse(&lane, id, &problem);
            if last || http1 && lane.is_stopping() {
                let close = HeaderValue::from_static("close");
                answer.headers_mut().insert(CONNECTION, close);
            }
            answer
        }
    }
}

async fn take(
    lane: &Rc<Lane>,
    peer: SocketAddr,
    id: RequestId,
    request: Request<Incoming>,
) -> Result<Answer, Problem> {
    // Before its body comes, which may take long.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let accepted_ms = now.map_or(0, |since| since.as_millis() as u64);
    let (mut head, body) = request.into_parts();
    if head.method == Method::CONNECT {
        return Err(Problem::BadMethod);
    }
    // A proxy before the node may have gone by the other one (RFC 9112, section 3.2).
    if head.headers.get_all(HOST).iter().nth(1).is_some() {
        return Err(Problem::BadHost);
    }
    let path_and_query = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let host = match head.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => head.headers.get(HOST).and_then(|host| host.to_str().ok()),
    };
    let (table, target);
    let (live, rest) = match route::target(path_and_query, host, lane.shared.domain.as_deref()) {
        Target::Health => return Ok(crate::health::answer(&lane.shared)),
        Target::Metrics => return Ok(crate::metrics::answer(&lane.shared, &lane.table())),
        Target::Nowhere => return Err(Problem::UnknownFunction),
        Target::Function {
            tenant,
            function,
            rest,
        } => {
            table = lane.table();
            let draining = table.draining();
            if draining.drained || lane.is_stopping() {
                let there = |url: &String| {
                    format!("{}/{tenant}/{function}{rest}", url.trim_end_matches('/'))
                };
                return Err(Problem::Draining(draining.others.first().map(there)));
            }
            target = table.find(tenant, function);
            match target {
                Found::Live(live) => (live.clone(), rest),
                Found::NotReady => return Err(Problem::NotReady),
                Found::Unknown => return Err(Problem::UnknownFunction),
            }
        }
    };
    if head::is_websocket(&head.headers) {
        return Err(Problem::NoWebSocket);
    }
    let body = body::gather(body, live.limits.request_body_bytes, &lane.bodies).await;
    let (body, more) = body
        .map_err(|problem| problem.unwrap_or_else(|| Problem::Overloaded(live.function.clone())))?;
    let length = match &more {
        None => Some(body.bytes.len() as u64),
        Some(more) => more.length,
    };
    head::inward(&mut head, peer.ip(), id, length);
    if !head::fits(&rest, &head.headers) {
        return Err(Problem::HeadTooLarge);
    }

    let call = Call {
        id,
        accepted: Instant::now(),
        accepted_ms,
        method: head.method.clone(),
        target: rest,
        head,
        body_bytes: body.bytes.len() as u64,
        body,
        rest: more,
    };
    let (reply, answer) = oneshot::channel();
    carry(lane, live, call, reply);
    // Without an answer the task is gone, and with it the thread's runtime: the node is stopping.
    answer.await.map_err(|_| Problem::Node)
}

/// Has the request carried through, here or where its version is at home. The answer goes to `reply`, which closes
/// when the caller goes away.
fn carry(lane: &Rc<Lane>, live: Arc<Live>, call: Call, reply: oneshot::Sender<Answer>) {
    match lane.pool.home(&live) {
        // The answer is held by this thread; one that has no room for more turns the request away itself.
        Some(home) if lane.answers.has_room() => {
            handover::hand_over(lane, live, call, home, reply);
        }
        _ => carry_here(lane, live, call, reply),
    }
}

/// A task of its own has the job from its beginning, so that there is a record even if it is never polled.
fn carry_here(lane: &Rc<Lane>, live: Arc<Live>, call: Call, reply: oneshot::Sender<Answer>) {
    if !lane.meter.borrow_mut().has_room() {
        // It does not run, so it needs no record, for which there may be no room either.
        live.counts.add(Outcome::Shed, 0, false);
        // If the caller has gone, there is nobody to tell.
        let _ = reply.send(refuse(lane, call.id, &Problem::Unmetered));
        return;
    }
    let job = Job::new(lane, &live, call, reply);
    tokio::task::spawn_local(enter(lane.clone(), live, job));
}

/// Finds a way in for a request, and carries it through.
async fn enter(lane: Rc<Lane>, live: Arc<Live>, mut job: Job) {
    if let Err(refusal) = reserve(&lane, &live, &mut job).await {
        return job.end(Ending::TurnedAway(refusal));
    }
    loop {
        let (permit, way) = match admit(&lane, &live, &mut job).await {
            Ok(admitted) => admitted,
            Err(refusal) => return job.end(Ending::TurnedAway(refusal)),
        };
        job.admitted(permit);
        let seat = match way {
            Way::Slot(lease) => return invoke::invoke(lane, live, lease, job).await,
            Way::Join(seat) => seat,
        };
        // Its guest may have gone on to something long.
        let until = job.deadline.min(Instant::now() + SEAT_PATIENCE);
        let joined = seat.join(job);
        let left = std::future::poll_fn(|cx| joined.poll_left(cx, Job::poll_gone));
        let refusal = match tokio::time::timeout_at(until.into(), left).await {
            Ok(false) => return,
            Ok(true) => Some(Refusal::Gone),
            Err(_) => None,
        };
        let Some(back) = joined.withdraw() else {
            return;
        };
        job = back;
        job.leave();
        match refusal {
            Some(refusal) => return job.end(Ending::TurnedAway(refusal)),
            None if Instant::now() >= job.deadline => {
                return job.end(Ending::TurnedAway(Refusal::Waited));
            }
            None => {}
        }
    }
}

/// A request that a function does not answer.
fn refuse(lane: &Lane, id: RequestId, problem: &Problem) -> Answer {
    let mut answer = problem.response(&lane.shared.name);
    sign(answer.headers_mut(), lane, id);
    answer
}

/// Says in an answer's head which request and which node it is from.
fn sign(headers: &mut HeaderMap, lane: &Lane, id: RequestId) {
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(head::REQUEST_ID, id);
    }
    headers.insert(HOLM_NODE, lane.shared.name_header.clone());
}
