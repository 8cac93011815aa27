//! Which pages of a copy-on-write mapping are no longer the file's: those that the guest, or the
//! host on its behalf, has written since it was mapped.
//!
//! The kernel's page map knows: such a page is present (or swapped out) and not of a file. From Linux
//! 6.7 on one ioctl lists them; before that the map is read, eight bytes a page.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::VmmError;
use crate::memory::GuestMemory;

const PAGE: u64 = holm_hostcall::PAGE_BYTES;
const OPERATION: &str = "reading the page map of the process";

/// A run of written pages: guest addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Written {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region` of linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
/// The page that is all there is of what was read and never written.
const PAGE_IS_ZERO: u64 = 1 << 5;
/// _IOWR('f', 16, struct pm_scan_arg)
const PAGEMAP_SCAN: libc::c_ulong = 0xC060_6610;

fn page_map() -> Result<&'static File, VmmError> {
    static FILE: OnceLock<io::Result<File>> = OnceLock::new();
    FILE.get_or_init(|| File::open("/proc/self/pagemap"))
        .as_ref()
        .map_err(|error| VmmError::Memory {
            operation: OPERATION,
            error: io::Error::from(error.kind()),
        })
}

/// Whether this kernel has PAGEMAP_SCAN; found out at the first use.
static SCAN_MISSING: OnceLock<()> = OnceLock::new();

/// The written pages of `memory`, in rising order, into `to`.
pub(crate) fn written_pages(memory: &GuestMemory, to: &mut Vec<Written>) -> Result<(), VmmError> {
    to.clear();
    let file = page_map()?;
    if SCAN_MISSING.get().is_none() {
        match scan(file, memory, to) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                // An older kernel. Setting twice is the same.
                let _ = SCAN_MISSING.set(());
                to.clear();
            }
            other => return other.map_err(VmmError::memory(OPERATION)),
        }
    }
    read_all(file, memory, to).map_err(VmmError::memory(OPERATION))
}

fn scan(file: &File, memory: &GuestMemory, to: &mut Vec<Written>) -> io::Result<()> {
    const REGIONS: usize = 256;
    let base = memory.host_addr();
    let end = base + memory.bytes();
    let mut regions = [PageRegion::default(); REGIONS];
    let mut start = base;
    while start < end {
        let mut argument = ScanArg {
            size: size_of::<ScanArg>() as u64,
            start,
            end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: REGIONS as u64,
            category_inverted: PAGE_IS_FILE | PAGE_IS_ZERO,
            category_mask: PAGE_IS_FILE | PAGE_IS_ZERO,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PRESENT,
            ..ScanArg::default()
        };
        // SAFETY: the argument and the array behind `vec` live until the call returns, and their
        // sizes are given; the range is a mapping of ours, of which only the page tables are read.
        let found = unsafe { libc::ioctl(file.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
        let Ok(found) = usize::try_from(found) else {
            return Err(io::Error::last_os_error());
        };
        for region in regions.iter().take(found) {
            push(
                to,
                Written {
                    start: region.start - base,
                    end: region.end - base,
                },
            );
        }
        if argument.walk_end <= start {
            break;
        }
        start = argument.walk_end;
    }
    Ok(())
}

fn read_all(file: &File, memory: &GuestMemory, to: &mut Vec<Written>) -> io::Result<()> {
    const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;
    const OF_FILE: u64 = 1 << 61;
    let first = memory.host_addr() / PAGE;
    let pages = memory.bytes() / PAGE;
    let mut buffer = [0u8; 4096];
    let mut page = 0;
    while page < pages {
        let part = ((pages - page) * 8).min(buffer.len() as u64) as usize;
        file.read_exact_at(&mut buffer[..part], (first + page) * 8)?;
        for entry in buffer[..part].as_chunks().0 {
            let entry = u64::from_le_bytes(*entry);
            if entry & PRESENT_OR_SWAPPED != 0 && entry & OF_FILE == 0 {
                push(
                    to,
                    Written {
                        start: page * PAGE,
                        end: (page + 1) * PAGE,
                    },
                );
            }
            page += 1;
        }
    }
    Ok(())
}

/// Pages in rising order as runs.
pub(crate) fn runs(pages: impl Iterator<Item = u64>) -> Vec<Written> {
    let mut runs = Vec::new();
    for start in pages {
        push(
            &mut runs,
            Written {
                start,
                end: start + PAGE,
            },
        );
    }
    runs
}

fn push(to: &mut Vec<Written>, next: Written) {
    match to.last_mut() {
        Some(last) if last.end == next.start => last.end = next.end,
        _ => to.push(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Sharing, anonymous_file};

    #[test]
    fn both_ways_find_exactly_the_pages_that_were_written() {
        let file = anonymous_file(64 * PAGE).unwrap();
        let memory = GuestMemory::map(&file, 0, 64 * PAGE, Sharing::CopyOnWrite).unwrap();
        for page in [3, 4, 9, 63] {
            memory.write(page * PAGE + 5, b"x").unwrap();
        }
        let mut byte = [0];
        memory.read(20 * PAGE, &mut byte).unwrap();
        let expected = [(3, 5), (9, 10), (63, 64)].map(|(start, end)| Written {
            start: start * PAGE,
            end: end * PAGE,
        });
        let mut found = Vec::new();
        read_all(page_map().unwrap(), &memory, &mut found).unwrap();
        assert_eq!(found, expected);
        written_pages(&memory, &mut found).unwrap();
        assert_eq!(found, expected);
    }
}
