//! A whole fleet in a network of its own: three coordinators on one PostgreSQL, two nodes in each of two regions, and a
//! caller who asks for the nearest. A coordinator and a node are killed in the middle of a rollout, a region is cut off
//! in the middle of another, and one node's link to the coordinators loses and delays what it carries all the time.
//!
//! `HOLM_REGIONS_SEED` runs one seed of what is lost, `HOLM_REGIONS_SEEDS` so many new ones.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use holm_test_support::{Postgres, guest, musl_guest, require_kvm, seeds, skipped};
use holm_tests::network::{Network, address, no_network};
use holm_tests::relay::{Badness, Counts, Relay, relay};
use holm_tests::{Daemon, Ran, eventually_within, get, holm, run};
use serde_json::Value;
use tempfile::TempDir;

/// What every coordinator is called.
const COORDINATORS: &str = "coordinators.test";
/// What they are called by the node with the bad link: its relays.
const BEHIND_RELAYS: &str = "relays.test";
/// Last parts of the coordinators' addresses, and of their relays'.
const COORDINATOR_HOSTS: [u8; 3] = [11, 12, 13];
const RELAYS: [u8; 3] = [111, 112, 113];
const CALLERS: u8 = 1;
const QUIC: u16 = 7701;

/// How bad the one link is.
const BADNESS: Badness = Badness {
    loss_percent: 15,
    double_percent: 0,
    delay: Duration::from_millis(150),
    scatter: Duration::ZERO,
};

/// For what a machine under load takes its time for.
const LONG: Duration = Duration::from_secs(120);

struct Site {
    name: &'static str,
    last: u8,
    region: &'static str,
    coordinates: &'static str,
    dials: &'static str,
}

/// The caller is in the first region.
const SITES: [Site; 4] = [
    site("eu-1", 21, "eu", "50.1,8.7", COORDINATORS),
    site("eu-2", 22, "eu", "52.5,13.4", COORDINATORS),
    site("us-1", 31, "us", "39.0,-77.5", COORDINATORS),
    site("us-2", 32, "us", "45.5,-122.7", BEHIND_RELAYS),
];
const CALLER: &str = "50.1,8.6";

const fn site(
    name: &'static str,
    last: u8,
    region: &'static str,
    coordinates: &'static str,
    dials: &'static str,
) -> Site {
    Site {
        name,
        last,
        region,
        coordinates,
        dials,
    }
}

/// Everything that runs. What runs in the network is dropped before it.
struct World {
    coordinators: BTreeMap<u8, Daemon>,
    nodes: BTreeMap<u8, Daemon>,
    relays: Vec<Arc<Relay>>,
    operator: Arc<Operator>,
    _postgres: Postgres,
    database: String,
}

/// Whoever uses the command, in the middle of the network.
struct Operator {
    network: Network,
    directory: TempDir,
}

impl Operator {
    fn path(&self, name: &str) -> String {
        let path = self.directory.path().join(name);
        path.to_str().unwrap().to_owned()
    }

    /// `holm` on a host, or with `None` in the middle, as this operator runs it.
    fn command(&self, last: Option<u8>) -> Command {
        let mut command = self.network.command(last, holm());
        command
            .env("HOLM_COORDINATOR", format!("http://{COORDINATORS}:7700"))
            .env("HOLM_TOKEN_FILE", self.path("coordinator-11/admin-token"))
            .env("HOLM_PUBLISHER_KEY", self.path("publisher.pem"))
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env_remove("HOLM_TOKEN")
            .env_remove("HOLM_STATE_DIR")
            .env_remove("HOLM_DATABASE");
        command
    }

    fn holm(&self, args: &[&str]) -> Ran {
        let mut command = self.command(None);
        command.arg("--json").args(args);
        run(command)
    }
}

#[test]
fn kvm_no_request_is_lost_while_coordinators_and_nodes_die_and_regions_are_cut_off() {
    if !require_kvm() {
        return;
    }
    if let Some(why) = no_network() {
        return skipped(&why);
    }
    for seed in seeds("HOLM_REGIONS_SEED", 1) {
        scenario(seed);
    }
}

