//! From one ingress thread to another: a request of a version whose instances are there (`[scale] max`).
//!
//! The thread with the connection keeps that, and waits for the answer; the other one has the request from its
//! admission to its record. What goes between them is messages. When the caller goes, its end of them is dropped,
//! and so the other thread learns of it.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body_util::Full;
use hyper::Response;
use hyper::body::{Bytes, Frame};
use tokio::sync::{mpsc, oneshot};

use super::admission::Refusal;
use super::body::Held;
use super::job::{Ending, Job};
use super::parts::{Cut, Outgoing, Reader};
use super::{Answer, Call, carry_here};
use crate::deploy::routes::Live;
use crate::lane::Lane;

/// A request on its way to the thread that is to serve it.
#[derive(Debug)]
pub(crate) struct Handed {
    live: Arc<Live>,
    call: Call<Bytes>,
    back: oneshot::Sender<Response<Passing>>,
}

/// A body on its way back.
#[derive(Debug)]
enum Passing {
    Whole(Full<Bytes>),
    Parts(mpsc::Receiver<Part>),
}

/// What comes of a body; without an end it is cut.
#[derive(Debug)]
enum Part {
    Bytes(Bytes),
    End,
}

/// The body of an answer that another thread has.
#[derive(Debug)]
pub(crate) struct Distant(mpsc::Receiver<Part>);

