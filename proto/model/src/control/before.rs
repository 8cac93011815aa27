//! What messages were in the protocol version before, 5, where it was something else. A peer of that version is
//! spoken to in these shapes, and theirs are made ours at once.
//!
//! With the next version this file begins anew: it never holds more than one version's shapes.

use serde::{Deserialize, Serialize};

use super::{Hello, LogBatch, Observed, VersionReport};

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
