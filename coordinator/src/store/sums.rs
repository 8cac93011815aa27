//! Sums of the ledger by minute, hour and day: made with the rows, in the same transaction, and kept for ever.

use std::collections::{BTreeMap, BTreeSet};

use holm_model::api::UsageView;
use holm_model::ids::{Digest, FunctionName, Name};
use holm_model::price::{Units, memory_kib_ms};
use holm_model::usage::{Outcome, UsageRecord};

use super::error::During as _;
use super::sql::{On, Query, Row, Transaction, Value, query};
use super::{StoreError, bytes32, text, uint};
use crate::limits::LEDGER_CHUNK_ROWS;

pub(crate) const MINUTE_MS: u64 = 60_000;
pub(crate) const HOUR_MS: u64 = holm_model::price::HOUR_MS;
pub(crate) const DAY_MS: u64 = 24 * HOUR_MS;
/// From the finest to the coarsest.
const GRAINS: [u64; 3] = [MINUTE_MS, HOUR_MS, DAY_MS];

/// Whose sums.
#[derive(Clone, Debug)]
pub(crate) struct UsageFilter {
    pub(crate) tenant: Option<Name>,
    pub(crate) function: Option<Name>,
    /// From when on, milliseconds since 1970 UTC, the beginning of a minute.
    pub(crate) from_ms: u64,
    /// Until when, exclusive, the beginning of a minute.
    pub(crate) to_ms: u64,
}

impl Default for UsageFilter {
    fn default() -> Self {
        UsageFilter {
            tenant: None,
            function: None,
            from_ms: 0,
            to_ms: ALWAYS_MS,
        }
    }
}

/// A day after all times that a record may have.
pub(crate) const ALWAYS_MS: u64 = (i64::MAX as u64 / DAY_MS) * DAY_MS;

/// By what rows are summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum UsageGroup {
    #[default]
    Function,
    Tenant,
    Version,
    Node,
    /// By time, in parts of so many milliseconds, one of [`GRAINS`].
    Time(u64),
}

/// What is added up, in the order of [`quantities`].
const QUANTITIES: [&str; 19] = [
    "answered",
    "function_error",
    "crash",
    "timeout",
    "cancelled",
    "shed",
    "platform_fault",
    "cold",
    "run_ns",
    "cpu_ns",
    "memory_kib_ms",
    "request_bytes",
    "response_bytes",
    "egress_bytes",
    "ingress_bytes",
    "billed_requests",
    "billed_memory_kib_ms",
    "billed_cpu_ns",
    "billed_egress_bytes",
];
type Quantities = [u64; QUANTITIES.len()];

/// Quantities by their names, where they are kept beside the tables; one that is not there is 0.
pub(crate) type NamedQuantities = BTreeMap<String, u64>;

/// Adds a record that is no probe.
pub(crate) fn add_quantities(sums: &mut NamedQuantities, record: &UsageRecord) {
    for (name, more) in QUANTITIES.into_iter().zip(quantities(record)) {
        match sums.get_mut(name) {
            Some(sum) => *sum = sum.saturating_add(more),
            None => drop(sums.insert(name.to_owned(), more)),
        }
    }
}

/// A row but for its node.
type Key<'a> = (u64, u64, &'a FunctionName, Digest);

/// Adds records that are new in the ledger.
pub(super) async fn add<'a>(
    tx: &mut Transaction,
    node: &Name,
    records: impl Iterator<Item = &'a UsageRecord>,
) -> Result<(), StoreError> {
    let mut sums: BTreeMap<Key<'a>, Quantities> = BTreeMap::new();
    for record in records.filter(|record| !record.probe) {
        let more = quantities(record);
        for grain in GRAINS {
            let start = record.accepted_ms - record.accepted_ms % grain;
            let sum = sums
                .entry((grain, start, &record.function, record.version))
                .or_default();
            for (sum, more) in sum.iter_mut().zip(more) {
                *sum = sum.saturating_add(more);
            }
        }
    }
    let rows: Vec<_> = sums.into_iter().collect();
    for chunk in rows.chunks(LEDGER_CHUNK_ROWS) {
        let mut upsert =
            query("INSERT INTO usage_sums (grain_ms, start_ms, tenant, function, version, node");
        for quantity in QUANTITIES {
            upsert.push(", ").push(quantity);
        }
        upsert.push(") VALUES ");
        upsert.push_rows(
            chunk
                .iter()
                .map(|((grain, start, function, version), sums)| {
                    let key: [Value; 6] = [
                        (*grain).into(),
                        (*start).into(),
                        (&function.tenant).into(),
                        (&function.function).into(),
                        (*version).into(),
                        node.into(),
                    ];
                    key.into_iter().chain(sums.map(Value::from))
                }),
        );
        upsert.push(
            " ON CONFLICT (grain_ms, start_ms, tenant, function, version, node) DO UPDATE SET ",
        );
        for (index, name) in QUANTITIES.iter().enumerate() {
            // What does not fit is held at the end.
            upsert.push(if index > 0 { ", " } else { "" });
            upsert.push(&format!(
                "{name} = CASE WHEN usage_sums.{name} > {max} - excluded.{name} THEN {max}
                          ELSE usage_sums.{name} + excluded.{name} END",
                max = i64::MAX
            ));
        }
        upsert.execute(&mut *tx).await.during("add usage up")?;
    }
    Ok(())
}

