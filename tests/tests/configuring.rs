//! Environment and secrets of a function: versions of their own that roll out like code.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use holm_test_support::{function, guest, require_kvm};
use holm_tests::{Fleet, eventually, get};

/// A value that stands nowhere else.
const SECRET: &str = "correct-horse-battery-staple";
const OTHER: &str = "trombone-lantern-gravel-teapot";

/// Sets a secret of `function` from a file.
fn set_secret(fleet: &Fleet, function: &str, name: &str, value: &str) -> serde_json::Value {
    let path = fleet.path("value");
    std::fs::write(&path, format!("{value}\n")).expect("the directory is there");
    let args = [
        "secrets",
        "set",
        function,
        name,
        "--from-file",
        &path,
        "--bake",
        "100ms",
    ];
    let set = fleet.holm(&args).ok();
    std::fs::remove_file(path).expect("it was written");
    assert_eq!(set["rollout"]["state"], "completed", "{set}");
    set
}

/// What the program finds in its environment on a node.
fn environment(fleet: &Fleet, node: &str) -> String {
    let answer = get(&fleet.address(node), "/test/env/");
    answer.map(|answer| answer.body).unwrap_or_default()
}

/// The files below `dir` that have these bytes in them.
fn with(dir: &Path, needle: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(with(&path, needle));
        } else if let Ok(bytes) = std::fs::read(&path)
            && memchr(&bytes, needle.as_bytes())
        {
            found.push(path);
        }
    }
    found
}

/// Files here are large: looks for the first byte first.
fn memchr(bytes: &[u8], needle: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == needle[0]) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

