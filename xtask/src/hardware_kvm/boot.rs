//! Booting the emulated machine, showing what it prints, and judging the run by its marker lines.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::TestProgram;

/// How a line of the machine's own starts, as opposed to one of a test.
pub(crate) const MARKER: &str = "HOLM-XTASK";
/// Memory of the machine; the initramfs is in it too.
const MEMORY_MIB: u32 = 2048;

/// Boots `kernel` and judges the run of `programs`.
pub(crate) fn run(
    kernel: &Path,
    initramfs: &Path,
    programs: &[TestProgram],
    timeout: Duration,
) -> Result<()> {
    let started = Instant::now();
    let mut machine = Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            "tcg",
            "-cpu",
            "max,+svm,+npt",
            "-nic",
            "none",
            "-nographic",
        ])
        .args(["-no-reboot", "-m", &MEMORY_MIB.to_string()])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 quiet panic=1 mitigations=off"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start qemu-system-x86_64")?;
    let watched = watch(&mut machine, started + timeout);
    // It has ended by itself, or its time is over; killing it twice does no harm.
    let _ = machine.kill();
    let _ = machine.wait();
    watched?.judge(programs, started.elapsed())
}

/// Shows the machine's console and reads its markers until it ends.
fn watch(machine: &mut Child, deadline: Instant) -> Result<Record> {
    let console = machine
        .stdout
        .take()
        .context("the machine has no console")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut console = BufReader::new(console);
        let mut line = Vec::new();
        // A console that cannot be read has ended.
        while console
            .read_until(b'\n', &mut line)
            .is_ok_and(|bytes| bytes > 0)
        {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    let mut record = Record::default();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                record.read(&line);
                // Whoever watches may be gone; the run is judged all the same.
                let _ = writeln!(std::io::stdout(), "{line}");
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(record),
            Err(RecvTimeoutError::Timeout) => {
                bail!(
                    "the emulated machine was stopped: its time is over{}",
                    record.running()
                )
            }
        }
    }
}

/// What the machine has said.
#[derive(Debug, Default)]
struct Record {
    has_kvm: bool,
    is_done: bool,
    /// Test programs that have begun, with their exit status once they have ended.
    programs: BTreeMap<String, Option<String>>,
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Record {
    fn read(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("test result: ") {
            for part in rest.split([';', '.']).map(str::trim) {
                match part.split_once(' ') {
                    Some((count, "passed")) => self.passed += count.parse().unwrap_or(0),
                    Some((count, "failed")) => self.failed += count.parse().unwrap_or(0),
                    Some((count, "ignored")) => self.ignored += count.parse().unwrap_or(0),
                    _ => {}
                }
            }
        }
        let Some(rest) = line.strip_prefix(MARKER) else {
            return;
        };
        match rest.split_whitespace().collect::<Vec<_>>()[..] {
            ["kvm"] => self.has_kvm = true,
            ["begin", name] => {
                self.programs.insert(name.to_owned(), None);
            }
            ["end", name, status] => {
                self.programs
                    .insert(name.to_owned(), Some(status.to_owned()));
            }
            ["done"] => self.is_done = true,
            _ => {}
        }
    }

    /// What was going on, for an error's end.
    fn running(&self) -> String {
        match self.programs.iter().find(|(_, status)| status.is_none()) {
            Some((name, _)) => format!(", while {name} was running"),
            None => String::new(),
        }
    }

    /// Prints the summary in the form of `cargo test`. An error unless every program ran and passed
    /// and at least one test was among them.
    fn judge(&self, expected: &[TestProgram], elapsed: Duration) -> Result<()> {
        let problem = self.problem(expected.iter().map(|program| program.name.as_str()));
        println!(
            "\nhardware KVM (AMD SVM, emulated)\ntest result: {}. {} passed; {} failed; {} ignored; \
             0 measured; 0 filtered out; finished in {:.2}s",
            if problem.is_none() { "ok" } else { "FAILED" },
            self.passed,
            self.failed,
            self.ignored,
            elapsed.as_secs_f64()
        );
        match problem {
            None => Ok(()),
            Some(problem) => bail!("hardware KVM: {problem}"),
        }
    }

    fn problem<'a>(&self, mut expected: impl Iterator<Item = &'a str>) -> Option<String> {
        let mut check = || -> Result<()> {
            ensure!(
                self.has_kvm,
                "the emulated machine has no /dev/kvm; its messages are above"
            );
            for (name, status) in &self.programs {
                match status.as_deref() {
                    Some("0") => {}
                    Some(status) => bail!("{name} ended with status {status}"),
                    None => bail!("the machine ended while {name} was running"),
                }
            }
            if let Some(name) = expected.find(|name| !self.programs.contains_key(*name)) {
                bail!("{name} did not run");
            }
            ensure!(self.is_done, "the machine ended before its script did");
            ensure!(self.failed == 0, "{} tests failed", self.failed);
            ensure!(self.passed > 0, "no test ran");
            Ok(())
        };
        check().err().map(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(lines: &[&str]) -> Record {
        let mut record = Record::default();
        for line in lines {
            record.read(line);
        }
        record
    }

    const GOOD: [&str; 6] = [
        "HOLM-XTASK kvm",
        "HOLM-XTASK begin test-a",
        "test x ... ok",
        "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s",
        "HOLM-XTASK end test-a 0",
        "HOLM-XTASK done",
    ];

    #[test]
    fn a_run_is_good_when_all_programs_ended_well_and_a_test_ran() {
        let record = record(&GOOD);
        assert_eq!((record.passed, record.failed, record.ignored), (2, 0, 1));
        assert_eq!(record.problem(["test-a"].into_iter()), None);
    }

    #[test]
    fn every_line_that_is_missing_makes_a_run_bad() {
        for missing in [0, 3, 4, 5] {
            let mut lines = GOOD.to_vec();
            lines.remove(missing);
            let problem = record(&lines).problem(["test-a"].into_iter());
            assert!(problem.is_some(), "without line {missing}");
        }
    }

    #[test]
    fn a_program_that_failed_or_never_began_is_named() {
        let mut lines = GOOD.to_vec();
        lines[4] = "HOLM-XTASK end test-a 101";
        let problem = record(&lines).problem(["test-a"].into_iter()).unwrap();
        assert!(
            problem.contains("test-a ended with status 101"),
            "{problem}"
        );
        let problem = record(&GOOD)
            .problem(["test-a", "test-b"].into_iter())
            .unwrap();
        assert!(problem.contains("test-b did not run"), "{problem}");
    }
}
