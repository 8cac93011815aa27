//! The slots of one ingress thread. What it decides is in [`core`]; here the slots change hands.
//!
//! A pool belongs to one thread and is not locked. Slots are made and dropped by the *janitor*, a
//! thread of its own, because both take milliseconds.

pub(crate) mod core;
pub(crate) mod door;
pub(crate) mod home;
mod janitor;
mod warm;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use holm_vmm::Slot;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Notify, oneshot};

use self::core::{Claim, Core, Grant, Holds, Key, SlotId, Ticket};
use self::door::{Door, Seat};
use self::home::Place;
use self::janitor::Filling;
pub(crate) use self::janitor::Janitor;
use self::warm::{Bounds, Warm};
use crate::deploy::routes::Live;
use crate::limits::{LAST_RETURN, MAX_RELIEVED};
use crate::request::job::Job;
use crate::tally::Tally;

/// A slot in somebody's hands. It must come back by [`Pool::finish`] or [`Pool::discard`].
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) slot: Box<Slot>,
    pub(crate) id: SlotId,
    /// The version's snapshot has to be loaded before use.
    pub(crate) load: bool,
    /// What it holds until then.
    pub(crate) held: Holds,
}

/// The slots of one thread.
#[derive(Debug)]
pub(crate) struct Pool {
    place: Place,
    inner: RefCell<Inner>,
    janitor: Janitor,
    made: UnboundedSender<Box<Slot>>,
    tally: Arc<Tally>,
    /// A slot came, came back, or was given up.
    returned: Notify,
    /// No slot is made any more.
    closed: Cell<bool>,
}

#[derive(Debug, Default)]
struct Inner {
    core: Core,
    warm: Warm,
    /// Slots that are out, since when and for which version.
    out: HashMap<SlotId, (Key, Instant)>,
    /// Requests that were handed to other threads.
    handed: usize,
    free: HashMap<SlotId, Box<Slot>>,
    waiting: HashMap<Ticket, oneshot::Sender<Way>>,
    /// The doors of kept instances that are at work.
    doors: Vec<(Key, Rc<Door<Job>>)>,
    /// Those of them that take one request more now.
    open: Vec<(Key, Rc<Door<Job>>)>,
    /// Who waits for one to open.
    at_doors: VecDeque<(Key, oneshot::Sender<Way>)>,
    /// How many slots there are to be.
    size: usize,
    /// What all versions are to have at least, if that is more than there is.
    promised: Option<usize>,
    /// A slot is being filled ahead.
    filling: bool,
    next_slot: u32,
    next_ticket: u64,
}

/// A way for a request to an instance.
#[derive(Debug)]
pub(crate) enum Way {
    /// Into a slot that nobody uses.
    Slot(Lease),
    /// Into an instance that has others.
    Join(Seat<Job>),
}

/// What came of asking for one.
pub(crate) enum Asked {
    /// Here it is.
    Granted(Way),
    /// Later.
    Queued(Waiting),
}

impl Pool {
    /// An empty pool. `made` is where the janitor sends slots for this thread, to be given to
    /// [`Pool::add`].
    pub(crate) fn new(
        place: Place,
        janitor: Janitor,
        made: UnboundedSender<Box<Slot>>,
        tally: Arc<Tally>,
    ) -> Rc<Self> {
        Rc::new(Pool {
            place,
            inner: RefCell::default(),
            janitor,
            made,
            tally,
            returned: Notify::new(),
            closed: Cell::new(false),
        })
    }

    /// Has `count` slots made; they come one by one.
    pub(crate) fn grow(&self, count: usize) {
        self.inner.borrow_mut().size += count;
        (0..count).for_each(|_| self.replace(None, Filling::None));
    }

    /// Takes in a new slot, with a fresh instance of a version if it is `of` one.
    pub(crate) fn add(&self, slot: Box<Slot>, of: Option<Key>) {
        let holds = of.map_or(Holds::Nothing, Holds::Pristine);
        let mut inner = self.inner.borrow_mut();
        let id = SlotId(inner.next_slot);
        inner.next_slot += 1;
        inner.free.insert(id, slot);
        inner.filling = false;
        let grants = inner.core.added(id, holds);
        inner.hand_out(grants);
        self.count(&inner);
        self.returned.notify_one();
    }

