//! Configurations of functions. No answer has the value of a secret.

use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::IntoResponse;
use holm_model::api::{ConfigurationRequest, ConfigurationView};
use holm_model::configuration::Secrets;
use holm_model::ids::FunctionName;

use super::Shared;
use super::access::told;
use super::input::{OfFunction, SecretBody, function_name};
use super::problem::ApiError;

pub(super) async fn publish(
    State(api): Shared,
    OfFunction(function): OfFunction,
    SecretBody(request): SecretBody<ConfigurationRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let signed = request
        .to_signed()
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    let published = api
        .configurations
        .publish(&function, &signed, request.secrets);
    let (view, changes) = published.await?;
    Ok((StatusCode::CREATED, told(changes), Json(view)))
}

/// The newest ones, names alone.
pub(super) async fn list(
    State(api): Shared,
    OfFunction(function): OfFunction,
) -> Result<Json<Vec<ConfigurationView>>, ApiError> {
    Ok(Json(api.configurations.list(&function).await?))
}

/// A configuration as it was signed: with plain values, and of secrets the commitments.
pub(super) async fn get_one(
    State(api): Shared,
    Numbered { function, number }: Numbered,
) -> Result<Json<ConfigurationRequest>, ApiError> {
    let found = api.configurations.numbered(&function, number).await?;
    let signed = ConfigurationRequest::from_signed(&found.signed, Secrets::new());
    Ok(Json(signed))
}

/// `{tenant}/{function}` and `{number}` in the path.
pub(super) struct Numbered {
    function: FunctionName,
    number: u64,
}

impl<S: Send + Sync> FromRequestParts<S> for Numbered {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path((tenant, function, number)) =
            Path::<(String, String, String)>::from_request_parts(parts, state)
                .await
                .map_err(|error| ApiError::bad_request(error.body_text()))?;
        let none = |_| ApiError::bad_request("the path names no configuration: a number from 1");
        Ok(Numbered {
            function: function_name(&tenant, &function)?,
            number: number.parse().map_err(none)?,
        })
    }
}
