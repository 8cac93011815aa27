//! The sockets there are, and what each is.

use super::address::{AF_INET6, AF_NETLINK, AF_UNIX, Address, Ip, Name};
use super::options::Options;
use crate::errno::Errno;

/// Most sockets.
const MAX_SOCKETS: usize = 128;
/// The ports that are given to sockets which ask for none.
const EPHEMERAL: core::ops::Range<u16> = 32_768..61_000;

/// What a socket is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is none.
    Free,
    /// Neither listening nor connected; it may be bound.
    Fresh,
    /// Takes connections.
    Listening {
        /// Most that wait to be accepted.
        backlog: u16,
    },
    /// Connected within the guest, by bytes or by packets: the queues that it reads from and writes to.
    Stream {
        /// Never `pipes::NONE`.
        from: u8,
        /// `pipes::NONE` after its sending half was shut.
        to: u8,
    },
    /// The connection that carries a request; ids count up.
    Request(u32),
    /// Connected, or about to be, out of the guest.
    Outbound(Outbound),
    /// Sends and takes datagrams.
    Datagrams(Mailbox),
}

/// What a socket for datagrams has of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mailbox {
    /// The queue of what has come.
    pub inbox: u8,
    /// The queue of what the name server has not answered yet; `pipes::NONE` for a local one.
    pub queries: u8,
    /// The socket that a local one is connected to, if it is.
    pub to: Option<u16>,
}

impl Mailbox {
    /// The socket that it was connected to is no more.
    pub const GONE: u16 = u16::MAX;
}

/// How far a connect that did not wait is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connecting {
    /// There is none.
    No,
    /// It has come about, or failed, and the program has not asked by another.
    Untold,
    /// It failed and the socket was shut then: it is good for nothing.
    Broken,
}

/// `SOCK_STREAM`
pub const SOCK_STREAM: u8 = 1;
/// `SOCK_DGRAM`
pub const SOCK_DGRAM: u8 = 2;
/// `SOCK_SEQPACKET`
pub const SOCK_SEQPACKET: u8 = 5;

/// A connection out of the guest. Its halves are those of `outbound`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// The host's.
    pub handle: u64,
    /// It is not known yet whether it comes about.
    pub connecting: bool,
    /// What it was ready for when the host was asked.
    pub ready: u8,
    /// What the program may be waiting for.
    pub awaited: u8,
    /// It has been told how many bytes there are: who reads so many believes to have read all.
    pub counted: bool,
}

/// A socket.
#[derive(Clone, Copy, Debug)]
pub struct Socket {
    /// What it is doing.
    pub state: State,
    /// AF_INET, AF_INET6, AF_UNIX or AF_NETLINK.
    pub domain: u16,
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
    pub kind: u8,
    /// The `errno` that the next call is to be told, or 0.
    pub error: u8,
    /// How far a connect that did not wait is told.
    pub connecting: Connecting,
    /// Its port is not its own any more: it may have another, and so may others have this one.
    pub lost_port: bool,
    /// A connection of TCP that is one no more: the other end has broken it off, or was gone when something came.
    pub reset: bool,
    /// Its own address.
    pub local: Address,
    /// The other end's, if it is connected.
    pub peer: Address,
    /// The socket that is the other end of its connection within the guest, while that is there.
    pub other: Option<u16>,
    /// The file that it was bound to, for a local one: its number in /tmp.
    pub file: Option<u16>,
    /// Connected, and not accepted yet: the listener, and when.
    pub waits_at: Option<(u16, u32)>,
    /// Its receiving half was shut.
    pub read_shut: bool,
    /// Its sending half was shut.
    pub write_shut: bool,
    /// What the program set.
    pub options: Options,
}

const FREE: Socket = Socket {
    state: State::Free,
    domain: 0,
    kind: SOCK_STREAM,
    error: 0,
    connecting: Connecting::No,
    lost_port: false,
    reset: false,
    local: Address::Unspecified,
    peer: Address::Unspecified,
    other: None,
    file: None,
    waits_at: None,
    read_shut: false,
    write_shut: false,
    options: Options::NONE,
};

