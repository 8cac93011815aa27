//! Names to addresses, on threads that may block, with a short memory.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::{Machine, Means};
use crate::limits::{
    MAX_ADDRESSES_PER_NAME, MAX_KNOWN_NAMES, MAX_RESOLVER_THREADS, MAX_WAITING_PER_NAME, NAME_KEPT,
    NO_NAME_KEPT,
};

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Somebody is asking; the bell rings when it is known.
    Pending,
    /// These.
    Addresses(Arc<[IpAddr]>),
    /// There is no such host, or nobody could say.
    Nothing,
}

#[derive(Debug)]
enum Entry {
    Asked(Vec<Arc<OwnedFd>>),
    Answered(Option<Arc<[IpAddr]>>, Instant),
}

#[derive(Debug, Default)]
struct Names {
    entries: HashMap<String, Entry>,
    threads: usize,
}

/// Asks for names, each once at a time.
#[derive(Debug)]
pub(crate) struct Resolver {
    means: Arc<dyn Means>,
    names: Arc<Mutex<Names>>,
}

fn lock(names: &Mutex<Names>) -> MutexGuard<'_, Names> {
    // Nothing can panic while the lock is held.
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Resolver {
    /// The one that asks as this machine's programs do.
    pub(crate) fn of_machine() -> Arc<Self> {
        static MACHINE: OnceLock<Arc<Resolver>> = OnceLock::new();
        Arc::clone(MACHINE.get_or_init(|| Arc::new(Resolver::new(Arc::new(Machine)))))
    }

    pub(crate) fn new(means: Arc<dyn Means>) -> Self {
        Resolver {
            means,
            names: Arc::default(),
        }
    }

    pub(crate) fn means(&self) -> &dyn Means {
        &*self.means
    }

    /// What is known of a name; if nothing is, has it asked for, and rings `bell` when it is known.
    pub(crate) fn ask(&self, name: &str, bell: &Arc<OwnedFd>) -> Known {
        let mut names = lock(&self.names);
        match names.entries.get_mut(name) {
            Some(Entry::Asked(bells)) => {
                let waits = bells.iter().any(|one| Arc::ptr_eq(one, bell));
                if !waits && bells.len() >= MAX_WAITING_PER_NAME {
                    return Known::Nothing;
                }
                if !waits {
                    bells.push(Arc::clone(bell));
                }
                return Known::Pending;
            }
            Some(Entry::Answered(answer, at)) if at.elapsed() < kept(answer.is_some()) => {
                return match answer {
                    Some(addresses) => Known::Addresses(Arc::clone(addresses)),
                    None => Known::Nothing,
                };
            }
            _ => {}
        }
        if names.entries.len() >= MAX_KNOWN_NAMES {
            names.entries.retain(|_, entry| match entry {
                Entry::Asked(_) => true,
                Entry::Answered(answer, at) => at.elapsed() < kept(answer.is_some()),
            });
        }
        if names.entries.len() >= MAX_KNOWN_NAMES || names.threads >= MAX_RESOLVER_THREADS {
            return Known::Nothing;
        }
        let (means, shared, own) = (
            Arc::clone(&self.means),
            Arc::clone(&self.names),
            name.to_owned(),
        );
        let thread = std::thread::Builder::new().name("holm-resolver".into());
        let started = thread.spawn(move || {
            let answer = means.resolve(&own).ok().map(usable);
            let mut names = lock(&shared);
            names.threads -= 1;
            let answer = answer.filter(|addresses| !addresses.is_empty());
            let entry = Entry::Answered(answer, Instant::now());
            if let Some(Entry::Asked(bells)) = names.entries.insert(own, entry) {
                for bell in bells {
                    // A bell that is full has rung.
                    let _ = rustix::io::write(&bell, &1u64.to_ne_bytes());
                }
            }
        });
        match started {
            Ok(_) => {
                names.threads += 1;
                let entry = Entry::Asked(vec![Arc::clone(bell)]);
                names.entries.insert(name.to_owned(), entry);
                Known::Pending
            }
            Err(_) => Known::Nothing,
        }
    }
}

fn kept(found: bool) -> Duration {
    match found {
        true => NAME_KEPT,
        false => NO_NAME_KEPT,
    }
}

/// Each address once, and not too many.
fn usable(addresses: Vec<IpAddr>) -> Arc<[IpAddr]> {
    let mut usable: Vec<IpAddr> = Vec::new();
    for address in addresses {
        let address = address.to_canonical();
        if usable.len() < MAX_ADDRESSES_PER_NAME && !usable.contains(&address) {
            usable.push(address);
        }
    }
    usable.into()
}
