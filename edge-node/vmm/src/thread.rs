//! What the kernel's scheduler is told of a thread.

use std::io;
use std::time::Duration;

/// How a thread shares a core with others. None is given more of it in the long run than another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Somebody waits for it, and it is soon done: it has the core as soon as it wakes.
    Prompt,
    /// It goes on for long, and may as well a little later: one that is prompt, or knows nothing of this, has the
    /// core first when it wakes.
    Patient,
}

impl Urgency {
    /// Of a thread that is prompt: the least that the scheduler takes.
    const PROMPT_SLICE: Duration = Duration::from_micros(100);
    /// Of one that is patient: more than the usual 3 ms and less.
    const PATIENT_SLICE: Duration = Duration::from_millis(10);

    fn attributes(self) -> SchedAttr {
        let (policy, slice) = match self {
            Urgency::Prompt => (libc::SCHED_OTHER, Self::PROMPT_SLICE),
            Urgency::Patient => (libc::SCHED_BATCH, Self::PATIENT_SLICE),
        };
        SchedAttr {
            size: size_of::<SchedAttr>() as u32,
            policy: policy as u32,
            runtime: slice.as_nanos() as u64,
            ..SchedAttr::default()
        }
    }
}

/// `struct sched_attr` of the kernel's first version, sched_setattr(2).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// Of the fair policies: the slice in nanoseconds, from Linux 6.12 on; before, it counts for nothing.
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Tells the scheduler about the calling thread. Threads that it starts inherit that. The operator's nice value is
/// as before.
pub fn set_urgency(urgency: Urgency) -> io::Result<()> {
    let mut attributes = attributes()?;
    let wanted = urgency.attributes();
    (attributes.policy, attributes.runtime) = (wanted.policy, wanted.runtime);
    attributes.size = wanted.size;
    // SAFETY: a live local of the size that it says; the calling thread is 0, and there are no flags.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What it was told.
fn attributes() -> io::Result<SchedAttr> {
    let mut attributes = SchedAttr::default();
    let size = size_of::<SchedAttr>();
    // SAFETY: a live local of at least `size` bytes; the calling thread is 0, and there are no flags.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    match result {
        0 => Ok(attributes),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_scheduled_as_it_says() {
        let told = |urgency| {
            let thread = std::thread::spawn(move || {
                let before = attributes().unwrap();
                set_urgency(urgency).unwrap();
                (before, attributes().unwrap())
            });
            thread.join().unwrap()
        };
        let (before, prompt) = told(Urgency::Prompt);
        assert_eq!(prompt.policy, libc::SCHED_OTHER as u32);
        let (_, patient) = told(Urgency::Patient);
        assert_eq!(patient.policy, libc::SCHED_BATCH as u32);
        assert_eq!((prompt.nice, patient.nice), (before.nice, before.nice));
        // Before Linux 6.12 both have the usual one, which reads as 0.
        assert!(prompt.runtime == 0 || prompt.runtime < patient.runtime);
    }
}
