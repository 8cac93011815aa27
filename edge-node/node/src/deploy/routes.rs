//! Which version serves which function, as the request path reads it.
//!
//! A [`Table`] is never changed; a new one takes its place. Each ingress thread keeps the last one it
//! saw and looks at a version counter to know whether there is a newer one, so that reading costs no
//! lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Weak};
use std::time::Duration;

use holm_model::control::Draining;
use holm_model::ids::{FunctionName, Name, VersionId};
use holm_model::manifest::{Isolation, Limits};
use holm_vmm::{Outbound, Snapshot};
use hyper::header::HeaderValue;
use tokio::sync::Semaphore;

use super::core::VerifiedRelease;
use crate::fair::Whose;
use crate::outbound::Allowed;
use crate::pool::core::{Key, TenantId};
use crate::tally::Counts;

/// A release that is prepared on this node: a version with its configuration, if it has one.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) key: Key,
    pub(crate) function: FunctionName,
    pub(crate) version: VersionId,
    /// The number of its configuration, if it has one.
    pub(crate) configuration: Option<u64>,
    pub(crate) label: HeaderValue,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) limits: Limits,
    pub(crate) isolation: Isolation,
    /// Most at a time in one instance.
    pub(crate) requests_per_instance: u32,
    /// Where it may connect to.
    pub(crate) allowed: Allowed,
    pub(crate) probe_path: String,
    pub(crate) tenant: Arc<Tenant>,
    /// Slots to be filled ahead on this node, if there are empty ones.
    pub(crate) ahead: u32,
    /// Most instances that are kept on this node.
    pub(crate) max_instances: Option<u32>,
    /// When slots that are not needed are given back.
    pub(crate) cooldown: Option<Duration>,
    /// One permit for each invocation that may run on this node at a time.
    pub(crate) permits: Arc<Semaphore>,
    /// Requests that wait for a permit or a slot.
    pub(crate) waiting: Arc<AtomicUsize>,
    /// Instances that the workers have.
    pub(crate) at_workers: AtomicUsize,
    pub(crate) counts: Arc<Counts>,
    /// The node is not to have it any more: its files go.
    pub(crate) dropped: AtomicBool,
}

impl Live {
    pub(crate) fn new(
        key: Key,
        release: &VerifiedRelease,
        snapshot: Arc<Snapshot>,
        allowed: Allowed,
        counts: Arc<Counts>,
        tenant: Arc<Tenant>,
    ) -> Self {
        let (statement, version) = (&release.version.statement, release.version.id);
        let manifest = &statement.manifest;
        let (scale, at_a_time) = (&manifest.scale, manifest.limits.concurrency);
        // Where each request has an instance, there are no more of those than of these.
        let (max_instances, at_a_time) = match scale.isolation {
            Isolation::Request => (None, scale.max.unwrap_or(u32::MAX).min(at_a_time)),
            Isolation::Instance => (scale.max, at_a_time),
        };
        Live {
            key,
            function: statement.function.clone(),
            version,
            configuration: release.number(),
            // A label that cannot stand in a header is for people elsewhere.
            label: HeaderValue::from_str(&release.label())
                .or_else(|_| HeaderValue::from_str(&version.short()))
                .expect("hexadecimal digits can stand in a header"),
            snapshot,
            limits: manifest.limits.clone(),
            isolation: manifest.scale.isolation,
            requests_per_instance: manifest.scale.requests_per_instance(),
            allowed,
            probe_path: manifest.rollout.probe_path.clone(),
            tenant,
            ahead: scale.min,
            max_instances,
            cooldown: scale.cooldown_ms.map(Duration::from_millis),
            permits: Arc::new(Semaphore::new(at_a_time as usize)),
            waiting: Arc::default(),
            at_workers: AtomicUsize::new(0),
            counts,
            dropped: AtomicBool::new(false),
        }
    }

    /// What one instance may reach.
    pub(crate) fn outbound(&self) -> Option<Box<dyn Outbound>> {
        self.allowed.outbound()
    }

    /// Whose time an instance takes.
    pub(crate) fn whose(&self) -> Whose {
        Whose {
            tenant: self.tenant.id,
            key: self.key,
        }
    }

