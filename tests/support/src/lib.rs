//! What Holm's tests share: guest programs, built once, and the question whether there is KVM.
//!
//! The test guests are the C files of `tests/guests`, one tiny program per behaviour, and the sample
//! functions of `guest/functions`. A test asks for one by name and gets the path of a static
//! program. Where `HOLM_TEST_GUESTS_DIR` is set, programs are taken from there as
//! `cargo xtask guests` put them; this is how tests find them where there is no compiler.
//!
//! Everything here is for tests and panics with a sentence that says what is missing.
#![forbid(unsafe_code)]

mod build;
mod duckdb;
mod postgres;
mod s3;
mod site;

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use duckdb::{DUCKDB_VARIABLE, duckdb};
pub use postgres::Postgres;
pub use s3::{MOTO_VARIABLE, S3Server};
pub use site::{busybox, busybox_site, write};

/// Directory of programs built beforehand.
pub const GUESTS_DIR_VARIABLE: &str = "HOLM_TEST_GUESTS_DIR";
/// Set to `1` to skip, by name, the tests that need /dev/kvm.
pub const NO_KVM_VARIABLE: &str = "HOLM_TEST_NO_KVM";
/// How many times slower than usual this machine is.
pub const PATIENCE_VARIABLE: &str = "HOLM_TEST_PATIENCE";

/// A program that tests give to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Guest {
    /// `tests/guests/NAME.c`, with glibc.
    Glibc(String),
    /// The same with musl.
    Musl(String),
    /// `guest/functions/NAME`.
    Function(String),
}

impl Guest {
    /// Every guest that can be built here; those for musl only if there is `musl-gcc`.
    pub fn all() -> Vec<Guest> {
        let names = build::names();
        let musl = build::musl_compiler().is_some();
        let with_musl = names.iter().filter(|_| musl).cloned().map(Guest::Musl);
        let with_glibc = names.iter().cloned().map(Guest::Glibc);
        let functions = ["hello", "hello-c"].map(|name| Guest::Function(name.to_owned()));
        with_glibc.chain(with_musl).chain(functions).collect()
    }

    /// Its place below a directory of guests.
    fn relative(&self) -> PathBuf {
        match self {
            Guest::Glibc(name) => Path::new("glibc").join(name),
            Guest::Musl(name) => Path::new("musl").join(name),
            Guest::Function(name) => Path::new("functions").join(name),
        }
    }

    /// Builds it below `directory`, unless it is there and newer than its sources.
    pub fn build_into(&self, directory: &Path) -> PathBuf {
        let output = directory.join(self.relative());
        match self {
            Guest::Glibc(name) => build::compile(name, "cc", &output),
            Guest::Musl(name) => {
                let compiler = build::musl_compiler()
                    .expect("musl-gcc is not there; install Debian's musl-tools");
                build::compile(name, compiler, &output);
            }
            Guest::Function(name) => build::function(name, directory, &output),
        }
        output
    }

    /// The program, built at most once per process.
    pub fn path(&self) -> PathBuf {
        if let Some(directory) = prebuilt() {
            let path = directory.join(self.relative());
            assert!(
                path.is_file(),
                "{} is not there; make it with `cargo xtask guests --out {}`",
                path.display(),
                directory.display()
            );
            return path;
        }
        // One lock per guest, so that tests do not wait for a guest of another test.
        static BUILT: Mutex<Option<HashMap<Guest, Arc<OnceLock<PathBuf>>>>> = Mutex::new(None);
        let cell = {
            let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
            built
                .get_or_insert_default()
                .entry(self.clone())
                .or_default()
                .clone()
        };
        cell.get_or_init(|| self.build_into(&build::target_dir().join("test-guests")))
            .clone()
    }
}

fn prebuilt() -> Option<PathBuf> {
    std::env::var_os(GUESTS_DIR_VARIABLE).map(PathBuf::from)
}

/// The test guest `tests/guests/NAME.c`, compiled statically with glibc.
pub fn guest(name: &str) -> PathBuf {
    Guest::Glibc(name.to_owned()).path()
}

/// The same compiled with musl; `None`, with a line that says so, where there is no `musl-gcc`.
pub fn musl_guest(name: &str) -> Option<PathBuf> {
    let there = match prebuilt() {
        Some(directory) => directory.join("musl").is_dir(),
        None => build::musl_compiler().is_some(),
    };
    if !there {
        skipped("there is no musl-gcc (Debian's musl-tools)");
        return None;
    }
    Some(Guest::Musl(name.to_owned()).path())
}

