//! A node's part: when to ask for more, what to give back, and what an answer changes.

use super::{LeaseAnswer, LeaseAsk, Month, Scope};
use crate::limits::{
    LEASE_AGAIN_MS, LEASE_AGAIN_SPENT_MS, LEASE_HELD_MS, LEASE_IDLE_MS, LEASE_REPORT_MS,
};

/// What a node has leased of one budget in one month. `serial`, `limit` and `base` are to outlive the node: stored
/// before a lower limit is told, and before a higher one is better used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Of which budget.
    pub scope: Scope,
    /// In which month.
    pub month: Month,
    /// Of the last answer taken.
    pub serial: u64,
    /// What the node may spend in the month, in all.
    pub limit: u64,
    /// What the node had spent in the month before it counted, as the ledger told it; none if that is not known yet.
    pub base: Option<u64>,
    /// No node has what this one could get, as the last answer said.
    pub exhausted: bool,
    recalled: bool,
    /// Given back, and nobody is known to have heard of it.
    untold: bool,
    /// Asked, and not answered: more may have been leased than is known here.
    unanswered: bool,
    /// By the last grant.
    slice: u64,
    asked_ms: Option<u64>,
    /// When it was last short of budget after an ask for more.
    vain_ms: Option<u64>,
    told_spent: u64,
    seen_spent: u64,
    busy_ms: u64,
}

/// What a node sees of a budget when it is looked after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// Spent in the month, in all.
    pub spent: u64,
    /// What can be reserved now.
    pub room: u64,
    /// Requests found too little since the last look.
    pub refused: bool,
    /// As in [`LeaseAsk`].
    pub need: u64,
    /// As in [`LeaseAsk`].
    pub want: u64,
    /// As in [`LeaseAsk`].
    pub beyond: u64,
}

/// What a node does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// To be taken out of the room at once; what cannot be is left. See [`Holder::give_back`].
    pub give_back: u64,
    /// Ask for more.
    pub more: bool,
}

impl Holder {
    /// Nothing is leased yet; `base` as in the field.
    pub fn new(scope: Scope, month: Month, base: Option<u64>) -> Self {
        Holder {
            scope,
            month,
            serial: 0,
            limit: 0,
            base,
            exhausted: false,
            recalled: false,
            untold: false,
            unanswered: false,
            slice: 0,
            asked_ms: None,
            vain_ms: None,
            told_spent: 0,
            seen_spent: 0,
            busy_ms: 0,
        }
    }

    /// Whether there is anything to ask or tell at `now_ms`, and what is to be given back before.
    pub fn look(&mut self, now_ms: u64, sight: &Sight) -> Option<Next> {
        if sight.spent != self.seen_spent || sight.refused {
            self.seen_spent = sight.spent;
            self.busy_ms = now_ms;
        }
        let since = |then: u64| now_ms.abs_diff(then);
        let Some(asked_ms) = self.asked_ms else {
            return Some(Next {
                give_back: 0,
                more: true,
            });
        };
        let idle = since(self.busy_ms) >= LEASE_IDLE_MS;
        // Where others lack it, what is at work keeps half, and what pays for no request goes.
        let keep = match (self.recalled, idle) {
            (true, _) if sight.room < sight.need => 0,
            (true, false) => sight.room - sight.room / 2,
            (true, true) => 0,
            (false, true) => sight.want,
            (false, false) => u64::MAX,
        };
        let give_back = sight.room.saturating_sub(keep);
        let low = sight.room < sight.need || sight.room < sight.want.max(self.slice) / 2;
        let again_ms = match self.exhausted {
            true => LEASE_AGAIN_SPENT_MS,
            false => LEASE_AGAIN_MS,
        };
        let vain = self.vain_ms.is_some_and(|at| since(at) < again_ms);
        let more = give_back == 0 && !vain && (sight.refused || low && !idle);
        let report = since(asked_ms) >= LEASE_REPORT_MS && sight.spent != self.told_spent
            || since(asked_ms) >= LEASE_HELD_MS && sight.room > 0
            || since(asked_ms) >= LEASE_AGAIN_MS
                && (self.untold || self.unanswered || self.base.is_none());
        (give_back > 0 || more || report).then_some(Next { give_back, more })
    }

    /// Whether more may come at any moment.
    pub fn hopes(&self) -> bool {
        self.vain_ms.is_none()
    }

    /// An ask had no answer: it is asked again, but not at once.
    pub fn missed(&mut self, now_ms: u64) {
        self.vain_ms = Some(now_ms);
    }

    /// Lowers the limit by what was taken out of the room.
    pub fn give_back(&mut self, picos: u64) {
        self.limit = self.limit.saturating_sub(picos);
        self.untold |= picos > 0;
        self.recalled = false;
    }

    /// What to say, when this has been stored.
    pub fn ask(&mut self, now_ms: u64, sight: &Sight, more: bool) -> LeaseAsk {
        self.asked_ms = Some(now_ms);
        self.unanswered = true;
        self.told_spent = sight.spent;
        LeaseAsk {
            scope: self.scope.clone(),
            month_ms: self.month.from_ms,
            serial: self.serial,
            limit: self.limit,
            spent: sight.spent,
            need: sight.need,
            want: sight.want,
            more,
            beyond: sight.beyond,
        }
    }

    /// Takes an answer; whether there is something to be stored. An answer that is older than what is here changes
    /// nothing: the node may have given back since. `uploaded` is what of the node's own count was in the ledger before it asked.
    pub fn take(
        &mut self,
        answer: &LeaseAnswer,
        asked_more: bool,
        uploaded: u64,
        now_ms: u64,
    ) -> bool {
        let based = self.base.is_none();
        let before = answer.ledger.saturating_sub(uploaded);
        self.base.get_or_insert(before);
        self.unanswered = false;
        self.exhausted = answer.exhausted;
        self.recalled = answer.recall;
        if answer.serial <= self.serial {
            self.vain_ms = asked_more.then_some(now_ms).or(self.vain_ms);
            return based;
        }
        (self.vain_ms, self.untold) = (None, false);
        self.slice = answer.limit.saturating_sub(self.limit);
        (self.serial, self.limit) = (answer.serial, answer.limit);
        true
    }
}
