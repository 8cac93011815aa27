//! Requests to functions on nodes.
//!
//! What matters here is what a failed request may have done. A request that was [`NoAnswer::NotSent`]
//! has done nothing and may go to another node; one that was [`NoAnswer::Cut`] may have been executed
//! and goes to another node only if its method is idempotent or the caller allows it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};

use holm_model::api::RouteCandidate;
use holm_model::ids::{Name, RequestId};
use holm_model::limits::MAX_RESPONSE_BODY_BYTES;
use holm_tls::client::Trust;

use crate::exit::Failure;
use crate::remote::client::{text, trusted};

/// How long to wait for a connection to a node before the next one's turn.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A request for a function.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// The method.
    pub(crate) method: Method,
    /// Path and query within the function; begins with `/`.
    pub(crate) path: String,
    /// Headers beside `host`.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    pub(crate) body: Bytes,
    /// How long to wait for the whole answer.
    pub(crate) timeout: Duration,
    /// Whether it may be sent again although it may have been executed.
    pub(crate) repeatable: bool,
}

impl Call {
    /// A `GET`.
    pub(crate) fn get(path: &str, timeout: Duration) -> Self {
        Call {
            method: Method::GET,
            path: path.to_owned(),
            headers: Vec::new(),
            body: Bytes::new(),
            timeout,
            repeatable: true,
        }
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: u16,
    /// The headers.
    pub(crate) headers: HeaderMap,
    /// The body.
    pub(crate) body: Bytes,
    /// From the first byte sent to the last one received, connecting excluded.
    pub(crate) took: Duration,
}

impl Answer {
    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The node's id of the request.
    pub(crate) fn request_id(&self) -> Option<RequestId> {
        self.header("x-request-id")?.parse().ok()
    }

    /// Whether the node, not the function, made this answer.
    pub(crate) fn made_by_node(&self) -> bool {
        self.headers.contains_key("proxy-status")
    }

    /// Whether the node turned the request away without running it, so that another may take it.
    /// Nodes say why with the error types of RFC 9209.
    pub(crate) fn turned_away(&self) -> bool {
        let status = self.header("proxy-status").unwrap_or_default();
        let reasons = [
            "destination_not_found",
            "destination_unavailable",
            "connection_limit_reached",
        ];
        reasons
            .iter()
            .any(|reason| status.ends_with(&format!("error={reason}")))
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// Nothing was sent: it has certainly not been executed.
    #[error("it could not be sent: {0}")]
    NotSent(String),
    /// It was sent, at least in part: it may have been executed.
    #[error("the connection was cut: {0}")]
    Cut(String),
}

/// Whether HTTP says that doing it twice is as good as once (RFC 9110, 9.2.2).
pub(crate) fn is_idempotent(method: &Method) -> bool {
    matches!(
        method.as_str(),
        "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"
    )
}

/// A function on one node, and a connection that is kept between calls.
#[derive(Debug)]
pub(crate) struct Line {
    authority: String,
    /// With what to speak TLS.
    tls: Option<Arc<ClientConfig>>,
    prefix: String,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Line {
    /// For the function's `url` on a node, as the coordinator's route gives it.
    pub(crate) fn new(url: &str, trust: &Trust) -> Result<Self, Failure> {
        let wrong = || Failure::other(format!("`{url}` is not a URL where a node can be reached"));
        let parsed: Uri = url.parse().map_err(|_| wrong())?;
        let (tls, port) = match parsed.scheme_str() {
            Some("http") => (None, 80),
            Some("https") => (Some(trusted(trust)?), 443),
            _ => return Err(wrong()),
        };
        let authority = parsed.authority().ok_or_else(wrong)?.as_str();
        let authority = match parsed.port() {
            Some(_) => authority.to_owned(),
            None => format!("{authority}:{port}"),
        };
        Ok(Line {
            authority,
            tls,
            prefix: parsed.path().trim_end_matches('/').to_owned(),
            sender: None,
        })
    }

    /// Host and port.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// Sends `call` and reads the answer to its end.
    pub(crate) async fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let deadline = tokio::time::Instant::now() + call.timeout;
        let exchange = self.exchange(call);
        match tokio::time::timeout_at(deadline, exchange).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(why)) => {
                self.sender = None;
                Err(why)
            }
            Err(_) => {
                self.sender = None;
                Err(NoAnswer::Cut(format!(
                    "no answer within {} ms",
                    call.timeout.as_millis()
                )))
            }
        }
    }

