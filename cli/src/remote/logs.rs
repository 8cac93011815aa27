//! `holm logs`: what a function wrote and why it failed, wherever it ran.

use std::time::Duration;

use holm_model::api::{LogPage, LogView};
use holm_model::ids::{FunctionName, RequestId};
use jiff::Timestamp;

use crate::exit::Failure;
use crate::output::Output;
use crate::remote::client::Client;
use crate::remote::settings::Connection;

/// Pause between two looks of `--follow`.
const PAUSE: Duration = Duration::from_secs(1);

/// `holm logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct LogsArgs {
    /// The function, as tenant/function.
    function: FunctionName,
    /// Only what belongs to the request with this id (`x-request-id` of its answer).
    #[arg(long, value_name = "ID")]
    request: Option<RequestId>,
    /// At most so many entries, the last ones.
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Go on printing what comes, until interrupted.
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Does it.
pub(crate) async fn run(args: LogsArgs, output: Output) -> Result<(), Failure> {
    let client = args.connection.client()?;
    let mut page = ask(&client, &args, None).await?;
    if !args.follow {
        if page.entries.is_empty() {
            output.note("nothing is known; entries come about a second late, and a restart of the coordinator forgets them");
        }
        return match output.json {
            true => output.result(&page, String::new),
            false => show(&page, output),
        };
    }
    loop {
        show(&page, output)?;
        tokio::time::sleep(PAUSE).await;
        page = ask(&client, &args, Some(page.next)).await?;
    }
}

async fn ask(client: &Client, args: &LogsArgs, after: Option<u64>) -> Result<LogPage, Failure> {
    let LogsArgs {
        function, limit, ..
    } = args;
    let mut path = format!("/v1/functions/{function}/logs?limit={limit}");
    if let Some(request) = args.request {
        path.push_str(&format!("&request={request}"));
    }
    if let Some(after) = after {
        path.push_str(&format!("&after={after}"));
    }
    client.get(&path).await
}

/// A line for each line that was written, or, with `--json`, one for each entry.
fn show(page: &LogPage, output: Output) -> Result<(), Failure> {
    for entry in &page.entries {
        output.result(entry, || describe(entry))?;
    }
    Ok(())
}

fn describe(entry: &LogView) -> String {
    let at = i64::try_from(entry.at_ms).unwrap_or(i64::MAX);
    let head = format!(
        "{} {} {}{}",
        Timestamp::from_millisecond(at).unwrap_or(Timestamp::MAX),
        entry.node,
        &entry.request.to_string()[..8],
        if entry.failed { " failed:" } else { "" }
    );
    let lines: Vec<String> = entry
        .text
        .lines()
        .map(|line| format!("{head} {line}"))
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use holm_model::ids::Digest;

    #[test]
    fn each_line_says_when_where_and_of_which_request() {
        let entry = LogView {
            sequence: 1,
            node: "n1".parse().unwrap(),
            version: Digest([1; 32]),
            request: RequestId([0xab; 16]),
            at_ms: 1_700_000_000_123,
            failed: true,
            text: "a\nb".into(),
        };
        assert_eq!(
            describe(&entry),
            "2023-11-14T22:13:20.123Z n1 abababab failed: a\n\
             2023-11-14T22:13:20.123Z n1 abababab failed: b"
        );
    }
}
