//! What a kept instance does between its requests, and how others come into it.

use std::time::{Duration, Instant};

use holm_vmm::{Rest, Slot};

use super::Instance;
use super::wait::woken;
use crate::limits::{AGAIN_DEADLINE, FIRST_QUANTUM};
use crate::request::enter;
use crate::request::job::{Ending, Job};
use crate::request::retire::{Remains, log};
use crate::worker::Bounds;

impl Instance {
    /// The next request that has joined, if the guest can take it now.
    pub(super) fn next(&self, slot: &Slot) -> Option<Job> {
        let door = self.door.as_ref()?;
        if !slot.can_begin() || self.spent {
            return None;
        }
        door.next()
    }

    /// Nobody is to be answered: an instance that is kept goes on to its next wait for a request. Gives the slot
    /// if there is another request then.
    pub(super) async fn go_on(&mut self, mut slot: Box<Slot>) -> Result<Box<Slot>, Remains> {
        let Some(door) = self.door.clone() else {
            return Err(match slot.can_begin() {
                true => Remains::Waiting(slot),
                false => Remains::Answered(slot),
            });
        };
        log(&self.lane, &self.live, self.last, &mut slot);
        if !self.spent && !slot.can_begin() {
            // Its connection first, of which HTTP/2 makes two tasks.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            // Who comes meanwhile had better wait for it than have an instance with another state.
            let open = self
                .opens()
                .then(|| self.lane.pool.open(self.live.key, &door));
            let again = self.until_wait(slot).await;
            if open.is_some() {
                self.lane.pool.shut(&door);
            }
            slot = again?;
        }
        if let Some(job) = self.leaving.take() {
            job.end(Ending::Gone);
        }
        if self.spent {
            return Err(Remains::Broken(Some(slot)));
        }
        match std::future::poll_fn(|cx| door.poll_joined(cx)).await {
            true => Ok(slot),
            false => Err(Remains::Waiting(slot)),
        }
    }

    /// Has the guest go on to its next wait for a request, for as long as it may.
    async fn until_wait(&mut self, mut slot: Box<Slot>) -> Result<Box<Slot>, Remains> {
        let before = slot.stats();
        let mut bounds = Bounds {
            deadline: Instant::now() + AGAIN_DEADLINE,
            cpu: before.cpu + AGAIN_DEADLINE,
        };
        if let Some(job) = &self.leaving {
            let cpu = Duration::from_millis(self.live.limits.cpu_ms);
            bounds.deadline = bounds.deadline.max(job.deadline);
            bounds.cpu = before.cpu + cpu.saturating_sub(job.cost.taken.cpu);
        }
        // Most are there at once. What takes longer is not for this thread.
        let mut rest = slot.go_on(FIRST_QUANTUM, bounds.deadline);
        let waits = loop {
            match rest {
                Ok(Rest::Waiting) => break true,
                Ok(Rest::Yielded) => {}
                Ok(Rest::Parked(until)) => tokio::select! {
                    () = woken(slot.wake()) => {}
                    () = tokio::time::sleep_until(until.into()) => {}
                },
                Err(failure) => {
                    let (function, version) = (&self.live.function, self.live.version.short());
                    tracing::warn!(%function, version, %failure, "the instance could not be kept; the next request gets a fresh one");
                    break false;
                }
            }
            match self
                .lane
                .shared
                .workers
                .go_on(slot, self.live.whose(), bounds)
                .await
            {
                Ok(came) => (slot, rest) = came,
                Err(_) => return Err(Remains::Broken(None)),
            }
        };
        if let Some(job) = &mut self.leaving {
            job.cost.taken.add(&slot.stats().since(&before));
        }
        match waits {
            true => Ok(slot),
            false => Err(Remains::Broken(Some(slot))),
        }
    }

    /// Whether it may get another request.
    pub(super) fn opens(&self) -> bool {
        let expected = self.door.as_ref().map_or(0, |door| door.expected());
        let room = self.jobs.len() + expected < self.live.requests_per_instance as usize;
        room && !self.spent && self.lane.serves(&self.live)
    }

    /// Has those that joined, or are about to, look for another instance.
    pub(super) async fn send_away(&self) {
        let Some(door) = &self.door else {
            return;
        };
        while std::future::poll_fn(|cx| door.poll_joined(cx)).await {
            if let Some(mut job) = door.next() {
                job.leave();
                let (lane, live) = (self.lane.clone(), self.live.clone());
                tokio::task::spawn_local(enter(lane, live, job));
            }
        }
    }
}
