//! Why a file cannot be a function's program, told to the one who built it.

use std::fmt::Write as _;

use object::elf;

use crate::limits::{MAX_ARTIFACT_BYTES, MAX_MEMORY_BYTES, MAX_PROGRAM_HEADERS};

const HOW_TO_BUILD: &str = "\
    For Rust: RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --target \
    x86_64-unknown-linux-gnu; for C: cc -static or musl-gcc -static; for Go: CGO_ENABLED=0 go build";

/// Why a file is refused. The one who built the program is to blame for all of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// Some other file.
    #[error(
        "the program is not an ELF file but {looks_like}; Holm runs static x86-64 Linux programs. \
         {HOW_TO_BUILD}"
    )]
    NotElf {
        /// What it seems to be.
        looks_like: &'static str,
    },
    /// Larger than [`MAX_ARTIFACT_BYTES`].
    #[error("the program has {bytes} bytes, more than the {MAX_ARTIFACT_BYTES} allowed; strip it")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// For 32-bit machines.
    #[error("the program is for 32-bit machines; build it for x86-64. {HOW_TO_BUILD}")]
    WrongClass,
    /// For big-endian machines.
    #[error("the program is for a big-endian machine; build it for x86-64. {HOW_TO_BUILD}")]
    BigEndian,
    /// For another processor.
    #[error("the program is for {machine}; build it for x86-64. {HOW_TO_BUILD}")]
    WrongMachine {
        /// Which.
        machine: String,
    },
    /// An ELF file that is not a program.
    #[error("the file is {kind}, not a program; link it as a static executable. {HOW_TO_BUILD}")]
    WrongKind {
        /// What it is.
        kind: &'static str,
    },
    /// Needs a loader or libraries.
    #[error(
        "the program is linked dynamically{}; there are no libraries in the guest: link it \
         statically. {HOW_TO_BUILD}", needs(.needed)
    )]
    Dynamic {
        /// The libraries it asks for, as far as they could be read.
        needed: Vec<String>,
    },
    /// More than [`MAX_PROGRAM_HEADERS`].
    #[error("the program has {count} program headers, more than the {MAX_PROGRAM_HEADERS} allowed")]
    TooManyHeaders {
        /// How many.
        count: usize,
    },
    /// No segment is to be loaded.
    #[error("the program has no segment that is to be loaded; link it as a static executable")]
    NothingToLoad,
    /// More bytes in the file than in memory.
    #[error(
        "the program's segment at {addr:#x} has more bytes in the file than in memory; the file is \
         damaged, build it again"
    )]
    SmallerThanFile {
        /// Of the segment.
        addr: u64,
    },
    /// Larger than any function's memory.
    #[error(
        "the program's segment at {addr:#x} takes {bytes} bytes of memory, more than the \
         {MAX_MEMORY_BYTES} that a function can have"
    )]
    HugeSegment {
        /// Of the segment.
        addr: u64,
        /// Its size in memory.
        bytes: u64,
    },
    /// Past the end of the address space.
    #[error("the program's segment at {addr:#x} with {bytes} bytes passes the end of all memory")]
    WrapsAround {
        /// Of the segment.
        addr: u64,
        /// Its size in memory.
        bytes: u64,
    },
    /// The file ends before the segment does.
    #[error(
        "the program's segment at {addr:#x} is not wholly in the file; the file is cut short, build \
         or copy it again"
    )]
    OutsideFile {
        /// Of the segment.
        addr: u64,
    },
    /// Two segments claim the same memory.
    #[error("the program's segments at {first:#x} and {second:#x} overlap")]
    Overlap {
        /// Of the lower one.
        first: u64,
        /// Of the higher one.
        second: u64,
    },
    /// In the kernel's range or too high.
    #[error(
        "the program's segment at {addr:#x} to {end:#x} is outside the memory of a function, \
         {lowest:#x} to {limit:#x}{}; link the program as a static PIE or at the usual 0x400000",
        kernel_range(*.addr, *.lowest)
    )]
    OutsideMemory {
        /// Where the segment begins.
        addr: u64,
        /// And ends.
        end: u64,
        /// Lowest address allowed.
        lowest: u64,
        /// End of what is allowed.
        limit: u64,
    },
    /// Writable and executable.
    #[error(
        "the program's segment at {addr:#x} would make memory writable and executable at once; \
         link it with separate segments for code and data"
    )]
    WritableCode {
        /// Of the segment.
        addr: u64,
    },
    /// The entry point leads nowhere.
    #[error(
        "the program's entry point {entry:#x} is not in executable memory{}",
        library(*.entry, *.relocatable)
    )]
    Entry {
        /// Where it is.
        entry: u64,
        /// Whether the file is of type `ET_DYN`.
        relocatable: bool,
    },
    /// Not readable as the ELF file it says it is.
    #[error("the program is damaged: {0}; build or copy it again")]
    Damaged(&'static str),
}

