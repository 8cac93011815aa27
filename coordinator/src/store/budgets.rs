//! Budgets, what nodes have leased of them, and the thresholds that were crossed.
//!
//! What is leased is decided in one transaction with all lines of the budget ([`Turn::Budgets`]), and stored before
//! the node hears of it; so any coordinator leases. What the ledger has of a budget is counted in the transaction that
//! enters the rows.

use std::collections::{BTreeMap, BTreeSet};

use holm_model::api::{BudgetAlert, BudgetLine, BudgetView, NewBudget, Overshoot};
use holm_model::budget::issue::{Line, decide};
use holm_model::budget::{
    BudgetList, BudgetTerms, Cap, LeaseAnswer, LeaseAsks, Month, PriceSpan, Scope, cost_of,
};
use holm_model::ids::{FunctionName, Name};
use holm_model::limits::{
    LEASE_WANTED_MS, MAX_BUDGET_UNITS, MAX_HARD_BUDGETS, MAX_PRICE_SPANS, NEXT_MONTH_MS,
};
use holm_model::price::{Amount, PlanAssignment, PricePlan, in_force, periods};
use holm_model::usage::UsageRecord;

use super::error::During as _;
use super::prices::{assignments, plans};
use super::sql::{On, Row, Transaction, Value, query};
use super::sums::{self, UsageFilter, UsageGroup};
use super::{Store, StoreError, Turn, text, uint};
use crate::limits::MAX_BUDGET_ALERTS;

/// Why there is no such budget.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unbudgeted {
    #[error("there is no tenant `{0}`; `holm tenants create` makes one")]
    NoTenant(Name),
    #[error("there is no function `{0}`; deploy it first, or set a budget for all of its tenant's")]
    NoFunction(FunctionName),
    #[error(
        "tenant `{0}` has no prices, so nothing that it runs costs anything; `holm prices set standard` sets some \
         for all, `holm prices assign` gives the tenant a plan"
    )]
    NoPrices(Name),
    #[error(
        "a budget of {0} a month is above {MAX_BUDGET_UNITS}, more than can be counted exactly; leave it out"
    )]
    TooLarge(Amount),
    #[error(
        "alerts are percents of the budget from 1 to 1000, at most {MAX_BUDGET_ALERTS} of them; such as 50, 80, 100"
    )]
    BadAlerts,
    #[error(
        "there are {MAX_HARD_BUDGETS} hard budgets, which is the most; remove some, or make this one soft"
    )]
    TooMany,
    #[error("there is no budget for `{0}`; `holm budgets list` shows those there are")]
    NoBudget(Scope),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A row of `budgets`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Budget {
    scope: Scope,
    amount: Amount,
    currency: String,
    cap: Cap,
    alerts: Vec<u32>,
    created_ms: u64,
    changed_ms: u64,
    revision: u64,
}

