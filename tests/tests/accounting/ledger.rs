//! What the ledger says, and whether that is what the callers know.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holm_test_support::patience;
use holm_tests::Fleet;
use serde_json::Value;

use super::callers::Known;
use super::plan::LEAST_JUMP_SECONDS;

/// Rows that were asked for at once.
const PAGE: u64 = 4096;
/// What the coordinator's sums are called in a row.
const SUMS: [&str; 4] = ["request_bytes", "response_bytes", "run_ns", "cpu_ns"];

/// The rows, in the order in which they were entered; probes apart.
#[derive(Default)]
pub(crate) struct Rows {
    pub(crate) all: Vec<Value>,
    pub(crate) probes: u64,
    next: u64,
}

/// Requests by what became of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    /// Without an answer, and in the ledger.
    pub(crate) unanswered_entered: u64,
    /// The same, and not there: the node never had it, or was killed while it ran.
    pub(crate) unanswered: u64,
    /// Turned away or failed by the node, with a row that says so.
    pub(crate) shed: u64,
    /// Turned away before it was admitted.
    pub(crate) turned_away: u64,
    pub(crate) refused: u64,
}

impl Rows {
    /// Gets those that came since.
    pub(crate) fn read_on(&mut self, fleet: &Fleet) {
        loop {
            let path = format!("/v1/usage/records?after={}&limit={PAGE}", self.next);
            let page = fleet.api(&path);
            for row in page["records"].as_array().expect("rows") {
                self.next = row["row"].as_u64().expect("a number");
                match row["record"]["probe"] == true {
                    true => self.probes += 1,
                    false => self.all.push(row["record"].clone()),
                }
            }
            if page["next"].is_null() {
                return;
            }
        }
    }

    /// Whether each of these requests has a row.
    pub(crate) fn have(&self, known: &[Known]) -> bool {
        let ids: BTreeSet<&str> = self.all.iter().map(|row| text(row, "request")).collect();
        known.iter().all(|known| match known {
            Known::Answered(id) => ids.contains(id.as_str()),
            _ => true,
        })
    }

    /// That each row is of one request that was sent, that no request has two, and that each that was answered has
    /// one; or what is wrong.
    pub(crate) fn compare(&self, known: &[Known]) -> Result<Tally, String> {
        let mut by_number: BTreeMap<u64, &Value> = BTreeMap::new();
        let mut ids = BTreeSet::new();
        for row in &self.all {
            let number = count(row, "request_bytes");
            if by_number.insert(number, row).is_some() || !ids.insert(text(row, "request")) {
                return Err(format!("request {number} is there twice: {row}"));
            }
            if number == 0 || number > known.len() as u64 {
                return Err(format!("nobody sent request {number}: {row}"));
            }
            let limit = patience(Duration::from_secs(LEAST_JUMP_SECONDS / 5));
            for duration in ["queue_ns", "restore_ns", "run_ns", "cpu_ns"] {
                if u128::from(count(row, duration)) > limit.as_nanos() {
                    return Err(format!("it took no such {duration}: {row}"));
                }
            }
        }
        let mut tally = Tally::default();
        for (known, number) in known.iter().zip(1..) {
            tally
                .add(known, by_number.get(&number).copied())
                .map_err(|why| {
                    let row = by_number.get(&number);
                    format!("request {number}, {known:?}: {why}: {row:?}")
                })?;
        }
        Ok(tally)
    }

    /// That `holm usage audit` finds the ledger whole, with as many rows and what became of them, and that the chains
    /// go on from what it told `before`.
    pub(crate) fn audit(&self, fleet: &Fleet, before: &Value) -> Result<Value, String> {
        let ran = fleet.holm(&["usage", "audit"]);
        let audit: Value = serde_json::from_str(&ran.stdout).unwrap_or_default();
        let wrong = |what: &str| Err(format!("{what}: {ran:?}"));
        if ran.status != 0 || audit["whole"] != true {
            return wrong("the audit finds the ledger not whole");
        }
        for nothing in ["unchained", "duplicates", "missing", "problems_left_out"] {
            if audit[nothing] != 0 {
                return wrong(nothing);
            }
        }
        if audit["rows"] != self.all.len() as u64 + self.probes || audit["probes"] != self.probes {
            return wrong("the audit counts other rows");
        }
        let probes_answered = audit["total"]["answered"].as_u64().unwrap_or(0);
        if probes_answered != self.of("answered") + self.probes {
            return wrong("the audit counts other answers");
        }
        for outcome in ["cancelled", "shed", "platform_faults"] {
            let singular = outcome.trim_end_matches('s');
            if audit["total"][outcome] != self.of(singular) {
                return wrong(outcome);
            }
        }
        let journals = audit["journals"].as_array().expect("journals");
        let newest = journals.iter().max_by_key(|of| of["boot_epoch"].as_u64());
        let newest = newest.map_or(&Value::Null, |newest| &newest["head"]);
        if newest.is_null() || audit["nodes"][0]["head"] != *newest {
            return wrong("the node's head is not that of its last life");
        }
        for old in before["journals"].as_array().into_iter().flatten() {
            let now = journals
                .iter()
                .find(|of| of["boot_epoch"] == old["boot_epoch"]);
            let grown = |now: &Value| match now["last"] == old["last"] {
                true => now["head"] == old["head"],
                false => now["last"].as_u64() > old["last"].as_u64(),
            };
            if !now.is_some_and(|now| now["first"] == old["first"] && grown(now)) {
                return wrong(&format!("a chain is no longer as it was, {old}"));
            }
        }
        Ok(audit)
    }

