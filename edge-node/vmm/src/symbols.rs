//! Names of a program's functions, for crash reports.

use object::read::elf::ElfFile64;
use object::{LittleEndian, Object as _, ObjectSymbol as _, SymbolKind};

/// Most functions whose names are kept.
const MAX_SYMBOLS: usize = 100_000;
/// Longest name kept, in bytes.
const MAX_NAME_BYTES: usize = 512;

/// The functions of a program, by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Symbols {
    /// Address, bytes (0 if not known), name; in rising order.
    functions: Vec<(u64, u64, String)>,
}

impl Symbols {
    /// Reads the symbol table of an ELF file, whose addresses are moved by `base`. A program without
    /// one has no names.
    pub(crate) fn of_program(elf: &[u8], base: u64) -> Self {
        let mut functions = Vec::new();
        if let Ok(file) = ElfFile64::<LittleEndian>::parse(elf) {
            for symbol in file.symbols().filter(|one| one.kind() == SymbolKind::Text) {
                let Ok(name) = symbol.name() else { continue };
                if name.is_empty() || name.len() > MAX_NAME_BYTES || symbol.address() == 0 {
                    continue;
                }
                functions.push((
                    symbol.address().wrapping_add(base),
                    symbol.size(),
                    name.to_owned(),
                ));
                if functions.len() == MAX_SYMBOLS {
                    break;
                }
            }
        }
        functions.sort();
        functions.dedup_by_key(|function| function.0);
        Symbols { functions }
    }

    /// The function that holds `addr`, or the nearest one before it, as `name+0x12`.
    pub(crate) fn nearest(&self, addr: u64) -> Option<String> {
        let after = self
            .functions
            .partition_point(|function| function.0 <= addr);
        let (start, bytes, name) = self.functions.get(after.checked_sub(1)?)?;
        let offset = addr - start;
        // Far behind the last function there is no code of the program any more.
        const REACH: u64 = 1 << 20;
        if offset >= (*bytes).max(REACH) {
            return None;
        }
        Some(format!("{:#}+{offset:#x}", rustc_demangle::demangle(name)))
    }

    /// One line for each function: address and bytes in hexadecimal, name.
    pub(crate) fn to_text(&self) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        for (addr, bytes, name) in &self.functions {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{addr:x} {bytes:x} {name}");
        }
        text
    }

    /// From what `to_text` wrote; lines that are not of that form are left out.
    pub(crate) fn from_text(text: &str) -> Self {
        let line = |line: &str| {
            let (addr, rest) = line.split_once(' ')?;
            let (bytes, name) = rest.split_once(' ')?;
            let number = |digits| u64::from_str_radix(digits, 16).ok();
            Some((number(addr)?, number(bytes)?, name.to_owned()))
        };
        let mut functions: Vec<_> = text.lines().take(MAX_SYMBOLS).filter_map(line).collect();
        functions.sort();
        Symbols { functions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_from_their_text_and_the_nearest_is_found() {
        let functions = vec![
            (0x1000, 0x20, "main".to_owned()),
            (0x2000, 0, "_ZN1a1bE".to_owned()),
        ];
        let symbols = Symbols { functions };
        assert_eq!(Symbols::from_text(&symbols.to_text()), symbols);
        assert_eq!(symbols.nearest(0x1004).unwrap(), "main+0x4");
        assert_eq!(symbols.nearest(0x2001).unwrap(), "a::b+0x1");
        assert_eq!(symbols.nearest(0xfff), None);
        assert_eq!(symbols.nearest(0x2000_0000), None);
    }
}
