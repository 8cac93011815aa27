//! `holm route` and `holm invoke`: which node a caller is sent to and why, and a request that goes
//! there, or to the next-nearest if that does not answer.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use hyper::Method;
use hyper::body::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use serde::Serialize;

use holm_model::api::RouteView;
use holm_model::ids::{FunctionName, Name};
use holm_model::limits::{MAX_DEADLINE_MS, MAX_REQUEST_BODY_BYTES};
use holm_model::manifest::units::parse_millis;
use holm_model::place::Coordinates;

use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::remote::client::Client;
use crate::remote::edge::{Answer, Attempt, Call, Line, Nearest, Turn, is_idempotent};
use crate::remote::settings::Connection;
use crate::remote::table::{table, time};

/// Connections opened to each node to measure the way to it; the fastest counts.
const MEASUREMENTS: u32 = 3;
/// A node that takes longer to accept a connection is not measured.
const MEASUREMENT_TIMEOUT: Duration = Duration::from_secs(1);

/// Options of `holm route`.
#[derive(Debug, clap::Args)]
pub(crate) struct RouteArgs {
    /// The function, as tenant/function.
    function: FunctionName,
    #[command(flatten)]
    whence: Whence,
    #[command(flatten)]
    connection: Connection,
}

/// Where the caller is.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Whence {
    /// Where the caller is: latitude,longitude in degrees, for example 52.52,13.40.
    #[arg(long, value_name = "LAT,LON", allow_hyphen_values = true)]
    from: Option<Coordinates>,
    /// Measure the way to the nodes from here, and let that decide.
    #[arg(long)]
    measure: bool,
}

/// Options of `holm invoke`.
#[derive(Debug, clap::Args)]
pub(crate) struct InvokeArgs {
    /// The function, as tenant/function.
    function: FunctionName,
    #[command(flatten)]
    whence: Whence,
    /// The method [default: GET, or POST with a body].
    #[arg(long, short = 'X', value_name = "METHOD")]
    method: Option<Method>,
    /// Path and query within the function.
    #[arg(long, default_value = "/", value_name = "PATH")]
    path: String,
    /// A header; may be given several times.
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE", value_parser = parse_header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// A file to send as the body, or `-` for stdin.
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,
    /// How long to wait for each node's answer.
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = parse_millis)]
    timeout: u64,
    /// Try the next node even if the first one may have executed the request, although its method
    /// is not idempotent.
    #[arg(long)]
    retry_unsafe: bool,
    #[command(flatten)]
    connection: Connection,
}

/// What `holm invoke --json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    node: Option<&'a Name>,
    region: Option<&'a str>,
    why: Option<&'a str>,
    status: Option<u16>,
    headers: Vec<(&'a str, String)>,
    /// In base64.
    body: Option<String>,
    request_id: Option<String>,
    took_us: Option<u64>,
    /// Every node's turn, in order.
    attempts: &'a [Attempt],
}

/// `holm route`.
pub(crate) async fn route(args: RouteArgs, output: Output) -> Result<(), Failure> {
    let client = args.connection.client()?;
    let route = args.whence.ask(&client, &args.function).await?;
    output.result(&route, || describe(&route))
}

/// `holm invoke`.
pub(crate) async fn run(args: InvokeArgs, output: Output) -> Result<(), Failure> {
    let client = args.connection.client()?;
    let call = args.call()?;
    let route = args.whence.ask(&client, &args.function).await?;
    if route.candidates.is_empty() {
        return Err(nowhere(&args.function, &route));
    }
    let mut nearest = Nearest::new(route.candidates, client.trust())?;
    let outcome = nearest.call(&call).await;
    for attempt in &outcome.attempts {
        output.note(match attempt.outcome {
            Turn::Answered => format!("{} ({}) answers", attempt.node, attempt.why),
            _ => format!(
                "{} ({}) does not answer: {}",
                attempt.node, attempt.why, attempt.detail
            ),
        });
    }
    let last = outcome.attempts.last();
    let answer = outcome.answer.as_ref();
    if output.json || answer.is_none() {
        let report = report(answer, last, &outcome.attempts);
        if output.json {
            output.result(&report, String::new)?;
        }
    }
    match answer {
        Some(answer) => {
            if !output.json {
                show(answer, output)?;
            }
            verdict(&args.function, answer, output)
        }
        None => {
            let why = match last {
                Some(last) if last.outcome == Turn::Cut && !call.repeatable => format!(
                    "{} may have executed it, so no other node was asked; allow that with \
                     --retry-unsafe",
                    last.node
                ),
                _ => "no node answered".to_owned(),
            };
            let text = format!("{} did not answer: {why}", args.function);
            Err(match output.json {
                true => Failure::reported(Exit::Unreachable, text),
                false => Failure::new(Exit::Unreachable, text),
            })
        }
    }
}

