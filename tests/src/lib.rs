//! What the end-to-end tests share: a fleet of real processes, and the `holm` command as a user runs
//! it.
//!
//! A test starts its own [`Fleet`] on loopback, on ports that the system picks, below a directory of
//! its own; nothing of it outlives the test. Everything but `debian` is for tests and panics with a sentence
//! that says what went wrong.
#![forbid(unsafe_code)]

mod command;
pub mod debian;
mod http;
pub mod namespace;
pub mod network;
pub mod relay;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use holm_test_support::patience;
use serde_json::Value;
use tempfile::TempDir;

pub use command::{Ran, holm, run};
pub use http::{Answer, Fate, ask, get, send};
use namespace::Namespace;

/// How long a daemon may take to become ready.
const START: Duration = Duration::from_secs(30);

/// One coordinator and its nodes.
#[derive(Debug)]
pub struct Fleet {
    directory: TempDir,
    coordinator: Option<Daemon>,
    http: String,
    quic: String,
    nodes: Vec<(String, Option<Daemon>, String)>,
    size: NodeSize,
    /// Further options of the coordinator.
    coordinator_options: Vec<String>,
    node_options: Vec<String>,
    /// `http`, or `https` with a certificate that is trusted by `ca_file`.
    scheme: String,
    ca_file: Option<String>,
    /// Where a node listens when it is started first.
    listen: String,
    /// In which its daemons run, if not where the test does.
    namespace: Option<Namespace>,
    /// What is in the environment of the daemons of these names.
    environment: BTreeMap<String, Vec<(String, String)>>,
}

/// Ingress threads of each node, and their slots in all; 0 is what a node takes by itself.
#[derive(Clone, Copy, Debug)]
pub struct NodeSize {
    /// Ingress threads.
    pub threads: usize,
    /// VM shells.
    pub slots: usize,
}

impl NodeSize {
    /// Small, so that several nodes run beside each other.
    const FOR_TESTS: NodeSize = NodeSize {
        threads: 1,
        slots: 8,
    };
}