impl Socket {
    /// A new one, with the address that a socket has before it is bound.
    pub fn new(domain: u16) -> Self {
        Socket {
            state: State::Fresh,
            domain,
            local: unbound(domain),
            ..FREE
        }
    }

    /// Whether it has another end, or a place that its datagrams go to.
    pub fn is_connected(&self) -> bool {
        self.peer != Address::Unspecified
    }

    /// Whether it has an address of its own.
    pub fn is_bound(&self) -> bool {
        match self.local {
            Address::Inet(_, port) => port != 0,
            Address::Unix(name) => name != Name::NONE,
            Address::Netlink(port) => port != 0,
            Address::Unspecified => false,
        }
    }

    /// The other end has not taken what was sent, or broken off; that is told once.
    pub fn break_off(&mut self, error: Errno) {
        self.error = error.0 as u8;
        self.reset = self.domain != AF_UNIX;
        self.other = None;
    }

    /// A port that it was given, and did not ask for, may be another's from now on.
    pub fn lose_port(&mut self) {
        self.lost_port = matches!(self.local, Address::Inet(_, port) if EPHEMERAL.contains(&port));
    }

    /// Whether its own address is one of version 4.
    pub fn is_v4(&self) -> bool {
        matches!(self.local, Address::Inet(ip, _) if ip.as_v4().is_some())
    }

    /// The port of one that listens for IP connections.
    fn listening_port(&self) -> Option<u16> {
        match (self.state, self.local) {
            (State::Listening { .. }, Address::Inet(_, port)) => Some(port),
            _ => None,
        }
    }

    /// Whether what was sent at once is received at once.
    pub fn keeps_borders(&self) -> bool {
        self.kind != SOCK_STREAM
    }

    /// The queue that it reads from, if it has one within the guest.
    pub fn reads(&self) -> Option<u8> {
        match self.state {
            State::Stream { from, .. } => Some(from),
            State::Datagrams(mailbox) => Some(mailbox.inbox),
            _ => None,
        }
    }

    /// Whether what comes to `ip` comes to a socket bound as this one is.
    pub fn takes(&self, ip: Ip) -> bool {
        match self.local {
            Address::Inet(own, _) if own == ip || own == Ip::ANY_V4 && ip.as_v4().is_some() => true,
            Address::Inet(Ip::ANY_V6, _) => ip.as_v4().is_none() || !self.options.v6_only(),
            _ => false,
        }
    }
}

/// The address of a socket that is not bound.
fn unbound(domain: u16) -> Address {
    match domain {
        AF_UNIX => Address::Unix(Name::NONE),
        AF_INET6 => Address::Inet(Ip::ANY_V6, 0),
        AF_NETLINK => Address::Netlink(0),
        _ => Address::Inet(Ip::ANY_V4, 0),
    }
}

/// All of them.
pub struct Sockets {
    all: [Socket; MAX_SOCKETS],
    /// No socket at this place or behind it.
    end: usize,
    next_port: u16,
    /// Counts connections within the guest.
    order: u32,
}

impl Sockets {
    /// None.
    pub const fn new() -> Self {
        Sockets {
            all: [FREE; MAX_SOCKETS],
            end: 0,
            next_port: EPHEMERAL.start,
            order: 0,
        }
    }

    /// Puts a socket into the table; gives its number.
    pub fn add(&mut self, socket: Socket) -> Result<u16, Errno> {
        let free = self.all.iter().position(|one| one.state == State::Free);
        let number = free.ok_or(Errno::EMFILE)?;
        self.all[number] = socket;
        self.end = self.end.max(number + 1);
        Ok(number as u16)
    }

    /// Takes it out.
    pub fn remove(&mut self, number: u16) -> Socket {
        core::mem::replace(self.get(number), FREE)
    }

    /// The socket with this number.
    pub fn get(&mut self, number: u16) -> &mut Socket {
        &mut self.all[usize::from(number) % MAX_SOCKETS]
    }

    /// Every socket, with its number.
    pub fn all(&self) -> impl Iterator<Item = (u16, &Socket)> {
        let numbered = self.all[..self.end].iter().enumerate();
        numbered.map(|(number, socket)| (number as u16, socket))
    }

