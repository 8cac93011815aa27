//! A whole node: its threads, and how they are started and stopped.
//!
//! ```text
//!  holm-ingress-N   connections, first quanta, metering; one per core
//!  holm-worker-N    what runs longer; one per core
//!  holm-control     the coordinator link, deployment, upload; plus threads that may block
//!  holm-journal     the usage database
//!  holm-janitor     makes and drops slots
//! ```

use std::fs::{File, OpenOptions};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use holm_model::control::Hello;
use holm_model::ids::Name;
use holm_tls::TlsFileError;
use holm_tls::server::Certificates;
use holm_vmm::{Hypervisor, Slot};
use hyper::header::HeaderValue;
use rustix::fs::{FlockOperation, flock};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle as JoinHandleOf, JoinSet};

use crate::budget::{Budgets, OpenError};
use crate::config::NodeConfig;
use crate::credentials::Credentials;
use crate::deploy::{self, Means};
use crate::files::{self, FileError};
use crate::identity::{Identity, IdentityError};
use crate::ingress::{self, Gear};
use crate::lane::Shared;
use crate::limits::{
    LAST_UPLOAD, MAX_HANDED_OVER, MAX_SLOTS_PER_THREAD, MIN_DEFAULT_SLOTS_PER_THREAD,
};
use crate::logs::Logs;
use crate::memory::{self, Memory};
use crate::meter::journal::{Journal, JournalError};
use crate::meter::sign::{BatchSigner, SignError};
use crate::meter::spill::SpillWriter;
use crate::meter::{Meter, upload};
use crate::pool::Janitor;
use crate::session::{Heard, Link, Session, Told};
use crate::tally::Tally;
use crate::tls::TlsError;
use crate::worker::Workers;