impl Store {
    /// Sets a budget from this month on; returns the revision of the list with it.
    pub(crate) async fn set_budget(
        &self,
        scope: &Scope,
        new: &NewBudget,
        now_ms: u64,
    ) -> Result<u64, Unbudgeted> {
        const DOING: &str = "set a budget";
        let mut alerts = new.alerts.clone();
        alerts.sort_unstable();
        alerts.dedup();
        if alerts.len() > MAX_BUDGET_ALERTS
            || alerts.iter().any(|percent| !(1..=1000).contains(percent))
        {
            return Err(Unbudgeted::BadAlerts);
        }
        if new.amount.0 > MAX_BUDGET_UNITS * 1_000_000_000 {
            return Err(Unbudgeted::TooLarge(new.amount));
        }
        // No usage is entered meanwhile, so that all of it is either summed here or counted later.
        let mut tx = self.write(Turn::Ledger).await?;
        tx.take(Turn::Budgets).await?;
        let tenant = query("SELECT 1 FROM tenants WHERE name = ?").bind(&scope.tenant);
        if !tenant.found(&mut tx).await.during(DOING)? {
            return Err(Unbudgeted::NoTenant(scope.tenant.clone()));
        }
        if let Some(function) = &scope.function {
            let name = FunctionName {
                tenant: scope.tenant.clone(),
                function: function.clone(),
            };
            let known = query("SELECT 1 FROM functions WHERE name = ?").bind(name.to_string());
            if !known.found(&mut tx).await.during(DOING)? {
                return Err(Unbudgeted::NoFunction(name));
            }
        }
        let prices = Prices::read(&mut tx).await?;
        let plan = in_force(&scope.tenant, &prices.plans, &prices.assignments, now_ms);
        let Some(plan) = plan else {
            return Err(Unbudgeted::NoPrices(scope.tenant.clone()));
        };
        let (hard,): (i64,) = query(
            "SELECT COUNT(*) FROM budgets WHERE cap = 'hard' AND NOT (tenant = ? AND function = ?)",
        )
        .bind(&scope.tenant)
        .bind(key(scope))
        .one(&mut tx)
        .await
        .during(DOING)?;
        if new.cap == Cap::Hard && uint(hard) >= MAX_HARD_BUDGETS as u64 {
            return Err(Unbudgeted::TooMany);
        }
        let revision = next_revision(&mut tx).await?;
        let percents: Vec<String> = alerts.iter().map(u32::to_string).collect();
        let mut insert = query(
            "INSERT INTO budgets (tenant, function, amount, currency, cap, alerts, created_ms, changed_ms, revision)
             VALUES ",
        );
        insert.push_row([
            Value::from(&scope.tenant),
            key(scope).into(),
            new.amount.0.into(),
            plan.currency.to_string().into(),
            cap_text(new.cap).into(),
            percents.join(",").into(),
            now_ms.into(),
            now_ms.into(),
            revision.into(),
        ]);
        insert.push(
            " ON CONFLICT (tenant, function) DO UPDATE SET amount = excluded.amount, currency = excluded.currency,
              cap = excluded.cap, alerts = excluded.alerts, changed_ms = excluded.changed_ms,
              revision = excluded.revision",
        );
        insert.execute(&mut tx).await.during(DOING)?;
        recount(&mut tx, scope, Month::of(now_ms), &prices).await?;
        // A new amount may be given out anew, and has its own thresholds.
        query("UPDATE budget_months SET exhausted_ms = NULL WHERE tenant = ? AND function = ? AND month_ms = ?")
            .bind(&scope.tenant)
            .bind(key(scope))
            .bind(Month::of(now_ms).from_ms)
            .execute(&mut tx)
            .await
            .during(DOING)?;
        raise_alerts(&mut tx, scope, Month::of(now_ms), now_ms).await?;
        tx.notify().await?;
        tx.commit(DOING).await?;
        Ok(revision)
    }

    /// There is no such budget any more. What nodes have of it stays known.
    pub(crate) async fn remove_budget(&self, scope: &Scope) -> Result<(), Unbudgeted> {
        const DOING: &str = "remove a budget";
        let mut tx = self.write(Turn::Budgets).await?;
        // Before the row, as everywhere: two that change both must not wait for each other.
        next_revision(&mut tx).await?;
        let removed = query("DELETE FROM budgets WHERE tenant = ? AND function = ?")
            .bind(&scope.tenant)
            .bind(key(scope))
            .execute(&mut tx)
            .await
            .during(DOING)?;
        if removed == 0 {
            // Dropped, the transaction is rolled back.
            return Err(Unbudgeted::NoBudget(scope.clone()));
        }
        tx.notify().await?;
        tx.commit(DOING).await?;
        Ok(())
    }

    /// All budgets, or those of a tenant, as they are in the month of `now_ms`.
    pub(crate) async fn budgets(
        &self,
        tenant: Option<&Name>,
        now_ms: u64,
    ) -> Result<Vec<BudgetView>, StoreError> {
        let mut tx = self.read().await?;
        let mut views = Vec::new();
        let nodes: Vec<(String, Option<i64>)> = query(
            "SELECT nodes.name, budget_nodes.revision FROM nodes
             LEFT JOIN budget_nodes ON budget_nodes.node = nodes.name
             WHERE nodes.revoked_ms IS NULL AND nodes.hello IS NOT NULL ORDER BY nodes.name",
        )
        .all(&mut tx)
        .await
        .during("read nodes")?;
        for budget in all(&mut tx, tenant).await? {
            let lines = lines(&mut tx, &budget.scope, Month::of(now_ms)).await?;
            let behind = nodes.iter().filter(|(_, revision)| {
                budget.cap == Cap::Hard && revision.map_or(0, uint) < budget.revision
            });
            let unconfirmed = behind
                .map(|(node, _)| text("a node's name", node))
                .collect::<Result<_, _>>()?;
            views.push(view(&mut tx, budget, lines, unconfirmed, now_ms).await?);
        }
        Ok(views)
    }

