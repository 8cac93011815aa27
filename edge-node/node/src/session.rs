//! The link to the coordinator: dialled by the node, kept up, dialled again when lost.
//!
//! ```text
//!  [away] ──dial──▶ [dialled] ──Hello──▶ Welcome ──▶ [up] ──lost──▶ [away], after a pause that grows
//! ```
//! While it is up, desired state comes in and observed state and reports go out on the control
//! stream; fetching and uploading open a stream of their own for each request. Nothing that serves
//! callers waits for the link.

use std::sync::Arc;
use std::time::Duration;

use holm_model::codec::FrameError;
use holm_model::control::{
    BulkAnswer, BulkRequest, Configured, CoordinatorMessage, Hello, NodeMessage, Observed,
    REPORT_SECONDS,
};
use holm_model::ids::Name;
use holm_model::protocol::{Purpose, Version};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::budget::NewList;
use crate::credentials::Credentials;
use crate::limits::{LINK_TIMEOUT, MAX_RECONNECT, MIN_RECONNECT};
use crate::logs::Logs;
use crate::tally::Tally;
use crate::wire::{self, DialError, WireError};

/// The link is not usable.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Cannot be dialled.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// A message did not get through.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The connection was lost.
    #[error("the link to the coordinator was lost: {0}")]
    Lost(#[from] quinn::ConnectionError),
    /// No answer in time.
    #[error("the coordinator does not answer")]
    Silent,
    /// The coordinator does not want this node.
    #[error("the coordinator refuses this node: {0}")]
    Refused(String),
    /// The coordinator says something that is not its turn to say.
    #[error("the coordinator breaks the protocol: {0}")]
    Protocol(&'static str),
    /// The node was away for too long, or its clock is wrong.
    #[error(
        "{0}; this node's certificate has ended, by this machine's clock: if that is right, get a token with \
         `holm nodes token --node NAME`, remove `node.json` in the state directory, and nothing else, and join again"
    )]
    Ended(Box<LinkError>),
}

/// The current connection, for those who need one.
#[derive(Clone, Debug)]
pub(crate) struct Link(watch::Receiver<Option<Connection>>);

impl Link {
    /// The connection, as soon as there is one.
    pub(crate) async fn up(&self) -> Connection {
        let mut receiver = self.0.clone();
        if let Ok(connection) = receiver.wait_for(Option::is_some).await
            && let Some(connection) = connection.as_ref()
        {
            return connection.clone();
        }
        // The session has ended, so there will be none.
        std::future::pending().await
    }

    pub(crate) fn is_up(&self) -> bool {
        self.0.borrow().is_some()
    }
}

/// Sends a bulk request on a stream of its own; gives the answer and the stream behind it.
pub(crate) async fn ask(
    connection: &Connection,
    request: &BulkRequest,
) -> Result<(BulkAnswer, RecvStream), LinkError> {
    let version = wire::agreed(connection, Purpose::Link);
    let (mut to, mut from) = connection.open_bi().await?;
    wire::send(&mut to, request, version).await?;
    // Finished once and never before: cannot fail.
    let _ = to.finish();
    let answer = wire::receive(&mut from, version)
        .await?
        .ok_or(WireError::CutShort)?;
    Ok((answer, from))
}

/// What is told of invocations.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) tally: Arc<Tally>,
    pub(crate) logs: Arc<Logs>,
}

/// Where it goes what the coordinator says.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) desired: watch::Sender<Option<Configured>>,
    pub(crate) budgets: mpsc::Sender<NewList>,
}

/// What a session needs and whom it serves.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) name: Name,
    pub(crate) coordinator: String,
    pub(crate) credentials: Credentials,
    pub(crate) hello: Hello,
    pub(crate) observed: watch::Receiver<Observed>,
    pub(crate) heard: Heard,
    pub(crate) told: Told,
    connection: watch::Sender<Option<Connection>>,
}

