//! Rollouts.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use holm_model::api::{
    GateView, PlannedWave, PromoteRequest, QueuedView, RollbackRequest, RolloutPlanView,
    RolloutRequest, RolloutView, RolloutsView, VersionView, WaveView,
};
use holm_model::configuration::Release;
use holm_model::ids::{FunctionName, Name, VersionId};
use holm_model::manifest::WaveRule;

use super::access::{Caller, told};
use super::catalogue::no_function;
use super::input::{Id, JsonBody, OfFunction};
use super::problem::ApiError;
use super::{Api, Shared};
use crate::limits::MAX_LISTED_ROLLOUTS;
use crate::rollout::{Begun, Finding, Foreseen, Order, Sight, Wave};
use crate::store::{Queued, RolloutRow};

pub(super) async fn start(
    State(api): Shared,
    OfFunction(function): OfFunction,
    JsonBody(request): JsonBody<RolloutRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let what = api.rollouts.start(&function, request).await?;
    begun(&api, what).await
}

/// The newest rollouts of a function, and what waits for its turn.
pub(super) async fn list(
    State(api): Shared,
    OfFunction(function): OfFunction,
) -> Result<Json<RolloutsView>, ApiError> {
    if api.store.function(&function).await?.is_none() {
        return Err(no_function(&function));
    }
    let mut rollouts = Vec::new();
    for row in api.store.rollouts(&function, MAX_LISTED_ROLLOUTS).await? {
        rollouts.push(view(&api, row).await?);
    }
    Ok(Json(RolloutsView {
        rollouts,
        queued: queued(&api, &function).await?,
    }))
}

pub(super) async fn unqueue(
    State(api): Shared,
    OfFunction(function): OfFunction,
) -> Result<impl IntoResponse, ApiError> {
    api.rollouts.unqueue(&function).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn queued(api: &Api, function: &FunctionName) -> Result<Option<QueuedView>, ApiError> {
    Ok(match api.rollouts.queued(function).await? {
        Some((queued, behind)) => Some(queued_view(api, queued, behind).await?),
        None => None,
    })
}

async fn queued_view(
    api: &Api,
    queued: Queued,
    behind: Option<u64>,
) -> Result<QueuedView, ApiError> {
    Ok(QueuedView {
        version: match queued.request.version {
            Some(id) => Some(version(api, id).await?),
            None => None,
        },
        configuration: queued.request.configuration,
        function: queued.function,
        behind,
        asked_ms: queued.asked_ms,
    })
}

/// Which nodes would move when, without anything being begun.
pub(super) async fn foresee(
    State(api): Shared,
    OfFunction(function): OfFunction,
    JsonBody(request): JsonBody<RolloutRequest>,
) -> Result<Json<RolloutPlanView>, ApiError> {
    let Foreseen {
        release,
        previous,
        policy,
        waves,
        sights,
        running,
    } = api.rollouts.foresee(&function, request).await?;
    let absent = |name: &Name| !sights.get(name).is_some_and(Sight::connected);
    let planned = |wave: Wave| PlannedWave {
        rule: rule(&wave),
        absent: wave
            .nodes
            .iter()
            .filter(|name| absent(name))
            .cloned()
            .collect(),
        bake_ms: wave.bake_ms(&policy),
        quorum: wave.quorum.map(|quorum| quorum as u64),
        skip_after_ms: wave.skip_after_ms(&policy),
        nodes: wave.nodes,
    };
    let told = told_of(&api, release, previous).await?;
    Ok(Json(RolloutPlanView {
        function,
        version: told.version,
        configuration: told.configuration,
        previous: told.previous,
        previous_configuration: told.previous_configuration,
        waves: waves.waves.into_iter().map(planned).collect(),
        empty: waves.empty.iter().map(WaveRule::to_string).collect(),
        running,
        emergency: policy.skips_gates,
        min_requests: policy.min_requests,
    }))
}

/// A wave as people wrote it; nothing of one that was planned before that was kept.
fn rule(wave: &Wave) -> String {
    let rule = wave.rule.as_ref().map(WaveRule::to_string);
    rule.unwrap_or_default()
}

pub(super) async fn roll_back(
    State(api): Shared,
    OfFunction(function): OfFunction,
    JsonBody(request): JsonBody<RollbackRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let what = api.rollouts.roll_back(&function, request).await?;
    begun(&api, what).await
}

/// For the audit log.
fn gates(emergency: bool) -> &'static str {
    match emergency {
        true => ", its gates skipped",
        false => "",
    }
}

async fn begun(api: &Api, what: Begun) -> Result<Response, ApiError> {
    let (row, superseded) = match what {
        Begun::Now(row, superseded) => (*row, superseded),
        Begun::Behind(queued, behind) => {
            let emergency = queued.request.emergency;
            let view = queued_view(api, queued, Some(behind)).await?;
            let id = view.version.as_ref().map(|to| format!(" {}", to.version));
            let (to, id) = (view.label(), id.unwrap_or_default());
            let gates = gates(emergency);
            let told = told(format!(
                "a rollout to {to}{id}{gates}, behind rollout {behind}"
            ));
            return Ok((StatusCode::ACCEPTED, told, Json(view)).into_response());
        }
    };
    let view = view(api, row).await?;
    let (id, to) = (view.id, &view.version);
    let gates = gates(view.emergency);
    let instead = superseded.map(|id| format!(", in place of rollout {id}"));
    let told = told(format!(
        "rollout {id} to {} {}{gates}{}",
        view.label(),
        to.version,
        instead.unwrap_or_default()
    ));
    Ok((StatusCode::CREATED, told, Json(view)).into_response())
}