fn quantities(record: &UsageRecord) -> Quantities {
    let outcomes = Outcome::ALL.map(|outcome| u64::from(record.outcome == outcome));
    let billed = Units::of(record);
    let rest = [
        u64::from(record.cold),
        record.run_ns,
        record.cpu_ns,
        memory_kib_ms(record),
        record.request_bytes,
        record.response_bytes,
        record.egress_bytes,
        record.ingress_bytes,
        billed.requests,
        billed.memory_kib_ms,
        billed.cpu_ns,
        billed.egress_bytes,
    ];
    let mut all = [0; QUANTITIES.len()];
    for (to, from) in all.iter_mut().zip(outcomes.into_iter().chain(rest)) {
        *to = from;
    }
    all
}

/// Sums of sums.
pub(super) async fn read(
    on: impl Into<On<'_>>,
    filter: &UsageFilter,
    group: UsageGroup,
) -> Result<Vec<UsageView>, StoreError> {
    const DOING: &str = "sum usage";
    let mut sums = query("SELECT ");
    sums.push(&match group {
        UsageGroup::Function => "tenant || '/' || function".to_owned(),
        UsageGroup::Tenant => "tenant".to_owned(),
        UsageGroup::Version => "version".to_owned(),
        UsageGroup::Node => "node".to_owned(),
        UsageGroup::Time(grain) => format!("start_ms - start_ms % {grain}"),
    });
    sums.push(" AS grouped");
    for quantity in QUANTITIES {
        push_sum(&mut sums, quantity, quantity);
    }
    sums.push(" FROM usage_sums WHERE (");
    let coarsest = match group {
        UsageGroup::Time(grain) => grain,
        _ => DAY_MS,
    };
    let parts = parts(filter.from_ms, filter.to_ms, coarsest);
    for part in &parts {
        sums.push("(grain_ms = ").push_bind(part.grain);
        sums.push(" AND start_ms >= ").push_bind(part.from);
        sums.push(" AND start_ms < ").push_bind(part.to);
        sums.push(") OR ");
    }
    sums.push("1 = 0)");
    if let Some(tenant) = &filter.tenant {
        sums.push(" AND tenant = ").push_bind(tenant);
    }
    if let Some(function) = &filter.function {
        sums.push(" AND function = ").push_bind(function);
    }
    sums.push(" GROUP BY grouped ORDER BY grouped");
    let rows = sums.rows(on).await.during(DOING)?;
    rows.iter().map(|row| view(row, group)).collect()
}

fn view(row: &Row, group: UsageGroup) -> Result<UsageView, StoreError> {
    const DOING: &str = "read sums of usage";
    let key = match group {
        UsageGroup::Version => {
            let bytes: Vec<u8> = row.get("grouped").during(DOING)?;
            Digest(bytes32("a version's id", &bytes)?).to_string()
        }
        UsageGroup::Time(_) => {
            let start: i64 = row.get("grouped").during(DOING)?;
            let time = jiff::Timestamp::from_millisecond(start);
            // A node may say any time.
            time.map_or_else(|_| format!("{start} ms"), |time| time.to_string())
        }
        _ => row.get("grouped").during(DOING)?,
    };
    let sums = sums_in(row)?;
    let outcomes = sums[..Outcome::ALL.len()].iter().copied();
    let mut view = UsageView {
        key,
        executions: outcomes.fold(0, u64::saturating_add),
        ..UsageView::default()
    };
    [
        view.answered,
        view.function_errors,
        view.crashes,
        view.timeouts,
        view.cancelled,
        view.shed,
        view.platform_faults,
        view.cold,
        view.run_ns,
        view.cpu_ns,
        view.memory_kib_ms,
        view.request_bytes,
        view.response_bytes,
        view.egress_bytes,
        view.ingress_bytes,
        view.billed.requests,
        view.billed.memory_kib_ms,
        view.billed.cpu_ns,
        view.billed.egress_bytes,
    ] = sums;
    Ok(view)
}

/// Nodes whose sums are not those of their rows and of what is no longer kept, `dropped`, with the finest grain of
/// which that is so.
pub(super) async fn disagreements(
    tx: &mut Transaction,
    dropped: &BTreeMap<Name, NamedQuantities>,
) -> Result<BTreeMap<Name, u64>, StoreError> {
    let mut of_rows = totals(tx, "usage WHERE probe = 0", in_a_row).await?;
    for (node, quantities) in dropped.iter().filter(|(_, sums)| !sums.is_empty()) {
        let sums = of_rows.entry(node.as_str().to_owned()).or_default();
        for (sum, name) in sums.iter_mut().zip(QUANTITIES) {
            *sum = sum.saturating_add(quantities.get(name).copied().unwrap_or(0));
        }
    }
    let mut found = BTreeMap::new();
    for grain in GRAINS {
        let from = format!("usage_sums WHERE grain_ms = {grain}");
        let of_sums = totals(tx, &from, |quantity| quantity.to_owned()).await?;
        let nodes: BTreeSet<&String> = of_rows.keys().chain(of_sums.keys()).collect();
        for node in nodes {
            if of_rows.get(node) != of_sums.get(node) {
                let node = text("a node's name", node)?;
                found.entry(node).or_insert(grain);
            }
        }
    }
    Ok(found)
}

