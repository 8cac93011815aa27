//! Running the command as a user does, within a bounded time.
#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

/// No command of these tests takes this long, not even one that builds.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Asserts on the exit status, showing everything if it differs.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    /// Asserts that stderr tells of each of `parts`.
    #[track_caller]
    pub(crate) fn complains_of(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(
                self.stderr.contains(part),
                "`{part}` is not in: {}",
                self.stderr
            );
        }
        self
    }

    /// stdout as one JSON value.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// stdout as JSON values, one a line.
    #[track_caller]
    pub(crate) fn json_lines(&self) -> Vec<Value> {
        let parse = |line| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}: {self:?}"))
        };
        self.stdout.lines().map(parse).collect()
    }

    /// stderr as one error object.
    #[track_caller]
    pub(crate) fn json_error(&self) -> Value {
        let value: Value =
            serde_json::from_str(&self.stderr).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert!(value["error"]["message"].is_string(), "{value}");
        value["error"].clone()
    }
}

/// The command, free of what the tests' own cargo sets.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holm"));
    for name in [
        "CARGO_TARGET_DIR",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "HOLM_SDK_PATH",
    ] {
        command.env_remove(name);
    }
    // The registry's part of the SDK's dependencies is here already, as these tests were built.
    command.env("CARGO_NET_OFFLINE", "true");
    command.stdin(Stdio::null());
    command
}

/// Runs `holm` with `args` to its end.
#[track_caller]
pub(crate) fn holm<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Ran {
    run(command().args(args))
}

/// Runs `holm` with `args` in `dir` to its end.
#[track_caller]
pub(crate) fn holm_in<A: AsRef<OsStr>>(dir: &Path, args: impl IntoIterator<Item = A>) -> Ran {
    run(command().current_dir(dir).args(args))
}

#[track_caller]
fn run(command: &mut Command) -> Ran {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{error}"));
    let pid = child.id();
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || send.send(child.wait_with_output()));
    let Output {
        status,
        stdout,
        stderr,
    } = match receive.recv_timeout(PATIENCE) {
        Ok(output) => output.unwrap_or_else(|error| panic!("{error}")),
        Err(_) => {
            signal(pid, rustix::process::Signal::KILL);
            panic!("the command had not ended after {PATIENCE:?}: {command:?}");
        }
    };
    Ran {
        code: status.code(),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// A command that goes on in the background; killed when dropped.
pub(crate) struct Background {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Background {
    /// Starts `holm` with `args`; its stdout is read line by line.
    pub(crate) fn start<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Background {
        use std::io::BufRead as _;
        let mut child = command()
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap_or_else(|error| panic!("{error}"));
        let stdout = child
            .stdout
            .take()
            .unwrap_or_else(|| panic!("stdout is piped"));
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in std::io::BufReader::new(stdout)
                .lines()
                .map_while(Result::ok)
            {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Background { child, lines }
    }

    /// The next line that is an event of `kind`.
    #[track_caller]
    pub(crate) fn event(&self, kind: &str) -> Value {
        let mut seen = Vec::new();
        loop {
            let line = self
                .lines
                .recv_timeout(holm_test_support::patience(PATIENCE / 4));
            let line = line.unwrap_or_else(|_| panic!("no event `{kind}`; seen: {seen:?}"));
            let value: Value = serde_json::from_str(&line)
                .unwrap_or_else(|error| panic!("{error} in line: {line}"));
            if value["event"] == kind {
                return value;
            }
            seen.push(line);
        }
    }

    /// Asks it to end, as the system does, and gives its exit status.
    #[track_caller]
    pub(crate) fn terminate(mut self) -> Option<i32> {
        signal(self.child.id(), rustix::process::Signal::TERM);
        for _ in 0..200 {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("it did not end within 10 s of SIGTERM");
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a GET and gives status and body.
#[track_caller]
pub(crate) fn get(url: &str, path: &str) -> (u16, String) {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(holm_test_support::patience(Duration::from_secs(30))))
        .unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap();
    let body = text.split_once("\r\n\r\n").unwrap().1;
    (status, body.to_owned())
}

/// A project directory with `files`.
pub(crate) fn project(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    for (path, text) in files {
        holm_test_support::write(&dir.path().join(path), text);
    }
    dir
}