impl Session {
    /// A session, and the link it will keep up once [`Session::run`] is polled.
    pub(crate) fn new(
        name: Name,
        coordinator: String,
        credentials: Credentials,
        hello: Hello,
        observed: watch::Receiver<Observed>,
        heard: Heard,
        told: Told,
    ) -> (Self, Link) {
        let (connection, link) = watch::channel(None);
        let session = Session {
            name,
            coordinator,
            credentials,
            hello,
            observed,
            heard,
            told,
            connection,
        };
        (session, Link(link))
    }

    /// Keeps the link up as long as it is polled.
    pub(crate) async fn run(mut self) {
        let mut pause = Backoff::new();
        loop {
            let began = Instant::now();
            let ended = self.once(&mut pause).await;
            self.connection.send_replace(None);
            let Err(mut error) = ended;
            if self.credentials.have_ended() {
                error = LinkError::Ended(error.into());
            }
            let wait = pause.next(random_fraction());
            tracing::warn!(%error, wait_ms = wait.as_millis() as u64, up_s = began.elapsed().as_secs(),
                "no link to the coordinator; serving what is here");
            tokio::time::sleep(wait).await;
        }
    }

    /// One connection, from dialling to its loss.
    async fn once(&mut self, pause: &mut Backoff) -> Result<std::convert::Infallible, LinkError> {
        let dialled = tokio::time::timeout(
            LINK_TIMEOUT,
            wire::dial(&self.coordinator, self.credentials.config()),
        );
        let (_endpoint, connection) = dialled.await.map_err(|_| LinkError::Silent)??;
        let version = wire::agreed(&connection, Purpose::Link);
        let greeted = tokio::time::timeout(LINK_TIMEOUT, self.greet(&connection, version));
        let (mut to, mut from) = greeted.await.map_err(|_| LinkError::Silent)??;
        pause.reset();
        let protocol = version.number();
        tracing::info!(
            coordinator = self.coordinator,
            protocol,
            "linked to the coordinator"
        );
        self.connection.send_replace(Some(connection.clone()));
        let ended = tokio::select! {
            ended = listen(&mut from, version, &self.heard, &self.told.tally) => ended,
            ended = report(&mut self.observed, &self.told, &mut to, version) => ended,
            never = self.credentials.keep(&connection) => match never {},
        };
        connection.close(0u32.into(), b"");
        ended
    }

    async fn greet(
        &self,
        connection: &Connection,
        version: Version,
    ) -> Result<(SendStream, RecvStream), LinkError> {
        let (mut to, mut from) = connection.open_bi().await?;
        let hello = NodeMessage::Hello(self.hello.clone());
        wire::send(&mut to, &hello, version).await?;
        let answer = wire::receive(&mut from, version).await?;
        match answer.ok_or(WireError::CutShort)? {
            CoordinatorMessage::Welcome { node, .. } if node == self.name => Ok((to, from)),
            CoordinatorMessage::Welcome { .. } => {
                Err(LinkError::Protocol("it calls this node by another name"))
            }
            CoordinatorMessage::Refuse { reason } => Err(LinkError::Refused(reason)),
            CoordinatorMessage::Desired(_)
            | CoordinatorMessage::Configured(_)
            | CoordinatorMessage::Budgets(_) => Err(LinkError::Protocol(
                "it sends desired state before its welcome",
            )),
        }
    }
}

/// Sends observed state when it changes, and reports.
async fn report(
    observed: &mut watch::Receiver<Observed>,
    told: &Told,
    to: &mut SendStream,
    version: Version,
) -> Result<std::convert::Infallible, LinkError> {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut quiet_ticks = REPORT_SECONDS;
    observed.mark_changed();
    loop {
        tokio::select! {
            changed = observed.changed() => match changed {
                Ok(()) => {
                    let mut state = observed.borrow_and_update().clone();
                    told.tally.remember(&mut state);
                    tell(to, &NodeMessage::Observed(state), version).await?;
                }
                // The deployer has ended: the node stops. The link goes with the node.
                Err(_) => std::future::pending().await,
            },
            _ = tick.tick() => {
                quiet_ticks += 1;
                let report = told.tally.report();
                let tells = !report.versions.is_empty() || report.refused > 0;
                if tells || quiet_ticks >= REPORT_SECONDS {
                    quiet_ticks = 0;
                    tell(to, &NodeMessage::Report(report), version).await?;
                }
                if let Some(batch) = told.logs.take() {
                    tell(to, &NodeMessage::Logs(batch), version).await?;
                }
            }
        }
    }
}

