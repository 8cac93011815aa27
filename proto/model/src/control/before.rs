//! What messages were in the protocol version before, 5, where it was something else. A peer of that version is
//! spoken to in these shapes, and theirs are made ours at once.
//!
//! With the next version this file begins anew: it never holds more than one version's shapes.

use serde::{Deserialize, Serialize};

use super::{Configured, Desired, Hello, LogBatch, Observed, VersionReport};

/// From node to coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeMessage {
    /// The same.
    Hello(Hello),
    /// The same.
    Observed(Observed),
    /// Said less.
    Report(Report),
    /// The same.
    Logs(LogBatch),
}

/// A report that does not say what the node has refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The same.
    pub versions: Vec<VersionReport>,
    /// The same.
    pub free_slots: u32,
    /// The same.
    pub stopping: bool,
}

impl From<NodeMessage> for super::NodeMessage {
    fn from(message: NodeMessage) -> Self {
        match message {
            NodeMessage::Hello(hello) => Self::Hello(hello),
            NodeMessage::Observed(observed) => Self::Observed(observed),
            NodeMessage::Report(report) => Self::Report(super::Report {
                versions: report.versions,
                free_slots: report.free_slots,
                stopping: report.stopping,
                // A node of that version ends the link instead.
                refused: 0,
            }),
            NodeMessage::Logs(batch) => Self::Logs(batch),
        }
    }
}

impl From<&super::NodeMessage> for NodeMessage {
    fn from(message: &super::NodeMessage) -> Self {
        match message.clone() {
            super::NodeMessage::Hello(hello) => Self::Hello(hello),
            super::NodeMessage::Observed(observed) => Self::Observed(observed),
            super::NodeMessage::Report(report) => Self::Report(Report {
                versions: report.versions,
                free_slots: report.free_slots,
                stopping: report.stopping,
            }),
            super::NodeMessage::Logs(batch) => Self::Logs(batch),
        }
    }
}

/// What a node of that version is told to have: of each function the release without a configuration, if the one before
/// is that, and otherwise none. To run a version without what it is configured with would be worse.
pub fn desired(configured: Configured) -> Desired {
    let Configured {
        mut desired,
        configurations,
    } = configured;
    desired.functions.retain_mut(|wanted| {
        let own = |own: &&super::DesiredConfiguration| own.function == wanted.function;
        let Some(own) = configurations.iter().find(own) else {
            return true;
        };
        if own.previous.is_some() {
            wanted.previous = None;
        }
        match (&own.version, wanted.previous.take()) {
            (None, previous) => wanted.previous = previous,
            (Some(_), Some(previous)) => wanted.version = previous,
            (Some(_), None) => return false,
        }
        true
    });
    desired
}

#[cfg(test)]
mod tests {
    use super::super::{DesiredConfiguration, DesiredFunction, Draining};
    use super::*;
    use crate::artifact::{PublisherKey, SignedVersion};
    use crate::configuration::{Configuration, Secrets, SignedConfiguration};

    fn version(text: &str) -> SignedVersion {
        SignedVersion {
            statement: text.into(),
            key: PublisherKey([1; 32]),
            signature: vec![2; 64],
        }
    }

    #[test]
    fn a_node_that_knows_no_configurations_is_told_what_has_none_and_all_else() {
        let configuration = || {
            Some(Configuration {
                signed: SignedConfiguration {
                    statement: Vec::new(),
                    key: PublisherKey([1; 32]),
                    signature: Vec::new(),
                },
                secrets: Secrets::new(),
            })
        };
        let (mut functions, mut configurations) = (Vec::new(), Vec::new());
        for (name, now, before) in [
            ("a/plain", None, None),
            ("a/new", configuration(), None),
            ("a/old", configuration(), configuration()),
            ("a/back", None, configuration()),
        ] {
            let function: crate::ids::FunctionName = name.parse().unwrap();
            functions.push(DesiredFunction {
                function: function.clone(),
                publisher_keys: Vec::new(),
                version: version("now"),
                previous: Some(version("before")),
            });
            if now.is_some() || before.is_some() {
                configurations.push(DesiredConfiguration {
                    function,
                    version: now,
                    previous: before,
                });
            }
        }
        let draining = Draining {
            drained: true,
            others: Vec::new(),
        };
        let told = desired(Configured {
            desired: Desired {
                generation: 7,
                functions,
                draining: draining.clone(),
            },
            configurations,
        });
        assert_eq!((told.generation, told.draining), (7, draining));
        let told = told.functions.iter().map(|told| {
            let text =
                |version: &SignedVersion| String::from_utf8(version.statement.clone()).unwrap();
            let previous = told.previous.as_ref().map(text);
            (told.function.to_string(), text(&told.version), previous)
        });
        let (now, before) = ("now".to_owned(), "before".to_owned());
        let expected = [
            ("a/plain".to_owned(), now.clone(), Some(before.clone())),
            ("a/new".to_owned(), before, None),
            ("a/back".to_owned(), now, None),
        ];
        assert_eq!(told.collect::<Vec<_>>(), expected);
    }
}
