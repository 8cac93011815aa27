//! One connection, from its first byte to its end.
//!
//! The end is a matter of its own. A socket that is closed while bytes lie unread in it resets the
//! connection, and a reset destroys an answer on its way to a caller who is still sending (RFC 9112,
//! section 9.6). So the node says that it is done, reads and throws away what still comes, within bounds,
//! and only then closes.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use holm_model::limits::{MAX_HEAD_BYTES, MAX_HEADERS};
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::limits::{
    HEAD_TIMEOUT, LINGER, LINGER_SILENCE, MAX_LINGER_BYTES, MAX_SEND_BYTES_PER_STREAM,
    MAX_STREAMS_PER_CONNECTION,
};
use crate::request::Answer;
use crate::request::answers::{Answers, Untaken};

/// What a caller gets whose request's head did not come in time.
const HEAD_TOO_SLOW: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
/// What HTTP/2 begins with, and no request of HTTP/1.
const HTTP2_PREFACE: &[u8] = b"PRI";
const DISCARD_BYTES: usize = 16 << 10;
/// Looks at a connection within the time that a head may take.
const LOOKS: u32 = 3;

/// How long a caller may take for what. The bounds of [`crate::limits`], but in tests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    head: Duration,
    linger: Duration,
    silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            head: HEAD_TIMEOUT,
            linger: LINGER,
            silence: LINGER_SILENCE,
        }
    }
}

/// How HTTP on a connection came to its end.
#[derive(Debug)]
enum End {
    /// As HTTP has it, well or badly.
    Spoken,
    /// No request's head came in time.
    HeadTooSlow,
    /// The caller does not take its answers.
    Untaken,
}

/// Serves the connection until it has ended, which it does soon after `stop` becomes true.
pub(super) async fn serve<S, F, A>(
    stream: S,
    peer: SocketAddr,
    patience: Patience,
    answers: &Answers,
    stop: watch::Receiver<bool>,
    answer: F,
) where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    F: Fn(Request<Incoming>) -> A,
    A: Future<Output = Answer> + 'static,
{
    let line = Rc::new(RefCell::new(Line {
        stream,
        begun: false,
        http2: None,
    }));
    let handle = Handle(line.clone());
    let end = speak(handle, peer, patience, answers, stop, answer).await;
    // HTTP is over, so nothing else has the line.
    let Some(line) = Rc::into_inner(line) else {
        return;
    };
    let mut line = line.into_inner();
    let refused = match end {
        End::Untaken => return,
        End::HeadTooSlow if line.begun && line.http2 != Some(true) => HEAD_TOO_SLOW,
        End::HeadTooSlow | End::Spoken => &[],
    };
    let linger = async {
        line.stream.write_all(refused).await?;
        line.stream.shutdown().await?;
        discard(&mut line.stream, patience.silence).await
    };
    match timeout(patience.linger, linger).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%peer, %error, "the connection broke at its end"),
        Err(_) => tracing::debug!(%peer, "the caller sends on after its last answer; closed"),
    }
}

/// Reads until the caller ends the connection too, says nothing for a while, or has sent too much.
async fn discard(stream: &mut (impl AsyncRead + Unpin), silence: Duration) -> io::Result<()> {
    let mut bytes = vec![0; DISCARD_BYTES];
    let mut left = MAX_LINGER_BYTES;
    while left > 0 {
        match timeout(silence, stream.read(&mut bytes)).await {
            Ok(Ok(0)) | Err(_) => return Ok(()),
            Ok(count) => left = left.saturating_sub(count? as u64),
        }
    }
    Ok(())
}

