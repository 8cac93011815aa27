//! The guest kernel's image, built by this crate's build script and embedded.

use std::fs::File;
use std::sync::{Mutex, OnceLock, PoisonError};

use holm_hostcall::{KERNEL_ADDR, KERNEL_END, LOW_DATA_ADDR, LOW_DATA_END, PAGE_BYTES, STUB_ADDR};
use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};
use object::{LittleEndian, Object as _, ObjectSymbol as _};
use sha2::{Digest as _, Sha256};

use crate::VmmError;
use crate::layout::{Access, Range};
use crate::memory::{GuestMemory, Sharing, anonymous_file};

/// The image: an ELF file with a PVH note.
pub static KERNEL_IMAGE: &[u8] = include_bytes!(env!("HOLM_KERNEL_IMAGE"));

/// The image, read once.
#[derive(Debug)]
pub(crate) struct Image {
    segments: Vec<Segment>,
    /// Where the vCPU begins.
    pub(crate) entry: u64,
    /// The table for programs built with the SDK.
    pub(crate) door: u64,
    /// The vDSO.
    pub(crate) vdso: u64,
    /// What the CPU pushes as the return address of a hostcall.
    pub(crate) hostcall_return: u64,
    /// Where a system call arrives that was made a jump.
    pub(crate) call_entry: u64,
    /// The same for CPUID.
    pub(crate) cpuid_entry: u64,
    /// Where the program is sent for another thread's turn.
    pub(crate) fault_entry: u64,
    /// Where an instance touches pages from a list.
    pub(crate) touch_pages: u64,
    /// SHA-256: a snapshot fits only the image it was made with.
    pub(crate) digest: [u8; 32],
}

#[derive(Debug)]
struct Segment {
    addr: u64,
    memory_bytes: u64,
    bytes: &'static [u8],
    access: Access,
}

impl Image {
    /// The embedded image. It was built together with this crate, so that it can be read is an
    /// invariant, and the tests load it.
    pub(crate) fn get() -> &'static Image {
        static IMAGE: OnceLock<Image> = OnceLock::new();
        IMAGE.get_or_init(|| Image::read().expect("the embedded kernel image is well-formed"))
    }

    fn read() -> Option<Image> {
        let file = ElfFile64::<LittleEndian>::parse(KERNEL_IMAGE).ok()?;
        let header = file.elf_header();
        let mut segments = Vec::new();
        for program in header.program_headers(LittleEndian, KERNEL_IMAGE).ok()? {
            if program.p_type(LittleEndian) != object::elf::PT_LOAD {
                continue;
            }
            let flags = program.p_flags(LittleEndian);
            let addr = program.p_vaddr(LittleEndian);
            let access = match () {
                _ if addr == STUB_ADDR => Access::SupervisorCode,
                _ if flags & object::elf::PF_X != 0 => Access::Execute,
                _ if flags & object::elf::PF_W != 0 => Access::Write,
                _ => Access::Read,
            };
            let memory_bytes = program.p_memsz(LittleEndian);
            let bytes = program.data(LittleEndian, KERNEL_IMAGE).ok()?;
            segments.push(Segment {
                addr,
                memory_bytes,
                bytes,
                access,
            });
        }
        let inside = |segment: &Segment| match segment.access {
            Access::SupervisorCode => segment.memory_bytes <= PAGE_BYTES,
            Access::Write if segment.addr == LOW_DATA_ADDR => {
                segment.addr + segment.memory_bytes <= LOW_DATA_END
            }
            _ => segment.addr >= KERNEL_ADDR && segment.addr + segment.memory_bytes <= KERNEL_END,
        };
        if !segments.iter().all(inside) {
            return None;
        }
        let symbol = |name| {
            let found = file.symbols().find(|symbol| symbol.name() == Ok(name));
            found.map(|symbol| symbol.address())
        };
        let door = symbol("HOLM_DOOR")?;
        const INT3_BYTES: u64 = 1;
        let hostcall_return = symbol("hostcall_gate")? + INT3_BYTES;
        let entry = header.e_entry(LittleEndian);
        let image = Image {
            segments,
            entry,
            door,
            vdso: symbol("HOLM_VDSO")?,
            hostcall_return,
            call_entry: symbol("call_entry")?,
            cpuid_entry: symbol("cpuid_entry")?,
            fault_entry: symbol("fault_entry")?,
            touch_pages: symbol("touch_pages")?,
            digest: Sha256::digest(KERNEL_IMAGE).into(),
        };
        let fixed = image.fixed();
        let apart = |one: &Segment| one.access != Access::Write || !fixed.contains(&one.addr);
        image.segments.iter().all(apart).then_some(image)
    }

    /// Copies the image into a guest.
    pub(crate) fn load(&self, memory: &GuestMemory) -> Result<(), VmmError> {
        for segment in &self.segments {
            memory.write(segment.addr, segment.bytes)?;
        }
        Ok(())
    }

    /// The pages of the library OS that no guest can write to, its code and constants: the same in every guest that
    /// has this image.
    pub(crate) fn fixed(&self) -> std::ops::Range<u64> {
        let constant = |one: &&Segment| {
            one.addr >= KERNEL_ADDR && matches!(one.access, Access::Execute | Access::Read)
        };
        let ends = self
            .segments
            .iter()
            .filter(constant)
            .map(|one| (one.addr + one.memory_bytes).next_multiple_of(PAGE_BYTES));
        // The linker script has them first there; that what is written comes after them is checked above.
        let end = ends.max().unwrap_or(KERNEL_ADDR);
        KERNEL_ADDR..end
    }

    /// Whether a guest's memory has them as they are.
    pub(crate) fn is_in(&self, memory: &GuestMemory) -> Result<bool, VmmError> {
        let fixed = self.fixed();
        for segment in self.segments.iter().filter(|one| fixed.contains(&one.addr)) {
            let mut there = vec![0; segment.bytes.len()];
            memory.read(segment.addr, &mut there)?;
            if there != segment.bytes {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A file that holds them at their addresses, from which instances of all versions map them.
    pub(crate) fn fixed_file(&self) -> Result<&'static File, VmmError> {
        static FILE: Mutex<Option<&'static File>> = Mutex::new(None);
        let mut made = FILE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = *made {
            return Ok(file);
        }
        let fixed = self.fixed();
        let file = anonymous_file(fixed.end)?;
        let memory = GuestMemory::map(&file, 0, fixed.end, Sharing::Shared)?;
        for segment in &self.segments {
            if fixed.contains(&segment.addr) {
                memory.write(segment.addr, segment.bytes)?;
            }
        }
        // One for the life of the process.
        Ok(made.insert(Box::leak(Box::new(file))))
    }

    /// How the library OS's pages are mapped; the stub's are fixed.
    pub(crate) fn ranges(&self) -> Vec<Range> {
        let user = self
            .segments
            .iter()
            .filter(|one| one.access != Access::SupervisorCode);
        user.map(|segment| Range {
            start: segment.addr,
            end: (segment.addr + segment.memory_bytes).next_multiple_of(PAGE_BYTES),
            access: segment.access,
        })
        .collect()
    }
}
