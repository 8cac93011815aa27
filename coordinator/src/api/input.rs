//! What comes with a request, read within bounds and refused with a problem.

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use holm_model::ids::{FunctionName, Name, VersionId};
use serde::de::DeserializeOwned;

use super::problem::ApiError;
use crate::limits::{DEFAULT_PAGE_ROWS, MAX_JSON_BODY_BYTES};

/// A JSON body.
pub(super) struct JsonBody<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, _: &S) -> Result<Self, ApiError> {
        let body = read(request).await?.map(JsonBody);
        body.map_err(|error| {
            ApiError::bad_request(format!("the body is not as it should be: {error}"))
        })
    }
}

/// A JSON body with secrets in it: what is wrong with it is told by its place alone, for the answer and the audit log.
pub(super) struct SecretBody<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for SecretBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, _: &S) -> Result<Self, ApiError> {
        let body = read(request).await?.map(SecretBody);
        body.map_err(|error| {
            let (line, column) = (error.line(), error.column());
            ApiError::bad_request(format!(
                "the body is not as it should be in line {line}, column {column}; what stands there may be secret and \
                 is not shown"
            ))
        })
    }
}

/// The body, or what is wrong with it as JSON.
async fn read<T: DeserializeOwned>(
    request: Request<Body>,
) -> Result<Result<T, serde_json::Error>, ApiError> {
    let bytes = axum::body::to_bytes(request.into_body(), MAX_JSON_BODY_BYTES)
        .await
        .map_err(|error| {
            // The limit, or a caller that went away and will not read this.
            ApiError::too_large(format!(
                "the body could not be read within {MAX_JSON_BODY_BYTES} bytes: {error}"
            ))
        })?;
    // Nothing at all says as much as an object without fields.
    let bytes = if bytes.is_empty() { &b"{}"[..] } else { &bytes };
    Ok(serde_json::from_slice(bytes))
}

/// The query.
pub(super) struct QueryOf<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for QueryOf<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(query)| QueryOf(query))
            .map_err(|error| ApiError::bad_request(error.body_text()))
    }
}

/// One path segment that is an id.
pub(super) struct Id<T>(pub(super) T);

impl<S, T> FromRequestParts<S> for Id<T>
where
    S: Send + Sync,
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::bad_request(error.body_text()))?;
        text.parse().map(Id).map_err(|error: T::Err| {
            ApiError::bad_request(format!("the path names no such thing: {error}"))
        })
    }
}

/// `{tenant}/{function}` and `{tag}` in the path.
pub(super) struct Tagged {
    pub(super) function: FunctionName,
    pub(super) tag: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Tagged {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path((tenant, function, tag)) =
            Path::<(String, String, String)>::from_request_parts(parts, state)
                .await
                .map_err(|error| ApiError::bad_request(error.body_text()))?;
        let function = function_name(&tenant, &function)?;
        Ok(Tagged { function, tag })
    }
}

/// `{tenant}/{function}` and `{version}` in the path.
pub(super) struct OfVersion {
    pub(super) function: FunctionName,
    pub(super) version: VersionId,
}

impl<S: Send + Sync> FromRequestParts<S> for OfVersion {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path((tenant, function, version)) =
            Path::<(String, String, String)>::from_request_parts(parts, state)
                .await
                .map_err(|error| ApiError::bad_request(error.body_text()))?;
        let bad = |error| ApiError::bad_request(format!("the path names no version: {error}"));
        Ok(OfVersion {
            function: function_name(&tenant, &function)?,
            version: version.parse().map_err(bad)?,
        })
    }
}

pub(super) fn function_name(tenant: &str, function: &str) -> Result<FunctionName, ApiError> {
    let name = |text: &str| {
        text.parse()
            .map_err(|error| ApiError::bad_request(format!("the path names no function: {error}")))
    };
    Ok(FunctionName {
        tenant: name(tenant)?,
        function: name(function)?,
    })
}

/// `{tenant}` and a number in the path.
pub(super) struct OfTenant {
    pub(super) tenant: Name,
    pub(super) id: u64,
}

impl<S: Send + Sync> FromRequestParts<S> for OfTenant {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path((tenant, id)) = Path::<(String, String)>::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::bad_request(error.body_text()))?;
        let bad =
            |why: String| ApiError::bad_request(format!("the path names no such thing: {why}"));
        Ok(OfTenant {
            tenant: tenant
                .parse()
                .map_err(|error: holm_model::ids::IdError| bad(error.to_string()))?,
            id: id
                .parse()
                .map_err(|_| bad(format!("`{id}` is no number")))?,
        })
    }
}

/// `{tenant}/{function}` in the path.
pub(super) struct OfFunction(pub(super) FunctionName);

impl<S: Send + Sync> FromRequestParts<S> for OfFunction {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path((tenant, function)) = Path::<(String, String)>::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::bad_request(error.body_text()))?;
        function_name(&tenant, &function).map(OfFunction)
    }
}

/// How many rows a page is to have, at most `most`.
pub(super) fn page_rows(asked: Option<usize>, most: usize) -> Result<usize, ApiError> {
    let limit = asked.unwrap_or(DEFAULT_PAGE_ROWS);
    match (1..=most).contains(&limit) {
        true => Ok(limit),
        false => {
            let detail = format!("`limit`: {limit} is not 1 to {most}");
            Err(ApiError::bad_request(detail))
        }
    }
}
