//! What usage costs: a pure function of usage records and a price plan.
//!
//! A record is billed by four [`Units`]. Units are integers and add up without rounding; an [`Amount`] is made
//! of summed units, each kind rounded once, half up, to a billionth of the currency. So a bill does not depend
//! on how usage was cut into minutes, days or batches.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::Name;
use crate::usage::{Outcome, UsageRecord};

/// Billionths in a whole.
const NANOS: u128 = 1_000_000_000;
const PICOS_PER_NANO: u128 = 1_000;
/// Nanoseconds in a millisecond.
pub const NS_PER_MS: u64 = 1_000_000;
const MILLION: u128 = 1_000_000;
const KIB: u64 = 1 << 10;
const KIB_PER_GIB: u128 = 1 << 20;
const BYTES_PER_GIB: u128 = 1 << 30;
/// The name of the plan of tenants that have been given none.
pub const DEFAULT_PLAN: &str = "standard";
/// New prices begin with an hour, so that the sums of an hour have one price.
pub const HOUR_MS: u64 = 3_600_000;

/// What is billed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Units {
    /// Executions.
    pub requests: u64,
    /// Memory limit times run time: KiB-milliseconds, a begun millisecond of each execution counted whole.
    pub memory_kib_ms: u64,
    /// CPU time of the vCPU's thread, nanoseconds.
    pub cpu_ns: u64,
    /// Bytes that left the node: response bodies, and what functions sent over connections of their own.
    pub egress_bytes: u64,
}

impl Units {
    /// What is billed of one record: nothing of a probe, of what never ran, of what the node refused or of its own faults.
    /// Queueing and restoring are in no unit.
    pub fn of(record: &UsageRecord) -> Units {
        let ran = record.run_ns > 0;
        let billed = !record.probe && ran && record.outcome.is_billed();
        match billed {
            false => Units::default(),
            true => Units {
                requests: 1,
                memory_kib_ms: memory_kib_ms(record),
                cpu_ns: record.cpu_ns,
                egress_bytes: record.response_bytes.saturating_add(record.egress_bytes),
            },
        }
    }

    /// Both together; a sum that does not fit is held at the end.
    pub fn plus(self, other: Units) -> Units {
        Units {
            requests: self.requests.saturating_add(other.requests),
            memory_kib_ms: self.memory_kib_ms.saturating_add(other.memory_kib_ms),
            cpu_ns: self.cpu_ns.saturating_add(other.cpu_ns),
            egress_bytes: self.egress_bytes.saturating_add(other.egress_bytes),
        }
    }
}

impl Outcome {
    /// Whether such an execution is billed, if it ran.
    pub fn is_billed(self) -> bool {
        !matches!(self, Outcome::Shed | Outcome::PlatformFault)
    }
}

/// An execution's memory limit times its run time, in KiB-milliseconds, both rounded up.
pub fn memory_kib_ms(record: &UsageRecord) -> u64 {
    kib_ms(record.memory_bytes, record.run_ns.div_ceil(NS_PER_MS))
}

/// So much memory for so long, in KiB-milliseconds; a KiB that is begun is a whole one.
pub fn kib_ms(memory_bytes: u64, run_ms: u64) -> u64 {
    memory_bytes.div_ceil(KIB).saturating_mul(run_ms)
}

/// Prices, each in the currency of their plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// For a million requests.
    pub million_requests: Amount,
    /// For a million GiB-milliseconds of memory, which are 1,000 GiB-seconds.
    pub million_gib_ms: Amount,
    /// For a million milliseconds of CPU, which are 1,000 CPU-seconds.
    pub million_cpu_ms: Amount,
    /// For a GiB of egress.
    pub gib_egress: Amount,
}

/// What usage costs, kind by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Of requests.
    pub requests: Amount,
    /// Of memory.
    pub memory: Amount,
    /// Of CPU time.
    pub cpu: Amount,
    /// Of egress.
    pub egress: Amount,
    /// Of all.
    pub total: Amount,
}

impl Prices {
    /// How much there is of each kind (requests, memory, CPU, egress), its price, and of how many.
    fn kinds(&self, units: &Units) -> [(u64, Amount, u128); 4] {
        let per_memory = KIB_PER_GIB * MILLION;
        let per_cpu = u128::from(NS_PER_MS) * MILLION;
        [
            (units.requests, self.million_requests, MILLION),
            (units.memory_kib_ms, self.million_gib_ms, per_memory),
            (units.cpu_ns, self.million_cpu_ms, per_cpu),
            (units.egress_bytes, self.gib_egress, BYTES_PER_GIB),
        ]
    }

    /// What `units` cost.
    pub fn cost(&self, units: &Units) -> Cost {
        let parts = self.kinds(units);
        let parts = parts.map(|(units, price, per)| share(units, price, per));
        let [requests, memory, cpu, egress] = parts;
        Cost {
            requests,
            memory,
            cpu,
            egress,
            total: parts.into_iter().fold(Amount::default(), Amount::plus),
        }
    }

    /// What `units` cost, in thousandths of a billionth: each kind rounded up, so never less than they do and at
    /// most four more. A sum that does not fit is held at the end.
    pub fn picos(&self, units: &Units) -> u64 {
        let kinds = self.kinds(units).into_iter();
        kinds.fold(0, |sum: u64, (units, price, per)| {
            // Two numbers of 64 bits and a thousand may leave 128.
            let exact = u128::from(units) * u128::from(price.0);
            let picos = exact.saturating_mul(PICOS_PER_NANO).div_ceil(per);
            sum.saturating_add(u64::try_from(picos).unwrap_or(u64::MAX))
        })
    }
}

