//! Reading `holm.toml`: from text to values, with the place of each so that errors can point at it.
//!
//! Unknown keys are refused, with the nearest known one. Bounds are not checked here but in
//! [`Manifest::check`], which manifests from elsewhere pass too.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::gates::Gates;
use super::units::{self, UnitError};
use super::wave::WaveError;
use super::{
    Amount, Build, Function, Isolation, Limits, Manifest, ManifestError, Network, Placement,
    Rollout, SCHEMA, Scale, WaveRule,
};
use crate::ids::Name;
use crate::limits::{
    DEFAULT_BAKE_MS, DEFAULT_CONCURRENCY, DEFAULT_DEADLINE_MS, DEFAULT_MAX_ERROR_PPM,
    DEFAULT_MEMORY_BYTES, DEFAULT_REQUEST_BODY_BYTES, DEFAULT_RESPONSE_BODY_BYTES,
    DEFAULT_WAVES_PERCENT,
};

/// The sections and their keys. `[env]` and `[files]` have none of their own: every key is a variable, or a
/// path.
const SECTIONS: [(&str, &[&str]); 11] = [
    (
        "function",
        &["name", "tenant", "description", "args", "inetd"],
    ),
    ("build", &["command", "output"]),
    (
        "limits",
        &[
            "memory",
            "deadline",
            "cpu",
            "request_body",
            "response_body",
            "concurrency",
        ],
    ),
    (
        "scale",
        &["isolation", "min", "max", "cooldown", "concurrency"],
    ),
    ("env", &[]),
    ("files", &[]),
    ("placement", &["labels", "regions"]),
    (
        "rollout",
        &[
            "waves",
            "bake",
            "probe",
            "max_error_rate",
            "min_requests",
            "quorum",
            "skip_after",
            "gates",
        ],
    ),
    (
        "rollout.gates",
        &[
            "worse_by",
            "max_crash_rate",
            "slower_by",
            "slower_at_least",
            "false_alarms",
        ],
    ),
    ("network", &["allow"]),
    ("secrets", &[]),
];

/// Sections that are known to be refused.
const REFUSED: [&str; 1] = ["secrets"];

/// Memory is given out in pages of this many bytes.
const PAGE_BYTES: u64 = holm_hostcall::PAGE_BYTES;

/// Where in the text each value stands, by dotted key.
pub(super) struct Places<'t> {
    text: &'t str,
    spans: BTreeMap<String, Range<usize>>,
}

impl Places<'_> {
    /// Adds line and original text to an error about a value.
    pub(super) fn locate(&self, error: ManifestError) -> ManifestError {
        match error {
            ManifestError::Value {
                key,
                value,
                allowed,
                ..
            } => {
                let span = self.spans.get(&key);
                let line = span.map(|span| self.line(span.start));
                let written = span.and_then(|span| self.text.get(span.clone()));
                let value = written.map_or(value, super::cut);
                ManifestError::Value {
                    line,
                    key,
                    value,
                    allowed,
                }
            }
            other => other,
        }
    }

    fn line(&self, offset: usize) -> usize {
        line_of(self.text, offset)
    }
}

/// The line, counted from 1, that holds byte `offset`.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
}

