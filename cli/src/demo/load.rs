//! The demonstration's callers: at several places at once, each with kept connections to the nodes
//! of its route, each response checked for status, body and version.
//!
//! A request counts as sent once, however many nodes it had to be offered to, and as answered only
//! if the answer is the right one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use holm_model::ids::{FunctionName, Name, RequestId};
use holm_model::place::Coordinates;

use crate::exit::Failure;
use crate::remote::client::Client;
use crate::remote::edge::{Attempt, Call, Nearest, Turn};
use crate::remote::invoke::ask_route;

/// A caller asks for its route again this often.
const ROUTE_EVERY: Duration = Duration::from_millis(500);
/// Longest wait for one node's answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Failures kept in words.
const MAX_TOLD: usize = 5;

/// Where callers are.
#[derive(Clone, Debug)]
pub(crate) struct Location {
    /// For people.
    pub(crate) name: &'static str,
    /// On the map.
    pub(crate) from: Coordinates,
}

/// What the callers do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The functions they call in turn, each with the versions that may answer.
    pub(crate) functions: Vec<(FunctionName, Vec<String>)>,
    /// The paths they ask for in turn; all answer with the greeting.
    pub(crate) paths: Vec<String>,
    /// Connections at each place.
    pub(crate) callers_per_location: usize,
    /// Between two requests of a caller.
    pub(crate) pause: Duration,
    /// Requests in all; without it they go on until [`Load::finish`].
    pub(crate) count: Option<u64>,
}

/// A right answer.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The node's id of the request.
    pub(crate) request: RequestId,
    /// Index of the caller's place.
    pub(crate) location: usize,
    /// Which function answered.
    pub(crate) function: FunctionName,
    /// On which node.
    pub(crate) node: Name,
    /// Which version.
    pub(crate) version: String,
    /// As the caller measured it.
    pub(crate) took: Duration,
    /// When the answer was there.
    pub(crate) at: Instant,
    /// Whether a nearer node did not answer.
    pub(crate) failed_over: bool,
}

/// What callers saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Requests.
    pub(crate) sent: u64,
    /// Right answers.
    pub(crate) seen: Vec<Seen>,
    /// Requests that got no right answer.
    pub(crate) failed: u64,
    /// The first of them in words.
    pub(crate) told: Vec<String>,
    /// Ids of answers that were not right; executions all the same.
    pub(crate) wrong: Vec<RequestId>,
    /// Times a request was sent to a node and the connection was cut before the answer: each may be
    /// one execution that nobody saw the answer of.
    pub(crate) cut: u64,
}

impl Tally {
    /// Adds another tally.
    pub(crate) fn add(&mut self, other: Tally) {
        self.sent += other.sent;
        self.seen.extend(other.seen);
        self.failed += other.failed;
        self.told.extend(other.told);
        self.told.truncate(MAX_TOLD);
        self.wrong.extend(other.wrong);
        self.cut += other.cut;
    }

    /// Ids of every answer that arrived.
    pub(crate) fn answered(&self) -> Vec<RequestId> {
        self.seen
            .iter()
            .map(|seen| seen.request)
            .chain(self.wrong.iter().copied())
            .collect()
    }

    fn fail(&mut self, what: String) {
        self.failed += 1;
        if self.told.len() < MAX_TOLD {
            self.told.push(what);
        }
    }
}

/// Callers at work.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    callers: JoinSet<Result<(), Failure>>,
}

#[derive(Debug)]
struct Shared {
    api: Client,
    plan: Plan,
    locations: Vec<Location>,
    stop: AtomicBool,
    tickets: AtomicU64,
    tally: Mutex<Tally>,
}

