//! Answers that the node makes itself: `application/problem+json` (RFC 9457), with `Proxy-Status`
//! (RFC 9209) so that nobody takes them for the function's.

use holm_model::ids::{FunctionName, Name};
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

use super::Answer;
use crate::limits::RETRY_AFTER_SECONDS;

const HOLM_TRY: HeaderName = HeaderName::from_static("x-holm-try");
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// Why the node answers in the function's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The request names no function that is here.
    UnknownFunction,
    /// The function is to be here but no version is ready.
    NotReady,
    /// The node takes no requests any more; says where else this one may go, if that is known.
    Draining(Option<String>),
    /// The node has no room.
    Overloaded(FunctionName),
    /// A budget does not pay for it; says in how many seconds one may.
    BudgetSpent(FunctionName, u32),
    /// The node cannot put usage on record.
    Unmetered,
    /// No slot came free before the deadline.
    QueuedTooLong(FunctionName),
    /// The request's body is larger than the function allows.
    BodyTooLarge(u64),
    /// The request's head is larger than can be passed on.
    HeadTooLarge,
    /// The body did not arrive in time.
    BodyTooSlow,
    /// The body is not what its framing says.
    BadBody,
    /// The request names more than one host.
    BadHost,
    /// This cannot be done with a function.
    BadMethod,
    /// Nor this.
    NoWebSocket,
    /// The program crashed, broke a rule or ended without an answer.
    Crashed(FunctionName),
    /// The program did not answer within its limits; says which.
    TimedOut(FunctionName, &'static str),
    /// What the program answered is not HTTP or too large.
    BadAnswer(FunctionName, String),
    /// The node is to blame.
    Node,
    /// The node has stopped before the end.
    Stopped,
}

impl Problem {
    /// The status sent.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Problem::UnknownFunction => StatusCode::NOT_FOUND,
            Problem::NotReady
            | Problem::Draining(_)
            | Problem::Overloaded(_)
            | Problem::Unmetered
            | Problem::Stopped => StatusCode::SERVICE_UNAVAILABLE,
            Problem::BudgetSpent(..) => StatusCode::TOO_MANY_REQUESTS,
            Problem::QueuedTooLong(_) | Problem::TimedOut(..) => StatusCode::GATEWAY_TIMEOUT,
            Problem::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Problem::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Problem::BodyTooSlow => StatusCode::REQUEST_TIMEOUT,
            Problem::BadBody | Problem::BadHost => StatusCode::BAD_REQUEST,
            Problem::BadMethod => StatusCode::METHOD_NOT_ALLOWED,
            Problem::NoWebSocket => StatusCode::NOT_IMPLEMENTED,
            Problem::Crashed(_) | Problem::BadAnswer(..) => StatusCode::BAD_GATEWAY,
            Problem::Node => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Stable name, and the error type of RFC 9209 where it has one.
    fn kind(&self) -> (&'static str, &'static str) {
        match self {
            Problem::UnknownFunction => ("unknown-function", "destination_not_found"),
            Problem::NotReady => ("not-ready", "destination_unavailable"),
            Problem::Draining(_) => ("draining", "destination_unavailable"),
            Problem::Overloaded(_) => ("overloaded", "connection_limit_reached"),
            Problem::BudgetSpent(..) => ("budget-spent", "http_request_denied"),
            Problem::Unmetered => ("unmetered", "destination_unavailable"),
            Problem::QueuedTooLong(_) => ("queued-too-long", "connection_limit_reached"),
            Problem::BodyTooLarge(_) => ("body-too-large", "http_request_error"),
            Problem::HeadTooLarge => ("head-too-large", "http_request_error"),
            Problem::BodyTooSlow => ("body-too-slow", "http_request_error"),
            Problem::BadBody => ("bad-body", "http_request_error"),
            Problem::BadHost => ("bad-host", "http_request_error"),
            Problem::BadMethod => ("bad-method", "http_request_denied"),
            Problem::NoWebSocket => ("no-websocket", "http_upgrade_failed"),
            Problem::Crashed(_) => ("function-crashed", "http_response_incomplete"),
            Problem::TimedOut(..) => ("function-timed-out", "http_response_timeout"),
            Problem::BadAnswer(..) => ("bad-answer", "http_protocol_error"),
            Problem::Node => ("node-fault", "proxy_internal_error"),
            Problem::Stopped => ("stopped", "destination_unavailable"),
        }
    }

