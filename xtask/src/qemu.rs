//! `cargo xtask qemu PROGRAM`: a guest outside of Holm, to be looked at with gdb.
//!
//! The guest kernel's image carries a PVH note, so that QEMU can boot it; its module is the memory that
//! the VMM would lay out for the program. There is no host here to answer hostcalls, so the guest comes
//! as far as its first, which without `--gdb` is what this waits for.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use holm_model::bundle::Files;
use holm_model::program::Program;
use holm_vmm::{GuestConfig, KERNEL_IMAGE, machine_image};

/// How long the guest may take to its first hostcall.
const PATIENCE: Duration = Duration::from_secs(60);

/// Boots the guest of `program` under QEMU.
pub(crate) fn run(workspace: &Path, program: &Path, gdb: bool) -> Result<()> {
    let folder = workspace.join("target/qemu");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let config = GuestConfig {
        name: program.display().to_string(),
        memory_bytes: 32 << 20,
        env: Vec::new(),
        args: Vec::new(),
        files: Files::default(),
        inetd: false,
        shared: false,
        port: 8080,
    };
    let image = machine_image(&Program::parse(&bytes)?, &config)?;
    let (kernel, module) = (folder.join("holm-kernel"), folder.join("machine.img"));
    fs::write(&kernel, KERNEL_IMAGE).context("cannot write the kernel image")?;
    fs::write(&module, image).context("cannot write the machine image")?;

    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-accel", "tcg", "-cpu", "max", "-m", "1024", "-nic", "none", "-display", "none",
    ])
    .args(["-no-reboot", "-monitor", "stdio", "-kernel"])
    .arg(&kernel)
    .arg("-initrd")
    .arg(&module)
    .stdin(Stdio::piped());
    if gdb {
        println!(
            "waiting for: gdb {} -ex 'target remote :1234'",
            kernel.display()
        );
        let status = qemu
            .args(["-s", "-S"])
            .status()
            .context("cannot start qemu-system-x86_64")?;
        println!("{status}");
        return Ok(());
    }
    let trace = folder.join("trace");
    // What was there may be of an earlier run.
    let _ = fs::remove_file(&trace);
    let mut machine = qemu
        .args(["-d", "int,guest_errors", "-D"])
        .arg(&trace)
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start qemu-system-x86_64 (Debian's qemu-system-x86)")?;
    let reached = wait_for_hostcall(&mut machine, &trace);
    // It may have ended by itself.
    let _ = machine.kill();
    let _ = machine.wait();
    reached
}

/// A hostcall is a breakpoint exception at CPL 3, which QEMU notes as `v=03 … cpl=3`.
fn wait_for_hostcall(machine: &mut Child, trace: &Path) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let seen = fs::read_to_string(trace).unwrap_or_default();
        if seen
            .lines()
            .any(|line| line.contains("v=03") && line.contains("cpl=3"))
        {
            println!("the guest came to its first hostcall at CPL 3");
            return Ok(());
        }
        if let Some(status) = machine.try_wait().context("cannot wait for QEMU")? {
            bail!(
                "QEMU ended before the guest's first hostcall: {status}; see {}",
                trace.display()
            );
        }
        thread::sleep(Duration::from_millis(100));
    }
    bail!(
        "the guest did not come to a hostcall in {PATIENCE:?}; see {}",
        trace.display()
    )
}
