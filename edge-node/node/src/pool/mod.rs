//! The slots of one ingress thread. What it decides is in [`core`]; here the slots change hands.
//!
//! A pool belongs to one thread and is not locked. Slots are made and dropped by the *janitor*, a
//! thread of its own, because both take milliseconds.

pub(crate) mod core;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use holm_vmm::{Failure, Hypervisor, Slot};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use self::core::{Core, Grant, Holds, Key, SlotId, Ticket};
use crate::limits::{MAX_LOGGED_BYTES, SLOT_RETRY, TERMINATE_DEADLINE};
use crate::tally::Tally;

/// A slot in somebody's hands. It must come back by [`Pool::finish`] or [`Pool::discard`].
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) slot: Box<Slot>,
    pub(crate) id: SlotId,
    /// The version's snapshot has to be loaded before use.
    pub(crate) load: bool,
}

/// The slots of one thread.
#[derive(Debug)]
pub(crate) struct Pool {
    lane: usize,
    inner: RefCell<Inner>,
    janitor: Janitor,
    made: UnboundedSender<Box<Slot>>,
    tally: Arc<Tally>,
}

#[derive(Debug, Default)]
struct Inner {
    core: Core,
    free: HashMap<SlotId, Box<Slot>>,
    waiting: HashMap<Ticket, oneshot::Sender<Lease>>,
    next_slot: u32,
    next_ticket: u64,
}

/// What came of asking for a slot.
pub(crate) enum Asked {
    /// Here it is.
    Granted(Lease),
    /// Later.
    Queued(Waiting),
}

impl Pool {
    /// An empty pool. `made` is where the janitor sends slots for this thread, to be given to
    /// [`Pool::add`].
    pub(crate) fn new(
        lane: usize,
        janitor: Janitor,
        made: UnboundedSender<Box<Slot>>,
        tally: Arc<Tally>,
    ) -> Rc<Self> {
        Rc::new(Pool {
            lane,
            inner: RefCell::default(),
            janitor,
            made,
            tally,
        })
    }

    /// Has `count` slots made; they come one by one.
    pub(crate) fn grow(&self, count: usize) {
        (0..count).for_each(|_| self.janitor.replace(None, &self.made));
    }

    /// Takes in a new slot.
    pub(crate) fn add(&self, slot: Box<Slot>) {
        let mut inner = self.inner.borrow_mut();
        let id = SlotId(inner.next_slot);
        inner.next_slot += 1;
        inner.free.insert(id, slot);
        let grants = inner.core.added(id);
        inner.hand_out(grants);
        self.count(&inner);
    }

    /// Asks for a slot for the version.
    pub(crate) fn ask(self: &Rc<Self>, key: Key) -> Asked {
        let mut inner = self.inner.borrow_mut();
        let ticket = Ticket(inner.next_ticket);
        inner.next_ticket += 1;
        if let Some(grant) = inner.core.want(ticket, key)
            && let Some(lease) = inner.lease(grant)
        {
            self.count(&inner);
            return Asked::Granted(lease);
        }
        let (sender, receiver) = oneshot::channel();
        inner.waiting.insert(ticket, sender);
        Asked::Queued(Waiting {
            pool: self.clone(),
            ticket,
            receiver,
        })
    }

    /// An empty slot to be filled with the version ahead of requests, if fewer than `count` hold it.
    pub(crate) fn spare(&self, key: Key, count: usize) -> Option<Lease> {
        let mut inner = self.inner.borrow_mut();
        let slot = inner.core.spare(key, count)?;
        let lease = inner.lease(Grant {
            ticket: Ticket(u64::MAX),
            slot,
            load: true,
        });
        self.count(&inner);
        lease
    }

    /// Takes the slot back, holding what is said.
    pub(crate) fn finish(&self, slot: Box<Slot>, id: SlotId, holds: Holds) {
        let mut inner = self.inner.borrow_mut();
        inner.free.insert(id, slot);
        let grants = inner.core.finished(id, holds);
        inner.hand_out(grants);
        self.count(&inner);
    }

    /// Gives a slot up that must not be used again; the janitor makes another in its place. Without
    /// the slot itself when that is lost already.
    pub(crate) fn discard(&self, slot: Option<Box<Slot>>, id: SlotId) {
        let mut inner = self.inner.borrow_mut();
        let grants = inner.core.lost(id);
        inner.hand_out(grants);
        self.count(&inner);
        self.janitor.replace(slot, &self.made);
    }

    /// The version will not be asked for any more: its kept instances are told to end.
    pub(crate) fn forget(&self, key: Key) {
        let kept = self.inner.borrow_mut().core.forget(key);
        for id in kept {
            let slot = self.inner.borrow_mut().free.remove(&id);
            self.discard(slot, id);
        }
    }

    /// Nothing will be asked for any more: all kept instances are told to end.
    pub(crate) fn close(&self) {
        let kept = self.inner.borrow().core.kept();
        kept.iter().for_each(|key| self.forget(*key));
    }

