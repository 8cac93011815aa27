//! A snapshot on disk.
//!
//! ```text
//! 0        magic "HOLMSNAP" | version u32 | header bytes u32 | SHA-256
//! 48       header (JSON): what it fits, registers, where the program waits
//! 64 KiB   memory, sparse
//! …        names of the program's functions
//! ```
//! The checksum covers the header, every page that is not zero with its place, and the names. It is
//! verified when a file is loaded, never on a request's path.
//!
//! A file is copied when it is loaded, and the copy verified. Were it mapped, an error of its disk, or somebody who cuts
//! it short, would later end the process with SIGBUS, and every tenant's requests with it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holm_hostcall::{ABI_VERSION, PAGE_BYTES};
use holm_model::limits::{MAX_ARTIFACT_BYTES, MAX_MEMORY_BYTES, MIN_MEMORY_BYTES};
use holm_model::program::{END_ADDR, LOWEST_ADDR};
use kvm_bindings::kvm_regs;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Contents, Snapshot, for_each_page, hash_page};
use crate::cpu::{self, CpuState};
use crate::hostcall::Buffer;
use crate::image::Image;
use crate::layout::Layout;
use crate::memory;
use crate::restore::{Choice, Stored};
use crate::symbols::Symbols;
use crate::unwind::FrameTables;
use crate::{Hypervisor, VmmError};

const MAGIC: &[u8; 8] = b"HOLMSNAP";
/// Version of the format on disk.
const VERSION: u32 = 8;
const HEADER_AT: u64 = 48;
const MEMORY_AT: u64 = 64 << 10;
/// Most bytes of function names in a file.
const MAX_SYMBOL_BYTES: u64 = 64 << 20;

/// A snapshot cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file system refused.
    #[error("the snapshot {path} cannot be {operation}: {error}")]
    Io {
        /// `written` or `read`.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// The file is not a snapshot, or not the one that was written.
    #[error("the snapshot {path} is damaged: {problem}; it will have to be made again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// It was made for something else.
    #[error("the snapshot {path} was made {problem}; it will have to be made again")]
    Unfit {
        /// The file.
        path: PathBuf,
        /// For what.
        problem: &'static str,
    },
}

/// What a snapshot's file says of it.
#[derive(Clone, Debug)]
pub struct Told {
    /// Of which guest it is: `tenant/function` on a node.
    pub name: String,
    /// How its instances are restored and reset, if that was measured.
    pub choice: Option<Choice>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    name: String,
    abi_version: u32,
    kernel_image: String,
    cpu: String,
    program_start: u64,
    memory_bytes: u64,
    files_bytes: u64,
    registers: [u64; 18],
    fs_base: u64,
    gs_base: u64,
    wait_addr: u64,
    wait_bytes: u64,
    /// The program's call frame information.
    frames: FrameTables,
    symbol_bytes: u64,
    restore: Option<Stored>,
}

impl Snapshot {
    /// Writes it to `path`, atomically and synced: there is the whole file or none.
    pub fn save(&self, path: &Path) -> Result<(), SnapshotError> {
        let error = failed("written", path);
        let temporary = path.with_extension(format!("tmp-{}-{}", std::process::id(), self.id));
        let result = self.write_to(&temporary).and_then(|()| {
            fs::rename(&temporary, path)?;
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
        });
        result.map_err(|problem| {
            // What is left of it is of no use; if it is not there, so much the better.
            let _ = fs::remove_file(&temporary);
            error(problem)
        })
    }

