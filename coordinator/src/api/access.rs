//! Who may do what, and the record of who did it.
//!
//! One table says for each path what it needs. What is not in it needs every right there is, so that a
//! path that is added is never open by mistake. Where the tenant is not in the path, the handler asks
//! [`Caller::of_tenant`] once it knows it.
//!
//! Whatever changes something is in the audit log before it is done, and again with what came of it:
//! if the log cannot be written, nothing is done.

use std::sync::Arc;

use axum::Extension;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{FromRequestParts, MatchedPath, RawPathParams, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use holm_model::ids::{Digest, Name};
use holm_model::token::{ApiToken, Grant, Verb};

use super::problem::ApiError;
use super::{Api, Shared};
use crate::store::{Came, Deed};

/// Who makes a request, and what the token that came with it allows.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// The name of the token, or of the one that it was made from.
    pub(super) name: String,
    /// The token's id.
    id: String,
    pub(super) grant: Grant,
}

impl Caller {
    /// Refuses what the token does not allow for this tenant.
    pub(super) fn of_tenant(&self, verb: Verb, tenant: &Name) -> Result<(), ApiError> {
        self.with(verb)?;
        match self.grant.reaches(tenant) {
            true => Ok(()),
            false => Err(self.refusal(&format!("is not for tenant `{tenant}`"))),
        }
    }

    /// Refuses what the token does not allow for all tenants together.
    pub(super) fn of_all(&self, verb: Verb) -> Result<(), ApiError> {
        self.with(verb)?;
        match self.grant.reaches_all() {
            true => Ok(()),
            false => Err(self.refusal("is not for all tenants, as this needs")),
        }
    }

    fn with(&self, verb: Verb) -> Result<(), ApiError> {
        match self.grant.may(verb) {
            true => Ok(()),
            false => Err(self.refusal(&format!("lacks the verb `{verb}`"))),
        }
    }

    fn refusal(&self, why: &str) -> ApiError {
        ApiError::forbidden(format!(
            "the token `{}` {why}: it allows {}; ask whoever made it for one that allows more",
            self.name, self.grant
        ))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Caller>();
        caller
            .cloned()
            .ok_or_else(|| ApiError::internal("a path without a check of its caller"))
    }
}

/// For whom a token must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    /// The tenant in the path.
    Tenant,
    /// All of them.
    All,
    /// The handler says.
    Some,
    /// Whoever has a valid token of any kind.
    Anyone,
}

