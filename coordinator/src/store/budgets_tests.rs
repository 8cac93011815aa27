//! Budgets, asked of SQLite and of PostgreSQL.

use holm_model::api::{BudgetView, NewAssignment, NewBudget, NewPrices};
use holm_model::budget::{Cap, LeaseAnswer, LeaseAsk, LeaseAsks, Month, Scope};
use holm_model::ids::Name;
use holm_model::price::{Amount, HOUR_MS, Prices};
use holm_model::usage::{Outcome, UsageRecord};

use super::sql::query;
use super::testing::{TestDatabase, on_both_databases};
use super::{Store, Unbudgeted, Unpriced};
use crate::ledger::testing::{TestFleet, record};

on_both_databases! {
    nodes_that_ask_at_once_get_all_of_a_budget_and_no_more,
    a_question_that_comes_again_is_answered_as_before,
    what_a_node_gives_back_is_anothers,
    what_the_ledger_has_counts_and_crosses_each_threshold_once,
    a_budget_that_is_set_within_a_month_counts_what_was_before,
    what_is_beyond_a_lowered_budget_is_told_as_overshoot,
    prices_for_a_time_that_had_none_are_counted,
    what_cannot_be_a_budget_is_refused_with_its_reason,
    a_soft_budget_has_alerts_and_no_leases,
    a_month_begins_with_nothing_spent,
}

/// In the month of the test records.
const NOW: u64 = 1_700_000_000_000;
const EUR: u64 = 1_000_000_000_000;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn scope(text: &str) -> Scope {
    text.parse().unwrap()
}

fn euros(amount: u64) -> Amount {
    Amount::from_picos(amount * EUR)
}

fn budget(amount: u64) -> NewBudget {
    NewBudget {
        amount: euros(amount),
        cap: Cap::Hard,
        alerts: NewBudget::default_alerts(),
    }
}

/// A hard budget of so many euros, from now on.
async fn set(store: &Store, text: &str, amount: u64) {
    store
        .set_budget(&scope(text), &budget(amount), NOW)
        .await
        .unwrap();
}

/// A tenant `acme` with functions, and a price of a euro for a request.
async fn priced(store: &Store) {
    for sql in [
        "INSERT INTO tenants (name, created_ms) VALUES ('acme', 1) ON CONFLICT DO NOTHING",
        "INSERT INTO functions (name, tenant) VALUES ('acme/hello', 'acme'), ('acme/other', 'acme') ON CONFLICT DO NOTHING",
    ] {
        query(sql).execute(store.writer()).await.unwrap();
    }
    let prices = a_euro_each();
    let plan = name("standard");
    store
        .add_prices(&plan, &prices, || NOW - NOW % HOUR_MS)
        .await
        .unwrap();
}

fn a_euro_each() -> NewPrices {
    NewPrices {
        currency: "EUR".parse().unwrap(),
        prices: Prices {
            million_requests: euros(1_000_000),
            ..Prices::default()
        },
        from_ms: Some(0),
    }
}

fn ask(of: &str, serial: u64, limit: u64, spent: u64) -> LeaseAsk {
    LeaseAsk {
        scope: scope(of),
        month_ms: Month::of(NOW).from_ms,
        serial,
        limit,
        spent,
        need: EUR,
        want: 2 * EUR,
        more: true,
        beyond: 3,
    }
}

async fn lease(store: &Store, node: &str, ask: LeaseAsk) -> LeaseAnswer {
    let asks = LeaseAsks {
        revision: 1,
        asks: vec![ask],
    };
    let answers = store.lease(&name(node), &asks, NOW).await.unwrap();
    answers.into_iter().next().unwrap()
}

async fn show(store: &Store) -> BudgetView {
    store.budgets(None, NOW).await.unwrap().remove(0)
}

async fn nodes_that_ask_at_once_get_all_of_a_budget_and_no_more(database: TestDatabase) {
    let store = &database.store;
    priced(store).await;
    set(store, "acme", 100).await;
    let mut nodes = tokio::task::JoinSet::new();
    for node in 0..6 {
        let store = store.clone();
        nodes.spawn(async move {
            let (node, mut serial, mut limit) = (format!("n{node}"), 0, 0);
            loop {
                // Whatever it has got it has spent.
                let answer = lease(&store, &node, ask("acme", serial, limit, limit)).await;
                if answer.limit == limit && answer.exhausted {
                    return limit;
                }
                (serial, limit) = (answer.serial, answer.limit);
            }
        });
    }
    let limits: u64 = nodes.join_all().await.iter().sum();
    assert!(limits <= 100 * EUR && limits > 99 * EUR, "{limits}");
    let view = show(store).await;
    assert_eq!((view.leased, view.nodes.len()), (Amount(0), 6));
    assert_eq!(view.exhausted_ms, Some(NOW));
    let overshoot = view.overshoot.unwrap();
    assert_eq!(
        (overshoot.beyond, overshoot.most),
        (Amount(0), Amount::from_picos(18))
    );
}