impl Distant {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.0.poll_recv(cx).map(|part| match part {
            Some(Part::Bytes(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(Part::End) => None,
            None => Some(Err(Cut)),
        })
    }
}

/// Hands a request to the thread `home`, and has its answer sent to `reply`, which closes when the caller goes.
pub(super) fn hand_over(
    lane: &Rc<Lane>,
    live: Arc<Live>,
    call: Call,
    home: usize,
    reply: oneshot::Sender<Answer>,
) {
    let way = lane.shared.lanes.get(home).map(mpsc::Sender::try_reserve);
    let Some(Ok(way)) = way else {
        return Job::new(lane, &live, call, reply).end(Ending::TurnedAway(Refusal::Full));
    };
    let (back, answer) = oneshot::channel();
    // Counted here until there is an answer: on its way nobody else does.
    let mut counted: Option<Held> = None;
    let call = call.with(|mut held| {
        let bytes = held.give();
        counted = Some(held);
        bytes
    });
    way.send(Handed { live, call, back });
    tokio::task::spawn_local(bring_back(answer, reply, counted));
}

async fn bring_back(
    answer: oneshot::Receiver<Response<Passing>>,
    mut reply: oneshot::Sender<Answer>,
    _counted: Option<Held>,
) {
    tokio::select! {
        answer = answer => if let Ok(answer) = answer {
            let answer = answer.map(|body| match body {
                Passing::Whole(body) => Outgoing::Whole(body),
                Passing::Parts(parts) => Outgoing::Distant(Distant(parts)),
            });
            // If the caller has just gone, there is nobody to tell.
            let _ = reply.send(answer);
        },
        // The other end of `answer` learns it.
        () = reply.closed() => {}
    }
}

/// Serves what other threads hand over. What has come and was not taken when this ends is on record all the same.
pub(crate) async fn take_over(lane: Rc<Lane>, handed: mpsc::Receiver<Handed>) {
    let here = lane.clone();
    let mut arrivals = Arrivals {
        from: handed,
        last: move |handed| turn_away(&here, handed),
    };
    while let Some(Handed { live, call, back }) = arrivals.from.recv().await {
        let answer = begin(&lane, live, call);
        tokio::task::spawn_local(send_back(answer, back));
    }
}

/// It is a job of this thread's from now on.
fn begin(lane: &Rc<Lane>, live: Arc<Live>, call: Call<Bytes>) -> oneshot::Receiver<Answer> {
    let fits = lane.bodies.has_room(call.body.len());
    let call = call.with(|bytes| lane.bodies.hold(bytes));
    let (reply, answer) = oneshot::channel();
    match fits {
        true => carry_here(lane, live, call, reply),
        // As where a thread's own callers send too much.
        false => Job::new(lane, &live, call, reply).end(Ending::TurnedAway(Refusal::Full)),
    }
    answer
}

/// The thread takes nothing any more.
fn turn_away(lane: &Rc<Lane>, Handed { live, call, back }: Handed) {
    let call = call.with(|bytes| lane.bodies.hold(bytes));
    let (reply, mut answer) = oneshot::channel();
    Job::new(lane, &live, call, reply).end(Ending::TurnedAway(Refusal::Stopping));
    if let Ok(answer) = answer.try_recv() {
        let (head, body) = answer.into_parts();
        if let Outgoing::Whole(body) = body {
            // The other thread may have ended too.
            let _ = back.send(Response::from_parts(head, Passing::Whole(body)));
        }
    }
}

/// What comes by a channel. What nobody took goes to `last` when this is dropped.
struct Arrivals<T, F: FnMut(T)> {
    from: mpsc::Receiver<T>,
    last: F,
}

impl<T, F: FnMut(T)> Drop for Arrivals<T, F> {
    fn drop(&mut self) {
        self.from.close();
        loop {
            match self.from.try_recv() {
                Ok(one) => (self.last)(one),
                Err(_) if self.from.capacity() == self.from.max_capacity() => return,
                // A sender has its place and is about to use it.
                Err(_) => std::thread::yield_now(),
            }
        }
    }
}

/// Takes the answer to the thread that has the caller.
async fn send_back(
    answer: oneshot::Receiver<Answer>,
    mut back: oneshot::Sender<Response<Passing>>,
) {
    let answer = tokio::select! {
        answer = answer => answer,
        () = back.closed() => return,
    };
    // Without an answer there is none for the other thread either.
    let Ok(answer) = answer else {
        return;
    };
    let (head, body) = answer.into_parts();
    match body {
        Outgoing::Whole(body) => {
            let _ = back.send(Response::from_parts(head, Passing::Whole(body)));
        }
        Outgoing::Parts(reader) => {
            let (to, parts) = mpsc::channel(1);
            if back
                .send(Response::from_parts(head, Passing::Parts(parts)))
                .is_ok()
            {
                pass_on(reader, to).await;
            }
        }
        Outgoing::Distant(_) => {}
    }
}

/// Passes a body on as it comes and as it is taken, until its end or its caller's.
async fn pass_on(mut reader: Reader, to: mpsc::Sender<Part>) {
    loop {
        let next = std::future::poll_fn(|cx| Pin::new(&mut reader).poll_next(cx));
        let part = tokio::select! {
            next = next => match next {
                Some(Ok(bytes)) => Part::Bytes(bytes),
                Some(Err(Cut)) => return,
                None => Part::End,
            },
            () = to.closed() => return,
        };
        let ends = matches!(part, Part::End);
        if to.send(part).await.is_err() || ends {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn nothing_that_was_handed_over_is_lost_when_nobody_takes_it_any_more() {
        for round in 0..200 {
            let (sender, from) = mpsc::channel(4);
            let senders: Vec<_> = (0..3)
                .map(|n| {
                    let sender: mpsc::Sender<u32> = sender.clone();
                    std::thread::spawn(move || {
                        let mut sent = 0;
                        // Until it is closed.
                        while !sender.is_closed() {
                            if let Ok(way) = sender.try_reserve() {
                                std::thread::yield_now();
                                way.send(n);
                                sent += 1;
                            }
                        }
                        sent
                    })
                })
                .collect();
            drop(sender);
            let left = Rc::new(RefCell::new(0));
            let count = left.clone();
            let mut arrivals = Arrivals {
                from,
                last: move |_| *count.borrow_mut() += 1,
            };
            let mut taken = 0;
            while taken < round % 7 {
                taken += usize::from(arrivals.from.blocking_recv().is_some());
            }
            drop(arrivals);
            let sent: usize = senders.into_iter().map(|one| one.join().unwrap()).sum();
            assert_eq!(taken + *left.borrow(), sent);
        }
    }
}
