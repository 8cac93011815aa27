//! `cargo xtask guest-programs`: ordinary servers, on the host and in a guest, side by side.
//!
//! Each program is built from `tests/programs`, started on the host and in a guest, and asked the same;
//! what it answers has to be equal. The guest may be one of this process, which can be timed as well, one
//! on emulated hardware KVM, or one of a node to which the program was deployed.

mod build;
mod costs;
mod deployed;
mod guest;
mod hardware;
mod http;
mod native;
mod site;
mod subjects;
mod timing;
mod upstream;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};

use guest::Guest;
use native::OnHost;
use subjects::{Ask, SUBJECTS, Subject};
use upstream::Upstream;

/// Where the guests are that are compared with the host.
pub(crate) enum Place {
    /// In this process, and what they cost is printed, as a table or as JSON.
    Timed { json: bool },
    /// In this process.
    Here,
    /// On a node, behind its coordinator.
    Deployed,
    /// On emulated hardware KVM; the machine is stopped after this time.
    Hardware(Duration),
    /// In this process, and the host's answers are in this directory.
    Recorded(PathBuf),
}

/// Status and body.
pub(crate) type Answer = (u16, Vec<u8>);

/// Builds and runs all programs, or those that are named. An error if one does not do what it does on the
/// host.
pub(crate) fn run(workspace: &Path, only: &[String], place: &Place) -> Result<()> {
    let subjects = choose(only)?;
    let verdicts = match place {
        Place::Timed { json } => timing::run(workspace, &subjects, only.is_empty(), *json)?,
        Place::Here => here(workspace, &subjects)?,
        Place::Deployed => deployed::run(workspace, &subjects)?,
        Place::Hardware(timeout) => return hardware::run(workspace, &subjects, *timeout),
        Place::Recorded(directory) => hardware::inside(directory, &subjects)?,
    };
    let failed: Vec<_> = verdicts
        .iter()
        .filter(|verdict| !verdict.is_good())
        .map(|verdict| format!("{}: {}", verdict.program, verdict.problem))
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

fn choose(only: &[String]) -> Result<Vec<&'static Subject>> {
    let names = || SUBJECTS.iter().map(|subject| subject.name);
    for name in only {
        ensure!(
            names().any(|known| known == name),
            "there is no program {name}; there are: {}",
            names().collect::<Vec<_>>().join(", ")
        );
    }
    let chosen =
        |subject: &&Subject| only.is_empty() || only.iter().any(|name| name == subject.name);
    Ok(SUBJECTS.iter().filter(chosen).collect())
}

fn here(workspace: &Path, subjects: &[&Subject]) -> Result<Vec<Verdict>> {
    let upstream = Upstream::start()?;
    let mut verdicts = Vec::new();
    for subject in subjects {
        let host = OnHost::of(workspace, subject, &upstream)?;
        let verdict = match Guest::boot(&host.program, &subject.source, &upstream) {
            Ok(mut guest) => compare(subject, &host.answers, |ask| guest.fresh(ask)),
            Err(problem) => Verdict::failed(subject, problem),
        };
        verdict.print();
        verdicts.push(verdict);
    }
    Ok(verdicts)
}

/// What came of a program's comparison.
pub(crate) struct Verdict {
    pub(crate) program: &'static str,
    /// Requests that were answered alike.
    pub(crate) equal: usize,
    /// Empty, or the first difference or failure.
    pub(crate) problem: String,
}

impl Verdict {
    /// The program did not come as far as to be asked.
    pub(crate) fn failed(subject: &Subject, problem: anyhow::Error) -> Self {
        Verdict {
            program: subject.name,
            equal: 0,
            problem: format!("{problem:#}"),
        }
    }

    pub(crate) fn is_good(&self) -> bool {
        self.problem.is_empty()
    }

    /// One line, as `cargo test` has them.
    pub(crate) fn print(&self) {
        let Verdict {
            program,
            equal,
            problem,
        } = self;
        match self.is_good() {
            true => println!("test {program} ... ok ({equal} answers are equal)"),
            false => println!(
                "test {program} ... FAILED (it differs after {equal} equal answers: {problem})"
            ),
        }
    }
}

/// Asks all that the subject is asked, until an answer is not what is expected.
pub(crate) fn compare(
    subject: &Subject,
    expected: &[Answer],
    mut answer: impl FnMut(&Ask) -> Result<Answer>,
) -> Verdict {
    let mut verdict = Verdict {
        program: subject.name,
        equal: 0,
        problem: String::new(),
    };
    for (ask, there) in subject.asks.iter().zip(expected) {
        verdict.problem = match answer(ask) {
            Ok(here) if here == *there => {
                verdict.equal += 1;
                continue;
            }
            Ok(here) => format!(
                "{} answers {:?} in a guest and {:?} on the host",
                ask.path,
                short(&here),
                short(there)
            ),
            Err(problem) => format!("{}: {problem:#}", ask.path),
        };
        break;
    }
    verdict
}

fn short(answer: &Answer) -> (u16, String) {
    let text = String::from_utf8_lossy(&answer.1).into_owned();
    (answer.0, text.chars().take(200).collect())
}

/// The middle one.
pub(crate) fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}
