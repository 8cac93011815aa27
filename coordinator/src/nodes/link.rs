//! One node's link, from `Hello` to its end.
//!
//! ```text
//! handshake ─▶ certificate checked ─▶ Hello ─▶ Welcome ─▶ { Observed, Report ◀─▶ Desired, bulk }
//!      └────────────── refused ◀────────┘                          │
//!                                                    closed ◀──────┴─▶ replaced by a newer one
//! ```
//! A node that breaks the protocol is told why, on its control stream and in the close frame, and
//! loses this link; no other link notices.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holm_model::codec::FrameError;
use holm_model::control::{Configured, CoordinatorMessage, Hello, LogBatch, NodeMessage, before};
use holm_model::ids::{FunctionName, Name};
use holm_model::protocol::Version;
use quinn::{Connection, RecvStream, SendStream};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::frames::WireError;
use super::server::{Services, close, delivered, shut};
use super::{bulk, frames};
use crate::ca::{kept, node_name};
use crate::limits::{
    LINK_OPENING, MAX_LOG_BATCH_COUNTED_BYTES, MAX_NODE_TEXT_CHARS, MAX_OBSERVED_VERSIONS,
    MAX_URL_CHARS,
};
use crate::logs::batch_bytes;
use crate::rollout::Target;
use crate::store::StoreError;

/// Why a link ends before its time.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error(
        "the control link needs a node's certificate and none was shown; join first, with a token \
         from `holm nodes token`"
    )]
    NoCertificate,
    #[error("the certificate shown does not name a node; join again")]
    Nameless,
    #[error(
        "node `{0}` is not known here, or its certificate was revoked, or was replaced when a machine joined under \
         the same name; join again with a new token"
    )]
    Unknown(Name),
    #[error("the node opened no control stream, or sent no Hello on it, in time")]
    Silent,
    #[error("the node's first message is not Hello")]
    NoHello,
    #[error("the node said Hello twice")]
    SecondHello,
    #[error("the node's Hello has {0}; correct the node's configuration")]
    BadHello(&'static str),
    #[error("the node's message lists {0} versions, more than the {MAX_OBSERVED_VERSIONS} allowed")]
    TooMany(usize),
    #[error(
        "the node's batch of log entries counts {0} bytes, more than the \
         {MAX_LOG_BATCH_COUNTED_BYTES} allowed"
    )]
    TooMuchLog(usize),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the link broke: {0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("the coordinator failed: {0}")]
    Store(#[from] StoreError),
}

impl LinkError {
    /// The peer has gone, so that there is nobody to tell.
    fn is_gone(&self) -> bool {
        match self {
            LinkError::Wire(error) => !error.is_breach(),
            LinkError::Connection(_) => true,
            _ => false,
        }
    }

    fn code(&self) -> u32 {
        match self {
            LinkError::Wire(_)
            | LinkError::TooMany(_)
            | LinkError::TooMuchLog(_)
            | LinkError::SecondHello => close::BREACH,
            _ => close::REFUSED,
        }
    }
}

