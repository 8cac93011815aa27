//! `holm usage exports`: where a tenant's records of usage go.

use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Subcommand;
use holm_model::api::{ExportFile, ExportKind, ExportView, NewExport};
use holm_model::ids::{Digest, Name};

use crate::exit::Failure;
use crate::output::Output;
use crate::remote::client::Client;
use crate::remote::settings::{Connection, ListArgs, read_small, write_private};
use crate::remote::table::{bytes, moment, table};

/// `holm usage exports`.
#[derive(Debug, clap::Args)]
pub(crate) struct ExportsArgs {
    #[command(subcommand)]
    action: ExportsAction,
}

#[derive(Debug, Subcommand)]
enum ExportsAction {
    /// List exports, and how far each is.
    List(ListArgs),
    /// Have a tenant's records sent or written somewhere, from now on.
    Add(AddArgs),
    /// End an export; what it has sent or written stays.
    Remove(RemoveArgs),
    /// List the files that were written.
    Files(TenantArgs),
    /// Get the files that are not in a directory yet.
    Fetch(FetchArgs),
}

#[derive(Debug, clap::Args)]
struct AddArgs {
    #[command(subcommand)]
    kind: AddKind,
}

#[derive(Debug, Subcommand)]
enum AddKind {
    /// To an HTTPS address, as signed batches of CloudEvents.
    Webhook(WebhookArgs),
    /// To Parquet files in the artifact store, those of a day (UTC) when it is over.
    Parquet(TenantArgs),
}

#[derive(Debug, clap::Args)]
struct TenantArgs {
    /// Whose records.
    #[arg(long)]
    tenant: Name,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
struct FetchArgs {
    /// Whose.
    #[arg(long)]
    tenant: Name,
    /// Into which directory, below which they have the names that they have in the store.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
struct WebhookArgs {
    /// Where to: https://HOST/PATH.
    url: String,
    /// Whose records.
    #[arg(long)]
    tenant: Name,
    /// The file with the secret by which batches are signed: `whsec_` and base64, as Standard Webhooks have it. It is
    /// made if it is not there.
    #[arg(long, value_name = "FILE")]
    secret_file: PathBuf,
    /// Certificates (PEM) of authorities that may vouch for the address, beside the system's.
    #[arg(long, value_name = "FILE")]
    receiver_ca: Option<PathBuf>,
    /// Let the address be one that is not public, such as one of a private network. Needs a token for all tenants.
    #[arg(long)]
    private: bool,
    /// Also send what the ledger has already.
    #[arg(long)]
    from_start: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
struct RemoveArgs {
    /// Its number, as `list` tells it.
    id: u64,
    /// Whose it is.
    #[arg(long)]
    tenant: Name,
    #[command(flatten)]
    connection: Connection,
}

/// Does what `holm usage exports` says.
pub(crate) async fn run(args: ExportsArgs, output: Output) -> Result<(), Failure> {
    match args.action {
        ExportsAction::List(args) => {
            let views: Vec<ExportView> = args.get("/v1/exports").await?;
            output.result(&views, || describe(&views))
        }
        ExportsAction::Add(args) => match args.kind {
            AddKind::Webhook(args) => add_webhook(args, output).await,
            AddKind::Parquet(args) => {
                let new = NewExport {
                    kind: ExportKind::Parquet,
                    url: None,
                    secret: None,
                    ca: None,
                    private: false,
                    from_start: false,
                };
                add(&args.connection, &args.tenant, &new, output).await
            }
        },
        ExportsAction::Files(args) => {
            let files = files(&args.connection.client()?, &args.tenant).await?;
            output.result(&files, || describe_files(&files))
        }
        ExportsAction::Fetch(args) => fetch(args, output).await,
        ExportsAction::Remove(args) => {
            let path = format!("/v1/tenants/{}/exports/{}", args.tenant, args.id);
            args.connection.client()?.delete(&path).await?;
            let removed = serde_json::json!({ "removed": args.id });
            output.result(&removed, || format!("export {} is removed", args.id))
        }
    }
}

async fn add_webhook(args: WebhookArgs, output: Output) -> Result<(), Failure> {
    let secret = secret(&args.secret_file, output)?;
    let ca = args.receiver_ca.as_deref().map(read).transpose()?;
    let new = NewExport {
        kind: ExportKind::Webhook,
        url: Some(args.url),
        secret: Some(secret),
        ca,
        private: args.private,
        from_start: args.from_start,
    };
    add(&args.connection, &args.tenant, &new, output).await
}

async fn add(
    connection: &Connection,
    tenant: &Name,
    new: &NewExport,
    output: Output,
) -> Result<(), Failure> {
    let path = format!("/v1/tenants/{tenant}/exports");
    let view: ExportView = connection.client()?.post(&path, new).await?;
    output.result(&view, || describe(std::slice::from_ref(&view)))
}

async fn files(client: &Client, tenant: &Name) -> Result<Vec<ExportFile>, Failure> {
    let mut all: Vec<ExportFile> = Vec::new();
    loop {
        let after = all.last().map_or("", |file| file.name.as_str());
        let path = format!("/v1/tenants/{tenant}/exports/files?after={after}");
        let page: Vec<ExportFile> = client.get(&path).await?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page);
    }
}

async fn fetch(args: FetchArgs, output: Output) -> Result<(), Failure> {
    let client = args.connection.client()?;
    let mut fetched = Vec::new();
    for file in files(&client, &args.tenant).await? {
        let to = args.output.join(local_name(&file.name)?);
        if to.metadata().is_ok_and(|there| there.len() == file.bytes) {
            continue;
        }
        let path = format!(
            "/v1/tenants/{}/exports/file?name={}",
            args.tenant, file.name
        );
        let bytes = client.get_bytes(&path).await?;
        if Digest::of(&bytes) != file.digest {
            return Err(Failure::other(format!(
                "{} is not what was written: its digest is another one; the artifact store is to blame",
                file.name
            )));
        }
        write_private(&to, &bytes, true).map_err(|error| {
            Failure::usage(format!("{} cannot be written: {error}", to.display()))
        })?;
        fetched.push(file);
    }
    output.result(&fetched, || {
        format!(
            "{} files fetched into {}",
            fetched.len(),
            args.output.display()
        )
    })
}

/// A name of the coordinator's that leads nowhere but below a directory.
fn local_name(name: &str) -> Result<&Path, Failure> {
    let path = Path::new(name);
    let mut parts = path.components();
    match parts.all(|part| matches!(part, Component::Normal(_))) && !name.is_empty() {
        true => Ok(path),
        false => Err(Failure::other(format!(
            "the coordinator names a file `{name}`, which is none"
        ))),
    }
}

fn describe_files(files: &[ExportFile]) -> String {
    let rows: Vec<[String; 4]> = files
        .iter()
        .map(|file| {
            [
                file.name.clone(),
                file.rows.to_string(),
                bytes(file.bytes),
                moment(file.written_ms),
            ]
        })
        .collect();
    table(["FILE", "RECORDS", "SIZE", "WRITTEN"], &rows)
}

/// The secret in a file, which is made if it is not there.
fn secret(path: &Path, output: Output) -> Result<String, Failure> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let failed = |why: &dyn std::fmt::Display| {
                Failure::other(format!(
                    "the secret {} cannot be made: {why}",
                    path.display()
                ))
            };
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes).map_err(|error| failed(&error))?;
            let text = format!("whsec_{}", BASE64.encode(bytes));
            write_private(path, text.as_bytes(), false).map_err(|error| failed(&error))?;
            output.note(format!(
                "made a secret, {}: give it to the receiver, which verifies signatures with it",
                path.display()
            ));
            Ok(text)
        }
        _ => read(path).map(|text| text.trim().to_owned()),
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    read_small(path)
        .map_err(|error| Failure::usage(format!("{} cannot be read: {error}", path.display())))
}

