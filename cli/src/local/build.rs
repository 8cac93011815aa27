//! `holm build`: makes a project's program and checks that Holm can run it.
//!
//! How it is made, in this order: `[build] command` of the manifest; cargo, if there is a
//! `Cargo.toml`; make, if there is a `Makefile`. The result is read back and refused if it is not a
//! static x86-64 program; the files of `[files]` are added to it. `holm dev` and `holm deploy` build through here as well.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use holm_model::bundle::Bundle;
use holm_model::ids::Digest;
use holm_model::manifest::Manifest;
use holm_model::manifest::units::format_bytes;
use serde::Serialize;

use crate::exit::Failure;
use crate::local::files;
use crate::local::project::{self, Project};
use crate::output::Output;

/// The target that Rust functions are built for.
const RUST_TARGET: &str = "x86_64-unknown-linux-gnu";
const CRT_STATIC: &str = "target-feature=+crt-static";
/// As much of a builder's messages as an error carries.
const MAX_TAIL_BYTES: usize = 16 << 10;

/// Options of `holm build`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The project's directory.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
}

/// A project's program, built and checked.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    /// The project's manifest.
    pub(crate) manifest: Manifest,
    /// Where the program is.
    pub(crate) path: PathBuf,
    /// The program and its files.
    pub(crate) bundle: Bundle,
    /// What is deployed: the bytes of both.
    pub(crate) artifact: Arc<[u8]>,
    /// The artifact's digest.
    pub(crate) digest: Digest,
}

#[derive(Serialize)]
struct Report<'a> {
    function: &'a str,
    path: String,
    bytes: usize,
    files: u32,
    artifact_bytes: usize,
    digest: Digest,
    kind: &'static str,
    least_memory_bytes: u64,
}

/// Builds and reports.
pub(crate) fn execute(args: Args, output: Output) -> Result<(), Failure> {
    let built = build(&args.dir, output)?;
    let report = Report {
        function: built.manifest.function.name.as_str(),
        path: built.path.display().to_string(),
        bytes: built.bundle.program.bytes.len(),
        files: built.bundle.files.count(),
        artifact_bytes: built.artifact.len(),
        digest: built.digest,
        kind: if built.bundle.program.relocatable {
            "static PIE"
        } else {
            "static executable"
        },
        least_memory_bytes: built.bundle.program.least_memory_bytes(),
    };
    output.result(&report, || {
        let Report {
            path,
            bytes,
            files,
            artifact_bytes,
            digest,
            kind,
            ..
        } = &report;
        let files = match files {
            0 => String::new(),
            files => format!("with {files} files and directories {artifact_bytes} bytes\n"),
        };
        format!("{path}\n{bytes} bytes, {kind}\n{files}{digest}")
    })
}

/// Builds the project in `dir` and checks the program. What the builder says goes to stderr.
pub(crate) fn build(dir: &Path, output: Output) -> Result<Built, Failure> {
    let Project { dir, manifest } = Project::open(dir)?;
    let path = make(&dir, &manifest, output)?;
    let program = project::read_program(&path)?;
    project::check_room(&program, manifest.limits.memory_bytes)
        .map_err(|error| Failure::usage(error).hint("Raise `memory` in [limits] of holm.toml."))?;
    let files = files::of_project(&dir, &manifest)?;
    let bundle = Bundle { program, files };
    let artifact = bundle.to_bytes().map_err(Failure::usage)?;
    let digest = Digest::of(&artifact);
    Ok(Built {
        manifest,
        path,
        bundle,
        artifact,
        digest,
    })
}

/// Runs the builder and says where the program is.
fn make(dir: &Path, manifest: &Manifest, output: Output) -> Result<PathBuf, Failure> {
    let declared = manifest.build.output.as_deref();
    if let Some(command) = &manifest.build.command {
        let Some(declared) = declared else {
            return Err(Failure::usage(
                "holm.toml has a build command, but does not say which file it makes",
            )
            .hint("Add `output = \"PATH\"` to [build]."));
        };
        output.note(format_args!("running `{command}`"));
        run(
            Command::new("sh").arg("-c").arg(command).current_dir(dir),
            output,
        )?;
        return existing(dir, declared, "the build command");
    }
    if dir.join("Cargo.toml").is_file() {
        return cargo(dir, manifest, output);
    }
    if ["GNUmakefile", "makefile", "Makefile"]
        .iter()
        .any(|name| dir.join(name).is_file())
    {
        output.note("running `make`");
        run(Command::new("make").current_dir(dir), output)?;
        let name = manifest.function.name.as_str();
        return existing(dir, declared.unwrap_or(name), "make");
    }
    let failure = Failure::usage(format!(
        "{} has no Cargo.toml and no Makefile, and holm.toml has no build command",
        dir.display()
    ));
    Err(match dir.join("go.mod").is_file() {
        true => failure.hint(
            "For Go, add to holm.toml:\n[build]\ncommand = \"CGO_ENABLED=0 go build -o main .\"\n\
             output = \"main\"",
        ),
        false => failure.hint(
            "Add to holm.toml, with your own command:\n[build]\ncommand = \"cc -static -O2 -o main \
             main.c\"\noutput = \"main\"",
        ),
    })
}

