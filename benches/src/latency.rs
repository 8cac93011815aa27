//! `cargo xtask bench`: what an invocation costs here, as ratios to the floor.
//!
//! The *floor* is the exit round trip of a bare guest at CPL 3, through a gate to one `out` and back:
//! nothing that enters a machine per request can be faster. Times differ from one machine to the next
//! and from one minute to the next; ratios within a run are what to trust. So the subjects take
//! turns, a round of each after the other, and each ratio is taken within its round.
//!
//! Latencies are taken with caller and server on one core, throughput on all of them.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use holm_vmm::Hypervisor;

use crate::client::{runtime, storm};
use crate::cores::Cores;
use crate::report::Report;
use crate::sample::{Figures, Samples, rounded};
use crate::stand::{HELLO, Stand};
use crate::subjects::{self, Subject};
use crate::{density, neighbours, server};

/// The node that is asked, and the one that is restarted again and again.
const NODE: &str = "a";
const RESTARTED: &str = "b";
/// Connections of the measurement of throughput.
pub(crate) const CONNECTIONS: usize = 32;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) rounds: u32,
    /// Restarts of a node in each round.
    restarts: u32,
    /// How long requests come over all connections, in each round.
    storm: Duration,
    neighbours: bool,
}

impl Extent {
    /// Under a minute.
    pub(crate) const QUICK: Extent = Extent {
        rounds: 10,
        restarts: 2,
        storm: Duration::from_millis(300),
        neighbours: false,
    };
    /// Some minutes.
    pub(crate) const LONG: Extent = Extent {
        rounds: 40,
        restarts: 3,
        storm: Duration::from_millis(500),
        neighbours: true,
    };
}

/// Measures.
pub(crate) fn run(extent: Extent) -> Result<Report> {
    let cores = Cores::given()?;
    let hypervisor = Hypervisor::open().context("this benchmark needs KVM")?;
    // First, while nothing else is there.
    let density = density::measure().context("measuring how many instances fit")?;
    let stand = Stand::with_nodes(&[NODE, RESTARTED])?;
    let hyper = server::hyper(cores.count())?;
    let hello = stand.target(NODE, HELLO, "/")?;
    let runtime = runtime()?;
    let servers = [stand.pid(NODE), hyper.pid()];
    stand.await_snapshot(RESTARTED)?;
    let boots = stand.boots(RESTARTED);

    let rust = subjects::snapshot(&hypervisor, "hello")?;
    let c = subjects::snapshot(&hypervisor, "hello-c")?;
    cores.use_one(&servers)?;
    let mut all = [
        subjects::floor(&hypervisor)?,
        subjects::process()?,
        subjects::fresh("fresh_invoke", &hypervisor, &rust)?,
        subjects::fresh("fresh_invoke_c", &hypervisor, &c)?,
        subjects::over_http("http_fresh", &runtime, &hello)?,
        subjects::over_http("hyper", &runtime, &hyper.target)?,
        subjects::cold(&hypervisor, &rust, &c)?,
        subjects::cold_verified(&hypervisor, &rust)?,
        Subject::new("restart_first", extent.restarts, 1, || {
            cores.use_all(&[])?;
            let took = stand.restart(RESTARTED)?;
            cores.use_one(&[])?;
            Ok(took)
        }),
    ];
    let mut samples: [Samples; 9] = Default::default();
    let mut floors = subjects::Floors::new(&hypervisor, cores.count())?;
    let mut floor_rates = Vec::new();
    let (mut http_rates, mut hyper_rates) = (Vec::new(), Vec::new());
    for subject in &mut all {
        subject.take(subject.warm_up, &mut Samples::default())?;
    }
    let progress = std::io::stderr().is_terminal();
    for round in 0..extent.rounds {
        if progress {
            eprint!("\rround {} of {}", round + 1, extent.rounds);
        }
        cores.use_one(&servers)?;
        for (subject, samples) in all.iter_mut().zip(&mut samples) {
            samples.begin_round();
            subject.take(subject.per_round, samples)?;
        }
        cores.use_all(&servers)?;
        floor_rates.push(floors.storm(extent.storm)?);
        for (target, rates) in [(&hello, &mut http_rates), (&hyper.target, &mut hyper_rates)] {
            let mut unread = Samples::default();
            rates.push(storm(
                &runtime,
                target,
                CONNECTIONS,
                extent.storm,
                &mut unread,
            )?);
        }
    }
    if progress {
        eprintln!();
    }
    let boots = stand.boots(RESTARTED).saturating_sub(boots);
    let neighbours = match extent.neighbours {
        true => Some(neighbours::measure(&stand, NODE, &runtime, &samples[0])?),
        false => None,
    };
    let [
        floor,
        process,
        fresh,
        fresh_c,
        http,
        bare,
        cold,
        verified,
        restart,
    ] = samples.each_ref().map(|one| one.figures(&samples[0]));
    Ok(Report {
        kvm: hypervisor.kind().as_str().to_owned(),
        cores: cores.count(),
        rounds: extent.rounds,
        floor_us: floor,
        posix_spawn_us: process,
        fresh_invoke_us: fresh,
        fresh_invoke_c_us: fresh_c,
        http_fresh_us: http,
        hyper_us: bare,
        cold_start_us: cold,
        cold_verified_us: verified,
        restart_first_us: restart,
        restart_boots: boots,
        floor_rps: rounded(crate::sample::median(floor_rates)),
        http_fresh_rps: rounded(crate::sample::median(http_rates)),
        hyper_rps: rounded(crate::sample::median(hyper_rates)),
        density,
        neighbours,
    })
}

/// How often [`only`] takes its subject.
const ONLY_ROUNDS: u32 = 50;

/// The floor and one subject that needs no node, or the neighbours.
pub(crate) fn only(name: &str) -> Result<Vec<(&'static str, Figures)>> {
    let hypervisor = Hypervisor::open().context("this benchmark needs KVM")?;
    if name == "neighbours" {
        let mut floor = Samples::default();
        floor.begin_round();
        let mut subject = subjects::floor(&hypervisor)?;
        subject.take(subject.per_round, &mut floor)?;
        let stand = Stand::with_nodes(&[NODE])?;
        let figures = neighbours::measure(&stand, NODE, &runtime()?, &floor)?;
        return Ok(figures.named().into());
    }
    Cores::given()?.use_one(&[])?;
    let snapshot = |function| subjects::snapshot(&hypervisor, function);
    let subject = match name {
        "posix_spawn" => subjects::process()?,
        "fresh_invoke" => subjects::fresh("fresh_invoke", &hypervisor, &snapshot("hello")?)?,
        "fresh_invoke_c" => subjects::fresh("fresh_invoke_c", &hypervisor, &snapshot("hello-c")?)?,
        "cold_start" => subjects::cold(&hypervisor, &snapshot("hello")?, &snapshot("hello-c")?)?,
        "cold_verified" => subjects::cold_verified(&hypervisor, &snapshot("hello")?)?,
        _ => bail!("there is no subject {name}, or it needs a node"),
    };
    let mut both = [subjects::floor(&hypervisor)?, subject];
    let mut samples: [Samples; 2] = Default::default();
    for subject in &mut both {
        subject.take(subject.warm_up, &mut Samples::default())?;
    }
    for _ in 0..ONLY_ROUNDS {
        for (subject, samples) in both.iter_mut().zip(&mut samples) {
            samples.begin_round();
            subject.take(subject.per_round, samples)?;
        }
    }
    let figures = |index: usize| (both[index].name, samples[index].figures(&samples[0]));
    Ok([0, 1].map(figures).into())
}