/// The node cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It has not joined, or its identity is damaged.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A file of its state cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another node uses the state directory.
    #[error(
        "another node runs on the state directory {0}; stop it, or give this one a directory of its own"
    )]
    InUse(String),
    /// No usable KVM.
    #[error(transparent)]
    Kvm(#[from] holm_vmm::VmmError),
    /// The certificate for callers or its key cannot be used.
    #[error(transparent)]
    Certificate(#[from] TlsFileError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}; is another server there?")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// What the system says.
        #[source]
        error: std::io::Error,
    },
    /// The usage journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The node's key cannot sign what it meters.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The system gives no thread, runtime or signal handler.
    #[error("the system does not give what a node needs: {0}")]
    System(#[from] std::io::Error),
}

/// A node that runs. Dropping it without [`Node::shutdown`] stops it without waiting for requests.
#[derive(Debug)]
pub struct Node {
    address: SocketAddr,
    url: String,
    name: Name,
    stop: watch::Sender<bool>,
    ingress: Vec<JoinHandle<()>>,
    workers: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
    control: JoinHandle<()>,
    control_stop: watch::Sender<bool>,
    janitor: JoinHandle<()>,
    journal: Journal,
    _lock: File,
}

/// Runs a node until SIGTERM or SIGINT. `ready` is called once, when it listens.
pub fn run(config: NodeConfig, ready: impl FnOnce(&Node)) -> Result<(), RunError> {
    let signals = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut terminate, mut interrupt) = {
        use tokio::signal::unix::{SignalKind, signal};
        let _inside = signals.enter();
        (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        )
    };
    let node = start(config)?;
    ready(&node);
    signals.block_on(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    tracing::info!("stopping");
    node.shutdown();
    Ok(())
}

/// Starts a node; it listens when this returns.
pub fn start(config: NodeConfig) -> Result<Node, RunError> {
    let dir = config.state_dir.as_path();
    let identity = Identity::load(dir)?;
    let lock = lock(dir)?;
    raise_open_files();
    let hypervisor = Hypervisor::open()?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if config.threads == 0 {
        cores
    } else {
        config.threads
    };
    let slots = match config.slots {
        0 => Memory::now().map_or(MIN_DEFAULT_SLOTS_PER_THREAD, |memory| memory.slots(threads)),
        all => (all / threads).clamp(1, MAX_SLOTS_PER_THREAD),
    };
    look_at_mappings(slots * threads);
    let (certificates, current) = match config.tls.clone() {
        None => (None, None),
        Some(files) => {
            let (certificates, current) = Certificates::open(files)?;
            (Some(certificates), Some(current))
        }
    };
    let listen = config.listen;
    let (address, bound) = ingress::bind(listen, threads).map_err(|error| RunError::Listen {
        address: listen,
        error,
    })?;

    // One lane for each ingress thread, and one for the deployer's probes.
    let lanes = u32::try_from(threads + 1).unwrap_or(u32::MAX);
    let journal = Journal::start(dir, &identity.name, lanes, config.journal_limit_bytes)?;
    let meter = |lane: u32| {
        let progress = journal.progress.clone();
        let spill = SpillWriter::create(&journal.spill_dir, journal.epoch, lane, progress.clone())?;
        Ok::<_, FileError>(Meter::new(spill, journal.sender.clone(), progress))
    };

    let (budgets, gauges) = Budgets::open(dir, &journal)?;
    let (lists, new_lists) = mpsc::channel(1);
    let (opened, published) = deploy::open(dir)?;
    let tally = Arc::new(Tally::new(threads));
    let logs = Arc::new(Logs::default());
    let url = config
        .public_url
        .clone()
        .unwrap_or_else(|| url(address, config.tls.is_some()));
    let coordinator = config
        .coordinator
        .clone()
        .unwrap_or(identity.coordinator.clone());
    let hello = Hello {
        coordinates: config.coordinates,
        region: config.region.clone(),
        ingress_url: url.clone(),
        boot_epoch: journal.epoch,
        kvm: hypervisor.kind().as_str().to_owned(),
        software: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let (desired, desired_receiver) = watch::channel(None);
    let signer = BatchSigner::new(&identity)?;
    let name = identity.name.clone();
    let (session, link) = Session::new(
        name.clone(),
        coordinator,
        Credentials::new(dir, identity)?,
        hello,
        published.observed.clone(),
        Heard {
            desired,
            budgets: lists,
        },
        Told {
            tally: tally.clone(),
            logs: logs.clone(),
        },
    );
    let means = Means {
        hypervisor: hypervisor.clone(),
        slots: slots * threads,
        tally: tally.clone(),
        logs: logs.clone(),
        meter: meter(lanes - 1)?,
        outside: config.outside.clone(),
    };
    let deployer = opened.begin(means, link.clone());
    let reader = journal.reader();

    let (janitor, janitor_thread) = Janitor::start(hypervisor, logs.clone())?;
    let (workers, worker_threads) = Workers::start(cores)?;
    let (lanes_to, handed): (Vec<_>, Vec<_>) =
        (0..threads).map(|_| mpsc::channel(MAX_HANDED_OVER)).unzip();
    let shared = Arc::new(Shared {
        name: name.clone(),
        name_header: HeaderValue::from_str(name.as_str())
            .expect("a name is letters, digits and hyphens"),
        domain: config.domain.clone(),
        workers,
        tally,
        logs,
        observed: published.observed,
        slots: slots * threads,
        lanes: lanes_to,
        serving: watch::Sender::new(threads),
        over: AtomicBool::new(false),
    });
    let (stop, stopped) = watch::channel(false);
    let mut ingress = Vec::new();
    let (listening, listens) = std::sync::mpsc::channel();
    for (index, ((bound, handed), lane)) in bound.into_iter().zip(handed).zip(0..).enumerate() {
        let gear = Gear {
            index,
            lanes: threads,
            slots,
            shared: shared.clone(),
            janitor: janitor.clone(),
            handed,
            meter: meter(lane)?,
            routes: published.routes.clone(),
            gauges: gauges.clone(),
            restored: published.restored.clone(),
            listening: listening.clone(),
            tls: current.clone(),
            stop: stopped.clone(),
        };
        ingress.push(bound.start(gear)?);
    }

    let last_logs = shared.logs.clone();
    let tally_of_memory = shared.tally.clone();
    let routes = published.routes.clone();
    let (control_stop, control_stopped) = watch::channel(false);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let control = std::thread::Builder::new()
        .name("holm-control".into())
        .spawn(move || {
            runtime.block_on(async move {
                let mut tasks = JoinSet::new();
                tasks.spawn(session.run());
                tasks.spawn(memory::follow(tally_of_memory));
                tasks.spawn(deployer.run(desired_receiver));
                tasks.spawn(budgets.run(new_lists, link.clone(), routes));
                if let Some(certificates) = certificates {
                    tasks.spawn(certificates.follow());
                }
                let stopped = control_stopped.clone();
                let upload = tokio::spawn(upload::run(reader, signer, link.clone(), stopped));
                until_stopped(control_stopped, upload, &link, &last_logs).await;
                tasks.shutdown().await;
            });
            // A boot under way would otherwise hold up the end of the node.
            runtime.shutdown_background();
        })?;
    // A thread that has died tells nothing.
    drop(listening);
    for listens in listens {
        listens.map_err(|error| RunError::Listen {
            address: listen,
            error,
        })?;
    }
    tracing::info!(node = %name, %address, threads, slots = slots * threads, "listening");
    Ok(Node {
        address,
        url,
        name,
        stop,
        ingress,
        workers: worker_threads,
        shared,
        control,
        control_stop,
        janitor: janitor_thread,
        journal,
        _lock: lock,
    })
}

async fn until_stopped(
    mut stopped: watch::Receiver<bool>,
    upload: JoinHandleOf<()>,
    link: &Link,
    logs: &Logs,
) {
    if stopped.wait_for(|stopped| *stopped).await.is_err() {
        // The node was dropped rather than shut down: no time for anything.
        return;
    }
    // Logs may be lost; without a link they are.
    let told = async {
        if link.is_up() {
            logs.taken().await;
        }
    };
    let (uploaded, _) = tokio::join!(
        tokio::time::timeout(LAST_UPLOAD, upload),
        tokio::time::timeout(LAST_UPLOAD, told),
    );
    if uploaded.is_err() {
        tracing::warn!("the last usage records stay in the journal until the next start");
    }
}

impl From<OpenError> for RunError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::File(error) => error.into(),
            OpenError::Journal(error) => error.into(),
        }
    }
}

