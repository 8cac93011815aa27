//! System calls as jumps: what `syscall` costs under PVM is a large part of a request (some 20 µs each,
//! where a jump into the library OS costs 0.1), so a program's commonest ways of writing one are changed
//! before it starts.
//!
//! A site is changed only if its bytes can hardly mean anything else, and in such a way that every address
//! that was the start of an instruction still does what it did:
//!
//! ```text
//! before   mov eax, NUMBER          jmp stub ─────▶ stub:  mov eax, NUMBER
//!          syscall             ──▶  syscall                mov ecx, back
//! back:    …                 back:  …                      jmp call_entry      (returns to back)
//!
//! behind   syscall                  jmp stub ─────▶ stub:  mov ecx, after
//! next:    cmp rax, -4095      ──▶  (rest of jmp)          jmp call_entry      (returns to after)
//! back:    …                 back:  …                      jmp stub            (two bytes: a restart)
//!                                                  after:  cmp rax, -4095
//!                                                          jmp back
//! ```
//! Before: the `syscall` stays, for who jumps to it. Behind: who jumps to `next` finds, by the choice of
//! the stub's address, a byte that is no instruction, and the library OS sends him on to `after`.
//!
//! The bytes of the program are compared with the patterns below and not taken apart in any other way.
//! What is not found still works, by the instruction.

use holm_hostcall::rewritten_call::{
    AFTER, JUMP as JMP, NOT_AN_INSTRUCTION, RESTART, SITE, STUB_BYTES,
};
use holm_hostcall::{CALLS_ADDR, CALLS_END, PAGE_BYTES};

use crate::VmmError;
use crate::layout::{Access, Range};
use crate::memory::GuestMemory;

/// Most sites of one program that are changed: ordinary ones have some hundreds.
const MAX_SITES: usize = 2000;
/// Bytes of a `jmp` with a 32-bit distance.
const JUMP_BYTES: usize = 5;
const SYSCALL: [u8; 2] = [0x0F, 0x05];
const MOV_EAX: u8 = 0xB8;
const MOV_ECX: u8 = 0xB9;
/// Numbers of system calls are below.
const NUMBERS: u32 = 1024;
/// What C libraries and Go do with the result, right after the instruction.
const BEHIND: [&[u8]; 5] = [
    &[0x48, 0x3D, 0x01, 0xF0, 0xFF, 0xFF], // cmp rax, -4095
    &[0x48, 0x3D, 0x00, 0xF0, 0xFF, 0xFF], // cmp rax, -4096
    &[0x3D, 0x01, 0xF0, 0xFF, 0xFF],       // cmp eax, -4095
    &[0x3D, 0x00, 0xF0, 0xFF, 0xFF],       // cmp eax, -4096
    &[0x48, 0x83, 0xF8, 0xDA],             // cmp rax, -ENOSYS
];
/// Instructions that nothing but musl's functions for cancellable calls has before a `syscall`, and how many
/// bytes of them give way: they end in whole instructions.
const BEFORE: [(&[u8], usize); 2] = [
    // mov r9, [rsp + 16]; mov [rsp + 8], r11
    (
        &[0x4C, 0x8B, 0x4C, 0x24, 0x10, 0x4C, 0x89, 0x5C, 0x24, 0x08],
        5,
    ),
    // mov r9, [rsp + 8]; mov rdx, rcx
    (&[0x4C, 0x8B, 0x4C, 0x24, 0x08, 0x48, 0x89, 0xCA], 8),
];

/// A place where a program makes a system call, within a segment's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Site {
    /// So many bytes before the `syscall` at this offset give way.
    Before { syscall: usize, moved: usize },
    /// So many bytes after it.
    Behind { syscall: usize, moved: usize },
}

/// The stubs of one program.
pub(crate) struct Stubs {
    bytes: Vec<u8>,
    taken: Vec<bool>,
    /// Sites that have been looked at.
    sites: usize,
    /// Where the library OS takes a call.
    entry: u64,
}

impl Stubs {
    /// None yet.
    pub(crate) fn new(entry: u64) -> Self {
        let room = (CALLS_END - CALLS_ADDR) as usize;
        Stubs {
            bytes: vec![0; room],
            taken: vec![false; room / STUB_BYTES],
            sites: 0,
            entry,
        }
    }

    /// Changes the sites in the bytes of an executable segment, which will be at `addr`.
    pub(crate) fn rewrite(&mut self, code: &mut [u8], addr: u64) {
        for site in sites(code, MAX_SITES - self.sites) {
            self.sites += 1;
            // A site too far away, or one for which there is no stub left, stays as it is.
            let _ = match site {
                Site::Before { syscall, moved } => self.before(code, addr, syscall, moved),
                Site::Behind { syscall, moved } => self.behind(code, addr, syscall, moved),
            };
        }
    }

