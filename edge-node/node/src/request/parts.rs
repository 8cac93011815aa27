//! The body of an answer: whole, or in parts that come while the function goes on.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use http_body_util::Full;
use hyper::body::{Body, Bytes, Frame, SizeHint};

use super::answers::Answers;
use super::handover::Distant;
use crate::limits::PART_WINDOW_BYTES;

/// A smaller part than this is not kept as one of its own.
const SMALL_PART_BYTES: usize = 4 << 10;

/// The body of an answer.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// All of it.
    Whole(Full<Bytes>),
    /// As it comes.
    Parts(Reader),
    /// As it comes from another thread.
    Distant(Distant),
}

impl Outgoing {
    /// Bytes of a body that is there.
    pub(crate) fn whole_bytes(&self) -> u64 {
        match self {
            Outgoing::Whole(body) => body.size_hint().exact().unwrap_or(0),
            Outgoing::Parts(_) | Outgoing::Distant(_) => 0,
        }
    }
}

impl From<Bytes> for Outgoing {
    fn from(bytes: Bytes) -> Self {
        Outgoing::Whole(Full::new(bytes))
    }
}

/// The body ends before it is complete, and so must the caller's connection, or stream.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the function failed in the middle of its answer")]
pub(crate) struct Cut;

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut *self {
            Outgoing::Whole(body) => Pin::new(body)
                .poll_frame(cx)
                .map_err(|never| match never {}),
            Outgoing::Parts(reader) => reader
                .poll_next(cx)
                .map(|next| next.map(|part| part.map(Frame::data))),
            Outgoing::Distant(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outgoing::Whole(body) => body.is_end_stream(),
            Outgoing::Parts(_) | Outgoing::Distant(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Whole(body) => body.size_hint(),
            Outgoing::Parts(_) | Outgoing::Distant(_) => SizeHint::default(),
        }
    }
}

/// A body in parts: one end of it for the function's answer, one for the caller's connection.
pub(crate) fn parts(answers: &Answers) -> (Writer, Reader) {
    let shared = Rc::new(RefCell::new(Shared {
        queue: VecDeque::new(),
        bytes: 0,
        end: None,
        is_read: true,
        reader: None,
        writer: None,
        answers: answers.clone(),
    }));
    (Writer(shared.clone()), Reader(shared))
}

#[derive(Debug)]
struct Shared {
    queue: VecDeque<Bytes>,
    bytes: usize,
    end: Option<Result<(), Cut>>,
    is_read: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    answers: Answers,
}

impl Shared {
    /// Small parts that wait become one, which takes less room than they would.
    fn push(&mut self, part: Bytes) {
        let small = |bytes: &Bytes| bytes.len() < SMALL_PART_BYTES;
        match self.queue.pop_back_if(|last| small(last) && small(&part)) {
            Some(last) => self.queue.push_back([last, part].concat().into()),
            None => self.queue.push_back(part),
        }
    }

    fn took(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.answers.give_back(bytes);
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }
}

/// Where a function's answer goes. Dropped before its end, it is cut.
#[derive(Debug)]
pub(crate) struct Writer(Rc<RefCell<Shared>>);

impl Writer {
    /// The next part.
    pub(crate) fn add(&self, part: Bytes) {
        let mut shared = self.0.borrow_mut();
        if part.is_empty() || !shared.is_read {
            return;
        }
        shared.answers.take(part.len());
        shared.bytes += part.len();
        shared.push(part);
        wake(&mut shared.reader);
    }

    /// The end; without it, a cut.
    pub(crate) fn end(self) {
        self.0.borrow_mut().end = Some(Ok(()));
    }

    /// Ready when the caller has gone.
    pub(crate) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut shared = self.0.borrow_mut();
        if !shared.is_read {
            return Poll::Ready(());
        }
        shared.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether the caller has yet to take so much that the function had better wait.
    pub(crate) fn is_full(&self) -> bool {
        let shared = self.0.borrow();
        shared.is_read && shared.bytes >= PART_WINDOW_BYTES
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut shared = self.0.borrow_mut();
        shared.end.get_or_insert(Err(Cut));
        wake(&mut shared.reader);
    }
}

/// Where the connection takes it.
#[derive(Debug)]
pub(crate) struct Reader(Rc<RefCell<Shared>>);

impl Reader {
    /// The next part, or the end.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        let mut shared = self.0.borrow_mut();
        if let Some(part) = shared.queue.pop_front() {
            shared.took(part.len());
            return Poll::Ready(Some(Ok(part)));
        }
        match shared.end {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(cut)) => Poll::Ready(Some(Err(cut))),
            None => {
                shared.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut shared = self.0.borrow_mut();
        shared.is_read = false;
        let left = shared.bytes;
        shared.queue.clear();
        shared.took(left);
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    async fn gone(writer: &Writer) {
        std::future::poll_fn(|cx| writer.poll_gone(cx)).await;
    }

    #[tokio::test]
    async fn parts_come_in_order_and_the_end_after_them() {
        let (writer, reader) = parts(&Answers::default());
        writer.add(Bytes::from("a"));
        writer.add(Bytes::new());
        writer.add(Bytes::from("b"));
        writer.end();
        let body = Outgoing::Parts(reader).collect().await.unwrap();
        assert_eq!(body.to_bytes(), "ab");
    }

    #[tokio::test]
    async fn small_parts_that_wait_become_larger_ones() {
        let (writer, reader) = parts(&Answers::default());
        for _ in 0..10_000 {
            writer.add(Bytes::from_static(b"x"));
        }
        assert!(writer.0.borrow().queue.len() <= 3);
        writer.end();
        let body = Outgoing::Parts(reader).collect().await.unwrap();
        assert_eq!(body.to_bytes(), vec![b'x'; 10_000]);
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_cut() {
        let (writer, reader) = parts(&Answers::default());
        let mut body = Outgoing::Parts(reader);
        writer.add(Bytes::from("a"));
        drop(writer);
        assert_eq!(
            body.frame().await.unwrap().unwrap().into_data().unwrap(),
            "a"
        );
        body.frame().await.unwrap().unwrap_err();
    }

    #[tokio::test]
    async fn who_writes_learns_that_nobody_reads_and_holds_nothing_then() {
        let answers = Answers::default();
        let (writer, reader) = parts(&answers);
        writer.add(Bytes::from(vec![0; PART_WINDOW_BYTES]));
        assert!(writer.is_full());
        assert_eq!(answers.bytes(), PART_WINDOW_BYTES);
        drop(reader);
        gone(&writer).await;
        assert!(!writer.is_full());
        writer.add(Bytes::from("more"));
        assert_eq!(answers.bytes(), 0);
    }
}