async fn a_question_that_comes_again_is_answered_as_before(database: TestDatabase) {
    let store = &database.store;
    priced(store).await;
    set(store, "acme/hello", 100).await;
    let first = lease(store, "a", ask("acme/hello", 0, 0, 0)).await;
    assert!(first.limit >= 2 * EUR && first.serial == 1 && !first.exhausted);
    assert_eq!(lease(store, "a", ask("acme/hello", 0, 0, 0)).await, first);
    let more = lease(store, "a", ask("acme/hello", 1, first.limit, first.limit)).await;
    assert!(more.limit > first.limit);
    // The database is of yesterday: the node may spend what it says.
    let known = ask("acme/hello", 9, 50 * EUR, 0);
    let restored = lease(
        store,
        "a",
        LeaseAsk {
            more: false,
            ..known
        },
    )
    .await;
    assert_eq!((restored.serial, restored.limit), (10, 50 * EUR));
    // Of what is no budget nothing is said.
    let asks = LeaseAsks {
        revision: 1,
        asks: vec![ask("acme/other", 0, 0, 0), ask("other", 0, 0, 0)],
    };
    assert_eq!(store.lease(&name("a"), &asks, NOW).await.unwrap(), []);
}

async fn what_a_node_gives_back_is_anothers(database: TestDatabase) {
    let store = &database.store;
    priced(store).await;
    set(store, "acme", 3).await;
    let all = |ask| LeaseAsk {
        want: 9 * EUR,
        ..ask
    };
    let mut a = lease(store, "a", all(ask("acme", 0, 0, 0))).await;
    while a.limit < 3 * EUR {
        a = lease(store, "a", all(ask("acme", a.serial, a.limit, 0))).await;
    }
    let b = lease(store, "b", ask("acme", 0, 0, 0)).await;
    assert_eq!((b.limit, b.exhausted), (0, false), "another may give back");
    let told = lease(
        store,
        "a",
        LeaseAsk {
            more: false,
            ..ask("acme", a.serial, a.limit, EUR)
        },
    )
    .await;
    assert!(told.recall && told.limit == a.limit);
    let kept = LeaseAsk {
        more: false,
        ..ask("acme", told.serial, EUR, EUR)
    };
    let back = lease(store, "a", kept).await;
    assert_eq!(back.limit, EUR);
    // What it said before comes late.
    let late = LeaseAsk {
        more: false,
        ..ask("acme", told.serial, 3 * EUR, EUR)
    };
    assert_eq!(lease(store, "a", late).await.limit, EUR);
    assert!(lease(store, "b", ask("acme", 0, 0, 0)).await.limit >= EUR);
}

async fn what_the_ledger_has_counts_and_crosses_each_threshold_once(database: TestDatabase) {
    let store = &database.store;
    priced(store).await;
    set(store, "acme", 10).await;
    set(store, "acme/other", 10).await;
    let fleet = TestFleet::new(store);
    let free = |sequence, outcome, probe| UsageRecord {
        outcome,
        probe,
        ..record(1, sequence)
    };
    let mut records: Vec<_> = (1..=5).map(|sequence| record(1, sequence)).collect();
    records.push(free(6, Outcome::Shed, false));
    records.push(free(7, Outcome::Answered, true));
    fleet.add(&name("a"), &records).await.unwrap();
    let views = store.budgets(None, NOW).await.unwrap();
    assert_eq!((views[0].spent, views[1].spent), (euros(5), euros(0)));
    let crossed = |view: &BudgetView| {
        view.crossed
            .iter()
            .map(|alert| alert.percent)
            .collect::<Vec<_>>()
    };
    assert_eq!(crossed(&views[0]), [50]);
    let taken = store.take_alerts(NOW).await.unwrap();
    assert_eq!((taken.len(), taken[0].spent), (1, euros(5)));
    let more: Vec<_> = (8..=30).map(|sequence| record(1, sequence)).collect();
    fleet.add(&name("a"), &more).await.unwrap();
    let taken = store.take_alerts(NOW).await.unwrap();
    let percents: Vec<_> = taken.iter().map(|alert| alert.percent).collect();
    assert_eq!(percents, [80, 100]);
    assert_eq!(store.take_alerts(NOW).await.unwrap(), []);
    assert_eq!(
        store.budget_alerts(taken[0].row, 10).await.unwrap(),
        taken[1..]
    );
    // 28 were spent without a lease: they are beyond, and nothing more is leased.
    let view = show(store).await;
    assert_eq!(view.overshoot.unwrap().beyond, euros(18));
    assert_eq!(lease(store, "a", ask("acme", 0, 0, 0)).await.limit, 0);
}

