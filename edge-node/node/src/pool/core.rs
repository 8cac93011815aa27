//! Which slot a request gets: a state machine without slots, clocks or threads.
//!
//! ```text
//!            want ──fits──▶ busy
//!   free ◀── finished ────── busy          finished also hands the slot to the next in the queue
//!   gone ◀── lost ────────── busy
//! ```
//! One that is gone counts as its user's until another takes its place, so that who breaks slots waits for them
//! himself.
//!
//! In order of preference a version gets: a kept instance of its own, a pristine one, an empty slot,
//! the one that was not used for the longest time, of versions that have more than they are to have at least if there
//! are such. One version may not hold more than a share of the
//! slots, nor may one tenant where there are others, so that nobody's overload takes all the room. Of those who
//! wait the tenant that has the fewest slots is next, however many functions and callers it has; its versions
//! take turns, and within a version the first is first. The queue's bounds are kept by `admission`.

use std::collections::{BTreeMap, VecDeque};

/// A slot of this pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SlotId(pub(crate) u32);

/// A prepared version on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key(pub(crate) u64);

/// A tenant of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TenantId(pub(crate) u64);

/// What a slot is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) key: Key,
    pub(crate) tenant: TenantId,
    /// Most instances of the version in this pool, those that wait for a request included.
    pub(crate) most: usize,
}

/// Somebody who wants a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(crate) u64);

/// What a slot holds while nobody uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    /// Nothing, or nothing of use.
    Nothing,
    /// A fresh instance.
    Pristine(Key),
    /// An instance with the state of earlier requests (`isolation = "instance"`).
    Kept(Key),
}

/// A slot for a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) ticket: Ticket,
    pub(crate) key: Key,
    pub(crate) slot: SlotId,
    /// The version's snapshot has to be loaded into it first.
    pub(crate) load: bool,
    /// What it has held until now.
    pub(crate) held: Holds,
}

/// Whose a slot is on its way out.
const NOBODY: TenantId = TenantId(u64::MAX);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free(Holds),
    Busy(Key, TenantId),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    state: State,
    used_at: u64,
}

/// The pool's state.
#[derive(Debug, Default)]
pub(crate) struct Core {
    slots: BTreeMap<SlotId, Entry>,
    /// Whose those were that are gone, in the order in which others take their places.
    missing: VecDeque<(Key, TenantId)>,
    queues: VecDeque<(Claim, VecDeque<Ticket>)>,
    uses: u64,
    /// How many tenants have functions here.
    tenants: usize,
    /// How many slots are to hold a version at least, whatever comes.
    least: BTreeMap<Key, usize>,
}

impl Core {
    /// A new slot, empty or pristine; may serve one who waits.
    pub(crate) fn added(&mut self, slot: SlotId, holds: Holds) -> Vec<Grant> {
        let replaces = |(key, tenant): &(Key, TenantId)| match holds {
            Holds::Pristine(held) | Holds::Kept(held) => *key == held && *tenant != NOBODY,
            Holds::Nothing => *tenant == NOBODY,
        };
        let at = self.missing.iter().position(replaces);
        self.missing.remove(at.unwrap_or(0));
        // One that was made fresh is as recent as one that was reset.
        let used_at = match (at, holds) {
            (Some(_), Holds::Pristine(_) | Holds::Kept(_)) => self.uses,
            _ => 0,
        };
        self.slots.insert(
            slot,
            Entry {
                state: State::Free(holds),
                used_at,
            },
        );
        self.serve()
    }

    /// A busy slot is gone for good; another is to be added in its place.
    pub(crate) fn lost(&mut self, slot: SlotId) -> Vec<Grant> {
        if let Some(Entry {
            state: State::Busy(key, tenant),
            ..
        }) = self.slots.remove(&slot)
        {
            self.missing.push_back((key, tenant));
        }
        self.serve()
    }