    async fn exchange(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let mut request = self.request(call)?;
        // A kept connection may have been closed meanwhile, which shows only on use.
        if let Some(mut sender) = self.sender.take()
            && sender.ready().await.is_ok()
        {
            let started = Instant::now();
            match sender.try_send_request(request).await {
                Ok(response) => {
                    self.sender = Some(sender);
                    return read(response, started).await;
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(NoAnswer::Cut(text(&error.into_error()))),
                },
            }
        }
        let mut sender = self.connect().await.map_err(NoAnswer::NotSent)?;
        let started = Instant::now();
        match sender.try_send_request(request).await {
            Ok(response) => {
                self.sender = Some(sender);
                read(response, started).await
            }
            Err(mut error) => match error.take_message() {
                Some(_) => Err(NoAnswer::NotSent(text(&error.into_error()))),
                None => Err(NoAnswer::Cut(text(&error.into_error()))),
            },
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let opening = async {
            let failed = |error: std::io::Error| text(&error);
            let stream = tokio::net::TcpStream::connect(&self.authority).await;
            let stream = stream.map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            let Some(tls) = &self.tls else {
                return speak(stream).await;
            };
            let host = self.authority.rsplit_once(':');
            let host = host.map_or(self.authority.as_str(), |(host, _)| host);
            let shaken = holm_tls::client::connect(tls.clone(), host, stream).await;
            speak(shaken.map_err(failed)?).await
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(format!(
                "no connection within {} s",
                CONNECT_TIMEOUT.as_secs()
            )),
        }
    }

    fn request(&self, call: &Call) -> Result<Request<Full<Bytes>>, NoAnswer> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(format!("{}{}", self.prefix, call.path))
            .header(HOST, &self.authority);
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        request
            .body(Full::new(call.body.clone()))
            .map_err(|error| NoAnswer::NotSent(error.to_string()))
    }
}

/// HTTP/1.1 over what is open.
async fn speak(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<SendRequest<Full<Bytes>>, String> {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| text(&error))?;
    // Ends with the connection; what goes wrong on it the sender is told.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}

async fn read(
    response: hyper::Response<hyper::body::Incoming>,
    started: Instant,
) -> Result<Answer, NoAnswer> {
    let (head, body) = response.into_parts();
    let limit = usize::try_from(MAX_RESPONSE_BODY_BYTES).unwrap_or(usize::MAX);
    let body = Limited::new(body, limit).collect().await;
    let body = body
        .map_err(|error| NoAnswer::Cut(text(&*error)))?
        .to_bytes();
    let status = head.status.as_u16();
    Ok(Answer {
        status,
        headers: head.headers,
        body,
        took: started.elapsed(),
    })
}

/// One node's turn at a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Attempt {
    /// The node.
    pub(crate) node: Name,
    /// Its region.
    pub(crate) region: String,
    /// Why it was its turn.
    pub(crate) why: String,
    /// What came of it.
    pub(crate) outcome: Turn,
    /// More of that, for people.
    pub(crate) detail: String,
}

/// What came of a node's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Turn {
    /// It answered.
    Answered,
    /// It turned the request away without running it.
    TurnedAway,
    /// The request could not be sent to it.
    NotSent,
    /// The request was sent, but no answer came.
    Cut,
}

/// The nodes of a route, nearest first, with a line to each.
#[derive(Debug)]
pub(crate) struct Nearest {
    lines: Vec<(RouteCandidate, Line)>,
}

/// A call that went to one or more nodes.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The answer, if any.
    pub(crate) answer: Option<Answer>,
    /// Every node's turn, in order; the last one gave the answer.
    pub(crate) attempts: Vec<Attempt>,
}

impl Nearest {
    /// Lines to `candidates`, which are in order.
    pub(crate) fn new(candidates: Vec<RouteCandidate>, trust: &Trust) -> Result<Self, Failure> {
        let line = |candidate: RouteCandidate| {
            Line::new(&candidate.url, trust).map(|line| (candidate, line))
        };
        Ok(Nearest {
            lines: candidates.into_iter().map(line).collect::<Result<_, _>>()?,
        })
    }