    /// The wall deadline of one invocation.
    pub(crate) fn deadline(&self) -> Duration {
        Duration::from_millis(self.limits.deadline_ms)
    }
}

/// Whose functions they are.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) id: TenantId,
    /// Requests of all its functions that wait for a permit or a slot.
    pub(crate) waiting: Arc<AtomicUsize>,
    /// Instances of all its functions that the workers have.
    pub(crate) at_workers: AtomicUsize,
}

/// The tenants of the versions that are here.
#[derive(Debug, Default)]
pub(crate) struct Tenants {
    known: HashMap<Name, Weak<Tenant>>,
    last: u64,
}

impl Tenants {
    /// The tenant of this name; the same as before as long as one of its versions is here.
    pub(crate) fn named(&mut self, name: &Name) -> Arc<Tenant> {
        if let Some(tenant) = self.known.get(name).and_then(Weak::upgrade) {
            return tenant;
        }
        self.known.retain(|_, tenant| tenant.strong_count() > 0);
        self.last += 1;
        let tenant = Arc::new(Tenant {
            id: TenantId(self.last),
            waiting: Arc::default(),
            at_workers: AtomicUsize::new(0),
        });
        self.known.insert(name.clone(), Arc::downgrade(&tenant));
        tenant
    }
}

/// Every function that this node is to have.
#[derive(Debug, Default)]
pub(crate) struct Table {
    functions: HashMap<String, HashMap<String, Option<Arc<Live>>>>,
    /// Whether there is a desired state at all.
    informed: bool,
    /// Whether the node takes requests, and where else callers may go.
    draining: Draining,
}

/// What a table has for a function.
#[derive(Debug)]
pub(crate) enum Found<'a> {
    /// This version serves it.
    Live(&'a Arc<Live>),
    /// It is to be here, but no version is ready; or nobody has told this node anything yet.
    NotReady,
    /// It is not to be here.
    Unknown,
}

impl Table {
    /// A table of functions and the versions that serve them, if any does.
    pub(crate) fn new(
        functions: impl Iterator<Item = (FunctionName, Option<Arc<Live>>)>,
        draining: Draining,
    ) -> Self {
        let mut table = Table {
            functions: HashMap::new(),
            informed: true,
            draining,
        };
        for (name, live) in functions {
            let tenant = table.functions.entry(name.tenant.into()).or_default();
            tenant.insert(name.function.into(), live);
        }
        table
    }

    /// What serves `tenant/function`.
    pub(crate) fn find(&self, tenant: &str, function: &str) -> Found<'_> {
        match self
            .functions
            .get(tenant)
            .and_then(|functions| functions.get(function))
        {
            Some(Some(live)) => Found::Live(live),
            Some(None) => Found::NotReady,
            None if self.informed => Found::Unknown,
            None => Found::NotReady,
        }
    }

    /// Whether the node takes requests, and where else callers may go.
    pub(crate) fn draining(&self) -> &Draining {
        &self.draining
    }

    /// Every version that takes requests.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Arc<Live>> {
        self.functions
            .values()
            .flat_map(|functions| functions.values().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_is_the_same_for_all_its_versions_and_forgotten_with_the_last() {
        let mut tenants = Tenants::default();
        let (acme, other) = ("acme".parse().unwrap(), "other".parse().unwrap());
        let first = tenants.named(&acme);
        assert_eq!(tenants.named(&acme).id, first.id);
        assert_ne!(tenants.named(&other).id, first.id);
        drop(first);
        tenants.named(&other);
        assert_eq!(tenants.known.len(), 1);
    }

    #[test]
    fn a_node_that_knows_nothing_is_not_ready_rather_than_without_the_function() {
        assert!(matches!(
            Table::default().find("acme", "hello"),
            Found::NotReady
        ));
        let functions = [("acme/hello".parse().unwrap(), None)];
        let table = Table::new(functions.into_iter(), Draining::default());
        assert!(matches!(table.find("acme", "hello"), Found::NotReady));
        assert!(matches!(table.find("acme", "other"), Found::Unknown));
        assert!(matches!(table.find("hello", "acme"), Found::Unknown));
    }
}
