//! `holm init`.

use crate::exit::Failure;
use crate::output::Output;

/// Options of `holm init`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Does it.
pub(crate) fn execute(_args: Args, _output: Output) -> Result<(), Failure> {
    Err(Failure::other("not part of this build"))
}
