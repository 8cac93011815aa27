//! The coordinator's API `/v1` from the client's side: JSON out and in, every call bounded in time
//! and size, every error a [`Failure`] that says what the coordinator said.
//!
//! Speaks HTTP/1.1, with TLS where the URL says `https://`.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use indicatif::ProgressBar;
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;

use holm_model::api::{MissingChunks, Problem};
use holm_model::chunks::Index;
use holm_model::ids::{Digest, FunctionName};

use crate::exit::{Exit, Failure};
use holm_tls::client::Trust;

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an answer may take that the coordinator reads its whole ledger for.
const SLOW_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// How long an artifact may take.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Pause before an upload is tried again that the coordinator has no room for; it doubles up to the longest.
const BUSY_PAUSE: Duration = Duration::from_millis(500);
const MAX_BUSY_PAUSE: Duration = Duration::from_secs(4);
/// Largest answer that is read.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// What chunks and their index are sent as.
const OCTETS: Option<&str> = Some("application/octet-stream");
/// Bytes of an artifact handed to the connection at a time.
const UPLOAD_CHUNK_BYTES: usize = 64 << 10;

type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// A client of one coordinator. Cheap to clone; keeps its connections.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pool: Pool<HttpsConnector<HttpConnector>, Body>,
    base: String,
    token: Option<HeaderValue>,
    trust: Arc<Trust>,
}

/// Why there is no answer.
enum Unanswered {
    /// There is no connection.
    NotSent(String),
    /// There was one.
    Cut(String),
}

/// An answer with a status below 400.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    body: Bytes,
}

