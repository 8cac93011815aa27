//! How many slots of a version are to be warm ahead of its requests: a state machine without clocks or slots.
//!
//! Requests of a version come at some rate, and each uses a slot for some time; what both together are times
//! each other is how many it uses at a time (Little's law). So many and one more are to hold it, but not fewer
//! than its manifest's `min` and no more than its `max`. What is above that for `cooldown` is given back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::core::Key;

/// Of what was, and what is: each look at it counts as much as all before.
const WEIGHT: f64 = 0.5;
/// Fewer requests a second than this are none.
const NO_RATE: f64 = 0.02;

/// What a manifest says, for one thread's slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) min: usize,
    pub(crate) most: usize,
    /// Without one nothing is given back.
    pub(crate) cooldown: Option<Duration>,
}

#[derive(Debug)]
struct Flow {
    bounds: Bounds,
    /// Requests since the last look, and how long those that ended used a slot.
    came: u32,
    ended: u32,
    held: Duration,
    /// Requests a second.
    rate: f64,
    /// Seconds that one takes.
    takes: f64,
    looked: Instant,
    /// Since when more slots than needed hold it.
    above: Option<Instant>,
}

impl Flow {
    fn target(&self) -> usize {
        let used = match self.rate > NO_RATE {
            // Bounded, and so is the product.
            true => (self.rate * self.takes).ceil().min(1e6) as usize + 1,
            false => 0,
        };
        // As long as nothing is given back, one is better than none.
        let least = if self.bounds.cooldown.is_some() { 0 } else { 1 };
        used.max(self.bounds.min).max(least).min(self.bounds.most)
    }
}

/// The versions of one thread.
#[derive(Debug, Default)]
pub(crate) struct Warm(BTreeMap<Key, Flow>);

impl Warm {
    /// A version takes requests from now on.
    pub(crate) fn add(&mut self, key: Key, bounds: Bounds, now: Instant) {
        self.0.entry(key).or_insert(Flow {
            bounds,
            came: 0,
            ended: 0,
            held: Duration::ZERO,
            // The first is to find one, and will be there soon if ever.
            rate: 1.0,
            takes: 0.0,
            looked: now,
            above: None,
        });
    }

    /// It takes none any more.
    pub(crate) fn forget(&mut self, key: Key) {
        self.0.remove(&key);
    }

    /// A request has come.
    pub(crate) fn came(&mut self, key: Key) {
        if let Some(flow) = self.0.get_mut(&key) {
            flow.came = flow.came.saturating_add(1);
        }
    }

    /// A slot has come back after so long.
    pub(crate) fn ended(&mut self, key: Key, held: Duration) {
        if let Some(flow) = self.0.get_mut(&key) {
            flow.ended = flow.ended.saturating_add(1);
            flow.held = flow.held.saturating_add(held);
        }
    }

    /// How many slots are to hold a version.
    pub(crate) fn target(&self, key: Key) -> usize {
        self.0.get(&key).map_or(0, Flow::target)
    }

    /// Looks at what came since the last look. `holding` says how many slots hold a version. Gives the versions
    /// that hold more than they need, and how many they are to keep.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        holding: impl Fn(Key) -> usize,
    ) -> Vec<(Key, usize)> {
        let mut given_back = Vec::new();
        for (key, flow) in &mut self.0 {
            let seconds = now.saturating_duration_since(flow.looked).as_secs_f64();
            if seconds <= 0.0 {
                continue;
            }
            flow.looked = now;
            let came = f64::from(std::mem::take(&mut flow.came)) / seconds;
            flow.rate += WEIGHT * (came - flow.rate);
            let ended = std::mem::take(&mut flow.ended);
            let held = std::mem::take(&mut flow.held).as_secs_f64();
            if ended > 0 {
                flow.takes += WEIGHT * (held / f64::from(ended) - flow.takes);
            }
            let (target, holding) = (flow.target(), holding(*key));
            flow.above = (holding > target).then(|| flow.above.unwrap_or(now));
            if let (Some(above), Some(cooldown)) = (flow.above, flow.bounds.cooldown)
                && now.saturating_duration_since(above) >= cooldown
            {
                given_back.push((*key, target));
            }
        }
        given_back
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holm_test_support::random_below;

    const A: Key = Key(1);

    fn bounds(min: usize, most: usize, cooldown_s: u64) -> Bounds {
        let cooldown = (cooldown_s > 0).then(|| Duration::from_secs(cooldown_s));
        Bounds {
            min,
            most,
            cooldown,
        }
    }

    /// One thread's slots, a second at a time.
    struct Simulation {
        warm: Warm,
        now: Instant,
        holding: usize,
    }

    impl Simulation {
        fn new(bounds: Bounds) -> Self {
            let (mut warm, now) = (Warm::default(), Instant::now());
            warm.add(A, bounds, now);
            let holding = warm.target(A);
            Simulation { warm, now, holding }
        }

        fn second(&mut self, requests: u32, took: Duration) -> usize {
            for _ in 0..requests {
                self.warm.came(A);
                self.warm.ended(A, took);
            }
            self.now += Duration::from_secs(1);
            let holding = self.holding;
            for (key, keep) in self.warm.look(self.now, |_| holding) {
                assert!(key == A && keep < self.holding);
                self.holding = keep;
            }
            self.holding = self.holding.max(self.warm.target(A));
            self.holding
        }
    }

    impl Simulation {
        fn seconds(&mut self, count: u32, requests: u32, took: Duration) {
            for _ in 0..count {
                self.second(requests, took);
            }
        }
    }

    #[test]
    fn as_many_are_warm_as_are_used_and_one_more_and_none_is_after_the_cooldown() {
        let mut node = Simulation::new(bounds(0, 64, 10));
        assert_eq!(node.holding, 1);
        let busy: Vec<_> = (0..20)
            .map(|_| node.second(100, Duration::from_millis(50)))
            .collect();
        assert_eq!(busy.last(), Some(&6));
        let idle: Vec<_> = (0..40).map(|_| node.second(0, Duration::ZERO)).collect();
        assert_eq!(idle[8], 6, "not before its time");
        assert_eq!(idle.last(), Some(&0));
    }

    #[test]
    fn bounds_hold_and_without_a_cooldown_nothing_is_given_back() {
        let mut node = Simulation::new(bounds(2, 4, 5));
        assert_eq!(node.holding, 2);
        node.seconds(10, 1000, Duration::from_secs(1));
        assert_eq!(node.holding, 4);
        node.seconds(60, 0, Duration::ZERO);
        assert_eq!(node.holding, 2);
        let mut node = Simulation::new(bounds(0, 8, 0));
        node.seconds(10, 1000, Duration::from_secs(1));
        node.seconds(600, 0, Duration::ZERO);
        assert_eq!(node.holding, 8);
    }

    #[test]
    fn whatever_comes_the_bounds_hold() {
        for seed in 0..300u64 {
            let mut below = random_below(seed);
            let most = 1 + below(20) as usize;
            let min = below(1 + most as u64) as usize;
            let mut node = Simulation::new(bounds(min, most, 1 + below(10)));
            for _ in 0..200 {
                let requests = if below(3) == 0 { 0 } else { below(200) as u32 };
                let holding = node.second(requests, Duration::from_millis(below(3000)));
                assert!((min..=most).contains(&holding), "seed {seed}: {holding}");
            }
            node.seconds(30, 0, Duration::ZERO);
            assert_eq!(node.holding, min, "seed {seed}");
        }
    }
}