/// `units` of which `per` cost `price`; half a billionth is a whole one.
fn share(units: u64, price: Amount, per: u128) -> Amount {
    let exact = u128::from(units) * u128::from(price.0);
    let rounded = (exact + per / 2) / per;
    Amount(u64::try_from(rounded).unwrap_or(u64::MAX))
}

/// Money in billionths of a currency's unit. Written as a decimal number, `0.0000025`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Amount(pub u64);

impl Amount {
    /// Both together; a sum that does not fit is held at the end.
    pub fn plus(self, other: Amount) -> Amount {
        Amount(self.0.saturating_add(other.0))
    }
}

impl Amount {
    /// The same in thousandths of a billionth; what does not fit is held at the end.
    pub fn picos(self) -> u64 {
        self.0.saturating_mul(PICOS_PER_NANO as u64)
    }

    /// So many thousandths of a billionth, rounded up.
    pub fn from_picos(picos: u64) -> Amount {
        Amount(picos.div_ceil(PICOS_PER_NANO as u64))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = u128::from(self.0);
        let decimals = format!("{:09}", nanos % NANOS);
        let decimals = decimals.trim_end_matches('0');
        // Cents, at least.
        f.pad(&format!("{}.{decimals:0<2}", nanos / NANOS))
    }
}

/// A text is no amount; who wrote it is to blame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no amount: digits, and behind a point at most nine more, up to 18 thousand million"
)]
pub struct AmountError(String);

impl FromStr for Amount {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        let wrong = || AmountError(text.chars().take(40).collect());
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits =
            |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(decimals) || decimals.len() > 9 {
            return Err(wrong());
        }
        let nanos = format!("{whole}{decimals:0<9}");
        nanos.parse().map(Amount).map_err(|_| wrong())
    }
}

impl TryFrom<String> for Amount {
    type Error = AmountError;

    fn try_from(text: String) -> Result<Self, AmountError> {
        text.parse()
    }
}

impl From<Amount> for String {
    fn from(amount: Amount) -> String {
        amount.to_string()
    }
}

/// A currency: three capital letters, as in ISO 4217.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Currency(String);

/// A text is no currency; who wrote it is to blame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no currency: three capital letters, such as EUR")]
pub struct CurrencyError(String);

impl FromStr for Currency {
    type Err = CurrencyError;

    fn from_str(text: &str) -> Result<Self, CurrencyError> {
        match text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_uppercase()) {
            true => Ok(Currency(text.to_owned())),
            false => Err(CurrencyError(text.chars().take(40).collect())),
        }
    }
}

impl TryFrom<String> for Currency {
    type Error = CurrencyError;

    fn try_from(text: String) -> Result<Self, CurrencyError> {
        text.parse()
    }
}

impl From<Currency> for String {
    fn from(currency: Currency) -> String {
        currency.0
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A plan from some hour on. Never changed: new prices are a new version of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PricePlan {
    /// Its name.
    pub name: Name,
    /// Counts from 1 within the name.
    pub version: u64,
    /// From when on, milliseconds since 1970 UTC, the beginning of an hour.
    pub from_ms: u64,
    /// In which currency.
    pub currency: Currency,
    /// The prices.
    pub prices: Prices,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_ms: u64,
}

/// A tenant has a plan from some hour on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanAssignment {
    /// The tenant.
    pub tenant: Name,
    /// The plan.
    pub plan: Name,
    /// From when on, milliseconds since 1970 UTC, the beginning of an hour.
    pub from_ms: u64,
}

/// A time in which a tenant's prices stay the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Period<'a> {
    /// From, inclusive, milliseconds since 1970 UTC.
    pub from_ms: u64,
    /// To, exclusive.
    pub to_ms: u64,
    /// The plan; none if nobody had set a price.
    pub plan: Option<&'a PricePlan>,
}

/// The plan by which a tenant pays for what was accepted at `at_ms`; none if nobody had set a price.
pub fn in_force<'a>(
    tenant: &Name,
    plans: &'a [PricePlan],
    assignments: &[PlanAssignment],
    at_ms: u64,
) -> Option<&'a PricePlan> {
    let assigned = assignments
        .iter()
        .filter(|one| one.tenant == *tenant && one.from_ms <= at_ms);
    let name = assigned
        .max_by_key(|one| one.from_ms)
        .map_or(DEFAULT_PLAN, |one| one.plan.as_str());
    let versions = plans
        .iter()
        .filter(|plan| plan.name.as_str() == name && plan.from_ms <= at_ms);
    versions.max_by_key(|plan| (plan.from_ms, plan.version))
}

/// Cuts the time from `from_ms` to `to_ms` where the prices of `tenant` change. `plans` are all versions,
/// `assignments` all there are, in any order.
pub fn periods<'a>(
    tenant: &Name,
    plans: &'a [PricePlan],
    assignments: &[PlanAssignment],
    from_ms: u64,
    to_ms: u64,
) -> Vec<Period<'a>> {
    let of_tenant = assignments.iter().filter(|one| one.tenant == *tenant);
    let changes = plans
        .iter()
        .map(|plan| plan.from_ms)
        .chain(of_tenant.map(|one| one.from_ms));
    if from_ms >= to_ms {
        return Vec::new();
    }
    let mut cuts: Vec<u64> = changes
        .filter(|at| from_ms < *at && *at < to_ms)
        .chain([from_ms, to_ms])
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut periods: Vec<Period<'a>> = Vec::new();
    for (from_ms, to_ms) in cuts.iter().copied().zip(cuts.iter().copied().skip(1)) {
        let plan = in_force(tenant, plans, assignments, from_ms);
        match periods.last_mut() {
            Some(last) if last.plan == plan => last.to_ms = to_ms,
            _ => periods.push(Period {
                from_ms,
                to_ms,
                plan,
            }),
        }
    }
    periods
}

#[cfg(test)]
#[path = "price_tests.rs"]
mod tests;
