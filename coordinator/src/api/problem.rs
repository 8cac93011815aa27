//! Errors as `application/problem+json` (RFC 9457), and which status each of Holm's errors has.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use holm_model::api::Problem;
use holm_model::artifact::VersionError;
use holm_model::configuration::ConfigurationError;

use super::access::Told;
use crate::ca::{ApiTokenError, CaError, JoinError};
use crate::registry::{ArtifactError, ConfigureError, RegistryError};
use crate::rollout::RolloutError;
use crate::store::{StoreError, Unbudgeted, Unexported, Unpriced, Unstored};

/// An answer that is an error.
#[derive(Debug)]
pub(crate) struct ApiError(Problem);

impl ApiError {
    /// `name` is stable: programs may go by it.
    pub(super) fn new(
        status: StatusCode,
        name: &str,
        title: &str,
        detail: impl Into<String>,
    ) -> Self {
        ApiError(Problem {
            kind: format!("/problems/{name}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
        })
    }

    /// The request is not as it should be.
    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            "bad-request",
            "The request cannot be read",
            detail,
        )
    }

    /// The body is longer than allowed.
    pub(super) fn too_large(detail: impl Into<String>) -> Self {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            "The body is too large",
            detail,
        )
    }

    /// Not now.
    pub(super) fn busy(detail: impl Into<String>) -> Self {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "The coordinator has too much to do",
            detail,
        )
    }

    /// Something that the path names is not there.
    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        ApiError::new(
            StatusCode::NOT_FOUND,
            "not-found",
            "There is no such thing",
            detail,
        )
    }

    /// The token does not allow it.
    pub(super) fn forbidden(detail: impl Into<String>) -> Self {
        ApiError::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            "The token does not allow this",
            detail,
        )
    }

    /// This one, for people.
    pub(super) fn detail(&self) -> &str {
        &self.0.detail
    }

    pub(super) fn unauthorized(detail: &str) -> Self {
        ApiError::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "A valid API token is needed",
            format!(
                "{detail}; send `Authorization: Bearer TOKEN` with one that `holm tokens create` \
                 made, or that from the file `admin-token` in the coordinator's state directory"
            ),
        )
    }

    /// The coordinator's own failure; what it was is in the log, not in the answer.
    pub(super) fn internal(error: impl std::fmt::Display) -> Self {
        tracing::error!(%error, "a request failed");
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "The coordinator failed",
            "the coordinator could not do this and is to blame; its log says why",
        )
    }

    pub(super) fn conflict(name: &str, title: &str, error: impl std::fmt::Display) -> Self {
        ApiError::new(StatusCode::CONFLICT, name, title, error.to_string())
    }

    pub(super) fn unprocessable(name: &str, title: &str, error: impl std::fmt::Display) -> Self {
        ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            name,
            title,
            error.to_string(),
        )
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self.0).expect("a problem is text and a number");
        let mut response = (status, body).into_response();
        // For the audit log.
        response.extensions_mut().insert(Told(self.0.detail));
        let json = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        if status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        ApiError::internal(error)
    }
}

impl From<Unstored> for ApiError {
    fn from(error: Unstored) -> Self {
        ApiError::internal(error)
    }
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        const VERSION: &str = "The version is not accepted";
        let name = match error {
            RegistryError::Store(error) => return error.into(),
            RegistryError::Artifact(error) => return error.into(),
            RegistryError::UnknownTenant(_) => return ApiError::not_found(error.to_string()),
            RegistryError::CounterTooLow { .. } => {
                return ApiError::conflict("counter-too-low", VERSION, error);
            }
            RegistryError::Refused(ref reason) => match reason {
                VersionError::UnknownKey(_) => "unknown-key",
                VersionError::BadSignature => "bad-signature",
                VersionError::Unreadable(_) => "bad-statement",
                VersionError::WrongDigest { .. } => "wrong-digest",
                VersionError::WrongSize { .. } => "wrong-size",
            },
            RegistryError::BadTag(_) => return ApiError::bad_request(error.to_string()),
            RegistryError::UnknownVersion { .. } => return ApiError::not_found(error.to_string()),
            RegistryError::Removed(_) => {
                return ApiError::conflict("version-removed", VERSION, error);
            }
            RegistryError::TooManyTags(_) => "too-many-tags",
            RegistryError::KeyRevoked(_) => "key-revoked",
            RegistryError::OtherFunction { .. } => "other-function",
            RegistryError::BadStatement(_) => "bad-statement",
            RegistryError::ArtifactMissing(_) => "artifact-missing",
            RegistryError::BadProgram(_) => "bad-program",
        };
        ApiError::unprocessable(name, VERSION, error)
    }
}

