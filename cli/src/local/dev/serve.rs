//! The HTTP server of `holm dev`: requests go through the production VMM under the manifest's limits.
//!
//! A request waits for one of a few slots, runs on a blocking thread, and the slot is reset after the
//! response has been handed over. A function that crashes or times out is answered for with 502 or
//! 504 and the whole report as text, since the one who reads it is its author.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use holm_model::manifest::{Isolation, Manifest};
use holm_node::outbound::Allowed;
use holm_vmm::{Failure, Hypervisor, Limits, Request, Response, Slot, Snapshot};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, RETRY_AFTER, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use hyper::{Method, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::events::Events;
use crate::local::machine;

/// Machines kept at a time.
const MAX_SLOTS: usize = 8;
/// Requests that may wait for one.
const MAX_WAITING: usize = 256;
/// How often a run looks whether its caller is still there.
const QUANTUM: Duration = Duration::from_millis(20);
/// A connection may take this long to say what it wants.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// A version of the function, ready to be served.
#[derive(Debug)]
pub(super) struct Version {
    /// What every request begins from.
    pub(super) snapshot: Arc<Snapshot>,
    /// Where it may connect to.
    pub(super) allowed: Allowed,
    /// Its limits.
    pub(super) manifest: Manifest,
}

/// Serves the latest version.
#[derive(Debug)]
pub(super) struct Server {
    hypervisor: Hypervisor,
    current: Mutex<Option<Arc<Version>>>,
    slots: Mutex<VecDeque<Slot>>,
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    events: Events,
}

type Answer = hyper::Response<Full<Bytes>>;

/// What a run came to, for the caller.
struct Outcome {
    result: Result<Response, Failure>,
    ran: Duration,
}

impl Server {
    pub(super) fn new(hypervisor: Hypervisor, events: Events) -> Server {
        Server {
            hypervisor,
            current: Mutex::new(None),
            slots: Mutex::new(VecDeque::new()),
            permits: Arc::new(Semaphore::new(MAX_SLOTS)),
            waiting: AtomicUsize::new(0),
            events,
        }
    }

    /// From now on requests go to `version`; those that run finish on theirs.
    pub(super) fn switch_to(&self, version: Version) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(version));
    }

    fn current(&self) -> Option<Arc<Version>> {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Answers one request, whatever happens to it.
    pub(super) async fn answer(
        self: Arc<Server>,
        request: hyper::Request<Incoming>,
    ) -> Result<Answer, Infallible> {
        let begun = Instant::now();
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let answer = Arc::clone(&self).serve(request, begun).await;
        self.events
            .request(&method, &path, answer.status().as_u16(), begun.elapsed());
        Ok(answer)
    }

    async fn serve(self: Arc<Server>, request: hyper::Request<Incoming>, begun: Instant) -> Answer {
        let Some(version) = self.current() else {
            let text = "the function is not built yet; see where `holm dev` runs\n";
            return retry(plain(StatusCode::SERVICE_UNAVAILABLE, text));
        };
        let limits = &version.manifest.limits;
        let deadline = begun + Duration::from_millis(limits.deadline_ms);
        let (head, body) = request.into_parts();
        let most = usize::try_from(limits.request_body_bytes).unwrap_or(usize::MAX);
        let body = match Limited::new(body, most).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                let text = format!("the request body is larger than the {most} bytes allowed\n");
                return plain(StatusCode::PAYLOAD_TOO_LARGE, text);
            }
            Err(error) => {
                return plain(
                    StatusCode::BAD_REQUEST,
                    format!("the body was cut short: {error}\n"),
                );
            }
        };
        let Some(permit) = self.admit(deadline).await else {
            let text = "every machine is busy; the function is too slow for this many requests\n";
            return retry(plain(StatusCode::SERVICE_UNAVAILABLE, text));
        };
        let is_head = head.method == Method::HEAD;
        // Gone when the caller goes away and hyper drops this future.
        let caller = CallerGone::default();
        let gone = Arc::clone(&caller.0);
        let (answered, answer) = oneshot::channel();
        let server = Arc::clone(&self);
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            server.invoke(&version, &head, &body, deadline, &gone, answered);
        });
        let outcome = answer.await;
        drop(caller);
        match outcome {
            Ok(outcome) => response(outcome, is_head),
            Err(_) => plain(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the request was not finished\n",
            ),
        }
    }

    /// Waits for room, within the deadline and a bounded queue.
    async fn admit(&self, deadline: Instant) -> Option<OwnedSemaphorePermit> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let _waiting = Waiting(&self.waiting);
        let permit = Arc::clone(&self.permits).acquire_owned();
        tokio::time::timeout_at(deadline.into(), permit)
            .await
            .ok()?
            .ok()
    }

    /// Runs one request to its end and gives the slot back, on a thread that may block.
    fn invoke(
        &self,
        version: &Version,
        head: &hyper::http::request::Parts,
        body: &[u8],
        deadline: Instant,
        gone: &AtomicBool,
        answered: oneshot::Sender<Outcome>,
    ) {
        let mut slot = match self.slot(&version.snapshot) {
            Ok(slot) => slot,
            Err(error) => {
                let result = Err(Failure::Host(error));
                // The caller may have gone; there is nobody else to tell.
                let _ = answered.send(Outcome {
                    result,
                    ran: Duration::ZERO,
                });
                return;
            }
        };
        let begun = Instant::now();
        let limits = Limits {
            deadline,
            cpu: Duration::from_millis(version.manifest.limits.cpu_ms),
            response_body_bytes: version.manifest.limits.response_body_bytes,
            streams: false,
        };
        let target = head
            .uri
            .path_and_query()
            .map_or("/", |target| target.as_str());
        let length = body.len().to_string();
        let headers = request_headers(head, body.is_empty(), &length);
        let request = Request {
            method: head.method.as_str(),
            target,
            headers: &headers,
            body,
        };
        if !slot.has_outbound() {
            slot.set_outbound(version.allowed.outbound());
        }
        let result = match slot.begin(&request, limits) {
            Ok(_) => {
                let go_on = || !gone.load(Ordering::Relaxed);
                machine::finish(&mut slot, deadline, QUANTUM, go_on)
            }
            Err(error) => Some(Err(Failure::Host(error))),
        };
        let ran = begun.elapsed();
        let good = matches!(result, Some(Ok(_)));
        let text = match &result {
            Some(Err(failure)) => Some(failure.to_string()),
            _ => None,
        };
        if let Some(result) = result {
            let _ = answered.send(Outcome { result, ran });
        }
        self.events.log(&slot.take_log());
        if let Some(text) = text {
            self.events.failed(&text);
        }
        if good && self.renew(&mut slot, version, deadline) {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            if slots.len() < MAX_SLOTS {
                slots.push_back(slot);
            }
        }
    }

    /// A slot that is ready for a request to the version with `snapshot`, preferably one that
    /// holds it already.
    fn slot(&self, snapshot: &Arc<Snapshot>) -> Result<Slot, holm_vmm::VmmError> {
        let held = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            let fits = |slot: &Slot| slot.holds().is_some_and(|held| Arc::ptr_eq(held, snapshot));
            match slots.iter().position(fits) {
                Some(index) => return slots.remove(index).map_or_else(|| self.fresh(snapshot), Ok),
                None => slots.pop_front(),
            }
        };
        match held {
            Some(mut slot) => slot.load(snapshot).map(|()| slot),
            None => self.fresh(snapshot),
        }
    }

    fn fresh(&self, snapshot: &Arc<Snapshot>) -> Result<Slot, holm_vmm::VmmError> {
        let mut slot = Slot::new(&self.hypervisor)?;
        slot.load(snapshot)?;
        Ok(slot)
    }

    /// Makes the slot able to take the next request; `false` if it has to go.
    fn renew(&self, slot: &mut Slot, version: &Version, deadline: Instant) -> bool {
        match version.manifest.scale.isolation {
            Isolation::Request => slot.reset().is_ok(),
            Isolation::Instance => match slot.again(deadline) {
                Ok(()) => true,
                Err(failure) => {
                    self.events.log(&slot.take_log());
                    self.events
                        .failed(&format!("after it had answered: {failure}"));
                    false
                }
            },
        }
    }
}