#[test]
fn kvm_a_secret_reaches_the_program_and_is_nowhere_else_in_the_clear() {
    if !require_kvm() {
        return;
    }
    let mut fleet = Fleet::with_nodes(&["a"]);
    fleet.deploy(
        "env",
        &guest("env_and_args"),
        "[env]\nGREETING = \"manifest\"\nKEPT = \"1\"\n",
    );
    fleet.deploy("state", &guest("state"), "");
    let set = set_secret(&fleet, "test/env", "PASSWORD", SECRET);
    assert_eq!(set["configuration"]["number"], 1, "{set}");
    let set = fleet
        .holm(&[
            "config",
            "set",
            "test/env",
            "GREETING=hello=you",
            "--bake",
            "100ms",
        ])
        .ok();
    assert_eq!(set["configuration"]["secrets"]["PASSWORD"], 1, "{set}");
    let told = environment(&fleet, "a");
    for line in [
        &format!("env PASSWORD={SECRET}\n"),
        "env GREETING=hello=you\n",
        "env KEPT=1\n",
        "env PORT=8080\n",
    ] {
        assert!(told.contains(line), "{line} is not in {told}");
    }
    let answer = get(&fleet.address("a"), "/test/env/").unwrap();
    assert_eq!(answer.header("x-holm-version"), Some("v1+c2"));
    let listed = fleet.holm(&["secrets", "list", "test/env"]).ok();
    assert_eq!(listed, serde_json::json!({ "PASSWORD": 1 }));
    let shown = fleet.holm(&["config", "show", "test/env"]).ok();
    assert_eq!(shown["env"]["GREETING"], "hello=you", "{shown}");
    assert!(!shown.to_string().contains(SECRET));
    let status = fleet.holm(&["rollout", "status", "test/env"]).ok();
    assert_eq!(
        (&status["configuration"], &status["version"]["label"]),
        (&2.into(), &"v1".into())
    );
    for args in [
        &["audit", "log"][..],
        &["config", "list", "test/env"],
        &["logs", "test/env"],
        &["usage", "--function", "test/env"],
        &["nodes", "list"],
        &["rollout", "list", "test/env"],
    ] {
        let told = fleet.holm(args);
        assert_eq!(told.status, 0, "{told:?}");
        assert!(
            !told.stdout.contains(SECRET) && !told.stderr.contains(SECRET),
            "{told:?}"
        );
    }
    let audit = fleet.holm(&["audit", "log"]).stdout;
    assert!(audit.contains("sets the secret PASSWORD"), "{audit}");

    let export = fleet.path("export");
    fleet.kill_coordinator();
    let coordinator = fleet.path("coordinator");
    fleet
        .holm(&[
            "coordinator",
            "--state-dir",
            &coordinator,
            "export",
            &export,
        ])
        .ok();
    fleet.kill_node("a");
    let (coordinator, node) = (PathBuf::from(coordinator), PathBuf::from(fleet.path("a")));
    assert_eq!(with(&coordinator, SECRET), Vec::<PathBuf>::new());
    assert!(!memchr(&std::fs::read(&export).unwrap(), SECRET.as_bytes()));
    assert!(!memchr(
        &std::fs::read(&export).unwrap(),
        hex(SECRET).as_bytes()
    ));
    for daemon in ["coordinator", "a"] {
        assert!(!fleet.log(daemon).contains(SECRET), "{daemon}");
    }
    // On the node it is where the program's memory is, and in desired state, for that user alone.
    let found = with(&node, SECRET);
    assert!(!found.is_empty());
    for path in found {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name == "desired.bin" || name.ends_with(".snap"), "{path:?}");
        let closed = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o077 == 0;
        assert!(
            closed(&path) || closed(path.parent().unwrap()),
            "{path:?} is for others too"
        );
    }
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn kvm_a_bad_configuration_goes_back_and_a_rollback_goes_to_what_was_before() {
    if !require_kvm() {
        return;
    }
    let fleet = Fleet::with_nodes(&["a", "b"]);
    fleet.deploy("hello", &function("hello"), "probe = \"/\"\n");
    let body = |node: &str| get(&fleet.address(node), "/test/hello/").unwrap().body;
    let set = |entry: &str| {
        let pace = ["--wave", "nodes=1", "--wave", "100%", "--bake", "100ms"];
        fleet.holm(&[&["config", "set", "test/hello", entry][..], &pace].concat())
    };
    let good = set("HELLO_VERSION=one").ok();
    assert_eq!(
        good["rollout"]["waves"].as_array().unwrap().len(),
        2,
        "{good}"
    );
    let all = |text: &str| ["a", "b"].iter().all(|node| body(node) == text);
    assert!(all("hello from one\n"));
    let bad = set("HELLO_CRASH=1");
    assert_eq!(bad.status, 7, "{bad:?}");
    let reason = bad.json()["rollout"]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("probe"), "{reason}");
    assert!(all("hello from one\n"));
    // The fleet is on c1, and c2 is newer: of which?
    let which = fleet.holm(&["config", "set", "test/hello", "A=1"]).error(2);
    assert!(which.contains("--from c1"), "{which}");
    let unset = fleet
        .holm(&[
            "config",
            "set",
            "test/hello",
            "HELLO_VERSION=two",
            "--unset",
            "HELLO_CRASH",
            "--from",
            "c2",
            "--bake",
            "100ms",
        ])
        .ok();
    assert_eq!(unset["configuration"]["number"], 3, "{unset}");
    assert!(all("hello from two\n"));
    for (label, text) in [(Some(1), "hello from one\n"), (None, "hello from v1\n")] {
        let back = fleet.holm(&["rollback", "test/hello"]).ok();
        assert_eq!(back["configuration"].as_u64(), label, "{back}");
        assert!(all(text), "{text}");
    }
    let start = [
        "rollout",
        "start",
        "test/hello",
        "--config",
        "c3",
        "--bake",
        "100ms",
    ];
    let again = fleet.holm(&start).ok();
    assert_eq!(again["version"]["label"], "v1", "{again}");
    assert!(all("hello from two\n"));
    let nodes = fleet.holm(&["nodes", "list"]).ok();
    let seen = nodes[0]["versions"].as_array().unwrap();
    assert!(
        seen.iter()
            .any(|seen| seen["routed"] == true && seen["configuration"] == 3),
        "{nodes}"
    );
}

