//! Where a program makes a system call or asks CPUID in one of the ways that compilers and C libraries write it.

use holm_hostcall::rewritten_call::STUB_BYTES;

use super::JUMP_BYTES;

/// Bytes of the instructions that are looked for.
pub(super) const INSTRUCTION_BYTES: usize = 2;
const MOV_EAX: u8 = 0xB8;
/// Bytes of `xor eax, eax`, and of an argument that makes as many of it as a jump has.
pub(super) const ZERO_BYTES: usize = 2;
const ARGUMENT_BYTES: usize = JUMP_BYTES - ZERO_BYTES;
/// Numbers of system calls are below.
const NUMBERS: u32 = 1024;
/// Numbers of CPUID's leaves are below, but for the highest bits, which tell their class.
const LEAVES: u32 = 256;
/// Most bytes between `mov eax, NUMBER` and the instruction, by the room in a stub.
const MOST_ARGUMENT_BYTES: usize = STUB_BYTES - 3 * JUMP_BYTES;
/// What C libraries and Go do with the result of a system call, right after it.
pub(super) const BEHIND: [&[u8]; 5] = [
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

/// What is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instruction {
    Syscall,
    Cpuid,
}

impl Instruction {
    fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x0F, 0x05] => Some(Instruction::Syscall),
            [0x0F, 0xA2] => Some(Instruction::Cpuid),
            _ => None,
        }
    }
}

/// Whole instructions that give way to the jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// So many bytes before the one that was looked for, which stays.
    Before(usize),
    /// `xor eax, eax` and one more before it, which stays.
    ZeroBefore,
    /// So many bytes after it, and itself.
    Behind(usize),
}

impl Moved {
    fn bytes(self) -> usize {
        match self {
            Moved::Before(bytes) | Moved::Behind(bytes) => bytes,
            Moved::ZeroBefore => ZERO_BYTES + ARGUMENT_BYTES,
        }
    }
}

/// A place within a segment's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Site {
    pub(super) instruction: Instruction,
    /// Where that begins.
    pub(super) at: usize,
    pub(super) moved: Moved,
}

/// The first sites in a program's code, at most `most`.
pub(super) fn find(code: &[u8], most: usize) -> Vec<Site> {
    let mut found = Vec::new();
    let mut free_from = 0;
    let pairs = code.windows(INSTRUCTION_BYTES).enumerate();
    for (at, instruction) in pairs.filter_map(|(at, two)| Some((at, Instruction::of(two)?))) {
        if found.len() == most {
            break;
        }
        if at < free_from {
            continue;
        }
        let (code, rest) = (&code[..at], &code[at + INSTRUCTION_BYTES..]);
        let (before, behind) = match instruction {
            Instruction::Syscall => (before_syscall(code), behind_syscall(code, rest)),
            Instruction::Cpuid => (before_cpuid(code), behind_cpuid(code, rest)),
        };
        let starts_free = |moved: &Moved| at - moved.bytes() >= free_from;
        let is_alone = |_: &usize| !ends_in_a_jump(code);
        let behind = behind.filter(is_alone).map(Moved::Behind);
        let Some(moved) = before.filter(starts_free).or(behind) else {
            continue;
        };
        free_from = at + INSTRUCTION_BYTES;
        if let Moved::Behind(bytes) = moved {
            free_from += bytes;
        }
        found.push(Site {
            instruction,
            at,
            moved,
        });
    }
    found
}

/// A comparison of the result; or what musl does, `mov rdi, rax; call __syscall_ret`, where a `mov` of an
/// argument comes before.
fn behind_syscall(code: &[u8], rest: &[u8]) -> Option<usize> {
    if let Some(known) = BEHIND.iter().find(|known| rest.starts_with(known)) {
        return Some(known.len());
    }
    match (code, rest) {
        ([.., 0x48..=0x4F, 0x89, 0xC0..=0xFF], [0x48, 0x89, 0xC7, 0xE8, ..]) => Some(3),
        _ => None,
    }
}

