//! What people working on Holm do more than once: `cargo xtask --help`.
#![forbid(unsafe_code)]

mod bench;
mod guests;
mod hardware_kvm;
mod programs;
mod qemu;
mod stub;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use programs::Place;

#[derive(Parser)]
#[command(about = "What people working on Holm do more than once", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build all test guests and sample functions into a directory, for HOLM_TEST_GUESTS_DIR.
    Guests {
        /// Where to put them.
        #[arg(long)]
        out: PathBuf,
    },
    /// Build ordinary servers in Rust, Go, C and Zig, run each on the host and in a guest, compare what
    /// they answer, and print what they cost. Best with `--release`: `cargo run --release -p xtask --`.
    GuestPrograms {
        /// Only these programs.
        #[arg(long)]
        only: Vec<String>,
        /// Print JSON instead of a table.
        #[arg(long, group = "where")]
        json: bool,
        /// Compare alone, without timing.
        #[arg(long, group = "where")]
        check: bool,
        /// Deploy them to a coordinator and a node, and compare what the node's callers are answered.
        #[arg(long, group = "where")]
        deployed: bool,
        /// Compare in guests on emulated hardware KVM.
        #[arg(long, group = "where")]
        hardware: bool,
        /// Seconds after which the emulated machine is stopped and the run fails.
        #[arg(long, default_value_t = 1800, requires = "hardware")]
        timeout: u64,
        /// Compare with answers that lie in a directory, as the emulated machine does.
        #[arg(long, group = "where", hide = true)]
        recorded: Option<PathBuf>,
    },
    /// Measure what an invocation costs here, as ratios to the floor and beside the goals: `--quick`, `--json`,
    /// `--record`, `--readme`.
    #[command(disable_help_flag = true)]
    Bench(Passed),
    /// Measure other systems (wasmtime, workerd, nginx, hyper, crun) with the same hello and caller beside a node:
    /// `--rounds N`, `--json`, `--record`.
    #[command(disable_help_flag = true)]
    Peers(Passed),
    /// Put a node under mixed load with crashes and timeouts; it may not grow, nor lose a request:
    /// `--seconds N`, `--json`.
    #[command(disable_help_flag = true)]
    Soak(Passed),
    /// Measure what many nodes cost a coordinator: `--nodes 100,1000`, `--json`.
    #[command(disable_help_flag = true)]
    Scale(Passed),
    /// Boot the guest of a static program under QEMU, by the kernel image's PVH entry, as far as its
    /// first hostcall.
    Qemu {
        /// The program.
        program: PathBuf,
        /// Stop before the first instruction and wait for gdb on port 1234.
        #[arg(long)]
        gdb: bool,
    },
    /// Count the instructions that run at CPL 0 in a guest.
    Stub,
    /// Run the tests of the VMM, and through it of the guest, on hardware KVM: AMD SVM with nested
    /// paging, emulated by QEMU. Slow, and no timing from it means anything.
    HardwareKvm {
        /// Seconds after which the emulated machine is stopped and the run fails.
        #[arg(long, default_value_t = 1800)]
        timeout: u64,
        /// Packages whose tests to run.
        #[arg(long = "package", default_value = "holm-vmm")]
        packages: Vec<String>,
        /// Arguments for the test programs, for example a part of a test's name.
        #[arg(last = true)]
        test_arguments: Vec<String>,
    },
}

/// What is passed on as it is; `--help` too.
#[derive(Args)]
struct Passed {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Stub => stub::run(&hardware_kvm::workspace()),
        Task::Bench(Passed { arguments }) => {
            bench::run(&hardware_kvm::workspace(), "bench", &arguments)
        }
        Task::Peers(Passed { arguments }) => {
            bench::run(&hardware_kvm::workspace(), "peers", &arguments)
        }
        Task::Soak(Passed { arguments }) => {
            bench::run(&hardware_kvm::workspace(), "soak", &arguments)
        }
        Task::Scale(Passed { arguments }) => {
            bench::run(&hardware_kvm::workspace(), "scale", &arguments)
        }
        Task::Guests { out } => guests::build_all(&out),
        Task::GuestPrograms {
            only,
            json,
            check,
            deployed,
            hardware,
            timeout,
            recorded,
        } => {
            let place = match recorded {
                Some(directory) => Place::Recorded(directory),
                None if hardware => Place::Hardware(Duration::from_secs(timeout)),
                None if deployed => Place::Deployed,
                None if check => Place::Here,
                None => Place::Timed { json },
            };
            programs::run(&hardware_kvm::workspace(), &only, &place)
        }
        Task::Qemu { program, gdb } => qemu::run(&hardware_kvm::workspace(), &program, gdb),
        Task::HardwareKvm {
            timeout,
            packages,
            test_arguments,
        } => hardware_kvm::run(&packages, Duration::from_secs(timeout), &test_arguments),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// The folders whose paths the documents name in full.
    const FOLDERS: [&str; 9] = [
        "benches/",
        "cli/",
        "coordinator/",
        "edge-node/",
        "guest/",
        "proto/",
        "tests/",
        "xtask/",
        ".ci/",
    ];

    #[test]
    fn every_path_that_the_documents_name_is_there() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut seen = 0;
        for document in ["README.md", "ARCHITECTURE.md"] {
            let text = std::fs::read_to_string(root.join(document)).unwrap();
            // What stands between backticks, line by line, is every second part.
            for quoted in text
                .lines()
                .flat_map(|line| line.split('`').skip(1).step_by(2))
            {
                if FOLDERS.iter().any(|folder| quoted.starts_with(folder)) {
                    assert!(root.join(quoted).exists(), "{document} names {quoted}");
                    seen += 1;
                }
            }
        }
        assert!(seen > 20, "only {seen} paths were found");
    }
}
