//! Functions as OCI artifacts: what others read of them, and that they come back as they were.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use holm_test_support::guest;
use holm_tests::{Fleet, eventually};
use serde_json::Value;

/// A fleet with one version of `test/state`, which it has pushed to `layout` as `one`.
fn pushed() -> (Fleet, Value) {
    let fleet = Fleet::without_nodes();
    fleet.holm(&["tenants", "create", "test"]).ok();
    let manifest = "schema = 1\n[function]\nname = \"state\"\ntenant = \"test\"\n";
    let deployed = fleet.publish(&guest("state"), manifest, &[]).ok();
    let destination = format!("oci:{}:one", fleet.path("layout"));
    let pushed = fleet.holm(&["push", "test/state@v1", &destination]).ok();
    assert_eq!(pushed["version"], deployed["version"]["version"]);
    (fleet, pushed)
}

/// Another fleet whose tenant trusts the same key.
fn beside(fleet: &Fleet) -> Fleet {
    let other = Fleet::without_nodes();
    fs::copy(fleet.path("publisher.pem"), other.path("publisher.pem")).unwrap();
    other.holm(&["tenants", "create", "test"]).ok();
    other
}

fn blob(layout: &str, digest: &Value) -> Vec<u8> {
    let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
    fs::read(Path::new(layout).join("blobs/sha256").join(hex)).unwrap()
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn a_pushed_version_has_the_fields_of_the_specification_and_its_own_digests() {
    let (fleet, pushed) = pushed();
    let layout = fleet.path("layout");
    let file = |name: &str| json(&fs::read(Path::new(&layout).join(name)).unwrap());
    assert_eq!(file("oci-layout")["imageLayoutVersion"], "1.0.0");
    let index = file("index.json");
    assert_eq!(index["schemaVersion"], 2);
    let entry = &index["manifests"][0];
    assert_eq!(
        entry["mediaType"],
        "application/vnd.oci.image.manifest.v1+json"
    );
    assert_eq!(
        entry["annotations"]["org.opencontainers.image.ref.name"],
        "one"
    );
    assert_eq!(entry["digest"], pushed["manifest"]);
    let bytes = blob(&layout, &entry["digest"]);
    assert_eq!(entry["size"], bytes.len());
    let manifest = json(&bytes);
    assert_eq!(manifest["schemaVersion"], 2);
    assert_eq!(manifest["mediaType"], entry["mediaType"]);
    assert_eq!(manifest["artifactType"], "application/vnd.holm.function.v1");
    assert_eq!(
        manifest["config"]["digest"], pushed["version"],
        "the version's id"
    );
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
    assert_eq!(manifest["layers"][0]["digest"], pushed["artifact"]);
    let artifact = blob(&layout, &pushed["artifact"]);
    assert!(
        artifact == fs::read(guest("state")).unwrap(),
        "byte for byte the program"
    );
    assert_eq!(manifest["layers"][0]["size"], artifact.len());
    let statement = json(&blob(&layout, &pushed["version"]));
    assert_eq!(statement["artifact"], pushed["artifact"]);
    assert_eq!(statement["function"], "test/state");
    // The same version is the same manifest; another tag is one more entry, the same tag the same one.
    for (tag, entries) in [("two", 2), ("one", 2)] {
        let destination = format!("oci:{layout}:{tag}");
        let again = fleet.holm(&["push", "test/state", &destination]).ok();
        assert_eq!(again["manifest"], pushed["manifest"]);
        assert_eq!(
            file("index.json")["manifests"].as_array().unwrap().len(),
            entries
        );
    }
}

#[test]
fn what_another_program_has_copied_is_pulled_with_the_same_digest_and_signature() {
    let (fleet, pushed) = pushed();
    let other = beside(&fleet);
    let mut layout = fleet.path("layout");
    let skopeo = Command::new("skopeo").arg("--version").output().is_ok();
    if skopeo {
        let copy = other.path("copy");
        let (from, to) = (format!("oci:{layout}:one"), format!("oci:{copy}:one"));
        let ran = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", &from, &to])
            .output()
            .unwrap();
        assert!(
            ran.status.success(),
            "{}",
            String::from_utf8_lossy(&ran.stderr)
        );
        layout = copy;
    } else {
        eprintln!("there is no skopeo here: the layout is pulled as it was pushed");
    }
    let source = format!("oci:{layout}:one");
    let pulled = other.holm(&["pull", &source]).ok();
    assert_eq!(pulled["version"]["version"], pushed["version"]);
    assert_eq!(pulled["artifact"], pushed["artifact"]);
    // It deploys like any other, and is pushed again as the same.
    let started = other.holm(&[
        "rollout",
        "start",
        "test/state",
        "--version",
        "v1",
        "--no-wait",
    ]);
    assert_eq!(started.status, 0, "{started:?}");
    let again = format!("oci:{}", other.path("again"));
    let again = other.holm(&["push", "test/state@v1", &again]).ok();
    assert_eq!(again["manifest"], pushed["manifest"]);
    assert!(
        again["place"].as_str().unwrap().ends_with("again:v1"),
        "{again}"
    );
    // Once more is nothing new.
    let pulled = other.holm(&["pull", &source]).ok();
    assert_eq!(pulled["sent_bytes"], 0);
}

#[test]
fn a_project_is_pushed_before_any_coordinator_knows_of_it() {
    let fleet = Fleet::without_nodes();
    let project = fleet.path("project");
    fs::create_dir(&project).unwrap();
    let program = guest("state");
    let manifest = format!(
        "schema = 1\n[function]\nname = \"state\"\ntenant = \"test\"\n[build]\n\
         command = \"cp {} program\"\noutput = \"program\"\n",
        program.display()
    );
    fs::write(Path::new(&project).join("holm.toml"), manifest).unwrap();
    let layout = format!("oci:{}:ci", fleet.path("layout"));
    let args = [
        "push",
        &project,
        &layout,
        "--counter",
        "7",
        "--coordinator",
        "http://127.0.0.1:1",
    ];
    let pushed = fleet.holm(&args).ok();
    assert_eq!(pushed["label"], "v7");
    let stranger = fleet.holm(&["pull", &layout]).error(5);
    assert!(stranger.contains("tenants create test"), "{stranger}");
    fleet.holm(&["tenants", "create", "test"]).ok();
    let pulled = fleet.holm(&["pull", &layout]).ok();
    assert_eq!(pulled["version"]["version"], pushed["version"]);
    assert_eq!(pulled["version"]["counter"], 7);
}

#[test]
fn what_is_not_a_pushed_version_is_refused_with_the_reason() {
    let (fleet, pushed) = pushed();
    let layout = fleet.path("layout");
    let source = format!("oci:{layout}:one");
    let none = fleet.holm(&["pull", &format!("oci:{layout}:two")]).error(5);
    assert!(none.contains("`two`") && none.contains("one"), "{none}");
    let nowhere = fleet.holm(&["pull", "oci:/nowhere"]).error(2);
    assert!(nowhere.contains("no OCI image layout"), "{nowhere}");
    assert_eq!(fleet.holm(&["pull", "docker.io/x"]).status, 2);
    let neither = fleet.holm(&["push", "nothing", &source]).error(2);
    assert!(neither.contains("neither a directory nor"), "{neither}");

    let path = |digest: &Value| {
        let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
        Path::new(&layout).join("blobs/sha256").join(hex)
    };
    for (digest, what) in [
        (&pushed["artifact"], "artifact"),
        (&pushed["version"], "statement"),
        (&pushed["manifest"], "manifest"),
    ] {
        let good = fs::read(path(digest)).unwrap();
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        fs::write(path(digest), bad).unwrap();
        let error = fleet.holm(&["pull", &source]).error(5);
        assert!(
            error.contains(&format!("its {what} has the digest")),
            "{error}"
        );
        fs::write(path(digest), &good[1..]).unwrap();
        let error = fleet.holm(&["pull", &source]).error(5);
        assert!(error.contains("digest"), "{error}");
        fs::remove_file(path(digest)).unwrap();
        let error = fleet.holm(&["pull", &source]).error(5);
        assert!(error.contains("lacks blobs/sha256/"), "{error}");
        fs::write(path(digest), good).unwrap();
    }
    fleet.holm(&["pull", &source]).ok();
    let index = Path::new(&layout).join("index.json");
    fs::write(&index, "{}").unwrap();
    let error = fleet.holm(&["pull", &source]).error(5);
    assert!(error.contains("lists no manifests"), "{error}");
}

/// A registry on loopback, from Debian's package `docker-registry`; none, which it says, where that is not.
struct Registry {
    child: Child,
    address: String,
}

impl Registry {
    fn start(dir: &str) -> Option<Registry> {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {dir}/blobs}}}}\nhttp: {{addr: {address}}}\n"
        );
        fs::create_dir(dir).unwrap();
        let file = format!("{dir}/config.yml");
        fs::write(&file, config).unwrap();
        let mut command = Command::new("docker-registry");
        command
            .args(["serve", &file])
            .env("OTEL_TRACES_EXPORTER", "none");
        let started = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let Ok(child) = started else {
            eprintln!("skipped: it needs Debian's package docker-registry");
            return None;
        };
        let registry = Registry { child, address };
        eventually("the registry listens", || {
            TcpStream::connect(&registry.address).is_ok()
        });
        Some(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_registry_keeps_a_version_as_it_is() {
    let (fleet, pushed) = pushed();
    let Some(registry) = Registry::start(&fleet.path("registry")) else {
        return;
    };
    let place = format!("docker://{}/test/state:v1", registry.address);
    let there = fleet.holm(&["push", "test/state", &place]).ok();
    assert_eq!(there["manifest"], pushed["manifest"]);
    // Once more sends nothing anew and is the same.
    let again = fleet.holm(&["push", "test/state", &place]).ok();
    assert_eq!(again["manifest"], pushed["manifest"]);
    let other = beside(&fleet);
    let pulled = other.holm(&["pull", &place]).ok();
    assert_eq!(pulled["version"]["version"], pushed["version"]);
    assert_eq!(pulled["artifact"], pushed["artifact"]);

    let none = format!("docker://{}/test/other:v1", registry.address);
    let error = other.holm(&["pull", &none]).error(5);
    assert!(
        error.contains("test/other:v1 is not given by the registry"),
        "{error}"
    );
    drop(registry);
    let error = other.holm(&["pull", &place]).error(6);
    assert!(error.contains("is not given"), "{error}");
}
