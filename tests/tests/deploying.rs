//! Getting a function into the fleet, and what does not get in.

use std::path::Path;
use std::process::Command;

use holm_test_support::{busybox_site, guest, require_kvm};
use holm_tests::{Fleet, eventually, get};

fn compile(source: &str, output: &str, flags: &[&str]) {
    let code = format!("{output}.c");
    std::fs::write(&code, source).expect("the source can be written");
    let status = Command::new("cc")
        .args(flags)
        .args(["-o", output, &code])
        .status();
    assert!(status.expect("there is a C compiler").success());
}

#[test]
fn a_dynamic_program_is_refused_with_the_way_to_make_it_static() {
    let fleet = Fleet::without_nodes();
    let program = fleet.path("dynamic");
    compile("int main(void) { return 0; }", &program, &[]);
    let error = fleet
        .try_deploy("dynamic", Path::new(&program), "")
        .error(2);
    assert!(error.contains("dynamic"), "{error}");
    assert!(error.contains("-static"), "it says how to mend it: {error}");
}

#[test]
fn what_is_not_a_program_is_refused() {
    let fleet = Fleet::without_nodes();
    let program = fleet.path("script");
    std::fs::write(&program, "#!/bin/sh\necho hello\n").unwrap();
    let error = fleet.try_deploy("script", Path::new(&program), "").error(2);
    assert!(error.contains("ELF"), "{error}");
}

#[test]
fn a_manifest_with_an_unknown_key_is_refused_with_the_nearest_known_one() {
    let fleet = Fleet::without_nodes();
    let program = guest("state");
    let error = fleet
        .try_deploy("typo", &program, "[limits]\nmemroy = \"16MiB\"\n")
        .error(2);
    assert!(
        error.contains("memroy") && error.contains("`memory`"),
        "{error}"
    );
}

#[test]
fn a_version_signed_with_a_strangers_key_is_refused() {
    let fleet = Fleet::without_nodes();
    fleet.holm(&["tenants", "create", "test"]).ok();
    std::fs::rename(fleet.path("publisher.pem"), fleet.path("tenants-own.pem")).unwrap();
    let error = fleet.try_deploy("state", &guest("state"), "").error(5);
    assert!(
        error.contains("key") && error.contains("has not registered"),
        "{error}"
    );
}

#[test]
fn kvm_a_deploy_of_what_the_fleet_runs_already_changes_nothing() {
    if !require_kvm() {
        return;
    }
    let fleet = Fleet::with_nodes(&["a"]);
    fleet.deploy("state", &guest("state"), "");
    let again = fleet.try_deploy("state", &guest("state"), "").ok();
    assert_eq!(again["changed"], false, "{again}");
    assert_eq!(again["version"]["label"], "v1");
    let other = fleet
        .try_deploy("state", &guest("state"), "[env]\nA = \"b\"\n")
        .ok();
    assert_eq!(
        (&other["changed"], &other["version"]["label"]),
        (&true.into(), &"v2".into())
    );
}

#[test]
fn kvm_a_version_that_crashes_at_its_probe_is_rolled_back_and_the_one_before_keeps_answering() {
    if !require_kvm() {
        return;
    }
    let fleet = Fleet::with_nodes(&["a", "b"]);
    fleet.deploy("changes", &guest("state"), "");
    let failed = fleet.try_deploy("changes", &guest("dereferences_null"), "probe = \"/\"\n");
    assert_eq!(failed.status, 7, "{failed:?}");
    let rollout = &failed.json()["rollout"];
    assert_eq!(rollout["state"], "rolled_back");
    let reason = rollout["reason"].as_str().unwrap();
    assert!(
        reason.contains("probe") && reason.contains("wave 1"),
        "{reason}"
    );
    for node in ["a", "b"] {
        let answer = get(&fleet.address(node), "/test/changes/").unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "1 1 1\n"));
    }
}

#[test]
fn kvm_a_program_that_is_deployed_as_it_is_finds_the_files_beside_its_manifest() {
    if !require_kvm() {
        return;
    }
    let fleet = Fleet::with_nodes(&["a"]);
    let page = fleet.path("pages/one.txt");
    std::fs::create_dir(fleet.path("pages")).unwrap();
    std::fs::write(page, "one page\n").unwrap();
    let files = "[files]\n\"/www\" = \"pages\"\n";
    fleet.deploy("files", &guest("brought_files"), files);
    let answer = get(&fleet.address("a"), "/test/files/file?/www/one.txt").unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "one page\n"));
    let absent = "[files]\n\"/www\" = \"absent\"\n";
    let error = fleet.try_deploy("files", &guest("brought_files"), absent);
    let error = error.error(2);
    assert!(
        error.contains("[files]") && error.contains("absent"),
        "{error}"
    );
}