/// The sample function `guest/functions/NAME`, built as `holm build` builds it.
pub fn function(name: &str) -> PathBuf {
    Guest::Function(name.to_owned()).path()
}

/// Whether the test may go on and use /dev/kvm. Where that is missing the test fails here, or is
/// skipped by name if `HOLM_TEST_NO_KVM=1`:
///
/// ```no_run
/// # fn a_test() {
/// if !holm_test_support::require_kvm() {
///     return;
/// }
/// # }
/// ```
pub fn require_kvm() -> bool {
    if std::env::var_os(NO_KVM_VARIABLE).is_some_and(|value| value == "1") {
        skipped("HOLM_TEST_NO_KVM=1");
        return false;
    }
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        panic!(
            "this test needs /dev/kvm, which cannot be opened: {error}. Load the kvm module or \
             join the kvm group; HOLM_TEST_NO_KVM=1 skips such tests"
        );
    }
    true
}

/// `usual`, stretched on machines that are known to be slow, such as an emulated one.
pub fn patience(usual: Duration) -> Duration {
    let factor = std::env::var(PATIENCE_VARIABLE)
        .ok()
        .and_then(|text| text.parse::<u32>().ok());
    usual * factor.unwrap_or(1).clamp(1, 100)
}

/// Whether this is such a machine, on which a test does only a few of many.
pub fn is_slow() -> bool {
    let usual = Duration::from_secs(1);
    patience(usual) > usual
}

/// The seeds that a test is to try, which it prints: always the same `usual` ones, or as many new ones as
/// `VARIABLES` says, or the one that `VARIABLE` says.
pub fn seeds(variable: &str, usual: u64) -> Range<u64> {
    let number = |variable: String| -> Option<u64> {
        let text = std::env::var(&variable).ok()?;
        let number = text.parse();
        Some(number.unwrap_or_else(|_| panic!("{variable} is not a number: {text}")))
    };
    let seeds = if let Some(seed) = number(variable.to_owned()) {
        seed..seed + 1
    } else if let Some(count) = number(format!("{variable}S")) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let from = now.map_or(0, |now| now.as_secs() % 1_000_000 * 1000);
        from..from + count
    } else {
        1..1 + usual
    };
    println!("seeds {} to {}", seeds.start, seeds.end - 1);
    seeds
}

/// Random numbers, always the same from a seed: each call gives one below what it is given.
pub fn random_below(mut seed: u64) -> impl FnMut(u64) -> u64 {
    move |below| {
        // Knuth's generator, of which the upper bits are good.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % below
    }
}

/// Bytes that look like nothing, always the same from a seed.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        // Marsaglia's generator: the cuts that a test of chunks expects are those of its bytes.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// Says that the running test is skipped. Straight to standard error, since the test harness keeps
/// to itself what a passing test prints.
pub fn skipped(why: &str) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test");
    let _ = writeln!(std::io::stderr(), "skipped: {name}: {why}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_test_guest_is_built_and_is_an_elf_file() {
        let path = guest("state");
        let program = fs::read(&path).unwrap();
        assert!(program.starts_with(b"\x7FELF"), "{}", path.display());
        let made = fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(guest("state"), path);
        assert_eq!(
            fs::metadata(&path).unwrap().modified().unwrap(),
            made,
            "built twice"
        );
    }

    #[test]
    fn every_source_file_is_listed_and_the_header_is_not() {
        let names = build::names();
        assert!(names.contains(&"loops".to_owned()) && names.contains(&"state".to_owned()));
        assert!(!names.contains(&"guest".to_owned()));
    }

    #[test]
    fn every_test_guest_is_used_by_a_test() {
        fn sources(directory: &Path, text: &mut String) {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if path.is_dir() && name != "target" && !name.starts_with('.') {
                    sources(&path, text);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    text.push_str(&fs::read_to_string(&path).unwrap());
                }
            }
        }
        let mut text = String::new();
        sources(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."),
            &mut text,
        );
        let names = build::names();
        let unused: Vec<_> = names
            .iter()
            .filter(|name| !text.contains(&format!("\"{name}\"")))
            .collect();
        assert!(unused.is_empty(), "{unused:?}");
    }
}
