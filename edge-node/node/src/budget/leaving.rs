//! Versions that take no more requests and still have some under way, which may overrun what they reserved.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

/// What was served lately, as long as somebody holds it.
#[derive(Debug)]
pub(super) struct Leaving<T>(Vec<Weak<T>>);

impl<T> Default for Leaving<T> {
    fn default() -> Self {
        Leaving(Vec::new())
    }
}

impl<T> Leaving<T> {
    /// Notes what is served `now`, and returns what was before and is still held.
    pub(super) fn look<'a>(&mut self, now: impl Iterator<Item = &'a Arc<T>>) -> Vec<Arc<T>>
    where
        T: 'a,
    {
        let now: Vec<&Arc<T>> = now.collect();
        let served: HashSet<*const T> = now.iter().map(|one| Arc::as_ptr(one)).collect();
        let before = self.0.iter().filter_map(Weak::upgrade);
        let left: Vec<Arc<T>> = before
            .filter(|one| !served.contains(&Arc::as_ptr(one)))
            .collect();
        self.0 = now.into_iter().chain(&left).map(Arc::downgrade).collect();
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_replaced_counts_until_nobody_holds_it() {
        let mut leaving = Leaving::default();
        let (old, new) = (Arc::new(1), Arc::new(2));
        assert!(leaving.look([&old].into_iter()).is_empty());
        assert!(leaving.look([&old, &new].into_iter()).is_empty());
        for _ in 0..2 {
            assert_eq!(leaving.look([&new].into_iter()), std::slice::from_ref(&old));
        }
        drop(old);
        assert!(leaving.look([&new].into_iter()).is_empty());
    }
}