#[test]
fn kvm_a_site_comes_with_its_artifact_and_outlives_a_node_and_the_coordinator() {
    if !require_kvm() {
        return;
    }
    let mut fleet = Fleet::with_nodes(&["a"]);
    let project = fleet.path("site");
    let write = |path: &str, text: &str| {
        holm_test_support::write(&Path::new(&project).join(path), text);
    };
    let manifest = busybox_site("tenant = \"test\"\n");
    write(
        "holm.toml",
        &format!("{manifest}[rollout]\nwaves = [100]\nbake = \"100ms\"\n"),
    );
    write("public/index.html", "the first\n");
    for number in 0..2000 {
        write(
            &format!("public/pages/{number}.txt"),
            &format!("page {number}\n"),
        );
    }
    fleet.holm(&["tenants", "create", "test"]).ok();
    let deploy = |fleet: &Fleet| {
        let deployed = fleet.holm(&["deploy", "--dir", &project]).ok();
        assert_eq!(deployed["rollout"]["state"], "completed", "{deployed}");
    };
    let page = |fleet: &Fleet, path: &str| {
        let answer = get(&fleet.address("a"), &format!("/test/site{path}")).unwrap();
        (answer.status, answer.body)
    };
    deploy(&fleet);
    assert_eq!(page(&fleet, "/"), (200, "the first\n".into()));
    assert_eq!(page(&fleet, "/pages/1234.txt"), (200, "page 1234\n".into()));
    assert_eq!(page(&fleet, "/pages/2000.txt").0, 404);

    // Of the same size, so that only its content tells the new one apart.
    write("public/index.html", "the other\n");
    deploy(&fleet);
    assert_eq!(page(&fleet, "/"), (200, "the other\n".into()));
    let again = fleet.holm(&["deploy", "--dir", &project]).ok();
    assert_eq!(again["changed"], false, "{again}");

    fleet.kill_node("a");
    fleet.kill_coordinator();
    fleet.start_node("a");
    eventually("the node to serve from its disk", || {
        get(&fleet.address("a"), "/test/site/pages/7.txt")
            .is_some_and(|answer| (answer.status, answer.body.as_str()) == (200, "page 7\n"))
    });
}

#[test]
fn kvm_a_rollout_whose_gate_sees_too_little_is_paused_and_promoted_by_hand() {
    if !require_kvm() {
        return;
    }
    let fleet = Fleet::with_nodes(&["a"]);
    fleet.deploy("state", &guest("state"), "");
    let status = || fleet.holm(&["rollout", "status", "test/state"]).ok();
    std::thread::scope(|scope| {
        let more = "min_requests = 5\n[env]\nA = \"b\"\n";
        let deploy = scope.spawn(|| fleet.try_deploy("state", &guest("state"), more));
        eventually("the second version to be watched", || {
            let now = status();
            now["version"]["label"] == "v2" && now["waves"][0]["state"] == "baking"
        });
        eventually("the gate to say that it has seen too little", || {
            let reason = status()["reason"].clone();
            reason
                .as_str()
                .unwrap()
                .contains("inconclusive, 0 of the 5")
        });
        let paused = fleet.holm(&["rollout", "pause", "test/state"]).ok();
        assert_eq!(
            (&paused["paused"], &paused["state"]),
            (&true.into(), &"running".into())
        );
        // Who watches is told, and does not wait for ever.
        let deployed = deploy.join().unwrap();
        assert_eq!(deployed.status, 8, "{deployed:?}");
    });
    let resumed = fleet
        .holm(&["rollout", "resume", "test/state", "--no-wait"])
        .ok();
    assert_eq!(resumed["paused"], false);
    let promoted = fleet.holm(&["rollout", "promote", "test/state"]).ok();
    assert_eq!(promoted["state"], "completed", "{promoted}");
    let again = fleet.holm(&["rollout", "promote", "test/state"]).error(5);
    assert!(again.contains("has ended"), "{again}");
}
