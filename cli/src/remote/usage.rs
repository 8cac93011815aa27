//! `holm usage`: what executions used, what it costs, and whether the ledger is whole.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};

use holm_model::api::{AuditFault, AuditView, Bill, SignedBill, UsageRecordsPage, UsageView};
use holm_model::ids::{Digest, FunctionName, Name};
use holm_model::limits::MAX_USAGE_BATCH;

use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::remote::client::Client;
use crate::remote::exports::{self, ExportsArgs};
use crate::remote::settings::Connection;
use crate::remote::table::{bytes, moment, table, time};
use crate::remote::when::{Month, When};

/// Records in a row group of a Parquet file, at least, but for the last.
const ROWS_IN_A_GROUP: usize = 32_768;
/// Largest file that is taken for a bill.
const MAX_BILL_BYTES: u64 = 64 << 20;

/// `holm usage`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct UsageArgs {
    #[command(subcommand)]
    action: Option<UsageAction>,
    #[command(flatten)]
    query: UsageQuery,
    /// Print comma-separated values.
    #[arg(long)]
    csv: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Which usage.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct UsageQuery {
    /// What to add up by.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) by: By,
    /// Only this tenant.
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant: Option<Name>,
    /// Only this function, as tenant/function.
    #[arg(long, value_name = "FUNCTION", conflicts_with = "tenant")]
    pub(crate) function: Option<FunctionName>,
    /// Only what nodes accepted from then on: a day or time (UTC; taken down to the minute), or how long ago, such
    /// as 2h or 7d [default: all; by hour the last 31 days, by minute the last day].
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<When>,
    /// And before this.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<When>,
}

#[derive(Debug, Subcommand)]
enum UsageAction {
    /// Check that the ledger has every execution, each only once, and each as its node signed it.
    Audit(AuditArgs),
    /// Tell what a tenant's usage costs, and keep it as a signed receipt.
    Bill(BillArgs),
    /// Verify a receipt, without asking anybody.
    Verify(VerifyArgs),
    /// Have a tenant's records sent elsewhere.
    Exports(ExportsArgs),
    /// Write records that the ledger has to a Parquet file.
    Export(ExportArgs),
}

#[derive(Debug, clap::Args)]
struct AuditArgs {
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
struct BillArgs {
    /// Whose.
    #[arg(long, value_name = "TENANT")]
    tenant: Name,
    /// Of which month, as 2026-11, by UTC [default: this one].
    #[arg(long, value_name = "MONTH", conflicts_with_all = ["since", "until"])]
    month: Option<Month>,
    /// From which hour on, in place of a month; taken down to the hour.
    #[arg(long, value_name = "TIME", requires = "until")]
    since: Option<When>,
    /// Until which hour.
    #[arg(long, value_name = "TIME", requires = "since")]
    until: Option<When>,
    /// Write the signed bill to this file.
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,
    /// Print comma-separated values.
    #[arg(long)]
    csv: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
struct VerifyArgs {
    /// The receipt.
    file: PathBuf,
    /// The digest of the fleet's CA certificate, as `holm coordinator` tells it at its start and `holm usage bill`
    /// with each receipt. Without it, only that the receipt is whole is shown, not whose it is.
    #[arg(long, value_name = "DIGEST")]
    authority: Option<Digest>,
}

#[derive(Debug, clap::Args)]
struct ExportArgs {
    /// As Parquet, the only form there is.
    #[arg(long, required = true)]
    parquet: bool,
    /// Only records of this tenant.
    #[arg(long, value_name = "TENANT")]
    tenant: Option<Name>,
    /// Only of this function, as tenant/function.
    #[arg(long, value_name = "FUNCTION", conflicts_with = "tenant")]
    function: Option<FunctionName>,
    /// Only what nodes accepted from then on.
    #[arg(long, value_name = "TIME")]
    since: Option<When>,
    /// And before this.
    #[arg(long, value_name = "TIME")]
    until: Option<When>,
    /// The file, which must not be there.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    connection: Connection,
}

/// What usage is added up by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    /// By function.
    #[default]
    Function,
    /// By tenant.
    Tenant,
    /// By node.
    Node,
    /// By version.
    Version,
    /// By day.
    Day,
    /// By hour.
    Hour,
    /// By minute.
    Minute,
}

impl By {
    fn as_str(self) -> &'static str {
        match self {
            By::Function => "function",
            By::Tenant => "tenant",
            By::Node => "node",
            By::Version => "version",
            By::Day => "day",
            By::Hour => "hour",
            By::Minute => "minute",
        }
    }
}