    /// Thresholds that were crossed, from behind `after` on, at most `limit`; with the number of each.
    pub(crate) async fn budget_alerts(
        &self,
        after: u64,
        limit: usize,
    ) -> Result<Vec<BudgetAlert>, StoreError> {
        let alerts = query("SELECT * FROM budget_alerts WHERE row > ? ORDER BY row LIMIT ?");
        let alerts = alerts.bind(after).bind(limit as u64);
        let rows = alerts.rows(self.reader()).await.during("read alerts")?;
        rows.iter().map(alert).collect()
    }

    /// Those that nobody has been told of; each is given once.
    pub(crate) async fn take_alerts(&self, now_ms: u64) -> Result<Vec<BudgetAlert>, StoreError> {
        let take = query("UPDATE budget_alerts SET told_ms = ? WHERE told_ms IS NULL RETURNING *");
        let rows = take
            .bind(now_ms)
            .rows(self.writer())
            .await
            .during("take alerts")?;
        let mut alerts = rows.iter().map(alert).collect::<Result<Vec<_>, _>>()?;
        alerts.sort_by_key(|alert| alert.row);
        Ok(alerts)
    }

    /// The revision of the list of budgets, which rises with every change, of prices too; and whether an alert waits.
    pub(crate) async fn budgets_revision(&self) -> Result<(u64, bool), StoreError> {
        let (revision, waits): (i64, i64) = query(
            "SELECT value, (SELECT COUNT(*) FROM budget_alerts WHERE told_ms IS NULL) FROM counters
             WHERE name = 'budgets_revision'",
        )
        .one(self.reader())
        .await
        .during("read the revision of budgets")?;
        Ok((uint(revision), waits > 0))
    }

    /// What nodes are told.
    pub(crate) async fn budget_list(&self, now_ms: u64) -> Result<BudgetList, StoreError> {
        let mut tx = self.read().await?;
        let (revision,): (i64,) =
            query("SELECT value FROM counters WHERE name = 'budgets_revision'")
                .one(&mut tx)
                .await
                .during("read the revision of budgets")?;
        let prices = Prices::read(&mut tx).await?;
        let hard = all(&mut tx, None).await?;
        let hard = hard.into_iter().filter(|budget| budget.cap == Cap::Hard);
        let month = Month::of(now_ms);
        Ok(BudgetList {
            revision: uint(revision),
            budgets: hard
                .map(|budget| BudgetTerms {
                    prices: prices.spans(&budget.scope.tenant, month.from_ms, month.next().to_ms),
                    scope: budget.scope,
                })
                .collect(),
        })
    }

    /// Leases a node what it asks for, as far as there is any, and takes what it gives back.
    pub(crate) async fn lease(
        &self,
        node: &Name,
        asks: &LeaseAsks,
        now_ms: u64,
    ) -> Result<Vec<LeaseAnswer>, StoreError> {
        const DOING: &str = "lease budget";
        let mut tx = self.write(Turn::Budgets).await?;
        let mut insert = query("INSERT INTO budget_nodes (node, revision, said_ms) VALUES ");
        insert.push_row([node.into(), asks.revision.into(), now_ms.into()]);
        insert.push(" ON CONFLICT (node) DO UPDATE SET revision = excluded.revision, said_ms = excluded.said_ms");
        insert.execute(&mut tx).await.during(DOING)?;
        let mut answers = Vec::new();
        for ask in &asks.asks {
            let month = Month::of(ask.month_ms);
            let known = month.from_ms == ask.month_ms && month.from_ms <= now_ms + NEXT_MONTH_MS;
            let budget = one(&mut tx, &ask.scope).await?;
            let Some(budget) = budget.filter(|budget| known && budget.cap == Cap::Hard) else {
                continue;
            };
            let mut lines = lines(&mut tx, &ask.scope, month).await?;
            let own = lines.iter().position(|line| line.node == *node);
            let own = own.map(|at| lines.remove(at));
            let before = own.as_ref().map_or_else(Line::default, |own| own.line);
            let others: Vec<Line> = lines.iter().map(|other| other.line).collect();
            let open = now_ms < month.to_ms;
            let decision = decide(budget.amount.picos(), open, &others, before, ask);
            let grew = decision.line.granted > before.granted;
            let leases = own.map_or(0, |own| own.leases) + u64::from(grew);
            store_line(
                &mut tx,
                &ask.scope,
                month,
                node,
                &decision.line,
                ask.need,
                leases,
                now_ms,
            )
            .await?;
            let mut answer = decision.answer;
            answer.recall |=
                wanted(&mut tx, &ask.scope, month, node, decision.wanted, now_ms).await?;
            if answer.exhausted && open {
                exhausted(&mut tx, &ask.scope, month, now_ms).await?;
            }
            answers.push(answer);
        }
        tx.commit(DOING).await?;
        Ok(answers)
    }

