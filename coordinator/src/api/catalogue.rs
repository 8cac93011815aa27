//! Tenants, artifacts, functions and versions.

use axum::Json;
use axum::body::{Body, HttpBody as _};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use holm_model::api::{FunctionView, PublishRequest, TenantRequest, TenantView};
use holm_model::artifact::PublisherKey;
use holm_model::ids::{Digest, Name};
use holm_model::limits::MAX_ARTIFACT_BYTES;
use http_body_util::BodyExt as _;

use super::access::{Caller, told};
use super::input::{Id, JsonBody, OfFunction};
use super::problem::ApiError;
use super::{Api, Shared};
use crate::registry::{ArtifactError, Incoming};
use crate::store::FunctionRow;

pub(super) async fn put_tenant(
    State(api): Shared,
    Id(tenant): Id<Name>,
    JsonBody(request): JsonBody<TenantRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let key = |text: &String| -> Result<PublisherKey, ApiError> {
        text.parse()
            .map_err(|error| ApiError::bad_request(format!("`publisher_keys`: {error}")))
    };
    let keys: Vec<_> = request
        .publisher_keys
        .iter()
        .map(key)
        .collect::<Result<_, _>>()?;
    let told = told(format!("keys: {}", request.publisher_keys.join(" ")));
    let keys = api.registry.add_to_tenant(&tenant, &keys).await?;
    api.rollouts.keys_changed(&tenant, &keys).await?;
    let publisher_keys = keys.iter().map(|key| key.to_string()).collect();
    let view = TenantView {
        name: tenant,
        publisher_keys,
    };
    Ok((told, Json(view)))
}

pub(super) async fn has_artifact(
    State(api): Shared,
    Id(digest): Id<Digest>,
) -> Result<StatusCode, ApiError> {
    match api.registry.artifacts().has(digest).await? {
        true => Ok(StatusCode::OK),
        false => Err(ApiError::not_found(format!(
            "there is no artifact {digest} here"
        ))),
    }
}

pub(super) async fn put_artifact(
    State(api): Shared,
    Id(digest): Id<Digest>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    // What is known to be too large need not be sent.
    if body.size_hint().lower() > MAX_ARTIFACT_BYTES {
        return Err(ArtifactError::TooLarge.into());
    }
    let _turn = api
        .uploads
        .acquire()
        .await
        .expect("the semaphore is never closed");
    let mut incoming = api.registry.artifacts().receive(digest).await?;
    receive(&mut incoming, body).await?;
    match incoming.finish(api.registry.artifacts()).await? {
        true => Ok(StatusCode::CREATED),
        false => Ok(StatusCode::OK),
    }
}

async fn receive(incoming: &mut Incoming, mut body: Body) -> Result<(), ApiError> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            ApiError::bad_request(format!("the artifact's body broke off: {error}"))
        })?;
        if let Some(bytes) = frame.data_ref() {
            incoming.write(bytes).await?;
        }
    }
    Ok(())
}

pub(super) async fn publish(
    State(api): Shared,
    OfFunction(function): OfFunction,
    JsonBody(request): JsonBody<PublishRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let signed = request
        .to_signed()
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    let (view, new) = api.registry.publish(&function, &signed).await?;
    let status = if new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let told = told(format!("{} {}", view.label, view.version));
    Ok((status, told, Json(view)))
}

/// Those of the tenants that the token is for.
pub(super) async fn list_functions(
    State(api): Shared,
    caller: Caller,
) -> Result<Json<Vec<FunctionView>>, ApiError> {
    let mut views = Vec::new();
    let rows = api.store.functions().await?.into_iter();
    for row in rows.filter(|row| caller.grant.reaches(&row.name.tenant)) {
        views.push(function_view(&api, row).await?);
    }
    Ok(Json(views))
}

pub(super) async fn get_function(
    State(api): Shared,
    OfFunction(function): OfFunction,
) -> Result<Json<FunctionView>, ApiError> {
    let row = api.store.function(&function).await?;
    let row = row.ok_or_else(|| no_function(&function))?;
    Ok(Json(function_view(&api, row).await?))
}

pub(super) fn no_function(function: &impl std::fmt::Display) -> ApiError {
    ApiError::not_found(format!(
        "there is no function `{function}`; deploy it first, with `holm deploy`"
    ))
}

async fn function_view(api: &Api, row: FunctionRow) -> Result<FunctionView, ApiError> {
    let versions = api.store.versions_of(&row.name).await?;
    let current = match row.current {
        Some(id) => api.store.version_view(id).await?,
        None => None,
    };
    Ok(FunctionView {
        name: row.name,
        current,
        versions,
    })
}
