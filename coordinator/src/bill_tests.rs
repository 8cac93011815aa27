use holm_model::api::{NewAssignment, NewPrices};
use holm_model::artifact::PublisherKey;
use holm_model::price::{HOUR_MS, Prices};
use holm_model::usage::{Outcome, UsageRecord};

use super::*;
use crate::store::testing::{TestDatabase, on_both_databases};
use crate::store::{Basis, KeyChange, Unpriced};

on_both_databases! {
    what_was_used_under_old_prices_keeps_them,
    a_time_that_has_begun_keeps_its_prices,
    prices_that_make_no_sense_are_refused,
    a_request_is_explained_by_the_prices_of_its_hour,
}

const NOW_MS: u64 = 1_000 * HOUR_MS + 5;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn prices(requests: &str, from_ms: Option<u64>) -> NewPrices {
    NewPrices {
        currency: "EUR".parse().unwrap(),
        prices: Prices {
            million_requests: requests.parse().unwrap(),
            ..Prices::default()
        },
        from_ms,
    }
}

fn plan(plan: &str, from_ms: Option<u64>) -> NewAssignment {
    NewAssignment {
        plan: name(plan),
        from_ms,
    }
}

/// Executions of acme's, one in each of these hours.
fn records(hours: std::ops::Range<u64>) -> Vec<UsageRecord> {
    let record = |(hour, sequence)| UsageRecord {
        boot_epoch: 1,
        sequence,
        request: RequestId([hour as u8; 16]),
        function: "acme/hello".parse().unwrap(),
        version: Digest([7; 32]),
        accepted_ms: hour * HOUR_MS + 17,
        outcome: Outcome::Answered,
        status: 200,
        queue_ns: 1,
        restore_ns: 2,
        run_ns: 3,
        cpu_ns: 4,
        memory_bytes: 1 << 20,
        request_bytes: 0,
        response_bytes: 0,
        egress_bytes: 0,
        ingress_bytes: 0,
        cold: false,
        exits: 1,
        probe: false,
    };
    hours.zip(1..).map(record).collect()
}

async fn with_acme(database: &TestDatabase) -> &Store {
    let store = &database.store;
    let basis = Basis {
        revision: 0,
        lease: None,
    };
    let key = KeyChange::Add(vec![PublisherKey([1; 32])]);
    store
        .change_keys(basis, &name("acme"), &key, 1, 1)
        .await
        .unwrap();
    store
}

fn authority() -> Authority {
    let dir = tempfile::tempdir().unwrap();
    Authority::load_or_make(dir.path()).unwrap()
}

async fn what_was_used_under_old_prices_keeps_them(database: TestDatabase) {
    let store = with_acme(&database).await;
    store
        .enter_rows(&name("edge"), &records(0..100))
        .await
        .unwrap();
    let standard = name("standard");
    // From hour 10 a euro a request, from 60 two; from 70 on acme pays three by a plan of its own.
    for (hour, price) in [(10, "1000000"), (60, "2000000")] {
        let new = prices(price, Some(hour * HOUR_MS));
        store.add_prices(&standard, &new, || 5).await.unwrap();
    }
    store
        .add_prices(&name("own"), &prices("3000000", Some(0)), || 5)
        .await
        .unwrap();
    store
        .assign_plan(&name("acme"), &plan("own", Some(70 * HOUR_MS)), || 5)
        .await
        .unwrap();

    let authority = authority();
    let signed = bill(
        store,
        &authority,
        &name("acme"),
        (5 * HOUR_MS, 90 * HOUR_MS),
        NOW_MS,
    )
    .await
    .unwrap();
    let bill = verify(&signed, Some(authority.fingerprint())).unwrap();
    let lines: Vec<_> = bill
        .lines
        .iter()
        .map(|line| {
            let cost = line.cost.as_ref().map(|cost| cost.total.to_string());
            (
                line.from_ms / HOUR_MS,
                line.to_ms / HOUR_MS,
                line.executions,
                cost.unwrap_or_default(),
            )
        })
        .collect();
    let expected = [
        (5, 10, 5, ""),
        (10, 60, 50, "50.00"),
        (60, 70, 10, "20.00"),
        (70, 90, 20, "60.00"),
    ];
    assert_eq!(
        lines,
        expected.map(|(from, to, executions, cost)| (from, to, executions, cost.to_owned()))
    );
    assert_eq!(bill.totals.len(), 1);
    assert_eq!(bill.totals[0].total.to_string(), "130.00");
    assert!(bill.last_row >= 100);
}

