//! Who gets which slot.

use super::*;
use holm_test_support::random_below;
use proptest::prelude::*;

const A: Key = Key(1);
const B: Key = Key(2);

/// A claim of a tenant with one version, as many instances of which there may be as there is room for.
fn of(key: Key) -> Claim {
    Claim {
        key,
        tenant: TenantId(key.0),
        most: usize::MAX,
    }
}

fn pool(slots: u32) -> Core {
    let mut core = Core::default();
    (0..slots).for_each(|n| assert_eq!(core.added(SlotId(n), Holds::Nothing), []));
    core
}

#[test]
fn a_version_gets_the_slot_that_holds_it() {
    let mut pool = pool(3);
    let first = pool.want(Ticket(1), of(A)).unwrap();
    assert!(first.load);
    let other = pool.want(Ticket(2), of(B)).unwrap();
    pool.finished(first.slot, Holds::Pristine(A));
    pool.finished(other.slot, Holds::Pristine(B));
    let again = pool.want(Ticket(3), of(A)).unwrap();
    assert_eq!((again.slot, again.load), (first.slot, false));
}

#[test]
fn an_empty_slot_is_taken_before_another_versions() {
    let mut pool = pool(3);
    let first = pool.want(Ticket(1), of(A)).unwrap();
    pool.finished(first.slot, Holds::Pristine(A));
    let other = pool.want(Ticket(2), of(B)).unwrap();
    assert!(other.slot != first.slot && other.load);
}

#[test]
fn of_other_versions_the_longest_unused_goes() {
    let mut pool = pool(2);
    let a = pool.want(Ticket(1), of(A)).unwrap();
    let b = pool.want(Ticket(2), of(B)).unwrap();
    pool.finished(a.slot, Holds::Pristine(A));
    pool.finished(b.slot, Holds::Pristine(B));
    let third = pool.want(Ticket(3), of(Key(3))).unwrap();
    assert_eq!((third.slot, third.load), (a.slot, true));
}

#[test]
fn a_kept_instance_is_preferred_and_given_to_its_own_version_only() {
    let mut pool = pool(3);
    let kept = pool.want(Ticket(1), of(A)).unwrap();
    let fresh = pool.want(Ticket(2), of(A)).unwrap();
    pool.finished(kept.slot, Holds::Kept(A));
    pool.finished(fresh.slot, Holds::Pristine(A));
    let grant = pool.want(Ticket(3), of(A)).unwrap();
    assert_eq!((grant.slot, grant.load), (kept.slot, false));
    pool.finished(grant.slot, Holds::Kept(A));
    for ticket in 4..6 {
        let grant = pool.want(Ticket(ticket), of(B)).unwrap();
        assert!(
            grant.load,
            "another version's instance must not be used as it is"
        );
    }
}

#[test]
fn one_version_cannot_take_all_slots() {
    let mut pool = pool(4);
    for ticket in 0..3 {
        assert!(pool.want(Ticket(ticket), of(A)).is_some());
    }
    assert_eq!(pool.want(Ticket(3), of(A)), None);
    assert!(pool.want(Ticket(4), of(B)).is_some());
}

#[test]
fn who_waits_is_served_in_order_and_versions_take_turns() {
    let mut pool = pool(1);
    let running = pool.want(Ticket(0), of(A)).unwrap();
    for (ticket, key) in [(1, A), (2, A), (3, B)] {
        assert_eq!(pool.want(Ticket(ticket), of(key)), None);
    }
    let mut served = Vec::new();
    for _ in 0..3 {
        let grants = pool.finished(running.slot, Holds::Nothing);
        assert_eq!(grants.len(), 1);
        served.push(grants[0].ticket.0);
    }
    assert_eq!(served, [1, 3, 2]);
}

#[test]
fn a_cancelled_ticket_is_not_served() {
    let mut pool = pool(1);
    let running = pool.want(Ticket(0), of(A)).unwrap();
    pool.want(Ticket(1), of(A));
    pool.want(Ticket(2), of(A));
    pool.cancel(Ticket(1));
    let grants = pool.finished(running.slot, Holds::Pristine(A));
    assert_eq!(
        grants,
        [Grant {
            ticket: Ticket(2),
            key: A,
            slot: running.slot,
            load: false,
            held: Holds::Pristine(A)
        }]
    );
}