    /// Counts what the ledger has of this month's budgets anew: a Holm of before may have counted otherwise.
    pub(crate) async fn recount_budgets(&self, now_ms: u64) -> Result<(), StoreError> {
        let mut tx = self.write(Turn::Ledger).await?;
        tx.take(Turn::Budgets).await?;
        recount_all(&mut tx, None, now_ms).await?;
        tx.commit("count budgets anew").await
    }
}

/// All prices there are.
struct Prices {
    plans: Vec<PricePlan>,
    assignments: Vec<PlanAssignment>,
}

impl Prices {
    async fn read(tx: &mut Transaction) -> Result<Self, StoreError> {
        Ok(Prices {
            plans: plans(&mut *tx).await?,
            assignments: assignments(&mut *tx).await?,
        })
    }

    fn spans(&self, tenant: &Name, from_ms: u64, to_ms: u64) -> Vec<PriceSpan> {
        let periods = periods(tenant, &self.plans, &self.assignments, from_ms, to_ms);
        let spans = periods.iter().map(|period| PriceSpan {
            from_ms: period.from_ms,
            prices: period.plan.map(|plan| plan.prices).unwrap_or_default(),
        });
        shorten(spans.collect())
    }
}

/// As many as a message has room for. Where there are more, the last one has the highest of the rest's prices, so
/// that a node counts too much rather than too little.
fn shorten(mut spans: Vec<PriceSpan>) -> Vec<PriceSpan> {
    let rest = spans.split_off(spans.len().min(MAX_PRICE_SPANS));
    if let Some(last) = spans.last_mut() {
        for PriceSpan { prices, .. } in rest {
            let own = &mut last.prices;
            own.million_requests = own.million_requests.max(prices.million_requests);
            own.million_gib_ms = own.million_gib_ms.max(prices.million_gib_ms);
            own.million_cpu_ms = own.million_cpu_ms.max(prices.million_cpu_ms);
            own.gib_egress = own.gib_egress.max(prices.gib_egress);
        }
    }
    spans
}

/// Prices have changed, of a tenant or of all, maybe for a time that had none: budgets are counted by them in the same
/// transaction, and a node that has not said that it knows them may spend too much.
pub(super) async fn prices_changed(
    tx: &mut Transaction,
    tenant: Option<&Name>,
    now_ms: u64,
) -> Result<(), StoreError> {
    // No usage is entered and no budget set or removed meanwhile.
    tx.take(Turn::Ledger).await?;
    tx.take(Turn::Budgets).await?;
    let revision = next_revision(tx).await?;
    let mut update = query("UPDATE budgets SET revision = ");
    update.push_bind(revision);
    if let Some(tenant) = tenant {
        update.push(" WHERE tenant = ").push_bind(tenant);
    }
    update
        .execute(&mut *tx)
        .await
        .during("change the list of budgets")?;
    recount_all(tx, tenant, now_ms).await
}

/// Counts this month's budgets, of a tenant or all, by the sums and prices there are.
async fn recount_all(
    tx: &mut Transaction,
    tenant: Option<&Name>,
    now_ms: u64,
) -> Result<(), StoreError> {
    let prices = Prices::read(tx).await?;
    let month = Month::of(now_ms);
    for budget in all(&mut *tx, tenant).await? {
        recount(tx, &budget.scope, month, &prices).await?;
        raise_alerts(tx, &budget.scope, month, now_ms).await?;
    }
    Ok(())
}

