//! `holm budgets`: what executions may cost in a month.

use clap::{Subcommand, ValueEnum};
use holm_model::api::{BudgetView, NewBudget};
use holm_model::budget::{Cap, Scope};
use holm_model::ids::Name;
use holm_model::price::Amount;

use crate::exit::Failure;
use crate::output::Output;
use crate::remote::settings::{Connection, ListArgs};
use crate::remote::table::{moment, table};

/// `holm budgets`.
#[derive(Debug, clap::Args)]
pub(crate) struct BudgetsArgs {
    #[command(subcommand)]
    action: BudgetsAction,
}

#[derive(Debug, Subcommand)]
enum BudgetsAction {
    /// List budgets, and how they stand in this month.
    List(ListArgs),
    /// Set a budget from this month on, or change it.
    Set(SetArgs),
    /// Show one budget, with the greatest overshoot that is possible and what each node has of it.
    Show(ShowArgs),
    /// Remove a budget.
    Remove(ShowArgs),
}

#[derive(Debug, clap::Args)]
struct SetArgs {
    /// For what: TENANT, or TENANT/FUNCTION.
    scope: Scope,
    /// For a calendar month (UTC), in the currency of the tenant's prices.
    #[arg(long, value_name = "AMOUNT")]
    amount: Amount,
    /// What happens at its end: nothing runs any more, or there are alerts alone.
    #[arg(long, value_enum, default_value = "hard")]
    cap: CapArg,
    /// At which percents of it there are alerts.
    #[arg(long, value_name = "PERCENT,…", value_delimiter = ',', default_values_t = [50, 80, 100])]
    alerts: Vec<u32>,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CapArg {
    Hard,
    Soft,
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// Which: TENANT, or TENANT/FUNCTION.
    scope: Scope,
    #[command(flatten)]
    connection: Connection,
}

/// Does what `holm budgets` says.
pub(crate) async fn run(args: BudgetsArgs, output: Output) -> Result<(), Failure> {
    match args.action {
        BudgetsAction::List(args) => {
            let views: Vec<BudgetView> = args.get("/v1/budgets").await?;
            output.result(&views, || list(&views))
        }
        BudgetsAction::Set(args) => {
            let new = NewBudget {
                amount: args.amount,
                cap: match args.cap {
                    CapArg::Hard => Cap::Hard,
                    CapArg::Soft => Cap::Soft,
                },
                alerts: args.alerts,
            };
            let client = args.connection.client()?;
            let view: BudgetView = client.put(&path(&args.scope), &new).await?;
            output.result(&view, || describe(&view))
        }
        BudgetsAction::Show(args) => {
            let view: BudgetView = args.connection.client()?.get(&path(&args.scope)).await?;
            output.result(&view, || describe(&view))
        }
        BudgetsAction::Remove(args) => {
            args.connection.client()?.delete(&path(&args.scope)).await?;
            let removed = serde_json::json!({ "removed": args.scope.to_string() });
            output.result(&removed, || {
                format!("there is no budget for {} any more", args.scope)
            })
        }
    }
}

fn path(scope: &Scope) -> String {
    match &scope.function {
        None => format!("/v1/tenants/{}/budget", scope.tenant),
        Some(function) => format!("/v1/functions/{}/{function}/budget", scope.tenant),
    }
}

fn name(view: &BudgetView) -> String {
    Scope {
        tenant: view.tenant.clone(),
        function: view.function.clone(),
    }
    .to_string()
}

fn cap(view: &BudgetView) -> &'static str {
    match view.cap {
        Cap::Hard => "hard",
        Cap::Soft => "soft",
    }
}

