//! The fleet's target: from it follows what each node is to have.
//!
//! What a node has of a function are *releases*: a version with its configuration, or without one.
//!
//! One rule: a node that a running rollout has moved gets the new release, with the current one to
//! fall back to; every other node gets the current release, with the one before it. A node gets a
//! release only where the version's own placement allows. A cordoned node keeps what it has; only if the
//! fleet goes back to the release before, which it has too, so does it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use holm_model::artifact::{PublisherKey, SignedVersion, Statement};
use holm_model::configuration::{
    Configuration, ConfigurationId, ConfigurationStatement, Release, ReleaseId, Secrets,
    SignedConfiguration, release_label,
};
use holm_model::control::{self, Desired, DesiredConfiguration, DesiredFunction, Draining};
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

/// A configuration that the registry has accepted, with its secrets.
#[derive(Debug)]
pub(crate) struct Configured {
    pub(crate) id: ConfigurationId,
    pub(crate) signed: SignedConfiguration,
    pub(crate) statement: ConfigurationStatement,
    pub(crate) secrets: Secrets,
    /// Why not all of the secrets are there. No node is sent the rest alone.
    pub(crate) damaged: Option<String>,
}

/// All that belongs to a release, as nodes are sent it.
#[derive(Debug)]
pub(crate) struct Deployable {
    pub(crate) version: Arc<Version>,
    pub(crate) configuration: Option<Arc<Configured>>,
}

impl Deployable {
    /// Its ids.
    pub(crate) fn release(&self) -> Release {
        Release {
            version: self.version.id,
            configuration: self.configuration.as_ref().map(|configured| configured.id),
        }
    }

    /// What people call it.
    pub(crate) fn label(&self) -> String {
        let configured = self.configuration.as_ref();
        let number = configured.map(|configured| configured.statement.number);
        release_label(&self.version.statement.label, number)
    }

    /// Upper bound of its part of a message.
    pub(crate) fn bytes(&self) -> usize {
        // Beside statements and values: keys, signatures, salts, lengths.
        let configured = self.configuration.as_ref().map_or(0, |configured| {
            let secrets = configured.secrets.iter();
            let secrets = secrets.map(|(name, secret)| name.len() + secret.value().len() + 64);
            configured.signed.statement.len() + secrets.sum::<usize>() + 128
        });
        self.version.signed.statement.len() + 128 + configured
    }

    /// Why it cannot be sent to nodes, and whose fault that is.
    pub(crate) fn damaged(&self) -> Option<&str> {
        self.configuration.as_ref()?.damaged.as_deref()
    }

    fn signers(&self) -> impl Iterator<Item = PublisherKey> {
        let configured = self.configuration.as_ref();
        let second = configured.map(|configured| configured.signed.key);
        std::iter::once(self.version.signed.key).chain(second)
    }

    fn configuration(&self) -> Option<Configuration> {
        let configured = self.configuration.as_ref()?;
        Some(Configuration {
            signed: configured.signed.clone(),
            secrets: configured.secrets.clone(),
        })
    }
}

/// Nodes that a running rollout has moved so far.
#[derive(Debug)]
pub(crate) struct Move {
    pub(crate) to: Arc<Deployable>,
    pub(crate) nodes: BTreeSet<Name>,
}

/// One function of the fleet.
#[derive(Debug)]
pub(crate) struct TargetFunction {
    pub(crate) name: FunctionName,
    pub(crate) keys: Vec<PublisherKey>,
    pub(crate) current: Option<Arc<Deployable>>,
    pub(crate) fallback: Option<Arc<Deployable>>,
    /// The release of the running rollout, if one is running, and who has moved.
    pub(crate) moving: Option<Move>,
}

/// What a cordoned node has: release and previous release of each function.
pub(crate) type Held = BTreeMap<FunctionName, (Arc<Deployable>, Option<Arc<Deployable>>)>;

/// A function's configuration is damaged where it is stored.
#[derive(Debug, thiserror::Error)]
#[error(
    "the configuration of {function} is damaged in this coordinator's database ({why}): nodes that are to have it are sent nothing and keep what they have; set the secret again, or restore the database"
)]
pub(crate) struct Damaged {
    function: FunctionName,
    why: String,
}

/// Everything the fleet is to have.
#[derive(Debug, Default)]
pub(crate) struct Target {
    pub(crate) generation: u64,
    pub(crate) functions: Vec<TargetFunction>,
    /// By cordoned node.
    pub(crate) held: BTreeMap<Name, Held>,
}

impl Target {
    /// The functions that a node is to have.
    pub(crate) fn functions_on(
        &self,
        node: &Name,
        region: &str,
        labels: &BTreeMap<String, String>,
    ) -> BTreeSet<FunctionName> {
        self.releases_on(node, region, labels)
            .map(|(function, ..)| function.name.clone())
            .collect()
    }

