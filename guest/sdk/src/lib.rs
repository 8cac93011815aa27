//! Write a Holm function in Rust.
//!
//! ```no_run
//! use holm_sdk::{Request, Response};
//!
//! fn main() -> std::io::Result<()> {
//!     holm_sdk::serve(|request: Request| match request.path() {
//!         "/" => Response::text("hello\n"),
//!         _ => Response::new(404),
//!     })
//! }
//! ```
//!
//! Inside Holm, requests and responses cross the boundary of the machine as structured messages: no
//! socket, no HTTP parsing, one exit from the machine per request. Outside, the same program is an
//! ordinary HTTP/1.1 server on `0.0.0.0:$PORT` (8080 without `PORT`), to be run, tested and profiled
//! like any other.
//!
//! What to know when writing for Holm:
//! - Everything before [`serve`] runs once, before the snapshot. Build tables, parse configuration
//!   and open files there: no request pays for it again.
//! - Under `isolation = "request"` each request sees the memory as it was when `serve` was called.
//!   Pages written during a request are copied back after it, so touching little memory is fast.
//! - A handler that panics answers 500 with the message on standard error, which is the function's
//!   log.
//! - Bytes from [`random_bytes`] are never the same in two instances, although all instances start
//!   from one snapshot. A random generator seeded before `serve` would repeat itself: seed it in
//!   [`on_restore`].
//!
//! The SDK does not do routing, TLS, HTTP/2 or asynchronous handlers: callers reach a function through a
//! node, which does the first three, and an instance serves one request at a time.
#![forbid(unsafe_code)]

mod inside;
mod outside;
mod request;
mod response;

use std::io::{self, Read as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use request::Request;
pub use response::{IntoResponse, Response};

/// Answers requests with `handler` until the process ends. Returns only with an error: no socket
/// could be bound, or Holm's kernel refused a call.
///
/// Inside Holm the handler runs on the calling thread, one request at a time; outside it runs on a
/// thread per connection.
pub fn serve<F, R>(handler: F) -> io::Result<()>
where
    F: Fn(Request<'_>) -> R + Sync,
    R: IntoResponse,
{
    let answer = |request: Request<'_>| answer(&handler, request);
    match holm_kernel_door::find() {
        Some(door) => inside::serve(door, &answer),
        None => {
            restored();
            outside::serve(&answer)
        }
    }
}

/// Has `hook` run in each new instance before its first request, in the order in which hooks were given:
/// the place to seed generators, and to drop what must not be shared with other instances. Outside
/// Holm it runs once, when [`serve`] begins.
pub fn on_restore(hook: impl Fn() + Send + 'static) {
    hooks().push(Box::new(hook));
}

type Hook = Box<dyn Fn() + Send>;

fn hooks() -> MutexGuard<'static, Vec<Hook>> {
    static HOOKS: Mutex<Vec<Hook>> = Mutex::new(Vec::new());
    // A hook that panicked leaves the list as it was.
    HOOKS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn restored() {
    for hook in hooks().iter() {
        hook();
    }
}

/// Fills `buffer` with random bytes from the operating system, fit for keys.
pub fn random_bytes(buffer: &mut [u8]) -> io::Result<()> {
    match holm_kernel_door::find() {
        Some(door) => door.random(buffer).map_err(io::Error::from_raw_os_error),
        None => std::fs::File::open("/dev/urandom")?.read_exact(buffer),
    }
}

/// Runs the handler and makes anything that goes wrong in it a 500.
fn answer<F, R>(handler: &F, request: Request<'_>) -> Response
where
    F: Fn(Request<'_>) -> R,
    R: IntoResponse,
{
    // The handler is shared by reference only, so what a panic leaves half done is what the handler
    // itself put behind a lock or a cell; `Mutex` poisons, and Holm resets the rest.
    let response = catch_unwind(AssertUnwindSafe(|| handler(request).into_response()))
        .unwrap_or_else(|_| Response::new(500));
    match response.check() {
        Ok(()) => response,
        Err(what) => {
            complain(&format!("the handler's response cannot be sent: {what}"));
            Response::new(500)
        }
    }
}

/// A line in the function's log. A log that cannot be written must not end the function, so the
/// result is dropped.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "holm-sdk: {text}");
}
