//! A relay that makes a UDP link bad: it loses, delays, doubles and reorders datagrams, both ways, and is cut and mended
//! while it runs. (The kernel's own means, netem, is not in every kernel.)

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use holm_test_support::random_below;

/// How bad a link is, each way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Badness {
    /// Datagrams lost, in each hundred.
    pub loss_percent: u64,
    /// Datagrams that come twice, in each hundred.
    pub double_percent: u64,
    /// How long each is on its way.
    pub delay: Duration,
    /// How much longer some are than others, at most: so one overtakes another.
    pub scatter: Duration,
}

/// Datagrams that came, and what became of some.
#[derive(Debug, Default)]
pub struct Counts {
    /// All.
    pub came: AtomicU64,
    /// Lost, by bad luck or because the link was cut.
    pub lost: AtomicU64,
    /// Sent on twice.
    pub doubled: AtomicU64,
    /// Sent on after one that had come later, in whichever direction.
    pub overtaken: AtomicU64,
    /// Held back, and sent on in the end.
    pub held: AtomicU64,
}

/// A relay that runs, for whoever makes its link worse or better.
#[derive(Debug)]
pub struct Relay {
    /// So far.
    pub counts: Counts,
    badness: Mutex<Badness>,
    cut_there: AtomicBool,
    cut_back: AtomicBool,
    held: Mutex<Option<Held>>,
    flights: Sender<Flight>,
    over: AtomicBool,
}

/// What is held back.
#[derive(Debug)]
struct Held {
    since: Instant,
    flights: Vec<Flight>,
}

impl Relay {
    /// How bad it is from now on.
    pub fn set_badness(&self, badness: Badness) {
        *self.badness.lock().unwrap_or_else(PoisonError::into_inner) = badness;
    }

    /// Whether nothing gets to where it leads.
    pub fn cut_there(&self, cut: bool) {
        self.cut_there.store(cut, Ordering::Relaxed);
    }

    /// Whether no answers come back.
    pub fn cut_back(&self, cut: bool) {
        self.cut_back.store(cut, Ordering::Relaxed);
    }

    /// Ends it, in a moment.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Holds back what is sent there by those who have sent something before, and not what others send. When that is
    /// over, it is sent on, the last first.
    pub fn hold(&self, hold: bool) {
        let since = Instant::now();
        let flights = Vec::new();
        let new = hold.then_some(Held { since, flights });
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(before) = std::mem::replace(&mut *held, new) else {
            return;
        };
        for flight in before.flights.into_iter().rev() {
            self.counts.held.fetch_add(1, Ordering::Relaxed);
            // It ends with the process.
            let _ = self.flights.send(flight);
        }
    }
}

/// Most peers at a time; a node that dials anew is another one.
const MAX_PEERS: usize = 256;
/// How often its threads look whether it is over.
const LOOK: Duration = Duration::from_millis(500);
/// Largest datagram.
const MAX_BYTES: usize = 65_536;

/// One on its way.
#[derive(Debug)]
struct Flight {
    due: Instant,
    /// Of two that are due at once the first goes first.
    number: u64,
    bytes: Vec<u8>,
    by: Arc<UdpSocket>,
    to: SocketAddr,
}

/// One direction.
#[derive(Clone)]
struct Way {
    relay: Arc<Relay>,
    /// For what comes back; otherwise since when the peer has sent something.
    back: bool,
    since: Instant,
}

