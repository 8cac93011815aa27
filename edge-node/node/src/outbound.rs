//! Connections that functions make to elsewhere: what each may reach, and the sockets.
//!
//! Nothing here blocks: sockets are non-blocking, names are resolved on threads of their own
//! ([`resolver`]). One epoll instance per guest that connects stands for all that it waits for, so that
//! one descriptor wakes whoever waits for the guest.

pub(crate) mod egress;
mod resolver;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holm_model::ids::Name;
use holm_model::manifest::network::{Network, Place};
use holm_vmm::socket_events::{ENDED, FAILED, MAX_CONNECTIONS, READABLE, RESOLVED, WRITABLE};
use holm_vmm::{Outbound, Resolution};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, ipproto, sockopt,
};

use crate::limits::MAX_RESOLVED_PER_INSTANCE;
use egress::Egress;
use resolver::{Known, Resolver};

/// Where connections lead. The default is the network as it is; tests put theirs in its place.
pub trait Means: Send + Sync + fmt::Debug {
    /// The addresses of a host. May block: it is called on a thread for that.
    fn resolve(&self, name: &str) -> std::io::Result<Vec<IpAddr>>;

    /// The address to dial for another.
    fn dial(&self, address: SocketAddr) -> SocketAddr {
        address
    }
}

/// The machine's own resolver.
#[derive(Debug)]
struct Machine;

impl Means for Machine {
    fn resolve(&self, name: &str) -> std::io::Result<Vec<IpAddr>> {
        use std::net::ToSocketAddrs as _;
        Ok((name, 0).to_socket_addrs()?.map(|at| at.ip()).collect())
    }
}

/// What is outside of a node, the same for all of its functions.
#[derive(Clone, Debug)]
pub struct Outside {
    resolver: Arc<Resolver>,
    opened: Arc<[Place]>,
    /// Whose functions ask for names.
    tenant: Arc<str>,
}

impl Default for Outside {
    /// The network as it is, with nothing opened.
    fn default() -> Self {
        Outside::new(Vec::new())
    }
}

impl Outside {
    /// The network as it is. Of what is the node's own, functions may reach what is `opened` to them, if their
    /// manifests name it too.
    pub fn new(opened: Vec<Place>) -> Self {
        Outside {
            resolver: Resolver::of_machine(),
            opened: opened.into(),
            tenant: Arc::from(""),
        }
    }

    /// The same, over means of the caller's.
    pub fn with(opened: Vec<Place>, means: Arc<dyn Means>) -> Self {
        Outside {
            resolver: Arc::new(Resolver::new(means)),
            opened: opened.into(),
            tenant: Arc::from(""),
        }
    }

    /// The same for the functions of a tenant, who has his own part of the threads that ask for names.
    pub(crate) fn of(&self, tenant: &Name) -> Self {
        Outside {
            tenant: Arc::from(tenant.as_str()),
            ..self.clone()
        }
    }

    /// Whether some function may reach the address.
    fn has(&self, to: SocketAddr) -> bool {
        let opened = |place: &Place| place.port == to.port() && place.has_address(to.ip());
        self.opened.iter().any(opened) || !(is_nodes_own(to.ip()) || is_this_machine(to))
    }
}

/// What a function may reach.
#[derive(Clone, Debug)]
pub struct Allowed {
    places: Arc<[Place]>,
    outside: Outside,
    /// Of all instances together.
    egress: Arc<Egress>,
}

impl Allowed {
    /// What a manifest's `[network]` allows.
    pub fn new(network: &Network, outside: &Outside) -> Self {
        // A manifest that was checked has only places that can be read.
        Allowed::of(network.places().unwrap_or_default(), outside)
    }

    /// Whether there is nowhere to connect to.
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// These places.
    pub fn of(places: Vec<Place>, outside: &Outside) -> Self {
        Allowed {
            places: places.into(),
            outside: outside.clone(),
            egress: Arc::default(),
        }
    }

    /// How much may be sent.
    pub(crate) fn egress(&self) -> &Arc<Egress> {
        &self.egress
    }

    /// For one instance; none if nothing is allowed.
    pub fn outbound(&self) -> Option<Box<dyn Outbound>> {
        match self.places.is_empty() {
            true => None,
            false => Some(Box::new(Connections {
                allowed: self.clone(),
                sockets: [const { None }; MAX_CONNECTIONS],
                resolved: Vec::new(),
                events: None,
            })),
        }
    }

    fn has_name(&self, name: &str) -> bool {
        self.places.iter().any(|place| place.has_name(name))
    }
}