/// A daemon; killed with SIGKILL when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    /// Open as long as it is to run.
    _stdin: Option<ChildStdin>,
    /// Kept, so that it never writes into a closed pipe.
    stdout: BufReader<ChildStdout>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    /// Starts the daemon that `command` is and returns what it says when it is ready. Its log is NAME.log in
    /// `directory`.
    pub fn start_by(command: Command, directory: &Path, name: &str) -> (Daemon, Value) {
        let mut daemon = Daemon::spawn(command, directory, name);
        let log = directory.join(format!("{name}.log"));
        let ready = daemon.ready();
        let ready = ready.unwrap_or_else(|said| {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            panic!("{name} did not become ready, it said `{said}`\n{log}")
        });
        (daemon, ready)
    }

    /// Starts it, and does not wait until it is ready.
    fn spawn(mut command: Command, directory: &Path, name: &str) -> Daemon {
        let log = directory.join(format!("{name}.log"));
        let stderr = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .expect("a log file");
        let mut child = command
            .args(["--json", "--until-stdin-closes"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("holm can be started");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Daemon {
            child,
            _stdin: stdin,
            stdout,
        }
    }

    /// What it says when it is ready, or else whatever it says.
    fn ready(&mut self) -> Result<Value, String> {
        // A daemon that says nothing is killed, which ends the reading.
        let (said, heard) = std::sync::mpsc::channel::<()>();
        let pid = self.child.id();
        let watchdog = std::thread::spawn(move || {
            if heard.recv_timeout(patience(START)).is_err() {
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
            }
        });
        let mut line = String::new();
        let read = self.stdout.read_line(&mut line);
        let _ = said.send(());
        watchdog.join().expect("the watchdog only waits");
        match serde_json::from_str(&line) {
            Ok(ready) if read.is_ok() => Ok(ready),
            _ => Err(line.trim().to_owned()),
        }
    }
}

impl Fleet {
    /// A coordinator without nodes.
    pub fn without_nodes() -> Fleet {
        Fleet::with_coordinator(NodeSize::FOR_TESTS, &[])
    }

    fn with_coordinator(size: NodeSize, options: &[&str]) -> Fleet {
        let mut fleet = Fleet::stopped(size, options);
        fleet.start_coordinator();
        fleet
    }

    /// A coordinator and connected nodes of these names, all of which show callers the one certificate `cert.pem`, by
    /// which `holm` knows them.
    pub fn with_tls(names: &[&str]) -> Fleet {
        let mut fleet = Fleet::stopped(NodeSize::FOR_TESTS, &[]);
        let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(hosts).expect("a certificate can be made");
        let (cert, key) = (fleet.path("cert.pem"), fleet.path("key.pem"));
        std::fs::write(&cert, made.cert.pem()).expect("the directory is there");
        std::fs::write(&key, made.signing_key.serialize_pem()).expect("the directory is there");
        let options = ["--tls-cert", &cert, "--tls-key", &key].map(str::to_owned);
        fleet.coordinator_options.extend(options.clone());
        fleet.node_options.extend(options);
        fleet.ca_file = Some(cert);
        fleet.start_coordinator();
        fleet.add_nodes(names);
        fleet
    }

    fn stopped(size: NodeSize, options: &[&str]) -> Fleet {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Fleet {
            directory,
            coordinator: None,
            http: "127.0.0.1:0".into(),
            quic: "127.0.0.1:0".into(),
            nodes: Vec::new(),
            size,
            coordinator_options: options.iter().map(|option| (*option).to_owned()).collect(),
            node_options: Vec::new(),
            scheme: "http".into(),
            ca_file: None,
            listen: "127.0.0.1:0".into(),
            namespace: None,
            environment: BTreeMap::new(),
        }
    }

    /// One whose coordinator is yet to be started, and whose daemons listen at an address of loopback that is theirs
    /// alone. So nobody takes a port of theirs while they are down.
    pub fn alone_at(address: Ipv4Addr, namespace: Option<Namespace>) -> Fleet {
        assert!(address.is_loopback(), "{address}");
        let mut fleet = Fleet::stopped(NodeSize::FOR_TESTS, &[]);
        fleet.http = format!("{address}:7700");
        fleet.quic = format!("{address}:7701");
        fleet.listen = format!("{address}:7780");
        fleet.namespace = namespace;
        fleet
    }

    /// What the daemon of this name has in its environment from its next start on.
    pub fn set_environment(&mut self, name: &str, variables: Vec<(String, String)>) {
        self.environment.insert(name.to_owned(), variables);
    }

    /// Where its daemons run, if not where the test does.
    pub fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_ref()
    }

    /// `holm` where the daemons run.
    fn command_of(&self, name: &str) -> Command {
        let variables = self.environment.get(name).into_iter().flatten();
        let Some(namespace) = &self.namespace else {
            let mut command = Command::new(holm());
            command.envs(variables.map(|(name, value)| (name, value)));
            return command;
        };
        // Not of what goes in there first: what a preloaded library does belongs in there as well.
        let mut command = namespace.command(Path::new("env"));
        command.args(variables.map(|(name, value)| format!("{name}={value}")));
        command.arg(holm());
        command
    }

    /// A coordinator with these options, and connected nodes of these names.
    pub fn with_options(options: &[&str], names: &[&str]) -> Fleet {
        let mut fleet = Fleet::with_coordinator(NodeSize::FOR_TESTS, options);
        fleet.add_nodes(names);
        fleet
    }

    /// A coordinator and connected nodes of these names.
    pub fn with_nodes(names: &[&str]) -> Fleet {
        Fleet::with_nodes_of(NodeSize::FOR_TESTS, names)
    }

    /// The same with nodes of this size.
    pub fn with_nodes_of(size: NodeSize, names: &[&str]) -> Fleet {
        let mut fleet = Fleet::with_coordinator(size, &[]);
        fleet.add_nodes(names);
        fleet
    }

    fn add_nodes(&mut self, names: &[&str]) {
        for name in names {
            self.join(name);
            self.start_node(name);
        }
        eventually("every node to be connected", || {
            let nodes = self.holm(&["nodes", "list"]).ok();
            nodes
                .as_array()
                .is_some_and(|nodes| nodes.iter().all(|node| node["connected"] == true))
        });
    }

    /// Has a node of this name join, which is yet to be started.
    pub fn join(&mut self, name: &str) {
        let (token, state) = (self.token(&[]), self.path(name));
        let mut command = self.command_of(name);
        command.args(["--json", "node", "join", &token]);
        command.args(["--name", name, "--state-dir", &state]);
        command::run(command).ok();
        self.nodes
            .push((name.to_owned(), None, self.listen.clone()));
    }

    /// Has nodes dial this from their next start on, in place of what they joined.
    pub fn dial(&mut self, to: &str) {
        self.node_options
            .extend(["--dial".to_owned(), to.to_owned()]);
    }

    /// Starts the coordinator, again on its old addresses if it ran before.
    pub fn start_coordinator(&mut self) {
        let command = self.coordinator_command();
        let (daemon, ready) = Daemon::start_by(command, self.directory.path(), "coordinator");
        let url = ready["url"].as_str().expect("a URL");
        let (scheme, http) = url.split_once("://").expect("a URL");
        (self.scheme, self.http) = (scheme.to_owned(), http.to_owned());
        self.quic = ready["quic"].as_str().expect("an address").to_owned();
        self.coordinator = Some(daemon);
    }

    /// Starts a coordinator that ran before, and does not wait for it.
    pub fn begin_coordinator(&mut self) {
        let command = self.coordinator_command();
        let daemon = Daemon::spawn(command, self.directory.path(), "coordinator");
        self.coordinator = Some(daemon);
    }

    fn coordinator_command(&self) -> Command {
        let mut command = self.command_of("coordinator");
        command
            .args(["coordinator", "--http", &self.http, "--quic", &self.quic])
            .args(["--state-dir", &self.path("coordinator")])
            .args(&self.coordinator_options);
        command
    }

    /// Kills the coordinator with SIGKILL.
    pub fn kill_coordinator(&mut self) {
        self.coordinator = None;
    }

    /// Starts a node that has joined, again on its old address if it ran before.
    pub fn start_node(&mut self, name: &str) {
        let command = self.node_command(name);
        let (daemon, ready) = Daemon::start_by(command, self.directory.path(), name);
        let node = self.node_mut(name);
        node.2 = ready["listen"].as_str().expect("an address").to_owned();
        node.1 = Some(daemon);
    }

    /// Starts a node that ran before, and does not wait for it.
    pub fn begin_node(&mut self, name: &str) {
        let command = self.node_command(name);
        let daemon = Daemon::spawn(command, self.directory.path(), name);
        self.node_mut(name).1 = Some(daemon);
    }

    fn node_command(&self, name: &str) -> Command {
        let (threads, slots) = (self.size.threads.to_string(), self.size.slots.to_string());
        let listen = &self.node(name).2;
        let mut command = self.command_of(name);
        command
            .args(["node", "run", "--state-dir", &self.path(name)])
            .args(["--listen", listen, "--region", "test"])
            .args(["--coordinates", "50.11,8.68"])
            .args(["--threads", &threads, "--slots", &slots])
            .args(&self.node_options);
        command
    }

    /// The status of a node that was started and has ended by itself.
    pub fn node_ended(&mut self, name: &str) -> Option<ExitStatus> {
        let child = &mut self.node_mut(name).1.as_mut()?.child;
        child.try_wait().expect("a child can be waited for")
    }

    /// The same of the coordinator.
    pub fn coordinator_ended(&mut self) -> Option<ExitStatus> {
        let child = &mut self.coordinator.as_mut()?.child;
        child.try_wait().expect("a child can be waited for")
    }

    /// Kills a node with SIGKILL.
    pub fn kill_node(&mut self, name: &str) {
        self.node_mut(name).1 = None;
    }

    /// Host and port of a node.
    pub fn address(&self, name: &str) -> String {
        self.node(name).2.clone()
    }

    /// The process of a node that runs.
    pub fn node_pid(&self, name: &str) -> u32 {
        let daemon = self.node(name).1.as_ref();
        daemon.expect("a node that runs").child.id()
    }

    /// The coordinator's process, while it runs.
    pub fn coordinator_pid(&self) -> u32 {
        let daemon = self.coordinator.as_ref();
        daemon.expect("a coordinator that runs").child.id()
    }

    /// Host and port of the coordinator's API.
    pub fn http(&self) -> &str {
        &self.http
    }

    /// Host and UDP port that nodes dial.
    pub fn quic(&self) -> &str {
        &self.quic
    }

    /// A new join token.
    pub fn token(&self, more: &[&str]) -> String {
        let mut args = vec!["nodes", "token"];
        args.extend(more);
        self.holm(&args).ok()["token"]
            .as_str()
            .expect("a token")
            .to_owned()
    }

    /// A path below the fleet's directory.
    pub fn path(&self, name: &str) -> String {
        self.directory
            .path()
            .join(name)
            .to_str()
            .expect("paths are UTF-8 here")
            .to_owned()
    }

    /// Runs `holm --json` with `args` as the operator of this fleet.
    pub fn holm(&self, args: &[&str]) -> Ran {
        self.holm_for_people(&[&["--json"], args].concat())
    }

    /// The same with words for people.
    pub fn holm_for_people(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(holm());
        command
            .args(args)
            .env(
                "HOLM_COORDINATOR",
                format!("{}://{}", self.scheme, self.http),
            )
            .envs(self.ca_file.iter().map(|file| ("HOLM_CA_FILE", file)))
            .env("HOLM_TOKEN_FILE", self.path("coordinator/admin-token"))
            .env("HOLM_PUBLISHER_KEY", self.path("publisher.pem"))
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env_remove("HOLM_TOKEN")
            .env_remove("HOLM_STATE_DIR");
        command::run(command)
    }

    /// Deploys a program as `test/NAME`, or as NAME itself if that has a tenant, with `more` lines of manifest,
    /// and waits until the fleet has it. The probe asks for `/ok`, where every test guest behaves, unless `more`
    /// begins with another one.
    pub fn deploy(&self, name: &str, program: &Path, more: &str) {
        let (tenant, _) = tenant_and_name(name);
        self.holm(&["tenants", "create", tenant]).ok();
        let deployed = self.try_deploy(name, program, more).ok();
        assert_eq!(deployed["rollout"]["state"], "completed", "{deployed}");
    }

    /// Like [`Fleet::deploy`], but it may fail.
    pub fn try_deploy(&self, name: &str, program: &Path, more: &str) -> Ran {
        let (tenant, name) = tenant_and_name(name);
        let manifest: PathBuf = self.directory.path().join(format!("{tenant}-{name}.toml"));
        let probe = if more.starts_with("probe") {
            ""
        } else {
            "probe = \"/ok\"\n"
        };
        let text = format!(
            "schema = 1\n[function]\nname = \"{name}\"\ntenant = \"{tenant}\"\n[rollout]\n\
             waves = [100]\nbake = \"100ms\"\n{probe}{more}"
        );
        std::fs::write(&manifest, text).expect("a manifest can be written");
        let (program, manifest) = (program.to_str(), manifest.to_str());
        let (program, manifest) = (program.expect("UTF-8"), manifest.expect("UTF-8"));
        self.holm(&["deploy", "--program", program, "--manifest", manifest])
    }

    /// Publishes a program with this manifest, without waiting for its rollout.
    pub fn publish(&self, program: &Path, manifest: &str, more: &[&str]) -> Ran {
        let path = self.path("published.toml");
        std::fs::write(&path, manifest).expect("a manifest can be written");
        let program = program.to_str().expect("UTF-8");
        let args = [
            "deploy",
            "--program",
            program,
            "--manifest",
            &path,
            "--no-wait",
        ];
        self.holm(&[&args, more].concat())
    }

    /// Sets the prices that hold for all: a cent a request, so that what is spent can be counted by answers, and
    /// what `more` options say.
    pub fn price(&self, more: &[&str]) -> Ran {
        let args = [
            "prices",
            "set",
            "standard",
            "--currency",
            "EUR",
            "--requests",
            "10000",
        ];
        self.holm(&[&args, more].concat())
    }

    /// What the coordinator's API answers to the operator for this path.
    pub fn api(&self, path: &str) -> Value {
        let token = std::fs::read_to_string(self.path("coordinator/admin-token"));
        let token = token.expect("a token of the operator's");
        let header = format!("authorization: Bearer {}\r\n", token.trim());
        match ask(&self.http, &format!("GET {path}"), &header, &[]) {
            Fate::Answered(answer) if answer.status == 200 => {
                serde_json::from_str(&answer.body).expect("the API speaks JSON")
            }
            other => panic!("{path}: {other:?}"),
        }
    }

    /// Usage of `test/NAME`, or of NAME itself if that has a tenant.
    pub fn usage(&self, name: &str) -> Value {
        let (tenant, name) = tenant_and_name(name);
        let function = format!("{tenant}/{name}");
        let usage = self.holm(&["usage", "--function", &function]).ok();
        usage
            .as_array()
            .and_then(|rows| rows.first().cloned())
            .unwrap_or_default()
    }

    /// What a daemon logged.
    pub fn log(&self, name: &str) -> String {
        let path = self.directory.path().join(format!("{name}.log"));
        std::io::read_to_string(File::open(path).expect("a log")).expect("a readable log")
    }

    fn node(&self, name: &str) -> &(String, Option<Daemon>, String) {
        let mut nodes = self.nodes.iter();
        nodes
            .find(|node| node.0 == name)
            .expect("a node of this fleet")
    }

    fn node_mut(&mut self, name: &str) -> &mut (String, Option<Daemon>, String) {
        self.nodes
            .iter_mut()
            .find(|node| node.0 == name)
            .expect("a node of this fleet")
    }
}

/// The tenant of a function's name, `test` if it has none, and the rest.
pub fn tenant_and_name(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or(("test", name))
}

/// Waits until `good`, and panics if that takes too long.
pub fn eventually(what: &str, good: impl FnMut() -> bool) {
    eventually_within(Duration::from_secs(20), what, good);
}

/// The same for what may take so long.
pub fn eventually_within(usual: Duration, what: &str, mut good: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience(usual);
    while !good() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
