//! What the command prints, for people or, with `--json`, for programs.
//!
//! The result of a verb goes to stdout: text, or one JSON object (a line each where there are
//! several). Everything else goes to stderr: progress and notes for people only (none with `--quiet`
//! or `--json`), and errors, with `--json` as one line `{"error":{"kind","message","hint"}}`.

use std::io::{ErrorKind, IsTerminal as _, Write as _};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::exit::Failure;
use crate::log::{self, Log};

/// Where and how a verb prints.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// `--json`.
    pub(crate) json: bool,
    /// `--quiet`.
    pub(crate) quiet: bool,
}

impl Output {
    /// Prints a result: `value` with `--json`, else `human`, which ends without a line break.
    pub(crate) fn result<T: Serialize + ?Sized>(
        &self,
        value: &T,
        human: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        let text = match self.json {
            true => serde_json::to_string(value).map_err(|error| {
                Failure::other(format!("the result cannot be written: {error}"))
            })?,
            false => human(),
        };
        self.line(&text)
    }

    /// Prints a line on stdout as it is.
    pub(crate) fn line(&self, text: &str) -> Result<(), Failure> {
        self.raw(format!("{text}\n").as_bytes())
    }

    /// Writes bytes to stdout as they are. A reader that has gone away is no error: it has seen
    /// what it wanted.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(Failure::other(format!("stdout cannot be written: {error}")))
            }
            _ => Ok(()),
        }
    }

    /// Tells people what is going on; silent with `--quiet` or `--json`.
    pub(crate) fn note(&self, text: impl std::fmt::Display) {
        if !self.json && !self.quiet {
            complain(&format!("{text}\n"));
        }
    }

    /// Tells of something that is wrong but does not stop the verb; silent with `--json`, whose
    /// result has to carry it.
    pub(crate) fn warn(&self, text: impl std::fmt::Display) {
        if !self.json {
            complain(&format!("warning: {text}\n"));
        }
    }

    /// A bar for work of `steps` steps, on a terminal only.
    pub(crate) fn bar(&self, steps: u64, what: &str) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(steps), self.target());
        if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} {elapsed}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        bar
    }

    fn target(&self) -> ProgressDrawTarget {
        match self.json || self.quiet || !std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::hidden(),
            false => ProgressDrawTarget::stderr(),
        }
    }

    /// Prints why a verb failed.
    pub(crate) fn failure(&self, failure: &Failure) {
        if failure.reported {
            return;
        }
        if self.json {
            let error = serde_json::json!({ "error": {
                "kind": failure.exit,
                "message": failure.message,
                "hint": failure.hint,
            }});
            complain(&format!("{error}\n"));
        } else {
            complain(&format!("error: {failure}\n"));
        }
    }
}

/// Writes to stderr. If nobody reads it there is nobody left to tell.
pub(crate) fn complain(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Sends tracing to stderr: `HOLM_LOG` (an `EnvFilter`), else `default`. Daemons call it with
/// `"info"`, and keep what it gives until their end. Nobody who logs waits for who reads stderr.
#[must_use = "the last lines are lost when this is dropped too early"]
pub(crate) fn logging(default: &str, json: bool) -> Option<Log> {
    use tracing_subscriber::EnvFilter;
    use tracing_subscriber::fmt::writer::BoxMakeWriter;
    let filter = EnvFilter::try_from_env("HOLM_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let note = move |lost: u64| {
        let said =
            format!("{lost} lines of the log were lost: they came faster than stderr took them");
        match json {
            true => {
                let line = serde_json::json!({ "level": "WARN", "fields": { "message": said }, "target": "holm" });
                format!("{line}\n")
            }
            false => format!(" WARN holm: {said}\n"),
        }
    };
    let (log, writer) = match log::begin(std::io::stderr(), note) {
        Ok((log, lines)) => (Some(log), BoxMakeWriter::new(move || lines.clone())),
        Err(error) => {
            complain(&format!(
                "warning: no thread for the log ({error}); it is written at once\n"
            ));
            (None, BoxMakeWriter::new(std::io::stderr))
        }
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer);
    // A second call keeps the first one's settings; that is harmless.
    let _ = match json {
        true => builder.json().try_init(),
        false => builder
            .with_ansi(std::io::stderr().is_terminal())
            .try_init(),
    };
    log
}
