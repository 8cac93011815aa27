//! The `holm` command: where it is, and running it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use holm_test_support::patience;
use serde_json::Value;

/// Longest time for one run of the command.
const RUN: Duration = Duration::from_secs(60);

/// The binary: `HOLM_BIN`, or what cargo builds in this profile.
pub fn holm() -> &'static Path {
    static HOLM: OnceLock<PathBuf> = OnceLock::new();
    HOLM.get_or_init(|| match std::env::var_os("HOLM_BIN") {
        Some(path) => path.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    let profile = if cfg!(debug_assertions) {
        "dev"
    } else {
        "release"
    };
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "build",
            "-p",
            "holm",
            "--bin",
            "holm",
            "--message-format=json",
            "--profile",
        ])
        .arg(profile)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo can be run; or set HOLM_BIN to a built `holm`");
    assert!(output.status.success(), "`cargo build -p holm` failed");
    let messages = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "holm")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .expect("cargo says where the binary is")
}

/// How a run of the command ended.
#[derive(Debug)]
pub struct Ran {
    /// The exit status.
    pub status: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Ran {
    /// The result of a run that must have succeeded.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 0, "{self:?}");
        self.json()
    }

    /// What it printed, as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Message and hint of a run that must have failed with `status`.
    pub fn error(&self, status: i32) -> String {
        assert_eq!(self.status, status, "{self:?}");
        let error: Value = self
            .stderr
            .lines()
            .find_map(|line| serde_json::from_str(line).ok())
            .unwrap_or_else(|| panic!("no error as JSON: {self:?}"));
        let text = |key: &str| error["error"][key].as_str().unwrap_or_default().to_owned();
        format!("{} {}", text("message"), text("hint"))
    }
}

/// Runs `command` to its end.
pub fn run(mut command: Command) -> Ran {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("holm can be started");
    let stdout = collect(child.stdout.take().expect("stdout is piped"));
    let stderr = collect(child.stderr.take().expect("stderr is piped"));
    let deadline = Instant::now() + patience(RUN);
    let status = loop {
        match child.try_wait().expect("a child can be waited for") {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                // Fails only if it has ended just now.
                let _ = child.kill();
                let _ = child.wait();
                panic!("{command:?} did not end in time");
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let text = |thread: JoinHandle<String>| thread.join().expect("a reader does not panic");
    Ran {
        status: status.code().unwrap_or(-1),
        stdout: text(stdout),
        stderr: text(stderr),
    }
}

fn collect(mut from: impl std::io::Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read until an error is what there is.
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
