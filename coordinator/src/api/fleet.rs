//! Nodes, join tokens, and the nearest node.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use holm_model::api::{JoinTokenAnswer, JoinTokenRequest, LabelsRequest, NodeView, RouteView};
use holm_model::ids::Name;
use holm_model::limits::{MAX_LABEL_BYTES, MAX_LABELS};
use holm_model::place::is_label;
use serde::Deserialize;

use super::access::{self, told};
use super::catalogue::no_function;
use super::input::{Id, JsonBody, OfFunction, QueryOf};
use super::problem::ApiError;
use super::{Api, Shared};
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
    // Also those that have joined since, and were not connected yet.
    api.rollouts.refresh_nodes().await?;
    let mut views = api.fleet.views();
    for view in &mut views {
        let versions = &mut view.versions;
        versions.retain(|seen| caller.grant.reaches(&seen.function.tenant));
    }
    Ok(Json(labelled(&api, views).await?))
}

/// With the labels of their versions.
async fn labelled(api: &Api, mut views: Vec<NodeView>) -> Result<Vec<NodeView>, ApiError> {
    let ids: BTreeSet<_> = views
        .iter()
        .flat_map(|view| view.versions.iter().map(|seen| seen.version))
        .collect();
    let ids: Vec<_> = ids.into_iter().collect();
    let labels = api.store.labels(&ids).await?;
    let releases = api.store.releases(&ids).await?;
    for seen in views.iter_mut().flat_map(|view| &mut view.versions) {
        // Nodes tell of releases, which go by their version's id only where they have no configuration.
        match releases.get(&seen.version) {
            Some(release) => {
                seen.version = release.version;
                seen.label.clone_from(&release.label);
                seen.configuration = Some(release.number);
            }
            None => seen.label = labels.get(&seen.version).cloned().unwrap_or_default(),
        }
    }
    Ok(views)
}

pub(super) async fn drain(
    State(api): Shared,
    Id(node): Id<Name>,
) -> Result<Json<NodeView>, ApiError> {
    let known = api.rollouts.drain(&node, true).await?;
    changed(&api, &node, known).await
}

pub(super) async fn undrain(
    State(api): Shared,
    Id(node): Id<Name>,
) -> Result<Json<NodeView>, ApiError> {
    let known = api.rollouts.drain(&node, false).await?;
    changed(&api, &node, known).await
}

pub(super) async fn cordon(
    State(api): Shared,
    Id(node): Id<Name>,
) -> Result<Json<NodeView>, ApiError> {
    let known = api.rollouts.cordon(&node, true).await?;
    changed(&api, &node, known).await
}

pub(super) async fn uncordon(
    State(api): Shared,
    Id(node): Id<Name>,
) -> Result<Json<NodeView>, ApiError> {
    let known = api.rollouts.cordon(&node, false).await?;
    changed(&api, &node, known).await
}

pub(super) async fn set_labels(
    State(api): Shared,
    Id(node): Id<Name>,
    JsonBody(request): JsonBody<LabelsRequest>,
) -> Result<impl IntoResponse, ApiError> {
    for (key, value) in &request.labels {
        if !is_label(key, value.as_deref().unwrap_or_default()) {
            let shown: String = key.chars().take(80).collect();
            return Err(ApiError::bad_request(format!(
                "`labels`: `{shown}` and its value are not up to {MAX_LABEL_BYTES} letters, digits, \
                 `.`, `_`, `-` and `/` each"
            )));
        }
    }
    if request.labels.len() > MAX_LABELS {
        let detail = format!("`labels`: more than the {MAX_LABELS} allowed");
        return Err(ApiError::bad_request(detail));
    }
    let known = api.rollouts.label(&node, &request.labels).await?;
    let one = |(key, value): (&String, &Option<String>)| match value {
        Some(value) => format!("{key}={value}"),
        None => format!("{key}-"),
    };
    let labels: Vec<String> = request.labels.iter().map(one).collect();
    Ok((told(labels.join(" ")), changed(&api, &node, known).await?))
}

pub(super) async fn revoke(State(api): Shared, Id(node): Id<Name>) -> Result<StatusCode, ApiError> {
    match api.rollouts.revoke(&node).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(unknown(&node)),
    }
}

async fn changed(api: &Api, node: &Name, known: bool) -> Result<Json<NodeView>, ApiError> {
    if !known {
        return Err(unknown(node));
    }
    let mut views = api.fleet.views();
    views.retain(|view| view.name == *node);
    let view = labelled(api, views).await?.pop();
    view.map(Json).ok_or_else(|| unknown(node))
}

fn unknown(node: &Name) -> ApiError {
    ApiError::not_found(format!(
        "there is no node `{node}`; `holm nodes list` shows those that have joined"
    ))
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
