//! What the registry lets in, and what it refuses and why.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Coordinator, Publisher, post_version, program, put_artifact};
use ed25519_dalek::SigningKey;
use holm_coordinator::S3Place;
use holm_model::api::{FunctionView, MissingChunks, PruneView, PublishRequest, VersionView};
use holm_model::artifact::{PublisherKey, SignedVersion};
use holm_model::bundle::{Bundle, Collected};
use holm_model::chunks::{Index, frame_head};
use holm_model::ids::Digest;
use holm_model::program::Program;
use holm_test_support::{S3Server, noise};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

/// A coordinator, a publisher, and a signed first version whose artifact is there.
async fn ready() -> (Coordinator, Publisher, SignedVersion) {
    let coordinator = Coordinator::start().await;
    let publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    let elf = program::elf(1);
    put_artifact(&coordinator.client, &elf).await;
    let signed = SignedVersion::sign(&publisher.statement(1, &elf, ""), &publisher.key);
    (coordinator, publisher, signed)
}

/// The kind and the text of the problem with which a version is refused; nothing of it stays.
async fn refused(
    coordinator: &Coordinator,
    publisher: &Publisher,
    signed: &SignedVersion,
    status: u16,
) -> (String, String) {
    let answer = post_version(&coordinator.client, &publisher.function, signed).await;
    let problem = answer.problem(status);
    let view = coordinator
        .client
        .get(&format!("/v1/functions/{}", publisher.function))
        .await;
    if view.status == 200 {
        let versions = view.expect::<FunctionView>(200).versions;
        assert!(
            versions
                .iter()
                .all(|version| version.version != signed.id())
        );
    }
    (problem.kind, problem.detail)
}

#[tokio::test]
async fn publishing_twice_gives_the_same_version_and_is_new_once() {
    let (coordinator, publisher, signed) = ready().await;
    let first = post_version(&coordinator.client, &publisher.function, &signed).await;
    let again = post_version(&coordinator.client, &publisher.function, &signed).await;
    let version: VersionView = first.expect(201);
    assert_eq!(version, again.expect(200));
    assert_eq!(version.version, signed.id());
    assert_eq!((version.label.as_str(), version.counter), ("v1", 1));
    let view: FunctionView = coordinator
        .client
        .get("/v1/functions/acme/hello")
        .await
        .expect(200);
    assert_eq!((view.versions, view.current), (vec![version], None));
}

#[tokio::test]
async fn an_altered_statement_is_refused_as_badly_signed() {
    let (coordinator, publisher, mut signed) = ready().await;
    let label = signed
        .statement
        .windows(4)
        .position(|w| w == b"\"v1\"")
        .unwrap();
    signed.statement[label + 2] = b'9';
    let (kind, detail) = refused(&coordinator, &publisher, &signed, 422).await;
    assert_eq!(kind, "/problems/bad-signature");
    assert!(detail.contains("altered on the way"), "{detail}");
}

#[tokio::test]
async fn a_key_that_is_not_the_tenants_is_refused_even_if_another_tenant_has_it() {
    let (coordinator, publisher, _) = ready().await;
    let stranger = Publisher::register(&coordinator, "other/hello", 2).await;
    let statement = publisher.statement(1, &program::elf(1), "");
    let signed = SignedVersion::sign(&statement, &stranger.key);
    let (kind, detail) = refused(&coordinator, &publisher, &signed, 422).await;
    assert_eq!(kind, "/problems/unknown-key");
    assert!(detail.contains("tenant `acme`"), "{detail}");

    // Claiming the tenant's key does not help without having it.
    let mut forged = signed;
    forged.key = PublisherKey(publisher.key.verifying_key().to_bytes());
    let (kind, _) = refused(&coordinator, &publisher, &forged, 422).await;
    assert_eq!(kind, "/problems/bad-signature");
}

