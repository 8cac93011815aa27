//! Socket options. A few change what calls do; the others are kept and read back.

use super::address::{AF_INET6, AF_NETLINK, AF_UNIX};
use super::table::{SOCK_DGRAM, SOCK_STREAM, Socket, State};
use super::{interfaces, number_of, outbound};
use crate::errno::{Errno, SysResult};
use crate::process::PROCESS_ID;
use crate::{identity, state, user};

/// Most values that are kept for one socket; of more, the first ones are.
const MAX_VALUES: usize = 8;

const SOL_SOCKET: u64 = 1;
const SOL_TCP: u64 = 6;
const SOL_IP: u64 = 0;
const SOL_IPV6: u64 = 41;
const SOL_NETLINK: u64 = 270;
const SO_REUSEADDR: u64 = 2;
const SO_TYPE: u64 = 3;
const SO_ERROR: u64 = 4;
const SO_SNDBUF: u64 = 7;
const SO_RCVBUF: u64 = 8;
const SO_LINGER: u64 = 13;
const SO_REUSEPORT: u64 = 15;
const SO_PEERCRED: u64 = 17;
const SO_RCVLOWAT: u64 = 18;
const SO_RCVTIMEO: u64 = 20;
const SO_SNDTIMEO: u64 = 21;
const SO_ACCEPTCONN: u64 = 30;
const SO_PROTOCOL: u64 = 38;
const SO_DOMAIN: u64 = 39;
const SO_SNDBUFFORCE: u64 = 32;
const SO_RCVBUFFORCE: u64 = 33;
const SO_BINDTODEVICE: u64 = 25;
const SO_COOKIE: u64 = 57;
const IPV6_V6ONLY: u64 = 26;
const TCP_INFO: u64 = 11;
const TCP_CONGESTION: u64 = 13;
/// Longest value of an option.
const MAX_BYTES: usize = 256;

/// What a program has set on a socket.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Level, option and value; level 0xff where there is none.
    values: [(u8, u8, i32); MAX_VALUES],
    /// SO_LINGER: whether, and seconds.
    linger: [u32; 2],
    /// SO_RCVTIMEO in nanoseconds, 0 for ever.
    pub receive_ns: u64,
    /// SO_SNDTIMEO in nanoseconds, 0 for ever.
    pub send_ns: u64,
}

impl Options {
    /// Nothing set.
    pub const NONE: Options = Options {
        values: [(0xff, 0, 0); MAX_VALUES],
        linger: [0; 2],
        receive_ns: 0,
        send_ns: 0,
    };

    fn get(&self, level: u64, option: u64) -> Option<i32> {
        let is_it = |one: &&(u8, u8, i32)| (u64::from(one.0), u64::from(one.1)) == (level, option);
        self.values.iter().find(is_it).map(|one| one.2)
    }

    fn set(&mut self, level: u64, option: u64, value: i32) {
        let (Ok(level), Ok(option)) = (u8::try_from(level), u8::try_from(option)) else {
            return;
        };
        let known = |one: &(u8, u8, i32)| (one.0, one.1) == (level, option);
        let place = self.values.iter().position(known);
        let place = place.or_else(|| self.values.iter().position(|one| one.0 == 0xff));
        if let Some(place) = place {
            self.values[place] = (level, option, value);
        }
    }

    fn forget(&mut self, level: u64, option: u64) {
        let is_it = |one: &(u8, u8, i32)| (u64::from(one.0), u64::from(one.1)) == (level, option);
        for one in self.values.iter_mut().filter(|one| is_it(one)) {
            *one = (0xff, 0, 0);
        }
    }

    /// SO_REUSEADDR
    pub fn reuse_address(&self) -> bool {
        self.get(SOL_SOCKET, SO_REUSEADDR).is_some_and(|on| on != 0)
    }

    /// SO_REUSEPORT
    pub fn reuse_port(&self) -> bool {
        self.get(SOL_SOCKET, SO_REUSEPORT).is_some_and(|on| on != 0)
    }

    /// Whether its end is to break the connection off (SO_LINGER with no time).
    pub fn breaks_off(&self) -> bool {
        self.linger == [1, 0]
    }

