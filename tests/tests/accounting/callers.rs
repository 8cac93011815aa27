//! Callers that know of each request what became of it. The request of number N has N bytes, so that the ledger's rows
//! can be told apart even where the caller never heard the request's id.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use holm_test_support::random_below;
use holm_tests::{Fate, ask, send};

const CALLERS: u64 = 2;

/// What a caller knows of its request.
#[derive(Clone, Debug)]
pub(crate) enum Known {
    /// It is under way.
    Sent,
    /// Nobody took the connection, so the node never had it.
    Refused,
    /// The connection broke, or the caller closed it: the node may have had it or not.
    Unanswered,
    /// The function's own answer, with the request's id.
    Answered(String),
    /// The node answered in the function's place: with the id, the status and the kind of problem.
    TurnedAway(String, u16, String),
}

impl Known {
    /// The node said that it cannot put usage on record.
    pub(crate) fn is_unmetered(&self) -> bool {
        matches!(self, Known::TurnedAway(_, 503, kind) if kind == "/problems/unmetered")
    }
}

/// Requests by their numbers, from 1 on.
#[derive(Clone, Default)]
pub(crate) struct Requests(Arc<Mutex<Vec<Known>>>);

impl Requests {
    /// What is known now.
    pub(crate) fn known(&self) -> Vec<Known> {
        self.0.lock().unwrap().clone()
    }

    /// Sends the next one. `gives_up` closes the connection without waiting for an answer.
    pub(crate) fn send(&self, address: &str, gives_up: Option<Duration>) -> Known {
        let number = {
            let mut all = self.0.lock().unwrap();
            all.push(Known::Sent);
            all.len()
        };
        let known = one(address, number, gives_up);
        self.0.lock().unwrap()[number - 1] = known.clone();
        known
    }
}

fn one(address: &str, number: usize, gives_up: Option<Duration>) -> Known {
    let (line, body) = ("POST /test/hello/echo", vec![b'x'; number]);
    if let Some(after) = gives_up {
        let Some(connection) = send(address, line, "", &body) else {
            return Known::Refused;
        };
        std::thread::sleep(after);
        drop(connection);
        return Known::Unanswered;
    }
    let answer = match ask(address, line, "", &body) {
        Fate::Refused => return Known::Refused,
        Fate::BrokenOff => return Known::Unanswered,
        Fate::Answered(answer) => answer,
    };
    let id = answer.header("x-request-id");
    let id = id.expect("every answer has an id").trim().to_owned();
    if answer.status == 200 {
        assert_eq!(answer.body.len(), number, "it is not what was sent");
        return Known::Answered(id);
    }
    let problem: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let kind = problem["type"].as_str().unwrap_or(&answer.body);
    Known::TurnedAway(id, answer.status, kind.to_owned())
}

/// Those who send until they are stopped.
pub(crate) struct Callers {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Callers {
    pub(crate) fn start(address: &str, requests: &Requests, seed: u64) -> Callers {
        let over = Arc::new(AtomicBool::new(false));
        let caller = |number: u64| {
            let (address, requests, over) = (address.to_owned(), requests.clone(), over.clone());
            let mut random = random_below(1000 * seed + number);
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let gives_up = (random(16) == 0).then(|| Duration::from_micros(random(2000)));
                    let known = requests.send(&address, gives_up);
                    let pause_ms = match known {
                        Known::Answered(_) => 2 + random(6),
                        _ => 10,
                    };
                    std::thread::sleep(Duration::from_millis(pause_ms));
                }
            })
        };
        Callers {
            threads: (0..CALLERS).map(caller).collect(),
            over,
        }
    }

    /// Has them end; when this returns, each knows what became of its requests.
    pub(crate) fn stop(self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a caller gets what it sent");
        }
    }
}