/// New revision of the list of budgets.
async fn next_revision(tx: &mut Transaction) -> Result<u64, StoreError> {
    let (revision,): (i64,) = query(
        "UPDATE counters SET value = value + 1 WHERE name = 'budgets_revision' RETURNING value",
    )
    .one(tx)
    .await
    .during("change the list of budgets")?;
    Ok(uint(revision))
}

/// The currency of a tenant's budgets, if it has any.
pub(super) async fn currency(
    tx: &mut Transaction,
    tenant: &Name,
) -> Result<Option<String>, StoreError> {
    let found: Option<(String,)> = query("SELECT currency FROM budgets WHERE tenant = ? LIMIT 1")
        .bind(tenant)
        .optional(tx)
        .await
        .during("look up budgets")?;
    Ok(found.map(|(currency,)| currency))
}

/// Counts records that are new in the ledger.
pub(super) async fn count<'a>(
    tx: &mut Transaction,
    node: &Name,
    records: impl Iterator<Item = &'a UsageRecord>,
    now_ms: u64,
) -> Result<(), StoreError> {
    const DOING: &str = "count what was spent of a budget";
    let records: Vec<&UsageRecord> = records.filter(|record| !record.probe).collect();
    let tenants: BTreeSet<&Name> = records
        .iter()
        .map(|record| &record.function.tenant)
        .collect();
    if tenants.is_empty() {
        return Ok(());
    }
    let mut has_budgets = query("SELECT 1 FROM budgets WHERE tenant IN ");
    has_budgets.push_row(tenants.iter().map(|tenant| Value::from(*tenant)));
    has_budgets.push(" LIMIT 1");
    if !has_budgets.found(&mut *tx).await.during(DOING)? {
        return Ok(());
    }
    tx.take(Turn::Budgets).await?;
    let prices = Prices::read(tx).await?;
    for tenant in tenants {
        for budget in all(&mut *tx, Some(tenant)).await? {
            let mut by_month: BTreeMap<Month, (u64, Vec<PriceSpan>)> = BTreeMap::new();
            for record in records
                .iter()
                .filter(|record| budget.scope.covers(&record.function))
            {
                let month = Month::of(record.accepted_ms);
                let (sum, spans) = by_month
                    .entry(month)
                    .or_insert_with(|| (0, prices.spans(tenant, month.from_ms, month.to_ms)));
                *sum = sum.saturating_add(cost_of(spans, record));
            }
            for (month, (picos, _)) in by_month {
                if picos > 0 {
                    add_to_ledger(tx, &budget.scope, month, node, picos).await?;
                    raise_alerts(tx, &budget.scope, month, now_ms).await?;
                }
            }
        }
    }
    Ok(())
}

async fn add_to_ledger(
    tx: &mut Transaction,
    scope: &Scope,
    month: Month,
    node: &Name,
    picos: u64,
) -> Result<(), StoreError> {
    let mut upsert = query(
        "INSERT INTO budget_lines (tenant, function, month_ms, node, granted, reported, ledger, serial, beyond, need,
                                   leases) VALUES ",
    );
    upsert.push_row([
        Value::from(&scope.tenant),
        key(scope).into(),
        month.from_ms.into(),
        node.into(),
        0_u64.into(),
        0_u64.into(),
        picos.into(),
        0_u64.into(),
        0_u64.into(),
        0_u64.into(),
        0_u64.into(),
    ]);
    // What does not fit is held at the end.
    upsert.push(&format!(
        " ON CONFLICT (tenant, function, month_ms, node) DO UPDATE SET
          ledger = CASE WHEN budget_lines.ledger > {max} - excluded.ledger THEN {max}
                   ELSE budget_lines.ledger + excluded.ledger END",
        max = i64::MAX
    ));
    upsert
        .execute(tx)
        .await
        .during("count what was spent of a budget")?;
    Ok(())
}

