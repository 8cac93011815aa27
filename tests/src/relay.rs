//! A relay that makes a UDP link bad: it loses and delays datagrams, both ways. (The kernel's own means, netem, is not
//! in every kernel.)

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use holm_test_support::random_below;

/// How bad a link is, each way.
#[derive(Clone, Copy, Debug)]
pub struct Badness {
    /// Datagrams lost, in each hundred.
    pub loss_percent: u64,
    /// How long each is on its way.
    pub delay: Duration,
}

/// Datagrams that came, and those of them that were lost.
#[derive(Debug, Default)]
pub struct Counts {
    /// All.
    pub came: AtomicU64,
    /// Lost.
    pub lost: AtomicU64,
}

/// Most peers at a time; a node that dials anew is another one.
const MAX_PEERS: usize = 256;
/// Largest datagram.
const MAX_BYTES: usize = 65_536;

/// One on its way.
struct Flight {
    due: Instant,
    /// Of two that are due at once the first goes first.
    number: u64,
    bytes: Vec<u8>,
    by: Arc<UdpSocket>,
    to: SocketAddr,
}

/// What both directions share.
#[derive(Clone)]
struct Way {
    badness: Badness,
    counts: Arc<Counts>,
    flights: Sender<Flight>,
}

/// Relays what comes to `from` to `to`, and the answers back, as long as the process lives. The sockets are of the
/// caller's network namespace.
pub fn relay(from: SocketAddr, to: SocketAddr, badness: Badness, seed: u64) -> Arc<Counts> {
    let front = Arc::new(UdpSocket::bind(from).expect("the relay's address is free"));
    let (flights, pending) = channel();
    let way = Way {
        badness,
        counts: Arc::default(),
        flights,
    };
    let counts = way.counts.clone();
    std::thread::spawn(move || deliver(&pending));
    std::thread::spawn(move || {
        let mut peers: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        let mut random = random_below(seed);
        let mut buffer = vec![0; MAX_BYTES];
        while let Ok((length, peer)) = front.recv_from(&mut buffer) {
            if !peers.contains_key(&peer) {
                if peers.len() >= MAX_PEERS {
                    continue;
                }
                let back = UdpSocket::bind((from.ip(), 0)).expect("a UDP socket");
                let back = Arc::new(back);
                peers.insert(peer, back.clone());
                let (way, front, seed) = (way.clone(), front.clone(), random(u32::MAX.into()));
                std::thread::spawn(move || answers(&back, &front, peer, &way, seed));
            }
            way.send(&buffer[..length], &peers[&peer], to, &mut random);
        }
    });
    counts
}

/// What comes back for one peer.
fn answers(back: &UdpSocket, front: &Arc<UdpSocket>, peer: SocketAddr, way: &Way, seed: u64) {
    let mut random = random_below(seed);
    let mut buffer = vec![0; MAX_BYTES];
    loop {
        match back.recv(&mut buffer) {
            Ok(length) => way.send(&buffer[..length], front, peer, &mut random),
            // Nobody is there at the moment.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
            Err(_) => return,
        }
    }
}

impl Way {
    fn send(
        &self,
        bytes: &[u8],
        by: &Arc<UdpSocket>,
        to: SocketAddr,
        random: &mut impl FnMut(u64) -> u64,
    ) {
        let number = self.counts.came.fetch_add(1, Ordering::Relaxed);
        if random(100) < self.badness.loss_percent {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let flight = Flight {
            due: Instant::now() + self.badness.delay,
            number,
            bytes: bytes.to_vec(),
            by: by.clone(),
            to,
        };
        // It ends with the process.
        let _ = self.flights.send(flight);
    }
}

/// Sends each when it is due.
fn deliver(pending: &Receiver<Flight>) {
    let mut waiting: BinaryHeap<Reverse<Flight>> = BinaryHeap::new();
    loop {
        let next = waiting.peek().map(|Reverse(flight)| flight.due);
        let wait = next.map_or(Duration::from_secs(3600), |due| {
            due.saturating_duration_since(Instant::now())
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
