//! Becoming a node, and what a coordinator does not let in.

use std::path::Path;
use std::time::Duration;

use holm_test_support::{guest, require_kvm};
use holm_tests::{Fleet, Ran, eventually};

fn join(fleet: &Fleet, token: &str, name: &str) -> Ran {
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

/// The node, as `holm nodes show` tells of it.
fn shown(fleet: &Fleet, name: &str) -> serde_json::Value {
    fleet.holm(&["nodes", "show", name]).ok()
}

fn until_ms(fleet: &Fleet, name: &str) -> u64 {
    let until = shown(fleet, name)["certificate_until_ms"].as_u64();
    until.expect("a node that has shown a certificate")
}

#[test]
fn a_certificate_is_renewed_in_time_and_a_node_that_was_away_too_long_is_told_what_to_do() {
    if !require_kvm() {
        return;
    }
    let mut fleet = Fleet::with_options(&["--node-certificates", "6s"], &["a"]);
    let certificate = Path::new(&fleet.path("a")).join("node.crt");
    let read = || std::fs::read_to_string(&certificate).expect("a certificate");
    let (first, ends) = (read(), until_ms(&fleet, "a"));
    eventually("a renewed certificate", || read() != first);
    assert!(until_ms(&fleet, "a") > ends);
    // The link was made with the first one; the next one is made with what there is then.
    fleet.kill_coordinator();
    fleet.start_coordinator();
    eventually("a link with the renewed certificate", || {
        shown(&fleet, "a")["connected"] == true
    });
    // Long after the first one has ended there is still a link, also for a node that starts anew.
    std::thread::sleep(Duration::from_secs(8));
    fleet.kill_node("a");
    fleet.start_node("a");
    eventually("a link long after the first one has ended", || {
        shown(&fleet, "a")["connected"] == true
    });

    fleet.kill_node("a");
    std::thread::sleep(Duration::from_secs(7));
    fleet.start_node("a");
    eventually("the node to say what to do", || {
        fleet.log("a").contains("this node's certificate has ended")
    });
    assert_eq!(shown(&fleet, "a")["connected"], false);
    fleet.kill_node("a");
    std::fs::remove_file(Path::new(&fleet.path("a")).join("node.json")).expect("its identity");
    join(&fleet, &fleet.token(&["--node", "a"]), "a").ok();
    fleet.start_node("a");
    eventually("the node that has joined again", || {
        shown(&fleet, "a")["connected"] == true
    });
}

#[test]
fn how_long_certificates_are_good_has_bounds() {
    let fleet = Fleet::without_nodes();
    for life in ["1s", "9999d", "soon"] {
        let state = fleet.path("other");
        let options = [
            "coordinator",
            "--state-dir",
            &state,
            "--node-certificates",
            life,
        ];
        let error = fleet.holm(&options).error(2);
        assert!(error.contains("--node-certificates"), "{life}: {error}");
    }
}

#[test]
fn a_node_that_is_not_there_is_not_shown() {
    let fleet = Fleet::without_nodes();
    let error = fleet.holm(&["nodes", "show", "nobody"]).error(5);
    assert!(error.contains("holm nodes list"), "{error}");
}

/// `holm node run` on the state of `name` with these options.
fn run(fleet: &Fleet, name: &str, options: &[&str]) -> Ran {
    let state = fleet.path(name);
    let usual = ["node", "run", "--state-dir", &state, "--region", "test"];
    let place = ["--coordinates", "50.11,8.68", "--listen", "127.0.0.1:0"];
    fleet.holm(&[&usual[..], &place, options].concat())
}

#[test]
fn options_of_a_node_that_make_no_sense_are_wrong_usage() {
    let fleet = Fleet::without_nodes();
    let error = run(&fleet, "a", &["--tls-cert", "cert.pem"]).error(2);
    assert!(error.contains("--tls-key"), "{error}");
    let name = ["--open-to-functions", "db.example.com:5432"];
    let error = run(&fleet, "a", &name).error(2);
    assert!(error.contains("not an address"), "{error}");
}

#[test]
fn kvm_a_node_does_not_start_without_the_certificate_that_it_is_to_have() {
    if !require_kvm() {
        return;
    }
    let fleet = Fleet::without_nodes();
    join(&fleet, &fleet.token(&[]), "a").ok();
    let (cert, key) = (fleet.path("cert.pem"), fleet.path("key.pem"));
    let options = ["--tls-cert", &cert, "--tls-key", &key];
    let error = run(&fleet, "a", &options).error(2);
    assert!(error.contains("cert.pem cannot be read"), "{error}");
    std::fs::write(&cert, "nothing of the kind").unwrap();
    std::fs::write(&key, "").unwrap();
    let error = run(&fleet, "a", &options).error(2);
    assert!(error.contains("cert.pem has no certificate"), "{error}");
}

#[test]
fn kvm_with_certificates_people_and_callers_are_spoken_to_by_tls_alone() {
    if !require_kvm() {
        return;
    }
    let fleet = Fleet::with_tls(&["a"]);
    fleet.deploy("state", &guest("state"), "");
    let answer = fleet.holm(&["invoke", "test/state", "--path", "/ok"]).ok();
    assert_eq!(answer["status"], 200, "{answer}");
    let route = fleet.holm(&["route", "test/state", "--measure"]).ok();
    let url = route["candidates"][0]["url"].as_str().unwrap();
    assert!(url.starts_with("https://"), "{route}");

    // Whose certificate nobody vouches for is told nothing.
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let file = fleet.path("other.pem");
    std::fs::write(&file, other.cert.pem()).unwrap();
    let error = fleet.holm(&["nodes", "list", "--ca-file", &file]).error(6);
    assert!(error.contains("certificate"), "{error}");
    let plain = format!("http://{}", fleet.http());
    let error = fleet
        .holm(&["nodes", "list", "--coordinator", &plain])
        .error(6);
    assert!(error.contains("cannot be reached"), "{error}");
    std::fs::write(&file, "nothing of the kind").unwrap();
    let error = fleet.holm(&["nodes", "list", "--ca-file", &file]).error(2);
    assert!(error.contains("other.pem has no certificate"), "{error}");

    // What `holm login` was given is used from then on.
    let (url, token) = (
        format!("https://{}", fleet.http()),
        fleet.path("coordinator/admin-token"),
    );
    let cert = fleet.path("cert.pem");
    let options = [
        "--coordinator",
        &url,
        "--token-file",
        &token,
        "--ca-file",
        &cert,
    ];
    fleet.holm(&[&["login"][..], &options].concat()).ok();
    let settings = std::fs::read_to_string(fleet.path("config/holm/config.toml")).unwrap();
    assert!(settings.contains("cert.pem"), "{settings}");
}

#[test]
fn a_coordinator_does_not_start_without_the_certificate_that_it_is_to_have() {
    let fleet = Fleet::without_nodes();
    let state = fleet.path("other");
    let (cert, key) = (fleet.path("cert.pem"), fleet.path("key.pem"));
    let start = |options: &[&str]| {
        let usual = [
            "coordinator",
            "--state-dir",
            &state,
            "--http",
            "127.0.0.1:0",
        ];
        fleet.holm(&[&usual[..], options].concat()).error(2)
    };
    let error = start(&["--tls-cert", &cert]);
    assert!(error.contains("--tls-key"), "{error}");
    let error = start(&[
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
        "--quic",
        "127.0.0.1:0",
    ]);
    assert!(error.contains("cert.pem cannot be read"), "{error}");
}
