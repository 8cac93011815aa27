//! What `holm dev` tells: the function's log on stdout and everything else on stderr, or with
//! `--json` one object a line on stdout, each with an `event`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::local::machine;
use crate::output::{Output, complain};

/// Where events go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Events(pub(super) Output);

impl Events {
    /// The server takes requests at `url`.
    pub(super) fn listening(self, url: &str) {
        self.tell(json!({ "event": "listening", "url": url }), || {
            format!("serving on {url}")
        });
    }

    /// A new version takes requests.
    pub(super) fn serving(self, what: &str, ready: Duration) {
        let ready_us = u64::try_from(ready.as_micros()).unwrap_or(u64::MAX);
        let event = json!({ "event": "serving", "program": what, "ready_us": ready_us });
        self.tell(event, || format!("built {what}, ready in {ready_us} us"));
    }

    /// Sources have changed.
    pub(super) fn changed(self) {
        self.tell(json!({ "event": "changed" }), || {
            "sources changed, building".to_owned()
        });
    }

    /// A request was answered.
    pub(super) fn request(self, method: &hyper::Method, path: &str, status: u16, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let event = json!({
            "event": "request", "method": method.as_str(), "path": path, "status": status,
            "took_us": took_us,
        });
        let path = machine::printable(path.as_bytes());
        self.tell(event, || format!("{method} {path} {status} {took_us} us"));
    }

    /// The build, the start or a request went wrong.
    pub(super) fn failed(self, message: &str) {
        let event = json!({ "event": "failed", "message": message });
        match self.0.json {
            true => self.line(&event.to_string()),
            false => complain(&format!("error: {message}\n")),
        }
    }

    /// The function wrote something.
    pub(super) fn log(self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let text = machine::printable(bytes);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        match self.0.json {
            true => self.line(&json!({ "event": "log", "text": text }).to_string()),
            false => self.line(text),
        }
    }

    fn tell(self, event: Value, human: impl FnOnce() -> String) {
        match self.0.json {
            true => self.line(&event.to_string()),
            false => self.0.note(human()),
        }
    }

    /// A terminal that cannot be written to is no reason to stop serving.
    fn line(self, text: &str) {
        let _ = self.0.line(text);
    }
}
