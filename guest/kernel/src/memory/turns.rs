//! Memory that a program wants to write and to execute, as compilers at run time do.
//!
//! No page is ever both. Where both were asked for, a page can be written to until the program executes something
//! in it, and executed until it, or the library OS for it, writes to it; each change is a fault. Only an instruction
//! that writes to the page that it is in does not get on.

use holm_hostcall::PAGE_BYTES;

use super::Memory;
use super::machine::{Machine, Protection, Touch};
use super::sparse::Refusal;
use super::tables::is_sparse;
use crate::errno::Errno;

impl Memory {
    /// Whether the page at `addr` is one of those.
    pub fn takes_turns(&self, addr: u64) -> bool {
        let page = addr & !(PAGE_BYTES - 1);
        self.in_turns.covers(page, page.saturating_add(PAGE_BYTES))
    }

    /// Gives the page at `addr` the turn that it needs.
    pub(super) fn turn(
        &mut self,
        addr: u64,
        touch: Touch,
        machine: &mut impl Machine,
    ) -> Result<(), Refusal> {
        if is_sparse(addr) {
            // What is backed can be written to at first.
            self.back_sparse(addr, Touch::Write, machine)?;
        }
        let page = addr & !(PAGE_BYTES - 1);
        match touch {
            Touch::Read => {}
            Touch::Write => self.protect_pages(page, page + PAGE_BYTES, Protection::Write, machine),
            Touch::Fetch => {
                self.protect_pages(page, page + PAGE_BYTES, Protection::Execute, machine);
            }
        }
        Ok(())
    }

    /// All of a range can be written to again, and will never take turns.
    pub(super) fn end_turns(
        &mut self,
        start: u64,
        end: u64,
        machine: &mut impl Machine,
    ) -> Result<(), Errno> {
        self.make_writable(start, end, machine);
        self.in_turns.remove(start, end)
    }

    /// What of a range takes turns can be written to for now.
    pub(super) fn make_writable(&mut self, start: u64, end: u64, machine: &mut impl Machine) {
        for (from, to) in self.in_turns.get() {
            let (from, to) = (from.max(start), to.min(end));
            if from < to {
                self.protect_pages(from, to, Protection::Write, machine);
            }
        }
    }

    /// The page tables alone.
    fn protect_pages(
        &self,
        start: u64,
        end: u64,
        protection: Protection,
        machine: &mut impl Machine,
    ) {
        if is_sparse(start) {
            self.sparse.protect_pages(start, end, protection, machine);
        } else {
            let pages = (end - start) / PAGE_BYTES;
            machine.protect(self.arena.slot(start), pages, protection);
        }
    }
}
