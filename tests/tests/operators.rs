//! What operators say of nodes and of publishers' keys, from the command line.

use holm_test_support::{guest, require_kvm};
use holm_tests::{Fleet, eventually, get};

#[test]
fn a_node_that_has_joined_is_drained_labelled_cordoned_and_revoked() {
    let fleet = Fleet::without_nodes();
    let (token, state) = (fleet.token(&[]), fleet.path("a"));
    fleet
        .holm(&["node", "join", &token, "--name", "a", "--state-dir", &state])
        .ok();
    let drained = fleet.holm(&["nodes", "drain", "a"]).ok();
    assert_eq!(drained["never_connected"], true, "{drained}");
    fleet
        .holm(&["nodes", "label", "a", "disk=ssd", "rack=7"])
        .ok();
    fleet.holm(&["nodes", "label", "a", "rack-"]).ok();
    fleet.holm(&["nodes", "cordon", "a"]).ok();
    let wrong = fleet.holm(&["nodes", "label", "a", "disk"]).error(2);
    assert!(wrong.contains("KEY=VALUE"), "{wrong}");
    let nodes = fleet.holm(&["nodes", "list"]).ok();
    let node = &nodes[0];
    assert_eq!(
        node["labels"],
        serde_json::json!({ "disk": "ssd" }),
        "{node}"
    );
    assert_eq!(
        (&node["drained"], &node["cordoned"]),
        (&true.into(), &true.into())
    );
    fleet.holm(&["nodes", "uncordon", "a"]).ok();
    fleet.holm(&["nodes", "revoke", "a"]).ok();
    assert_eq!(fleet.holm(&["nodes", "list"]).ok(), serde_json::json!([]));
    let gone = fleet.holm(&["nodes", "undrain", "a"]).error(5);
    assert!(gone.contains("`a`"), "{gone}");
    let log = fleet.holm(&["audit", "log"]).ok();
    let log = log
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["outcome"] == "done");
    let actions: Vec<_> = log.map(|entry| entry["action"].as_str().unwrap()).collect();
    let expected = [
        "node.invite",
        "node.join",
        "node.drain",
        "node.label",
        "node.label",
        "node.cordon",
        "node.uncordon",
        "node.revoke",
    ];
    assert_eq!(actions, expected);
}

#[test]
fn a_publishers_key_is_changed_for_another() {
    let fleet = Fleet::without_nodes();
    fleet.holm(&["tenants", "create", "test"]).ok();
    let manifest = fleet.path("state.toml");
    let text = "schema = 1\n[function]\nname = \"state\"\ntenant = \"test\"\n";
    std::fs::write(&manifest, text).unwrap();
    let program = guest("state");
    let next = fleet.path("next.pem");
    let deploy = [
        "deploy",
        "--program",
        program.to_str().unwrap(),
        "--manifest",
        &manifest,
    ];
    let deploy = [&deploy[..], &["--no-wait", "--force"]].concat();
    fleet.holm(&deploy).ok();
    fleet.holm(&["rollout", "abort", "test/state"]).ok();
    let shown = fleet.holm(&["tenants", "show", "test"]).ok();
    let old = shown["publisher_keys"][0].as_str().unwrap();
    let both = fleet
        .holm(&["tenants", "create", "test", "--key", &next])
        .ok();
    assert_eq!(
        both["publisher_keys"].as_array().unwrap().len(),
        2,
        "{both}"
    );
    let revoked = fleet.holm(&["tenants", "revoke-key", "test", old]).ok();
    assert_eq!(
        revoked["publisher_keys"].as_array().unwrap().len(),
        1,
        "{revoked}"
    );
    let refused = fleet.holm(&deploy).error(5);
    assert!(refused.contains("revoked"), "{refused}");
    let deployed = fleet.holm(&[&deploy[..], &["--key", &next]].concat()).ok();
    assert_eq!(deployed["version"]["label"], "v2", "{deployed}");
}

#[test]
fn kvm_a_cordoned_node_serves_on_with_the_version_it_has() {
    if !require_kvm() {
        return;
    }
    let fleet = Fleet::with_nodes(&["a", "b"]);
    fleet.deploy("state", &guest("state"), "");
    fleet.holm(&["nodes", "cordon", "a"]).ok();
    let next = fleet
        .try_deploy("state", &guest("state"), "[env]\nA = \"b\"\n")
        .ok();
    assert_eq!(next["rollout"]["state"], "completed", "{next}");
    let on = |name: &str| {
        let nodes = fleet.holm(&["nodes", "list"]).ok();
        let node = nodes
            .as_array()
            .unwrap()
            .iter()
            .find(|node| node["name"] == name)
            .unwrap()
            .clone();
        let versions = node["versions"].as_array().unwrap().clone();
        let routed = versions.iter().find(|version| version["routed"] == true);
        routed.unwrap()["label"].clone()
    };
    assert_eq!((on("a"), on("b")), ("v1".into(), "v2".into()));
    assert_eq!(
        get(&fleet.address("a"), "/test/state/").unwrap().status,
        200
    );
    let route = fleet.holm(&["route", "test/state"]).ok();
    assert_eq!(route["candidates"].as_array().unwrap().len(), 1, "{route}");
    fleet.holm(&["nodes", "uncordon", "a"]).ok();
    eventually("the node to be where the fleet is", || on("a") == "v2");
}
