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

/// Identifies the CPU as a guest sees it. What follows CR4 and XCR0 does so in every guest.
pub(crate) fn digest(cpuid: &CpuId, xcr0: u64) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(xcr0.to_le_bytes());
    for entry in cpuid.as_slice().iter().filter(|entry| !is_volatile(entry)) {
        // Leaf 1 ECX bit 27 follows CR4.
        let ecx = match entry.function {
            1 => entry.ecx & !(1 << 27),
            _ => entry.ecx,
        };
        let (index, flags) = (entry.index, entry.flags);
        for word in [
            entry.function,
            index,
            flags,
            entry.eax,
            entry.ebx,
            ecx,
            entry.edx,
        ] {
            hash.update(word.to_le_bytes());
        }
    }
    hash.finalize().into()
}

/// The words of the table from the entries that a vCPU answers by: KVM takes the first that fits (its
/// `kvm_cpuid`), and so does the library OS. What is not there, or has no room, the instruction answers.
fn table(cpuid: &CpuId) -> Vec<u32> {
    let entries = cpuid.as_slice().iter().filter(|entry| !is_volatile(entry));
    let others = entries
        .clone()
        .filter(|entry| is_zero_elsewhere(cpuid, entry))
        .map(|entry| kvm_cpuid_entry2 {
            function: entry.function,
            ..Default::default()
        });
    let mut words = vec![0; 8];
    for entry in entries.copied().chain(others).take(MAX_CPUID_ENTRIES) {
        words[0] += 1;
        let by_subleaf = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        words.extend_from_slice(&[entry.function, entry.index, by_subleaf, 0]);
        words.extend_from_slice(&[entry.eax, entry.ebx, entry.ecx, entry.edx]);
    }
    words
}

/// Whether an entry is that of subleaf 0 of a leaf whose subleaves that are not there have zeroes for an
/// answer: all that have subleaves and are within the range of their class, but for the two of the topology.
fn is_zero_elsewhere(cpuid: &CpuId, entry: &kvm_cpuid_entry2) -> bool {
    let class = entry.function & 0x8000_0000;
    let mut leaves = cpuid.as_slice().iter();
    let most = leaves.find(|entry| entry.function == class);
    entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0
        && entry.index == 0
        && !matches!(entry.function, 0xB | 0x1F)
        && most.is_some_and(|most| entry.function <= most.eax)
}

/// Writes the table into the memory of a guest that has not run.
pub(crate) fn write_table(memory: &GuestMemory, cpuid: &CpuId) -> Result<(), VmmError> {
    let words = table(cpuid);
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
        let entries: Vec<&[u32]> = words.chunks_exact(8).collect();
        assert_eq!(entries[0][0], 6);
        assert_eq!(entries.len(), 7);
        assert_eq!(entries[4], [0xD, 1, 1, 0, 0x60, 0x61, 0x62, 0x63]);
        assert_eq!(entries[5][..3], [0x12, 0, 1]);
        // All other subleaves of leaf 0xD; leaf 0x12 is out of range.
        assert_eq!(entries[6], [0xD, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_guest_has_one_cpu_whatever_core_was_asked() {
        let mut cpuid = some();
        make_own(&mut cpuid);
        assert_eq!(cpuid.as_slice()[1].ebx, 0x1_0021);
    }
}