#[test]
fn kvm_a_node_that_starts_again_without_a_coordinator_serves_with_the_same_secrets() {
    if !require_kvm() {
        return;
    }
    let mut fleet = Fleet::with_nodes(&["a"]);
    fleet.deploy("env", &guest("env_and_args"), "");
    set_secret(&fleet, "test/env", "PASSWORD", SECRET);
    fleet.kill_coordinator();
    fleet.kill_node("a");
    // Not from the snapshot either: the program is booted anew from the artifact and the configuration on disk.
    let snapshots = PathBuf::from(fleet.path("a")).join("snapshots");
    for entry in std::fs::read_dir(snapshots).unwrap() {
        std::fs::remove_file(entry.expect("an entry").path()).unwrap();
    }
    fleet.start_node("a");
    let line = format!("env PASSWORD={SECRET}\n");
    eventually("the secret from the node's own disk", || {
        environment(&fleet, "a").contains(&line)
    });

    fleet.start_coordinator();
    set_secret(&fleet, "test/env", "PASSWORD", OTHER);
    let told = environment(&fleet, "a");
    assert!(told.contains(OTHER) && !told.contains(SECRET), "{told}");
    let gone = fleet
        .holm(&[
            "secrets", "unset", "test/env", "PASSWORD", "--bake", "100ms",
        ])
        .ok();
    assert_eq!(
        gone["configuration"]["secrets"],
        serde_json::json!({}),
        "{gone}"
    );
    assert!(!environment(&fleet, "a").contains("PASSWORD"));
}

#[test]
fn what_is_wrong_with_a_configuration_is_said_on_the_command_line() {
    let fleet = Fleet::without_nodes();
    let unknown = fleet.holm(&["config", "set", "test/none", "A=1"]).error(5);
    assert!(unknown.contains("test/none"), "{unknown}");
    fleet.holm(&["tenants", "create", "test"]).ok();
    let manifest = "schema = 1\n[function]\nname = \"state\"\ntenant = \"test\"\n";
    fleet.publish(&guest("state"), manifest, &[]).ok();
    for bad in ["PORT=1", "HOLM_A=1", "A B=1", "A"] {
        fleet.holm(&["config", "set", "test/state", bad]).error(2);
    }
    let nothing = fleet.holm(&["config", "set", "test/state"]);
    assert_eq!(nothing.status, 2, "{nothing:?}");
    let unset = fleet
        .holm(&["config", "set", "test/state", "--unset", "A"])
        .error(2);
    assert!(unset.contains("has no plain entry A"), "{unset}");
    let empty = fleet.holm(&["secrets", "set", "test/state", "A"]).error(2);
    assert!(empty.contains("empty"), "nothing comes from stdin: {empty}");
    let set = fleet
        .holm(&["config", "set", "test/state", "A=1", "--no-rollout"])
        .ok();
    assert_eq!(
        (&set["configuration"]["number"], &set["rollout"]),
        (&1.into(), &serde_json::Value::Null)
    );
    let same = fleet.holm(&["config", "set", "test/state", "A=1"]).error(5);
    assert!(
        same.contains("nothing is changed") && same.contains("c1"),
        "{same}"
    );
    let path = fleet.path("value");
    std::fs::write(&path, SECRET).unwrap();
    fleet
        .holm(&["secrets", "set", "test/state", "B", "--from-file", &path])
        .ok();
    let plain = fleet.holm(&["config", "set", "test/state", "B=1"]).error(2);
    assert!(plain.contains("B is a secret"), "{plain}");
    let shown = fleet.holm(&["config", "show", "test/state", "c2"]).ok();
    assert_eq!(shown["env"]["A"], "1", "{shown}");
    assert!(
        shown["secrets"]["B"]
            .as_str()
            .unwrap()
            .starts_with("sha256:")
    );
    let none = fleet.holm(&["config", "show", "test/state", "c9"]).error(5);
    assert!(none.contains("c9"), "{none}");

    // What others have signed is not signed anew without a word.
    std::fs::rename(fleet.path("publisher.pem"), fleet.path("first.pem")).unwrap();
    fleet.holm(&["tenants", "create", "test"]).ok();
    let refused = fleet.holm(&["config", "set", "test/state", "A=2"]).error(1);
    assert!(
        refused.contains("is not trusted") && refused.contains("--trust"),
        "{refused}"
    );
    let key = refused
        .split("it is signed with ")
        .nth(1)
        .unwrap()
        .split(':')
        .next()
        .unwrap();
    let trusted = [
        "config",
        "set",
        "test/state",
        "A=2",
        "--trust",
        key,
        "--no-rollout",
    ];
    assert_eq!(fleet.holm(&trusted).ok()["configuration"]["number"], 3);
}