impl Client {
    /// A client for the coordinator at `url`, which begins with `http://` or `https://`.
    pub(crate) fn new(url: &str, token: Option<String>, trust: Trust) -> Result<Self, Failure> {
        let base = url.trim_end_matches('/').to_owned();
        let wrong = |what: &str| {
            Failure::usage(format!("`{url}` is not a coordinator's URL: {what}"))
                .hint("give for example --coordinator http://127.0.0.1:7700")
        };
        let parsed: Uri = base.parse().map_err(|_| wrong("it cannot be read"))?;
        let tls = match parsed.scheme_str() {
            Some("http") => Trust::nobody(),
            Some("https") => ClientConfig::clone(&*trusted(&trust)?),
            _ => return Err(wrong("it has to begin with http:// or https://")),
        };
        if parsed.host().is_none_or(str::is_empty) || parsed.query().is_some() {
            return Err(wrong("it has to be a host and a port"));
        }
        let token = token.map(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| Failure::usage("the token has characters that a token cannot have"))?;
            value.set_sensitive(true);
            Ok(value)
        });
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        connector.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let pool = Pool::builder(TokioExecutor::new()).build(connector);
        Ok(Client {
            pool,
            base,
            token: token.transpose()?,
            trust: Arc::new(trust),
        })
    }

    /// Whom it trusts.
    pub(crate) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The coordinator's URL, without a final slash.
    pub(crate) fn url(&self) -> &str {
        &self.base
    }

    /// `GET path`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let answer = self
            .send(Method::GET, path, empty(), None, CALL_TIMEOUT)
            .await?;
        self.read(path, &answer)
    }

    /// `GET path`, for what may take the coordinator minutes.
    pub(crate) async fn get_slowly<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let answer = self
            .send(Method::GET, path, empty(), None, SLOW_TIMEOUT)
            .await?;
        self.read(path, &answer)
    }

    /// `GET path`, or `None` if there is no such thing.
    pub(crate) async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Failure> {
        match self
            .exchange(Method::GET, path, empty(), None, CALL_TIMEOUT)
            .await?
        {
            answer if answer.status == StatusCode::NOT_FOUND => Ok(None),
            answer => self.read(path, &self.accept(path, answer)?).map(Some),
        }
    }

    /// `GET path`, whose answer is no JSON.
    pub(crate) async fn get_bytes(&self, path: &str) -> Result<Bytes, Failure> {
        let answer = self
            .send(Method::GET, path, empty(), None, UPLOAD_TIMEOUT)
            .await?;
        Ok(answer.body)
    }

    /// `POST path` with `body` as JSON.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.json(Method::POST, path, body).await
    }

    /// `PUT path` with `body` as JSON.
    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.json(Method::PUT, path, body).await
    }

    /// `POST path` without a body.
    pub(crate) async fn post_empty<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let answer = self
            .send(Method::POST, path, empty(), None, CALL_TIMEOUT)
            .await?;
        self.read(path, &answer)
    }

    /// `POST path` without a body, for an answer without one.
    pub(crate) async fn post_nothing(&self, path: &str) -> Result<(), Failure> {
        let answer = self.send(Method::POST, path, empty(), None, CALL_TIMEOUT);
        answer.await.map(|_| ())
    }

    /// `DELETE path`.
    pub(crate) async fn delete(&self, path: &str) -> Result<(), Failure> {
        let answer = self.send(Method::DELETE, path, empty(), None, CALL_TIMEOUT);
        answer.await.map(|_| ())
    }

    /// Whether the coordinator has the artifact.
    pub(crate) async fn has_artifact(&self, digest: &Digest) -> Result<bool, Failure> {
        let path = format!("/v1/artifacts/{digest}");
        let answer = self
            .exchange(Method::HEAD, &path, empty(), None, CALL_TIMEOUT)
            .await?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(false),
            _ => self.accept(&path, answer).map(|_| true),
        }
    }

    /// Has the coordinator put the artifact together from its chunks; none if it has, and otherwise what it lacks.
    pub(crate) async fn put_index(
        &self,
        digest: &Digest,
        index: &Index,
    ) -> Result<Option<MissingChunks>, Failure> {
        let path = format!("/v1/artifacts/{digest}/index");
        let index = Bytes::from(index.to_bytes());
        let body = || Full::new(index.clone()).boxed_unsync();
        let answer = self.put_when_taken(&path, body).await?;
        match answer.status {
            StatusCode::ACCEPTED => self.read(&path, &answer).map(Some),
            _ => Ok(None),
        }
    }

    /// Hands over chunks of an artifact, as frames one after the other, and moves `bar` by their bytes.
    pub(crate) async fn put_chunks(
        &self,
        digest: &Digest,
        frames: Bytes,
        bar: ProgressBar,
    ) -> Result<(), Failure> {
        let path = format!("/v1/artifacts/{digest}/chunks");
        let before = bar.position();
        let body = || {
            bar.set_position(before);
            let (left, bar) = (frames.clone(), bar.clone());
            Upload { left, bar }.boxed_unsync()
        };
        self.put_when_taken(&path, body).await.map(|_| ())
    }

    /// `PUT path` with a body of octets, again some times if the coordinator has too much to do.
    async fn put_when_taken(&self, path: &str, body: impl Fn() -> Body) -> Result<Answer, Failure> {
        let mut pause = BUSY_PAUSE;
        loop {
            let put = self.exchange(Method::PUT, path, body(), OCTETS, UPLOAD_TIMEOUT);
            let answer = put.await?;
            if answer.status != StatusCode::SERVICE_UNAVAILABLE || pause > MAX_BUSY_PAUSE {
                return self.accept(path, answer);
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let bytes = serde_json::to_vec(body)
            .map_err(|error| Failure::other(format!("the request cannot be written: {error}")))?;
        let body = Full::new(Bytes::from(bytes)).boxed_unsync();
        let answer = self
            .send(method, path, body, Some("application/json"), CALL_TIMEOUT)
            .await?;
        self.read(path, &answer)
    }

    fn read<T: DeserializeOwned>(&self, path: &str, answer: &Answer) -> Result<T, Failure> {
        serde_json::from_slice(&answer.body).map_err(|error| {
            Failure::other(format!(
                "what {}{path} answered cannot be read: {error}",
                self.base
            ))
            .hint("is it a Holm coordinator, and of the same version as this command?")
        })
    }

    /// Sends, and turns a status of 400 and above into a failure.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
        kind: Option<&'static str>,
        timeout: Duration,
    ) -> Result<Answer, Failure> {
        let answer = self.exchange(method, path, body, kind, timeout).await?;
        self.accept(path, answer)
    }

    fn accept(&self, path: &str, answer: Answer) -> Result<Answer, Failure> {
        match answer.status.as_u16() {
            ..400 => Ok(answer),
            _ => Err(refusal(&self.base, path, &answer, self.token.is_some())),
        }
    }

    /// A GET whose connection was cut is sent once more: of several coordinators behind one name, the one that had it
    /// may have died.
    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Body,
        kind: Option<&'static str>,
        timeout: Duration,
    ) -> Result<Answer, Failure> {
        let again = method == Method::GET;
        let exchanges = async {
            let request = self.request(method, path, body, kind)?;
            match self.once(request).await {
                Err(Unanswered::Cut(_)) if again => {
                    let request = self.request(Method::GET, path, empty(), kind)?;
                    Ok(self.once(request).await)
                }
                result => Ok(result),
            }
        };
        let result = match tokio::time::timeout(timeout, exchanges).await {
            Ok(result) => result?.map_err(|(Unanswered::NotSent(why) | Unanswered::Cut(why))| why),
            Err(_) => Err(format!("no answer within {} s", timeout.as_secs())),
        };
        result.map_err(|why: String| {
            Failure::new(
                Exit::Unreachable,
                format!("the coordinator at {} cannot be reached: {why}", self.base),
            )
            .hint("start one with `holm coordinator`, or name another with --coordinator URL")
        })
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Body,
        kind: Option<&'static str>,
    ) -> Result<Request<Body>, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        if let Some(kind) = kind {
            request = request.header(CONTENT_TYPE, kind);
            let size = hyper::body::Body::size_hint(&body).exact();
            request = request.header(CONTENT_LENGTH, size.unwrap_or_default());
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token.clone());
        }
        request
            .body(body)
            .map_err(|error| Failure::usage(format!("`{path}` cannot be asked for: {error}")))
    }

    async fn once(&self, request: Request<Body>) -> Result<Answer, Unanswered> {
        let answer = self.pool.request(request).await.map_err(|error| {
            let why = text(&error);
            match error.is_connect() {
                true => Unanswered::NotSent(why),
                false => Unanswered::Cut(why),
            }
        })?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await;
        let body = body
            .map_err(|error| Unanswered::Cut(text(&*error)))?
            .to_bytes();
        Ok(Answer { status, body })
    }
}