/// HTTP, as long as it lasts.
async fn speak<S, F, A>(
    handle: Handle<S>,
    peer: SocketAddr,
    patience: Patience,
    answers: &Answers,
    mut stop: watch::Receiver<bool>,
    answer: F,
) -> End
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    F: Fn(Request<Incoming>) -> A,
    A: Future<Output = Answer> + 'static,
{
    let line = handle.0.clone();
    let asked = Rc::new(Asked::default());
    let untaken = Rc::new(Untaken::new(answers));
    let service = {
        let (asked, untaken) = (asked.clone(), untaken.clone());
        service_fn(move |request| {
            let open = Asked::one(&asked);
            let (answer, untaken) = (answer(request), untaken.clone());
            async move {
                let answer = answer.await.map(|body| untaken.count(body));
                drop(open);
                Ok::<_, Infallible>(answer)
            }
        })
    };
    let mut server = auto::Builder::new(OnThisThread);
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.head)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(patience.head)
        .max_send_buf_size(MAX_SEND_BYTES_PER_STREAM)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION);
    let connection = server.serve_connection(TokioIo::new(handle), service);
    let mut connection = std::pin::pin!(connection);
    let began = Instant::now();
    let mut look = tokio::time::interval(patience.head / LOOKS);
    look.reset();
    // Since when nobody has asked for anything, and how often they had by then.
    let mut idle: Option<(Instant, u64)> = None;
    let mut stopping = false;
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            _ = look.tick() => {
                let (now, count) = (Instant::now(), asked.count.get());
                // Until the first request the protocol is not known, and hyper's own timeouts do
                // not run.
                if count == 0 && now.duration_since(began) >= patience.head {
                    return End::HeadTooSlow;
                }
                if untaken.is_overdue(now) {
                    tracing::warn!(%peer, "a caller does not take its answer; the connection is closed");
                    return End::Untaken;
                }
                // HTTP/1 has hyper's timeout for it.
                let is_idle = asked.open.get() == 0 && untaken.is_idle();
                idle = (is_idle && count > 0 && line.borrow().http2 == Some(true))
                    .then(|| idle.filter(|(_, before)| *before == count).unwrap_or((now, count)));
                let Some((since, _)) = idle else {
                    continue;
                };
                if now.duration_since(since) >= patience.head {
                    // It is told, and has until the next look to go.
                    if stopping {
                        break Ok(());
                    }
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
            _ = stop.wait_for(|stop| *stop), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    let Err(error) = ended else {
        return End::Spoken;
    };
    tracing::debug!(%peer, error, "the connection ended badly");
    match error.downcast_ref::<hyper::Error>() {
        Some(error) if error.is_timeout() => End::HeadTooSlow,
        _ => End::Spoken,
    }
}

/// The requests of a connection.
#[derive(Debug, Default)]
struct Asked {
    count: Cell<u64>,
    /// Those without an answer.
    open: Cell<usize>,
}

impl Asked {
    /// One more, until it is dropped.
    fn one(asked: &Rc<Asked>) -> Open {
        asked.count.set(asked.count.get() + 1);
        asked.open.set(asked.open.get() + 1);
        Open(asked.clone())
    }
}

/// A request without an answer.
struct Open(Rc<Asked>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

/// A stream that outlives the HTTP on it.
#[derive(Debug)]
struct Line<S> {
    stream: S,
    /// Whether something has come since the last that was sent: a request that has begun.
    begun: bool,
    /// Whether it is HTTP/2, once something has come.
    http2: Option<bool>,
}

impl<S> Line<S> {
    fn came(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.begun = true;
            self.http2
                .get_or_insert_with(|| bytes.starts_with(HTTP2_PREFACE));
        }
    }
}

/// What HTTP has of it.
#[derive(Debug)]
struct Handle<S>(Rc<RefCell<Line<S>>>);

impl<S: AsyncRead + Unpin> AsyncRead for Handle<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut line = self.0.borrow_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut line.stream).poll_read(cx, buffer))?;
        line.came(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Handle<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut line = self.0.borrow_mut();
        line.begun = false;
        Pin::new(&mut line.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut line = self.0.borrow_mut();
        line.begun = false;
        Pin::new(&mut line.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_shutdown(cx)
    }
}

/// Runs hyper's HTTP/2 tasks on the thread of their connection.
#[derive(Clone, Copy, Debug)]
struct OnThisThread;

impl<F: Future + 'static> hyper::rt::Executor<F> for OnThisThread {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move {
            task.await;
        });
    }
}

#[cfg(test)]
mod tests {
    use hyper::body::Bytes;
    use hyper::{Response, StatusCode};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::LocalSet;

    use super::*;

    /// Longer than any of it takes, on a machine with much else to do.
    const LONG: Duration = Duration::from_secs(20);
    const IMPATIENT: Patience = Patience {
        head: Duration::from_millis(150),
        linger: Duration::from_millis(600),
        silence: Duration::from_millis(200),
    };

    /// A caller, and a server of one connection that refuses whatever it is asked, its body unread. Both have
    /// to come to an end.
    async fn with_refusals<T>(patience: Patience, caller: impl AsyncFnOnce(TcpStream) -> T) -> T {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let (_running, stop) = watch::channel(false);
        let server = async {
            let (stream, peer) = listener.accept().await.unwrap();
            let refuse = |_| async {
                let mut answer = Response::new(Bytes::from("no").into());
                *answer.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
                answer
            };
            serve(stream, peer, patience, &Answers::default(), stop, refuse).await;
        };
        let caller = async { caller(TcpStream::connect(to).await.unwrap()).await };
        let both = async { tokio::join!(server, caller) };
        let (_, result) = timeout(LONG, LocalSet::new().run_until(both))
            .await
            .unwrap();
        result
    }

    async fn read(stream: &mut TcpStream) -> io::Result<String> {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.map(|_| text)
    }

    #[tokio::test]
    async fn who_asks_for_nothing_more_over_http2_is_told_to_go() {
        with_refusals(IMPATIENT, async |stream| {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(OnThisThread, TokioIo::new(stream))
                    .await
                    .unwrap();
            let connection = tokio::task::spawn_local(connection);
            for _ in 0..3 {
                let request = Request::get("http://x/").body(String::new()).unwrap();
                assert_eq!(sender.send_request(request).await.unwrap().status(), 413);
                tokio::time::sleep(IMPATIENT.head / 2).await;
            }
            assert!(!connection.is_finished());
            // It would answer pings for ever.
            connection.await.unwrap().unwrap();
        })
        .await;
    }

