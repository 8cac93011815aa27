//! One wave of a rollout, as people write it: `50%`, `region=eu,nodes=2,bake=10m`, `ring=canary,quorum=80%`.
//!
//! A wave is a list of words with commas between them. Some words are known; every other `key=value` is a label
//! that a node must have. A plain percentage is also written as a number, and always stored so: manifests of
//! before read and are written as they were.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::units::{format_millis, parse_millis};
use crate::limits::{
    MAX_BAKE_MS, MAX_LABELS, MAX_REGION_BYTES, MAX_REGIONS, MAX_SKIP_AFTER_MS, MAX_WAVE_BYTES,
    MAX_WAVES,
};
use crate::place::is_label;

/// The words that are not labels.
const WORDS: [&str; 6] = ["nodes", "region", "label", "bake", "quorum", "skip_after"];

/// A part of some nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Of each hundred, at most 100.
    Percent(u8),
    /// So many.
    Count(u32),
}

/// Which nodes have the new version after a wave, and when the wave has passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct WaveRule {
    /// Regions, one of which a node must be in; empty: anywhere.
    pub regions: Vec<String>,
    /// Labels, written `key=value`, all of which a node must have.
    pub labels: Vec<String>,
    /// How many of these nodes have the version after the wave, those of earlier waves included.
    pub nodes: Amount,
    /// How long it is watched, if not as long as the others.
    pub bake_ms: Option<u64>,
    /// How many of the wave's nodes must serve the version for it to pass, if not as in the others.
    pub quorum: Option<Amount>,
    /// How long a node that is away is waited for, if not as long as in the others.
    pub skip_after_ms: Option<u64>,
}

/// A text or a list is not the waves that it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct WaveError {
    /// What was given, cut to a sane length.
    pub text: String,
    /// What it should have been.
    pub expected: String,
}

/// As JSON has it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Percent(u8),
    Text(String),
}

impl Amount {
    /// So many of `total`, at least one if there are any; parts count as a whole.
    pub fn at_least(self, total: usize) -> usize {
        match self {
            Amount::Percent(percent) => (total * usize::from(percent)).div_ceil(100),
            Amount::Count(count) => usize::try_from(count).unwrap_or(usize::MAX).min(total),
        }
    }

    /// So many of `total`; parts do not count.
    pub fn at_most(self, total: usize) -> usize {
        match self {
            Amount::Percent(percent) => total * usize::from(percent) / 100,
            Amount::Count(_) => self.at_least(total),
        }
    }

    fn is_sane(self) -> bool {
        match self {
            Amount::Percent(percent) => (1..=100).contains(&percent),
            Amount::Count(count) => count > 0,
        }
    }
}

impl FromStr for Amount {
    type Err = WaveError;

    fn from_str(text: &str) -> Result<Self, WaveError> {
        let read = || match text.strip_suffix('%') {
            Some(percent) => digits(percent)?.parse().ok().map(Amount::Percent),
            None => digits(text)?.parse().ok().map(Amount::Count),
        };
        let amount = read().filter(|amount| amount.is_sane());
        amount.ok_or_else(|| {
            wrong(
                text,
                "a share of the nodes from 1% to 100%, or a number of them",
            )
        })
    }
}

fn digits(text: &str) -> Option<&str> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then_some(text)
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Amount::Percent(percent) => write!(f, "{percent}%"),
            Amount::Count(count) => write!(f, "{count}"),
        }
    }
}

impl Serialize for Amount {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl WaveRule {
    /// So many percent of all nodes.
    pub fn percent(percent: u8) -> Self {
        WaveRule {
            regions: Vec::new(),
            labels: Vec::new(),
            nodes: Amount::Percent(percent),
            bake_ms: None,
            quorum: None,
            skip_after_ms: None,
        }
    }

    /// Whether it is for some nodes by what they are, and not for any.
    pub fn is_ring(&self) -> bool {
        !self.regions.is_empty() || !self.labels.is_empty()
    }

    /// Whether it is about a node in `region` that has these labels.
    pub fn concerns(&self, region: &str, labels: &BTreeMap<String, String>) -> bool {
        let has = |wanted: &String| {
            let (key, value) = wanted.split_once('=').unwrap_or((wanted, ""));
            labels.get(key).is_some_and(|own| own == value)
        };
        (self.regions.is_empty() || self.regions.iter().any(|own| own == region))
            && self.labels.iter().all(has)
    }

    fn is_whole_fleet(&self) -> bool {
        !self.is_ring() && self.nodes == Amount::Percent(100)
    }