    fn count(&self, inner: &Inner) {
        self.tally.set_free_slots(self.lane, inner.core.free());
    }

    fn cancel(&self, ticket: Ticket) {
        let mut inner = self.inner.borrow_mut();
        inner.core.cancel(ticket);
        inner.waiting.remove(&ticket);
    }
}

impl Inner {
    fn lease(&mut self, grant: Grant) -> Option<Lease> {
        let slot = self.free.remove(&grant.slot)?;
        Some(Lease {
            slot,
            id: grant.slot,
            load: grant.load,
        })
    }

    fn hand_out(&mut self, grants: Vec<Grant>) {
        let mut grants = grants;
        while let Some(grant) = grants.pop() {
            let Some(lease) = self.lease(grant) else {
                continue;
            };
            let unwanted = match self.waiting.remove(&grant.ticket) {
                Some(sender) => sender.send(lease).err(),
                None => Some(lease),
            };
            if let Some(Lease { slot, id, .. }) = unwanted {
                self.free.insert(id, slot);
                grants.extend(self.core.finished(id, Holds::Nothing));
            }
        }
    }
}

/// A place in the queue; given up when dropped.
pub(crate) struct Waiting {
    pool: Rc<Pool>,
    ticket: Ticket,
    receiver: oneshot::Receiver<Lease>,
}

impl Waiting {
    /// The slot, when it is this one's turn. `None` if the pool is gone.
    pub(crate) async fn granted(&mut self) -> Option<Lease> {
        (&mut self.receiver).await.ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.pool.cancel(self.ticket);
        if let Ok(Lease { slot, id, .. }) = self.receiver.try_recv() {
            self.pool.finish(slot, id, Holds::Nothing);
        }
    }
}

/// Makes and drops slots away from the request path. At most as many chores wait as there are slots.
#[derive(Clone, Debug)]
pub(crate) struct Janitor(mpsc::Sender<Chore>);

#[derive(Debug)]
struct Chore {
    old: Option<Box<Slot>>,
    to: UnboundedSender<Box<Slot>>,
}

impl Janitor {
    /// Starts the janitor's thread, which ends when every handle is gone.
    pub(crate) fn start(hypervisor: Hypervisor) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (sender, chores) = mpsc::channel::<Chore>();
        let thread = std::thread::Builder::new()
            .name("holm-janitor".into())
            .spawn(move || {
                let mut endings = Vec::new();
                for Chore { old, to } in chores {
                    endings.retain(|ending: &JoinHandle<()>| !ending.is_finished());
                    if let Some(slot) = old {
                        endings.extend(part_with(slot));
                    }
                    make(&hypervisor, &to);
                }
                for ending in endings {
                    if ending.join().is_err() {
                        tracing::error!("an instance could not be told to end");
                    }
                }
            })?;
        Ok((Janitor(sender), thread))
    }

    fn replace(&self, old: Option<Box<Slot>>, to: &UnboundedSender<Box<Slot>>) {
        if self
            .0
            .send(Chore {
                old,
                to: to.clone(),
            })
            .is_err()
        {
            tracing::error!("the janitor has ended; a slot is not replaced");
        }
    }
}

/// Drops a slot. One with an instance that was kept and waits is told to end first, on a thread of its own,
/// since it may take its time; there are never more of those than slots.
fn part_with(mut slot: Box<Slot>) -> Option<JoinHandle<()>> {
    if !slot.is_kept() {
        return None;
    }
    let ending = std::thread::Builder::new().name("holm-ending".into());
    let spawned = ending.spawn(move || {
        match slot.terminate(Instant::now() + TERMINATE_DEADLINE) {
            Ok(Some(Failure::Crash(report))) => tracing::info!(%report, "an instance has ended"),
            Ok(Some(failure)) => {
                tracing::warn!(%failure, "an instance did not end when it was told to")
            }
            Ok(None) => tracing::info!("an instance went on waiting when it was told to end"),
            Err(error) => tracing::error!(%error, "an instance could not be told to end"),
        }
        let log = slot.take_log();
        if !log.is_empty() {
            let text = String::from_utf8_lossy(&log[..log.len().min(MAX_LOGGED_BYTES)]);
            tracing::info!(target: "holm::function", text = text.trim_end(), "at its end");
        }
    });
    spawned
        .inspect_err(|error| tracing::error!(%error, "no thread for the end of an instance"))
        .ok()
}

/// Makes one slot, however often it must be tried, unless nobody wants it any more.
fn make(hypervisor: &Hypervisor, to: &UnboundedSender<Box<Slot>>) {
    while !to.is_closed() {
        match Slot::new(hypervisor) {
            // If the pool has gone in the meantime the slot goes with it.
            Ok(slot) => return drop(to.send(Box::new(slot))),
            Err(error) => {
                tracing::error!(%error, "no new slot; trying on");
                std::thread::sleep(SLOT_RETRY);
            }
        }
    }
}
