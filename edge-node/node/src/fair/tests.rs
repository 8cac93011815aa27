//! Who has how much of the workers' time. Seeds of the random tests: HOLM_TURNS_SEED.

use std::collections::BTreeMap;

use holm_test_support::{random_below, seeds};

use super::*;

const TURN_NS: u64 = 2_000_000;

fn whose(tenant: u64, key: u64) -> Whose {
    Whose {
        tenant: TenantId(tenant),
        key: Key(key),
    }
}

/// Workers that run what never ends, each turn for a random time.
struct Workers {
    turns: Turns<u64>,
    /// What runs, and when its turn began and is to end.
    running: Vec<(u64, u64, Whose, u64)>,
    count: usize,
    now_ns: u64,
    taken_ns: BTreeMap<u64, u64>,
}

impl Workers {
    fn new(count: usize) -> Self {
        Workers {
            turns: Turns::new(TURN_NS),
            running: Vec::new(),
            count,
            now_ns: 0,
            taken_ns: BTreeMap::new(),
        }
    }

    /// Until `until_ns`; `stays` says of each at the end of its turn whether it wants another one.
    fn run(
        &mut self,
        until_ns: u64,
        random: &mut impl FnMut(u64) -> u64,
        stays: impl Fn(u64) -> bool,
    ) {
        while self.now_ns < until_ns {
            while self.running.len() < self.count {
                let Some((whose, one)) = self.turns.next(|_| false) else {
                    break;
                };
                let took_ns = TURN_NS / 2 + random(TURN_NS / 2 + 1);
                self.running
                    .push((self.now_ns + took_ns, self.now_ns, whose, one));
            }
            self.running.sort_unstable_by_key(|(end_ns, ..)| *end_ns);
            if self.running.is_empty() {
                self.now_ns = until_ns;
                return;
            }
            let (end_ns, began_ns, whose, one) = self.running.remove(0);
            self.now_ns = end_ns;
            self.turns.took(whose, end_ns - began_ns);
            *self.taken_ns.entry(whose.tenant.0).or_default() += end_ns - began_ns;
            if stays(one) {
                self.turns.add(whose, 0, one);
            }
        }
    }

    fn taken(&self, tenant: u64) -> u64 {
        self.taken_ns.get(&tenant).copied().unwrap_or(0)
    }
}

#[test]
fn tenants_that_want_more_than_there_is_have_the_same_however_much_they_want() {
    for seed in seeds("HOLM_TURNS_SEED", 200) {
        println!("seed {seed}");
        let mut random = random_below(seed);
        let count = 1 + random(6) as usize;
        let tenants = 2 + random(4);
        let mut workers = Workers::new(count);
        for tenant in 0..tenants {
            // Enough that it can always have all workers.
            for one in 0..count as u64 + random(30) {
                let key = tenant * 100 + random(3);
                workers
                    .turns
                    .add(whose(tenant, key), random(10_000), tenant * 1000 + one);
            }
        }
        workers.run(500 * TURN_NS, &mut random, |_| true);
        let taken: Vec<u64> = (0..tenants).map(|tenant| workers.taken(tenant)).collect();
        let (least, most) = (taken.iter().min().unwrap(), taken.iter().max().unwrap());
        let bound = (count as u64 + 1) * TURN_NS + 1_000_000;
        assert!(most - least <= bound, "{taken:?} with {count} workers");
    }
}

#[test]
fn who_comes_to_full_workers_is_next_and_has_its_share_from_then_on() {
    for seed in seeds("HOLM_TURNS_SEED", 200) {
        println!("seed {seed}");
        let mut random = random_below(seed);
        let count = 1 + random(4) as usize;
        let mut workers = Workers::new(count);
        (0..count as u64 + 1 + random(60))
            .for_each(|one| workers.turns.add(whose(1, random(4)), random(500_000), one));
        let came_ns = (1 + random(300)) * TURN_NS;
        workers.run(came_ns, &mut random, |_| true);
        let began_ns = workers.now_ns;
        workers.turns.add(whose(2, 9), random(500_000), u64::MAX);
        workers.run(began_ns + 1, &mut random, |_| true);
        let runs = workers.running.iter().any(|(.., one)| *one == u64::MAX);
        let has_run = workers.taken(2) > 0;
        // It may have been the shorter of those that ran.
        assert!(runs || has_run, "the first free worker is its");
        workers.run(began_ns + 200 * TURN_NS, &mut random, |_| true);
        // One that runs alone cannot have more than one worker, nor more than half of what there is.
        let share = 200 * TURN_NS * (count as u64).min(2) / 2;
        assert!(
            workers.taken(2) + 3 * TURN_NS >= share.min(200 * TURN_NS),
            "{} of {share} with {count} workers",
            workers.taken(2)
        );
    }
}