    /// Takes in one word.
    fn word(&mut self, word: &str) -> Result<(), WaveError> {
        let Some((key, value)) = word.split_once('=') else {
            self.nodes = word.parse()?;
            return Ok(());
        };
        match key {
            "nodes" => self.nodes = value.parse()?,
            "quorum" => self.quorum = Some(value.parse()?),
            "bake" => self.bake_ms = Some(time(word, value, MAX_BAKE_MS)?),
            "skip_after" => self.skip_after_ms = Some(time(word, value, MAX_SKIP_AFTER_MS)?),
            "region" => {
                let good = (1..=MAX_REGION_BYTES).contains(&value.len())
                    && value.bytes().all(|byte| byte.is_ascii_graphic());
                if !good || self.regions.len() == MAX_REGIONS {
                    return Err(wrong(word, "a region's name"));
                }
                self.regions.push(value.to_owned());
            }
            "label" => self.label(value)?,
            other => match mistyped(other) {
                Some(known) => {
                    return Err(wrong(
                        word,
                        &format!(
                            "known: did you mean `{known}`? A label of that name is written `label={word}`"
                        ),
                    ));
                }
                None => self.label(word)?,
            },
        }
        Ok(())
    }

    fn label(&mut self, label: &str) -> Result<(), WaveError> {
        let good = label
            .split_once('=')
            .is_some_and(|(key, value)| is_label(key, value));
        if !good || self.labels.len() == MAX_LABELS {
            return Err(wrong(label, "a label, such as `ring=canary`"));
        }
        self.labels.push(label.to_owned());
        Ok(())
    }
}

fn time(word: &str, value: &str, most_ms: u64) -> Result<u64, WaveError> {
    let ms = parse_millis(value).map_err(|error| wrong(word, error.expected))?;
    match ms <= most_ms {
        true => Ok(ms),
        false => Err(wrong(word, &format!("at most {}", format_millis(most_ms)))),
    }
}

/// The known word that `key` may be meant to be; a label is rarely so near to one.
fn mistyped(key: &str) -> Option<&'static str> {
    let near = |known: &&str| strsim::damerau_levenshtein(key, known) <= known.len() / 3;
    WORDS.into_iter().find(near)
}

fn wrong(text: &str, expected: &str) -> WaveError {
    WaveError {
        text: super::cut(text),
        expected: expected.to_owned(),
    }
}

impl FromStr for WaveRule {
    type Err = WaveError;

    fn from_str(text: &str) -> Result<Self, WaveError> {
        if text.trim().is_empty() || text.len() > MAX_WAVE_BYTES {
            return Err(wrong(
                text,
                &format!(
                    "a wave of at most {MAX_WAVE_BYTES} characters, such as `50%` or `ring=canary,bake=10m`"
                ),
            ));
        }
        let mut rule = WaveRule::percent(100);
        let mut seen: Vec<&str> = Vec::new();
        for word in text.split(',').map(str::trim) {
            let key = word.split_once('=').map_or("nodes", |(key, _)| key);
            let again = !["region", "label"].contains(&key) && seen.contains(&key);
            if again {
                return Err(wrong(word, &format!("allowed: `{key}` is there already")));
            }
            rule.word(word)?;
            seen.push(key);
        }
        Ok(rule)
    }
}

impl fmt::Display for WaveRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = Vec::new();
        words.extend(self.regions.iter().map(|region| format!("region={region}")));
        words.extend(self.labels.iter().map(|label| {
            let key = label.split_once('=').map_or("", |(key, _)| key);
            match WORDS.contains(&key) || mistyped(key).is_some() {
                true => format!("label={label}"),
                false => label.clone(),
            }
        }));
        if !self.is_ring() || self.nodes != Amount::Percent(100) {
            words.push(match self.is_ring() {
                true => format!("nodes={}", self.nodes),
                false => self.nodes.to_string(),
            });
        }
        words.extend(self.bake_ms.map(|ms| format!("bake={}", format_millis(ms))));
        words.extend(self.quorum.map(|quorum| format!("quorum={quorum}")));
        let skip = self.skip_after_ms;
        words.extend(skip.map(|ms| format!("skip_after={}", format_millis(ms))));
        f.write_str(&words.join(","))
    }
}

impl TryFrom<Written> for WaveRule {
    type Error = WaveError;

    fn try_from(written: Written) -> Result<Self, WaveError> {
        match written {
            // Whether it is one of the percentages allowed says whoever looks at all of them.
            Written::Percent(percent) => Ok(WaveRule::percent(percent)),
            Written::Text(text) => text.parse(),
        }
    }
}

impl From<WaveRule> for Written {
    fn from(rule: WaveRule) -> Self {
        match rule.nodes {
            Amount::Percent(percent) if rule == WaveRule::percent(percent) => {
                Written::Percent(percent)
            }
            _ => Written::Text(rule.to_string()),
        }
    }
}