fn needs(needed: &[String]) -> String {
    let mut text = String::new();
    for (index, name) in needed.iter().enumerate() {
        let before = if index == 0 { " and needs " } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{before}{}", name.escape_debug());
    }
    text
}

fn kernel_range(addr: u64, lowest: u64) -> &'static str {
    if addr < lowest {
        ", and reaches into the guest kernel's range"
    } else {
        ""
    }
}

fn library(entry: u64, relocatable: bool) -> &'static str {
    match relocatable && entry == 0 {
        true => "; this looks like a shared library, link it as a static executable",
        false => "; link it with its start routine (crt1.o) and a main function",
    }
}

/// What a file that is not ELF seems to be.
pub(super) fn looks_like(bytes: &[u8]) -> &'static str {
    const MAGICS: [(&[u8], &str); 14] = [
        (b"#!", "a script"),
        (b"MZ", "a Windows program (PE)"),
        (b"\xfe\xed\xfa\xce", "a macOS program (Mach-O)"),
        (b"\xfe\xed\xfa\xcf", "a macOS program (Mach-O)"),
        (b"\xce\xfa\xed\xfe", "a macOS program (Mach-O)"),
        (b"\xcf\xfa\xed\xfe", "a macOS program (Mach-O)"),
        (
            b"\xca\xfe\xba\xbe",
            "a macOS program (Mach-O) or a Java class",
        ),
        (b"!<arch>\n", "a static library (ar archive)"),
        (b"!<thin>\n", "a static library (ar archive)"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"\x1f\x8b", "a gzip archive"),
        (b"\0asm", "a WebAssembly module"),
        (b"BC\xc0\xde", "LLVM bitcode"),
        (b"\x7fELF", "the first bytes of one"),
    ];
    if bytes.is_empty() {
        return "empty";
    }
    let known = MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic));
    let start = bytes.get(..256).unwrap_or(bytes);
    let text = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    match known {
        Some((_, name)) => name,
        None if start.iter().all(text) => "a text file",
        None => "something else",
    }
}

/// The processor that `e_machine` stands for.
pub(super) fn machine(machine: u16) -> String {
    match machine {
        elf::EM_386 => "32-bit x86".into(),
        elf::EM_AARCH64 => "64-bit ARM".into(),
        elf::EM_ARM => "32-bit ARM".into(),
        elf::EM_RISCV => "RISC-V".into(),
        elf::EM_PPC64 => "PowerPC".into(),
        elf::EM_S390 => "IBM Z".into(),
        elf::EM_BPF => "the BPF machine".into(),
        other => format!("another processor (ELF machine {other})"),
    }
}

/// What an ELF file that is not a program is.
pub(super) fn kind(kind: u16) -> &'static str {
    match kind {
        elf::ET_REL => "an object file (.o)",
        elf::ET_CORE => "a core dump",
        elf::ET_NONE => "an ELF file without a type",
        _ => "an ELF file of an unknown type",
    }
}
