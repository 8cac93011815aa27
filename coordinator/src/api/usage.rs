//! Usage, its audit, and what it costs.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use holm_model::api::{
    AuditView, ExplainedRecord, NewAssignment, NewPrices, PricesView, SignedBill, UsageRecordsPage,
    UsageView,
};
use holm_model::ids::{FunctionName, Name, RequestId};
use holm_model::limits::MAX_USAGE_BATCH;
use holm_model::price::DEFAULT_PLAN;
use holm_model::price::PlanAssignment;
use holm_model::token::Verb;
use serde::Deserialize;

use super::Shared;
use super::access::{Caller, told};
use super::input::{Id, JsonBody, QueryOf, page_rows};
use super::problem::ApiError;
use crate::bill;
use crate::limits::MAX_TIME_PARTS;
use crate::store::{ALWAYS_MS, DAY_MS, HOUR_MS, MINUTE_MS, RecordsFilter, UsageFilter, UsageGroup};

/// The query of a usage request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UsageQuery {
    tenant: Option<String>,
    /// A name, or `tenant/function`.
    function: Option<String>,
    /// `function` (default), `tenant`, `version`, `node`, `day`, `hour` or `minute`.
    by: Option<String>,
    /// Milliseconds since 1970 UTC, taken down to the minute; by hour a month and by minute a day before the end, if it
    /// is not said.
    since: Option<u64>,
    /// The same; exclusive.
    until: Option<u64>,
}

pub(super) async fn sums(
    State(api): Shared,
    caller: Caller,
    QueryOf(query): QueryOf<UsageQuery>,
) -> Result<Json<Vec<UsageView>>, ApiError> {
    let (filter, group) = parse(&query, api.clock.now_ms())?;
    allow(&caller, filter.tenant.as_ref())?;
    Ok(Json(api.ledger.usage(&filter, group).await?))
}

pub(super) async fn audit(State(api): Shared) -> Result<Json<AuditView>, ApiError> {
    Ok(Json(api.ledger.audit().await?))
}

/// The query of a request for rows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RecordsQuery {
    tenant: Option<Name>,
    /// `tenant/function`.
    function: Option<String>,
    /// From when on they were accepted, milliseconds since 1970 UTC.
    since: Option<u64>,
    /// The same; exclusive.
    until: Option<u64>,
    after: Option<u64>,
    limit: Option<usize>,
}

pub(super) async fn records(
    State(api): Shared,
    caller: Caller,
    QueryOf(query): QueryOf<RecordsQuery>,
) -> Result<Json<UsageRecordsPage>, ApiError> {
    let function: Option<FunctionName> = query
        .function
        .filter(|text| !text.is_empty())
        .map(|text| text.parse())
        .transpose()
        .map_err(|error| ApiError::bad_request(format!("`function`: {error}")))?;
    let mut filter = RecordsFilter::from(function.as_ref());
    if let Some(tenant) = query.tenant {
        if filter.tenant.as_ref().is_some_and(|other| *other != tenant) {
            let detail = "`function`: it is of another tenant than `tenant`";
            return Err(ApiError::bad_request(detail));
        }
        filter.tenant = Some(tenant);
    }
    (filter.from_ms, filter.to_ms) = (query.since, query.until);
    allow(&caller, filter.tenant.as_ref())?;
    let limit = page_rows(query.limit, MAX_USAGE_BATCH)?;
    let after = query.after.unwrap_or(0);
    Ok(Json(api.ledger.records(&filter, after, limit).await?))
}

/// The query of a request for a bill.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BillQuery {
    tenant: Name,
    /// Milliseconds since 1970 UTC, the beginning of an hour.
    since: u64,
    /// The same; exclusive.
    until: u64,
}