    /// The whole desired state of one node. The error names a function that cannot be sent as it is to be: then the
    /// node is sent nothing and keeps what it has, because what a desired state lacks is removed.
    pub(crate) fn desired(
        &self,
        node: &Name,
        region: &str,
        labels: &BTreeMap<String, String>,
        draining: Draining,
    ) -> Result<control::Configured, Damaged> {
        let mut functions = Vec::new();
        let mut configurations = Vec::new();
        for (function, release, previous) in self.releases_on(node, region, labels) {
            if let Some(why) = release.damaged() {
                return Err(Damaged {
                    function: function.name.clone(),
                    why: why.to_owned(),
                });
            }
            // To fall back to there is none then.
            let previous = previous.filter(|previous| previous.damaged().is_none());
            let configured = DesiredConfiguration {
                function: function.name.clone(),
                version: release.configuration(),
                previous: previous
                    .as_ref()
                    .and_then(|previous| previous.configuration()),
            };
            if configured.version.is_some() || configured.previous.is_some() {
                configurations.push(configured);
            }
            functions.push(DesiredFunction {
                function: function.name.clone(),
                publisher_keys: function.keys(&release, previous.as_deref()),
                version: release.version.signed.clone(),
                previous: previous.map(|previous| previous.version.signed.clone()),
            });
        }
        Ok(control::Configured {
            desired: Desired {
                generation: self.generation,
                functions,
                draining,
            },
            configurations,
        })
    }

    /// What a node that is cordoned now keeps.
    pub(crate) fn pins(
        &self,
        node: &Name,
        region: &str,
        labels: &BTreeMap<String, String>,
    ) -> Pins {
        self.releases_on(node, region, labels)
            .map(|(function, release, previous)| {
                let previous = previous.map(|previous| previous.release());
                (function.name.clone(), (release.release(), previous))
            })
            .collect()
    }

    fn releases_on(
        &self,
        node: &Name,
        region: &str,
        labels: &BTreeMap<String, String>,
    ) -> impl Iterator<Item = (&TargetFunction, Arc<Deployable>, Option<Arc<Deployable>>)> {
        let held = self.held.get(node);
        self.functions.iter().filter_map(move |function| {
            let (release, previous) = match held {
                Some(held) => function.kept(node, held.get(&function.name)?),
                None => function.on(node, region, labels)?,
            };
            let previous = previous.filter(|previous| previous.release() != release.release());
            Some((function, release, previous))
        })
    }

    /// The releases whose invocations a gate wants to hear of.
    pub(crate) fn watched(&self) -> BTreeSet<(FunctionName, ReleaseId)> {
        let watched = |f: &TargetFunction| {
            let to = &f.moving.as_ref()?.to;
            Some((f.name.clone(), to.release().id()))
        };
        self.functions.iter().filter_map(watched).collect()
    }
}

impl TargetFunction {
    fn on(
        &self,
        node: &Name,
        region: &str,
        labels: &BTreeMap<String, String>,
    ) -> Option<(Arc<Deployable>, Option<Arc<Deployable>>)> {
        let here = |release: &Option<Arc<Deployable>>| {
            release
                .as_ref()
                .filter(|release| release.version.placed_on(region, labels))
                .cloned()
        };
        Some(match self.moved(node) {
            Some(moving) => (moving.to.clone(), here(&self.current)),
            None => (here(&self.current)?, here(&self.fallback)),
        })
    }

    /// What a cordoned node has of it.
    fn kept(
        &self,
        node: &Name,
        (release, previous): &(Arc<Deployable>, Option<Arc<Deployable>>),
    ) -> (Arc<Deployable>, Option<Arc<Deployable>>) {
        let moving = self.moved(node).map(|moving| moving.to.release());
        let current = self.current.as_ref().map(|current| current.release());
        match previous {
            Some(before)
                if current == Some(before.release()) && moving != Some(release.release()) =>
            {
                (before.clone(), Some(release.clone()))
            }
            _ => (release.clone(), previous.clone()),
        }
    }

    fn moved(&self, node: &Name) -> Option<&Move> {
        let moving = self.moving.as_ref();
        moving.filter(|moving| moving.nodes.contains(node))
    }

    /// The keys that may sign what a node gets: those that are valid, and those that signed it when they were.
    /// So what runs keeps running after its key was revoked; that nothing new gets in the registry sees to.
    fn keys(&self, release: &Deployable, previous: Option<&Deployable>) -> Vec<PublisherKey> {
        let mut keys = self.keys.clone();
        let releases = [Some(release), previous].into_iter().flatten();
        for signer in releases.flat_map(Deployable::signers) {
            if !keys.contains(&signer) {
                keys.push(signer);
            }
        }
        keys
    }
}