/// Relays what comes to `from` to `to`, and the answers back, until it is ended. The sockets are of the caller's network
/// namespace.
pub fn relay(from: SocketAddr, to: SocketAddr, badness: Badness, seed: u64) -> Arc<Relay> {
    let front = Arc::new(socket(from));
    let (flights, pending) = channel();
    let relay = Arc::new(Relay {
        counts: Counts::default(),
        badness: Mutex::new(badness),
        cut_there: AtomicBool::new(false),
        cut_back: AtomicBool::new(false),
        held: Mutex::new(None),
        flights,
        over: AtomicBool::new(false),
    });
    let (carrying, delivering) = (relay.clone(), relay.clone());
    std::thread::spawn(move || deliver(&pending, &delivering));
    std::thread::spawn(move || {
        let mut peers: HashMap<SocketAddr, (Arc<UdpSocket>, Way)> = HashMap::new();
        let mut random = random_below(seed);
        let mut buffer = vec![0; MAX_BYTES];
        while !carrying.is_over() {
            let Ok((length, peer)) = front.recv_from(&mut buffer) else {
                continue;
            };
            if !peers.contains_key(&peer) {
                if peers.len() >= MAX_PEERS {
                    continue;
                }
                let back = Arc::new(socket((from.ip(), 0).into()));
                let there = Way {
                    relay: carrying.clone(),
                    back: false,
                    since: Instant::now(),
                };
                let mut way = there.clone();
                way.back = true;
                peers.insert(peer, (back.clone(), there));
                let (front, seed) = (front.clone(), random(u32::MAX.into()));
                std::thread::spawn(move || answers(&back, &front, peer, &way, seed));
            }
            let (back, there) = &peers[&peer];
            there.send(&buffer[..length], back, to, &mut random);
        }
    });
    relay
}

/// What comes back for one peer.
fn answers(back: &UdpSocket, front: &Arc<UdpSocket>, peer: SocketAddr, way: &Way, seed: u64) {
    let mut random = random_below(seed);
    let mut buffer = vec![0; MAX_BYTES];
    while !way.relay.is_over() {
        // Otherwise nothing came, or nobody is there at the moment.
        if let Ok(length) = back.recv(&mut buffer) {
            way.send(&buffer[..length], front, peer, &mut random);
        }
    }
}

/// One whose readers are not held for ever.
fn socket(at: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(at).expect("the relay's address is free");
    let set = socket.set_read_timeout(Some(LOOK));
    set.expect("a socket can have a timeout");
    socket
}

impl Way {
    fn send(
        &self,
        bytes: &[u8],
        by: &Arc<UdpSocket>,
        to: SocketAddr,
        random: &mut impl FnMut(u64) -> u64,
    ) {
        let relay = &self.relay;
        let badness = *relay.badness.lock().unwrap_or_else(PoisonError::into_inner);
        let cut = if self.back {
            &relay.cut_back
        } else {
            &relay.cut_there
        };
        let number = relay.counts.came.fetch_add(1, Ordering::Relaxed);
        if cut.load(Ordering::Relaxed) || random(100) < badness.loss_percent {
            relay.counts.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let doubled = random(100) < badness.double_percent;
        if doubled {
            relay.counts.doubled.fetch_add(1, Ordering::Relaxed);
        }
        for _ in 0..=u32::from(doubled) {
            let scatter = random(badness.scatter.as_micros() as u64 + 1);
            let flight = Flight {
                due: Instant::now() + badness.delay + Duration::from_micros(scatter),
                number,
                bytes: bytes.to_vec(),
                by: by.clone(),
                to,
            };
            let mut held = relay.held.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *held {
                Some(held) if !self.back && self.since < held.since => held.flights.push(flight),
                // It ends with the process.
                _ => drop(relay.flights.send(flight)),
            }
        }
    }
}

/// Sends each when it is due.
fn deliver(pending: &Receiver<Flight>, relay: &Relay) {
    let mut waiting: BinaryHeap<Reverse<Flight>> = BinaryHeap::new();
    let mut newest = 0;
    while !relay.is_over() {
        let next = waiting.peek().map(|Reverse(flight)| flight.due);
        let wait = next.map_or(LOOK, |due| {
            due.saturating_duration_since(Instant::now()).min(LOOK)
        });
        match pending.recv_timeout(wait) {
            Ok(flight) => waiting.push(Reverse(flight)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        while let Some(Reverse(flight)) = waiting.peek()
            && flight.due <= Instant::now()
        {
            // What cannot be delivered is lost.
            let _ = flight.by.send_to(&flight.bytes, flight.to);
            if flight.number < newest {
                relay.counts.overtaken.fetch_add(1, Ordering::Relaxed);
            }
            newest = newest.max(flight.number);
            waiting.pop();
        }
    }
}

impl PartialEq for Flight {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Flight {}

impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Flight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}
