//! What a program writes, until somebody takes it.

use holm_hostcall::{LOG_ADDR, LOG_CAPACITY_BYTES, LogHeader};

use crate::VmmError;
use crate::memory::GuestMemory;

/// Most text of a program's log kept until it is taken: of more, its beginning and its end.
const MAX_LOG_BYTES: usize = 64 << 10;
const MAX_BEGINNING_BYTES: usize = MAX_LOG_BYTES / 2;

/// What the program wrote and nobody has taken yet.
#[derive(Debug, Default)]
pub(crate) struct Log {
    text: Vec<u8>,
    dropped: u64,
}

impl Log {
    /// Empties the guest's log ring.
    pub(crate) fn read(&mut self, memory: &GuestMemory) -> Result<(), VmmError> {
        let used = memory.read_u64(LOG_ADDR)?.min(LOG_CAPACITY_BYTES);
        if used == 0 {
            return Ok(());
        }
        let before = self.text.len();
        self.text.resize(before + used as usize, 0);
        memory.read(
            LOG_ADDR + size_of::<LogHeader>() as u64,
            &mut self.text[before..],
        )?;
        self.shorten();
        memory.write(LOG_ADDR, &0u64.to_le_bytes())
    }

    /// Drops what is too much, from the middle.
    fn shorten(&mut self) {
        let excess = self.text.len().saturating_sub(MAX_LOG_BYTES);
        if excess > 0 {
            self.text
                .drain(MAX_BEGINNING_BYTES..MAX_BEGINNING_BYTES + excess);
            self.dropped += excess as u64;
        }
    }

    pub(crate) fn take(&mut self) -> Vec<u8> {
        let mut text = std::mem::take(&mut self.text);
        if self.dropped > 0 {
            let note = format!("\nholm: {} bytes dropped\n", self.dropped);
            text.splice(MAX_BEGINNING_BYTES..MAX_BEGINNING_BYTES, note.into_bytes());
            self.dropped = 0;
        }
        text
    }
}