    #[tokio::test]
    async fn who_sends_all_before_it_reads_gets_the_refusal_every_time() {
        for _ in 0..50 {
            let text = with_refusals(Patience::default(), async |mut stream| {
                let head = "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1048577\r\n\r\n";
                stream.write_all(head.as_bytes()).await.unwrap();
                // Piece by piece, as on a line that is slower than the node's answer.
                for piece in vec![0; (1 << 20) + 1].chunks(10_000) {
                    stream.write_all(piece).await.unwrap();
                    tokio::task::yield_now().await;
                }
                read(&mut stream).await.unwrap()
            });
            let text = text.await;
            assert!(
                text.starts_with("HTTP/1.1 413 ") && text.ends_with("no"),
                "{text}"
            );
        }
    }

    #[tokio::test]
    async fn who_drips_on_after_the_refusal_is_closed_in_bounded_time() {
        let (text, lasted) = with_refusals(IMPATIENT, async |mut stream| {
            let head = "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            let text = read(&mut stream).await.unwrap();
            let began = Instant::now();
            while stream.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            (text, began.elapsed())
        })
        .await;
        assert!(text.starts_with("HTTP/1.1 413 "), "{text}");
        assert!(lasted > IMPATIENT.silence, "it was read on: {lasted:?}");
        assert!(lasted < LONG / 2, "{lasted:?}");
    }

    #[tokio::test]
    async fn who_pours_on_after_the_refusal_is_closed_after_so_many_bytes() {
        let sent = with_refusals(Patience::default(), async |mut stream| {
            let head = "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999999\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            let (mut sent, piece) = (0, vec![0; 1 << 16]);
            while stream.write_all(&piece).await.is_ok() {
                sent += piece.len() as u64;
            }
            sent
        })
        .await;
        assert!(sent >= MAX_LINGER_BYTES, "{sent}");
        // What the system holds for both ends comes on top.
        assert!(sent < MAX_LINGER_BYTES + (32 << 20), "{sent}");
    }

    #[tokio::test]
    async fn who_says_nothing_after_the_refusal_is_closed_soon() {
        with_refusals(IMPATIENT, async |mut stream| {
            let head = "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            read(&mut stream).await.unwrap();
            // The node's side has ended at once; that the other does not is what it puts up with for a while.
            tokio::time::sleep(IMPATIENT.silence * 2).await;
            while stream.write_all(b"x").await.is_ok() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_head_that_comes_too_slowly_is_answered_and_closed() {
        for head in ["GET / HTTP/1.1\r\nhost: x\r\nx-slow: ", "P"] {
            let text = with_refusals(IMPATIENT, async |stream| {
                let (mut from, mut to) = stream.into_split();
                to.write_all(head.as_bytes()).await.unwrap();
                let drip = async {
                    while to.write_all(b"O").await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                };
                let mut text = String::new();
                tokio::select! {
                    read = from.read_to_string(&mut text) => drop(read.unwrap()),
                    () = drip => {}
                }
                text
            })
            .await;
            assert!(
                text.starts_with("HTTP/1.1 408 ") && text.contains("connection: close"),
                "{text}"
            );
        }
    }

    #[tokio::test]
    async fn who_connects_and_asks_nothing_is_closed_without_a_word() {
        let text = with_refusals(IMPATIENT, async |mut stream| {
            read(&mut stream).await.unwrap()
        })
        .await;
        assert_eq!(text, "");
        let text = with_refusals(IMPATIENT, async |mut stream| {
            stream.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
            read(&mut stream).await.unwrap()
        });
        assert_eq!(
            text.await,
            "",
            "an answer of HTTP/1 makes no sense in HTTP/2"
        );
    }

    #[tokio::test]
    async fn a_head_that_is_too_large_or_nonsense_is_answered_even_if_more_comes() {
        let wide = format!(
            "GET / HTTP/1.1\r\nhost: x\r\nx-wide: {}",
            "x".repeat(8 << 20)
        );
        let line = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
        let nonsense = format!("G\0T / HTTP/1.1\r\n\r\n{}", "x".repeat(1 << 20));
        for (sent, statuses) in [
            (wide, &["431"][..]),
            (line, &["414", "431"]),
            (nonsense, &["400"]),
        ] {
            let text = with_refusals(Patience::default(), async |mut stream| {
                stream.write_all(sent.as_bytes()).await.unwrap();
                read(&mut stream).await.unwrap()
            });
            let text = text.await;
            let status = text.split(' ').nth(1).unwrap();
            assert!(statuses.contains(&status), "{text}");
            assert!(text.contains("connection: close"), "{text}");
        }
    }
}
