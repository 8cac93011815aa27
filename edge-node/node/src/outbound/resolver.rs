//! Names to addresses, on threads that may block, with a short memory.
//!
//! What one tenant asks for, others neither wait for nor see: each has a part of the threads and its own memory, and
//! of those whose names wait for a thread the one that has the fewest is next.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::{Machine, Means};
use crate::limits::{
    MAX_ADDRESSES_PER_NAME, MAX_ASKED_NAMES_PER_TENANT, MAX_KNOWN_NAMES, MAX_RESOLVER_THREADS,
    MAX_RESOLVER_THREADS_PER_TENANT, MAX_WAITING_PER_NAME, NAME_KEPT, NO_NAME_KEPT,
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

/// A name that a tenant asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Asked {
    tenant: Arc<str>,
    name: Arc<str>,
}

#[derive(Debug)]
enum Entry {
    Asked(Vec<Arc<OwnedFd>>),
    Answered(Option<Arc<[IpAddr]>>, Instant),
}

impl Entry {
    fn is_of_use(&self) -> bool {
        match self {
            Entry::Asked(_) => true,
            Entry::Answered(answer, at) => at.elapsed() < kept(answer.is_some()),
        }
    }
}

#[derive(Debug, Default)]
struct Names {
    entries: HashMap<Asked, Entry>,
    /// Names for which there was no thread yet.
    waiting: VecDeque<Asked>,
    /// Threads, by the tenants for which they ask.
    threads: HashMap<Arc<str>, usize>,
}

impl Names {
    /// The next name that may have a thread, which is counted from now on.
    fn next(&mut self) -> Option<Asked> {
        let threads = |asked: &Asked| self.threads.get(&asked.tenant).copied().unwrap_or(0);
        let waiting = self.waiting.iter().enumerate();
        let (at, busy) = waiting
            .map(|(at, asked)| (at, threads(asked)))
            .min_by_key(|(at, busy)| (*busy, *at))?;
        if busy >= MAX_RESOLVER_THREADS_PER_TENANT {
            return None;
        }
        let asked = self.waiting.remove(at)?;
        *self.threads.entry(asked.tenant.clone()).or_default() += 1;
        Some(asked)
    }

    /// A thread is done with a name of the tenant's.
    fn done(&mut self, tenant: &Arc<str>) {
        if let Some(threads) = self.threads.get_mut(tenant) {
            *threads -= 1;
            if *threads == 0 {
                self.threads.remove(tenant);
            }
        }
    }

    /// Names of the tenant's that are asked for.
    fn asked_of(&self, tenant: &str) -> usize {
        let waiting = self.waiting.iter();
        let waiting = waiting.filter(|asked| *asked.tenant == *tenant).count();
        waiting + self.threads.get(tenant).copied().unwrap_or(0)
    }

    /// Room for one more; what was known for longest goes first.
    fn make_room(&mut self) -> bool {
        if self.entries.len() >= MAX_KNOWN_NAMES {
            self.entries.retain(|_, entry| entry.is_of_use());
        }
        if self.entries.len() >= MAX_KNOWN_NAMES {
            let known = self
                .entries
                .iter()
                .filter_map(|(asked, entry)| match entry {
                    Entry::Answered(_, at) => Some((*at, asked)),
                    Entry::Asked(_) => None,
                });
            let oldest = known.min_by_key(|(at, _)| *at);
            if let Some(asked) = oldest.map(|(_, asked)| asked.clone()) {
                self.entries.remove(&asked);
            }
        }
        self.entries.len() < MAX_KNOWN_NAMES
    }

    /// What came of a name.
    fn answer(&mut self, asked: Asked, answer: Option<Arc<[IpAddr]>>) {
        let entry = Entry::Answered(answer, Instant::now());
        if let Some(Entry::Asked(bells)) = self.entries.insert(asked, entry) {
            for bell in bells {
                // A bell that is full has rung.
                let _ = rustix::io::write(&bell, &1u64.to_ne_bytes());
            }
        }
    }
}

