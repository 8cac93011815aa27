//! Ingress: one thread per core, each with its own listening socket on the same port, its own runtime
//! and its own slots. The kernel spreads connections over the sockets; a connection stays where it
//! was accepted.

mod connection;

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use holm_tls::server as tls;
use holm_vmm::{Slot, Urgency};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::LocalSet;

use crate::budget::Gauges;
use crate::deploy::routes::{Live, Table};
use crate::lane::{Lane, Shared};
use crate::limits::{
    DRAIN, HEAD_TIMEOUT, LAST_ANSWERS, MAX_CONNECTIONS_PER_THREAD, RESTORE_PATIENCE, WARM_LOOK,
};
use crate::meter::Meter;
use crate::pool::core::Key;
use crate::pool::home::Place;
use crate::pool::{Janitor, Pool};
use crate::request;
use crate::request::handover::{self, Handed};
use crate::worker::schedule;
use connection::Patience;

/// Pause after an accept that failed for want of resources.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
const BACKLOG: u32 = 1024;

/// A thread's runtime and socket before the thread exists, so that a bad address is found at start. It does not
/// listen yet: nobody is accepted before there is somebody to serve him.
pub(crate) struct Bound {
    runtime: Runtime,
    socket: TcpSocket,
}

/// Binds `count` sockets to one port.
pub(crate) fn bind(listen: SocketAddr, count: usize) -> io::Result<(SocketAddr, Vec<Bound>)> {
    if listen.port() != 0 {
        // Sockets that share a port would share it with another process of the same user as well,
        // without a word. One that does not share finds that process. It never listens: callers of a
        // node that starts again would be accepted by it and then cut off.
        let alone = socket(listen)?;
        alone.bind(listen)?;
    }
    let mut address = listen;
    let mut bound = Vec::new();
    for _ in 0..count {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let socket = socket(address)?;
        socket.set_reuseport(true)?;
        socket.bind(address)?;
        address = socket.local_addr()?;
        bound.push(Bound { runtime, socket });
    }
    Ok((address, bound))
}

fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    Ok(socket)
}

/// What a thread is given.
pub(crate) struct Gear {
    pub(crate) index: usize,
    /// How many such threads there are.
    pub(crate) lanes: usize,
    pub(crate) slots: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) janitor: Janitor,
    /// What other threads hand over.
    pub(crate) handed: mpsc::Receiver<Handed>,
    pub(crate) meter: Meter,
    pub(crate) routes: watch::Receiver<Arc<Table>>,
    pub(crate) gauges: watch::Receiver<Arc<Gauges>>,
    /// Becomes true when what the disk says has been brought up.
    pub(crate) restored: watch::Receiver<bool>,
    /// Is told when the thread listens, or why it does not.
    pub(crate) listening: std::sync::mpsc::Sender<io::Result<()>>,
    pub(crate) tls: Option<tls::Current>,
    /// Becomes true when the node stops.
    pub(crate) stop: watch::Receiver<bool>,
}

impl Bound {
    /// Starts the thread. It ends after `stop`, when its requests are done or [`DRAIN`] is over.
    pub(crate) fn start(self, gear: Gear) -> io::Result<JoinHandle<()>> {
        let thread = std::thread::Builder::new().name(format!("holm-ingress-{}", gear.index));
        thread.spawn(move || {
            schedule(Urgency::Prompt);
            let Bound { runtime, socket } = self;
            let local = LocalSet::new();
            local.block_on(&runtime, serve(socket, gear));
        })
    }
}

async fn serve(socket: TcpSocket, gear: Gear) {
    let Gear {
        index,
        lanes,
        slots,
        shared,
        janitor,
        handed,
        meter,
        routes,
        gauges,
        mut restored,
        listening,
        tls,
        mut stop,
    } = gear;
    let (made, new_slots) = mpsc::unbounded_channel();
    let place = Place { index, of: lanes };
    let pool = Pool::new(place, janitor, made, shared.tally.clone());
    pool.grow(slots);
    let lane = Lane::new(shared, pool.clone(), meter, routes.clone(), gauges);
    tokio::task::spawn_local(look_after_slots(pool.clone(), new_slots, routes.clone()));
    tokio::task::spawn_local(handover::take_over(lane.clone(), handed));
    let serving = lane.shared.serving.clone();

    let ready = async {
        let _ = restored.wait_for(|restored| *restored).await;
        pool.filled(slots).await;
        // Else the first request would wait for that, or share the core with it.
        let table = routes.borrow().clone();
        pool.follow(table.live());
        while fill_ahead(&pool, &table) {
            pool.filled(slots).await;
        }
    };
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        late = tokio::time::timeout(RESTORE_PATIENCE, ready) => if late.is_err() {
            tracing::warn!("listening before all that the disk says is there");
        },
    }
    let listener = match socket.listen(BACKLOG) {
        Ok(listener) => listener,
        Err(error) => {
            // The node does not start then.
            let _ = listening.send(Err(error));
            return pool.close().await;
        }
    };
    let _ = listening.send(Ok(()));
    drop(listening);

    let open = Rc::new(Open::default());
    let ended = stop.clone();
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => {}
        () = accept(&listener, &lane, &tls, &ended, &open) => {}
    }
    lane.stop();
    let drained = async {
        while open.count.get() > 0 {
            open.closed.notified().await;
        }
        // Others may have requests here.
        serving.send_modify(|serving| *serving = serving.saturating_sub(1));
        let _ = serving.subscribe().wait_for(|serving| *serving == 0).await;
    };
    // Who comes meanwhile is told to go elsewhere, and holds nothing up.
    let (_go_on, never) = watch::channel(false);
    let late = Rc::new(Open::default());
    tokio::select! {
        drained = tokio::time::timeout(DRAIN, drained) => if drained.is_err() {
            tracing::warn!(left = open.count.get(), "stopping with requests under way");
            lane.end();
            let answered = async {
                while open.count.get() > 0 {
                    open.closed.notified().await;
                }
            };
            // What cannot be sent by then is cut.
            let _ = tokio::time::timeout(LAST_ANSWERS, answered).await;
        },
        () = accept(&listener, &lane, &tls, &never, &late) => {}
    }
    drop(listener);
    // What follows an answer is the return of its slot, for which this waits.
    pool.close().await;
}

