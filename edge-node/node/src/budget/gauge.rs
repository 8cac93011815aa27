//! How much of a budget is left on this node in a month, as all threads see it.
//!
//! ```text
//! room = limit − spent − reserved
//! ```
//! A request reserves the most that it can cost by its limits before it is admitted, which is one subtraction. The
//! journal's thread counts what it did cost when its record is committed, and lets go of what was reserved: so what
//! is spent is always what the journal says, and nothing of a request is counted nowhere in between.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use holm_model::budget::{Month, PriceSpan, Scope, cost_of};
use holm_model::ids::{FunctionName, Name};
use holm_model::usage::UsageRecord;

/// One budget in one month.
#[derive(Debug)]
pub(crate) struct Gauge {
    pub(crate) scope: Scope,
    pub(crate) month: Month,
    /// Never read on a request's path.
    prices: RwLock<Vec<PriceSpan>>,
    room: AtomicI64,
    /// Leased. Changed by the thread that holds the leases.
    limit: AtomicU64,
    /// What the node had spent before its journal counted. Changed by the same.
    base: AtomicU64,
    /// By the journal. Changed by its thread.
    counted: AtomicU64,
    /// Requests that found too little.
    refused: AtomicU64,
    /// No node has what this one could get.
    exhausted: AtomicBool,
    /// More may come at any moment.
    hopes: AtomicBool,
}

impl Gauge {
    pub(crate) fn new(scope: Scope, month: Month, prices: Vec<PriceSpan>) -> Self {
        Gauge {
            scope,
            month,
            prices: RwLock::new(prices),
            room: AtomicI64::new(0),
            limit: AtomicU64::new(0),
            base: AtomicU64::new(0),
            counted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            exhausted: AtomicBool::new(false),
            hopes: AtomicBool::new(false),
        }
    }

    pub(crate) fn prices(&self) -> Vec<PriceSpan> {
        // It is replaced whole.
        let prices = self.prices.read().unwrap_or_else(PoisonError::into_inner);
        prices.clone()
    }

    /// The journal is to be asked what was spent at these; see [`Gauge::set_counted`].
    pub(crate) fn set_prices(&self, new: Vec<PriceSpan>) {
        *self.prices.write().unwrap_or_else(PoisonError::into_inner) = new;
    }

    /// Spent in the month, in all.
    pub(crate) fn spent(&self) -> u64 {
        let counted = self.counted.load(Ordering::Relaxed);
        counted.saturating_add(self.base.load(Ordering::Relaxed))
    }

