//! What is timed in turn. Each subject does one whole cycle and says how long the part that counts took.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use holm_model::bundle::Files;
use holm_model::program::Program;
use holm_vmm::{
    Choice, Failure, GuestConfig, Hypervisor, Limits, Request, Slot, Snapshot, Step, floor::Floor,
    prepare,
};
use tokio::runtime::Runtime;

use crate::client::{Connection, GREETING, Target};
use crate::sample::Samples;

/// Longest time for anything a guest does here.
const PATIENCE: Duration = Duration::from_secs(10);
/// Memory of the guests, as in the sample functions' manifests.
pub(crate) const MEMORY_BYTES: u64 = 16 << 20;

type Cycle<'a> = Box<dyn FnMut() -> Result<Duration> + 'a>;

/// Something to measure.
pub(crate) struct Subject<'a> {
    pub(crate) name: &'static str,
    pub(crate) per_round: u32,
    /// Cycles before the first that counts.
    pub(crate) warm_up: u32,
    cycle: Cycle<'a>,
}

impl<'a> Subject<'a> {
    pub(crate) fn new(
        name: &'static str,
        per_round: u32,
        warm_up: u32,
        cycle: impl FnMut() -> Result<Duration> + 'a,
    ) -> Self {
        Subject {
            name,
            per_round,
            warm_up,
            cycle: Box::new(cycle),
        }
    }

    /// Runs `cycles` cycles.
    pub(crate) fn take(&mut self, cycles: u32, samples: &mut Samples) -> Result<()> {
        for _ in 0..cycles {
            samples.add((self.cycle)().with_context(|| format!("measuring {}", self.name))?);
        }
        Ok(())
    }
}

/// The snapshot of a sample function, as a node makes it.
pub(crate) fn snapshot(hypervisor: &Hypervisor, function: &str) -> Result<Arc<Snapshot>> {
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

/// Exit round trip of a bare guest at CPL 3: nothing that enters a machine for each request can be faster.
pub(crate) fn floor<'a>(hypervisor: &Hypervisor) -> Result<Subject<'a>> {
    let mut floor = Floor::new(hypervisor).context("cannot make the bare guest")?;
    Ok(Subject::new("floor", 50, 50, move || {
        floor
            .round_trip()
            .context("the bare guest did not come back")
    }))
}

/// Bare guests, one for each core: no throughput with a machine for each request can be higher than theirs.
pub(crate) struct Floors(Vec<Floor>);

impl Floors {
    /// So many guests.
    pub(crate) fn new(hypervisor: &Hypervisor, count: usize) -> Result<Self> {
        let floors = (0..count).map(|_| Floor::new(hypervisor).context("cannot make a bare guest"));
        Ok(Floors(floors.collect::<Result<_>>()?))
    }

    /// Round trips a second of all of them at once.
    pub(crate) fn storm(&mut self, time: Duration) -> Result<f64> {
        let end = Instant::now() + time;
        let count = |floor: &mut Floor| {
            let mut count = 0u32;
            while Instant::now() < end {
                floor
                    .round_trip()
                    .context("a bare guest did not come back")?;
                count += 1;
            }
            Ok::<_, anyhow::Error>(f64::from(count))
        };
        let counts = thread::scope(|scope| {
            let guests = self
                .0
                .iter_mut()
                .map(|floor| scope.spawn(move || count(floor)));
            let guests: Vec<_> = guests.collect();
            let counts = guests.into_iter().map(|guest| {
                let panicked = |_| anyhow!("the thread of a bare guest panicked");
                guest.join().map_err(panicked)?
            });
            counts.sum::<Result<f64>>()
        })?;
        Ok(counts / time.as_secs_f64())
    }
}

/// One request through a slot that holds the snapshot, pristine, and the reset after it.
pub(crate) fn fresh<'a>(
    name: &'static str,
    hypervisor: &Hypervisor,
    snapshot: &Arc<Snapshot>,
) -> Result<Subject<'a>> {
    let mut slot = Slot::new(hypervisor).context("cannot make a slot")?;
    choose(hypervisor, snapshot, SLOTS)?;
    slot.load(snapshot).context("cannot load the snapshot")?;
    Ok(Subject::new(name, 50, 20, move || {
        let started = Instant::now();
        invoke(&mut slot)?;
        slot.reset().context("cannot reset")?;
        Ok(started.elapsed())
    }))
}

