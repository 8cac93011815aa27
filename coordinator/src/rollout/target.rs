//! The fleet's target: from it follows what each node is to have.
//!
//! One rule: a node that a running rollout has moved gets the new version, with the current one to
//! fall back to; every other node gets the current version, with the one before it. A node gets a
//! version only where the version's own placement allows. A cordoned node keeps what it has; only if the
//! fleet goes back to the version before, which it has too, so does it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use holm_model::artifact::{PublisherKey, SignedVersion, Statement};
use holm_model::control::{Desired, DesiredFunction, Draining};
use holm_model::ids::{FunctionName, Name, VersionId};

use crate::store::Pins;

/// A version that the registry has accepted.
#[derive(Debug)]
pub(crate) struct Version {
    pub(crate) id: VersionId,
    pub(crate) signed: SignedVersion,
    pub(crate) statement: Statement,
}

impl Version {
    /// Whether it may run on a node in this region and with these labels.
    pub(crate) fn placed_on(&self, region: &str, labels: &BTreeMap<String, String>) -> bool {
        self.statement.manifest.placement.allows(region, labels)
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

/// What a cordoned node has: version and previous version of each function.
pub(crate) type Held = BTreeMap<FunctionName, (Arc<Version>, Option<Arc<Version>>)>;

/// Everything the fleet is to have.
#[derive(Debug, Default)]
pub(crate) struct Target {
    pub(crate) generation: u64,
    pub(crate) functions: Vec<TargetFunction>,
    /// By cordoned node.
    pub(crate) held: BTreeMap<Name, Held>,
}

impl Target {
    /// The whole desired state of one node.
    pub(crate) fn desired(
        &self,
        node: &Name,
        region: &str,
        labels: &BTreeMap<String, String>,
        draining: Draining,
    ) -> Desired {
        let functions = self.versions_on(node, region, labels);
        Desired {
            generation: self.generation,
            functions: functions
                .map(|(function, version, previous)| DesiredFunction {
                    function: function.name.clone(),
                    publisher_keys: function.keys(&version, previous.as_deref()),
                    version: version.signed.clone(),
                    previous: previous.map(|previous| previous.signed.clone()),
                })
                .collect(),
            draining,
        }
    }

    /// What a node that is cordoned now keeps.
    pub(crate) fn pins(
        &self,
        node: &Name,
        region: &str,
        labels: &BTreeMap<String, String>,
    ) -> Pins {
        self.versions_on(node, region, labels)
            .map(|(function, version, previous)| {
                let previous = previous.map(|previous| previous.id);
                (function.name.clone(), (version.id, previous))
            })
            .collect()
    }

    fn versions_on(
        &self,
        node: &Name,
        region: &str,
        labels: &BTreeMap<String, String>,
    ) -> impl Iterator<Item = (&TargetFunction, Arc<Version>, Option<Arc<Version>>)> {
        let held = self.held.get(node);
        self.functions.iter().filter_map(move |function| {
            let (version, previous) = match held {
                Some(held) => function.kept(node, held.get(&function.name)?),
                None => function.on(node, region, labels)?,
            };
            let previous = previous.filter(|previous| previous.id != version.id);
            Some((function, version, previous))
        })
    }

    /// The versions whose invocations a gate wants to hear of.
    pub(crate) fn watched(&self) -> BTreeSet<(FunctionName, VersionId)> {
        let watched = |f: &TargetFunction| Some((f.name.clone(), f.moving.as_ref()?.version.id));
        self.functions.iter().filter_map(watched).collect()
    }
}

impl TargetFunction {
    fn on(
        &self,
        node: &Name,
        region: &str,
        labels: &BTreeMap<String, String>,
    ) -> Option<(Arc<Version>, Option<Arc<Version>>)> {
        let here = |version: &Option<Arc<Version>>| {
            version
                .as_ref()
                .filter(|version| version.placed_on(region, labels))
                .cloned()
        };
        Some(match self.moved(node) {
            Some(moving) => (moving.version.clone(), here(&self.current)),
            None => (here(&self.current)?, here(&self.fallback)),
        })
    }

    /// What a cordoned node has of it.
    fn kept(
        &self,
        node: &Name,
        (version, previous): &(Arc<Version>, Option<Arc<Version>>),
    ) -> (Arc<Version>, Option<Arc<Version>>) {
        let moving = self.moved(node).map(|moving| moving.version.id);
        let current = self.current.as_ref().map(|current| current.id);
        match previous {
            Some(before) if current == Some(before.id) && moving != Some(version.id) => {
                (before.clone(), Some(version.clone()))
            }
            _ => (version.clone(), previous.clone()),
        }
    }

    fn moved(&self, node: &Name) -> Option<&Move> {
        let moving = self.moving.as_ref();
        moving.filter(|moving| moving.nodes.contains(node))
    }

    /// The keys that may sign what a node gets: those that are valid, and those that signed it when they were.
    /// So what runs keeps running after its key was revoked; that nothing new gets in the registry sees to.
    fn keys(&self, version: &Version, previous: Option<&Version>) -> Vec<PublisherKey> {
        let mut keys = self.keys.clone();
        for signer in [Some(version), previous].into_iter().flatten() {
            if !keys.contains(&signer.signed.key) {
                keys.push(signer.signed.key);
            }
        }
        keys
    }
}