/// Does it.
pub(crate) async fn run(args: UsageArgs, output: Output) -> Result<(), Failure> {
    match args.action {
        Some(UsageAction::Audit(audit_args)) => {
            let found = audit(&audit_args.connection.client()?).await?;
            output.result(&found, || describe_audit(&found))?;
            match found.whole {
                true => Ok(()),
                false => Err(Failure::reported(Exit::Failure, "the ledger is not whole")),
            }
        }
        Some(UsageAction::Bill(bill_args)) => bill(&bill_args, output).await,
        Some(UsageAction::Verify(verify_args)) => verify(&verify_args, output),
        Some(UsageAction::Export(export_args)) => export(&export_args, output).await,
        Some(UsageAction::Exports(exports_args)) => exports::run(exports_args, output).await,
        None => {
            let usage = usage(&args.connection.client()?, &args.query).await?;
            match args.csv {
                true => output.raw(&usage_csv(args.query.by, &usage)?),
                false => output.result(&usage, || describe(args.query.by, &usage)),
            }
        }
    }
}

/// Asks for usage.
pub(crate) async fn usage(client: &Client, query: &UsageQuery) -> Result<Vec<UsageView>, Failure> {
    let mut path = format!("/v1/usage?by={}", query.by.as_str());
    if let Some(tenant) = &query.tenant {
        path.push_str(&format!("&tenant={tenant}"));
    }
    if let Some(function) = &query.function {
        path.push_str(&format!("&function={function}"));
    }
    for (name, when) in [("since", &query.since), ("until", &query.until)] {
        if let Some(when) = when {
            path.push_str(&format!("&{name}={}", when.ms()));
        }
    }
    client.get(&path).await
}

async fn bill(args: &BillArgs, output: Output) -> Result<(), Failure> {
    let (from, to) = match (&args.since, &args.until) {
        (Some(since), Some(until)) => (since.hour_ms(), until.hour_ms()),
        _ => args.month.unwrap_or_default().bounds_ms(),
    };
    let client = args.connection.client()?;
    let path = format!(
        "/v1/usage/bill?tenant={}&since={from}&until={to}",
        args.tenant
    );
    let signed: SignedBill = client.get(&path).await?;
    let bill = holm_coordinator::verify_bill(&signed, None).map_err(|error| {
        Failure::other(format!(
            "the coordinator's bill cannot be believed: {error}"
        ))
    })?;
    if let Some(path) = &args.receipt {
        let text = serde_json::to_string_pretty(&signed)
            .map_err(|error| Failure::other(format!("the receipt cannot be written: {error}")))?;
        std::fs::write(path, text + "\n").map_err(|error| {
            Failure::usage(format!(
                "the receipt {} cannot be written: {error}",
                path.display()
            ))
        })?;
        let authority = holm_coordinator::authority_of(&signed);
        output.note(format!(
            "signed receipt written to {}; it is verified by `holm usage verify {} --authority {authority}`",
            path.display(),
            path.display()
        ));
    }
    match args.csv {
        true => output.raw(&bill_csv(&bill)?),
        false => output.result(&bill, || describe_bill(&bill)),
    }
}

fn verify(args: &VerifyArgs, output: Output) -> Result<(), Failure> {
    let shown = args.file.display();
    let cannot = |why: String| Failure::usage(format!("the receipt {shown} cannot be read: {why}"));
    let size = std::fs::metadata(&args.file).map_err(|error| cannot(error.to_string()))?;
    if size.len() > MAX_BILL_BYTES {
        return Err(cannot(format!("it has more than {MAX_BILL_BYTES} bytes")));
    }
    let text = std::fs::read_to_string(&args.file).map_err(|error| cannot(error.to_string()))?;
    let signed: SignedBill =
        serde_json::from_str(&text).map_err(|error| cannot(error.to_string()))?;
    let bill = holm_coordinator::verify_bill(&signed, args.authority).map_err(|error| {
        Failure::other(format!(
            "the receipt {shown} is not to be believed: {error}"
        ))
    })?;
    if args.authority.is_none() {
        output.warn("whose receipt it is was not looked at; give the fleet's --authority");
    }
    output.result(&bill, || {
        let verdict = match args.authority {
            Some(_) => "the receipt is genuine",
            None => "the receipt is whole",
        };
        format!("{}\n{verdict}", describe_bill(&bill))
    })
}