fn before_syscall(code: &[u8]) -> Option<Moved> {
    if let Some((_, moved)) = BEFORE.iter().find(|(known, _)| code.ends_with(known)) {
        return Some(Moved::Before(*moved));
    }
    if let Some((rest, [0x31, 0xC0, argument @ ..])) = code.split_last_chunk::<JUMP_BYTES>()
        && only_sets_arguments(argument)
        && !matches!(rest, [] | [.., 0x0F | 0x40..=0x4F | 0x66])
        && !is_in_a_wide_number(rest)
    {
        return Some(Moved::ZeroBefore);
    }
    number_before(code, |number| number < NUMBERS)
}

/// A class of leaves, and one of its first.
fn before_cpuid(code: &[u8]) -> Option<Moved> {
    number_before(code, |leaf| leaf & 0x0FFF_FFFF < LEAVES)
}

/// All from a `mov eax, NUMBER` to the end of `code`, if only arguments are set between.
fn number_before(code: &[u8], is_fit: impl Fn(u32) -> bool) -> Option<Moved> {
    (0..=MOST_ARGUMENT_BYTES).find_map(|arguments| {
        let (code, arguments) = code.split_at_checked(code.len().checked_sub(arguments)?)?;
        let (rest, &[MOV_EAX, ref number @ ..]) = code.split_last_chunk::<JUMP_BYTES>()? else {
            return None;
        };
        let fits = is_fit(u32::from_le_bytes(*number))
            && only_sets_arguments(arguments)
            && !ends_in_a_longer_one(rest);
        fits.then_some(Moved::Before(JUMP_BYTES + arguments.len()))
    })
}

/// Whether `code` is whole instructions that do the same at any place and leave eax alone: of the forms that
/// compilers choose to set arguments, the commonest (Intel SDM volume 2, 2.1 and 2.2.1).
fn only_sets_arguments(mut code: &[u8]) -> bool {
    while !code.is_empty() {
        let (rex, rest) = match code {
            [rex @ 0x40..=0x4F, rest @ ..] => (*rex, rest),
            _ => (0, code),
        };
        let wide = rex & 8 != 0;
        // The register in the middle of a ModRM byte, and the one at its end; where it is to be one.
        let middle = |modrm: u8| modrm >> 3 & 7 | (rex & 4) << 1;
        let end = |modrm: u8| modrm & 7 | (rex & 1) << 3;
        let register = |modrm: u8| modrm & 0xC0 == 0xC0;
        const EAX: u8 = 0;
        let bytes = match *rest {
            // xor r32, r32 of one register with itself
            [0x31, modrm, ..] if register(modrm) && middle(modrm) == end(modrm) => {
                (end(modrm) != EAX).then_some(2)
            }
            // mov r, r
            [0x89, modrm, ..] if register(modrm) => (end(modrm) != EAX).then_some(2),
            // movsxd r64, r32
            [0x63, modrm, ..] if register(modrm) && wide => (middle(modrm) != EAX).then_some(2),
            // mov r32, imm32
            [opcode @ 0xB8..=0xBF, _, _, _, _, ..] if !wide => (end(opcode) != EAX).then_some(5),
            // mov r64, imm32
            [0xC7, modrm @ 0xC0..=0xC7, _, _, _, _, ..] => (end(modrm) != EAX).then_some(6),
            // mov and lea r, [rsp + disp8]
            [0x8B | 0x8D, modrm, 0x24, _, ..] if modrm & 0xC7 == 0x44 => {
                (middle(modrm) != EAX && rex & 3 == 0).then_some(4)
            }
            // mov and lea r, [rsp + disp32]
            [0x8B | 0x8D, modrm, 0x24, _, _, _, _, ..] if modrm & 0xC7 == 0x84 => {
                (middle(modrm) != EAX && rex & 3 == 0).then_some(7)
            }
            _ => None,
        };
        match bytes {
            Some(bytes) => code = &rest[bytes..],
            None => return false,
        }
    }
    true
}