fn scenario(seed: u64) {
    let started = Instant::now();
    let told = |what: &str| println!("{:>6.1} s: {what}", started.elapsed().as_secs_f64());
    let mut world = World::start(seed);
    told("all nodes are there");
    world.holm(&["tenants", "create", "test"]).ok();
    let first = world.deploy("1", &[]).ok();
    assert_eq!(first["rollout"]["state"], "completed", "{first}");
    told("all have the first version");
    let caller = Caller::start(&world.operator);

    // The second version: whoever executes its rollout is killed in the first wave, and a node with it.
    let rollout = world.deploy("2", &["--no-wait"]).ok();
    let rollout = rollout["rollout"]["id"].to_string();
    world.until_watched(&rollout);
    let executing = world.executing();
    world.coordinators.remove(&executing);
    world.nodes.remove(&22);
    told("a coordinator and a node are killed");
    eventually_within(LONG, "another coordinator to execute the rollout", || {
        world.executing() != executing
    });
    world.start_coordinator(executing);
    world.start_node(&SITES[1]);
    let ended = world.until_ended(&rollout);
    told(&format!("the rollout has ended: {}", ended["state"]));
    world.until_all_connected();
    let serving = match ended["state"].as_str() {
        Some("completed") => "2",
        Some("rolled_back") => "1",
        _ => panic!("{ended}"),
    };
    world.until_all_serve(serving);
    told(&format!("all serve version {serving}"));

    // The third: the caller's own region is cut off in its first wave.
    let rollout = world.deploy("3", &["--no-wait"]).ok();
    let rollout = rollout["rollout"]["id"].to_string();
    world.until_watched(&rollout);
    let cut_off = &SITES[..2];
    for site in cut_off {
        world.operator.network.connect(site.last, false);
    }
    told("a region is cut off");
    eventually_within(LONG, "the coordinators to miss the region", || {
        let connected = world.connected();
        cut_off
            .iter()
            .all(|site| !connected.iter().any(|name| name == site.name))
    });
    // Whoever is in the region with it is served by it.
    for site in cut_off {
        let own = format!("{}:8080", address(site.last));
        let asked = move || get(&own, "/test/echo/");
        let answer = world.operator.network.within(Some(site.last), asked);
        let answer = answer.join().unwrap().unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        caller.answered(answer.header("x-request-id").unwrap());
    }
    for site in cut_off {
        world.operator.network.connect(site.last, true);
    }
    told("the region is back");
    let ended = world.until_ended(&rollout);
    assert_eq!(ended["state"], "completed", "{ended}");
    world.until_all_connected();
    world.until_all_serve("3");
    told("all serve version 3, the node with the bad link too");

    let answered = caller.stop();
    told(&format!("{} requests are answered", answered.len()));
    world.check_ledger(&answered);
    let count = |of: fn(&Counts) -> u64| {
        world
            .relays
            .iter()
            .map(|relay| of(&relay.counts))
            .sum::<u64>()
    };
    let came = count(|counts| counts.came.load(Ordering::Relaxed));
    let lost = count(|counts| counts.lost.load(Ordering::Relaxed));
    told(&format!(
        "the bad link lost {lost} of {came} datagrams; {} messages were not known",
        world.refused_messages()
    ));
    assert!(lost > 0, "the bad link carried nothing");
    assert_eq!(world.refused_messages(), 0);
}

impl World {
    fn start(seed: u64) -> World {
        let directory = tempfile::tempdir().unwrap();
        let postgres = Postgres::start(false);
        let database = postgres.database();
        let mut network = Network::new(&[&[CALLERS], &RELAYS[..]].concat());
        name_coordinators(&network, None, 0, directory.path());
        for (number, last) in COORDINATOR_HOSTS.into_iter().enumerate() {
            network.add(last);
            name_coordinators(&network, Some(last), number, directory.path());
        }
        for (number, site) in SITES.iter().enumerate() {
            network.add(site.last);
            name_coordinators(&network, Some(site.last), number, directory.path());
        }
        let relays = COORDINATOR_HOSTS.into_iter().zip(RELAYS);
        let relays = relays.map(|(coordinator, own)| {
            let from = format!("{}:{QUIC}", address(own)).parse().unwrap();
            let to = format!("{}:{QUIC}", address(coordinator)).parse().unwrap();
            let seed = 1000 * seed + u64::from(own);
            let started = network.within(None, move || relay(from, to, BADNESS, seed));
            started.join().unwrap()
        });
        let relays = relays.collect();
        let operator = Arc::new(Operator { network, directory });
        let mut world = World {
            coordinators: BTreeMap::new(),
            nodes: BTreeMap::new(),
            relays,
            operator,
            _postgres: postgres,
            database,
        };
        for last in COORDINATOR_HOSTS {
            world.prepare_coordinator(last);
            world.start_coordinator(last);
        }
        for site in &SITES {
            let token = world.holm(&["nodes", "token"]).ok();
            let (token, state) = (
                token["token"].as_str().unwrap(),
                world.operator.path(site.name),
            );
            let mut join = world.operator.command(Some(site.last));
            join.args(["--json", "node", "join", token, "--name", site.name]);
            join.args(["--state-dir", &state]);
            run(join).ok();
            world.start_node(site);
        }
        world.until_all_connected();
        world
    }

    fn holm(&self, args: &[&str]) -> Ran {
        self.operator.holm(args)
    }

