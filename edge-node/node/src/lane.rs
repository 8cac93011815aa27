//! A lane: one ingress thread and everything that belongs to it alone. Nothing here is locked.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use holm_model::control::Observed;
use holm_model::ids::{Name, RequestId};
use hyper::header::HeaderValue;
use tokio::sync::{Notify, mpsc, watch};

use crate::budget::{self, Gauges};
use crate::deploy::routes::{Found, Live, Table};
use crate::fair;
use crate::logs::Logs;
use crate::meter::Meter;
use crate::pool::Pool;
use crate::request::answers::Answers;
use crate::request::body::Budget;
use crate::request::handover::Handed;
use crate::tally::Tally;
use crate::worker::Workers;

const ID_BYTES: usize = 16;
const IDS_DRAWN: usize = 64;

/// What all lanes share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) name: Name,
    pub(crate) name_header: HeaderValue,
    pub(crate) domain: Option<String>,
    pub(crate) workers: Workers,
    pub(crate) tally: Arc<Tally>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) observed: watch::Receiver<Observed>,
    pub(crate) slots: usize,
    /// To each ingress thread, what others hand to it.
    pub(crate) lanes: Vec<mpsc::Sender<Handed>>,
    /// Ingress threads that have requests of their own connections.
    pub(crate) serving: watch::Sender<usize>,
    /// What is under way gets no more time.
    pub(crate) over: AtomicBool,
}

impl Shared {
    /// Whether the time of a stopping node is over.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

/// One ingress thread's own.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Rc<Pool>,
    pub(crate) meter: RefCell<Meter>,
    pub(crate) bodies: Budget,
    pub(crate) answers: Answers,
    pub(crate) budgets: RefCell<budget::lane::View>,
    routes: RefCell<watch::Receiver<Arc<Table>>>,
    table: RefCell<Arc<Table>>,
    ids: RefCell<Ids>,
    stopping: Cell<bool>,
    over: Notify,
}

impl Lane {
    pub(crate) fn new(
        shared: Arc<Shared>,
        pool: Rc<Pool>,
        meter: Meter,
        mut routes: watch::Receiver<Arc<Table>>,
        gauges: watch::Receiver<Arc<Gauges>>,
    ) -> Rc<Self> {
        let table = routes.borrow_and_update().clone();
        Rc::new(Lane {
            shared,
            pool,
            meter: RefCell::new(meter),
            bodies: Budget::default(),
            answers: Answers::default(),
            budgets: budget::lane::View::new(gauges),
            routes: RefCell::new(routes),
            table: RefCell::new(table),
            ids: RefCell::default(),
            stopping: Cell::new(false),
            over: Notify::new(),
        })
    }

    /// The newest table. Costs one atomic read unless there is a newer one than last time.
    pub(crate) fn table(&self) -> Arc<Table> {
        let mut routes = self.routes.borrow_mut();
        if routes.has_changed().unwrap_or(false) {
            *self.table.borrow_mut() = routes.borrow_and_update().clone();
        }
        self.table.borrow().clone()
    }

    /// Whether the version still takes requests.
    pub(crate) fn serves(&self, live: &Live) -> bool {
        let name = &live.function;
        match self
            .table()
            .find(name.tenant.as_str(), name.function.as_str())
        {
            Found::Live(serving) => serving.key == live.key,
            Found::NotReady | Found::Unknown => false,
        }
    }

    /// How long this thread runs a request of the version at a time before a worker takes over.
    pub(crate) fn first_quantum(&self, live: &Live) -> Duration {
        // A tenant that has the node to itself takes nothing from others; its functions do from each other.
        let at_workers = match self.pool.has_tenants() {
            true => &live.tenant.at_workers,
            false => &live.at_workers,
        };
        let workers = self.shared.workers.count();
        fair::first_quantum(at_workers.load(Ordering::Relaxed), workers)
    }

    /// No new requests are taken from now on.
    pub(crate) fn stop(&self) {
        self.stopping.set(true);
    }

    /// What is under way gets no more time: who has no answer yet is told so.
    pub(crate) fn end(&self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.over.notify_waiters();
    }

    /// Waits for [`Lane::end`], from now on.
    pub(crate) async fn ended(&self) {
        self.over.notified().await;
    }

    /// Whether the node is about to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// A new request's id.
    pub(crate) fn next_id(&self) -> RequestId {
        self.ids.borrow_mut().next()
    }
}

/// Random ids, drawn many at a time.
#[derive(Debug, Default)]
struct Ids(Vec<[u8; ID_BYTES]>);

impl Ids {
    fn next(&mut self) -> RequestId {
        if self.0.is_empty() {
            let mut drawn = [0; ID_BYTES * IDS_DRAWN];
            getrandom::fill(&mut drawn).expect("Linux has had getrandom since 3.17");
            let (ids, _) = drawn.as_chunks::<ID_BYTES>();
            self.0.extend_from_slice(ids);
        }
        RequestId(self.0.pop().expect("ids were drawn just now"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_do_not_repeat() {
        let mut ids = Ids::default();
        let drawn: std::collections::BTreeSet<_> = (0..3 * IDS_DRAWN).map(|_| ids.next()).collect();
        assert_eq!(drawn.len(), 3 * IDS_DRAWN);
    }
}
