//! What goes wrong in a run, and when: always the same from a seed.

use std::fmt;

/// When the last fault begins, at the latest.
const BEGIN_MS: u64 = 1400;
/// Longer than both sides of a link take to give it up.
const LONG_CUT_MS: u64 = 3600;
/// The least that a clock jumps: more than anything takes here, so that it shows where a duration is taken from it.
pub(crate) const LEAST_JUMP_SECONDS: u64 = 300;
const MOST_JUMP_SECONDS: u64 = 6 * 3600;
/// The most that a coordinator's clock is ahead. One that is started while it is more than an hour ahead shows nodes a
/// certificate that is not valid yet when the clock is right again, and they stay away until it is started once more.
const COORDINATOR_AHEAD_SECONDS: i64 = 3000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// SIGKILL; started again at the end.
    NodeKilled,
    CoordinatorKilled,
    /// Nothing passes between them.
    Cut,
    /// Batches get to the coordinator, and its answers get lost: so the node sends them again.
    Unanswered,
    /// What the node sent comes late, after what it sends when it was killed and started again, and the last first.
    Held,
    /// Datagrams get lost, come twice and overtake one another.
    Rough,
    /// The disk with the node's state is full.
    DiskFull,
    /// A clock shows so many seconds more.
    NodeClock(i64),
    CoordinatorClock(i64),
}

/// What can be done here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Means {
    pub(crate) disks: bool,
    pub(crate) clocks: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    begin_ms: u64,
    end_ms: u64,
}

/// Faults, some at the same time.
#[derive(Clone, Debug)]
pub(crate) struct Plan(Vec<Fault>);

impl Plan {
    pub(crate) fn new(means: Means, random: &mut impl FnMut(u64) -> u64) -> Plan {
        let mut faults = Vec::new();
        for _ in 0..3 + random(3) {
            let begin_ms = random(BEGIN_MS);
            let (kind, length_ms) = match random(18) {
                0..3 => (Kind::NodeKilled, random(400)),
                3..6 => (Kind::CoordinatorKilled, random(400)),
                6..8 if random(6) == 0 => (Kind::Cut, LONG_CUT_MS),
                6..8 => (Kind::Cut, 100 + random(1000)),
                8..10 => (Kind::Unanswered, 250 + random(600)),
                10..12 => (Kind::Rough, 300 + random(1200)),
                12..14 => (Kind::DiskFull, 200 + random(1000)),
                14..16 => (Kind::Held, 300 + random(1700)),
                16 => (Kind::NodeClock(jump(random)), 100 + random(1200)),
                _ => {
                    let seconds = jump(random).min(COORDINATOR_AHEAD_SECONDS);
                    (Kind::CoordinatorClock(seconds), 100 + random(1200))
                }
            };
            let end_ms = begin_ms + length_ms;
            faults.push(Fault {
                kind,
                begin_ms,
                end_ms,
            });
            // Killed before it hears that the ledger has what it sent, or while that is on its way.
            let killed_ms = match kind {
                Kind::Unanswered => end_ms - 1 - random(100),
                Kind::Held => begin_ms + 250,
                _ => continue,
            };
            if random(2) == 0 {
                faults.push(Fault {
                    kind: Kind::NodeKilled,
                    begin_ms: killed_ms,
                    end_ms: killed_ms + random(200),
                });
            }
        }
        faults.retain(|fault| match fault.kind {
            Kind::DiskFull => means.disks,
            Kind::NodeClock(_) | Kind::CoordinatorClock(_) => means.clocks,
            _ => true,
        });
        Plan(faults)
    }

    /// What begins (true) and ends, and at which millisecond, in order. Everything that begins ends.
    pub(crate) fn events(&self) -> Vec<(u64, bool, Fault)> {
        let each = |fault: &Fault| {
            [
                (fault.begin_ms, true, *fault),
                (fault.end_ms, false, *fault),
            ]
        };
        let mut events: Vec<_> = self.0.iter().flat_map(each).collect();
        // One of no length begins before it ends.
        events.sort_by_key(|(at_ms, begins, _)| (*at_ms, !begins));
        events
    }
}

fn jump(random: &mut impl FnMut(u64) -> u64) -> i64 {
    let span = MOST_JUMP_SECONDS - LEAST_JUMP_SECONDS;
    let seconds = (LEAST_JUMP_SECONDS + random(span)).cast_signed();
    if random(2) == 0 { seconds } else { -seconds }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, fault) in self.0.iter().enumerate() {
            let comma = if number > 0 { ", " } else { "" };
            let Fault {
                kind,
                begin_ms,
                end_ms,
            } = fault;
            write!(f, "{comma}{kind:?} {begin_ms}..{end_ms} ms")?;
        }
        Ok(())
    }
}