    /// Sets IPV6_V6ONLY, as binding to one address of version 6 does.
    pub fn set_v6_only(&mut self) {
        self.set(SOL_IPV6, IPV6_V6ONLY, 1);
    }

    /// IPV6_V6ONLY
    pub fn v6_only(&self) -> bool {
        self.get(SOL_IPV6, IPV6_V6ONLY).is_some_and(|on| on != 0)
    }
}

/// How an option's value is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// 0 or 1.
    Switch,
    /// As it was given, from the first number to the second.
    Number(i32, i32),
}

/// The options whose value is kept, and what it is before it is set.
fn kept(level: u64, option: u64) -> Option<(Kept, i32)> {
    use Kept::{Number, Switch};
    const ANY: Kept = Number(i32::MIN, i32::MAX);
    Some(match (level, option) {
        // DEBUG, REUSEADDR, DONTROUTE, BROADCAST, KEEPALIVE, OOBINLINE, NO_CHECK, REUSEPORT, PASSCRED, TIMESTAMP
        (SOL_SOCKET, 1 | 2 | 5 | 6 | 9 | 10 | 11 | 15 | 16 | 29) => (Switch, 0),
        // PASSSEC, TIMESTAMPNS, RXQ_OVFL, WIFI_STATUS, NOFCS, LOCK_FILTER, SELECT_ERR_QUEUE, ZEROCOPY
        (SOL_SOCKET, 34 | 35 | 40 | 41 | 43 | 44 | 45 | 60) => (Switch, 0),
        (SOL_SOCKET, SO_SNDBUF | SO_RCVBUF) => (ANY, 212_992),
        (SOL_SOCKET, SO_RCVLOWAT) => (ANY, 1),
        // PRIORITY, MARK, TIMESTAMPING, BUSY_POLL, MAX_PACING_RATE, INCOMING_CPU
        (SOL_SOCKET, 12 | 36 | 37 | 46) => (ANY, 0),
        // PEEK_OFF, MAX_PACING_RATE, INCOMING_CPU
        (SOL_SOCKET, 42 | 47 | 49) => (ANY, -1),
        // NODELAY, CORK
        (SOL_TCP, 1 | 3) => (Switch, 0),
        (SOL_TCP, 2) => (Number(88, 32_767), 536),
        // KEEPIDLE, KEEPINTVL, KEEPCNT, SYNCNT
        (SOL_TCP, 4) => (Number(1, 32_767), 7200),
        (SOL_TCP, 5) => (Number(1, 32_767), 75),
        (SOL_TCP, 6) => (Number(1, 127), 9),
        (SOL_TCP, 7) => (Number(1, 127), 6),
        // LINGER2, DEFER_ACCEPT, WINDOW_CLAMP, QUICKACK
        (SOL_TCP, 8) => (ANY, 60),
        (SOL_TCP, 9 | 10) => (ANY, 0),
        (SOL_TCP, 12) => (Switch, 1),
        // USER_TIMEOUT, FASTOPEN, FASTOPEN_CONNECT, NOTSENT_LOWAT, INQ
        (SOL_TCP, 18) => (Number(0, i32::MAX), 0),
        (SOL_TCP, 23 | 30 | 36) => (Number(0, i32::MAX), 0),
        (SOL_TCP, 25) => (ANY, -1),
        // TOS, TTL, PKTINFO, MTU_DISCOVER, RECVERR, RECVTTL, RECVTOS, MTU
        (SOL_IP, 1) => (Number(0, 255), 0),
        (SOL_IP, 2) => (Number(1, 255), 64),
        (SOL_IP, 8 | 11 | 12 | 13 | 15 | 19 | 24) => (Switch, 0),
        (SOL_IP, 10) => (Number(0, 5), 1),
        // MULTICAST_TTL, MULTICAST_LOOP
        (SOL_IP, 33) => (Number(0, 255), 1),
        (SOL_IP, 34) => (Switch, 1),
        (SOL_IPV6, IPV6_V6ONLY) => (Switch, 0),
        // UNICAST_HOPS, MULTICAST_HOPS, MULTICAST_LOOP, MTU_DISCOVER, RECVERR, RECVPKTINFO, RECVTCLASS, TCLASS
        (SOL_IPV6, 16) => (Number(1, 255), 64),
        (SOL_IPV6, 18) => (Number(0, 255), 1),
        (SOL_IPV6, 19) => (Switch, 1),
        (SOL_IPV6, 23) => (Number(0, 5), 1),
        (SOL_IPV6, 25 | 49 | 51 | 66) => (Switch, 0),
        (SOL_IPV6, 67) => (Number(0, 255), 0),
        _ => return None,
    })
}

