//! AF_NETLINK, as far as programs ask by it what network there is (getifaddrs, Go's net.Interfaces): the interfaces and
//! their addresses, which never change.
//!
//! RFC 3549; the layouts are those of netlink(7) and rtnetlink(7).

use super::address::{AF_INET, AF_INET6, AF_NETLINK, AF_UNSPEC, Address, Ip};
use super::interfaces::{INTERFACES, Interface};
use super::table::{SOCK_DGRAM, SOCK_RAW, Socket, State};
use super::{datagrams, rights};
use crate::buffers::Source;
use crate::errno::{Errno, SysResult};
use crate::process::PROCESS_ID;
use crate::state;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
/// The last that this kind of socket takes.
const RTM_MAX: u16 = 123;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_MULTI: u16 = 0x2;
const NLM_F_ACK: u16 = 0x4;
/// All of them, not one that is named.
const NLM_F_DUMP: u16 = 0x300;
const HEAD_BYTES: usize = 16;
/// Room for all that is ever answered at once.
const ANSWER_BYTES: usize = 512;

/// A new socket for it.
pub(super) fn new(kind: u8, protocol: u32) -> Result<Socket, Errno> {
    const NETLINK_ROUTE: u32 = 0;
    match (kind, protocol) {
        (SOCK_RAW | SOCK_DGRAM, NETLINK_ROUTE) => Ok(Socket {
            kind,
            ..datagrams::new(AF_NETLINK)?
        }),
        (SOCK_RAW | SOCK_DGRAM, _) => Err(Errno::EPROTONOSUPPORT),
        _ => Err(Errno::ESOCKTNOSUPPORT),
    }
}

/// What the bytes of a `struct sockaddr_nl` say: the number of a socket's; 0 is the kernel's.
pub(super) fn decode(bytes: &[u8]) -> Result<Address, Errno> {
    match bytes {
        [family, 0, _, _, a, b, c, d, _, _, _, _, ..] if *family == AF_NETLINK as u8 => {
            Ok(Address::Netlink(u32::from_le_bytes([*a, *b, *c, *d])))
        }
        _ => Err(Errno::EINVAL),
    }
}

/// `bind`. The groups that a program wants to hear of have nothing to tell.
pub(super) fn bind(number: u16, given: &[u8]) -> SysResult {
    let wanted = decode(given)?;
    let socket = state::sockets().get(number);
    socket.local = match (socket.local, wanted) {
        (Address::Netlink(0), Address::Netlink(0)) => Address::Netlink(PROCESS_ID as u32),
        (Address::Netlink(0), wanted) => wanted,
        (own, wanted) if wanted == own || wanted == Address::Netlink(0) => own,
        _ => return Err(Errno::EINVAL),
    };
    Ok(0)
}

/// `send` and its kin: a question to the kernel, which is answered at once.
pub(super) fn ask(number: u16, from: Source<'_>, to: Option<Address>) -> SysResult {
    const KERNEL: Address = Address::Netlink(0);
    let total = from.total()?;
    from.check()?;
    if to.is_some_and(|to| to != KERNEL) {
        return Err(Errno::ECONNREFUSED);
    }
    let socket = state::sockets().get(number);
    if socket.local == KERNEL {
        socket.local = Address::Netlink(PROCESS_ID as u32);
    }
    let (State::Datagrams(mailbox), Address::Netlink(own)) = (socket.state, socket.local) else {
        return Err(Errno::EBADF);
    };
    let mut question = [0; HEAD_BYTES + 1];
    let mut known = 0;
    from.for_each(|part| {
        let room = question.get_mut(known..).unwrap_or_default();
        let taken = part.len().min(room.len());
        room[..taken].copy_from_slice(&part[..taken]);
        known += taken;
        Ok(part.len() as u64)
    })?;
    let mut answer = Answer {
        bytes: [0; ANSWER_BYTES],
        used: 0,
        sequence: [0; 4],
        own,
    };
    answer.to(&question[..known], total);
    if answer.used > 0 {
        let bytes = &answer.bytes[..answer.used];
        let put = datagrams::put(mailbox.inbox, Source::Own(bytes), &KERNEL, &rights::NONE);
        put.map_err(|_| Errno::ENOBUFS)?;
    }
    Ok(total)
}