/// What a path needs, and what doing it is called in the audit log; nothing that changes nothing is
/// there.
fn needs(method: &Method, path: &str) -> (Verb, Of, Option<&'static str>) {
    use Of::{All, Anyone, Some as Several, Tenant};
    use Verb::{Admin, Deploy, Logs, Nodes, Read, Rollout, Usage};
    match (method.as_str(), path) {
        ("GET", "/v1/token") => (Read, Anyone, None),
        ("GET", "/v1/tokens" | "/v1/audit" | "/v1/audit/check") => (Admin, All, None),
        ("POST", "/v1/tokens") => (Admin, All, Some("token.create")),
        ("POST", "/v1/tokens/{token}/revoke") => (Admin, All, Some("token.revoke")),
        ("POST", "/v1/join-tokens") => (Nodes, All, Some("node.invite")),
        ("GET", "/v1/nodes") => (Read, Several, None),
        ("POST", "/v1/nodes/{node}/drain") => (Nodes, All, Some("node.drain")),
        ("POST", "/v1/nodes/{node}/undrain") => (Nodes, All, Some("node.undrain")),
        ("POST", "/v1/nodes/{node}/cordon") => (Nodes, All, Some("node.cordon")),
        ("POST", "/v1/nodes/{node}/uncordon") => (Nodes, All, Some("node.uncordon")),
        ("PUT", "/v1/nodes/{node}/labels") => (Nodes, All, Some("node.label")),
        ("POST", "/v1/nodes/{node}/revoke") => (Nodes, All, Some("node.revoke")),
        ("GET", "/v1/tenants/{tenant}") => (Read, Tenant, None),
        ("POST", "/v1/tenants/{tenant}/keys/revoke") => (Admin, Tenant, Some("key.revoke")),
        ("GET", "/v1/route/{tenant}/{function}") => (Read, Tenant, None),
        ("PUT", "/v1/tenants/{tenant}") => (Admin, Tenant, Some("tenant.change")),
        ("GET" | "HEAD", "/v1/artifacts/{digest}") => (Deploy, Several, None),
        ("PUT", "/v1/artifacts/{digest}") => (Deploy, Several, Some("artifact.put")),
        ("PUT", "/v1/artifacts/{digest}/index") => (Deploy, Several, Some("artifact.put")),
        ("PUT", "/v1/artifacts/{digest}/chunks") => (Deploy, Several, Some("artifact.send")),
        ("GET", "/v1/functions") => (Read, Several, None),
        ("GET", "/v1/functions/{tenant}/{function}") => (Read, Tenant, None),
        ("POST", "/v1/functions/{tenant}/{function}/versions") => {
            (Deploy, Tenant, Some("version.publish"))
        }
        // A statement has the function's environment in it.
        ("GET", "/v1/functions/{tenant}/{function}/versions/{version}") => (Deploy, Tenant, None),
        ("GET", "/v1/functions/{tenant}/{function}/versions/{version}/artifact") => {
            (Deploy, Tenant, None)
        }
        ("POST", "/v1/functions/{tenant}/{function}/configurations") => {
            (Deploy, Tenant, Some("configuration.publish"))
        }
        ("GET", "/v1/functions/{tenant}/{function}/configurations") => (Read, Tenant, None),
        // A statement has the plain values.
        ("GET", "/v1/functions/{tenant}/{function}/configurations/{number}") => {
            (Deploy, Tenant, None)
        }
        ("PUT", "/v1/functions/{tenant}/{function}/tags/{tag}") => {
            (Deploy, Tenant, Some("version.tag"))
        }
        ("DELETE", "/v1/functions/{tenant}/{function}/tags/{tag}") => {
            (Deploy, Tenant, Some("version.untag"))
        }
        ("POST", "/v1/prune") => (Deploy, Several, Some("version.prune")),
        ("POST", "/v1/functions/{tenant}/{function}/rollouts") => {
            (Rollout, Tenant, Some("rollout.start"))
        }
        ("GET", "/v1/functions/{tenant}/{function}/rollouts") => (Read, Tenant, None),
        ("DELETE", "/v1/functions/{tenant}/{function}/rollouts/queued") => {
            (Rollout, Tenant, Some("rollout.unqueue"))
        }
        ("POST", "/v1/functions/{tenant}/{function}/rollouts/plan") => (Read, Tenant, None),
        ("GET", "/v1/functions/{tenant}/{function}/rollouts/latest") => (Read, Tenant, None),
        ("POST", "/v1/functions/{tenant}/{function}/rollback") => {
            (Rollout, Tenant, Some("rollout.back"))
        }
        ("GET", "/v1/functions/{tenant}/{function}/logs") => (Logs, Tenant, None),
        ("GET", "/v1/rollouts/{id}") => (Read, Several, None),
        ("POST", "/v1/rollouts/{id}/abort") => (Rollout, Several, Some("rollout.abort")),
        ("POST", "/v1/rollouts/{id}/pause") => (Rollout, Several, Some("rollout.pause")),
        ("POST", "/v1/rollouts/{id}/resume") => (Rollout, Several, Some("rollout.resume")),
        ("POST", "/v1/rollouts/{id}/promote") => (Rollout, Several, Some("rollout.promote")),
        ("GET", "/v1/usage" | "/v1/usage/records") => (Usage, Several, None),
        ("GET", "/v1/usage/bill" | "/v1/requests/{request}" | "/v1/prices") => {
            (Usage, Several, None)
        }
        ("POST", "/v1/prices/{plan}") => (Admin, All, Some("prices.set")),
        // Nobody chooses his own prices.
        ("PUT", "/v1/tenants/{tenant}/prices") => (Admin, All, Some("prices.assign")),
        ("GET", "/v1/budgets" | "/v1/budgets/alerts") => (Usage, Several, None),
        ("GET", "/v1/tenants/{tenant}/budget") => (Usage, Tenant, None),
        ("GET", "/v1/functions/{tenant}/{function}/budget") => (Usage, Tenant, None),
        // What all of a tenant's functions may cost is the operator's to say; what each of them may, the tenant's too.
        ("PUT", "/v1/tenants/{tenant}/budget") => (Admin, All, Some("budget.set")),
        ("DELETE", "/v1/tenants/{tenant}/budget") => (Admin, All, Some("budget.remove")),
        ("PUT", "/v1/functions/{tenant}/{function}/budget") => (Admin, Tenant, Some("budget.set")),
        ("DELETE", "/v1/functions/{tenant}/{function}/budget") => {
            (Admin, Tenant, Some("budget.remove"))
        }
        ("GET", "/v1/exports") => (Usage, Several, None),
        ("GET", "/v1/tenants/{tenant}/exports/files" | "/v1/tenants/{tenant}/exports/file") => {
            (Usage, Tenant, None)
        }
        ("POST", "/v1/tenants/{tenant}/exports") => (Admin, Tenant, Some("export.add")),
        ("DELETE", "/v1/tenants/{tenant}/exports/{export}") => {
            (Admin, Tenant, Some("export.remove"))
        }
        ("GET", "/v1/usage/audit") => (Usage, All, None),
        ("GET" | "HEAD", _) => (Admin, All, None),
        _ => (Admin, All, Some("other")),
    }
}

/// What a handler wants to be in the audit log beside what the path says.
#[derive(Clone, Debug)]
pub(super) struct Told(pub(super) String);

/// Handlers answer with it as an extension.
pub(super) fn told(what: impl Into<String>) -> Extension<Told> {
    Extension(Told(what.into()))
}

