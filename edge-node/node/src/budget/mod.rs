//! Budgets on a node: what it may spend, and how it gets more.
//!
//! ```text
//!  coordinator ──list of hard budgets──▶ [Budgets] ──gauges──▶ journal's thread, which counts
//!       ▲ ask, give back │ lease            │ table of gauges
//!       └────────────────┘                  ▼
//!                              lanes: reserve before a request is admitted [gauge]
//! ```
//! One task on the control thread holds the leases ([`holm_model::budget::hold`]). It looks at the gauges from time to
//! time: no request wakes it. The list and the leases are in a file before they are kept to, so a node that starts
//! anew without a coordinator keeps to them, and goes on with what its journal says that it has left.

pub(crate) mod gauge;
pub(crate) mod lane;
mod leaving;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use holm_model::budget::hold::{Holder, Next, Sight};
use holm_model::budget::{BudgetList, LeaseAnswer, LeaseAsks, Month, Scope, most_of};
use holm_model::codec;
use holm_model::control::{BulkAnswer, BulkRequest};
use holm_model::ids::{FunctionName, Name};
use holm_model::limits::{
    MAX_CONTROL_FRAME_BYTES, MAX_HARD_BUDGETS, MAX_LEASE_ASKS, MAX_PRICE_SPANS, NEXT_MONTH_MS,
    OVERRUN_MS,
};
use holm_model::price::{NS_PER_MS, Units, kib_ms};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::deploy::routes::{Live, Table};
use crate::files::{self, FileError};
use crate::limits::{BUDGET_LOOK, LEASE_TIMEOUT, MAX_EGRESS_BYTES_BUDGETED};
use crate::meter::journal::{Journal, JournalError, JournalReader};
use crate::session::{self, Link};
use gauge::Gauge;
use leaving::Leaving;

/// The gauges that requests reserve from. Never changed; a new one takes its place.
#[derive(Debug, Default)]
pub(crate) struct Gauges(Vec<Arc<Gauge>>);

/// A new list, and who is told when the node keeps to it.
pub(crate) type NewList = (BudgetList, oneshot::Sender<()>);

/// The budgets of a node.
pub(crate) struct Budgets {
    path: PathBuf,
    list: BudgetList,
    held: BTreeMap<(Scope, u64), Held>,
    journal: JournalReader,
    counted_from_ms: u64,
    table: watch::Sender<Arc<Gauges>>,
    /// Of the list as the coordinator was last told that it is kept to.
    told_revision: Option<u64>,
    /// Something was given back that the disk does not know yet.
    unkept: bool,
    /// The journal could not be had to count for what is held.
    unsettled: bool,
    leaving: Leaving<Live>,
    /// The last one that was asked about, if there was no room for more.
    last: Option<(Scope, u64)>,
}

struct Held {
    holder: Holder,
    gauge: Arc<Gauge>,
    /// Refusals seen.
    refused: u64,
    /// The most that was reserved at a time lately.
    peak: u64,
    /// Since when it is here.
    since: Instant,
    /// The node served without it before.
    within: bool,
}

/// What was asked of a budget.
struct Asked {
    more: bool,
    /// As [`Holder::take`] wants it.
    uploaded: u64,
}

/// The format of `budgets.bin`. Another one needs a conversion from this, as long as there are nodes that have it.
const KEPT_FORMAT: u16 = 5;

/// What is kept on disk.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    list: BudgetList,
    leases: Vec<KeptLease>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptLease {
    scope: Scope,
    month_ms: u64,
    serial: u64,
    limit: u64,
    base: Option<u64>,
}

/// The months that budgets are held for at this time: the next one too when it is near.
fn months_at(now_ms: u64) -> impl Iterator<Item = Month> {
    let month = Month::of(now_ms);
    let next = (now_ms + NEXT_MONTH_MS >= month.to_ms).then(|| month.next());
    [Some(month), next].into_iter().flatten()
}