    fn write_to(&self, path: &Path) -> io::Result<()> {
        let symbols = self.symbols.as_text();
        let registers = &self.state.regs;
        let header = Header {
            name: self.name.clone(),
            abi_version: ABI_VERSION,
            kernel_image: hex::encode(Image::get().digest),
            cpu: hex::encode(self.cpu_digest),
            program_start: self.layout.program_start,
            memory_bytes: self.layout.program_bytes,
            files_bytes: self.layout.files_bytes,
            registers: register_words(registers),
            fs_base: self.state.fs_base,
            gs_base: self.state.gs_base,
            wait_addr: self.wait.addr,
            wait_bytes: self.wait.bytes,
            frames: self.symbols.frames(),
            symbol_bytes: symbols.len() as u64,
            restore: Stored::of(self),
        };
        let header = serde_json::to_vec(&header).map_err(io::Error::other)?;
        if HEADER_AT + header.len() as u64 > MEMORY_AT {
            return Err(io::Error::other("the header is too long"));
        }
        let mut hash = Sha256::new_with_prefix(&header);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        file.set_len(MEMORY_AT + self.layout.total_bytes())?;
        for_each_page(
            &self.stored.file,
            self.stored.offset,
            &self.layout,
            |at, page| {
                hash_page(&mut hash, at, page);
                file.write_all_at(page, MEMORY_AT + at)
            },
        )?;
        hash.update(symbols.as_bytes());
        file.write_all_at(symbols.as_bytes(), MEMORY_AT + self.layout.total_bytes())?;
        let mut start = Vec::with_capacity(HEADER_AT as usize);
        start.extend_from_slice(MAGIC);
        start.extend_from_slice(&VERSION.to_le_bytes());
        start.extend_from_slice(&(header.len() as u32).to_le_bytes());
        start.extend_from_slice(&hash.finalize());
        start.write_all(&header)?;
        file.write_all_at(&start, 0)?;
        file.sync_all()
    }

    /// What a file says of its snapshot. Nothing is verified.
    pub fn told(path: &Path) -> Result<Told, VmmError> {
        let header = Start::read(path)?.header;
        Ok(Told {
            name: header.name,
            choice: header.restore.map(Stored::into_choice),
        })
    }

    /// Reads it from `path`, verifies its checksum and that it fits this CPU, kernel image and ABI.
    pub fn load(hypervisor: &Hypervisor, path: &Path) -> Result<Arc<Self>, VmmError> {
        let io = failed("read", path);
        let (damaged, unfit) = (damaged(path), unfit(path));

        let Start {
            file,
            mut hash,
            checksum,
            header,
        } = Start::read(path)?;
        // A damaged header may say anything; the checksum tells it apart from one that was written by
        // something else, but can only be computed with the sizes in it.
        let sizes_good = (MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&header.memory_bytes)
            && header.memory_bytes.is_multiple_of(PAGE_BYTES)
            && (LOWEST_ADDR..END_ADDR).contains(&header.program_start)
            && header.program_start.is_multiple_of(PAGE_BYTES)
            && header.files_bytes <= MAX_ARTIFACT_BYTES
            && header.files_bytes.is_multiple_of(PAGE_BYTES)
            && header.symbol_bytes <= MAX_SYMBOL_BYTES;
        if !sizes_good {
            return Err(damaged("its header holds impossible sizes").into());
        }
        let layout = Layout::new(
            header.program_start,
            header.memory_bytes,
            header.files_bytes,
        );
        let memory_end = MEMORY_AT + layout.total_bytes();
        if file.metadata().map_err(&io)?.len() != memory_end + header.symbol_bytes {
            return Err(damaged("it has another size than its header says").into());
        }
        let mut contents = Contents::default();
        let copy = memory::anonymous_file(layout.total_bytes())?;
        for_each_page(&file, MEMORY_AT, &layout, |at, page| {
            hash_page(&mut hash, at, page);
            contents.add(&layout, at, page);
            copy.write_all_at(page, at)
        })
        .map_err(&io)?;
        let mut symbols = vec![0; header.symbol_bytes as usize];
        file.read_exact_at(&mut symbols, memory_end).map_err(&io)?;
        hash.update(&symbols);
        if hash.finalize()[..] != checksum {
            return Err(damaged("its checksum does not match").into());
        }

        if header.abi_version != ABI_VERSION
            || header.kernel_image != hex::encode(Image::get().digest)
        {
            return Err(unfit("with another guest kernel").into());
        }
        if header.cpu != hex::encode(hypervisor.inner.cpu_digest) {
            return Err(unfit("on another kind of CPU or under another KVM").into());
        }
        // A buffer that lies nowhere is found out when the first request is to be written there.
        let wait = Buffer {
            addr: header.wait_addr,
            bytes: header.wait_bytes,
        };
        let state = CpuState {
            regs: registers_from(&header.registers),
            fs_base: header.fs_base,
            gs_base: header.gs_base,
        };
        let symbols = String::from_utf8_lossy(&symbols).into_owned();
        let symbols = Symbols::from_text(symbols, header.frames);
        let cpu_digest = hypervisor.inner.cpu_digest;
        let stored = contents.of_file(copy, 0);
        let name = header.name;
        let snapshot = Self::assemble(name, stored, layout, state, wait, symbols, cpu_digest)?;
        if let Some(stored) = header.restore {
            stored.give(hypervisor, &snapshot);
        }
        Ok(snapshot)
    }
}