    /// The state directory of a coordinator that is to be one of several: the authority of the first one, and its
    /// artifacts, as if they were on a file system that all mount.
    fn prepare_coordinator(&self, last: u8) {
        let first = self.operator.directory.path().join("coordinator-11");
        let own = self.operator.path(&format!("coordinator-{last}"));
        let own = Path::new(&own);
        if own == first {
            return;
        }
        std::fs::create_dir(own).unwrap();
        for file in ["ca.key", "ca.der", "secrets.key"] {
            std::fs::copy(first.join(file), own.join(file)).unwrap();
        }
        std::os::unix::fs::symlink(first.join("artifacts"), own.join("artifacts")).unwrap();
    }

    fn start_coordinator(&mut self, last: u8) {
        let name = format!("coordinator-{last}");
        let (http, quic) = (
            format!("{}:7700", address(last)),
            format!("{}:{QUIC}", address(last)),
        );
        let public = format!("{COORDINATORS}:{QUIC}");
        let mut command = self.operator.command(Some(last));
        command
            .env("HOLM_DATABASE", &self.database)
            .args(["coordinator", "--http", &http, "--quic", &quic])
            .args(["--public-quic", &public])
            .args(["--state-dir", &self.operator.path(&name)]);
        let directory = self.operator.directory.path();
        let (daemon, _) = Daemon::start_by(command, directory, &name);
        self.coordinators.insert(last, daemon);
    }

    fn start_node(&mut self, site: &Site) {
        let listen = format!("{}:8080", address(site.last));
        let dial = format!("{}:{QUIC}", site.dials);
        let mut command = self.operator.command(Some(site.last));
        command
            .args(["node", "run", "--listen", &listen, "--dial", &dial])
            .args(["--region", site.region, "--coordinates", site.coordinates])
            .args(["--state-dir", &self.operator.path(site.name)])
            .args(["--threads", "1", "--slots", "4"]);
        let directory = self.operator.directory.path();
        let (daemon, _) = Daemon::start_by(command, directory, site.name);
        self.nodes.insert(site.last, daemon);
    }

    /// Deploys a program that tells its release.
    fn deploy(&self, release: &str, more: &[&str]) -> Ran {
        let program = musl_guest("env_and_args").unwrap_or_else(|| guest("env_and_args"));
        // Run times of different moments say nothing of a version on a machine where so much else begins and ends.
        let manifest = format!(
            "schema = 1\n[function]\nname = \"echo\"\ntenant = \"test\"\n[limits]\nmemory = \"16MiB\"\n\
             [env]\nRELEASE = \"{release}\"\n\
             [rollout]\nwaves = [25, 50, 100]\nbake = \"2s\"\n[rollout.gates]\nslower_by = \"off\"\n"
        );
        let path = self.operator.path("echo.toml");
        std::fs::write(&path, manifest).unwrap();
        let program = program.to_str().unwrap();
        let args = ["deploy", "--program", program, "--manifest", &path];
        self.holm(&[&args, more].concat())
    }

    fn status(&self, rollout: &str) -> Value {
        self.holm(&["rollout", "status", rollout]).ok()
    }

    /// Until some wave of a rollout is being watched.
    fn until_watched(&self, rollout: &str) {
        eventually_within(LONG, "a wave to be watched", || {
            let status = self.status(rollout);
            assert_eq!(status["state"], "running", "{status}");
            let waves = status["waves"].as_array().unwrap();
            waves.iter().any(|wave| wave["state"] == "baking")
        });
    }

    fn until_ended(&self, rollout: &str) -> Value {
        let mut status = Value::Null;
        eventually_within(LONG, "the rollout to end", || {
            status = self.status(rollout);
            !status["ended_ms"].is_null()
        });
        status
    }

    /// The coordinator that was the last to say that it executes the rollouts.
    fn executing(&self) -> u8 {
        let newest_token = |last: &u8| {
            let log = self.operator.path(&format!("coordinator-{last}.log"));
            let log = std::fs::read_to_string(log).unwrap();
            let lines = log
                .lines()
                .filter(|line| line.contains("executes the rollouts now"));
            let token = |line: &str| {
                let digits: String = line
                    .rsplit("token")
                    .next()?
                    .chars()
                    .filter(char::is_ascii_digit)
                    .collect();
                digits.parse::<u64>().ok()
            };
            lines.filter_map(token).max()
        };
        let newest = COORDINATOR_HOSTS.into_iter().max_by_key(newest_token);
        newest.unwrap()
    }

    /// Names of the nodes that are connected, as one coordinator sees it.
    fn connected(&self) -> Vec<String> {
        let nodes = self.holm(&["nodes", "list"]).ok();
        let nodes = nodes.as_array().unwrap().iter();
        let connected = nodes.filter(|node| node["connected"] == true);
        connected
            .map(|node| node["name"].as_str().unwrap().to_owned())
            .collect()
    }

