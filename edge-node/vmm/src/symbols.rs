//! Names of a program's functions, and where its call frame information is, for crash reports.
//!
//! The names are kept as one text, which is looked through when a program has crashed: a snapshot is loaded far
//! more often than that, and should not have to take thousands of names apart.

use std::cmp::Reverse;
use std::ffi::CStr;
use std::fmt::{self, Write as _};

use object::LittleEndian;
use object::elf::{
    FileHeader64, PT_GNU_EH_FRAME, ProgramHeader64, SHT_SYMTAB, STT_FUNC, STT_GNU_IFUNC,
    SectionHeader64, Sym64,
};
use object::read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _, Sym as _};

use crate::unwind::FrameTables;

/// Most functions whose names are kept.
const MAX_SYMBOLS: usize = 100_000;
/// Most entries of a symbol table that are looked at for them.
const MAX_SYMBOLS_SEEN: usize = 200_000;
/// Most sections that are looked at.
const MAX_SECTIONS_SEEN: usize = 4096;
/// Longest name kept, in bytes.
const MAX_NAME_BYTES: usize = 512;
/// Longest text of all of them, far below what a snapshot may hold.
const MAX_TEXT_BYTES: usize = 4 << 20;
/// Longest name told, once it is demangled: a few bytes can stand for many.
const MAX_SHOWN_BYTES: usize = 4096;
/// How far a function reaches whose length is not told, as assemblers leave it.
const UNSIZED_REACH: u64 = 4096;
/// What a program is called that has no names and is not at its own addresses.
const WITHOUT_NAMES: &str = "program";

/// What is known of a program's functions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Symbols {
    /// A line for each with address and bytes (0 if not known) in hexadecimal
    /// and the name, by rising address.
    text: String,
    frames: FrameTables,
}

impl Symbols {
    /// Reads the symbol table of an ELF file, whose addresses are moved by `base`. A program without
    /// one has no names; one with more than the bounds allow has fewer.
    pub(crate) fn of_program(elf: &[u8], base: u64) -> Self {
        let file = File::parse(elf).unwrap_or_default();
        let mut functions = file.functions();
        for (start, ..) in &mut functions {
            *start = start.wrapping_add(base);
        }
        if functions.is_empty() && base != 0 {
            // At least its addresses are told as they are in its file.
            functions.push((base, file.end, WITHOUT_NAMES));
        }
        // Of those that start together the longest, since some are told without a length.
        functions.sort_unstable_by_key(|(start, bytes, name)| (*start, Reverse(*bytes), *name));
        functions.dedup_by_key(|function| function.0);
        let mut text = String::new();
        for (start, bytes, name) in functions {
            let before = text.len();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{start:x} {bytes:x} {name}");
            if text.len() > MAX_TEXT_BYTES {
                text.truncate(before);
                break;
            }
        }
        let moved = |(addr, bytes): (u64, u64)| (addr.wrapping_add(base), bytes);
        let frames = FrameTables {
            index: file.index.map(moved),
            entries: file.frames().map(moved),
        };
        Symbols { text, frames }
    }

    /// The function that holds `addr`, as `name+0x12`.
    pub(crate) fn holding(&self, addr: u64) -> Option<String> {
        self.names(&[addr]).pop().flatten()
    }

    /// The same for several addresses at once.
    pub(crate) fn names(&self, addrs: &[u64]) -> Vec<Option<String>> {
        let mut best = vec![None; addrs.len()];
        for (start, bytes, name) in self.text.lines().filter_map(parse) {
            for (addr, best) in addrs.iter().zip(&mut best) {
                let reach = if bytes == 0 { UNSIZED_REACH } else { bytes };
                if start <= *addr && *addr - start < reach {
                    *best = Some((start, name));
                }
            }
        }
        let named = addrs.iter().zip(best);
        named
            .map(|(addr, best)| best.map(|best| shown(*addr, best)))
            .collect()
    }

    /// Where its call frame information is.
    pub(crate) fn frames(&self) -> FrameTables {
        self.frames
    }