/// The messages of an answer.
struct Answer {
    bytes: [u8; ANSWER_BYTES],
    used: usize,
    /// The question's, in its bytes' order.
    sequence: [u8; 4],
    /// The number of the socket that asks.
    own: u32,
}

impl Answer {
    /// Answers the question that begins so and has `total` bytes. What is none has no answer.
    fn to(&mut self, question: &[u8], total: u64) {
        let Some((head, rest)) = question.split_first_chunk::<HEAD_BYTES>() else {
            return;
        };
        let [
            a,
            b,
            c,
            d,
            kind,
            kind_high,
            flags,
            flags_high,
            sequence @ ..,
            _,
            _,
            _,
            _,
        ] = *head;
        let bytes = u32::from_le_bytes([a, b, c, d]);
        let kind = u16::from_le_bytes([kind, kind_high]);
        let flags = u16::from_le_bytes([flags, flags_high]);
        if bytes < HEAD_BYTES as u32 || u64::from(bytes) > total || flags & NLM_F_REQUEST == 0 {
            return;
        }
        self.sequence = sequence;
        let family = rest.first().copied().unwrap_or(0).into();
        let is_dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        let done = match kind {
            RTM_GETLINK if is_dump => {
                self.links();
                return self.end();
            }
            RTM_GETADDR if is_dump => {
                self.addresses(family);
                return self.end();
            }
            // A message to the protocol itself.
            _ if kind < RTM_NEWLINK => Ok(()),
            _ if kind > RTM_MAX => Err(Errno::EOPNOTSUPP),
            // A question for something else, of which there is nothing.
            _ if kind % 4 == 2 && is_dump => return self.end(),
            _ if kind % 4 == 2 => Err(Errno::EOPNOTSUPP),
            _ => Err(Errno::EPERM),
        };
        if done.is_err() || flags & NLM_F_ACK != 0 {
            self.message(NLMSG_ERROR, 0, |answer| {
                answer.put(&done.map_or_else(|error| -error.0, |()| 0).to_le_bytes());
                answer.put(head);
            });
        }
    }

    fn end(&mut self) {
        self.message(NLMSG_DONE, NLM_F_MULTI, |answer| answer.put(&[0; 4]));
    }

    fn links(&mut self) {
        const ADDRESS: u16 = 1;
        const NAME: u16 = 3;
        const MTU: u16 = 4;
        for one in &INTERFACES {
            self.message(RTM_NEWLINK, NLM_F_MULTI, |answer| {
                answer.put(&AF_UNSPEC.to_le_bytes());
                answer.put(&one.kind.to_le_bytes());
                answer.put(&one.index.to_le_bytes());
                answer.put(&one.flags.to_le_bytes());
                answer.put(&[0; 4]);
                answer.attribute(NAME, &[one.name.as_bytes(), &[0]]);
                answer.attribute(MTU, &[&one.most_bytes.to_le_bytes()]);
                if !one.hardware.is_empty() {
                    answer.attribute(ADDRESS, &[one.hardware]);
                }
            });
        }
    }

    /// Those of a family, or all.
    fn addresses(&mut self, wanted: u16) {
        const ADDRESS: u16 = 1;
        const LOCAL: u16 = 2;
        const LABEL: u16 = 3;
        const PERMANENT: u8 = 0x80;
        let all = |family: u16| {
            let of = move |one: &'static Interface| one.addresses.iter().map(move |at| (one, at));
            let is_it =
                move |(_, (ip, _)): &(_, &(Ip, u8))| ip.as_v4().is_some() == (family == AF_INET);
            INTERFACES.iter().flat_map(of).filter(is_it)
        };
        for family in [AF_INET, AF_INET6] {
            for (one, (ip, prefix)) in all(family) {
                if wanted != AF_UNSPEC && wanted != family {
                    continue;
                }
                self.message(RTM_NEWADDR, NLM_F_MULTI, |answer| {
                    answer.put(&[family as u8, *prefix, PERMANENT, one.scope]);
                    answer.put(&one.index.to_le_bytes());
                    match ip.as_v4() {
                        Some(v4) => {
                            answer.attribute(ADDRESS, &[&v4]);
                            answer.attribute(LOCAL, &[&v4]);
                            answer.attribute(LABEL, &[one.name.as_bytes(), &[0]]);
                        }
                        None => answer.attribute(ADDRESS, &[&ip.0]),
                    }
                });
            }
        }
    }

