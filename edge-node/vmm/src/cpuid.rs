//! CPUID as guests see it: what the vCPU is given, what identifies it, and the table by which the library OS
//! answers without leaving the guest.
//!
//! The table is a part of every snapshot. It holds just what the digest covers, so that an instance never
//! finds another answer there than the vCPU that it runs on would give.

use holm_hostcall::{CPUID_ADDR, CpuidTable, MAX_CPUID_ENTRIES};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use sha2::{Digest as _, Sha256};

use crate::VmmError;
use crate::memory::GuestMemory;

/// Makes CPUID that of the one vCPU of a guest, where KVM tells of the core that it was asked on: the number
/// of the (x2)APIC, and how many there are (Intel SDM volume 2, CPUID leaves 1, 0xB and 0x1F).
pub(crate) fn make_own(cpuid: &mut CpuId) {
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => entry.ebx = entry.ebx & 0xFFFF | 1 << 16,
            0xB | 0x1F => entry.edx = 0,
            _ => {}
        }
    }
}

/// Leaf 0xD, subleaf 0: the extended state that this KVM gives (APM volume 3, E.3.8).
pub(crate) fn supported_xcr0(cpuid: &CpuId) -> u64 {
    let leaf = cpuid
        .as_slice()
        .iter()
        .find(|entry| entry.function == 0xD && entry.index == 0);
    // Without the leaf there is no XSAVE, and x87 and SSE alone.
    leaf.map_or(0b11, |entry| {
        u64::from(entry.eax) | u64::from(entry.edx) << 32
    })
}

/// Whether an entry tells of the moment or of the core it was asked on (clock frequencies of the host, AMD's
/// core ids, KVM's own), or has a state.
fn is_volatile(entry: &kvm_cpuid_entry2) -> bool {
    matches!(entry.function, 0x15 | 0x16 | 0x8000_001E)
        || entry.function & 0xF000_0000 == 0x4000_0000
        || entry.flags & !KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0
}

/// Identifies the CPU as a guest sees it, from what its vCPU answers: on PVM that is not all from what it was
/// given.
pub(crate) fn digest(answers: &CpuId, xcr0: u64) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(xcr0.to_le_bytes());
    for entry in answers
        .as_slice()
        .iter()
        .filter(|entry| !is_volatile(entry))
    {
        for word in [
            entry.function,
            entry.index,
            entry.flags,
            entry.eax,
            entry.ebx,
            entry.ecx,
            entry.edx,
        ] {
            hash.update(word.to_le_bytes());
        }
    }
    hash.finalize().into()
}

/// The words of the table from the entries that a vCPU answers by: KVM takes the first that fits (its
/// `kvm_cpuid`), and so does the library OS. What is not there, or has no room, the instruction answers.
fn table(answers: &CpuId) -> Vec<u32> {
    let entries = answers
        .as_slice()
        .iter()
        .filter(|entry| !is_volatile(entry));
    let zeroes = [0, 0x8000_0000]
        .into_iter()
        .flat_map(|class| zeroes(answers, class));
    let mut words = vec![0; 8];
    for entry in entries.copied().chain(zeroes).take(MAX_CPUID_ENTRIES) {
        words[0] += 1;
        let by_subleaf = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        words.extend_from_slice(&[entry.function, entry.index, by_subleaf, 0]);
        words.extend_from_slice(&[entry.eax, entry.ebx, entry.ecx, entry.edx]);
    }
    words
}

/// What there is no entry for has zeroes for an answer, as long as the leaf is not beyond the highest of its
/// class. Not so the two leaves of the topology.
fn zeroes(answers: &CpuId, class: u32) -> impl Iterator<Item = kvm_cpuid_entry2> {
    let entries = answers.as_slice();
    let highest = entries.iter().find(|entry| entry.function == class);
    let leaves = highest.map(|entry| class..=entry.eax.min(class | 0xFF));
    leaves.into_iter().flatten().filter_map(move |function| {
        let zero = kvm_cpuid_entry2 {
            function,
            ..Default::default()
        };
        let whole = |entry: &kvm_cpuid_entry2| {
            entry.function == function && entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0
        };
        let told =
            is_volatile(&zero) || matches!(function, 0xB | 0x1F) || entries.iter().any(whole);
        (!told).then_some(zero)
    })
}

/// Writes the table into the memory of a guest that has not run.
pub(crate) fn write_table(memory: &GuestMemory, answers: &CpuId) -> Result<(), VmmError> {
    let words = table(answers);
    debug_assert!(words.len() * 4 <= size_of::<CpuidTable>());
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory.write(CPUID_ADDR, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> CpuId {
        let entry = |function, index, flags, word| kvm_cpuid_entry2 {
            function,
            index,
            flags,
            eax: word,
            ebx: word + 1,
            ecx: word + 2,
            edx: word + 3,
            ..Default::default()
        };
        let indexed = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        CpuId::from_entries(&[
            entry(0, 0, 0, 0x10),
            entry(1, 0, 0, 0x20),
            entry(0xD, 0, indexed, 0x30),
            entry(0xD, 1, indexed, 0x60),
            entry(0x12, 0, indexed, 0x70),
            entry(0x15, 0, 0, 0x40),
            entry(0x4000_0001, 0, 0, 0x50),
        ])
        .unwrap()
    }

    #[test]
    fn a_snapshot_fits_nowhere_where_an_answer_of_its_table_would_be_another() {
        let (mut cpuid, before) = (some(), some());
        for index in 0..before.as_slice().len() {
            for change in [
                (|entry| &mut entry.function) as fn(&mut kvm_cpuid_entry2) -> &mut u32,
                |entry| &mut entry.index,
                |entry| &mut entry.flags,
                |entry| &mut entry.eax,
                |entry| &mut entry.ebx,
                |entry| &mut entry.ecx,
                |entry| &mut entry.edx,
            ] {
                *change(&mut cpuid.as_mut_slice()[index]) ^= 1;
                let differs = table(&cpuid) != table(&before);
                let unfit = digest(&cpuid, 3) != digest(&before, 3);
                assert!(unfit || !differs, "{:x?}", cpuid.as_slice()[index]);
                *change(&mut cpuid.as_mut_slice()[index]) ^= 1;
            }
        }
        assert_ne!(digest(&before, 3), digest(&before, 7));
    }

    #[test]
    fn the_table_has_the_answers_that_are_the_same_at_any_moment() {
        let words = table(&some());
        let (head, entries) = words.split_at(8);
        let entries: Vec<&[u32]> = entries.chunks_exact(8).collect();
        assert_eq!(head[0] as usize, entries.len());
        assert!(entries.contains(&&[0xD, 1, 1, 0, 0x60, 0x61, 0x62, 0x63][..]));
        assert!(entries.iter().all(|entry| entry[0] <= 0x12));
        // Zeroes within the range, which ends at leaf 0x10, but for the topology.
        for leaf in 0..0x20 {
            let zero = [leaf, 0, 0, 0, 0, 0, 0, 0];
            let expected = (2..=0x10).contains(&leaf) && leaf != 0xB;
            assert_eq!(entries.contains(&&zero[..]), expected, "{leaf:#x}");
        }
    }

    #[test]
    fn a_guest_has_one_cpu_whatever_core_was_asked() {
        let mut cpuid = some();
        make_own(&mut cpuid);
        assert_eq!(cpuid.as_slice()[1].ebx, 0x1_0021);
    }
}
