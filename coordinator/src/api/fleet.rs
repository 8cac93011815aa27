//! Nodes, join tokens, and the nearest node.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use holm_model::api::{JoinTokenAnswer, JoinTokenRequest, NodeView, RouteView};
use holm_model::ids::Name;
use serde::Deserialize;

use super::access::{self, told};
use super::{Api, Shared};
use super::catalogue::no_function;
use super::input::{Id, JsonBody, OfFunction, QueryOf};
use super::problem::ApiError;
use crate::limits::MAX_PROBES;
use crate::route::{Caller, nearest};

pub(super) async fn make_join_token(
    State(api): Shared,
    JsonBody(request): JsonBody<JoinTokenRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let (token, expires_ms) = api
        .joins
        .token(request.ttl_seconds, request.node.as_ref())
        .await?;
    let answer = JoinTokenAnswer {
        token: token.to_string(),
        expires_ms,
    };
    let told = told(request.node.map_or(String::new(), |node| node.to_string()));
    Ok((StatusCode::CREATED, told, Json(answer)))
}

/// With the versions of the tenants that the token is for.
pub(super) async fn list_nodes(
    State(api): Shared,
    caller: access::Caller,
) -> Result<Json<Vec<NodeView>>, ApiError> {
    let mut views = views(&api).await?;
    for view in &mut views {
        let versions = &mut view.versions;
        versions.retain(|seen| caller.grant.reaches(&seen.function.tenant));
    }
    Ok(Json(views))
}

async fn views(api: &Api) -> Result<Vec<NodeView>, ApiError> {
    let mut views = api.fleet.views();
    let ids: BTreeSet<_> = views
        .iter()
        .flat_map(|view| view.versions.iter().map(|seen| seen.version))
        .collect();
    let ids: Vec<_> = ids.into_iter().collect();
    let labels = api.store.labels(&ids).await?;
    for seen in views.iter_mut().flat_map(|view| &mut view.versions) {
        seen.label = labels.get(&seen.version).cloned().unwrap_or_default();
    }
    Ok(views)
}

pub(super) async fn drain(api: Shared, node: Id<Name>) -> Result<Json<NodeView>, ApiError> {
    set_drained(api, node, true).await
}

pub(super) async fn undrain(api: Shared, node: Id<Name>) -> Result<Json<NodeView>, ApiError> {
    set_drained(api, node, false).await
}

async fn set_drained(
    State(api): Shared,
    Id(node): Id<Name>,
    drained: bool,
) -> Result<Json<NodeView>, ApiError> {
    let unknown = || {
        ApiError::not_found(format!(
            "there is no node `{node}` that has been connected; `holm nodes list` shows those that have"
        ))
    };
    if !api.rollouts.drain(&node, drained).await? {
        return Err(unknown());
    }
    let view = views(&api).await?.into_iter().find(|view| view.name == node);
    view.map(Json).ok_or_else(unknown)
}

/// The query of a route request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteQuery {
    /// `LAT,LON`.
    from: Option<String>,
    /// `NODE:RTT_US,…`.
    probe: Option<String>,
}

pub(super) async fn route(
    State(api): Shared,
    OfFunction(function): OfFunction,
    QueryOf(query): QueryOf<RouteQuery>,
) -> Result<Json<RouteView>, ApiError> {
    let caller = caller(&query)?;
    if api.store.function(&function).await?.is_none() {
        return Err(no_function(&function));
    }
    Ok(Json(nearest(
        &function,
        api.fleet.route_nodes(&function),
        &caller,
    )))
}

fn caller(query: &RouteQuery) -> Result<Caller, ApiError> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let from = given(&query.from)
        .map(|from| from.parse())
        .transpose()
        .map_err(|error| ApiError::bad_request(format!("`from`: {error}")))?;
    let mut rtt_us = BTreeMap::new();
    for probe in given(&query.probe)
        .iter()
        .flat_map(|probes| probes.split(','))
    {
        let wrong = || {
            let shown: String = probe.chars().take(80).collect();
            ApiError::bad_request(format!(
                "`probe`: `{shown}` is not NODE:RTT, a node's name and microseconds"
            ))
        };
        let (node, rtt) = probe.split_once(':').ok_or_else(wrong)?;
        let node: Name = node.parse().map_err(|_| wrong())?;
        rtt_us.insert(node, rtt.parse().map_err(|_| wrong())?);
        if rtt_us.len() > MAX_PROBES {
            let detail = format!("`probe` has more than the {MAX_PROBES} nodes allowed");
            return Err(ApiError::bad_request(detail));
        }
    }
    Ok(Caller { from, rtt_us })
}