/// Whether an address is of the node's loopback interface, of its link, of nobody in particular, or of a service
/// that a cloud has for the machine itself. A name that resolves to one may be an attempt to reach what only the
/// node is to reach.
fn is_nodes_own(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast()
                || ip.octets()[0] == 0
                || CLOUD_V4.contains(&ip)
        }
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_unicast_link_local()
                || CLOUD_V6.contains(&ip)
                || inner(ip).is_some_and(|ip| is_nodes_own(ip.into()))
        }
    }
}

/// Metadata and agents of clouds, beside those at link-local addresses: Alibaba Cloud, Azure, Oracle Cloud.
const CLOUD_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];
/// The same: Amazon, Google.
const CLOUD_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

/// The address of version 4 that one of version 6 leads to: mapped and compatible ones (RFC 4291, 2.5.5), those of
/// translators (RFC 6052, RFC 8215) and 6to4 (RFC 3056).
fn inner(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let pair = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match ip.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0 | 1, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => Some(pair(high, low)),
        _ => None,
    }
}

/// Whether an address is one of this machine's interfaces, asked of the kernel each time, for they change: from
/// there to there, it takes the address itself as the source. Nothing is sent.
fn is_this_machine(to: SocketAddr) -> bool {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let source = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(to)?;
        socket.local_addr()
    });
    // Where there is no way to it, there is none for the connection either.
    source.is_ok_and(|source| source.ip() == to.ip())
}

#[derive(Debug)]
struct Socket {
    handle: u64,
    fd: OwnedFd,
    /// What the epoll instance watches it for.
    watched: EventFlags,
}

/// What wakes whoever waits for the guest.
#[derive(Debug)]
struct Events {
    epoll: OwnedFd,
    /// Written to when a name is known.
    bell: Arc<OwnedFd>,
}

/// The connections of one instance. They are closed when it is dropped.
#[derive(Debug)]
struct Connections {
    allowed: Allowed,
    sockets: [Option<Socket>; MAX_CONNECTIONS],
    /// Addresses that names of the list have resolved to, with the name.
    resolved: Vec<(IpAddr, String)>,
    events: Option<Events>,
}

/// A handle for a place. The number above it never comes again, so that an instance that remembers the
/// handle of another has nothing.
fn next_handle(place: usize) -> u64 {
    static SERIAL: AtomicU64 = AtomicU64::new(1);
    SERIAL.fetch_add(1, Ordering::Relaxed) << 8 | place as u64
}

fn number(error: Errno) -> i32 {
    error.raw_os_error()
}

impl Connections {
    fn events(&mut self) -> Result<&mut Events, Errno> {
        if self.events.is_none() {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
            epoll::add(&epoll, &bell, EventData::new_u64(u64::MAX), EventFlags::IN)?;
            self.events = Some(Events { epoll, bell });
        }
        self.events.as_mut().ok_or(Errno::INVAL)
    }

    fn socket(&mut self, handle: u64) -> Result<&mut Socket, i32> {
        self.sockets
            .get_mut((handle & 0xff) as usize)
            .and_then(Option::as_mut)
            .filter(|socket| socket.handle == handle)
            .ok_or(number(Errno::BADF))
    }

    /// Whether the list allows a connection to an address.
    fn allows(&self, to: SocketAddr) -> bool {
        let places = || {
            let places = self.allowed.places.iter();
            places.filter(|place| place.port == to.port())
        };
        let by_name = || {
            let mut names = self.resolved.iter().filter(|(ip, _)| *ip == to.ip());
            names.any(|(_, name)| places().any(|place| place.has_name(name)))
        };
        let named = places().any(|place| place.has_address(to.ip())) || by_name();
        named && self.allowed.outside.has(to)
    }