impl Budgets {
    /// Takes up what the disk says. When this returns, nothing runs beyond it.
    pub(crate) fn open(
        dir: &Path,
        journal: &Journal,
    ) -> Result<(Self, watch::Receiver<Arc<Gauges>>), OpenError> {
        let path = dir.join("budgets.bin");
        let kept = read(&path)?;
        let (table, gauges) = watch::channel(Arc::default());
        let mut budgets = Budgets {
            path,
            list: kept.list,
            held: BTreeMap::new(),
            journal: journal.reader(),
            counted_from_ms: journal.counted_from_ms,
            table,
            told_revision: Some(0),
            leaving: Leaving::default(),
            unkept: false,
            unsettled: false,
            last: None,
        };
        budgets.take_up(now_ms());
        for lease in kept.leases {
            if let Some(held) = budgets.held.get_mut(&(lease.scope, lease.month_ms)) {
                held.holder.serial = lease.serial;
                held.holder.limit = lease.limit;
                held.holder.base = held.holder.base.or(lease.base);
                held.set_lease();
            }
        }
        let gauges_now = budgets.gauges();
        if !gauges_now.is_empty() {
            journal.gauge(gauges_now.clone())?;
            budgets.table.send_replace(Arc::new(Gauges(gauges_now)));
        }
        Ok((budgets, gauges))
    }

    /// Keeps to what the coordinator says as long as it is polled.
    pub(crate) async fn run(
        mut self,
        mut lists: mpsc::Receiver<NewList>,
        link: Link,
        routes: watch::Receiver<Arc<Table>>,
    ) {
        let mut look = tokio::time::interval(BUDGET_LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let idle = self.held.is_empty() && self.told_revision == Some(self.list.revision);
            tokio::select! {
                new = lists.recv() => match new {
                    Some((list, done)) => {
                        self.follow(list).await;
                        // If the link is gone, nobody waits.
                        let _ = done.send(());
                    }
                    None => std::future::pending().await,
                },
                _ = look.tick(), if !idle => {
                    let table = routes.borrow().clone();
                    self.look(&link, &table).await;
                }
            }
        }
    }

    /// Keeps to a new list.
    async fn follow(&mut self, mut list: BudgetList) {
        list.budgets.truncate(MAX_HARD_BUDGETS);
        for budget in &mut list.budgets {
            budget.prices.truncate(MAX_PRICE_SPANS);
        }
        self.told_revision = None;
        if list == self.list {
            return;
        }
        tracing::info!(
            revision = list.revision,
            budgets = list.budgets.len(),
            "a new list of budgets"
        );
        self.list = list;
        self.settle(now_ms()).await;
    }

    /// Has a gauge for every budget and month that is to have one, and has the journal count for them.
    async fn settle(&mut self, now_ms: u64) {
        self.take_up(now_ms);
        // Not being able to keep it is no reason not to keep to it.
        if let Err(error) = self.keep() {
            tracing::error!(%error, "after a restart without a coordinator the node would keep to older budgets");
        }
        let gauges = self.gauges();
        let counted = self.journal.gauge(gauges.clone()).await;
        self.unsettled = counted.is_err();
        if let Err(error) = counted {
            // Without leases nothing runs under a budget.
            tracing::error!(%error, "what was spent of budgets is not known");
        }
        self.table.send_replace(Arc::new(Gauges(gauges)));
    }

    fn take_up(&mut self, now_ms: u64) {
        let mut held = BTreeMap::new();
        for budget in &self.list.budgets {
            for month in months_at(now_ms) {
                let key = (budget.scope.clone(), month.from_ms);
                let one = match self.held.remove(&key) {
                    Some(one) => {
                        one.gauge.set_prices(budget.prices.clone());
                        one
                    }
                    None => {
                        let base = (month.from_ms >= self.counted_from_ms).then_some(0);
                        let gauge = Gauge::new(budget.scope.clone(), month, budget.prices.clone());
                        Held {
                            holder: Holder::new(budget.scope.clone(), month, base),
                            gauge: Arc::new(gauge),
                            refused: 0,
                            peak: 0,
                            since: Instant::now(),
                            within: self.told_revision.is_none(),
                        }
                    }
                };
                held.insert(key, one);
            }
        }
        self.held = held;
    }

    fn gauges(&self) -> Vec<Arc<Gauge>> {
        self.held.values().map(|held| held.gauge.clone()).collect()
    }

