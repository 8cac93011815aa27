//! Usage in Parquet files, read back by a reader that is not Holm's own.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::usage::{UsageNode, records};
use common::{Coordinator, Publisher, until};
use holm_model::api::{ExportFile, ExportView, UsageView};
use holm_model::ids::Digest;
use holm_test_support::{S3Server, duckdb};
use serde_json::{Value, json};

const DAY_MS: u64 = 86_400_000;

async fn files(coordinator: &Coordinator) -> Vec<ExportFile> {
    let path = "/v1/tenants/acme/exports/files";
    coordinator.client.get(path).await.expect(200)
}

async fn add(coordinator: &Coordinator) -> ExportView {
    let new = json!({ "kind": "parquet" });
    let path = "/v1/tenants/acme/exports";
    coordinator.client.post(path, &new).await.expect(201)
}

async fn until_written(coordinator: &Coordinator, rows: u64) {
    until("files", || async {
        let files = files(coordinator).await;
        files.iter().map(|file| file.rows).sum::<u64>() == rows
    })
    .await;
}

/// Puts the files where the coordinator says that they are, below `to`.
async fn fetch(coordinator: &Coordinator, to: &Path) {
    for file in files(coordinator).await {
        let path = format!("/v1/tenants/acme/exports/file?name={}", file.name);
        let answer = coordinator.client.get(&path).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(Digest::of(&answer.body), file.digest);
        let to = to.join(&file.name);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::write(to, &answer.body).unwrap();
    }
}

/// Asks DuckDB about the files below a directory, in their partitions.
fn ask(select: &str, below: &Path, rest: &str) -> Option<Value> {
    let files = below.join("usage/**/*.parquet");
    let sql = format!(
        "SELECT {select} FROM read_parquet('{}', hive_partitioning = true) {rest}",
        files.display()
    );
    duckdb(&sql).map(|answer| serde_json::from_str(&answer).unwrap())
}

/// Three days of 400 records, of which some are probes and some another tenant's.
async fn fill(coordinator: &Coordinator, node: &mut UsageNode) {
    Publisher::register(coordinator, "acme/hello", 1).await;
    let mut all = records(1..=1200);
    for (index, record) in all.iter_mut().enumerate() {
        let index = index as u64;
        record.accepted_ms += index % 3 * DAY_MS + index;
        record.run_ns = 1_000_000 + index;
        record.cpu_ns = 7 * index;
        record.egress_bytes = 11 * index;
        record.probe = index.is_multiple_of(10);
        if index.is_multiple_of(7) {
            record.function = "other/hello".parse().unwrap();
        }
    }
    node.upload(&all).await;
}

async fn reads_back(coordinator: &mut Coordinator) {
    let mut node = UsageNode::join(coordinator).await;
    fill(coordinator, &mut node).await;
    let export = add(coordinator).await;
    let of_acme = (0..1200).filter(|index| index % 7 != 0).count() as u64;
    until_written(coordinator, of_acme).await;
    let written = files(coordinator).await;
    assert_eq!(written.len(), 3, "{written:?}");
    assert!(
        written[0]
            .name
            .starts_with("usage/tenant=acme/date=2023-11-14/part-"),
        "{}",
        written[0].name
    );
    let dir = tempfile::tempdir().unwrap();
    fetch(coordinator, dir.path()).await;
    let usage = "/v1/usage?by=tenant&tenant=acme";
    let told: Vec<UsageView> = coordinator.client.get(usage).await.expect(200);
    let told = &told[0];
    let sums = "count(*), sum(run_ns), sum(cpu_ns), sum(memory_kib_ms), sum(egress_bytes), sum(billed_requests),
                sum(billed_memory_kib_ms), sum(billed_cpu_ns), sum(billed_egress_bytes)";
    let expected = [
        told.executions,
        told.run_ns,
        told.cpu_ns,
        told.memory_kib_ms,
        told.egress_bytes,
        told.billed.requests,
        told.billed.memory_kib_ms,
        told.billed.cpu_ns,
        told.billed.egress_bytes,
    ];
    if let Some(sums) = ask(sums, dir.path(), "WHERE NOT probe") {
        let sums = sums[0].as_array().unwrap().clone();
        let sums: Vec<u64> = sums.iter().map(|sum| sum.as_u64().unwrap()).collect();
        assert_eq!(sums, expected);
    }
    let days = "date::VARCHAR, count(*), bool_and(accepted_ms::DATE = date), any_value(tenant), any_value(function)";
    if let Some(days) = ask(days, dir.path(), "GROUP BY date ORDER BY date") {
        assert_eq!(days.as_array().unwrap().len(), 3);
        assert_eq!(days[0][0], "2023-11-14");
        for day in days.as_array().unwrap() {
            assert_eq!(
                (&day[2], &day[3], &day[4]),
                (&json!(true), &json!("acme"), &json!("hello"))
            );
        }
    }

    // Late: a further part, and nothing twice, also not by a coordinator that begins again.
    let mut late = records(1201..=1210);
    for record in &mut late {
        record.accepted_ms += DAY_MS;
    }
    node.upload(&late).await;
    coordinator.restart().await;
    assert_eq!(
        files(coordinator).await,
        written,
        "the day's files are written"
    );
    a_day_later(coordinator).await;
    until_written(coordinator, of_acme + 10).await;
    let after = files(coordinator).await;
    assert_eq!(after.len(), 4);
    assert!(
        written.iter().all(|file| after.contains(file)),
        "none has changed"
    );
    let views: Vec<ExportView> = coordinator.client.get("/v1/exports").await.expect(200);
    assert_eq!((views[0].id, views[0].behind), (export.id, 0));
    fetch(coordinator, dir.path()).await;
    let once = "count(*), count(DISTINCT (node, boot_epoch, sequence))";
    if let Some(once) = ask(once, dir.path(), "") {
        assert_eq!(once, json!([[of_acme + 10, of_acme + 10]]));
    }
}

