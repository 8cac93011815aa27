//! `holm init`: a function project that builds, runs here and deploys as it is.
//!
//! Writes a handful of files and overwrites none. The Rust project uses Holm's SDK by path, as the
//! SDK is not on crates.io: `--sdk-path`, else `HOLM_SDK_PATH`, else the source tree that this
//! command was built from. Where none of them is there, the project is a plain HTTP server on the
//! standard library, which is a function as well.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use holm_model::ids::Name;
use serde::Serialize;

use crate::exit::Failure;
use crate::output::Output;

/// Options of `holm init`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The function's name; that of the directory if left out.
    name: Option<Name>,
    /// The language to start with.
    #[arg(long, value_enum, default_value_t = Language::Rust)]
    lang: Language,
    /// Where to put the project: a new directory with the function's name, or here if no name is
    /// given.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where Holm's Rust SDK is: the directory with its Cargo.toml.
    #[arg(long, value_name = "PATH", env = "HOLM_SDK_PATH")]
    sdk_path: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Language {
    /// With Holm's SDK.
    Rust,
    /// A small HTTP server.
    C,
}

#[derive(Serialize)]
struct Report {
    function: Name,
    language: Language,
    directory: String,
    files: Vec<&'static str>,
    /// The SDK the project uses, if it does.
    sdk: Option<String>,
}

/// Writes the project.
pub(crate) fn execute(args: Args, output: Output) -> Result<(), Failure> {
    let dir = match (&args.dir, &args.name) {
        (Some(dir), _) => dir.clone(),
        (None, Some(name)) => PathBuf::from(name.as_str()),
        (None, None) => PathBuf::from("."),
    };
    let name = match args.name {
        Some(name) => name,
        None => name_of(&dir)?,
    };
    let sdk = match args.lang {
        Language::Rust => find_sdk(args.sdk_path.as_deref())?,
        Language::C => None,
    };
    if args.lang == Language::Rust && sdk.is_none() {
        output.warn(
            "Holm's Rust SDK is not at hand, so the project is a plain HTTP server; name the SDK \
             with --sdk-path to use it",
        );
    }
    let files = files(args.lang, &name, sdk.as_deref());
    write(&dir, &files)?;
    let report = Report {
        function: name,
        language: args.lang,
        directory: dir.display().to_string(),
        files: files.iter().map(|(path, _)| *path).collect(),
        sdk: sdk.map(|path| path.display().to_string()),
    };
    output.result(&report, || {
        let Report {
            function,
            directory,
            files,
            ..
        } = &report;
        let go = match directory.as_str() {
            "." => String::new(),
            directory => format!("`cd {directory}`, then "),
        };
        format!(
            "Made function `{function}` in {directory}: {}.\n\
             Next: {go}`holm dev` to try it, `holm deploy` to put it on the fleet.",
            files.join(", ")
        )
    })
}

fn name_of(dir: &Path) -> Result<Name, Failure> {
    let whole = std::path::absolute(dir)
        .map_err(|error| Failure::other(format!("{}: {error}", dir.display())))?;
    let name = whole.file_name().unwrap_or_default().to_string_lossy();
    name.parse().map_err(|error| {
        Failure::usage(format!(
            "the directory's name cannot be the function's: {error}"
        ))
        .hint("Give the function a name: `holm init NAME`.")
    })
}

/// The SDK's directory: the one that was asked for, which has to be there, or the one of the source
/// tree that this command was built from, if it still is.
fn find_sdk(asked: Option<&Path>) -> Result<Option<PathBuf>, Failure> {
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest/sdk");
    let is_sdk = |dir: &Path| {
        fs::read_to_string(dir.join("Cargo.toml"))
            .is_ok_and(|text| text.contains("name = \"holm-sdk\""))
    };
    let found = match asked {
        Some(dir) if !is_sdk(dir) => {
            return Err(Failure::usage(format!(
                "{} is not Holm's Rust SDK: it has no Cargo.toml of holm-sdk",
                dir.display()
            ))
            .hint("It is guest/sdk in Holm's source tree."));
        }
        Some(dir) => dir,
        None if is_sdk(&built_from) => &built_from,
        None => return Ok(None),
    };
    let whole = found
        .canonicalize()
        .map_err(|error| Failure::other(format!("{}: {error}", found.display())))?;
    Ok(Some(whole))
}

