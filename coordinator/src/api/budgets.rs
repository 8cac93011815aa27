//! Budgets.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use holm_model::api::{BudgetAlert, BudgetView, NewBudget};
use holm_model::budget::Scope;
use holm_model::ids::{FunctionName, Name};
use holm_model::token::Verb;
use serde::Deserialize;

use super::Shared;
use super::access::{Caller, told};
use super::input::{Id, JsonBody, OfFunction, QueryOf, page_rows};
use super::problem::ApiError;
use crate::limits::MAX_ALERTS_PAGE;
use crate::store::Unbudgeted;

/// The query of a request for budgets.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BudgetsQuery {
    tenant: Option<Name>,
}

pub(super) async fn list(
    State(api): Shared,
    caller: Caller,
    QueryOf(query): QueryOf<BudgetsQuery>,
) -> Result<Json<Vec<BudgetView>>, ApiError> {
    if let Some(tenant) = &query.tenant {
        caller.of_tenant(Verb::Usage, tenant)?;
    }
    let now_ms = api.clock.now_ms();
    let mut views = api.store.budgets(query.tenant.as_ref(), now_ms).await?;
    views.retain(|view| caller.grant.reaches(&view.tenant));
    if !caller.grant.reaches_all() {
        // Which nodes there are is the operator's to tell.
        for view in &mut views {
            view.nodes.clear();
        }
    }
    Ok(Json(views))
}

/// The query of a request for alerts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AlertsQuery {
    after: Option<u64>,
    limit: Option<usize>,
}

pub(super) async fn alerts(
    State(api): Shared,
    caller: Caller,
    QueryOf(query): QueryOf<AlertsQuery>,
) -> Result<Json<Vec<BudgetAlert>>, ApiError> {
    let limit = page_rows(query.limit, MAX_ALERTS_PAGE)?;
    let mut after = query.after.unwrap_or(0);
    let mut alerts = Vec::new();
    // A page of what the caller may see, however many others' are between.
    loop {
        let page = api.store.budget_alerts(after, limit).await?;
        let Some(last) = page.last() else { break };
        after = last.row;
        let own = page
            .into_iter()
            .filter(|alert| caller.grant.reaches(&alert.tenant));
        alerts.extend(own.take(limit - alerts.len()));
        if alerts.len() == limit {
            break;
        }
    }
    Ok(Json(alerts))
}

pub(super) async fn of_tenant(
    api: Shared,
    caller: Caller,
    Id(tenant): Id<Name>,
) -> Result<Json<BudgetView>, ApiError> {
    show(api, caller, whole(tenant)).await
}

pub(super) async fn of_function(
    api: Shared,
    caller: Caller,
    OfFunction(name): OfFunction,
) -> Result<Json<BudgetView>, ApiError> {
    show(api, caller, part(name)).await
}

pub(super) async fn set_of_tenant(
    api: Shared,
    caller: Caller,
    Id(tenant): Id<Name>,
    JsonBody(new): JsonBody<NewBudget>,
) -> Result<impl IntoResponse, ApiError> {
    set(api, caller, whole(tenant), new).await
}

pub(super) async fn set_of_function(
    api: Shared,
    caller: Caller,
    OfFunction(name): OfFunction,
    JsonBody(new): JsonBody<NewBudget>,
) -> Result<impl IntoResponse, ApiError> {
    set(api, caller, part(name), new).await
}

pub(super) async fn remove_of_tenant(
    api: Shared,
    Id(tenant): Id<Name>,
) -> Result<StatusCode, ApiError> {
    remove(api, whole(tenant)).await
}

pub(super) async fn remove_of_function(
    api: Shared,
    OfFunction(name): OfFunction,
) -> Result<StatusCode, ApiError> {
    remove(api, part(name)).await
}

fn whole(tenant: Name) -> Scope {
    Scope {
        tenant,
        function: None,
    }
}

fn part(FunctionName { tenant, function }: FunctionName) -> Scope {
    Scope {
        tenant,
        function: Some(function),
    }
}

async fn show(
    State(api): Shared,
    caller: Caller,
    scope: Scope,
) -> Result<Json<BudgetView>, ApiError> {
    let views = api
        .store
        .budgets(Some(&scope.tenant), api.clock.now_ms())
        .await?;
    let mut views = views.into_iter();
    let mut view = views
        .find(|view| view.function == scope.function)
        .ok_or(Unbudgeted::NoBudget(scope))?;
    if !caller.grant.reaches_all() {
        view.nodes.clear();
    }
    Ok(Json(view))
}

async fn set(
    api: Shared,
    caller: Caller,
    scope: Scope,
    new: NewBudget,
) -> Result<impl IntoResponse, ApiError> {
    let State(shared) = &api;
    shared
        .store
        .set_budget(&scope, &new, shared.clock.now_ms())
        .await?;
    shared.budgets.refresh().await?;
    let view = show(api, caller, scope).await?;
    let detail = format!("{} {} a month, {:?}", view.amount, view.currency, view.cap);
    Ok((told(detail.to_lowercase()), view))
}

async fn remove(State(api): Shared, scope: Scope) -> Result<StatusCode, ApiError> {
    api.store.remove_budget(&scope).await?;
    api.budgets.refresh().await?;
    Ok(StatusCode::NO_CONTENT)
}