    /// Ready when there are `count` slots.
    pub(crate) async fn filled(&self, count: usize) {
        let all = |inner: &Inner| inner.core.free() + inner.core.busy();
        while all(&self.inner.borrow()) < count {
            self.returned.notified().await;
        }
    }

    /// The thread that is to serve a request of the version, if it is another than this one.
    pub(crate) fn home(&self, live: &Live) -> Option<usize> {
        let handed = &mut self.inner.borrow_mut().handed;
        let home = self.place.home(live.key, live.max_instances, *handed)?;
        *handed = handed.wrapping_add(1);
        Some(home)
    }

    fn claim(&self, live: &Live) -> Claim {
        Claim {
            key: live.key,
            tenant: live.tenant.id,
            most: self.place.quota(live.key, live.max_instances),
        }
    }

    /// Asks for a way to an instance of the version.
    pub(crate) fn ask(self: &Rc<Self>, live: &Live) -> Asked {
        let (key, claim) = (live.key, self.claim(live));
        let mut inner = self.inner.borrow_mut();
        inner.warm.came(key);
        if let Some(at) = inner.open.iter().position(|(open, _)| *open == key) {
            let (_, door) = inner.open.swap_remove(at);
            return Asked::Granted(Way::Join(door.seat()));
        }
        let ticket = Ticket(inner.next_ticket);
        inner.next_ticket += 1;
        if let Some(grant) = inner.core.want(ticket, claim)
            && let Some(lease) = inner.lease(grant)
        {
            self.count(&inner);
            return Asked::Granted(Way::Slot(lease));
        }
        let (sender, receiver) = oneshot::channel();
        inner.waiting.insert(ticket, sender);
        Asked::Queued(Waiting {
            pool: self.clone(),
            ticket,
            receiver,
        })
    }