/// Sets what the ledger has of a budget by its sums.
async fn recount(
    tx: &mut Transaction,
    scope: &Scope,
    month: Month,
    prices: &Prices,
) -> Result<(), StoreError> {
    const DOING: &str = "count what was spent of a budget";
    query("UPDATE budget_lines SET ledger = 0 WHERE tenant = ? AND function = ? AND month_ms = ?")
        .bind(&scope.tenant)
        .bind(key(scope))
        .bind(month.from_ms)
        .execute(&mut *tx)
        .await
        .during(DOING)?;
    let periods = periods(
        &scope.tenant,
        &prices.plans,
        &prices.assignments,
        month.from_ms,
        month.to_ms,
    );
    for period in periods {
        let Some(plan) = period.plan else { continue };
        let filter = UsageFilter {
            tenant: Some(scope.tenant.clone()),
            function: scope.function.clone(),
            from_ms: period.from_ms,
            to_ms: period.to_ms,
        };
        for sum in sums::read(&mut *tx, &filter, UsageGroup::Node).await? {
            let picos = plan.prices.picos(&sum.billed);
            if picos > 0 {
                let node = text("a node's name", &sum.key)?;
                add_to_ledger(tx, scope, month, &node, picos).await?;
            }
        }
    }
    Ok(())
}

/// Writes down what thresholds the ledger has come to, each once in a month.
async fn raise_alerts(
    tx: &mut Transaction,
    scope: &Scope,
    month: Month,
    now_ms: u64,
) -> Result<(), StoreError> {
    const DOING: &str = "raise alerts";
    let Some(budget) = one(tx, scope).await? else {
        return Ok(());
    };
    let lines = lines(tx, scope, month).await?;
    let spent = lines
        .iter()
        .fold(0, |sum: u64, line| sum.saturating_add(line.line.ledger));
    let amount = budget.amount.picos();
    for percent in budget.alerts {
        if u128::from(spent) * 100 < u128::from(amount) * u128::from(percent) || spent == 0 {
            continue;
        }
        let mut insert = query(
            "INSERT INTO budget_alerts (tenant, function, month_ms, percent, spent, amount, crossed_ms) VALUES ",
        );
        insert.push_row([
            Value::from(&scope.tenant),
            key(scope).into(),
            month.from_ms.into(),
            percent.into(),
            spent.into(),
            budget.amount.0.into(),
            now_ms.into(),
        ]);
        insert.push(" ON CONFLICT (tenant, function, month_ms, percent) DO NOTHING");
        insert.execute(&mut *tx).await.during(DOING)?;
    }
    Ok(())
}

/// A node's line, with what is known of it beside.
struct NodeLine {
    node: Name,
    line: Line,
    need: u64,
    leases: u64,
    asked_ms: Option<u64>,
}

async fn lines(
    tx: &mut Transaction,
    scope: &Scope,
    month: Month,
) -> Result<Vec<NodeLine>, StoreError> {
    const DOING: &str = "read what is leased of a budget";
    let rows = query(
        "SELECT * FROM budget_lines WHERE tenant = ? AND function = ? AND month_ms = ? ORDER BY node",
    )
    .bind(&scope.tenant)
    .bind(key(scope))
    .bind(month.from_ms)
    .rows(tx)
    .await
    .during(DOING)?;
    let line = |row: &Row| {
        let number = |column: &str| row.get(column).map(uint).during(DOING);
        let asked_ms: Option<i64> = row.get("asked_ms").during(DOING)?;
        Ok(NodeLine {
            node: text("a node's name", &row.get::<String>("node").during(DOING)?)?,
            line: Line {
                granted: number("granted")?,
                reported: number("reported")?,
                ledger: number("ledger")?,
                serial: number("serial")?,
                beyond: number("beyond")?,
            },
            need: number("need")?,
            leases: number("leases")?,
            asked_ms: asked_ms.map(uint),
        })
    };
    rows.iter().map(line).collect()
}

#[allow(clippy::too_many_arguments, reason = "they are the row's columns")]
async fn store_line(
    tx: &mut Transaction,
    scope: &Scope,
    month: Month,
    node: &Name,
    line: &Line,
    need: u64,
    leases: u64,
    now_ms: u64,
) -> Result<(), StoreError> {
    let mut upsert = query(
        "INSERT INTO budget_lines (tenant, function, month_ms, node, granted, reported, ledger, serial, beyond, need,
                                   leases, asked_ms) VALUES ",
    );
    upsert.push_row([
        Value::from(&scope.tenant),
        key(scope).into(),
        month.from_ms.into(),
        node.into(),
        line.granted.into(),
        line.reported.into(),
        line.ledger.into(),
        line.serial.into(),
        line.beyond.into(),
        need.into(),
        leases.into(),
        now_ms.into(),
    ]);
    upsert.push(
        " ON CONFLICT (tenant, function, month_ms, node) DO UPDATE SET granted = excluded.granted,
          reported = excluded.reported, serial = excluded.serial, beyond = excluded.beyond, need = excluded.need,
          leases = excluded.leases, asked_ms = excluded.asked_ms",
    );
    upsert.execute(tx).await.during("lease budget")?;
    Ok(())
}

