//! What is known of the nodes, in memory: who is connected, what they have, how it goes.
//!
//! Links write here, rollouts, routing and the API read. Nothing here waits for anything. Where
//! there are several coordinators, what changes on links here is collected for the others, and what
//! they tell of theirs comes in beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use holm_model::api::{NodeVersionView, NodeView};
use holm_model::configuration::ReleaseId;
use holm_model::control::{Draining, Hello, Observed, Report, VersionState};
use holm_model::ids::{FunctionName, Name};
use holm_model::limits::MAX_OTHER_NODES;
use holm_model::place::Coordinates;
use holm_model::run_times::RunTimes;
use holm_model::usage::Outcome;
use quinn::Connection;
use tokio::sync::Notify;

use super::server::{close, shut};
use crate::clock::Clock;
use crate::limits::{MAX_REASON_CHARS, cut};
use crate::rollout::{Presence, Seen, Sight, Tally};
use crate::route::RouteNode;
use crate::store::{LinkChange, LinkRow, NodeRow};

/// Of a node that has not said where it is.
const NOWHERE: Coordinates = Coordinates {
    latitude_microdegrees: 0,
    longitude_microdegrees: 0,
};

/// Outcomes by function and version, and by node.
pub(crate) type Tallies = BTreeMap<(FunctionName, ReleaseId), BTreeMap<Name, Tally>>;

/// The fleet.
pub(crate) struct Fleet {
    clock: Clock,
    inner: Mutex<Inner>,
    changed: Notify,
    /// Whether other coordinators want to hear of it.
    shared: bool,
    to_tell: Notify,
}

#[derive(Default)]
struct Inner {
    nodes: BTreeMap<Name, Entry>,
    /// Versions whose invocations are counted, and the counts since they were last taken.
    watched: BTreeSet<(FunctionName, ReleaseId)>,
    tallies: Tallies,
    next_session: u64,
    /// Nodes whose links have changed since the others were last told, and whether the link is new.
    untold: BTreeMap<Name, bool>,
}

struct Entry {
    /// None until it has been connected once.
    hello: Option<Hello>,
    /// When the last certificate ends that it was given, as far as this coordinator has learnt it.
    certificate_until_ms: Option<u64>,
    last_seen_ms: u64,
    /// When the link came or went.
    since_ms: u64,
    link: Link,
    /// The number of its newest link here.
    session: u64,
    /// What it said last; kept when the link goes, for people.
    observed: Observed,
    /// Whether `observed` is of its newest link.
    heard: bool,
    /// An operator says that it takes no requests.
    drained: bool,
    /// An operator says that nothing new comes to it.
    cordoned: bool,
    labels: BTreeMap<String, String>,
    /// It says so itself: it is stopping.
    stopping: bool,
    /// Messages on its newest link here that one of the two sides did not know.
    refused: u64,
}

/// Where a node's link is.
enum Link {
    Down,
    Here(Connection),
    /// To the coordinator with this id.
    Elsewhere(String),
}

impl Fleet {
    /// No nodes, until those of the database are learnt.
    pub(crate) fn new(clock: Clock, shared: bool) -> Self {
        Fleet {
            clock,
            inner: Mutex::default(),
            changed: Notify::new(),
            shared,
            to_tell: Notify::new(),
        }
    }

