//! How the command ends: a small, stable set of exit statuses, and the error that carries one.
//!
//! Scripts may rely on the numbers. They never change their meaning; new ones may be added.

use std::fmt;
use std::process::ExitCode;

use serde::Serialize;

/// The exit statuses of `holm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Exit {
    /// Something went wrong that none of the others names.
    Failure = 1,
    /// The command line, the manifest or a file given to it is wrong.
    Usage = 2,
    /// The program crashed or did not answer in time.
    Program = 3,
    /// This machine has no KVM that can be used.
    NoKvm = 4,
    /// A server answered that there is no such thing, or that it will not do it.
    Refused = 5,
    /// A server cannot be reached.
    Unreachable = 6,
    /// A rollout went back, or another one took its place.
    RolledBack = 7,
    /// A rollout is paused.
    Paused = 8,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a verb did not do what it was asked. Names operation and object, who is to blame, and what to
/// do next; `main` prints it and ends with its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The status the command ends with.
    pub(crate) exit: Exit,
    /// What happened, in one sentence or a few lines.
    pub(crate) message: String,
    /// What to do about it, if that is not in the message.
    pub(crate) hint: Option<String>,
    /// The report has been given already, on stdout as this verb's result: print nothing more.
    pub(crate) reported: bool,
}

impl Failure {
    /// A failure with a text.
    pub(crate) fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Failure {
            exit,
            message: message.to_string(),
            hint: None,
            reported: false,
        }
    }

    /// Shorthand for [`Exit::Failure`].
    pub(crate) fn other(message: impl fmt::Display) -> Self {
        Failure::new(Exit::Failure, message)
    }

    /// Shorthand for [`Exit::Usage`].
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Failure::new(Exit::Usage, message)
    }

    /// Adds what to do about it.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// A failure that the verb's own output has told already.
    pub(crate) fn reported(exit: Exit, message: impl fmt::Display) -> Self {
        Failure {
            exit,
            message: message.to_string(),
            hint: None,
            reported: true,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n{hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}
