//! A PostgreSQL server for tests, from Debian's package `postgresql`.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::patience;

/// Where Debian has its versions, one directory each.
const VERSIONS: &str = "/usr/lib/postgresql";
/// The user and group `nobody` of Debian, for tests that run as root, which the server refuses.
const NOBODY: u32 = 65534;
/// The administrator, who is asked for it.
const PASSWORD: &str = "correct horse";

/// Makes a server and runs it until standard input is closed: so it ends with whoever started it,
/// however that ended.
const SCRIPT: &str = r#"
"$1/initdb" --pgdata data --username postgres --pwfile password --auth scram-sha-256 \
    --encoding UTF8 --locale C.UTF-8 --no-sync >initdb.log 2>&1 || exit
"$1/postgres" -D data -k "$PWD" -c listen_addresses= -c fsync="$2" -c max_connections=200 \
    >server.log 2>&1 &
cat >/dev/null
kill -INT $!
wait $!
cd / && rm -rf "$OLDPWD"
"#;

/// A server that listens on a socket in a directory of its own. It ends when this is dropped, and
/// with the process in any case.
pub struct Postgres {
    programs: PathBuf,
    directory: PathBuf,
    keeper: Child,
    databases: AtomicU32,
}

impl Postgres {
    /// The server that all tests of a process share.
    pub fn shared() -> &'static Postgres {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| Postgres::start(false))
    }

    /// Starts one; `durable` says whether it is to sync to disk as real ones do.
    pub fn start(durable: bool) -> Postgres {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let programs = programs();
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("holm-postgres-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .and_then(|()| fs::write(directory.join("password"), PASSWORD))
            .unwrap_or_else(|error| panic!("cannot make {}: {error}", directory.display()));
        let mut keeper = Command::new("sh");
        if runs_as_root() {
            let user = NOBODY.to_string();
            keeper = Command::new("setpriv");
            keeper.args(["--reuid", &user, "--regid", &user, "--clear-groups", "sh"]);
            for path in [&directory, &directory.join("password")] {
                chown(path, Some(NOBODY), Some(NOBODY)).expect("root may give files away");
            }
        }
        let keeper = keeper
            .args(["-c", SCRIPT, "sh"])
            .arg(&programs)
            .arg(if durable { "on" } else { "off" })
            .current_dir(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start a shell: {error}"));
        let mut server = Postgres {
            programs,
            directory,
            keeper,
            databases: AtomicU32::new(0),
        };
        server.wait_until_ready();
        server
    }

    /// Makes an empty database and returns its URL.
    pub fn database(&self) -> String {
        self.database_with("--encoding=UTF8")
    }

    /// The same with an option of `createdb`'s.
    pub fn database_with(&self, option: &str) -> String {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("test{number}");
        let made = self
            .client("createdb")
            .args(["--template", "template0", option, &name])
            .output()
            .expect("createdb is there where the server is");
        let words = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "createdb failed: {words}");
        self.url("postgres", PASSWORD, &name)
    }

    /// The URL for a user, a password and a database, whether there are such or not.
    pub fn url(&self, user: &str, password: &str, database: &str) -> String {
        let password = password.replace(' ', "%20");
        let directory = self.directory.display();
        format!("postgres://{user}:{password}@localhost/{database}?host={directory}")
    }

    fn client(&self, program: &str) -> Command {
        let mut client = Command::new(self.programs.join(program));
        client
            .env("PGHOST", &self.directory)
            .env("PGUSER", "postgres")
            .env("PGPASSWORD", PASSWORD)
            .env_remove("PGPORT");
        client
    }

    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + patience(Duration::from_secs(60));
        loop {
            let asked = self.client("pg_isready").arg("--quiet").status();
            if asked
                .expect("pg_isready is there where the server is")
                .success()
            {
                return;
            }
            let ended = self.keeper.try_wait().expect("our own child");
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "PostgreSQL does not start; its logs:\n{}{}",
                self.log("initdb.log"),
                self.log("server.log"),
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.directory.join(name)).unwrap_or_default()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // It ends the server and removes the directory.
        let _ = self.keeper.wait();
    }
}

/// The newest version's programs.
fn programs() -> PathBuf {
    let version = |entry: io::Result<fs::DirEntry>| -> Option<(u32, PathBuf)> {
        let entry = entry.ok()?;
        let number = entry.file_name().to_str()?.parse().ok()?;
        let programs = entry.path().join("bin");
        programs
            .join("initdb")
            .is_file()
            .then_some((number, programs))
    };
    let versions = fs::read_dir(VERSIONS).into_iter().flatten();
    let newest = versions.filter_map(version).max();
    newest.map(|(_, programs)| programs).unwrap_or_else(|| {
        panic!("this test needs PostgreSQL; install Debian's package `postgresql`")
    })
}

fn runs_as_root() -> bool {
    let own = fs::metadata(Path::new("/proc/self")).expect("there is a /proc");
    own.uid() == 0
}
