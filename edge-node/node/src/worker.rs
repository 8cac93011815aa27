//! The threads that go on with a request when the connection's thread has given it its first quantum.
//!
//! Running slots wait for their turns ([`crate::fair`]) and get a slice each, so that a program that loops takes
//! no more than its tenant's share. There are never more jobs than slots.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use holm_vmm::{Failure, Place, Rest, Slot, Step, Urgency};
use tokio::sync::oneshot;

use crate::deploy::prepare::nanos;
use crate::fair::{Turns, Whose};
use crate::limits::SLICE;
use crate::pool::core::TenantId;

#[derive(Debug)]
enum Work {
    Run {
        /// Of the request whose deadline is the first.
        deadline: Instant,
        cancelled: Arc<AtomicBool>,
        done: oneshot::Sender<(Box<Slot>, Step)>,
    },
    GoOn {
        bounds: Bounds,
        done: oneshot::Sender<(Box<Slot>, Result<Rest, Failure>)>,
    },
}

/// What a guest may take to its next wait for a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) deadline: Instant,
    /// Most CPU time of its instance since that had no request.
    pub(crate) cpu: Duration,
}

#[derive(Debug)]
struct Job {
    slot: Box<Slot>,
    work: Work,
}

impl Work {
    /// Whether nobody wants it any more.
    fn is_given_up(&self) -> bool {
        match self {
            Work::Run {
                cancelled, done, ..
            } => cancelled.load(Ordering::Relaxed) || done.is_closed(),
            Work::GoOn { done, .. } => done.is_closed(),
        }
    }

    fn deadline(&self) -> Instant {
        match self {
            Work::Run { deadline, .. } => *deadline,
            Work::GoOn { bounds, .. } => bounds.deadline,
        }
    }
}

impl Job {
    /// Whether it is not to run any more: then it takes no time, and somebody waits for its end.
    fn is_over(&self, now: Instant) -> bool {
        now >= self.work.deadline() || self.work.is_given_up()
    }
}

#[derive(Debug)]
struct Queue {
    jobs: Mutex<Jobs>,
    /// How many there are, those that run included.
    count: AtomicUsize,
    some: Condvar,
}