impl InvokeArgs {
    fn call(&self) -> Result<Call, Failure> {
        let body = match &self.body {
            None => Bytes::new(),
            Some(path) => read_body(path)?,
        };
        if !self.path.starts_with('/') {
            return Err(Failure::usage(format!(
                "the path `{}` has to begin with /",
                self.path
            )));
        }
        if self.timeout > MAX_DEADLINE_MS {
            return Err(Failure::usage(format!(
                "a timeout of more than {} minutes makes no sense: no function may run longer",
                MAX_DEADLINE_MS / 60_000
            )));
        }
        let default = if self.body.is_some() {
            Method::POST
        } else {
            Method::GET
        };
        let method = self.method.clone().unwrap_or(default);
        Ok(Call {
            repeatable: self.retry_unsafe || is_idempotent(&method),
            method,
            path: self.path.clone(),
            headers: self.headers.clone(),
            body,
            timeout: Duration::from_millis(self.timeout),
        })
    }
}

impl Whence {
    async fn ask(&self, client: &Client, function: &FunctionName) -> Result<RouteView, Failure> {
        let route = ask_route(client, function, self.from, &[]).await?;
        if !self.measure {
            return Ok(route);
        }
        let mut probes = Vec::new();
        for candidate in &route.candidates {
            if let Some(rtt) = measure(Line::new(&candidate.url, client.trust())?.authority()).await
            {
                probes.push((candidate.node.clone(), rtt));
            }
        }
        ask_route(client, function, self.from, &probes).await
    }
}

/// Asks the coordinator for the way from a caller to `function`.
pub(crate) async fn ask_route(
    client: &Client,
    function: &FunctionName,
    from: Option<Coordinates>,
    probes: &[(Name, Duration)],
) -> Result<RouteView, Failure> {
    let mut query = Vec::new();
    if let Some(from) = from {
        query.push(format!("from={from}"));
    }
    if !probes.is_empty() {
        let probes: Vec<String> = probes
            .iter()
            .map(|(node, rtt)| format!("{node}:{}", rtt.as_micros()))
            .collect();
        query.push(format!("probe={}", probes.join(",")));
    }
    let mark = if query.is_empty() { "" } else { "?" };
    client
        .get(&format!("/v1/route/{function}{mark}{}", query.join("&")))
        .await
}

/// The time to open a connection: one round trip.
async fn measure(authority: &str) -> Option<Duration> {
    let mut best: Option<Duration> = None;
    for _ in 0..MEASUREMENTS {
        let started = Instant::now();
        let connect = tokio::net::TcpStream::connect(authority);
        match tokio::time::timeout(MEASUREMENT_TIMEOUT, connect).await {
            Ok(Ok(_)) => {
                let took = started.elapsed();
                best = Some(best.map_or(took, |best| best.min(took)));
            }
            _ => return best,
        }
    }
    best
}

fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write it as `name: value`")?;
    let name = name
        .trim()
        .parse()
        .map_err(|_| format!("`{name}` is not a header's name"))?;
    let value = value
        .trim()
        .parse()
        .map_err(|_| format!("`{value}` is not a header's value"))?;
    Ok((name, value))
}

