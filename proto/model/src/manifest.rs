//! `holm.toml`: what a function is allowed, and how it is built, placed and rolled out.
//!
//! A [`Manifest`] comes from a file ([`Manifest::from_toml`]) or inside a version's signed statement.
//! Both ways end in [`Manifest::check`], which holds every bound. What it refuses names the key, the
//! value and what is allowed; the author of the manifest is to blame for all of it.

mod file;
mod files;
pub mod gates;
pub mod network;
pub mod units;
pub mod wave;

pub use files::check_guest_path;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::Name;
use crate::limits::{
    DEFAULT_REQUESTS_PER_INSTANCE, MAX_ARGS, MAX_ARGS_BYTES, MAX_BAKE_MS, MAX_CONCURRENCY,
    MAX_COOLDOWN_MS, MAX_DEADLINE_MS, MAX_ENV_BYTES, MAX_ENV_VARIABLES, MAX_ERROR_PPM,
    MAX_GATE_REQUESTS, MAX_LABELS, MAX_MANIFEST_BYTES, MAX_MANIFEST_TEXT_BYTES, MAX_MEMORY_BYTES,
    MAX_PROBE_PATH_BYTES, MAX_REGION_BYTES, MAX_REGIONS, MAX_REQUEST_BODY_BYTES,
    MAX_REQUESTS_PER_INSTANCE, MAX_RESPONSE_BODY_BYTES, MAX_SCALE_MAX, MAX_SCALE_MIN,
    MAX_SKIP_AFTER_MS, MIN_COOLDOWN_MS, MIN_MEMORY_BYTES,
};
use crate::place::is_label;
use gates::Gates;
pub use network::Network;
use units::{format_bytes, format_millis};
pub use wave::{Amount, WaveRule};

/// The schema that this version of Holm reads.
pub const SCHEMA: u32 = 1;

/// A manifest whose every value has been checked. Travels inside a version's statement as JSON, in
/// canonical units (bytes, milliseconds, parts per million).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the manifest's schema: 1.
    pub schema: u32,
    /// `[function]`.
    pub function: Function,
    /// `[build]`; for the command only.
    #[serde(default)]
    pub build: Build,
    /// `[limits]`.
    pub limits: Limits,
    /// `[scale]`.
    pub scale: Scale,
    /// `[env]`: environment variables of the program.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// `[files]`: paths in the guest, and where in the project each is taken from; for the command only,
    /// since the artifact holds the files themselves.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    /// `[placement]`.
    #[serde(default)]
    pub placement: Placement,
    /// `[network]`.
    #[serde(default, skip_serializing_if = "Network::is_empty")]
    pub network: Network,
    /// `[rollout]`.
    pub rollout: Rollout,
}

/// `[function]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Function {
    /// Whose it is; may be left out of the file and given to the command.
    pub tenant: Option<Name>,
    /// Its name within the tenant.
    pub name: Name,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// The program's arguments, its own name first; without them that is the function's, and all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// The program finds its caller at its standard input and output, as inetd's `nowait` has it, and
    /// serves one request.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inetd: bool,
}

/// `[build]`: how `holm build` makes the program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// A shell command; without it the project's kind is detected.
    pub command: Option<String>,
    /// Path of the program it makes, relative to the manifest.
    pub output: Option<String>,
}

/// `[limits]` of one invocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Program memory of the guest.
    pub memory_bytes: u64,
    /// Wall time from acceptance to the last byte handed over; queueing and start included.
    pub deadline_ms: u64,
    /// CPU time of the vCPU.
    pub cpu_ms: u64,
    /// Largest request body.
    pub request_body_bytes: u64,
    /// Largest response body.
    pub response_body_bytes: u64,
    /// Most invocations at a time on one node.
    pub concurrency: u32,
}

/// How much state invocations share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// A pristine machine for every request.
    #[default]
    Request,
    /// A machine is kept between requests.
    Instance,
}

/// `[scale]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// `"request"` (default) or `"instance"`.
    #[serde(default)]
    pub isolation: Isolation,
    /// Slots to keep holding the snapshot on every node.
    #[serde(default)]
    pub min: u32,
    /// Most instances at a time on one node, if the manifest says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// After how long without need for them slots above `min` are given back, if ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cooldown_ms: Option<u64>,
    /// Most requests at a time in one instance that is kept, if the manifest says so.
    #[serde(default)]
    pub concurrency: Option<u32>,
}

impl Scale {
    /// Most requests at a time in one instance.
    pub fn requests_per_instance(&self) -> u32 {
        match (self.isolation, self.concurrency) {
            (Isolation::Request, _) => 1,
            (Isolation::Instance, said) => said.unwrap_or(DEFAULT_REQUESTS_PER_INSTANCE),
        }
    }