/// A bill, for people.
fn describe_bill(bill: &Bill) -> String {
    let rows: Vec<[String; 10]> = bill
        .lines
        .iter()
        .map(|line| {
            let plan = line.plan.as_ref();
            let cost = line.cost.as_ref();
            [
                line.function.to_string(),
                moment(line.from_ms),
                moment(line.to_ms),
                line.billed.requests.to_string(),
                gib_seconds(line.billed.memory_kib_ms),
                time(Duration::from_nanos(line.billed.cpu_ns)),
                bytes(line.billed.egress_bytes),
                plan.map_or_else(
                    || "none".to_owned(),
                    |plan| format!("{}/{}", plan.name, plan.version),
                ),
                cost.map_or_else(|| "-".to_owned(), |cost| cost.total.to_string()),
                plan.map_or_else(String::new, |plan| plan.currency.to_string()),
            ]
        })
        .collect();
    let head = [
        "FUNCTION",
        "FROM",
        "TO",
        "BILLED",
        "GIB-SECONDS",
        "CPU",
        "EGRESS",
        "PLAN",
        "COST",
        "",
    ];
    let mut text = format!(
        "{} from {} to {}, by the ledger up to row {}, at {}\n{}",
        bill.tenant,
        moment(bill.from_ms),
        moment(bill.to_ms),
        bill.last_row,
        moment(bill.issued_ms),
        table(head, &rows)
    );
    for total in &bill.totals {
        text.push_str(&format!("\ntotal {} {}", total.total, total.currency));
    }
    if bill.lines.iter().any(|line| line.plan.is_none()) {
        text.push_str("\nlines without a plan have no price; `holm prices set` makes one");
    }
    text
}

fn bill_csv(bill: &Bill) -> Result<Vec<u8>, Failure> {
    let head = [
        "tenant",
        "function",
        "from_ms",
        "to_ms",
        "executions",
        "requests",
        "memory_kib_ms",
        "cpu_ns",
        "egress_bytes",
        "plan",
        "plan_version",
        "currency",
        "cost_requests",
        "cost_memory",
        "cost_cpu",
        "cost_egress",
        "cost",
    ];
    let rows = bill.lines.iter().map(|line| {
        let plan = line.plan.as_ref();
        let of_plan = |text: Option<String>| text.unwrap_or_default();
        let cost = |part: fn(&holm_model::price::Cost) -> holm_model::price::Amount| {
            of_plan(line.cost.as_ref().map(|cost| part(cost).to_string()))
        };
        [
            bill.tenant.to_string(),
            line.function.to_string(),
            line.from_ms.to_string(),
            line.to_ms.to_string(),
            line.executions.to_string(),
            line.billed.requests.to_string(),
            line.billed.memory_kib_ms.to_string(),
            line.billed.cpu_ns.to_string(),
            line.billed.egress_bytes.to_string(),
            of_plan(plan.map(|plan| plan.name.to_string())),
            of_plan(plan.map(|plan| plan.version.to_string())),
            of_plan(plan.map(|plan| plan.currency.to_string())),
            cost(|cost| cost.requests),
            cost(|cost| cost.memory),
            cost(|cost| cost.cpu),
            cost(|cost| cost.egress),
            cost(|cost| cost.total),
        ]
    });
    csv_of(head, rows)
}