#[derive(Debug)]
struct Jobs {
    turns: Turns<Job>,
    stopped: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        // Nothing can panic while the lock is held.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, whose: Whose, here: Duration, job: Job) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.lock().turns.add(whose, nanos(here), job);
        self.some.notify_one();
    }

    /// Charges a tenant for what it took elsewhere, if others may have to wait for it.
    fn charge(&self, tenant: TenantId, here: Duration) {
        if self.count.load(Ordering::Relaxed) > 0 {
            self.lock().turns.charge(tenant, nanos(here));
        }
    }

    fn pop(&self) -> Option<(Whose, Job)> {
        let mut jobs = self.lock();
        loop {
            if jobs.stopped {
                return None;
            }
            let now = Instant::now();
            if let Some(next) = jobs.turns.next(|job| job.is_over(now)) {
                return Some(next);
            }
            jobs = self.some.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A slice is over, and the job wants another one if it is here.
    fn sliced(&self, whose: Whose, took: Duration, again: Option<Job>) {
        let mut jobs = self.lock();
        jobs.turns.took(whose, nanos(took));
        match again.filter(|_| !jobs.stopped) {
            Some(job) => jobs.turns.add(whose, 0, job),
            None => drop(self.count.fetch_sub(1, Ordering::Relaxed)),
        }
    }
}

/// The worker threads.
#[derive(Debug)]
pub(crate) struct Workers {
    queue: Arc<Queue>,
    count: usize,
}

/// A slot that a worker runs.
#[derive(Debug)]
pub(crate) struct Handed {
    /// Comes with the slot and anything but [`Step::Yielded`], except after [`Handed::cancel`] and with a part
    /// of an answer.
    pub(crate) done: oneshot::Receiver<(Box<Slot>, Step)>,
    cancelled: Arc<AtomicBool>,
}

impl Handed {
    /// Has the slot come back at the end of its slice.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts `count` threads; they end after [`Workers::stop`].
    pub(crate) fn start(count: usize) -> std::io::Result<(Self, Vec<JoinHandle<()>>)> {
        let count = count.max(1);
        let queue = Arc::new(Queue {
            jobs: Mutex::new(Jobs {
                turns: Turns::new(nanos(SLICE)),
                stopped: false,
            }),
            count: AtomicUsize::new(0),
            some: Condvar::new(),
        });
        let threads = (0..count)
            .map(|n| {
                let queue = queue.clone();
                let thread = std::thread::Builder::new().name(format!("holm-worker-{n}"));
                thread.spawn(move || {
                    schedule(Urgency::Patient);
                    while let Some((whose, job)) = queue.pop() {
                        let (took, again) = work(job);
                        queue.sliced(whose, took, again);
                    }
                })
            })
            .collect::<Result<_, _>>()?;
        Ok((Workers { queue, count }, threads))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Ends the threads after the slices they are in.
    pub(crate) fn stop(&self) {
        let mut jobs = self.queue.lock();
        jobs.stopped = true;
        jobs.turns.clear();
        self.queue.some.notify_all();
    }

    /// Has the slot run until it is done with its slice for good, or to the first `deadline` of its requests.
    /// `here` is what it took of the connection's thread.
    pub(crate) fn run(
        &self,
        slot: Box<Slot>,
        whose: Whose,
        deadline: Instant,
        here: Duration,
    ) -> Handed {
        let (done, receiver) = oneshot::channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let work = Work::Run {
            deadline,
            cancelled: cancelled.clone(),
            done,
        };
        self.queue.push(whose, here, Job { slot, work });
        Handed {
            done: receiver,
            cancelled,
        }
    }

    /// Charges a tenant for what one of its requests took of its connection's thread, though no worker had it. That
    /// costs something only while the workers are busy.
    pub(crate) fn charge(&self, whose: Whose, here: Duration) {
        self.queue.charge(whose.tenant, here);
    }

    /// Has a kept instance go on from its answer toward its next wait for a request, until it is there, or parks.
    pub(crate) fn go_on(
        &self,
        slot: Box<Slot>,
        whose: Whose,
        bounds: Bounds,
    ) -> oneshot::Receiver<(Box<Slot>, Result<Rest, Failure>)> {
        let (done, receiver) = oneshot::channel();
        let work = Work::GoOn { bounds, done };
        self.queue.push(whose, Duration::ZERO, Job { slot, work });
        receiver
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Tells the kernel how the calling thread shares its core, so that those with connections have it as soon as they
/// wake, and none less of it than before.
pub(crate) fn schedule(urgency: Urgency) {
    if let Err(error) = holm_vmm::set_urgency(urgency) {
        tracing::debug!(%error, ?urgency, "the kernel schedules a thread like any other");
    }
}

/// One slice: what it took, and the job if it wants another one. If nobody waits for the slot any more, it is
/// dropped here, off the request path.
fn work(Job { mut slot, work }: Job) -> (Duration, Option<Job>) {
    if work.is_given_up() {
        if let Work::Run { done, .. } = work {
            drop(done.send((slot, Step::Yielded)));
        }
        return (Duration::ZERO, None);
    }
    let before = slot.stats().cpu;
    let took = |slot: &Slot| slot.stats().cpu.saturating_sub(before);
    match work {
        Work::Run {
            deadline,
            cancelled,
            done,
        } => {
            let step = slot.run(SLICE);
            let took = took(&slot);
            if matches!(step, Step::Yielded) && !slot.has_part() {
                let work = Work::Run {
                    deadline,
                    cancelled,
                    done,
                };
                return (took, Some(Job { slot, work }));
            }
            drop(done.send((slot, step)));
            (took, None)
        }
        Work::GoOn { bounds, done } => {
            let rest = match before < bounds.cpu {
                true => slot.go_on(SLICE, bounds.deadline),
                false => Err(Failure::CpuLimit(Place::default())),
            };
            let took = took(&slot);
            if let Ok(Rest::Yielded) = rest {
                let work = Work::GoOn { bounds, done };
                return (took, Some(Job { slot, work }));
            }
            drop(done.send((slot, rest)));
            (took, None)
        }
    }
}