    /// A busy slot is free again.
    pub(crate) fn finished(&mut self, slot: SlotId, holds: Holds) -> Vec<Grant> {
        self.uses += 1;
        if let Some(entry) = self.slots.get_mut(&slot) {
            *entry = Entry {
                state: State::Free(holds),
                used_at: self.uses,
            };
        }
        self.serve()
    }

    /// Says how many tenants there are.
    pub(crate) fn set_tenants(&mut self, tenants: usize) -> Vec<Grant> {
        self.tenants = tenants;
        self.serve()
    }

    /// Says how many slots are to hold each version at least.
    pub(crate) fn set_least(&mut self, least: BTreeMap<Key, usize>) {
        self.least = least;
    }

    /// How many that are in all.
    pub(crate) fn promised(&self) -> usize {
        self.least.values().sum()
    }

    /// Whether there are several.
    pub(crate) fn has_tenants(&self) -> bool {
        self.tenants > 1
    }

    /// A slot at once, or the ticket is queued.
    pub(crate) fn want(&mut self, ticket: Ticket, claim: Claim) -> Option<Grant> {
        let queued = |(queued, _): &&mut (Claim, _)| queued.key == claim.key;
        if let Some((_, tickets)) = self.queues.iter_mut().find(queued) {
            tickets.push_back(ticket);
            return None;
        }
        let grant = self.grant(ticket, claim);
        if grant.is_none() {
            self.queues.push_back((claim, VecDeque::from([ticket])));
        }
        grant
    }

    /// Takes the first ticket out of the version's queue, which needs no slot.
    pub(crate) fn next_waiting(&mut self, key: Key) -> Option<Ticket> {
        let queued = |(queued, _): &&mut (Claim, _)| queued.key == key;
        let (_, tickets) = self.queues.iter_mut().find(queued)?;
        let ticket = tickets.pop_front();
        self.queues.retain(|(_, tickets)| !tickets.is_empty());
        ticket
    }

    /// The ticket does not want a slot any more. No effect if it was served.
    pub(crate) fn cancel(&mut self, ticket: Ticket) {
        for (_, tickets) in &mut self.queues {
            tickets.retain(|waiting| *waiting != ticket);
        }
        self.queues.retain(|(_, tickets)| !tickets.is_empty());
    }

    /// A slot to be filled with the version ahead of requests, if fewer than `count` hold it: an empty one or, while it
    /// has less than it is to have at least, one of a version that has more.
    pub(crate) fn spare(&mut self, claim: Claim, count: usize) -> Option<SlotId> {
        // In the place of one that is gone comes another that holds the same.
        let coming = |(held, tenant): &&(Key, TenantId)| *held == claim.key && *tenant != NOBODY;
        let holding = self.holding(claim.key) + self.missing.iter().filter(coming).count();
        if holding >= count.min(claim.most) {
            return None;
        }
        let empty = |entry: &Entry| matches!(entry.state, State::Free(Holds::Nothing));
        let mut slots = self.slots.iter();
        let slot = match slots.find(|(_, entry)| empty(entry)) {
            Some((slot, _)) => *slot,
            None if holding < self.least_of(claim.key).min(claim.most) => {
                let (exceeds, slot) = self.least_valuable(Some(claim.key))?;
                exceeds.then_some(slot)?
            }
            None => return None,
        };
        self.take(slot, claim);
        Some(slot)
    }

    /// How many slots are to hold it at least.
    pub(crate) fn least_of(&self, key: Key) -> usize {
        self.least.get(&key).copied().unwrap_or(0)
    }

    /// The slot with an instance, of another version than this, that is missed least, and whether its version has more
    /// than it is to have at least.
    fn least_valuable(&self, than: Option<Key>) -> Option<(bool, SlotId)> {
        let mut holding: BTreeMap<Key, usize> = BTreeMap::new();
        for entry in self.slots.values() {
            if let State::Free(Holds::Pristine(held) | Holds::Kept(held)) | State::Busy(held, _) =
                entry.state
                && entry.state != State::Busy(held, NOBODY)
            {
                *holding.entry(held).or_default() += 1;
            }
        }
        let others = self.slots.iter().filter_map(|(slot, entry)| {
            let State::Free(Holds::Pristine(held) | Holds::Kept(held)) = entry.state else {
                return None;
            };
            if Some(held) == than {
                return None;
            }
            let exceeds = holding.get(&held).copied().unwrap_or(0) > self.least_of(held);
            Some((!exceeds, entry.used_at, *slot))
        });
        others.min().map(|(within, _, slot)| (!within, slot))
    }