/// Sums of all quantities by node.
async fn totals(
    tx: &mut Transaction,
    from: &str,
    expression: impl Fn(&str) -> String,
) -> Result<BTreeMap<String, Quantities>, StoreError> {
    const DOING: &str = "compare sums of usage with its rows";
    let mut query = query("SELECT node");
    for quantity in QUANTITIES {
        push_sum(&mut query, &expression(quantity), quantity);
    }
    query.push(&format!(" FROM {from} GROUP BY node"));
    let rows = query.rows(tx).await.during(DOING)?;
    let total = |row: &Row| Ok((row.get("node").during(DOING)?, sums_in(row)?));
    rows.iter().map(total).collect()
}

/// A quantity in SQL, by the columns of a row of the ledger: the same as [`quantities`].
fn in_a_row(quantity: &str) -> String {
    const MEMORY: &str = "(memory_bytes + 1023) / 1024 * ((run_ns + 999999) / 1000000)";
    if Outcome::from_name(quantity).is_some() {
        return format!("CASE WHEN outcome = '{quantity}' THEN 1 ELSE 0 END");
    }
    let free = Outcome::ALL.iter().filter(|outcome| !outcome.is_billed());
    let free: Vec<_> = free
        .map(|outcome| format!("'{}'", outcome.as_str()))
        .collect();
    let free = free.join(", ");
    let billed = |expression: &str| {
        format!("CASE WHEN run_ns = 0 OR outcome IN ({free}) THEN 0 ELSE {expression} END")
    };
    match quantity {
        "memory_kib_ms" => MEMORY.to_owned(),
        "billed_requests" => billed("1"),
        "billed_memory_kib_ms" => billed(MEMORY),
        "billed_cpu_ns" => billed("cpu_ns"),
        "billed_egress_bytes" => billed("(response_bytes + egress_bytes)"),
        column => column.to_owned(),
    }
}

const HALF_BITS: u32 = 20;

/// A sum may leave the 63 bits of a column, so each is made in two halves.
fn push_sum(query: &mut Query, expression: &str, name: &str) {
    let mask = (1 << HALF_BITS) - 1;
    query.push(&format!(
        ", CAST(SUM(({expression}) >> {HALF_BITS}) AS BIGINT) AS {name}_high,
           CAST(SUM(({expression}) & {mask}) AS BIGINT) AS {name}_low"
    ));
}

fn sums_in(row: &Row) -> Result<Quantities, StoreError> {
    const DOING: &str = "read sums of usage";
    let mut sums = [0; QUANTITIES.len()];
    for (sum, quantity) in sums.iter_mut().zip(QUANTITIES) {
        let half = |suffix| row.get(&format!("{quantity}_{suffix}")).map(uint);
        let high = u128::from(half("high").during(DOING)?);
        let whole = (high << HALF_BITS) + u128::from(half("low").during(DOING)?);
        *sum = u64::try_from(whole).unwrap_or(u64::MAX);
    }
    Ok(sums)
}

/// A time that is read from sums of one grain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    grain: u64,
    from: u64,
    to: u64,
}

/// The parts of the time from `from` to `to`, both the beginning of a minute, of as coarse a grain as can be but
/// no coarser than `coarsest`: at most five.
fn parts(from: u64, to: u64, coarsest: u64) -> Vec<Part> {
    let grain = GRAINS.into_iter().rev().find(|grain| *grain <= coarsest);
    let Some(grain) = grain.filter(|_| from < to) else {
        return Vec::new();
    };
    let (first, last) = (from.next_multiple_of(grain), to - to % grain);
    if first >= last {
        return parts(from, to, grain - 1);
    }
    let whole = Part {
        grain,
        from: first,
        to: last,
    };
    let mut all = parts(from, first, grain - 1);
    all.push(whole);
    all.extend(parts(last, to, grain - 1));
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_cover_a_time_in_order_with_few_parts_of_whole_grains(from in 0u64..6000, minutes in 0u64..6000, coarsest in 0usize..3) {
            let (from, to) = (from * MINUTE_MS, (from + minutes) * MINUTE_MS);
            let parts = parts(from, to, GRAINS[coarsest]);
            prop_assert!(parts.len() <= 5);
            let mut at = from;
            for part in &parts {
                prop_assert!(GRAINS[..=coarsest].contains(&part.grain));
                prop_assert!(part.from == at && part.from < part.to);
                prop_assert!(part.from % part.grain == 0 && part.to % part.grain == 0);
                at = part.to;
            }
            prop_assert_eq!(at, to);
        }
    }

    #[test]
    fn all_time_is_one_part() {
        let filter = UsageFilter::default();
        assert_eq!(parts(filter.from_ms, filter.to_ms, DAY_MS).len(), 1);
    }
}
