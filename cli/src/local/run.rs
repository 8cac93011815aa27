//! `holm run`: a static program in a virtual machine on this machine, without any coordinator.
//!
//! The program is booted once and snapshotted when it first waits for a request (`ready_us`). Then
//! each request runs in a pristine instance of that snapshot, or with `--isolation instance` in one
//! that keeps its state. `invoke_us` is what one request costs a node that has the snapshot loaded:
//! from handing the request to the instance, over the run until its response is complete, to the
//! instance being able to take the next one (the reset to the snapshot, or the program's way back to
//! its next wait). Booting, and loading the snapshot into the slot, are not in it.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::ValueEnum;
use holm_model::limits::{
    DEFAULT_MEMORY_BYTES, MAX_DEADLINE_MS, MAX_HEADERS, MAX_MEMORY_BYTES, MAX_REQUEST_BODY_BYTES,
    MAX_RESPONSE_BODY_BYTES, MIN_MEMORY_BYTES,
};
use holm_model::manifest::network::Place;
use holm_model::manifest::{check_guest_path, check_variable, units};
use holm_node::outbound::{Allowed, Outside};
use holm_vmm::{GuestConfig, Limits, Request, Response, Slot, VmmError};
use serde::Serialize;

use crate::exit::Failure;
use crate::local::files;
use crate::local::machine::{self, Log};
use crate::local::project;
use crate::output::{Output, complain};

/// Nothing else waits for this thread, so the vCPU may have it for long.
const QUANTUM: Duration = Duration::from_secs(1);

/// Options of `holm run`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0 answered, 1 this machine failed, 2 wrong usage, 3 the \
                        program crashed or timed out, 4 no usable KVM."
)]
pub(crate) struct Args {
    /// A static x86-64 Linux program that listens on $PORT or uses the SDK.
    program: PathBuf,
    /// How many requests to send, one after another.
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true,
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    requests: u32,
    /// The request's method.
    #[arg(long, value_name = "M", default_value = "GET", value_parser = method)]
    method: String,
    /// The request's path and query.
    #[arg(long, value_name = "P", default_value = "/", value_parser = target)]
    path: String,
    /// A header of the request, `Name: value`. May be given several times.
    #[arg(long = "header", value_name = "H", value_parser = header)]
    headers: Vec<(String, String)>,
    /// A file with the request's body; - for stdin.
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,
    /// How long the program may take to get ready, and for each request.
    #[arg(long, value_name = "D", default_value = "10s", value_parser = timeout)]
    timeout: Duration,
    /// The program's memory.
    #[arg(long, value_name = "SIZE", default_value_t = units::format_bytes(DEFAULT_MEMORY_BYTES),
          value_parser = memory)]
    memory: String,
    /// Whether every request gets a pristine machine.
    #[arg(long, value_enum, default_value_t = IsolationArg::Request)]
    isolation: IsolationArg,
    /// An environment variable of the program, `NAME=value`. May be given several times.
    #[arg(long = "env", value_name = "K=V", value_parser = variable)]
    env: Vec<(String, String)>,
    /// A file or directory that the program finds at a path of the guest. May be given several times.
    #[arg(long = "files", value_name = "GUEST=HOST", value_parser = files)]
    files: Vec<(String, PathBuf)>,
    /// The program finds its request at its standard input, as under inetd, and ends with it.
    #[arg(long)]
    inetd: bool,
    /// Where the program may connect to, `HOST:PORT` as in [network] allow of a manifest. May be given
    /// several times.
    #[arg(long = "allow", value_name = "HOST:PORT", value_parser = place)]
    allow: Vec<Place>,
    /// Print every response, not only the last.
    #[arg(long)]
    each: bool,
    /// The program's arguments, after --.
    #[arg(last = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum IsolationArg {
    /// A pristine machine for every request.
    Request,
    /// One machine that keeps its state between requests.
    Instance,
}

fn method(text: &str) -> Result<String, String> {
    match text.len() <= 32 && is_token(text) {
        true => Ok(text.to_owned()),
        false => Err("a method is a word such as GET or POST".into()),
    }
}

