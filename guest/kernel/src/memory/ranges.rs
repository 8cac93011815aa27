//! Some ranges of the program's memory of which more is known than what may be done with them.

use crate::errno::Errno;

/// At most `MOST` ranges, none of them empty, which do not overlap.
pub(super) struct Ranges<const MOST: usize> {
    ranges: [(u64, u64); MOST],
    count: usize,
    /// Most bytes of all of them.
    max_bytes: u64,
}

impl<const MOST: usize> Ranges<MOST> {
    pub(super) const fn new(max_bytes: u64) -> Self {
        Ranges {
            ranges: [(0, 0); MOST],
            count: 0,
            max_bytes,
        }
    }

    /// ENOMEM where there is no room for another, as Linux says where a mapping cannot be split, or where the
    /// ranges together would be too large.
    pub(super) fn add(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        if self.covers(start, end) {
            return Ok(());
        }
        let marked: u64 = self.all().iter().map(|(from, to)| to - from).sum();
        if self.count == MOST || end - start > self.max_bytes - marked.min(self.max_bytes) {
            return Err(Errno::ENOMEM);
        }
        // None of them is split by this: no range reaches beyond both ends.
        self.remove(start, end)?;
        self.push(start, end)
    }

    /// Whether all of a range is marked.
    pub(super) fn covers(&self, start: u64, end: u64) -> bool {
        let mut all = self.all().iter();
        all.any(|(from, to)| *from <= start && end <= *to)
    }

    fn push(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        let room = self.ranges.get_mut(self.count).ok_or(Errno::ENOMEM)?;
        *room = (start, end);
        self.count += 1;
        Ok(())
    }

    /// What is there now is not what was marked. On ENOMEM nothing has changed.
    pub(super) fn remove(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        let mut all = self.all().iter();
        let splits = all.any(|(from, to)| *from < start && end < *to);
        if splits && self.count == MOST {
            return Err(Errno::ENOMEM);
        }
        let mut at = 0;
        while at < self.count {
            let (from, to) = self.ranges[at];
            if to <= start || end <= from {
                at += 1;
                continue;
            }
            self.count -= 1;
            self.ranges[at] = self.ranges[self.count];
            if from < start {
                self.push(from, start)?;
            }
            if end < to {
                self.push(end, to)?;
            }
        }
        Ok(())
    }

    fn all(&self) -> &[(u64, u64)] {
        &self.ranges[..self.count]
    }

    /// All of them as they are now.
    pub(super) fn get(&self) -> impl Iterator<Item = (u64, u64)> + use<MOST> {
        self.ranges.into_iter().take(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(wiped: &Ranges<16>) -> Vec<(u64, u64)> {
        let mut ranges: Vec<_> = wiped.get().collect();
        ranges.sort_unstable();
        ranges
    }

    #[test]
    fn what_is_removed_from_the_middle_leaves_both_ends() {
        let mut wiped = Ranges::<16>::new(u64::MAX);
        wiped.add(10, 20).unwrap();
        wiped.add(30, 40).unwrap();
        wiped.remove(15, 17).unwrap();
        assert_eq!(sorted(&wiped), [(10, 15), (17, 20), (30, 40)]);
        wiped.remove(0, 32).unwrap();
        assert_eq!(sorted(&wiped), [(32, 40)]);
        wiped.add(32, 36).unwrap();
        assert_eq!(sorted(&wiped), [(32, 40)]);
        wiped.add(30, 36).unwrap();
        assert_eq!(sorted(&wiped), [(30, 36), (36, 40)]);
        wiped.remove(0, u64::MAX).unwrap();
        assert!(sorted(&wiped).is_empty());
    }

    #[test]
    fn there_is_room_for_so_many_and_no_more() {
        let mut wiped = Ranges::<16>::new(u64::MAX);
        for n in 0..16 {
            wiped.add(n * 10, n * 10 + 5).unwrap();
        }
        assert_eq!(wiped.add(1000, 1001), Err(Errno::ENOMEM));
        // What cannot be split stays whole.
        assert_eq!(wiped.remove(1, 2), Err(Errno::ENOMEM));
        assert!(wiped.covers(0, 5));
        wiped.remove(0, 2).unwrap();
        assert_eq!(sorted(&wiped).len(), 16);
    }
}
