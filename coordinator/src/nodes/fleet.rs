//! What is known of the nodes, in memory: who is connected, what they have, how it goes.
//!
//! Links write here, rollouts, routing and the API read. Nothing here waits for anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use holm_model::api::{NodeVersionView, NodeView};
use holm_model::control::{Draining, Hello, Observed, Report, VersionState};
use holm_model::ids::{FunctionName, Name, VersionId};
use holm_model::limits::MAX_OTHER_NODES;
use holm_model::usage::Outcome;
use quinn::Connection;
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::limits::{MAX_REASON_CHARS, cut};
use crate::rollout::{Presence, Seen, Sight, Tally};
use crate::route::RouteNode;
use crate::store::NodeRow;

/// Outcomes by function and version.
pub(crate) type Tallies = BTreeMap<(FunctionName, VersionId), Tally>;

/// The fleet.
pub(crate) struct Fleet {
    clock: Clock,
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    nodes: BTreeMap<Name, Entry>,
    /// Versions whose invocations are counted, and the counts since they were last taken.
    watched: BTreeSet<(FunctionName, VersionId)>,
    tallies: Tallies,
    next_session: u64,
}

struct Entry {
    hello: Hello,
    last_seen_ms: u64,
    /// When the link came or went.
    since_ms: u64,
    session: Option<Session>,
    /// What it said last; kept when the link goes, for people.
    observed: Observed,
    /// An operator says that it takes no requests.
    drained: bool,
    /// It says so itself: it is stopping.
    stopping: bool,
}

struct Session {
    id: u64,
    connection: Connection,
    /// Whether `observed` is of this session.
    heard: bool,
}