#[tokio::test]
async fn an_older_or_equal_counter_is_refused_and_the_newest_named() {
    let (coordinator, mut publisher, _) = ready().await;
    publisher.counter = 6;
    publisher.publish(&coordinator, "").await;
    let elf = program::elf(1);
    for counter in [1, 6, 7] {
        let mut statement = publisher.statement(counter, &elf, "");
        statement.label = "sneaky".into();
        let signed = SignedVersion::sign(&statement, &publisher.key);
        let (kind, detail) = refused(&coordinator, &publisher, &signed, 409).await;
        assert_eq!(kind, "/problems/counter-too-low");
        assert!(
            detail.contains("the newest version of `acme/hello` has 7"),
            "{detail}"
        );
    }
    let next = SignedVersion::sign(&publisher.statement(8, &elf, ""), &publisher.key);
    assert_eq!(
        post_version(&coordinator.client, &publisher.function, &next)
            .await
            .status,
        201
    );
}

#[tokio::test]
async fn bytes_with_another_digest_than_announced_are_not_kept() {
    let coordinator = Coordinator::start().await;
    let announced = Digest::of(b"what was announced");
    let path = format!("/v1/artifacts/{announced}");
    let problem = coordinator
        .client
        .put(&path, b"what was sent")
        .await
        .problem(422);
    assert_eq!(problem.kind, "/problems/wrong-digest");
    assert!(
        problem
            .detail
            .contains(&Digest::of(b"what was sent").to_string())
    );
    assert_eq!(
        coordinator.client.send("HEAD", &path, b"").await.status,
        404
    );
    assert_eq!(packs(&coordinator).len(), 0, "nothing stays behind");

    assert_eq!(
        coordinator
            .client
            .put(&path, b"what was announced")
            .await
            .status,
        201
    );
    assert_eq!(
        coordinator
            .client
            .put(&path, b"what was announced")
            .await
            .status,
        200
    );
    assert_eq!(
        coordinator.client.send("HEAD", &path, b"").await.status,
        200
    );
}

#[tokio::test]
async fn large_artifacts_are_taken_and_too_large_ones_refused_before_they_are_sent() {
    let coordinator = Coordinator::start().await;
    put_artifact(&coordinator.client, &vec![7; 20 << 20]).await;

    let path = format!("/v1/artifacts/{}", Digest::of(b""));
    let announced = (256 << 20) + 1;
    let answer = coordinator.client.announce("PUT", &path, announced).await;
    assert_eq!(answer.problem(413).kind, "/problems/too-large");
}

#[tokio::test]
async fn an_upload_that_is_cut_goes_on_with_what_is_missing() {
    let coordinator = Coordinator::start().await;
    let client = &coordinator.client;
    let artifact = noise(1, 2 << 20);
    let path = format!("/v1/artifacts/{}", Digest::of(&artifact));
    let index = Index::of(&artifact);
    let ask = async || {
        let answer = client
            .put(&format!("{path}/index"), &index.to_bytes())
            .await;
        match answer.status {
            202 => answer.expect::<MissingChunks>(202).missing,
            200 | 201 => Vec::new(),
            status => panic!("{status}: {}", answer.text()),
        }
    };
    let all = ask().await;
    assert_eq!(all.len(), index.chunks().len());
    let body = frames(&artifact, &all);
    let sending = format!("{path}/chunks");
    let mut upload = client.begin("PUT", &sending, body.len()).await;
    // The caller goes away in the middle of a chunk.
    upload.write_all(&body[..1_000_000]).await.unwrap();
    drop(upload);
    common::until("what came is kept", || async {
        ask().await.len() < all.len()
    })
    .await;
    assert_eq!(client.send("HEAD", &path, b"").await.status, 404);
    let rest = ask().await;
    let (mut left, mut came) = (1_000_000, 0);
    for chunk in index.chunks() {
        left -= 4 + i64::from(chunk.bytes);
        came += usize::from(left >= 0);
    }
    assert_eq!(rest, all[came..], "all that came whole is kept");
    let sent = client.put(&sending, &frames(&artifact, &rest)).await;
    assert_eq!(sent.status, 204, "{}", sent.text());
    assert!(ask().await.is_empty());
    assert_eq!(client.send("HEAD", &path, b"").await.status, 200);
}

