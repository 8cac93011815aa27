//! A program in a guest, by the VMM itself.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use holm_model::bundle::Files;
use holm_model::program::Program;
use holm_node::outbound::Allowed;
use holm_test_support::patience;
use holm_vmm::{GuestConfig, Hypervisor, Limits, Request, Slot, Snapshot, Step, prepare};

use super::build::Source;
use super::site::{self, Site};
use super::subjects::Ask;
use super::upstream::Upstream;
use super::{Answer, median};

/// Program memory.
pub(crate) const MEMORY_MIB: u64 = 128;
const DEADLINE: Duration = Duration::from_secs(20);
/// Requests that are timed, after as many that are not.
const TIMED: usize = 200;

pub(crate) struct Guest {
    hypervisor: Hypervisor,
    snapshot: Arc<Snapshot>,
    slot: Slot,
    allowed: Allowed,
    /// From the vCPU's start to the first wait.
    pub(crate) ready: Duration,
    /// Pages that the requests which were timed have changed.
    pub(crate) pages: u64,
}

impl Guest {
    /// Boots a program.
    pub(crate) fn boot(path: &Path, source: &Source, upstream: &Upstream) -> Result<Self> {
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let hypervisor = Hypervisor::open()?;
        let mut config = GuestConfig {
            name: path.display().to_string(),
            memory_bytes: MEMORY_MIB << 20,
            env: vec![("UPSTREAM".into(), upstream.name())],
            args: Vec::new(),
            files: Files::default(),
            inetd: false,
            shared: true,
            port: 8080,
        };
        if let Source::Busybox = source {
            config.args = site::IN_GUEST.map(str::to_owned).to_vec();
            config.files = Site::files()?;
            config.inetd = true;
            config.shared = false;
        }
        let prepared = prepare(
            &hypervisor,
            &Program::parse(&bytes)?,
            &config,
            patience(DEADLINE),
        )
        .map_err(|error| anyhow!("{error}\n{}", String::from_utf8_lossy(&error.log)))?;
        let mut slot = Slot::new(&hypervisor)?;
        slot.load(&prepared.snapshot)?;
        Ok(Guest {
            hypervisor,
            snapshot: prepared.snapshot,
            slot,
            allowed: upstream.allowed()?,
            ready: prepared.ready,
            pages: 0,
        })
    }

    pub(crate) fn snapshot_bytes(&self) -> Result<u64> {
        Ok(self.snapshot.resident_bytes()?)
    }

    fn send(&mut self, ask: &Ask, body: &[u8]) -> Result<Answer> {
        let deadline = Instant::now() + patience(DEADLINE);
        let limits = Limits {
            deadline,
            cpu: patience(DEADLINE),
            response_body_bytes: 1 << 24,
            streams: false,
        };
        let request = Request {
            method: ask.method,
            target: ask.path,
            headers: &[(b"host", b"localhost")],
            body,
        };
        if !self.slot.has_outbound() {
            self.slot.set_outbound(self.allowed.outbound());
        }
        self.slot.begin(&request, limits)?;
        loop {
            match self.slot.run(Duration::from_millis(50)) {
                Step::Answered(response) => return Ok((response.status, response.body)),
                Step::Failed(failure) | Step::Dropped(_, failure) => {
                    let log = String::from_utf8_lossy(&self.slot.take_log()).into_owned();
                    self.slot = Slot::new(&self.hypervisor)?;
                    self.slot.load(&self.snapshot)?;
                    bail!("{failure}\n{log}");
                }
                Step::Yielded => {}
                Step::Parked(until) => self.slot.wait(until.min(deadline)),
            }
        }
    }

    /// One request to a pristine instance.
    pub(crate) fn fresh(&mut self, ask: &Ask) -> Result<Answer> {
        let answer = self.send(ask, &ask.body())?;
        self.slot.reset()?;
        Ok(answer)
    }

    /// The median time of a request to a pristine instance, with the reset after it.
    pub(crate) fn time_fresh(&mut self, ask: &Ask) -> Result<Duration> {
        let body = ask.body();
        let mut samples = Vec::with_capacity(2 * TIMED);
        // What others have written to stays this slot's own.
        self.slot.load(&self.snapshot)?;
        for _ in 0..2 * TIMED {
            let start = Instant::now();
            self.send(ask, &body)?;
            self.slot.reset()?;
            samples.push(start.elapsed());
        }
        self.pages = self.slot.private_bytes()? / 4096;
        Ok(median(samples.split_off(TIMED)))
    }

    /// The median time of a request to one instance that is kept, until it waits again.
    pub(crate) fn time_kept(&mut self, ask: &Ask) -> Result<Duration> {
        let body = ask.body();
        let mut samples = Vec::with_capacity(2 * TIMED);
        for _ in 0..2 * TIMED {
            let start = Instant::now();
            self.send(ask, &body)?;
            self.slot.again(Instant::now() + DEADLINE)?;
            samples.push(start.elapsed());
        }
        Ok(median(samples.split_off(TIMED)))
    }
}
