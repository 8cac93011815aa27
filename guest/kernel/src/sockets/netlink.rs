//! Sockets of AF_NETLINK, by which programs ask the kernel what network interfaces and addresses there are
//! (NETLINK_ROUTE; rtnetlink(7)): those of `interfaces`, and nothing to change.
//!
//! A request is answered at once: its answer lies in the socket's own inbox before the send is over.

use super::address::{AF_INET, AF_INET6, Address};
use super::interfaces::{self, Interface};
use super::table::Mailbox;
use super::{datagrams, rights};
use crate::buffers::Source;
use crate::errno::{Errno, SysResult};
use crate::process::PROCESS_ID;
use crate::state;

/// Longest message with requests that is understood; they have some dozens of bytes.
const MAX_REQUEST_BYTES: usize = 512;
/// Longest answer.
const MAX_ANSWER_BYTES: usize = 512;

/// A `struct nlmsghdr`: length, kind, flags, sequence number, the sender's port.
const HEAD_BYTES: usize = 16;
const NLM_F_MULTI: u16 = 2;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Messages below are no requests.
const NLMSG_MIN_TYPE: u16 = 0x10;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_MAX: u16 = 123;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;

/// `bind`: the port that it names, or one that no other has.
pub fn bind(number: u16, port: u32) -> Result<(), Errno> {
    let has = |port: u32| {
        let mut all = state::sockets().all();
        all.any(|(other, socket)| other != number && socket.local == Address::Netlink(port))
    };
    let socket = state::sockets().get(number);
    let port = match (port, socket.local) {
        (0, Address::Netlink(own)) if own != 0 => own,
        (_, Address::Netlink(own)) if own != 0 && own != port => return Err(Errno::EINVAL),
        (0, _) if !has(PROCESS_ID as u32) => PROCESS_ID as u32,
        // As on Linux those that are given out beside it are negative.
        (0, _) => u32::MAX - 4096 - u32::from(number),
        (port, _) if has(port) => return Err(Errno::EADDRINUSE),
        (port, _) => port,
    };
    socket.local = Address::Netlink(port);
    Ok(())
}

/// Sends requests to the kernel, the one other end there is.
pub fn send(number: u16, mailbox: Mailbox, from: Source<'_>, to: Option<Address>) -> SysResult {
    if matches!(to, Some(Address::Netlink(port)) if port != 0) {
        return Err(Errno::ECONNREFUSED);
    }
    bind(number, 0)?;
    let mut bytes = [0; MAX_REQUEST_BYTES];
    let used = from.copy_whole(&mut bytes)?;
    let Address::Netlink(port) = state::sockets().get(number).local else {
        return Err(Errno::EINVAL);
    };
    let mut left = &bytes[..used];
    while let Some(request) = Request::first(left) {
        let mut answer = Answer::new(&request, port);
        if request.kind >= NLMSG_MIN_TYPE {
            request.answer(&mut answer);
        }
        if answer.used > 0 {
            let whole = Source::Own(&answer.bytes[..answer.used]);
            // For what there is no room is lost, of which the program is told by its next call.
            datagrams::put(mailbox.inbox, whole, &Address::Netlink(0), &rights::NONE).or_else(
                |_| {
                    state::sockets().get(number).error = Errno::ENOBUFS.0 as u8;
                    Ok(0)
                },
            )?;
        }
        left = left.get(request.bytes..).unwrap_or_default();
    }
    Ok(used as u64)
}

/// One request.
struct Request<'a> {
    kind: u16,
    flags: u16,
    head: &'a [u8; HEAD_BYTES],
    /// What is behind the head.
    body: &'a [u8],
    /// What it takes, up to the next one.
    bytes: usize,
}

fn half(bytes: &[u8], at: usize) -> u16 {
    let half = bytes.get(at..).and_then(<[u8]>::first_chunk);
    half.copied().map_or(0, u16::from_le_bytes)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..).and_then(<[u8]>::first_chunk);
    word.copied().map_or(0, u32::from_le_bytes)
}

impl<'a> Request<'a> {
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let head = bytes.first_chunk::<HEAD_BYTES>()?;
        let length = word(head, 0) as usize;
        let body = bytes.get(HEAD_BYTES..length)?;
        Some(Request {
            kind: half(head, 4),
            flags: half(head, 6),
            head,
            body,
            bytes: length.next_multiple_of(4),
        })
    }

    fn is_dump(&self) -> bool {
        self.flags & NLM_F_DUMP == NLM_F_DUMP
    }

    /// The content of the first attribute of a kind, behind `fixed` bytes of body.
    fn attribute(&self, fixed: usize, kind: u16) -> Option<&'a [u8]> {
        let mut left = self.body.get(fixed..)?;
        loop {
            let bytes = usize::from(half(left, 0));
            let content = left.get(4..bytes)?;
            if half(left, 2) == kind {
                return Some(content);
            }
            left = left.get(bytes.next_multiple_of(4)..)?;
        }
    }

    /// The interface that is meant: by its number or its name.
    fn interface(&self) -> Option<&'static Interface> {
        const BODY_BYTES: usize = 16;
        match (word(self.body, 4), self.attribute(BODY_BYTES, IFLA_IFNAME)) {
            (0, Some(name)) => interfaces::by_name(name),
            (index, _) => interfaces::by_index(index),
        }
    }

    fn answer(&self, to: &mut Answer) {
        let family = u16::from(self.body.first().copied().unwrap_or(0));
        let result = match self.kind {
            RTM_GETLINK if self.is_dump() => {
                for one in &interfaces::ALL {
                    link(to, NLM_F_MULTI, one);
                }
                Ok(())
            }
            RTM_GETLINK => match self.interface() {
                Some(one) => {
                    link(to, 0, one);
                    Ok(())
                }
                None => Err(Errno::ENODEV),
            },
            RTM_GETADDR if self.is_dump() => {
                for version in [AF_INET, AF_INET6] {
                    if family == 0 || family == version {
                        for one in &interfaces::ALL {
                            address(to, one, version);
                        }
                    }
                }
                Ok(())
            }
            // Routes, neighbours, rules and whatever else there is nothing of.
            kind if kind <= RTM_MAX && kind % 4 == 2 && self.is_dump() => Ok(()),
            kind if kind <= RTM_MAX && kind % 4 != 2 => Err(Errno::EPERM),
            _ => Err(Errno::EOPNOTSUPP),
        };
        match result {
            Ok(()) if self.is_dump() => to.message(NLMSG_DONE, NLM_F_MULTI, |to| to.put(&[0; 4])),
            Ok(()) if self.flags & NLM_F_ACK == 0 => {}
            result => {
                let number = result.err().map_or(0, |error| -error.0);
                to.message(NLMSG_ERROR, 0, |to| {
                    to.put(&number.to_le_bytes());
                    to.put(self.head);
                });
            }
        }
    }
}