    fn text(&self) -> (&'static str, String) {
        match self {
            Problem::UnknownFunction => (
                "No such function here",
                "No function of this name runs on this node. Check /{tenant}/{function}/ or the \
                 host name; `holm nodes list` shows what runs where."
                    .into(),
            ),
            Problem::NotReady => (
                "Not ready yet",
                "The node is still preparing this function; try again, or another node.".into(),
            ),
            Problem::Draining(_) => (
                "No requests any more",
                "The node finishes what it has and takes nothing new; try another node, the one in \
                 x-holm-try if there is one."
                    .into(),
            ),
            Problem::Overloaded(function) => (
                "No room",
                format!("Too many requests for {function} wait on this node; try again, or another node."),
            ),
            Problem::BudgetSpent(function, _) => (
                "The budget is spent",
                format!(
                    "What this node may spend of a budget that {function} is under is spent or set aside for requests \
                     under way. Try again after the time in retry-after: that is the next month if the whole budget is \
                     spent. `holm budgets list` shows it, and `holm budgets set` raises it."
                ),
            ),
            Problem::Unmetered => (
                "No requests at present",
                "The node cannot put usage on record at present, and so runs nothing; try another node."
                    .into(),
            ),
            Problem::Stopped => (
                "The node has stopped",
                "The node stopped before the request was over. What the function has done by then is done; try another \
                 node if it may be done twice."
                    .into(),
            ),
            Problem::QueuedTooLong(function) => (
                "No room in time",
                format!("The request for {function} waited for room on this node until its deadline; it was not run."),
            ),
            Problem::BodyTooLarge(max) => (
                "Request body too large",
                format!("The function takes request bodies of at most {max} bytes (limits.request_body in its manifest)."),
            ),
            Problem::HeadTooLarge => (
                "Request head too large",
                "The request has too many or too long headers to be passed on.".into(),
            ),
            Problem::BodyTooSlow => (
                "Request body too slow",
                "The request's body did not arrive in time.".into(),
            ),
            Problem::BadBody => (
                "Request body broken",
                "The request's body is not what its framing says.".into(),
            ),
            Problem::BadHost => (
                "More than one host",
                "The request has several Host headers; send the one that is meant.".into(),
            ),
            Problem::BadMethod => {
                ("Not for functions", "CONNECT cannot be passed on to a function.".into())
            }
            Problem::NoWebSocket => (
                "No WebSocket",
                "Functions answer requests; a connection cannot go on as a WebSocket. Bodies may stream in \
                 both directions, and text/event-stream takes messages to a caller."
                    .into(),
            ),
            Problem::Crashed(function) => (
                "The function crashed",
                format!("{function} crashed or ended without an answer. Its author finds the report in its log, by the request's id."),
            ),
            Problem::TimedOut(function, limit) => {
                ("The function took too long", format!("{function} did not answer within its {limit}."))
            }
            Problem::BadAnswer(function, why) => (
                "The function's answer cannot be passed on",
                format!("{function} answered, but {why}."),
            ),
            Problem::Node => (
                "The node failed",
                "The node could not run the request, through no fault of the function. Its operator \
                 finds the reason in its log, by the request's id."
                    .into(),
            ),
        }
    }

    /// The whole response, from a node called `node`.
    pub(crate) fn response(&self, node: &Name) -> Answer {
        let (kind, proxy_error) = self.kind();
        let (title, detail) = self.text();
        let problem = holm_model::api::Problem {
            kind: format!("/problems/{kind}"),
            title: title.into(),
            status: self.status().as_u16(),
            detail,
        };
        let body = serde_json::to_vec(&problem).expect("texts and a number can be JSON");
        let mut response = Response::new(Bytes::from(body).into());
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // A node's name is letters, digits and hyphens, so it needs no escape.
        if let Ok(status) = HeaderValue::from_str(&format!("\"{node}\"; error={proxy_error}")) {
            headers.insert(PROXY_STATUS, status);
        }
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
        }
        if let Problem::BudgetSpent(_, seconds) = self {
            headers.insert(RETRY_AFTER, HeaderValue::from(*seconds));
        }
        // A target that is no header value is left out with the hint.
        if let Problem::Draining(Some(there)) = self
            && let Ok(there) = HeaderValue::from_str(there)
        {
            headers.insert(HOLM_TRY, there);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    #[tokio::test]
    async fn a_crash_names_the_function_and_the_node_that_says_so() {
        let problem = Problem::Crashed("acme/hello".parse().unwrap());
        let response = problem.response(&"n1".parse().unwrap());
        assert_eq!(response.status(), 502);
        assert_eq!(
            response.headers()["content-type"],
            "application/problem+json"
        );
        assert_eq!(
            response.headers()["proxy-status"],
            "\"n1\"; error=http_response_incomplete"
        );
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: holm_model::api::Problem = serde_json::from_slice(&body).unwrap();
        assert!(body.detail.contains("acme/hello") && body.status == 502);
    }

    #[test]
    fn who_is_turned_away_is_told_when_to_come_back() {
        let name: Name = "n1".parse().unwrap();
        for problem in [
            Problem::NotReady,
            Problem::Draining(None),
            Problem::Overloaded("a/b".parse().unwrap()),
            Problem::Unmetered,
        ] {
            assert!(
                problem
                    .response(&name)
                    .headers()
                    .contains_key("retry-after")
            );
        }
        assert!(
            !Problem::Node
                .response(&name)
                .headers()
                .contains_key("retry-after")
        );
    }
}