    /// In which order they are looked at: behind the last one that a message had room for, so that each has its turn.
    fn order(&mut self) -> Vec<(Scope, u64)> {
        let mut keys: Vec<_> = self.held.keys().cloned().collect();
        if let Some(last) = self.last.take() {
            let behind = keys.partition_point(|key| *key <= last);
            keys.rotate_left(behind);
        }
        keys
    }

    /// Says and asks what is to be said and asked.
    async fn look(&mut self, link: &Link, table: &Table) {
        let now_ms = now_ms();
        // A clock that was wrong may have had it count for other months.
        let months: BTreeSet<u64> = self.held.keys().map(|(_, from_ms)| *from_ms).collect();
        let wanted: BTreeSet<u64> = months_at(now_ms).map(|month| month.from_ms).collect();
        if self.unsettled || months != wanted && !self.list.budgets.is_empty() {
            self.settle(now_ms).await;
        }
        if self.unsettled {
            // Nothing is counted, so nothing may be leased.
            return;
        }
        let linked = link.is_up();
        for held in self.held.values() {
            let holder = &held.holder;
            held.gauge
                .set_outlook(holder.exhausted, linked && holder.hopes());
        }
        if !linked {
            return;
        }
        let unsaid = self.told_revision != Some(self.list.revision);
        let mut lives: HashMap<&Name, Vec<&Live>> = HashMap::new();
        for live in table.live() {
            lives.entry(&live.function.tenant).or_default().push(live);
        }
        // No more than what counts of them, so that they can go while a question is under way.
        let left = self.leaving.look(table.live());
        let left: Vec<_> = left.iter().map(|live| UnderWay::of(live)).collect();
        let mut asks = Vec::new();
        let mut asked = BTreeMap::new();
        for key in self.order() {
            let Some(held) = self.held.get_mut(&key) else {
                continue;
            };
            let lives = lives.get(&key.0.tenant).map_or(&[][..], Vec::as_slice);
            let Some((sight, next)) = held.look(now_ms, lives, &left, unsaid) else {
                continue;
            };
            // Before the question: what comes into the ledger in between is then counted twice and not never.
            let uploaded = match held.holder.base {
                Some(_) => Ok(0),
                None => self.journal.uploaded(held.gauge.clone()).await,
            };
            let uploaded = match uploaded {
                Ok(uploaded) => uploaded,
                Err(error) => {
                    tracing::error!(%error, "what was spent of budgets is not known");
                    continue;
                }
            };
            let back = held.gauge.give_back(next.give_back);
            held.holder.give_back(back);
            self.unkept |= back > 0;
            asks.push(held.holder.ask(now_ms, &sight, next.more));
            let more = next.more;
            asked.insert(key.clone(), Asked { more, uploaded });
            if asks.len() == MAX_LEASE_ASKS {
                self.last = Some(key);
                break;
            }
        }
        if asks.is_empty() && !unsaid {
            return;
        }
        // What is given back is another node's as soon as that has been said.
        if self.unkept
            && let Err(error) = self.keep()
        {
            tracing::error!(%error, "budget cannot be given back");
            return;
        }
        self.unkept = false;
        let revision = self.list.revision;
        let request = BulkRequest::Lease(LeaseAsks { revision, asks });
        let connection = link.up().await;
        let answer = tokio::time::timeout(LEASE_TIMEOUT, session::ask(&connection, &request));
        let answers = match answer.await {
            Ok(Ok((BulkAnswer::Leases(answers), _))) => {
                self.told_revision = Some(revision);
                answers
            }
            Ok(Ok((BulkAnswer::Refused { reason }, _))) => {
                tracing::warn!(reason, "the coordinator leases no budget");
                Vec::new()
            }
            Ok(Ok(_)) => {
                tracing::warn!(
                    "the coordinator answers a question about budgets with something else"
                );
                Vec::new()
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "no lease of budget for now");
                Vec::new()
            }
            Err(_) => {
                tracing::debug!("the coordinator does not answer about budgets");
                Vec::new()
            }
        };
        self.take(&answers, &asked, now_ms);
    }

    fn take(
        &mut self,
        answers: &[LeaseAnswer],
        asked: &BTreeMap<(Scope, u64), Asked>,
        now_ms: u64,
    ) {
        let mut changed = false;
        for key in asked.keys() {
            let answered = |answer: &LeaseAnswer| answer.scope == key.0 && answer.month_ms == key.1;
            if let Some(held) = self.held.get_mut(key)
                && !answers.iter().any(answered)
            {
                held.holder.missed(now_ms);
            }
        }
        for answer in answers {
            let key = (answer.scope.clone(), answer.month_ms);
            if let (Some(held), Some(Asked { more, uploaded })) =
                (self.held.get_mut(&key), asked.get(&key))
            {
                changed |= held.holder.take(answer, *more, *uploaded, now_ms);
                held.gauge
                    .set_outlook(held.holder.exhausted, held.holder.hopes());
            }
        }
        if !changed {
            return;
        }
        // A lease that is lost with the process is told again; what was spent is in the journal.
        if let Err(error) = self.keep() {
            tracing::error!(%error, "after a restart without a coordinator the node would have less budget");
        }
        for held in self.held.values() {
            held.set_lease();
        }
    }

    fn keep(&self) -> Result<(), FileError> {
        let leases = self.held.values().map(|held| KeptLease {
            scope: held.holder.scope.clone(),
            month_ms: held.holder.month.from_ms,
            serial: held.holder.serial,
            limit: held.holder.limit,
            base: held.holder.base,
        });
        let kept = Kept {
            list: self.list.clone(),
            leases: leases.collect(),
        };
        let bytes = codec::encode_file(&kept, KEPT_FORMAT).map_err(|error| {
            FileError::new(
                "write",
                &self.path,
                std::io::Error::other(error.to_string()),
            )
        })?;
        files::write_atomically(&self.path, &bytes, 0o600)
    }
}