/// Takes connections, as long as it is polled.
async fn accept(
    listener: &TcpListener,
    lane: &Rc<Lane>,
    tls: &Option<tls::Current>,
    stop: &watch::Receiver<bool>,
    open: &Rc<Open>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) if open.count.get() < MAX_CONNECTIONS_PER_THREAD => {
                let opened = Opened::new(open.clone());
                let (lane, tls, stop) = (lane.clone(), tls.clone(), stop.clone());
                tokio::task::spawn_local(async move {
                    take(lane, stream, peer, tls, stop).await;
                    drop(opened);
                });
            }
            Ok((_, peer)) => {
                tracing::warn!(%peer, "too many connections; this one is closed");
            }
            Err(error) => {
                // Of the connection (reset before it was taken) or of the process (no descriptors);
                // either passes.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Takes in slots that the janitor made, and fills empty ones with each version as its requests may need them, so
/// that they need not wait for that; gives back those that are not needed any more.
async fn look_after_slots(
    pool: Rc<Pool>,
    mut new_slots: mpsc::UnboundedReceiver<Box<Slot>>,
    mut routes: watch::Receiver<Arc<Table>>,
) {
    let mut look = tokio::time::interval(WARM_LOOK);
    let mut known: Vec<Key> = Vec::new();
    let mut table = routes.borrow().clone();
    routes.mark_changed();
    loop {
        tokio::select! {
            changed = routes.changed() => {
                if changed.is_err() {
                    return;
                }
                table = routes.borrow_and_update().clone();
                let now: Vec<Key> = table.live().map(|live| live.key).collect();
                known
                    .iter()
                    .filter(|key| !now.contains(key))
                    .for_each(|key| pool.forget(*key));
                known = now;
                pool.follow(table.live());
            }
            Some(slot) = new_slots.recv() => {
                let same = |live: &&Arc<Live>| {
                    slot.holds().is_some_and(|held| Arc::ptr_eq(held, &live.snapshot))
                };
                let of = table.live().find(same).map(|live| live.key);
                pool.add(slot, of);
            }
            _ = look.tick() => pool.look(),
        }
        fill_ahead(&pool, &table);
    }
}

/// Has as many slots hold each version as its requests may need, one after the other; says whether one is on its way.
fn fill_ahead(pool: &Pool, table: &Table) -> bool {
    let mut live = table.live();
    live.any(|live| pool.fill_ahead(live))
}

async fn take(
    lane: Rc<Lane>,
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<tls::Current>,
    stop: watch::Receiver<bool>,
) {
    // Answers are written whole; holding back their last segment would only delay them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "no TCP_NODELAY");
    }
    let (answers, patience) = (lane.answers.clone(), Patience::default());
    let answer = move |asked| request::serve(lane.clone(), peer, asked);
    let Some(current) = tls else {
        return connection::serve(stream, peer, patience, &answers, stop, answer).await;
    };
    match tls::accept(&current, stream, HEAD_TIMEOUT).await {
        Ok(stream) => connection::serve(stream, peer, patience, &answers, stop, answer).await,
        Err(error) => tracing::debug!(%peer, %error, "no TLS with this caller"),
    }
}

/// Open connections of a thread.
#[derive(Debug, Default)]
struct Open {
    count: Cell<usize>,
    closed: Notify,
}

/// One of them.
struct Opened(Rc<Open>);

impl Opened {
    fn new(open: Rc<Open>) -> Self {
        open.count.set(open.count.get() + 1);
        Opened(open)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.closed.notify_one();
    }
}
