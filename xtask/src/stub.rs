//! `cargo xtask stub`: how much code runs at CPL 0 in a guest.
//!
//! The disassembler of the C toolchain reads the kernel image's `.stub` section. The entries of the 32
//! exception vectors are alike but for a number; they are counted once, and once each.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use holm_hostcall::{STUB_ADDR, STUB_HOSTCALL_ADDR};

/// ARCHITECTURE.md names this number.
const MOST_INSTRUCTIONS: usize = 115;

/// Instructions of the stub.
pub(crate) struct Count {
    /// Behind the entries: gates, forwarding, page tables.
    body: usize,
    /// In all the entries together.
    entries: usize,
}

/// Prints the count. An error if it is more than what is promised.
pub(crate) fn run(workspace: &Path) -> Result<()> {
    let count = count(workspace)?;
    println!(
        "the CPL 0 stub has {} instructions, and {} more in the entries of 32 exceptions",
        count.body, count.entries
    );
    ensure!(
        count.body <= MOST_INSTRUCTIONS,
        "that is more than the {MOST_INSTRUCTIONS} that ARCHITECTURE.md promises"
    );
    Ok(())
}

fn count(workspace: &Path) -> Result<Count> {
    let folder = workspace.join("target/stub");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // One file for each process: tests may run at the same time.
    let image = folder.join(format!("holm-kernel-{}", std::process::id()));
    fs::write(&image, holm_vmm::KERNEL_IMAGE).context("cannot write the kernel image")?;
    let output = Command::new("objdump")
        .args(["--disassemble", "--no-show-raw-insn", "--section=.stub"])
        .arg(&image)
        .output()
        .context("cannot start objdump (Debian's binutils)")?;
    fs::remove_file(&image).context("cannot remove the kernel image")?;
    let text = String::from_utf8(output.stdout).context("objdump prints no text")?;
    let mut count = Count {
        body: 0,
        entries: 0,
    };
    let code = text
        .lines()
        .take_while(|line| !line.ends_with("<stub_address_mask>:"));
    for line in code {
        let Some((addr, instruction)) = line.trim().split_once(":\t") else {
            continue;
        };
        let addr = u64::from_str_radix(addr, 16)
            .with_context(|| format!("objdump prints an address {addr:?}"))?;
        let name = instruction.split_ascii_whitespace().next().unwrap_or("nop");
        let is_padding = matches!(name, "nop" | "nopw" | "nopl" | "xchg" | "data16" | "cs");
        match addr {
            _ if is_padding => {}
            STUB_ADDR..STUB_HOSTCALL_ADDR => count.entries += 1,
            _ => count.body += 1,
        }
    }
    ensure!(count.body > 0 && count.entries > 0, "objdump found no stub");
    Ok(count)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_code_at_cpl_0_stays_as_small_as_is_promised() {
        let count = super::count(&crate::hardware_kvm::workspace()).unwrap();
        assert!(count.body <= super::MOST_INSTRUCTIONS, "{}", count.body);
        assert!(count.entries <= 32 * 3, "{}", count.entries);
    }
}