impl From<ConfigureError> for ApiError {
    fn from(error: ConfigureError) -> Self {
        const CONFIGURATION: &str = "The configuration is not accepted";
        let name = match error {
            ConfigureError::Store(error) => return error.into(),
            ConfigureError::Vault(error) => return ApiError::internal(error),
            ConfigureError::OtherSecretsKey => return ApiError::internal(error),
            ConfigureError::UnknownFunction(_) | ConfigureError::UnknownConfiguration { .. } => {
                return ApiError::not_found(error.to_string());
            }
            ConfigureError::NothingChanged { .. } => {
                return ApiError::conflict("nothing-changed", CONFIGURATION, error);
            }
            ConfigureError::OutOfTurn { .. } => {
                return ApiError::conflict("out-of-turn", CONFIGURATION, error);
            }
            ConfigureError::KeyRevoked(_) => "key-revoked",
            ConfigureError::OtherFunction { .. } => "other-function",
            ConfigureError::BadStatement(_) => "bad-statement",
            ConfigureError::Refused(ref reason) => match reason {
                ConfigurationError::Unreadable(_) => "bad-statement",
                ConfigurationError::UnknownKey(_) => "unknown-key",
                ConfigurationError::BadSignature => "bad-signature",
                ConfigurationError::Entry { .. } => "bad-entry",
                ConfigurationError::TooMany(_) => "too-many-entries",
                ConfigurationError::TooLarge(_) => "too-large",
                ConfigurationError::OtherSecret(_) => "other-secret",
                ConfigurationError::NoSecret(_) => "secret-missing",
            },
        };
        ApiError::unprocessable(name, CONFIGURATION, error)
    }
}

impl From<ArtifactError> for ApiError {
    fn from(error: ArtifactError) -> Self {
        match error {
            ArtifactError::Disk { .. }
            | ArtifactError::S3 { .. }
            | ArtifactError::Elsewhere { .. }
            | ArtifactError::OtherFleet(_)
            | ArtifactError::Lost { .. }
            | ArtifactError::Away(_)
            | ArtifactError::Store(_) => ApiError::internal(error),
            ArtifactError::BadIndex(_) => ApiError::bad_request(error.to_string()),
            ArtifactError::TooLarge => ApiError::too_large(error.to_string()),
            ArtifactError::WrongDigest { .. } => {
                ApiError::unprocessable("wrong-digest", "The artifact is not accepted", error)
            }
            ArtifactError::Missing(_) => ApiError::not_found(error.to_string()),
        }
    }
}