fn describe(views: &[ExportView]) -> String {
    let rows: Vec<[String; 8]> = views
        .iter()
        .map(|view| {
            let more = if view.behind_at_least { " or more" } else { "" };
            let state = match (&view.error, view.failing_since_ms) {
                (Some(error), Some(since)) => {
                    format!("failing since {}: {error}", moment(since))
                }
                _ if view.behind > 0 => "on its way".to_owned(),
                _ => "up to date".to_owned(),
            };
            [
                view.id.to_string(),
                view.tenant.to_string(),
                match view.kind {
                    ExportKind::Webhook => view.url.clone(),
                    ExportKind::Parquet => "files".to_owned(),
                },
                view.sent.to_string(),
                format!("{}{more}", view.behind),
                view.oldest_ms.map_or_else(|| "-".to_owned(), moment),
                view.lost.to_string(),
                state,
            ]
        })
        .collect();
    let head = [
        "ID", "TENANT", "TO", "SENT", "BEHIND", "SINCE", "LOST", "STATE",
    ];
    let mut text = table(head, &rows);
    for view in views.iter().filter(|view| view.lost > 0) {
        text.push_str(&format!(
            "\n{} records of export {} were no longer kept before they were out, last at {}",
            view.lost,
            view.id,
            view.lost_ms.map_or_else(|| "-".to_owned(), moment)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_name_leads_nowhere_else() {
        assert!(local_name("usage/tenant=a/date=2026-11-30/part-1.parquet").is_ok());
        for name in ["", "/etc/passwd", "usage/../../x", "..", "./x"] {
            assert!(local_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_secret_is_made_once_and_then_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let silent = Output {
            json: false,
            quiet: true,
        };
        let made = secret(&path, silent).unwrap();
        assert!(made.starts_with("whsec_") && made.len() == 6 + 44, "{made}");
        assert_eq!(secret(&path, silent).unwrap(), made);
    }
}
