//! `holm doctor`: every check says what was found, and what to do where it is not fine.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::holm;
use holm_test_support::require_kvm;

#[test]
fn the_report_and_the_exit_status_agree_and_every_problem_has_a_remedy() {
    let ran = holm(["doctor", "--json"]);
    let report = ran.json();
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() >= 7, "{report}");
    let mut failed = 0;
    for check in checks {
        assert!(!check["name"].as_str().unwrap().is_empty());
        assert!(!check["found"].as_str().unwrap().is_empty(), "{check}");
        let fine = check["state"] == "ok";
        assert_eq!(check["do"].is_null(), fine, "{check}");
        failed += i32::from(check["state"] == "fail");
    }
    assert_eq!(report["healthy"], failed == 0);
    let healthy = matches!(ran.code, Some(0));
    assert_eq!(healthy, failed == 0, "{ran:?}");
    assert!(matches!(ran.code, Some(0 | 1 | 4)), "{ran:?}");
}

#[test]
fn people_get_a_line_for_each_check() {
    let ran = holm(["doctor"]);
    let json = holm(["doctor", "--json"]).json();
    for check in json["checks"].as_array().unwrap() {
        let name = check["name"].as_str().unwrap();
        assert!(
            ran.stdout.contains(&format!("  {name}: ")),
            "`{name}` is not in: {}",
            ran.stdout
        );
    }
}

#[test]
fn kvm_doctor_starts_a_real_machine_and_names_the_kind() {
    if !require_kvm() {
        return;
    }
    let report = holm(["doctor", "--json"]).json();
    assert!(
        ["pvm", "svm", "vmx", "unknown"].contains(&report["kvm"].as_str().unwrap()),
        "{report}"
    );
    let checks = report["checks"].as_array().unwrap();
    let machine = checks
        .iter()
        .find(|check| check["name"] == "machine")
        .unwrap();
    assert_eq!(machine["state"], "ok", "{machine}");
}

#[test]
fn kvm_doctor_measures_how_the_sample_is_best_restored_where_no_version_is_prepared() {
    if !require_kvm() {
        return;
    }
    let nowhere = tempfile::tempdir().unwrap();
    let state = nowhere.path().to_str().unwrap();
    let report = holm(["doctor", "--json", "--state-dir", state]).json();
    let sample = &report["restore"][0];
    assert_eq!(sample["function"], "sample", "{report}");
    let strategy = sample["strategy"].as_str().unwrap();
    let costs = sample["costs"].as_array().unwrap();
    let of_chosen = |cost: &&serde_json::Value| cost["strategy"] == strategy;
    let chosen = costs.iter().find(of_chosen).unwrap();
    assert!(chosen["first_ns"].as_u64().unwrap() > 0, "{report}");
    let ran = holm(["doctor", "--state-dir", state]);
    assert!(
        ran.stdout.contains("  restore: the built-in sample: "),
        "{}",
        ran.stdout
    );
}
