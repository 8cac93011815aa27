//! A small harness: one program, and requests to fresh instances of it.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "this is only ever part of tests")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, UNIX_EPOCH};

use holm_hostcall::tree::Kind;
use holm_model::bundle::Files;
use holm_model::program::Program;
use holm_test_support::{guest, musl_guest, patience};
use holm_vmm::{
    Failure, GuestConfig, Hypervisor, Limits, PrepareError, Prepared, Request, Response, Slot,
    Step, prepare,
};

/// Program memory of the guests in these tests.
pub(crate) const MEMORY_BYTES: u64 = 64 << 20;

/// The program of a file.
pub(crate) fn program(path: &Path) -> Program {
    let bytes = std::fs::read(path).unwrap();
    Program::parse(&bytes).unwrap()
}

/// A configuration with `env`.
pub(crate) fn config(env: &[(&str, &str)]) -> GuestConfig {
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    GuestConfig {
        name: "tests/guest".into(),
        memory_bytes: MEMORY_BYTES,
        env: env.iter().map(own).collect(),
        args: Vec::new(),
        files: Files::default(),
        inetd: false,
        shared: false,
        port: 8080,
    }
}

/// Boots the program of a file.
pub(crate) fn boot(path: &Path, config: &GuestConfig) -> Result<Prepared, PrepareError> {
    let hypervisor = Hypervisor::open().unwrap();
    prepare(
        &hypervisor,
        &program(path),
        config,
        patience(Duration::from_secs(5)),
    )
}

/// Writes what lies in a directory of a guest to one of this machine, with its times and permissions.
pub(crate) fn unpack(files: &Files, directory: &str, to: &Path) {
    let tree = files.tree().unwrap();
    for number in 0..tree.count() {
        let entry = tree.entry(number).unwrap();
        let path = std::str::from_utf8(entry.path).unwrap();
        let Some(path) = path.strip_prefix(directory).filter(|rest| !rest.is_empty()) else {
            continue;
        };
        let (path, content) = (to.join(&path[1..]), tree.content(&entry));
        match entry.kind {
            Kind::Directory => fs::create_dir(&path).unwrap(),
            Kind::Link => symlink(std::str::from_utf8(content).unwrap(), &path).unwrap(),
            Kind::File => {
                fs::write(&path, content).unwrap();
                let time = UNIX_EPOCH + Duration::from_secs(entry.modified_s.into());
                let file = fs::File::options().append(true).open(&path).unwrap();
                file.set_modified(time).unwrap();
                let mode = if entry.executable { 0o555 } else { 0o444 };
                fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            }
        }
    }
}

/// A program that is ready, and one slot for it.
pub(crate) struct Function {
    pub(crate) hypervisor: Hypervisor,
    pub(crate) prepared: Prepared,
    pub(crate) slot: Slot,
    pub(crate) deadline: Duration,
    pub(crate) cpu: Duration,
}

/// What a request came to, and what the program wrote meanwhile.
pub(crate) struct Outcome {
    pub(crate) result: Result<Response, Failure>,
    pub(crate) log: String,
}

impl Function {
    /// Boots the program of a file and loads it into a slot.
    pub(crate) fn new(path: &Path) -> Self {
        Self::with(path, &config(&[]))
    }

    pub(crate) fn with(path: &Path, config: &GuestConfig) -> Self {
        let hypervisor = Hypervisor::open().unwrap();
        let prepared = match boot(path, config) {
            Ok(prepared) => prepared,
            Err(error) => panic!("{error}\n{}", String::from_utf8_lossy(&error.log)),
        };
        let mut slot = Slot::new(&hypervisor).unwrap();
        slot.load(&prepared.snapshot).unwrap();
        let deadline = patience(Duration::from_secs(10));
        Function {
            hypervisor,
            prepared,
            slot,
            deadline,
            cpu: deadline,
        }
    }