#[test]
fn a_lost_slot_is_replaced_by_an_added_one_that_serves_who_waits() {
    let mut pool = pool(1);
    let running = pool.want(Ticket(0), of(A)).unwrap();
    pool.want(Ticket(1), of(A));
    assert_eq!(pool.lost(running.slot), []);
    let grants = pool.added(SlotId(7), Holds::Nothing);
    assert_eq!(
        grants,
        [Grant {
            ticket: Ticket(1),
            key: A,
            slot: SlotId(7),
            load: true,
            held: Holds::Nothing
        }]
    );
}

#[test]
fn what_held_a_dropped_version_counts_as_empty() {
    let mut pool = pool(2);
    let a = pool.want(Ticket(1), of(A)).unwrap();
    let b = pool.want(Ticket(2), of(B)).unwrap();
    pool.finished(b.slot, Holds::Pristine(B));
    pool.finished(a.slot, Holds::Pristine(A));
    assert!(pool.forget(A).is_empty());
    let grant = pool.want(Ticket(3), of(Key(3))).unwrap();
    assert_eq!(grant.slot, a.slot);
}

#[test]
fn kept_instances_of_a_dropped_version_are_given_out_to_be_ended_once() {
    let mut pool = pool(3);
    let a = pool.want(Ticket(1), of(A)).unwrap();
    let b = pool.want(Ticket(2), of(B)).unwrap();
    pool.finished(a.slot, Holds::Kept(A));
    pool.finished(b.slot, Holds::Kept(B));
    assert_eq!(pool.kept().len(), 2);
    assert_eq!(pool.forget(A), [a.slot]);
    assert!(pool.forget(A).is_empty());
    pool.lost(a.slot);
    assert_eq!(pool.kept(), [B]);
}

#[test]
fn a_slot_is_out_until_it_is_back_or_given_up() {
    let mut pool = pool(3);
    let (kept, lost) = (
        pool.want(Ticket(1), of(A)).unwrap(),
        pool.want(Ticket(2), of(B)).unwrap(),
    );
    assert_eq!((pool.busy(), pool.free()), (2, 1));
    pool.finished(kept.slot, Holds::Kept(A));
    pool.lost(lost.slot);
    assert_eq!((pool.busy(), pool.free()), (0, 2));
    assert_eq!(pool.kept(), [A]);
}

#[test]
fn a_slot_that_comes_back_without_its_version_is_filled_ahead_for_another() {
    let mut pool = pool(1);
    let out = pool.want(Ticket(1), of(A)).unwrap();
    pool.forget(A);
    pool.finished(out.slot, Holds::Nothing);
    assert_eq!(pool.spare(of(B), 1), Some(out.slot));
}

#[test]
fn only_empty_slots_are_filled_ahead_and_only_as_many_as_asked_for() {
    let mut pool = pool(3);
    for _ in 0..2 {
        let slot = pool.spare(of(A), 2).unwrap();
        pool.finished(slot, Holds::Pristine(A));
    }
    assert_eq!(pool.spare(of(A), 2), None);
    let slot = pool.spare(of(B), 1).unwrap();
    pool.finished(slot, Holds::Pristine(B));
    assert_eq!(pool.spare(of(Key(3)), 1), None);
}

#[test]
fn a_version_has_no_more_instances_than_it_may_and_those_who_wait_get_the_one_that_is_kept() {
    let mut pool = pool(4);
    let one = Claim { most: 1, ..of(A) };
    let only = pool.want(Ticket(1), one).unwrap();
    assert_eq!(pool.want(Ticket(2), one), None);
    assert_eq!(pool.spare(one, 3), None);
    let grants = pool.finished(only.slot, Holds::Kept(A));
    assert_eq!((grants[0].ticket, grants[0].load), (Ticket(2), false));
    pool.finished(only.slot, Holds::Kept(A));
    let again = pool.want(Ticket(3), one).unwrap();
    assert_eq!((again.slot, again.load), (only.slot, false));
    // One that is gone makes room for another.
    assert_eq!(pool.want(Ticket(4), one), None);
    let grants = pool.lost(only.slot);
    assert_eq!((grants[0].ticket, grants[0].load), (Ticket(4), true));
}

#[test]
fn who_breaks_slots_waits_for_others_in_their_places_and_leaves_the_rest() {
    let mut pool = pool(4);
    pool.set_tenants(2);
    for ticket in 0..3 {
        let slot = pool.want(Ticket(ticket), of(A)).unwrap().slot;
        assert_eq!(pool.lost(slot), []);
    }
    assert_eq!(pool.want(Ticket(3), of(A)), None);
    assert!(pool.want(Ticket(4), of(B)).is_some());
    let grants = pool.added(SlotId(10), Holds::Nothing);
    assert_eq!((grants.len(), grants[0].ticket), (1, Ticket(3)));
}

