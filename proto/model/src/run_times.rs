//! Run times by buckets: whole microseconds below 8, above that eight buckets for each doubling. So a bucket is at most
//! an eighth of its time wide, and all times that there are fit 256 of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How many buckets there are.
pub const BUCKETS: usize = 256;
/// Buckets of one doubling, as a power of two.
const FINE: u32 = 3;

/// The bucket of a time.
pub fn bucket(ns: u64) -> u8 {
    let us = ns / 1000;
    if us < 1 << FINE {
        return us as u8;
    }
    let doubling = us.ilog2() - FINE;
    let within = (us >> doubling) & ((1 << FINE) - 1);
    let bucket = (u64::from(doubling + 1) << FINE) + within;
    u8::try_from(bucket).unwrap_or(u8::MAX)
}

/// The shortest time, in microseconds, that is in a bucket.
pub fn shortest_us(bucket: u8) -> u64 {
    let (doubling, within) = (bucket >> FINE, u64::from(bucket) & ((1 << FINE) - 1));
    match doubling {
        0 => within,
        doubling => ((1 << FINE) + within) << (doubling - 1),
    }
}

/// How many took how long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunTimes(BTreeMap<u8, u64>);

impl RunTimes {
    /// `count` more in `bucket`.
    pub fn add(&mut self, bucket: u8, count: u64) {
        if count > 0 {
            let held = self.0.entry(bucket).or_default();
            *held = held.saturating_add(count);
        }
    }

    /// All of another one.
    pub fn add_all(&mut self, other: &RunTimes) {
        for (bucket, count) in other.iter() {
            self.add(bucket, count);
        }
    }

    /// Bucket and number, the shortest times first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u8, u64)> + '_ {
        self.0.iter().map(|(bucket, count)| (*bucket, *count))
    }

    /// How many there are.
    pub fn total(&self) -> u64 {
        self.0
            .values()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// How many are in `bucket`.
    pub fn at(&self, bucket: u8) -> u64 {
        self.0.get(&bucket).copied().unwrap_or_default()
    }

    /// How many are in `bucket` or took longer.
    pub fn from(&self, bucket: u8) -> u64 {
        let longer = self.0.range(bucket..);
        longer.fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }
}

impl FromIterator<(u8, u64)> for RunTimes {
    fn from_iter<I: IntoIterator<Item = (u8, u64)>>(counts: I) -> Self {
        let mut times = RunTimes::default();
        for (bucket, count) in counts {
            times.add(bucket, count);
        }
        times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_rise_and_are_at_most_an_eighth_wide() {
        for bucket in 0..u8::MAX {
            let (from, next) = (shortest_us(bucket), shortest_us(bucket + 1));
            assert!(from < next && next - from <= (from / 8).max(1), "{bucket}");
            assert_eq!(super::bucket(from * 1000), bucket);
            assert_eq!(super::bucket(next * 1000 - 1), bucket);
        }
        assert_eq!(bucket(u64::MAX), u8::MAX);
    }

    #[test]
    fn times_are_counted_from_a_bucket_on() {
        let mut times: RunTimes = [(3, 2), (9, 1)].into_iter().collect();
        times.add_all(&[(9, 4), (200, u64::MAX)].into_iter().collect());
        assert_eq!((times.from(10), times.from(201)), (u64::MAX, 0));
        assert_eq!(times.total(), u64::MAX);
        assert_eq!(times.iter().next(), Some((3, 2)));
    }
}