fn target(text: &str) -> Result<String, String> {
    let good = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
    match good {
        true => Ok(text.to_owned()),
        false => Err(
            "a path begins with / and has visible ASCII characters only; write others \
                      as %XX"
                .into(),
        ),
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or("a header is written `Name: value`")?;
    let value = value.trim();
    if !is_token(name) {
        return Err(format!("`{name}` is not the name of a header"));
    }
    if value
        .bytes()
        .any(|byte| byte.is_ascii_control() && byte != b'\t')
    {
        return Err(format!(
            "the value of header `{name}` has control characters"
        ));
    }
    Ok((name.to_ascii_lowercase(), value.to_owned()))
}

/// A token of HTTP (RFC 9110, 5.6.2).
fn is_token(text: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(token)
}

fn timeout(text: &str) -> Result<Duration, String> {
    let millis = units::parse_millis(text).map_err(|error| error.to_string())?;
    match (1..=MAX_DEADLINE_MS).contains(&millis) {
        true => Ok(Duration::from_millis(millis)),
        false => Err(format!(
            "a timeout is 1ms to {}",
            units::format_millis(MAX_DEADLINE_MS)
        )),
    }
}

/// Checks the size and keeps its text; [`memory_bytes`] reads it again.
fn memory(text: &str) -> Result<String, String> {
    let bytes = units::parse_bytes(text).map_err(|error| error.to_string())?;
    match (MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&bytes) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "memory is {} to {}",
            units::format_bytes(MIN_MEMORY_BYTES),
            units::format_bytes(MAX_MEMORY_BYTES)
        )),
    }
}

fn memory_bytes(text: &str) -> u64 {
    // The option's parser has read it already.
    units::parse_bytes(text)
        .unwrap_or(DEFAULT_MEMORY_BYTES)
        .next_multiple_of(4096)
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("a variable is written `NAME=value`")?;
    check_variable(name, value).map_err(|allowed| format!("a variable must be {allowed}"))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn files(text: &str) -> Result<(String, PathBuf), String> {
    let (guest, host) = text
        .split_once('=')
        .ok_or("files are written `/PATH/IN/THE/GUEST=PATH`")?;
    check_guest_path(guest).map_err(|allowed| format!("files must be {allowed}"))?;
    Ok((guest.to_owned(), PathBuf::from(host)))
}

fn place(text: &str) -> Result<Place, String> {
    text.parse()
        .map_err(|error| format!("{error}; for example api.example.com:443 or 10.0.0.0/8:5432"))
}

/// One response, or all of them, as `--json` prints it.
#[derive(Serialize)]
struct Report<'a> {
    status: u16,
    headers: BTreeMap<&'a str, HeaderValue>,
    /// Base64.
    body: String,
    ready_us: u64,
    invoke_us: Latency,
    exits_per_request: f64,
    log: String,
}

/// A header's value, or all of them where its name repeats.
#[derive(Serialize)]
#[serde(untagged)]
enum HeaderValue {
    One(String),
    Several(Vec<String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Latency {
    p50: u64,
    p99: u64,
    n: usize,
}

impl Latency {
    /// Of durations in microseconds. The p99 of fewer than 100 is the largest.
    fn of(durations: &[u64]) -> Latency {
        let mut sorted = durations.to_vec();
        sorted.sort_unstable();
        let at = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100).max(1);
            sorted.get(rank - 1).copied().unwrap_or(0)
        };
        Latency {
            p50: at(50),
            p99: at(99),
            n: sorted.len(),
        }
    }
}

/// Runs the program.
pub(crate) fn execute(args: Args, output: Output) -> Result<(), Failure> {
    let program = project::read_program(&args.program)?;
    let memory_bytes = memory_bytes(&args.memory);
    project::check_room(&program, memory_bytes)
        .map_err(|error| Failure::usage(error).hint("Raise it with --memory."))?;
    let body = body(&args)?;
    let headers = headers(&args, body.len())?;
    if args.inetd && args.isolation == IsolationArg::Instance {
        return Err(Failure::usage(
            "--inetd and --isolation instance do not go together: such a program ends with its \
             request, and can serve no second one",
        ));
    }
    let files = files::of_options(&args.files)?;
    let hypervisor = machine::hypervisor()?;

    let name = args
        .program
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let name = name.into_owned();
    // As a shell gives them: the program's name first.
    let arguments = match args.arguments.is_empty() {
        true => Vec::new(),
        false => [std::slice::from_ref(&name), &args.arguments].concat(),
    };
    let config = GuestConfig {
        name,
        args: arguments,
        files,
        inetd: args.inetd,
        shared: args.isolation == IsolationArg::Instance,
        memory_bytes,
        env: args.env.clone(),
        port: machine::PORT,
    };
    let prepared = holm_vmm::prepare(&hypervisor, &program, &config, args.timeout)
        .map_err(|error| machine::not_ready(&error))?;
    let host = |error: holm_vmm::VmmError| {
        Failure::other(format!("this machine failed to run the program: {error}"))
    };
    let mut slot = Slot::new(&hypervisor).map_err(host)?;
    slot.load(&prepared.snapshot).map_err(host)?;

    let mut run = Run {
        allowed: Allowed::of(args.allow.clone(), &Outside::default()),
        args: &args,
        ready: prepared.ready,
        log: Log::default(),
        invoke_us: Vec::new(),
        exits: 0,
    };
    run.log.add(&prepared.log);
    let headers: Vec<(&[u8], &[u8])> = headers
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
        .collect();
    let request = Request {
        method: &args.method,
        target: &args.path,
        headers: &headers,
        body: &body,
    };
    let mut last = None;
    for number in 1..=args.requests {
        let logged = run.log.total();
        let response = run.invoke(&mut slot, &request, number)?;
        if args.each {
            run.print_one(&response, logged, output)?;
        }
        last = Some(response);
    }
    match last {
        Some(response) if !args.each => run.print_all(&response, output),
        _ => {
            run.print_notes(output);
            Ok(())
        }
    }
}

