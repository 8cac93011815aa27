//! A coordinator and a node on a relayed link, and what goes wrong with them.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use holm_test_support::function;
use holm_tests::Fleet;
use holm_tests::namespace::{MOUNTS, Namespace, no_mounts};
use holm_tests::relay::{Badness, Relay, relay};

use super::plan::{Fault, Kind, Means, Plan};

pub(crate) const NODE: &str = "a";
const COORDINATOR: &str = "coordinator";
/// Of the disk that gets full.
const DISK_BYTES: u64 = 64 << 20;

const ROUGH: Badness = Badness {
    loss_percent: 5,
    double_percent: 25,
    delay: Duration::from_millis(1),
    scatter: Duration::from_millis(40),
};

/// Debian's libfaketime, for programs with threads.
const FAKE_CLOCK: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// What can be done here, and why not all of it.
pub(crate) fn means() -> (Means, Vec<String>) {
    let mut why = Vec::new();
    let cannot_mount = no_mounts();
    let disks = cannot_mount.is_none();
    why.extend(cannot_mount.map(|why| format!("no full disks: {why}")));
    // What it leaves in /dev/shm when its process is killed is to be nobody else's.
    let clocks = disks && Path::new(FAKE_CLOCK).exists();
    if !clocks {
        why.push(format!(
            "no clocks that jump: they need {FAKE_CLOCK} (Debian's libfaketime) and mounts"
        ));
    }
    (Means { disks, clocks }, why)
}

pub(crate) struct World {
    pub(crate) fleet: Fleet,
    pub(crate) relay: Arc<Relay>,
    means: Means,
    /// How many faults of each kind there are now, by [`place`].
    under: [u32; 9],
    /// Whether a node that does not start may blame its disk.
    was_full: bool,
    /// How often one did.
    pub(crate) not_started: u64,
}

impl World {
    pub(crate) fn start(means: Means, seed: u64) -> World {
        let namespace = means.disks.then(|| Namespace::new(&[MOUNTS]));
        let (first, second) = (address(), address());
        let mut fleet = Fleet::alone_at(first, namespace);
        if let Some(namespace) = fleet.namespace() {
            fs::create_dir(fleet.path(NODE)).unwrap();
            namespace.mount_memory(&fleet.path(NODE), DISK_BYTES);
            namespace.mount_memory("/dev/shm", DISK_BYTES);
        }
        if means.clocks {
            for name in [NODE, COORDINATOR] {
                set_clock(&clock_file(&fleet, name), 0);
                let variables = fake_clock(&clock_file(&fleet, name));
                fleet.set_environment(name, variables);
            }
        }
        fleet.start_coordinator();
        let from = SocketAddr::from((second, 7701));
        let to = fleet.quic().parse().unwrap();
        let relay = relay(from, to, Badness::default(), seed);
        fleet.dial(&from.to_string());
        fleet.join(NODE);
        fleet.start_node(NODE);
        fleet.deploy("hello", &function("hello"), "probe = \"/\"\n");
        World {
            fleet,
            relay,
            means,
            under: [0; 9],
            was_full: false,
            not_started: 0,
        }
    }

    /// Has the plan's faults come and go.
    pub(crate) fn suffer(&mut self, plan: &Plan) {
        self.was_full = false;
        let began = Instant::now();
        for (at_ms, begins, fault) in plan.events() {
            let at = Duration::from_millis(at_ms);
            std::thread::sleep(at.saturating_sub(began.elapsed()));
            let under = &mut self.under[place(fault.kind)];
            *under = if begins { *under + 1 } else { *under - 1 };
            match (begins, *under) {
                (true, 1) => self.begin(fault),
                (false, 0) => self.end(fault),
                // It is so already, or still.
                _ => {}
            }
        }
        assert_eq!(self.under, [0; 9], "all is well again");
    }

    fn begin(&mut self, fault: Fault) {
        match fault.kind {
            Kind::NodeKilled => self.fleet.kill_node(NODE),
            Kind::CoordinatorKilled => self.fleet.kill_coordinator(),
            Kind::Cut => {
                self.relay.cut_there(true);
                self.relay.cut_back(true);
            }
            Kind::Unanswered => self.relay.cut_back(true),
            Kind::Held => self.relay.hold(true),
            Kind::Rough => self.relay.set_badness(ROUGH),
            Kind::DiskFull => {
                self.fill_disk(true);
            }
            Kind::NodeClock(seconds) => set_clock(&clock_file(&self.fleet, NODE), seconds),
            Kind::CoordinatorClock(seconds) => {
                set_clock(&clock_file(&self.fleet, COORDINATOR), seconds);
            }
        }
    }