impl Held {
    /// What is seen of it, and what is to be done; with `unsaid` there is something to say of what is leased anyhow.
    /// `lives` are what serves the tenant's functions, `left` what served any and has requests under way.
    fn look(
        &mut self,
        now_ms: u64,
        lives: &[&Live],
        left: &[UnderWay],
        unsaid: bool,
    ) -> Option<(Sight, Next)> {
        let mut sight = Sight {
            spent: self.gauge.spent(),
            room: self.gauge.room(),
            ..Sight::default()
        };
        let scope = &self.gauge.scope;
        let mut served = lives
            .iter()
            .filter(|live| scope.covers(&live.function))
            .peekable();
        // A node that has none of the functions needs nothing, but gives back what it may still have.
        let first = self.holder.serial == 0 && self.holder.limit == 0;
        if first && served.peek().is_none() {
            return None;
        }
        let prices = self.gauge.prices();
        // What may run at a time reserves so much, and takes so long.
        let (mut all, mut under_way, mut longest_ms): (u64, u64, u64) = (0, 0, 0);
        let most = |units: &Units| most_of(&prices, self.gauge.month, units);
        let mut run = |what: &UnderWay| {
            let one = most(&what.reserved);
            let at_a_time = one.saturating_mul(what.at_a_time);
            under_way = under_way.saturating_add(at_a_time);
            let beyond = most(&what.overrun).saturating_mul(what.at_a_time);
            sight.beyond = sight.beyond.saturating_add(beyond);
            longest_ms = longest_ms.max(what.longest_ms);
            (one, at_a_time)
        };
        for live in served {
            let (one, at_a_time) = run(&UnderWay::of(live));
            sight.need = sight.need.max(one);
            all = all.saturating_add(at_a_time);
        }
        for what in left.iter().filter(|what| scope.covers(&what.function)) {
            run(what);
        }
        // What was under way when the budget came has reserved nothing.
        if self.within && self.since.elapsed() < Duration::from_millis(longest_ms) {
            sight.beyond = sight.beyond.saturating_add(under_way);
        }
        let refused = self.gauge.refused();
        sight.refused = std::mem::replace(&mut self.refused, refused) != refused;
        sight.want = self.want(&sight, all);
        let next = self.holder.look(now_ms, &sight);
        let next = next.or((unsaid && !first).then_some(Next {
            give_back: 0,
            more: false,
        }))?;
        Some((sight, next))
    }

