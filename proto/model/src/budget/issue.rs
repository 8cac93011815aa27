//! The coordinators' part: who may spend how much of a budget.
//!
//! For each node there is a [`Line`]. The sum of what all lines may cost never rises above the cap by what is decided
//! here; it is above it only where usage came that was not leased, or where the cap was lowered.

use super::{LeaseAnswer, LeaseAsk};
use crate::limits::SLICES_OF_A_BUDGET;

/// What one node has of a budget in a month.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// The limit that was leased to it.
    pub granted: u64,
    /// What it says that it has spent.
    pub reported: u64,
    /// What the ledger says.
    pub ledger: u64,
    /// Rises with every change of `granted`.
    pub serial: u64,
    /// The most that what it runs at a time may cost beyond what it has reserved.
    pub beyond: u64,
}

impl Line {
    /// The most that the node's usage of the month comes to, but for [`Line::beyond`].
    pub fn committed(&self) -> u64 {
        self.granted.max(self.spent())
    }

    /// What is known to be spent.
    pub fn spent(&self) -> u64 {
        self.reported.max(self.ledger)
    }

    /// What it may still spend.
    pub fn unspent(&self) -> u64 {
        self.granted.saturating_sub(self.spent())
    }
}

/// What is decided on an ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The node's line from now on; to be stored before the answer leaves.
    pub line: Line,
    /// The node got less than one request needs: others are to give back what they do not need.
    pub wanted: bool,
    /// What the node is told. Others who lack budget are to be seen to by the caller.
    pub answer: LeaseAnswer,
}

/// Decides on what a node asks, under a cap on all lines together. `others` are those of all other nodes.
/// `open` is false once nothing of the month is leased any more.
pub fn decide(cap: u64, open: bool, others: &[Line], own: Line, ask: &LeaseAsk) -> Decision {
    let mut line = own;
    line.reported = line.reported.max(ask.spent);
    line.beyond = ask.beyond;
    let current = ask.serial == line.serial;
    if current && ask.limit < line.granted {
        // It keeps to that already.
        line.granted = ask.limit;
        line.serial += 1;
    } else if ask.serial > line.serial {
        // The database is older than the lease (restored from a backup): the node may spend what it says.
        line.granted = line.granted.max(ask.limit);
        line.serial = ask.serial.saturating_add(1);
    }
    // An answer that the node did not get is given once more, before anything new.
    let asks = open && ask.more && current;
    let taken = others.iter().map(Line::committed);
    let taken = taken.fold(line.committed(), u64::saturating_add);
    let free = cap.saturating_sub(taken);
    let unspent = line.unspent();
    let grant = match asks {
        true => slice(cap, free, others, unspent, ask),
        false => 0,
    };
    if grant > 0 {
        line.granted = line.committed().saturating_add(grant);
        line.serial += 1;
    }
    let short = ask.more && current && line.unspent() < ask.need;
    let elsewhere = others.iter().map(Line::unspent);
    let elsewhere = elsewhere.fold(free.saturating_add(unspent), u64::saturating_add);
    Decision {
        line,
        wanted: short,
        answer: LeaseAnswer {
            scope: ask.scope.clone(),
            month_ms: ask.month_ms,
            serial: line.serial,
            limit: line.granted,
            ledger: line.ledger,
            recall: taken > cap,
            exhausted: !open || short && elsewhere < ask.need,
        },
    }
}

/// How much more a node gets: a part of what is free, which gets less towards the end and with the number of nodes
/// that have some, but enough for what it may run at a time, and at least for one more request if that can be.
fn slice(cap: u64, free: u64, others: &[Line], unspent: u64, ask: &LeaseAsk) -> u64 {
    let holders = others.iter().filter(|line| line.unspent() > 0).count() as u64 + 1;
    let even = free / (2 * holders);
    let lacks = ask.want.saturating_sub(unspent);
    let slice = lacks.max(cap / SLICES_OF_A_BUDGET).min(even);
    let need = ask.need.max(1);
    if slice >= need {
        return slice;
    }
    // Less would pay for nothing, unless it makes whole what the node has already.
    let whole = |budget: u64| budget / need;
    match free >= need {
        true => need,
        false if whole(unspent.saturating_add(free)) > whole(unspent) => free,
        false => 0,
    }
}
