//! Names of a program's functions, and where its call frame information is, for crash reports.
//!
//! The names are kept as one text, which is looked through when a program has crashed: a snapshot is loaded far
//! more often than that, and should not have to take thousands of names apart.

use std::fmt::Write as _;

use object::elf::PT_GNU_EH_FRAME;
use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{LittleEndian, Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

use crate::unwind::FrameTables;

/// Most functions whose names are kept.
const MAX_SYMBOLS: usize = 100_000;
/// Longest name kept, in bytes.
const MAX_NAME_BYTES: usize = 512;

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
    /// one has no names.
    pub(crate) fn of_program(elf: &[u8], base: u64) -> Self {
        let mut functions = Vec::new();
        let mut frames = FrameTables::default();
        if let Ok(file) = ElfFile64::<LittleEndian>::parse(elf) {
            let mut headers = file.elf_program_headers().iter();
            let index = headers.find(|one| one.p_type(LittleEndian) == PT_GNU_EH_FRAME);
            let place = |addr: u64, bytes| (addr.wrapping_add(base), bytes);
            frames = FrameTables {
                index: index.map(|one| place(one.p_vaddr(LittleEndian), one.p_memsz(LittleEndian))),
                entries: file
                    .section_by_name(".eh_frame")
                    .map(|section| place(section.address(), section.size())),
            };
            for symbol in file.symbols().filter(|one| one.kind() == SymbolKind::Text) {
                let Ok(name) = symbol.name() else { continue };
                let whole = !name.is_empty()
                    && name.len() <= MAX_NAME_BYTES
                    && !name.contains(char::is_control);
                if whole && symbol.address() != 0 {
                    let start = symbol.address().wrapping_add(base);
                    functions.push((start, symbol.size(), name));
                }
                if functions.len() == MAX_SYMBOLS {
                    break;
                }
            }
        }
        functions.sort_unstable();
        functions.dedup_by_key(|function| function.0);
        let mut text = String::new();
        for (start, bytes, name) in functions {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{start:x} {bytes:x} {name}");
        }
        Symbols { text, frames }
    }

    /// The function that holds `addr`, or the nearest one before it, as `name+0x12`.
    pub(crate) fn nearest(&self, addr: u64) -> Option<String> {
        self.names(&[addr]).pop().flatten()
    }

    /// The same for several addresses at once.
    pub(crate) fn names(&self, addrs: &[u64]) -> Vec<Option<String>> {
        let mut best = vec![None; addrs.len()];
        for (start, bytes, name) in self.text.lines().filter_map(parse) {
            for (addr, best) in addrs.iter().zip(&mut best) {
                if start <= *addr {
                    *best = Some((start, bytes, name));
                }
            }
        }
        let named = addrs.iter().zip(best);
        named
            .map(|(addr, best)| best.and_then(|best| shown(*addr, best)))
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

fn shown(addr: u64, (start, bytes, name): (u64, u64, &str)) -> Option<String> {
    let offset = addr - start;
    // Far behind the last function there is no code of the program any more.
    const REACH: u64 = 1 << 20;
    if offset >= bytes.max(REACH) {
        return None;
    }
    // A name that was escaped may hold anything once it is demangled.
    let name = format!("{:#}", rustc_demangle::demangle(name));
    let shown: String = name.chars().filter(|one| !one.is_control()).collect();
    Some(format!("{shown}+{offset:#x}"))
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
    fn the_nearest_function_before_an_address_is_found() {
        let symbols = Symbols::from_text(
            "1000 20 main\n2000 0 _ZN1a1bE\n".into(),
            FrameTables::default(),
        );
        assert_eq!(symbols.nearest(0x1004).as_deref(), Some("main+0x4"));
        assert_eq!(symbols.nearest(0x2001).as_deref(), Some("a::b+0x1"));
        assert_eq!(symbols.nearest(0xfff), None);
        assert_eq!(symbols.nearest(0x2000_0000), None);
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
        assert_eq!(symbols.nearest(start + 1).as_deref(), Some("main+0x1"));
    }
}
