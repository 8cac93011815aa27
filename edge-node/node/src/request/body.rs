//! Reading a request's body: whole, bounded, in time, and counted against what the thread may hold.

use std::cell::Cell;
use std::rc::Rc;

use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Bytes, Incoming};

use super::problem::Problem;
use crate::limits::{BODY_TIMEOUT, MAX_BODY_BYTES_PER_THREAD};

/// Bytes of bodies that a thread holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Budget(Rc<Cell<usize>>);

/// A body, counted as long as it is here.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) bytes: Bytes,
    counted: usize,
    budget: Budget,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget
            .0
            .set(self.budget.0.get().saturating_sub(self.counted));
    }
}

impl Budget {
    fn take(&self, held: &mut Held, bytes: usize) -> bool {
        let used = self.0.get() + bytes;
        if used > MAX_BODY_BYTES_PER_THREAD {
            return false;
        }
        self.0.set(used);
        held.counted += bytes;
        true
    }
}

/// The whole body, of at most `max_bytes`. `None` as the problem if the thread holds too much.
pub(crate) async fn read(
    body: Incoming,
    max_bytes: u64,
    budget: &Budget,
) -> Result<Held, Option<Problem>> {
    let mut held = Held {
        bytes: Bytes::new(),
        counted: 0,
        budget: budget.clone(),
    };
    if body.is_end_stream() {
        return Ok(held);
    }
    if body.size_hint().lower() > max_bytes {
        return Err(Some(Problem::BodyTooLarge(max_bytes)));
    }
    match tokio::time::timeout(BODY_TIMEOUT, collect(body, max_bytes, budget, &mut held)).await {
        Ok(Ok(())) => Ok(held),
        Ok(Err(problem)) => Err(problem),
        Err(_) => Err(Some(Problem::BodyTooSlow)),
    }
}

async fn collect(
    mut body: Incoming,
    max_bytes: u64,
    budget: &Budget,
    held: &mut Held,
) -> Result<(), Option<Problem>> {
    let mut gathered: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Some(Problem::BadBody))?;
        // Trailers are about the connection; functions do not see them.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if held.counted as u64 + data.len() as u64 > max_bytes {
            return Err(Some(Problem::BodyTooLarge(max_bytes)));
        }
        if !budget.take(held, data.len()) {
            return Err(None);
        }
        // Most bodies are one frame, which needs no copy.
        if held.bytes.is_empty() && gathered.is_empty() {
            held.bytes = data;
        } else {
            if gathered.is_empty() {
                gathered.extend_from_slice(&std::mem::take(&mut held.bytes));
            }
            gathered.extend_from_slice(&data);
        }
    }
    if !gathered.is_empty() {
        held.bytes = gathered.into();
    }
    Ok(())
}