async fn a_budget_that_is_set_within_a_month_counts_what_was_before(database: TestDatabase) {
    let store = &database.store;
    priced(store).await;
    let fleet = TestFleet::new(store);
    let before = UsageRecord {
        accepted_ms: Month::of(NOW).from_ms - 1,
        ..record(1, 1)
    };
    let records = [before, record(1, 2), record(1, 3)];
    fleet.add(&name("a"), &records).await.unwrap();
    set(store, "acme", 10).await;
    let view = show(store).await;
    assert_eq!((view.spent, view.free), (euros(2), euros(8)));
    // Another node gets no more than is left; this one is told what it had spent.
    let told = lease(
        store,
        "a",
        LeaseAsk {
            more: false,
            ..ask("acme", 0, 0, 2 * EUR)
        },
    )
    .await;
    assert_eq!(told.ledger, 2 * EUR);
    let want = LeaseAsk {
        want: 100 * EUR,
        ..ask("acme", 0, 0, 0)
    };
    assert!(lease(store, "b", want).await.limit <= 8 * EUR);
}

async fn what_is_beyond_a_lowered_budget_is_told_as_overshoot(database: TestDatabase) {
    let store = &database.store;
    priced(store).await;
    set(store, "acme", 100).await;
    let want = LeaseAsk {
        want: 20 * EUR,
        ..ask("acme", 0, 0, 0)
    };
    let leased = lease(store, "a", want).await;
    assert_eq!(leased.limit, 20 * EUR);
    store
        .set_budget(&scope("acme"), &budget(5), NOW + 1)
        .await
        .unwrap();
    let view = show(store).await;
    let overshoot = view.overshoot.unwrap();
    assert_eq!(overshoot.beyond, euros(15));
    assert_eq!((view.created_ms, view.changed_ms), (NOW, NOW + 1));
    store.remove_budget(&scope("acme")).await.unwrap();
    let gone = store.remove_budget(&scope("acme")).await.unwrap_err();
    assert!(matches!(gone, Unbudgeted::NoBudget(_)));
    // Set again, what was leased is not leased twice.
    set(store, "acme", 20).await;
    assert_eq!(lease(store, "b", ask("acme", 0, 0, 0)).await.limit, 0);
}

async fn prices_for_a_time_that_had_none_are_counted(database: TestDatabase) {
    let store = &database.store;
    priced(store).await;
    set(store, "acme", 10).await;
    let list = store.budget_list(NOW).await.unwrap();
    assert_eq!(
        list.budgets[0].prices[0].prices.million_requests,
        euros(1_000_000)
    );
    let fleet = TestFleet::new(store);
    fleet.add(&name("a"), &[record(1, 1)]).await.unwrap();
    query("DELETE FROM price_plans")
        .execute(store.writer())
        .await
        .unwrap();
    store.recount_budgets(NOW).await.unwrap();
    assert_eq!(show(store).await.spent, euros(0));
    store
        .add_prices(&name("standard"), &a_euro_each(), || NOW)
        .await
        .unwrap();
    let (revision, _) = store.budgets_revision().await.unwrap();
    assert!(revision > list.revision, "nodes are told of new prices");
    // With the prices, in the same transaction.
    assert_eq!(show(store).await.spent, euros(1));
    let dollars = NewPrices {
        currency: "USD".parse().unwrap(),
        ..a_euro_each()
    };
    store
        .add_prices(&name("dollars"), &dollars, || NOW)
        .await
        .unwrap();
    let plan = NewAssignment {
        plan: name("dollars"),
        from_ms: None,
    };
    let other = store
        .assign_plan(&name("acme"), &plan, || NOW)
        .await
        .unwrap_err();
    assert!(matches!(other, Unpriced::Budgeted { .. }), "{other}");
}