    /// The versions that take requests, and of how many tenants they are.
    pub(crate) fn follow<'a>(&self, versions: impl Iterator<Item = &'a Arc<Live>>) {
        let now = Instant::now();
        let mut inner = self.inner.borrow_mut();
        let (mut tenants, mut least) = (BTreeSet::new(), BTreeMap::new());
        for live in versions {
            tenants.insert(live.tenant.id);
            let homes = self.place.homes(live.max_instances);
            let bounds = Bounds {
                min: (live.ahead as usize).div_ceil(homes),
                most: self.place.quota(live.key, live.max_instances),
                cooldown: live.cooldown,
            };
            least.insert(live.key, bounds.min.min(bounds.most));
            inner.warm.add(live.key, bounds, now);
        }
        inner.core.set_least(least);
        let (promised, slots) = (inner.core.promised(), inner.size);
        let promised = (promised > slots).then_some(promised);
        if promised != std::mem::replace(&mut inner.promised, promised)
            && let Some(promised) = promised
        {
            tracing::warn!(
                thread = self.place.index,
                promised,
                slots,
                "the functions' `[scale] min` add up to more than this thread has slots: some are not kept ready; \
                 give the node more slots (--slots), or lower a min"
            );
        }
        let grants = inner.core.set_tenants(tenants.len());
        inner.hand_out(grants);
    }

    /// Whether there are functions of several tenants here.
    pub(crate) fn has_tenants(&self) -> bool {
        self.inner.borrow().core.has_tenants()
    }

    /// Looks at what came since the last time, and gives back what is not needed any more.
    pub(crate) fn look(&self) {
        let given_back = {
            let Inner { warm, core, .. } = &mut *self.inner.borrow_mut();
            let given_back = warm.look(Instant::now(), |key| core.holding(key));
            let given_back = given_back.into_iter();
            let mut given_back: Vec<_> = given_back
                .flat_map(|(key, keep)| core.release(key, keep))
                .collect();
            if self.tally.is_memory_short() {
                given_back.extend(core.relieve(MAX_RELIEVED));
            }
            given_back
        };
        given_back.into_iter().for_each(|id| self.give_up(id));
    }

    /// Has a slot filled with the version ahead of its requests, if fewer hold it than are to and there is one for
    /// that; says whether. One at a time, so that the others are there for requests: it takes a while, which is up to
    /// the guest as well, and so is for the janitor.
    pub(crate) fn fill_ahead(&self, live: &Live) -> bool {
        let (slot, id) = {
            let mut inner = self.inner.borrow_mut();
            if inner.filling || self.closed.get() {
                return inner.filling;
            }
            let target = match self.tally.is_memory_short() {
                true => inner.core.least_of(live.key),
                false => inner.warm.target(live.key),
            };
            let Some(id) = inner.core.spare(self.claim(live), target) else {
                return false;
            };
            inner.filling = true;
            (inner.free.remove(&id), id)
        };
        self.lose(id);
        match slot {
            Some(slot) => {
                let (snapshot, to) = (live.snapshot.clone(), self.made.clone());
                self.janitor.fill(slot, snapshot, to);
            }
            None => self.replace(None, Filling::None),
        }
        true
    }

    /// A kept instance begins to work. Its door is shut.
    pub(crate) fn add_door(&self, key: Key, door: &Rc<Door<Job>>) {
        self.inner.borrow_mut().doors.push((key, door.clone()));
    }

    /// It is at work no more.
    pub(crate) fn remove_door(&self, door: &Rc<Door<Job>>) {
        let mut inner = self.inner.borrow_mut();
        inner.give_up_hope(door);
        inner.doors.retain(|(_, other)| !Rc::ptr_eq(other, door));
    }

    /// Whether a door may open soon.
    pub(crate) fn hope(&self, door: &Rc<Door<Job>>, hopeful: bool) {
        match hopeful {
            true => door.set_hopeful(true),
            false => self.inner.borrow_mut().give_up_hope(door),
        }
    }

    /// A way into an instance of the version that has requests, if one opens; ends without one when there is no
    /// hope of that. `None` if there is none now.
    pub(crate) fn ask_at_doors(&self, key: Key) -> Option<oneshot::Receiver<Way>> {
        let mut inner = self.inner.borrow_mut();
        let hopeful = |(at, door): &(Key, Rc<Door<Job>>)| *at == key && door.is_hopeful();
        let is_open = inner.open.iter().any(|(open, _)| *open == key);
        if is_open || !inner.doors.iter().any(hopeful) {
            return None;
        }
        // Those that have lost patience are gone without a word.
        inner.at_doors.retain(|(_, waiting)| !waiting.is_closed());
        let (sender, receiver) = oneshot::channel();
        inner.at_doors.push_back((key, sender));
        Some(receiver)
    }

    /// A kept instance takes one request more: the first that waits for the version, or the next that asks,
    /// until [`Pool::shut`].
    pub(crate) fn open(&self, key: Key, door: &Rc<Door<Job>>) {
        let mut inner = self.inner.borrow_mut();
        while let Some(at) = inner.at_doors.iter().position(|(at, _)| *at == key) {
            let waiting = inner.at_doors.remove(at);
            if waiting.is_some_and(|(_, waiting)| waiting.send(Way::Join(door.seat())).is_ok()) {
                return;
            }
        }
        while let Some(ticket) = inner.core.next_waiting(key) {
            let waiting = inner.waiting.remove(&ticket);
            if waiting.is_some_and(|waiting| waiting.send(Way::Join(door.seat())).is_ok()) {
                return;
            }
        }
        inner.open.push((key, door.clone()));
    }

    /// It takes none now.
    pub(crate) fn shut(&self, door: &Rc<Door<Job>>) {
        let mut inner = self.inner.borrow_mut();
        inner.open.retain(|(_, open)| !Rc::ptr_eq(open, door));
    }

    /// Takes the slot back, holding what is said.
    pub(crate) fn finish(&self, slot: Box<Slot>, id: SlotId, holds: Holds) {
        let mut inner = self.inner.borrow_mut();
        inner.free.insert(id, slot);
        inner.back(id);
        let grants = inner.core.finished(id, holds);
        inner.hand_out(grants);
        self.count(&inner);
        self.returned.notify_one();
    }

    /// Gives a slot up that must not be used again; the janitor makes another in its place. Without
    /// the slot itself when that is lost already.
    pub(crate) fn discard(&self, slot: Option<Box<Slot>>, id: SlotId) {
        self.lose(id);
        self.replace(slot, Filling::Same);
    }

    /// Gives a slot up whose version is not wanted as often any more.
    fn give_up(&self, id: SlotId) {
        let slot = self.inner.borrow_mut().free.remove(&id);
        self.lose(id);
        self.replace(slot, Filling::None);
    }

    /// Gives a slot up whose instance was stopped on its way, or has changed what is not soon put back: the janitor
    /// makes it fresh. Until then it counts as its user's.
    pub(crate) fn renew(&self, slot: Box<Slot>, id: SlotId) {
        self.lose(id);
        match self.closed.get() {
            true => self.janitor.replace(Some(slot), None, Filling::None),
            false => {
                self.tally.renewed();
                self.janitor.renew(slot, self.made.clone());
            }
        }
    }

    fn lose(&self, id: SlotId) {
        let mut inner = self.inner.borrow_mut();
        inner.back(id);
        let grants = inner.core.lost(id);
        inner.hand_out(grants);
        self.count(&inner);
        self.returned.notify_one();
    }

    fn replace(&self, old: Option<Box<Slot>>, filling: Filling) {
        let to = (!self.closed.get()).then(|| self.made.clone());
        self.janitor.replace(old, to, filling);
    }

    /// The version will not be asked for any more: its kept instances are told to end.
    pub(crate) fn forget(&self, key: Key) {
        let kept = {
            let mut inner = self.inner.borrow_mut();
            inner.warm.forget(key);
            inner.core.forget(key)
        };
        kept.into_iter().for_each(|id| self.give_up(id));
    }

    /// Nothing will be asked for any more: all kept instances are told to end, the last ones when they are back
    /// from the wait for their next request, if that does not take longer than it may.
    pub(crate) async fn close(&self) {
        self.closed.set(true);
        let back = async {
            while self.inner.borrow().core.busy() > 0 {
                self.returned.notified().await;
            }
        };
        if tokio::time::timeout(LAST_RETURN, back).await.is_err() {
            let out = self.inner.borrow().core.busy();
            tracing::warn!(out, "slots are not back; what they hold is not told to end");
        }
        let kept = self.inner.borrow().core.kept();
        kept.iter().for_each(|key| self.forget(*key));
    }

    fn count(&self, inner: &Inner) {
        self.tally
            .set_free_slots(self.place.index, inner.core.free());
    }

    /// Whether somebody waits for a slot.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.inner.borrow().waiting.is_empty()
    }

    fn cancel(&self, ticket: Ticket) {
        let mut inner = self.inner.borrow_mut();
        inner.core.cancel(ticket);
        inner.waiting.remove(&ticket);
    }
}

