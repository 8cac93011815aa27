//! Compares what callers saw with what the ledger says, request by request.
//!
//! An execution whose answer did not reach its caller, because the connection was cut, is in the
//! ledger with an id that no caller knows. It is counted by itself: it is neither lost nor double.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use serde::Serialize;

use holm_model::api::{LedgerRow, UsageRecordsPage};
use holm_model::ids::{Name, RequestId};
use holm_model::limits::MAX_USAGE_BATCH;
use holm_model::usage::Outcome;

use crate::exit::Failure;
use crate::remote::client::Client;

/// How long nodes may take to hand over their last records.
const SETTLE: Duration = Duration::from_secs(20);
/// Most rows that the demonstration reads.
const MAX_ROWS: usize = 1_000_000;

/// What the comparison gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reckoning {
    /// Executions in the ledger, probes excluded.
    pub(crate) executions: u64,
    /// Of those: with an answer that a caller saw.
    pub(crate) matched: u64,
    /// Of those: with no answer that a caller saw.
    pub(crate) unseen: u64,
    /// Answers that the ledger does not have.
    pub(crate) lost: u64,
    /// Executions that the ledger has more than once, and ids that more than one answer had.
    pub(crate) duplicates: u64,
}

/// Percentiles of a measurement, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Percentiles {
    /// Half were at most this; none if there was no measurement.
    pub(crate) p50: Option<u64>,
    /// Of a hundred, 99 were at most this.
    pub(crate) p99: Option<u64>,
    /// How many there were.
    pub(crate) n: u64,
}