async fn what_cannot_be_a_budget_is_refused_with_its_reason(database: TestDatabase) {
    let store = &database.store;
    query("INSERT INTO tenants (name, created_ms) VALUES ('acme', 1)")
        .execute(store.writer())
        .await
        .unwrap();
    let set = async |of: &str, new: &NewBudget| {
        let refused = store.set_budget(&scope(of), new, NOW).await.unwrap_err();
        refused.to_string()
    };
    assert!(set("acme", &budget(1)).await.contains("holm prices set"));
    priced(store).await;
    assert!(set("nobody", &budget(1)).await.contains("no tenant"));
    assert!(
        set("acme/nothing", &budget(1))
            .await
            .contains("no function")
    );
    assert!(
        set("acme", &budget(9_000_001))
            .await
            .contains("above 9000000")
    );
    for alerts in [vec![0], vec![1001], (1..=11).collect()] {
        let new = NewBudget {
            alerts,
            ..budget(1)
        };
        assert!(set("acme", &new).await.contains("percents"));
    }
    assert_eq!(store.budgets(None, NOW).await.unwrap(), []);
}

async fn a_soft_budget_has_alerts_and_no_leases(database: TestDatabase) {
    let store = &database.store;
    priced(store).await;
    let soft = NewBudget {
        cap: Cap::Soft,
        ..budget(1)
    };
    store.set_budget(&scope("acme"), &soft, NOW).await.unwrap();
    assert_eq!(store.budget_list(NOW).await.unwrap().budgets, []);
    let asks = LeaseAsks {
        revision: 1,
        asks: vec![ask("acme", 0, 0, 0)],
    };
    assert_eq!(store.lease(&name("a"), &asks, NOW).await.unwrap(), []);
    let fleet = TestFleet::new(store);
    fleet
        .add(&name("a"), &[record(1, 1), record(1, 2)])
        .await
        .unwrap();
    let view = show(store).await;
    assert_eq!((view.overshoot, view.crossed.len()), (None, 3));
}

async fn a_month_begins_with_nothing_spent(database: TestDatabase) {
    let store = &database.store;
    priced(store).await;
    set(store, "acme", 2).await;
    let fleet = TestFleet::new(store);
    fleet
        .add(&name("a"), &[record(1, 1), record(1, 2)])
        .await
        .unwrap();
    assert_eq!(lease(store, "a", ask("acme", 0, 0, 0)).await.limit, 0);
    let next = Month::of(NOW).next();
    let early = LeaseAsk {
        month_ms: next.from_ms,
        ..ask("acme", 0, 0, 0)
    };
    let asks = LeaseAsks {
        revision: 1,
        asks: vec![early],
    };
    let at = async |now_ms| store.lease(&name("a"), &asks, now_ms).await.unwrap();
    assert_eq!(at(NOW).await, [], "too early");
    assert!(at(next.from_ms - 1).await[0].limit > 0);
    let view = store.budgets(None, next.from_ms).await.unwrap().remove(0);
    assert_eq!((view.spent, view.crossed.len()), (euros(0), 0));
    // What of the old month was not leased is not leased any more.
    set(store, "acme", 50).await;
    let late = LeaseAsks {
        revision: 1,
        asks: vec![ask("acme", 0, 0, 0)],
    };
    let answer = store.lease(&name("a"), &late, next.from_ms).await.unwrap();
    assert_eq!((answer[0].limit, answer[0].exhausted), (0, true));
}

/// Rows of every kind, for exports.
pub(super) async fn fill(store: &Store) {
    let new = NewBudget {
        alerts: vec![1],
        ..budget(0)
    };
    let now_ms = NOW + HOUR_MS;
    store
        .set_budget(&scope("acme"), &budget(1), now_ms)
        .await
        .unwrap();
    store
        .set_budget(&scope("acme/hello"), &new, now_ms)
        .await
        .unwrap();
    lease(store, "edge", ask("acme/hello", 0, 0, 0)).await;
    query("INSERT INTO budget_alerts (tenant, function, month_ms, percent, spent, amount, crossed_ms) VALUES ('acme', '', 1, 50, 2, 3, 4)")
        .execute(store.writer())
        .await
        .unwrap();
}
