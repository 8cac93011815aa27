//! An S3 server for tests: moto's, from PyPI.
//!
//! `python3 -m venv target/moto && target/moto/bin/pip install 'moto[server]==5.*'` puts it where it is found;
//! `.ci/run` does so. Where it is not, tests that need it say that they were skipped.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::{patience, skipped};

/// Where moto's server is, if not in `target/moto`. Tests that need it fail if it is not there.
pub const MOTO_VARIABLE: &str = "HOLM_TEST_MOTO";

/// Runs the server until standard input is closed: so it ends with whoever started it, however that ended.
const SCRIPT: &str = r#"
"$1" -H 127.0.0.1 -p "$2" >/dev/null 2>&1 &
cat >/dev/null
kill $!
wait $!
"#;

/// A server on loopback. It ends when this is dropped, and with the process in any case.
pub struct S3Server {
    port: u16,
    keeper: Child,
    buckets: AtomicU32,
}

impl S3Server {
    /// The server that all tests of a process share. None, which it says, if there is no such program here.
    pub fn shared() -> Option<&'static S3Server> {
        static SHARED: OnceLock<Option<S3Server>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| program().map(|program| S3Server::start(&program)));
        if shared.is_none() {
            skipped("it needs moto's S3 server: see tests/support/src/s3.rs");
        }
        shared.as_ref()
    }

    fn start(program: &Path) -> S3Server {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr());
        let port = free.expect("there is a free port on loopback").port();
        let keeper = Command::new("sh")
            .args(["-c", SCRIPT, "sh"])
            .arg(program)
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start a shell: {error}"));
        let server = S3Server {
            port,
            keeper,
            buckets: AtomicU32::new(0),
        };
        let deadline = Instant::now() + patience(Duration::from_secs(60));
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(Instant::now() < deadline, "moto's S3 server does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// Makes an empty bucket and returns its name.
    pub fn bucket(&self) -> String {
        let number = self.buckets.fetch_add(1, Ordering::Relaxed);
        let bucket = format!("holm-test-{number}");
        let request = format!(
            "PUT /{bucket} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        let mut answer = String::new();
        let asked = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).and_then(|mut stream| {
            stream.write_all(request.as_bytes())?;
            stream.read_to_string(&mut answer)
        });
        asked.unwrap_or_else(|error| panic!("moto's S3 server does not answer: {error}"));
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        bucket
    }

    /// Endpoint, region and credentials, as they would be in the environment.
    pub fn settings(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

fn program() -> Option<PathBuf> {
    if let Some(given) = std::env::var_os(MOTO_VARIABLE) {
        let given = PathBuf::from(given);
        assert!(
            given.is_file(),
            "{MOTO_VARIABLE}: there is no {}",
            given.display()
        );
        return Some(given);
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let usual = workspace.join("target/moto/bin/moto_server");
    usual.is_file().then_some(usual)
}
