//! System calls and CPUID as jumps: what `syscall` costs under PVM is a large part of a request (some 20 µs
//! each, where a jump into the library OS costs 0.1), and `cpuid` leaves the guest on any KVM. So a program's
//! commonest ways of writing them are changed before it starts.
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
//! Before: the `syscall` stays, for who jumps to it; and so do instructions that set arguments between number
//! and call, which the stub has too. A number that is zero takes two bytes, so that one more gives way:
//!
//! ```text
//! zero     xor eax, eax             jmp stub ─────▶ stub:  xor eax, eax; mov rsi, r9; mov ecx, back
//! next:    mov rsi, r9         ──▶  (rest of jmp)          jmp call_entry      (returns to back)
//! call:    syscall           call:  syscall         after: mov rsi, r9
//! back:    …                 back:  …                      jmp call
//! ```
//! Behind, and after a zero: who jumps to `next` finds, by the choice of the stub's address, a byte that is no
//! instruction, and the library OS sends him on to `after`. For `cpuid`, which is two bytes as well, it is the
//! same with edx in the place of ecx: each is a register that the instruction changes and does not read.
//!
//! The bytes of the program are compared with the patterns in `sites`, which know some instructions that set
//! arguments, and not taken apart in any other way.
//! What is not found still works, by the instruction.

mod sites;

use holm_hostcall::rewritten_call::{
    AFTER, JUMP as JMP, NOT_AN_INSTRUCTION, RESTART, SITE, STUB_BYTES,
};
use holm_hostcall::{CALLS_ADDR, CALLS_END, PAGE_BYTES};

use crate::VmmError;
use crate::image::Image;
use crate::layout::{Access, Range};
use crate::memory::GuestMemory;
use sites::{INSTRUCTION_BYTES, Instruction, Moved, Site, ZERO_BYTES};

/// Most sites of one program that are changed: ordinary ones have some hundreds.
const MAX_SITES: usize = 2000;
/// Bytes of a `jmp` with a 32-bit distance.
const JUMP_BYTES: usize = 5;

/// Where the library OS takes over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entries {
    /// With a system call, the way back in ecx.
    call: u64,
    /// With CPUID, the way back in edx.
    cpuid: u64,
}

impl Entries {
    /// Those of a kernel image.
    pub(crate) fn of(image: &Image) -> Self {
        Entries {
            call: image.call_entry,
            cpuid: image.cpuid_entry,
        }
    }
}

/// The stubs of one program.
pub(crate) struct Stubs {
    bytes: Vec<u8>,
    taken: Vec<bool>,
    /// Sites that have been looked at.
    sites: usize,
    entries: Entries,
}

impl Stubs {
    /// None yet.
    pub(crate) fn new(entries: Entries) -> Self {
        let room = (CALLS_END - CALLS_ADDR) as usize;
        Stubs {
            bytes: vec![0; room],
            taken: vec![false; room / STUB_BYTES],
            sites: 0,
            entries,
        }
    }

    /// Changes the sites in the bytes of an executable segment, which will be at `addr`.
    pub(crate) fn rewrite(&mut self, code: &mut [u8], addr: u64) {
        for site in sites::find(code, MAX_SITES - self.sites) {
            self.sites += 1;
            // A site too far away, or one for which there is no stub left, stays as it is.
            let _ = match site.moved {
                Moved::Before(bytes) => self.before(code, addr, &site, bytes),
                Moved::ZeroBefore => self.zero_before(code, addr, &site),
                Moved::Behind(bytes) => self.behind(code, addr, &site, bytes),
            };
        }
    }

    fn before(&mut self, code: &mut [u8], addr: u64, site: &Site, moved: usize) -> Option<()> {
        let start = site.at - moved;
        let back = u32::try_from(addr + (site.at + INSTRUCTION_BYTES) as u64).ok()?;
        let stub = self.free(|_| true)?;
        let jump = jump(addr + start as u64, stub)?;
        let (mov_back, entry) = self.way_in(site.instruction);
        let mut text = code[start..site.at].to_vec();
        text.push(mov_back);
        text.extend_from_slice(&back.to_le_bytes());
        self.put(stub, text, entry)?;
        code[start..start + JUMP_BYTES].copy_from_slice(&jump);
        Some(())
    }

