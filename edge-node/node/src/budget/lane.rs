//! Where a lane finds what a version's requests reserve.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use holm_model::budget::most_of;
use tokio::sync::watch;

use super::gauge::Reserve;
use super::{Gauges, reserved_units};
use crate::deploy::routes::Live;
use crate::limits::MAX_FUNCTIONS;
use crate::pool::core::Key;

/// One lane's view of the budgets. Without any, a request costs one atomic read.
#[derive(Debug)]
pub(crate) struct View {
    gauges: watch::Receiver<Arc<Gauges>>,
    now: Arc<Gauges>,
    /// By version; none where no budget covers it.
    known: HashMap<Key, Option<Arc<Reserve>>>,
}

impl View {
    pub(crate) fn new(mut gauges: watch::Receiver<Arc<Gauges>>) -> RefCell<Self> {
        let now = gauges.borrow_and_update().clone();
        RefCell::new(View {
            gauges,
            now,
            known: HashMap::new(),
        })
    }

    /// What a request of the version reserves, if there is a budget for it.
    pub(crate) fn reserve(&mut self, live: &Live) -> Option<Arc<Reserve>> {
        if self.gauges.has_changed().unwrap_or(false) {
            self.now = self.gauges.borrow_and_update().clone();
            self.known.clear();
        }
        if self.now.0.is_empty() {
            return None;
        }
        if let Some(known) = self.known.get(&live.key) {
            return known.clone();
        }
        // Versions come and go.
        if self.known.len() >= MAX_FUNCTIONS {
            self.known.clear();
        }
        let found = find(&self.now, live);
        self.known.insert(live.key, found.clone());
        found
    }
}

fn find(gauges: &Gauges, live: &Live) -> Option<Arc<Reserve>> {
    let units = reserved_units(live);
    let covering = gauges
        .0
        .iter()
        .filter(|gauge| gauge.scope.covers(&live.function));
    let covering: Vec<_> = covering
        .map(|gauge| {
            let most = most_of(&gauge.prices(), gauge.month, &units);
            (gauge.clone(), most)
        })
        .collect();
    let mut scopes: Vec<_> = covering.iter().map(|(gauge, _)| &gauge.scope).collect();
    scopes.sort();
    scopes.dedup();
    let budgets = scopes.len();
    (budgets > 0).then(|| Arc::new(Reserve::new(covering, budgets)))
}
