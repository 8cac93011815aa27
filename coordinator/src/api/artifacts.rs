//! Artifacts, whole or by the chunks that are missing.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use holm_model::api::MissingChunks;
use holm_model::chunks::{
    Frames, Index, MAX_CHUNK_BYTES, MAX_FRAMES_BYTES, MAX_INDEX_BYTES, MIN_CHUNK_BYTES,
};
use holm_model::ids::Digest;
use holm_model::limits::MAX_ARTIFACT_BYTES;
use http_body_util::{BodyExt as _, Limited};
use tokio::sync::SemaphorePermit;

use super::access::told;
use super::catalogue::stored_version;
use super::input::{Id, OfVersion, QueryOf};
use super::problem::ApiError;
use super::{Api, Shared};
use crate::limits::{BULK_ARTIFACT, UPLOAD_TURN};
use crate::registry::{ArtifactError, Assembled, Incoming, Whole, runs};

pub(super) async fn has(
    State(api): Shared,
    Id(digest): Id<Digest>,
) -> Result<StatusCode, ApiError> {
    match api.registry.artifacts().has_for_deploy(digest).await? {
        true => Ok(StatusCode::OK),
        false => Err(ApiError::not_found(format!(
            "there is no artifact {digest} here"
        ))),
    }
}

pub(super) async fn put(
    State(api): Shared,
    Id(digest): Id<Digest>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let _turn = turn(&api, body.size_hint().lower(), MAX_ARTIFACT_BYTES).await?;
    let mut whole = api.registry.artifacts().receive_whole();
    let received = in_time(receive(&mut whole, body)).await;
    if received.is_err() {
        whole.keep().await?;
    }
    received?;
    Ok(here(whole.finish(digest).await?))
}

/// What is missing of an artifact; if nothing is, it is here from now on.
pub(super) async fn put_index(
    State(api): Shared,
    Id(digest): Id<Digest>,
    body: Body,
) -> Result<Response, ApiError> {
    let _turn = turn(&api, body.size_hint().lower(), MAX_INDEX_BYTES as u64).await?;
    let read = Limited::new(body, MAX_INDEX_BYTES).collect();
    let bytes = in_time(async { read.await.map_err(broke_off) })
        .await?
        .to_bytes();
    let index = Index::parse(&bytes).map_err(ArtifactError::BadIndex)?;
    let assembled = async { Ok(api.registry.assemble(digest, &index).await?) };
    match in_time(assembled).await? {
        Assembled::Here { new } => Ok(here(new).into_response()),
        Assembled::Missing(missing) => {
            let what = format!(
                "{} of {} chunks are missing",
                missing.len(),
                index.chunks().len()
            );
            let answer = Json(MissingChunks { missing });
            Ok((StatusCode::ACCEPTED, told(what), answer).into_response())
        }
    }
}

/// Takes chunks of whatever artifact. Those that arrive before the caller goes away are kept.
pub(super) async fn put_chunks(
    State(api): Shared,
    Id(_): Id<Digest>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let _turn = turn(&api, body.size_hint().lower(), MAX_FRAMES_BYTES).await?;
    let mut incoming = api.registry.artifacts().receive();
    let received = in_time(receive_chunks(&mut incoming, body)).await;
    incoming.keep().await?;
    received.map(|()| StatusCode::NO_CONTENT)
}

/// Some of a version's artifact, from a place on; nothing at its end.
pub(super) async fn of_version(
    State(api): Shared,
    OfVersion { function, version }: OfVersion,
    QueryOf(Part { from }): QueryOf<Part>,
) -> Result<Bytes, ApiError> {
    let found = stored_version(&api, &function, version).await?;
    let artifacts = api.registry.artifacts();
    let chunks = artifacts.chunks(found.statement.artifact).await?;
    let (mut first, mut at) = (0, 0);
    for chunk in &chunks {
        let end = at + u64::from(chunk.chunk.bytes);
        if end > from {
            break;
        }
        (first, at) = (first + 1, end);
    }
    let Some(run) = runs(&chunks[first..]).next() else {
        return Ok(Bytes::new());
    };
    let bytes = artifacts.share_run(run).await?;
    let skip = usize::try_from(from - at).unwrap_or(usize::MAX);
    Ok(bytes.slice(skip.min(bytes.len())..))
}

/// From where on an artifact is asked for.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Part {
    #[serde(default)]
    from: u64,
}

fn here(new: bool) -> StatusCode {
    match new {
        true => StatusCode::CREATED,
        false => StatusCode::OK,
    }
}

/// Waits for a turn to upload. What is known to be too large need not be sent.
async fn turn<'a>(
    api: &'a Arc<Api>,
    announced: u64,
    most: u64,
) -> Result<SemaphorePermit<'a>, ApiError> {
    if announced > most {
        return Err(ArtifactError::TooLarge.into());
    }
    match tokio::time::timeout(UPLOAD_TURN, api.uploads.acquire()).await {
        Ok(Ok(turn)) => Ok(turn),
        _ => Err(ApiError::busy(
            "as many artifacts as can be are being uploaded; try again in a minute",
        )),
    }
}

async fn in_time<T>(receive: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    match tokio::time::timeout(BULK_ARTIFACT, receive).await {
        Ok(received) => received,
        Err(_) => {
            let most = BULK_ARTIFACT.as_secs();
            let detail = format!("the artifact was not here within {most} s");
            Err(ApiError::bad_request(detail))
        }
    }
}

async fn receive(whole: &mut Whole, mut body: Body) -> Result<(), ApiError> {
    while let Some(frame) = body.frame().await {
        if let Some(bytes) = frame.map_err(broke_off)?.data_ref() {
            whole.write(bytes).await?;
        }
    }
    Ok(())
}

async fn receive_chunks(incoming: &mut Incoming, mut body: Body) -> Result<(), ApiError> {
    let bad = |error: &dyn std::fmt::Display| ApiError::bad_request(format!("the chunks: {error}"));
    let (mut frames, mut left) = (Frames::default(), MAX_FRAMES_BYTES);
    let mut ended = false;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(broke_off)?;
        let Some(bytes) = frame.data_ref() else {
            continue;
        };
        left = left
            .checked_sub(bytes.len() as u64)
            .ok_or(ArtifactError::TooLarge)?;
        // However much the body has at once, one chunk after the other is copied.
        for bytes in bytes.chunks(MAX_CHUNK_BYTES) {
            let mut complete = Vec::new();
            let read = frames.push(bytes, |chunk| complete.push(chunk.to_vec()));
            for chunk in complete {
                // So there are never more of them than an artifact has.
                if std::mem::replace(&mut ended, chunk.len() < MIN_CHUNK_BYTES) {
                    return Err(bad(&"only the last one may be shorter than chunks are"));
                }
                incoming.add(&chunk).await?;
            }
            read.map_err(|error| bad(&error))?;
        }
    }
    match frames.is_amid() {
        true => Err(bad(&"the last one is cut short")),
        false => Ok(()),
    }
}

fn broke_off(error: impl std::fmt::Display) -> ApiError {
    ApiError::bad_request(format!("the artifact's body broke off: {error}"))
}
