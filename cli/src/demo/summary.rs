//! What the demonstration found, for people and for programs.

use serde::Serialize;

use holm_model::api::{AuditView, RolloutState, UsageView};

use crate::demo::ledger::Percentiles;
use crate::remote::table::table;
use crate::remote::usage::{By, describe, describe_audit};

/// The object that `holm demo --json` prints.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    /// Whether every step did what it says.
    pub(crate) ok: bool,
    /// What did not, a sentence each.
    pub(crate) problems: Vec<String>,
    /// Requests that callers sent, each counted once however many nodes it was offered to.
    pub(crate) requests_sent: u64,
    /// Of those: answered rightly, checked for status, body and version.
    pub(crate) responses_ok: u64,
    /// Of those: not.
    pub(crate) failed_user_requests: u64,
    /// Requests that the next-nearest node answered because a nearer one did not.
    pub(crate) failed_over: u64,
    /// Executions in the ledger, probes excluded.
    pub(crate) ledger_executions: u64,
    /// Executions whose answer did not reach the caller because the node was killed.
    pub(crate) executed_but_cut: u64,
    /// Executions that are in the ledger twice.
    pub(crate) duplicates: u64,
    /// Answers that the ledger does not have.
    pub(crate) lost: u64,
    /// How the rollout of the good version ended.
    pub(crate) rollout_v2: RolloutState,
    /// How the rollout of the version that crashes ended.
    pub(crate) rollout_v3: RolloutState,
    /// Why the gate stopped it.
    pub(crate) rollout_v3_reason: String,
    /// The nodes.
    pub(crate) nodes: Vec<NodeSummary>,
    /// Restore and run of the first execution in a slot, from the ledger.
    pub(crate) cold_start_us: Percentiles,
    /// Restore and run of executions in a slot that was reset, from the ledger.
    pub(crate) fresh_invoke_us: Percentiles,
    /// The same and all others as the callers saw them.
    pub(crate) caller_us: Percentiles,
    /// Usage by function.
    pub(crate) usage: Vec<UsageView>,
    /// The coordinator's own audit.
    pub(crate) audit: AuditView,
    /// From the first process started to the last answer compared.
    pub(crate) took_ms: u64,
}

/// A node of the demonstration.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct NodeSummary {
    /// Its name.
    pub(crate) node: String,
    /// Its region.
    pub(crate) region: String,
    /// Right answers it gave.
    pub(crate) answered: u64,
    /// Whether it was killed and started again.
    pub(crate) killed: bool,
}

impl Summary {
    /// For people.
    pub(crate) fn describe(&self) -> String {
        let nodes: Vec<[String; 4]> = self
            .nodes
            .iter()
            .map(|node| {
                let killed = if node.killed {
                    "killed and restarted"
                } else {
                    ""
                };
                [
                    node.node.clone(),
                    node.region.clone(),
                    node.answered.to_string(),
                    killed.to_owned(),
                ]
            })
            .collect();
        let latency = |name: &str, p: &Percentiles| {
            let us = |us: Option<u64>| us.map_or("-".to_owned(), |us| format!("{us} µs"));
            [name.to_owned(), us(p.p50), us(p.p99), p.n.to_string()]
        };
        let latencies = [
            latency("cold start", &self.cold_start_us),
            latency("fresh invocation", &self.fresh_invoke_us),
            latency("seen by callers", &self.caller_us),
        ];
        let mut parts = vec![
            format!(
                "{} requests sent, {} answered rightly, {} failed, {} answered by the next-nearest",
                self.requests_sent, self.responses_ok, self.failed_user_requests, self.failed_over
            ),
            table(["NODE", "REGION", "ANSWERED", ""], &nodes),
            table(["TIME", "P50", "P99", "N"], &latencies),
            describe(By::Function, &self.usage),
            describe_audit(&self.audit),
            format!(
                "answers against ledger: {} executions, {} lost, {} twice; {} executed but cut off \
                 by the kill",
                self.ledger_executions, self.lost, self.duplicates, self.executed_but_cut
            ),
        ];
        parts.push(match self.ok {
            true => format!(
                "everything did what it says, in {:.1} s",
                self.took_ms as f64 / 1e3
            ),
            false => format!(
                "NOT everything did what it says:\n  {}",
                self.problems.join("\n  ")
            ),
        });
        parts.join("\n\n")
    }
}
