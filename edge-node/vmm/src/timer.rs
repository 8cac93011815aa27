//! Bounds a run of the vCPU: a timer of the thread sends it a signal, whose handler makes KVM_RUN
//! return at once (KVM_CAP_IMMEDIATE_EXIT). There is no moment between two instructions at which the
//! signal could be missed: it sets the flag that KVM_RUN looks at.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

use crate::VmmError;

thread_local! {
    /// The `immediate_exit` flag of the vCPU that this thread runs, or null.
    static FLAG: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
    static TIMER: ThreadTimer = const { ThreadTimer(Cell::new(None)) };
}

/// The thread's timer, made at its first use and deleted with the thread.
struct ThreadTimer(Cell<Option<libc::timer_t>>);

impl Drop for ThreadTimer {
    fn drop(&mut self) {
        if let Some(timer) = self.0.take() {
            // SAFETY: the timer was made by this thread and is not used after this.
            unsafe { libc::timer_delete(timer) };
        }
    }
}

extern "C" fn on_signal(_: libc::c_int) {
    let flag = FLAG.with(Cell::get);
    if !flag.is_null() {
        // SAFETY: the flag lies in the vCPU's kvm_run mapping, which outlives the `Armed` that
        // published it, and only this thread and the kernel use it. A signal handler may write a byte.
        unsafe { flag.write_volatile(1) };
    }
}

fn signal_number() -> Result<libc::c_int, VmmError> {
    static SIGNAL: OnceLock<Result<libc::c_int, i32>> = OnceLock::new();
    let installed = SIGNAL.get_or_init(|| {
        let signal = libc::SIGRTMIN() + 5;
        // SAFETY: an all-zero sigaction is valid; the handler only does what handlers may.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(signal, &raw const action, ptr::null_mut())
        };
        if result == 0 {
            Ok(signal)
        } else {
            Err(last_errno())
        }
    });
    installed.map_err(|errno| failed(io::Error::from_raw_os_error(errno)))
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn failed(error: io::Error) -> VmmError {
    VmmError::Memory {
        operation: "setting the timer of a run",
        error,
    }
}

fn timer() -> Result<libc::timer_t, VmmError> {
    TIMER.with(|slot| {
        if let Some(timer) = slot.0.get() {
            return Ok(timer);
        }
        let signal = signal_number()?;
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: an all-zero sigevent is valid; both pointers are to live locals.
        let result = unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal;
            event.sigev_notify_thread_id = libc::gettid();
            libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer)
        };
        if result != 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        slot.0.set(Some(timer));
        Ok(timer)
    })
}

fn set(timer: libc::timer_t, after: Duration) -> Result<(), VmmError> {
    let value = libc::itimerspec {
        it_interval: libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: libc::timespec {
            tv_sec: libc::time_t::try_from(after.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(after.subsec_nanos()),
        },
    };
    // SAFETY: the timer is this thread's own and alive; the value is a live local.
    match unsafe { libc::timer_settime(timer, 0, &raw const value, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(failed(io::Error::last_os_error())),
    }
}

/// While it lives, the timer is running and the flag is published. Stays on its thread.
pub(crate) struct Armed {
    timer: libc::timer_t,
    thread: PhantomData<*const ()>,
}

/// Arms this thread's timer. `flag` is the `immediate_exit` of the vCPU's kvm_run and must stay
/// mapped until the answer is dropped.
pub(crate) fn arm(after: Duration, flag: *mut u8) -> Result<Armed, VmmError> {
    let timer = timer()?;
    FLAG.with(|slot| slot.set(flag));
    let armed = Armed {
        timer,
        thread: PhantomData,
    };
    set(timer, after.max(Duration::from_nanos(1)))?;
    Ok(armed)
}

impl Drop for Armed {
    fn drop(&mut self) {
        FLAG.with(|slot| slot.set(ptr::null_mut()));
        // Disarming a live timer of this thread cannot fail; and a late signal finds no flag.
        let _ = set(self.timer, Duration::ZERO);
    }
}