/// Reads every value, with defaults for what is not there.
pub(super) fn read(text: &str) -> Result<(Manifest, Places<'_>), ManifestError> {
    let document = DeTable::parse(text).map_err(|error| ManifestError::Syntax {
        line: error.span().map_or(1, |span| line_of(text, span.start)),
        text: error.message().trim().to_owned(),
    })?;
    let mut places = Places {
        text,
        spans: BTreeMap::new(),
    };
    let root = document.get_ref();
    refuse_unknown_keys(root, &places)?;

    let schema = match root.get("schema") {
        None => {
            return Err(ManifestError::Missing {
                key: "schema",
                example: "schema = 1",
            });
        }
        Some(value) => {
            let mut section = Section {
                name: "",
                table: Some(root),
                places: &mut places,
            };
            section.place("schema", value);
            section
                .integer("schema", "the whole number 1")?
                .unwrap_or(u64::from(SCHEMA))
        }
    };

    Section::open(root, "secrets", &mut places)?.refuse_secrets()?;

    let mut function = Section::open(root, "function", &mut places)?;
    let name = function.name("name")?.ok_or(ManifestError::Missing {
        key: "function.name",
        example: "[function]\nname = \"hello\"",
    })?;
    let tenant = function.name("tenant")?;
    let description = function.text("description")?.unwrap_or_default();
    let args = function
        .texts("args", "a list of texts, for example [\"httpd\", \"-i\"]")?
        .unwrap_or_default();
    let inetd = function.flag("inetd")?.unwrap_or_default();
    let function = Function {
        tenant,
        name,
        description,
        args,
        inetd,
    };

    let mut build = Section::open(root, "build", &mut places)?;
    let build = Build {
        command: build.text("command")?,
        output: build.text("output")?,
    };

    let mut limits = Section::open(root, "limits", &mut places)?;
    let deadline_ms = limits.millis("deadline")?.unwrap_or(DEFAULT_DEADLINE_MS);
    let memory_bytes = limits.bytes("memory")?.unwrap_or(DEFAULT_MEMORY_BYTES);
    let limits = Limits {
        // Whoever writes 100MB gets the last page whole.
        memory_bytes: memory_bytes
            .checked_next_multiple_of(PAGE_BYTES)
            .unwrap_or(memory_bytes),
        deadline_ms,
        cpu_ms: limits.millis("cpu")?.unwrap_or(deadline_ms),
        request_body_bytes: limits
            .bytes("request_body")?
            .unwrap_or(DEFAULT_REQUEST_BODY_BYTES),
        response_body_bytes: limits
            .bytes("response_body")?
            .unwrap_or(DEFAULT_RESPONSE_BODY_BYTES),
        concurrency: limits.count("concurrency")?.unwrap_or(DEFAULT_CONCURRENCY),
    };

    let mut scale = Section::open(root, "scale", &mut places)?;
    let isolation = scale.isolation()?;
    let scale = Scale {
        isolation,
        min: scale.count("min")?.unwrap_or(0),
        max: scale.count("max")?,
        cooldown_ms: scale.millis("cooldown")?,
        concurrency: scale.count("concurrency")?,
    };

    let env = Section::open(root, "env", &mut places)?.pairs()?;
    let files = Section::open(root, "files", &mut places)?.pairs()?;
    let mut placement = Section::open(root, "placement", &mut places)?;
    let placement = Placement {
        regions: placement
            .texts("regions", "a list of texts, for example [\"eu-central\"]")?
            .unwrap_or_default(),
        labels: placement
            .texts("labels", "a list of texts, for example [\"disk=ssd\"]")?
            .unwrap_or_default(),
    };

    let allow = Section::open(root, "network", &mut places)?
        .texts(
            "allow",
            "a list of texts, for example [\"api.example.com:443\"]",
        )?
        .unwrap_or_default();

    let mut rollout = Section::open(root, "rollout", &mut places)?;
    let rollout = Rollout {
        waves: rollout
            .waves("waves")?
            .unwrap_or(DEFAULT_WAVES_PERCENT.map(WaveRule::percent).to_vec()),
        bake_ms: rollout.millis("bake")?.unwrap_or(DEFAULT_BAKE_MS),
        probe_path: rollout.text("probe")?.unwrap_or_else(|| "/".to_owned()),
        max_error_ppm: rollout
            .ppm("max_error_rate")?
            .unwrap_or(DEFAULT_MAX_ERROR_PPM),
        min_requests: rollout.count("min_requests")?.map_or(0, u64::from),
        quorum: rollout.amount("quorum")?,
        skip_after_ms: rollout.millis("skip_after")?,
        gates: Gates::default(),
    };

    let usual = Gates::default();
    let mut gates = Section::open_within(root, "rollout", "gates", "rollout.gates", &mut places)?;
    let gates = Gates {
        worse_percent: gates.percent("worse_by")?.unwrap_or(usual.worse_percent),
        max_crash_ppm: gates.ppm("max_crash_rate")?.unwrap_or(usual.max_crash_ppm),
        slower_percent: match gates.is_off("slower_by") {
            true => None,
            false => gates.percent("slower_by")?.or(usual.slower_percent),
        },
        slower_ms: gates.millis("slower_at_least")?.unwrap_or(usual.slower_ms),
        false_alarm_ppm: gates.ppm("false_alarms")?.unwrap_or(usual.false_alarm_ppm),
    };
    let rollout = Rollout { gates, ..rollout };

    let schema = u32::try_from(schema).unwrap_or(u32::MAX);
    let manifest = Manifest {
        schema,
        function,
        build,
        limits,
        scale,
        env,
        files,
        placement,
        network: Network { allow },
        rollout,
    };
    Ok((manifest, places))
}

