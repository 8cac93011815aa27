//! Makes, renews, fills ahead and drops slots on a thread of its own, because all of that takes milliseconds, and tells
//! kept instances to end.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use holm_model::ids::RequestId;
use holm_vmm::{Failure, Hypervisor, Slot, Snapshot, VmmError};
use tokio::sync::mpsc::UnboundedSender;

use crate::limits::{MAX_ENDINGS, MAX_LOGGED_BYTES, SLOT_RETRY, TERMINATE_DEADLINE};
use crate::logs::Logs;

/// Pause between two looks for an ending that is over.
const ENDING_LOOK: Duration = Duration::from_millis(1);

/// Works on slots away from the request path. At most as many chores wait as there are slots.
#[derive(Clone, Debug)]
pub(crate) struct Janitor(mpsc::Sender<Chore<Box<Slot>>>);

#[derive(Debug)]
struct Chore<T> {
    old: Option<T>,
    /// Where a new slot goes, if one is to be made.
    to: Option<UnboundedSender<T>>,
    filling: Filling,
    /// What is tried with the old one, before another takes its place.
    again: Option<Again>,
}

/// How a slot is made fit for use once more.
#[derive(Debug)]
enum Again {
    /// A fresh instance of what it holds takes the place of one that is in the middle of something.
    Renew,
    /// It gets a fresh instance of that, ahead of any request.
    Fill(Arc<Snapshot>),
}

/// What a new slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filling {
    /// Nothing, but it has room for what the old one held.
    None,
    /// A fresh instance of that.
    Same,
}

/// What the slot before held, and what of it the new one is to.
type Like = (Arc<Snapshot>, Filling);

impl Janitor {
    /// Starts the janitor's thread, which ends when every handle is gone.
    pub(crate) fn start(
        hypervisor: Hypervisor,
        logs: Arc<Logs>,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (sender, chores) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("holm-janitor".into())
            .spawn(move || {
                let mut endings = Endings::default();
                let mut patient_until = None;
                let part = |old: Box<Slot>, awaited: bool| {
                    // Somebody waits for a new slot; when the node stops nobody does, and there is time for
                    // more endings than may go on at once, in turn.
                    let until = match awaited {
                        true => Instant::now(),
                        false => *patient_until
                            .get_or_insert_with(|| Instant::now() + TERMINATE_DEADLINE),
                    };
                    let held = old.holds().cloned();
                    part_with(&mut endings, old, until, &logs);
                    held
                };
                work(&chores, part, mend, |like| make(&hypervisor, like));
                endings.join();
            })?;
        Ok((Janitor(sender), thread))
    }

    /// Has `old` dropped and, if `to` is there, a new slot made that goes to it.
    pub(super) fn replace(
        &self,
        old: Option<Box<Slot>>,
        to: Option<UnboundedSender<Box<Slot>>>,
        filling: Filling,
    ) {
        self.send(Chore {
            old,
            to,
            filling,
            again: None,
        });
    }

    /// Has `slot` made a fresh instance of what it holds, or another in its place; it goes to `to`.
    pub(super) fn renew(&self, slot: Box<Slot>, to: UnboundedSender<Box<Slot>>) {
        self.send(Chore::again(slot, to, Again::Renew));
    }

    /// Has `slot` made a fresh instance of `snapshot` ahead of any request, or another in its place.
    pub(super) fn fill(
        &self,
        slot: Box<Slot>,
        snapshot: Arc<Snapshot>,
        to: UnboundedSender<Box<Slot>>,
    ) {
        self.send(Chore::again(slot, to, Again::Fill(snapshot)));
    }

    fn send(&self, chore: Chore<Box<Slot>>) {
        if self.0.send(chore).is_err() {
            tracing::error!("the janitor has ended; a slot is not replaced");
        }
    }
}

impl<T> Chore<T> {
    fn again(old: T, to: UnboundedSender<T>, again: Again) -> Self {
        Chore {
            old: Some(old),
            to: Some(to),
            filling: Filling::Same,
            again: Some(again),
        }
    }
}

/// A slot that could not be made yet.
struct Owed<T, L> {
    to: UnboundedSender<T>,
    like: Option<L>,
}