/// The first request of a version on a node: its snapshot was verified and lies in a file, and the slot holds
/// another version.
pub(crate) fn cold<'a>(
    hypervisor: &Hypervisor,
    snapshot: &Arc<Snapshot>,
    other: &Arc<Snapshot>,
) -> Result<Subject<'a>> {
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let path = directory.path().join("snapshot");
    snapshot.save(&path).context("cannot save the snapshot")?;
    let loaded = Snapshot::load(hypervisor, &path).context("cannot load from disk")?;
    for version in [&loaded, other] {
        choose(hypervisor, version, SLOTS)?;
    }
    let other = Arc::clone(other);
    let mut slot = Slot::new(hypervisor).context("cannot make a slot")?;
    Ok(Subject::new("cold_start", 10, 10, move || {
        // Moved in, so that the file lives as long as it is mapped.
        let _ = &directory;
        slot.load(&other).context("cannot load the other version")?;
        invoke(&mut slot)?;
        slot.reset().context("cannot reset")?;
        let started = Instant::now();
        slot.load(&loaded).context("cannot load into the slot")?;
        invoke(&mut slot)?;
        let took = started.elapsed();
        slot.reset().context("cannot reset")?;
        Ok(took)
    }))
}

/// The same, and the file is read and verified as well, which a node does once when it starts.
pub(crate) fn cold_verified<'a>(
    hypervisor: &'a Hypervisor,
    snapshot: &Arc<Snapshot>,
) -> Result<Subject<'a>> {
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let path = directory.path().join("snapshot");
    snapshot.save(&path).context("cannot save the snapshot")?;
    let mut slot = Slot::new(hypervisor).context("cannot make a slot")?;
    Ok(Subject::new("cold_verified", 5, 5, move || {
        // Moved in, so that the file lives as long as it is read.
        let _ = &directory;
        let started = Instant::now();
        let loaded = Snapshot::load(hypervisor, &path).context("cannot load from disk")?;
        slot.load(&loaded).context("cannot load into the slot")?;
        invoke(&mut slot)?;
        Ok(started.elapsed())
    }))
}

/// Slots of a node of the usual size.
const SLOTS: usize = 16;

/// Has it measured how the snapshot is best restored, as a node with so many slots does before it serves a version.
pub(crate) fn choose(
    hypervisor: &Hypervisor,
    snapshot: &Arc<Snapshot>,
    slots: usize,
) -> Result<()> {
    let choice = Choice::make(hypervisor, snapshot, Choice::room(slots), |slot| {
        invoke(slot).map_err(|error| Failure::BadResponse(format!("{error:#}")))
    })
    .context("cannot measure the strategies")?;
    eprintln!("restored by {}: {choice}", choice.strategy.as_str());
    Ok(())
}

/// Sends `GET /` and checks the answer.
pub(crate) fn invoke(slot: &mut Slot) -> Result<()> {
    let headers: [(&[u8], &[u8]); 2] = [(b"host", b"localhost"), (b"accept", b"*/*")];
    let request = Request {
        method: "GET",
        target: "/",
        headers: &headers,
        body: &[],
    };
    let limits = Limits {
        deadline: Instant::now() + PATIENCE,
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
            Step::Parked(until) => slot.wait(until),
            Step::Failed(failure) | Step::Dropped(_, failure) => {
                bail!("the function failed: {failure}")
            }
        }
    }
}

/// A fresh process that writes a line to nowhere, started and waited for.
pub(crate) fn process<'a>() -> Result<Subject<'a>> {
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let program = directory.path().join("hello");
    compile(
        concat!(env!("CARGO_MANIFEST_DIR"), "/peers/hello.c"),
        &program,
    )?;
    let null = File::options()
        .write(true)
        .open("/dev/null")
        .context("cannot open /dev/null")?;
    Ok(Subject::new("posix_spawn", 20, 20, move || {
        let _ = &directory;
        let null = null.try_clone().context("cannot duplicate a descriptor")?;
        let started = Instant::now();
        // Without a change of directory or user, std uses posix_spawn.
        let status = Command::new(&program)
            .stdin(Stdio::null())
            .stdout(null)
            .status()
            .context("cannot start the process")?;
        let elapsed = started.elapsed();
        ensure!(status.success(), "the process could not write");
        Ok(elapsed)
    }))
}

/// Compiles a static C program.
pub(crate) fn compile(source: &str, program: &std::path::Path) -> Result<()> {
    let status = Command::new("cc")
        .args(["-O2", "-static", "-o"])
        .arg(program)
        .arg(source)
        .status()
        .context("cannot start cc")?;
    ensure!(status.success(), "cc cannot compile {source}");
    Ok(())
}

/// A request over one connection that stays open.
pub(crate) fn over_http<'a>(
    name: &'static str,
    runtime: &'a Runtime,
    target: &Target,
) -> Result<Subject<'a>> {
    let mut connection = runtime.block_on(Connection::open(target))?;
    Ok(Subject::new(name, 50, 100, move || {
        runtime.block_on(connection.greet())
    }))
}