/// Reports the unknown key that stands first in the file.
fn refuse_unknown_keys(root: &DeTable<'_>, places: &Places<'_>) -> Result<(), ManifestError> {
    let mut unknown: Vec<(usize, String, &str)> = Vec::new();
    for (key, value) in root {
        let name = key.get_ref().as_ref();
        if name == "schema" {
            continue;
        }
        let section = SECTIONS.iter().find(|(section, _)| *section == name);
        // A section within a section is found there.
        let Some((section, known)) = section.filter(|_| !name.contains('.')) else {
            unknown.push((key.span().start, name.to_owned(), ""));
            continue;
        };
        let table = value.get_ref().as_table();
        if ["env", "files"].contains(section) || REFUSED.contains(section) {
            continue;
        }
        let within = table.and_then(|table| table.get("gates")?.get_ref().as_table());
        if let (Some(within), "rollout") = (within, *section) {
            let (section, known) = SECTIONS
                .iter()
                .find(|(section, _)| *section == "rollout.gates")
                .expect("it is there");
            let unknown_within = within
                .iter()
                .filter(|(key, _)| !known.contains(&key.get_ref().as_ref()));
            unknown.extend(
                unknown_within
                    .map(|(key, _)| (key.span().start, key.get_ref().to_string(), *section)),
            );
        }
        for (key, _) in table.into_iter().flatten() {
            if !known.contains(&key.get_ref().as_ref()) {
                unknown.push((key.span().start, key.get_ref().to_string(), section));
            }
        }
    }
    match unknown.into_iter().min() {
        None => Ok(()),
        Some((offset, key, section)) => Err(ManifestError::UnknownKey {
            line: places.line(offset),
            suggestion: suggestion(section, &key),
            key: super::cut(&dotted(section, &key)),
        }),
    }
}

/// What the author may have meant by `key` in `section` (empty: the top level).
fn suggestion(section: &str, key: &str) -> String {
    if let Some((right, _)) = SECTIONS.iter().find(|(_, keys)| keys.contains(&key)) {
        return format!("`{key}` belongs in [{right}]");
    }
    let siblings: Vec<&str> = match SECTIONS.iter().find(|(name, _)| *name == section) {
        Some((_, keys)) => keys.to_vec(),
        None => ["schema"]
            .into_iter()
            .chain(SECTIONS.iter().map(|(name, _)| *name))
            .collect(),
    };
    if let Some(known) = nearest(key, &siblings) {
        return format!("did you mean `{known}`?");
    }
    let elsewhere = SECTIONS
        .iter()
        .find_map(|(name, keys)| Some((name, nearest(key, keys)?)));
    match elsewhere {
        Some((name, known)) => format!("did you mean `{known}` in [{name}]?"),
        None => format!("known here: {}", siblings.join(", ")),
    }
}

/// The candidate that is most like `key`, unless more than half of it would have to change.
fn nearest<'c>(key: &str, candidates: &[&'c str]) -> Option<&'c str> {
    let distance = |known: &str| strsim::damerau_levenshtein(key, known);
    candidates
        .iter()
        .map(|known| (distance(known), *known))
        .filter(|(distance, known)| 2 * distance <= known.len().max(key.len()))
        .min()
        .map(|(_, known)| known)
}

fn dotted(section: &str, key: &str) -> String {
    match section {
        "" => key.to_owned(),
        _ => format!("{section}.{key}"),
    }
}

/// One section of the file while it is being read; without a table every value is absent.
struct Section<'d, 't, 'p> {
    name: &'static str,
    table: Option<&'d DeTable<'t>>,
    places: &'p mut Places<'t>,
}

type Value<'t> = Spanned<DeValue<'t>>;

