//! `holm logs`: what a function wrote and why it failed, wherever it ran.

use std::time::Duration;

use holm_model::api::{LogPage, LogView};
use holm_model::ids::{FunctionName, RequestId};
use jiff::Timestamp;

use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::remote::client::Client;
use crate::remote::settings::Connection;

/// Pause between two looks of `--follow`.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between two attempts to reach a coordinator that is gone.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// Most entries that `--follow` asks for at a time.
const FOLLOWED: u32 = 1000;

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
    let mut page = ask(&client, &args, None, args.limit).await?;
    if !args.follow {
        if page.entries.is_empty() {
            output.note("nothing is known; entries come about a second late, and a restart of the coordinator forgets them");
        }
        return match output.json {
            true => output.result(&page, String::new),
            false => show(&page, output),
        };
    }
    show(&page, output)?;
    loop {
        tokio::time::sleep(PAUSE).await;
        // Behind a full page there may be more already.
        loop {
            page = follow(&client, &args, page.next, output).await?;
            show(&page, output)?;
            if page.entries.len() < FOLLOWED as usize {
                break;
            }
        }
    }
}

/// What came later, however often the coordinator has to be asked until it is there again.
async fn follow(
    client: &Client,
    args: &LogsArgs,
    after: u64,
    output: Output,
) -> Result<LogPage, Failure> {
    let mut pause = PAUSE;
    loop {
        match ask(client, args, Some(after), FOLLOWED).await {
            Err(failure) if failure.exit == Exit::Unreachable => {
                if pause == PAUSE {
                    output.note(format!("{}; trying on", failure.message));
                }
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(MAX_PAUSE);
            }
            answer => return answer,
        }
    }
}

async fn ask(
    client: &Client,
    args: &LogsArgs,
    after: Option<u64>,
    limit: u32,
) -> Result<LogPage, Failure> {
    let function = &args.function;
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
    let request = match entry.request {
        RequestId::NONE => "-".to_owned(),
        request => request.to_string()[..8].to_owned(),
    };
    let head = format!(
        "{} {} {}{}",
        Timestamp::from_millisecond(at).unwrap_or(Timestamp::MAX),
        entry.node,
        request,
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
    use clap::Parser as _;
    use holm_model::ids::Digest;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: LogsArgs,
    }

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
        let at_its_end = LogView {
            request: RequestId::NONE,
            failed: false,
            text: "bye".into(),
            ..entry
        };
        assert_eq!(describe(&at_its_end), "2023-11-14T22:13:20.123Z n1 - bye");
    }

    #[tokio::test]
    async fn following_goes_on_where_it_was_after_a_lost_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = tokio::spawn(async move {
            let (mut lost, _) = listener.accept().await.unwrap();
            let mut asked = [0; 4096];
            assert!(lost.read(&mut asked).await.unwrap() > 0);
            drop(lost);
            let (mut stream, _) = listener.accept().await.unwrap();
            let bytes = stream.read(&mut asked).await.unwrap();
            let body = r#"{"entries":[],"next":7,"dropped":0}"#;
            let length = body.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&asked[..bytes]).into_owned()
        });
        let client = Client::new(&url, None, Default::default()).unwrap();
        let args = Line::parse_from(["logs", "a/f"]).args;
        let output = Output {
            json: false,
            quiet: true,
        };
        let page = follow(&client, &args, 7, output).await;
        assert_eq!(page.unwrap().next, 7);
        let asked = served.await.unwrap();
        assert!(
            asked.starts_with("GET /v1/functions/a/f/logs?limit=1000&after=7 "),
            "{asked}"
        );
    }
}