    /// What the database says of the nodes, some of which may not have been known here. Of those whose
    /// certificates are void nothing is left.
    pub(crate) fn learn(&self, rows: &[NodeRow]) {
        let now_ms = self.clock.now_ms();
        let mut inner = self.lock();
        for row in rows {
            if row.revoked {
                inner.untold.remove(&row.name);
                if let Some(gone) = inner.nodes.remove(&row.name)
                    && let Some(connection) = gone.here()
                {
                    shut(
                        connection,
                        close::REFUSED,
                        "this node's certificate was revoked",
                    );
                }
                continue;
            }
            // Nobody could reach the coordinator before it was there.
            let entry = inner
                .nodes
                .entry(row.name.clone())
                .or_insert_with(|| Entry::new(row.hello.clone(), now_ms));
            entry.drained = row.drained;
            entry.cordoned = row.cordoned.is_some();
            entry.certificate_until_ms = row.certificate_until_ms;
            entry.labels.clone_from(&row.labels);
            if entry.here().is_none() {
                entry.hello = row.hello.clone();
                entry.last_seen_ms = row.last_seen_ms;
            }
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

    /// A node was given another certificate.
    pub(crate) fn renewed(&self, name: &Name, until_ms: u64) {
        if let Some(entry) = self.lock().nodes.get_mut(name) {
            entry.certificate_until_ms = Some(until_ms);
        }
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
        let entry = inner
            .nodes
            .entry(name.clone())
            .or_insert_with(|| Entry::new(None, now_ms));
        entry.hello = Some(hello);
        entry.last_seen_ms = now_ms;
        entry.since_ms = now_ms;
        entry.stopping = false;
        entry.session = id;
        entry.heard = false;
        entry.refused = 0;
        let replaced = std::mem::replace(&mut entry.link, Link::Here(connection));
        self.tell(&mut inner, name, true);
        drop(inner);
        self.wake();
        let replaced = match replaced {
            Link::Here(connection) => Some(connection),
            Link::Down | Link::Elsewhere(_) => None,
        };
        (id, replaced)
    }

    /// A session is over. Returns when the node was last seen, if it was the node's newest one.
    pub(crate) fn disconnected(&self, name: &Name, session: u64) -> Option<u64> {
        let now_ms = self.clock.now_ms();
        let mut inner = self.lock();
        let entry = inner.session(name, session)?;
        entry.link = Link::Down;
        entry.since_ms = now_ms;
        let last_seen_ms = entry.last_seen_ms;
        self.tell(&mut inner, name, false);
        drop(inner);
        self.wake();
        Some(last_seen_ms)
    }

    /// The others are to hear of a change of the node's link, or that it was `opened`.
    fn tell(&self, inner: &mut Inner, name: &Name, opened: bool) {
        if self.shared {
            *inner.untold.entry(name.clone()).or_insert(false) |= opened;
            self.to_tell.notify_one();
        }
    }

    /// Waits until there is something to tell the other coordinators; for one waiter.
    pub(crate) async fn to_tell(&self) {
        self.to_tell.notified().await;
    }

    /// What has changed on links here since the last call.
    pub(crate) fn take_changes(&self) -> Vec<LinkChange> {
        let mut inner = self.lock();
        let untold = std::mem::take(&mut inner.untold);
        let change = |(name, opened): (Name, bool)| {
            let entry = inner.nodes.get(&name)?;
            Some(LinkChange {
                session: entry.session,
                opened,
                up: entry.here().is_some(),
                stopping: entry.stopping,
                observed: entry.heard.then(|| entry.observed.clone()),
                node: name,
            })
        };
        untold.into_iter().filter_map(change).collect()
    }

    /// They could not be told.
    pub(crate) fn give_back(&self, changes: &[LinkChange]) {
        let mut inner = self.lock();
        for LinkChange { node, opened, .. } in changes {
            *inner.untold.entry(node.clone()).or_insert(false) |= opened;
        }
    }

    /// The others have forgotten this coordinator's links.
    pub(crate) fn tell_all(&self) {
        let mut inner = self.lock();
        let Inner { nodes, untold, .. } = &mut *inner;
        let here = nodes.iter().filter(|(_, entry)| entry.here().is_some());
        for (name, _) in here {
            untold.entry(name.clone()).or_insert(false);
        }
    }

    /// What others tell of their links. Returns the connections here that are overtaken by them.
    pub(crate) fn told(&self, rows: Vec<LinkRow>) -> Vec<Connection> {
        let now_ms = self.clock.now_ms();
        let mut overtaken = Vec::new();
        let mut inner = self.lock();
        let Inner { nodes, untold, .. } = &mut *inner;
        for row in rows {
            let Some(entry) = nodes.get_mut(&row.node) else {
                continue;
            };
            // A link that the others do not know of yet is newer than what they tell.
            let here = entry.here().is_some();
            if here && (!row.up || untold.get(&row.node) == Some(&true)) {
                continue;
            }
            let same = matches!(&entry.link, Link::Elsewhere(id) if *id == row.coordinator);
            let came_or_went = match row.up {
                true => !same,
                false => entry.connected(),
            };
            if came_or_went {
                entry.since_ms = now_ms;
            }
            let link = match row.up {
                true => Link::Elsewhere(row.coordinator),
                false => Link::Down,
            };
            if let Link::Here(connection) = std::mem::replace(&mut entry.link, link) {
                overtaken.push(connection);
            }
            if row.up {
                entry.last_seen_ms = now_ms;
            }
            entry.stopping = row.stopping;
            entry.heard = row.observed.is_some();
            if let Some(observed) = row.observed {
                entry.observed = observed;
            }
        }
        drop(inner);
        self.wake();
        overtaken
    }

    /// The node's connection here.
    pub(crate) fn connection(&self, name: &Name) -> Option<Connection> {
        let inner = self.lock();
        inner.nodes.get(name)?.here().cloned()
    }

    /// A node tells what it has.
    pub(crate) fn observed(&self, name: &Name, session: u64, mut observed: Observed) {
        for version in &mut observed.versions {
            if let VersionState::Failed { reason } = &mut version.state {
                *reason = cut(reason, MAX_REASON_CHARS);
            }
        }
        let now_ms = self.clock.now_ms();
        let mut inner = self.lock();
        if let Some(entry) = inner.session(name, session) {
            entry.last_seen_ms = now_ms;
            entry.observed = observed;
            entry.heard = true;
            self.tell(&mut inner, name, false);
        }
        drop(inner);
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
        entry.refused = entry.refused.saturating_add(report.refused);
        if std::mem::replace(&mut entry.stopping, report.stopping) != report.stopping {
            self.tell(&mut inner, name, false);
        }
        for version in &report.versions {
            let key = (version.function.clone(), version.version);
            if inner.watched.contains(&key) {
                let of_version = inner.tallies.entry(key).or_default();
                let of_node = of_version.entry(name.clone()).or_default();
                of_node.add(&tally(&version.outcomes, &version.run_times));
            }
        }
        drop(inner);
        if !report.versions.is_empty() {
            self.wake();
        }
    }

    /// A message of the node's is of a kind that is not known here. How many on this link one side did not know.
    pub(crate) fn refused(&self, name: &Name, session: u64) -> u64 {
        let mut inner = self.lock();
        let Some(entry) = inner.session(name, session) else {
            return 0;
        };
        entry.refused = entry.refused.saturating_add(1);
        entry.refused
    }

    /// Says whose invocations are to be counted from now on.
    pub(crate) fn watch(&self, watched: BTreeSet<(FunctionName, ReleaseId)>) {
        let mut inner = self.lock();
        inner.tallies.retain(|key, _| watched.contains(key));
        inner.watched = watched;
    }

    /// What was counted on links of other coordinators.
    pub(crate) fn counted_elsewhere(&self, counted: Tallies) {
        let mut inner = self.lock();
        for (key, nodes) in counted {
            let of_version = inner.tallies.entry(key).or_default();
            for (node, tally) in nodes {
                of_version.entry(node).or_default().add(&tally);
            }
        }
        drop(inner);
        self.wake();
    }

    /// What was counted since the last call.
    pub(crate) fn take_tallies(&self) -> Tallies {
        std::mem::take(&mut self.lock().tallies)
    }

    /// The nodes whose region and labels `allowed` lets pass, as a rollout of `function` sees them; not those that
    /// are cordoned.
    pub(crate) fn sights(
        &self,
        function: &FunctionName,
        allowed: impl Fn(&str, &BTreeMap<String, String>) -> bool,
    ) -> BTreeMap<Name, Sight> {
        let inner = self.lock();
        let sight = |(name, entry): (&Name, &Entry)| {
            let since_ms = entry.since_ms;
            let heard = entry.connected() && entry.heard;
            let versions = match heard {
                true => entry.versions_of(function),
                // What it said in an earlier session may no longer be so.
                false => BTreeMap::new(),
            };
            let sight = Sight {
                region: entry.said(|hello| hello.region.clone()),
                labels: entry.labels.clone(),
                presence: match entry.connected() {
                    true => Presence::Connected { since_ms },
                    false => Presence::Absent { since_ms },
                },
                generation: if heard { entry.observed.generation } else { 0 },
                versions,
            };
            (name.clone(), sight)
        };
        inner
            .nodes
            .iter()
            .filter(|(_, entry)| {
                let hello = entry.hello.as_ref();
                !entry.cordoned && hello.is_some_and(|hello| allowed(&hello.region, &entry.labels))
            })
            .map(sight)
            .collect()
    }

    /// The latest generation that a connected node has worked on, of those up to `at_most`, and the node.
    pub(crate) fn latest_generation(&self, at_most: u64) -> Option<(Name, u64)> {
        let inner = self.lock();
        let heard = |(_, entry): &(&Name, &Entry)| {
            entry.connected() && entry.heard && entry.observed.generation <= at_most
        };
        let latest = inner
            .nodes
            .iter()
            .filter(heard)
            .max_by_key(|(_, entry)| entry.observed.generation)?;
        Some((latest.0.clone(), latest.1.observed.generation))
    }

    /// The nodes as routing sees them.
    pub(crate) fn route_nodes(&self, function: &FunctionName) -> Vec<RouteNode> {
        let inner = self.lock();
        let node = |(name, entry): (&Name, &Entry)| {
            let hello = entry.hello.as_ref()?;
            Some(RouteNode {
                name: name.clone(),
                region: hello.region.clone(),
                coordinates: hello.coordinates,
                ingress_url: hello.ingress_url.clone(),
                connected: entry.connected(),
                drained: entry.drained,
                cordoned: entry.cordoned,
                stopping: entry.stopping,
                versions: entry
                    .versions_of(function)
                    .into_values()
                    .map(|seen| (seen.state, seen.routed))
                    .collect(),
            })
        };
        inner.nodes.iter().filter_map(node).collect()
    }

    /// The nodes for people; labels of versions are left empty.
    pub(crate) fn views(&self) -> Vec<NodeView> {
        let inner = self.lock();
        let view = |(name, entry): (&Name, &Entry)| NodeView {
            name: name.clone(),
            never_connected: entry.hello.is_none(),
            region: entry.said(|hello| hello.region.clone()),
            coordinates: entry
                .hello
                .as_ref()
                .map_or(NOWHERE, |hello| hello.coordinates),
            ingress_url: entry.said(|hello| hello.ingress_url.clone()),
            connected: entry.connected(),
            drained: entry.drained,
            cordoned: entry.cordoned,
            labels: entry.labels.clone(),
            last_seen_ms: entry.last_seen_ms,
            certificate_until_ms: entry.certificate_until_ms,
            // Where the link is elsewhere, that coordinator knows.
            rtt_us: entry
                .here()
                .and_then(|connection| u64::try_from(connection.rtt().as_micros()).ok()),
            coordinator: match &entry.link {
                Link::Elsewhere(id) => Some(id.clone()),
                Link::Down | Link::Here(_) => None,
            },
            kvm: entry.said(|hello| hello.kvm.clone()),
            refused_messages: entry.refused,
            versions: entry.observed.versions.iter().map(version_view).collect(),
        };
        inner.nodes.iter().map(view).collect()
    }

    /// The releases that nodes said last that they have, and which nodes.
    pub(crate) fn held(&self) -> BTreeMap<ReleaseId, BTreeSet<Name>> {
        let inner = self.lock();
        let mut held = BTreeMap::<ReleaseId, BTreeSet<Name>>::new();
        for (name, entry) in &inner.nodes {
            for seen in &entry.observed.versions {
                held.entry(seen.version).or_default().insert(name.clone());
            }
        }
        held
    }

    /// Whether it is cordoned.
    pub(crate) fn is_cordoned(&self, name: &Name) -> bool {
        let inner = self.lock();
        inner.nodes.get(name).is_some_and(|entry| entry.cordoned)
    }

    /// What a node is to know of its own draining, and where else callers may go: the nearest that serve.
    pub(crate) fn draining(&self, name: &Name) -> Draining {
        let inner = self.lock();
        let own = inner.nodes.get(name);
        let others = inner.nodes.iter().filter(|(other, entry)| {
            let serves = entry.observed.versions.iter().any(|version| version.routed);
            let takes_none = entry.drained || entry.cordoned || entry.stopping;
            *other != name && entry.connected() && serves && !takes_none
        });
        let here = own.and_then(|own| own.hello.as_ref());
        let distance = |there: &Hello| {
            here.map_or(0.0, |here| here.coordinates.distance_km(there.coordinates))
        };
        let mut others: Vec<_> = others
            .filter_map(|(_, entry)| entry.hello.as_ref())
            .map(|hello| (distance(hello), hello))
            .collect();
        others.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let urls = others.into_iter().take(MAX_OTHER_NODES);
        Draining {
            drained: own.is_some_and(|own| own.drained),
            others: urls.map(|(_, hello)| hello.ingress_url.clone()).collect(),
        }
    }

    /// The node's region and labels, by which versions are placed; nothing of both if it is not known.
    pub(crate) fn place(&self, name: &Name) -> (String, BTreeMap<String, String>) {
        let inner = self.lock();
        let Some(entry) = inner.nodes.get(name) else {
            return Default::default();
        };
        (
            entry.said(|hello| hello.region.clone()),
            entry.labels.clone(),
        )
    }

    /// When nodes that are connected here were last seen.
    pub(crate) fn last_seen(&self) -> Vec<(Name, u64)> {
        let inner = self.lock();
        let connected = inner
            .nodes
            .iter()
            .filter(|(_, entry)| entry.here().is_some());
        connected
            .map(|(name, entry)| (name.clone(), entry.last_seen_ms))
            .collect()
    }
}

impl Inner {
    /// The node, if `session` is its newest one.
    fn session(&mut self, name: &Name, session: u64) -> Option<&mut Entry> {
        let entry = self.nodes.get_mut(name)?;
        let here = entry.here().is_some();
        (here && entry.session == session).then_some(entry)
    }
}

impl Entry {
    /// Its connection, if that is here.
    fn here(&self) -> Option<&Connection> {
        match &self.link {
            Link::Here(connection) => Some(connection),
            Link::Down | Link::Elsewhere(_) => None,
        }
    }

    /// A node that has not been heard of here.
    fn new(hello: Option<Hello>, now_ms: u64) -> Self {
        Entry {
            hello,
            certificate_until_ms: None,
            last_seen_ms: now_ms,
            since_ms: now_ms,
            link: Link::Down,
            session: 0,
            observed: Observed::default(),
            heard: false,
            drained: false,
            cordoned: false,
            labels: BTreeMap::new(),
            stopping: false,
            refused: 0,
        }
    }

    /// Something that it has said of itself; nothing if it never was there.
    fn said(&self, what: impl Fn(&Hello) -> String) -> String {
        self.hello.as_ref().map(what).unwrap_or_default()
    }

    /// Whether its link is up, here or elsewhere.
    fn connected(&self) -> bool {
        !matches!(self.link, Link::Down)
    }

    fn versions_of(&self, function: &FunctionName) -> BTreeMap<ReleaseId, Seen> {
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
                        record: seen
                            .record
                            .as_ref()
                            .map(|record| tally(&record.outcomes, &record.run_times)),
                    },
                )
            })
            .collect()
    }
}

/// What outcomes say of a version: those that are not its doing are left out.
fn tally(outcomes: &[(Outcome, u64)], run_times: &RunTimes) -> Tally {
    let mut tally = Tally {
        run_times: run_times.clone(),
        ..Tally::default()
    };
    for (outcome, count) in outcomes {
        let count = *count;
        let its_doing = *outcome == Outcome::Answered || outcome.counts_as_error();
        tally.add(&Tally {
            invocations: if its_doing { count } else { 0 },
            errors: if outcome.counts_as_error() { count } else { 0 },
            crashes: if *outcome == Outcome::Crash { count } else { 0 },
            run_times: RunTimes::default(),
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
        configuration: None,
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
            tally(&all, &RunTimes::default()),
            Tally {
                invocations: 40,
                errors: 30,
                crashes: 10,
                run_times: RunTimes::default(),
            }
        );
        let platform = [
            (Outcome::Shed, 5),
            (Outcome::PlatformFault, 5),
            (Outcome::Cancelled, 5),
        ];
        assert_eq!(tally(&platform, &RunTimes::default()), Tally::default());
    }
}
