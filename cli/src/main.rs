//! `holm`: edge functions, each in its own virtual machine.
//!
//! One binary with several roles: the developer's tools ([`local`]: `init`, `build`, `run`, `dev`,
//! `doctor`), the coordinator's client and the two daemons ([`remote`]), and [`demo`], which shows
//! all of it on one machine. This file only reads the command line and hands over.
#![forbid(unsafe_code)]

mod demo;
mod exit;
mod local;
mod log;
mod oci;
mod output;
mod remote;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Edge functions, each in its own virtual machine.
#[derive(Debug, Parser)]
#[command(
    name = "holm",
    version,
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage or input, 3 the program crashed or \
                  timed out, 4 no usable KVM, 5 refused or not found by a server, 6 a server \
                  cannot be reached."
)]
struct Cli {
    /// Print results and errors as JSON.
    #[arg(long, global = true, display_order = 900)]
    json: bool,
    /// Print no progress and no notes.
    #[arg(long, short, global = true, display_order = 901)]
    quiet: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a function project in Rust or C.
    Init(local::init::Args),
    /// Build the function of a project and check that Holm can run it.
    Build(local::build::Args),
    /// Run a static program in a virtual machine here, and send it requests.
    Run(local::run::Args),
    /// Serve a project's function here, and rebuild it when its sources change.
    Dev(local::dev::Args),
    /// Check what this machine offers to Holm.
    Doctor(local::doctor::Args),
    #[command(flatten)]
    Remote(remote::Command),
    /// Show a coordinator and three nodes at work on this machine.
    Demo(demo::Args),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return wrong_command_line(&error),
    };
    let output = Output {
        json: cli.json,
        quiet: cli.quiet,
    };
    let result = match cli.verb {
        Verb::Init(args) => local::init::execute(args, output),
        Verb::Build(args) => local::build::execute(args, output),
        Verb::Run(args) => local::run::execute(args, output),
        Verb::Dev(args) => local::dev::execute(args, output),
        Verb::Doctor(args) => local::doctor::execute(args, output),
        Verb::Remote(command) => remote::execute(command, output),
        Verb::Demo(args) => demo::execute(args, output),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            failure.exit.into()
        }
    }
}

/// Help and version are results; everything else is wrong usage, told as JSON where that was asked
/// for.
fn wrong_command_line(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os()
        .skip(1)
        .take_while(|a| a != "--")
        .any(|a| a == "--json");
    if !error.use_stderr() || !json {
        // Nothing is left to do if not even this can be printed.
        let _ = error.print();
        return if error.use_stderr() {
            Exit::Usage.into()
        } else {
            ExitCode::SUCCESS
        };
    }
    let text = error.render().to_string();
    let text = text.trim().strip_prefix("error: ").unwrap_or(text.trim());
    let failure = Failure::usage(text);
    Output {
        json: true,
        quiet: true,
    }
    .failure(&failure);
    failure.exit.into()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Cli;

    #[test]
    fn no_two_arguments_of_a_verb_are_in_each_others_way() {
        Cli::command().debug_assert();
    }
}
