//! The programs on emulated hardware KVM: asked on the host first, and then in the emulated machine by a
//! static build of this very command, which finds them and the host's answers in a directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::guest::Guest;
use super::native::OnHost;
use super::subjects::Subject;
use super::upstream::Upstream;
use super::{Answer, Verdict, compare};
use crate::hardware_kvm::{self, Folder};

/// Where they are in the emulated machine.
const INSIDE: &str = "/programs";
/// The host's answers, by program.
const ANSWERS: &str = "answers.json";

/// Builds the programs, asks them on the host, and compares in the emulated machine.
pub(crate) fn run(workspace: &Path, subjects: &[&Subject], timeout: Duration) -> Result<()> {
    let root = hardware_kvm::root()?;
    let directory = root.join("programs");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let upstream = Upstream::start()?;
    let mut answers = BTreeMap::new();
    for subject in subjects {
        let host = OnHost::of(workspace, subject, &upstream)?;
        let to = directory.join(subject.name);
        fs::copy(&host.program, &to).with_context(|| format!("cannot make {}", to.display()))?;
        answers.insert(subject.name, host.answers.clone());
    }
    let to = directory.join(ANSWERS);
    fs::write(&to, serde_json::to_vec(&answers)?)
        .with_context(|| format!("cannot write {}", to.display()))?;
    let mut arguments = vec![
        "guest-programs".to_owned(),
        "--recorded".to_owned(),
        INSIDE.to_owned(),
    ];
    for subject in subjects {
        arguments.extend(["--only".to_owned(), subject.name.to_owned()]);
    }
    let folder = Folder {
        from: directory,
        to: INSIDE,
    };
    hardware_kvm::run_command("xtask", arguments, &[folder], timeout)
}

/// The emulated machine's part.
pub(crate) fn inside(directory: &Path, subjects: &[&Subject]) -> Result<Vec<Verdict>> {
    let from = directory.join(ANSWERS);
    let bytes = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
    let answers: BTreeMap<String, Vec<Answer>> = serde_json::from_slice(&bytes)?;
    let upstream = Upstream::start()?;
    let mut verdicts = Vec::new();
    for subject in subjects {
        let expected = answers
            .get(subject.name)
            .with_context(|| format!("{} has no answers", subject.name))?;
        let program = directory.join(subject.name);
        let verdict = match Guest::boot(&program, &subject.source, &upstream) {
            Ok(mut guest) => compare(subject, expected, |ask| guest.fresh(ask)),
            Err(problem) => Verdict::failed(subject, problem),
        };
        verdict.print();
        verdicts.push(verdict);
    }
    let failed = verdicts.iter().filter(|verdict| !verdict.is_good()).count();
    println!(
        "test result: {}. {} passed; {failed} failed; 0 ignored",
        if failed == 0 { "ok" } else { "FAILED" },
        verdicts.len() - failed
    );
    Ok(verdicts)
}
