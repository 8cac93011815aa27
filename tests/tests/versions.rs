//! Versions: who made them, what they are called, and which may go.

use holm_test_support::guest;
use holm_tests::Fleet;

#[test]
fn versions_are_tagged_shown_and_pruned_from_the_command_line() {
    let fleet = Fleet::without_nodes();
    fleet.holm(&["tenants", "create", "test"]).ok();
    let deploy = |n: u32, more: &[&str]| {
        let manifest = format!(
            "schema = 1\n[function]\nname = \"state\"\ntenant = \"test\"\n[env]\nN = \"{n}\"\n"
        );
        fleet.publish(&guest("state"), &manifest, more)
    };
    let first = deploy(
        1,
        &[
            "--message",
            "the first",
            "--author",
            "ada",
            "--tag",
            "golden",
        ],
    )
    .ok();
    assert_eq!(first["version"]["author"], "ada");
    // Without nodes its rollout does not end; it is in nobody's way here.
    let id = first["rollout"]["id"].to_string();
    fleet.holm(&["rollout", "abort", &id]).ok();
    for n in 2..=4 {
        let deployed = deploy(n, &[]).ok();
        let id = deployed["rollout"]["id"].to_string();
        fleet.holm(&["rollout", "abort", &id]).ok();
    }
    let shown = fleet
        .holm(&["versions", "show", "test/state", "golden"])
        .ok();
    assert_eq!(shown["message"], "the first", "{shown}");
    fleet
        .holm(&["versions", "tag", "test/state", "next", "v3"])
        .ok();
    let listed = fleet.holm(&["versions", "test/state"]).ok();
    assert_eq!(
        listed[0]["versions"][1]["tags"],
        serde_json::json!(["next"]),
        "{listed}"
    );
    let started = [
        "rollout",
        "start",
        "test/state",
        "--version",
        "next",
        "--no-wait",
    ];
    let started = fleet.holm(&started).ok();
    assert_eq!(started["version"]["label"], "v3", "{started}");

    let prune = ["versions", "prune", "test/state", "--keep", "1"];
    let labels = |value: &serde_json::Value| -> Vec<String> {
        let labels = value.as_array().unwrap().iter();
        labels
            .map(|version| version["label"].as_str().unwrap().to_owned())
            .collect()
    };
    let would = fleet.holm(&[&prune[..], &["--dry-run"]].concat()).ok();
    assert_eq!(labels(&would["removed"]), ["v2"], "{would}");
    assert_eq!(
        would["artifacts"],
        serde_json::json!([]),
        "others have the same"
    );
    let listed = fleet.holm(&["versions", "list", "test/state"]).ok();
    assert_eq!(
        listed[0]["versions"].as_array().unwrap().len(),
        4,
        "nothing was done"
    );
    let done = fleet.holm(&prune).ok();
    assert_eq!(done["removed"].as_array().unwrap().len(), 1);
    let why = done["kept"]
        .as_array()
        .unwrap()
        .iter()
        .map(|kept| kept["why"].to_string());
    let why: Vec<String> = why.collect();
    assert!(why[0].contains("newest 1"), "{why:?}");
    assert!(
        why[1].contains("has not ended") && why[1].contains("tag next"),
        "{why:?}"
    );
    assert!(why[2].contains("tag golden"), "{why:?}");
    let gone = ["rollout", "start", "test/state", "--version", "v2"];
    let gone = fleet.holm(&gone).error(5);
    assert!(gone.contains("no version `v2`"), "{gone}");
    fleet
        .holm(&["versions", "untag", "test/state", "golden"])
        .ok();
    let again = fleet
        .holm(&["versions", "untag", "test/state", "golden"])
        .error(5);
    assert!(again.contains("no tag `golden`"), "{again}");
}
