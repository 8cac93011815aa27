//! `GET /.holm/health`: what the node is and has, for operators and load balancers.

use holm_model::control::VersionState;
use hyper::Response;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde::Serialize;

use crate::lane::Shared;
use crate::request::Answer;

#[derive(Serialize)]
struct Health<'a> {
    node: &'a str,
    software: &'a str,
    generation: u64,
    slots: Slots,
    versions: Vec<Version>,
}

#[derive(Serialize)]
struct Slots {
    total: usize,
    free: u32,
}

#[derive(Serialize)]
struct Version {
    function: String,
    version: String,
    state: &'static str,
    routed: bool,
}

/// The answer to a health request. A node that answers is alive; whether it has a function ready is
/// told per version.
pub(crate) fn answer(shared: &Shared) -> Answer {
    let observed = shared.observed.borrow().clone();
    let versions = observed.versions.into_iter().map(|version| {
        let state = match version.state {
            VersionState::Preparing => "preparing",
            VersionState::Ready => "ready",
            // The reason may quote what a tenant's program wrote, and anybody may ask here; the
            // coordinator tells it to those who have a token.
            VersionState::Failed { .. } => "failed",
        };
        Version {
            function: version.function.to_string(),
            version: version.version.to_string(),
            state,
            routed: version.routed,
        }
    });
    let health = Health {
        node: shared.name.as_str(),
        software: env!("CARGO_PKG_VERSION"),
        generation: observed.generation,
        slots: Slots {
            total: shared.slots,
            free: shared.tally.free_slots(),
        },
        versions: versions.collect(),
    };
    let body = serde_json::to_vec(&health).expect("texts and numbers can be JSON");
    let mut response = Response::new(Bytes::from(body).into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
