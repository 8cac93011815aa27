//! Price plans and who has them. A price never changes for a time that has begun.

use holm_model::api::{BillLine, NewAssignment, NewPrices, PricesView};
use holm_model::ids::{FunctionName, Name};
use holm_model::price::{Amount, PlanAssignment, PricePlan, Prices, periods};

use super::budgets;
use super::error::During as _;
use super::sql::{On, Row, query};
use super::sums::{self, UsageFilter, UsageGroup};
use super::{HOUR_MS, Store, StoreError, Turn, retention, text, uint};

/// Why prices are as they were.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unpriced {
    #[error(
        "prices begin with an hour (UTC), and {0} ms since 1970 is within one; take the beginning of an hour"
    )]
    WithinAnHour(u64),
    #[error(
        "from {from_ms} ms since 1970 on there are prices already, and what has been used keeps its price; \
         the earliest time for new ones is {earliest_ms}, the next hour"
    )]
    Past { from_ms: u64, earliest_ms: u64 },
    #[error(
        "plan `{plan}` is in {before}, and a plan keeps its currency; make a plan of another name"
    )]
    OtherCurrency { plan: Name, before: String },
    #[error("a price of plan `{0}` is above 9 thousand million, more than can be kept")]
    TooDear(Name),
    #[error("there is no price plan `{0}`; `holm prices list` shows those there are")]
    NoPlan(Name),
    #[error("there is no tenant `{0}`; `holm tenants create` makes one")]
    NoTenant(Name),
    #[error(
        "tenant `{tenant}` has budgets in {budgeted}, and the plan is in another currency; remove them first \
         (`holm budgets remove`), and set new ones"
    )]
    Budgeted { tenant: Name, budgeted: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// All prices.
    pub(crate) async fn prices(&self) -> Result<PricesView, StoreError> {
        let mut tx = self.read().await?;
        Ok(PricesView {
            plans: plans(&mut tx).await?,
            assignments: assignments(&mut tx).await?,
        })
    }

    /// The lines of a tenant's bill, and the last row of the ledger that is in them.
    pub(crate) async fn bill_lines(
        &self,
        tenant: &Name,
        from_ms: u64,
        to_ms: u64,
    ) -> Result<(Vec<BillLine>, u64), StoreError> {
        // One transaction, so that sums, prices and the ledger's end belong together.
        let mut tx = self.read().await?;
        let last_row = retention::last_row(&mut tx).await?;
        let (plans, assignments) = (plans(&mut tx).await?, assignments(&mut tx).await?);
        let mut lines = Vec::new();
        for period in periods(tenant, &plans, &assignments, from_ms, to_ms) {
            let filter = UsageFilter {
                tenant: Some(tenant.clone()),
                function: None,
                from_ms: period.from_ms,
                to_ms: period.to_ms,
            };
            for sum in sums::read(&mut tx, &filter, UsageGroup::Function).await? {
                let FunctionName { function, .. } = text("a function's name", &sum.key)?;
                lines.push(BillLine {
                    function,
                    from_ms: period.from_ms,
                    to_ms: period.to_ms,
                    executions: sum.executions,
                    billed: sum.billed,
                    plan: period.plan.cloned(),
                    cost: period.plan.map(|plan| plan.prices.cost(&sum.billed)),
                });
            }
        }
        lines.sort_by(|one, other| {
            (&one.function, one.from_ms).cmp(&(&other.function, other.from_ms))
        });
        Ok((lines, last_row))
    }

    /// A new version of the plan `name`.
    pub(crate) async fn add_prices(
        &self,
        name: &Name,
        new: &NewPrices,
        now_ms: impl FnOnce() -> u64,
    ) -> Result<PricePlan, Unpriced> {
        const DOING: &str = "store prices";
        let mut tx = self.write(Turn::Registry).await?;
        // Not before it is its turn: an hour may have begun while it waited.
        let now_ms = now_ms();
        let plans = plans(&mut tx).await?;
        let before = || plans.iter().filter(|plan| plan.name == *name);
        if let Some(other) = before().find(|plan| plan.currency != new.currency) {
            return Err(Unpriced::OtherCurrency {
                plan: name.clone(),
                before: other.currency.to_string(),
            });
        }
        let priced = |at: u64| before().any(|plan| plan.from_ms <= at.max(now_ms));
        let plan = PricePlan {
            name: name.clone(),
            version: before().map(|plan| plan.version).max().unwrap_or(0) + 1,
            from_ms: beginning(new.from_ms, now_ms, priced)?,
            currency: new.currency.clone(),
            prices: new.prices,
            created_ms: now_ms,
        };
        let Prices {
            million_requests,
            million_gib_ms,
            million_cpu_ms,
            gib_egress,
        } = plan.prices;
        let prices = [million_requests, million_gib_ms, million_cpu_ms, gib_egress];
        if prices.iter().any(|Amount(nanos)| *nanos > i64::MAX as u64) {
            return Err(Unpriced::TooDear(name.clone()));
        }
        let mut insert = query(
            "INSERT INTO price_plans (name, version, from_ms, currency, million_requests, million_gib_ms,
                                      million_cpu_ms, gib_egress, created_ms) VALUES ",
        );
        let [requests, memory, cpu, egress] = prices.map(|Amount(nanos)| nanos.into());
        insert.push_row([
            name.into(),
            plan.version.into(),
            plan.from_ms.into(),
            plan.currency.to_string().into(),
            requests,
            memory,
            cpu,
            egress,
            now_ms.into(),
        ]);
        insert.execute(&mut tx).await.during(DOING)?;
        budgets::prices_changed(&mut tx, None, now_ms).await?;
        tx.commit(DOING).await?;
        Ok(plan)
    }

    /// Gives a tenant a plan.
    pub(crate) async fn assign_plan(
        &self,
        tenant: &Name,
        new: &NewAssignment,
        now_ms: impl FnOnce() -> u64,
    ) -> Result<PlanAssignment, Unpriced> {
        const DOING: &str = "give a tenant a price plan";
        let mut tx = self.write(Turn::Registry).await?;
        // Not before it is its turn: an hour may have begun while it waited.
        let now_ms = now_ms();
        let known = query("SELECT 1 FROM tenants WHERE name = ?").bind(tenant);
        if !known.found(&mut tx).await.during(DOING)? {
            return Err(Unpriced::NoTenant(tenant.clone()));
        }
        let (plans, assignments) = (plans(&mut tx).await?, assignments(&mut tx).await?);
        let Some(plan) = plans.iter().find(|plan| plan.name == new.plan) else {
            return Err(Unpriced::NoPlan(new.plan.clone()));
        };
        let budgeted = budgets::currency(&mut tx, tenant).await?;
        if let Some(budgeted) = budgeted.filter(|budgeted| *budgeted != plan.currency.to_string()) {
            return Err(Unpriced::Budgeted {
                tenant: tenant.clone(),
                budgeted,
            });
        }
        let priced = |at: u64| {
            let to = now_ms.max(at).saturating_add(1);
            let since = periods(tenant, &plans, &assignments, at, to);
            since.iter().any(|period| period.plan.is_some())
        };
        let assignment = PlanAssignment {
            tenant: tenant.clone(),
            plan: new.plan.clone(),
            from_ms: beginning(new.from_ms, now_ms, priced)?,
        };
        // The same hour may be decided about anew until it begins.
        query(
            "INSERT INTO plan_assignments (tenant, from_ms, plan, created_ms) VALUES (?, ?, ?, ?)
             ON CONFLICT (tenant, from_ms) DO UPDATE SET plan = excluded.plan, created_ms = excluded.created_ms",
        )
        .bind(tenant)
        .bind(assignment.from_ms)
        .bind(&assignment.plan)
        .bind(now_ms)
        .execute(&mut tx)
        .await
        .during(DOING)?;
        budgets::prices_changed(&mut tx, Some(tenant), now_ms).await?;
        tx.commit(DOING).await?;
        Ok(assignment)
    }
}