/// RTM_NEWLINK of an interface.
fn link(to: &mut Answer, flags: u16, one: &Interface) {
    const IFLA_ADDRESS: u16 = 1;
    const IFLA_BROADCAST: u16 = 2;
    const IFLA_QDISC: u16 = 6;
    const IFLA_TXQLEN: u16 = 13;
    const IFLA_OPERSTATE: u16 = 16;
    const IFLA_LINKMODE: u16 = 17;
    /// IFF_LOWER_UP
    const CARRIER: u32 = 0x1_0000;
    to.message(RTM_NEWLINK, flags, |to| {
        to.put(&[0, 0]);
        to.put(&one.hardware.to_le_bytes());
        to.put(&one.index.to_le_bytes());
        to.put(&(one.flags | CARRIER).to_le_bytes());
        to.put(&[0; 4]);
        to.attribute(IFLA_IFNAME, one.name);
        to.attribute(IFLA_TXQLEN, &one.queue.to_le_bytes());
        to.attribute(IFLA_OPERSTATE, &[0]);
        to.attribute(IFLA_LINKMODE, &[0]);
        to.attribute(IFLA_MTU, &one.mtu.to_le_bytes());
        if one.is_loopback() {
            to.attribute(IFLA_ADDRESS, &[0; 6]);
            to.attribute(IFLA_BROADCAST, &[0; 6]);
        }
        to.attribute(IFLA_QDISC, b"noqueue\0");
    });
}

/// RTM_NEWADDR of an interface's address of a version. Those that connections out of the guest show are told too: with
/// loopback's alone glibc would refuse to look up names (AI_ADDRCONFIG).
fn address(to: &mut Answer, one: &Interface, version: u16) {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_LABEL: u16 = 3;
    const IFA_CACHEINFO: u16 = 6;
    const IFA_FLAGS: u16 = 8;
    const IFA_F_PERMANENT: u8 = 0x80;
    const SCOPE_HOST: u8 = 254;
    let (address, prefix_bits) = match version {
        AF_INET => one.v4,
        _ => one.v6,
    };
    let v4 = address.as_v4();
    let ip = v4.as_ref().map_or(&address.0[..], |v4| &v4[..]);
    let scope = if one.is_loopback() { SCOPE_HOST } else { 0 };
    to.message(RTM_NEWADDR, NLM_F_MULTI, |to| {
        to.put(&[version as u8, prefix_bits, IFA_F_PERMANENT, scope]);
        to.put(&one.index.to_le_bytes());
        to.attribute(IFA_ADDRESS, ip);
        if version == AF_INET {
            to.attribute(IFA_LOCAL, ip);
            to.attribute(IFA_LABEL, one.name);
        }
        // Preferred and valid for ever, made and changed at the start.
        let mut cache = [0xff; 16];
        cache[8..].fill(0);
        to.attribute(IFA_CACHEINFO, &cache);
        to.attribute(IFA_FLAGS, &u32::from(IFA_F_PERMANENT).to_le_bytes());
    });
}

/// What a request is answered, in one datagram.
struct Answer {
    bytes: [u8; MAX_ANSWER_BYTES],
    used: usize,
    /// Of the request.
    sequence: u32,
    /// Of the socket.
    port: u32,
}

impl Answer {
    fn new(request: &Request<'_>, port: u32) -> Self {
        Answer {
            bytes: [0; MAX_ANSWER_BYTES],
            used: 0,
            sequence: word(request.head, 8),
            port,
        }
    }

    /// Nothing that is put here is as long as the room for it, which a test shows.
    fn put(&mut self, bytes: &[u8]) {
        if let Some(room) = self.bytes.get_mut(self.used..self.used + bytes.len()) {
            room.copy_from_slice(bytes);
            self.used += bytes.len();
        }
    }

    fn align(&mut self) {
        self.used = self.used.next_multiple_of(4).min(MAX_ANSWER_BYTES);
    }

    fn attribute(&mut self, kind: u16, content: &[u8]) {
        self.put(&(4 + content.len() as u16).to_le_bytes());
        self.put(&kind.to_le_bytes());
        self.put(content);
        self.align();
    }

    fn message(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Self)) {
        let start = self.used;
        self.put(&[0; 4]);
        self.put(&kind.to_le_bytes());
        self.put(&flags.to_le_bytes());
        self.put(&self.sequence.to_le_bytes());
        self.put(&self.port.to_le_bytes());
        body(self);
        let length = (self.used - start) as u32;
        if let Some(place) = self.bytes.get_mut(start..start + 4) {
            place.copy_from_slice(&length.to_le_bytes());
        }
        self.align();
    }
}