#[test]
fn what_is_given_back_is_what_was_not_used_for_longest() {
    let mut pool = pool(4);
    let slots = [1, 2, 3].map(|n| pool.want(Ticket(n), of(A)).unwrap().slot);
    pool.finished(slots[1], Holds::Kept(A));
    pool.finished(slots[0], Holds::Pristine(A));
    assert_eq!(pool.holding(A), 3);
    assert_eq!(pool.release(A, 3), []);
    assert_eq!(pool.release(A, 2), [slots[1]]);
    // What is in use stays.
    pool.lost(slots[1]);
    assert_eq!(pool.release(A, 0), [slots[0]]);
    pool.lost(slots[0]);
    assert_eq!(pool.holding(A), 1);
}

#[test]
fn a_tenant_with_many_functions_and_callers_leaves_another_its_part() {
    for seed in 0..200u64 {
        let mut below = random_below(seed);
        let mut pool = pool(8);
        pool.set_tenants(2);
        let greedy = |function: u64| Claim {
            key: Key(10 + function),
            tenant: TenantId(1),
            most: usize::MAX,
        };
        let modest = Claim {
            key: Key(1),
            tenant: TenantId(2),
            most: usize::MAX,
        };
        let (mut busy, mut next) = (Vec::new(), 0);
        let (mut waits, mut longest) = (None::<(u64, u64)>, 0);
        for turn in 0..2000 {
            let mut grants = Vec::new();
            // As many as may wait, of any of its functions.
            for _ in 0..3 {
                next += 1;
                grants.extend(pool.want(Ticket(next), greedy(below(10))));
            }
            // One at a time.
            let runs = busy.iter().any(|(_, tenant)| *tenant == modest.tenant);
            if waits.is_none() && !runs {
                next += 1;
                waits = Some((next, turn));
                grants.extend(pool.want(Ticket(next), modest));
            }
            if !busy.is_empty() && below(2) == 0 {
                let (slot, _) = busy.swap_remove(below(busy.len() as u64) as usize);
                grants.extend(pool.finished(slot, Holds::Nothing));
            }
            for grant in grants {
                let is_modest = waits.is_some_and(|(ticket, _)| grant.ticket == Ticket(ticket));
                if let Some((_, since)) = waits.filter(|_| is_modest) {
                    longest = longest.max(turn - since);
                    waits = None;
                }
                let tenant = if is_modest {
                    modest.tenant
                } else {
                    TenantId(1)
                };
                busy.push((grant.slot, tenant));
            }
        }
        assert_eq!((longest, waits), (0, None), "seed {seed}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Want(u64),
    Finish(usize, bool),
    Lose(usize),
    Cancel(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4u64).prop_map(Step::Want),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(n, kept)| Step::Finish(n, kept)),
        1 => any::<usize>().prop_map(Step::Lose),
        1 => any::<usize>().prop_map(Step::Cancel),
    ]
}

