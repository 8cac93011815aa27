//! `cargo bench -p benches`: what an invocation costs on the machine at hand, as ratios to the floor.
//!
//! The *floor* is the exit round trip of a bare guest at CPL 3, through a gate to one `out` and back:
//! nothing that enters a machine per request can be faster. Times differ from one machine to the next
//! and from one minute to the next; ratios within a run are what to trust. So the subjects take
//! turns, a round of each after the other, and each ratio is taken within its round.
//!
//! One thread, pinned to one core, and all it starts stays there.
#![forbid(unsafe_code)]

mod sample;
mod subjects;

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};
use clap::Parser;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use sample::{Figures, Samples};
use subjects::Subject;

#[derive(Parser)]
#[command(about = "What an invocation costs here, as ratios to the floor")]
struct Arguments {
    /// How many times the subjects take turns.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Given by `cargo bench`; without it nothing is measured, since `cargo test` starts benchmarks
    /// too.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What the run prints.
#[derive(Serialize)]
struct Report {
    kvm: &'static str,
    core: usize,
    rounds: u32,
    subjects: Vec<SubjectReport>,
}

#[derive(Serialize)]
struct SubjectReport {
    name: &'static str,
    what: &'static str,
    #[serde(flatten)]
    figures: Figures,
    /// Median over the rounds of: median of the round by the floor's median of the round.
    ratio_to_floor: f64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !arguments.bench {
        return Ok(());
    }
    let progress = !arguments.json && std::io::stderr().is_terminal();
    let core = pin()?;
    let hypervisor = holm_vmm::Hypervisor::open().context("this benchmark needs KVM")?;
    let mut subjects = subjects::all(&hypervisor)?;
    let mut samples: Vec<Samples> = subjects.iter().map(|_| Samples::default()).collect();
    for subject in &mut subjects {
        subject.take(Subject::WARM_UP, &mut Samples::default())?;
    }
    for round in 0..arguments.rounds {
        if progress {
            eprint!("\rround {} of {}", round + 1, arguments.rounds);
        }
        for (subject, samples) in subjects.iter_mut().zip(&mut samples) {
            samples.begin_round();
            subject.take(subject.per_round, samples)?;
        }
    }
    if progress {
        eprintln!();
    }
    let floor = samples[0].round_medians();
    let subjects = subjects
        .iter()
        .zip(&samples)
        .map(|(subject, samples)| SubjectReport {
            name: subject.name,
            what: subject.what,
            figures: samples.figures(),
            ratio_to_floor: samples.ratio_to(&floor),
        })
        .collect();
    let kvm = hypervisor.kind().as_str();
    print(
        &Report {
            kvm,
            core,
            rounds: arguments.rounds,
            subjects,
        },
        arguments.json,
    )
}

/// Pins this thread, and so all that it starts, to the last core it may run on.
fn pin() -> Result<usize> {
    let allowed = sched_getaffinity(None).context("cannot read the cores this may run on")?;
    let core = (0..CpuSet::MAX_CPU)
        .rev()
        .find(|&core| allowed.is_set(core))
        .context("there is no core this may run on")?;
    let mut one = CpuSet::new();
    one.set(core);
    sched_setaffinity(None, &one).with_context(|| format!("cannot pin to core {core}"))?;
    Ok(core)
}

fn print(report: &Report, json: bool) -> Result<()> {
    if json {
        println!(
            "{}",
            serde_json::to_string(report).context("cannot encode the report")?
        );
        return Ok(());
    }
    println!(
        "KVM: {}; pinned to core {}; {} rounds, the subjects in turn\n",
        report.kvm, report.core, report.rounds
    );
    println!(
        "{:<12} {:>10} {:>10} {:>7} {:>9}  what",
        "subject", "median µs", "p99 µs", "n", "× floor"
    );
    for subject in &report.subjects {
        let SubjectReport {
            name,
            what,
            figures,
            ratio_to_floor,
        } = subject;
        println!(
            "{name:<12} {:>10.1} {:>10.1} {:>7} {ratio_to_floor:>9.2}  {what}",
            figures.median_us, figures.p99_us, figures.n
        );
    }
    Ok(())
}