impl<'d, 't, 'p> Section<'d, 't, 'p> {
    fn open(
        root: &'d DeTable<'t>,
        name: &'static str,
        places: &'p mut Places<'t>,
    ) -> Result<Self, ManifestError> {
        let Some(value) = root.get(name) else {
            return Ok(Section {
                name,
                table: None,
                places,
            });
        };
        match value.get_ref().as_table() {
            Some(table) => Ok(Section {
                name,
                table: Some(table),
                places,
            }),
            None => Err(ManifestError::Value {
                line: Some(places.line(value.span().start)),
                key: name.to_owned(),
                value: describe(value.get_ref()),
                allowed: format!("a section, written [{name}] on a line of its own"),
            }),
        }
    }

    /// A section within another one.
    fn open_within(
        root: &'d DeTable<'t>,
        outer: &'static str,
        inner: &'static str,
        name: &'static str,
        places: &'p mut Places<'t>,
    ) -> Result<Self, ManifestError> {
        let outer = root.get(outer).and_then(|value| value.get_ref().as_table());
        let Some(value) = outer.and_then(|table| table.get(inner)) else {
            return Ok(Section {
                name,
                table: None,
                places,
            });
        };
        let section = Section {
            name,
            table: value.get_ref().as_table(),
            places,
        };
        match section.table {
            Some(_) => Ok(section),
            None => Err(ManifestError::Value {
                line: Some(section.places.line(value.span().start)),
                key: name.to_owned(),
                value: describe(value.get_ref()),
                allowed: format!("a section, written [{name}] on a line of its own"),
            }),
        }
    }

    fn refuse_secrets(&self) -> Result<(), ManifestError> {
        let first = self
            .table
            .into_iter()
            .flatten()
            .map(|(key, _)| key.span().start)
            .min();
        match first {
            None => Ok(()),
            Some(offset) => Err(ManifestError::Secrets {
                line: self.places.line(offset),
            }),
        }
    }

    fn place(&mut self, key: &str, value: &Value<'_>) {
        self.places
            .spans
            .insert(dotted(self.name, key), value.span());
    }

    fn get(&mut self, key: &str) -> Option<&'d Value<'t>> {
        let value = self.table?.get(key)?;
        self.place(key, value);
        Some(value)
    }

    fn wrong(&self, key: &str, value: &Value<'_>, allowed: impl Into<String>) -> ManifestError {
        self.places.locate(ManifestError::Value {
            line: None,
            key: dotted(self.name, key),
            value: describe(value.get_ref()),
            allowed: allowed.into(),
        })
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, ManifestError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.get_ref().as_str() {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(self.wrong(key, value, "text in quotes")),
        }
    }

