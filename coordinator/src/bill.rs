//! Bills: what a tenant's usage costs, signed so that it can be verified by who has the CA's certificate.

use std::collections::BTreeMap;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use holm_model::api::{BILL_CONTEXT, Bill, BillLine, BillTotal, ExplainedRecord, SignedBill};
use holm_model::ids::{Digest, Name, RequestId};
use holm_model::price::{Amount, Currency, Units, in_force};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::ca::{Authority, CaError};
use crate::store::{Store, StoreError};

/// Raised when the meaning of a bill's fields changes.
const BILL_FORMAT: u64 = 1;

/// A bill cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BillError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Signature(#[from] CaError),
    #[error("a bill cannot be written: {0}")]
    Text(#[from] serde_json::Error),
}

/// The bill of a tenant for a time, which begins and ends with an hour.
pub(crate) async fn bill(
    store: &Store,
    authority: &Authority,
    tenant: &Name,
    (from_ms, to_ms): (u64, u64),
    now_ms: u64,
) -> Result<SignedBill, BillError> {
    let (lines, last_row) = store.bill_lines(tenant, from_ms, to_ms).await?;
    let bill = Bill {
        holm_bill: BILL_FORMAT,
        tenant: tenant.clone(),
        from_ms,
        to_ms,
        issued_ms: now_ms,
        last_row,
        totals: totals(&lines),
        lines,
    };
    let bill = serde_json::to_string(&bill)?;
    let signature = authority.sign(&[BILL_CONTEXT, bill.as_bytes()].concat())?;
    Ok(SignedBill {
        bill,
        signature: BASE64.encode(signature),
        authority: BASE64.encode(authority.certificate()),
    })
}

/// A bill cannot be believed.
#[derive(Debug, thiserror::Error)]
pub enum UnverifiedBill {
    /// A field is not what it should be.
    #[error("the bill's `{0}` cannot be read; the file is damaged or no bill")]
    Unreadable(&'static str),
    /// Another fleet's.
    #[error(
        "the bill is signed by the authority {found}, not by {expected}; it is of another fleet, or forged"
    )]
    OtherAuthority {
        /// Whose it is.
        found: Digest,
        /// Whose it should be.
        expected: Digest,
    },
    /// Not signed by that key.
    #[error("the signature does not belong to the bill: the bill was changed, or is forged")]
    BadSignature,
    /// Its own numbers do not fit.
    #[error("the bill is signed, but its {0} do not fit; the coordinator that made it is to blame")]
    Sums(&'static str),
}

/// Reads a bill that the authority with the digest `expected` signed, without asking anybody, and calculates
/// anew what it costs. `None` takes the authority that the bill names.
///
/// # Errors
/// It is not such a bill.
pub fn verify(signed: &SignedBill, expected: Option<Digest>) -> Result<Bill, UnverifiedBill> {
    use UnverifiedBill::Unreadable;
    let bytes = |text: &str, what| BASE64.decode(text).map_err(|_| Unreadable(what));
    let authority = bytes(&signed.authority, "authority")?;
    let found = Digest::of(&authority);
    if let Some(expected) = expected.filter(|expected| *expected != found) {
        return Err(UnverifiedBill::OtherAuthority { found, expected });
    }
    let (_, certificate) =
        X509Certificate::from_der(&authority).map_err(|_| Unreadable("authority"))?;
    let key = &certificate.public_key().subject_public_key.data;
    let message = [BILL_CONTEXT, signed.bill.as_bytes()].concat();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key)
        .verify(&message, &bytes(&signed.signature, "signature")?)
        .map_err(|_| UnverifiedBill::BadSignature)?;
    let bill: Bill = serde_json::from_str(&signed.bill).map_err(|_| Unreadable("bill"))?;
    if bill.holm_bill != BILL_FORMAT {
        return Err(Unreadable("holm_bill"));
    }
    let in_its_time = |line: &BillLine| {
        bill.from_ms <= line.from_ms
            && line.from_ms < line.to_ms
            && line.to_ms <= bill.to_ms
            && line
                .plan
                .as_ref()
                .is_none_or(|plan| plan.from_ms <= line.from_ms)
    };
    let apart = |pair: &[BillLine]| {
        pair[0].function < pair[1].function
            || pair[0].function == pair[1].function && pair[0].to_ms <= pair[1].from_ms
    };
    if !bill.lines.iter().all(in_its_time) || !bill.lines.windows(2).all(apart) {
        return Err(UnverifiedBill::Sums("times"));
    }
    let cost = |line: &BillLine| {
        line.plan
            .as_ref()
            .map(|plan| plan.prices.cost(&line.billed))
    };
    if bill.lines.iter().any(|line| cost(line) != line.cost) {
        return Err(UnverifiedBill::Sums("lines"));
    }
    match totals(&bill.lines) == bill.totals {
        true => Ok(bill),
        false => Err(UnverifiedBill::Sums("totals")),
    }
}

/// The digest of the certificate that a bill names as its authority's, whoever that is.
pub fn authority_of(signed: &SignedBill) -> Digest {
    Digest::of(&BASE64.decode(&signed.authority).unwrap_or_default())
}

fn totals(lines: &[BillLine]) -> Vec<BillTotal> {
    let mut totals: BTreeMap<&Currency, Amount> = BTreeMap::new();
    for line in lines {
        if let (Some(plan), Some(cost)) = (&line.plan, &line.cost) {
            let total = totals.entry(&plan.currency).or_default();
            *total = total.plus(cost.total);
        }
    }
    let total = |(currency, total): (&Currency, Amount)| BillTotal {
        currency: currency.clone(),
        total,
    };
    totals.into_iter().map(total).collect()
}

/// What the ledger knows of a request, and what it costs.
pub(crate) async fn explain(
    store: &Store,
    request: RequestId,
) -> Result<Vec<ExplainedRecord>, StoreError> {
    let rows = store.request_records(request).await?;
    let prices = store.prices().await?;
    let versions: Vec<_> = rows.iter().map(|row| row.record.version).collect();
    let labels = store.labels(&versions).await?;
    let explained = rows.into_iter().map(|row| {
        let record = &row.record;
        let (tenant, at) = (&record.function.tenant, record.accepted_ms);
        let plan = in_force(tenant, &prices.plans, &prices.assignments, at);
        let billed = Units::of(record);
        ExplainedRecord {
            label: labels.get(&record.version).cloned().unwrap_or_default(),
            billed,
            plan: plan.cloned(),
            cost: plan.map(|plan| plan.prices.cost(&billed)),
            row,
        }
    });
    Ok(explained.collect())
}

#[cfg(test)]
#[path = "bill_tests.rs"]
mod tests;
