//! The HTTP API `/v1`: for people and CI. What goes over it is defined in `holm_model::api`.
//!
//! Every request but `GET /v1/health` carries a bearer token, which [`access`] looks at; every error,
//! whoever finds it, is `application/problem+json`. Handlers translate and nothing else: what may be done is decided by
//! the module that does it.

mod access;
mod artifacts;
mod budgets;
mod catalogue;
mod configurations;
mod exports;
mod fleet;
mod input;
mod listener;
mod logs;
mod problem;
mod rollouts;
mod tokens;
mod usage;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, head, post, put};
use axum::{Json, Router};
use holm_model::api::Health;
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;

pub(crate) use listener::BoundedListener;
use problem::ApiError;

use crate::budget::Budgets;
use crate::ca::{Authority, Joins, Tokens};
use crate::clock::Clock;
use crate::ledger::Ledger;
use crate::limits::MAX_UPLOADS;
use crate::logs::Logs;
use crate::nodes::Fleet;
use crate::registry::{Configurations, Objects, Registry};
use crate::rollout::Rollouts;
use crate::store::Store;

/// What handlers need of the rest of the coordinator.
pub(crate) struct Api {
    pub(crate) store: Store,
    pub(crate) registry: Registry,
    pub(crate) configurations: Configurations,
    pub(crate) rollouts: Arc<Rollouts>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) ledger: Ledger,
    pub(crate) budgets: Arc<Budgets>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) joins: Arc<Joins>,
    pub(crate) authority: Authority,
    pub(crate) objects: Objects,
    pub(crate) tokens: Tokens,
    pub(crate) clock: Clock,
    /// How long records of usage are kept; for ever if none.
    pub(crate) keep_records: Option<Duration>,
    pub(crate) uploads: Semaphore,
}

/// How many artifacts may be uploaded at a time.
pub(crate) fn upload_turns() -> Semaphore {
    Semaphore::new(MAX_UPLOADS)
}

type Shared = State<Arc<Api>>;