    fn name(&mut self, key: &str) -> Result<Option<Name>, ManifestError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let text = value.get_ref().as_str();
        match text.map(str::parse) {
            Some(Ok(name)) => Ok(Some(name)),
            Some(Err(error)) => {
                let error: crate::ids::IdError = error;
                Err(self.wrong(key, value, error.expected))
            }
            None => Err(self.wrong(key, value, "a name in quotes")),
        }
    }

    fn quantity<T>(
        &mut self,
        key: &str,
        expected: &'static str,
        parse: fn(&str) -> Result<T, UnitError>,
    ) -> Result<Option<T>, ManifestError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.get_ref().as_str().map(parse) {
            Some(Ok(quantity)) => Ok(Some(quantity)),
            Some(Err(_)) => Err(self.wrong(key, value, expected)),
            None => Err(self.wrong(key, value, format!("{expected}, in quotes"))),
        }
    }

    fn bytes(&mut self, key: &str) -> Result<Option<u64>, ManifestError> {
        self.quantity(key, units::BYTES_EXPECTED, units::parse_bytes)
    }

    fn millis(&mut self, key: &str) -> Result<Option<u64>, ManifestError> {
        self.quantity(key, units::DURATION_EXPECTED, units::parse_millis)
    }

    fn ppm(&mut self, key: &str) -> Result<Option<u32>, ManifestError> {
        self.quantity(key, units::RATE_EXPECTED, units::parse_ppm)
    }

    fn percent(&mut self, key: &str) -> Result<Option<u32>, ManifestError> {
        self.quantity(key, units::PERCENT_EXPECTED, units::parse_percent)
    }

    /// Whether somebody wants nothing of it.
    fn is_off(&mut self, key: &str) -> bool {
        let value = self.get(key);
        value.is_some_and(|value| value.get_ref().as_str() == Some("off"))
    }

    fn integer(&mut self, key: &str, expected: &str) -> Result<Option<u64>, ManifestError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.get_ref().as_integer().and_then(unsigned) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(key, value, expected)),
        }
    }

    /// A number that is too large for 32 bits is left to the bounds, as the largest there is.
    fn count(&mut self, key: &str) -> Result<Option<u32>, ManifestError> {
        let number = self.integer(key, "a whole number, not negative and without quotes")?;
        Ok(number.map(|number| u32::try_from(number).unwrap_or(u32::MAX)))
    }

    fn isolation(&mut self) -> Result<Isolation, ManifestError> {
        let Some(value) = self.get("isolation") else {
            return Ok(Isolation::default());
        };
        match value.get_ref().as_str() {
            Some("request") => Ok(Isolation::Request),
            Some("instance") => Ok(Isolation::Instance),
            _ => Err(self.wrong("isolation", value, "\"request\" or \"instance\"")),
        }
    }

    fn flag(&mut self, key: &str) -> Result<Option<bool>, ManifestError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.get_ref().as_bool() {
            Some(flag) => Ok(Some(flag)),
            None => Err(self.wrong(key, value, "true or false, without quotes")),
        }
    }

    fn texts(&mut self, key: &str, allowed: &str) -> Result<Option<Vec<String>>, ManifestError> {
        self.list(key, allowed, |value| value.as_str().map(str::to_owned))
    }

    fn amount(&mut self, key: &str) -> Result<Option<Amount>, ManifestError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let text = match value.get_ref() {
            DeValue::Integer(number) => number.as_str(),
            other => other.as_str().unwrap_or_default(),
        };
        match text.parse() {
            Ok(amount) => Ok(Some(amount)),
            Err(error) => {
                let error: WaveError = error;
                Err(self.wrong(key, value, error.expected))
            }
        }
    }

    /// Percentages as numbers, everything else as texts.
    fn waves(&mut self, key: &str) -> Result<Option<Vec<WaveRule>>, ManifestError> {
        const LIST: &str = "a list of waves, rising, the last one 100, for example [10, 50, 100] or \
                            [\"ring=canary\", 50, 100]";
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let Some(items) = value.get_ref().as_array() else {
            return Err(self.wrong(key, value, LIST));
        };
        let mut waves = Vec::new();
        for item in items {
            let wave = match item.get_ref() {
                DeValue::Integer(number) => {
                    let percent = unsigned(number).and_then(|number| u8::try_from(number).ok());
                    percent.map(WaveRule::percent)
                }
                DeValue::String(text) => match text.parse::<WaveRule>() {
                    Ok(wave) => Some(wave),
                    Err(WaveError { expected, .. }) => {
                        let allowed = format!("{expected}; this is about \"{}\"", super::cut(text));
                        return Err(self.wrong(key, value, allowed));
                    }
                },
                _ => None,
            };
            match wave {
                Some(wave) => waves.push(wave),
                None => return Err(self.wrong(key, value, LIST)),
            }
        }
        Ok(Some(waves))
    }

    fn list<T>(
        &mut self,
        key: &str,
        allowed: &str,
        item: impl Fn(&DeValue<'_>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ManifestError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let items = value.get_ref().as_array().and_then(|items| {
            items
                .iter()
                .map(|value| item(value.get_ref()))
                .collect::<Option<Vec<T>>>()
        });
        match items {
            Some(items) => Ok(Some(items)),
            None => Err(self.wrong(key, value, allowed)),
        }
    }

    /// Every key of the section with its text.
    fn pairs(&mut self) -> Result<BTreeMap<String, String>, ManifestError> {
        let mut pairs = BTreeMap::new();
        for (key, value) in self.table.into_iter().flatten() {
            let key = key.get_ref().as_ref();
            self.place(key, value);
            let Some(text) = value.get_ref().as_str() else {
                return Err(self.wrong(key, value, "text in quotes"));
            };
            pairs.insert(key.to_owned(), text.to_owned());
        }
        Ok(pairs)
    }
}

/// An integer of the file, if it is not negative and fits.
fn unsigned(integer: &toml::de::DeInteger<'_>) -> Option<u64> {
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => super::cut(text),
        DeValue::Integer(number) => super::cut(number.as_str()),
        other => format!("a value of type {}", other.type_str()),
    }
}