/// Asks for names, each once at a time for each tenant.
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
    pub(crate) fn ask(&self, tenant: &Arc<str>, name: &str, bell: &Arc<OwnedFd>) -> Known {
        let asked = Asked {
            tenant: tenant.clone(),
            name: name.into(),
        };
        let mut names = lock(&self.names);
        match names.entries.get_mut(&asked) {
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
            Some(entry @ Entry::Answered(..)) if entry.is_of_use() => {
                return match entry {
                    Entry::Answered(Some(addresses), _) => Known::Addresses(addresses.clone()),
                    _ => Known::Nothing,
                };
            }
            _ => {}
        }
        if names.asked_of(tenant) >= MAX_ASKED_NAMES_PER_TENANT || !names.make_room() {
            return Known::Nothing;
        }
        let entry = Entry::Asked(vec![Arc::clone(bell)]);
        names.entries.insert(asked.clone(), entry);
        names.waiting.push_back(asked.clone());
        if names.threads.values().sum::<usize>() < MAX_RESOLVER_THREADS
            && let Some(next) = names.next()
            && let Err(error) = self.start(next.clone())
        {
            tracing::warn!(%error, "no thread to resolve a name");
            names.done(&next.tenant);
            names.answer(next, None);
        }
        match names.entries.get(&asked) {
            Some(Entry::Asked(_)) => Known::Pending,
            _ => Known::Nothing,
        }
    }

    /// Starts a thread that goes on as long as names wait for one.
    fn start(&self, first: Asked) -> std::io::Result<()> {
        let (means, names) = (Arc::clone(&self.means), Arc::clone(&self.names));
        let thread = std::thread::Builder::new().name("holm-resolver".into());
        thread.spawn(move || {
            let mut next = Some(first);
            while let Some(asked) = next {
                let answer = means.resolve(&asked.name).ok().map(usable);
                let answer = answer.filter(|addresses| !addresses.is_empty());
                let mut names = lock(&names);
                names.done(&asked.tenant);
                names.answer(asked, answer);
                next = names.next();
            }
        })?;
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Condvar;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    /// Names that begin with "slow" are resolved when the test is done.
    #[derive(Debug, Default)]
    struct Slow {
        asked: Mutex<Vec<String>>,
        released: Mutex<bool>,
        release: Condvar,
    }

    #[derive(Debug)]
    struct Names(Arc<Slow>);

    impl Means for Names {
        fn resolve(&self, name: &str) -> std::io::Result<Vec<IpAddr>> {
            self.0.asked.lock().unwrap().push(name.to_owned());
            if name.starts_with("slow") {
                let released = self.0.released.lock().unwrap();
                let wait = self.0.release.wait_while(released, |released| !*released);
                drop(wait.unwrap());
            }
            Ok(vec![Ipv4Addr::new(192, 0, 2, 1).into()])
        }
    }

    fn bell() -> Arc<OwnedFd> {
        Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap())
    }

    fn ring(bell: &OwnedFd) {
        rustix::io::read(bell, &mut [0; 8]).unwrap();
    }

    #[test]
    fn a_tenants_slow_names_keep_no_other_tenant_waiting() {
        let slow = Arc::new(Slow::default());
        let resolver = Resolver::new(Arc::new(Names(slow.clone())));
        let (mallory, acme) = (Arc::from("mallory"), Arc::from("acme"));
        let waits = bell();
        let asked: Vec<Known> = (0..2 * MAX_ASKED_NAMES_PER_TENANT)
            .map(|n| resolver.ask(&mallory, &format!("slow-{n}.example"), &waits))
            .collect();
        let pending = asked.iter().filter(|known| **known == Known::Pending);
        assert_eq!(pending.count(), MAX_ASKED_NAMES_PER_TENANT);

        // More than there is room for, and one that the other tenant waits for as well.
        for n in 0..2 * MAX_KNOWN_NAMES {
            let (name, own) = (format!("fast-{n}.example"), bell());
            assert_eq!(resolver.ask(&acme, &name, &own), Known::Pending);
            ring(&own);
            let known = resolver.ask(&acme, &name, &own);
            assert!(matches!(known, Known::Addresses(_)), "{name}: {known:?}");
        }
        assert!(lock(&resolver.names).entries.len() <= MAX_KNOWN_NAMES);
        let of_mallory = || {
            let asked = slow.asked.lock().unwrap();
            asked.iter().filter(|name| name.starts_with("slow")).count()
        };
        assert_eq!(of_mallory(), MAX_RESOLVER_THREADS_PER_TENANT);

        // They come in the end.
        *slow.released.lock().unwrap() = true;
        slow.release.notify_all();
        let until = Instant::now() + Duration::from_secs(20);
        while of_mallory() < MAX_ASKED_NAMES_PER_TENANT && Instant::now() < until {
            ring(&waits);
        }
        assert_eq!(of_mallory(), MAX_ASKED_NAMES_PER_TENANT);
    }
}
