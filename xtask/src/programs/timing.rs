//! What the programs cost, beside what they answer.
//!
//! In a guest each request goes to a pristine instance and the reset is part of it ("fresh"), or to one
//! instance that is kept. Those figures are the VMM's own, without HTTP before it; then the same over one kept
//! connection of the loopback interface, to the program natively and to a node to which it was deployed.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::build::Source;
use super::deployed::Deployments;
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
    /// Over loopback: natively, and through a node under each isolation; 0 as before.
    http_host_rps: u64,
    http_fresh_rps: u64,
    http_kept_rps: u64,
}

/// Compares and times `subjects`, and prints the table, or JSON.
pub(crate) fn run(
    workspace: &Path,
    subjects: &[&Subject],
    with_costs: bool,
    json: bool,
) -> Result<Vec<Verdict>> {
    let upstream = Upstream::start()?;
    let deployments = Deployments::start()?;
    let (mut findings, mut verdicts) = (Vec::new(), Vec::new());
    for subject in subjects {
        eprintln!("{} …", subject.name);
        let (finding, verdict) = examine(workspace, subject, &upstream, &deployments)?;
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

fn examine(
    workspace: &Path,
    subject: &Subject,
    upstream: &Upstream,
    deployments: &Deployments,
) -> Result<(Finding, Verdict)> {
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
    finding.http_host_rps = rate(host.server.client.time(timed)?);
    let deploy = |isolation| deployments.deploy(workspace, subject, &host.program, isolation);
    finding.http_fresh_rps = rate(deploy("request")?.time(timed)?);
    // Under inetd a program ends with its request.
    if !matches!(subject.source, Source::Busybox) {
        finding.kept_us = micros(guest.time_kept(timed)?);
        finding.http_kept_rps = rate(deploy("instance")?.time(timed)?);
    }
    Ok((finding, verdict))
}

/// How many a second, one after the other.
fn rate(each: Duration) -> u64 {
    (1.0 / each.as_secs_f64().max(1e-9)) as u64
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn print_table(findings: &[Finding]) {
    println!(
        "| program | equal answers | ready: host ms | guest ms | snapshot KiB | pages per request | fresh \
         µs | kept µs | HTTP per s: host | fresh | kept | host / fresh |"
    );
    println!("| --- |{}", " ---: |".repeat(11));
    for one in findings {
        let equal = match one.problem.is_empty() {
            true => one.equal.to_string(),
            false => format!("{}, then not", one.equal),
        };
        // Where a program serves one request and ends.
        let kept = |figure: String| match one.kept_us {
            0.0 => "–".to_owned(),
            _ => figure,
        };
        println!(
            "| {} | {equal} | {:.1} | {:.1} | {} | {} | {:.0} | {} | {} | {} | {} | {:.1} |",
            one.program,
            one.ready_host_us as f64 / 1e3,
            one.ready_guest_us as f64 / 1e3,
            one.snapshot_kib,
            one.pages_per_request,
            one.fresh_us,
            kept(format!("{:.0}", one.kept_us)),
            one.http_host_rps,
            one.http_fresh_rps,
            kept(one.http_kept_rps.to_string()),
            one.http_host_rps as f64 / one.http_fresh_rps.max(1) as f64
        );
    }
}
