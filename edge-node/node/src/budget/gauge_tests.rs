use holm_model::ids::{Digest, RequestId};
use holm_model::price::{Amount, Prices};
use holm_model::usage::Outcome;

use super::*;

/// A billionth for a request.
fn gauge() -> Arc<Gauge> {
    let prices = Prices {
        million_requests: Amount(1_000_000),
        ..Prices::default()
    };
    let span = PriceSpan { from_ms: 0, prices };
    let scope = "acme/hello".parse().unwrap();
    Arc::new(Gauge::new(scope, Month::of(0), vec![span]))
}

fn record(accepted_ms: u64, function: &str) -> UsageRecord {
    UsageRecord {
        boot_epoch: 1,
        sequence: 1,
        request: RequestId([1; 16]),
        function: function.parse().unwrap(),
        version: Digest([1; 32]),
        accepted_ms,
        outcome: Outcome::Answered,
        status: 200,
        queue_ns: 0,
        restore_ns: 0,
        run_ns: 1,
        cpu_ns: 1,
        memory_bytes: 1,
        request_bytes: 0,
        response_bytes: 0,
        egress_bytes: 0,
        ingress_bytes: 0,
        cold: false,
        exits: 0,
        probe: false,
    }
}

#[test]
fn nothing_is_admitted_that_is_not_leased_and_what_is_let_go_of_can_be_reserved_again() {
    let gauge = gauge();
    let reserve = Arc::new(Reserve::new(vec![(gauge.clone(), 400)], 1));
    assert_eq!(
        reserve.take(1).unwrap_err(),
        Spent {
            until_ms: None,
            hopes: false
        }
    );
    gauge.set_lease(1_000, 0);
    let first = reserve.take(1).unwrap();
    let _second = reserve.take(1).unwrap();
    assert!(reserve.take(1).is_err());
    drop(first);
    let _third = reserve.take(1).unwrap();
    assert_eq!((gauge.room(), gauge.refused()), (200, 2));
    gauge.set_outlook(true, false);
    let until_ms = Some(Month::of(0).to_ms - 1);
    assert_eq!(
        reserve.take(1).unwrap_err(),
        Spent {
            until_ms,
            hopes: false
        }
    );
}

#[test]
fn a_request_needs_every_budget_that_it_is_under() {
    let (one, other) = (gauge(), gauge());
    let both = vec![(one.clone(), 100), (other.clone(), 100)];
    let reserve = Arc::new(Reserve::new(both, 2));
    one.set_lease(1_000, 0);
    assert!(reserve.take(1).is_err());
    assert_eq!(one.room(), 1_000, "of the other nothing stays reserved");
    other.set_lease(100, 0);
    let _taken = reserve.take(1).unwrap();
    assert_eq!((one.room(), other.room()), (900, 0));
    // Of a month that nothing is leased of.
    assert!(reserve.take(Month::of(0).to_ms).is_err());
}

#[test]
fn what_was_spent_is_what_the_journal_counted_of_the_budgets_month() {
    let gauge = gauge();
    gauge.set_lease(10_000, 500);
    gauge.set_counted(2_000);
    assert_eq!((gauge.spent(), gauge.room()), (2_500, 7_500));
    let later = Month::of(0).to_ms;
    let records = [
        record(5, "acme/hello"),
        record(5, "acme/other"),
        record(later, "acme/hello"),
        UsageRecord {
            outcome: Outcome::Shed,
            ..record(5, "acme/hello")
        },
    ];
    let gauges = ByTenant::new(vec![gauge.clone()]);
    records.iter().for_each(|record| gauges.count(record));
    assert_eq!((gauge.spent(), gauge.room()), (3_500, 6_500));
    // Another price, by which the journal has counted less.
    gauge.set_counted(1_000);
    assert_eq!((gauge.spent(), gauge.room()), (1_500, 8_500));
}

#[test]
fn only_what_is_not_reserved_is_given_back() {
    let gauge = gauge();
    gauge.set_lease(1_000, 0);
    let reserve = Arc::new(Reserve::new(vec![(gauge.clone(), 400)], 1));
    let ticket = reserve.take(1).unwrap();
    assert_eq!(gauge.give_back(700), 0);
    assert_eq!(gauge.give_back(600), 600);
    assert_eq!(gauge.room(), 0);
    drop(ticket);
    assert_eq!(gauge.room(), 400);
    // The same limit again changes nothing.
    gauge.set_lease(400, 0);
    assert_eq!(gauge.room(), 400);
}

#[test]
fn threads_that_reserve_at_once_do_not_reserve_more_than_there_is() {
    let gauge = gauge();
    gauge.set_lease(1_000, 0);
    let reserve = Arc::new(Reserve::new(vec![(gauge.clone(), 10)], 1));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let reserve = reserve.clone();
            std::thread::spawn(move || {
                let mut held = Vec::new();
                for turn in 0..20_000 {
                    match reserve.take(1) {
                        Ok(ticket) => held.push(ticket),
                        Err(_) => held.truncate(held.len() / 2),
                    }
                    if turn % 3 == 0 {
                        held.pop();
                    }
                }
                held
            })
        })
        .collect();
    let held: Vec<_> = threads.into_iter().map(|one| one.join().unwrap()).collect();
    let count: usize = held.iter().map(Vec::len).sum();
    assert!(count <= 100);
    assert_eq!(gauge.room(), 1_000 - 10 * count as u64);
    drop(held);
    assert_eq!(gauge.room(), 1_000);
}

/// What a budget adds to a request on its thread; for people:
/// `cargo test --workspace --lib --release -- --ignored --nocapture measures`
#[test]
#[ignore = "a measurement"]
fn measures_reserving() {
    const REQUESTS: u64 = 2_000_000;
    let gauge = gauge();
    gauge.set_lease(1 << 60, 0);
    let reserve = Arc::new(Reserve::new(vec![(gauge, 400)], 1));
    let began = std::time::Instant::now();
    for n in 0..REQUESTS {
        drop(std::hint::black_box(reserve.take(n % 1000)));
    }
    let ns = began.elapsed().as_nanos() as u64 / REQUESTS;
    println!("reserving and letting go: {ns} ns a request");
}