/// Notes that a node got too little, and says whether another one did lately.
async fn wanted(
    tx: &mut Transaction,
    scope: &Scope,
    month: Month,
    node: &Name,
    short: bool,
    now_ms: u64,
) -> Result<bool, StoreError> {
    const DOING: &str = "note who lacks budget";
    let found: Option<(Option<i64>, Option<String>)> = query(
        "SELECT wanted_ms, wanted_by FROM budget_months WHERE tenant = ? AND function = ? AND month_ms = ?",
    )
    .bind(&scope.tenant)
    .bind(key(scope))
    .bind(month.from_ms)
    .optional(&mut *tx)
    .await
    .during(DOING)?;
    let by_other = match found {
        Some((Some(at), Some(by))) => {
            by != node.as_str() && now_ms.abs_diff(uint(at)) < LEASE_WANTED_MS
        }
        _ => false,
    };
    if short && !by_other {
        let mut upsert = query(
            "INSERT INTO budget_months (tenant, function, month_ms, wanted_ms, wanted_by) VALUES ",
        );
        upsert.push_row([
            Value::from(&scope.tenant),
            key(scope).into(),
            month.from_ms.into(),
            now_ms.into(),
            node.into(),
        ]);
        upsert.push(
            " ON CONFLICT (tenant, function, month_ms) DO UPDATE SET wanted_ms = excluded.wanted_ms,
              wanted_by = excluded.wanted_by",
        );
        upsert.execute(tx).await.during(DOING)?;
    }
    Ok(by_other)
}

/// Notes since when no node can get more.
async fn exhausted(
    tx: &mut Transaction,
    scope: &Scope,
    month: Month,
    now_ms: u64,
) -> Result<(), StoreError> {
    let mut upsert =
        query("INSERT INTO budget_months (tenant, function, month_ms, exhausted_ms) VALUES ");
    upsert.push_row([
        Value::from(&scope.tenant),
        key(scope).into(),
        month.from_ms.into(),
        now_ms.into(),
    ]);
    upsert.push(
        " ON CONFLICT (tenant, function, month_ms) DO UPDATE SET
          exhausted_ms = COALESCE(budget_months.exhausted_ms, excluded.exhausted_ms)",
    );
    upsert
        .execute(tx)
        .await
        .during("note that a budget is spent")?;
    Ok(())
}

async fn view(
    tx: &mut Transaction,
    budget: Budget,
    lines: Vec<NodeLine>,
    unconfirmed: Vec<Name>,
    now_ms: u64,
) -> Result<BudgetView, StoreError> {
    const DOING: &str = "read a budget";
    let month = Month::of(now_ms);
    let sum = |of: fn(&Line) -> u64| {
        lines
            .iter()
            .fold(0, |sum: u64, line| sum.saturating_add(of(&line.line)))
    };
    let (spent, committed) = (sum(|line| line.ledger), sum(Line::committed));
    let (unspent, in_flight) = (sum(Line::unspent), sum(|line| line.beyond));
    let amount = budget.amount.picos();
    let over = committed.saturating_sub(amount);
    let alerts = query(
        "SELECT * FROM budget_alerts WHERE tenant = ? AND function = ? AND month_ms = ? ORDER BY percent",
    );
    let alerts = alerts
        .bind(&budget.scope.tenant)
        .bind(key(&budget.scope))
        .bind(month.from_ms)
        .rows(&mut *tx)
        .await
        .during(DOING)?;
    let exhausted: Option<(Option<i64>,)> = query(
        "SELECT exhausted_ms FROM budget_months WHERE tenant = ? AND function = ? AND month_ms = ?",
    )
    .bind(&budget.scope.tenant)
    .bind(key(&budget.scope))
    .bind(month.from_ms)
    .optional(&mut *tx)
    .await
    .during(DOING)?;
    let hard = budget.cap == Cap::Hard;
    Ok(BudgetView {
        tenant: budget.scope.tenant,
        function: budget.scope.function,
        amount: budget.amount,
        currency: text("a currency", &budget.currency)?,
        cap: budget.cap,
        alerts: budget.alerts,
        month_from_ms: month.from_ms,
        month_to_ms: month.to_ms,
        spent: Amount::from_picos(spent),
        leased: Amount::from_picos(unspent),
        free: Amount(amount.saturating_sub(committed) / 1000),
        overshoot: hard.then(|| Overshoot {
            most: Amount::from_picos(over.saturating_add(in_flight)),
            beyond: Amount::from_picos(over),
            in_flight: Amount::from_picos(in_flight),
            unconfirmed,
        }),
        crossed: alerts.iter().map(alert).collect::<Result<_, _>>()?,
        exhausted_ms: exhausted.and_then(|(at,)| at.map(uint)),
        nodes: lines
            .iter()
            .map(|line| BudgetLine {
                node: line.node.clone(),
                limit: Amount::from_picos(line.line.granted),
                reported: Amount::from_picos(line.line.reported),
                ledger: Amount::from_picos(line.line.ledger),
                reserves: Amount::from_picos(line.need),
                leases: line.leases,
                asked_ms: line.asked_ms,
            })
            .collect(),
        created_ms: budget.created_ms,
        changed_ms: budget.changed_ms,
    })
}