    /// Slots that hold the version, in use or not.
    pub(crate) fn holding(&self, key: Key) -> usize {
        let holds = |entry: &&Entry| match entry.state {
            State::Free(Holds::Pristine(held) | Holds::Kept(held)) | State::Busy(held, _) => {
                held == key
            }
            State::Free(Holds::Nothing) => false,
        };
        self.slots.values().filter(holds).count()
    }

    /// Gives out slots that hold the version and that nobody uses, to be [`lost`](Core::lost), until `keep` are
    /// left or all are in use: those unused for longest first.
    pub(crate) fn release(&mut self, key: Key, keep: usize) -> Vec<SlotId> {
        let holding = self.holding(key);
        let idle = self
            .slots
            .iter()
            .filter_map(|(slot, entry)| match entry.state {
                State::Free(Holds::Pristine(held) | Holds::Kept(held)) if held == key => {
                    Some((entry.used_at, *slot))
                }
                _ => None,
            });
        let mut idle: Vec<_> = idle.collect();
        idle.sort_unstable();
        idle.truncate(holding.saturating_sub(keep));
        let released: Vec<_> = idle.into_iter().map(|(_, slot)| slot).collect();
        for slot in &released {
            if let Some(entry) = self.slots.get_mut(slot) {
                entry.state = State::Busy(key, NOBODY);
            }
        }
        released
    }

    /// Gives out slots with instances that nobody uses, to be [`lost`](Core::lost): `most` of them, none of a version
    /// that has no more than it is to have at least, those unused for longest first.
    pub(crate) fn relieve(&mut self, most: usize) -> Vec<SlotId> {
        let mut relieved = Vec::new();
        while relieved.len() < most {
            let Some((true, slot)) = self.least_valuable(None) else {
                break;
            };
            if let Some(entry) = self.slots.get_mut(&slot)
                && let State::Free(Holds::Pristine(key) | Holds::Kept(key)) = entry.state
            {
                entry.state = State::Busy(key, NOBODY);
            }
            relieved.push(slot);
        }
        relieved
    }

    /// The version is gone: what holds a fresh instance of it is as good as empty. Slots with instances that
    /// were kept are given out, to be [`lost`](Core::lost).
    pub(crate) fn forget(&mut self, key: Key) -> Vec<SlotId> {
        let mut kept = Vec::new();
        for (slot, entry) in &mut self.slots {
            match entry.state {
                State::Free(Holds::Pristine(held)) if held == key => {
                    entry.state = State::Free(Holds::Nothing);
                }
                State::Free(Holds::Kept(held)) if held == key => {
                    entry.state = State::Busy(held, NOBODY);
                    kept.push(*slot);
                }
                State::Free(_) | State::Busy(..) => {}
            }
        }
        kept
    }

    /// The versions of which instances are kept that nobody uses.
    pub(crate) fn kept(&self) -> Vec<Key> {
        let kept = self.slots.values().filter_map(|entry| match entry.state {
            State::Free(Holds::Kept(key)) => Some(key),
            State::Free(_) | State::Busy(..) => None,
        });
        kept.collect()
    }

    /// Slots that nobody uses.
    pub(crate) fn free(&self) -> usize {
        self.slots
            .values()
            .filter(|entry| matches!(entry.state, State::Free(_)))
            .count()
    }

    /// Slots that somebody uses.
    pub(crate) fn busy(&self) -> usize {
        self.slots.len() - self.free()
    }