fn list(views: &[BudgetView]) -> String {
    let rows: Vec<[String; 8]> = views
        .iter()
        .map(|view| {
            let crossed = view.crossed.last();
            let state = match (view.exhausted_ms, crossed) {
                (Some(at), _) => format!("spent, nothing runs since {}", moment(at)),
                (None, Some(alert)) => {
                    format!(
                        "{} % crossed at {}",
                        alert.percent,
                        moment(alert.crossed_ms)
                    )
                }
                (None, None) => "-".to_owned(),
            };
            [
                name(view),
                view.amount.to_string(),
                view.currency.to_string(),
                cap(view).to_owned(),
                view.spent.to_string(),
                view.leased.to_string(),
                overshoot(view),
                state,
            ]
        })
        .collect();
    let head = [
        "BUDGET",
        "A MONTH",
        "CURRENCY",
        "CAP",
        "SPENT",
        "LEASED",
        "OVERSHOOT",
        "ALERT",
    ];
    table(head, &rows)
}

/// The greatest that is possible.
fn overshoot(view: &BudgetView) -> String {
    match &view.overshoot {
        None => "any".to_owned(),
        Some(overshoot) if overshoot.unconfirmed.is_empty() => format!("<= {}", overshoot.most),
        Some(_) => "open".to_owned(),
    }
}

fn describe(view: &BudgetView) -> String {
    let currency = &view.currency;
    let mut lines = vec![
        ("budget", name(view)),
        (
            "amount",
            format!("{} {currency} a month, {} cap", view.amount, cap(view)),
        ),
        (
            "month",
            format!(
                "{} to {}",
                moment(view.month_from_ms),
                moment(view.month_to_ms)
            ),
        ),
        ("spent", format!("{} {currency}, by the ledger", view.spent)),
    ];
    if let Some(overshoot) = &view.overshoot {
        lines.push((
            "leased",
            format!("{} {currency} to nodes, not spent", view.leased),
        ));
        lines.push(("free", format!("{} {currency}", view.free)));
        lines.push((
            "overshoot",
            format!(
                "at most {} {currency}: {} spent or leased beyond the budget already, {} by what runs at a time",
                overshoot.most, overshoot.beyond, overshoot.in_flight
            ),
        ));
        if !overshoot.unconfirmed.is_empty() {
            let nodes: Vec<&str> = overshoot.unconfirmed.iter().map(Name::as_str).collect();
            lines.push((
                "unbounded",
                format!(
                    "{} have not said that they keep to it; what they run until then is beyond that",
                    nodes.join(", ")
                ),
            ));
        }
    }
    let percents: Vec<String> = view
        .alerts
        .iter()
        .map(|percent| format!("{percent} %"))
        .collect();
    lines.push(("alerts", percents.join(", ")));
    for alert in &view.crossed {
        lines.push((
            "crossed",
            format!(
                "{} % at {}, with {} of {} spent",
                alert.percent,
                moment(alert.crossed_ms),
                alert.spent,
                alert.amount
            ),
        ));
    }
    if let Some(at) = view.exhausted_ms {
        lines.push((
            "exhausted",
            format!(
                "at {}: no node had anything for the next request",
                moment(at)
            ),
        ));
    }
    let lines = lines
        .iter()
        .map(|(name, value)| format!("{name:<11}{value}"));
    let mut text = lines.collect::<Vec<_>>().join("\n");
    if !view.nodes.is_empty() {
        let rows: Vec<[String; 7]> = view
            .nodes
            .iter()
            .map(|line| {
                [
                    line.node.to_string(),
                    line.limit.to_string(),
                    line.reported.to_string(),
                    line.ledger.to_string(),
                    line.reserves.to_string(),
                    line.leases.to_string(),
                    line.asked_ms.map_or_else(|| "never".to_owned(), moment),
                ]
            })
            .collect();
        let head = [
            "NODE",
            "MAY SPEND",
            "SAYS SPENT",
            "IN THE LEDGER",
            "A REQUEST RESERVES",
            "LEASES",
            "LAST ASKED",
        ];
        text.push_str(&format!("\n\n{}", table(head, &rows)));
    }
    text
}
