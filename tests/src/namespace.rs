//! A place of the test's own in the system: namespaces that are there as long as a process which waits for its standard
//! input to be closed. So nothing of them is left however the test ends, and nothing has a name on the machine.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

/// Mounts of its own.
pub const MOUNTS: &str = "--mount";
/// A network of its own.
pub const NETWORK: &str = "--net";

/// What is needed beside the kernel, and where Debian has it.
const PROGRAMS: [(&str, &str); 3] = [
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("mount", "mount"),
];

/// Why a namespace with mounts of its own cannot be made here; none if it can.
pub fn no_mounts() -> Option<String> {
    if let Some(why) = missing(&PROGRAMS) {
        return Some(why);
    }
    let mount = ["mount", "-t", "tmpfs", "tmpfs", "/mnt"];
    refused(&[MOUNTS], &mount).map(|why| format!("nothing can be mounted: {why}"))
}

/// Which of these programs is not here.
pub(crate) fn missing(programs: &[(&str, &str)]) -> Option<String> {
    programs.iter().find_map(|(program, package)| {
        let there = Command::new(program).arg("--help").output();
        let none = || format!("there is no `{program}` (Debian's {package})");
        there.is_err().then(none)
    })
}

/// Why `words` cannot be run in new namespaces of these kinds.
pub(crate) fn refused(kinds: &[&str], words: &[&str]) -> Option<String> {
    let run = Command::new("unshare").args(kinds).args(words).output();
    let run = run.expect("it ran a moment ago");
    let why = String::from_utf8_lossy(&run.stderr).trim().to_owned();
    (!run.status.success()).then_some(why)
}

/// Namespaces, with what is mounted and configured in them.
#[derive(Debug)]
pub struct Namespace {
    kinds: Vec<&'static str>,
    holder: Child,
    _stdin: ChildStdin,
}

impl Namespace {
    /// New ones of these kinds; the others are the machine's.
    pub fn new(kinds: &[&'static str]) -> Namespace {
        let mut holder = Command::new("unshare")
            .args(kinds)
            .args(["sh", "-c", "echo here; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare can be run");
        let stdin = holder.stdin.take().expect("stdin is piped");
        let mut said = String::new();
        let stdout = holder.stdout.take().expect("stdout is piped");
        // What says it is in the namespace, under the number of the process that was started.
        let read = BufReader::new(stdout).read_line(&mut said);
        assert!(read.is_ok() && said == "here\n", "no namespace: {said:?}");
        Namespace {
            kinds: kinds.to_vec(),
            holder,
            _stdin: stdin,
        }
    }

    /// A command that will run in it. Its process is the one that is started.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.pid().to_string()])
            .args(&self.kinds)
            .arg("--")
            .arg(program);
        command
    }

    /// Runs a command in it, which must succeed.
    pub fn run(&self, words: &[&str]) {
        let done = self.command(Path::new(words[0])).args(&words[1..]).output();
        let done = done.expect("nsenter can be run");
        let why = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "`{}`: {why}", words.join(" "));
    }

    /// Has an empty file system in memory at `path`, of at most so many bytes.
    pub fn mount_memory(&self, path: &str, bytes: u64) {
        let size = format!("size={bytes}");
        self.run(&["mount", "-t", "tmpfs", "-o", &size, "tmpfs", path]);
    }

    /// Where a file that is at `path` in it is for everybody else.
    pub fn outside(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.pid()).into()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