    /// One request to the instance that is in the slot; the slot stays as the request left it.
    pub(crate) fn send(&mut self, method: &str, target: &str, body: &[u8]) -> Outcome {
        self.send_with(method, target, &[], body)
    }

    /// The same with headers beside that of the host.
    pub(crate) fn send_with(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Outcome {
        let headers: Vec<(&[u8], &[u8])> = [("host", "guest.test")]
            .iter()
            .chain(headers)
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
            .collect();
        let request = Request {
            method,
            target,
            headers: &headers,
            body,
        };
        let limits = Limits {
            deadline: Instant::now() + self.deadline,
            cpu: self.cpu,
            response_body_bytes: 1 << 20,
            streams: false,
        };
        self.slot.begin(&request, limits).unwrap();
        let result = loop {
            match self.slot.run(Duration::from_millis(50)) {
                Step::Answered(response) => break Ok(response),
                Step::Failed(failure) | Step::Dropped(_, failure) => break Err(failure),
                Step::Yielded => {}
                Step::Parked(until) => self.slot.wait(until),
            }
        };
        let log = String::from_utf8_lossy(&self.slot.take_log()).into_owned();
        Outcome { result, log }
    }

    /// One request to a pristine instance, which is reset, or replaced if it failed.
    pub(crate) fn fresh(&mut self, method: &str, target: &str, body: &[u8]) -> Outcome {
        let outcome = self.send(method, target, body);
        match outcome.result {
            Ok(_) => self.slot.reset().unwrap(),
            Err(_) => {
                self.slot = Slot::new(&self.hypervisor).unwrap();
                self.slot.load(&self.prepared.snapshot).unwrap();
            }
        }
        outcome
    }

    /// The body of the answer to a GET, as text. The test fails if there is none.
    pub(crate) fn get(&mut self, target: &str) -> String {
        let outcome = self.fresh("GET", target, b"");
        match outcome.result {
            Ok(response) => String::from_utf8(response.body).unwrap(),
            Err(failure) => panic!("GET {target}: {failure}\n{}", outcome.log),
        }
    }

    /// Why a GET failed, and that the next instance is well. The test fails if it did not.
    pub(crate) fn failure(&mut self, target: &str) -> String {
        let outcome = self.fresh("GET", target, b"");
        let failure = match outcome.result {
            Ok(response) => panic!(
                "GET {target} was answered: {} {}",
                response.status,
                String::from_utf8_lossy(&response.body)
            ),
            Err(failure @ Failure::Host(_)) => {
                panic!("GET {target} is blamed on the host: {failure}")
            }
            Err(failure) => failure.to_string(),
        };
        assert_eq!(self.get("/ok"), "ok\n", "the instance after {target}");
        failure
    }
}

/// Both libcs.
pub(crate) fn each_libc(name: &str, mut test: impl FnMut(&Path)) {
    test(&guest(name));
    if let Some(path) = musl_guest(name) {
        test(&path);
    }
}

/// What the program tells on the host.
fn native(path: &Path, way: &str) -> String {
    let output = Command::new(path)
        .arg(way)
        .output()
        .expect("the program runs on the host");
    assert!(output.status.success(), "{way} on the host: {output:?}");
    let text = String::from_utf8(output.stdout).expect("guests tell text");
    let (_, body) = text
        .split_once("\r\n\r\n")
        .expect("guests answer with HTTP");
    body.to_owned()
}

/// Every way tells in a guest what it tells on the host, and this much.
pub(crate) fn tells_the_same(name: &str, ways: &[(&str, &str)]) {
    each_libc(name, |path| {
        let mut guest = Function::new(path);
        for (way, expected) in ways {
            let (there, here) = (native(path, way), guest.get(way));
            assert!(there.contains(expected), "{way} on the host: {there}");
            let pairs = there.lines().zip(here.lines());
            for (there, here) in pairs {
                assert_eq!(here, there, "{name} {way}: guest, then host");
            }
            assert_eq!(here, there, "{name} {way}: guest, then host");
        }
    });
}
