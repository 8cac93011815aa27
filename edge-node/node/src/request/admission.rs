//! Who may run: a permit of the version (its concurrency on this node) and a slot of the thread's
//! pool. Who must wait for either stands in the version's queue, which is bounded.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::sync::OwnedSemaphorePermit;

use super::job::Job;
use crate::budget::gauge::Spent;
use crate::deploy::routes::Live;
use crate::lane::Lane;
use crate::limits::{
    DOOR_PATIENCE, LEASE_PATIENCE, LEASE_POLL, MAX_QUEUED_PER_TENANT, MAX_QUEUED_PER_VERSION,
    MAX_RETRY_AFTER_SECONDS, RETRY_AFTER_SECONDS,
};
use crate::pool::{Asked, Way};

/// The way in was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The queue is full, or too many answers wait for their callers to take them.
    Full,
    /// The deadline was reached in the queue.
    Waited,
    /// The caller went away.
    Gone,
    /// A budget does not pay for it; says in how many seconds one may.
    Spent(u32),
    /// The node is stopping.
    Stopping,
}

/// A permit and a way to an instance for one request.
pub(crate) async fn admit(
    lane: &Rc<Lane>,
    live: &Arc<Live>,
    job: &mut Job,
) -> Result<(OwnedSemaphorePermit, Way), Refusal> {
    let deadline = job.deadline;
    if !lane.answers.has_room() {
        return Err(Refusal::Full);
    }
    let mut place = None;
    let permit = match live.permits.clone().try_acquire_owned() {
        Ok(permit) => permit,
        Err(_) => {
            place = Some(Place::take(live)?);
            let permit = live.permits.clone().acquire_owned();
            within(permit, deadline, job.gone())
                .await?
                .map_err(|_| Refusal::Stopping)?
        }
    };
    if let Some(door) = lane.pool.ask_at_doors(live.key) {
        let patience = deadline.min(Instant::now() + DOOR_PATIENCE);
        match within(door, patience, job.gone()).await {
            Ok(Ok(way)) => return Ok((permit, way)),
            Ok(Err(_)) | Err(Refusal::Waited) => {}
            Err(refusal) => return Err(refusal),
        }
    }
    let way = match lane.pool.ask(live) {
        Asked::Granted(way) => way,
        Asked::Queued(mut waiting) => {
            if place.is_none() {
                place = Some(Place::take(live)?);
            }
            within(waiting.granted(), deadline, job.gone())
                .await?
                .ok_or(Refusal::Stopping)?
        }
    };
    drop(place);
    Ok((permit, way))
}

/// Reserves what the request can cost of the budgets that it is under, or waits a little for budget to come: the node's
/// first lease is on its way, or others give back. Nobody wakes who waits, and there are only so many.
pub(crate) async fn reserve(
    lane: &Rc<Lane>,
    live: &Arc<Live>,
    job: &mut Job,
) -> Result<(), Refusal> {
    if job.has_reserved() {
        // It comes back from an instance that it was sent away from.
        return Ok(());
    }
    let reserve = lane.budgets.borrow_mut().reserve(live);
    let Some(reserve) = reserve else {
        return Ok(());
    };
    let until = job.deadline.min(Instant::now() + LEASE_PATIENCE);
    let mut place = None;
    loop {
        let spent = match reserve.take(job.call.accepted_ms) {
            Ok(ticket) => {
                job.reserved(ticket);
                return Ok(());
            }
            Err(spent) => spent,
        };
        if !spent.hopes || Instant::now() >= until {
            return Err(Refusal::Spent(retry_after(spent)));
        }
        if place.is_none() {
            place = Some(Place::take(live)?);
        }
        within(tokio::time::sleep(LEASE_POLL), job.deadline, job.gone()).await?;
    }
}

/// In how many seconds there may be budget.
fn retry_after(spent: Spent) -> u32 {
    let Some(until_ms) = spent.until_ms else {
        return RETRY_AFTER_SECONDS;
    };
    let seconds = until_ms.div_ceil(1000).clamp(1, MAX_RETRY_AFTER_SECONDS);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// Waits for `what`, but not beyond the deadline nor for a caller that has gone.
async fn within<T>(
    what: impl Future<Output = T>,
    deadline: Instant,
    gone: impl Future<Output = ()>,
) -> Result<T, Refusal> {
    tokio::select! {
        biased;
        got = what => Ok(got),
        () = gone => Err(Refusal::Gone),
        () = tokio::time::sleep_until(deadline.into()) => Err(Refusal::Waited),
    }
}

/// A place in a version's queue, which is one among its tenant's.
#[derive(Debug)]
struct Place {
    _of_version: Counted,
    _of_tenant: Counted,
}

impl Place {
    fn take(live: &Live) -> Result<Self, Refusal> {
        Ok(Place {
            _of_version: Counted::take(&live.waiting, MAX_QUEUED_PER_VERSION)?,
            _of_tenant: Counted::take(&live.tenant.waiting, MAX_QUEUED_PER_TENANT)?,
        })
    }
}

#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn take(waiting: &Arc<AtomicUsize>, most: usize) -> Result<Self, Refusal> {
        let place = Counted(waiting.clone());
        // Taken before it is looked at, so that two who come together cannot both have the last one.
        match waiting.fetch_add(1, Ordering::Relaxed) < most {
            true => Ok(place),
            false => Err(Refusal::Full),
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_queue_takes_its_bound_and_not_one_more() {
        let waiting = Arc::new(AtomicUsize::new(0));
        let mut places: Vec<_> = (0..MAX_QUEUED_PER_VERSION)
            .map(|_| Counted::take(&waiting, MAX_QUEUED_PER_VERSION).unwrap())
            .collect();
        let more = Counted::take(&waiting, MAX_QUEUED_PER_VERSION);
        assert_eq!(more.unwrap_err(), Refusal::Full);
        places.pop();
        let _again = Counted::take(&waiting, MAX_QUEUED_PER_VERSION).unwrap();
        drop(places);
        assert_eq!(waiting.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn waiting_ends_at_the_deadline_and_when_the_caller_goes() {
        let stays = || std::future::pending::<()>();
        let soon = Instant::now() + Duration::from_millis(5);
        let never = std::future::pending::<()>;
        assert_eq!(within(never(), soon, stays()).await, Err(Refusal::Waited));
        let late = Instant::now() + Duration::from_secs(60);
        let goes = std::future::ready(());
        assert_eq!(within(never(), late, goes).await, Err(Refusal::Gone));
        assert_eq!(within(async { 7 }, late, stays()).await, Ok(7));
    }
}