proptest! {
    /// Whatever happens, a slot has one user, nobody is served twice, and nobody waits while a
    /// slot is free and the version is below its share.
    #[test]
    fn no_slot_is_given_twice_and_nobody_is_forgotten(
        slots in 1..6u32, steps in proptest::collection::vec(step(), 0..200)
    ) {
        let mut pool = pool(slots);
        // Of two tenants, each with two versions; of one of them there may be no more than two instances.
        pool.set_tenants(2);
        let claim = |key: u64| Claim {
            key: Key(key),
            tenant: TenantId(key % 2),
            most: if key == 0 { 2 } else { usize::MAX },
        };
        let mut next_slot = slots;
        let mut users: BTreeMap<SlotId, (Ticket, Key)> = BTreeMap::new();
        let mut waiting: BTreeMap<Ticket, Key> = BTreeMap::new();
        for (n, step) in steps.into_iter().enumerate() {
            let nth = |n: usize, users: &BTreeMap<SlotId, (Ticket, Key)>| {
                (!users.is_empty()).then(|| *users.keys().nth(n % users.len()).unwrap())
            };
            let grants = match step {
                Step::Want(key) => {
                    let ticket = Ticket(n as u64);
                    waiting.insert(ticket, Key(key));
                    pool.want(ticket, claim(key)).into_iter().collect()
                }
                Step::Finish(n, kept) => match nth(n, &users) {
                    None => continue,
                    Some(slot) => {
                        let (_, key) = users.remove(&slot).unwrap();
                        let holds =
                            if kept { Holds::Kept(key) } else { Holds::Pristine(key) };
                        pool.finished(slot, holds)
                    }
                },
                Step::Lose(n) => match nth(n, &users) {
                    None => continue,
                    Some(slot) => {
                        users.remove(&slot);
                        let mut grants = pool.lost(slot);
                        next_slot += 1;
                        grants.extend(pool.added(SlotId(next_slot), Holds::Nothing));
                        grants
                    }
                },
                Step::Cancel(n) if !waiting.is_empty() => {
                    let ticket = *waiting.keys().nth(n % waiting.len()).unwrap();
                    waiting.remove(&ticket);
                    pool.cancel(ticket);
                    continue;
                }
                Step::Cancel(_) => continue,
            };
            for grant in grants {
                let key = waiting.remove(&grant.ticket).expect("only who waits is served");
                let before = users.insert(grant.slot, (grant.ticket, key));
                prop_assert!(before.is_none(), "slot {:?} has two users", grant.slot);
            }
            prop_assert_eq!(pool.free() + users.len(), slots as usize);
            let share = pool.share();
            for key in waiting.values() {
                let held = users.values().filter(|(_, held)| held == key).count();
                let tenant = |key: &Key| key.0 % 2;
                let all = users.values().filter(|(_, held)| tenant(held) == tenant(key)).count();
                let kept = pool.kept().iter().filter(|kept| *kept == key).count();
                let most = claim(key.0).most;
                prop_assert!(
                    held.max(all) >= share || pool.free() == 0 || kept == 0 && held >= most,
                    "{:?} waits for nothing", key
                );
                prop_assert!(held + kept <= most);
            }
        }
    }
}

#[test]
fn a_slot_that_is_made_with_the_version_of_the_one_before_it_serves_it_without_a_load() {
    let mut pool = pool(2);
    let first = pool.want(Ticket(1), of(A)).unwrap();
    assert_eq!(pool.lost(first.slot), []);
    assert_eq!(pool.want(Ticket(2), of(A)), None, "the share is in use");
    let grants = pool.added(SlotId(7), Holds::Pristine(A));
    let [grant] = grants[..] else {
        panic!("{grants:?}")
    };
    assert_eq!((grant.slot, grant.load), (SlotId(7), false));
}

/// Fills ahead as the pool does, until there is nothing to fill.
fn fill(pool: &mut Core, versions: &[Claim], count: impl Fn(Key) -> usize) {
    for turn in 0.. {
        let spare = |claim: &Claim| Some((pool.spare(*claim, count(claim.key))?, claim.key));
        let Some((slot, key)) = versions.iter().find_map(spare) else {
            return;
        };
        pool.finished(slot, Holds::Pristine(key));
        assert!(turn < 1000, "versions take each other's slots for ever");
    }
}

#[test]
fn a_new_version_gets_its_min_where_all_slots_hold_others() {
    let mut pool = pool(4);
    fill(&mut pool, &[of(A)], |_| 4);
    assert_eq!(pool.holding(A), 4);
    // Only as an empty slot is there.
    assert_eq!(pool.spare(of(B), 2), None);
    pool.set_least([(A, 1), (B, 2)].into());
    fill(&mut pool, &[of(A), of(B)], |_| 4);
    assert_eq!((pool.holding(A), pool.holding(B)), (2, 2));
    // Nor does another's request take what is promised while there is something else.
    for ticket in 1..3 {
        let grant = pool.want(Ticket(ticket), of(Key(3))).unwrap();
        pool.finished(grant.slot, Holds::Nothing);
        assert_eq!((pool.holding(A), pool.holding(B)), (1, 2));
    }
}

#[test]
fn more_than_there_is_may_be_promised_and_the_first_have_theirs() {
    let mut pool = pool(3);
    pool.set_least([(A, 2), (B, 2)].into());
    assert_eq!(pool.promised(), 4);
    fill(&mut pool, &[of(A), of(B)], |_| 2);
    assert_eq!((pool.holding(A), pool.holding(B)), (2, 1));
}