    fn check(&self) -> Result<(), ManifestError> {
        let min = self.min <= MAX_SCALE_MIN;
        require(min, "scale.min", self.min, || {
            format!("0 to {MAX_SCALE_MIN}")
        })?;
        if let Some(max) = self.max {
            let fits = (1..=MAX_SCALE_MAX).contains(&max);
            require(fits, "scale.max", max, || format!("1 to {MAX_SCALE_MAX}"))?;
            require(self.min <= max, "scale.min", self.min, || {
                format!("at most `scale.max`, which is {max}")
            })?;
        }
        if let Some(cooldown_ms) = self.cooldown_ms {
            let fits = (MIN_COOLDOWN_MS..=MAX_COOLDOWN_MS).contains(&cooldown_ms);
            require(fits, "scale.cooldown", cooldown_ms, || {
                format!("{MIN_COOLDOWN_MS} to {MAX_COOLDOWN_MS} ms: one second to a day")
            })?;
        }
        let most = match self.isolation {
            Isolation::Request => 1,
            Isolation::Instance => MAX_REQUESTS_PER_INSTANCE,
        };
        let concurrency = self.concurrency.unwrap_or(1);
        let key = "scale.concurrency";
        require(
            (1..=most).contains(&concurrency),
            key,
            concurrency,
            || {
                match self.isolation {
                Isolation::Request => {
                    "1 with `isolation = \"request\"`: each request has an instance of its own; how \
                     many there may be on a node says `limits.concurrency`"
                        .to_owned()
                }
                Isolation::Instance => format!("1 to {MAX_REQUESTS_PER_INSTANCE}"),
            }
            },
        )
    }
}

/// `[placement]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// Regions in which the function runs; empty means everywhere.
    #[serde(default)]
    pub regions: Vec<String>,
    /// Labels, written `key=value`, all of which a node must have for the function to run on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

/// `[rollout]`: how a new version reaches the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Which nodes have the new version after each wave; rising, ends with 100 %. The name in JSON is of the time
    /// when waves were percentages alone.
    #[serde(rename = "waves_percent")]
    pub waves: Vec<WaveRule>,
    /// How long a wave is watched before the next.
    pub bake_ms: u64,
    /// Path of the probe that a node sends to a new version before it takes traffic.
    pub probe_path: String,
    /// Failed invocations (crash, timeout, 5xx) of the new version that the gate lets pass, in
    /// parts per million.
    pub max_error_ppm: u32,
    /// Invocations that the gate of a wave has to see before it passes. 0: the bake time alone does.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub min_requests: u64,
    /// How many of a wave's nodes must serve the version for it to pass. None: one that can be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quorum: Option<Amount>,
    /// How long a node that is away is waited for. None: as long as the coordinator was told to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_after_ms: Option<u64>,
    /// `[rollout.gates]`.
    #[serde(default, skip_serializing_if = "Gates::is_default")]
    pub gates: Gates,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Why a manifest is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Longer than [`MAX_MANIFEST_BYTES`].
    #[error("the manifest has {0} bytes, more than the {MAX_MANIFEST_BYTES} allowed")]
    TooLarge(usize),
    /// Not TOML.
    #[error("line {line}: this is not TOML: {text}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// What the reader says.
        text: String,
    },
    /// A key that Holm does not know.
    #[error("line {line}: unknown key `{key}`; {suggestion}")]
    UnknownKey {
        /// Counted from 1.
        line: usize,
        /// With its section: `limits.memroy`.
        key: String,
        /// The nearest known key, or the known ones.
        suggestion: String,
    },
    /// Secrets, which a manifest is no place for: everybody who may deploy can read it.
    #[error(
        "line {line}: secrets are not for the manifest, which is in the clear wherever the function is; remove them, \
         and set them with `holm secrets set TENANT/FUNCTION NAME`"
    )]
    Secrets {
        /// Counted from 1.
        line: usize,
    },
    /// A key that has to be there.
    #[error("`{key}` is missing; add:\n{example}")]
    Missing {
        /// Which.
        key: &'static str,
        /// What to write.
        example: &'static str,
    },
    /// A value that is not allowed.
    #[error("{}`{key}` = {value} is not allowed; it must be {allowed}", at(.line))]
    Value {
        /// Counted from 1, when the manifest was read from a file.
        line: Option<usize>,
        /// With its section: `limits.memory`.
        key: String,
        /// As written, or in canonical units.
        value: String,
        /// What would be.
        allowed: String,
    },
}

