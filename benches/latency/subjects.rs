//! What is measured. Each subject does one whole cycle and says how long the part that counts took.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use holm_model::bundle::Files;
use holm_model::program::Program;
use holm_vmm::{
    GuestConfig, Hypervisor, Limits, Request, Slot, Snapshot, Step, floor::Floor, prepare,
};

use crate::sample::Samples;

/// Longest time for anything a guest does here.
const PATIENCE: Duration = Duration::from_secs(10);
/// Memory of the guests, as in the sample functions' manifests.
const MEMORY_BYTES: u64 = 16 << 20;
/// What `GET /` of both sample functions answers.
const GREETING: &[u8] = b"hello from v1\n";

type Cycle<'a> = Box<dyn FnMut() -> Result<Duration> + 'a>;

/// Something to measure.
pub(crate) struct Subject<'a> {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) per_round: u32,
    cycle: Cycle<'a>,
}

impl Subject<'_> {
    /// Cycles before the first that counts.
    pub(crate) const WARM_UP: u32 = 20;

    /// Runs `cycles` cycles.
    pub(crate) fn take(&mut self, cycles: u32, samples: &mut Samples) -> Result<()> {
        for _ in 0..cycles {
            samples.add((self.cycle)().with_context(|| format!("measuring {}", self.name))?);
        }
        Ok(())
    }
}

/// Every subject, the floor first.
pub(crate) fn all(hypervisor: &Hypervisor) -> Result<Vec<Subject<'_>>> {
    let rust = snapshot(hypervisor, "hello")?;
    let c = snapshot(hypervisor, "hello-c")?;
    Ok(vec![
        Subject {
            name: "floor",
            what: "exit round trip of a bare guest at CPL 3",
            per_round: 100,
            cycle: floor(hypervisor)?,
        },
        Subject {
            name: "sdk-fresh",
            what: "SDK hello: request, response and reset to the pristine snapshot",
            per_round: 50,
            cycle: fresh(hypervisor, &rust, true)?,
        },
        Subject {
            name: "sdk-answer",
            what: "SDK hello: request to response, the reset not counted",
            per_round: 50,
            cycle: fresh(hypervisor, &rust, false)?,
        },
        Subject {
            name: "c-fresh",
            what: "C server: request, response and reset",
            per_round: 50,
            cycle: fresh(hypervisor, &c, true)?,
        },
        Subject {
            name: "sdk-restore",
            what: "SDK hello: a snapshot from disk that is verified already, into a slot of another version, to \
                   response",
            per_round: 5,
            cycle: restore(hypervisor, &rust, &c)?,
        },
        Subject {
            name: "sdk-cold",
            what: "SDK hello: snapshot from disk into a slot, request to response",
            per_round: 5,
            cycle: cold(hypervisor, &rust)?,
        },
        Subject {
            name: "process",
            what: "posix_spawn of a static C hello until its output is read and it is waited for",
            per_round: 20,
            cycle: process()?,
        },
    ])
}

fn snapshot(hypervisor: &Hypervisor, function: &str) -> Result<Arc<Snapshot>> {
    let path = holm_test_support::function(function);
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let program = Program::parse(&bytes).with_context(|| format!("cannot use {function}"))?;
    let config = GuestConfig {
        name: function.to_owned(),
        memory_bytes: MEMORY_BYTES,
        env: vec![("HELLO_VERSION".to_owned(), "v1".to_owned())],
        args: Vec::new(),
        files: Files::default(),
        inetd: false,
        shared: false,
        port: 8080,
    };
    let prepared = prepare(hypervisor, &program, &config, PATIENCE)
        .with_context(|| format!("cannot prepare {function}"))?;
    Ok(prepared.snapshot)
}

fn floor(hypervisor: &Hypervisor) -> Result<Cycle<'_>> {
    let mut floor = Floor::new(hypervisor).context("cannot make the bare guest")?;
    Ok(Box::new(move || {
        floor
            .round_trip()
            .context("the bare guest did not come back")
    }))
}

