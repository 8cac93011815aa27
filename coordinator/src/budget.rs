//! Budgets, beside their rows: the list that nodes keep to, and who is told of alerts.

use std::sync::Arc;

use holm_model::api::BudgetAlert;
use holm_model::budget::{BudgetList, Month};
use tokio::sync::watch;

use crate::clock::Clock;
use crate::limits::BUDGETS_TICK;
use crate::store::{Came, Deed, Store, StoreError};

/// The hard budgets as they are now.
pub(crate) struct Budgets {
    store: Store,
    clock: Clock,
    list: watch::Sender<Arc<BudgetList>>,
}

impl Budgets {
    pub(crate) fn new(store: Store, clock: Clock) -> Self {
        Budgets {
            store,
            clock,
            list: watch::Sender::new(Arc::default()),
        }
    }

    /// The list, as it changes. Its revision is 0 as long as it is not known.
    pub(crate) fn list(&self) -> watch::Receiver<Arc<BudgetList>> {
        self.list.subscribe()
    }

    /// Reads the list anew, after a change here.
    pub(crate) async fn refresh(&self) -> Result<(), StoreError> {
        let list = self.store.budget_list(self.clock.now_ms()).await?;
        self.list.send_if_modified(|now| {
            // Another read may have been quicker.
            let newer = **now != list && list.revision >= now.revision;
            if newer {
                *now = Arc::new(list);
            }
            newer
        });
        Ok(())
    }

    /// Looks what others have changed and what was crossed, until dropped.
    pub(crate) async fn run(&self) {
        let mut month = None;
        let mut failing = false;
        loop {
            let looked = self.look(&mut month).await;
            match &looked {
                Err(error) if !failing => tracing::error!(%error, "budgets cannot be read"),
                Ok(()) if failing => tracing::info!("budgets can be read again"),
                // It has been said.
                Ok(()) | Err(_) => {}
            }
            failing = looked.is_err();
            tokio::time::sleep(BUDGETS_TICK).await;
        }
    }

    async fn look(&self, month: &mut Option<Month>) -> Result<(), StoreError> {
        let (revision, waits) = self.store.budgets_revision().await?;
        let now_ms = self.clock.now_ms();
        // With a month the prices that are sent change.
        let now = Some(Month::of(now_ms));
        if *month != now || self.list.borrow().revision != revision {
            self.refresh().await?;
            *month = now;
        }
        if waits {
            let mut told = Ok(());
            for alert in self.store.take_alerts(now_ms).await? {
                told = told.and(self.tell(&alert).await);
            }
            told?;
        }
        Ok(())
    }

    /// Where an alert goes, each once: the log and the audit log. What else is to hear of alerts reads them page by
    /// page (`GET /v1/budgets/alerts`), by their numbers.
    async fn tell(&self, alert: &BudgetAlert) -> Result<(), StoreError> {
        let scope = match &alert.function {
            None => alert.tenant.to_string(),
            Some(function) => format!("{}/{function}", alert.tenant),
        };
        let detail = format!("{} of {}, {} %", alert.spent, alert.amount, alert.percent);
        tracing::warn!(budget = scope, detail, "a budget's threshold is crossed");
        let deed = Deed {
            actor_kind: "coordinator",
            actor: "budgets".into(),
            action: "budget.alert".into(),
            object: scope,
            ..Deed::default()
        };
        let now_ms = self.clock.now_ms();
        self.store
            .record(&deed, &Came::done(detail), now_ms)
            .await?;
        Ok(())
    }
}
