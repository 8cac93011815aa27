//! What was used, by function and hour: kept whether the ledger has the records or not, so that what the node has
//! spent of a budget is known at any start, without a coordinator. It is units and not money, because prices may be
//! learned later; by the hour, because prices change at hours.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use holm_model::budget::{Month, cost_of, prices_at};
use holm_model::chain;
use holm_model::ids::FunctionName;
use holm_model::price::{HOUR_MS, Units};
use holm_model::usage::UsageRecord;
use rusqlite::{Connection, Transaction, params};

use super::super::JournalError;
use super::{Store, USED, number};
use crate::budget::gauge::{ByTenant, Gauge};

/// Adds the table to a journal that has none. Of what it counted before nothing is known but what is not uploaded.
pub(super) fn begin(database: &mut Connection) -> Result<(), rusqlite::Error> {
    let transaction = database.transaction()?;
    transaction.execute_batch(USED)?;
    each_commit(&transaction, |records| add(&transaction, records.iter()))?;
    transaction.commit()
}

/// Goes through the records that are not uploaded. One that cannot be read is found when it is to be.
fn each_commit(
    database: &Connection,
    mut with: impl FnMut(&[UsageRecord]) -> Result<(), rusqlite::Error>,
) -> Result<(), rusqlite::Error> {
    let mut commits = database.prepare("SELECT records FROM commits")?;
    let mut rows = commits.query([])?;
    while let Some(row) = rows.next()? {
        let bytes: Vec<u8> = row.get(0)?;
        let mut rest = &bytes[..];
        let mut records = Vec::new();
        while let Some((record, after)) = chain::decode(rest) {
            records.push(record);
            rest = after;
        }
        with(&records)?;
    }
    Ok(())
}

/// Adds records that are being committed.
pub(super) fn add<'a>(
    transaction: &Transaction<'_>,
    records: impl Iterator<Item = &'a UsageRecord>,
) -> Result<(), rusqlite::Error> {
    let mut sums: BTreeMap<(u64, &FunctionName), Units> = BTreeMap::new();
    for record in records {
        let units = Units::of(record);
        if units != Units::default() {
            let hour = record.accepted_ms - record.accepted_ms % HOUR_MS;
            let sum = sums.entry((hour, &record.function)).or_default();
            *sum = sum.plus(units);
        }
    }
    for ((hour, function), units) in sums {
        // A sum that does not fit is held at the end.
        let held = |name: &str, n: u8| {
            format!(
                "{name} = CASE WHEN {name} > {max} - ?{n} THEN {max} ELSE {name} + ?{n} END",
                max = i64::MAX
            )
        };
        let upsert = format!(
            "INSERT INTO used VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO UPDATE SET {}, {}, {}, {}",
            held("requests", 3),
            held("memory_kib_ms", 4),
            held("cpu_ns", 5),
            held("egress_bytes", 6),
        );
        let fits = |units: u64| i64::try_from(units).unwrap_or(i64::MAX);
        transaction.prepare_cached(&upsert)?.execute(params![
            fits(hour),
            function.to_string(),
            fits(units.requests),
            fits(units.memory_kib_ms),
            fits(units.cpu_ns),
            fits(units.egress_bytes),
        ])?;
    }
    Ok(())
}

impl Store {
    /// What this journal has counted of each gauge's budget in its month, in picos; nothing of those that are not there.
    pub(in crate::meter::journal) fn spent(
        &self,
        gauges: &ByTenant,
    ) -> Result<HashMap<*const Gauge, u64>, JournalError> {
        let mut spent = HashMap::new();
        let mut read = || -> Result<(), rusqlite::Error> {
            let first = gauges.all().map(|gauge| gauge.month.from_ms).min();
            let mut rows = self.database.prepare_cached(
                "SELECT hour_ms, function, requests, memory_kib_ms, cpu_ns, egress_bytes FROM used WHERE hour_ms >= ?1",
            )?;
            let mut rows = rows.query([first.map_or(i64::MAX, |first| first as i64)])?;
            while let Some(row) = rows.next()? {
                let Ok(function) = row.get::<_, String>(1)?.parse() else {
                    continue;
                };
                let hour = number(row, 0)?;
                for gauge in gauges.of(&function).filter(|gauge| gauge.month.has(hour)) {
                    let units = Units {
                        requests: number(row, 2)?,
                        memory_kib_ms: number(row, 3)?,
                        cpu_ns: number(row, 4)?,
                        egress_bytes: number(row, 5)?,
                    };
                    let picos = prices_at(&gauge.prices(), hour).picos(&units);
                    let sum: &mut u64 = spent.entry(Arc::as_ptr(gauge)).or_default();
                    *sum = sum.saturating_add(picos);
                }
            }
            Ok(())
        };
        read().map_err(|error| self.wrong(error))?;
        Ok(spent)
    }

    /// The same for one gauge.
    pub(in crate::meter::journal) fn counted(
        &self,
        gauge: &Arc<Gauge>,
    ) -> Result<u64, JournalError> {
        let counted = self.spent(&ByTenant::new(vec![gauge.clone()]))?;
        Ok(counted.get(&Arc::as_ptr(gauge)).copied().unwrap_or(0))
    }

    /// What of that is not in the ledger yet. Goes through the whole journal.
    pub(in crate::meter::journal) fn unsent(
        &self,
        gauge: &Arc<Gauge>,
    ) -> Result<u64, JournalError> {
        let prices = gauge.prices();
        let mut unsent: u64 = 0;
        let read = each_commit(&self.database, |records| {
            for record in records.iter().filter(|record| gauge.counts(record)) {
                unsent = unsent.saturating_add(cost_of(&prices, record));
            }
            Ok(())
        });
        read.map_err(|error| self.wrong(error))?;
        Ok(unsent)
    }

    /// Forgets months that are long over; returns from when on everything is counted.
    pub(in crate::meter::journal) fn forget_used(
        &mut self,
        now_ms: u64,
    ) -> Result<u64, JournalError> {
        let forget = |database: &mut Connection| -> Result<u64, rusqlite::Error> {
            let transaction = database.transaction()?;
            // A clock that is set forward by mistake makes this month one that was not counted from its beginning
            // on, and then the coordinator is asked what the node had spent.
            let keep_ms = Month::of(now_ms.saturating_sub(KEPT_MS)).from_ms as i64;
            let before: i64 = transaction.query_row(
                "SELECT coalesce((SELECT from_ms FROM counted), ?1)",
                [now_ms as i64],
                |row| row.get(0),
            )?;
            let from_ms = before.max(keep_ms);
            transaction.execute("DELETE FROM used WHERE hour_ms < ?1", [keep_ms])?;
            transaction.execute("INSERT OR REPLACE INTO counted VALUES (1, ?1)", [from_ms])?;
            transaction.commit()?;
            Ok(from_ms as u64)
        };
        forget(&mut self.database).map_err(|error| self.wrong(error))
    }
}

/// How long the month before is kept.
const KEPT_MS: u64 = 24 * HOUR_MS;