/// Whether there are options of a level for a socket; `missing` is what Linux's IP says if not.
fn check_level(socket: &Socket, level: u64, missing: Errno) -> Result<(), Errno> {
    match level {
        SOL_SOCKET => Ok(()),
        _ if socket.domain == AF_UNIX => Err(Errno::EOPNOTSUPP),
        _ if socket.domain == AF_NETLINK => match level {
            SOL_NETLINK => Ok(()),
            _ => Err(Errno::ENOPROTOOPT),
        },
        SOL_TCP if socket.kind == SOCK_STREAM => Ok(()),
        SOL_IP => Ok(()),
        SOL_IPV6 if socket.domain == AF_INET6 => Ok(()),
        _ if socket.domain == AF_INET6 => Err(Errno::ENOPROTOOPT),
        _ => Err(missing),
    }
}

/// An option's value as it is told.
struct Value {
    bytes: [u8; MAX_BYTES],
    used: usize,
}

impl Value {
    fn of(words: &[u32]) -> Self {
        let mut value = Value {
            bytes: [0; MAX_BYTES],
            used: words.len() * 4,
        };
        for (word, place) in words.iter().zip(value.bytes.chunks_exact_mut(4)) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        value
    }

    fn number(value: i32) -> Self {
        Value::of(&[value as u32])
    }

    fn time(ns: u64) -> Self {
        let (seconds, us) = (ns / 1_000_000_000, ns / 1000 % 1_000_000);
        Value::of(&[seconds as u32, (seconds >> 32) as u32, us as u32, 0])
    }
}

/// `struct tcp_info` of a connection on which nothing is ever lost or late.
fn tcp_info(socket: &Socket) -> Value {
    const BYTES: usize = 232;
    const ESTABLISHED: u8 = 1;
    const CLOSE: u8 = 7;
    const LISTEN: u8 = 10;
    let mut value = Value::of(&[]);
    value.used = BYTES;
    value.bytes[0] = match socket.state {
        State::Stream { .. } | State::Request(_) | State::Outbound(_) => ESTABLISHED,
        State::Listening { .. } => LISTEN,
        _ => CLOSE,
    };
    let mut put =
        |at: usize, word: u32| value.bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
    // Retransmission timeout and delayed acknowledgement in microseconds, segment sizes; round-trip time and its
    // variance in microseconds; congestion window and segment size.
    put(8, 204_000);
    put(12, 40_000);
    put(16, 32_768);
    put(20, 536);
    put(68, 30);
    put(72, 10);
    put(80, 10);
    put(84, 32_768);
    value
}