    /// For a snapshot on disk.
    pub(crate) fn as_text(&self) -> &str {
        &self.text
    }

    /// From what `as_text` gave.
    pub(crate) fn from_text(text: String, frames: FrameTables) -> Self {
        Symbols { text, frames }
    }
}

/// The parts of an ELF file that are looked at. It is the tenant's: strings are never searched for their end
/// beyond what is kept of them, since many may begin in the same long one.
#[derive(Default)]
struct File<'a> {
    elf: &'a [u8],
    sections: &'a [SectionHeader64<LittleEndian>],
    section_names: &'a [u8],
    /// Address and bytes of `.eh_frame_hdr`.
    index: Option<(u64, u64)>,
    /// Where it ends in memory, by its own addresses.
    end: u64,
}

impl<'a> File<'a> {
    fn parse(elf: &'a [u8]) -> object::Result<Self> {
        let header = FileHeader64::<LittleEndian>::parse(elf)?;
        let endian = header.endian()?;
        let segments = header.program_headers(endian, elf)?;
        let mut indices = segments.iter();
        let index = indices.find(|one| one.p_type(endian) == PT_GNU_EH_FRAME);
        let end = |one: &ProgramHeader64<LittleEndian>| {
            one.p_vaddr(endian).saturating_add(one.p_memsz(endian))
        };
        let sections = header.section_headers(endian, elf).unwrap_or_default();
        let names = header.shstrndx(endian, elf).ok();
        let names = names.and_then(|names| sections.get(names as usize));
        Ok(File {
            elf,
            section_names: names
                .and_then(|names| names.data(endian, elf).ok())
                .unwrap_or_default(),
            sections: &sections[..sections.len().min(MAX_SECTIONS_SEEN)],
            index: index.map(|one| (one.p_vaddr(endian), one.p_memsz(endian))),
            end: segments.iter().map(end).max().unwrap_or_default(),
        })
    }

    /// Address and bytes of `.eh_frame`.
    fn frames(&self) -> Option<(u64, u64)> {
        let named = |section: &&SectionHeader64<LittleEndian>| {
            let name = self
                .section_names
                .get(section.sh_name(LittleEndian) as usize..);
            name.is_some_and(|name| name.starts_with(b".eh_frame\0"))
        };
        let section = self.sections.iter().find(named)?;
        Some((section.sh_addr(LittleEndian), section.sh_size(LittleEndian)))
    }

    /// Address, bytes and name of the functions that its symbol table has.
    fn functions(&self) -> Vec<(u64, u64, &'a str)> {
        let mut sections = self.sections.iter();
        let Some(table) = sections.find(|one| one.sh_type(LittleEndian) == SHT_SYMTAB) else {
            return Vec::new();
        };
        let symbols: &[Sym64<LittleEndian>] = table
            .data_as_array(LittleEndian, self.elf)
            .unwrap_or_default();
        let names = self.sections.get(table.sh_link(LittleEndian) as usize);
        let names = names.and_then(|names| names.data(LittleEndian, self.elf).ok());
        let names = names.unwrap_or_default();
        let functions = symbols.iter().take(MAX_SYMBOLS_SEEN).filter(|symbol| {
            matches!(symbol.st_type(), STT_FUNC | STT_GNU_IFUNC)
                && symbol.st_value(LittleEndian) != 0
        });
        functions
            .filter_map(|symbol| {
                let name = name_at(names, symbol.st_name(LittleEndian))?;
                let start = symbol.st_value(LittleEndian);
                Some((start, symbol.st_size(LittleEndian), name))
            })
            .take(MAX_SYMBOLS)
            .collect()
    }
}

/// The name at an offset in a string table, if it is one to keep.
fn name_at(names: &[u8], offset: u32) -> Option<&str> {
    let name = names.get(offset as usize..)?;
    let name = &name[..name.len().min(MAX_NAME_BYTES + 1)];
    let name = CStr::from_bytes_until_nul(name).ok()?.to_str().ok()?;
    (!name.is_empty() && !name.contains(char::is_control)).then_some(name)
}

