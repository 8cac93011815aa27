//! `cargo xtask hardware-kvm`: the VMM's tests where KVM has hardware behind it.
//!
//! QEMU's TCG emulates AMD SVM with nested paging; Debian's kernel boots in it with `kvm-amd`, and
//! the statically linked test programs run against that machine's /dev/kvm. The semantics are those
//! of hardware, the speed is not. Nothing is installed: the kernel package is unpacked below
//! `target/hardware-kvm`, where everything else that this makes is too.

mod boot;
mod initramfs;
mod kernel;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::guests;

/// The target of the test programs; named explicitly, so that the flags below reach them alone and
/// not the build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The machine has no shared libraries.
const STATIC: &str =
    "target.x86_64-unknown-linux-gnu.rustflags=[\"-C\", \"target-feature=+crt-static\"]";

/// A test program, the name it is shown by, and its arguments.
pub(crate) struct TestProgram {
    name: String,
    path: PathBuf,
    arguments: Vec<String>,
}

/// A directory that the machine is given, and where it finds it.
pub(crate) struct Folder {
    pub(crate) from: PathBuf,
    pub(crate) to: &'static str,
}

/// Builds, boots and judges the tests of `packages`. An error if any test fails, if none runs, or if
/// the machine does not come to its end in `timeout`.
pub(crate) fn run(packages: &[String], timeout: Duration, test_arguments: &[String]) -> Result<()> {
    require_tools()?;
    let root = root()?;
    let mut programs = build_tests(&root, packages)?;
    for program in &mut programs {
        program.arguments = [&["--test-threads=1".to_owned()], test_arguments].concat();
    }
    let guests = root.join("guests");
    guests::build_all(&guests)?;
    let kinds = [
        ("glibc", "/guests/glibc"),
        ("musl", "/guests/musl"),
        ("functions", "/guests/functions"),
    ];
    let folders = kinds.map(|(kind, to)| Folder {
        from: guests.join(kind),
        to,
    });
    boot(&programs, &folders, timeout)
}

/// The same for one command of this workspace, which prints what it finds as a test program does.
pub(crate) fn run_command(
    package: &str,
    arguments: Vec<String>,
    folders: &[Folder],
    timeout: Duration,
) -> Result<()> {
    require_tools()?;
    let built = build(&root()?, "build", &["--package", package, "--bin", package])?;
    let (_, path) = built
        .into_iter()
        .find(|(target, _)| target.name == package)
        .with_context(|| format!("cargo built no program {package}"))?;
    let program = TestProgram {
        name: package.to_owned(),
        path,
        arguments,
    };
    boot(&[program], folders, timeout)
}

fn boot(programs: &[TestProgram], folders: &[Folder], timeout: Duration) -> Result<()> {
    let root = root()?;
    let kernel = kernel::fetch(&root)?;
    let initramfs = initramfs::make(&root, &kernel, programs, folders)?;
    boot::run(&kernel.image, &initramfs, programs, timeout)
}

/// Where everything is that this makes.
pub(crate) fn root() -> Result<PathBuf> {
    let root = workspace().join("target/hardware-kvm");
    fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
    Ok(root)
}

pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Fails with the command that installs what is missing.
fn require_tools() -> Result<()> {
    let tools = [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("cpio", "cpio"),
        ("dpkg", "dpkg"),
        ("apt-get", "apt"),
    ];
    let missing: Vec<&str> = tools
        .into_iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| package)
        .collect();
    ensure!(
        missing.is_empty(),
        "this needs programs that are not installed; on Debian run:\n  apt-get update && apt-get \
         install --no-install-recommends {}",
        missing.join(" ")
    );
    Ok(())
}

/// Where on `PATH` a program is.
fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

/// The lines of cargo's JSON that matter.
#[derive(Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Builds the test programs of packages.
fn build_tests(root: &Path, packages: &[String]) -> Result<Vec<TestProgram>> {
    let mut arguments = vec!["--no-run"];
    for package in packages {
        arguments.extend(["--package", package]);
    }
    let programs: Vec<TestProgram> = build(root, "test", &arguments)?
        .into_iter()
        .map(|(target, path)| {
            let kind = target.kind.first().map_or("test", String::as_str);
            TestProgram {
                name: format!("{kind}-{}", target.name),
                path,
                arguments: Vec::new(),
            }
        })
        .collect();
    if programs.is_empty() {
        bail!("cargo built no test program for {}", packages.join(", "));
    }
    Ok(programs)
}

/// Has cargo build programs that are statically linked.
fn build(root: &Path, verb: &str, arguments: &[&str]) -> Result<Vec<(Target, PathBuf)>> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(workspace())
        // These would replace the flags given by `--config`.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .args([verb, "--locked", "--message-format=json-render-diagnostics"])
        .args(["--target", TARGET, "--config", STATIC, "--target-dir"])
        .arg(root.join("build"))
        .args(arguments)
        .stderr(Stdio::inherit());
    let output = command.output().context("cannot start cargo")?;
    ensure!(
        output.status.success(),
        "what is to run there does not build; cargo's messages are above"
    );
    let mut programs = Vec::new();
    for line in output
        .stdout
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let message: Message =
            serde_json::from_slice(line).context("cannot read a message of cargo's")?;
        let (Some(path), Some(target), Some(profile)) =
            (message.executable, message.target, message.profile)
        else {
            continue;
        };
        // Tests come with the commands that they run, which are no tests themselves.
        if message.reason == "compiler-artifact" && profile.test == (verb == "test") {
            programs.push((target, path));
        }
    }
    Ok(programs)
}