fn value_of(number: u16, level: u64, option: u64) -> Result<Value, Errno> {
    let socket = *state::sockets().get(number);
    let options = &socket.options;
    Ok(match (level, option) {
        (SOL_SOCKET, SO_TYPE) => Value::number(socket.kind.into()),
        (SOL_SOCKET, SO_ERROR) => {
            outbound::refresh();
            let own = state::sockets().take_error(number);
            Value::number(own.map_or_else(|| outbound::error_of(number), |error| error.0))
        }
        (SOL_SOCKET, SO_ACCEPTCONN) => {
            Value::number(i32::from(matches!(socket.state, State::Listening { .. })))
        }
        (SOL_SOCKET, SO_DOMAIN) => Value::number(i32::from(socket.domain)),
        // IPPROTO_UDP, IPPROTO_TCP
        (SOL_SOCKET, SO_PROTOCOL) => Value::number(match (socket.domain, socket.kind) {
            (AF_UNIX | AF_NETLINK, _) => 0,
            (_, SOCK_DGRAM) => 17,
            _ => 6,
        }),
        (SOL_SOCKET, SO_LINGER) => Value::of(&options.linger),
        (SOL_SOCKET, SO_RCVTIMEO) => Value::time(options.receive_ns),
        (SOL_SOCKET, SO_SNDTIMEO) => Value::time(options.send_ns),
        (SOL_SOCKET, SO_PEERCRED) => Value::of(&match socket.domain {
            AF_UNIX if socket.is_connected() || matches!(socket.state, State::Listening { .. }) => {
                [
                    PROCESS_ID as u32,
                    identity::user().effective,
                    identity::group().effective,
                ]
            }
            _ => [0, u32::MAX, u32::MAX],
        }),
        // SNDLOWAT
        (SOL_SOCKET, 19) => Value::number(1),
        (SOL_SOCKET, SO_COOKIE) => Value::of(&[u32::from(number) + 1, 0]),
        (SOL_TCP, TCP_INFO) => tcp_info(&socket),
        (SOL_TCP, TCP_CONGESTION) => {
            Value::of(&[u32::from_le_bytes(*b"cubi"), u32::from(b'c'), 0, 0])
        }
        // MTU
        (SOL_IP, 14) | (SOL_IPV6, 24) => match socket.is_connected() {
            true => Value::number(65_536),
            false => return Err(Errno::ENOTCONN),
        },
        _ => {
            let (_, default) = kept(level, option).ok_or(Errno::ENOPROTOOPT)?;
            Value::number(options.get(level, option).unwrap_or(default))
        }
    })
}

/// `getsockopt`
pub fn get_option(descriptor: u64, level: u64, option: u64, to: u64, bytes: u64) -> SysResult {
    let number = number_of(descriptor)?;
    let (level, option) = (u64::from(level as u32), u64::from(option as u32));
    check_level(state::sockets().get(number), level, Errno::EOPNOTSUPP)?;
    let room = user::read::<i32>(bytes)?;
    let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?;
    let value = match (level, option) {
        (SOL_SOCKET, SO_BINDTODEVICE) => device(number, room)?,
        _ => value_of(number, level, option)?,
    };
    let used = match value.bytes[1..4] {
        // Of a short number IP tells one byte.
        [0, 0, 0] if level == SOL_IP && (1..4).contains(&room) => 1,
        _ => room.min(value.used),
    };
    user::slice_mut(to, used as u64)?.copy_from_slice(&value.bytes[..used]);
    user::write(bytes, used as u32)?;
    Ok(0)
}

/// The name of the interface that a socket is bound to, or nothing.
fn device(number: u16, room: usize) -> Result<Value, Errno> {
    let options = &state::sockets().get(number).options;
    let index = options.get(SOL_SOCKET, SO_BINDTODEVICE).unwrap_or(0);
    let mut value = Value::of(&[]);
    if let Some(one) = interfaces::by_index(index as u32) {
        if room < interfaces::NAME_BYTES {
            return Err(Errno::EINVAL);
        }
        value.used = one.name.len();
        value.bytes[..value.used].copy_from_slice(one.name);
    }
    Ok(value)
}

/// SO_BINDTODEVICE: an interface's name, or nothing for any. It is kept and makes no difference: an address is reached
/// by one interface only.
fn bind_to_device(number: u16, from: u64, bytes: u64) -> SysResult {
    let name = user::slice(from, bytes.min(interfaces::NAME_BYTES as u64 - 1))?;
    let index = match name {
        [] | [0, ..] => 0,
        name => interfaces::by_name(name).ok_or(Errno::ENODEV)?.index,
    };
    let options = &mut state::sockets().get(number).options;
    options.set(SOL_SOCKET, SO_BINDTODEVICE, index as i32);
    Ok(0)
}

/// TCP_CONGESTION: the way in which congestion is met, of which none makes a difference here.
fn meet_congestion(from: u64, bytes: u64) -> SysResult {
    const NAME_BYTES: u64 = 16;
    if bytes == 0 {
        return Err(Errno::EINVAL);
    }
    let given = user::slice(from, bytes.min(NAME_BYTES - 1))?;
    match given.split(|byte| *byte == 0).next() {
        Some(b"cubic" | b"reno") => Ok(0),
        _ => Err(Errno::ENOENT),
    }
}

