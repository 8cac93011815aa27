//! `GET /.holm/metrics`: what the node has and how it restores it, in the text format of Prometheus
//! (https://prometheus.io/docs/instrumenting/exposition_formats). Bills never come from here.

use std::fmt::Write as _;

use hyper::Response;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};

use crate::deploy::routes::Table;
use crate::lane::Shared;
use crate::request::Answer;

/// The answer to a request for metrics.
pub(crate) fn answer(shared: &Shared, table: &Table) -> Answer {
    let mut text = Text::default();
    text.family("holm_slots", "Virtual machines that the node keeps.");
    text.sample("", shared.slots as f64);
    text.family("holm_slots_free", "Those of them that no request uses.");
    text.sample("", f64::from(shared.tally.free_slots()));
    text.family(
        "holm_slots_renewed",
        "Slots, since the start, that took more than a reset: callers went away from what ran in them, or functions \
         changed much of their memory.",
    );
    text.sample("", shared.tally.all_renewed() as f64);
    text.family(
        "holm_refused_messages",
        "Messages of the coordinator, since the start, of kinds that the node does not know.",
    );
    text.sample("", shared.tally.refused() as f64);

    // Names are DNS labels and identities are hexadecimal: nothing in a label has to be escaped.
    let mut strategies = Vec::new();
    let mut costs = Vec::new();
    for live in table.live() {
        let Some(choice) = live.snapshot.choice() else {
            continue;
        };
        let configuration = live.configuration;
        let configuration = configuration.map(|number| format!(",configuration=\"c{number}\""));
        let version = format!(
            "function=\"{}\",version=\"{}\"{}",
            live.function,
            live.version,
            configuration.unwrap_or_default()
        );
        let of =
            |strategy: holm_vmm::Strategy| format!("{version},strategy=\"{}\"", strategy.as_str());
        strategies.push(of(choice.strategy));
        costs.extend(choice.costs.iter().map(|cost| (of(cost.strategy), *cost)));
    }
    text.family(
        "holm_restore_strategy",
        "1 for the strategy by which the version's instances are restored and reset.",
    );
    for labels in strategies {
        text.sample(&labels, 1.0);
    }
    let seconds = |ns: u64| ns as f64 / 1e9;
    text.family(
        "holm_restore_first_seconds",
        "Measured: a load into a machine that held something else, and the first request.",
    );
    for (labels, cost) in &costs {
        text.sample(labels, seconds(cost.first_ns));
    }
    text.family(
        "holm_restore_again_seconds",
        "Measured: a reset, and a request after it.",
    );
    for (labels, cost) in &costs {
        text.sample(labels, seconds(cost.again_ns));
    }
    text.family(
        "holm_restore_private_bytes",
        "Measured: memory that an instance has for itself.",
    );
    for (labels, cost) in &costs {
        text.sample(labels, cost.private_bytes as f64);
    }

    let mut response = Response::new(Bytes::from(text.0).into());
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The text as it grows: families of gauges with their samples.
#[derive(Default)]
struct Text(String, &'static str);

impl Text {
    fn family(&mut self, name: &'static str, help: &str) {
        self.1 = name;
        // Writing to a string does not fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} gauge\n");
    }

    fn sample(&mut self, labels: &str, value: f64) {
        let name = self.1;
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_told_as_prometheus_reads_them() {
        let mut text = Text::default();
        text.family("holm_slots", "Some.");
        text.sample("", 16.0);
        text.sample("version=\"a\"", 0.000_25);
        assert_eq!(
            text.0,
            "# HELP holm_slots Some.\n# TYPE holm_slots gauge\nholm_slots 16\nholm_slots{version=\"a\"} 0.00025\n"
        );
    }
}
