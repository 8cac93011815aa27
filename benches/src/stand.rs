//! The fleet that is measured: one coordinator and nodes, real processes, on the loopback interface.

use std::cell::{Ref, RefCell};
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use holm_tests::{Fleet, NodeSize, tenant_and_name};

use crate::client::{Connection, GREETING, Target, runtime};

/// The SDK's sample function.
pub(crate) const HELLO: &str = "hello";
/// How long a snapshot may take to be on disk after a deploy, and a node to answer after a restart.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two attempts to reach a node that starts.
const LOOK: Duration = Duration::from_micros(100);

/// A fleet with [`HELLO`] deployed.
#[derive(Debug)]
pub(crate) struct Stand {
    fleet: RefCell<Fleet>,
}

impl Stand {
    /// Nodes of the size that they choose by themselves.
    pub(crate) fn with_nodes(names: &[&str]) -> Result<Self> {
        let size = NodeSize {
            threads: 0,
            slots: 0,
        };
        let stand = Stand {
            fleet: RefCell::new(Fleet::with_nodes_of(size, names)),
        };
        let manifest = "probe = \"/\"\n[limits]\nmemory = \"16MiB\"\ndeadline = \"2s\"\n[env]\nHELLO_VERSION = \"v1\"\n";
        stand.deploy(HELLO, &holm_test_support::function(HELLO), manifest);
        Ok(stand)
    }

    /// Deploys a program with more lines of manifest.
    pub(crate) fn deploy(&self, name: &str, program: &Path, manifest: &str) {
        self.fleet.borrow().deploy(name, program, manifest);
    }

    pub(crate) fn fleet(&self) -> Ref<'_, Fleet> {
        self.fleet.borrow()
    }

    /// A function of a node, to be asked for `path`.
    pub(crate) fn target(&self, node: &str, function: &str, path: &str) -> Result<Target> {
        let address = self.address(node)?;
        let (tenant, name) = tenant_and_name(function);
        Ok(Target::new(address, format!("/{tenant}/{name}{path}")))
    }

    fn address(&self, node: &str) -> Result<SocketAddr> {
        let address = self.fleet().address(node);
        address.parse().context("a node's address is none")
    }

    /// The process of a node.
    pub(crate) fn pid(&self, node: &str) -> u32 {
        self.fleet().node_pid(node)
    }

    /// How often a node has booted a program and not read its snapshot.
    pub(crate) fn boots(&self, node: &str) -> usize {
        let log = self.fleet().log(node);
        log.matches("booted and snapshotted").count()
    }

    /// Waits until the node has a snapshot on disk.
    pub(crate) fn await_snapshot(&self, node: &str) -> Result<()> {
        let directory = self.fleet().path(&format!("{node}/snapshots"));
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let mut entries = std::fs::read_dir(&directory)
                .into_iter()
                .flatten()
                .flatten();
            if entries.any(|entry| entry.path().extension().is_some_and(|end| end == "snap")) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("{node} has no snapshot in {directory}")
    }

    /// Kills a node, starts it again, and says how long its first answer took from the moment that it
    /// accepted the connection.
    pub(crate) fn restart(&self, node: &str) -> Result<Duration> {
        let target = self.target(node, HELLO, "/")?;
        self.fleet.borrow_mut().kill_node(node);
        let caller = thread::spawn(move || first_answer(&target));
        self.fleet.borrow_mut().start_node(node);
        let caller = caller.join();
        caller.map_err(|_| anyhow!("the caller of a restarted node panicked"))?
    }
}

fn first_answer(target: &Target) -> Result<Duration> {
    let deadline = Instant::now() + PATIENCE;
    runtime()?.block_on(async {
        let mut accepted = None;
        loop {
            // Who waits for the function asks again, whatever kept the node from answering.
            let answer = async {
                let mut connection = Connection::open(target).await?;
                accepted.get_or_insert_with(Instant::now);
                loop {
                    match connection.get().await? {
                        (status, _) if [404, 503].contains(&status.as_u16()) => thread::sleep(LOOK),
                        other => return Ok::<_, anyhow::Error>(other),
                    }
                    ensure!(Instant::now() < deadline, "{target:?} is not served");
                }
            };
            match (answer.await, accepted) {
                (Ok((status, body)), Some(accepted)) if status == 200 && body == GREETING => {
                    return Ok(accepted.elapsed());
                }
                (Err(_), _) if Instant::now() < deadline => thread::sleep(LOOK),
                (other, _) => bail!("{target:?} gave {other:?} after a restart"),
            }
        }
    })
}
