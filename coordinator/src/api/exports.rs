//! Exports of a tenant's usage. Who may see the usage may see where it goes; who administers the tenant may say where.

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use holm_model::api::{ExportFile, ExportKind, ExportView, NewExport};
use holm_model::ids::Name;
use holm_model::token::Verb;
use serde::Deserialize;

use super::Shared;
use super::access::{Caller, told};
use super::input::{Id, JsonBody, OfTenant, QueryOf};
use super::problem::ApiError;
use crate::exports::webhook::{BadWebhook, Webhook, read_secret};
use crate::exports::{address, secret_of};
use crate::limits::MAX_AUTHORITIES_BYTES;
use crate::store::NewExportRow;

/// The query of a request for exports.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExportsQuery {
    tenant: Option<Name>,
}

pub(super) async fn list_all(
    State(api): Shared,
    caller: Caller,
    QueryOf(query): QueryOf<ExportsQuery>,
) -> Result<Json<Vec<ExportView>>, ApiError> {
    if let Some(tenant) = &query.tenant {
        caller.of_tenant(Verb::Usage, tenant)?;
    }
    let mut views = Vec::new();
    for row in api.store.exports(query.tenant.as_ref()).await? {
        if caller.grant.reaches(&row.tenant) {
            views.push(api.store.export_view(row).await?);
        }
    }
    Ok(Json(views))
}

pub(super) async fn add(
    State(api): Shared,
    caller: Caller,
    Id(tenant): Id<Name>,
    JsonBody(new): JsonBody<NewExport>,
) -> Result<impl IntoResponse, ApiError> {
    let row = match new.kind {
        ExportKind::Webhook => webhook(&api, &caller, &tenant, new)?,
        ExportKind::Parquet => to_files(&tenant, &new)?,
    };
    let detail = match row.kind {
        // What comes behind the host may be a secret.
        ExportKind::Webhook => format!("to {}", address::host(&row.url)),
        ExportKind::Parquet => "to files".to_owned(),
    };
    let id = api.store.add_export(&row, api.clock.now_ms()).await?;
    let rows = api.store.exports(Some(&tenant)).await?;
    let row = rows.into_iter().find(|row| row.id == id);
    let row = row.ok_or_else(|| ApiError::internal("an export that has gone at once"))?;
    let view = api.store.export_view(row).await?;
    let detail = told(format!("export {id} {detail}"));
    Ok((StatusCode::CREATED, detail, Json(view)))
}

pub(super) async fn remove(
    State(api): Shared,
    OfTenant { tenant, id }: OfTenant,
) -> Result<StatusCode, ApiError> {
    api.store.remove_export(&tenant, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The query of a request for files.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FilesQuery {
    /// The name after which the page begins.
    #[serde(default)]
    after: String,
}

pub(super) async fn files(
    State(api): Shared,
    Id(tenant): Id<Name>,
    QueryOf(query): QueryOf<FilesQuery>,
) -> Result<Json<Vec<ExportFile>>, ApiError> {
    Ok(Json(api.store.export_files(&tenant, &query.after).await?))
}

/// The query of a request for one file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileQuery {
    name: String,
}

pub(super) async fn file(
    State(api): Shared,
    Id(tenant): Id<Name>,
    QueryOf(query): QueryOf<FileQuery>,
) -> Result<Response, ApiError> {
    let none = |why: &str| ApiError::not_found(format!("`name`: tenant `{tenant}` {why}"));
    // Only what is in the list has a name in the store.
    if !api.store.has_export_file(&tenant, &query.name).await? {
        return Err(none("has no file of this name"));
    }
    let bytes = api.objects.read_file(&query.name).await?;
    let bytes =
        bytes.ok_or_else(|| none("has this file no more: it is not in the artifact store"))?;
    let parquet = HeaderValue::from_static("application/vnd.apache.parquet");
    Ok(([(CONTENT_TYPE, parquet)], bytes).into_response())
}

fn webhook(
    api: &super::Api,
    caller: &Caller,
    tenant: &Name,
    new: NewExport,
) -> Result<NewExportRow, ApiError> {
    if new.private {
        // What only the coordinator reaches is the operator's to open.
        caller.of_all(Verb::Admin)?;
    }
    let url = new
        .url
        .ok_or_else(|| ApiError::bad_request("`url`: a webhook needs one"))?;
    let secret = new
        .secret
        .ok_or_else(|| ApiError::bad_request("`secret`: a webhook needs one"))?;
    let ca = new.ca.unwrap_or_default();
    if ca.len() > MAX_AUTHORITIES_BYTES {
        let detail = format!("`ca`: it is longer than {MAX_AUTHORITIES_BYTES} bytes");
        return Err(ApiError::bad_request(detail));
    }
    let secret = read_secret(&secret).map_err(|error| bad(&error))?;
    Webhook::new(&url, &ca, &secret, new.private).map_err(|error| bad(&error))?;
    let sealed = api.authority.seal(&secret_of(tenant, &url), &secret);
    Ok(NewExportRow {
        tenant: tenant.clone(),
        kind: ExportKind::Webhook,
        url,
        ca,
        private: new.private,
        secret: Some(sealed),
        from_start: new.from_start,
    })
}

fn to_files(tenant: &Name, new: &NewExport) -> Result<NewExportRow, ApiError> {
    let of_webhook = [
        ("url", new.url.is_some()),
        ("secret", new.secret.is_some()),
        ("ca", new.ca.is_some()),
        ("private", new.private),
        ("from_start", new.from_start),
    ];
    if let Some((field, _)) = of_webhook.iter().find(|(_, given)| *given) {
        let detail = format!("`{field}`: it is of webhooks alone");
        return Err(ApiError::bad_request(detail));
    }
    Ok(NewExportRow {
        tenant: tenant.clone(),
        kind: ExportKind::Parquet,
        url: String::new(),
        ca: String::new(),
        private: false,
        secret: None,
        from_start: true,
    })
}

fn bad(error: &BadWebhook) -> ApiError {
    let name = match error {
        BadWebhook::Url(_) => "bad-url",
        BadWebhook::Secret => "bad-secret",
        BadWebhook::Authority => "bad-authority",
        BadWebhook::Client(_) => "bad-webhook",
    };
    ApiError::unprocessable(name, "The export is not made", error)
}