async fn all<'a>(on: impl Into<On<'a>>, tenant: Option<&Name>) -> Result<Vec<Budget>, StoreError> {
    let mut budgets = query("SELECT * FROM budgets");
    if let Some(tenant) = tenant {
        budgets.push(" WHERE tenant = ").push_bind(tenant);
    }
    budgets.push(" ORDER BY tenant, function");
    let rows = budgets.rows(on).await.during("read budgets")?;
    rows.iter().map(budget).collect()
}

async fn one(tx: &mut Transaction, scope: &Scope) -> Result<Option<Budget>, StoreError> {
    let found = query("SELECT * FROM budgets WHERE tenant = ? AND function = ?")
        .bind(&scope.tenant)
        .bind(key(scope));
    let rows = found.rows(tx).await.during("read a budget")?;
    rows.first().map(budget).transpose()
}

fn budget(row: &Row) -> Result<Budget, StoreError> {
    const DOING: &str = "read budgets";
    const WHAT: &str = "a budget";
    let number = |column: &str| row.get(column).map(uint).during(DOING);
    let words = |column: &str| row.get::<String>(column).during(DOING);
    let alerts = words("alerts")?;
    let percents = alerts.split(',').filter(|percent| !percent.is_empty());
    Ok(Budget {
        scope: scope(row, DOING)?,
        amount: Amount(number("amount")?),
        currency: words("currency")?,
        cap: match words("cap")?.as_str() {
            "soft" => Cap::Soft,
            _ => Cap::Hard,
        },
        alerts: percents
            .map(|percent| text(WHAT, percent))
            .collect::<Result<_, _>>()?,
        created_ms: number("created_ms")?,
        changed_ms: number("changed_ms")?,
        revision: number("revision")?,
    })
}

fn alert(row: &Row) -> Result<BudgetAlert, StoreError> {
    const DOING: &str = "read alerts";
    let number = |column: &str| row.get(column).map(uint).during(DOING);
    let Scope { tenant, function } = scope(row, DOING)?;
    Ok(BudgetAlert {
        row: number("row")?,
        tenant,
        function,
        month_from_ms: number("month_ms")?,
        percent: u32::try_from(number("percent")?).unwrap_or(u32::MAX),
        spent: Amount::from_picos(number("spent")?),
        amount: Amount(number("amount")?),
        crossed_ms: number("crossed_ms")?,
    })
}

fn scope(row: &Row, doing: &'static str) -> Result<Scope, StoreError> {
    let words = |column: &str| row.get::<String>(column).during(doing);
    let function = words("function")?;
    Ok(Scope {
        tenant: text("a tenant's name", &words("tenant")?)?,
        function: match function.is_empty() {
            true => None,
            false => Some(text("a function's name", &function)?),
        },
    })
}

/// The column `function`.
fn key(scope: &Scope) -> &str {
    scope.function.as_ref().map_or("", Name::as_str)
}

fn cap_text(cap: Cap) -> &'static str {
    match cap {
        Cap::Hard => "hard",
        Cap::Soft => "soft",
    }
}
