use proptest::prelude::*;

use super::*;

const R: u32 = elf::PF_R;
const W: u32 = elf::PF_W;
const X: u32 = elf::PF_X;

/// A program header of a file under construction.
#[derive(Clone, Copy, Debug)]
struct Part {
    kind: u32,
    flags: u32,
    offset: u64,
    addr: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

fn load(flags: u32, addr: u64, offset: u64, bytes: u64) -> Part {
    let (file_bytes, memory_bytes) = (bytes, bytes);
    Part {
        kind: elf::PT_LOAD,
        flags,
        offset,
        addr,
        file_bytes,
        memory_bytes,
    }
}

/// An ELF file under construction; [`Elf::new`] is one that is accepted.
#[derive(Clone, Debug)]
struct Elf {
    ident: [u8; 16],
    kind: u16,
    machine: u16,
    entry: u64,
    parts: Vec<Part>,
    content: Vec<u8>,
}

const BASE: u64 = 0x40_0000;
const CONTENT: u64 = 0x1000;

impl Elf {
    fn new() -> Elf {
        let mut ident = [0; 16];
        ident[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        Elf {
            ident,
            kind: elf::ET_EXEC,
            machine: elf::EM_X86_64,
            entry: BASE + CONTENT,
            parts: vec![
                load(R, BASE, 0, 0x1000),
                load(R | X, BASE + 0x1000, 0x1000, 0x1000),
                Part {
                    memory_bytes: 0x9000,
                    ..load(R | W, BASE + 0x2000, 0x2000, 0x1000)
                },
            ],
            content: vec![0x90; 0x2000],
        }
    }

    fn pie() -> Elf {
        let mut elf = Elf::new();
        elf.kind = elf::ET_DYN;
        elf.entry -= BASE;
        for part in &mut elf.parts {
            part.addr -= BASE;
        }
        elf
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.ident.to_vec();
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.machine.to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        for word in [self.entry, 64, 0] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(0u32.to_le_bytes());
        let count = u16::try_from(self.parts.len()).unwrap();
        for half in [64, 56, count, 0, 0, 0] {
            bytes.extend(half.to_le_bytes());
        }
        for part in &self.parts {
            bytes.extend(part.kind.to_le_bytes());
            bytes.extend(part.flags.to_le_bytes());
            let Part {
                offset,
                addr,
                file_bytes,
                memory_bytes,
                ..
            } = *part;
            for word in [offset, addr, addr, file_bytes, memory_bytes, 0x1000] {
                bytes.extend(word.to_le_bytes());
            }
        }
        bytes.resize(CONTENT as usize, 0);
        bytes.extend(&self.content);
        bytes
    }

    #[track_caller]
    fn refusal(&self) -> ProgramError {
        Program::parse(&self.bytes()).unwrap_err()
    }
}

#[track_caller]
fn assert_names(error: &ProgramError, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn a_static_executable_is_taken_with_its_segments() {
    let program = Program::parse(&Elf::new().bytes()).unwrap();
    assert!(!program.relocatable);
    assert_eq!(program.entry, BASE + CONTENT);
    assert_eq!(
        (program.headers_addr, program.headers_count),
        (BASE + 64, 3)
    );
    assert_eq!(program.segments.len(), 3);
    let data = program.segments[2];
    assert_eq!(
        (data.addr, data.end(), data.file_bytes),
        (BASE + 0x2000, BASE + 0xb000, 0x1000)
    );
    assert!(data.write && !data.execute && program.segments[1].execute);
    assert_eq!(program.segment_bytes(&program.segments[1]), [0x90; 0x1000]);
    assert_eq!(program.start_page(), BASE);
    assert_eq!(program.least_memory_bytes(), 0xb000);
}

#[test]
fn a_static_pie_is_taken_as_relocatable() {
    let program = Program::parse(&Elf::pie().bytes()).unwrap();
    assert!(program.relocatable);
    assert_eq!((program.entry, program.headers_addr), (CONTENT, 64));
    assert_eq!(
        (program.align, program.least_memory_bytes()),
        (0x1000, 0xb000)
    );
}

#[test]
fn a_program_is_read_from_any_alignment() {
    let mut shifted = vec![0; 1];
    shifted.extend(Elf::new().bytes());
    assert!(Program::parse(&shifted[1..]).is_ok());
}

#[test]
fn segments_are_sorted_and_empty_ones_left_out() {
    let mut elf = Elf::new();
    elf.parts.reverse();
    elf.parts.push(load(R | W | X, 0, 0, 0));
    let program = Program::parse(&elf.bytes()).unwrap();
    assert_eq!(program.segments.len(), 3);
    assert!(program.segments.is_sorted_by_key(|segment| segment.addr));
}

#[test]
fn what_is_not_an_elf_file_is_told_what_it_is() {
    let cases: [(&[u8], &str); 11] = [
        (b"", "empty"),
        (b"#!/bin/sh\necho hi\n", "a script"),
        (b"MZ\x90\0", "Windows"),
        (b"\xcf\xfa\xed\xfe\x07\0\0\x01", "macOS"),
        (b"\xca\xfe\xba\xbe\0\0\0\x41", "Java"),
        (b"!<arch>\nx", "static library"),
        (b"PK\x03\x04", "ZIP"),
        (b"\0asm\x01\0\0\0", "WebAssembly"),
        (b"int main(void) { return 0; }", "a text file"),
        (b"\xff\xff\xff\xff", "something else"),
        (b"\x7fELF\x02\x01", "the first bytes of one"),
    ];
    for (bytes, what) in cases {
        let error = Program::parse(bytes).unwrap_err();
        assert_names(
            &error,
            &["not an ELF file", what, "crt-static", "musl-gcc -static"],
        );
    }
}

#[test]
fn programs_for_other_machines_are_refused() {
    let mut elf = Elf::new();
    elf.ident[4] = elf::ELFCLASS32;
    assert_names(&elf.refusal(), &["32-bit", "x86-64"]);
    let mut elf = Elf::new();
    elf.ident[5] = elf::ELFDATA2MSB;
    assert_names(&elf.refusal(), &["big-endian"]);
    let mut elf = Elf::new();
    elf.machine = elf::EM_AARCH64;
    assert_names(&elf.refusal(), &["64-bit ARM"]);
    elf.machine = 0xfeed;
    assert_names(&elf.refusal(), &["65261"]);
}

#[test]
fn object_files_and_core_dumps_are_refused() {
    for (kind, text) in [
        (elf::ET_REL, "object file"),
        (elf::ET_CORE, "core dump"),
        (99, "unknown type"),
    ] {
        let mut elf = Elf::new();
        elf.kind = kind;
        assert_names(&elf.refusal(), &[text]);
    }
}

/// A PIE whose dynamic section needs `names`.
fn dynamic(names: &[&str]) -> Elf {
    let mut elf = Elf::pie();
    let mut strings = vec![0];
    let mut entries = Vec::new();
    for name in names {
        entries.push([u64::from(elf::DT_NEEDED), strings.len() as u64]);
        strings.extend(name.as_bytes());
        strings.push(0);
    }
    // The data segment's file part: strings first, then the entries at 0x800.
    entries.push([u64::from(elf::DT_STRTAB), 0x2000]);
    entries.push([0, 0]);
    let entries: Vec<u8> = entries
        .iter()
        .flatten()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    elf.content[0x1000..][..strings.len()].copy_from_slice(&strings);
    elf.content[0x1800..][..entries.len()].copy_from_slice(&entries);
    let kind = elf::PT_DYNAMIC;
    elf.parts.push(Part {
        kind,
        ..load(R | W, 0x2800, 0x2800, entries.len() as u64)
    });
    elf
}

#[test]
fn a_dynamic_program_is_refused_with_its_libraries_and_the_way_out() {
    let error = dynamic(&["libc.so.6", "libm.so.6"]).refusal();
    assert_names(
        &error,
        &[
            "dynamically",
            "libc.so.6, libm.so.6",
            "cc -static",
            "CGO_ENABLED=0",
        ],
    );
    let mut elf = Elf::pie();
    elf.parts.push(Part {
        kind: elf::PT_INTERP,
        ..load(R, 0x100, 0x100, 0x10)
    });
    assert_names(&elf.refusal(), &["dynamically", "crt-static"]);
}

#[test]
fn a_dynamic_section_without_needed_libraries_is_a_static_pie() {
    assert!(Program::parse(&dynamic(&[]).bytes()).unwrap().relocatable);
}

#[test]
fn a_shared_library_is_refused_as_one() {
    let mut elf = dynamic(&[]);
    elf.entry = 0;
    assert_names(&elf.refusal(), &["entry point", "shared library"]);
}

#[test]
fn a_program_without_segments_is_refused() {
    let mut elf = Elf::new();
    elf.parts.clear();
    assert_eq!(elf.refusal(), ProgramError::NothingToLoad);
}

#[test]
fn overlapping_segments_are_refused() {
    let mut elf = Elf::new();
    elf.parts[0].memory_bytes = 0x1001;
    let error = elf.refusal();
    assert_eq!(
        error,
        ProgramError::Overlap {
            first: BASE,
            second: BASE + 0x1000
        }
    );
    assert_names(&error, &["0x400000 and 0x401000 overlap"]);
}

#[test]
fn a_segment_that_wraps_around_is_refused() {
    let mut elf = Elf::pie();
    elf.parts.push(load(R, u64::MAX - 0xff, 0, 0x100));
    assert!(matches!(elf.refusal(), ProgramError::WrapsAround { .. }));
}

#[test]
fn a_huge_segment_is_refused() {
    let mut elf = Elf::new();
    elf.parts[2].memory_bytes = MAX_MEMORY_BYTES + 1;
    assert_names(
        &elf.refusal(),
        &["4294967297 bytes", "more than the 4294967296"],
    );
    elf.parts[2].memory_bytes = u64::MAX;
    assert!(matches!(elf.refusal(), ProgramError::HugeSegment { .. }));
}

#[test]
fn a_segment_outside_the_file_or_smaller_than_it_is_refused() {
    let mut elf = Elf::new();
    elf.parts[2].offset = 0x2001;
    assert_eq!(
        elf.refusal(),
        ProgramError::OutsideFile {
            addr: BASE + 0x2000
        }
    );
    elf.parts[2].offset = u64::MAX;
    assert_eq!(
        elf.refusal(),
        ProgramError::OutsideFile {
            addr: BASE + 0x2000
        }
    );
    let mut elf = Elf::new();
    elf.parts[2].memory_bytes = 0xfff;
    assert_eq!(
        elf.refusal(),
        ProgramError::SmallerThanFile {
            addr: BASE + 0x2000
        }
    );
}

#[test]
fn a_segment_in_the_kernels_range_is_refused_with_the_addresses() {
    let mut elf = Elf::new();
    elf.parts[0].addr = 0x10_0000;
    let error = elf.refusal();
    assert_names(
        &error,
        &[
            "0x100000 to 0x101000",
            "0x200000 to 0x100200000",
            "guest kernel",
        ],
    );
    let mut elf = Elf::new();
    elf.parts[2].addr = END_ADDR - 0x1000;
    assert!(matches!(elf.refusal(), ProgramError::OutsideMemory { .. }));
    let mut elf = Elf::pie();
    elf.parts[2].addr = MAX_MEMORY_BYTES - 0x1000;
    assert!(matches!(elf.refusal(), ProgramError::OutsideMemory { .. }));
}

#[test]
fn memory_that_would_be_writable_and_executable_is_refused() {
    let mut elf = Elf::new();
    elf.parts[1].flags |= W;
    assert_eq!(
        elf.refusal(),
        ProgramError::WritableCode {
            addr: BASE + 0x1000
        }
    );
    let mut elf = Elf::new();
    elf.parts[1].memory_bytes = 0x800;
    elf.parts[1].file_bytes = 0x800;
    elf.parts[2].addr = BASE + 0x1800;
    assert_eq!(
        elf.refusal(),
        ProgramError::WritableCode {
            addr: BASE + 0x1800
        }
    );
}

#[test]
fn an_entry_point_that_is_not_code_is_refused() {
    for entry in [0, BASE, BASE + 0x2000, u64::MAX] {
        let mut elf = Elf::new();
        elf.entry = entry;
        assert_eq!(
            elf.refusal(),
            ProgramError::Entry {
                entry,
                relocatable: false
            }
        );
    }
}

#[test]
fn too_many_program_headers_are_refused() {
    let mut elf = Elf::new();
    elf.parts.extend(
        [Part {
            kind: elf::PT_NOTE,
            ..load(R, 0, 0, 0)
        }; 62],
    );
    assert_eq!(elf.refusal(), ProgramError::TooManyHeaders { count: 65 });
}

#[test]
fn every_cut_of_a_program_is_refused() {
    let bytes = Elf::new().bytes();
    for cut in (0..bytes.len()).step_by(13) {
        assert!(Program::parse(&bytes[..cut]).is_err(), "cut at {cut}");
    }
}

fn assert_invariants(program: &Program) {
    assert!(!program.segments.is_empty());
    for segment in &program.segments {
        assert!(!(segment.write && segment.execute));
        assert!(segment.memory_bytes > 0 && segment.file_bytes <= segment.memory_bytes);
        assert_eq!(
            program.segment_bytes(segment).len() as u64,
            segment.file_bytes
        );
        let lowest = if program.relocatable { 0 } else { LOWEST_ADDR };
        assert!(segment.addr >= lowest && segment.end() <= lowest + MAX_MEMORY_BYTES);
    }
    assert!(
        program
            .segments
            .windows(2)
            .all(|pair| pair[0].end() <= pair[1].addr)
    );
    let code = |s: &&Segment| s.execute && (s.addr..s.end()).contains(&program.entry);
    assert!(program.segments.iter().any(|segment| code(&segment)));
}

proptest! {
    #[test]
    fn random_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(Program::parse(&bytes).is_err());
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.extend(&bytes);
        let _ = Program::parse(&elf);
    }

    #[test]
    fn a_mutated_program_is_refused_or_keeps_every_promise(
        relocatable in any::<bool>(),
        changes in prop::collection::vec((0usize..64 + 4 * 56, any::<u8>()), 1..6),
        cut in prop::option::of(0usize..0x3000),
    ) {
        let elf = if relocatable { dynamic(&["libc.so.6"]) } else { Elf::new() };
        let mut bytes = elf.bytes();
        for (place, value) in changes {
            bytes[place] = value;
        }
        bytes.truncate(cut.unwrap_or(usize::MAX));
        if let Ok(program) = Program::parse(&bytes) {
            assert_invariants(&program);
        }
    }
}