/// As if the export had written its files a day ago.
async fn a_day_later(coordinator: &Coordinator) {
    let sql = format!("UPDATE usage_exports SET day_ms = day_ms - {DAY_MS}");
    coordinator.execute(&sql).await;
}

#[tokio::test]
async fn a_days_records_are_in_files_that_add_up_to_its_usage() {
    let mut coordinator = Coordinator::start().await;
    reads_back(&mut coordinator).await;
}

#[tokio::test]
async fn the_same_with_postgresql_and_with_an_s3_server() {
    let mut coordinator = Coordinator::start_on_postgres().await;
    reads_back(&mut coordinator).await;
    let Some(server) = S3Server::shared() else {
        return;
    };
    let place: holm_coordinator::S3Place =
        format!("s3://{}/fleet", server.bucket()).parse().unwrap();
    let place = place.with_settings(server.settings());
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start_with_artifacts(dir, Some(place)).await;
    reads_back(&mut coordinator.unwrap()).await;
}

#[tokio::test]
async fn a_coordinator_that_was_killed_while_it_wrote_writes_the_same_files() {
    let mut coordinator = Coordinator::start().await;
    let mut node = UsageNode::join(&coordinator).await;
    fill(&coordinator, &mut node).await;
    add(&coordinator).await;
    until("files", || async { files(&coordinator).await.len() == 3 }).await;
    let written = files(&coordinator).await;
    // The files are there, and that they are was not stored.
    coordinator
        .execute(
            "UPDATE usage_exports SET plan_row = row, plan_day_ms = day_ms, row = 0, day_ms = 0, from_row = 0, sent = 0",
        )
        .await;
    coordinator.execute("DELETE FROM usage_export_files").await;
    // What comes now is none of it.
    node.upload(&records(1201..=1300)).await;
    coordinator.restart().await;
    until("files", || async { files(&coordinator).await.len() == 3 }).await;
    let again = files(&coordinator).await;
    let same = |files: &[ExportFile]| {
        let of = files.iter().map(|file| (file.name.clone(), file.digest));
        of.collect::<Vec<_>>()
    };
    assert_eq!(same(&again), same(&written));
}

#[tokio::test]
async fn files_are_their_tenants_alone_and_no_other_name_is_read() {
    let coordinator = Coordinator::start().await;
    let mut node = UsageNode::join(&coordinator).await;
    fill(&coordinator, &mut node).await;
    Publisher::register(&coordinator, "other/hello", 2).await;
    add(&coordinator).await;
    until("files", || async { files(&coordinator).await.len() == 3 }).await;
    let name = &files(&coordinator).await[0].name;
    for (tenant, name) in [
        ("other", name.as_str()),
        ("acme", "fleet"),
        ("acme", "usage/../fleet"),
        ("acme", "../admin-token"),
    ] {
        let path = format!("/v1/tenants/{tenant}/exports/file?name={name}");
        let answer = coordinator.client.get(&path).await;
        assert!(answer.problem(404).detail.contains("no file"), "{path}");
    }
    let again = json!({ "kind": "parquet" });
    let path = "/v1/tenants/acme/exports";
    let again = coordinator.client.post(path, &again).await;
    assert_eq!(again.problem(409).kind, "/problems/files-already");
    let page = "/v1/usage/records?tenant=acme&function=other/hello";
    assert_eq!(coordinator.client.get(page).await.problem(400).status, 400);
}
