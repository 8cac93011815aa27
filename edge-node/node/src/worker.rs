//! The threads that go on with a request when the connection's thread has given it its first quantum.
//!
//! Running slots stand in one queue and get a slice each in turn, so that a program that loops takes
//! no more than its share. There are never more jobs than slots.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use holm_vmm::{Failure, Place, Rest, Slot, Step};
use tokio::sync::oneshot;

use crate::limits::SLICE;

#[derive(Debug)]
enum Work {
    Run {
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

#[derive(Debug, Default)]
struct Queue {
    jobs: Mutex<Jobs>,
    some: Condvar,
}

#[derive(Debug, Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    stopped: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        // Nothing can panic while the lock is held.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, job: Job) {
        self.lock().waiting.push_back(job);
        self.some.notify_one();
    }

    fn pop(&self) -> Option<Job> {
        let mut jobs = self.lock();
        loop {
            if jobs.stopped {
                return None;
            }
            if let Some(job) = jobs.waiting.pop_front() {
                return Some(job);
            }
            jobs = self.some.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The worker threads.
#[derive(Debug)]
pub(crate) struct Workers {
    queue: Arc<Queue>,
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
        let queue = Arc::new(Queue::default());
        let threads = (0..count.max(1))
            .map(|n| {
                let queue = queue.clone();
                let thread = std::thread::Builder::new().name(format!("holm-worker-{n}"));
                thread.spawn(move || {
                    while let Some(job) = queue.pop() {
                        work(&queue, job);
                    }
                })
            })
            .collect::<Result<_, _>>()?;
        Ok((Workers { queue }, threads))
    }

    /// Ends the threads after the slices they are in.
    pub(crate) fn stop(&self) {
        let mut jobs = self.queue.lock();
        jobs.stopped = true;
        jobs.waiting.clear();
        self.queue.some.notify_all();
    }

    /// Has the slot run until it is done with its slice for good.
    pub(crate) fn run(&self, slot: Box<Slot>) -> Handed {
        let (done, receiver) = oneshot::channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let work = Work::Run {
            cancelled: cancelled.clone(),
            done,
        };
        self.queue.push(Job { slot, work });
        Handed {
            done: receiver,
            cancelled,
        }
    }

    /// Has a kept instance go on from its answer toward its next wait for a request, until it is there, or parks.
    pub(crate) fn go_on(
        &self,
        slot: Box<Slot>,
        bounds: Bounds,
    ) -> oneshot::Receiver<(Box<Slot>, Result<Rest, Failure>)> {
        let (done, receiver) = oneshot::channel();
        let work = Work::GoOn { bounds, done };
        self.queue.push(Job { slot, work });
        receiver
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One slice. If nobody waits for the slot any more, it is dropped here, off the request path.
fn work(queue: &Queue, Job { mut slot, work }: Job) {
    match work {
        Work::Run { cancelled, done } => {
            let step = match cancelled.load(Ordering::Relaxed) || done.is_closed() {
                true => return drop(done.send((slot, Step::Yielded))),
                false => slot.run(SLICE),
            };
            match step {
                Step::Yielded if !slot.has_part() => queue.push(Job {
                    slot,
                    work: Work::Run { cancelled, done },
                }),
                step => drop(done.send((slot, step))),
            }
        }
        Work::GoOn { bounds, done } => {
            let rest = match slot.stats().cpu < bounds.cpu {
                _ if done.is_closed() => return,
                true => slot.go_on(SLICE, bounds.deadline),
                false => Err(Failure::CpuLimit(Place::default())),
            };
            match rest {
                Ok(Rest::Yielded) => queue.push(Job {
                    slot,
                    work: Work::GoOn { bounds, done },
                }),
                rest => drop(done.send((slot, rest))),
            }
        }
    }
}
