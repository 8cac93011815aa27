//! Random bytes: ChaCha20, seeded anew from the host after every restore, so that two instances of
//! one snapshot never share a stream.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

use crate::host;

/// The generator and the generation it was seeded in.
pub struct Random {
    generator: Option<(u64, ChaCha20Rng)>,
}

impl Random {
    /// Not seeded yet.
    pub const fn new() -> Self {
        Random { generator: None }
    }

    /// Fills `to`.
    pub fn fill(&mut self, to: &mut [u8]) {
        let generation = host::generation();
        match &mut self.generator {
            Some((seeded, generator)) if *seeded == generation => generator.fill_bytes(to),
            stale => {
                let mut generator = ChaCha20Rng::from_seed(host::boot().seed);
                generator.fill_bytes(to);
                *stale = Some((generation, generator));
            }
        }
    }
}

impl Default for Random {
    fn default() -> Self {
        Random::new()
    }
}
