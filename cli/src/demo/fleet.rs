//! The demonstration's processes: one coordinator and its nodes, each this same binary again.
//!
//! Everything listens on loopback, on ports that the system picks, and keeps its files below one
//! directory. No process outlives the demonstration: each is killed when it is dropped, and ends by
//! itself when its stdin closes.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use holm_tls::client::Trust;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::exit::Failure;
use crate::remote::client::Client;
use crate::remote::daemon::{CoordinatorReady, DATABASE_VARIABLE, NodeReady};
use crate::remote::fleet::join_token;
use crate::remote::settings::read_token;

/// How long a daemon may take to become ready.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a daemon may take to end when asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// How long joining may take.
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);
/// As much of a log's end as a failure carries.
const TAIL_LINES: usize = 15;
/// As much of a log as is read for that.
const TAIL_BYTES: u64 = 16 << 10;
/// Longest line that a daemon says when it is ready.
const MAX_READY_BYTES: u64 = 16 << 10;

/// Where a node of the demonstration pretends to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    /// The node's name and its region.
    pub(crate) region: &'static str,
    /// Latitude and longitude in degrees.
    pub(crate) coordinates: &'static str,
}

/// The nodes.
pub(crate) const SITES: [Site; 3] = [
    Site {
        region: "eu-central",
        coordinates: "50.11,8.68",
    },
    Site {
        region: "us-east",
        coordinates: "39.04,-77.49",
    },
    Site {
        region: "ap-southeast",
        coordinates: "1.35,103.82",
    },
];

/// A process of this binary, killed when dropped.
#[derive(Debug)]
struct Daemon {
    child: Child,
    /// Open as long as the daemon is to run.
    stdin: Option<ChildStdin>,
    /// Kept, so that the daemon never writes into a closed pipe.
    _stdout: BufReader<ChildStdout>,
}

/// A node's process and what is needed to start it again.
#[derive(Debug)]
pub(crate) struct Node {
    /// Where it pretends to be.
    pub(crate) site: Site,
    /// What it said when it was ready.
    pub(crate) ready: NodeReady,
    daemon: Option<Daemon>,
}

/// All processes.
#[derive(Debug)]
pub(crate) struct Fleet {
    directory: PathBuf,
    program: PathBuf,
    coordinator: Daemon,
    /// The coordinator's API, with its admin token.
    pub(crate) api: Client,
    /// The nodes, in the order of [`SITES`].
    pub(crate) nodes: Vec<Node>,
}

impl Fleet {
    /// Starts a coordinator, then joins and starts every node.
    pub(crate) async fn start(directory: &Path) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(|error| {
            Failure::other(format!("this program cannot find its own file: {error}"))
        })?;
        let state = directory.join("coordinator");
        let args = [
            "coordinator",
            "--http",
            "127.0.0.1:0",
            "--quic",
            "127.0.0.1:0",
            "--state-dir",
        ];
        let mut command = Command::new(&program);
        command.args(args).arg(&state);
        // The demo is not to touch a fleet that this shell looks after.
        command.env_remove(DATABASE_VARIABLE);
        let (coordinator, ready): (Daemon, CoordinatorReady) =
            Daemon::start(command, &log_path(directory, "coordinator")).await?;
        let api = Client::new(
            &ready.url,
            Some(read_token(&ready.token_file)?),
            Trust::default(),
        )?;
        let mut fleet = Fleet {
            directory: directory.to_owned(),
            program,
            coordinator,
            api,
            nodes: Vec::new(),
        };
        for site in SITES {
            fleet.join(site).await?;
            let (daemon, ready) = fleet.run(site, "127.0.0.1:0").await?;
            fleet.nodes.push(Node {
                site,
                ready,
                daemon: Some(daemon),
            });
        }
        Ok(fleet)
    }

    /// Makes a token and joins with it.
    async fn join(&self, site: Site) -> Result<(), Failure> {
        let name = site.region.parse().map_err(Failure::other)?;
        let token = join_token(&self.api, Some(60_000), Some(name)).await?.token;
        let mut command = Command::new(&self.program);
        // By stdin: others on the machine see command lines.
        command
            .args([
                "--json",
                "node",
                "join",
                "-",
                "--name",
                site.region,
                "--state-dir",
            ])
            .arg(self.directory.join(site.region))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let failed = |error| Failure::other(format!("`holm node join` cannot run: {error}"));
        let mut child = command.spawn().map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(token.as_bytes()).await.map_err(failed)?;
        }
        let output = tokio::time::timeout(JOIN_TIMEOUT, child.wait_with_output()).await;
        let output = output
            .map_err(|_| Failure::other(format!("{} did not join in time", site.region)))?
            .map_err(failed)?;
        match output.status.success() {
            true => Ok(()),
            false => Err(Failure::other(format!(
                "{} could not join: {}",
                site.region,
                String::from_utf8_lossy(&output.stderr).trim()
            ))),
        }
    }

    async fn run(&self, site: Site, listen: &str) -> Result<(Daemon, NodeReady), Failure> {
        let mut command = Command::new(&self.program);
        command
            .args(["node", "run", "--listen", listen, "--region", site.region])
            .args([
                "--coordinates",
                site.coordinates,
                "--threads",
                "1",
                "--slots",
                "8",
            ])
            .arg("--state-dir")
            .arg(self.directory.join(site.region));
        Daemon::start(command, &log_path(&self.directory, site.region)).await
    }

    /// Kills a node with SIGKILL, as a power cut would.
    pub(crate) async fn kill(&mut self, node: usize) -> Result<(), Failure> {
        if let Some(mut daemon) = self.nodes[node].daemon.take() {
            let region = self.nodes[node].site.region;
            daemon.child.kill().await.map_err(|error| {
                Failure::other(format!("{region} could not be killed: {error}"))
            })?;
        }
        Ok(())
    }

    /// Starts a killed node again, on the same address with the same files.
    pub(crate) async fn restart(&mut self, node: usize) -> Result<(), Failure> {
        let listen = self.nodes[node].ready.listen.to_string();
        let (daemon, ready) = self.run(self.nodes[node].site, &listen).await?;
        self.nodes[node].daemon = Some(daemon);
        self.nodes[node].ready = ready;
        Ok(())
    }

    /// Ends everything in an orderly way; what does not end is killed.
    pub(crate) async fn stop(mut self) -> Result<(), Failure> {
        let mut late = Vec::new();
        for node in &mut self.nodes {
            if let Some(daemon) = node.daemon.take()
                && !daemon.stop().await
            {
                late.push(node.site.region);
            }
        }
        if !self.coordinator.stop().await {
            late.push("the coordinator");
        }
        match late.is_empty() {
            true => Ok(()),
            false => Err(Failure::other(format!(
                "{} did not end when asked to, and had to be killed",
                late.join(", ")
            ))),
        }
    }
}