fn body(args: &Args) -> Result<Vec<u8>, Failure> {
    let Some(path) = &args.body else {
        return Ok(Vec::new());
    };
    let read = match path.as_os_str() == "-" {
        false => project::read_bounded(path, MAX_REQUEST_BODY_BYTES),
        true => {
            let mut bytes = Vec::new();
            let stdin = std::io::stdin().lock();
            match stdin
                .take(MAX_REQUEST_BODY_BYTES + 1)
                .read_to_end(&mut bytes)
            {
                Ok(count) if count as u64 > MAX_REQUEST_BODY_BYTES => Err(std::io::Error::other(
                    format!("it has more than the {MAX_REQUEST_BODY_BYTES} bytes allowed"),
                )),
                result => result.map(|_| bytes),
            }
        }
    };
    read.map_err(|error| {
        Failure::usage(format!(
            "the body {} cannot be read: {error}",
            path.display()
        ))
    })
}

/// The request's headers: the caller's, and those that every request has.
fn headers(args: &Args, body_bytes: usize) -> Result<Vec<(String, String)>, Failure> {
    let mut headers = args.headers.clone();
    let mut add = |name: &str, value: String| {
        if !headers.iter().any(|(given, _)| given == name) {
            headers.push((name.to_owned(), value));
        }
    };
    add("host", "localhost".to_owned());
    if args.body.is_some() {
        add("content-length", body_bytes.to_string());
    }
    let length = body_bytes.to_string();
    if headers
        .iter()
        .any(|(name, value)| name == "content-length" && *value != length)
    {
        return Err(Failure::usage(format!(
            "the header content-length does not fit the body, which has {length} bytes"
        )));
    }
    match headers.len() <= MAX_HEADERS {
        true => Ok(headers),
        false => Err(Failure::usage(format!(
            "there are {} headers, more than the {MAX_HEADERS} allowed",
            headers.len()
        ))),
    }
}

/// What has been seen so far.
struct Run<'a> {
    /// Where the program may connect to.
    allowed: Allowed,
    args: &'a Args,
    ready: Duration,
    log: Log,
    invoke_us: Vec<u64>,
    exits: u64,
}

impl Run<'_> {
    fn invoke(
        &mut self,
        slot: &mut Slot,
        request: &Request<'_>,
        number: u32,
    ) -> Result<Response, Failure> {
        let begun = Instant::now();
        let deadline = begun + self.args.timeout;
        let limits = Limits {
            deadline,
            cpu: self.args.timeout,
            response_body_bytes: MAX_RESPONSE_BODY_BYTES,
            streams: false,
        };
        if !slot.has_outbound() {
            slot.set_outbound(self.allowed.outbound());
        }
        slot.begin(request, limits).map_err(|error| match error {
            VmmError::RequestTooLarge(_) => {
                Failure::usage(format!("the request cannot be sent: {error}"))
            }
            error => Failure::other(format!("the machine cannot take the request: {error}")),
        })?;
        let answer = machine::finish(slot, deadline, QUANTUM, || true);
        let response = match answer {
            Some(Ok(response)) => response,
            Some(Err(failure)) => return Err(self.failed(slot, &failure, number)),
            None => return Err(Failure::other("the run was stopped")),
        };
        self.exits += u64::from(slot.stats().exits);
        match self.args.isolation {
            IsolationArg::Request => slot
                .reset()
                .map_err(|error| Failure::other(format!("the machine cannot be reset: {error}")))?,
            // What the program does behind its last answer is of no more interest.
            IsolationArg::Instance if number == self.args.requests => {}
            IsolationArg::Instance => slot
                .again(Instant::now() + self.args.timeout)
                .map_err(|failure| self.failed(slot, &failure, number))?,
        }
        self.invoke_us.push(micros(begun.elapsed()));
        self.log.add(&slot.take_log());
        Ok(response)
    }

    fn failed(&mut self, slot: &mut Slot, failure: &holm_vmm::Failure, number: u32) -> Failure {
        self.log.add(&slot.take_log());
        let when = format!("on request {number} of {}", self.args.requests);
        machine::failure(&when, failure, self.log.bytes())
    }

    fn report<'r>(&self, response: &'r Response, invoke_us: &[u64], log: &[u8]) -> Report<'r> {
        let requests = self.invoke_us.len().max(1) as f64;
        Report {
            status: response.status,
            headers: header_map(response),
            body: BASE64.encode(&response.body),
            ready_us: micros(self.ready),
            invoke_us: Latency::of(invoke_us),
            exits_per_request: (self.exits as f64 / requests * 100.0).round() / 100.0,
            log: String::from_utf8_lossy(log).into_owned(),
        }
    }

    fn print_all(&self, response: &Response, output: Output) -> Result<(), Failure> {
        if output.json {
            let report = self.report(response, &self.invoke_us, self.log.bytes());
            return output.result(&report, String::new);
        }
        self.print_notes(output);
        output.raw(&human(response))
    }

    /// With `--each`: one response.
    fn print_one(&self, response: &Response, logged: u64, output: Output) -> Result<(), Failure> {
        match output.json {
            false => output.raw(&human(response)),
            true => {
                let last = self.invoke_us.len().saturating_sub(1);
                let last = self.invoke_us.get(last..).unwrap_or_default();
                let report = self.report(response, last, self.log.since(logged));
                output.result(&report, String::new)
            }
        }
    }

    /// For people: the log and the figures.
    fn print_notes(&self, output: Output) {
        if output.json || output.quiet {
            return;
        }
        let log = machine::printable(self.log.bytes());
        if !log.is_empty() {
            let end = if log.ends_with('\n') { "" } else { "\n" };
            complain(&format!("--- log\n{log}{end}---\n"));
        }
        let Latency { p50, p99, n } = Latency::of(&self.invoke_us);
        output.note(format_args!(
            "ready in {} us; {n} answered, p50 {p50} us, p99 {p99} us, {:.2} exits each",
            micros(self.ready),
            self.exits as f64 / n.max(1) as f64
        ));
    }
}