    fn end(&mut self, fault: Fault) {
        match fault.kind {
            Kind::NodeKilled => self.fleet.begin_node(NODE),
            Kind::CoordinatorKilled => self.fleet.begin_coordinator(),
            Kind::Cut | Kind::Unanswered => {
                self.relay.cut_there(self.has(Kind::Cut));
                self.relay
                    .cut_back(self.has(Kind::Cut) || self.has(Kind::Unanswered));
            }
            Kind::Held => self.relay.hold(false),
            Kind::Rough => self.relay.set_badness(Badness::default()),
            Kind::DiskFull => self.fill_disk(false),
            Kind::NodeClock(_) => set_clock(&clock_file(&self.fleet, NODE), 0),
            Kind::CoordinatorClock(_) => set_clock(&clock_file(&self.fleet, COORDINATOR), 0),
        }
    }

    fn has(&self, kind: Kind) -> bool {
        self.under[place(kind)] > 0
    }

    /// Starts again what could not be started when it was to be, and says so. Nothing else may have ended by itself.
    pub(crate) fn mend(&mut self) -> Result<(), String> {
        if let Some(status) = self.fleet.coordinator_ended() {
            return Err(format!("the coordinator ended by itself, {status}"));
        }
        let Some(status) = self.fleet.node_ended(NODE) else {
            return Ok(());
        };
        if !self.was_full {
            return Err(format!("the node ended by itself, {status}"));
        }
        let log = self.fleet.log(NODE);
        let last = log.lines().last().unwrap_or_default().to_owned();
        if !last.contains("disk") && !last.contains("No space left") {
            return Err(format!(
                "the node ended, {status}, and does not name its disk: {last}"
            ));
        }
        self.not_started += 1;
        self.fleet.begin_node(NODE);
        Ok(())
    }

    /// How often a daemon has logged this.
    pub(crate) fn times_logged(&self, name: &str, words: &str) -> u64 {
        self.fleet.log(name).matches(words).count() as u64
    }

    /// Whether clocks can be made to jump here.
    pub(crate) fn means(&self) -> Means {
        self.means
    }

    /// Leaves no room on the node's disk, or all of it again.
    pub(crate) fn fill_disk(&mut self, full: bool) {
        self.was_full |= full;
        let path = self.fleet.path(&format!("{NODE}/filler"));
        let namespace = self.fleet.namespace().expect("disks need mounts");
        let filler = namespace.outside(&path);
        if !full {
            return fs::remove_file(filler).unwrap();
        }
        let mut file = File::create(filler).unwrap();
        for bytes in [64 << 10, 4 << 10] {
            let noise = vec![0xA5; bytes];
            while file.write_all(&noise).is_ok() {}
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.relay.end();
    }
}

fn place(kind: Kind) -> usize {
    match kind {
        Kind::NodeKilled => 0,
        Kind::CoordinatorKilled => 1,
        Kind::Cut => 2,
        Kind::Unanswered => 3,
        Kind::Rough => 4,
        Kind::DiskFull => 5,
        Kind::NodeClock(_) => 6,
        Kind::CoordinatorClock(_) => 7,
        Kind::Held => 8,
    }
}

/// Another address of loopback each time, and others in other processes.
fn address() -> Ipv4Addr {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed) % 250;
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 1 + high % 254, low, 2 + count as u8)
}

fn clock_file(fleet: &Fleet, name: &str) -> String {
    fleet.path(&format!("clock-{name}"))
}

/// How many seconds a clock is ahead.
fn set_clock(file: &str, seconds: i64) {
    // Whole or not at all: it is read at any moment.
    let new = format!("{file}.new");
    fs::write(&new, format!("{seconds:+}\n")).unwrap();
    fs::rename(new, file).unwrap();
}

/// The environment of a process whose clock says what the file does. Timers and durations are by another clock, which
/// does not jump.
fn fake_clock(file: &str) -> Vec<(String, String)> {
    let variables = [
        ("LD_PRELOAD", FAKE_CLOCK),
        ("FAKETIME_TIMESTAMP_FILE", file),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
        ("NO_FAKE_STAT", "1"),
    ];
    let owned = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    owned.to_vec()
}