fn files(language: Language, name: &Name, sdk: Option<&Path>) -> Vec<(&'static str, String)> {
    let fill = |template: &str| {
        let sdk = sdk
            .map(|path| toml_text(&path.to_string_lossy()))
            .unwrap_or_default();
        template
            .replace("{{name}}", name.as_str())
            .replace("{{sdk}}", &sdk)
    };
    let template = match (language, sdk) {
        (Language::C, _) => &[
            ("holm.toml", include_str!("../../templates/c/holm.toml")),
            ("main.c", include_str!("../../templates/c/main.c")),
            ("Makefile", include_str!("../../templates/c/Makefile")),
            (".gitignore", include_str!("../../templates/c/gitignore")),
        ],
        (Language::Rust, Some(_)) => &[
            ("holm.toml", include_str!("../../templates/rust/holm.toml")),
            (
                "Cargo.toml",
                include_str!("../../templates/rust/Cargo.toml.template"),
            ),
            (
                "src/main.rs",
                include_str!("../../templates/rust/main.rs.template"),
            ),
            (".gitignore", include_str!("../../templates/rust/gitignore")),
        ],
        (Language::Rust, None) => &[
            ("holm.toml", include_str!("../../templates/rust/holm.toml")),
            (
                "Cargo.toml",
                include_str!("../../templates/rust-plain/Cargo.toml.template"),
            ),
            (
                "src/main.rs",
                include_str!("../../templates/rust-plain/main.rs.template"),
            ),
            (".gitignore", include_str!("../../templates/rust/gitignore")),
        ],
    };
    template
        .iter()
        .map(|(path, text)| (*path, fill(text)))
        .collect()
}

/// A text as a TOML literal, without the quotes around it.
fn toml_text(text: &str) -> String {
    let escaped = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\u{:04X}", u32::from(c)),
        c => c.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// Writes all files, or none if one of them is there already.
fn write(dir: &Path, files: &[(&'static str, String)]) -> Result<(), Failure> {
    let there: Vec<&str> = files
        .iter()
        .map(|(path, _)| *path)
        .filter(|path| dir.join(path).symlink_metadata().is_ok())
        .collect();
    if !there.is_empty() {
        return Err(Failure::usage(format!(
            "{} has {} already, which would be overwritten",
            dir.display(),
            there.join(", ")
        ))
        .hint("Choose another directory with --dir, or move these files away."));
    }
    for (path, text) in files {
        let path = dir.join(path);
        let written = path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| OpenOptions::new().write(true).create_new(true).open(&path))
            .and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|error| {
            Failure::other(format!("{} cannot be written: {error}", path.display()))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use holm_model::manifest::Manifest;

    #[test]
    fn every_template_has_a_manifest_that_is_accepted_and_no_blanks_left() {
        let name: Name = "my-function".parse().unwrap();
        let sdk = Path::new("/a \"quoted\"/sdk");
        for (language, sdk) in [
            (Language::C, None),
            (Language::Rust, None),
            (Language::Rust, Some(sdk)),
        ] {
            let files = files(language, &name, sdk);
            assert_eq!(files[0].0, "holm.toml");
            let manifest = Manifest::from_toml(&files[0].1).unwrap();
            assert_eq!(manifest.function.name, name);
            for (path, text) in files {
                assert!(!text.contains("{{"), "{path}: {text}");
                if path == "Cargo.toml" {
                    let table: toml::Table = text.parse().unwrap();
                    let path = table
                        .get("dependencies")
                        .and_then(|d| d.get("holm-sdk")?.get("path"));
                    assert_eq!(path.and_then(|p| p.as_str()), sdk.and_then(Path::to_str));
                }
            }
        }
    }
}