/// The response as it would look on the wire, for people.
fn human(response: &Response) -> Vec<u8> {
    let mut text = format!("HTTP {}\n", response.status).into_bytes();
    for (name, value) in &response.headers {
        text.extend(format!("{name}: {}\n", machine::printable(value)).into_bytes());
    }
    text.push(b'\n');
    text.extend(&response.body);
    if !response.body.is_empty() && !response.body.ends_with(b"\n") {
        text.push(b'\n');
    }
    text
}

fn header_map(response: &Response) -> BTreeMap<&str, HeaderValue> {
    let mut map: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in &response.headers {
        map.entry(name)
            .or_default()
            .push(String::from_utf8_lossy(value).into_owned());
    }
    let value = |mut values: Vec<String>| match values.len() {
        1 => HeaderValue::One(values.swap_remove(0)),
        _ => HeaderValue::Several(values),
    };
    map.into_iter()
        .map(|(name, values)| (name, value(values)))
        .collect()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let hundred: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(
            Latency::of(&hundred),
            Latency {
                p50: 50,
                p99: 99,
                n: 100
            }
        );
        assert_eq!(
            Latency::of(&[7]),
            Latency {
                p50: 7,
                p99: 7,
                n: 1
            }
        );
        assert_eq!(
            Latency::of(&[1, 2, 3]),
            Latency {
                p50: 2,
                p99: 3,
                n: 3
            }
        );
        assert_eq!(
            Latency::of(&[]),
            Latency {
                p50: 0,
                p99: 0,
                n: 0
            }
        );
    }

    #[test]
    fn headers_are_read_as_people_write_them() {
        assert_eq!(header("X-A:  b c ").unwrap(), ("x-a".into(), "b c".into()));
        assert_eq!(header("a:").unwrap(), ("a".into(), String::new()));
        for bad in ["", "a", ": b", "a b: c", "a: b\nc: d", "ä: b"] {
            assert!(header(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_header_whose_name_repeats_has_a_list_of_values() {
        let headers = vec![
            ("a".to_owned(), b"1".to_vec()),
            ("set-cookie".to_owned(), b"x".to_vec()),
            ("set-cookie".to_owned(), b"y".to_vec()),
        ];
        let response = Response {
            place: holm_vmm::RequestPlace::FIRST,
            continues: false,
            status: 200,
            headers,
            body: Vec::new(),
        };
        let json = serde_json::to_string(&header_map(&response)).unwrap();
        assert_eq!(json, r#"{"a":"1","set-cookie":["x","y"]}"#);
    }

    #[test]
    fn paths_methods_and_variables_are_checked() {
        assert!(target("/a?b=c").is_ok() && target("a").is_err() && target("/a b").is_err());
        assert!(method("GET").is_ok() && method("G T").is_err() && method("").is_err());
        assert!(variable("A=b=c").is_ok() && variable("A").is_err());
        assert!(variable("PORT=1").unwrap_err().contains("set by Holm"));
    }
}
