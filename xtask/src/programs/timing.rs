//! What the programs cost, beside what they answer.
//!
//! In a guest each request goes to a pristine instance and the reset is part of it ("fresh"), or to one
//! instance that is kept; on the host over one kept connection of the loopback interface. The guest's
//! figures are the VMM's own, without HTTP before it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::build::Source;
use super::guest::Guest;
use super::native::OnHost;
use super::subjects::Subject;
use super::upstream::Upstream;
use super::{Verdict, compare, costs};

/// What was found out about a program.
#[derive(Debug, Default, Serialize)]
struct Finding {
    program: &'static str,
    /// Empty, or the first difference or failure.
    problem: String,
    /// Requests that were answered alike.
    equal: usize,
    ready_host_us: u64,
    ready_guest_us: u64,
    snapshot_kib: u64,
    /// Pages that a request leaves changed: the reset set.
    pages_per_request: u64,
    /// p50, the reset included.
    fresh_us: f64,
    /// p50 of an instance that keeps its state; 0 where a program serves one request and ends.
    kept_us: f64,
    /// p50 on the host, over loopback.
    host_us: f64,
    fresh_rps: u64,
    kept_rps: u64,
    host_rps: u64,
}

/// Compares and times `subjects`, and prints the table, or JSON.
pub(crate) fn run(
    workspace: &Path,
    subjects: &[&Subject],
    with_costs: bool,
    json: bool,
) -> Result<Vec<Verdict>> {
    let upstream = Upstream::start()?;
    let (mut findings, mut verdicts) = (Vec::new(), Vec::new());
    for subject in subjects {
        eprintln!("{} …", subject.name);
        let (finding, verdict) = examine(workspace, subject, &upstream)?;
        findings.push(finding);
        verdicts.push(verdict);
    }
    let costs = match with_costs {
        true => costs::measure(workspace).context("cannot measure what calls and faults cost")?,
        false => Vec::new(),
    };
    if json {
        let all = serde_json::json!({ "programs": findings, "costs": costs });
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        print_table(&findings);
        costs::print_table(&costs);
    }
    Ok(verdicts)
}

fn examine(workspace: &Path, subject: &Subject, upstream: &Upstream) -> Result<(Finding, Verdict)> {
    let mut host = OnHost::of(workspace, subject, upstream)?;
    let mut finding = Finding {
        program: subject.name,
        ready_host_us: micros(host.server.ready) as u64,
        ..Finding::default()
    };
    let mut guest = match Guest::boot(&host.program, &subject.source, upstream) {
        Ok(guest) => guest,
        Err(problem) => return Ok((finding, Verdict::failed(subject, problem))),
    };
    finding.ready_guest_us = micros(guest.ready) as u64;
    finding.snapshot_kib = guest.snapshot_bytes()? / 1024;
    let verdict = compare(subject, &host.answers, |ask| guest.fresh(ask));
    (finding.equal, finding.problem) = (verdict.equal, verdict.problem.clone());
    if !verdict.is_good() {
        return Ok((finding, verdict));
    }
    let timed = &subject.asks[0];
    finding.fresh_us = micros(guest.time_fresh(timed)?);
    finding.pages_per_request = guest.pages;
    // Under inetd a program ends with its request.
    if !matches!(subject.source, Source::Busybox) {
        finding.kept_us = micros(guest.time_kept(timed)?);
    }
    finding.host_us = micros(host.server.client.time(timed)?);
    let rate = |us: f64| if us > 0.0 { (1e6 / us) as u64 } else { 0 };
    finding.fresh_rps = rate(finding.fresh_us);
    finding.kept_rps = rate(finding.kept_us);
    finding.host_rps = rate(finding.host_us);
    Ok((finding, verdict))
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn print_table(findings: &[Finding]) {
    println!(
        "| program | equal answers | ready: host ms | guest ms | snapshot KiB | pages per request | fresh \
         µs | per s | kept µs | per s | host µs | per s | fresh / host |"
    );
    println!("| --- |{}", " ---: |".repeat(12));
    for one in findings {
        let equal = match one.problem.is_empty() {
            true => one.equal.to_string(),
            false => format!("{}, then not", one.equal),
        };
        println!(
            "| {} | {equal} | {:.1} | {:.1} | {} | {} | {:.0} | {} | {:.0} | {} | {:.0} | {} | {:.1} |",
            one.program,
            one.ready_host_us as f64 / 1e3,
            one.ready_guest_us as f64 / 1e3,
            one.snapshot_kib,
            one.pages_per_request,
            one.fresh_us,
            one.fresh_rps,
            one.kept_us,
            one.kept_rps,
            one.host_us,
            one.host_rps,
            one.fresh_us / one.host_us.max(0.001)
        );
    }
}
