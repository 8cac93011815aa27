//! `holm demo`: a coordinator and three nodes at work on this machine.

use crate::exit::Failure;
use crate::output::Output;

/// Options of `holm demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the demonstration.
pub(crate) fn execute(_args: Args, _output: Output) -> Result<(), Failure> {
    Err(Failure::other("the demonstration is not part of this build"))
}