/// The whole API.
pub(crate) fn router(api: Arc<Api>) -> Router {
    let guarded = Router::new()
        .route("/v1/token", get(tokens::own))
        .route("/v1/tokens", get(tokens::list).post(tokens::create))
        .route("/v1/tokens/{token}/revoke", post(tokens::revoke))
        .route("/v1/audit", get(tokens::audit))
        .route("/v1/audit/check", get(tokens::check))
        .route("/v1/join-tokens", post(fleet::make_join_token))
        .route("/v1/nodes", get(fleet::list_nodes))
        .route("/v1/nodes/{node}/drain", post(fleet::drain))
        .route("/v1/nodes/{node}/undrain", post(fleet::undrain))
        .route("/v1/nodes/{node}/cordon", post(fleet::cordon))
        .route("/v1/nodes/{node}/uncordon", post(fleet::uncordon))
        .route("/v1/nodes/{node}/labels", put(fleet::set_labels))
        .route("/v1/nodes/{node}/revoke", post(fleet::revoke))
        .route("/v1/route/{tenant}/{function}", get(fleet::route))
        .route(
            "/v1/tenants/{tenant}",
            get(catalogue::get_tenant).put(catalogue::put_tenant),
        )
        .route(
            "/v1/tenants/{tenant}/keys/revoke",
            post(catalogue::revoke_key),
        )
        .route(
            "/v1/artifacts/{digest}",
            head(artifacts::has).put(artifacts::put),
        )
        .route("/v1/artifacts/{digest}/index", put(artifacts::put_index))
        .route("/v1/artifacts/{digest}/chunks", put(artifacts::put_chunks))
        .route(
            "/v1/functions/{tenant}/{function}/tags/{tag}",
            put(catalogue::set_tag).delete(catalogue::remove_tag),
        )
        .route("/v1/prune", post(catalogue::prune))
        .route("/v1/functions", get(catalogue::list_functions))
        .route(
            "/v1/functions/{tenant}/{function}",
            get(catalogue::get_function),
        )
        .route(
            "/v1/functions/{tenant}/{function}/versions",
            post(catalogue::publish),
        )
        .route(
            "/v1/functions/{tenant}/{function}/versions/{version}",
            get(catalogue::signed_version),
        )
        .route(
            "/v1/functions/{tenant}/{function}/versions/{version}/artifact",
            get(artifacts::of_version),
        )
        .route(
            "/v1/functions/{tenant}/{function}/configurations",
            post(configurations::publish).get(configurations::list),
        )
        .route(
            "/v1/functions/{tenant}/{function}/configurations/{number}",
            get(configurations::get_one),
        )
        .route(
            "/v1/functions/{tenant}/{function}/rollouts",
            post(rollouts::start).get(rollouts::list),
        )
        .route(
            "/v1/functions/{tenant}/{function}/rollouts/plan",
            post(rollouts::foresee),
        )
        .route(
            "/v1/functions/{tenant}/{function}/rollouts/queued",
            delete(rollouts::unqueue),
        )
        .route(
            "/v1/functions/{tenant}/{function}/rollouts/latest",
            get(rollouts::latest),
        )
        .route(
            "/v1/functions/{tenant}/{function}/rollback",
            post(rollouts::roll_back),
        )
        .route("/v1/functions/{tenant}/{function}/logs", get(logs::page))
        .route("/v1/rollouts/{id}", get(rollouts::get_one))
        .route("/v1/rollouts/{id}/abort", post(rollouts::abort))
        .route("/v1/rollouts/{id}/pause", post(rollouts::pause))
        .route("/v1/rollouts/{id}/resume", post(rollouts::resume))
        .route("/v1/rollouts/{id}/promote", post(rollouts::promote))
        .route("/v1/budgets", get(budgets::list))
        .route("/v1/budgets/alerts", get(budgets::alerts))
        .route(
            "/v1/tenants/{tenant}/budget",
            get(budgets::of_tenant)
                .put(budgets::set_of_tenant)
                .delete(budgets::remove_of_tenant),
        )
        .route(
            "/v1/functions/{tenant}/{function}/budget",
            get(budgets::of_function)
                .put(budgets::set_of_function)
                .delete(budgets::remove_of_function),
        )
        .route("/v1/exports", get(exports::list_all))
        .route("/v1/tenants/{tenant}/exports", post(exports::add))
        .route("/v1/tenants/{tenant}/exports/files", get(exports::files))
        .route("/v1/tenants/{tenant}/exports/file", get(exports::file))
        .route(
            "/v1/tenants/{tenant}/exports/{export}",
            delete(exports::remove),
        )
        .route("/v1/usage", get(usage::sums))
        .route("/v1/usage/audit", get(usage::audit))
        .route("/v1/usage/records", get(usage::records))
        .route("/v1/usage/bill", get(usage::bill))
        .route("/v1/requests/{request}", get(usage::explain))
        .route("/v1/prices", get(usage::prices))
        .route("/v1/prices/{plan}", post(usage::add_prices))
        .route("/v1/tenants/{tenant}/prices", put(usage::assign_plan))
        .method_not_allowed_fallback(wrong_method)
        .route_layer(from_fn_with_state(api.clone(), access::guard));
    Router::new()
        .route("/v1/health", get(health))
        .method_not_allowed_fallback(wrong_method)
        .merge(guarded)
        .fallback(no_such_path)
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(api)
}

async fn health(State(api): Shared) -> Json<Health> {
    let software = env!("CARGO_PKG_VERSION").to_owned();
    Json(Health {
        software,
        now_ms: api.clock.now_ms(),
    })
}

async fn no_such_path(request: Request) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "no-such-path",
        "There is nothing under this path",
        format!(
            "`{}` is not part of the API; its paths begin with /v1/",
            request.uri().path()
        ),
    )
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "wrong-method",
        "The path does not take this method",
        format!(
            "`{}` does not take {}; see the header `allow`",
            request.uri().path(),
            request.method()
        ),
    )
}

fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    // The panic hook has told where.
    ApiError::internal("a handler panicked").into_response()
}