/// Does chores until nobody is left who could have more. A slot that cannot be made is tried again and again as long
/// as it is wanted, and holds no other chore up.
fn work<T, H, E: Display>(
    chores: &mpsc::Receiver<Chore<T>>,
    mut part: impl FnMut(T, bool) -> Option<H>,
    mut mend: impl FnMut(T, &Again) -> Result<T, Option<H>>,
    mut make: impl FnMut(Option<&(H, Filling)>) -> Result<T, E>,
) {
    let mut owed: VecDeque<Owed<T, (H, Filling)>> = VecDeque::new();
    let mut again_at = Instant::now();
    loop {
        let chore = match owed.is_empty() {
            true => chores.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => chores.recv_timeout(again_at.saturating_duration_since(Instant::now())),
        };
        match chore {
            Ok(Chore {
                old,
                to,
                filling,
                again,
            }) => {
                let result = match (old, again) {
                    // Somebody still waits for it.
                    (Some(old), Some(again)) if to.as_ref().is_some_and(|to| !to.is_closed()) => {
                        mend(old, &again)
                    }
                    (old, _) => Err(old.and_then(|old| part(old, to.is_some()))),
                };
                match (result, to) {
                    // If the pool has gone in the meantime the slot goes with it.
                    (Ok(slot), Some(to)) => drop(to.send(slot)),
                    (Err(held), Some(to)) => {
                        let like = held.map(|held| (held, filling));
                        owed.push_back(Owed { to, like });
                    }
                    (_, None) => {}
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        owed.retain(|one| !one.to.is_closed());
        // One that failed tells of the others.
        while Instant::now() >= again_at
            && let Some(one) = owed.pop_front()
        {
            match make(one.like.as_ref()) {
                Ok(slot) => drop(one.to.send(slot)),
                Err(error) => {
                    tracing::error!(%error, owed = owed.len() + 1, "no new slot; trying on");
                    owed.push_back(one);
                    again_at = Instant::now() + SLOT_RETRY;
                }
            }
        }
    }
}

/// Threads on which kept instances come to their ends, [`MAX_ENDINGS`] at most: each holds its VM for up to
/// [`TERMINATE_DEADLINE`] while another is made in its place.
#[derive(Debug, Default)]
struct Endings(Vec<JoinHandle<()>>);

impl Endings {
    /// Whether one more may begin, if need be after waiting until `until` for another to be over.
    fn has_room(&mut self, until: Instant) -> bool {
        loop {
            self.0.retain(|ending| !ending.is_finished());
            if self.0.len() < MAX_ENDINGS {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(ENDING_LOOK);
        }
    }

    fn begin(&mut self, ending: impl FnOnce() + Send + 'static) {
        let thread = std::thread::Builder::new().name("holm-ending".into());
        match thread.spawn(ending) {
            Ok(thread) => self.0.push(thread),
            Err(error) => tracing::error!(%error, "no thread for the end of an instance"),
        }
    }

    fn join(self) {
        for ending in self.0 {
            if ending.join().is_err() {
                tracing::error!("an instance could not be told to end");
            }
        }
    }
}

/// Drops a slot. One with an instance that was kept and waits is told to end first, which may take its time, if
/// there is room for that until `until`.
fn part_with(endings: &mut Endings, mut slot: Box<Slot>, until: Instant, logs: &Arc<Logs>) {
    if !slot.is_kept() {
        return;
    }
    if !endings.has_room(until) {
        tracing::warn!(
            "{MAX_ENDINGS} instances are ending already; another one is dropped without being told (SIGTERM)"
        );
        return;
    }
    let owner = slot.holds().and_then(|snapshot| logs.owner(snapshot));
    let logs = logs.clone();
    endings.begin(move || {
        match slot.terminate(Instant::now() + TERMINATE_DEADLINE) {
            Ok(Some(Failure::Crash(report))) => tracing::info!(%report, "an instance has ended"),
            Ok(Some(failure)) => {
                tracing::warn!(%failure, "an instance did not end when it was told to")
            }
            Ok(None) => tracing::info!("an instance went on waiting when it was told to end"),
            Err(error) => tracing::error!(%error, "an instance could not be told to end"),
        }
        let log = slot.take_log();
        if !log.is_empty() {
            let text = String::from_utf8_lossy(&log[..log.len().min(MAX_LOGGED_BYTES)]);
            tracing::info!(target: "holm::function", text = text.trim_end(), "at its end");
            if let Some((function, version)) = owner {
                logs.add_of(&function, version, RequestId::NONE, false, &text);
            }
        }
    });
}

/// Makes a slot fit for use again; if that cannot be, says what another in its place is to hold.
fn mend(mut slot: Box<Slot>, again: &Again) -> Result<Box<Slot>, Option<Arc<Snapshot>>> {
    let wanted = match again {
        Again::Renew => slot.holds().cloned(),
        Again::Fill(snapshot) => Some(snapshot.clone()),
    };
    let done = match again {
        Again::Renew => slot.renew(),
        Again::Fill(snapshot) => slot.load_ahead(snapshot),
    };
    match done {
        Ok(()) => Ok(slot),
        Err(error) => {
            tracing::error!(%error, "a slot could not be made fresh; another takes its place");
            Err(wanted)
        }
    }
}

/// Makes one slot. Mapping memory waits for the process's other threads, for as long as those have faults, and so is
/// not for a thread that serves connections.
fn make(hypervisor: &Hypervisor, like: Option<&Like>) -> Result<Box<Slot>, VmmError> {
    let mut slot = Slot::new(hypervisor)?;
    match like {
        Some((held, Filling::Same)) => slot.load(held)?,
        Some((held, Filling::None)) => slot.make_room(held)?,
        None => {}
    }
    Ok(Box::new(slot))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[test]
    fn no_more_instances_end_at_a_time_than_there_is_room_for() {
        let mut endings = Endings::default();
        let (release, held) = mpsc::channel::<()>();
        let held = std::sync::Arc::new(std::sync::Mutex::new(held));
        for _ in 0..MAX_ENDINGS {
            assert!(endings.has_room(Instant::now()));
            let held = held.clone();
            // Until it is released, or the test is over.
            endings.begin(move || held.lock().unwrap().recv().unwrap_or_default());
        }
        assert!(!endings.has_room(Instant::now()));
        assert!(!endings.has_room(Instant::now() + Duration::from_millis(20)));
        release.send(()).unwrap();
        assert!(endings.has_room(Instant::now() + Duration::from_secs(30)));
        drop(release);
        endings.join();
    }

    #[test]
    fn a_slot_is_made_fit_again_or_another_takes_its_place_and_nobody_waits_for_one_that_is_gone() {
        let (chores, receiver) = mpsc::channel();
        let (to, mut made) = unbounded_channel();
        let (nobody, _) = unbounded_channel();
        for (old, to) in [(1, &to), (2, &to), (3, &nobody)] {
            let chore = Chore::again(old, to.clone(), Again::Renew);
            chores.send(chore).unwrap();
        }
        drop((chores, to));
        let mut dropped = Vec::new();
        let part = |old: u32, _| {
            dropped.push(old);
            None
        };
        let mend = |old: u32, _: &Again| match old {
            1 => Ok(11),
            _ => Err(Some(old)),
        };
        let make = |like: Option<&(u32, Filling)>| match like {
            Some((held, Filling::Same)) => Ok(100 + held),
            _ => Err("another than the one that was held"),
        };
        work(&receiver, part, mend, make);
        let came: Vec<_> = std::iter::from_fn(|| made.blocking_recv()).collect();
        assert_eq!((came, dropped), (vec![11, 102], vec![3]));
    }

    #[test]
    fn a_slot_that_cannot_be_made_holds_up_nothing_else_and_comes_when_it_can() {
        let (chores, receiver) = mpsc::channel();
        let (parted, parts) = mpsc::channel();
        let works = Arc::new(AtomicBool::new(false));
        let can = works.clone();
        let janitor = std::thread::spawn(move || {
            let part = |old: u32, _| {
                parted.send(old).unwrap();
                Some(old)
            };
            let make = |like: Option<&(u32, Filling)>| match can.load(Ordering::Relaxed) {
                true => Ok(100 + like.map_or(0, |(held, _)| *held)),
                false => Err("no memory"),
            };
            work(&receiver, part, |old, _| Ok(old), make);
        });
        let (to, mut made) = unbounded_channel();
        let (gone, _) = unbounded_channel();
        let replace = |old, to: &UnboundedSender<u32>| {
            let chore = Chore {
                old: Some(old),
                to: Some(to.clone()),
                filling: Filling::Same,
                again: None,
            };
            chores.send(chore).unwrap();
        };
        for (old, to) in [(1, &to), (2, &gone), (3, &to)] {
            replace(old, to);
        }
        let patience = Duration::from_secs(10);
        let parted: Vec<u32> = (0..3)
            .map(|_| parts.recv_timeout(patience).unwrap())
            .collect();
        assert_eq!(parted, [1, 2, 3]);
        assert!(made.try_recv().is_err());
        works.store(true, Ordering::Relaxed);
        let mut came = [made.blocking_recv().unwrap(), made.blocking_recv().unwrap()];
        came.sort_unstable();
        assert_eq!(came, [101, 103]);
        drop(chores);
        janitor.join().unwrap();
    }
}
