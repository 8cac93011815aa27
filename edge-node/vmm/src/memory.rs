//! A guest's memory, as one mapping of the host. All access is by checked copy; there is never a
//! reference into it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, FromRawFd as _};

use vm_memory::{Bytes as _, MmapRegion, VolatileMemory as _, VolatileSlice};

use crate::VmmError;

/// How a mapping relates to the file behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Writes go to the file: for the boot that makes a snapshot.
    Shared,
    /// Writes stay here: for instances.
    CopyOnWrite,
    /// No writes: for the pristine pages that a reset copies from.
    ReadOnly,
}

impl Sharing {
    fn flags(self) -> libc::c_int {
        let sharing = match self {
            Sharing::Shared | Sharing::ReadOnly => libc::MAP_SHARED,
            Sharing::CopyOnWrite => libc::MAP_PRIVATE,
        };
        sharing | libc::MAP_NORESERVE
    }

    fn protection(self) -> libc::c_int {
        match self {
            Sharing::Shared | Sharing::CopyOnWrite => libc::PROT_READ | libc::PROT_WRITE,
            Sharing::ReadOnly => libc::PROT_READ,
        }
    }
}

/// The guest's memory from address 0 on.
#[derive(Debug)]
pub(crate) struct GuestMemory {
    region: MmapRegion,
    /// Whether the addresses are still this mapping's.
    mapped: bool,
    /// What is there for reading alone and is never replaced: the library OS's code and constants, in an instance.
    fixed: Range<u64>,
    /// What an instance maps that has a file of its own.
    own_file: Option<Box<OwnFile>>,
}

/// A file of an instance's own, at its guest's addresses.
#[derive(Debug)]
struct OwnFile {
    file: File,
    /// All of it. What is written here the instance has where it has not written itself.
    all: GuestMemory,
    /// What of it the instance maps, copy-on-write, in rising order.
    parts: Vec<(u64, u64)>,
}

impl GuestMemory {
    /// Maps `bytes` bytes of `file` from `offset` on.
    pub(crate) fn map(
        file: &File,
        offset: u64,
        bytes: u64,
        sharing: Sharing,
    ) -> Result<Self, VmmError> {
        let bytes = usize::try_from(bytes).map_err(|_| too_large(MAPPING))?;
        let addr = map_file(std::ptr::null_mut(), file, offset, bytes, sharing)?;
        GuestMemory::own(addr, bytes, sharing)
    }

    /// Takes over a mapping that was just made.
    fn own(addr: *mut libc::c_void, bytes: usize, sharing: Sharing) -> Result<Self, VmmError> {
        let (flags, protection) = (sharing.flags(), sharing.protection());
        // SAFETY: the mapping is there, of that size, and only this value's drop takes it away.
        let region = unsafe { MmapRegion::build_raw(addr.cast(), bytes, protection, flags) };
        let region = region.map_err(|error| VmmError::Memory {
            operation: MAPPING,
            error: io::Error::other(error.to_string()),
        })?;
        Ok(GuestMemory {
            region,
            mapped: true,
            fixed: 0..0,
            own_file: None,
        })
    }

    /// An instance's memory: zeroes, which no file is behind, so that they can be large pages, and `fixed` with
    /// what a file holds at the same place.
    pub(crate) fn instance(
        bytes: u64,
        fixed: Range<u64>,
        of_fixed: &File,
    ) -> Result<Self, VmmError> {
        let bytes = usize::try_from(bytes).map_err(|_| too_large(MAPPING))?;
        let addr = map_zeroes(aligned_room(bytes)?, bytes)?;
        let mut memory = GuestMemory::own(addr, bytes, Sharing::CopyOnWrite)?;
        let place = memory.slice(fixed.start, (fixed.end - fixed.start) as usize)?;
        let at = place.ptr_guard_mut().as_ptr().cast();
        map_file(at, of_fixed, fixed.start, place.len(), Sharing::ReadOnly)?;
        memory.fixed = fixed;
        Ok(memory)
    }

