//! What a fresh container costs: crun with a static hello, from start to end.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{install, peer_file};
use crate::sample::Samples;
use crate::subjects;

const RUNS: u32 = 30;

pub(super) fn time(root: &Path, scratch: &Path) -> Result<Samples> {
    let debian = install::debian(root)?;
    let bundle = scratch.join("bundle");
    fs::create_dir_all(bundle.join("rootfs"))?;
    subjects::compile(&peer_file("hello.c"), &bundle.join("rootfs/hello"))?;
    let crun = || {
        let mut command = debian.command("usr/bin/crun");
        command
            .arg("--root")
            .arg(scratch.join("crun"))
            .arg("--cgroup-manager=disabled")
            .current_dir(&bundle)
            .stdin(Stdio::null());
        command
    };
    let made = crun().arg("spec").output().context("cannot start crun")?;
    ensure!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    config["process"]["args"] = json!(["/hello"]);
    config["process"]["terminal"] = json!(false);
    fs::write(&path, config.to_string())?;
    let mut samples = Samples::default();
    samples.begin_round();
    for run in 0..RUNS {
        let started = Instant::now();
        let ran = crun().args(["run", &format!("holm-peer-{run}")]).output()?;
        let took = started.elapsed();
        ensure!(
            ran.status.success() && ran.stdout == b"hello\n",
            "{}",
            String::from_utf8_lossy(&ran.stderr).trim()
        );
        samples.add(took);
    }
    Ok(samples)
}