    /// Serves those who wait as long as there are slots for them.
    fn serve(&mut self) -> Vec<Grant> {
        let mut grants = Vec::new();
        while let Some((at, grant)) = self.next_grant() {
            grants.push(grant);
            if let Some((claim, mut tickets)) = self.queues.remove(at) {
                tickets.pop_front();
                if !tickets.is_empty() {
                    self.queues.push_back((claim, tickets));
                }
            }
        }
        grants
    }

    /// The next of those who wait for whom there is a slot, and where it stands.
    fn next_grant(&mut self) -> Option<(usize, Grant)> {
        let with_busy = self.queues.iter().enumerate();
        let with_busy = with_busy.filter_map(|(at, (claim, tickets))| {
            let ticket = *tickets.front()?;
            Some((self.busy_of(claim.tenant), at, ticket, *claim))
        });
        let mut order: Vec<_> = with_busy.collect();
        order.sort_by_key(|(busy, at, ..)| (*busy, *at));
        order
            .into_iter()
            .find_map(|(_, at, ticket, claim)| Some((at, self.grant(ticket, claim)?)))
    }

    fn busy_of(&self, tenant: TenantId) -> usize {
        let busy = |entry: &&Entry| matches!(entry.state, State::Busy(_, held) if held == tenant);
        let missing = self.missing.iter().filter(|(_, held)| *held == tenant);
        self.slots.values().filter(busy).count() + missing.count()
    }

    fn grant(&mut self, ticket: Ticket, claim: Claim) -> Option<Grant> {
        let key = claim.key;
        let busy = |entry: &&Entry| matches!(entry.state, State::Busy(held, _) if held == key);
        let busy = self.slots.values().filter(busy).count();
        let missing = self.missing.iter().filter(|(held, _)| *held == key);
        let share = self.share();
        if busy + missing.count() >= share
            || self.has_tenants() && self.busy_of(claim.tenant) >= share
        {
            return None;
        }
        let kept = |entry: &&Entry| entry.state == State::Free(Holds::Kept(key));
        let instances = busy + self.slots.values().filter(kept).count();
        let lowest = if instances >= claim.most { 3 } else { 0 };
        // The highest rank wins; among equals the one used last, whose memory is still in the cache.
        // Where another version's instance has to go, it is the one that is missed least.
        let rank = |entry: &Entry| match entry.state {
            State::Busy(..) => None,
            State::Free(Holds::Kept(held)) if held == key => Some((3, entry.used_at)),
            State::Free(Holds::Pristine(held)) if held == key => Some((2, entry.used_at)),
            State::Free(Holds::Nothing) => Some((1, entry.used_at)),
            State::Free(Holds::Kept(_) | Holds::Pristine(_)) => Some((0, 0)),
        };
        let best = self
            .slots
            .iter()
            .filter_map(|(slot, entry)| Some((rank(entry)?, *slot)))
            .filter(|((rank, _), _)| *rank >= lowest)
            .max_by_key(|(rank, slot)| (*rank, std::cmp::Reverse(*slot)));
        let ((rank, _), mut slot) = best?;
        if rank == 0 {
            (_, slot) = self.least_valuable(Some(key))?;
        }
        let held = self.take(slot, claim);
        Some(Grant {
            ticket,
            key,
            slot,
            load: rank < 2,
            held,
        })
    }

    /// Makes a free slot busy; says what it held.
    fn take(&mut self, slot: SlotId, claim: Claim) -> Holds {
        self.uses += 1;
        let entry = Entry {
            state: State::Busy(claim.key, claim.tenant),
            used_at: self.uses,
        };
        match self.slots.insert(slot, entry).map(|entry| entry.state) {
            Some(State::Free(holds)) => holds,
            Some(State::Busy(..)) | None => Holds::Nothing,
        }
    }

    /// Most slots that one version, or one of several tenants, may use at a time: all but a quarter, at least one.
    fn share(&self) -> usize {
        let all = self.slots.len() + self.missing.len();
        match all {
            0 | 1 => 1,
            _ => all - (all / 4).max(1),
        }
    }
}

#[cfg(test)]
mod tests;
