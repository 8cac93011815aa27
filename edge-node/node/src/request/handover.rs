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

/// Hands a request to the thread `home`, and sends its answer to `reply`, which closes when the caller goes.
pub(super) async fn hand_over(
    lane: &Rc<Lane>,
    live: Arc<Live>,
    call: Call,
    home: usize,
    mut reply: oneshot::Sender<Answer>,
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
    drop(counted);
}

/// Serves what other threads hand over.
pub(crate) async fn take_over(lane: Rc<Lane>, mut handed: mpsc::Receiver<Handed>) {
    while let Some(handed) = handed.recv().await {
        tokio::task::spawn_local(serve(lane.clone(), handed));
    }
}

async fn serve(lane: Rc<Lane>, handed: Handed) {
    let Handed {
        live,
        call,
        mut back,
    } = handed;
    let fits = lane.bodies.has_room(call.body.len());
    let call = call.with(|bytes| lane.bodies.hold(bytes));
    let (reply, answer) = oneshot::channel();
    match fits {
        true => drop(tokio::task::spawn_local(carry_here(
            lane, live, call, reply,
        ))),
        // As where a thread's own callers send too much.
        false => Job::new(&lane, &live, call, reply).end(Ending::TurnedAway(Refusal::Full)),
    }
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
