//! Room on the disk: a reserve, so that a journal on a full disk can still be emptied, and a limit.
//!
//! To hand a batch over and to delete it take room themselves, since SQLite writes what it changes beside the database
//! first. So a file of [`JOURNAL_RESERVE_BYTES`] is kept for that. It is removed when the disk is full, and while it is
//! not there nothing is added to the journal and no request is taken: what is deleted makes room for it first.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use crate::limits::{JOURNAL_LOG_BYTES, JOURNAL_RESERVE_BYTES};
use crate::meter::spill;

/// The file that keeps room.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    there: bool,
}

impl Reserve {
    /// That of the journal in `dir`, as it is.
    pub(super) fn open(dir: &Path) -> Self {
        let path = dir.join("journal.reserve");
        // One that is shorter was being made when the node was killed.
        let there = fs::metadata(&path).is_ok_and(|file| file.len() == JOURNAL_RESERVE_BYTES);
        Reserve { path, there }
    }

    pub(super) fn is_there(&self) -> bool {
        self.there
    }

    /// Makes it if it is not there, and if there is room for SQLite's log beside it; whether it is.
    pub(super) fn make(&mut self) -> bool {
        if !self.there {
            let made = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .open(&self.path)
                .and_then(|file| {
                    spill::reserve(&file, 0, JOURNAL_RESERVE_BYTES + JOURNAL_LOG_BYTES)?;
                    file.set_len(JOURNAL_RESERVE_BYTES)?;
                    file.sync_all()
                });
            self.there = made.is_ok();
            if !self.there {
                // A part of it would be in the way of what makes room.
                drop(fs::remove_file(&self.path));
            }
        }
        self.there
    }

    /// Lets its room be used; whether there was any.
    pub(super) fn give_up(&mut self) -> bool {
        let gave = self.there && fs::remove_file(&self.path).is_ok();
        self.there &= !gave;
        gave
    }
}

/// Half of the file system that `dir` is on: what a journal may take if the operator does not say.
pub(super) fn half_of_disk(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(u64::MAX, |disk| {
        disk.f_blocks.saturating_mul(disk.f_frsize) / 2
    })
}

/// Whether what is free beside the reserve may not do for the spill and SQLite's log.
pub(super) fn is_nearly_full(dir: &Path) -> bool {
    rustix::fs::statvfs(dir)
        .is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < JOURNAL_RESERVE_BYTES)
}
