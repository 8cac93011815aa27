//! Names of a program's functions, for crash reports.
//!
//! Kept as one text, which is looked through when a program has crashed: a snapshot is loaded far
//! more often than that, and should not have to take thousands of names apart.

use std::fmt::Write as _;

use object::read::elf::ElfFile64;
use object::{LittleEndian, Object as _, ObjectSymbol as _, SymbolKind};

/// Most functions whose names are kept.
const MAX_SYMBOLS: usize = 100_000;
/// Longest name kept, in bytes.
const MAX_NAME_BYTES: usize = 512;

/// The functions of a program: a line for each with address and bytes (0 if not known) in hexadecimal
/// and the name, by rising address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Symbols {
    text: String,
}

impl Symbols {
    /// Reads the symbol table of an ELF file, whose addresses are moved by `base`. A program without
    /// one has no names.
    pub(crate) fn of_program(elf: &[u8], base: u64) -> Self {
        let mut functions = Vec::new();
        if let Ok(file) = ElfFile64::<LittleEndian>::parse(elf) {
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
        Symbols { text }
    }

    /// The function that holds `addr`, or the nearest one before it, as `name+0x12`.
    pub(crate) fn nearest(&self, addr: u64) -> Option<String> {
        let functions = self.text.lines().filter_map(parse);
        let (start, bytes, name) = functions.take_while(|(start, ..)| *start <= addr).last()?;
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

    /// For a snapshot on disk.
    pub(crate) fn as_text(&self) -> &str {
        &self.text
    }

    /// From what `as_text` gave.
    pub(crate) fn from_text(text: String) -> Self {
        Symbols { text }
    }
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
        let symbols = Symbols::from_text("1000 20 main\n2000 0 _ZN1a1bE\n".into());
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