fn usage_csv(by: By, usage: &[UsageView]) -> Result<Vec<u8>, Failure> {
    type Column = (&'static str, fn(&UsageView) -> u64);
    const COLUMNS: [Column; 20] = [
        ("executions", |row| row.executions),
        ("answered", |row| row.answered),
        ("function_errors", |row| row.function_errors),
        ("crashes", |row| row.crashes),
        ("timeouts", |row| row.timeouts),
        ("cancelled", |row| row.cancelled),
        ("shed", |row| row.shed),
        ("platform_faults", |row| row.platform_faults),
        ("cold", |row| row.cold),
        ("run_ns", |row| row.run_ns),
        ("cpu_ns", |row| row.cpu_ns),
        ("memory_kib_ms", |row| row.memory_kib_ms),
        ("request_bytes", |row| row.request_bytes),
        ("response_bytes", |row| row.response_bytes),
        ("egress_bytes", |row| row.egress_bytes),
        ("ingress_bytes", |row| row.ingress_bytes),
        ("billed_requests", |row| row.billed.requests),
        ("billed_memory_kib_ms", |row| row.billed.memory_kib_ms),
        ("billed_cpu_ns", |row| row.billed.cpu_ns),
        ("billed_egress_bytes", |row| row.billed.egress_bytes),
    ];
    let head = [by.as_str()]
        .into_iter()
        .chain(COLUMNS.map(|(name, _)| name));
    let rows = usage.iter().map(|row| {
        let numbers = COLUMNS.map(|(_, number)| number(row).to_string());
        [row.key.clone()].into_iter().chain(numbers)
    });
    csv_of(head, rows)
}

fn csv_of<'a, R>(
    head: impl IntoIterator<Item = &'a str>,
    rows: impl Iterator<Item = R>,
) -> Result<Vec<u8>, Failure>
where
    R: IntoIterator<Item = String>,
{
    let failed = |error: csv::Error| Failure::other(format!("CSV cannot be written: {error}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(head).map_err(failed)?;
    for row in rows {
        writer.write_record(row).map_err(failed)?;
    }
    let inner = writer.into_inner();
    inner.map_err(|error| Failure::other(format!("CSV cannot be written: {error}")))
}

fn gib_seconds(memory_kib_ms: u64) -> String {
    format!("{:.4}", memory_kib_ms as f64 / f64::from(1 << 20) / 1e3)
}

async fn export(args: &ExportArgs, output: Output) -> Result<(), Failure> {
    let shown = args.output.display();
    let failed = |why: &dyn std::fmt::Display| {
        Failure::usage(format!("the file {shown} cannot be written: {why}"))
    };
    let client = args.connection.client()?;
    let to = File::create_new(&args.output).map_err(|error| failed(&error))?;
    let written = write_records(&client, args, to, &failed).await;
    if written.is_err() {
        // Half a file is none.
        let _ = std::fs::remove_file(&args.output);
    }
    let rows = written?;
    let result = serde_json::json!({ "file": args.output, "records": rows });
    output.result(&result, || format!("{rows} records written to {shown}"))
}

async fn write_records(
    client: &Client,
    args: &ExportArgs,
    to: File,
    failed: &impl Fn(&dyn std::fmt::Display) -> Failure,
) -> Result<u64, Failure> {
    let mut filter = String::new();
    if let Some(tenant) = &args.tenant {
        filter.push_str(&format!("&tenant={tenant}"));
    }
    if let Some(function) = &args.function {
        filter.push_str(&format!("&function={function}"));
    }
    for (name, when) in [("since", &args.since), ("until", &args.until)] {
        if let Some(when) = when {
            filter.push_str(&format!("&{name}={}", when.ms()));
        }
    }
    let mut file = holm_coordinator::RecordsFile::new(to).map_err(|error| failed(&error))?;
    let (mut after, mut count, mut group) = (0, 0, Vec::new());
    loop {
        let path = format!("/v1/usage/records?limit={MAX_USAGE_BATCH}&after={after}{filter}");
        let page: UsageRecordsPage = client.get_slowly(&path).await?;
        count += page.records.len() as u64;
        group.extend(page.records);
        let ended = page.next.is_none();
        if group.len() >= ROWS_IN_A_GROUP || ended && !group.is_empty() {
            file.add(&group).map_err(|error| failed(&error))?;
            group.clear();
        }
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    let to = file.finish().map_err(|error| failed(&error))?;
    to.sync_all().map_err(|error| failed(&error))?;
    Ok(count)
}

/// Asks for the audit.
pub(crate) async fn audit(client: &Client) -> Result<AuditView, Failure> {
    client.get_slowly("/v1/usage/audit").await
}

/// Usage, for people.
pub(crate) fn describe(by: By, usage: &[UsageView]) -> String {
    let first = by.as_str().to_uppercase();
    let rows: Vec<[String; 13]> = usage
        .iter()
        .map(|row| {
            let failed = row.function_errors + row.crashes + row.timeouts;
            [
                row.key.clone(),
                row.executions.to_string(),
                row.answered.to_string(),
                failed.to_string(),
                (row.cancelled + row.shed + row.platform_faults).to_string(),
                row.cold.to_string(),
                time(Duration::from_nanos(row.run_ns)),
                time(Duration::from_nanos(row.cpu_ns)),
                gib_seconds(row.memory_kib_ms),
                bytes(row.request_bytes),
                bytes(row.response_bytes),
                bytes(row.egress_bytes),
                bytes(row.ingress_bytes),
            ]
        })
        .collect();
    let head = [
        first.as_str(),
        "EXECUTIONS",
        "ANSWERED",
        "FAILED",
        "OTHER",
        "COLD",
        "RUN",
        "CPU",
        "GIB-SECONDS",
        "REQUESTS",
        "RESPONSES",
        "EGRESS",
        "INGRESS",
    ];
    table(head, &rows)
}

/// The audit, for people.
pub(crate) fn describe_audit(audit: &AuditView) -> String {
    let journals: Vec<[String; 9]> = audit
        .journals
        .iter()
        .map(|journal| {
            [
                journal.node.to_string(),
                journal.boot_epoch.to_string(),
                journal.first.to_string(),
                journal.last.to_string(),
                match journal.dropped {
                    0 => "-".to_owned(),
                    _ => format!("to {}", journal.checkpoint),
                },
                journal.rows.to_string(),
                journal.missing.to_string(),
                journal.batches.to_string(),
                journal.head.map_or("-".into(), |head| head.hex()),
            ]
        })
        .collect();
    let head = [
        "NODE",
        "LIFE",
        "FIRST",
        "LAST",
        "NOT KEPT",
        "ROWS",
        "MISSING",
        "BATCHES",
        "CHAIN HEAD",
    ];
    let mut text = table(head, &journals);
    text.push('\n');
    text.push_str(&outcomes(audit));
    for problem in &audit.problems {
        if problem.fault == AuditFault::Sums {
            text.push_str(&format!(
                "\nsums: of node {}: {}",
                problem.node, problem.why
            ));
            continue;
        }
        text.push_str(&format!(
            "\n{}: {}/{} to {} of node {}: {}",
            problem.fault.as_str(),
            problem.boot_epoch,
            problem.first,
            problem.last,
            problem.node,
            problem.why
        ));
    }
    if audit.problems_left_out > 0 {
        text.push_str(&format!("\nand {} more", audit.problems_left_out));
    }
    for notice in &audit.notices {
        text.push_str(&format!("\nnote: {notice}"));
    }
    if audit.unchained > 0 {
        text.push_str(&format!(
            "\nnote: {} rows are from before usage was chained; no signature vouches for them",
            audit.unchained
        ));
    }
    if audit.dropped > 0 {
        text.push_str(&format!(
            "\nnote: {} rows are no longer kept; they were audited when they went, signed checkpoints stand for them, \
             and what comes behind was checked",
            audit.dropped
        ));
    }
    text.push_str(&format!(
        "\n{} rows; {} probes, those no longer kept included; {} missing, {} duplicates; {} sent again and known already; \
         {} batches verified\n{}",
        audit.rows,
        audit.probes,
        audit.missing,
        audit.duplicates,
        audit.resent,
        audit.batches,
        match audit.whole {
            true => "the ledger is whole",
            false => "THE LEDGER IS NOT WHOLE",
        }
    ));
    text
}

/// That every admitted request has its outcome, for each node and all of them.
fn outcomes(audit: &AuditView) -> String {
    let rows: Vec<[String; 10]> = audit
        .nodes
        .iter()
        .chain([&audit.total])
        .map(|sums| {
            [
                sums.node.as_ref().map_or("all".into(), Name::to_string),
                sums.admitted.to_string(),
                sums.answered.to_string(),
                sums.function_errors.to_string(),
                sums.crashes.to_string(),
                sums.timeouts.to_string(),
                sums.cancelled.to_string(),
                sums.shed.to_string(),
                sums.platform_faults.to_string(),
                if sums.balanced { "yes" } else { "NO" }.to_owned(),
            ]
        })
        .collect();
    let head = [
        "NODE",
        "ADMITTED",
        "ANSWERED",
        "ERRORS",
        "CRASHES",
        "TIMEOUTS",
        "CANCELLED",
        "SHED",
        "FAULTS",
        "ADDS UP",
    ];
    table(head, &rows)
}
