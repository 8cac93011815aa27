//! Becoming a node, and what a coordinator does not let in.

use std::time::Duration;

use holm_tests::Fleet;

fn join(fleet: &Fleet, token: &str, name: &str) -> holm_tests::Ran {
    fleet.holm(&[
        "node",
        "join",
        token,
        "--name",
        name,
        "--state-dir",
        &fleet.path(name),
    ])
}

#[test]
fn a_join_token_is_good_once() {
    let fleet = Fleet::without_nodes();
    let token = fleet.token(&[]);
    join(&fleet, &token, "first").ok();
    let error = join(&fleet, &token, "second").error(5);
    assert!(error.contains("used already, by node `first`"), "{error}");
    assert!(
        error.contains("holm nodes token"),
        "it says what to do: {error}"
    );
    // The machine that was refused gets in with a token of its own.
    join(&fleet, &fleet.token(&[]), "second").ok();
}

#[test]
fn a_join_token_expires() {
    let fleet = Fleet::without_nodes();
    let token = fleet.token(&["--ttl", "1s"]);
    std::thread::sleep(Duration::from_millis(1200));
    let error = join(&fleet, &token, "late").error(5);
    assert!(error.contains("expired"), "{error}");
    // The same machine gets in with a good one.
    join(&fleet, &fleet.token(&[]), "late").ok();
}

#[test]
fn a_join_token_for_one_node_lets_no_other_in() {
    let fleet = Fleet::without_nodes();
    let token = fleet.token(&["--node", "wanted"]);
    let error = join(&fleet, &token, "other").error(5);
    assert!(error.contains("`wanted`"), "{error}");
    join(&fleet, &token, "wanted").ok();
}

#[test]
fn what_is_not_a_join_token_is_wrong_usage() {
    let fleet = Fleet::without_nodes();
    for token in ["", "hello", "holm-join-1.", "holm-join-1.e30"] {
        let error = join(&fleet, token, "a").error(2);
        assert!(error.contains("holm nodes token"), "`{token}`: {error}");
    }
}

#[test]
fn without_the_right_token_the_coordinator_tells_nothing() {
    let fleet = Fleet::without_nodes();
    let error = fleet.holm(&["nodes", "list", "--token", "wrong"]).error(5);
    assert!(error.contains("token"), "{error}");
}

#[test]
fn a_coordinator_that_is_away_is_told_from_one_that_refuses() {
    let mut fleet = Fleet::without_nodes();
    fleet.kill_coordinator();
    let error = fleet.holm(&["nodes", "list"]).error(6);
    assert!(error.contains("cannot be reached"), "{error}");
}
