//! `holm versions`: what has been published, what it is called, and what may go.

use clap::Subcommand;

use holm_model::api::{FunctionView, KeptView, PruneRequest, PruneView, TagRequest, VersionView};
use holm_model::ids::FunctionName;

use crate::exit::Failure;
use crate::output::Output;
use crate::remote::client::{Client, function_path};
use crate::remote::rollout::pick;
use crate::remote::settings::Connection;
use crate::remote::table::{bytes, moment, table};
use crate::remote::tokens::segment;

/// Options of `holm versions`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct VersionsArgs {
    /// The function, as tenant/function; all functions if left out.
    function: Option<FunctionName>,
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List versions.
    List {
        /// The function, as tenant/function; all functions if left out.
        function: Option<FunctionName>,
    },
    /// Tell all of one version.
    Show {
        /// The function, as tenant/function.
        function: FunctionName,
        /// Tag, label or id of the version [default: the newest].
        version: Option<String>,
    },
    /// Have a tag name a version, and no other one of the function.
    Tag {
        /// The function, as tenant/function.
        function: FunctionName,
        /// The tag: letters, digits, `.`, `_` and `-`.
        tag: String,
        /// Tag, label or id of the version [default: the newest].
        version: Option<String>,
    },
    /// Take a tag off.
    Untag {
        /// The function, as tenant/function.
        function: FunctionName,
        /// The tag.
        tag: String,
    },
    /// Remove versions that nobody may need, and their artifacts: not the newest ones, nor what a node has, a tag
    /// names, a rollout is about or a rollback goes to.
    Prune {
        /// The function, as tenant/function; all functions if left out.
        function: Option<FunctionName>,
        /// How many of the newest versions of each function stay in any case.
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
        keep: u64,
        /// Only tell what would be removed, and why the rest stays.
        #[arg(long)]
        dry_run: bool,
    },
}

/// `holm versions`.
pub(crate) async fn versions(args: VersionsArgs, output: Output) -> Result<(), Failure> {
    let client = args.connection.client()?;
    let function = args.function;
    match args.action.unwrap_or(Action::List { function }) {
        Action::List { function } => {
            let functions: Vec<FunctionView> = match &function {
                Some(function) => vec![client.get(&function_path(function)).await?],
                None => client.get("/v1/functions").await?,
            };
            output.result(&functions, || list(&functions))
        }
        Action::Show { function, version } => {
            let view: FunctionView = client.get(&function_path(&function)).await?;
            let version = pick(&view, version.as_deref())?;
            let current = view.current.as_ref().map(|current| current.version);
            output.result(version, || show(version, current == Some(version.version)))
        }
        Action::Tag {
            function,
            tag,
            version,
        } => {
            let view: FunctionView = client.get(&function_path(&function)).await?;
            let version = pick(&view, version.as_deref())?;
            let tagged = set_tag(&client, version, &tag).await?;
            output.result(&tagged, || {
                format!(
                    "{tag} of {function} is {} {}",
                    tagged.label,
                    tagged.version.short()
                )
            })
        }
        Action::Untag { function, tag } => {
            let path = format!("{}/tags/{}", function_path(&function), segment(&tag));
            client.delete(&path).await?;
            let told = serde_json::json!({ "function": function, "tag": tag });
            output.result(&told, || format!("{function} has no tag {tag} any more"))
        }
        Action::Prune {
            function,
            keep,
            dry_run,
        } => {
            let request = PruneRequest {
                function,
                keep,
                dry_run,
            };
            let view: PruneView = client.post("/v1/prune", &request).await?;
            output.result(&view, || pruned(&view))
        }
    }
}

/// Has `tag` name `version`.
pub(crate) async fn set_tag(
    client: &Client,
    version: &VersionView,
    tag: &str,
) -> Result<VersionView, Failure> {
    let path = format!("{}/tags/{}", function_path(&version.function), segment(tag));
    let version = version.version;
    client.put(&path, &TagRequest { version }).await
}

fn list(functions: &[FunctionView]) -> String {
    let mut rows = Vec::new();
    for function in functions {
        let current = function.current.as_ref().map(|current| current.version);
        for version in &function.versions {
            rows.push([
                function.name.to_string(),
                version.label.clone(),
                version.counter.to_string(),
                version.version.short(),
                moment(version.created_ms),
                match (current == Some(version.version), function.configuration) {
                    (true, Some(number)) => format!("current, with c{number}"),
                    (true, None) => "current".to_owned(),
                    (false, _) => String::new(),
                },
                version.tags.join(" "),
                version.author.clone(),
                version.message.clone(),
            ]);
        }
    }
    let head = [
        "FUNCTION", "LABEL", "COUNTER", "VERSION", "MADE", "STATE", "TAGS", "AUTHOR", "MESSAGE",
    ];
    table(head, &rows)
}

fn show(version: &VersionView, current: bool) -> String {
    let state = if current { " (current)" } else { "" };
    let mut lines = vec![
        format!("{} {}{state}", version.function, version.label),
        format!("id       {}", version.version),
        format!("content  {}", version.content),
        format!("counter  {}", version.counter),
        format!("made     {}", moment(version.created_ms)),
    ];
    let more = [
        ("author ", version.author.as_str()),
        ("tags   ", &version.tags.join(" ")),
        ("message", version.message.as_str()),
    ];
    let more = more.into_iter().filter(|(_, text)| !text.is_empty());
    lines.extend(more.map(|(what, text)| format!("{what}  {text}")));
    lines.join("\n")
}

fn pruned(view: &PruneView) -> String {
    let row = |version: &VersionView, fate: &str, why: String| {
        [
            version.function.to_string(),
            version.label.clone(),
            version.version.short(),
            fate.to_owned(),
            why,
        ]
    };
    let goes = if view.dry_run { "would go" } else { "removed" };
    let removed = view
        .removed
        .iter()
        .map(|version| row(version, goes, String::new()));
    let kept = |KeptView { version, why }: &KeptView| row(version, "stays", why.join("; "));
    let rows: Vec<_> = removed.chain(view.kept.iter().map(kept)).collect();
    format!(
        "{}\n{goes}: {} versions, {} artifacts of {}",
        table(["FUNCTION", "LABEL", "VERSION", "FATE", "WHY"], &rows),
        view.removed.len(),
        view.artifacts.len(),
        bytes(view.artifact_bytes)
    )
}
