//! The sample function in Rust.
//!
//! | path | answer |
//! | --- | --- |
//! | `/` | a greeting with the version, from `HELLO_VERSION` |
//! | `/echo` | the request's body |
//! | `/sleep?ms=N` | the greeting, after N milliseconds, at most 60,000 |
//! | `/state` | how many requests this instance has seen, this one included |
//! | `/instance` | a number that no other instance has, set by a hook after the restore |
//! | `/random` | 16 random bytes in hexadecimal |
//!
//! With `HELLO_CRASH=1` it aborts on every request: a version to try a rollout's gate with.
#![forbid(unsafe_code)]

use std::env;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holm_sdk::{Request, Response};

/// Longest sleep that a caller may ask for.
const MAX_SLEEP_MS: u64 = 60_000;

/// Requests seen. A static in memory: under `isolation = "request"` every request finds it at 0.
static SEEN: AtomicU64 = AtomicU64::new(0);

/// Set in each instance anew, and by that different in each.
static INSTANCE: AtomicU64 = AtomicU64::new(0);

fn main() -> std::io::Result<()> {
    holm_sdk::on_restore(|| {
        let mut bytes = [0; 8];
        if holm_sdk::random_bytes(&mut bytes).is_ok() {
            INSTANCE.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
    });
    let version = env::var("HELLO_VERSION").unwrap_or_else(|_| "v1".to_owned());
    let crash = env::var("HELLO_CRASH").is_ok_and(|value| value == "1");
    let greeting = format!("hello from {version}\n");
    holm_sdk::serve(move |request: Request| {
        if crash {
            eprintln!("hello: HELLO_CRASH=1, so this request ends in an abort");
            std::process::abort();
        }
        answer(&request, &greeting)
    })
}

fn answer(request: &Request, greeting: &str) -> std::io::Result<Response> {
    let seen = SEEN.fetch_add(1, Ordering::Relaxed) + 1;
    Ok(match request.path() {
        "/" => Response::text(greeting.to_owned()),
        "/echo" => {
            let kind = request
                .header("content-type")
                .unwrap_or("application/octet-stream");
            Response::bytes(request.body().to_vec(), kind.to_owned())
        }
        "/sleep" => match request
            .query_value("ms")
            .and_then(|ms| ms.parse::<u64>().ok())
        {
            Some(ms) => {
                std::thread::sleep(Duration::from_millis(ms.min(MAX_SLEEP_MS)));
                Response::text(greeting.to_owned())
            }
            None => Response::text("say how long: /sleep?ms=100\n").status(400),
        },
        "/instance" => Response::text(format!("{}\n", INSTANCE.load(Ordering::Relaxed))),
        "/state" => Response::text(format!("{seen}\n")),
        "/random" => {
            let mut bytes = [0; 16];
            holm_sdk::random_bytes(&mut bytes)?;
            Response::text(format!("{:032x}\n", u128::from_be_bytes(bytes)))
        }
        _ => Response::text("no such path\n").status(404),
    })
}
