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
use super::{Verdict, compare};

const NODE: &str = "a";
const TENANT: &str = "test";

/// Coordinator and node, in a directory of their own.
pub(crate) struct Deployments {
    fleet: Fleet,
    node: SocketAddr,
}

impl Deployments {
    pub(crate) fn start() -> Result<Self> {
        let fleet = Fleet::with_nodes(&[NODE]);
        fleet.holm(&["tenants", "create", TENANT]).ok();
        let node = fleet.address(NODE).parse()?;
        Ok(Deployments { fleet, node })
    }

    /// Deploys a program of the host's and gives a client for it.
    pub(crate) fn deploy(
        &self,
        workspace: &Path,
        subject: &Subject,
        program: &Path,
        isolation: &str,
    ) -> Result<Client> {
        let name = format!("{}-{isolation}", subject.name);
        let (mut function, mut files) = (String::new(), String::new());
        if let Source::Busybox = subject.source {
            function = format!("inetd = true\nargs = {:?}\n", site::IN_GUEST);
            files = format!("[files]\n\"/www\" = {:?}\n", site::DIRECTORY);
        }
        let text = format!(
            "schema = 1\n[function]\nname = {name:?}\ntenant = {TENANT:?}\n{function}{files}\
             [limits]\nmemory = \"{MEMORY_MIB}MiB\"\ndeadline = \"20s\"\ncpu = \"20s\"\n\
             [scale]\nisolation = {isolation:?}\n\
             [rollout]\nwaves = [100]\nbake = \"100ms\"\nprobe = {:?}\n",
            subject.asks[0].path
        );
        // Files are taken from beside the manifest.
        let manifest = build::directory(workspace)?.join(format!("{name}.toml"));
        fs::write(&manifest, text)
            .with_context(|| format!("cannot write {}", manifest.display()))?;
        let (program, manifest) = (program.to_string_lossy(), manifest.to_string_lossy());
        let arguments = ["deploy", "--program", &program, "--manifest", &manifest];
        let ran = self.fleet.holm(&arguments);
        match ran.status {
            0 => Ok(Client::new(self.node, format!("/{TENANT}/{name}"))),
            _ => Err(anyhow!(
                "it cannot be deployed: {}{}",
                ran.stdout,
                ran.stderr
            )),
        }
    }
}

/// Deploys all of `subjects` and compares.
pub(crate) fn run(workspace: &Path, subjects: &[&Subject]) -> Result<Vec<Verdict>> {
    let upstream = Upstream::start()?;
    let deployments = Deployments::start()?;
    let (mut verdicts, mut deployed) = (Vec::new(), Vec::new());
    for subject in subjects {
        let mut host = OnHost::of(workspace, subject, &upstream)?;
        host.answers.truncate(subject.asked_alone());
        let verdict = match deployments.deploy(workspace, subject, &host.program, "request") {
            Err(problem) => Verdict::failed(subject, problem),
            Ok(mut client) => {
                let verdict = compare(subject, &host.answers, |ask| client.ask(ask));
                deployed.push((subject, host.answers, client));
                verdict
            }
        };
        verdict.print();
        verdicts.push(verdict);
    }
    // Once more, now that they take slots from each other.
    for (subject, answers, mut client) in deployed {
        // A node closes what has been idle for longer than all the others may take.
        client.hang_up();
        let again = compare(subject, &answers, |ask| client.ask(ask));
        let first = verdicts.iter_mut().find(|one| one.program == subject.name);
        if let Some(first) = first.filter(|first| first.is_good() && !again.is_good()) {
            first.problem = format!("the second time {}", again.problem);
            first.print();
        }
    }
    Ok(verdicts)
}
