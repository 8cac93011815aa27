//! `holm usage`: what executions used, and whether the ledger is whole.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};

use holm_model::api::{AuditView, UsageView};
use holm_model::ids::{FunctionName, Name};

use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::remote::client::Client;
use crate::remote::settings::Connection;
use crate::remote::table::{bytes, table, time};

/// `holm usage`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct UsageArgs {
    #[command(subcommand)]
    action: Option<UsageAction>,
    /// What to add up by.
    #[arg(long, value_enum, default_value_t = By::Function)]
    by: By,
    /// Only this tenant.
    #[arg(long, value_name = "TENANT")]
    tenant: Option<Name>,
    /// Only this function, as tenant/function.
    #[arg(long, value_name = "FUNCTION", conflicts_with = "tenant")]
    function: Option<FunctionName>,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum UsageAction {
    /// Check that the ledger has every execution, and each only once.
    Audit(AuditArgs),
}

#[derive(Debug, clap::Args)]
struct AuditArgs {
    #[command(flatten)]
    connection: Connection,
}

/// What usage is added up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    /// By function.
    Function,
    /// By node.
    Node,
    /// By version.
    Version,
}

/// Does it.
pub(crate) async fn run(args: UsageArgs, output: Output) -> Result<(), Failure> {
    if let Some(UsageAction::Audit(audit_args)) = args.action {
        let found = audit(&audit_args.connection.client()?).await?;
        output.result(&found, || describe_audit(&found))?;
        return match found.whole {
            true => Ok(()),
            false => Err(Failure::reported(Exit::Failure, "the ledger is not whole")),
        };
    }
    let client = args.connection.client()?;
    let usage = usage(
        &client,
        args.by,
        args.tenant.as_ref(),
        args.function.as_ref(),
    )
    .await?;
    output.result(&usage, || describe(args.by, &usage))
}

/// Asks for usage.
pub(crate) async fn usage(
    client: &Client,
    by: By,
    tenant: Option<&Name>,
    function: Option<&FunctionName>,
) -> Result<Vec<UsageView>, Failure> {
    let by = match by {
        By::Function => "function",
        By::Node => "node",
        By::Version => "version",
    };
    let mut path = format!("/v1/usage?by={by}");
    if let Some(tenant) = tenant {
        path.push_str(&format!("&tenant={tenant}"));
    }
    if let Some(function) = function {
        path.push_str(&format!("&function={function}"));
    }
    client.get(&path).await
}

/// Asks for the audit.
pub(crate) async fn audit(client: &Client) -> Result<AuditView, Failure> {
    client.get("/v1/usage/audit").await
}

/// Usage, for people.
pub(crate) fn describe(by: By, usage: &[UsageView]) -> String {
    let first = match by {
        By::Function => "FUNCTION",
        By::Node => "NODE",
        By::Version => "VERSION",
    };
    let rows: Vec<[String; 13]> = usage
        .iter()
        .map(|row| {
            let failed = row.function_errors + row.crashes + row.timeouts;
            let gigabyte_seconds = row.memory_byte_ms as f64 / (1u64 << 30) as f64 / 1e3;
            [
                row.key.clone(),
                row.executions.to_string(),
                row.answered.to_string(),
                failed.to_string(),
                (row.cancelled + row.shed + row.platform_faults).to_string(),
                row.cold.to_string(),
                time(Duration::from_nanos(row.run_ns)),
                time(Duration::from_nanos(row.cpu_ns)),
                format!("{gigabyte_seconds:.4}"),
                bytes(row.request_bytes),
                bytes(row.response_bytes),
                bytes(row.egress_bytes),
                bytes(row.ingress_bytes),
            ]
        })
        .collect();
    let head = [
        first,
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
    let rows: Vec<[String; 6]> = audit
        .journals
        .iter()
        .map(|journal| {
            [
                journal.node.to_string(),
                journal.boot_epoch.to_string(),
                journal.first.to_string(),
                journal.last.to_string(),
                journal.rows.to_string(),
                journal.missing.to_string(),
            ]
        })
        .collect();
    let verdict = match audit.whole {
        true => "the ledger is whole",
        false => "THE LEDGER IS NOT WHOLE",
    };
    format!(
        "{}\n{} rows, {} of them probes; {} missing, {} duplicates; {} sent again and known already\n\
         {verdict}",
        table(["NODE", "LIFE", "FIRST", "LAST", "ROWS", "MISSING"], &rows),
        audit.rows,
        audit.probes,
        audit.missing,
        audit.duplicates,
        audit.resent
    )
}