    /// What can be reserved.
    pub(crate) fn room(&self) -> u64 {
        u64::try_from(self.room.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// How often requests found too little.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub(crate) fn is_exhausted(&self) -> bool {
        self.exhausted.load(Ordering::Relaxed)
    }

    /// What a request that finds too little is told: whether the budget is at its end, and whether more may come at
    /// any moment.
    pub(crate) fn set_outlook(&self, exhausted: bool, hopes: bool) {
        self.exhausted.store(exhausted, Ordering::Relaxed);
        self.hopes.store(hopes, Ordering::Relaxed);
    }

    /// The limit that is leased, and what was spent before the journal counted.
    pub(crate) fn set_lease(&self, limit: u64, base: u64) {
        let before = self.limit.swap(limit, Ordering::Relaxed);
        let more = signed(limit).saturating_sub(signed(before));
        let base_before = self.base.swap(base, Ordering::Relaxed);
        let less = signed(base).saturating_sub(signed(base_before));
        self.room
            .fetch_add(more.saturating_sub(less), Ordering::Relaxed);
    }

    /// Takes up to `picos` out of the room for good, and lowers the limit by it; how much that was.
    pub(crate) fn give_back(&self, picos: u64) -> u64 {
        if picos == 0 || !self.try_take(signed(picos)) {
            return 0;
        }
        self.limit.fetch_sub(picos, Ordering::Relaxed);
        picos
    }

    /// What the journal has counted in all.
    pub(crate) fn set_counted(&self, picos: u64) {
        let before = self.counted.swap(picos, Ordering::Relaxed);
        let more = signed(picos).saturating_sub(signed(before));
        self.room.fetch_sub(more, Ordering::Relaxed);
    }

    /// Whether a record is of the budget and the month.
    pub(crate) fn counts(&self, record: &UsageRecord) -> bool {
        self.month.has(record.accepted_ms) && self.scope.covers(&record.function)
    }

    /// Counts a record of it that was committed.
    pub(crate) fn count(&self, record: &UsageRecord) {
        let cost = {
            let prices = self.prices.read().unwrap_or_else(PoisonError::into_inner);
            cost_of(&prices, record)
        };
        if cost > 0 {
            self.counted.fetch_add(cost, Ordering::Relaxed);
            self.room.fetch_sub(signed(cost), Ordering::Relaxed);
        }
    }

    fn try_take(&self, picos: i64) -> bool {
        let left = self.room.fetch_sub(picos, Ordering::Relaxed);
        let fits = left >= picos;
        if !fits {
            self.room.fetch_add(picos, Ordering::Relaxed);
        }
        fits
    }
}

/// Gauges, found by whose function it is: there may be thousands, and few of them are a record's.
#[derive(Debug, Default)]
pub(crate) struct ByTenant(HashMap<Name, Vec<Arc<Gauge>>>);

impl ByTenant {
    pub(crate) fn new(gauges: Vec<Arc<Gauge>>) -> Self {
        let mut by_tenant = ByTenant::default();
        for gauge in gauges {
            let tenant = gauge.scope.tenant.clone();
            by_tenant.0.entry(tenant).or_default().push(gauge);
        }
        by_tenant
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Gauge>> {
        self.0.values().flatten()
    }

    /// Those that a function's executions are counted by, of all months.
    pub(crate) fn of(&self, function: &FunctionName) -> impl Iterator<Item = &Arc<Gauge>> {
        let gauges = self.0.get(&function.tenant).into_iter().flatten();
        gauges.filter(|gauge| gauge.scope.covers(function))
    }

    /// Counts a record that was committed.
    pub(crate) fn count(&self, record: &UsageRecord) {
        for gauge in self.of(&record.function) {
            if gauge.month.has(record.accepted_ms) {
                gauge.count(record);
            }
        }
    }
}

/// Budgets are below 2^63 picos; what a peer says beyond is held at the end.
fn signed(picos: u64) -> i64 {
    i64::try_from(picos)
        .unwrap_or(i64::MAX / 4)
        .min(i64::MAX / 4)
}

/// What a request of a version reserves: of the tenant's budget, of the function's, or of both.
#[derive(Debug)]
pub(crate) struct Reserve {
    /// With what is reserved of each; of this month and perhaps the next.
    gauges: Vec<(Arc<Gauge>, i64)>,
    /// How many budgets there are.
    budgets: usize,
}

/// Too little is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spent {
    /// The budget is at its end, and the month's end is so far away, in milliseconds.
    pub(crate) until_ms: Option<u64>,
    /// More may come at any moment.
    pub(crate) hopes: bool,
}

impl Reserve {
    /// `gauges` with the most that a request may cost of each.
    pub(crate) fn new(gauges: Vec<(Arc<Gauge>, u64)>, budgets: usize) -> Self {
        let gauges = gauges.into_iter();
        Reserve {
            gauges: gauges.map(|(gauge, most)| (gauge, signed(most))).collect(),
            budgets,
        }
    }

    /// Reserves for a request that was accepted at this time.
    pub(crate) fn take(self: &Arc<Self>, accepted_ms: u64) -> Result<Ticket, Spent> {
        let now = || {
            let all = self.gauges.iter().enumerate();
            all.filter(|(_, (gauge, _))| gauge.month.has(accepted_ms))
        };
        let mut ticket = Ticket {
            reserve: self.clone(),
            taken: 0,
        };
        let mut found = 0;
        for (at, (gauge, most)) in now() {
            found += 1;
            // Where each request costs nothing, the budget's end is its end all the same.
            if !gauge.try_take(*most) {
                gauge.refused.fetch_add(1, Ordering::Relaxed);
                let until_ms = gauge.month.to_ms.saturating_sub(accepted_ms);
                return Err(Spent {
                    until_ms: gauge.is_exhausted().then_some(until_ms),
                    hopes: gauge.hopes.load(Ordering::Relaxed),
                });
            }
            ticket.taken |= 1 << at;
        }
        match found < self.budgets {
            // The month has just begun, and nothing of it is leased.
            true => Err(Spent {
                until_ms: None,
                hopes: true,
            }),
            false => Ok(ticket),
        }
    }
}

/// What is reserved for one request. Dropped, it is let go of.
#[derive(Debug)]
pub(crate) struct Ticket {
    reserve: Arc<Reserve>,
    /// Of which gauges, as bits.
    taken: u32,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        for (at, (gauge, most)) in self.reserve.gauges.iter().enumerate() {
            if self.taken & (1 << at) != 0 {
                gauge.room.fetch_add(*most, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
#[path = "gauge_tests.rs"]
mod tests;
