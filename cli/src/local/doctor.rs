//! `holm doctor`: what this machine offers to Holm, and what to do where something is missing.
//!
//! Each check is `ok`, `warn` (Holm works, but less well) or `fail` (a node cannot work here), and
//! everything that is not `ok` says what to do. The command only looks: it changes nothing.

mod kvm;
mod restore;

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use holm_model::manifest::units::format_bytes;
use holm_vmm::Slot;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use self::restore::Restore;
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::remote::settings::state_directory;

/// A node with less memory to spare has room for hardly any function.
const WANTED_MEMORY_BYTES: u64 = 512 << 20;
/// Each connection and each slot takes descriptors.
const WANTED_FILES: u64 = 4096;
/// Most mappings of a process.
const MAX_MAPPINGS: &str = "/proc/sys/vm/max_map_count";
/// Slots that a node makes by itself on most machines, or is told to.
const WANTED_SLOTS: usize = 128;
/// 2025-01-01: no working clock shows an earlier time.
const EARLIEST_CLOCK: Duration = Duration::from_secs(1_735_689_600);
/// The two clocks of a healthy machine stay this close over [`CLOCK_SAMPLE`].
const CLOCK_TOLERANCE: Duration = Duration::from_millis(5);
const CLOCK_SAMPLE: Duration = Duration::from_millis(50);

/// Where the daemons listen unless they are told otherwise: the coordinator for people and for nodes,
/// and the node's ingress.
const COORDINATOR_TCP: u16 = 7700;
const COORDINATOR_UDP: u16 = 7701;
const INGRESS_TCP: u16 = 7780;

/// Options of `holm doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The state of a node whose versions are looked at [default: ~/.local/state/holm/node].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    /// What was found.
    found: String,
    /// What to do about it, unless it is fine.
    #[serde(rename = "do")]
    remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check {
            name,
            state: State::Ok,
            found: found.into(),
            remedy: None,
        }
    }

    fn warn(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
        let (found, remedy) = (found.into(), Some(remedy.into()));
        Check {
            name,
            state: State::Warn,
            found,
            remedy,
        }
    }

    fn fail(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
        let (found, remedy) = (found.into(), Some(remedy.into()));
        Check {
            name,
            state: State::Fail,
            found,
            remedy,
        }
    }
}

#[derive(Serialize)]
struct Report {
    /// No check failed.
    healthy: bool,
    /// `pvm`, `svm`, `vmx` or `unknown`, where there is KVM.
    kvm: Option<&'static str>,
    /// How instances are restored and reset.
    restore: Vec<Restore>,
    checks: Vec<Check>,
}

/// Looks at everything and reports.
pub(crate) fn execute(args: Args, output: Output) -> Result<(), Failure> {
    let (kvm, mut checks) = kvm::checks();
    let no_kvm = checks.iter().any(|check| check.state == State::Fail);
    let state_dir = args.state_dir.or_else(|| state_directory("node").ok());
    let mut restored = Vec::new();
    if let (Some(kvm), false) = (&kvm, no_kvm) {
        let (found, told) = restore::checks(state_dir.as_deref(), kvm);
        restored = found;
        checks.extend(told);
    }
    checks.extend([
        huge_pages(),
        clock_source(),
        clocks(),
        memory(),
        files(),
        mappings(kernel_file(MAX_MAPPINGS)),
        tools(),
    ]);
    checks.extend([
        port(
            "coordinator port",
            COORDINATOR_TCP,
            tcp_is_free(COORDINATOR_TCP),
        ),
        port(
            "coordinator port for nodes",
            COORDINATOR_UDP,
            udp_is_free(COORDINATOR_UDP),
        ),
        port("ingress port", INGRESS_TCP, tcp_is_free(INGRESS_TCP)),
    ]);
    let failed = checks
        .iter()
        .filter(|check| check.state == State::Fail)
        .count();
    let report = Report {
        healthy: failed == 0,
        kvm: kvm.map(|kvm| kvm.kind().as_str()),
        restore: restored,
        checks,
    };
    output.result(&report, || human(&report))?;
    match failed {
        0 => Ok(()),
        _ => {
            let exit = if no_kvm { Exit::NoKvm } else { Exit::Failure };
            Err(Failure::reported(exit, format!("{failed} checks failed")))
        }
    }
}

fn human(report: &Report) -> String {
    let line = |check: &Check| {
        let state = match check.state {
            State::Ok => "ok  ",
            State::Warn => "warn",
            State::Fail => "FAIL",
        };
        let first = format!("{state}  {}: {}", check.name, check.found);
        match &check.remedy {
            Some(remedy) => format!("{first}\n      -> {remedy}"),
            None => first,
        }
    };
    report
        .checks
        .iter()
        .map(line)
        .collect::<Vec<_>>()
        .join("\n")
}