fn at(line: &Option<usize>) -> String {
    line.map(|line| format!("line {line}: "))
        .unwrap_or_default()
}

/// As much of `text` as an error message can carry.
fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

impl Manifest {
    /// Reads and checks the text of a `holm.toml`.
    pub fn from_toml(text: &str) -> Result<Manifest, ManifestError> {
        if text.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLarge(text.len()));
        }
        let (manifest, places) = file::read(text)?;
        manifest.check().map_err(|error| places.locate(error))?;
        Ok(manifest)
    }

    /// Checks every value against its bounds.
    pub fn check(&self) -> Result<(), ManifestError> {
        let schema = self.schema == SCHEMA;
        require(schema, "schema", self.schema, || {
            format!("{SCHEMA}, the schema that this version of Holm reads")
        })?;
        text_fits("function.description", &self.function.description)?;
        for (key, text) in [
            ("command", &self.build.command),
            ("output", &self.build.output),
        ] {
            if let Some(text) = text {
                text_fits(&format!("build.{key}"), text)?;
                require(!text.is_empty(), &format!("build.{key}"), "\"\"", || {
                    "left out or not empty".to_owned()
                })?;
            }
        }
        check_args("function.args", &self.function.args)?;
        self.limits.check()?;
        let kept = self.scale.isolation == Isolation::Instance && self.function.inetd;
        require(!kept, "scale.isolation", "\"instance\"", || {
            "\"request\" with `inetd = true`: such a program ends with its request, and can serve no \
             second one"
                .to_owned()
        })?;
        self.scale.check()?;
        check_env(&self.env)?;
        files::check(&self.files)?;
        self.placement.check()?;
        self.network.check()?;
        self.rollout.check()
    }
}

impl Limits {
    fn check(&self) -> Result<(), ManifestError> {
        let bytes = |key: &str, value: u64, least: u64, most: u64| {
            require(
                (least..=most).contains(&value),
                key,
                format_bytes(value),
                || format!("{} to {}", format_bytes(least), format_bytes(most)),
            )
        };
        let millis = |key: &str, value: u64| {
            require(
                (1..=MAX_DEADLINE_MS).contains(&value),
                key,
                format_millis(value),
                || format!("1ms to {}", format_millis(MAX_DEADLINE_MS)),
            )
        };
        bytes(
            "limits.memory",
            self.memory_bytes,
            MIN_MEMORY_BYTES,
            MAX_MEMORY_BYTES,
        )?;
        let page = holm_hostcall::PAGE_BYTES;
        let pages = self.memory_bytes.is_multiple_of(page);
        require(pages, "limits.memory", self.memory_bytes, || {
            format!("a multiple of {page}B")
        })?;
        millis("limits.deadline", self.deadline_ms)?;
        millis("limits.cpu", self.cpu_ms)?;
        bytes(
            "limits.request_body",
            self.request_body_bytes,
            0,
            MAX_REQUEST_BODY_BYTES,
        )?;
        bytes(
            "limits.response_body",
            self.response_body_bytes,
            0,
            MAX_RESPONSE_BODY_BYTES,
        )?;
        let concurrency = (1..=MAX_CONCURRENCY).contains(&self.concurrency);
        require(concurrency, "limits.concurrency", self.concurrency, || {
            format!("1 to {MAX_CONCURRENCY}")
        })
    }
}

impl Placement {
    /// Whether the function may run on a node in `region` that has these labels.
    pub fn allows(&self, region: &str, labels: &BTreeMap<String, String>) -> bool {
        let has = |wanted: &String| {
            let (key, value) = wanted.split_once('=').unwrap_or((wanted, ""));
            labels.get(key).is_some_and(|own| own == value)
        };
        (self.regions.is_empty() || self.regions.iter().any(|allowed| allowed == region))
            && self.labels.iter().all(has)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let key = "placement.labels";
        require(
            self.labels.len() <= MAX_LABELS,
            key,
            self.labels.len(),
            || format!("at most {MAX_LABELS} labels"),
        )?;
        for label in &self.labels {
            let good = label
                .split_once('=')
                .is_some_and(|(label, value)| is_label(label, value));
            require(good, key, format!("\"{}\"", cut(label)), || {
                "labels, such as \"disk=ssd\"".to_owned()
            })?;
        }
        let key = "placement.regions";
        require(
            self.regions.len() <= MAX_REGIONS,
            key,
            self.regions.len(),
            || format!("at most {MAX_REGIONS} regions"),
        )?;
        for region in &self.regions {
            let good = (1..=MAX_REGION_BYTES).contains(&region.len())
                && region.bytes().all(|byte| byte.is_ascii_graphic());
            require(good, key, format!("\"{}\"", cut(region)), || {
                format!("names of 1 to {MAX_REGION_BYTES} visible ASCII characters")
            })?;
        }
        Ok(())
    }
}