/// Whether these are the waves of a rollout; the error says what would be.
pub fn check_waves(waves: &[WaveRule]) -> Result<(), WaveError> {
    let told = || {
        let told: Vec<String> = waves.iter().map(|wave| format!("\"{wave}\"")).collect();
        format!("[{}]", told.join(", "))
    };
    if !(1..=MAX_WAVES).contains(&waves.len())
        || !waves.last().is_some_and(WaveRule::is_whole_fleet)
    {
        return Err(wrong(
            &told(),
            &format!(
                "a list of 1 to {MAX_WAVES} waves, rising, the last one 100% of the fleet, for example \
                 [10, 50, 100] or [\"ring=canary\", \"region=eu,nodes=50%\", 100]"
            ),
        ));
    }
    for (index, wave) in waves.iter().enumerate() {
        let before = waves[..index].iter().rev();
        let same = |other: &&WaveRule| other.regions == wave.regions && other.labels == wave.labels;
        let rises = match (
            before.clone().find(same).map(|other| other.nodes),
            wave.nodes,
        ) {
            (Some(Amount::Percent(before)), Amount::Percent(now)) => before < now,
            (Some(Amount::Count(before)), Amount::Count(now)) => before < now,
            // Which of the two is more depends on the fleet.
            _ => true,
        };
        if !wave.nodes.is_sane() || !rises {
            let expected = "rising: a wave has more nodes than the one before it of the same region and labels, \
                            the last one 100%";
            return Err(wrong(&told(), expected));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> WaveRule {
        text.parse().unwrap()
    }

    #[test]
    fn a_wave_is_read_and_written_the_same() {
        for text in [
            "10%",
            "3",
            "ring=canary",
            "region=eu,region=us,nodes=2",
            "region=eu,ring=canary,nodes=50%,bake=10m,quorum=80%,skip_after=30s",
            "label=bake=early,quorum=2",
            "100%,bake=1h",
        ] {
            let read = rule(text);
            assert_eq!(read.to_string(), text);
            let json = serde_json::to_string(&read).unwrap();
            assert_eq!(serde_json::from_str::<WaveRule>(&json).unwrap(), read);
        }
        assert_eq!(
            rule(" ring=canary , nodes=50% "),
            rule("nodes=50%,ring=canary")
        );
    }

    #[test]
    fn a_plain_percentage_is_stored_as_the_number_it_always_was() {
        let waves: Vec<WaveRule> = serde_json::from_str("[10, \"50%\", 100]").unwrap();
        assert_eq!(serde_json::to_string(&waves).unwrap(), "[10,50,100]");
    }

    #[test]
    fn what_is_no_wave_is_refused_and_a_slip_is_not_taken_for_a_label() {
        for (text, expected) in [
            ("", "a wave of at most"),
            ("0%", "1% to 100%"),
            ("0", "or a number of them"),
            ("101%", "1% to 100%"),
            ("+5", "a number of them"),
            ("bake=10", "a duration"),
            ("bake=25h", "at most 24h"),
            ("quorum=none", "a share"),
            ("region=", "a region's name"),
            ("ring", "a share"),
            ("ring=ca nary", "a label"),
            ("baek=10m", "did you mean `bake`"),
            ("node=2", "did you mean `nodes`"),
            ("qourum=2", "did you mean `quorum`"),
            ("bake=1s,bake=2s", "there already"),
            ("50%,nodes=2", "there already"),
        ] {
            let error = text.parse::<WaveRule>().unwrap_err();
            assert!(error.expected.contains(expected), "{text}: {error}");
        }
        assert!("a=b,".repeat(1000).parse::<WaveRule>().is_err());
    }

    #[test]
    fn waves_of_a_ring_rise_and_the_last_is_everybody() {
        let list = |texts: &[&str]| texts.iter().map(|text| rule(text)).collect::<Vec<_>>();
        for good in [
            &["100%"][..],
            &["1", "10%", "100%"],
            &[
                "ring=canary",
                "region=eu,nodes=1",
                "region=eu,nodes=50%",
                "region=eu",
                "100%,bake=1h",
            ],
            &["region=eu,nodes=50%", "region=us,nodes=50%", "100%"],
        ] {
            assert_eq!(check_waves(&list(good)), Ok(()), "{good:?}");
        }
        for bad in [
            &[][..],
            &["50%"],
            &["ring=canary"],
            &["50%", "50%", "100%"],
            &["region=eu,nodes=2", "region=eu,nodes=2", "100%"],
            &["100%", "100%"],
        ] {
            assert!(check_waves(&list(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_ring_is_by_any_of_its_regions_and_all_of_its_labels() {
        let labels = |pairs: &[(&str, &str)]| {
            let own = pairs
                .iter()
                .map(|(key, value)| (key.to_string(), value.to_string()));
            own.collect::<BTreeMap<_, _>>()
        };
        let ring = rule("region=eu,region=us,ring=canary,disk=ssd");
        assert!(ring.concerns("us", &labels(&[("ring", "canary"), ("disk", "ssd")])));
        assert!(!ring.concerns("us", &labels(&[("ring", "canary")])));
        assert!(!ring.concerns("asia", &labels(&[("ring", "canary"), ("disk", "ssd")])));
    }
}
