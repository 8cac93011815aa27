//! The fleet's target: from it follows what each node is to have.
//!
//! One rule: a node that a running rollout has moved gets the new version, with the current one to
//! fall back to; every other node gets the current version, with the one before it. A node gets a
//! version only where the version's own placement allows.

use std::collections::BTreeSet;
use std::sync::Arc;

use holm_model::artifact::{PublisherKey, SignedVersion, Statement};
use holm_model::control::{Desired, DesiredFunction, Draining};
use holm_model::ids::{FunctionName, Name, VersionId};

/// A version that the registry has accepted.
#[derive(Debug)]
pub(crate) struct Version {
    pub(crate) id: VersionId,
    pub(crate) signed: SignedVersion,
    pub(crate) statement: Statement,
}

impl Version {
    /// Whether it may run in `region`.
    pub(crate) fn placed_in(&self, region: &str) -> bool {
        let regions = &self.statement.manifest.placement.regions;
        regions.is_empty() || regions.iter().any(|allowed| allowed == region)
    }
}

/// Nodes that a running rollout has moved so far.
#[derive(Debug)]
pub(crate) struct Move {
    pub(crate) version: Arc<Version>,
    pub(crate) nodes: BTreeSet<Name>,
}

/// One function of the fleet.
#[derive(Debug)]
pub(crate) struct TargetFunction {
    pub(crate) name: FunctionName,
    pub(crate) keys: Vec<PublisherKey>,
    pub(crate) current: Option<Arc<Version>>,
    pub(crate) fallback: Option<Arc<Version>>,
    /// The version of the running rollout, if one is running, and who has moved.
    pub(crate) moving: Option<Move>,
}

/// Everything the fleet is to have.
#[derive(Debug, Default)]
pub(crate) struct Target {
    pub(crate) generation: u64,
    pub(crate) functions: Vec<TargetFunction>,
}

impl Target {
    /// The whole desired state of one node.
    pub(crate) fn desired(&self, node: &Name, region: &str, draining: Draining) -> Desired {
        let functions = self
            .functions
            .iter()
            .filter_map(|f| f.desired(node, region))
            .collect();
        Desired {
            generation: self.generation,
            functions,
            draining,
        }
    }

    /// The versions whose invocations a gate wants to hear of.
    pub(crate) fn watched(&self) -> BTreeSet<(FunctionName, VersionId)> {
        let watched = |f: &TargetFunction| Some((f.name.clone(), f.moving.as_ref()?.version.id));
        self.functions.iter().filter_map(watched).collect()
    }
}

impl TargetFunction {
    fn desired(&self, node: &Name, region: &str) -> Option<DesiredFunction> {
        let here = |version: &Option<Arc<Version>>| {
            version
                .as_ref()
                .filter(|version| version.placed_in(region))
                .cloned()
        };
        let moved = self
            .moving
            .as_ref()
            .filter(|moving| moving.nodes.contains(node));
        let (version, previous) = match moved {
            Some(moving) => (moving.version.clone(), here(&self.current)),
            None => (here(&self.current)?, here(&self.fallback)),
        };
        let previous = previous.filter(|previous| previous.id != version.id);
        Some(DesiredFunction {
            function: self.name.clone(),
            publisher_keys: self.keys.clone(),
            version: version.signed.clone(),
            previous: previous.map(|previous| previous.signed.clone()),
        })
    }
}