impl Rollout {
    fn check(&self) -> Result<(), ManifestError> {
        wave::check_waves(&self.waves).map_err(|error| ManifestError::Value {
            line: None,
            key: "rollout.waves".to_owned(),
            value: error.text,
            allowed: error.expected,
        })?;
        let skip_after_ms = self.skip_after_ms.unwrap_or(0);
        require(
            skip_after_ms <= MAX_SKIP_AFTER_MS,
            "rollout.skip_after",
            format_millis(skip_after_ms),
            || format!("0ms to {}", format_millis(MAX_SKIP_AFTER_MS)),
        )?;
        self.gates.check()?;
        require(
            self.bake_ms <= MAX_BAKE_MS,
            "rollout.bake",
            format_millis(self.bake_ms),
            || format!("0ms to {}", format_millis(MAX_BAKE_MS)),
        )?;
        let path = &self.probe_path;
        let good = path.starts_with('/')
            && path.len() <= MAX_PROBE_PATH_BYTES
            && path
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'#');
        require(good, "rollout.probe", format!("\"{}\"", cut(path)), || {
            format!(
                "a path that begins with /, of at most {MAX_PROBE_PATH_BYTES} visible ASCII \
                 characters without #"
            )
        })?;
        let ppm = self.max_error_ppm;
        require(
            ppm <= MAX_ERROR_PPM,
            "rollout.max_error_rate",
            format!("{ppm}ppm"),
            || "at most 100%".to_owned(),
        )?;
        require(
            self.min_requests <= MAX_GATE_REQUESTS,
            "rollout.min_requests",
            self.min_requests,
            || format!("at most {MAX_GATE_REQUESTS}"),
        )
    }
}

fn check_env(env: &BTreeMap<String, String>) -> Result<(), ManifestError> {
    require(
        env.len() <= MAX_ENV_VARIABLES,
        "env",
        format!("{} variables", env.len()),
        || format!("at most {MAX_ENV_VARIABLES} variables"),
    )?;
    let total: usize = env
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    require(
        total <= MAX_ENV_BYTES,
        "env",
        format!("{total} bytes"),
        || format!("at most {MAX_ENV_BYTES} bytes of names and values together"),
    )?;
    for (name, value) in env {
        let key = format!("env.{}", cut(name));
        check_variable(name, value).map_err(|allowed| ManifestError::Value {
            line: None,
            key,
            value: format!("\"{}\"", cut(value)),
            allowed,
        })?;
    }
    Ok(())
}

/// Checks one environment variable of a function; the error says what would be allowed.
pub fn check_variable(name: &str, value: &str) -> Result<(), String> {
    if name.is_empty() || name.contains(|c: char| c == '=' || c.is_control()) {
        return Err("named with at least one character, without = and control characters".into());
    }
    if name == "PORT" || name.starts_with("HOLM_") {
        return Err("named otherwise: PORT and HOLM_* are set by Holm".into());
    }
    if value.contains('\0') {
        return Err("text without NUL characters".into());
    }
    Ok(())
}

/// Checks the arguments of a program.
fn check_args(key: &str, args: &[String]) -> Result<(), ManifestError> {
    let total: usize = args.iter().map(String::len).sum();
    let good = args.len() <= MAX_ARGS
        && total <= MAX_ARGS_BYTES
        && args.iter().all(|text| !text.contains('\0'))
        && args.first().is_none_or(|name| !name.is_empty());
    require(good, key, cut(&format!("{args:?}")), || {
        format!(
            "at most {MAX_ARGS} texts of {MAX_ARGS_BYTES} bytes together, without NUL characters, the \
             first of them the program's name"
        )
    })
}

fn text_fits(key: &str, text: &str) -> Result<(), ManifestError> {
    let good = text.len() <= MAX_MANIFEST_TEXT_BYTES && !text.contains('\0');
    require(good, key, format!("\"{}\"", cut(text)), || {
        format!("text of at most {MAX_MANIFEST_TEXT_BYTES} bytes without NUL characters")
    })
}

fn require(
    good: bool,
    key: &str,
    value: impl ToString,
    allowed: impl FnOnce() -> String,
) -> Result<(), ManifestError> {
    match good {
        true => Ok(()),
        false => Err(ManifestError::Value {
            line: None,
            key: key.to_owned(),
            value: value.to_string(),
            allowed: allowed(),
        }),
    }
}

#[cfg(test)]
mod tests;