    /// What is to be at hand: twice of what was reserved at a time lately, more where that did not do, and never more
    /// than may run.
    fn want(&mut self, sight: &Sight, all: u64) -> u64 {
        let reserved = self.holder.limit.saturating_sub(sight.spent);
        let reserved = reserved.saturating_sub(sight.room);
        self.peak = reserved.max(self.peak - self.peak / 64);
        if sight.refused {
            self.peak = self.peak.max(sight.need).saturating_mul(2);
        }
        self.peak = self.peak.min(all);
        let want = self.peak.saturating_mul(2);
        want.max(sight.need.saturating_mul(2))
            .min(all.max(sight.need))
    }

    fn set_lease(&self) {
        match self.holder.base {
            Some(base) => self.gauge.set_lease(self.holder.limit, base),
            // What was spent is not known, so it may be all.
            None => self.gauge.set_lease(0, 0),
        }
    }
}

/// What a version may have under way.
struct UnderWay {
    function: FunctionName,
    reserved: Units,
    overrun: Units,
    at_a_time: u64,
    longest_ms: u64,
}

impl UnderWay {
    fn of(live: &Live) -> Self {
        UnderWay {
            function: live.function.clone(),
            reserved: reserved_units(live),
            overrun: overrun_units(live),
            at_a_time: u64::from(live.limits.concurrency),
            longest_ms: live.limits.deadline_ms + OVERRUN_MS,
        }
    }
}

/// The most that one request of a version can use by its limits.
pub(crate) fn reserved_units(live: &Live) -> Units {
    let egress = match live.allowed.is_empty() {
        true => 0,
        false => MAX_EGRESS_BYTES_BUDGETED,
    };
    Units {
        requests: 1,
        memory_kib_ms: kib_ms(live.limits.memory_bytes, live.limits.deadline_ms),
        cpu_ns: live.limits.cpu_ms.saturating_mul(NS_PER_MS),
        egress_bytes: live.limits.response_body_bytes.saturating_add(egress),
    }
}

/// What it may use beyond until it is over.
fn overrun_units(live: &Live) -> Units {
    Units {
        requests: 0,
        memory_kib_ms: kib_ms(live.limits.memory_bytes, OVERRUN_MS),
        cpu_ns: OVERRUN_MS * NS_PER_MS,
        egress_bytes: 0,
    }
}

/// Budgets cannot be kept to. The node or its operator is to blame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// A file that is damaged stops the node: it says what the node must not spend.
fn read(path: &Path) -> Result<Kept, FileError> {
    let max = MAX_CONTROL_FRAME_BYTES as u64 + 4;
    let Some(bytes) = files::read_if_there(path, max)? else {
        return Ok(Kept::default());
    };
    let damaged = |why: String| {
        let why = format!(
            "{why}; remove it only if no function here is under a budget, or with a coordinator at hand"
        );
        FileError::new("read", path, std::io::Error::other(why))
    };
    codec::decode_file(&bytes, KEPT_FORMAT..=KEPT_FORMAT)
        .map_err(|error| damaged(error.to_string()))
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As protocol version 5 has written it: a budget for `acme/hello`, and a lease of `acme`'s. A change of these
    /// bytes needs a new [`KEPT_FORMAT`] and a conversion: nodes that are updated have such files, and do not start
    /// without what they say.
    const KEPT_OF_VERSION_5: &str = "46000000050003010461636d65010568656c6c6f01fd0068e5cf8b01000004302e323004302e303004302e303004\
                                     302e3030010461636d6500fd00082e888b01000002fbb80b01fbe803";

    #[test]
    fn leases_from_before_an_update_are_read_and_written_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("budgets.bin");
        let file = hex::decode(KEPT_OF_VERSION_5).unwrap();
        std::fs::write(&path, &file).unwrap();
        let kept = read(&path).unwrap();
        assert_eq!(kept.list.revision, 3);
        assert_eq!(kept.list.budgets[0].scope.to_string(), "acme/hello");
        let lease = &kept.leases[0];
        assert_eq!(
            (lease.serial, lease.limit, lease.base),
            (2, 3_000, Some(1_000))
        );
        assert_eq!(codec::encode_file(&kept, KEPT_FORMAT).unwrap(), file);
        // What a newer version has written stops the node, which says so.
        let newer = codec::encode_file(&kept, KEPT_FORMAT + 1).unwrap();
        std::fs::write(&path, newer).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("a newer one has written it"), "{error}");
    }
}