    /// The same, to be changed.
    pub fn all_mut(&mut self) -> impl Iterator<Item = (u16, &mut Socket)> {
        let numbered = self.all[..self.end].iter_mut().enumerate();
        numbered.map(|(number, socket)| (number as u16, socket))
    }

    /// The port whose listeners get the requests: `port` if there is one, else the first that is
    /// listened on.
    pub fn serving_port(&self, port: u16) -> Option<u16> {
        let ports = || self.all().filter_map(|(_, socket)| socket.listening_port());
        ports().find(|one| *one == port).or_else(|| ports().next())
    }

    /// The `errno` that a socket is to be told, which is told once.
    pub fn take_error(&mut self, number: u16) -> Option<Errno> {
        match core::mem::take(&mut self.get(number).error) {
            0 => None,
            error => Some(Errno(error.into())),
        }
    }

    /// The listener that a connection to this address comes to.
    pub fn listener(&self, to: &Address, file: Option<u16>, kind: u8) -> Option<u16> {
        let is_it = |socket: &Socket| match (to, socket.local) {
            (Address::Inet(ip, port), Address::Inet(_, own)) => own == *port && socket.takes(*ip),
            (Address::Unix(name), Address::Unix(own)) if !name.is_path() => own == *name,
            (Address::Unix(_), Address::Unix(_)) => file.is_some() && socket.file == file,
            _ => false,
        };
        let mut listeners = self.all().filter(|(_, socket)| {
            matches!(socket.state, State::Listening { .. }) && socket.kind == kind
        });
        listeners
            .find(|(_, socket)| is_it(socket))
            .map(|(number, _)| number)
    }

    /// How many connections wait at a listener.
    pub fn waiting(&self, listener: u16) -> usize {
        let waits = |socket: &Socket| socket.waits_at.is_some_and(|(at, _)| at == listener);
        self.all().filter(|(_, socket)| waits(socket)).count()
    }

    /// The connection that has waited longest at a listener.
    pub fn first_waiting(&self, listener: u16) -> Option<u16> {
        self.all()
            .filter_map(|(number, socket)| match socket.waits_at {
                Some((at, order)) if at == listener => Some((order, number)),
                _ => None,
            })
            .min()
            .map(|(_, number)| number)
    }

    /// The next place in the order of connections.
    pub fn next_order(&mut self) -> u32 {
        self.order = self.order.wrapping_add(1);
        self.order
    }

    /// Whether a socket may not be bound to an address because another one is.
    pub fn is_taken(&self, socket: &Socket, ip: Ip, port: u16) -> bool {
        let meets = |other: &Socket| {
            let Address::Inet(own, at) = other.local else {
                return false;
            };
            let bound_there = Socket {
                local: Address::Inet(ip, port),
                ..*socket
            };
            at == port && (other.takes(ip) || bound_there.takes(own))
        };
        self.all().any(|(_, other)| {
            let shared = socket.options.reuse_port() && other.options.reuse_port();
            let reused = socket.options.reuse_address() && other.options.reuse_address();
            let holds = match other.state {
                State::Free | State::Request(_) | State::Outbound(_) => false,
                _ if socket.kind != other.kind || other.lost_port => false,
                State::Datagrams(_) => !shared && !reused,
                State::Listening { .. } => !shared,
                // One that was accepted has its listener's port.
                State::Fresh | State::Stream { .. } => !shared && !reused,
            };
            holds && meets(other)
        })
    }

    /// A port that no socket has.
    pub fn free_port(&mut self) -> Result<u16, Errno> {
        for _ in EPHEMERAL {
            let port = self.next_port;
            self.next_port = match port + 1 {
                next if EPHEMERAL.contains(&next) => next,
                _ => EPHEMERAL.start,
            };
            let has = |address| matches!(address, Address::Inet(_, own) if own == port);
            if !self.all().any(|(_, socket)| has(socket.local)) {
                return Ok(port);
            }
        }
        Err(Errno::EADDRINUSE)
    }
}

impl Default for Sockets {
    fn default() -> Self {
        Sockets::new()
    }
}