/// `setsockopt`
pub fn set_option(descriptor: u64, level: u64, option: u64, from: u64, bytes: u64) -> SysResult {
    let bytes = bytes as u32;
    if (bytes as i32) < 0 {
        return Err(Errno::EINVAL);
    }
    let number = number_of(descriptor)?;
    let (level, option) = (u64::from(level as u32), u64::from(option as u32));
    check_level(state::sockets().get(number), level, Errno::ENOPROTOOPT)?;
    if (level, option) == (SOL_SOCKET, SO_BINDTODEVICE) {
        return bind_to_device(number, from, bytes.into());
    }
    if (level, option) == (SOL_TCP, TCP_CONGESTION) {
        return meet_congestion(from, bytes.into());
    }
    let given = match (level, bytes) {
        (SOL_IP, 0) => 0,
        (SOL_IP, 1..4) => user::read::<u8>(from)?.into(),
        (_, 4..) => user::read::<i32>(from)?,
        _ => return Err(Errno::EINVAL),
    };
    let socket_kind = state::sockets().get(number).kind;
    let options = || &mut state::sockets().get(number).options;
    match (level, option) {
        (SOL_SOCKET, SO_LINGER) if bytes < 8 => return Err(Errno::EINVAL),
        (SOL_SOCKET, SO_LINGER) => {
            let [on, seconds] = user::read::<[u32; 2]>(from)?;
            options().linger = [u32::from(on != 0), seconds];
        }
        (SOL_SOCKET, SO_RCVTIMEO | SO_SNDTIMEO) if bytes < 16 => return Err(Errno::EINVAL),
        (SOL_SOCKET, SO_RCVTIMEO) => options().receive_ns = read_time(from)?,
        (SOL_SOCKET, SO_SNDTIMEO) => options().send_ns = read_time(from)?,
        // As Linux does: twice of it, within bounds.
        (SOL_SOCKET, SO_SNDBUF | SO_RCVBUF) => {
            let least = if option == SO_SNDBUF { 4608 } else { 2304 };
            options().set(level, option, (given.clamp(0, 212_992) * 2).max(least));
        }
        (SOL_SOCKET, SO_SNDBUFFORCE | SO_RCVBUFFORCE) => {
            let usual = option - SO_SNDBUFFORCE + SO_SNDBUF;
            options().set(level, usual, given.clamp(2304, i32::MAX / 2) * 2);
        }
        (SOL_SOCKET, SO_RCVLOWAT) => {
            let least = if given < 0 { i32::MAX } else { given.max(1) };
            options().set(level, option, least);
        }
        (
            SOL_SOCKET,
            SO_TYPE | SO_ERROR | SO_ACCEPTCONN | SO_DOMAIN | SO_PROTOCOL | SO_PEERCRED,
        ) => {
            return Err(Errno::ENOPROTOOPT);
        }
        // Filters, groups of receivers: none that would make a difference.
        (SOL_SOCKET, 26 | 27 | 50) | (SOL_IP, 32 | 35 | 36) => {}
        (SOL_IPV6, 17 | 20 | 21) => {}
        // Groups, and how errors are told.
        (SOL_NETLINK, _) => {}
        // Of a stream two bits are TCP's own.
        (SOL_IP, 1) if socket_kind == SOCK_STREAM => {
            options().set(level, option, given & 0xfc);
        }
        // -1 is what there was before.
        (SOL_IP, 2) | (SOL_IPV6, 16 | 67) if given == -1 => options().forget(level, option),
        _ => match kept(level, option).ok_or(Errno::ENOPROTOOPT)?.0 {
            Kept::Switch => options().set(level, option, i32::from(given != 0)),
            Kept::Number(least, most) if (least..=most).contains(&given) => {
                options().set(level, option, given);
            }
            Kept::Number(..) => return Err(Errno::EINVAL),
        },
    }
    Ok(0)
}

/// A `struct timeval` as nanoseconds; a negative one is none.
fn read_time(from: u64) -> SysResult {
    let [seconds, us] = user::read::<[u64; 2]>(from)?;
    if us >= 1_000_000 {
        return Err(Errno::EDOM);
    }
    Ok(match i64::try_from(seconds) {
        Ok(_) => seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(us * 1000),
        Err(_) => 0,
    })
}
