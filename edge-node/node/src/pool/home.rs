//! Where the instances of a version are that may have only so many on a node (`[scale] max`).
//!
//! They are divided among the threads once and for all, so that no thread has to ask another: each has its part,
//! and one that has none hands its requests to one that has. Versions without a bound are at home everywhere.

use super::core::Key;

/// One of the threads that share a node's slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) index: usize,
    /// How many there are.
    pub(crate) of: usize,
}

impl Place {
    /// How many instances of the version there may be here.
    pub(crate) fn quota(self, key: Key, max: Option<u32>) -> usize {
        let Some(max) = max else {
            return usize::MAX;
        };
        let (max, of) = (max as usize, self.of.max(1));
        max / of + usize::from(self.distance(key) < max % of)
    }

    /// The thread that is to serve the `nth` request of the version that came by this one, if it is another.
    pub(crate) fn home(self, key: Key, max: Option<u32>, nth: usize) -> Option<usize> {
        if self.quota(key, max) > 0 {
            return None;
        }
        // There are fewer than threads, so that each of the first has one.
        let homes = max.map_or(1, |max| max as usize).max(1);
        Some((first(key, self.of) + nth % homes) % self.of.max(1))
    }

    /// How many threads have some.
    pub(crate) fn homes(self, max: Option<u32>) -> usize {
        max.map_or(self.of, |max| (max as usize).min(self.of))
            .max(1)
    }

    /// How far behind the first home this thread is.
    fn distance(self, key: Key) -> usize {
        let of = self.of.max(1);
        (self.index + of - first(key, of)) % of
    }
}

/// Versions begin at different threads.
fn first(key: Key, of: usize) -> usize {
    (key.0 % of.max(1) as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_together_are_what_there_may_be_and_every_way_leads_to_one() {
        for (of, key) in (1..9).flat_map(|of| (0..10).map(move |key| (of, Key(key)))) {
            for max in 1..20 {
                let places = (0..of).map(|index| Place { index, of });
                let quota = |index| Place { index, of }.quota(key, Some(max));
                assert_eq!((0..of).map(quota).sum::<usize>(), max as usize);
                let mut homes = 0;
                for place in places {
                    homes += usize::from(quota(place.index) > 0);
                    for nth in 0..20 {
                        match place.home(key, Some(max), nth) {
                            None => assert!(quota(place.index) > 0),
                            Some(home) => assert!(home != place.index && quota(home) > 0),
                        }
                    }
                    assert_eq!(place.home(key, None, 0), None);
                }
                assert_eq!(homes, Place { index: 0, of }.homes(Some(max)));
            }
        }
    }
}