fn existing(dir: &Path, file: &str, maker: &str) -> Result<PathBuf, Failure> {
    let path = dir.join(file);
    match path.is_file() {
        true => Ok(path),
        false => Err(Failure::usage(format!(
            "{maker} succeeded, but did not make {}",
            path.display()
        ))
        .hint("Say in holm.toml which file it makes: `output = \"PATH\"` in [build].")),
    }
}

/// Builds a Rust project statically and finds its binary among cargo's messages.
fn cargo(dir: &Path, manifest: &Manifest, output: Output) -> Result<PathBuf, Failure> {
    output.note("running `cargo build --release`, linked statically");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--release", "--target", RUST_TARGET])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(dir);
    link_statically(&mut command, |name| std::env::var_os(name));
    let binaries = start(&mut command, Stdio::piped(), output)?.finish(binaries)?;
    let wanted = manifest
        .build
        .output
        .as_deref()
        .and_then(|path| Path::new(path).file_name());
    choose(binaries, wanted, manifest.function.name.as_str())
}

/// Asks for a static program in addition to whatever flags the author uses. Cargo takes flags from
/// one place only, so ours go to where the author's are.
fn link_statically(command: &mut Command, variable: impl Fn(&str) -> Option<OsString>) {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    if let Some(mut flags) = set("CARGO_ENCODED_RUSTFLAGS") {
        flags.push("\x1f-C\x1f");
        flags.push(CRT_STATIC);
        command.env("CARGO_ENCODED_RUSTFLAGS", flags);
    } else if let Some(mut flags) = set("RUSTFLAGS") {
        flags.push(" -C ");
        flags.push(CRT_STATIC);
        command.env("RUSTFLAGS", flags);
    } else {
        command.arg("--config");
        command.arg(format!(
            "target.{RUST_TARGET}.rustflags=[\"-C\", \"{CRT_STATIC}\"]"
        ));
    }
}

/// The binaries that cargo's JSON messages name.
fn binaries(stdout: Box<dyn Read>) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        let Ok(message) = serde_json::from_str::<serde_json::Value>(&line) else {
            continue;
        };
        let kinds = message["target"]["kind"].as_array();
        let binary = kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == "bin"));
        if let (true, Some(path)) = (binary, message["executable"].as_str()) {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

/// The binary that is the function: the only one, or the one named like the output or function.
fn choose(
    binaries: Vec<PathBuf>,
    wanted: Option<&OsStr>,
    function: &str,
) -> Result<PathBuf, Failure> {
    let wanted = wanted.unwrap_or(OsStr::new(function));
    if let Some(path) = binaries
        .iter()
        .find(|path| path.file_name() == Some(wanted))
    {
        return Ok(path.clone());
    }
    match binaries.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(
            Failure::usage("the cargo project has no binary; a function needs a `main`")
                .hint("Add src/main.rs, or go to the right package of the workspace."),
        ),
        several => {
            let mut names = String::new();
            for path in several {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                // Writing to a String cannot fail.
                let _ = write!(names, " `{name}`");
            }
            Err(
                Failure::usage(format!("the cargo project has several binaries:{names}"))
                    .hint("Say which one is the function: `output = \"NAME\"` in [build]."),
            )
        }
    }
}

/// Runs a builder whose stdout is for people.
fn run(command: &mut Command, output: Output) -> Result<(), Failure> {
    let stdout = match output.json || output.quiet {
        true => Stdio::null(),
        false => match std::io::stderr().as_fd().try_clone_to_owned() {
            Ok(stderr) => stderr.into(),
            Err(_) => Stdio::null(),
        },
    };
    start(command, stdout, output)?.finish(|_| Ok(()))
}

/// A builder at work.
struct Builder {
    name: String,
    child: std::process::Child,
    /// Collects the end of stderr, where that is not shown as it comes.
    tail: Option<std::thread::JoinHandle<Vec<u8>>>,
}