#[tokio::test]
async fn of_an_artifact_that_has_much_in_common_with_another_little_is_missing() {
    let coordinator = Coordinator::start().await;
    let client = &coordinator.client;
    let mut artifact = noise(2, 4 << 20);
    put_artifact(client, &artifact).await;
    artifact.splice(2_000_000..2_000_000, *b"one line more");
    let digest = Digest::of(&artifact);
    let index = Index::of(&artifact);
    let path = format!("/v1/artifacts/{digest}/index");
    let answer = client.put(&path, &index.to_bytes()).await;
    let missing = answer.expect::<MissingChunks>(202).missing;
    assert!((1..=3).contains(&missing.len()), "{missing:?}");
    let sending = format!("/v1/artifacts/{digest}/chunks");
    let sent = client.put(&sending, &frames(&artifact, &missing)).await;
    assert_eq!(sent.status, 204);
    assert_eq!(client.put(&path, &index.to_bytes()).await.status, 201);
    assert_eq!(client.put(&path, &index.to_bytes()).await.status, 200);
}

#[tokio::test]
async fn what_is_no_index_and_what_are_no_chunks_is_refused() {
    let coordinator = Coordinator::start().await;
    let client = &coordinator.client;
    let artifact = noise(3, 300_000);
    put_artifact(client, &artifact).await;
    let index = Index::of(&artifact);
    let other = format!("/v1/artifacts/{}", Digest::of(b"something else"));
    // Chunks that are here, in the name of another artifact.
    let answer = client
        .put(&format!("{other}/index"), &index.to_bytes())
        .await;
    assert_eq!(answer.problem(422).kind, "/problems/wrong-digest");
    let answer = client.put(&format!("{other}/index"), b"nonsense").await;
    assert!(answer.problem(400).detail.contains("no index"));
    let cut = &index.to_bytes()[..100];
    let answer = client.put(&format!("{other}/index"), cut).await;
    assert!(answer.problem(400).detail.contains("cut short"));
    let sending = format!("{other}/chunks");
    for (body, says) in [
        (&70_000_u32.to_le_bytes()[..], "70000 bytes"),
        (&[0; 4], "0 bytes"),
        (&[9, 0, 0, 0, 1], "cut short"),
        (&[1, 0, 0, 0, 1, 1, 0, 0, 0, 2], "only the last"),
    ] {
        let problem = client.put(&sending, body).await.problem(400);
        assert!(problem.detail.contains(says), "{}", problem.detail);
    }
    assert_eq!(client.send("HEAD", &other, b"").await.status, 404);
}

#[tokio::test]
async fn a_version_needs_its_artifact_first() {
    let (coordinator, publisher, _) = ready().await;
    let statement = publisher.statement(1, &program::elf(99), "");
    let signed = SignedVersion::sign(&statement, &publisher.key);
    let (kind, detail) = refused(&coordinator, &publisher, &signed, 422).await;
    assert_eq!(kind, "/problems/artifact-missing");
    assert!(detail.contains(&statement.artifact.to_string()), "{detail}");
}

#[tokio::test]
async fn an_artifact_of_another_length_than_signed_is_refused() {
    let (coordinator, publisher, _) = ready().await;
    let mut statement = publisher.statement(1, &program::elf(1), "");
    statement.artifact_bytes += 1;
    let signed = SignedVersion::sign(&statement, &publisher.key);
    let (kind, _) = refused(&coordinator, &publisher, &signed, 422).await;
    assert_eq!(kind, "/problems/wrong-size");
}

