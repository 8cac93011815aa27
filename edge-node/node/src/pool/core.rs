//! Which slot a request gets: a state machine without slots, clocks or threads.
//!
//! ```text
//!            want ──fits──▶ busy
//!   free ◀── finished ────── busy          finished also hands the slot to the next in the queue
//!   gone ◀── lost ────────── busy
//! ```
//! In order of preference a version gets: a kept instance of its own, a pristine one, an empty slot,
//! the one that was not used for the longest time. One version may not hold more than a share of the
//! slots, so that one function's overload leaves room for others. Queues are first come, first
//! served within a version; versions take turns. The queue's bound is kept by `admission`.

use std::collections::{BTreeMap, VecDeque};

/// A slot of this pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SlotId(pub(crate) u32);

/// A prepared version on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key(pub(crate) u64);

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
    pub(crate) slot: SlotId,
    /// The version's snapshot has to be loaded into it first.
    pub(crate) load: bool,
    /// What it has held until now.
    pub(crate) held: Holds,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Free(Holds),
    Busy(Key),
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
    queues: VecDeque<(Key, VecDeque<Ticket>)>,
    uses: u64,
}

impl Core {
    /// A new, empty slot; may serve one who waits.
    pub(crate) fn added(&mut self, slot: SlotId) -> Vec<Grant> {
        self.slots.insert(
            slot,
            Entry {
                state: State::Free(Holds::Nothing),
                used_at: 0,
            },
        );
        self.serve()
    }

    /// A busy slot is gone for good. The version's share is free again.
    pub(crate) fn lost(&mut self, slot: SlotId) -> Vec<Grant> {
        self.slots.remove(&slot);
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

    /// A slot for `key` at once, or the ticket is queued.
    pub(crate) fn want(&mut self, ticket: Ticket, key: Key) -> Option<Grant> {
        let before = self.queues.iter().any(|(queued, _)| *queued == key);
        if !before && let Some(grant) = self.grant(ticket, key) {
            return Some(grant);
        }
        match self.queues.iter_mut().find(|(queued, _)| *queued == key) {
            Some((_, tickets)) => tickets.push_back(ticket),
            None => self.queues.push_back((key, VecDeque::from([ticket]))),
        }
        None
    }

    /// Takes the first ticket out of the version's queue, which needs no slot.
    pub(crate) fn next_waiting(&mut self, key: Key) -> Option<Ticket> {
        let (_, tickets) = self.queues.iter_mut().find(|(queued, _)| *queued == key)?;
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

    /// An empty slot to be filled with `key` ahead of requests, if fewer than `count` hold it and
    /// there is an empty one.
    pub(crate) fn spare(&mut self, key: Key, count: usize) -> Option<SlotId> {
        let holds = |entry: &&Entry| match entry.state {
            State::Free(Holds::Pristine(held) | Holds::Kept(held)) | State::Busy(held) => {
                held == key
            }
            State::Free(Holds::Nothing) => false,
        };
        if self.slots.values().filter(holds).count() >= count {
            return None;
        }
        let empty = |entry: &Entry| matches!(entry.state, State::Free(Holds::Nothing));
        let slot = self
            .slots
            .iter()
            .find(|(_, entry)| empty(entry))
            .map(|(slot, _)| *slot)?;
        self.take(slot, key);
        Some(slot)
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
                    entry.state = State::Busy(held);
                    kept.push(*slot);
                }
                State::Free(_) | State::Busy(_) => {}
            }
        }
        kept
    }

    /// The versions of which instances are kept that nobody uses.
    pub(crate) fn kept(&self) -> Vec<Key> {
        let kept = self.slots.values().filter_map(|entry| match entry.state {
            State::Free(Holds::Kept(key)) => Some(key),
            State::Free(_) | State::Busy(_) => None,
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

    /// Serves those who wait, versions in turn, as long as there are slots for them.
    fn serve(&mut self) -> Vec<Grant> {
        let mut grants = Vec::new();
        let mut passed = 0;
        while passed < self.queues.len() {
            let Some((key, mut tickets)) = self.queues.pop_front() else {
                break;
            };
            let granted = tickets.front().and_then(|ticket| self.grant(*ticket, key));
            match granted {
                Some(grant) => {
                    tickets.pop_front();
                    grants.push(grant);
                    passed = 0;
                }
                None => passed += 1,
            }
            if !tickets.is_empty() {
                self.queues.push_back((key, tickets));
            }
        }
        grants
    }

    fn grant(&mut self, ticket: Ticket, key: Key) -> Option<Grant> {
        let busy = |entry: &&Entry| matches!(entry.state, State::Busy(held) if held == key);
        if self.slots.values().filter(busy).count() >= self.share() {
            return None;
        }
        // The highest rank wins; among equals the one used last, whose memory is still in the cache,
        // except where another version's instance has to go.
        let rank = |entry: &Entry| match entry.state {
            State::Busy(_) => None,
            State::Free(Holds::Kept(held)) if held == key => Some((3, entry.used_at)),
            State::Free(Holds::Pristine(held)) if held == key => Some((2, entry.used_at)),
            State::Free(Holds::Nothing) => Some((1, entry.used_at)),
            State::Free(Holds::Kept(_) | Holds::Pristine(_)) => Some((0, u64::MAX - entry.used_at)),
        };
        let best = self
            .slots
            .iter()
            .filter_map(|(slot, entry)| Some((rank(entry)?, *slot)))
            .max_by_key(|(rank, slot)| (*rank, std::cmp::Reverse(*slot)));
        let ((rank, _), slot) = best?;
        let held = self.take(slot, key);
        Some(Grant {
            ticket,
            slot,
            load: rank < 2,
            held,
        })
    }

    /// Makes a free slot busy; says what it held.
    fn take(&mut self, slot: SlotId, key: Key) -> Holds {
        self.uses += 1;
        let entry = Entry {
            state: State::Busy(key),
            used_at: self.uses,
        };
        match self.slots.insert(slot, entry).map(|entry| entry.state) {
            Some(State::Free(holds)) => holds,
            Some(State::Busy(_)) | None => Holds::Nothing,
        }
    }

    /// Most slots that one version may use at a time: all but a quarter, at least one.
    fn share(&self) -> usize {
        let all = self.slots.len();
        match all {
            0 | 1 => 1,
            _ => all - (all / 4).max(1),
        }
    }
}

#[cfg(test)]
mod tests;