/// Says something that a coordinator of an older version does without.
async fn tell(
    to: &mut SendStream,
    message: &NodeMessage,
    version: Version,
) -> Result<(), LinkError> {
    match wire::send(to, message, version).await {
        Err(WireError::Frame(error @ FrameError::NotThere(_))) => {
            tracing::debug!(%error, "a message is left out");
            Ok(())
        }
        sent => Ok(sent?),
    }
}

/// Takes in what the coordinator says. What a newer one says that is not known here is counted and left out.
async fn listen(
    from: &mut RecvStream,
    version: Version,
    heard: &Heard,
    tally: &Tally,
) -> Result<std::convert::Infallible, LinkError> {
    loop {
        let message = match wire::receive(from, version).await {
            Err(WireError::Frame(FrameError::Unknown(kind))) => {
                let refused = tally.refuse();
                // A newer coordinator may say it again and again.
                if refused.is_power_of_two() {
                    tracing::warn!(
                        kind,
                        refused,
                        "a message of the coordinator is of a kind that is not known here"
                    );
                }
                continue;
            }
            message => message?.ok_or(WireError::CutShort)?,
        };
        match message {
            CoordinatorMessage::Desired(state) => {
                heard.desired.send_replace(Some(state.into()));
            }
            CoordinatorMessage::Configured(state) => {
                heard.desired.send_replace(Some(state));
            }
            CoordinatorMessage::Budgets(list) => {
                // What comes after it may be a function that is under one of them.
                let (done, kept) = oneshot::channel();
                if heard.budgets.send((list, done)).await.is_ok() {
                    let _ = kept.await;
                }
            }
            CoordinatorMessage::Refuse { reason } => return Err(LinkError::Refused(reason)),
            CoordinatorMessage::Welcome { .. } => {
                return Err(LinkError::Protocol("it welcomes this node twice"));
            }
        }
    }
}

/// Pauses between attempts: doubling, with jitter so that a fleet does not dial in step.
#[derive(Debug)]
struct Backoff(Duration);

impl Backoff {
    fn new() -> Self {
        Backoff(2 * MIN_RECONNECT)
    }

    fn reset(&mut self) {
        *self = Backoff::new();
    }

    /// The next pause; `fraction` is random, 0 to 255.
    fn next(&mut self, fraction: u8) -> Duration {
        let whole = self.0;
        self.0 = (whole * 2).min(MAX_RECONNECT);
        // Between the half and the whole: a fleet whose coordinator came back does not dial as one.
        whole / 2 + whole / 2 * u32::from(fraction) / 255
    }
}

fn random_fraction() -> u8 {
    let mut byte = [128];
    // Without randomness the pause is merely not jittered.
    let _ = getrandom::fill(&mut byte);
    byte[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_within_their_bounds_and_begin_anew_after_a_link() {
        for fraction in [0, 100, 255] {
            let mut backoff = Backoff::new();
            let pauses: Vec<_> = (0..12).map(|_| backoff.next(fraction)).collect();
            assert!(pauses.is_sorted(), "{pauses:?}");
            assert!(
                pauses
                    .iter()
                    .all(|p| (MIN_RECONNECT..=MAX_RECONNECT).contains(p))
            );
            assert!(pauses[11] >= MAX_RECONNECT / 2);
            backoff.reset();
            let first = MIN_RECONNECT + MIN_RECONNECT * u32::from(fraction) / 255;
            assert_eq!(backoff.next(fraction), first);
        }
    }

    #[test]
    fn two_nodes_do_not_pause_alike() {
        let (mut a, mut b) = (Backoff::new(), Backoff::new());
        for _ in 0..4 {
            a.next(0);
            b.next(0);
        }
        assert_ne!(a.next(10), b.next(200));
    }
}