    fn zero_before(&mut self, code: &mut [u8], addr: u64, site: &Site) -> Option<()> {
        let start = site.at - JUMP_BYTES;
        let at = addr + start as u64;
        let back = u32::try_from(addr + (site.at + INSTRUCTION_BYTES) as u64).ok()?;
        let stub = self.free_with_trap(at)?;
        let jump = jump(at, stub)?;
        let (mov_back, entry) = self.way_in(site.instruction);
        let mut text = code[start..site.at].to_vec();
        text.push(mov_back);
        text.extend_from_slice(&back.to_le_bytes());
        self.put(stub, text, entry)?;
        self.write(stub + SITE, &(at as u32).to_le_bytes());
        let text = code[start + ZERO_BYTES..site.at].to_vec();
        self.put(stub + AFTER, text, addr + site.at as u64)?;
        code[start..site.at].copy_from_slice(&jump);
        Some(())
    }

    fn behind(&mut self, code: &mut [u8], addr: u64, site: &Site, moved: usize) -> Option<()> {
        let at = addr + site.at as u64;
        let stub = self.free_with_trap(at)?;
        let jump = jump(at, stub)?;
        let next = site.at + INSTRUCTION_BYTES;
        let after = u32::try_from(stub + AFTER).ok()?;
        let (mov_back, entry) = self.way_in(site.instruction);
        let mut text = vec![mov_back];
        text.extend_from_slice(&after.to_le_bytes());
        self.put(stub, text, entry)?;
        // The system call that a signal has interrupted is made again two bytes before `after`.
        let restart = stub + RESTART;
        self.write(stub + SITE, &(at as u32).to_le_bytes());
        self.write(restart, &[0xEB, (stub.wrapping_sub(stub + AFTER)) as u8]);
        let text = code[next..next + moved].to_vec();
        self.put(stub + AFTER, text, addr + (next + moved) as u64)?;
        code[site.at..site.at + JUMP_BYTES].copy_from_slice(&jump);
        Some(())
    }

    /// The opcode that tells the library OS where to go back to, and where it takes over.
    fn way_in(&self, instruction: Instruction) -> (u8, u64) {
        const MOV_ECX: u8 = 0xB9;
        const MOV_EDX: u8 = 0xBA;
        match instruction {
            Instruction::Syscall => (MOV_ECX, self.entries.call),
            Instruction::Cpuid => (MOV_EDX, self.entries.cpuid),
        }
    }

    /// Takes the first free stub that is `fit`.
    fn free(&mut self, fit: impl Fn(u64) -> bool) -> Option<u64> {
        let stub = |index: usize| CALLS_ADDR + (index * STUB_BYTES) as u64;
        let index = (0..self.taken.len()).find(|index| !self.taken[*index] && fit(stub(*index)))?;
        self.taken[index] = true;
        Some(stub(index))
    }

