//! Tenants, functions and versions.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use holm_model::api::{
    FunctionView, KeptView, PruneRequest, PruneView, PublishRequest, RevokeKeyRequest,
    RevokedKeyView, TagRequest, TenantRequest, TenantView,
};
use holm_model::artifact::PublisherKey;
use holm_model::ids::{Digest, FunctionName, Name, VersionId};
use holm_model::token::Verb;

use super::access::{Caller, told};
use super::input::{Id, JsonBody, OfFunction, OfVersion, Tagged};
use super::problem::ApiError;
use super::{Api, Shared};
use crate::limits::{MAX_KEY_GRACE_SECONDS, MAX_PUBLISHER_KEYS};
use crate::rollout::Version;
use crate::store::{Fate, FunctionRow, KeyChange, KeyRow, KeysOutcome, PruneWish};

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
    let outcome = api
        .rollouts
        .change_keys(&tenant, &KeyChange::Add(keys))
        .await?;
    let mut new: Vec<String> = match &outcome {
        KeysOutcome::Are { added, .. } => added.iter().map(ToString::to_string).collect(),
        _ => Vec::new(),
    };
    new.sort_unstable();
    let keys = new.join(" ");
    // The log cuts a long text; by their number and digest what it leaves out can be told.
    let digest = Digest::of(keys.as_bytes());
    let told = told(format!("{} new keys, {digest}: {keys}", new.len()));
    Ok((told, Json(keys_view(&api, tenant, outcome)?)))
}

pub(super) async fn get_tenant(
    State(api): Shared,
    Id(tenant): Id<Name>,
) -> Result<Json<TenantView>, ApiError> {
    let rows = api.store.tenant_keys(&tenant).await?;
    let rows = rows.ok_or_else(|| ApiError::not_found(format!("there is no tenant `{tenant}`")))?;
    Ok(Json(tenant_view(&api, tenant, &rows)))
}

pub(super) async fn revoke_key(
    State(api): Shared,
    Id(tenant): Id<Name>,
    JsonBody(request): JsonBody<RevokeKeyRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let bad = |error: &dyn std::fmt::Display| ApiError::bad_request(format!("`key`: {error}"));
    let key = request.key.parse().map_err(|error| bad(&error))?;
    let after = request.after_seconds.unwrap_or(0);
    if after > MAX_KEY_GRACE_SECONDS {
        let most = MAX_KEY_GRACE_SECONDS;
        let detail = format!("`after_seconds`: {after} is more than the {most} allowed");
        return Err(ApiError::bad_request(detail));
    }
    let from_ms = api.clock.now_ms() + after * 1000;
    let change = KeyChange::Revoke { key, from_ms };
    let outcome = api.rollouts.change_keys(&tenant, &change).await?;
    let told = told(format!("key {key}, in {after} s"));
    Ok((told, Json(keys_view(&api, tenant, outcome)?)))
}

fn keys_view(api: &Api, tenant: Name, outcome: KeysOutcome) -> Result<TenantView, ApiError> {
    const KEYS: &str = "The tenant's keys stay as they are";
    match outcome {
        KeysOutcome::Are { rows, .. } => Ok(tenant_view(api, tenant, &rows)),
        KeysOutcome::TooMany => Err(ApiError::unprocessable(
            "too-many-keys",
            KEYS,
            format!(
                "tenant `{tenant}` would have more than the {MAX_PUBLISHER_KEYS} publisher keys \
                 allowed; revoke some"
            ),
        )),
        KeysOutcome::Revoked(key) => Err(ApiError::conflict(
            "key-revoked",
            KEYS,
            format!(
                "the key {key} of tenant `{tenant}` was revoked and does not come back; make another"
            ),
        )),
        KeysOutcome::Unknown => Err(ApiError::not_found(format!(
            "tenant `{tenant}` has no such key; `holm tenants show {tenant}` shows those it has"
        ))),
    }
}

fn tenant_view(api: &Api, tenant: Name, rows: &[KeyRow]) -> TenantView {
    let now_ms = api.clock.now_ms();
    let valid = rows.iter().filter(|row| row.holds(now_ms));
    let revoked = |row: &KeyRow| {
        row.revoked_ms.map(|from_ms| RevokedKeyView {
            key: row.key.to_string(),
            from_ms,
        })
    };
    TenantView {
        name: tenant,
        publisher_keys: valid.map(|row| row.key.to_string()).collect(),
        revoked_keys: rows.iter().filter_map(revoked).collect(),
    }
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

/// A version as it was signed.
pub(super) async fn signed_version(
    State(api): Shared,
    OfVersion { function, version }: OfVersion,
) -> Result<Json<PublishRequest>, ApiError> {
    let found = stored_version(&api, &function, version).await?;
    Ok(Json(PublishRequest::from_signed(&found.signed)))
}

/// The version, if it is one of the function's.
pub(super) async fn stored_version(
    api: &Api,
    function: &FunctionName,
    version: VersionId,
) -> Result<Version, ApiError> {
    let found = api.store.version(version).await?;
    let own = found.filter(|found| found.statement.function == *function);
    own.ok_or_else(|| ApiError::not_found(format!("`{function}` has no version {version}")))
}

pub(super) async fn set_tag(
    State(api): Shared,
    Tagged { function, tag }: Tagged,
    JsonBody(request): JsonBody<TagRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let set = api.registry.set_tag(&function, &tag, request.version);
    let view = set.await?;
    Ok((told(format!("{} {}", view.label, view.version)), Json(view)))
}

pub(super) async fn remove_tag(
    State(api): Shared,
    Tagged { function, tag }: Tagged,
) -> Result<StatusCode, ApiError> {
    match api.store.remove_tag(&function, &tag).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(ApiError::not_found(format!(
            "there is no tag `{tag}` of `{function}`"
        ))),
    }
}

