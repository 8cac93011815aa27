//! CPUID that the host has made a jump (see the VMM's `rewrite`): it leaves the guest, which costs some 25 µs
//! on PVM, and runtimes ask a dozen leaves after the restore or at the start. The host has written what the
//! vCPU answers into a table; what is not in it is asked by the instruction.

use core::arch::x86_64::{__cpuid_count, CpuidResult};

use holm_hostcall::{CPUID_ADDR, CpuidEntry, CpuidTable, MAX_CPUID_ENTRIES, Registers};

use crate::{signals, threads};

/// Answers as the instruction would: in the lower halves of four registers, the upper ones zero (Intel SDM
/// volume 2, CPUID). All others, flags and vectors stay as they are.
pub extern "C" fn handle(frame: &mut Registers) {
    let (leaf, subleaf) = (frame.rax as u32, frame.rcx as u32);
    let answer = find(table(), leaf, subleaf).unwrap_or_else(|| __cpuid_count(leaf, subleaf));
    frame.rax = u64::from(answer.eax);
    frame.rbx = u64::from(answer.ebx);
    frame.rcx = u64::from(answer.ecx);
    frame.rdx = u64::from(answer.edx);
    threads::preempt_if_missed();
    signals::deliver(frame, None);
}

/// Empty under another host than Holm's.
fn table() -> &'static [CpuidEntry] {
    let table = core::ptr::with_exposed_provenance::<CpuidTable>(CPUID_ADDR as usize);
    // SAFETY: the host maps the table readable at this fixed address; it is written before the vCPU first
    // runs and never again, and holds plain numbers.
    let table = unsafe { &*table };
    &table.entries[..(table.count as usize).min(MAX_CPUID_ENTRIES)]
}

fn find(table: &[CpuidEntry], leaf: u32, subleaf: u32) -> Option<CpuidResult> {
    let entry = table
        .iter()
        .find(|entry| entry.leaf == leaf && (entry.by_subleaf == 0 || entry.subleaf == subleaf))?;
    Some(CpuidResult {
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_found_by_its_subleaf_where_that_matters_and_else_by_itself() {
        let entry = |leaf, subleaf, by_subleaf, eax| CpuidEntry {
            leaf,
            subleaf,
            by_subleaf,
            eax,
            ..Default::default()
        };
        let table = [entry(1, 0, 0, 10), entry(4, 0, 1, 40), entry(4, 1, 1, 41)];
        let eax = |leaf, subleaf| find(&table, leaf, subleaf).map(|answer| answer.eax);
        assert_eq!(eax(1, 0), Some(10));
        assert_eq!(eax(1, 99), Some(10));
        assert_eq!(eax(4, 0), Some(40));
        assert_eq!(eax(4, 1), Some(41));
        assert_eq!(eax(4, 2), None);
        assert_eq!(eax(0, 0), None);
    }
}