fn read_body(path: &std::path::Path) -> Result<Bytes, Failure> {
    use std::io::Read as _;
    let failed = |error: std::io::Error| {
        Failure::usage(format!(
            "the body {} cannot be read: {error}",
            path.display()
        ))
    };
    let mut bytes = Vec::new();
    let limit = MAX_REQUEST_BODY_BYTES + 1;
    match path.as_os_str() == "-" {
        true => std::io::stdin().lock().take(limit).read_to_end(&mut bytes),
        false => {
            std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes))
        }
    }
    .map_err(failed)?;
    match bytes.len() as u64 > MAX_REQUEST_BODY_BYTES {
        true => Err(Failure::usage(format!(
            "the body {} has more than the {MAX_REQUEST_BODY_BYTES} bytes that a request may have",
            path.display()
        ))),
        false => Ok(Bytes::from(bytes)),
    }
}

fn report<'a>(
    answer: Option<&'a Answer>,
    last: Option<&'a Attempt>,
    attempts: &'a [Attempt],
) -> Report<'a> {
    let last = last.filter(|last| last.outcome == Turn::Answered);
    let headers = answer.map(|answer| {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        answer
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), text(value)))
            .collect()
    });
    Report {
        node: last.map(|last| &last.node),
        region: last.map(|last| last.region.as_str()),
        why: last.map(|last| last.why.as_str()),
        status: answer.map(|answer| answer.status),
        headers: headers.unwrap_or_default(),
        body: answer.map(|a| base64::engine::general_purpose::STANDARD.encode(&a.body)),
        request_id: answer.and_then(Answer::request_id).map(|id| id.to_string()),
        took_us: answer.map(|answer| u64::try_from(answer.took.as_micros()).unwrap_or(u64::MAX)),
        attempts,
    }
}

fn show(answer: &Answer, output: Output) -> Result<(), Failure> {
    let timing = answer
        .header("server-timing")
        .map(|timing| format!("; {timing}"));
    output.note(format!(
        "status {}, request {}, {}{}",
        answer.status,
        answer.header("x-request-id").unwrap_or("without id"),
        time(answer.took),
        timing.unwrap_or_default()
    ));
    output.raw(&answer.body)
}

/// An answer that the node made in the function's place is a failure, whoever is to blame.
fn verdict(function: &FunctionName, answer: &Answer, output: Output) -> Result<(), Failure> {
    let exit = match answer.status {
        _ if !answer.made_by_node() => return Ok(()),
        ..400 => return Ok(()),
        _ if answer.turned_away() => Exit::Unreachable,
        502 | 504 => Exit::Program,
        400..500 => Exit::Refused,
        _ => Exit::Failure,
    };
    let status = answer.header("proxy-status").unwrap_or_default();
    let text = format!("{function} did not answer itself; the node says: {status}");
    Err(match output.json {
        true => Failure::reported(exit, text),
        false => Failure::new(exit, text),
    })
}

fn nowhere(function: &FunctionName, route: &RouteView) -> Failure {
    let mut text = format!("no node can serve {function}");
    for excluded in &route.excluded {
        text.push_str(&format!("\n  {}: {}", excluded.node, excluded.why));
    }
    Failure::new(Exit::Refused, text).hint("see `holm versions`, `holm nodes list`")
}

/// A route, for people.
pub(crate) fn describe(route: &RouteView) -> String {
    let rows: Vec<[String; 4]> = route
        .candidates
        .iter()
        .enumerate()
        .map(|(place, candidate)| {
            [
                format!("{}.", place + 1),
                candidate.node.to_string(),
                candidate.url.clone(),
                candidate.why.clone(),
            ]
        })
        .chain(route.excluded.iter().map(|excluded| {
            [
                "-".to_owned(),
                excluded.node.to_string(),
                String::new(),
                excluded.why.clone(),
            ]
        }))
        .collect();
    table(["", "NODE", "URL", "WHY"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_a_name_and_a_value() {
        let (name, value) = parse_header("X-A: b: c").unwrap();
        assert_eq!((name.as_str(), value.as_bytes()), ("x-a", &b"b: c"[..]));
        for bad in ["x-a", ": b", "a b: c", "a: b\u{7f}"] {
            assert!(parse_header(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn the_way_to_a_node_that_is_not_there_is_not_measured() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        assert!(measure(&authority).await.is_some());
        drop(listener);
        assert!(measure(&authority).await.is_none());
    }
}