/// rbx given back by the register in which it was kept, as compilers do where rbx is not the program's to
/// change; or the results put where Go's assembler functions have them.
fn behind_cpuid(code: &[u8], rest: &[u8]) -> Option<usize> {
    let kept_in = code.last_chunk().and_then(keeps_rbx_in);
    let given_back_by = rest.first_chunk().and_then(exchanges_rbx_with);
    if kept_in.is_some() && kept_in == given_back_by {
        return Some(3);
    }
    // mov ecx, [rsp + n]; mov [rsp + n], eax
    match (code, rest) {
        ([.., 0x8B, 0x4C, 0x24, _], [0x89, 0x44, 0x24, _, ..]) => Some(4),
        _ => None,
    }
}

/// The number of the register, for `mov r64, rbx` or `xchg`.
fn keeps_rbx_in(code: &[u8; 3]) -> Option<u8> {
    match *code {
        [rex @ (0x48 | 0x49), 0x89, modrm @ 0xD8..=0xDF] => Some(modrm & 7 | (rex & 1) << 3),
        _ => exchanges_rbx_with(code),
    }
}

/// The same for `xchg`, which is written in two ways.
fn exchanges_rbx_with(code: &[u8; 3]) -> Option<u8> {
    match *code {
        [rex @ (0x48 | 0x49), 0x87, modrm @ 0xD8..=0xDF] => Some(modrm & 7 | (rex & 1) << 3),
        [rex @ (0x48 | 0x4C), 0x87, modrm] if modrm & 0xC7 == 0xC3 => {
            Some(modrm >> 3 & 7 | (rex & 4) << 1)
        }
        _ => None,
    }
}

/// Whether what follows `code` is in the immediate of a `mov r64, imm64`: instructions that a program is to write
/// somewhere are found there.
fn is_in_a_wide_number(code: &[u8]) -> bool {
    matches!(
        code,
        [.., 0x48..=0x4F, 0xB8..=0xBF] | [.., 0x48..=0x4F, 0xB8..=0xBF, _]
    )
}