    /// That what `holm usage` adds up is what the rows come to.
    pub(crate) fn sums(&self, fleet: &Fleet) -> Result<(), String> {
        let always = ["--since", "2000-01-01", "--until", "2100-01-01"];
        for by in ["function", "day"] {
            let usage = fleet.holm(&[&["usage", "--by", by], &always[..]].concat());
            let usage = usage.ok();
            let usage = usage.as_array().expect("rows");
            let sum = |of: &str| usage.iter().map(|row| count(row, of)).sum::<u64>();
            if sum("executions") != self.all.len() as u64 {
                return Err(format!("{} rows: {usage:?}", self.all.len()));
            }
            for of in SUMS {
                let rows: u64 = self.all.iter().map(|row| count(row, of)).sum();
                if sum(of) != rows {
                    return Err(format!("by {by}, {of} of the rows is {rows}: {usage:?}"));
                }
            }
            for of in ["answered", "cancelled", "shed"] {
                if sum(of) != self.of(of) {
                    return Err(format!("by {by}, {} were {of}: {usage:?}", self.of(of)));
                }
            }
        }
        Ok(())
    }

    /// How many were accepted at a time that is neither now nor a moment ago.
    pub(crate) fn at_another_time(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now_ms = now.as_millis() as u64;
        let apart = |row: &&Value| {
            let accepted_ms = count(row, "accepted_ms");
            // A run of a few seeds takes less than the least jump, and a jump to and fro is seen on one side at least.
            accepted_ms > now_ms + 1000 || accepted_ms + 2 * LEAST_JUMP_SECONDS * 1000 < now_ms
        };
        self.all.iter().filter(apart).count() as u64
    }

    /// How many have this outcome.
    fn of(&self, outcome: &str) -> u64 {
        let rows = self.all.iter();
        rows.filter(|row| row["outcome"] == outcome).count() as u64
    }
}

impl Tally {
    /// Without those that were there before.
    pub(crate) fn since(&self, before: &Tally) -> Tally {
        Tally {
            sent: self.sent - before.sent,
            answered: self.answered - before.answered,
            unanswered_entered: self.unanswered_entered - before.unanswered_entered,
            // One that was there before may be entered by now.
            unanswered: self.unanswered.saturating_sub(before.unanswered),
            shed: self.shed - before.shed,
            turned_away: self.turned_away - before.turned_away,
            refused: self.refused - before.refused,
        }
    }

    fn add(&mut self, known: &Known, row: Option<&Value>) -> Result<(), &'static str> {
        self.sent += 1;
        match (known, row) {
            (Known::Sent, _) => return Err("its caller never ended"),
            (Known::Refused, None) => self.refused += 1,
            (Known::Refused, Some(_)) => return Err("it was never sent"),
            (Known::Unanswered, None) => self.unanswered += 1,
            (Known::Unanswered, Some(_)) => self.unanswered_entered += 1,
            (Known::Answered(_), None) => return Err("it is not there"),
            (Known::Answered(id), Some(row)) => {
                if text(row, "request") != id {
                    return Err("its row has another id");
                }
                let is = (
                    &row["outcome"],
                    count(row, "status"),
                    count(row, "response_bytes"),
                );
                if is != (&"answered".into(), 200, count(row, "request_bytes")) {
                    return Err("its row says something else");
                }
                self.answered += 1;
            }
            (Known::TurnedAway(id, status, kind), row) => match (kind.as_str(), row) {
                // A node that is not ready, or whose journal has no room, admits nothing. One that could not put
                // a request on record does not answer it.
                (
                    "/problems/not-ready"
                    | "/problems/unmetered"
                    | "/problems/unknown-function"
                    | "/problems/node-fault",
                    None,
                ) => self.turned_away += 1,
                ("/problems/node-fault", Some(row)) if row["outcome"] == "platform_fault" => {
                    self.shed += 1;
                }
                ("/problems/overloaded" | "/problems/queued-too-long", Some(row)) => {
                    if (text(row, "request"), count(row, "status")) != (id, u64::from(*status)) {
                        return Err("its row has another id or status");
                    }
                    if row["outcome"] != "shed" {
                        return Err("its row does not say that it was shed");
                    }
                    self.shed += 1;
                }
                _ => return Err("a request that is turned away so cannot have that"),
            },
        }
        Ok(())
    }
}

fn text<'a>(row: &'a Value, of: &str) -> &'a str {
    row[of].as_str().unwrap_or_else(|| panic!("no {of}: {row}"))
}

fn count(row: &Value, of: &str) -> u64 {
    row[of].as_u64().unwrap_or_else(|| panic!("no {of}: {row}"))
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.answered + self.unanswered_entered + self.shed;
        write!(
            f,
            "{} sent = {} answered + {} unanswered and entered + {} shed (= {rows} rows) + {} unanswered + {} turned \
             away + {} refused",
            self.sent,
            self.answered,
            self.unanswered_entered,
            self.shed,
            self.unanswered,
            self.turned_away,
            self.refused
        )
    }
}
