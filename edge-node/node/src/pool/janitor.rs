//! Makes and drops slots on a thread of its own, because both take milliseconds, and tells kept instances to end.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use holm_model::ids::RequestId;
use holm_vmm::{Failure, Hypervisor, Slot, Snapshot, VmmError};
use tokio::sync::mpsc::UnboundedSender;

use crate::limits::{MAX_ENDINGS, MAX_LOGGED_BYTES, SLOT_RETRY, TERMINATE_DEADLINE};
use crate::logs::Logs;

/// Pause between two looks for an ending that is over.
const ENDING_LOOK: Duration = Duration::from_millis(1);

/// Makes and drops slots away from the request path. At most as many chores wait as there are slots.
#[derive(Clone, Debug)]
pub(crate) struct Janitor(mpsc::Sender<Chore>);

#[derive(Debug)]
struct Chore {
    old: Option<Box<Slot>>,
    /// Where a new slot goes, if one is to be made.
    to: Option<UnboundedSender<Box<Slot>>>,
}

impl Janitor {
    /// Starts the janitor's thread, which ends when every handle is gone.
    pub(crate) fn start(
        hypervisor: Hypervisor,
        logs: Arc<Logs>,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (sender, chores) = mpsc::channel::<Chore>();
        let thread = std::thread::Builder::new()
            .name("holm-janitor".into())
            .spawn(move || {
                let mut endings = Endings::default();
                let mut patient_until = None;
                for Chore { old, to } in chores {
                    // Somebody waits for a new slot; when the node stops nobody does, and there is time for
                    // more endings than may go on at once, in turn.
                    let until = match &to {
                        Some(_) => Instant::now(),
                        None => *patient_until
                            .get_or_insert_with(|| Instant::now() + TERMINATE_DEADLINE),
                    };
                    let held = old.as_ref().and_then(|slot| slot.holds().cloned());
                    if let Some(slot) = old {
                        part_with(&mut endings, slot, until, &logs);
                    }
                    if let Some(to) = to {
                        make(&hypervisor, &to, held.as_deref());
                    }
                }
                endings.join();
            })?;
        Ok((Janitor(sender), thread))
    }

    /// Has `old` dropped and, if `to` is there, a new slot made that goes to it.
    pub(super) fn replace(&self, old: Option<Box<Slot>>, to: Option<UnboundedSender<Box<Slot>>>) {
        if self.0.send(Chore { old, to }).is_err() {
            tracing::error!("the janitor has ended; a slot is not replaced");
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

/// Makes one slot, with room for what the one before it held, however often it must be tried, unless nobody wants
/// it any more.
fn make(hypervisor: &Hypervisor, to: &UnboundedSender<Box<Slot>>, held: Option<&Snapshot>) {
    let with_room = || {
        let mut slot = Slot::new(hypervisor)?;
        if let Some(held) = held {
            slot.make_room(held)?;
        }
        Ok::<_, VmmError>(slot)
    };
    while !to.is_closed() {
        match with_room() {
            // If the pool has gone in the meantime the slot goes with it.
            Ok(slot) => return drop(to.send(Box::new(slot))),
            Err(error) => {
                tracing::error!(%error, "no new slot; trying on");
                std::thread::sleep(SLOT_RETRY);
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
}
