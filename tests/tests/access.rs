//! Tokens as a user has them, and the record of what was done with them.

use holm_tests::{Fleet, eventually};

#[test]
fn a_token_is_made_weakened_used_and_revoked_from_the_command_line() {
    let fleet = Fleet::without_nodes();
    fleet.holm(&["tenants", "create", "test"]).ok();
    let made = fleet.holm(&[
        "tokens",
        "create",
        "ci",
        "--verbs",
        "read,deploy,rollout",
        "--tenant",
        "test",
        "--ttl",
        "90d",
    ]);
    let token = made.ok()["token"].as_str().unwrap().to_owned();
    let ci = ["--token", &token];
    let as_ci = |args: &[&str]| fleet.holm(&[args, &ci].concat());
    as_ci(&["versions"]).ok();
    let refused = as_ci(&["usage"]).error(5);
    assert!(refused.contains("lacks the verb `usage`"), "{refused}");
    let refused = as_ci(&["tenants", "create", "other"]).error(5);
    assert!(refused.contains("lacks the verb `admin`"), "{refused}");

    // Nobody is asked: there is no coordinator at this address.
    let offline = ["--coordinator", "http://127.0.0.1:9"];
    let weaken = [
        &["tokens", "weaken", "--verbs", "read", "--ttl", "1h"],
        &ci[..],
        &offline,
    ];
    let weak = fleet.holm(&weaken.concat()).ok();
    assert_eq!(
        weak["allows"]["verbs"],
        serde_json::json!(["read"]),
        "{weak}"
    );
    let weak = weak["token"].as_str().unwrap();
    let as_weak = |args: &[&str]| fleet.holm(&[args, &["--token", weak]].concat());
    as_weak(&["versions"]).ok();
    let refused = as_weak(&["rollout", "start", "test/state"]).error(5);
    assert!(refused.contains("test/state"), "{refused}");
    let nothing = fleet.holm(&["tokens", "weaken", "--token", weak]).error(2);
    assert!(nothing.contains("--verbs"), "{nothing}");

    let listed = fleet.holm(&["tokens", "list"]).ok();
    let names: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|t| &t["name"])
        .collect();
    assert_eq!(
        names,
        ["admin", "ci"],
        "what is made of one is not one more"
    );
    fleet.holm(&["tokens", "revoke", "ci"]).ok();
    for token in [&token, weak] {
        let void = fleet.holm(&["versions", "--token", token]).error(5);
        assert!(void.contains("`ci` was revoked"), "{void}");
    }

    let log = fleet.holm(&["audit", "log", "--since", "1h"]).ok();
    let log = log.as_array().unwrap();
    let has = |actor: &str, action: &str, outcome: &str| {
        let same = |e: &&serde_json::Value| {
            (e["actor"] == actor) && (e["action"] == action) && (e["outcome"] == outcome)
        };
        assert!(
            log.iter().any(|entry| same(&entry)),
            "{actor} {action} {outcome}: {log:#?}"
        );
    };
    has("admin", "token.create", "done");
    has("ci", "tenant.change", "refused");
    has("admin", "token.revoke", "done");
    let check = fleet.holm(&["audit", "check"]).ok();
    assert_eq!(check["whole"], true, "{check}");
    let head = check["head"].as_str().unwrap();
    fleet.holm(&["tenants", "create", "test"]).ok();
    let later = fleet.holm(&["audit", "check", "--head", head]).ok();
    assert_eq!(later["found"], check["entries"], "{later}");
}

#[test]
fn an_admin_token_is_renewed_where_the_coordinator_is_not_running() {
    let mut fleet = Fleet::without_nodes();
    let file = fleet.path("coordinator/admin-token");
    let old = std::fs::read_to_string(&file).unwrap();
    let state = fleet.path("coordinator");
    let renew = ["coordinator", "--state-dir", &state, "renew-token"];
    let refused = fleet.holm(&renew).error(1);
    assert!(
        refused.contains("another coordinator is running"),
        "{refused}"
    );
    fleet.kill_coordinator();
    eventually("the lock to be free", || fleet.holm(&renew).status == 0);
    fleet.start_coordinator();
    let new = std::fs::read_to_string(&file).unwrap();
    assert_ne!(new, old);
    fleet.holm(&["nodes", "list"]).ok();
    let void = fleet
        .holm(&["nodes", "list", "--token", old.trim()])
        .error(5);
    assert!(void.contains("not valid here"), "{void}");
}

#[test]
fn an_export_that_fails_leaves_no_file() {
    let fleet = Fleet::without_nodes();
    let (state, file) = (fleet.path("coordinator"), fleet.path("export"));
    let export = ["coordinator", "--state-dir", &state, "export", &file];
    let refused = fleet.holm(&export).error(1);
    assert!(refused.contains("nothing was exported"), "{refused}");
    assert!(!std::path::Path::new(&file).exists());
}