pub(super) async fn latest(
    State(api): Shared,
    OfFunction(function): OfFunction,
) -> Result<Json<RolloutView>, ApiError> {
    if api.store.function(&function).await?.is_none() {
        return Err(no_function(&function));
    }
    let row = api.store.latest_rollout(&function).await?.ok_or_else(|| {
        ApiError::not_found(format!("there has been no rollout of `{function}` yet"))
    })?;
    Ok(Json(view(&api, row).await?))
}

pub(super) async fn get_one(
    State(api): Shared,
    caller: Caller,
    Id(id): Id<u64>,
) -> Result<Json<RolloutView>, ApiError> {
    let row = reached(&api, &caller, id).await?;
    Ok(Json(view(&api, row).await?))
}

/// The rollout, if the token reaches its tenant: another tenant's is told from none at all by nobody.
async fn reached(api: &Api, caller: &Caller, id: u64) -> Result<RolloutRow, ApiError> {
    let row = api.store.rollout(id).await?;
    let row = row.filter(|row| caller.grant.reaches(&row.function.tenant));
    row.ok_or_else(|| ApiError::not_found(format!("there is no rollout {id}")))
}

pub(super) async fn abort(
    api: Shared,
    caller: Caller,
    id: Id<u64>,
) -> Result<impl IntoResponse, ApiError> {
    order(api, caller, id, Order::Abort).await
}

pub(super) async fn pause(
    api: Shared,
    caller: Caller,
    id: Id<u64>,
) -> Result<impl IntoResponse, ApiError> {
    order(api, caller, id, Order::Pause).await
}

pub(super) async fn resume(
    api: Shared,
    caller: Caller,
    id: Id<u64>,
) -> Result<impl IntoResponse, ApiError> {
    order(api, caller, id, Order::Resume).await
}

pub(super) async fn promote(
    api: Shared,
    caller: Caller,
    id: Id<u64>,
    JsonBody(request): JsonBody<PromoteRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let PromoteRequest { wave, all } = request;
    order(api, caller, id, Order::Promote { wave, all }).await
}

async fn order(
    State(api): Shared,
    caller: Caller,
    Id(id): Id<u64>,
    order: Order,
) -> Result<impl IntoResponse, ApiError> {
    let row = reached(&api, &caller, id).await?;
    let row = api.rollouts.order(row, order).await?;
    let told = told(match order {
        Order::Promote { all: true, .. } => format!("{}, past all gates", row.function),
        _ => row.function.to_string(),
    });
    Ok((told, Json(view(&api, row).await?)))
}

async fn view(api: &Api, row: RolloutRow) -> Result<RolloutView, ApiError> {
    let queued = match row.rollout.ended() {
        true => None,
        false => queued(api, &row.function).await?,
    };
    let rollout = row.rollout;
    let findings = rollout.findings();
    let gate = |finding: Finding| GateView {
        subject: finding.subject.as_str().to_owned(),
        outcome: finding.outcome.as_str().to_owned(),
        new: finding.new.trials,
        new_bad: finding.new.bad,
        old: finding.old.trials,
        old_bad: finding.old.bad,
        against: finding.against,
        needed: finding.needed,
    };
    let waves = rollout.waves.into_iter().map(|wave| WaveView {
        rule: rule(&wave),
        bake_ms: wave.bake_ms(&rollout.policy),
        quorum: wave.quorum.map(|quorum| quorum as u64),
        nodes: wave.nodes,
        state: wave.state.as_str().to_owned(),
        invocations: wave.tally.invocations,
        errors: wave.tally.errors,
    });
    let told = told_of(api, rollout.release, rollout.previous).await?;
    Ok(RolloutView {
        id: row.id,
        function: row.function,
        version: told.version,
        configuration: told.configuration,
        previous: told.previous,
        previous_configuration: told.previous_configuration,
        state: rollout.state,
        reason: rollout.reason,
        paused: rollout.paused.is_some(),
        emergency: rollout.policy.skips_gates,
        waves: waves.collect(),
        gates: findings.into_iter().map(gate).collect(),
        queued,
        started_ms: rollout.started_ms,
        ended_ms: rollout.ended_ms,
    })
}

/// What people are told of a release and the one before.
struct ToldOf {
    version: VersionView,
    configuration: Option<u64>,
    previous: Option<VersionView>,
    previous_configuration: Option<u64>,
}

async fn told_of(
    api: &Api,
    release: Release,
    previous: Option<Release>,
) -> Result<ToldOf, ApiError> {
    let configurations: Vec<_> = [Some(release), previous]
        .into_iter()
        .flatten()
        .filter_map(|release| release.configuration)
        .collect();
    let numbers = api.store.configuration_numbers(&configurations).await?;
    let number = |release: Release| numbers.get(&release.configuration?).copied();
    Ok(ToldOf {
        version: version(api, release.version).await?,
        configuration: number(release),
        previous: match previous {
            Some(previous) => Some(version(api, previous.version).await?),
            None => None,
        },
        previous_configuration: previous.and_then(number),
    })
}

async fn version(api: &Api, id: VersionId) -> Result<VersionView, ApiError> {
    api.store
        .version_view(id)
        .await?
        .ok_or_else(|| ApiError::internal(format!("a rollout names version {id}, which is gone")))
}
