//! API tokens, and the audit log.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use holm_model::api::{AuditCheck, AuditPage, OwnToken, TokenAnswer, TokenRequest, TokenView};
use holm_model::ids::Digest;
use serde::Deserialize;

use super::Shared;
use super::access::{Caller, told};
use super::input::{Id, JsonBody, QueryOf, page_rows};
use super::problem::ApiError;
use crate::ca::{TokenWish, view};
use crate::limits::DEFAULT_PAGE_ROWS;

pub(super) async fn own(caller: Caller) -> Json<OwnToken> {
    Json(OwnToken {
        name: caller.name,
        verbs: caller.grant.verbs,
        tenants: caller.grant.tenants,
        expires_ms: caller.grant.before_ms,
    })
}

pub(super) async fn list(State(api): Shared) -> Result<Json<Vec<TokenView>>, ApiError> {
    Ok(Json(api.tokens.list().await?))
}

pub(super) async fn create(
    State(api): Shared,
    caller: Caller,
    JsonBody(request): JsonBody<TokenRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let wish = TokenWish {
        by: &caller.name,
        // Nobody gives what he has not got: neither more nor for longer.
        within: &caller.grant,
        request: &request,
    };
    let (token, row) = api.tokens.create(wish).await?;
    let grant = token.grant().unwrap_or_default();
    let told = told(format!("{}: {grant}", row.name));
    let answer = TokenAnswer {
        token: token.to_string(),
        view: view(&row),
    };
    Ok((StatusCode::CREATED, told, Json(answer)))
}

pub(super) async fn revoke(
    State(api): Shared,
    Id(token): Id<String>,
) -> Result<Json<TokenView>, ApiError> {
    let revoked = api.tokens.revoke(&token).await?;
    let revoked = revoked.ok_or_else(|| {
        ApiError::not_found(format!(
            "there is no valid token `{token}`; `holm tokens list` shows those that there are"
        ))
    })?;
    Ok(Json(revoked))
}

/// The query of a request for the audit log.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditQuery {
    /// Milliseconds since 1970 UTC.
    since: Option<u64>,
    after: Option<u64>,
    limit: Option<usize>,
}

pub(super) async fn audit(
    State(api): Shared,
    QueryOf(query): QueryOf<AuditQuery>,
) -> Result<Json<AuditPage>, ApiError> {
    let limit = page_rows(query.limit, DEFAULT_PAGE_ROWS)?;
    let (since, after) = (query.since.unwrap_or(0), query.after.unwrap_or(0));
    Ok(Json(api.store.audit_entries(since, after, limit).await?))
}

/// The query of a request to check it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CheckQuery {
    /// A hash that was the newest once.
    head: Option<Digest>,
}

pub(super) async fn check(
    State(api): Shared,
    QueryOf(query): QueryOf<CheckQuery>,
) -> Result<Json<AuditCheck>, ApiError> {
    Ok(Json(api.store.check_audit_log(query.head).await?))
}