/// Reads the ledger's rows of `tenant` until every one of `answered` is there, or time is up.
pub(crate) async fn settled(
    api: &Client,
    tenant: &Name,
    answered: &[RequestId],
) -> Result<Vec<LedgerRow>, Failure> {
    let deadline = Instant::now() + SETTLE;
    let mut rows = Vec::new();
    let mut after = 0;
    loop {
        after = read(api, tenant, after, &mut rows).await?;
        if reckon(answered, &rows).lost == 0 || Instant::now() > deadline {
            return Ok(rows);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Appends the rows after `after`, and says where the next reading begins.
async fn read(
    api: &Client,
    tenant: &Name,
    mut after: u64,
    rows: &mut Vec<LedgerRow>,
) -> Result<u64, Failure> {
    loop {
        let path = format!("/v1/usage/records?after={after}&limit={MAX_USAGE_BATCH}");
        let page: UsageRecordsPage = api.get(&path).await?;
        after = page.records.last().map_or(after, |row| row.row);
        rows.extend(
            page.records
                .into_iter()
                .filter(|row| row.record.function.tenant == *tenant),
        );
        if rows.len() > MAX_ROWS {
            return Err(Failure::other(
                "the ledger grew beyond what the demonstration can have done",
            ));
        }
        match page.next {
            Some(next) if next >= after => after = next,
            Some(next) => {
                return Err(Failure::other(format!(
                    "the ledger's pages go back, to {next}"
                )));
            }
            None => return Ok(after),
        }
    }
}

/// Compares the ids of all answers with the ledger. Requests that a node turned away were not
/// executed.
pub(crate) fn reckon(answered: &[RequestId], rows: &[LedgerRow]) -> Reckoning {
    let mut answers: HashMap<RequestId, u64> = HashMap::with_capacity(answered.len());
    for id in answered {
        *answers.entry(*id).or_default() += 1;
    }
    let mut entries: HashMap<RequestId, u64> = HashMap::with_capacity(rows.len());
    for row in rows.iter().filter(|row| is_execution(row)) {
        *entries.entry(row.record.request).or_default() += 1;
    }
    let twice =
        |counts: &HashMap<RequestId, u64>| -> u64 { counts.values().map(|count| count - 1).sum() };
    let matched = entries.keys().filter(|id| answers.contains_key(id)).count() as u64;
    Reckoning {
        executions: entries.values().sum(),
        matched,
        unseen: entries.len() as u64 - matched,
        lost: answers.len() as u64 - matched,
        duplicates: twice(&entries) + twice(&answers),
    }
}

fn is_execution(row: &LedgerRow) -> bool {
    !row.record.probe && row.record.outcome != Outcome::Shed
}

/// How long executions took on the node: to restore and to run, queueing excluded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    /// Of those that had to load their snapshot into a slot first, probes included: these start in
    /// the same way.
    pub(crate) cold_start: Percentiles,
    /// Of those in a slot that was reset after the one before: a fresh machine for each.
    pub(crate) fresh_invocation: Percentiles,
}

/// The times of `requests` and of probes, where they were answered.
pub(crate) fn times(requests: impl Iterator<Item = RequestId>, rows: &[LedgerRow]) -> Times {
    let requests: HashSet<RequestId> = requests.collect();
    let of = |cold: bool| {
        let rows = rows.iter().map(|row| &row.record).filter(|record| {
            let wanted = requests.contains(&record.request) || (cold && record.probe);
            wanted && record.cold == cold && record.outcome == Outcome::Answered
        });
        percentiles(
            rows.map(|record| (record.restore_ns + record.run_ns) / 1000)
                .collect(),
        )
    };
    Times {
        cold_start: of(true),
        fresh_invocation: of(false),
    }
}

/// The percentiles of `us`, by nearest rank.
pub(crate) fn percentiles(mut us: Vec<u64>) -> Percentiles {
    us.sort_unstable();
    let rank = |percent: usize| {
        us.get((us.len() * percent).div_ceil(100).max(1) - 1)
            .copied()
    };
    Percentiles {
        p50: rank(50),
        p99: rank(99),
        n: us.len() as u64,
    }
}

#[cfg(test)]
mod tests {
    use holm_model::ids::Digest;
    use holm_model::usage::UsageRecord;

    use super::*;

    fn row(id: u8, outcome: Outcome, probe: bool) -> LedgerRow {
        let record = UsageRecord {
            boot_epoch: 1,
            sequence: u64::from(id),
            request: RequestId([id; 16]),
            function: "demo/hello".parse().unwrap(),
            version: Digest::of(b"v"),
            accepted_ms: 0,
            outcome,
            status: 200,
            queue_ns: 1_000_000,
            restore_ns: 1_000,
            run_ns: u64::from(id) * 1_000,
            cpu_ns: 0,
            memory_bytes: 0,
            request_bytes: 0,
            response_bytes: 0,
            egress_bytes: 0,
            ingress_bytes: 0,
            cold: id.is_multiple_of(2),
            exits: 1,
            probe,
        };
        LedgerRow {
            row: u64::from(id),
            node: "a".parse().unwrap(),
            record,
        }
    }

    fn ids(ids: &[u8]) -> Vec<RequestId> {
        ids.iter().map(|id| RequestId([*id; 16])).collect()
    }

    fn executed(ids: &[u8]) -> Vec<LedgerRow> {
        ids.iter()
            .map(|id| row(*id, Outcome::Answered, false))
            .collect()
    }

    #[test]
    fn every_answer_once_in_the_ledger_is_whole() {
        let mut rows = executed(&[1, 2, 3]);
        rows.push(row(9, Outcome::Answered, true));
        rows.push(row(8, Outcome::Shed, false));
        let reckoning = reckon(&ids(&[3, 2, 1]), &rows);
        assert_eq!(
            reckoning,
            Reckoning {
                executions: 3,
                matched: 3,
                ..Default::default()
            }
        );
    }

    #[test]
    fn an_answer_that_the_ledger_lacks_is_lost() {
        assert_eq!(reckon(&ids(&[1, 2]), &executed(&[1])).lost, 1);
    }

    #[test]
    fn an_execution_entered_twice_is_a_duplicate() {
        let reckoning = reckon(&ids(&[1]), &executed(&[1, 1]));
        assert_eq!(
            (reckoning.executions, reckoning.duplicates, reckoning.lost),
            (2, 1, 0)
        );
        assert_eq!(reckon(&ids(&[1, 1]), &executed(&[1])).duplicates, 1);
    }

    #[test]
    fn an_execution_whose_answer_was_cut_off_is_neither() {
        let reckoning = reckon(&ids(&[1]), &executed(&[1, 2]));
        assert_eq!(
            (reckoning.unseen, reckoning.lost, reckoning.duplicates),
            (1, 0, 0)
        );
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        assert_eq!(percentiles(vec![]), Percentiles::default());
        assert_eq!(
            percentiles(vec![7]),
            Percentiles {
                p50: Some(7),
                p99: Some(7),
                n: 1
            }
        );
        let hundred = percentiles((1..=100).rev().collect());
        assert_eq!(
            hundred,
            Percentiles {
                p50: Some(50),
                p99: Some(99),
                n: 100
            }
        );
    }

    #[test]
    fn cold_starts_and_fresh_invocations_are_told_apart_and_exclude_queueing() {
        let rows = [
            row(1, Outcome::Answered, false),
            row(2, Outcome::Answered, true),
            row(3, Outcome::Crash, false),
            row(5, Outcome::Answered, true),
            row(7, Outcome::Answered, false),
        ];
        let times = times(ids(&[1, 3]).into_iter(), &rows);
        assert_eq!(
            times.cold_start,
            Percentiles {
                p50: Some(3),
                p99: Some(3),
                n: 1
            }
        );
        assert_eq!(
            times.fresh_invocation,
            Percentiles {
                p50: Some(2),
                p99: Some(2),
                n: 1
            }
        );
    }
}