    /// Has zeroes in place of what was, at the same addresses, but for what is fixed. After an error nothing is
    /// there any more.
    pub(crate) fn clear(&mut self) -> Result<(), VmmError> {
        // Linux may have taken away what was there when it fails; then the addresses are anybody's.
        self.mapped = false;
        for (start, end) in self.replaceable() {
            let at = self.host_addr() + start;
            map_zeroes(at as *mut libc::c_void, (end - start) as usize)?;
        }
        self.mapped = true;
        self.own_file = None;
        Ok(())
    }

    /// Maps `parts` from a file of the instance's own, where it does not do so yet: zeroes, until they are written
    /// by [`GuestMemory::own_file`].
    pub(crate) fn lay_own_file(&mut self, parts: &[(u64, u64)]) -> Result<(), VmmError> {
        let own = match self.own_file.take() {
            Some(own) => own,
            None => {
                let file = anonymous_file(self.bytes())?;
                let all = GuestMemory::map(&file, 0, self.bytes(), Sharing::Shared)?;
                let parts = Vec::new();
                Box::new(OwnFile { file, all, parts })
            }
        };
        let mut mapped = own.parts.clone();
        for &(start, end) in parts {
            let mut at = start;
            for &(from, to) in own.parts.iter().chain(&[(end, end)]) {
                let until = from.min(end);
                if at < until {
                    self.lay(&own.file, 0, [(at, until)].into_iter())?;
                    mapped.push((at, until));
                }
                at = at.max(to);
            }
        }
        mapped.sort_unstable();
        self.own_file = Some(Box::new(OwnFile {
            parts: mapped,
            ..*own
        }));
        Ok(())
    }

    /// What the instance's own file holds, if it has one.
    pub(crate) fn own_file(&self) -> Option<&GuestMemory> {
        self.own_file.as_ref().map(|own| &own.all)
    }

    /// Of how many parts that is.
    pub(crate) fn own_parts(&self) -> usize {
        self.own_file.as_ref().map_or(0, |own| own.parts.len())
    }

    /// All but what is fixed.
    fn replaceable(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let around = [(0, self.fixed.start), (self.fixed.end, self.bytes())];
        around.into_iter().filter(|(start, end)| start < end)
    }

    /// Takes a range away from the guest and gives it back, with its pages and what they hold: KVM forgets its
    /// translations to them, and asks the guest's page tables again.
    pub(crate) fn retranslate(&self, start: u64, end: u64) -> Result<(), VmmError> {
        let place = self.writable(start, end - start)?;
        let at = place.ptr_guard_mut().as_ptr().cast();
        for protection in [libc::PROT_NONE, Sharing::CopyOnWrite.protection()] {
            // SAFETY: the range lies in this mapping, as `writable` checked, and nothing refers into it; its user is
            // this thread, and the guest does not run.
            if unsafe { libc::mprotect(at, place.len(), protection) } != 0 {
                return Err(VmmError::memory("protecting guest memory")(
                    io::Error::last_os_error(),
                ));
            }
        }
        Ok(())
    }

    /// The same with all of it.
    pub(crate) fn retranslate_all(&self) -> Result<(), VmmError> {
        self.replaceable()
            .try_for_each(|(start, end)| self.retranslate(start, end))
    }

    /// Maps parts of a file, copy-on-write, where they belong.
    pub(crate) fn lay(
        &self,
        file: &File,
        offset: u64,
        parts: impl Iterator<Item = (u64, u64)>,
    ) -> Result<(), VmmError> {
        for (start, end) in parts {
            let place = self.writable(start, end - start)?;
            let at = place.ptr_guard_mut().as_ptr().cast();
            map_file(at, file, offset + start, place.len(), Sharing::CopyOnWrite)?;
        }
        Ok(())
    }

    /// Bytes of the mapping.
    pub(crate) fn bytes(&self) -> u64 {
        self.region.size() as u64
    }

    /// Where it is in the host, for KVM and the page map.
    pub(crate) fn host_addr(&self) -> u64 {
        self.region.as_ptr() as u64
    }