    fn before(&mut self, code: &mut [u8], addr: u64, syscall: usize, moved: usize) -> Option<()> {
        let start = syscall - moved;
        let back = u32::try_from(addr + syscall as u64 + SYSCALL.len() as u64).ok()?;
        let stub = self.free(|_| true)?;
        let jump = jump(addr + start as u64, stub)?;
        let mut text = code[start..syscall].to_vec();
        text.push(MOV_ECX);
        text.extend_from_slice(&back.to_le_bytes());
        self.put(stub, text, self.entry)?;
        code[start..start + JUMP_BYTES].copy_from_slice(&jump);
        Some(())
    }

    fn behind(&mut self, code: &mut [u8], addr: u64, syscall: usize, moved: usize) -> Option<()> {
        let at = addr + syscall as u64;
        let trap = |stub| jump(at, stub).is_some_and(|jump| jump[2] == NOT_AN_INSTRUCTION);
        let stub = self.free(trap)?;
        let jump = jump(at, stub)?;
        let next = syscall + SYSCALL.len();
        let after = u32::try_from(stub + AFTER).ok()?;
        let mut text = vec![MOV_ECX];
        text.extend_from_slice(&after.to_le_bytes());
        self.put(stub, text, self.entry)?;
        // The system call that a signal has interrupted is made again two bytes before `after`.
        let restart = stub + RESTART;
        self.write(stub + SITE, &(at as u32).to_le_bytes());
        self.write(restart, &[0xEB, (stub.wrapping_sub(stub + AFTER)) as u8]);
        let text = code[next..next + moved].to_vec();
        self.put(stub + AFTER, text, addr + (next + moved) as u64)?;
        code[syscall..syscall + JUMP_BYTES].copy_from_slice(&jump);
        Some(())
    }

    /// Takes the first free stub that is `fit`.
    fn free(&mut self, fit: impl Fn(u64) -> bool) -> Option<u64> {
        let stub = |index: usize| CALLS_ADDR + (index * STUB_BYTES) as u64;
        let index = (0..self.taken.len()).find(|index| !self.taken[*index] && fit(stub(*index)))?;
        self.taken[index] = true;
        Some(stub(index))
    }

