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
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), WireError> {
    let request = match within(BULK_USAGE, frames::expect(&mut recv, version)).await {
        Some(Ok(request)) => request,
        Some(Err(error @ WireError::Frame(FrameError::Unknown(_)))) => {
            let reason = format!("the coordinator cannot do this: {error}; update it");
            refuse(&mut send, reason, version).await?;
            return Err(error);
        }
        Some(Err(error)) => {
            if error.is_breach() {
                refuse(
                    &mut send,
                    format!("the request cannot be read: {error}"),
                    version,
                )
                .await?;
            }
            return Err(error);
        }
        None => {
            return refuse(
                &mut send,
                "the request took too long to arrive".into(),
                version,
            )
            .await;
        }
    };
    match request {
        BulkRequest::FetchIndex { digest } => {
            let answered =
                within(BULK_ARTIFACT, index(&services, &mut send, digest, version)).await;
            or_reset(answered, &mut send)
        }
        BulkRequest::FetchChunks { digest, places } => {
            let chunks = chunks(&services, &mut send, digest, &places, version);
            let answered = within(BULK_ARTIFACT, chunks).await;
            or_reset(answered, &mut send)
        }
        BulkRequest::Lease(asks) if asks.asks.len() > MAX_LEASE_ASKS => {
            refuse(
                &mut send,
                format!("it asks about more than {MAX_LEASE_ASKS} budgets at once"),
                version,
            )
            .await
        }
        BulkRequest::Lease(asks) => {
            let now_ms = services.clock.now_ms();
            match services.store.lease(&node, &asks, now_ms).await {
                Ok(answers) => {
                    frames::write(&mut send, &BulkAnswer::Leases(answers), version).await?;
                    delivered(&mut send).await;
                    Ok(())
                }
                Err(error) => {
                    tracing::error!(%node, %error, "budget cannot be leased");
                    refuse(&mut send, error.to_string(), version).await
                }
            }
        }
        BulkRequest::Usage(batch) => match services.ledger.add(&node, &certificate, &batch).await {
            Ok((new, known)) => {
                frames::write(&mut send, &BulkAnswer::UsageStored { new, known }, version).await?;
                delivered(&mut send).await;
                Ok(())
            }
            Err(error) => {
                tracing::error!(%node, %error, "a usage batch is refused");
                refuse(&mut send, error.to_string(), version).await
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
                    frames::write(&mut send, &BulkAnswer::Renewed { certificate_der }, version)
                        .await?;
                    delivered(&mut send).await;
                    Ok(())
                }
                Err(error) => {
                    tracing::error!(%node, %error, "a node's certificate is not renewed");
                    refuse(&mut send, error.to_string(), version).await
                }
            }
        }
    }
}

async fn index(
    services: &Services,
    send: &mut SendStream,
    digest: Digest,
    version: Version,
) -> Result<(), WireError> {
    let recipe = match services.registry.artifacts().recipe(digest).await {
        Ok(recipe) => recipe,
        Err(error) => return refuse(send, error.to_string(), version).await,
    };
    let index = recipe.index.clone();
    let bytes = index.len() as u64;
    frames::write(send, &BulkAnswer::Bytes { bytes }, version).await?;
    send.write_chunk(index).await?;
    delivered(send).await;
    Ok(())
}

async fn chunks(
    services: &Services,
    send: &mut SendStream,
    digest: Digest,
    places: &[u32],
    version: Version,
) -> Result<(), WireError> {
    let artifacts = services.registry.artifacts();
    let recipe = match artifacts.recipe(digest).await {
        Ok(recipe) => recipe,
        Err(error) => return refuse(send, error.to_string(), version).await,
    };
    // Rising, so that nothing is sent twice.
    if !places.is_sorted_by(|one, next| one < next) {
        let reason = format!("the places of the chunks of {digest} that are asked for do not rise");
        return refuse(send, reason, version).await;
    }
    let wanted = places
        .iter()
        .map(|place| recipe.chunks.get(*place as usize).cloned());
    let Some(wanted) = wanted.collect::<Option<Vec<_>>>() else {
        let reason = format!("artifact {digest} has only {} chunks", recipe.chunks.len());
        return refuse(send, reason, version).await;
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
                return refuse(send, error.to_string(), version).await;
            }
        },
    };
    frames::write(send, &BulkAnswer::Bytes { bytes }, version).await?;
    send.write_chunk(first).await?;
    for run in runs {
        match artifacts.share_run(run).await {
            Ok(bytes) => send.write_chunk(bytes).await?,
            Err(error) => {
                tracing::error!(%digest, %error, "an artifact cannot be read");
                let _ = send.reset(quinn::VarInt::from_u32(0));
                return Ok(());
            }
        }
    }
    delivered(send).await;
    Ok(())
}

async fn refuse(send: &mut SendStream, reason: String, version: Version) -> Result<(), WireError> {
    frames::write(send, &BulkAnswer::Refused { reason }, version).await?;
    delivered(send).await;
    Ok(())
}

/// What took too long is reset, so that the node does not take a part for the whole.
fn or_reset(
    answered: Option<Result<(), WireError>>,
    send: &mut SendStream,
) -> Result<(), WireError> {
    answered.unwrap_or_else(|| {
        let _ = send.reset(quinn::VarInt::from_u32(0));
        Ok(())
    })
}

async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    timeout(limit, work).await.ok()
}
