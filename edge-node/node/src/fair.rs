//! Whose turn it is where there is more to run than there are threads: a state machine without slots, clocks or
//! threads.
//!
//! ```text
//!   tenant ─┬─ version ── first come, first served
//!           └─ version      versions of a tenant take turns
//!   the tenant that has taken least vCPU time is next
//! ```
//! Each tenant has an account of the time that it took. A turn is charged in full when it begins, so that one that
//! has several at a time is not taken for one that has none, and what it did not take is given back when it ends.
//! Who had nothing to run for a while begins where the others are (start-time fair queueing, Goyal, Vin and Cheng
//! 1996): time that was not taken cannot be saved up, and what was taken too much is not forgotten before the
//! others have had as much.
//!
//! Before all of them come those that are not to run any more, because that is soon done and somebody waits for it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::limits::{FIRST_QUANTUM, MIN_QUANTUM};
use crate::pool::core::{Key, TenantId};

/// For whom something runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Whose {
    pub(crate) tenant: TenantId,
    pub(crate) key: Key,
}

/// What waits for its turn.
#[derive(Debug)]
pub(crate) struct Turns<T> {
    tenants: BTreeMap<TenantId, Account<T>>,
    /// What the tenant had taken that had the last turn.
    level_ns: u64,
    /// The longest that a turn takes.
    turn_ns: u64,
}

#[derive(Debug)]
struct Account<T> {
    /// What it has taken, turns that have begun as if they were over.
    taken_ns: u64,
    /// Turns that have begun and are not over.
    running: usize,
    waiting: VecDeque<(Key, VecDeque<T>)>,
}

impl<T> Account<T> {
    fn is_idle(&self) -> bool {
        self.running == 0 && self.waiting.is_empty()
    }

    fn next(&mut self) -> Option<(Key, T)> {
        let (key, mut line) = self.waiting.pop_front()?;
        let one = line.pop_front()?;
        if !line.is_empty() {
            self.waiting.push_back((key, line));
        }
        Some((key, one))
    }
}

impl<T> Turns<T> {
    /// Nothing waits. A turn takes `turn_ns` at most, or little more.
    pub(crate) fn new(turn_ns: u64) -> Self {
        Turns {
            tenants: BTreeMap::new(),
            level_ns: 0,
            turn_ns,
        }
    }

    /// One more waits. Its tenant is charged what it took elsewhere.
    pub(crate) fn add(&mut self, whose: Whose, elsewhere_ns: u64, one: T) {
        let level_ns = self.level_ns;
        let account = self.tenants.entry(whose.tenant).or_insert(Account {
            taken_ns: level_ns,
            running: 0,
            waiting: VecDeque::new(),
        });
        if account.is_idle() {
            account.taken_ns = account.taken_ns.max(level_ns);
        }
        account.taken_ns = account.taken_ns.saturating_add(elsewhere_ns);
        let mut lines = account.waiting.iter_mut();
        match lines.find(|(key, _)| *key == whose.key) {
            Some((_, line)) => line.push_back(one),
            None => account
                .waiting
                .push_back((whose.key, VecDeque::from([one]))),
        }
    }

    /// A tenant has taken so much elsewhere, and nothing waits for that.
    pub(crate) fn charge(&mut self, tenant: TenantId, elsewhere_ns: u64) {
        let level_ns = self.level_ns;
        let account = self.tenants.entry(tenant).or_insert(Account {
            taken_ns: level_ns,
            running: 0,
            waiting: VecDeque::new(),
        });
        let before = match account.is_idle() {
            true => account.taken_ns.max(level_ns),
            false => account.taken_ns,
        };
        account.taken_ns = before.saturating_add(elsewhere_ns);
    }

    /// The next, whose turn begins; the first that is `over` goes before all others. [`Turns::took`] ends it.
    pub(crate) fn next(&mut self, over: impl Fn(&T) -> bool) -> Option<(Whose, T)> {
        let found = self.take_out(over);
        let (whose, one) = match found {
            Some(found) => found,
            None => {
                let waits = self.tenants.iter_mut();
                let waits = waits.filter(|(_, account)| !account.waiting.is_empty());
                let (tenant, account) = waits.min_by_key(|(_, account)| account.taken_ns)?;
                self.level_ns = self.level_ns.max(account.taken_ns);
                let (tenant, (key, one)) = (*tenant, account.next()?);
                (Whose { tenant, key }, one)
            }
        };
        if let Some(account) = self.tenants.get_mut(&whose.tenant) {
            account.running += 1;
            account.taken_ns = account.taken_ns.saturating_add(self.turn_ns);
        }
        // What is owed by those that have gone is forgotten when the others have had as much.
        let level_ns = self.level_ns;
        self.tenants
            .retain(|_, account| !account.is_idle() || account.taken_ns > level_ns);
        Some((whose, one))
    }

    /// A turn is over and took so long.
    pub(crate) fn took(&mut self, whose: Whose, took_ns: u64) {
        if let Some(account) = self.tenants.get_mut(&whose.tenant) {
            account.running = account.running.saturating_sub(1);
            let charged = account.taken_ns.saturating_sub(self.turn_ns);
            account.taken_ns = charged.saturating_add(took_ns);
        }
    }

    /// Nothing waits any more.
    pub(crate) fn clear(&mut self) {
        self.tenants.clear();
    }

    fn take_out(&mut self, is: impl Fn(&T) -> bool) -> Option<(Whose, T)> {
        for (tenant, account) in &mut self.tenants {
            for (key, line) in &mut account.waiting {
                if let Some(at) = line.iter().position(&is) {
                    let (tenant, key) = (*tenant, *key);
                    let one = line.remove(at)?;
                    account.waiting.retain(|(_, line)| !line.is_empty());
                    return Some((Whose { tenant, key }, one));
                }
            }
        }
        None
    }
}

/// How long a connection's thread runs a new request of somebody of whom the workers have so many: the more it
/// wants of them, the less it gets beside.
pub(crate) fn first_quantum(at_workers: usize, workers: usize) -> Duration {
    let workers = workers.clamp(1, u32::MAX as usize >> 1) as u32;
    let at_workers = at_workers.min(u32::MAX as usize >> 1) as u32;
    (FIRST_QUANTUM * workers / (workers + at_workers)).max(MIN_QUANTUM)
}

#[cfg(test)]
mod tests;