#[test]
fn time_that_was_not_taken_is_not_saved_up_and_what_was_taken_too_much_is_owed() {
    let mut random = random_below(1);
    let mut workers = Workers::new(1);
    workers.turns.add(whose(1, 1), 0, 1);
    workers.turns.add(whose(2, 2), 0, 2);
    // The second goes after its first turn, and the first has all for a long time.
    workers.run(1000 * TURN_NS, &mut random, |one| one == 1);
    let before = (workers.taken(1), workers.taken(2));
    assert!(before.1 <= TURN_NS);
    workers.turns.add(whose(2, 2), 0, 2);
    workers.run(1100 * TURN_NS, &mut random, |_| true);
    let since = (workers.taken(1) - before.0, workers.taken(2) - before.1);
    assert!(since.0.abs_diff(since.1) <= 2 * TURN_NS, "{since:?}");

    // What it took elsewhere is owed even by one that has been away for a moment.
    let mut turns = Turns::new(TURN_NS);
    turns.add(whose(1, 1), 10 * TURN_NS, 1);
    turns.add(whose(2, 2), 0, 2);
    let order: Vec<u64> = (0..12)
        .map(|_| {
            let (whose, one) = turns.next(|_| false).unwrap();
            turns.took(whose, TURN_NS);
            turns.add(whose, 0, one);
            one
        })
        .collect();
    assert_eq!(
        order.iter().filter(|one| **one == 1).count(),
        1,
        "{order:?}"
    );
    assert_eq!(order[10], 1, "{order:?}");
}

#[test]
fn versions_of_a_tenant_take_turns_and_what_is_over_goes_first() {
    let mut turns = Turns::new(TURN_NS);
    for one in 0..10 {
        turns.add(whose(1, 1), 0, one);
    }
    turns.add(whose(1, 2), 0, 100);
    let mut next = |over: fn(&u64) -> bool| {
        let (whose, one) = turns.next(over).unwrap();
        turns.took(whose, TURN_NS);
        one
    };
    assert_eq!(next(|_| false), 0);
    assert_eq!(next(|_| false), 100);
    assert_eq!(next(|one| *one == 7), 7);
    assert_eq!(next(|_| false), 1);
}

#[test]
fn tenants_that_are_gone_leave_nothing_behind() {
    let mut random = random_below(3);
    let mut workers = Workers::new(2);
    for tenant in 0..1000 {
        workers
            .turns
            .add(whose(tenant, tenant), random(5_000_000), tenant);
    }
    workers.run(10_000 * TURN_NS, &mut random, |_| false);
    assert!(workers.turns.next(|_| false).is_none());
    workers.turns.add(whose(5000, 1), 50_000_000, 5000);
    workers.run(20_000 * TURN_NS, &mut random, |one| one == 5000);
    let _ = workers.turns.next(|_| false);
    assert!(
        workers.turns.tenants.len() <= 1,
        "{:?}",
        workers.turns.tenants.len()
    );
}

#[test]
fn who_keeps_the_workers_busy_gets_less_of_the_connections_threads() {
    assert_eq!(first_quantum(0, 2), FIRST_QUANTUM);
    let quanta: Vec<Duration> = (0..100).map(|busy| first_quantum(busy, 2)).collect();
    assert!(quanta.is_sorted_by(|more, less| more >= less));
    assert_eq!((quanta[2], quanta[99]), (FIRST_QUANTUM / 2, MIN_QUANTUM));
    // On a node with more workers the same number weighs less.
    assert!(first_quantum(4, 64) > first_quantum(4, 2));
    assert_eq!(
        first_quantum(usize::MAX, usize::MAX).max(MIN_QUANTUM),
        first_quantum(usize::MAX, usize::MAX)
    );
}

#[test]
fn what_a_tenant_took_elsewhere_is_charged_though_nothing_of_it_waited() {
    let mut turns = Turns::new(TURN_NS);
    turns.add(whose(1, 1), 0, 1);
    turns.add(whose(2, 2), 0, 2);
    // Its short requests, each over before a worker would have had it.
    for _ in 0..20 {
        turns.charge(TenantId(1), TURN_NS / 4);
    }
    for expected in [2, 2, 2, 1] {
        let (whose, one) = turns.next(|_| false).unwrap();
        assert_eq!(one, expected);
        turns.took(whose, TURN_NS * 2);
        turns.add(whose, 0, one);
    }
}

#[test]
fn charges_alone_leave_no_account_for_ever() {
    let mut turns = Turns::new(TURN_NS);
    for tenant in 10..1000 {
        turns.charge(TenantId(tenant), TURN_NS);
    }
    turns.add(whose(1, 1), 0, 1);
    for _ in 0..4 {
        let (whose, one) = turns.next(|_| false).unwrap();
        turns.took(whose, TURN_NS);
        turns.add(whose, 0, one);
    }
    assert_eq!(turns.tenants.len(), 1);
}
