//! A daemon's log on its way to stderr.
//!
//! Whoever reads stderr may stop reading, and then a write to it waits for ever. A daemon logs on threads that serve
//! others, some of it as often as its callers want, so none of them writes: lines wait, within a bound, for a thread
//! of their own. What finds no room is lost, and the log says how much that was.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes of lines that wait. As many may be on their way.
const MAX_WAITING_BYTES: usize = 1 << 20;
/// How long the end of a daemon waits for its last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Where lines wait.
#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// There are some.
    some: Condvar,
    /// All were written.
    none: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    lost: u64,
    /// Some are on their way.
    writing: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing can panic while the lock is held, and nothing is written.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.bytes + line.len() > MAX_WAITING_BYTES {
            waiting.lost += 1;
            return;
        }
        waiting.bytes += line.len();
        waiting.lines.push_back(line.to_vec());
        self.some.notify_one();
    }

    /// Writes what comes, for as long as the process lives.
    fn pass_on(&self, mut to: impl Write, note: impl Fn(u64) -> String) {
        loop {
            let mut waiting = self.lock();
            while waiting.lines.is_empty() {
                waiting.writing = false;
                self.none.notify_all();
                waiting = self
                    .some
                    .wait(waiting)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            let lines = std::mem::take(&mut waiting.lines);
            let lost = std::mem::take(&mut waiting.lost);
            (waiting.bytes, waiting.writing) = (0, true);
            drop(waiting);
            // If nobody reads it there is nobody left to tell.
            for line in lines {
                let _ = to.write_all(&line);
            }
            if lost > 0 {
                let _ = to.write_all(note(lost).as_bytes());
            }
            let _ = to.flush();
        }
    }

    /// Waits until all is written, for so long at most.
    fn settle(&self, most: Duration) {
        let under_way = |waiting: &mut Waiting| waiting.writing || !waiting.lines.is_empty();
        let waiting = self.lock();
        // Written or not, this is the end.
        drop(self.none.wait_timeout_while(waiting, most, under_way));
    }
}

/// Takes one line at each write, and never waits.
#[derive(Clone, Debug)]
pub(crate) struct Lines(Arc<Queue>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.add(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps the log until the last lines are out. To be dropped at the daemon's end.
#[derive(Debug)]
pub(crate) struct Log(Arc<Queue>);

impl Drop for Log {
    fn drop(&mut self) {
        self.0.settle(LAST_LINES);
    }
}

/// Begins to write to `to` what is given to the lines; `note` says how many were lost.
pub(crate) fn begin(
    to: impl Write + Send + 'static,
    note: impl Fn(u64) -> String + Send + 'static,
) -> io::Result<(Log, Lines)> {
    let queue = Arc::new(Queue::default());
    let from = queue.clone();
    let thread = std::thread::Builder::new().name("holm-log".into());
    thread.spawn(move || from.pass_on(to, note))?;
    Ok((Log(queue.clone()), Lines(queue)))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::time::Instant;

    use super::*;

    fn note(lost: u64) -> String {
        format!("lost {lost}\n")
    }

    #[test]
    fn a_log_that_nobody_reads_holds_nobody_up_and_says_what_was_lost() {
        let (reader, writer) = io::pipe().unwrap();
        let (log, mut lines) = begin(writer, note).unwrap();
        let line = format!("{}\n", "x".repeat(1023));
        let count = 16 * MAX_WAITING_BYTES / line.len();
        let began = Instant::now();
        for _ in 0..count {
            lines.write_all(line.as_bytes()).unwrap();
        }
        assert!(began.elapsed() < Duration::from_secs(10));
        {
            let waiting = lines.0.lock();
            assert!(waiting.bytes <= MAX_WAITING_BYTES && waiting.lost > 0);
        }
        // Nor does the end.
        drop(log);
        assert!(began.elapsed() < Duration::from_secs(20));

        // Whoever reads it after all finds each line, or that it is lost.
        let (mut found, mut lost) = (0, 0);
        for read in BufReader::new(reader).lines() {
            let read = read.unwrap();
            match read.strip_prefix("lost ") {
                Some(count) => lost += count.parse::<usize>().unwrap(),
                None => {
                    assert_eq!(read.len(), 1023);
                    found += 1;
                }
            }
            if found + lost == count {
                break;
            }
        }
        assert!(lost > count / 2, "{found} found, {lost} lost");
    }

    #[test]
    fn the_last_lines_are_out_when_the_log_has_ended() {
        let (reader, writer) = io::pipe().unwrap();
        let (log, mut lines) = begin(writer, note).unwrap();
        for n in 0..100 {
            lines.write_all(format!("{n}\n").as_bytes()).unwrap();
        }
        drop(log);
        let read = BufReader::new(reader).lines().take(100);
        let read: Vec<String> = read.map(Result::unwrap).collect();
        assert_eq!(read, (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
    }
}