impl Fleet {
    /// The nodes of the database, none of them connected yet.
    pub(crate) fn new(rows: Vec<NodeRow>, clock: Clock) -> Self {
        let now_ms = clock.now_ms();
        let entry = |row: NodeRow| {
            let entry = Entry {
                hello: row.hello,
                last_seen_ms: row.last_seen_ms,
                // Nobody could reach the coordinator before it was there.
                since_ms: now_ms,
                session: None,
                observed: Observed::default(),
                drained: row.drained,
                stopping: false,
            };
            (row.name, entry)
        };
        let nodes = rows.into_iter().map(entry).collect();
        let inner = Mutex::new(Inner {
            nodes,
            ..Inner::default()
        });
        Fleet {
            clock,
            inner,
            changed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is complete before anything can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something has changed since the last call; for one waiter.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Makes [`Fleet::changed`] return.
    pub(crate) fn wake(&self) {
        self.changed.notify_one();
    }

    /// A node is there. Returns its session's number, and the connection that this one replaces.
    pub(crate) fn connected(
        &self,
        name: &Name,
        hello: Hello,
        connection: Connection,
    ) -> (u64, Option<Connection>) {
        let now_ms = self.clock.now_ms();
        let mut inner = self.lock();
        inner.next_session += 1;
        let id = inner.next_session;
        let session = Some(Session {
            id,
            connection,
            heard: false,
        });
        let replaced = match inner.nodes.get_mut(name) {
            Some(entry) => {
                entry.hello = hello;
                entry.last_seen_ms = now_ms;
                entry.since_ms = now_ms;
                entry.stopping = false;
                std::mem::replace(&mut entry.session, session)
            }
            None => {
                let observed = Observed::default();
                let entry = Entry {
                    hello,
                    last_seen_ms: now_ms,
                    since_ms: now_ms,
                    session,
                    observed,
                    drained: false,
                    stopping: false,
                };
                inner.nodes.insert(name.clone(), entry);
                None
            }
        };
        drop(inner);
        self.wake();
        (id, replaced.map(|session| session.connection))
    }

    /// A session is over. Returns when the node was last seen, if it was the node's newest one.
    pub(crate) fn disconnected(&self, name: &Name, session: u64) -> Option<u64> {
        let mut inner = self.lock();
        let entry = inner.nodes.get_mut(name)?;
        entry.session.take_if(|own| own.id == session)?;
        entry.since_ms = self.clock.now_ms();
        let last_seen_ms = entry.last_seen_ms;
        drop(inner);
        self.wake();
        Some(last_seen_ms)
    }

    /// A node tells what it has.
    pub(crate) fn observed(&self, name: &Name, session: u64, mut observed: Observed) {
        for version in &mut observed.versions {
            if let VersionState::Failed { reason } = &mut version.state {
                *reason = cut(reason, MAX_REASON_CHARS);
            }
        }
        let now_ms = self.clock.now_ms();
        if let Some(entry) = self.lock().session(name, session) {
            entry.last_seen_ms = now_ms;
            entry.observed = observed;
            if let Some(session) = &mut entry.session {
                session.heard = true;
            }
        }
        self.wake();
    }

    /// A node tells how invocations went.
    pub(crate) fn reported(&self, name: &Name, session: u64, report: &Report) {
        let now_ms = self.clock.now_ms();
        let mut inner = self.lock();
        let Some(entry) = inner.session(name, session) else {
            return;
        };
        entry.last_seen_ms = now_ms;
        entry.stopping = report.stopping;
        for version in &report.versions {
            let key = (version.function.clone(), version.version);
            if inner.watched.contains(&key) {
                inner
                    .tallies
                    .entry(key)
                    .or_default()
                    .add(tally(&version.outcomes));
            }
        }
        drop(inner);
        if !report.versions.is_empty() {
            self.wake();
        }
    }

    /// Says whose invocations are to be counted from now on.
    pub(crate) fn watch(&self, watched: BTreeSet<(FunctionName, VersionId)>) {
        let mut inner = self.lock();
        inner.tallies.retain(|key, _| watched.contains(key));
        inner.watched = watched;
    }

    /// What was counted since the last call.
    pub(crate) fn take_tallies(&self) -> Tallies {
        std::mem::take(&mut self.lock().tallies)
    }

    /// The nodes in the regions that `allowed` lets pass, as a rollout of `function` sees them.
    pub(crate) fn sights(
        &self,
        function: &FunctionName,
        allowed: impl Fn(&str) -> bool,
    ) -> BTreeMap<Name, Sight> {
        let inner = self.lock();
        let sight = |(name, entry): (&Name, &Entry)| {
            let since_ms = entry.since_ms;
            let heard = entry.session.as_ref().is_some_and(|session| session.heard);
            let versions = match heard {
                true => entry.versions_of(function),
                // What it said in an earlier session may no longer be so.
                false => BTreeMap::new(),
            };
            let sight = Sight {
                presence: match entry.session {
                    Some(_) => Presence::Connected { since_ms },
                    None => Presence::Absent { since_ms },
                },
                generation: if heard { entry.observed.generation } else { 0 },
                versions,
            };
            (name.clone(), sight)
        };
        inner
            .nodes
            .iter()
            .filter(|(_, entry)| allowed(&entry.hello.region))
            .map(sight)
            .collect()
    }

    /// The nodes as routing sees them.
    pub(crate) fn route_nodes(&self, function: &FunctionName) -> Vec<RouteNode> {
        let inner = self.lock();
        let node = |(name, entry): (&Name, &Entry)| RouteNode {
            name: name.clone(),
            region: entry.hello.region.clone(),
            coordinates: entry.hello.coordinates,
            ingress_url: entry.hello.ingress_url.clone(),
            connected: entry.session.is_some(),
            drained: entry.drained,
            stopping: entry.stopping,
            versions: entry
                .versions_of(function)
                .into_values()
                .map(|seen| (seen.state, seen.routed))
                .collect(),
        };
        inner.nodes.iter().map(node).collect()
    }

    /// The nodes for people; labels of versions are left empty.
    pub(crate) fn views(&self) -> Vec<NodeView> {
        let inner = self.lock();
        let view = |(name, entry): (&Name, &Entry)| NodeView {
            name: name.clone(),
            region: entry.hello.region.clone(),
            coordinates: entry.hello.coordinates,
            ingress_url: entry.hello.ingress_url.clone(),
            connected: entry.session.is_some(),
            drained: entry.drained,
            last_seen_ms: entry.last_seen_ms,
            rtt_us: entry.session.as_ref().map(|session| {
                u64::try_from(session.connection.rtt().as_micros()).unwrap_or(u64::MAX)
            }),
            kvm: entry.hello.kvm.clone(),
            versions: entry.observed.versions.iter().map(version_view).collect(),
        };
        inner.nodes.iter().map(view).collect()
    }

    /// Says whether a node is to take requests; whether it is known.
    pub(crate) fn set_drained(&self, name: &Name, drained: bool) -> bool {
        let mut inner = self.lock();
        let Some(entry) = inner.nodes.get_mut(name) else {
            return false;
        };
        entry.drained = drained;
        true
    }

    /// What a node is to know of its own draining, and where else callers may go: the nearest that serve.
    pub(crate) fn draining(&self, name: &Name) -> Draining {
        let inner = self.lock();
        let own = inner.nodes.get(name);
        let others = inner.nodes.iter().filter(|(other, entry)| {
            let serves = entry.observed.versions.iter().any(|version| version.routed);
            *other != name && entry.session.is_some() && serves && !entry.drained && !entry.stopping
        });
        let distance = |entry: &Entry| {
            own.map_or(0.0, |own| {
                own.hello.coordinates.distance_km(entry.hello.coordinates)
            })
        };
        let mut others: Vec<_> = others.map(|(_, entry)| (distance(entry), entry)).collect();
        others.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let urls = others.into_iter().take(MAX_OTHER_NODES);
        Draining {
            drained: own.is_some_and(|own| own.drained),
            others: urls
                .map(|(_, entry)| entry.hello.ingress_url.clone())
                .collect(),
        }
    }

    /// The node's region.
    pub(crate) fn region(&self, name: &Name) -> Option<String> {
        self.lock()
            .nodes
            .get(name)
            .map(|entry| entry.hello.region.clone())
    }

    /// When connected nodes were last seen.
    pub(crate) fn last_seen(&self) -> Vec<(Name, u64)> {
        let inner = self.lock();
        let connected = inner
            .nodes
            .iter()
            .filter(|(_, entry)| entry.session.is_some());
        connected
            .map(|(name, entry)| (name.clone(), entry.last_seen_ms))
            .collect()
    }
}

impl Inner {
    /// The node, if `session` is its newest one.
    fn session(&mut self, name: &Name, session: u64) -> Option<&mut Entry> {
        let entry = self.nodes.get_mut(name)?;
        entry
            .session
            .as_ref()
            .is_some_and(|own| own.id == session)
            .then_some(entry)
    }
}

impl Entry {
    fn versions_of(&self, function: &FunctionName) -> BTreeMap<VersionId, Seen> {
        let of_function = self
            .observed
            .versions
            .iter()
            .filter(|seen| seen.function == *function);
        of_function
            .map(|seen| {
                (
                    seen.version,
                    Seen {
                        state: seen.state.clone(),
                        routed: seen.routed,
                    },
                )
            })
            .collect()
    }
}

/// What outcomes say of a version: those that are not its doing are left out.
fn tally(outcomes: &[(Outcome, u64)]) -> Tally {
    let mut tally = Tally::default();
    for (outcome, count) in outcomes {
        let count = *count;
        let its_doing = *outcome == Outcome::Answered || outcome.counts_as_error();
        tally.add(Tally {
            invocations: if its_doing { count } else { 0 },
            errors: if outcome.counts_as_error() { count } else { 0 },
            crashes: if *outcome == Outcome::Crash { count } else { 0 },
        });
    }
    tally
}

fn version_view(seen: &holm_model::control::ObservedVersion) -> NodeVersionView {
    let (state, reason) = match &seen.state {
        VersionState::Preparing => ("preparing", None),
        VersionState::Ready => ("ready", None),
        VersionState::Failed { reason } => ("failed", Some(reason.clone())),
    };
    NodeVersionView {
        function: seen.function.clone(),
        version: seen.version,
        label: String::new(),
        state: state.to_owned(),
        reason,
        routed: seen.routed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_that_are_not_the_versions_doing_are_not_held_against_it() {
        let all: Vec<_> = Outcome::ALL
            .into_iter()
            .map(|outcome| (outcome, 10))
            .collect();
        assert_eq!(
            tally(&all),
            Tally {
                invocations: 40,
                errors: 30,
                crashes: 10
            }
        );
        let platform = [
            (Outcome::Shed, 5),
            (Outcome::PlatformFault, 5),
            (Outcome::Cancelled, 5),
        ];
        assert_eq!(tally(&platform), Tally::default());
    }
}
