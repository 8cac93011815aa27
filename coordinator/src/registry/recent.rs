//! What nodes asked for a moment ago: in a rollout all of them want the same.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::body::Bytes;
use holm_model::chunks::Index;
use holm_model::ids::Digest;
use tokio::sync::Semaphore;

use super::ArtifactError;
use crate::limits::{MAX_READING_RUNS, MAX_RECENT_CHUNKS, MAX_RECENT_RUNS, RECENT_LIST_AGE};
use crate::store::Located;

/// What an artifact is made of.
#[derive(Debug)]
pub(crate) struct Recipe {
    /// Its chunks and where they are, in their order.
    pub(crate) chunks: Vec<Located>,
    /// The index of them, as nodes get it.
    pub(crate) index: Bytes,
}

impl Recipe {
    pub(super) fn new(chunks: Vec<Located>) -> Result<Self, ArtifactError> {
        let own = chunks.iter().map(|located| located.chunk).collect();
        let index = Index::from_chunks(own)?.to_bytes().into();
        Ok(Recipe { chunks, index })
    }
}

/// Bytes and lists of chunks that were asked for last.
pub(super) struct Recent {
    /// Verified bytes, by the chunks that they are. A chunk is what its digest says, wherever it is.
    runs: Mutex<VecDeque<(Vec<Digest>, Bytes)>>,
    /// Lists age: an artifact may be removed, and its chunks may be moved, by another coordinator too.
    recipes: Mutex<VecDeque<(Digest, Instant, Arc<Recipe>)>>,
    /// Turns to read, and so to have what is read in memory.
    pub(super) reading: Semaphore,
    /// The turn to look a list up.
    pub(super) looking: Semaphore,
}

impl Default for Recent {
    fn default() -> Self {
        Recent {
            runs: Mutex::default(),
            recipes: Mutex::default(),
            reading: Semaphore::new(MAX_READING_RUNS),
            looking: Semaphore::new(1),
        }
    }
}

/// Every change is complete before anything can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recent {
    pub(super) fn run(&self, key: &[Digest]) -> Option<Bytes> {
        let runs = lock(&self.runs);
        let found = runs.iter().find(|(own, _)| own == key);
        found.map(|(_, bytes)| bytes.clone())
    }

    pub(super) fn put_run(&self, key: Vec<Digest>, bytes: Bytes) {
        let mut runs = lock(&self.runs);
        runs.push_back((key, bytes));
        while runs.len() > MAX_RECENT_RUNS {
            runs.pop_front();
        }
    }

    pub(super) fn recipe(&self, digest: Digest) -> Option<Arc<Recipe>> {
        let mut recipes = lock(&self.recipes);
        recipes.retain(|(_, since, _)| since.elapsed() < RECENT_LIST_AGE);
        let found = recipes.iter().find(|(own, ..)| *own == digest);
        found.map(|(.., recipe)| recipe.clone())
    }

    pub(super) fn put_recipe(&self, digest: Digest, recipe: Arc<Recipe>) {
        let mut recipes = lock(&self.recipes);
        recipes.retain(|(own, ..)| *own != digest);
        recipes.push_back((digest, Instant::now(), recipe));
        let mut chunks: usize = recipes.iter().map(|(.., one)| one.chunks.len()).sum();
        while chunks > MAX_RECENT_CHUNKS
            && let Some((.., oldest)) = recipes.pop_front()
        {
            chunks -= oldest.chunks.len();
        }
    }

    /// Chunks were moved or are gone.
    pub(super) fn forget_recipes(&self) {
        lock(&self.recipes).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holm_model::chunks::Chunk;

    fn recipe(chunks: usize) -> Arc<Recipe> {
        let located = Located {
            chunk: Chunk {
                digest: Digest([1; 32]),
                bytes: 1,
            },
            pack: "pack".into(),
            start: 0,
        };
        Arc::new(Recipe {
            chunks: vec![located; chunks],
            index: Bytes::new(),
        })
    }

    #[test]
    fn lists_are_bounded_by_their_chunks_and_the_newest_stays() {
        let recent = Recent::default();
        let artifact = |number| Digest([number; 32]);
        for number in 0..3 {
            recent.put_recipe(artifact(number), recipe(MAX_RECENT_CHUNKS / 2));
        }
        assert!(recent.recipe(artifact(0)).is_none());
        assert!(recent.recipe(artifact(1)).is_some());
        // Again in place of itself, and not beside it.
        recent.put_recipe(artifact(2), recipe(MAX_RECENT_CHUNKS / 2));
        assert!(recent.recipe(artifact(1)).is_some() && recent.recipe(artifact(2)).is_some());
        recent.put_recipe(artifact(4), recipe(MAX_RECENT_CHUNKS + 1));
        assert!(
            recent.recipe(artifact(4)).is_none(),
            "nothing is above the bound"
        );
        recent.put_recipe(artifact(5), recipe(1));
        recent.forget_recipes();
        assert!(recent.recipe(artifact(5)).is_none());
    }
}
