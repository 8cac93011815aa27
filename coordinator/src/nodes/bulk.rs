//! Bulk streams: artifacts out, usage in, certificates renewed. One request and one answer each.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use holm_model::codec::FrameError;
use holm_model::control::{BulkAnswer, BulkRequest};
use holm_model::ids::{Digest, Name};
use holm_model::limits::MAX_LEASE_ASKS;
use holm_model::protocol::Version;
use quinn::{RecvStream, SendStream};
use rustls_pki_types::CertificateDer;
use tokio::time::timeout;

use super::frames::{self, WireError};
use super::server::{Services, delivered};
use crate::ca::kept;
use crate::limits::{BULK_ARTIFACT, BULK_USAGE};
use crate::registry::runs;

/// Serves one bulk stream. An error that is the peer's breach costs it the link.
pub(super) async fn serve(
    services: Arc<Services>,
    node: Name,
    certificate: CertificateDer<'static>,
    version: Version,
    send: SendStream,
    mut recv: RecvStream,
) -> Result<(), WireError> {
    let mut reply = Reply { send, version };
    let request = match within(BULK_USAGE, frames::expect(&mut recv, version)).await {
        Some(Ok(request)) => request,
        Some(Err(error @ WireError::Frame(FrameError::Unknown(_)))) => {
            let reason = format!("the coordinator cannot do this: {error}; update it");
            reply.refuse(reason).await?;
            return Err(error);
        }
        Some(Err(error)) => {
            if error.is_breach() {
                let reason = format!("the request cannot be read: {error}");
                reply.refuse(reason).await?;
            }
            return Err(error);
        }
        None => {
            let reason = "the request took too long to arrive";
            return reply.refuse(reason.into()).await;
        }
    };
    match request {
        BulkRequest::FetchIndex { digest } => {
            let answered = within(BULK_ARTIFACT, index(&services, &mut reply, digest)).await;
            reply.or_reset(answered)
        }
        BulkRequest::FetchChunks { digest, places } => {
            let chunks = chunks(&services, &mut reply, digest, &places);
            let answered = within(BULK_ARTIFACT, chunks).await;
            reply.or_reset(answered)
        }
        BulkRequest::Lease(asks) if asks.asks.len() > MAX_LEASE_ASKS => {
            let reason = format!("it asks about more than {MAX_LEASE_ASKS} budgets at once");
            reply.refuse(reason).await
        }
        BulkRequest::Lease(asks) => {
            let now_ms = services.clock.now_ms();
            match services.store.lease(&node, &asks, now_ms).await {
                Ok(answers) => reply.answer(BulkAnswer::Leases(answers)).await,
                Err(error) => {
                    tracing::error!(%node, %error, "budget cannot be leased");
                    reply.refuse(error.to_string()).await
                }
            }
        }
        BulkRequest::Usage(batch) => match services.ledger.add(&node, &certificate, &batch).await {
            Ok((new, known)) => reply.answer(BulkAnswer::UsageStored { new, known }).await,
            Err(error) => {
                tracing::error!(%node, %error, "a usage batch is refused");
                reply.refuse(error.to_string()).await
            }
        },
        BulkRequest::Renew { csr_der } => {
            let renewed = services.joins.renew(&node, &certificate, &csr_der);
            match renewed.await {
                Ok(renewed) => {
                    tracing::info!(%node, "a node's certificate is renewed");
                    if let Some(kept) = kept(&renewed) {
                        services.fleet.renewed(&node, kept.until_ms);
                    }
                    let certificate_der = renewed.to_vec();
                    reply.answer(BulkAnswer::Renewed { certificate_der }).await
                }
                Err(error) => {
                    tracing::error!(%node, %error, "a node's certificate is not renewed");
                    reply.refuse(error.to_string()).await
                }
            }
        }
    }
}

async fn index(services: &Services, reply: &mut Reply, digest: Digest) -> Result<(), WireError> {
    let recipe = match services.registry.artifacts().recipe(digest).await {
        Ok(recipe) => recipe,
        Err(error) => return reply.refuse(error.to_string()).await,
    };
    let index = recipe.index.clone();
    let bytes = index.len() as u64;
    reply.say(BulkAnswer::Bytes { bytes }).await?;
    reply.send.write_chunk(index).await?;
    delivered(&mut reply.send).await;
    Ok(())
}

async fn chunks(
    services: &Services,
    reply: &mut Reply,
    digest: Digest,
    places: &[u32],
) -> Result<(), WireError> {
    let artifacts = services.registry.artifacts();
    let recipe = match artifacts.recipe(digest).await {
        Ok(recipe) => recipe,
        Err(error) => return reply.refuse(error.to_string()).await,
    };
    // Rising, so that nothing is sent twice.
    if !places.is_sorted_by(|one, next| one < next) {
        let reason = format!("the places of the chunks of {digest} that are asked for do not rise");
        return reply.refuse(reason).await;
    }
    let wanted = places
        .iter()
        .map(|place| recipe.chunks.get(*place as usize).cloned());
    let Some(wanted) = wanted.collect::<Option<Vec<_>>>() else {
        let reason = format!("artifact {digest} has only {} chunks", recipe.chunks.len());
        return reply.refuse(reason).await;
    };
    let bytes = wanted
        .iter()
        .map(|located| u64::from(located.chunk.bytes))
        .sum();
    let mut runs = runs(&wanted);
    // Before anything is promised: a node gives up what it is refused, and asks on for what breaks off.
    let first = match runs.next() {
        None => Bytes::new(),
        Some(run) => match artifacts.share_run(run).await {
            Ok(first) => first,
            Err(error) => {
                tracing::error!(%digest, %error, "an artifact cannot be read");
                return reply.refuse(error.to_string()).await;
            }
        },
    };
    reply.say(BulkAnswer::Bytes { bytes }).await?;
    reply.send.write_chunk(first).await?;
    for run in runs {
        match artifacts.share_run(run).await {
            Ok(bytes) => reply.send.write_chunk(bytes).await?,
            Err(error) => {
                tracing::error!(%digest, %error, "an artifact cannot be read");
                reply.reset();
                return Ok(());
            }
        }
    }
    delivered(&mut reply.send).await;
    Ok(())
}

/// Where the answer goes, and in which version of the protocol.
struct Reply {
    send: SendStream,
    version: Version,
}

impl Reply {
    /// Says something, after which more comes.
    async fn say(&mut self, answer: BulkAnswer) -> Result<(), WireError> {
        frames::write(&mut self.send, &answer, self.version).await
    }

    /// Says all there is to say.
    async fn answer(&mut self, answer: BulkAnswer) -> Result<(), WireError> {
        self.say(answer).await?;
        delivered(&mut self.send).await;
        Ok(())
    }

    async fn refuse(&mut self, reason: String) -> Result<(), WireError> {
        self.answer(BulkAnswer::Refused { reason }).await
    }

    /// What was said so far is not all.
    fn reset(&mut self) {
        // One that is reset or ended already stays so.
        let _ = self.send.reset(quinn::VarInt::from_u32(0));
    }

    /// What took too long is reset, so that the node does not take a part for the whole.
    fn or_reset(&mut self, answered: Option<Result<(), WireError>>) -> Result<(), WireError> {
        answered.unwrap_or_else(|| {
            self.reset();
            Ok(())
        })
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    timeout(limit, work).await.ok()
}