/// Whether what follows `code` may be the end of an instruction that begins in it, and not a
/// `mov eax, NUMBER` (Intel SDM volume 2, chapter 2). Such an instruction has 0xB8 with four bytes behind it, of
/// which the middle ones are zero, as
///   - the opcode, with a prefix: REX makes another register of it, 0x66 another size;
///   - an 8-bit displacement with a 32-bit immediate behind it;
///   - a SIB byte with a 32-bit displacement behind it, loading eax from a table;
///   - a ModRM byte with a 32-bit displacement from rax, or with REX.B or a VEX or EVEX prefix from r8. From
///     rax, that is a pointer then and no number of a system call or of a leaf, unless an immediate follows:
///     then there is no call at all.
///
/// A conditional move between registers (0F 4x and a ModRM byte) is not taken for REX.B and an opcode behind
/// something that ends in 0F. Rather too many are taken for such ones: they are rewritten behind the call, or not at all.
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
    let conditional_move = third == 0x0F && is_rex(second) && first >= 0xC0;
    let from_r8 = is_rex(second) && second & 1 != 0 && !conditional_move;
    let long_opcode = second == 0x0F || third == 0x0F && matches!(second, 0x38 | 0x3A);
    let vector = third == 0xC5 || fourth == 0xC4 || fifth == 0x62;
    first == 0x66
        || is_in_a_wide_number(code)
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

    #[test]
    fn what_may_mean_something_else_is_not_found() {
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
            vec![0x0F, 0xA2],
            vec![0x0F],
            // mov eax, no leaf; cpuid
            vec![0x90, 0x90, 0x90, 0x90, 0x90, 0xB8, 0, 1, 0, 0, 0x0F, 0xA2],
            // mov r8d, 7; xor ecx, ecx; cpuid
            vec![
                0x90, 0x90, 0x90, 0x90, 0x41, 0xB8, 7, 0, 0, 0, 0x31, 0xC9, 0x0F, 0xA2,
            ],
            // mov eax, 7; xor eax, eax; cpuid
            vec![
                0x90, 0x90, 0x90, 0x90, 0x90, 0xB8, 7, 0, 0, 0, 0x31, 0xC0, 0x0F, 0xA2,
            ],
            // mov rsi, rbx; cpuid; xchg rdi, rbx
            vec![0x48, 0x89, 0xDE, 0x0F, 0xA2, 0x48, 0x87, 0xDF],
            // mov esi, ebx; cpuid; xchg rsi, rbx
            vec![0x90, 0x89, 0xDE, 0x0F, 0xA2, 0x48, 0x87, 0xDE],
            // mov r14, rbx; cpuid; xchg rsi, rbx
            vec![0x49, 0x89, 0xDE, 0x0F, 0xA2, 0x48, 0x87, 0xDE],
            // mov rsi, rcx; cpuid; xchg rsi, rbx
            vec![0x48, 0x89, 0xCE, 0x0F, 0xA2, 0x48, 0x87, 0xDE],
            // mov rax, IMMEDIATE, which is mov eax, 39; syscall; ret or nop; mov eax, 39; syscall
            vec![
                0x90, 0x90, 0x90, 0x48, 0xB8, 0xB8, 0x27, 0, 0, 0, 0x0F, 0x05, 0xC3,
            ],
            vec![
                0x90, 0x90, 0x90, 0x49, 0xBF, 0x90, 0xB8, 0x27, 0, 0, 0, 0x0F, 0x05,
            ],
            // mov rcx, IMMEDIATE, which is xor eax, eax; mov rsi, r9; syscall; ret
            vec![
                0x90, 0x90, 0x90, 0x48, 0xB9, 0x31, 0xC0, 0x4C, 0x89, 0xCE, 0x0F, 0x05, 0xC3,
            ],
            vec![],
        ];
        for code in cases {
            assert_eq!(find(&code, usize::MAX), [], "{code:x?}");
        }
    }

    /// The instructions as `as` writes them.
    const ARGUMENTS: [&[u8]; 12] = [
        &[0x31, 0xD2],                               // xor edx, edx
        &[0x45, 0x31, 0xD2],                         // xor r10d, r10d
        &[0x89, 0xF7],                               // mov edi, esi
        &[0x4C, 0x89, 0xCE],                         // mov rsi, r9
        &[0x48, 0x63, 0xFE],                         // movsxd rdi, esi
        &[0xBE, 0x81, 0, 0, 0],                      // mov esi, 129
        &[0x41, 0xB8, 4, 0, 0, 0],                   // mov r8d, 4
        &[0x49, 0xC7, 0xC0, 0xFF, 0xFF, 0xFF, 0xFF], // mov r8, -1
        &[0x48, 0x8B, 0x74, 0x24, 0x10],             // mov rsi, [rsp + 16]
        &[0x48, 0x8D, 0x74, 0x24, 0x0C],             // lea rsi, [rsp + 12]
        &[0x48, 0x8D, 0xB4, 0x24, 0x40, 5, 0, 0],    // lea rsi, [rsp + 1344]
        &[0x49, 0x89, 0xC0],                         // mov r8, rax
    ];

    #[test]
    fn arguments_may_be_set_between_the_number_and_the_call() {
        for first in ARGUMENTS {
            for second in ARGUMENTS {
                let arguments = [first, second].concat();
                let number = [MOV_EAX, 0x3D, 0, 0, 0];
                let code = [&[0x90; 5][..], &number, &arguments, &[0x0F, 0x05]].concat();
                let site = Site {
                    instruction: Instruction::Syscall,
                    at: code.len() - 2,
                    moved: Moved::Before(code.len() - 7),
                };
                assert_eq!(find(&code, usize::MAX), [site], "{code:x?}");
            }
        }
    }

    #[test]
    fn a_conditional_move_may_be_before_the_number() {
        // cmovae rdx, rax; mov eax, 20; syscall
        let code = [
            0x90, 0x48, 0x0F, 0x43, 0xD0, MOV_EAX, 20, 0, 0, 0, 0x0F, 0x05,
        ];
        let site = Site {
            instruction: Instruction::Syscall,
            at: 10,
            moved: Moved::Before(JUMP_BYTES),
        };
        assert_eq!(find(&code, usize::MAX), [site]);
    }

    #[test]
    fn only_what_is_known_may_be_between_the_number_and_the_call() {
        let cases: [&[u8]; 17] = [
            &[0x31, 0xC0],                         // xor eax, eax
            &[0x31, 0xD6],                         // xor esi, edx
            &[0x89, 0xF0],                         // mov eax, esi
            &[0x48, 0x63, 0xC6],                   // movsxd rax, esi
            &[0x48, 0xC7, 0xC0, 1, 0, 0, 0],       // mov rax, 1
            &[0x48, 0x8B, 0x44, 0x24, 0x10],       // mov rax, [rsp + 16]
            &[0x48, 0x8D, 0x35, 0, 1, 0, 0],       // lea rsi, [rip + 256]
            &[0x48, 0x8B, 0x34, 0x24],             // mov rsi, [rsp]
            &[0x48, 0x8B, 0x77, 0x10],             // mov rsi, [rdi + 16]
            &[0x49, 0x8B, 0x74, 0x24, 0x10],       // mov rsi, [r12 + 16]
            &[0x48, 0xBE, 1, 0, 0, 0, 0, 0, 0, 0], // mov rsi, imm64
            &[0x66, 0xBE, 1, 0],                   // mov si, 1
            &[0x75, 0x02],                         // jne
            &[0xEB, 0x00],                         // jmp
            &[0x50],                               // push rax
            &[0x4C],                               // a prefix alone
            &[0xBE, 1, 0, 0],                      // cut short
        ];
        for known in ARGUMENTS {
            for other in cases {
                let arguments = [known, other].concat();
                let number = [MOV_EAX, 0x3D, 0, 0, 0];
                let code = [&[0x90; 5][..], &number, &arguments, &[0x0F, 0x05]].concat();
                assert_eq!(find(&code, usize::MAX), [], "{code:x?}");
            }
        }
        for before in [0x0F, 0x41, 0x66] {
            let code = [0x90, before, 0x31, 0xC0, 0x4C, 0x89, 0xCE, 0x0F, 0x05];
            assert_eq!(find(&code, usize::MAX), [], "{code:x?}");
        }
        let many = [0x31, 0xD2].repeat(MOST_ARGUMENT_BYTES / 2 + 1);
        let code = [
            &[0x90; 5][..],
            &[MOV_EAX, 0x3D, 0, 0, 0],
            &many,
            &[0x0F, 0x05],
        ]
        .concat();
        assert_eq!(find(&code, usize::MAX), []);
    }

    #[test]
    fn sites_side_by_side_do_not_touch_each_other() {
        let one = [0xB8, 0x27, 0, 0, 0, 0x0F, 0x05];
        let compare = [&[0x0F, 0x05][..], BEHIND[0]].concat();
        let given_back = [0x0F, 0xA2, 0x48, 0x87, 0xDE];
        let cpuid = [&[0x48, 0x89, 0xDE][..], &given_back].concat();
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
            &cpuid,
            &cpuid,
        ]
        .concat();
        let found = find(&code, usize::MAX);
        assert_eq!(found.len(), 7, "{found:?}");
        let mut until = 0;
        for site in found {
            let end = site.at + INSTRUCTION_BYTES;
            let (start, end) = match site.moved {
                Moved::Before(_) | Moved::ZeroBefore => (site.at - site.moved.bytes(), end),
                Moved::Behind(bytes) => (site.at, end + bytes),
            };
            assert!(start >= until);
            until = end;
        }
        assert_eq!(find(&code, 3).len(), 3);
    }
}
