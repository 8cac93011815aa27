//! The command line.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::latency::{self, Extent};
use crate::report::{Goal, Report};
use crate::{density, peers, readme, scale, server, soak};

#[derive(Parser)]
#[command(name = "holm-bench", about = "What Holm costs on this machine")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// What an invocation costs, as ratios to the floor.
    Bench {
        /// In less than a minute, without neighbours that misbehave.
        #[arg(long)]
        quick: bool,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
        /// Keep the results in benches/results and in README.md.
        #[arg(long)]
        record: bool,
        /// Only the floor and this subject, for a look with `perf`: fresh_invoke, cold_start, …; or neighbours.
        #[arg(long, conflicts_with_all = ["record", "quick"])]
        only: Option<String>,
        /// Only make the tables of README.md from the results that are kept.
        #[arg(long, exclusive = true)]
        readme: bool,
    },
    /// Other systems with the same hello, side by side.
    Peers {
        /// How many times they take turns.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
        rounds: u32,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
        /// Keep the results in benches/results and in README.md.
        #[arg(long)]
        record: bool,
    },
    /// Mixed load with crashes and timeouts; fails if the node grows or loses a request.
    Soak {
        /// How long.
        #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(5..=86_400))]
        seconds: u64,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// What many nodes cost a coordinator; they speak the real protocol and run nothing.
    Scale {
        /// How many nodes; the growth from the fewest to the most is printed too.
        #[arg(long, value_delimiter = ',', default_value = "100,1000", value_parser = clap::value_parser!(u16).range(1..=1000))]
        nodes: Vec<u16>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// A bare QUIC server.
    #[command(hide = true)]
    ServeQuic { bytes: usize },
    /// A bare hyper server.
    #[command(hide = true)]
    Serve { address: SocketAddr, threads: usize },
    /// Instances in this process.
    #[command(hide = true)]
    Density { instances: usize },
}

/// Runs the command.
pub fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Bench { readme: true, .. } => readme::renew(),
        Command::Bench {
            only: Some(name),
            json,
            ..
        } => {
            let figures = latency::only(&name)?;
            match json {
                true => println!("{}", encode(&figures)?),
                false => figures
                    .iter()
                    .for_each(|(name, figures)| println!("{name:<16} {figures:?}")),
            }
            Ok(())
        }
        Command::Bench {
            quick,
            json,
            record,
            ..
        } => {
            let extent = if quick { Extent::QUICK } else { Extent::LONG };
            let report = latency::run(extent)?;
            if record {
                readme::keep("bench", &report)?;
                readme::renew()?;
            }
            print(&report, json)
        }
        Command::Peers {
            rounds,
            json,
            record,
        } => {
            let results = peers::run(rounds)?;
            if record {
                readme::keep("peers", &results)?;
                readme::renew()?;
            }
            match json {
                true => println!("{}", encode(&results)?),
                false => {
                    println!("{}", results.table());
                    print_goals(&results.goals());
                }
            }
            Ok(())
        }
        Command::Soak { seconds, json } => {
            let soak = soak::run(Duration::from_secs(seconds))?;
            match json {
                true => println!("{}", encode(&soak)?),
                false => soak.print(),
            }
            soak.verdict()
        }
        Command::Scale { nodes, json } => {
            let scale = scale::run(nodes.into_iter().map(usize::from).collect())?;
            match json {
                true => println!("{}", encode(&scale)?),
                false => {
                    println!("{}", scale.table());
                    print_goals(&scale.goals());
                }
            }
            Ok(())
        }
        Command::ServeQuic { bytes } => scale::serve(bytes),
        Command::Serve { address, threads } => server::serve(address, threads),
        Command::Density { instances } => {
            println!("{}", encode(&density::alone(instances)?)?);
            Ok(())
        }
    }
}

fn print(report: &Report, json: bool) -> Result<()> {
    if json {
        println!("{}", encode(report)?);
        return Ok(());
    }
    println!(
        "KVM: {}; {} rounds, the subjects in turn\n\n{}",
        report.kvm,
        report.rounds,
        report.table()
    );
    print_goals(&report.goals());
    Ok(())
}

fn print_goals(goals: &[Goal]) {
    println!("goals, and how much was taken of what each allows:");
    goals.iter().for_each(|goal| println!("{}", goal.line()));
}

fn encode(results: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(results).context("cannot encode the results")
}
