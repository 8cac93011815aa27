//! What of a budget's spending is in the journal and not in the ledger yet: added up once, and then kept, since a backlog
//! may have millions of records and a budget's holder asks several times a second.

use std::sync::Arc;

use holm_model::budget::cost_of;
use holm_model::ids::Digest;
use holm_model::usage::UsageRecord;

use super::{Batch, JournalError};
use crate::budget::gauge::Gauge;

/// Sums for the gauges that were asked about, in picos.
#[derive(Default)]
pub(super) struct Unsent {
    sums: Vec<(Arc<Gauge>, u64)>,
    /// The batch that was taken last: who asks while it is on its way gets a sum with it, which it is to be taken out of.
    taken: Option<(Digest, Vec<UsageRecord>)>,
}

impl Unsent {
    /// Prices or the journal have changed: everything is added up anew when it is asked for.
    pub(super) fn forget(&mut self) {
        *self = Unsent::default();
    }

    /// The sum for a gauge; `add_up` goes through the journal.
    pub(super) fn of(
        &mut self,
        gauge: &Arc<Gauge>,
        add_up: impl FnOnce() -> Result<u64, JournalError>,
    ) -> Result<u64, JournalError> {
        let known = self
            .sums
            .iter()
            .find(|(known, _)| Arc::ptr_eq(known, gauge));
        if let Some((_, sum)) = known {
            return Ok(*sum);
        }
        let sum = add_up()?;
        self.sums.push((gauge.clone(), sum));
        Ok(sum)
    }

    pub(super) fn committed(&mut self, record: &UsageRecord) {
        for (gauge, sum) in &mut self.sums {
            if gauge.counts(record) {
                *sum = sum.saturating_add(cost_of(&gauge.prices(), record));
            }
        }
    }

    pub(super) fn took(&mut self, batch: &Batch) {
        self.taken = Some((batch.hash, batch.records.clone()));
    }

    /// The batch of this hash was deleted, or was not there.
    pub(super) fn stored(&mut self, hash: Digest) {
        let Some((_, records)) = self.taken.take().filter(|(taken, _)| *taken == hash) else {
            return self.forget();
        };
        for (gauge, sum) in &mut self.sums {
            let prices = gauge.prices();
            for record in records.iter().filter(|record| gauge.counts(record)) {
                *sum = sum.saturating_sub(cost_of(&prices, record));
            }
        }
    }
}
