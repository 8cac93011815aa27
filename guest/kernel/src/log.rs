//! The log ring: what the program writes to stdout and stderr lies in memory until the next exit,
//! when the host takes it. A full ring costs one exit.

use core::fmt::Write as _;

use holm_hostcall::{Call, LOG_ADDR, LOG_CAPACITY_BYTES, LogHeader};

use crate::host::{self, Text};

fn header() -> *mut LogHeader {
    core::ptr::with_exposed_provenance_mut::<LogHeader>(LOG_ADDR as usize)
}

/// Appends `bytes` to the log.
pub fn write(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: the ring is mapped at this fixed address; the host changes the header only while
        // the vCPU is out of the guest, hence volatile.
        let used = unsafe { (&raw const (*header()).used).read_volatile() }.min(LOG_CAPACITY_BYTES);
        let fits = ((LOG_CAPACITY_BYTES - used) as usize).min(bytes.len());
        if fits == 0 {
            host::call(Call::LOG_FLUSH, 0, [0; 4]);
            continue;
        }
        let text = LOG_ADDR as usize + size_of::<LogHeader>() + used as usize;
        // SAFETY: `used + fits` is at most the ring's capacity.
        unsafe {
            core::ptr::with_exposed_provenance_mut::<u8>(text)
                .copy_from_nonoverlapping(bytes.as_ptr(), fits);
            (&raw mut (*header()).used).write_volatile(used + fits as u64);
        }
        bytes = &bytes[fits..];
    }
}

/// A line of the library OS's own.
pub fn note(text: core::fmt::Arguments<'_>) {
    let mut buffer = Text::<256>::new();
    // Cutting a line that is too long is right here.
    let _ = buffer.write_fmt(format_args!("holm: {text}\n"));
    write(&buffer.bytes[..buffer.used]);
}

/// Says in the ring's header that an allocation of `bytes` was refused.
pub fn memory_refused(bytes: u64) {
    // SAFETY: as in `write`.
    unsafe {
        let refusals = (&raw const (*header()).memory_refusals).read_volatile();
        (&raw mut (*header()).memory_refusals).write_volatile(refusals.wrapping_add(1));
        (&raw mut (*header()).refused_bytes).write_volatile(bytes);
    }
}
