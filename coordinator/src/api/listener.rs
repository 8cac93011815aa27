//! A listener that holds a bounded number of connections, and none for nothing; with TLS if it has a certificate.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::serve::Listener;
use holm_tls::server::{self as tls, Current};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep};

use crate::limits::{HTTP_HANDSHAKE, HTTP_IDLE, MAX_HTTP_CONNECTIONS};

/// Accepts while there is room; what comes beyond waits in the system's queue.
pub(crate) struct BoundedListener {
    inner: TcpListener,
    room: Arc<Semaphore>,
    tls: Option<Current>,
    /// Handshakes under way. Each has its connection's room.
    shaking: JoinSet<Option<(Connection, SocketAddr)>>,
}

/// A connection, whatever it is made of.
type Connection = Box<dyn Stream>;

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl BoundedListener {
    pub(crate) fn new(inner: TcpListener, tls: Option<Current>) -> Self {
        BoundedListener {
            inner,
            room: Arc::new(Semaphore::new(MAX_HTTP_CONNECTIONS)),
            tls,
            shaking: JoinSet::new(),
        }
    }
}

impl Listener for BoundedListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let BoundedListener {
            inner,
            room,
            tls,
            shaking,
        } = self;
        loop {
            let (held, address) = tokio::select! {
                Some(shaken) = shaking.join_next() => match shaken {
                    Ok(Some(connection)) => return connection,
                    // It came to nothing; a panic has been printed.
                    Ok(None) | Err(_) => continue,
                },
                accepted = take(inner, room) => accepted,
            };
            let Some(current) = tls.clone() else {
                return (Box::new(held), address);
            };
            shaking.spawn(async move {
                match tls::accept(&current, held, HTTP_HANDSHAKE).await {
                    Ok(stream) => Some((Box::new(stream) as Connection, address)),
                    Err(error) => {
                        tracing::debug!(%address, %error, "no TLS with this caller");
                        None
                    }
                }
            });
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// The next connection, when there is room for it.
async fn take(inner: &mut TcpListener, room: &Arc<Semaphore>) -> (Held, SocketAddr) {
    let permit = room.clone().acquire_owned().await;
    let permit = permit.expect("the semaphore is never closed");
    // Axum's own listener logs and retries what accepting can fail with.
    let (stream, address) = Listener::accept(inner).await;
    let held = Held {
        stream,
        idle: Box::pin(sleep(HTTP_IDLE)),
        _permit: permit,
    };
    (held, address)
}

/// A connection that ends when nothing is read from or written to it for [`HTTP_IDLE`].
pub(crate) struct Held {
    stream: TcpStream,
    idle: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl Held {
    /// Passes a result on; progress begins the idle time anew, and its end is an error.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.idle.as_mut().reset(Instant::now() + HTTP_IDLE);
            return poll;
        }
        match self.idle.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.watch(context, poll)
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(context, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