impl Daemon {
    /// Starts `command`, which gets `--json` and the rest of what a supervised daemon needs, and
    /// waits until it is ready.
    async fn start<T: DeserializeOwned>(
        mut command: Command,
        log: &Path,
    ) -> Result<(Self, T), Failure> {
        let failed = |what: String| Failure::other(what).hint(tail(log));
        let open = || {
            std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(log)
        };
        let stderr = open().map_err(|error| failed(format!("{}: {error}", log.display())))?;
        command
            .args(["--until-stdin-closes", "--json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true);
        let name = log
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let mut child = command
            .spawn()
            .map_err(|error| failed(format!("{name} cannot be started: {error}")))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        let mut first = (&mut stdout).take(MAX_READY_BYTES);
        let read = tokio::time::timeout(START_TIMEOUT, first.read_line(&mut line)).await;
        match read {
            Ok(Ok(1..)) => {}
            Ok(Ok(0)) => return Err(failed(format!("{name} ended before it was ready"))),
            Ok(Err(error)) => return Err(failed(format!("{name} cannot be heard: {error}"))),
            Err(_) => return Err(failed(format!("{name} was not ready in time"))),
        }
        let ready = serde_json::from_str(&line)
            .map_err(|error| failed(format!("{name} says `{}`: {error}", line.trim())))?;
        Ok((
            Daemon {
                child,
                stdin,
                _stdout: stdout,
            },
            ready,
        ))
    }

    /// Asks it to end; whether it did, in time and well.
    async fn stop(mut self) -> bool {
        drop(self.stdin.take());
        let ended = tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await;
        matches!(ended, Ok(Ok(status)) if status.success())
    }
}

fn log_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.log"))
}

/// The ends of all logs, for a failure's hint.
pub(crate) fn tails(directory: &Path) -> String {
    let names = ["coordinator"]
        .into_iter()
        .chain(SITES.iter().map(|site| site.region));
    let tails: Vec<String> = names
        .map(|name| log_path(directory, name))
        .filter(|log| log.exists())
        .map(|log| tail(&log))
        .collect();
    tails.join("\n")
}

/// The last lines of a log, with its name above them.
fn tail(log: &Path) -> String {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let read = || {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    };
    let name = log.file_name().unwrap_or_default().to_string_lossy();
    match read() {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            let kept = &lines[lines.len().saturating_sub(TAIL_LINES)..];
            format!("--- the end of {name}:\n{}", kept.join("\n"))
        }
        Err(error) => format!("--- {name} cannot be read: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_log_the_last_lines_are_shown() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("eu-central.log");
        let lines: Vec<String> = (0..10_000).map(|line| format!("line {line}")).collect();
        std::fs::write(&log, lines.join("\n")).unwrap();
        let text = tails(directory.path());
        assert!(
            text.starts_with("--- the end of eu-central.log:\nline 9985\n"),
            "{text}"
        );
        assert!(text.ends_with("line 9999"), "{text}");
    }

    #[tokio::test]
    async fn a_daemon_that_ends_at_once_is_told_with_the_end_of_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("node.log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo the reason >&2; exit 3", "sh"]);
        let failure = Daemon::start::<NodeReady>(command, &log).await.unwrap_err();
        assert!(
            failure.message.contains("ended before it was ready"),
            "{failure}"
        );
        assert!(failure.hint.unwrap().contains("the reason"));
    }

    #[tokio::test]
    async fn a_daemon_ends_when_its_stdin_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("node.log");
        let mut command = Command::new("sh");
        let ready = r#"echo '{"node":"a","listen":"127.0.0.1:1","url":"http://127.0.0.1:1"}'; cat"#;
        command.args(["-c", ready, "sh"]);
        let (daemon, ready) = Daemon::start::<NodeReady>(command, &log).await.unwrap();
        assert_eq!(ready.node.as_str(), "a");
        assert!(daemon.stop().await);
    }
}
