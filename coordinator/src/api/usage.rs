//! Usage and its audit.

use axum::Json;
use axum::extract::State;
use holm_model::api::{AuditView, UsageRecordsPage, UsageView};
use holm_model::ids::{FunctionName, Name};
use holm_model::limits::MAX_USAGE_BATCH;
use serde::Deserialize;

use super::Shared;
use super::input::QueryOf;
use super::problem::ApiError;
use crate::limits::DEFAULT_PAGE_ROWS;
use crate::store::{UsageFilter, UsageGroup};

/// The query of a usage request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UsageQuery {
    tenant: Option<String>,
    /// A name, or `tenant/function`.
    function: Option<String>,
    /// `function` (default), `version` or `node`.
    by: Option<String>,
}

pub(super) async fn sums(
    State(api): Shared,
    QueryOf(query): QueryOf<UsageQuery>,
) -> Result<Json<Vec<UsageView>>, ApiError> {
    let (filter, group) = parse(&query)?;
    Ok(Json(api.ledger.usage(&filter, group).await?))
}

pub(super) async fn audit(State(api): Shared) -> Result<Json<AuditView>, ApiError> {
    Ok(Json(api.ledger.audit().await?))
}

/// The query of a request for rows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RecordsQuery {
    /// `tenant/function`.
    function: Option<String>,
    after: Option<u64>,
    limit: Option<usize>,
}

pub(super) async fn records(
    State(api): Shared,
    QueryOf(query): QueryOf<RecordsQuery>,
) -> Result<Json<UsageRecordsPage>, ApiError> {
    let function: Option<FunctionName> = query
        .function
        .filter(|text| !text.is_empty())
        .map(|text| text.parse())
        .transpose()
        .map_err(|error| ApiError::bad_request(format!("`function`: {error}")))?;
    let limit = query.limit.unwrap_or(DEFAULT_PAGE_ROWS);
    if !(1..=MAX_USAGE_BATCH).contains(&limit) {
        let detail = format!("`limit`: {limit} is not 1 to {MAX_USAGE_BATCH}");
        return Err(ApiError::bad_request(detail));
    }
    let after = query.after.unwrap_or(0);
    Ok(Json(
        api.ledger.records(function.as_ref(), after, limit).await?,
    ))
}

fn parse(query: &UsageQuery) -> Result<(UsageFilter, UsageGroup), ApiError> {
    let bad =
        |what, error: &dyn std::fmt::Display| ApiError::bad_request(format!("`{what}`: {error}"));
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let mut filter = UsageFilter::default();
    if let Some(tenant) = given(&query.tenant) {
        filter.tenant = Some(tenant.parse().map_err(|error| bad("tenant", &error))?);
    }
    match given(&query.function) {
        Some(both) if both.contains('/') => {
            let both: FunctionName = both.parse().map_err(|error| bad("function", &error))?;
            if filter
                .tenant
                .as_ref()
                .is_some_and(|tenant| *tenant != both.tenant)
            {
                return Err(bad("function", &"it is of another tenant than `tenant`"));
            }
            filter.tenant = Some(both.tenant);
            filter.function = Some(both.function);
        }
        Some(one) => {
            let name: Name = one.parse().map_err(|error| bad("function", &error))?;
            filter.function = Some(name);
        }
        None => {}
    }
    let group = match given(&query.by).as_deref() {
        None | Some("function") => UsageGroup::Function,
        Some("version") => UsageGroup::Version,
        Some("node") => UsageGroup::Node,
        Some(_) => return Err(bad("by", &"it is not function, version or node")),
    };
    Ok((filter, group))
}