async fn a_time_that_has_begun_keeps_its_prices(database: TestDatabase) {
    let store = with_acme(&database).await;
    let standard = name("standard");
    let hour = |hours: u64| Some(hours * HOUR_MS);
    // Where there was no price there may be one from any time on.
    let first = store
        .add_prices(&standard, &prices("1", hour(3)), || NOW_MS)
        .await
        .unwrap();
    assert_eq!((first.version, first.from_ms), (1, 3 * HOUR_MS));
    for past in [0, 3, 999, 1000] {
        let refused = store
            .add_prices(&standard, &prices("2", hour(past)), || NOW_MS)
            .await
            .unwrap_err();
        assert!(
            matches!(refused, Unpriced::Past { earliest_ms, .. } if earliest_ms == 1001 * HOUR_MS),
            "{refused}"
        );
    }
    let next = store
        .add_prices(&standard, &prices("2", None), || NOW_MS)
        .await
        .unwrap();
    assert_eq!((next.version, next.from_ms), (2, 1001 * HOUR_MS));
    // The same for who has which plan.
    store
        .add_prices(&name("own"), &prices("3", hour(0)), || NOW_MS)
        .await
        .unwrap();
    let acme = name("acme");
    let refused = store
        .assign_plan(&acme, &plan("own", hour(999)), || NOW_MS)
        .await
        .unwrap_err();
    assert!(matches!(refused, Unpriced::Past { .. }), "{refused}");
    let given = store
        .assign_plan(&acme, &plan("own", None), || NOW_MS)
        .await
        .unwrap();
    assert_eq!(given.from_ms, 1001 * HOUR_MS);
    // It may be decided anew until it begins.
    store
        .assign_plan(&acme, &plan("standard", hour(1001)), || NOW_MS)
        .await
        .unwrap();
    assert_eq!(store.prices().await.unwrap().assignments[0].plan, standard);
}

async fn prices_that_make_no_sense_are_refused(database: TestDatabase) {
    let store = with_acme(&database).await;
    let standard = name("standard");
    let within = store
        .add_prices(&standard, &prices("1", Some(HOUR_MS + 1)), || NOW_MS)
        .await
        .unwrap_err();
    assert!(matches!(within, Unpriced::WithinAnHour(_)), "{within}");
    let dear = store
        .add_prices(&standard, &prices("10000000000", None), || NOW_MS)
        .await
        .unwrap_err();
    assert!(matches!(dear, Unpriced::TooDear(_)), "{dear}");
    let none = store
        .assign_plan(&name("acme"), &plan("standard", None), || NOW_MS)
        .await
        .unwrap_err();
    assert!(matches!(none, Unpriced::NoPlan(_)), "{none}");
    store
        .add_prices(&standard, &prices("1", None), || NOW_MS)
        .await
        .unwrap();
    let nobody = store
        .assign_plan(&name("nobody"), &plan("standard", None), || NOW_MS)
        .await
        .unwrap_err();
    assert!(matches!(nobody, Unpriced::NoTenant(_)), "{nobody}");
    let mut other = prices("1", None);
    other.currency = "USD".parse().unwrap();
    let other = store
        .add_prices(&standard, &other, || NOW_MS)
        .await
        .unwrap_err();
    assert!(matches!(other, Unpriced::OtherCurrency { .. }), "{other}");
    assert_eq!(store.prices().await.unwrap().plans.len(), 1);
}