impl Node {
    /// Where it takes requests.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Where callers reach it, as far as the node knows.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What it is called.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Stops it: no new connections, requests under way get their answers, usage goes to the
    /// coordinator if that is reachable, and stays in the journal if not.
    pub fn shutdown(self) {
        let Node {
            stop,
            ingress,
            workers,
            shared,
            control,
            control_stop,
            janitor,
            journal,
            ..
        } = self;
        shared.tally.stop();
        stop.send_replace(true);
        join("ingress", ingress);
        shared.workers.stop();
        join("worker", workers);
        // Ingress threads held the other handles on the janitor, so it ends now. What instances say at their
        // end still goes to the coordinator.
        join("janitor", [janitor]);
        control_stop.send_replace(true);
        join("control", [control]);
        journal.stop();
    }
}

fn join(what: &str, threads: impl IntoIterator<Item = JoinHandle<()>>) {
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a thread of the node ({what}) died");
        }
    }
}

/// Raises the soft limit of open files to the hard one: slots and connections each take some.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Says so if the system may refuse the mappings that so many slots can need. Most need far fewer than they can.
fn look_at_mappings(slots: usize) {
    let most = std::fs::read_to_string("/proc/sys/vm/max_map_count");
    let Some(most) = most.ok().and_then(|most| most.trim().parse().ok()) else {
        return;
    };
    let wanted = Slot::MAX_MAPPINGS.saturating_mul(slots);
    if wanted > most {
        tracing::warn!(
            slots,
            most,
            "so many slots can need {wanted} mappings, more than the system gives a process: where functions lie in \
             many parts, slots will fail; `sysctl vm.max_map_count={wanted}`, or fewer slots (--slots)"
        );
    }
}

/// Makes sure that no other node uses the directory. The lock ends with the process.
fn lock(dir: &Path) -> Result<File, RunError> {
    files::make_dir(dir)?;
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.map_err(|error| FileError::new("open", &path, error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(RunError::InUse(dir.display().to_string())),
        Err(error) => Err(FileError::new("lock", &path, error.into()).into()),
    }
}

/// The URL of a listening address, as far as the node can know it.
fn url(address: SocketAddr, tls: bool) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    if ip != address.ip() {
        tracing::warn!(
            "listening on all addresses without a public URL: callers elsewhere are not told a usable one"
        );
    }
    let scheme = if tls { "https" } else { "http" };
    format!("{scheme}://{}", SocketAddr::new(ip, address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_has_one_node_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path()).unwrap();
        assert!(matches!(lock(dir.path()), Err(RunError::InUse(_))));
        drop(first);
        lock(dir.path()).unwrap();
    }

    #[test]
    fn the_url_of_a_node_can_be_dialled() {
        for (address, tls, expected) in [
            ("0.0.0.0:80", false, "http://127.0.0.1:80"),
            ("[::]:80", false, "http://[::1]:80"),
            ("10.1.2.3:80", false, "http://10.1.2.3:80"),
            ("10.1.2.3:443", true, "https://10.1.2.3:443"),
        ] {
            assert_eq!(url(address.parse().unwrap(), tls), expected);
        }
    }
}