/// The text of a small file of the kernel's.
fn kernel_file(path: &str) -> Option<String> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}

/// Guest memory is mapped with huge pages where the kernel gives them, which makes the first touch
/// of a page cheaper.
fn huge_pages() -> Check {
    let name = "huge pages";
    let text = kernel_file("/sys/kernel/mm/transparent_hugepage/enabled");
    let chosen = text
        .as_deref()
        .and_then(|text| text.split(['[', ']']).nth(1));
    match chosen {
        Some(mode @ ("always" | "madvise")) => Check::ok(name, mode),
        Some(mode) => Check::warn(
            name,
            format!("transparent huge pages are set to `{mode}`, so starts take longer"),
            "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        None => Check::warn(
            name,
            "this kernel has no transparent huge pages, so starts take longer",
            "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE",
        ),
    }
}

fn clock_source() -> Check {
    let name = "clock source";
    let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    match kernel_file(path).as_deref() {
        Some(source @ ("tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page")) => {
            Check::ok(name, source)
        }
        Some(source) => Check::warn(
            name,
            format!("`{source}`, which is slow to read and may disagree with the guests' clock"),
            "see `dmesg | grep -i tsc` for why the TSC is not used; `tsc=reliable` on the kernel's \
             command line is right only where the hypervisor keeps it steady",
        ),
        None => Check::warn(name, format!("unknown: {path} is not there"), "mount /sys"),
    }
}

/// Whether the wall clock shows a believable time and runs along with the monotonic one.
fn clocks() -> Check {
    let (wall, steady) = (SystemTime::now(), Instant::now());
    std::thread::sleep(CLOCK_SAMPLE);
    let moved = SystemTime::now().duration_since(wall);
    compare_clocks(
        wall.duration_since(SystemTime::UNIX_EPOCH).ok(),
        moved.ok(),
        steady.elapsed(),
    )
}

/// `since_epoch`: the wall clock. `wall` and `steady`: how far each clock moved meanwhile.
fn compare_clocks(
    since_epoch: Option<Duration>,
    wall: Option<Duration>,
    steady: Duration,
) -> Check {
    let name = "clocks";
    let remedy = "start a time service (systemd-timesyncd, chrony); certificates and usage records \
                  need the right time";
    if since_epoch.is_none_or(|time| time < EARLIEST_CLOCK) {
        return Check::fail(name, "the wall clock shows a time before 2025", remedy);
    }
    match wall {
        Some(wall) if wall.abs_diff(steady) <= CLOCK_TOLERANCE => {
            Check::ok(name, "the wall clock and the monotonic clock run alike")
        }
        _ => Check::warn(
            name,
            format!("the wall clock jumped against the monotonic clock within {steady:?}"),
            remedy,
        ),
    }
}

fn memory() -> Check {
    let name = "memory";
    let text = kernel_file("/proc/meminfo").unwrap_or_default();
    let available = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes = available.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    let limit = cgroup_limit();
    let Some(kibibytes) = kibibytes else {
        return Check::warn(name, "unknown: /proc/meminfo does not say", "mount /proc");
    };
    let bytes = kibibytes
        .saturating_mul(1024)
        .min(limit.unwrap_or(u64::MAX));
    let found = format!("{} MiB available", bytes >> 20);
    match bytes >= WANTED_MEMORY_BYTES {
        true => Check::ok(name, found),
        false => Check::warn(
            name,
            format!("{found}, less than {}", format_bytes(WANTED_MEMORY_BYTES)),
            "free some: a node takes the memory limit of a function for each request at a time",
        ),
    }
}

/// What the control group of this process leaves, if it has a limit.
fn cgroup_limit() -> Option<u64> {
    let number = |file: &str| {
        kernel_file(&format!("/sys/fs/cgroup/{file}"))?
            .parse::<u64>()
            .ok()
    };
    Some(number("memory.max")?.saturating_sub(number("memory.current").unwrap_or(0)))
}

fn files() -> Check {
    let name = "open files";
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < WANTED_FILES => Check::warn(
            name,
            format!("at most {limit} for each process, less than {WANTED_FILES}"),
            "raise it: `ulimit -n 65536`, or LimitNOFILE=65536 in the service's unit",
        ),
        Some(limit) => Check::ok(name, format!("at most {limit}")),
        None => Check::ok(name, "no limit"),
    }
}

