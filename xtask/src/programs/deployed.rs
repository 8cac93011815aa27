//! The programs as a user has them: deployed to a fleet of one node, and asked through its ingress. They are not
//! asked what they would connect to elsewhere for: all there is to connect to here is the node's own machine, to
//! which no node lets them.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use holm_tests::Fleet;

use super::build::{self, Source};
use super::guest::MEMORY_MIB;
use super::http::Client;
use super::native::OnHost;
use super::site;
use super::subjects::Subject;
use super::upstream::Upstream;
use super::{Answer, Verdict, compare};

const NODE: &str = "a";
const TENANT: &str = "test";

/// Starts coordinator and node in a directory of their own, deploys all of `subjects` and compares.
pub(crate) fn run(workspace: &Path, subjects: &[&Subject]) -> Result<Vec<Verdict>> {
    let upstream = Upstream::start()?;
    let fleet = Fleet::with_nodes(&[NODE]);
    fleet.holm(&["tenants", "create", TENANT]).ok();
    let address = fleet.address(NODE).parse()?;
    let (mut verdicts, mut deployed) = (Vec::new(), Vec::new());
    for subject in subjects {
        let mut host = OnHost::of(workspace, subject, &upstream)?;
        host.answers.truncate(subject.asked_alone());
        let verdict = match deploy(&fleet, workspace, subject, &host.program) {
            Err(problem) => Verdict::failed(subject, problem),
            Ok(()) => {
                let verdict = ask_all(address, subject, &host.answers);
                deployed.push((subject, host.answers));
                verdict
            }
        };
        verdict.print();
        verdicts.push(verdict);
    }
    // Once more, now that they take slots from each other.
    for (subject, answers) in deployed {
        let again = ask_all(address, subject, &answers);
        let first = verdicts.iter_mut().find(|one| one.program == subject.name);
        if let Some(first) = first.filter(|first| first.is_good() && !again.is_good()) {
            first.problem = format!("the second time {}", again.problem);
            first.print();
        }
    }
    Ok(verdicts)
}

fn ask_all(node: SocketAddr, subject: &Subject, answers: &[Answer]) -> Verdict {
    let mut client = Client::new(node, format!("/{TENANT}/{}", subject.name));
    compare(subject, answers, |ask| client.ask(ask))
}

fn deploy(fleet: &Fleet, workspace: &Path, subject: &Subject, program: &Path) -> Result<()> {
    let name = subject.name;
    let (mut function, mut files) = (String::new(), String::new());
    if let Source::Busybox = subject.source {
        function = format!("inetd = true\nargs = {:?}\n", site::IN_GUEST);
        files = format!("[files]\n\"/www\" = {:?}\n", site::DIRECTORY);
    }
    let text = format!(
        "schema = 1\n[function]\nname = {name:?}\ntenant = {TENANT:?}\n{function}{files}\
         [limits]\nmemory = \"{MEMORY_MIB}MiB\"\ndeadline = \"20s\"\ncpu = \"20s\"\n\
         [rollout]\nwaves = [100]\nbake = \"100ms\"\nprobe = {:?}\n",
        subject.asks[0].path
    );
    // Files are taken from beside the manifest.
    let manifest = build::directory(workspace)?.join(format!("{name}.toml"));
    fs::write(&manifest, text).with_context(|| format!("cannot write {}", manifest.display()))?;
    let (program, manifest) = (program.to_string_lossy(), manifest.to_string_lossy());
    let ran = fleet.holm(&["deploy", "--program", &program, "--manifest", &manifest]);
    match ran.status {
        0 => Ok(()),
        _ => Err(anyhow!(
            "it cannot be deployed: {}{}",
            ran.stdout,
            ran.stderr
        )),
    }
}
