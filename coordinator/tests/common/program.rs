//! The smallest program that is one: a static x86-64 ELF with a single executable segment.

const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

/// A program that differs with `salt`.
pub fn elf(salt: u64) -> Vec<u8> {
    // mov $60, %eax; xor %edi, %edi; syscall
    let mut code = vec![0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05];
    code.extend(salt.to_le_bytes());
    let length = HEADERS + code.len() as u64;
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2u16, 62] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes());
    for word in [BASE + HEADERS, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    // One segment, to be loaded, readable and executable.
    for half in [1u32, 5] {
        elf.extend(half.to_le_bytes());
    }
    for word in [0, BASE, BASE, length, length, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}