/// What connections to those are made with whom one trusts.
pub(crate) fn trusted(trust: &Trust) -> Result<Arc<ClientConfig>, Failure> {
    trust
        .config()
        .map_err(|error| Failure::usage(error.to_string()))
}

/// The path of a function's own part of the API.
pub(crate) fn function_path(function: &FunctionName) -> String {
    format!("/v1/functions/{}/{}", function.tenant, function.function)
}

/// What the coordinator said no to, and why.
fn refusal(base: &str, path: &str, answer: &Answer, token: bool) -> Failure {
    let exit = match answer.status.is_client_error() {
        true => Exit::Refused,
        false => Exit::Failure,
    };
    let failure = match serde_json::from_slice::<Problem>(&answer.body) {
        Ok(problem) if problem.detail.is_empty() => Failure::new(exit, problem.title),
        Ok(problem) => Failure::new(exit, problem.detail),
        Err(_) => Failure::new(exit, format!("{base}{path} answered {}", answer.status)),
    };
    match (answer.status, token) {
        (StatusCode::UNAUTHORIZED, false) => failure.hint(
            "give the coordinator's token with --token-file or HOLM_TOKEN, or once with `holm login`",
        ),
        (StatusCode::UNAUTHORIZED, true) => {
            failure.hint("the token given is not one of this coordinator's")
        }
        _ => failure,
    }
}

