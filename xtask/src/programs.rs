//! `cargo xtask guest-programs`: ordinary servers, on the host and in a guest, side by side.
//!
//! Each program is built from `tests/programs`, started on the host and in a guest, and asked the same;
//! what it answers has to be equal. Then it is timed: in a guest each request goes to a pristine instance
//! and the reset is part of it ("fresh"), or to one instance that is kept; on the host over one kept
//! connection of the loopback interface. The guest's figures are the VMM's own, without HTTP before it.

mod build;
mod costs;
mod guest;
mod native;
mod site;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

/// A request of the comparison.
pub(crate) struct Ask {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    /// So many bytes of body, which are all different from their neighbours.
    pub(crate) body_bytes: usize,
}

const fn get(path: &'static str) -> Ask {
    Ask {
        method: "GET",
        path,
        body_bytes: 0,
    }
}

const fn post(path: &'static str, body_bytes: usize) -> Ask {
    Ask {
        method: "POST",
        path,
        body_bytes,
    }
}

impl Ask {
    pub(crate) fn body(&self) -> Vec<u8> {
        (0..self.body_bytes).map(|n| (n % 251) as u8).collect()
    }
}

/// A program and what it is asked. The first request is the one that is timed.
struct Subject {
    name: &'static str,
    source: build::Source,
    asks: &'static [Ask],
}

/// All of them; each is expected to work.
const SUBJECTS: &[Subject] = &[
    Subject {
        name: "rust-threads",
        source: build::Source::Rust("rust-threads"),
        asks: &[get("/"), get("/channel"), get("/locks"), get("/panic")],
    },
    Subject {
        name: "tokio-current",
        source: build::Source::Rust("tokio-current"),
        asks: AXUM,
    },
    Subject {
        name: "tokio-multi",
        source: build::Source::Rust("tokio-multi"),
        asks: AXUM,
    },
    Subject {
        name: "go",
        source: build::Source::Go,
        asks: &[
            get("/"),
            get("/goroutines"),
            get("/gc"),
            get("/timers"),
            get("/nil"),
            get("/tight"),
            post("/echo", 100_000),
        ],
    },
    Subject {
        name: "c-glibc",
        source: build::Source::Guest("glibc", "file_system"),
        asks: &[get("/ok"), get("/run")],
    },
    Subject {
        name: "c-musl",
        source: build::Source::Guest("musl", "file_system"),
        asks: &[get("/ok"), get("/run")],
    },
    Subject {
        name: "c-signals",
        source: build::Source::Guest("glibc", "signals"),
        asks: &[
            get("/ok"),
            get("/raised"),
            get("/stepped_over"),
            get("/overflow"),
            get("/threads"),
        ],
    },
    Subject {
        name: "c-threads",
        source: build::Source::Guest("musl", "threads"),
        asks: &[get("/ok")],
    },
    Subject {
        name: "c-epoll",
        source: build::Source::Guest("glibc", "epoll_server"),
        asks: &[get("/ok"), post("/x", 5000)],
    },
    Subject {
        name: "zig",
        source: build::Source::Zig,
        asks: &[get("/"), get("/map"), get("/threads")],
    },
    Subject {
        name: "sqlite",
        source: build::Source::C("sqlite", &["-lsqlite3", "-lm", "-lpthread", "-ldl"]),
        asks: &[get("/"), get("/memory"), get("/tmp")],
    },
    Subject {
        name: "lua",
        source: build::Source::C("lua", &["-I/usr/include/lua5.4", "-llua5.4", "-lm", "-ldl"]),
        asks: &[
            get("/"),
            get("/fib"),
            get("/strings"),
            get("/error"),
            get("/coroutine"),
        ],
    },
    Subject {
        name: "quickjs",
        source: build::Source::Rust("quickjs"),
        asks: &[
            get("/"),
            get("/prime"),
            get("/json"),
            get("/garbage"),
            get("/throw"),
        ],
    },
    Subject {
        name: "busybox-httpd",
        source: build::Source::Busybox,
        asks: site::ASKS,
    },
];

const AXUM: &[Ask] = &[
    get("/"),
    get("/tasks/50"),
    get("/timers"),
    get("/stream/20"),
    post("/echo", 100_000),
    post("/count", 300_000),
    get("/panic"),
];

/// What was found out about a program.
#[derive(Debug, Serialize)]
struct Finding {
    program: &'static str,
    /// Empty, or the first difference or failure.
    problem: String,
    /// Requests that were answered alike.
    equal: usize,
    ready_host_us: u64,
    ready_guest_us: u64,
    snapshot_kib: u64,
    /// Pages that a request leaves changed: the reset set.
    pages_per_request: u64,
    /// p50, the reset included.
    fresh_us: f64,
    /// p50 of an instance that keeps its state; 0 where a program serves one request and ends.
    kept_us: f64,
    /// p50 on the host, over loopback.
    host_us: f64,
    fresh_rps: u64,
    kept_rps: u64,
    host_rps: u64,
}