    /// Writes `text` and a jump to `to`.
    fn put(&mut self, at: u64, mut text: Vec<u8>, to: u64) -> Option<()> {
        let jump = jump(at + text.len() as u64, to)?;
        text.extend_from_slice(&jump);
        self.write(at, &text);
        Some(())
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        let at = (at - CALLS_ADDR) as usize;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Copies the stubs into a guest; gives the pages that they take.
    pub(crate) fn load(&self, memory: &GuestMemory) -> Result<Vec<Range>, VmmError> {
        const PAGE: usize = PAGE_BYTES as usize;
        let mut ranges = Vec::new();
        for (index, stubs) in self.taken.chunks(PAGE / STUB_BYTES).enumerate() {
            if stubs.contains(&true) {
                let start = CALLS_ADDR + index as u64 * PAGE_BYTES;
                memory.write(start, &self.bytes[index * PAGE..(index + 1) * PAGE])?;
                ranges.push(Range {
                    start,
                    end: start + PAGE_BYTES,
                    access: Access::Execute,
                });
            }
        }
        Ok(ranges)
    }
}

/// A `jmp` at `from` to `to`, if it reaches so far.
fn jump(from: u64, to: u64) -> Option<[u8; JUMP_BYTES]> {
    let distance = i128::from(to) - i128::from(from) - JUMP_BYTES as i128;
    let [a, b, c, d] = i32::try_from(distance).ok()?.to_le_bytes();
    Some([JMP, a, b, c, d])
}

/// The first sites in a program's code, at most `most`.
fn sites(code: &[u8], most: usize) -> Vec<Site> {
    let mut found = Vec::new();
    let mut free_from = 0;
    let mut at = 0;
    while let Some(next) = code[at..].windows(2).position(|two| two == SYSCALL)
        && found.len() < most
    {
        let syscall = at + next;
        at = syscall + SYSCALL.len();
        let before = moved_before(&code[..syscall]).filter(|moved| syscall - moved >= free_from);
        let behind = moved_behind(&code[at..]).filter(|_| !ends_in_a_jump(&code[..syscall]));
        let site = match (before, behind) {
            (Some(moved), _) => Site::Before { syscall, moved },
            (None, Some(moved)) => Site::Behind { syscall, moved },
            (None, None) => continue,
        };
        if let Site::Behind { moved, .. } = site {
            at += moved;
        }
        free_from = at;
        found.push(site);
    }
    found
}

fn moved_behind(code: &[u8]) -> Option<usize> {
    let known = BEHIND.iter().find(|known| code.starts_with(known))?;
    Some(known.len())
}

fn moved_before(code: &[u8]) -> Option<usize> {
    let known = BEFORE.iter().find(|(known, _)| code.ends_with(known));
    if let Some((_, moved)) = known {
        return Some(*moved);
    }
    let (rest, mov) = code.split_last_chunk::<JUMP_BYTES>()?;
    let [MOV_EAX, number @ ..] = *mov else {
        return None;
    };
    (u32::from_le_bytes(number) < NUMBERS && !ends_in_a_longer_one(rest)).then_some(JUMP_BYTES)
}

/// Whether what follows `code` may be the end of an instruction that begins in it, and not a
/// `mov eax, NUMBER` (Intel SDM volume 2, chapter 2). Such an instruction has 0xB8 with four bytes behind it, of
/// which the highest are zero, as
///   - the opcode, with a prefix: REX makes another register of it, 0x66 another size;
///   - an 8-bit displacement with a 32-bit immediate behind it;
///   - a SIB byte with a 32-bit displacement behind it, loading eax from a table;
///   - a ModRM byte with a 32-bit displacement from rax, or with REX.B or a VEX or EVEX prefix from r8. From
///     rax, that is a pointer then and no number of a system call, unless an immediate follows: then there
///     is no call at all.
///
/// Rather too many are taken for such ones: they are rewritten behind the call, or not at all.
fn ends_in_a_longer_one(code: &[u8]) -> bool {
    let [.., fifth, fourth, third, second, first] = *code else {
        return true;
    };
    let is_rex = |byte: u8| byte & 0xF0 == 0x40;
    let with_immediate = |opcode: u8| {
        matches!(
            opcode,
            0x69 | 0x6B | 0x80..=0x83 | 0xC0 | 0xC1 | 0xC6 | 0xC7 | 0xF6 | 0xF7
        )
    };
    let byte_displacement = |modrm: u8| modrm & 0xC0 == 0x40;
    let displaced = byte_displacement(first) && with_immediate(second)
        || byte_displacement(second) && second & 7 == 4 && with_immediate(third);
    let table = first & 0xC7 == 0x84;
    // ModRM behind an opcode of one byte, of two (0F) or of three (0F 38, 0F 3A).
    let from_r8 = is_rex(second) && second & 1 != 0;
    let long_opcode = second == 0x0F || third == 0x0F && matches!(second, 0x38 | 0x3A);
    let vector = third == 0xC5 || fourth == 0xC4 || fifth == 0x62;
    first == 0x66
        || is_rex(first)
        || with_immediate(first)
        || displaced
        || table
        || from_r8
        || long_opcode
        || vector
}

/// Whether the call after `code` may be the end of the distance of a jump or call (E8, E9, 0F 80 to 0F 8F).
fn ends_in_a_jump(code: &[u8]) -> bool {
    matches!(
        *code,
        [.., 0x0F, 0x80..=0x8F, _, _] | [.., 0xE8 | 0xE9, _, _]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDR: u64 = 0x40_1000;
    const ENTRY: u64 = 0x10_0040;

    fn rewritten(code: &[u8]) -> (Vec<u8>, Stubs) {
        let mut changed = code.to_vec();
        let mut stubs = Stubs::new(ENTRY);
        stubs.rewrite(&mut changed, ADDR);
        (changed, stubs)
    }

    /// Where the jump at `at` leads, and that it is one.
    fn target(bytes: &[u8], at: u64) -> u64 {
        assert_eq!(bytes[0], JMP, "{bytes:x?}");
        let distance = i32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
        (at + JUMP_BYTES as u64).wrapping_add_signed(i64::from(distance))
    }

    fn stub(stubs: &Stubs, at: u64) -> &[u8] {
        &stubs.bytes[(at - CALLS_ADDR) as usize..][..STUB_BYTES]
    }

    #[test]
    fn a_number_before_the_call_gives_way_and_the_call_stays() {
        let code = [
            0x90, 0x90, 0x90, 0x90, 0x90, 0xB8, 0x27, 0, 0, 0, 0x0F, 0x05, 0xC3,
        ];
        let (changed, stubs) = rewritten(&code);
        assert_eq!(changed[10..], code[10..]);
        let at = target(&changed[5..], ADDR + 5);
        let stub = stub(&stubs, at);
        assert_eq!(stub[..5], code[5..10]);
        assert_eq!(
            stub[5..10],
            [&[MOV_ECX][..], &(ADDR as u32 + 12).to_le_bytes()].concat()
        );
        assert_eq!(target(&stub[10..], at + 10), ENTRY);
    }

    #[test]
    fn a_comparison_behind_the_call_gives_way_and_a_jump_to_it_is_caught() {
        for pad in 0..40 {
            let known = BEHIND[pad % BEHIND.len()];
            let code = [&vec![0x90; pad][..], &SYSCALL, known, &[0x90; 8]].concat();
            let (changed, stubs) = rewritten(&code);
            let at = target(&changed[pad..], ADDR + pad as u64);
            assert_eq!(changed[pad + 2], NOT_AN_INSTRUCTION);
            let end = pad + 2 + known.len();
            assert_eq!(changed[end..], code[end..]);
            let stub = stub(&stubs, at);
            let after = AFTER as usize;
            assert_eq!(
                stub[..5],
                [&[MOV_ECX][..], &((at + AFTER) as u32).to_le_bytes()].concat()
            );
            assert_eq!(target(&stub[5..], at + 5), ENTRY);
            // A short jump, measured from its end, back to the stub's start.
            assert_eq!(stub[after - 2..after], [0xEB, (-(AFTER as i64)) as u8]);
            assert_eq!(&stub[after..after + known.len()], known);
            let jump = &stub[after + known.len()..];
            assert_eq!(
                stub[SITE as usize..],
                (ADDR as u32 + pad as u32).to_le_bytes()
            );
            let from = at + (after + known.len()) as u64;
            assert_eq!(target(jump, from), ADDR + end as u64);
        }
    }

    #[test]
    fn what_may_mean_something_else_stays_as_it_is() {
        let call = [0xB8, 0x27, 0, 0, 0, 0x0F, 0x05];
        let with = |before: &[u8]| [&[0x90; 5], before, &call].concat();
        let cases = [
            with(&[0x90, 0x90, 0x41]),                   // mov r8d, 0x27
            with(&[0xC7, 0x45]),                         // mov [rbp - 0x48], 0x27
            with(&[0x90, 0xC7, 0x44, 0x24]),             // mov [rsp - 0x48], 0x27
            with(&[0x90, 0x8B, 0x84]),                   // mov eax, [rax + rdi * 4 + 0x27]
            call.to_vec(),                               // who knows what is before a segment
            with(&[0x90, 0x90, 0x90, 0x49, 0x8D]),       // lea rdi, [r8 + 0x27]
            with(&[0x90, 0x90, 0x90, 0x90, 0x81]),       // cmp dword [rax + 0x27], 0x050F
            with(&[0x90, 0x90, 0x90, 0x66, 0x81]),       // cmp word [rax + 0x27], 0x050F
            with(&[0x90, 0x41, 0x0F, 0x10]),             // movups xmm7, [r8 + 0x27]
            with(&[0x90, 0x90, 0xC4, 0xC1, 0x78, 0x10]), // vmovups xmm7, [r8 + 0x27]
            with(&[0x90, 0x90, 0x90, 0x90, 0x6B]),       // imul edi, [rax + 0x27], 15; add eax, …
            // call, a long way off; cmp rax, -4095
            vec![
                0x90, 0xE8, 0, 0, 0x0F, 0x05, 0x48, 0x3D, 0x01, 0xF0, 0xFF, 0xFF,
            ],
            vec![
                0x0F, 0x84, 0, 0, 0x0F, 0x05, 0x48, 0x3D, 0x01, 0xF0, 0xFF, 0xFF,
            ],
            vec![0x90, 0x90, 0x90, 0xB8, 0, 4, 0, 0, 0x0F, 0x05],
            vec![0x90, 0x90, 0x90, 0x0F, 0x05, 0x85, 0xC0, 0x79, 0x01],
            vec![0x0F, 0x05],
            vec![0x0F],
            vec![],
        ];
        for code in cases {
            assert_eq!(rewritten(&code).0, code, "{code:x?}");
        }
    }

    #[test]
    fn sites_side_by_side_do_not_touch_each_other() {
        let one = [0xB8, 0x27, 0, 0, 0, 0x0F, 0x05];
        let compare = [&SYSCALL[..], BEHIND[0]].concat();
        let nops = [0x90; 5];
        let code = [
            &nops[..],
            &one,
            &nops,
            &one,
            &compare,
            &compare,
            &nops,
            &one,
        ]
        .concat();
        let found = sites(&code, MAX_SITES);
        assert_eq!(found.len(), 5, "{found:?}");
        let mut until = 0;
        for site in found {
            let (start, end) = match site {
                Site::Before { syscall, moved } => (syscall - moved, syscall + 2),
                Site::Behind { syscall, moved } => (syscall, syscall + 2 + moved),
            };
            assert!(start >= until);
            until = end;
        }
        let many = [&[0x90; 4][..], &compare.repeat(MAX_SITES + 1)].concat();
        let (changed, _) = rewritten(&many);
        assert!(changed.ends_with(&compare) && !changed[4..].starts_with(&compare));
    }
}
