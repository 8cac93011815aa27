//! What a call is at work with, whatever becomes of the descriptor that named it.

use super::{Open, descriptors};
use crate::errno::Errno;
use crate::state;

/// An object that a call goes on with although another thread may close its descriptor while the call waits, as
/// Linux holds a file by `fdget`. What has a number of its own behind it (a queue, a socket, a timer) keeps that
/// number for so long.
pub struct Held {
    index: u16,
    descriptor: u64,
}

impl Held {
    /// What `descriptor` stands for.
    pub fn of(descriptor: u64) -> Result<Held, Errno> {
        let index = state::files().index(descriptor)?;
        state::files().hold(index);
        Ok(Held { index, descriptor })
    }

    /// Its place in the table of objects.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The object as it is now.
    pub fn open(&self) -> Open {
        state::files().object(self.index)
    }

    /// The same, to be changed.
    pub fn open_mut(&self) -> &'static mut Open {
        state::files().object_mut(self.index)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let files = state::files();
        match files.index(self.descriptor) {
            // As nearly always: nothing is gone with it, and there is nothing to look for.
            Ok(index) if index == self.index => drop(files.let_go(index)),
            _ => descriptors::release(self.index),
        }
    }
}
