//! The verbs that speak to a coordinator or a node, and the two daemons.

use clap::Subcommand;

use crate::exit::Failure;
use crate::output::Output;

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {}

/// Does what `command` says.
pub(crate) fn execute(command: Command, _output: Output) -> Result<(), Failure> {
    match command {}
}