#[test]
fn whatever_comes_each_version_has_its_min_again_when_it_is_over() {
    for seed in 0..300u64 {
        let mut below = random_below(seed);
        let slots = 2 + below(8) as u32;
        let mut pool = pool(slots);
        pool.set_tenants(2);
        let versions: Vec<Claim> = (0..1 + below(6))
            .map(|key| Claim {
                key: Key(key),
                tenant: TenantId(key % 2),
                most: usize::MAX,
            })
            .collect();
        let mut left = u64::from(slots);
        let mut least = BTreeMap::new();
        for claim in &versions {
            let min = below(1 + left);
            left -= min;
            least.insert(claim.key, min as usize);
        }
        pool.set_least(least.clone());
        let target = |key: Key| least[&key].max(1);
        let (mut busy, mut next_slot) = (Vec::<Grant>::new(), slots);
        for ticket in 0..200 {
            let claim = versions[below(versions.len() as u64) as usize];
            let mut grants: Vec<Grant> = pool.want(Ticket(ticket), claim).into_iter().collect();
            while busy.len() as u64 > below(u64::from(slots)) {
                let Grant { slot, key, .. } = busy.swap_remove(below(busy.len() as u64) as usize);
                grants.extend(match below(4) {
                    0 => {
                        next_slot += 1;
                        let mut grants = pool.lost(slot);
                        grants.extend(pool.added(SlotId(next_slot), Holds::Pristine(key)));
                        grants
                    }
                    1 => pool.finished(slot, Holds::Kept(key)),
                    _ => pool.finished(slot, Holds::Pristine(key)),
                });
            }
            busy.extend(grants);
            if below(3) == 0 {
                fill(&mut pool, &versions, target);
            }
        }
        while let Some(Grant { slot, key, .. }) = busy.pop() {
            busy.extend(pool.finished(slot, Holds::Pristine(key)));
        }
        fill(&mut pool, &versions, target);
        for (key, least) in &least {
            assert!(pool.holding(*key) >= *least, "seed {seed}: {key:?}");
        }
    }
}

#[test]
fn what_takes_the_place_of_one_that_is_gone_counts_as_ahead_already() {
    let mut pool = pool(4);
    let slot = pool.spare(of(A), 1).unwrap();
    // The janitor has it meanwhile.
    assert_eq!(pool.lost(slot), []);
    assert_eq!(pool.spare(of(A), 1), None);
    let other = pool.spare(of(B), 1).unwrap();
    assert_eq!(pool.lost(other), []);
    // It is its own place that it takes, whatever the order in which they come.
    assert_eq!(pool.added(SlotId(10), Holds::Pristine(B)), []);
    assert_eq!(pool.spare(of(A), 1), None);
    assert_eq!(pool.spare(of(B), 1), None);
}

#[test]
fn when_memory_is_short_what_was_unused_for_longest_goes_but_for_what_is_promised() {
    for seed in 0..200u64 {
        let mut below = random_below(seed);
        let slots = 2 + below(10) as u32;
        let mut pool = pool(slots);
        let versions = [A, B, Key(3)];
        let promised: Vec<_> = versions.map(|key| (key, below(4) as usize)).into();
        pool.set_least(promised.iter().copied().collect());
        let mut used = Vec::new();
        for ticket in 0..u64::from(slots) {
            let key = versions[below(3) as usize];
            match pool.want(Ticket(ticket), of(key)) {
                Some(grant) => used.push(grant),
                None => pool.cancel(Ticket(ticket)),
            }
        }
        // Some stay in use.
        let idle = used.split_off(below(used.len() as u64) as usize);
        for grant in &idle {
            pool.finished(grant.slot, Holds::Pristine(grant.key));
        }
        let before = versions.map(|key| pool.holding(key));
        let mut gone = Vec::new();
        loop {
            let some = pool.relieve(2);
            assert!(some.len() <= 2, "seed {seed}");
            if some.is_empty() {
                break;
            }
            some.iter()
                .for_each(|slot| assert_eq!(pool.lost(*slot), []));
            gone.extend(some);
        }
        // In the order in which they were used last, where several of a version go.
        for key in versions {
            let of_key =
                |slot: &&SlotId| idle.iter().any(|one| one.slot == **slot && one.key == key);
            let order: Vec<_> = gone.iter().filter(of_key).collect();
            let at = |slot: &SlotId| idle.iter().position(|one| one.slot == *slot);
            assert!(
                order.is_sorted_by_key(|slot| at(slot)),
                "seed {seed}: {order:?}"
            );
        }
        for ((key, least), before) in promised.into_iter().zip(before) {
            let in_use = used.iter().filter(|grant| grant.key == key).count();
            let left = before.min(least).max(in_use);
            assert_eq!(pool.holding(key), left, "seed {seed}: {key:?}");
        }
    }
}