/// Each slot is made of mappings.
fn mappings(most: Option<String>) -> Check {
    let name = "mappings";
    let remedy = format!(
        "raise it for more: `sudo sysctl vm.max_map_count={}`, and in /etc/sysctl.d to keep it",
        (WANTED_SLOTS * Slot::MAX_MAPPINGS).next_power_of_two()
    );
    match most.and_then(|most| most.parse::<usize>().ok()) {
        Some(most) => {
            let slots = most / Slot::MAX_MAPPINGS;
            let found =
                format!("{most} for each process, enough for {slots} slots whatever they hold");
            match slots < WANTED_SLOTS {
                true => Check::warn(name, found, remedy),
                false => Check::ok(name, found),
            }
        }
        None => Check::warn(name, format!("{MAX_MAPPINGS} cannot be read"), remedy),
    }
}

/// What `holm build` may call; a node needs none of it.
fn tools() -> Check {
    let name = "build tools";
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |tool: &&str| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    let found: Vec<&str> = ["cargo", "cc", "musl-gcc", "make"]
        .into_iter()
        .filter(|tool| there(tool))
        .collect();
    let builds = found.contains(&"cargo") || (found.contains(&"cc") && found.contains(&"make"));
    match builds {
        true => Check::ok(name, found.join(", ")),
        false => Check::warn(
            name,
            "neither cargo nor cc and make are here, so `holm build` has nothing to build with",
            "install Rust (https://rustup.rs) or a C compiler; a node needs neither",
        ),
    }
}

fn port(name: &'static str, port: u16, free: Result<(), ErrorKind>) -> Check {
    match free {
        Ok(()) => Check::ok(name, format!("{port} is free")),
        Err(ErrorKind::AddrInUse) => Check::warn(
            name,
            format!("{port} is taken, perhaps by a daemon of Holm"),
            "if it is not Holm's, end that program or give the daemon another port",
        ),
        Err(ErrorKind::PermissionDenied) => Check::warn(
            name,
            format!("{port} may not be used by this user"),
            "choose a port above 1023, or give the daemon CAP_NET_BIND_SERVICE",
        ),
        Err(kind) => Check::warn(
            name,
            format!("{port} cannot be used: {kind}"),
            "give the daemon another port",
        ),
    }
}

fn tcp_is_free(port: u16) -> Result<(), ErrorKind> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .map(drop)
        .map_err(|error| error.kind())
}

fn udp_is_free(port: u16) -> Result<(), ErrorKind> {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, port))
        .map(drop)
        .map_err(|error| error.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    #[test]
    fn so_many_mappings_are_for_so_many_slots() {
        let most = |slots: usize| Some((slots * Slot::MAX_MAPPINGS).to_string());
        let check = mappings(most(500));
        assert_eq!(check.state, State::Ok);
        assert!(check.found.contains("500 slots"), "{}", check.found);
        let check = mappings(most(3));
        assert_eq!(check.state, State::Warn);
        assert!(check.remedy.unwrap().contains("vm.max_map_count"));
        assert_eq!(mappings(None).state, State::Warn);
    }

    #[test]
    fn clocks_that_run_alike_are_fine() {
        let check = compare_clocks(
            Some(NOW),
            Some(CLOCK_SAMPLE),
            CLOCK_SAMPLE + CLOCK_TOLERANCE,
        );
        assert_eq!(check.state, State::Ok);
    }

    #[test]
    fn a_clock_that_jumps_is_a_warning_and_one_from_the_past_a_failure() {
        let second = Duration::from_secs(1);
        assert_eq!(
            compare_clocks(Some(NOW), Some(second), CLOCK_SAMPLE).state,
            State::Warn
        );
        assert_eq!(
            compare_clocks(Some(NOW), None, CLOCK_SAMPLE).state,
            State::Warn
        );
        let past = compare_clocks(Some(second), Some(CLOCK_SAMPLE), CLOCK_SAMPLE);
        assert_eq!(past.state, State::Fail);
        assert!(past.remedy.unwrap().contains("time service"));
    }

    #[test]
    fn a_port_in_use_is_a_warning_that_says_so() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let taken = holder.local_addr().unwrap().port();
        let check = port("ingress port", taken, tcp_is_free(taken));
        assert_eq!(check.state, State::Warn);
        assert!(check.found.contains("taken"), "{check:?}");
        let holder = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let taken = holder.local_addr().unwrap().port();
        assert_eq!(udp_is_free(taken), Err(ErrorKind::AddrInUse));
    }

    #[test]
    fn whatever_is_not_ok_says_what_to_do() {
        for check in [huge_pages(), clock_source(), memory(), files(), tools()] {
            assert_eq!(
                check.state == State::Ok,
                check.remedy.is_none(),
                "{check:?}"
            );
        }
    }
}