/// From when on new prices are good: what has begun, and has a price from some time before now on, keeps it.
fn beginning(
    wanted: Option<u64>,
    now_ms: u64,
    priced: impl Fn(u64) -> bool,
) -> Result<u64, Unpriced> {
    let this_hour = now_ms - now_ms % HOUR_MS;
    let earliest_ms = this_hour + HOUR_MS;
    let from_ms = match wanted {
        Some(wanted) => wanted,
        None if priced(this_hour) => earliest_ms,
        None => this_hour,
    };
    if !from_ms.is_multiple_of(HOUR_MS) {
        return Err(Unpriced::WithinAnHour(from_ms));
    }
    match from_ms < earliest_ms && priced(from_ms) {
        true => Err(Unpriced::Past {
            from_ms,
            earliest_ms,
        }),
        false => Ok(from_ms),
    }
}

pub(super) async fn plans<'a>(on: impl Into<On<'a>>) -> Result<Vec<PricePlan>, StoreError> {
    const DOING: &str = "read prices";
    const WHAT: &str = "a price plan";
    let rows = query("SELECT * FROM price_plans ORDER BY name, version");
    let rows = rows.rows(on).await.during(DOING)?;
    let plan = |row: &Row| {
        let number = |column: &str| row.get(column).map(uint).during(DOING);
        let words = |column: &str| row.get::<String>(column).during(DOING);
        Ok(PricePlan {
            name: text(WHAT, &words("name")?)?,
            version: number("version")?,
            from_ms: number("from_ms")?,
            currency: text(WHAT, &words("currency")?)?,
            prices: Prices {
                million_requests: Amount(number("million_requests")?),
                million_gib_ms: Amount(number("million_gib_ms")?),
                million_cpu_ms: Amount(number("million_cpu_ms")?),
                gib_egress: Amount(number("gib_egress")?),
            },
            created_ms: number("created_ms")?,
        })
    };
    rows.iter().map(plan).collect()
}

pub(super) async fn assignments<'a>(
    on: impl Into<On<'a>>,
) -> Result<Vec<PlanAssignment>, StoreError> {
    let rows: Vec<(String, i64, String)> =
        query("SELECT tenant, from_ms, plan FROM plan_assignments ORDER BY tenant, from_ms")
            .all(on)
            .await
            .during("read who has which prices")?;
    let assignment = |(tenant, from_ms, plan): (String, i64, String)| {
        Ok(PlanAssignment {
            tenant: text("a tenant's name", &tenant)?,
            plan: text("a plan's name", &plan)?,
            from_ms: uint(from_ms),
        })
    };
    rows.into_iter().map(assignment).collect()
}