    /// One to which a jump from `at` has no instruction two bytes behind its start.
    fn free_with_trap(&mut self, at: u64) -> Option<u64> {
        self.free(|stub| jump(at, stub).is_some_and(|jump| jump[2] == NOT_AN_INSTRUCTION))
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

#[cfg(test)]
mod tests {
    use super::sites::BEHIND;
    use super::*;

    const ADDR: u64 = 0x40_1000;
    const ENTRY: u64 = 0x10_0040;
    const CPUID_ENTRY: u64 = 0x10_0080;
    const SYSCALL: [u8; 2] = [0x0F, 0x05];
    const CPUID: [u8; 2] = [0x0F, 0xA2];
    const MOV_ECX: u8 = 0xB9;
    const MOV_EDX: u8 = 0xBA;

    fn rewritten(code: &[u8]) -> (Vec<u8>, Stubs) {
        let mut changed = code.to_vec();
        let mut stubs = Stubs::new(Entries {
            call: ENTRY,
            cpuid: CPUID_ENTRY,
        });
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
    fn a_zero_before_the_call_gives_way_with_an_argument_and_a_jump_to_that_is_caught() {
        let code = [0x90, 0x31, 0xC0, 0x4C, 0x89, 0xCE, 0x0F, 0x05, 0xC3];
        let (changed, stubs) = rewritten(&code);
        assert_eq!((&changed[..1], &changed[6..]), (&code[..1], &code[6..]));
        assert_eq!(changed[3], NOT_AN_INSTRUCTION);
        let at = target(&changed[1..], ADDR + 1);
        let stub = stub(&stubs, at);
        assert_eq!(stub[..5], code[1..6]);
        let back = [&[MOV_ECX][..], &(ADDR as u32 + 8).to_le_bytes()].concat();
        assert_eq!(stub[5..10], back);
        assert_eq!(target(&stub[10..], at + 10), ENTRY);
        let after = AFTER as usize;
        assert_eq!(stub[after..after + 3], code[3..6]);
        assert_eq!(target(&stub[after + 3..], at + AFTER + 3), ADDR + 6);
        assert_eq!(stub[SITE as usize..], (ADDR as u32 + 1).to_le_bytes());
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
    fn a_leaf_before_cpuid_gives_way_with_its_subleaf_and_cpuid_stays() {
        for (subleaf, leaf) in [
            (&[][..], 0x8000_0001u32),
            (&[0x31, 0xC9], 7),         // xor ecx, ecx
            (&[0x89, 0xD1], 0xB),       // mov ecx, edx
            (&[0xB9, 1, 0, 0, 0], 0xD), // mov ecx, 1
        ] {
            let text = [&[0xB8][..], &leaf.to_le_bytes(), subleaf].concat();
            let code = [&[0x90; 5][..], &text, &CPUID, &[0xC3]].concat();
            let (changed, stubs) = rewritten(&code);
            assert_eq!(changed[10..], code[10..]);
            let at = target(&changed[5..], ADDR + 5);
            let back = ADDR as u32 + 5 + text.len() as u32 + 2;
            let stub = stub(&stubs, at);
            let way_in = [&text[..], &[MOV_EDX], &back.to_le_bytes()].concat();
            assert!(stub.starts_with(&way_in), "{stub:x?}");
            let jump = way_in.len();
            assert_eq!(target(&stub[jump..], at + jump as u64), CPUID_ENTRY);
        }
    }

    #[test]
    fn a_register_given_back_behind_cpuid_gives_way_and_a_jump_to_it_is_caught() {
        for (kept, given_back) in [
            (&[0x48, 0x89, 0xDE][..], &[0x48, 0x87, 0xF3][..]), // rsi
            (&[0x48, 0x89, 0xDE], &[0x48, 0x87, 0xDE]),
            (&[0x48, 0x87, 0xDF], &[0x48, 0x87, 0xDF]), // rdi
            (&[0x49, 0x89, 0xDA], &[0x4C, 0x87, 0xD3]), // r10
            (&[0x49, 0x89, 0xDA], &[0x49, 0x87, 0xDA]),
            // Go: mov ecx, [rsp + 12]; mov [rsp + 16], eax
            (&[0x8B, 0x4C, 0x24, 12], &[0x89, 0x44, 0x24, 16]),
        ] {
            let code = [kept, &CPUID, given_back, &[0x90; 8]].concat();
            let (changed, stubs) = rewritten(&code);
            let site = ADDR + kept.len() as u64;
            let at = target(&changed[kept.len()..], site);
            assert_eq!(changed[kept.len() + 2], NOT_AN_INSTRUCTION);
            let end = kept.len() + 2 + given_back.len();
            assert_eq!(changed[end..], code[end..]);
            let stub = stub(&stubs, at);
            let after = AFTER as usize;
            let way_in = [&[MOV_EDX][..], &((at + AFTER) as u32).to_le_bytes()].concat();
            assert!(stub.starts_with(&way_in), "{stub:x?}");
            assert_eq!(target(&stub[5..], at + 5), CPUID_ENTRY);
            assert!(stub[after..].starts_with(given_back));
            assert_eq!(stub[SITE as usize..], (site as u32).to_le_bytes());
            let from = at + (after + given_back.len()) as u64;
            let jump = &stub[after + given_back.len()..];
            assert_eq!(target(jump, from), ADDR + end as u64);
        }
    }

    #[test]
    fn no_more_sites_than_there_is_room_for_are_changed() {
        let one = [&SYSCALL[..], BEHIND[0]].concat();
        let many = [&[0x90; 4][..], &one.repeat(MAX_SITES + 1)].concat();
        let (changed, _) = rewritten(&many);
        assert!(changed.ends_with(&one) && !changed[4..].starts_with(&one));
    }
}