/// The start of a file.
struct Start {
    file: File,
    /// Of the header's bytes, for what follows to be added.
    hash: Sha256,
    /// What it has to come to.
    checksum: [u8; 32],
    header: Header,
}

impl Start {
    fn read(path: &Path) -> Result<Self, SnapshotError> {
        let (damaged, unfit) = (damaged(path), unfit(path));
        let file = File::open(path).map_err(failed("read", path))?;
        let mut start = [0; HEADER_AT as usize];
        file.read_exact_at(&mut start, 0)
            .map_err(|_| damaged("it is cut short"))?;
        if &start[..8] != MAGIC {
            return Err(damaged("it does not begin as one"));
        }
        let words = start.as_chunks().0;
        let word = |at: usize| u32::from_le_bytes(words[at / 4]);
        if word(8) != VERSION {
            return Err(unfit("by another version of Holm"));
        }
        let header_bytes = u64::from(word(12));
        if header_bytes > MEMORY_AT - HEADER_AT {
            return Err(damaged("its header has an impossible size"));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact_at(&mut header, HEADER_AT)
            .map_err(|_| damaged("it is cut short"))?;
        let mut checksum = [0; 32];
        checksum.copy_from_slice(&start[16..]);
        Ok(Start {
            file,
            hash: Sha256::new_with_prefix(&header),
            checksum,
            header: serde_json::from_slice(&header)
                .map_err(|_| damaged("its header cannot be read"))?,
        })
    }
}

pub(super) fn failed(
    operation: &'static str,
    path: &Path,
) -> impl Fn(io::Error) -> SnapshotError + use<> {
    let path = path.to_owned();
    move |error| SnapshotError::Io {
        operation,
        path: path.clone(),
        error,
    }
}

fn damaged(path: &Path) -> impl Fn(&str) -> SnapshotError {
    move |problem| SnapshotError::Damaged {
        path: path.into(),
        problem: problem.into(),
    }
}

fn unfit(path: &Path) -> impl Fn(&'static str) -> SnapshotError {
    move |problem| SnapshotError::Unfit {
        path: path.into(),
        problem,
    }
}

/// The registers in the order of the form on disk.
macro_rules! registers {
    ($($name:ident),*) => {
        fn register_words(regs: &kvm_regs) -> [u64; 18] {
            [$(regs.$name),*]
        }

        fn registers_from(words: &[u64; 18]) -> kvm_regs {
            let [$($name),*] = *words;
            let mut regs = kvm_regs { $($name),* };
            regs.rflags = cpu::clean_rflags(regs.rflags);
            regs
        }
    };
}

registers!(
    rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags
);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holm_model::bundle::Files;
    use holm_model::program::Program;
    use holm_test_support::{guest, patience, require_kvm};