/// Serves one node's connection to its end.
pub(super) async fn serve(connection: Connection, version: Version, services: Arc<Services>) {
    let peer = connection.remote_address();
    let mut control = None;
    let error = match open(&connection, version, &services, &mut control).await {
        Ok(Opened {
            name,
            certificate,
            hello,
            recv,
        }) => {
            let Some(send) = &mut control else { return };
            let (session, replaced) = services.fleet.connected(&name, hello, connection.clone());
            if let Some(replaced) = replaced {
                overtake(&replaced);
            }
            // It may have been revoked since it was let in.
            if let Err(error) = authenticate(&connection, &services).await {
                services.fleet.disconnected(&name, session);
                tracing::warn!(%peer, %error, "a link is refused");
                shut(&connection, close::REFUSED, &error.to_string());
                return;
            }
            let protocol = version.number();
            tracing::info!(node = %name, %peer, protocol, "a node is connected");
            let ended = Link {
                connection: &connection,
                version,
                services: &services,
                name: &name,
                certificate: &certificate,
                session,
                functions: Mutex::default(),
            }
            .run(send, recv)
            .await;
            if let Some(last_seen_ms) = services.fleet.disconnected(&name, session) {
                let seen = [(name.clone(), last_seen_ms)];
                if let Err(error) = services.store.save_last_seen(&seen).await {
                    tracing::error!(node = %name, %error, "last seen is not stored");
                }
            }
            tracing::info!(node = %name, %peer, why = %ended, "a node's link has ended");
            ended
        }
        Err(error) => {
            tracing::warn!(%peer, %error, "a link is refused");
            error
        }
    };
    if error.is_gone() {
        shut(&connection, close::DONE, "the link has ended");
        return;
    }
    let reason = error.to_string();
    // The reason goes over the control stream if there is one; it may not have been opened yet.
    if control.is_none() {
        control = timeout(LINK_OPENING, connection.accept_bi())
            .await
            .ok()
            .and_then(Result::ok)
            .map(|(send, _)| send);
    }
    if let Some(mut send) = control {
        let refuse = CoordinatorMessage::Refuse {
            reason: reason.clone(),
        };
        if frames::write(&mut send, &refuse, version).await.is_ok() {
            delivered(&mut send).await;
        }
    }
    shut(&connection, error.code(), &reason);
}

/// Ends a connection of a node that has a newer one, here or to another coordinator.
pub(crate) fn overtake(connection: &Connection) {
    let why = "a newer connection of this node took over";
    shut(connection, close::REPLACED, why);
}

/// Everything before `Welcome`. The control stream's sending half is left in `control`, so that a
/// refusal can be told on it.
async fn open(
    connection: &Connection,
    version: Version,
    services: &Services,
    control: &mut Option<SendStream>,
) -> Result<Opened, LinkError> {
    let (name, certificate) = authenticate(connection, services).await?;
    let hello = async {
        let (send, mut recv) = connection.accept_bi().await?;
        *control = Some(send);
        let first = match frames::expect(&mut recv, version).await {
            Err(WireError::Frame(FrameError::Unknown(_))) => return Err(LinkError::NoHello),
            first => first?,
        };
        match first {
            NodeMessage::Hello(hello) => Ok((hello, recv)),
            NodeMessage::Observed(_) | NodeMessage::Report(_) | NodeMessage::Logs(_) => {
                Err(LinkError::NoHello)
            }
        }
    };
    let (hello, recv) = timeout(LINK_OPENING, hello)
        .await
        .map_err(|_| LinkError::Silent)??;
    check(&hello)?;
    services
        .store
        .save_hello(&name, &hello, services.clock.now_ms())
        .await?;
    // The node may come from a coordinator that knew of more: its desired state never goes back.
    services.rollouts.refresh().await?;
    Ok(Opened {
        name,
        certificate,
        hello,
        recv,
    })
}

/// Who the node is, with the certificate that says so.
async fn authenticate(
    connection: &Connection,
    services: &Services,
) -> Result<(Name, CertificateDer<'static>), LinkError> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or(LinkError::NoCertificate)?;
    let certificate = chain.first().ok_or(LinkError::NoCertificate)?;
    let name = node_name(certificate).ok_or(LinkError::Nameless)?;
    let shown = kept(certificate).ok_or(LinkError::Nameless)?;
    match services.store.admits(&name, shown).await? {
        true => Ok((name, certificate.clone())),
        false => Err(LinkError::Unknown(name)),
    }
}

fn check(hello: &Hello) -> Result<(), LinkError> {
    let fits = |text: &str, max: usize| {
        !text.is_empty() && text.chars().count() <= max && !text.chars().any(char::is_control)
    };
    let bad = |what| Err(LinkError::BadHello(what));
    let degrees = hello.coordinates;
    let on_earth = degrees.latitude_microdegrees.unsigned_abs() <= 90_000_000
        && degrees.longitude_microdegrees.unsigned_abs() <= 180_000_000;
    let url = &hello.ingress_url;
    let http = url.starts_with("http://") || url.starts_with("https://");
    match hello {
        _ if !on_earth => bad("coordinates that are not on the earth"),
        _ if !fits(&hello.region, MAX_NODE_TEXT_CHARS) => {
            bad("a region that is empty, too long or not printable")
        }
        _ if !http || !fits(url, MAX_URL_CHARS) => {
            bad("an ingress URL that is not http:// or https://, or too long")
        }
        _ if !fits(&hello.kvm, MAX_NODE_TEXT_CHARS) => bad("no usable kind of KVM"),
        _ if !fits(&hello.software, MAX_NODE_TEXT_CHARS) => bad("no usable software version"),
        _ if i64::try_from(hello.boot_epoch).is_err() => bad("a boot epoch above 2^63"),
        _ => Ok(()),
    }
}

