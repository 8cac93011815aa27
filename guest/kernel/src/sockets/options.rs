//! Socket options. A few change what calls do; the others are kept and read back.

use super::address::{AF_INET6, AF_UNIX};
use super::table::State;
use super::{number_of, outbound};
use crate::errno::{Errno, SysResult};
use crate::{state, user};

/// Most values that are kept for one socket; of more, the first ones are.
const MAX_VALUES: usize = 8;

const SOL_SOCKET: u64 = 1;
const SOL_TCP: u64 = 6;
const SOL_IPV6: u64 = 41;
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
const IPV6_V6ONLY: u64 = 26;

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

    /// SO_REUSEADDR
    pub fn reuse_address(&self) -> bool {
        self.get(SOL_SOCKET, SO_REUSEADDR).is_some_and(|on| on != 0)
    }

    /// SO_REUSEPORT
    pub fn reuse_port(&self) -> bool {
        self.get(SOL_SOCKET, SO_REUSEPORT).is_some_and(|on| on != 0)
    }

    /// IPV6_V6ONLY
    pub fn v6_only(&self) -> bool {
        self.get(SOL_IPV6, IPV6_V6ONLY).is_some_and(|on| on != 0)
    }
}

/// Whether an option is a switch, which reads as 0 or 1.
fn is_switch(level: u64, option: u64) -> bool {
    match level {
        // DEBUG, REUSEADDR, DONTROUTE, BROADCAST, KEEPALIVE, OOBINLINE, REUSEPORT, PASSCRED
        SOL_SOCKET => matches!(option, 1 | 2 | 5 | 6 | 9 | 10 | 15 | 16),
        // NODELAY, CORK, QUICKACK
        SOL_TCP => matches!(option, 1 | 3 | 12),
        SOL_IPV6 => option == IPV6_V6ONLY,
        _ => false,
    }
}

/// What an option is before it is set.
fn default(level: u64, option: u64) -> i32 {
    match (level, option) {
        (SOL_SOCKET, SO_SNDBUF | SO_RCVBUF) => 1 << 18,
        (SOL_SOCKET, SO_RCVLOWAT) => 1,
        // KEEPIDLE, KEEPINTVL, KEEPCNT, SYNCNT, QUICKACK, MAXSEG
        (SOL_TCP, 4) => 7200,
        (SOL_TCP, 5) => 75,
        (SOL_TCP, 6) => 9,
        (SOL_TCP, 7) => 6,
        (SOL_TCP, 12) => 1,
        (SOL_TCP, 2) => 32_768,
        // IP_TTL
        (0, 2) => 64,
        _ => 0,
    }
}

/// `getsockopt`
pub fn get_option(descriptor: u64, level: u64, option: u64, value: u64, bytes: u64) -> SysResult {
    let number = number_of(descriptor)?;
    let socket = *state::sockets().get(number);
    let is_datagrams = matches!(socket.state, State::Datagrams { .. });
    let (level, option) = (u64::from(level as u32), u64::from(option as u32));
    let time = |ns: u64| -> ([u32; 4], usize) {
        let (seconds, us) = (ns / 1_000_000_000, ns / 1000 % 1_000_000);
        ([seconds as u32, 0, us as u32, 0], 16)
    };
    let one = |value: i32| -> ([u32; 4], usize) { ([value as u32, 0, 0, 0], 4) };
    let (words, length) = match (level, option) {
        (SOL_SOCKET, SO_TYPE) => one(if is_datagrams { 2 } else { 1 }),
        (SOL_SOCKET, SO_ERROR) => {
            outbound::refresh();
            one(outbound::error_of(number))
        }
        (SOL_SOCKET, SO_ACCEPTCONN) => {
            one(i32::from(matches!(socket.state, State::Listening { .. })))
        }
        (SOL_SOCKET, SO_DOMAIN) => one(i32::from(socket.domain)),
        (SOL_SOCKET, SO_PROTOCOL) if is_datagrams => one(17),
        // IPPROTO_TCP
        (SOL_SOCKET, SO_PROTOCOL) => one(if socket.domain == AF_UNIX { 0 } else { 6 }),
        (SOL_SOCKET, SO_LINGER) => (
            [socket.options.linger[0], socket.options.linger[1], 0, 0],
            8,
        ),
        (SOL_SOCKET, SO_RCVTIMEO) => time(socket.options.receive_ns),
        (SOL_SOCKET, SO_SNDTIMEO) => time(socket.options.send_ns),
        // The one process, of the one user.
        (SOL_SOCKET, SO_PEERCRED) => ([1, 0, 0, 0], 12),
        (SOL_TCP, _) if socket.domain == AF_UNIX => return Err(Errno::EOPNOTSUPP),
        (SOL_IPV6, _) if socket.domain != AF_INET6 => return Err(Errno::ENOPROTOOPT),
        _ => one(socket
            .options
            .get(level, option)
            .unwrap_or_else(|| default(level, option))),
    };
    let room = user::read::<i32>(bytes)?;
    let room = usize::try_from(room)
        .map_err(|_| Errno::EINVAL)?
        .min(length);
    let mut encoded = [0u8; 16];
    for (word, place) in words.iter().zip(encoded.chunks_exact_mut(4)) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    user::slice_mut(value, room as u64)?.copy_from_slice(&encoded[..room]);
    user::write(bytes, room as u32)?;
    Ok(0)
}

/// `setsockopt`
pub fn set_option(descriptor: u64, level: u64, option: u64, value: u64, bytes: u64) -> SysResult {
    let number = number_of(descriptor)?;
    let (level, option) = (u64::from(level as u32), u64::from(option as u32));
    let enough = |least: u64| match u64::from(bytes as u32) >= least {
        true => Ok(()),
        false => Err(Errno::EINVAL),
    };
    let options = || &mut state::sockets().get(number).options;
    match (level, option) {
        (SOL_SOCKET, SO_LINGER) => {
            enough(8)?;
            let [on, seconds] = user::read::<[u32; 2]>(value)?;
            options().linger = [u32::from(on != 0), seconds];
        }
        (SOL_SOCKET, SO_RCVTIMEO | SO_SNDTIMEO) => {
            enough(16)?;
            let [seconds, us] = user::read::<[u64; 2]>(value)?;
            if us >= 1_000_000 {
                // EDOM
                return Err(Errno::EDOM);
            }
            let ns = match i64::try_from(seconds) {
                Ok(_) => seconds
                    .saturating_mul(1_000_000_000)
                    .saturating_add(us * 1000),
                Err(_) => 0,
            };
            match option {
                SO_RCVTIMEO => options().receive_ns = ns,
                _ => options().send_ns = ns,
            }
        }
        (SOL_SOCKET, SO_TYPE | SO_ERROR | SO_ACCEPTCONN | SO_DOMAIN | SO_PROTOCOL) => {
            return Err(Errno::ENOPROTOOPT);
        }
        _ if bytes as u32 >= 4 => {
            let value = user::read::<i32>(value)?;
            let value = match (level, option) {
                // As Linux does: twice of it, within bounds.
                (SOL_SOCKET, SO_SNDBUF | SO_RCVBUF) => value.clamp(2304, 212_992) * 2,
                _ if is_switch(level, option) => i32::from(value != 0),
                _ => value,
            };
            options().set(level, option, value);
        }
        // Filters, names of devices and the like change nothing here.
        _ => {}
    }
    Ok(0)
}