impl From<RolloutError> for ApiError {
    fn from(error: RolloutError) -> Self {
        const ROLLOUT: &str = "The rollout is not possible";
        match error {
            RolloutError::Store(error) => error.into(),
            RolloutError::Unstored(error) => error.into(),
            RolloutError::UnknownFunction(_)
            | RolloutError::UnknownVersion { .. }
            | RolloutError::UnknownConfiguration { .. } => ApiError::not_found(error.to_string()),
            RolloutError::NoVersion(_) => ApiError::conflict("no-version", ROLLOUT, error),
            RolloutError::Running { .. } => ApiError::conflict("rollout-running", ROLLOUT, error),
            RolloutError::NothingQueued(_) => ApiError::not_found(error.to_string()),
            RolloutError::EmptyWave(_) => ApiError::conflict("empty-wave", ROLLOUT, error),
            RolloutError::Current { .. } => ApiError::conflict("already-current", ROLLOUT, error),
            RolloutError::NothingBefore(_) => ApiError::conflict("nothing-before", ROLLOUT, error),
            RolloutError::KeyRevoked { .. } | RolloutError::ConfigurationKeyRevoked { .. } => {
                ApiError::conflict("key-revoked", ROLLOUT, error)
            }
            RolloutError::Damaged { .. } => {
                ApiError::conflict("damaged-configuration", ROLLOUT, error)
            }
            RolloutError::Ended(_) => ApiError::conflict("rollout-ended", ROLLOUT, error),
            RolloutError::TooMuch => ApiError::conflict("too-much", ROLLOUT, error),
            RolloutError::NothingToPromote(_) => {
                ApiError::conflict("nothing-to-promote", ROLLOUT, error)
            }
            RolloutError::GoesBack(_) => ApiError::conflict("rollout-goes-back", ROLLOUT, error),
            RolloutError::BadWaves(_)
            | RolloutError::BadBake(_)
            | RolloutError::BadMinRequests(_) => ApiError::bad_request(error.to_string()),
        }
    }
}

impl From<Unpriced> for ApiError {
    fn from(error: Unpriced) -> Self {
        const PRICES: &str = "The prices are not taken";
        match error {
            Unpriced::Store(error) => error.into(),
            Unpriced::WithinAnHour(_) | Unpriced::TooDear(_) => {
                ApiError::bad_request(error.to_string())
            }
            Unpriced::NoPlan(_) | Unpriced::NoTenant(_) => ApiError::not_found(error.to_string()),
            Unpriced::Past { .. } => ApiError::conflict("prices-past", PRICES, error),
            Unpriced::Budgeted { .. } => ApiError::conflict("other-currency", PRICES, error),
            Unpriced::OtherCurrency { .. } => ApiError::conflict("other-currency", PRICES, error),
        }
    }
}

impl From<Unbudgeted> for ApiError {
    fn from(error: Unbudgeted) -> Self {
        const BUDGET: &str = "The budget is not set";
        match error {
            Unbudgeted::Store(error) => error.into(),
            Unbudgeted::NoTenant(_) | Unbudgeted::NoFunction(_) | Unbudgeted::NoBudget(_) => {
                ApiError::not_found(error.to_string())
            }
            Unbudgeted::TooLarge(_) | Unbudgeted::BadAlerts => {
                ApiError::bad_request(error.to_string())
            }
            Unbudgeted::NoPrices(_) => ApiError::conflict("no-prices", BUDGET, error),
            Unbudgeted::TooMany => ApiError::conflict("too-many-budgets", BUDGET, error),
        }
    }
}

impl From<Unexported> for ApiError {
    fn from(error: Unexported) -> Self {
        const EXPORT: &str = "The export is not made";
        match error {
            Unexported::Store(error) => error.into(),
            Unexported::NoTenant(_) | Unexported::NoExport(..) => {
                ApiError::not_found(error.to_string())
            }
            Unexported::TooMany(_) => ApiError::conflict("too-many-exports", EXPORT, error),
            Unexported::FilesAlready(..) => ApiError::conflict("files-already", EXPORT, error),
        }
    }
}

impl From<ApiTokenError> for ApiError {
    fn from(error: ApiTokenError) -> Self {
        const TOKEN: &str = "The token cannot be made";
        match error {
            ApiTokenError::Store(error) => error.into(),
            ApiTokenError::NameTaken(_) => ApiError::conflict("name-taken", TOKEN, error),
            ApiTokenError::TooMany => ApiError::conflict("too-many-tokens", TOKEN, error),
            ApiTokenError::Nothing | ApiTokenError::BadTtl(_) | ApiTokenError::Caveats(_) => {
                ApiError::bad_request(error.to_string())
            }
        }
    }
}

impl From<JoinError> for ApiError {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Store(error) => error.into(),
            JoinError::BadTtl(_) => ApiError::bad_request(error.to_string()),
            JoinError::Authority(CaError::BadRequest(_)) => {
                ApiError::bad_request(error.to_string())
            }
            _ => ApiError::internal(error),
        }
    }
}
