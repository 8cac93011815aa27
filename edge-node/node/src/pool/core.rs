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

    /// The version is gone: what holds it is as good as empty.
    pub(crate) fn forget(&mut self, key: Key) {
        for entry in self.slots.values_mut() {
            match entry.state {
                State::Free(Holds::Pristine(held) | Holds::Kept(held)) if held == key => {
                    entry.state = State::Free(Holds::Nothing);
                }
                State::Free(_) | State::Busy(_) => {}
            }
        }
    }

    /// Slots that nobody uses.
    pub(crate) fn free(&self) -> usize {
        self.slots
            .values()
            .filter(|entry| matches!(entry.state, State::Free(_)))
            .count()
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
        self.take(slot, key);
        Some(Grant {
            ticket,
            slot,
            load: rank < 2,
        })
    }

    fn take(&mut self, slot: SlotId, key: Key) {
        self.uses += 1;
        if let Some(entry) = self.slots.get_mut(&slot) {
            *entry = Entry {
                state: State::Busy(key),
                used_at: self.uses,
            };
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Key = Key(1);
    const B: Key = Key(2);

    fn pool(slots: u32) -> Core {
        let mut core = Core::default();
        (0..slots).for_each(|n| assert_eq!(core.added(SlotId(n)), []));
        core
    }

    #[test]
    fn a_version_gets_the_slot_that_holds_it() {
        let mut pool = pool(3);
        let first = pool.want(Ticket(1), A).unwrap();
        assert!(first.load);
        let other = pool.want(Ticket(2), B).unwrap();
        pool.finished(first.slot, Holds::Pristine(A));
        pool.finished(other.slot, Holds::Pristine(B));
        let again = pool.want(Ticket(3), A).unwrap();
        assert_eq!((again.slot, again.load), (first.slot, false));
    }

    #[test]
    fn an_empty_slot_is_taken_before_another_versions() {
        let mut pool = pool(3);
        let first = pool.want(Ticket(1), A).unwrap();
        pool.finished(first.slot, Holds::Pristine(A));
        let other = pool.want(Ticket(2), B).unwrap();
        assert!(other.slot != first.slot && other.load);
    }

    #[test]
    fn of_other_versions_the_longest_unused_goes() {
        let mut pool = pool(2);
        let a = pool.want(Ticket(1), A).unwrap();
        let b = pool.want(Ticket(2), B).unwrap();
        pool.finished(a.slot, Holds::Pristine(A));
        pool.finished(b.slot, Holds::Pristine(B));
        let third = pool.want(Ticket(3), Key(3)).unwrap();
        assert_eq!((third.slot, third.load), (a.slot, true));
    }

    #[test]
    fn a_kept_instance_is_preferred_and_given_to_its_own_version_only() {
        let mut pool = pool(3);
        let kept = pool.want(Ticket(1), A).unwrap();
        let fresh = pool.want(Ticket(2), A).unwrap();
        pool.finished(kept.slot, Holds::Kept(A));
        pool.finished(fresh.slot, Holds::Pristine(A));
        let grant = pool.want(Ticket(3), A).unwrap();
        assert_eq!((grant.slot, grant.load), (kept.slot, false));
        pool.finished(grant.slot, Holds::Kept(A));
        for ticket in 4..6 {
            let grant = pool.want(Ticket(ticket), B).unwrap();
            assert!(
                grant.load,
                "another version's instance must not be used as it is"
            );
        }
    }

    #[test]
    fn one_version_cannot_take_all_slots() {
        let mut pool = pool(4);
        for ticket in 0..3 {
            assert!(pool.want(Ticket(ticket), A).is_some());
        }
        assert_eq!(pool.want(Ticket(3), A), None);
        assert!(pool.want(Ticket(4), B).is_some());
    }

    #[test]
    fn who_waits_is_served_in_order_and_versions_take_turns() {
        let mut pool = pool(1);
        let running = pool.want(Ticket(0), A).unwrap();
        for (ticket, key) in [(1, A), (2, A), (3, B)] {
            assert_eq!(pool.want(Ticket(ticket), key), None);
        }
        let mut served = Vec::new();
        for _ in 0..3 {
            let grants = pool.finished(running.slot, Holds::Nothing);
            assert_eq!(grants.len(), 1);
            served.push(grants[0].ticket.0);
        }
        assert_eq!(served, [1, 3, 2]);
    }

    #[test]
    fn a_cancelled_ticket_is_not_served() {
        let mut pool = pool(1);
        let running = pool.want(Ticket(0), A).unwrap();
        pool.want(Ticket(1), A);
        pool.want(Ticket(2), A);
        pool.cancel(Ticket(1));
        let grants = pool.finished(running.slot, Holds::Pristine(A));
        assert_eq!(
            grants,
            [Grant {
                ticket: Ticket(2),
                slot: running.slot,
                load: false
            }]
        );
    }

    #[test]
    fn a_lost_slot_is_replaced_by_an_added_one_that_serves_who_waits() {
        let mut pool = pool(1);
        let running = pool.want(Ticket(0), A).unwrap();
        pool.want(Ticket(1), A);
        assert_eq!(pool.lost(running.slot), []);
        let grants = pool.added(SlotId(7));
        assert_eq!(
            grants,
            [Grant {
                ticket: Ticket(1),
                slot: SlotId(7),
                load: true
            }]
        );
    }

    #[test]
    fn what_held_a_dropped_version_counts_as_empty() {
        let mut pool = pool(2);
        let a = pool.want(Ticket(1), A).unwrap();
        let b = pool.want(Ticket(2), B).unwrap();
        pool.finished(b.slot, Holds::Pristine(B));
        pool.finished(a.slot, Holds::Pristine(A));
        pool.forget(A);
        let grant = pool.want(Ticket(3), Key(3)).unwrap();
        assert_eq!(grant.slot, a.slot);
    }

    #[test]
    fn only_empty_slots_are_filled_ahead_and_only_as_many_as_asked_for() {
        let mut pool = pool(3);
        for _ in 0..2 {
            let slot = pool.spare(A, 2).unwrap();
            pool.finished(slot, Holds::Pristine(A));
        }
        assert_eq!(pool.spare(A, 2), None);
        let slot = pool.spare(B, 1).unwrap();
        pool.finished(slot, Holds::Pristine(B));
        assert_eq!(pool.spare(Key(3), 1), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Want(u64),
        Finish(usize, bool),
        Lose(usize),
        Cancel(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..4u64).prop_map(Step::Want),
            4 => (any::<usize>(), any::<bool>()).prop_map(|(n, kept)| Step::Finish(n, kept)),
            1 => any::<usize>().prop_map(Step::Lose),
            1 => any::<usize>().prop_map(Step::Cancel),
        ]
    }

    proptest! {
        /// Whatever happens, a slot has one user, nobody is served twice, and nobody waits while a
        /// slot is free and the version is below its share.
        #[test]
        fn no_slot_is_given_twice_and_nobody_is_forgotten(
            slots in 1..6u32, steps in proptest::collection::vec(step(), 0..200)
        ) {
            let mut pool = pool(slots);
            let mut next_slot = slots;
            let mut users: BTreeMap<SlotId, (Ticket, Key)> = BTreeMap::new();
            let mut waiting: BTreeMap<Ticket, Key> = BTreeMap::new();
            for (n, step) in steps.into_iter().enumerate() {
                let nth = |n: usize, users: &BTreeMap<SlotId, (Ticket, Key)>| {
                    (!users.is_empty()).then(|| *users.keys().nth(n % users.len()).unwrap())
                };
                let grants = match step {
                    Step::Want(key) => {
                        let ticket = Ticket(n as u64);
                        waiting.insert(ticket, Key(key));
                        pool.want(ticket, Key(key)).into_iter().collect()
                    }
                    Step::Finish(n, kept) => match nth(n, &users) {
                        None => continue,
                        Some(slot) => {
                            let (_, key) = users.remove(&slot).unwrap();
                            let holds =
                                if kept { Holds::Kept(key) } else { Holds::Pristine(key) };
                            pool.finished(slot, holds)
                        }
                    },
                    Step::Lose(n) => match nth(n, &users) {
                        None => continue,
                        Some(slot) => {
                            users.remove(&slot);
                            let mut grants = pool.lost(slot);
                            next_slot += 1;
                            grants.extend(pool.added(SlotId(next_slot)));
                            grants
                        }
                    },
                    Step::Cancel(n) if !waiting.is_empty() => {
                        let ticket = *waiting.keys().nth(n % waiting.len()).unwrap();
                        waiting.remove(&ticket);
                        pool.cancel(ticket);
                        continue;
                    }
                    Step::Cancel(_) => continue,
                };
                for grant in grants {
                    let key = waiting.remove(&grant.ticket).expect("only who waits is served");
                    let before = users.insert(grant.slot, (grant.ticket, key));
                    prop_assert!(before.is_none(), "slot {:?} has two users", grant.slot);
                }
                prop_assert_eq!(pool.free() + users.len(), slots as usize);
                let share = pool.share();
                for key in waiting.values() {
                    let held = users.values().filter(|(_, held)| held == key).count();
                    prop_assert!(held >= share || pool.free() == 0, "{:?} waits for nothing", key);
                }
            }
        }
    }
}