impl Load {
    /// Starts the callers.
    pub(crate) fn start(api: &Client, locations: &[Location], plan: Plan) -> Self {
        let shared = Arc::new(Shared {
            api: api.clone(),
            locations: locations.to_vec(),
            stop: AtomicBool::new(false),
            tickets: AtomicU64::new(0),
            tally: Mutex::default(),
            plan,
        });
        let mut callers = JoinSet::new();
        for location in 0..locations.len() {
            for _ in 0..shared.plan.callers_per_location {
                callers.spawn(caller(Arc::clone(&shared), location));
            }
        }
        Load { shared, callers }
    }

    /// Looks at what was seen so far.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&Tally) -> T) -> T {
        at(&self
            .shared
            .tally
            .lock()
            .unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until `good` says so, at most `time` or until no caller is left; whether it did.
    pub(crate) async fn until(&self, time: Duration, good: impl Fn(&Tally) -> bool) -> bool {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline && !self.is_over() {
            if self.look(&good) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.look(good)
    }

    /// Whether every caller has ended, by itself or because something went wrong.
    pub(crate) fn is_over(&self) -> bool {
        // Each holds on to what they share.
        Arc::strong_count(&self.shared) == 1
    }

    /// Tells the callers to end after their present request, and adds up. Callers with a fixed
    /// number of requests send them all.
    pub(crate) async fn finish(mut self) -> Result<Tally, Failure> {
        if self.shared.plan.count.is_none() {
            self.shared.stop.store(true, Ordering::Relaxed);
        }
        while let Some(ended) = self.callers.join_next().await {
            ended.map_err(|error| Failure::other(format!("a caller was lost: {error}")))??;
        }
        Ok(std::mem::take(
            &mut self
                .shared
                .tally
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

/// One caller: its lines are its own, as a browser's or a service's would be.
async fn caller(shared: Arc<Shared>, location: usize) -> Result<(), Failure> {
    let plan = &shared.plan;
    let mut routes: HashMap<FunctionName, (Nearest, Instant)> = HashMap::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let ticket = shared.tickets.fetch_add(1, Ordering::Relaxed);
        if plan.count.is_some_and(|count| ticket >= count) {
            break;
        }
        let turn = usize::try_from(ticket).unwrap_or_default();
        let called = &plan.functions[turn % plan.functions.len()];
        let function = &called.0;
        // Not in step with the functions, so that every function sees every path.
        let path = &plan.paths[(turn / plan.functions.len()) % plan.paths.len()];
        let stale = routes
            .get(function)
            .is_none_or(|(_, asked)| asked.elapsed() > ROUTE_EVERY);
        if stale {
            refresh(&shared, location, function, &mut routes).await?;
        }
        if let Some((nearest, _)) = routes.get_mut(function) {
            let call = Call::get(path, TIMEOUT);
            let outcome = nearest.call(&call).await;
            let mut tally = shared.tally.lock().unwrap_or_else(PoisonError::into_inner);
            judge(
                &mut tally,
                location,
                called,
                outcome.answer.as_ref(),
                &outcome.attempts,
            );
        }
        if !plan.pause.is_zero() {
            tokio::time::sleep(plan.pause).await;
        }
    }
    Ok(())
}

/// Asks for the route again and keeps the lines if it is still the same.
async fn refresh(
    shared: &Shared,
    location: usize,
    function: &FunctionName,
    routes: &mut HashMap<FunctionName, (Nearest, Instant)>,
) -> Result<(), Failure> {
    let from = Some(shared.locations[location].from);
    let route = ask_route(&shared.api, function, from, &[]).await?;
    let now = Instant::now();
    if let Some((nearest, asked)) = routes.get_mut(function)
        && nearest
            .candidates()
            .map(|c| &c.url)
            .eq(route.candidates.iter().map(|c| &c.url))
    {
        *asked = now;
        return Ok(());
    }
    routes.insert(
        function.clone(),
        (Nearest::new(route.candidates, shared.api.trust())?, now),
    );
    Ok(())
}

pub(crate) fn judge(
    tally: &mut Tally,
    location: usize,
    (function, versions): &(FunctionName, Vec<String>),
    answer: Option<&crate::remote::edge::Answer>,
    attempts: &[Attempt],
) {
    tally.sent += 1;
    tally.cut += attempts
        .iter()
        .filter(|attempt| attempt.outcome == Turn::Cut)
        .count() as u64;
    let (Some(answer), Some(last)) = (answer, attempts.last()) else {
        let turns: Vec<String> = attempts
            .iter()
            .map(|turn| format!("{}: {}", turn.node, turn.detail))
            .collect();
        return tally.fail(format!("no node answered ({})", turns.join("; ")));
    };
    let Some(request) = answer.request_id() else {
        return tally.fail(format!("{} answered without a request id", last.node));
    };
    let version = versions
        .iter()
        .find(|version| answer.status == 200 && answer.body == greeting(version).as_bytes());
    match version {
        Some(version) => tally.seen.push(Seen {
            request,
            location,
            function: function.clone(),
            node: last.node.clone(),
            version: version.clone(),
            took: answer.took,
            at: Instant::now(),
            failed_over: attempts.len() > 1,
        }),
        None => {
            tally.wrong.push(request);
            let body: String = String::from_utf8_lossy(&answer.body)
                .chars()
                .take(100)
                .collect();
            tally.fail(format!(
                "{} answered {} {:?}",
                last.node, answer.status, body
            ));
        }
    }
}

/// What the sample functions answer.
fn greeting(version: &str) -> String {
    format!("hello from {version}\n")
}

#[cfg(test)]
mod tests {
    use hyper::body::Bytes;
    use hyper::header::HeaderMap;

    use super::*;
    use crate::remote::edge::Answer;

    fn answer(status: u16, body: &'static str) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(
            "x-request-id",
            "00112233445566778899aabbccddeeff".parse().unwrap(),
        );
        Answer {
            status,
            headers,
            body: Bytes::from(body),
            took: Duration::from_millis(1),
        }
    }

    fn attempt(node: &str, outcome: Turn) -> Attempt {
        Attempt {
            node: node.parse().unwrap(),
            region: "r".into(),
            why: String::new(),
            outcome,
            detail: String::new(),
        }
    }

    fn judged(answer: Option<Answer>, attempts: &[Attempt]) -> Tally {
        let mut tally = Tally::default();
        judge(
            &mut tally,
            0,
            &("t/f".parse().unwrap(), vec!["v1".into(), "v2".into()]),
            answer.as_ref(),
            attempts,
        );
        tally
    }

    #[test]
    fn an_answer_counts_only_with_the_right_status_body_and_version() {
        let ok = judged(
            Some(answer(200, "hello from v2\n")),
            &[attempt("a", Turn::Answered)],
        );
        assert_eq!(
            (ok.sent, ok.failed, ok.seen[0].version.as_str()),
            (1, 0, "v2")
        );
        for wrong in [
            answer(500, "hello from v2\n"),
            answer(200, "hello from v3\n"),
        ] {
            let tally = judged(Some(wrong), &[attempt("a", Turn::Answered)]);
            assert_eq!((tally.sent, tally.failed, tally.seen.len()), (1, 1, 0));
            assert_eq!(tally.answered().len(), 1, "it was executed all the same");
        }
    }

    #[test]
    fn a_request_that_was_cut_and_answered_elsewhere_is_one_request() {
        let attempts = [attempt("a", Turn::Cut), attempt("b", Turn::Answered)];
        let tally = judged(Some(answer(200, "hello from v1\n")), &attempts);
        assert_eq!((tally.sent, tally.cut, tally.failed), (1, 1, 0));
        assert!(tally.seen[0].failed_over);
        assert_eq!(tally.seen[0].node.as_str(), "b");
    }

    #[test]
    fn a_request_that_nobody_answered_has_failed() {
        let tally = judged(
            None,
            &[attempt("a", Turn::NotSent), attempt("b", Turn::Cut)],
        );
        assert_eq!((tally.sent, tally.failed, tally.cut), (1, 1, 1));
        assert!(tally.answered().is_empty());
    }
}