#[tokio::test]
async fn an_artifact_that_was_altered_on_the_coordinators_disk_is_refused() {
    let (coordinator, publisher, signed) = ready().await;
    let [path] = &packs(&coordinator)[..] else {
        panic!("one pack is expected");
    };
    let mut bytes = std::fs::read(path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(path, bytes).unwrap();
    let refused = post_version(&coordinator.client, &publisher.function, &signed).await;
    assert_eq!(refused.status, 500);
    // It is known to be lost now, and can be sent once more.
    let (kind, _) = self::refused(&coordinator, &publisher, &signed, 422).await;
    assert_eq!(kind, "/problems/artifact-missing");
    put_artifact(&coordinator.client, &program::elf(1)).await;
    let published = post_version(&coordinator.client, &publisher.function, &signed).await;
    assert_eq!(published.status, 201, "{}", published.text());
}

#[tokio::test]
async fn what_is_not_a_program_is_refused_whoever_signed_it() {
    let (coordinator, publisher, _) = ready().await;
    let script = b"#!/bin/sh\necho hello\n";
    put_artifact(&coordinator.client, script).await;
    let statement = publisher.statement(1, script, "");
    let signed = SignedVersion::sign(&statement, &publisher.key);
    let (kind, detail) = refused(&coordinator, &publisher, &signed, 422).await;
    assert_eq!(kind, "/problems/bad-program");
    assert!(
        detail.contains("not a program that Holm can run"),
        "{detail}"
    );
}

#[tokio::test]
async fn a_statement_sent_to_another_function_or_tenant_is_refused() {
    let (coordinator, publisher, signed) = ready().await;
    let other = "acme/other".parse().unwrap();
    let problem = post_version(&coordinator.client, &other, &signed)
        .await
        .problem(422);
    assert_eq!(problem.kind, "/problems/other-function");
    let nobody = "nobody/hello".parse().unwrap();
    let problem = post_version(&coordinator.client, &nobody, &signed)
        .await
        .problem(404);
    assert!(
        problem.detail.contains("there is no tenant `nobody`"),
        "{}",
        problem.detail
    );

    let mut statement = publisher.statement(1, &program::elf(1), "");
    statement.manifest.function.name = "else".parse().unwrap();
    let signed = SignedVersion::sign(&statement, &publisher.key);
    let (kind, detail) = refused(&coordinator, &publisher, &signed, 422).await;
    assert_eq!(kind, "/problems/bad-statement");
    assert!(
        detail.contains("`acme/else`, not of `acme/hello`"),
        "{detail}"
    );
}

#[tokio::test]
async fn a_signed_statement_that_makes_no_sense_is_refused() {
    let (coordinator, publisher, _) = ready().await;
    let good = publisher.statement(1, &program::elf(1), "");
    let mut cases = [good.clone(), good.clone(), good.clone(), good];
    cases[0].label = "v1\x1b[31m".into();
    cases[1].label = String::new();
    cases[2].counter = 0;
    cases[3].manifest.limits.memory_bytes = u64::MAX;
    for statement in cases {
        let signed = SignedVersion::sign(&statement, &publisher.key);
        let (kind, _) = refused(&coordinator, &publisher, &signed, 422).await;
        assert_eq!(kind, "/problems/bad-statement");
    }
    // Nor does one that is no statement at all, signed as it may be.
    let mut signed = SignedVersion::sign(&publisher.statement(1, b"", ""), &publisher.key);
    signed.statement = b"{}".to_vec();
    let key = SigningKey::from_bytes(&[1; 32]);
    signed.signature = {
        use ed25519_dalek::Signer as _;
        key.sign(&signed.statement).to_bytes().to_vec()
    };
    let (kind, _) = refused(&coordinator, &publisher, &signed, 422).await;
    assert_eq!(kind, "/problems/bad-statement");
}

#[tokio::test]
async fn a_program_with_files_is_taken_and_one_with_a_damaged_tree_is_not() {
    let (coordinator, publisher, _) = ready().await;
    let mut files = Collected::default();
    files
        .file(b"/www/index.html", false, b"hello\n".to_vec())
        .unwrap();
    let bundle = Bundle {
        program: Program::parse(&program::elf(1)).unwrap(),
        files: files.finish().unwrap(),
    };
    let good = bundle.to_bytes().unwrap();
    let mut bad = good.to_vec();
    let tree = bad.windows(8).position(|eight| eight == b"HOLMTREE");
    // The number of its entries.
    bad[tree.unwrap() + 12] += 1;
    put_artifact(&coordinator.client, &bad).await;
    let signed = SignedVersion::sign(&publisher.statement(1, &bad, ""), &publisher.key);
    let (kind, detail) = refused(&coordinator, &publisher, &signed, 422).await;
    assert_eq!(kind, "/problems/bad-program");
    assert!(detail.contains("files are refused"), "{detail}");

    put_artifact(&coordinator.client, &good).await;
    let signed = SignedVersion::sign(&publisher.statement(1, &good, ""), &publisher.key);
    let response = post_version(&coordinator.client, &publisher.function, &signed).await;
    assert_eq!(response.status, 201);
}

/// The files in which the chunks are.
fn packs(coordinator: &Coordinator) -> Vec<std::path::PathBuf> {
    let packs = coordinator.dir.path().join("state/artifacts/packs");
    let files = std::fs::read_dir(packs).unwrap();
    files.map(|file| file.unwrap().path()).collect()
}

/// The frames of the chunks in these places.
fn frames(artifact: &[u8], places: &[u32]) -> Vec<u8> {
    let placed: Vec<_> = Index::of(artifact).placed().collect();
    let frame = |place: &u32| {
        let (at, chunk) = placed[*place as usize];
        let chunk = &artifact[at as usize..][..chunk.bytes as usize];
        [&frame_head(chunk)[..], chunk].concat()
    };
    places.iter().flat_map(frame).collect()
}

#[tokio::test]
async fn an_artifact_that_an_earlier_holm_kept_whole_is_taken_in() {
    let (mut coordinator, publisher, _) = ready().await;
    let old = program::elf(7);
    let artifacts = coordinator.dir.path().join("state/artifacts");
    let file = artifacts.join(Digest::of(&old).hex());
    std::fs::write(&file, &old).unwrap();
    let damaged = artifacts.join(Digest::of(b"what it was").hex());
    std::fs::write(&damaged, b"what it is").unwrap();
    coordinator.restart().await;
    assert!(!file.exists() && !damaged.exists());
    let signed = SignedVersion::sign(&publisher.statement(1, &old, ""), &publisher.key);
    let published = post_version(&coordinator.client, &publisher.function, &signed).await;
    assert_eq!(published.status, 201, "{}", published.text());
}

#[tokio::test]
async fn a_version_that_nobody_needs_goes_with_its_artifact_and_does_not_come_back() {
    let (coordinator, mut publisher, _) = ready().await;
    let client = &coordinator.client;
    let first = publisher.publish(&coordinator, "").await;
    for _ in 0..3 {
        publisher.publish(&coordinator, "").await;
    }
    let prune = async |dry_run: bool, keep: u64| {
        let body = json!({ "function": "acme/hello", "keep": keep, "dry_run": dry_run });
        client.post("/v1/prune", &body).await
    };
    let would: PruneView = prune(true, 3).await.expect(200);
    let before = packs(&coordinator).len();
    let done: PruneView = prune(false, 3).await.expect(200);
    assert_eq!(
        PruneView {
            dry_run: false,
            ..would.clone()
        },
        PruneView {
            removed: would.removed.clone(),
            ..done.clone()
        }
    );
    assert!(done.removed[0].removed && !would.removed[0].removed);
    assert_eq!(done.artifacts, [Digest::of(&program::elf(1))]);
    assert_eq!(done.artifact_bytes, program::elf(1).len() as u64);
    assert_eq!(done.kept.len(), 3);
    assert_eq!(packs(&coordinator).len(), before - 1);
    let there = async |n| {
        let path = format!("/v1/artifacts/{}", Digest::of(&program::elf(n)));
        client.send("HEAD", &path, b"").await.status
    };
    assert_eq!([there(1).await, there(2).await], [404, 200]);
    prune(false, 0).await.problem(400);
    let unknown = json!({ "function": "acme/none", "keep": 1, "dry_run": true });
    client.post("/v1/prune", &unknown).await.problem(404);

    let statement = publisher.statement(1, &program::elf(1), "");
    let again = SignedVersion::sign(&statement, &publisher.key);
    assert_eq!(again.id(), first.version);
    put_artifact(client, &program::elf(1)).await;
    let refused = post_version(client, &publisher.function, &again)
        .await
        .problem(409);
    assert_eq!(refused.kind, "/problems/version-removed");
    let path = "/v1/functions/acme/hello/rollouts";
    let rollout = client
        .post(path, &json!({ "version": first.version }))
        .await;
    assert!(rollout.problem(404).detail.contains("publish it first"));
    let tag = json!({ "version": first.version });
    let tag = serde_json::to_vec(&tag).unwrap();
    let path = "/v1/functions/acme/hello/tags/old";
    client.put(path, &tag).await.problem(404);
    let bad = client.put("/v1/functions/acme/hello/tags/-x", &tag).await;
    assert!(bad.problem(400).detail.contains("is not a tag"));
}

#[tokio::test]
async fn a_version_is_read_back_as_it_was_signed_by_who_may_deploy_for_its_tenant() {
    let (coordinator, mut publisher, _) = ready().await;
    let client = &coordinator.client;
    let files = noise(5, 6 << 20);
    let mut collected = Collected::default();
    collected.file(b"/noise", false, files).unwrap();
    let bundle = Bundle {
        program: Program::parse(&program::elf(1)).unwrap(),
        files: collected.finish().unwrap(),
    };
    let artifact = bundle.to_bytes().unwrap();
    put_artifact(client, &artifact).await;
    publisher.counter = 1;
    let signed = SignedVersion::sign(&publisher.statement(1, &artifact, ""), &publisher.key);
    let published = post_version(client, &publisher.function, &signed).await;
    assert_eq!(published.status, 201, "{}", published.text());
    let path = format!("/v1/functions/acme/hello/versions/{}", signed.id());
    let read: PublishRequest = client.get(&path).await.expect(200);
    assert_eq!(read.to_signed().unwrap(), signed);
    let mut read = Vec::new();
    loop {
        // From the middle of a chunk as well.
        let answer = client
            .get(&format!("{path}/artifact?from={}", read.len()))
            .await;
        assert_eq!(answer.status, 200);
        if answer.body.is_empty() {
            break;
        }
        assert!(answer.body.len() <= 4 << 20);
        read.extend_from_slice(&answer.body[..answer.body.len().min(1_000_001)]);
    }
    assert!(read == artifact[..]);
    let end = client
        .get(&format!("{path}/artifact?from=99999999999"))
        .await;
    assert_eq!((end.status, end.body.len()), (200, 0));
    // It is not another function's, nor is another one's here.
    let other = format!("/v1/functions/acme/other/versions/{}", signed.id());
    assert!(
        client
            .get(&other)
            .await
            .problem(404)
            .detail
            .contains("has no version")
    );
    client.get(&format!("{other}/artifact")).await.problem(404);
}

#[tokio::test]
async fn artifacts_can_be_in_an_s3_compatible_store_and_a_state_directory_without_them() {
    let Some(server) = S3Server::shared() else {
        return;
    };
    let place: S3Place = format!("s3://{}/fleet", server.bucket()).parse().unwrap();
    let place = place.with_settings(server.settings());
    let dir = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start_with_artifacts(dir, Some(place))
        .await
        .unwrap();
    let mut publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    publisher.publish(&coordinator, "").await;
    assert!(!coordinator.dir.path().join("state/artifacts").exists());
    coordinator.restart().await;
    let path = format!("/v1/artifacts/{}", Digest::of(&program::elf(1)));
    assert_eq!(
        coordinator.client.send("HEAD", &path, b"").await.status,
        200
    );
    let version = publisher.publish(&coordinator, "").await;
    let path = format!(
        "/v1/functions/acme/hello/versions/{}/artifact",
        version.version
    );
    assert_eq!(coordinator.client.get(&path).await.body, program::elf(2));

    // Without the store's place the artifacts are missed at once, and not when they are needed.
    coordinator.kill();
    let dir = std::mem::replace(&mut coordinator.dir, tempfile::tempdir().unwrap());
    let elsewhere = Coordinator::start_with_artifacts(dir, None).await;
    let error = elsewhere.err().unwrap().to_string();
    assert!(error.contains("copy `packs`"), "{error}");
}
