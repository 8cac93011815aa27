//! What people working on Holm do more than once: `cargo xtask --help`.
#![forbid(unsafe_code)]

mod guests;
mod hardware_kvm;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

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
        Task::Guests { out } => guests::build_all(&out),
        Task::HardwareKvm {
            timeout,
            packages,
            test_arguments,
        } => hardware_kvm::run(&packages, Duration::from_secs(timeout), &test_arguments),
    }
}