    fn until_all_connected(&self) {
        eventually_within(LONG, "every node to be connected", || {
            self.connected().len() == SITES.len()
        });
    }

    /// Until a request to each node is answered by this release.
    fn until_all_serve(&self, release: &str) {
        for site in &SITES {
            let (node, wanted) = (
                format!("{}:8080", address(site.last)),
                format!("env RELEASE={release}\n"),
            );
            let what = format!("{} to serve release {release}", site.name);
            eventually_within(LONG, &what, || {
                let (node, wanted) = (node.clone(), wanted.clone());
                let ask = move || {
                    get(&node, "/test/echo/").is_some_and(|answer| answer.body.contains(&wanted))
                };
                self.operator.network.within(None, ask).join().unwrap()
            });
        }
    }

    fn refused_messages(&self) -> u64 {
        let nodes = self.holm(&["nodes", "list"]).ok();
        let nodes = nodes.as_array().unwrap().iter();
        nodes
            .map(|node| node["refused_messages"].as_u64().unwrap())
            .sum()
    }

    /// The ledger has each of these requests once, and all of it is as the nodes have signed it.
    fn check_ledger(&mut self, answered: &[String]) {
        let mut before = 0;
        eventually_within(LONG, "the ledger to have every answered request", || {
            let rows = self.holm(&["usage", "audit"]).ok()["rows"]
                .as_u64()
                .unwrap();
            let settled = rows == before && rows as usize >= answered.len();
            before = rows;
            settled
        });
        let audit = self.holm(&["usage", "audit"]).ok();
        assert_eq!(audit["whole"], true, "{audit}");
        assert_eq!(audit["unchained"], 0, "{audit}");
        // An export needs a state directory that no coordinator is at work in.
        self.coordinators.remove(&COORDINATOR_HOSTS[0]);
        let (state, file) = (
            self.operator.path("coordinator-11"),
            self.operator.path("export"),
        );
        let mut export = self.operator.command(Some(COORDINATOR_HOSTS[0]));
        export
            .env("HOLM_DATABASE", &self.database)
            .args(["--json", "coordinator", "--state-dir", &state])
            .args(["export", &file, "--running"]);
        run(export).ok();
        let mut times: BTreeMap<&str, usize> = answered.iter().map(|id| (id.as_str(), 0)).collect();
        let export = std::fs::read_to_string(&file).unwrap();
        for line in export.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            if line[0] == "usage"
                && let Some(times) =
                    times.get_mut(line[5].as_str().unwrap().trim_start_matches('x'))
            {
                *times += 1;
            }
        }
        times.retain(|_, times| *times != 1);
        assert!(
            times.is_empty(),
            "requests, and how often the ledger has them: {times:?}"
        );
    }
}

/// Writes what the coordinators are called, beginning with another one for each host, as a name server does by turns.
fn name_coordinators(network: &Network, host: Option<u8>, first: usize, directory: &Path) {
    let mut text = String::from("127.0.0.1 localhost\n");
    for (name, hosts) in [(COORDINATORS, COORDINATOR_HOSTS), (BEHIND_RELAYS, RELAYS)] {
        for number in 0..hosts.len() {
            let last = hosts[(first + number) % hosts.len()];
            text += &format!("{} {name}\n", address(last));
        }
    }
    let path = directory.join(format!("hosts-{first}"));
    std::fs::write(&path, text).unwrap();
    network.name(host, &path);
}

/// Asks for the nearest node all the time, as `holm invoke` does.
struct Caller {
    over: Arc<AtomicBool>,
    ids: Arc<Mutex<Vec<String>>>,
    thread: JoinHandle<()>,
}

impl Caller {
    fn start(operator: &Arc<Operator>) -> Caller {
        let (over, ids) = (
            Arc::<AtomicBool>::default(),
            Arc::<Mutex<Vec<String>>>::default(),
        );
        let (operator, ends, own) = (operator.clone(), over.clone(), ids.clone());
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                let ran = operator.holm(&["invoke", "test/echo", "--from", CALLER]);
                // There is always a node that could serve it.
                assert!(ran.status == 0, "a request failed: {ran:?}");
                let answer = ran.json();
                assert_eq!(answer["status"], 200, "{answer}");
                own.lock()
                    .unwrap()
                    .push(answer["request_id"].as_str().unwrap().to_owned());
                // One core is for the fleet.
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Caller { over, ids, thread }
    }

    /// Somebody else was answered.
    fn answered(&self, id: &str) {
        self.ids.lock().unwrap().push(id.trim().to_owned());
    }

    /// Everything that was answered, if every request was.
    fn stop(self) -> Vec<String> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("every request is answered");
        std::mem::take(&mut *self.ids.lock().unwrap())
    }
}