pub(super) async fn bill(
    State(api): Shared,
    caller: Caller,
    QueryOf(query): QueryOf<BillQuery>,
) -> Result<Json<SignedBill>, ApiError> {
    caller.of_tenant(Verb::Usage, &query.tenant)?;
    let (from, to) = (query.since, query.until);
    let whole = from.is_multiple_of(HOUR_MS) && to.is_multiple_of(HOUR_MS);
    if !whole || from >= to || to > ALWAYS_MS {
        let detail = "`since` and `until` are not a time from the beginning of an hour to that of a later one";
        return Err(ApiError::bad_request(detail));
    }
    let now_ms = api.clock.now_ms();
    bill::bill(
        &api.store,
        &api.authority,
        &query.tenant,
        (from, to),
        now_ms,
    )
    .await
    .map(Json)
    .map_err(ApiError::internal)
}

pub(super) async fn explain(
    State(api): Shared,
    caller: Caller,
    Id(request): Id<RequestId>,
) -> Result<Json<Vec<ExplainedRecord>>, ApiError> {
    let mut rows = bill::explain(&api.store, request).await?;
    // Another tenant's is told from none at all by nobody.
    rows.retain(|explained| caller.grant.reaches(&explained.row.record.function.tenant));
    if !rows.is_empty() {
        return Ok(Json(rows));
    }
    let dropped = api.store.dropped_so_far().await?;
    let not_kept = match dropped.rows {
        0 => String::new(),
        _ => format!(
            ", or it is no longer kept: {}what was entered until {} has been removed, and only its sums are there",
            api.keep_records.map_or_else(String::new, |keep| format!(
                "records are kept for {} s, and ",
                keep.as_secs()
            )),
            time_text(dropped.upto_ms)
        ),
    };
    Err(ApiError::not_found(format!(
        "the ledger has no request {request}: its node has not uploaded it yet (a second or two, or until it \
         reaches a coordinator), or it was never taken{not_kept}"
    )))
}

fn time_text(ms: u64) -> String {
    let time = i64::try_from(ms).ok();
    let time = time.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.map_or_else(|| format!("{ms} ms"), |time| time.to_string())
}

/// With the plans of the tenants that the token is for.
pub(super) async fn prices(
    State(api): Shared,
    caller: Caller,
) -> Result<Json<PricesView>, ApiError> {
    let mut view = api.store.prices().await?;
    view.assignments
        .retain(|assigned| caller.grant.reaches(&assigned.tenant));
    if !caller.grant.reaches_all() {
        let assignments = &view.assignments;
        view.plans.retain(|plan| {
            plan.name.as_str() == DEFAULT_PLAN
                || assignments
                    .iter()
                    .any(|assigned| assigned.plan == plan.name)
        });
    }
    Ok(Json(view))
}

pub(super) async fn add_prices(
    State(api): Shared,
    Id(plan): Id<Name>,
    JsonBody(new): JsonBody<NewPrices>,
) -> Result<impl IntoResponse, ApiError> {
    from_in_range(new.from_ms)?;
    let plan = api
        .store
        .add_prices(&plan, &new, || api.clock.now_ms())
        .await?;
    api.budgets.refresh().await?;
    let told = told(format!("version {}", plan.version));
    Ok((StatusCode::CREATED, told, Json(plan)))
}

pub(super) async fn assign_plan(
    State(api): Shared,
    Id(tenant): Id<Name>,
    JsonBody(new): JsonBody<NewAssignment>,
) -> Result<impl IntoResponse, ApiError> {
    from_in_range(new.from_ms)?;
    let assigned = api
        .store
        .assign_plan(&tenant, &new, || api.clock.now_ms())
        .await?;
    api.budgets.refresh().await?;
    let PlanAssignment { plan, from_ms, .. } = &assigned;
    Ok((told(format!("{plan} from {from_ms}")), Json(assigned)))
}

fn from_in_range(from_ms: Option<u64>) -> Result<(), ApiError> {
    match from_ms {
        Some(from_ms) if from_ms > ALWAYS_MS => {
            Err(ApiError::bad_request("`from_ms` is after the end of time"))
        }
        _ => Ok(()),
    }
}

/// Who does not say a tenant wants to know of all.
fn allow(caller: &Caller, tenant: Option<&Name>) -> Result<(), ApiError> {
    match tenant {
        Some(tenant) => caller.of_tenant(Verb::Usage, tenant),
        None => caller.of_all(Verb::Usage),
    }
}