pub(super) async fn prune(
    State(api): Shared,
    caller: Caller,
    JsonBody(request): JsonBody<PruneRequest>,
) -> Result<impl IntoResponse, ApiError> {
    match &request.function {
        Some(function) => caller.of_tenant(Verb::Deploy, &function.tenant)?,
        None => caller.of_all(Verb::Deploy)?,
    }
    if request.keep == 0 {
        return Err(ApiError::bad_request(
            "`keep`: the newest version always stays",
        ));
    }
    if let Some(function) = &request.function
        && api.store.function(function).await?.is_none()
    {
        return Err(no_function(function));
    }
    let wish = PruneWish {
        function: request.function,
        keep: request.keep,
        held: held(&api).await?,
    };
    let fates = match request.dry_run {
        true => api.store.fates(&wish).await?,
        false => api.rollouts.prune(&wish).await?,
    };
    let gone = fates.iter().filter(|fate| fate.goes());
    let artifacts: BTreeSet<Digest> = gone.map(|fate| fate.artifact).collect();
    let (artifacts, artifact_bytes) = match request.dry_run {
        true => unneeded(&api, &fates, artifacts).await?,
        false => api.registry.remove_unnamed(&artifacts).await?,
    };
    let mut view = PruneView {
        dry_run: request.dry_run,
        removed: Vec::new(),
        kept: Vec::new(),
        artifacts,
        artifact_bytes,
    };
    let ids: Vec<_> = fates.iter().map(|fate| fate.version).collect();
    let mut views = api.store.version_views(&ids).await?;
    for fate in fates {
        let Some(version) = views.remove(&fate.version) else {
            continue;
        };
        match fate.goes() {
            true => view.removed.push(version),
            false => view.kept.push(KeptView {
                version,
                why: fate.why,
            }),
        }
    }
    let what = match view.dry_run {
        true => "would remove",
        false => "removed",
    };
    let (versions, artifacts) = (view.removed.len(), view.artifacts.len());
    let told = told(format!("{what} {versions} versions, {artifacts} artifacts"));
    Ok((told, Json(view)))
}

/// The versions that nodes said last that they have, with whatever configuration, and which nodes.
async fn held(api: &Api) -> Result<BTreeMap<VersionId, BTreeSet<Name>>, ApiError> {
    let held = api.fleet.held();
    let ids: Vec<_> = held.keys().copied().collect();
    let releases = api.store.releases(&ids).await?;
    let mut versions = BTreeMap::<VersionId, BTreeSet<Name>>::new();
    for (id, nodes) in held {
        let version = releases.get(&id).map_or(id, |release| release.version);
        versions.entry(version).or_default().extend(nodes);
    }
    Ok(versions)
}

/// Those of `artifacts` that no version that stays has, and their bytes.
async fn unneeded(
    api: &Api,
    fates: &[Fate],
    artifacts: BTreeSet<Digest>,
) -> Result<(Vec<Digest>, u64), ApiError> {
    let gone: Vec<_> = fates
        .iter()
        .filter(|fate| fate.goes())
        .map(|fate| fate.version)
        .collect();
    let (mut unneeded, mut bytes) = (Vec::new(), 0);
    for artifact in artifacts {
        if !api.store.names_artifact_beside(artifact, &gone).await? {
            bytes += api.registry.artifacts().bytes(artifact).await?;
            unneeded.push(artifact);
        }
    }
    Ok((unneeded, bytes))
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
    let on = row.current.map(|current| current.version);
    let listed = versions.iter().find(|version| Some(version.version) == on);
    let current = match (listed, on) {
        // It is older than those that are listed.
        (None, Some(id)) => api.store.version_view(id).await?,
        (listed, _) => listed.cloned(),
    };
    let configuration = row.current.and_then(|current| current.configuration);
    let numbers: Vec<_> = configuration.into_iter().collect();
    let numbers = api.store.configuration_numbers(&numbers).await?;
    Ok(FunctionView {
        name: row.name,
        current,
        configuration: configuration.and_then(|id| numbers.get(&id).copied()),
        versions,
    })
}