    fn message(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Self)) {
        let start = self.used;
        self.put(&[0; 4]);
        self.put(&kind.to_le_bytes());
        self.put(&flags.to_le_bytes());
        self.put(&self.sequence.clone());
        self.put(&self.own.to_le_bytes());
        body(self);
        let bytes = (self.used - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&bytes.to_le_bytes());
    }

    /// An attribute, its value in parts.
    fn attribute(&mut self, kind: u16, value: &[&[u8]]) {
        let bytes = value.iter().map(|part| part.len()).sum::<usize>() + 4;
        self.put(&(bytes as u16).to_le_bytes());
        self.put(&kind.to_le_bytes());
        for part in value {
            self.put(part);
        }
        self.used = self.used.next_multiple_of(4);
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.used..self.used + bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages of the answer to a question: kinds, and the bytes behind each head.
    fn asked(kind: u16, flags: u16, family: u16) -> std::vec::Vec<(u16, std::vec::Vec<u8>)> {
        let mut question = std::vec![20, 0, 0, 0];
        question.extend(kind.to_le_bytes());
        question.extend(flags.to_le_bytes());
        question.extend([7, 0, 0, 0, 0, 0, 0, 0]);
        question.push(family as u8);
        let mut answer = Answer {
            bytes: [0; ANSWER_BYTES],
            used: 0,
            sequence: [0; 4],
            own: 5,
        };
        answer.to(&question, 20);
        let mut rest = &answer.bytes[..answer.used];
        let mut found = std::vec![];
        while !rest.is_empty() {
            let bytes = u32::from_le_bytes(*rest.first_chunk().unwrap()) as usize;
            assert_eq!(bytes % 4, 0);
            assert_eq!(rest[8..16], [7, 0, 0, 0, 5, 0, 0, 0]);
            found.push((
                u16::from_le_bytes([rest[4], rest[5]]),
                rest[HEAD_BYTES..bytes].to_vec(),
            ));
            rest = &rest[bytes..];
        }
        found
    }

    #[test]
    fn what_is_asked_for_is_told_whole_and_everything_else_refused() {
        let all = NLM_F_REQUEST | NLM_F_DUMP;
        let kinds = |answer: &[(u16, std::vec::Vec<u8>)]| {
            let kinds = answer.iter().map(|(kind, _)| *kind);
            kinds.collect::<std::vec::Vec<_>>()
        };
        let links = asked(RTM_GETLINK, all, AF_UNSPEC);
        assert_eq!(kinds(&links), [RTM_NEWLINK, RTM_NEWLINK, NLMSG_DONE]);
        for (family, count) in [(AF_UNSPEC, 4), (AF_INET, 2), (AF_INET6, 2), (AF_NETLINK, 0)] {
            let addresses = asked(RTM_GETADDR, all, family);
            let mut wanted = std::vec![RTM_NEWADDR; count];
            wanted.push(NLMSG_DONE);
            assert_eq!(kinds(&addresses), wanted);
        }
        // Routes, of which there are none to tell.
        assert_eq!(kinds(&asked(26, all, AF_UNSPEC)), [NLMSG_DONE]);
        for (kind, flags, error) in [
            (RTM_GETLINK, NLM_F_REQUEST, Errno::EOPNOTSUPP.0),
            (RTM_NEWADDR, NLM_F_REQUEST, Errno::EPERM.0),
            (200, NLM_F_REQUEST, Errno::EOPNOTSUPP.0),
            (1, NLM_F_REQUEST | NLM_F_ACK, 0),
        ] {
            let answer = asked(kind, flags, AF_UNSPEC);
            assert_eq!(kinds(&answer), [NLMSG_ERROR]);
            assert_eq!(answer[0].1[..4], (-error).to_le_bytes());
        }
        assert!(asked(RTM_GETLINK, NLM_F_DUMP, AF_UNSPEC).is_empty());
    }
}