/// Lets pass who may, and records what changes something.
pub(super) async fn guard(
    State(api): Shared,
    path: MatchedPath,
    params: Result<RawPathParams, RawPathParamsRejection>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let caller = authenticate(&api, request.headers()).await?;
    let params = params.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let (verb, of, action) = needs(request.method(), path.as_str());
    let allowed = match of {
        Of::Anyone => Ok(()),
        Of::Some => caller.with(verb),
        Of::All => caller.of_all(verb),
        Of::Tenant => {
            let tenant = params.iter().find(|(name, _)| *name == "tenant");
            // What is no name at all is the handler's to refuse, but not before the verb.
            match tenant.and_then(|(_, tenant)| tenant.parse().ok()) {
                Some(tenant) => caller.of_tenant(verb, &tenant),
                None => caller.of_all(verb),
            }
        }
    };
    let Some(action) = action else {
        allowed?;
        request.extensions_mut().insert(caller);
        return Ok(next.run(request).await);
    };
    let object: Vec<&str> = params.iter().map(|(_, value)| value).collect();
    let deed = Deed {
        actor_kind: "token",
        actor: caller.name.clone(),
        actor_id: caller.id.clone(),
        action: match action {
            "other" => format!("{} {}", request.method(), path.as_str()),
            action => action.to_owned(),
        },
        object: object.join("/"),
    };
    if let Err(refusal) = allowed {
        let came = Came {
            outcome: "refused",
            detail: refusal.detail().to_owned(),
            begun: None,
        };
        api.store.record(&deed, &came, api.clock.now_ms()).await?;
        return Err(refusal);
    }
    let now_ms = api.clock.now_ms();
    let begun = api.store.record(&deed, &Came::begun(), now_ms).await?;
    request.extensions_mut().insert(caller);
    // A caller that goes away ends no change halfway, nor the record of it.
    let changed =
        tokio::spawn(async move { finish(&api, &deed, begun, next.run(request).await).await });
    changed.await.map_err(ApiError::internal)
}

/// Enters what came of a change.
async fn finish(api: &Api, deed: &Deed, begun: u64, response: Response) -> Response {
    let told = response.extensions().get::<Told>();
    let came = Came {
        outcome: match response.status() {
            status if status.is_server_error() => "failed",
            status if status.is_client_error() => "refused",
            _ => "done",
        },
        detail: told.map(|told| told.0.clone()).unwrap_or_default(),
        begun: Some(begun),
    };
    if let Err(error) = api.store.record(deed, &came, api.clock.now_ms()).await {
        // It has been done, and the log has it as begun.
        tracing::error!(%error, "what came of a request is not in the audit log");
    }
    response
}

async fn authenticate(api: &Arc<Api>, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let Some(shown) = bearer(headers) else {
        return Err(ApiError::unauthorized("the request has no bearer token"));
    };
    let invalid = || ApiError::unauthorized("the bearer token is not valid here");
    let token = std::str::from_utf8(shown).ok();
    let Some(token) = token.and_then(|token| token.parse::<ApiToken>().ok()) else {
        // Looked up by digest: how long that takes says nothing about any valid token.
        let digest = Digest::of(shown);
        let name = api.store.admin_token(digest).await?.ok_or_else(invalid)?;
        return Ok(Caller {
            name,
            id: digest.short(),
            grant: Grant::default(),
        });
    };
    // Before the database is asked, so that strangers do not reach it.
    if !api.tokens.made(&token) {
        return Err(invalid());
    }
    let row = api.store.token(token.id()).await?.ok_or_else(invalid)?;
    if row.revoked_ms.is_some() {
        return Err(ApiError::unauthorized(&format!(
            "the token `{}` was revoked, and with it all that was weakened from it",
            row.name
        )));
    }
    let grant = token
        .grant()
        .map_err(|error| ApiError::unauthorized(&error.to_string()))?;
    let now_ms = api.clock.now_ms();
    if grant.before_ms.is_some_and(|before_ms| now_ms >= before_ms) {
        return Err(ApiError::unauthorized(&format!(
            "the token `{}` has expired",
            row.name
        )));
    }
    Ok(Caller {
        name: row.name,
        id: token.id().to_string(),
        grant,
    })
}

/// The token that a request shows; the scheme's name may be in any case (RFC 9110, section 11.1).
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"Bearer ";
    let shown = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = shown.split_at_checked(SCHEME.len())?;
    scheme
        .eq_ignore_ascii_case(SCHEME)
        .then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_bearer_token_is_found_in_any_case_of_its_scheme_and_nothing_else_is_one() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            bearer(&headers).map(<[u8]>::to_vec)
        };
        for value in ["Bearer abc", "bearer abc", "BEARER  abc "] {
            assert_eq!(of(value).as_deref(), Some(&b"abc"[..]), "{value}");
        }
        for value in ["", "abc", "Basic abc", "Bearer", "Bearerabc"] {
            assert_eq!(of(value), None, "{value}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    #[test]
    fn a_path_that_nobody_has_thought_of_needs_every_right_and_is_recorded() {
        let of = |method: Method| needs(&method, "/v1/new");
        assert_eq!(of(Method::GET), (Verb::Admin, Of::All, None));
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            assert_eq!(of(method), (Verb::Admin, Of::All, Some("other")));
        }
    }
}
