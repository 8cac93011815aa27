//! Running a program in a virtual machine on the calling thread, for `run`, `dev` and `doctor`.

use std::time::{Duration, Instant};

use holm_vmm::{Failure as GuestFailure, Hypervisor, PrepareError, Response, Slot, Step};

use crate::exit::{Exit, Failure};

/// The `$PORT` of programs that run here.
pub(crate) const PORT: u16 = 8080;
/// As many lines of a log as an error carries.
const LOG_LINES: usize = 24;
/// As many of them are the first ones, if there are more.
const FIRST_LINES: usize = 6;
/// As much of the log as is kept for a report.
const MAX_LOG_BYTES: usize = 64 << 10;

/// Opens /dev/kvm, or says what is wrong with it.
pub(crate) fn hypervisor() -> Result<Hypervisor, Failure> {
    Hypervisor::open().map_err(|error| {
        Failure::new(Exit::NoKvm, format!("there is no usable KVM here: {error}"))
            .hint("`holm doctor` says what to do about it.")
    })
}

/// Runs a slot that has begun a request until it answers, fails, or `go_on` says no (`None`).
pub(crate) fn finish(
    slot: &mut Slot,
    deadline: Instant,
    quantum: Duration,
    go_on: impl Fn() -> bool,
) -> Option<Result<Response, GuestFailure>> {
    loop {
        match slot.run(quantum) {
            Step::Answered(response) => return Some(Ok(response)),
            Step::Failed(failure) | Step::Dropped(_, failure) => return Some(Err(failure)),
            Step::Yielded => {}
            // The VMM itself holds the deadline; it only has to be asked again by then.
            Step::Parked(until) => {
                slot.wait(until.min(deadline).min(Instant::now() + quantum));
            }
        }
        if !go_on() {
            return None;
        }
    }
}

/// Why a program did not get ready, as this command's failure.
pub(crate) fn not_ready(error: &PrepareError) -> Failure {
    failure("before it waited for a request", &error.failure, &error.log)
}

/// Why a guest did not answer, as this command's failure: what happened and the log's last lines.
pub(crate) fn failure(when: &str, failure: &GuestFailure, log: &[u8]) -> Failure {
    let (exit, blame) = match failure {
        GuestFailure::Host(_) => (Exit::Failure, "this machine failed"),
        _ => (Exit::Program, "the program failed"),
    };
    let text = told_lines(log);
    let failed = Failure::new(exit, format!("{blame} {when}: {failure}"));
    match text.is_empty() {
        true => failed,
        false => failed.hint(format!("Its log:\n{text}")),
    }
}

/// The last lines of a log and the first ones, where a long dump says what it is of, as text that cannot harm a
/// terminal.
pub(crate) fn told_lines(log: &[u8]) -> String {
    let text = printable(log);
    let mut lines: Vec<&str> = text.lines().collect();
    let more = lines.len().saturating_sub(LOG_LINES);
    let cut = format!("[{} lines left out]", more + 1);
    if more > 0 {
        lines.splice(FIRST_LINES..=FIRST_LINES + more, [&*cut]);
    }
    lines.join("\n")
}

/// A program's bytes as text, without control characters other than line breaks and tabs.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let tame = |c: char| {
        if c.is_control() && c != '\n' && c != '\t' {
            '\u{fffd}'
        } else {
            c
        }
    };
    String::from_utf8_lossy(bytes)
        .replace("\r\n", "\n")
        .chars()
        .map(tame)
        .collect()
}

/// The end of everything a program wrote.
#[derive(Debug, Default)]
pub(crate) struct Log {
    kept: Vec<u8>,
    dropped: u64,
}

impl Log {
    /// Adds what the program wrote; the oldest goes when there is too much.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
        let surplus = self.kept.len().saturating_sub(MAX_LOG_BYTES);
        self.dropped += surplus as u64;
        self.kept.drain(..surplus);
    }

    /// What is kept.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.kept
    }

    /// How many bytes were ever added.
    pub(crate) fn total(&self) -> u64 {
        self.dropped + self.kept.len() as u64
    }

    /// What was added after `total` was its present value, as far as it is kept.
    pub(crate) fn since(&self, total: u64) -> &[u8] {
        let from = usize::try_from(total.saturating_sub(self.dropped)).unwrap_or(usize::MAX);
        self.kept.get(from..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_keeps_its_end_and_counts_the_rest() {
        let mut log = Log::default();
        log.add(&[b'a'; MAX_LOG_BYTES]);
        log.add(b"end");
        assert_eq!(log.bytes().len(), MAX_LOG_BYTES);
        assert_eq!(log.total(), MAX_LOG_BYTES as u64 + 3);
        assert_eq!(log.since(MAX_LOG_BYTES as u64), b"end");
        assert_eq!(log.since(0).len(), MAX_LOG_BYTES);
    }

    #[test]
    fn what_a_program_writes_cannot_steer_the_terminal() {
        assert_eq!(
            printable(b"a\x1b[2J\r\nb\tc\xff"),
            "a\u{fffd}[2J\nb\tc\u{fffd}"
        );
    }

    #[test]
    fn of_a_long_log_the_first_and_the_last_lines_are_shown() {
        let log = |lines: u32| (1..=lines).map(|n| format!("{n}\n")).collect::<String>();
        assert_eq!(told_lines(log(24).as_bytes()), log(24).trim_end());
        let cut = told_lines(log(100).as_bytes());
        assert!(
            cut.starts_with("1\n2\n3\n4\n5\n6\n[77 lines left out]\n84\n"),
            "{cut}"
        );
        assert!(cut.ends_with("\n100"), "{cut}");
        assert_eq!(cut.lines().count(), LOG_LINES);
    }
}