    /// The range, if it lies within the guest.
    fn slice(&self, addr: u64, bytes: usize) -> Result<VolatileSlice<'_>, VmmError> {
        let at = usize::try_from(addr).ok();
        at.and_then(|at| self.region.get_slice(at, bytes).ok())
            .ok_or_else(|| too_large("accessing guest memory"))
    }

    /// The same, if none of it is fixed.
    fn writable(&self, addr: u64, bytes: u64) -> Result<VolatileSlice<'_>, VmmError> {
        let slice = self.slice(addr, bytes as usize)?;
        match addr < self.fixed.end && addr + bytes > self.fixed.start {
            true => Err(VmmError::Misuse("a write to what is fixed in a guest")),
            false => Ok(slice),
        }
    }

    /// Copies `from` into the guest.
    pub(crate) fn write(&self, addr: u64, from: &[u8]) -> Result<(), VmmError> {
        self.writable(addr, from.len() as u64)?.copy_from(from);
        Ok(())
    }

    /// Copies from the guest, once.
    pub(crate) fn read(&self, addr: u64, to: &mut [u8]) -> Result<(), VmmError> {
        self.slice(addr, to.len())?.copy_to(to);
        Ok(())
    }

    /// Copies a little-endian number from the guest.
    pub(crate) fn read_u64(&self, addr: u64) -> Result<u64, VmmError> {
        let mut bytes = [0; 8];
        self.read(addr, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Makes a range zero.
    pub(crate) fn zero(&self, addr: u64, bytes: u64) -> Result<(), VmmError> {
        const ZEROES: [u8; 4096] = [0; 4096];
        let mut left = bytes as usize;
        let slice = self.writable(addr, bytes)?;
        while left > 0 {
            let part = left.min(ZEROES.len());
            slice
                .write_slice(&ZEROES[..part], bytes as usize - left)
                .map_err(|_| too_large("clearing guest memory"))?;
            left -= part;
        }
        Ok(())
    }

    /// Whether a range is all zero.
    pub(crate) fn is_zero(&self, addr: u64, bytes: u64) -> Result<bool, VmmError> {
        const ZEROES: [u8; 4096] = [0; 4096];
        let mut part = [0; ZEROES.len()];
        let mut at = addr;
        while at < addr + bytes {
            let part = &mut part[..((addr + bytes - at) as usize).min(ZEROES.len())];
            self.read(at, part)?;
            if part != &ZEROES[..part.len()] {
                return Ok(false);
            }
            at += part.len() as u64;
        }
        Ok(true)
    }

    /// Has a range, which nothing has touched, backed by large pages when it is. Where that cannot be, it is backed
    /// by small ones.
    pub(crate) fn prefer_large(&self, addr: u64, bytes: u64) -> Result<(), VmmError> {
        let slice = self.slice(addr, bytes as usize)?;
        let start = slice.ptr_guard_mut().as_ptr().cast();
        // SAFETY: the range lies in this mapping, as `slice` checked; the advice changes no content.
        unsafe { libc::madvise(start, bytes as usize, libc::MADV_HUGEPAGE) };
        Ok(())
    }

    /// Gives the range pages of its own now, all at once, which is cheaper than one by one when the
    /// guest writes to them. A kernel older than 5.14 leaves that to the guest.
    pub(crate) fn populate(&self, addr: u64, bytes: u64) -> Result<(), VmmError> {
        let slice = self.writable(addr, bytes)?;
        let start = slice.ptr_guard_mut().as_ptr().cast();
        // SAFETY: the range lies in this mapping, as `writable` checked; populating changes no content.
        let result = unsafe { libc::madvise(start, bytes as usize, libc::MADV_POPULATE_WRITE) };
        match (result, io::Error::last_os_error()) {
            (0, _) => Ok(()),
            (_, error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            (_, error) => Err(VmmError::memory("populating guest memory")(error)),
        }
    }

    /// Copies a range of `pristine` to the same place here.
    pub(crate) fn copy_from(
        &self,
        pristine: &GuestMemory,
        addr: u64,
        bytes: u64,
    ) -> Result<(), VmmError> {
        let to = self.writable(addr, bytes)?;
        pristine
            .slice(addr, bytes as usize)?
            .copy_to_volatile_slice(to);
        Ok(())
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        if self.mapped {
            // SAFETY: the mapping is this value's own, whose users borrow it.
            unsafe { libc::munmap(self.region.as_ptr().cast(), self.region.size()) };
        }
    }
}

const MAPPING: &str = "mapping guest memory";

/// Maps a part of a file, at `at` if that is not null, in place of a mapping of the caller's own.
fn map_file(
    at: *mut libc::c_void,
    file: &File,
    offset: u64,
    bytes: usize,
    sharing: Sharing,
) -> Result<*mut libc::c_void, VmmError> {
    let offset = libc::off_t::try_from(offset).map_err(|_| too_large(MAPPING))?;
    let fixed = if at.is_null() { 0 } else { libc::MAP_FIXED };
    let (flags, protection) = (sharing.flags() | fixed, sharing.protection());
    // SAFETY: a new mapping, or one in place of a part of a `GuestMemory`, which is borrowed for that and
    // into which there are no references.
    mapped(unsafe { libc::mmap(at, bytes, protection, flags, file.as_raw_fd(), offset) })
}

/// Room for a mapping of `bytes` bytes that begins where a large page may, so that large pages of the guest are large
/// pages of the host. What is there is to be replaced.
fn aligned_room(bytes: usize) -> Result<*mut libc::c_void, VmmError> {
    const LARGE: usize = 2 << 20;
    let room = bytes.checked_add(LARGE).ok_or_else(|| too_large(MAPPING))?;
    let addr = map_zeroes(std::ptr::null_mut(), room)?;
    let before = addr.align_offset(LARGE);
    for (at, bytes) in [(0, before), (before + bytes, LARGE - before)] {
        if bytes > 0 {
            // SAFETY: a part of the mapping that was just made, which nobody knows of.
            unsafe { libc::munmap(addr.byte_add(at), bytes) };
        }
    }
    // SAFETY: within that mapping.
    Ok(unsafe { addr.byte_add(before) })
}

/// Maps zeroes, at `at` if that is not null, in place of a mapping of the caller's own.
fn map_zeroes(at: *mut libc::c_void, bytes: usize) -> Result<*mut libc::c_void, VmmError> {
    let fixed = if at.is_null() { 0 } else { libc::MAP_FIXED };
    let sharing = Sharing::CopyOnWrite;
    let (flags, protection) = (
        sharing.flags() | libc::MAP_ANONYMOUS | fixed,
        sharing.protection(),
    );
    // SAFETY: as in `map_file`.
    mapped(unsafe { libc::mmap(at, bytes, protection, flags, -1, 0) })
}

/// What `mmap` has answered.
fn mapped(addr: *mut libc::c_void) -> Result<*mut libc::c_void, VmmError> {
    match addr == libc::MAP_FAILED {
        true => Err(VmmError::memory(MAPPING)(io::Error::last_os_error())),
        false => Ok(addr),
    }
}

fn too_large(operation: &'static str) -> VmmError {
    VmmError::Memory {
        operation,
        error: io::ErrorKind::InvalidInput.into(),
    }
}

/// An anonymous file of `bytes` bytes, all holes.
pub(crate) fn anonymous_file(bytes: u64) -> Result<File, VmmError> {
    const OPERATION: &str = "making an anonymous file for guest memory";
    // SAFETY: the name is a C string; the descriptor is checked before it is used.
    let descriptor = unsafe { libc::memfd_create(c"holm-guest".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(VmmError::memory(OPERATION)(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is new, open and owned by nobody else.
    let file = unsafe { File::from_raw_fd(descriptor) };
    file.set_len(bytes).map_err(VmmError::memory(OPERATION))?;
    Ok(file)
}

/// The parts of `file` between `start` and `end` that are not holes.
pub(crate) fn data_extents(file: &File, start: u64, end: u64) -> io::Result<Vec<(u64, u64)>> {
    let seek = |from: u64, whence: i32| -> io::Result<Option<u64>> {
        let from = i64::try_from(from).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open; lseek touches no memory.
        let at = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
        match u64::try_from(at) {
            Ok(at) => Ok(Some(at)),
            Err(_) => match io::Error::last_os_error() {
                // No data after this place.
                error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
                error => Err(error),
            },
        }
    };
    let mut extents = Vec::new();
    let mut at = start;
    while at < end {
        let Some(data) = seek(at, libc::SEEK_DATA)? else {
            break;
        };
        if data >= end {
            break;
        }
        let hole = seek(data, libc::SEEK_HOLE)?.unwrap_or(end).min(end);
        extents.push((data, hole));
        at = hole;
    }
    Ok(extents)
}