fn empty() -> Body {
    Full::new(Bytes::new()).boxed_unsync()
}

/// An error with its causes, innermost last, in one line.
pub(crate) fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

/// An artifact on its way.
#[derive(Debug)]
struct Upload {
    left: Bytes,
    bar: ProgressBar,
}

impl hyper::body::Body for Upload {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        if self.left.is_empty() {
            return std::task::Poll::Ready(None);
        }
        let bytes = self.left.len().min(UPLOAD_CHUNK_BYTES);
        let chunk = self.left.split_to(bytes);
        self.bar.inc(bytes as u64);
        std::task::Poll::Ready(Some(Ok(hyper::body::Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.left.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Serves one connection with an answer and gives back what was asked.
    async fn answering(status: &str, body: &str) -> (String, tokio::task::JoinHandle<String>) {
        let length = body.len();
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 4096];
            let bytes = stream.read(&mut asked).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            asked.truncate(bytes);
            String::from_utf8(asked).unwrap()
        });
        (url, served)
    }

    #[tokio::test]
    async fn what_a_coordinator_refuses_is_told_in_its_own_words() {
        let problem = r#"{"type":"/problems/rollout","title":"Rollout running","status":409,
            "detail":"rollout 7 of a/b is running"}"#;
        let (url, _) = answering("409 Conflict", problem).await;
        let client = Client::new(&url, Some("t".into()), Trust::default()).unwrap();
        let failure = client.get::<serde_json::Value>("/v1/x").await.unwrap_err();
        assert_eq!(failure.exit, Exit::Refused);
        assert_eq!(failure.message, "rollout 7 of a/b is running");
    }

    #[tokio::test]
    async fn the_token_is_shown_and_the_answer_read() {
        let (url, served) = answering("200 OK", r#"{"software":"1","now_ms":12}"#).await;
        let client = Client::new(&url, Some("secret".into()), Trust::default()).unwrap();
        let health: holm_model::api::Health = client.get("/v1/health").await.unwrap();
        assert_eq!(health.now_ms, 12);
        let asked = served.await.unwrap();
        assert!(asked.starts_with("GET /v1/health HTTP/1.1\r\n"), "{asked}");
        assert!(
            asked.contains("authorization: Bearer secret\r\n"),
            "{asked}"
        );
    }

    #[tokio::test]
    async fn an_upload_that_there_is_no_room_for_is_tried_again_whole() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = tokio::spawn(async move {
            let mut bodies = Vec::new();
            for status in ["503 Service Unavailable", "204 No Content"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut asked = Vec::new();
                while !asked.ends_with(b"the frames") {
                    stream.read_buf(&mut asked).await.unwrap();
                }
                bodies.push(asked);
                let answer =
                    format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            bodies
        });
        let client = Client::new(&url, None, Trust::default()).unwrap();
        let bar = ProgressBar::hidden();
        let frames = Bytes::from_static(b"the frames");
        let put = client.put_chunks(&Digest([1; 32]), frames, bar.clone());
        put.await.unwrap();
        assert_eq!(served.await.unwrap().len(), 2);
        assert_eq!(bar.position(), 10);
    }

    #[tokio::test]
    async fn a_coordinator_that_is_not_there_is_unreachable() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let client = Client::new(&url, None, Trust::default()).unwrap();
        let failure = client
            .get::<serde_json::Value>("/v1/nodes")
            .await
            .unwrap_err();
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.message.contains(&url), "{failure}");
    }

    #[test]
    fn what_is_not_a_url_of_a_coordinator_is_wrong_usage() {
        for url in [
            "",
            "127.0.0.1:7700",
            "https://",
            "http://",
            "ftp://x",
            "http://a b",
        ] {
            let failure = Client::new(url, None, Trust::default()).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage, "{url}: {failure}");
        }
    }
}
