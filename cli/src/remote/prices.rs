//! `holm prices`: what usage costs. `holm explain`: one request's life and price.

use std::time::Duration;

use clap::Subcommand;
use holm_model::api::{ExplainedRecord, NewAssignment, NewPrices, PricesView};
use holm_model::ids::{Name, RequestId};
use holm_model::price::{Amount, Currency, DEFAULT_PLAN, PlanAssignment, PricePlan, Prices};

use crate::exit::Failure;
use crate::output::Output;
use crate::remote::settings::Connection;
use crate::remote::table::{bytes, moment, table, time};
use crate::remote::when::When;

/// `holm prices`.
#[derive(Debug, clap::Args)]
pub(crate) struct PricesArgs {
    #[command(subcommand)]
    action: PricesAction,
}

#[derive(Debug, Subcommand)]
enum PricesAction {
    /// List every version of every plan, and who has which.
    List(ListArgs),
    /// Set a plan's prices from some hour on.
    Set(SetArgs),
    /// Give a tenant a plan from some hour on.
    Assign(AssignArgs),
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
struct SetArgs {
    /// The plan; tenants that have been given none have `standard`.
    plan: Name,
    /// The currency, such as EUR.
    #[arg(long, value_name = "CODE")]
    currency: Currency,
    /// For a million requests.
    #[arg(long, value_name = "AMOUNT", default_value = "0")]
    requests: Amount,
    /// For 1,000 GiB-seconds of memory limit times run time.
    #[arg(long, value_name = "AMOUNT", default_value = "0")]
    memory: Amount,
    /// For 1,000 seconds of CPU time.
    #[arg(long, value_name = "AMOUNT", default_value = "0")]
    cpu: Amount,
    /// For a GiB that leaves a node: responses, and what functions send over connections of their own.
    #[arg(long, value_name = "AMOUNT", default_value = "0")]
    egress: Amount,
    /// From which hour on (UTC) [default: the next; this one if there are no prices yet].
    #[arg(long, value_name = "TIME")]
    from: Option<When>,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
struct AssignArgs {
    /// Who.
    tenant: Name,
    /// The plan.
    plan: Name,
    /// From which hour on (UTC) [default: the next; this one if the tenant has no prices yet].
    #[arg(long, value_name = "TIME")]
    from: Option<When>,
    #[command(flatten)]
    connection: Connection,
}

/// `holm explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    /// The request (`x-request-id` of its answer).
    request: RequestId,
    #[command(flatten)]
    connection: Connection,
}

/// Does what `holm prices` says.
pub(crate) async fn run(args: PricesArgs, output: Output) -> Result<(), Failure> {
    match args.action {
        PricesAction::List(args) => {
            let prices: PricesView = args.connection.client()?.get("/v1/prices").await?;
            output.result(&prices, || describe(&prices))
        }
        PricesAction::Set(args) => {
            let new = NewPrices {
                currency: args.currency,
                prices: Prices {
                    million_requests: args.requests,
                    million_gib_ms: args.memory,
                    million_cpu_ms: args.cpu,
                    gib_egress: args.egress,
                },
                from_ms: args.from.map(When::ms),
            };
            let path = format!("/v1/prices/{}", args.plan);
            let plan: PricePlan = args.connection.client()?.post(&path, &new).await?;
            output.result(&plan, || {
                let (name, version) = (&plan.name, plan.version);
                format!(
                    "plan {name} has version {version} from {} on",
                    moment(plan.from_ms)
                )
            })
        }
        PricesAction::Assign(args) => {
            let new = NewAssignment {
                plan: args.plan,
                from_ms: args.from.map(When::ms),
            };
            let path = format!("/v1/tenants/{}/prices", args.tenant);
            let given: PlanAssignment = args.connection.client()?.put(&path, &new).await?;
            output.result(&given, || {
                let (tenant, plan) = (&given.tenant, &given.plan);
                format!(
                    "tenant {tenant} has plan {plan} from {} on",
                    moment(given.from_ms)
                )
            })
        }
    }
}

fn describe(prices: &PricesView) -> String {
    let plans: Vec<[String; 8]> = prices
        .plans
        .iter()
        .map(|plan| {
            let Prices {
                million_requests,
                million_gib_ms,
                million_cpu_ms,
                gib_egress,
            } = plan.prices;
            [
                plan.name.to_string(),
                plan.version.to_string(),
                moment(plan.from_ms),
                plan.currency.to_string(),
                million_requests.to_string(),
                million_gib_ms.to_string(),
                million_cpu_ms.to_string(),
                gib_egress.to_string(),
            ]
        })
        .collect();
    let head = [
        "PLAN",
        "VERSION",
        "FROM",
        "CURRENCY",
        "1M REQUESTS",
        "1000 GIB-SECONDS",
        "1000 CPU-SECONDS",
        "GIB EGRESS",
    ];
    let mut text = table(head, &plans);
    if !prices.assignments.is_empty() {
        let rows: Vec<[String; 3]> = prices
            .assignments
            .iter()
            .map(|one| {
                [
                    one.tenant.to_string(),
                    one.plan.to_string(),
                    moment(one.from_ms),
                ]
            })
            .collect();
        text.push_str(&format!("\n\n{}", table(["TENANT", "PLAN", "FROM"], &rows)));
    }
    format!("{text}\n\nall other tenants have plan {DEFAULT_PLAN}, if there is one")
}

/// Does what `holm explain` says.
pub(crate) async fn explain(args: ExplainArgs, output: Output) -> Result<(), Failure> {
    let path = format!("/v1/requests/{}", args.request);
    let rows: Vec<ExplainedRecord> = args.connection.client()?.get(&path).await?;
    output.result(&rows, || {
        rows.iter()
            .map(explain_row)
            .collect::<Vec<_>>()
            .join("\n\n")
    })
}

fn explain_row(explained: &ExplainedRecord) -> String {
    let (row, record) = (&explained.row, &explained.row.record);
    let ns = |ns| time(Duration::from_nanos(ns));
    let begun = match (record.cold, record.probe) {
        (_, true) => "a probe of the node's own, never billed",
        (true, _) => "cold: the snapshot was restored into a slot that did not hold it",
        (false, _) => "warm: the slot held the version",
    };
    let cost = match (&explained.plan, &explained.cost) {
        (Some(plan), Some(cost)) => format!(
            "{} {} by plan {}/{} (requests {}, memory {}, CPU {}, egress {}); a bill rounds sums, not requests",
            cost.total,
            plan.currency,
            plan.name,
            plan.version,
            cost.requests,
            cost.memory,
            cost.cpu,
            cost.egress
        ),
        _ => "no price plan was in force".to_owned(),
    };
    let billed = &explained.billed;
    let lines = [
        ("request", record.request.to_string()),
        ("function", record.function.to_string()),
        ("version", format!("{} {}", explained.label, record.version)),
        (
            "accepted",
            format!("{} by node {}", moment(record.accepted_ms), row.node),
        ),
        (
            "outcome",
            format!("{}, status {}", record.outcome.as_str(), record.status),
        ),
        (
            "queue",
            format!("{} from acceptance to a slot", ns(record.queue_ns)),
        ),
        ("restore", format!("{}, {begun}", ns(record.restore_ns))),
        (
            "run",
            format!(
                "{}, of which CPU {}, {} exits",
                ns(record.run_ns),
                ns(record.cpu_ns),
                record.exits
            ),
        ),
        ("memory", format!("limit {}", bytes(record.memory_bytes))),
        (
            "bytes",
            format!(
                "request {}, response {}, egress {}, ingress {}",
                bytes(record.request_bytes),
                bytes(record.response_bytes),
                bytes(record.egress_bytes),
                bytes(record.ingress_bytes)
            ),
        ),
        (
            "billed",
            format!(
                "{} request, {} KiB-ms, {} CPU-ns, {} bytes of egress",
                billed.requests, billed.memory_kib_ms, billed.cpu_ns, billed.egress_bytes
            ),
        ),
        ("cost", cost),
        (
            "ledger",
            format!(
                "row {}: record {} of life {} of node {}",
                row.row, record.sequence, record.boot_epoch, row.node
            ),
        ),
    ];
    let lines = lines.map(|(name, value)| format!("{name:<10}{value}"));
    lines.join("\n")
}