fn parse(query: &UsageQuery, now_ms: u64) -> Result<(UsageFilter, UsageGroup), ApiError> {
    let bad =
        |what, error: &dyn std::fmt::Display| ApiError::bad_request(format!("`{what}`: {error}"));
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let mut filter = UsageFilter::default();
    if let Some(tenant) = given(&query.tenant) {
        filter.tenant = Some(tenant.parse().map_err(|error| bad("tenant", &error))?);
    }
    match given(&query.function) {
        Some(both) if both.contains('/') => {
            let both: FunctionName = both.parse().map_err(|error| bad("function", &error))?;
            if filter
                .tenant
                .as_ref()
                .is_some_and(|tenant| *tenant != both.tenant)
            {
                return Err(bad("function", &"it is of another tenant than `tenant`"));
            }
            filter.tenant = Some(both.tenant);
            filter.function = Some(both.function);
        }
        Some(one) => {
            let name: Name = one.parse().map_err(|error| bad("function", &error))?;
            filter.function = Some(name);
        }
        None => {}
    }
    let group = match given(&query.by).as_deref() {
        None | Some("function") => UsageGroup::Function,
        Some("tenant") => UsageGroup::Tenant,
        Some("version") => UsageGroup::Version,
        Some("node") => UsageGroup::Node,
        Some("day") => UsageGroup::Time(DAY_MS),
        Some("hour") => UsageGroup::Time(HOUR_MS),
        Some("minute") => UsageGroup::Time(MINUTE_MS),
        Some(_) => {
            let detail = "it is not function, tenant, version, node, day, hour or minute";
            return Err(bad("by", &detail));
        }
    };
    let minute = |ms: u64| ms - ms % MINUTE_MS;
    filter.to_ms = minute(query.until.unwrap_or(ALWAYS_MS)).min(ALWAYS_MS);
    // Of all time that would be more parts than anybody reads.
    let end = filter.to_ms.min(now_ms);
    let since = query.since.unwrap_or(match group {
        UsageGroup::Time(MINUTE_MS) => end.saturating_sub(DAY_MS),
        UsageGroup::Time(HOUR_MS) => end.saturating_sub(31 * DAY_MS),
        _ => 0,
    });
    filter.from_ms = minute(since);
    if filter.from_ms >= filter.to_ms {
        return Err(bad("until", &"it is not at least a minute after `since`"));
    }
    if let UsageGroup::Time(part) = group {
        let to = filter.to_ms.min(now_ms.saturating_add(DAY_MS));
        if to.saturating_sub(filter.from_ms) / part > MAX_TIME_PARTS {
            let detail = format!(
                "it leaves more than {MAX_TIME_PARTS} parts; say a later time, or larger parts"
            );
            return Err(bad("since", &detail));
        }
    }
    Ok((filter, group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hour_or_minute_without_a_beginning_it_is_the_last_month_or_day() {
        const NOW: u64 = 20_000 * DAY_MS + 90_000;
        let ask = |by: &str, since, until| {
            let query = UsageQuery {
                tenant: None,
                function: None,
                by: Some(by.to_owned()),
                since,
                until,
            };
            parse(&query, NOW).map(|(filter, _)| (filter.from_ms, filter.to_ms))
        };
        let minute = NOW - NOW % MINUTE_MS;
        assert_eq!(
            ask("minute", None, None).unwrap(),
            (minute - DAY_MS, ALWAYS_MS)
        );
        assert_eq!(
            ask("hour", None, None).unwrap(),
            (minute - 31 * DAY_MS, ALWAYS_MS)
        );
        let until = 10_000 * DAY_MS;
        let day = ask("minute", None, Some(until)).unwrap();
        assert_eq!(day, (until - DAY_MS, until));
        assert_eq!(ask("day", None, None).unwrap(), (0, ALWAYS_MS));
        assert!(ask("minute", Some(0), None).is_err());
    }
}