/// Builds and runs all programs, or those that are named, and prints the table. An error if one does not
/// do what it does on the host.
pub(crate) fn run(workspace: &Path, only: &[String], json: bool) -> Result<()> {
    for name in only {
        ensure!(
            SUBJECTS.iter().any(|subject| subject.name == name),
            "there is no program {name}; there are: {}",
            SUBJECTS
                .iter()
                .map(|one| one.name)
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    let mut findings = Vec::new();
    for subject in SUBJECTS {
        if only.is_empty() || only.iter().any(|name| name == subject.name) {
            eprintln!("{} …", subject.name);
            findings.push(examine(workspace, subject)?);
        }
    }
    let costs = match only.is_empty() {
        true => costs::measure(workspace).context("cannot measure what calls and faults cost")?,
        false => Vec::new(),
    };
    if json {
        let all = serde_json::json!({ "programs": findings, "costs": costs });
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        print_table(&findings);
        costs::print_table(&costs);
    }
    let failed: Vec<_> = findings
        .iter()
        .filter(|finding| !finding.problem.is_empty())
        .map(|finding| format!("{}: {}", finding.program, finding.problem))
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

fn examine(workspace: &Path, subject: &Subject) -> Result<Finding> {
    let program = build::build(workspace, &subject.source)
        .with_context(|| format!("cannot build {}", subject.name))?;
    let site = match subject.source {
        build::Source::Busybox => Some(site::Site::make(&workspace.join("target/guest-programs"))?),
        _ => None,
    };
    let (mut host, ready_host) = match &site {
        Some(site) => native::Server::start_with(&program, |port| site.on_host(port))?,
        None => native::Server::start(&program)?,
    };
    let mut finding = Finding {
        program: subject.name,
        problem: String::new(),
        equal: 0,
        ready_host_us: micros(ready_host) as u64,
        ready_guest_us: 0,
        snapshot_kib: 0,
        pages_per_request: 0,
        fresh_us: 0.0,
        kept_us: 0.0,
        host_us: 0.0,
        fresh_rps: 0,
        kept_rps: 0,
        host_rps: 0,
    };
    let booted = match &site {
        Some(site) => guest::Guest::boot_inetd(&program, site::Site::in_guest(), &site.files),
        None => guest::Guest::boot(&program),
    };
    let mut guest = match booted {
        Ok(guest) => guest,
        Err(problem) => {
            finding.problem = format!("{problem:#}");
            return Ok(finding);
        }
    };
    finding.ready_guest_us = micros(guest.ready) as u64;
    finding.snapshot_kib = guest.snapshot_bytes()? / 1024;
    for ask in subject.asks {
        let there = host.ask(ask)?;
        match guest.fresh(ask) {
            Ok(here) if here == there => finding.equal += 1,
            Ok(here) => {
                finding.problem = format!(
                    "{} answers {:?} in a guest and {:?} on the host",
                    ask.path,
                    short(&here),
                    short(&there)
                );
                return Ok(finding);
            }
            Err(problem) => {
                finding.problem = format!("{}: {problem:#}", ask.path);
                return Ok(finding);
            }
        }
    }
    let timed = &subject.asks[0];
    finding.fresh_us = micros(guest.time_fresh(timed)?);
    finding.pages_per_request = guest.pages;
    if site.is_none() {
        finding.kept_us = micros(guest.time_kept(timed)?);
    }
    finding.host_us = micros(host.time(timed)?);
    let rate = |us: f64| if us > 0.0 { (1e6 / us) as u64 } else { 0 };
    finding.fresh_rps = rate(finding.fresh_us);
    finding.kept_rps = rate(finding.kept_us);
    finding.host_rps = rate(finding.host_us);
    Ok(finding)
}

fn short(answer: &(u16, Vec<u8>)) -> (u16, String) {
    let text = String::from_utf8_lossy(&answer.1).into_owned();
    (answer.0, text.chars().take(200).collect())
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The middle one.
pub(crate) fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}

fn print_table(findings: &[Finding]) {
    println!(
        "| program | equal answers | ready: host ms | guest ms | snapshot KiB | pages per request | fresh \
         µs | per s | kept µs | per s | host µs | per s | fresh / host |"
    );
    println!("| --- |{}", " ---: |".repeat(12));
    for one in findings {
        let equal = match one.problem.is_empty() {
            true => one.equal.to_string(),
            false => format!("{}, then not", one.equal),
        };
        println!(
            "| {} | {equal} | {:.1} | {:.1} | {} | {} | {:.0} | {} | {:.0} | {} | {:.0} | {} | {:.1} |",
            one.program,
            one.ready_host_us as f64 / 1e3,
            one.ready_guest_us as f64 / 1e3,
            one.snapshot_kib,
            one.pages_per_request,
            one.fresh_us,
            one.fresh_rps,
            one.kept_us,
            one.kept_rps,
            one.host_us,
            one.host_rps,
            one.fresh_us / one.host_us.max(0.001)
        );
    }
}
