//! The sample functions that the demonstration deploys, built from their sources.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use holm_model::ids::Name;

use crate::exit::Failure;
use crate::local::build::{Built, build};
use crate::local::project::MANIFEST_FILE;
use crate::output::Output;
use crate::remote::deploy::Release;

/// Where the sources are, seen from the workspace.
const FUNCTIONS: &str = "guest/functions";
/// The function in Rust, with the SDK.
const RUST: &str = "hello";
/// The unmodified HTTP server in C.
const C: &str = "hello-c";

/// Both sample functions.
#[derive(Clone, Debug)]
pub(crate) struct Samples {
    /// In Rust, with the SDK.
    pub(crate) rust: Built,
    /// An unmodified HTTP server in C.
    pub(crate) c: Built,
}

impl Samples {
    /// Finds and builds them.
    pub(crate) fn build(functions: Option<&Path>, output: Output) -> Result<Self, Failure> {
        let functions = match functions {
            Some(path) => path.to_owned(),
            None => find()?,
        };
        Ok(Samples {
            rust: build(&functions.join(RUST), output)?,
            c: build(&functions.join(C), output)?,
        })
    }
}

/// A release of `built` for `tenant` that greets with `label`, and crashes on every request if told
/// to.
pub(crate) fn release(built: &Built, tenant: &Name, label: &str, crash: bool) -> Release {
    let mut manifest = built.manifest.clone();
    manifest.function.tenant = Some(tenant.clone());
    manifest.env.insert("HELLO_VERSION".into(), label.into());
    if crash {
        manifest.env.insert("HELLO_CRASH".into(), "1".into());
    }
    Release {
        manifest,
        artifact: Arc::clone(&built.artifact),
        label: Some(label.into()),
        message: "made by `holm demo`".into(),
        author: String::new(),
        force: false,
    }
}

/// Looks in the present directory and those above it, then where this program was built.
fn find() -> Result<PathBuf, Failure> {
    let here = std::env::current_dir().unwrap_or_default();
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let places = here
        .ancestors()
        .chain(built)
        .map(|place| place.join(FUNCTIONS));
    places
        .into_iter()
        .find(|place| place.join(RUST).join(MANIFEST_FILE).is_file())
        .ok_or_else(|| {
            Failure::usage(format!(
                "the sample functions are not here: there is no {FUNCTIONS} in {} or above it",
                here.display()
            ))
            .hint("run this in Holm's source tree, or say where they are with --functions DIR")
        })
}