    use super::*;
    use crate::GuestConfig;

    const READY: Duration = Duration::from_secs(5);

    fn prepared(hypervisor: &Hypervisor) -> Arc<Snapshot> {
        let program = Program::parse(&fs::read(guest("several_requests")).unwrap()).unwrap();
        let config = GuestConfig {
            name: "tests/several_requests".into(),
            memory_bytes: 24 << 20,
            env: Vec::new(),
            args: Vec::new(),
            files: Files::default(),
            inetd: false,
            shared: false,
            port: 8080,
        };
        let prepared = crate::prepare(hypervisor, &program, &config, patience(READY));
        prepared.unwrap().snapshot
    }

    #[test]
    fn kvm_a_snapshot_outlives_its_file() {
        if !require_kvm() {
            return;
        }
        let hypervisor = Hypervisor::open().unwrap();
        let before = prepared(&hypervisor);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one.snap");
        before.save(&path).unwrap();
        let loaded = Snapshot::load(&hypervisor, &path).unwrap();
        File::create(&path).unwrap();
        let mut slot = crate::Slot::new(&hypervisor).unwrap();
        for strategy in crate::Strategy::ALL {
            slot.load_by(&loaded, strategy).unwrap();
            for (start, end) in before.own_pages() {
                for page in (*start..*end).step_by(PAGE_BYTES as usize) {
                    assert!(before.is_pristine(slot.memory().unwrap(), page).unwrap());
                }
            }
        }
    }

    /// Writes the snapshot at `path` anew with another word in its header, of the same length, and the checksum that
    /// belongs to that.
    fn rewrite(path: &Path, word: &str, other: &str) {
        let start = Start::read(path).unwrap();
        let header = &start.header;
        let layout = Layout::new(
            header.program_start,
            header.memory_bytes,
            header.files_bytes,
        );
        let mut bytes = fs::read(path).unwrap();
        let header_end =
            HEADER_AT as usize + u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
        let text = str::from_utf8(&bytes[HEADER_AT as usize..header_end]).unwrap();
        assert!(text.contains(word) && word.len() == other.len());
        let text = text.replace(word, other);
        let mut hash = Sha256::new_with_prefix(&text);
        for_each_page(&start.file, MEMORY_AT, &layout, |at, page| {
            hash_page(&mut hash, at, page);
            Ok(())
        })
        .unwrap();
        hash.update(&bytes[(MEMORY_AT + layout.total_bytes()) as usize..]);
        bytes[HEADER_AT as usize..header_end].copy_from_slice(text.as_bytes());
        bytes[16..HEADER_AT as usize].copy_from_slice(&hash.finalize());
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn kvm_a_snapshot_of_another_cpu_kernel_or_abi_is_refused_by_name() {
        if !require_kvm() {
            return;
        }
        let hypervisor = Hypervisor::open().unwrap();
        let snapshot = prepared(&hypervisor);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one.snap");
        let (cpu, kernel) = (
            hex::encode(snapshot.cpu_digest),
            hex::encode(Image::get().digest),
        );
        let abi = format!("\"abi_version\":{ABI_VERSION},");
        let other_abi = format!("\"abi_version\":{},", ABI_VERSION - 1);
        for (word, other, why) in [
            (&cpu, &"0".repeat(cpu.len()), "on another kind of CPU"),
            (
                &kernel,
                &"0".repeat(kernel.len()),
                "with another guest kernel",
            ),
            (&abi, &other_abi, "with another guest kernel"),
        ] {
            snapshot.save(&path).unwrap();
            Snapshot::load(&hypervisor, &path).unwrap();
            // With the checksum that it has, it would be damaged.
            rewrite(&path, word, other);
            let error = Snapshot::load(&hypervisor, &path).unwrap_err();
            let VmmError::Snapshot(SnapshotError::Unfit { .. }) = &error else {
                panic!("{error}");
            };
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