async fn a_request_is_explained_by_the_prices_of_its_hour(database: TestDatabase) {
    let store = with_acme(&database).await;
    store
        .enter_rows(&name("edge"), &records(0..20))
        .await
        .unwrap();
    store
        .add_prices(
            &name("standard"),
            &prices("1000000", Some(10 * HOUR_MS)),
            || 5,
        )
        .await
        .unwrap();
    let cost = async |request| {
        let explained = explain(store, RequestId([request; 16])).await.unwrap();
        assert_eq!(explained.len(), 1);
        assert_eq!(
            (explained[0].billed.requests, explained[0].row.node.as_str()),
            (1, "edge")
        );
        explained[0].cost.map(|cost| cost.total.to_string())
    };
    assert_eq!(cost(9).await, None);
    assert_eq!(cost(10).await.as_deref(), Some("1.00"));
    assert_eq!(explain(store, RequestId([200; 16])).await.unwrap(), []);
}

#[tokio::test]
async fn a_bill_that_was_changed_or_is_anothers_is_not_believed() {
    let database = TestDatabase::sqlite().await;
    let store = with_acme(&database).await;
    store
        .enter_rows(&name("edge"), &records(0..20))
        .await
        .unwrap();
    store
        .add_prices(&name("standard"), &prices("1000000", Some(0)), || 5)
        .await
        .unwrap();
    let (authority, other) = (authority(), self::authority());
    let bill = bill(store, &authority, &name("acme"), (0, 20 * HOUR_MS), NOW_MS)
        .await
        .unwrap();
    assert_eq!(
        verify(&bill, None).unwrap().totals[0].total.to_string(),
        "20.00"
    );

    let theirs = verify(&bill, Some(other.fingerprint())).unwrap_err();
    assert!(
        matches!(theirs, UnverifiedBill::OtherAuthority { .. }),
        "{theirs}"
    );
    let changed = |change: &dyn Fn(&mut SignedBill)| {
        let mut bill = bill.clone();
        change(&mut bill);
        verify(&bill, Some(authority.fingerprint())).unwrap_err()
    };
    let cheaper = changed(&|bill| bill.bill = bill.bill.replace("20.00", "10.00"));
    assert!(matches!(cheaper, UnverifiedBill::BadSignature), "{cheaper}");
    let spaced = changed(&|bill| bill.bill.push(' '));
    assert!(matches!(spaced, UnverifiedBill::BadSignature), "{spaced}");
    let unsigned = changed(&|bill| bill.signature.clear());
    assert!(
        matches!(unsigned, UnverifiedBill::BadSignature),
        "{unsigned}"
    );
    let forged = changed(&|bill| bill.authority = BASE64.encode(other.certificate()));
    assert!(
        matches!(forged, UnverifiedBill::OtherAuthority { .. }),
        "{forged}"
    );
    let garbage = changed(&|bill| bill.signature = "?".to_owned());
    assert!(
        matches!(garbage, UnverifiedBill::Unreadable("signature")),
        "{garbage}"
    );
    // One that the authority signed though its numbers are wrong.
    let mut wrong: Bill = serde_json::from_str(&bill.bill).unwrap();
    wrong.totals[0].total = Amount(1);
    let text = serde_json::to_string(&wrong).unwrap();
    let signature = authority
        .sign(&[BILL_CONTEXT, text.as_bytes()].concat())
        .unwrap();
    let wrong = changed(&|bill| {
        bill.bill = text.clone();
        bill.signature = BASE64.encode(&signature);
    });
    assert!(matches!(wrong, UnverifiedBill::Sums("totals")), "{wrong}");
    // And a signature of something else.
    let signature = authority.sign(bill.bill.as_bytes()).unwrap();
    let other = changed(&|bill| bill.signature = BASE64.encode(&signature));
    assert!(matches!(other, UnverifiedBill::BadSignature), "{other}");
}