/// One request through a slot that holds the snapshot, pristine, and the reset after it.
fn fresh<'a>(
    hypervisor: &'a Hypervisor,
    snapshot: &Arc<Snapshot>,
    with_reset: bool,
) -> Result<Cycle<'a>> {
    let mut slot = Slot::new(hypervisor).context("cannot make a slot")?;
    slot.load(snapshot).context("cannot load the snapshot")?;
    Ok(Box::new(move || {
        let started = Instant::now();
        invoke(&mut slot)?;
        let answered = started.elapsed();
        slot.reset().context("cannot reset")?;
        Ok(if with_reset {
            started.elapsed()
        } else {
            answered
        })
    }))
}

/// What the first request of a version costs where a node has admitted the version and no slot holds it.
fn restore<'a>(
    hypervisor: &'a Hypervisor,
    snapshot: &Arc<Snapshot>,
    other: &Arc<Snapshot>,
) -> Result<Cycle<'a>> {
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let path = directory.path().join("snapshot");
    snapshot.save(&path).context("cannot save the snapshot")?;
    let loaded = Snapshot::load(hypervisor, &path).context("cannot load from disk")?;
    let other = Arc::clone(other);
    let mut slot = Slot::new(hypervisor).context("cannot make a slot")?;
    Ok(Box::new(move || {
        // Moved in, so that the file lives as long as it is mapped.
        let _ = &directory;
        slot.load(&other).context("cannot load the other version")?;
        let started = Instant::now();
        slot.load(&loaded).context("cannot load into the slot")?;
        invoke(&mut slot)?;
        let took = started.elapsed();
        slot.reset().context("cannot reset")?;
        Ok(took)
    }))
}

/// The first request of a version whose snapshot is on disk, in the page cache as after a deploy; the
/// slot was made ahead.
/// Reading and verifying the snapshot is part of it.
fn cold<'a>(hypervisor: &'a Hypervisor, snapshot: &Arc<Snapshot>) -> Result<Cycle<'a>> {
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let path = directory.path().join("snapshot");
    snapshot.save(&path).context("cannot save the snapshot")?;
    let mut slot = Slot::new(hypervisor).context("cannot make a slot")?;
    Ok(Box::new(move || {
        // Moved in, so that the file lives as long as it is read.
        let _ = &directory;
        let started = Instant::now();
        let loaded = Snapshot::load(hypervisor, &path).context("cannot load from disk")?;
        slot.load(&loaded).context("cannot load into the slot")?;
        invoke(&mut slot)?;
        Ok(started.elapsed())
    }))
}

/// Sends `GET /` and checks the answer.
fn invoke(slot: &mut Slot) -> Result<()> {
    let headers: [(&[u8], &[u8]); 2] = [(b"host", b"localhost"), (b"accept", b"*/*")];
    let request = Request {
        method: "GET",
        target: "/",
        headers: &headers,
        body: &[],
    };
    let deadline = Instant::now() + PATIENCE;
    let limits = Limits {
        deadline,
        cpu: PATIENCE,
        response_body_bytes: 1 << 20,
        streams: false,
    };
    slot.begin(&request, limits).context("cannot begin")?;
    loop {
        match slot.run(PATIENCE) {
            Step::Answered(response) => {
                ensure!(
                    response.status == 200 && response.body == GREETING,
                    "the function answered {} with {:?}",
                    response.status,
                    String::from_utf8_lossy(&response.body)
                );
                return Ok(());
            }
            Step::Yielded => {}
            Step::Parked(until) => {
                std::thread::sleep(until.saturating_duration_since(Instant::now()));
            }
            Step::Failed(failure) | Step::Dropped(_, failure) => {
                bail!("the function failed: {failure}")
            }
        }
    }
}

/// A fresh process, for comparison.
fn process<'a>() -> Result<Cycle<'a>> {
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let program = directory.path().join("hello");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/hello.c");
    let status = Command::new("cc")
        .args(["-O2", "-static", "-o"])
        .arg(&program)
        .arg(source)
        .status()
        .context("cannot start cc")?;
    ensure!(status.success(), "cc cannot compile {source}");
    Ok(Box::new(move || {
        let _ = &directory;
        let started = Instant::now();
        // Without a change of directory or user, std uses posix_spawn.
        let output = Command::new(&program)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start the process")?;
        let elapsed = started.elapsed();
        ensure!(
            output.stdout == b"hello\n",
            "the process said something else"
        );
        Ok(elapsed)
    }))
}