/// What a link begins with.
struct Opened {
    name: Name,
    certificate: CertificateDer<'static>,
    hello: Hello,
    recv: RecvStream,
}

/// A link after `Hello`.
struct Link<'a> {
    connection: &'a Connection,
    version: Version,
    services: &'a Arc<Services>,
    name: &'a Name,
    certificate: &'a CertificateDer<'static>,
    session: u64,
    /// What the node is to have: it may write the logs of these.
    functions: Mutex<BTreeSet<FunctionName>>,
}

impl Link<'_> {
    /// Runs until the link ends, and says why it did.
    async fn run(&self, send: &mut SendStream, recv: RecvStream) -> LinkError {
        tokio::select! {
            Err(error) = self.listen(recv) => error,
            Err(error) = self.speak(send) => error,
            Err(error) = self.bulk() => error,
            else => LinkError::Wire(WireError::Ended),
        }
    }

    /// What the node says.
    async fn listen(&self, mut recv: RecvStream) -> Result<(), LinkError> {
        let bounded = |n| {
            if n > MAX_OBSERVED_VERSIONS {
                Err(LinkError::TooMany(n))
            } else {
                Ok(())
            }
        };
        loop {
            let message = match frames::expect(&mut recv, self.version).await {
                Err(WireError::Frame(FrameError::Unknown(kind))) => {
                    let refused = self.services.fleet.refused(self.name, self.session);
                    // A newer node may say it again and again.
                    if refused.is_power_of_two() {
                        tracing::warn!(node = %self.name, kind, refused, "a message of the node is of a kind that is not known here");
                    }
                    continue;
                }
                message => message?,
            };
            match message {
                NodeMessage::Hello(_) => return Err(LinkError::SecondHello),
                NodeMessage::Observed(observed) => {
                    bounded(observed.versions.len())?;
                    self.services
                        .fleet
                        .observed(self.name, self.session, observed);
                }
                NodeMessage::Report(report) => {
                    bounded(report.versions.len())?;
                    self.services
                        .fleet
                        .reported(self.name, self.session, &report);
                }
                NodeMessage::Logs(batch) => self.log(batch)?,
            }
        }
    }

    /// Keeps what the node's functions wrote. What it says of others is dropped: their owners would take it for
    /// theirs.
    fn log(&self, mut batch: LogBatch) -> Result<(), LinkError> {
        let bytes = batch_bytes(&batch);
        if bytes > MAX_LOG_BATCH_COUNTED_BYTES {
            return Err(LinkError::TooMuchLog(bytes));
        }
        let all = batch.entries.len();
        {
            let functions = self.functions();
            batch
                .entries
                .retain(|entry| functions.contains(&entry.function));
        }
        let foreign = all - batch.entries.len();
        if foreign > 0 {
            tracing::debug!(node = %self.name, foreign, "log entries of functions that are not on the node are dropped");
        }
        self.services.logs.add(self.name, batch);
        Ok(())
    }

    fn functions(&self) -> MutexGuard<'_, BTreeSet<FunctionName>> {
        // It is replaced whole.
        self.functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The node's desired state as it is now, noted as what the node may write logs of; nothing if a part of it is
    /// damaged.
    fn desired(&self, target: &mut watch::Receiver<Arc<Target>>) -> Option<Configured> {
        let (region, labels) = self.services.fleet.place(self.name);
        let draining = self.services.fleet.draining(self.name);
        let target = target.borrow_and_update();
        *self.functions() = target.functions_on(self.name, &region, &labels);
        match target.desired(self.name, &region, &labels, draining) {
            Ok(desired) => Some(desired),
            Err(error) => {
                tracing::error!(node = %self.name, %error, "desired state is not sent");
                None
            }
        }
    }

    /// Says something that a node of an older version does without.
    async fn say(
        &self,
        send: &mut SendStream,
        message: &CoordinatorMessage,
    ) -> Result<(), LinkError> {
        match frames::write(send, message, self.version).await {
            Err(WireError::Frame(error @ FrameError::NotThere(_))) => {
                tracing::warn!(node = %self.name, %error, "the node is not told; it stays with what it has until it is updated");
                Ok(())
            }
            written => Ok(written?),
        }
    }

    /// Welcome, then desired state, now and whenever it changes. Only the newest counts: a slow
    /// node skips what was overtaken.
    async fn speak(&self, send: &mut SendStream) -> Result<(), LinkError> {
        let mut target = self.services.target.clone();
        // A node that was here before has logs to tell as soon as it is welcome.
        self.desired(&mut target);
        let now_ms = self.services.clock.now_ms();
        let welcome = CoordinatorMessage::Welcome {
            node: self.name.clone(),
            now_ms,
        };
        frames::write(send, &welcome, self.version).await?;
        target.mark_changed();
        // The node may come from a coordinator that knew of more, and keeps to what it is told last.
        self.services.budgets.refresh().await?;
        let mut budgets = self.services.budgets.list();
        let mut told = None;
        loop {
            // Before the functions that are under them.
            let list = budgets.borrow_and_update().clone();
            // Where there was never one, nothing is said of them. A list may change without a new revision: prices of a
            // month that comes into sight do that.
            if told.as_ref() != Some(&list) && (told.is_some() || list.revision > 0) {
                let budgets = CoordinatorMessage::Budgets((*list).clone());
                self.say(send, &budgets).await?;
                told = Some(list);
            }
            let changed = tokio::select! {
                changed = target.changed() => changed,
                changed = budgets.changed() => match changed {
                    Ok(()) => continue,
                    Err(gone) => Err(gone),
                },
            };
            if changed.is_err() {
                break;
            }
            let Some(desired) = self.desired(&mut target) else {
                continue;
            };
            let generation = desired.desired.generation;
            let message = match (desired.configurations.is_empty(), self.version) {
                (true, _) => CoordinatorMessage::Desired(desired.desired),
                (false, Version::BEFORE) => {
                    tracing::warn!(
                        node = %self.name,
                        "the node speaks a version of the protocol that has no configurations; update it"
                    );
                    CoordinatorMessage::Desired(before::desired(desired))
                }
                (false, _) => CoordinatorMessage::Configured(desired),
            };
            self.say(send, &message).await?;
            tracing::debug!(node = %self.name, generation, "desired state is sent");
        }
        // The rollouts have gone: the coordinator is ending, and closes the connection itself.
        std::future::pending().await
    }

    /// Streams for artifacts and usage.
    async fn bulk(&self) -> Result<(), LinkError> {
        let mut streams = JoinSet::new();
        loop {
            tokio::select! {
                stream = self.connection.accept_bi() => {
                    let (send, recv) = stream?;
                    let (services, name) = (self.services.clone(), self.name.clone());
                    let certificate = self.certificate.clone();
                    let version = self.version;
                    streams.spawn(bulk::serve(services, name, certificate, version, send, recv));
                }
                Some(ended) = streams.join_next() => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) if error.is_breach() => return Err(error.into()),
                    Ok(Err(WireError::Frame(FrameError::Unknown(kind)))) => {
                        let refused = self.services.fleet.refused(self.name, self.session);
                        if refused.is_power_of_two() {
                            tracing::warn!(node = %self.name, kind, refused, "a request of the node is of a kind that is not known here");
                        }
                    }
                    Ok(Err(error)) => {
                        tracing::debug!(node = %self.name, %error, "a bulk stream ended early");
                    }
                    Err(error) => {
                        tracing::error!(node = %self.name, %error, "serving a bulk stream panicked");
                    }
                }
            }
        }
    }
}
