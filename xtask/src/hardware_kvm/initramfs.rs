//! The root file system of the emulated machine: busybox, KVM's modules, the tests and what they need.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::boot::MARKER;
use super::kernel::Kernel;
use super::{Folder, TestProgram, find_program};

/// How many times slower than usual tests must take the emulated machine to be.
const PATIENCE: u32 = 6;

/// Packs everything into one archive below `root`.
pub(crate) fn make(
    root: &Path,
    kernel: &Kernel,
    programs: &[TestProgram],
    folders: &[Folder],
) -> Result<PathBuf> {
    let tree = root.join("initramfs");
    let _ = fs::remove_dir_all(&tree);
    for directory in ["bin", "dev", "modules", "proc", "sys", "tests", "tmp"] {
        make_directory(&tree.join(directory))?;
    }
    let busybox = find_program("busybox").context("busybox is not installed")?;
    ensure!(
        is_static(&busybox)?,
        "{} is not static; install busybox-static instead of busybox",
        busybox.display()
    );
    copy(&busybox, &tree.join("bin/busybox"))?;
    for module in &kernel.modules {
        copy(module, &tree.join("modules").join(file_name(module)))?;
    }
    for program in programs {
        copy(&program.path, &tree.join("tests").join(&program.name))?;
    }
    for Folder { from, to } in folders {
        copy_files(from, &tree.join(to.trim_start_matches('/')))?;
    }
    let init = tree.join("init");
    fs::write(&init, script(kernel, programs))
        .with_context(|| format!("cannot write {}", init.display()))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", init.display()))?;
    archive(&tree, &root.join("initramfs.cpio"))
}

/// What the machine does from its first process on. Every step says so in a line that starts with
/// [`MARKER`], by which the run is judged.
fn script(kernel: &Kernel, programs: &[TestProgram]) -> String {
    let mut script = String::from(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/bin\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sysfs /sys\n\
         mount -t devtmpfs devtmpfs /dev\n\
         mount -t tmpfs tmpfs /tmp\n\
         mkdir -p /dev/shm\n\
         mount -t tmpfs tmpfs /dev/shm\n\
         ifconfig lo 127.0.0.1 up\n",
    );
    for module in &kernel.modules {
        script += &format!("insmod /modules/{}\n", file_name(module));
    }
    // Markers come after an empty line, since the firmware and the kernel leave theirs open.
    script += "[ -c /dev/kvm ] || { echo 'there is no /dev/kvm'; poweroff -f; }\n";
    script += &format!("echo; echo '{MARKER} kvm'\n");
    script += &format!(
        "export HOLM_TEST_GUESTS_DIR=/guests HOLM_TEST_PATIENCE={PATIENCE} RUST_BACKTRACE=1 HOME=/tmp\n\
         cd /tmp\n"
    );
    for program in programs {
        let name = &program.name;
        let words = program
            .arguments
            .iter()
            .map(|word| format!(" {}", quoted(word)));
        let arguments: String = words.collect();
        script += &format!("echo; echo '{MARKER} begin {name}'\n");
        script += &format!("/tests/{name}{arguments}\n");
        script += &format!("status=$?; echo; echo \"{MARKER} end {name} $status\"\n");
    }
    script += &format!("echo; echo '{MARKER} done'\npoweroff -f\n");
    script
}

/// `text` as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Whether a program names no interpreter, that is, no dynamic linker.
fn is_static(program: &Path) -> Result<bool> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let interpreter = b"/ld-linux";
    Ok(!bytes[..bytes.len().min(4096)]
        .windows(interpreter.len())
        .any(|at| at == interpreter))
}

fn archive(tree: &Path, archive: &Path) -> Result<PathBuf> {
    let output =
        fs::File::create(archive).with_context(|| format!("cannot make {}", archive.display()))?;
    let mut cpio = Command::new("cpio")
        .current_dir(tree)
        .args(["--create", "--format=newc", "--owner=0:0", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(output)
        .spawn()
        .context("cannot start cpio")?;
    let mut names = String::new();
    list(tree, "", &mut names)?;
    cpio.stdin
        .take()
        .context("cpio has no standard input")?
        .write_all(names.as_bytes())
        .context("cannot give cpio the names")?;
    ensure!(
        cpio.wait().context("cannot wait for cpio")?.success(),
        "cpio failed"
    );
    Ok(archive.to_owned())
}

/// Appends the names of everything below `directory`, each directory before what is in it.
fn list(tree: &Path, below: &str, names: &mut String) -> Result<()> {
    let directory = tree.join(below);
    let entries =
        fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", directory.display()))?;
        let name = format!("{below}{}", entry.file_name().to_string_lossy());
        *names += &name;
        names.push('\n');
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(tree, &format!("{name}/"), names)?;
        }
    }
    Ok(())
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(|_| ())
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// Copies the files of a directory, if there is one.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(from) else {
        return Ok(());
    };
    make_directory(to)?;
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