fn start(command: &mut Command, stdout: Stdio, output: Output) -> Result<Builder, Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let silent = output.json || output.quiet;
    command.stdin(Stdio::null()).stdout(stdout);
    command.stderr(if silent {
        Stdio::piped()
    } else {
        Stdio::inherit()
    });
    let mut child = command.spawn().map_err(|error| {
        Failure::other(format!(
            "`{name}`, which builds this project, cannot be started: {error}"
        ))
        .hint(format!(
            "Install {name}, or set `command` in [build] of holm.toml."
        ))
    })?;
    let stderr = child.stderr.take();
    let tail = stderr.map(|stderr| std::thread::spawn(move || last_bytes(stderr)));
    Ok(Builder { name, child, tail })
}

impl Builder {
    /// Lets `read` have the builder's stdout, then waits for its end.
    fn finish<T>(
        mut self,
        read: impl FnOnce(Box<dyn Read>) -> std::io::Result<T>,
    ) -> Result<T, Failure> {
        let stdout: Box<dyn Read> = match self.child.stdout.take() {
            Some(stdout) => Box::new(stdout),
            None => Box::new(std::io::empty()),
        };
        let result = read(stdout);
        let status = self.child.wait();
        let tail = self
            .tail
            .and_then(|tail| tail.join().ok())
            .unwrap_or_default();
        let failed = |what: String| {
            let failure = Failure::other(format!("the build failed: `{}` {what}", self.name));
            match tail.is_empty() {
                true => failure,
                false => failure.hint(String::from_utf8_lossy(&tail).trim_end()),
            }
        };
        let status = status.map_err(|error| failed(format!("cannot be waited for: {error}")))?;
        if !status.success() {
            return Err(failed(format!("ended with {status}")));
        }
        result.map_err(|error| failed(format!("cannot be understood: {error}")))
    }
}

/// Reads to the end and keeps the last bytes.
fn last_bytes(mut from: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        kept.extend_from_slice(chunk.get(..count).unwrap_or_default());
        let surplus = kept.len().saturating_sub(MAX_TAIL_BYTES);
        kept.drain(..surplus);
    }
    kept
}

/// For notes: what was built.
pub(crate) fn describe(built: &Built) -> String {
    format!(
        "{}, {}",
        built.path.display(),
        format_bytes(built.artifact.len() as u64)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(name: &'static str, value: &'static str) -> (Vec<String>, Vec<(String, String)>) {
        let mut command = Command::new("cargo");
        link_statically(&mut command, |asked| (asked == name).then(|| value.into()));
        let text = |text: &OsStr| text.to_string_lossy().into_owned();
        let set = command
            .get_envs()
            .map(|(name, value)| (text(name), text(value.unwrap())));
        (command.get_args().map(text).collect(), set.collect())
    }

    #[test]
    fn static_linking_is_added_to_the_authors_own_flags() {
        let (args, set) = flags("RUSTFLAGS", "-C opt-level=3");
        assert_eq!(args, [""; 0]);
        assert_eq!(
            set,
            [(
                "RUSTFLAGS".into(),
                "-C opt-level=3 -C target-feature=+crt-static".into()
            )]
        );
        let (_, set) = flags("CARGO_ENCODED_RUSTFLAGS", "-Cx");
        assert_eq!(set[0].1, "-Cx\x1f-C\x1ftarget-feature=+crt-static");
        let (args, set) = flags("NONE", "");
        assert!(
            args[1].contains("crt-static") && set.is_empty(),
            "{args:?} {set:?}"
        );
    }

    #[test]
    fn binaries_are_found_in_cargos_messages_and_libraries_are_not() {
        let text = concat!(
            "not json\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"]},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["bin"]},"executable":"/t/a"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
            "\n",
        );
        assert_eq!(
            binaries(Box::new(text.as_bytes())).unwrap(),
            [PathBuf::from("/t/a")]
        );
    }

    #[test]
    fn of_several_binaries_the_one_with_the_functions_name_is_taken() {
        let two = || vec![PathBuf::from("/t/a"), PathBuf::from("/t/b")];
        assert_eq!(choose(two(), None, "b").unwrap(), Path::new("/t/b"));
        assert_eq!(
            choose(two(), Some(OsStr::new("a")), "b").unwrap(),
            Path::new("/t/a")
        );
        assert_eq!(
            choose(vec!["/t/a".into()], None, "x").unwrap(),
            Path::new("/t/a")
        );
        let text = choose(two(), None, "x").unwrap_err().to_string();
        assert!(
            text.contains("`a` `b`") && text.contains("[build]"),
            "{text}"
        );
        assert!(choose(vec![], None, "x").is_err());
    }

    #[test]
    fn of_long_messages_the_end_is_kept() {
        let mut long = vec![b'x'; 100_000];
        long.extend(b"the reason");
        let kept = last_bytes(&long[..]);
        assert_eq!(kept.len(), MAX_TAIL_BYTES);
        assert!(kept.ends_with(b"the reason"));
    }
}