impl Inner {
    fn give_up_hope(&mut self, door: &Rc<Door<Job>>) {
        door.set_hopeful(false);
        let doors = &self.doors;
        // Who waits learns it by having nobody to hear from any more.
        self.at_doors.retain(|(key, _)| {
            let hopeful = |(at, door): &(Key, Rc<Door<Job>>)| at == key && door.is_hopeful();
            doors.iter().any(hopeful)
        });
    }

    /// A slot is out no more.
    fn back(&mut self, id: SlotId) {
        if let Some((key, since)) = self.out.remove(&id) {
            self.warm.ended(key, since.elapsed());
        }
    }

    fn lease(&mut self, grant: Grant) -> Option<Lease> {
        let slot = self.free.remove(&grant.slot)?;
        self.out.insert(grant.slot, (grant.key, Instant::now()));
        Some(Lease {
            slot,
            id: grant.slot,
            load: grant.load,
            held: grant.held,
        })
    }

    fn hand_out(&mut self, grants: Vec<Grant>) {
        let mut grants = grants;
        while let Some(grant) = grants.pop() {
            let Some(lease) = self.lease(grant) else {
                continue;
            };
            let unwanted = match self.waiting.remove(&grant.ticket) {
                Some(sender) => sender.send(Way::Slot(lease)).err(),
                None => Some(Way::Slot(lease)),
            };
            if let Some(Way::Slot(Lease { slot, id, held, .. })) = unwanted {
                self.free.insert(id, slot);
                self.out.remove(&id);
                grants.extend(self.core.finished(id, held));
            }
        }
    }
}

/// A place in the queue; given up when dropped.
pub(crate) struct Waiting {
    pool: Rc<Pool>,
    ticket: Ticket,
    receiver: oneshot::Receiver<Way>,
}

impl Waiting {
    /// The way, when it is this one's turn. `None` if the pool is gone.
    pub(crate) async fn granted(&mut self) -> Option<Way> {
        (&mut self.receiver).await.ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.pool.cancel(self.ticket);
        if let Ok(Way::Slot(Lease { slot, id, held, .. })) = self.receiver.try_recv() {
            self.pool.finish(slot, id, held);
        }
    }
}