/// The start of what is written, without control characters. It fails once it is full, which ends the work of
/// whoever writes.
#[derive(Default)]
struct Shown(String);

impl fmt::Write for Shown {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for one in text.chars().filter(|one| !one.is_control()) {
            if self.0.len() + one.len_utf8() > MAX_SHOWN_BYTES {
                return Err(fmt::Error);
            }
            self.0.push(one);
        }
        Ok(())
    }
}

fn shown(addr: u64, (start, name): (u64, &str)) -> String {
    // A name that was escaped may hold anything once it is demangled.
    let mut shown = Shown::default();
    let _ = write!(shown, "{:#}", rustc_demangle::demangle(name));
    let Shown(shown) = shown;
    format!("{shown}+{:#x}", addr - start)
}

fn parse(line: &str) -> Option<(u64, u64, &str)> {
    let (start, rest) = line.split_once(' ')?;
    let (bytes, name) = rest.split_once(' ')?;
    let number = |digits| u64::from_str_radix(digits, 16).ok();
    Some((number(start)?, number(bytes)?, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_told_by_the_function_that_holds_it_and_by_no_other() {
        let symbols = Symbols::from_text(
            "1000 20 main\n1008 4 inner\n2000 0 _ZN1a1bE\n".into(),
            FrameTables::default(),
        );
        assert_eq!(symbols.holding(0x1009).as_deref(), Some("inner+0x1"));
        assert_eq!(symbols.holding(0x100c).as_deref(), Some("main+0xc"));
        assert_eq!(symbols.holding(0x1020), None);
        assert_eq!(symbols.holding(0x1004).as_deref(), Some("main+0x4"));
        assert_eq!(symbols.holding(0x2001).as_deref(), Some("a::b+0x1"));
        assert_eq!(symbols.holding(0xfff), None);
        assert_eq!(symbols.holding(0x3000), None);
    }

    #[test]
    fn the_functions_of_this_very_test_are_found_by_name() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let symbols = Symbols::of_program(&program, 0);
        let line = symbols
            .as_text()
            .lines()
            .find(|line| line.ends_with(" main"))
            .unwrap();
        let (start, ..) = parse(line).unwrap();
        assert_eq!(symbols.holding(start + 1).as_deref(), Some("main+0x1"));
    }

    /// An ELF file with a symbol table of functions that share `names`, each at the offset that `offset` says.
    fn hostile_program(count: usize, names: &[u8], offset: impl Fn(usize) -> u32) -> Vec<u8> {
        const HEADER: usize = 64;
        const SECTION: usize = 64;
        const SYMBOL: usize = 24;
        let symbols_at = HEADER + 3 * SECTION;
        let names_at = symbols_at + count * SYMBOL;
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(16, 0);
        elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        let words = [0, 0, HEADER as u64];
        elf.extend(words.map(u64::to_le_bytes).as_flattened());
        let halves = [0, 0, HEADER as u16, 56, 0, SECTION as u16, 3, 2];
        elf.extend(halves.map(u16::to_le_bytes).as_flattened());
        let mut section = |kind: u32, at: usize, bytes: usize, link: u32, entry: usize| {
            elf.extend([0, kind].map(u32::to_le_bytes).as_flattened());
            let words = [0, 0, at as u64, bytes as u64];
            elf.extend(words.map(u64::to_le_bytes).as_flattened());
            elf.extend([link, 0].map(u32::to_le_bytes).as_flattened());
            elf.extend([1, entry as u64].map(u64::to_le_bytes).as_flattened());
        };
        section(0, 0, 0, 0, 0);
        section(SHT_SYMTAB, symbols_at, count * SYMBOL, 2, SYMBOL);
        section(object::elf::SHT_STRTAB, names_at, names.len(), 0, 0);
        for n in 0..count {
            elf.extend(offset(n).to_le_bytes());
            elf.extend([STT_FUNC, 0, 1, 0]);
            let words = [0x1000 + 16 * n as u64, 16];
            elf.extend(words.map(u64::to_le_bytes).as_flattened());
        }
        elf.extend(names);
        elf
    }

    #[test]
    fn a_program_without_names_that_is_moved_is_told_by_the_addresses_in_its_file() {
        let mut elf = hostile_program(0, b"\0", |_| 0);
        // One segment: to be loaded, 0x1000 bytes at 0x4000.
        let (count, at) = (56, elf.len() as u64);
        elf[32..40].copy_from_slice(&at.to_le_bytes());
        elf[count..count + 2].copy_from_slice(&1u16.to_le_bytes());
        elf.extend([1u32, 5].map(u32::to_le_bytes).as_flattened());
        let words = [0, 0x4000u64, 0x4000, 0x1000, 0x1000, 0x1000];
        elf.extend(words.map(u64::to_le_bytes).as_flattened());
        let symbols = Symbols::of_program(&elf, 0x40_0000);
        assert_eq!(
            symbols.holding(0x40_4321).as_deref(),
            Some("program+0x4321")
        );
        assert_eq!(symbols.holding(0x40_5000), None);
        assert_eq!(Symbols::of_program(&elf, 0).as_text(), "");
    }

    #[test]
    fn symbols_that_share_one_long_name_take_no_time() {
        let mut names = vec![b'a'; 1 << 20];
        names.push(0);
        let longest = (names.len() - 1 - MAX_NAME_BYTES) as u32;
        let elf = hostile_program(MAX_SYMBOLS_SEEN, &names, |n| n as u32 % 1000);
        let started = crate::runner::thread_cpu();
        assert_eq!(Symbols::of_program(&elf, 0).as_text(), "");
        // All that are kept are as long as they may be.
        let elf = hostile_program(MAX_SYMBOLS_SEEN, &names, |_| longest);
        let symbols = Symbols::of_program(&elf, 0);
        let took = crate::runner::thread_cpu() - started;
        assert!(took < holm_test_support::patience(std::time::Duration::from_secs(1)));
        let kept = symbols.as_text().len();
        assert!((MAX_TEXT_BYTES - 1024..=MAX_TEXT_BYTES).contains(&kept));
        assert!(symbols.as_text().ends_with("a\n"));
        // One byte longer is too long.
        let elf = hostile_program(1, &names, |_| longest - 1);
        assert_eq!(Symbols::of_program(&elf, 0).as_text(), "");
    }

    #[test]
    fn symbols_beyond_the_bound_are_not_looked_at() {
        let last_named = |count: usize| {
            let elf = hostile_program(count, b"\0last\0", |n| u32::from(n + 1 == count));
            Symbols::of_program(&elf, 0).as_text().lines().count()
        };
        assert_eq!(last_named(MAX_SYMBOLS_SEEN), 1);
        assert_eq!(last_named(MAX_SYMBOLS_SEEN + 1), 0);
    }

    #[test]
    fn a_name_that_stands_for_a_long_one_is_cut() {
        // Tuples of references back to the one before, up to 8^5 units in all (RFC 2603).
        const DIGITS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
        let reference = |to: usize| {
            let (high, low) = ((to - 1) / 62, (to - 1) % 62);
            let digits = [DIGITS[high], DIGITS[low]].map(char::from);
            format!("B{}{}_", digits[0], digits[1]).replace("B0", "B")
        };
        let mut name = "_RINvC1a1b".to_owned();
        let mut last = name.len() - 2;
        name += "u";
        for _ in 0..5 {
            let next = name.len() - 2;
            name += &format!("T{}E", reference(last).repeat(8));
            last = next;
        }
        name.push('E');
        assert!(name.len() <= MAX_NAME_BYTES);
        let symbols = Symbols::from_text(format!("1000 10 {name}\n"), FrameTables::default());
        let shown = symbols.holding(0x1004).unwrap();
        assert!(shown.starts_with("a::b::<(), "), "{shown}");
        assert!((MAX_SHOWN_BYTES..MAX_SHOWN_BYTES + 8).contains(&shown.len()));
    }
}