/// Says that the caller has gone when it is dropped.
#[derive(Default)]
struct CallerGone(Arc<AtomicBool>);

impl Drop for CallerGone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Headers that are about one connection and not passed on (RFC 9110, 7.6.1).
fn is_hop_by_hop(name: &HeaderName) -> bool {
    [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE].contains(name)
        || ["keep-alive", "proxy-connection"].contains(&name.as_str())
}

/// The headers that the guest sees. The body has been read whole, so its length is known.
fn request_headers<'a>(
    head: &'a hyper::http::request::Parts,
    empty: bool,
    length: &'a str,
) -> Vec<(&'a [u8], &'a [u8])> {
    let mut headers: Vec<(&[u8], &[u8])> = head
        .headers
        .iter()
        .filter(|(name, _)| !is_hop_by_hop(name) && **name != CONTENT_LENGTH)
        .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
        .collect();
    if !empty || head.headers.contains_key(CONTENT_LENGTH) {
        headers.push((b"content-length", length.as_bytes()));
    }
    // HTTP/2 has the host in the target.
    if !head.headers.contains_key(HOST)
        && let Some(authority) = head.uri.authority()
    {
        headers.push((b"host", authority.as_str().as_bytes()));
    }
    headers
}

fn response(outcome: Outcome, is_head: bool) -> Answer {
    let response = match outcome.result {
        Ok(response) => response,
        Err(failure) => {
            let status = match failure {
                Failure::Deadline(_) | Failure::CpuLimit(_) => StatusCode::GATEWAY_TIMEOUT,
                Failure::Crash(_) | Failure::BadResponse(_) => StatusCode::BAD_GATEWAY,
                Failure::Host(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            return plain(status, format!("the function did not answer: {failure}\n"));
        }
    };
    let mut answer = hyper::Response::new(Full::new(Bytes::from(response.body)));
    let Ok(status) = StatusCode::from_u16(response.status) else {
        return plain(
            StatusCode::BAD_GATEWAY,
            "the function's status is not one of HTTP's\n",
        );
    };
    *answer.status_mut() = status;
    for (name, value) in response.headers {
        let name = HeaderName::from_bytes(name.as_bytes());
        let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(&value)) else {
            continue;
        };
        // The length of the body at hand is the right one, except for HEAD, which has none.
        if !is_hop_by_hop(&name) && (is_head || name != CONTENT_LENGTH) {
            answer.headers_mut().append(name, value);
        }
    }
    let timing = format!(
        "run;dur={}.{:03}",
        outcome.ran.as_millis(),
        outcome.ran.as_micros() % 1000
    );
    if let Ok(timing) = HeaderValue::from_str(&timing) {
        answer.headers_mut().append("server-timing", timing);
    }
    answer
}

fn plain(status: StatusCode, text: impl Into<String>) -> Answer {
    let mut answer = hyper::Response::new(Full::new(Bytes::from(text.into())));
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    answer
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, kind);
    answer
}

fn retry(mut answer: Answer) -> Answer {
    answer
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}
