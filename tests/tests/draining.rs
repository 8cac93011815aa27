//! Taking a node out of service and back.

use holm_test_support::{guest, require_kvm};
use holm_tests::{Fleet, eventually, get};

#[test]
fn kvm_a_drained_node_sends_its_callers_elsewhere_until_it_is_undrained() {
    if !require_kvm() {
        return;
    }
    let mut fleet = Fleet::with_nodes(&["a", "b"]);
    fleet.deploy("state", &guest("state"), "");
    let a = fleet.address("a");
    let status = || get(&a, "/test/state/").map_or(0, |answer| answer.status);
    assert_eq!(status(), 200);

    let drained = fleet.holm(&["nodes", "drain", "a"]).ok();
    assert_eq!(drained["drained"], true, "{drained}");
    eventually("the node to refuse what is new", || status() == 503);
    let answer = get(&a, "/test/state/more?x").unwrap();
    assert_eq!(answer.header("retry-after"), Some("1"));
    let there = format!("http://{}/test/state/more?x", fleet.address("b"));
    assert_eq!(answer.header("x-holm-try"), Some(there.as_str()));
    assert!(
        answer.body.contains("/problems/draining"),
        "{}",
        answer.body
    );
    // It is there for everything else.
    assert_eq!(get(&a, "/.holm/health").unwrap().status, 200);
    let nodes = fleet.holm(&["nodes", "list"]).ok();
    let shown = |name: &str| {
        let nodes = nodes.as_array().unwrap().iter();
        let found = nodes.clone().find(|node| node["name"] == name);
        found.unwrap()["drained"].clone()
    };
    assert_eq!((shown("a"), shown("b")), (true.into(), false.into()));
    let route = fleet.holm(&["route", "test/state"]).ok();
    let candidates = route["candidates"].as_array().unwrap();
    assert_eq!(candidates.len(), 1, "{route}");
    assert_eq!(candidates[0]["node"], "b");

    // So it stays, whoever starts anew.
    fleet.kill_node("a");
    fleet.kill_coordinator();
    fleet.start_node("a");
    eventually("the node to be back as it was", || status() == 503);
    fleet.start_coordinator();
    eventually("the coordinator to know it still", || {
        let nodes = fleet.holm(&["nodes", "list"]);
        nodes.status == 0
            && nodes.json().as_array().unwrap().iter().any(|node| {
                node["name"] == "a" && node["drained"] == true && node["connected"] == true
            })
    });
    assert_eq!(status(), 503);
    fleet.holm(&["nodes", "undrain", "a"]).ok();
    eventually("the node to take requests again", || status() == 200);
    let error = fleet.holm(&["nodes", "drain", "absent"]).error(5);
    assert!(error.contains("`absent`"), "{error}");
}
