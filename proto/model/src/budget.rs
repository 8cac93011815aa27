//! Budgets: how much a tenant's or a function's executions may cost in a calendar month (UTC).
//!
//! Under a hard cap a node runs nothing that it has not leased budget for. What is leased is a *limit* on all that
//! the node spends of the budget in the month, a number that is only ever compared with the node's own sum. So a
//! message that is lost, late or there twice changes nothing, and a node that starts anew, cut off or not, goes on
//! from what its journal says. The coordinators' part is [`issue`], a node's is [`hold`]; both are without I/O.
//!
//! Everything is counted in thousandths of a billionth of the currency (*picos*, [`Prices::picos`]), rounded up.

pub mod hold;
pub mod issue;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::{FunctionName, Name};
use crate::price::{Prices, Units};
use crate::usage::UsageRecord;

const DAY_MS: u64 = 86_400_000;

/// A calendar month in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month {
    /// Its beginning, milliseconds since 1970.
    pub from_ms: u64,
    /// Its end, exclusive.
    pub to_ms: u64,
}

impl Month {
    /// The one that `at_ms` is in. A time after the year 9999 is taken for one in its last month.
    pub fn of(at_ms: u64) -> Month {
        let mut from_day = 0;
        let day = (at_ms / DAY_MS).min(LAST_DAY);
        // Years are skipped in whole cycles of the calendar first, which all have as many days.
        let mut year = 1970 + 400 * (day / CYCLE_DAYS);
        from_day += day / CYCLE_DAYS * CYCLE_DAYS;
        while from_day + year_days(year) <= day {
            from_day += year_days(year);
            year += 1;
        }
        let mut month = 0;
        while from_day + month_days(year, month) <= day {
            from_day += month_days(year, month);
            month += 1;
        }
        Month {
            from_ms: from_day * DAY_MS,
            to_ms: (from_day + month_days(year, month)) * DAY_MS,
        }
    }

    /// The one after it.
    pub fn next(self) -> Month {
        Month::of(self.to_ms)
    }

    /// Whether `at_ms` is in it.
    pub fn has(self, at_ms: u64) -> bool {
        self.from_ms <= at_ms && at_ms < self.to_ms
    }
}

const CYCLE_DAYS: u64 = 146_097;
/// 9999-12-31.
const LAST_DAY: u64 = 2_932_896;

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn year_days(year: u64) -> u64 {
    365 + u64::from(is_leap(year))
}

/// `month` from 0.
fn month_days(year: u64, month: usize) -> u64 {
    const DAYS: [u64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let leap = month == 1 && is_leap(year);
    DAYS.get(month).copied().unwrap_or(u64::MAX) + u64::from(leap)
}

/// What a budget is for: all of a tenant's functions, `acme`, or one of them, `acme/hello`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Scope {
    /// Whose.
    pub tenant: Name,
    /// Of which function alone.
    pub function: Option<Name>,
}

impl Scope {
    /// Whether executions of `function` are in it.
    pub fn covers(&self, function: &FunctionName) -> bool {
        self.tenant == function.tenant
            && self
                .function
                .as_ref()
                .is_none_or(|name| *name == function.function)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.function {
            None => f.pad(self.tenant.as_str()),
            Some(function) => f.pad(&format!("{}/{function}", self.tenant)),
        }
    }
}

impl FromStr for Scope {
    type Err = <Name as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (tenant, function) = match text.split_once('/') {
            None => (text, None),
            Some((tenant, function)) => (tenant, Some(function)),
        };
        Ok(Scope {
            tenant: tenant.parse()?,
            function: function.map(str::parse).transpose()?,
        })
    }
}

/// What happens at a budget's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cap {
    /// Nothing runs any more until the month is over.
    #[default]
    Hard,
    /// There are alerts, and nothing else.
    Soft,
}

/// Prices from some time on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceSpan {
    /// From when on, milliseconds since 1970 UTC.
    pub from_ms: u64,
    /// All zero where nobody had set a price.
    pub prices: Prices,
}

/// The prices at `at_ms`. `spans` are in the order of their times; before the first there are none.
pub fn prices_at(spans: &[PriceSpan], at_ms: u64) -> Prices {
    let span = spans.iter().rev().find(|span| span.from_ms <= at_ms);
    span.map(|span| span.prices).unwrap_or_default()
}

/// What a record costs, in picos.
pub fn cost_of(spans: &[PriceSpan], record: &UsageRecord) -> u64 {
    prices_at(spans, record.accepted_ms).picos(&Units::of(record))
}

/// The most that `units` cost at any price that is in force at some time of the month, or before it in the spans.
pub fn most_of(spans: &[PriceSpan], month: Month, units: &Units) -> u64 {
    let begun = prices_at(spans, month.from_ms).picos(units);
    let within = spans.iter().filter(|span| month.has(span.from_ms));
    within.fold(begun, |most, span| most.max(span.prices.picos(units)))
}

/// A hard budget as nodes are told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetTerms {
    /// What it is for.
    pub scope: Scope,
    /// The tenant's prices, from the beginning of this month on; at most [`crate::limits::MAX_PRICE_SPANS`].
    pub prices: Vec<PriceSpan>,
}

/// All hard budgets of a fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetList {
    /// Rises with every change.
    pub revision: u64,
    /// At most [`crate::limits::MAX_HARD_BUDGETS`].
    pub budgets: Vec<BudgetTerms>,
}

/// What a node says of its leases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseAsks {
    /// Of the list of budgets that the node keeps to.
    pub revision: u64,
    /// At most [`crate::limits::MAX_LEASE_ASKS`].
    pub asks: Vec<LeaseAsk>,
}

/// What a node has of one budget in one month.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseAsk {
    /// Of which budget.
    pub scope: Scope,
    /// The month's beginning.
    pub month_ms: u64,
    /// Of the last answer that the node took; 0 if none.
    pub serial: u64,
    /// What the node may spend in the month, in all. Lower than the answer said if it gives some back.
    pub limit: u64,
    /// What it has spent, in all.
    pub spent: u64,
    /// The most that one request reserves.
    pub need: u64,
    /// What all that may run at a time reserves.
    pub want: u64,
    /// It wants more.
    pub more: bool,
    /// The most that what runs at a time may cost beyond what it has reserved.
    pub beyond: u64,
}

/// What a node is given of one budget in one month.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseAnswer {
    /// Of which budget.
    pub scope: Scope,
    /// The month's beginning.
    pub month_ms: u64,
    /// Rises with every change of the limit.
    pub serial: u64,
    /// What the node may spend in the month, in all.
    pub limit: u64,
    /// What the ledger has of the node's spending in the month.
    pub ledger: u64,
    /// Others lack budget: what is not needed is to be given back.
    pub recall: bool,
    /// The budget is at its end: no node has what another could get.
    pub exhausted: bool,
}
