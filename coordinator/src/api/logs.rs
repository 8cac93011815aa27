//! What functions wrote.

use axum::Json;
use axum::extract::State;
use holm_model::api::LogPage;
use holm_model::ids::RequestId;
use serde::Deserialize;

use super::Shared;
use super::catalogue::no_function;
use super::input::{OfFunction, QueryOf, page_rows};
use super::problem::ApiError;
use crate::limits::DEFAULT_PAGE_ROWS;

/// The query of a request for logs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogsQuery {
    /// Only of this request.
    request: Option<String>,
    /// Only what came later than the entry with this sequence; without it the last entries.
    after: Option<u64>,
    limit: Option<usize>,
}

pub(super) async fn page(
    State(api): Shared,
    OfFunction(function): OfFunction,
    QueryOf(query): QueryOf<LogsQuery>,
) -> Result<Json<LogPage>, ApiError> {
    let request: Option<RequestId> = query
        .request
        .map(|text| text.parse())
        .transpose()
        .map_err(|error| ApiError::bad_request(format!("`request`: {error}")))?;
    let limit = page_rows(query.limit, DEFAULT_PAGE_ROWS)?;
    if api.store.function(&function).await?.is_none() {
        return Err(no_function(&function));
    }
    Ok(Json(api.logs.page(&function, request, query.after, limit)))
}