    /// The nodes in order.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = &RouteCandidate> {
        self.lines.iter().map(|(candidate, _)| candidate)
    }

    /// Sends `call` to the nearest node that takes it.
    pub(crate) async fn call(&mut self, call: &Call) -> Outcome {
        let mut attempts = Vec::new();
        let count = self.lines.len();
        for (place, (candidate, line)) in self.lines.iter_mut().enumerate() {
            let (outcome, detail, answer) = match line.call(call).await {
                Ok(answer) if answer.turned_away() && place + 1 < count => {
                    let body = String::from_utf8_lossy(&answer.body);
                    let body: String = body.chars().take(200).collect();
                    (
                        Turn::TurnedAway,
                        format!("{} {}", answer.status, body.trim()),
                        None,
                    )
                }
                Ok(answer) => (Turn::Answered, answer.status.to_string(), Some(answer)),
                Err(NoAnswer::NotSent(why)) => (Turn::NotSent, why, None),
                Err(NoAnswer::Cut(why)) => (Turn::Cut, why, None),
            };
            attempts.push(Attempt {
                node: candidate.node.clone(),
                region: candidate.region.clone(),
                why: candidate.why.clone(),
                outcome,
                detail,
            });
            let stop = outcome == Turn::Answered || (outcome == Turn::Cut && !call.repeatable);
            if stop {
                return Outcome { answer, attempts };
            }
        }
        Outcome {
            answer: None,
            attempts,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Reads one request's head on each connection and writes `reply`, then closes.
    async fn node(reply: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/t/f", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(reply).await;
            }
        });
        url
    }

    /// A port where nobody listens.
    async fn nobody() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}/t/f", listener.local_addr().unwrap())
    }

    fn nearest(urls: &[&str]) -> Nearest {
        let candidate = |(place, url): (usize, &&str)| RouteCandidate {
            node: format!("n{place}").parse().unwrap(),
            region: "r".into(),
            url: (*url).to_owned(),
            distance_km: None,
            rtt_us: None,
            why: "because".into(),
        };
        Nearest::new(
            urls.iter().enumerate().map(candidate).collect(),
            &Trust::default(),
        )
        .unwrap()
    }

    fn post(repeatable: bool) -> Call {
        let mut call = Call::get("/", Duration::from_secs(5));
        call.method = Method::POST;
        call.repeatable = repeatable;
        call
    }

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";

    #[tokio::test]
    async fn a_request_that_could_not_be_sent_goes_to_the_next_node_whatever_its_method() {
        let outcome = nearest(&[&nobody().await, &node(OK).await])
            .call(&post(false))
            .await;
        let turns: Vec<Turn> = outcome.attempts.iter().map(|a| a.outcome).collect();
        assert_eq!(turns, [Turn::NotSent, Turn::Answered]);
        assert_eq!(&outcome.answer.unwrap().body[..], b"hi");
    }

    #[tokio::test]
    async fn a_request_that_may_have_been_executed_is_repeated_only_if_that_is_allowed() {
        let (cut, ok) = (node(b"").await, node(OK).await);
        let outcome = nearest(&[&cut, &ok]).call(&post(false)).await;
        assert_eq!(outcome.attempts.len(), 1);
        assert_eq!(outcome.attempts[0].outcome, Turn::Cut);
        assert!(outcome.answer.is_none());

        let outcome = nearest(&[&cut, &ok]).call(&post(true)).await;
        assert_eq!(outcome.attempts.len(), 2);
        assert_eq!(outcome.answer.unwrap().status, 200);
    }

    #[tokio::test]
    async fn a_half_answer_is_no_answer() {
        let half = node(b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nhi").await;
        let outcome = nearest(&[&half]).call(&post(false)).await;
        assert_eq!(outcome.attempts[0].outcome, Turn::Cut);
        assert!(outcome.answer.is_none());
    }

    #[tokio::test]
    async fn a_node_that_turns_a_request_away_is_passed_over_unless_it_is_the_last() {
        let full =
            node(b"HTTP/1.1 503 Busy\r\nproxy-status: \"a\"; error=connection_limit_reached\r\ncontent-length: 0\r\n\r\n")
                .await;
        let own = node(b"HTTP/1.1 503 Mine\r\ncontent-length: 0\r\n\r\n").await;
        let ok = node(OK).await;
        let outcome = nearest(&[&full, &ok]).call(&post(false)).await;
        assert_eq!(outcome.attempts[0].outcome, Turn::TurnedAway);
        assert_eq!(outcome.answer.unwrap().status, 200);

        let outcome = nearest(&[&full]).call(&post(false)).await;
        assert_eq!(outcome.answer.unwrap().status, 503);

        // The function's own 503 is an answer like any other.
        let outcome = nearest(&[&own, &ok]).call(&post(false)).await;
        assert_eq!(outcome.answer.unwrap().status, 503);
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_between_two_calls_is_opened_anew() {
        let mut line = Line::new(&node(OK).await, &Trust::default()).unwrap();
        let call = Call::get("/", Duration::from_secs(5));
        for _ in 0..3 {
            assert_eq!(line.call(&call).await.unwrap().status, 200);
            // Lets the close arrive.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