    fn dial(&mut self, to: SocketAddr) -> Result<u64, Errno> {
        let free = self.sockets.iter().position(Option::is_none);
        let place = free.ok_or(Errno::MFILE)?;
        let to = self.allowed.outside.resolver.means().dial(to);
        let family = match to {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
        // A hint: what a guest writes is whole already.
        let _ = sockopt::set_tcp_nodelay(&fd, true);
        self.events()?;
        match rustix::net::connect(&fd, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let handle = next_handle(place);
        self.sockets[place] = Some(Socket {
            handle,
            fd,
            watched: EventFlags::empty(),
        });
        Ok(handle)
    }
}

impl Outbound for Connections {
    fn resolve(&mut self, name: &str) -> Resolution {
        let name = name.to_ascii_lowercase();
        if !self.allowed.has_name(&name) {
            return Resolution::Unknown;
        }
        let Ok(events) = self.events() else {
            return Resolution::Unknown;
        };
        let bell = Arc::clone(&events.bell);
        let outside = &self.allowed.outside;
        match outside.resolver.ask(&outside.tenant, &name, &bell) {
            Known::Pending => Resolution::Pending,
            Known::Addresses(addresses) => {
                for ip in addresses.iter().copied() {
                    let known = self
                        .resolved
                        .iter()
                        .any(|(at, of)| *at == ip && *of == name);
                    if !known {
                        if self.resolved.len() >= MAX_RESOLVED_PER_INSTANCE {
                            self.resolved.remove(0);
                        }
                        self.resolved.push((ip, name.clone()));
                    }
                }
                Resolution::Known(addresses.iter().copied().map(mapped).collect())
            }
            Known::Nothing => Resolution::Unknown,
        }
    }

    fn connect(&mut self, ip: Ipv6Addr, port: u16) -> Result<u64, i32> {
        let to = SocketAddr::new(ip.to_canonical(), port);
        match self.allows(to) {
            true => self.dial(to).map_err(number),
            false => Err(number(Errno::ACCESS)),
        }
    }

    fn send(&mut self, handle: u64, bytes: &[u8]) -> Result<usize, i32> {
        let egress = self.allowed.egress.clone();
        let socket = self.socket(handle)?;
        let most = egress.take(bytes.len());
        if most == 0 && !bytes.is_empty() {
            return Err(number(Errno::DQUOT));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = rustix::net::send(&socket.fd, &bytes[..most], flags).map_err(number);
        egress.give_back(most - sent.as_ref().map_or(0, |sent| (*sent).min(most)));
        sent
    }

    fn receive(&mut self, handle: u64, to: &mut [u8], peek: bool) -> Result<usize, i32> {
        let socket = self.socket(handle)?;
        let flags = match peek {
            true => RecvFlags::PEEK | RecvFlags::DONTWAIT,
            false => RecvFlags::DONTWAIT,
        };
        let (count, _) = rustix::net::recv(&socket.fd, to, flags).map_err(number)?;
        Ok(count)
    }

    fn shut(&mut self, handle: u64) -> Result<(), i32> {
        let socket = self.socket(handle)?;
        rustix::net::shutdown(&socket.fd, Shutdown::Write).map_err(number)
    }

    fn close(&mut self, handle: u64) -> Result<(), i32> {
        self.socket(handle)?;
        self.sockets[(handle & 0xff) as usize] = None;
        Ok(())
    }

    fn error(&mut self, handle: u64) -> Result<i32, i32> {
        let socket = self.socket(handle)?;
        match sockopt::socket_error(&socket.fd) {
            Ok(Ok(())) => Ok(0),
            Ok(Err(error)) | Err(error) => Ok(number(error)),
        }
    }

    fn ready(&mut self, events: u64) -> u64 {
        let mut there = 0;
        if events & RESOLVED != 0
            && let Some(own) = &self.events
        {
            let mut count = [0; 8];
            if rustix::io::read(&own.bell, &mut count).is_ok() {
                there |= RESOLVED;
            }
        }
        let open = self.sockets.iter().enumerate();
        let open = open.filter_map(|(place, socket)| Some((place, socket.as_ref()?)));
        let (places, mut polled): (Vec<usize>, Vec<PollFd<'_>>) = open
            .map(|(place, socket)| {
                let flags = PollFlags::IN | PollFlags::OUT | PollFlags::RDHUP;
                (place, PollFd::new(&socket.fd, flags))
            })
            .unzip();
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if polled.is_empty() || rustix::event::poll(&mut polled, Some(&now)).is_err() {
            return there & events;
        }
        for (place, polled) in places.into_iter().zip(&polled) {
            let came = polled.revents();
            let failed = PollFlags::ERR | PollFlags::HUP;
            for (flags, first) in [
                (PollFlags::IN | PollFlags::RDHUP | failed, READABLE),
                (PollFlags::OUT | failed, WRITABLE),
                (PollFlags::RDHUP | failed, ENDED),
                (PollFlags::ERR, FAILED),
            ] {
                if came.intersects(flags) {
                    there |= 1 << (first + place as u32);
                }
            }
        }
        there & events
    }

    fn wake(&mut self, events: u64) -> Option<BorrowedFd<'_>> {
        let own = self.events.as_ref()?;
        if events & RESOLVED == 0 {
            // Nobody listens: it is not to wake the guest again and again.
            let _ = rustix::io::read(&own.bell, &mut [0; 8]);
        }
        for (place, socket) in self.sockets.iter_mut().enumerate() {
            let Some(socket) = socket else { continue };
            let asked = |first: u32| events >> (first + place as u32) & 1 != 0;
            let mut wanted = EventFlags::empty();
            wanted.set(EventFlags::IN | EventFlags::RDHUP, asked(READABLE));
            wanted.set(EventFlags::OUT, asked(WRITABLE));
            // Errors are told of whatever is watched, so what nobody asks for is not.
            let data = EventData::new_u64(place as u64);
            let done = match (socket.watched.is_empty(), wanted.is_empty()) {
                (true, true) => Ok(()),
                (true, false) => epoll::add(&own.epoll, &socket.fd, data, wanted),
                (false, false) => epoll::modify(&own.epoll, &socket.fd, data, wanted),
                (false, true) => epoll::delete(&own.epoll, &socket.fd),
            };
            if done.is_ok() {
                socket.watched = wanted;
            }
        }
        Some(own.epoll.as_fd())
    }
}

/// As guests have addresses: those of version 4 as version 6 maps them.
fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A machine where everything that a function may dial is one server.
    #[derive(Debug)]
    struct OneServer;

    impl Means for OneServer {
        fn resolve(&self, _: &str) -> std::io::Result<Vec<IpAddr>> {
            Ok(Vec::new())
        }

        fn dial(&self, to: SocketAddr) -> SocketAddr {
            (Ipv4Addr::LOCALHOST, to.port()).into()
        }
    }

    /// Connects to `ip`, where the manifest allows every address and the operator has opened `opened`.
    fn connect(ip: &str, port: u16, opened: &[&str]) -> Result<u64, i32> {
        let place = |host: &&str| format!("{host}:{port}").parse().unwrap();
        let places = ["0.0.0.0/0", "[::/0]"].iter().map(place).collect();
        let opened = opened.iter().map(place).collect();
        let outside = Outside::with(opened, Arc::new(OneServer));
        let ip: IpAddr = ip.parse().unwrap();
        let mut outbound = Allowed::of(places, &outside).outbound().unwrap();
        outbound.connect(mapped(ip), port)
    }

    fn server() -> (TcpListener, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    #[test]
    fn what_is_the_nodes_own_is_refused_however_it_is_written() {
        let (_listener, port) = server();
        let refused = Err(number(Errno::ACCESS));
        for ip in [
            "127.0.0.1",
            "127.8.9.10",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "255.255.255.255",
            "224.0.0.1",
            "168.63.129.16",
            "100.100.100.200",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:127.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::7f00:1",
            "2002:7f00:1::1",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
        ] {
            assert_eq!(connect(ip, port, &[]), refused, "{ip}");
        }
        for ip in ["198.51.100.1", "2001:db8::1", "64:ff9b::198.51.100.1"] {
            assert!(connect(ip, port, &[]).is_ok(), "{ip}");
        }
    }

    #[test]
    fn addresses_of_the_nodes_interfaces_are_its_own() {
        // Whichever address leads away from here. Where none does, there is only the loopback interface.
        let away = UdpSocket::bind("0.0.0.0:0").unwrap();
        if away.connect("198.51.100.1:9").is_err() {
            eprintln!("this machine has no other interface");
            return;
        }
        let own = away.local_addr().unwrap().ip().to_string();
        let (_listener, port) = server();
        assert_eq!(connect(&own, port, &[]), Err(number(Errno::ACCESS)));
        assert!(connect(&own, port, &[&own]).is_ok());
    }

    #[test]
    fn the_operator_may_open_an_address_and_a_port_of_the_nodes_own() {
        let (_listener, port) = server();
        let refused = Err(number(Errno::ACCESS));
        assert!(connect("169.254.7.7", port, &["169.254.7.0/24"]).is_ok());
        assert!(connect("::ffff:169.254.7.7", port, &["169.254.7.0/24"]).is_ok());
        assert_eq!(connect("169.254.8.7", port, &["169.254.7.0/24"]), refused);
        // Opened, but not in the manifest.
        let place = format!("198.51.100.1:{port}").parse().unwrap();
        let opened = format!("169.254.7.7:{port}").parse().unwrap();
        let outside = Outside::with(vec![opened], Arc::new(OneServer));
        let mut outbound = Allowed::of(vec![place], &outside).outbound().unwrap();
        let ip = Ipv4Addr::new(169, 254, 7, 7).to_ipv6_mapped();
        assert_eq!(outbound.connect(ip, port), refused);
    }
}
