//! The loopback interface, of which alone `ioctl` tells: that is here, and what netlink tells of it and of others
//! is in `netlink`.

use super::address::{AF_INET, Address, Ip};
use crate::errno::{Errno, SysResult};
use crate::user;

/// Its number.
pub const INDEX: u32 = 1;
/// Its name, with the zero byte behind it.
pub const NAME: &[u8] = b"lo\0";
/// Longest packet.
pub const MTU: u32 = 65_536;
/// IFF_UP, IFF_LOOPBACK, IFF_RUNNING
pub const FLAGS: u32 = 0x49;
/// `ARPHRD_LOOPBACK`
pub const HARDWARE: u16 = 772;
/// Packets that wait to be sent.
pub const QUEUE: u32 = 1000;

/// Bytes of a `struct ifreq`: a name, and what is told of the interface.
const REQUEST_BYTES: usize = 40;
const NAME_BYTES: usize = 16;

/// The requests of `ioctl` that are about interfaces.
pub const REQUESTS: core::ops::RangeInclusive<u64> = 0x8910..=0x8970;

/// `ioctl` on any socket. They can be looked at and not changed.
pub fn ioctl(request: u64, argument: u64) -> SysResult {
    const SIOCGIFNAME: u64 = 0x8910;
    const SIOCGIFCONF: u64 = 0x8912;
    const SIOCGIFFLAGS: u64 = 0x8913;
    const SIOCGIFADDR: u64 = 0x8915;
    const SIOCGIFDSTADDR: u64 = 0x8917;
    const SIOCGIFBRDADDR: u64 = 0x8919;
    const SIOCGIFNETMASK: u64 = 0x891b;
    const SIOCGIFMETRIC: u64 = 0x891d;
    const SIOCGIFMTU: u64 = 0x8921;
    const SIOCGIFHWADDR: u64 = 0x8927;
    const SIOCGIFINDEX: u64 = 0x8933;
    const SIOCGIFTXQLEN: u64 = 0x8942;
    match request {
        SIOCGIFCONF => return list(argument),
        SIOCGIFNAME => {
            let index: u32 = user::read(argument.wrapping_add(NAME_BYTES as u64))?;
            return match index {
                INDEX => put(argument, 0, NAME),
                _ => Err(Errno::ENODEV),
            };
        }
        SIOCGIFFLAGS | SIOCGIFADDR | SIOCGIFDSTADDR | SIOCGIFBRDADDR | SIOCGIFNETMASK
        | SIOCGIFMETRIC | SIOCGIFMTU | SIOCGIFHWADDR | SIOCGIFINDEX | SIOCGIFTXQLEN => {}
        // Those that change something.
        _ if request & 1 == 0 && request < SIOCGIFMTU => return Err(Errno::EPERM),
        _ => return Err(Errno::ENOTTY),
    }
    let name: [u8; NAME_BYTES] = user::read(argument)?;
    if !name.starts_with(NAME) {
        return Err(Errno::ENODEV);
    }
    match request {
        SIOCGIFFLAGS => put(argument, NAME_BYTES, &(FLAGS as u16).to_le_bytes()),
        SIOCGIFADDR | SIOCGIFDSTADDR => put_ip(argument, Ip::LOOPBACK_V4),
        SIOCGIFBRDADDR => put_ip(argument, Ip::ANY_V4),
        SIOCGIFNETMASK => put_ip(argument, Ip::v4([255, 0, 0, 0])),
        SIOCGIFMETRIC => put(argument, NAME_BYTES, &[0; 4]),
        SIOCGIFMTU => put(argument, NAME_BYTES, &MTU.to_le_bytes()),
        SIOCGIFTXQLEN => put(argument, NAME_BYTES, &QUEUE.to_le_bytes()),
        SIOCGIFINDEX => put(argument, NAME_BYTES, &INDEX.to_le_bytes()),
        // SIOCGIFHWADDR: a family that says what hardware it is, and an address of zeroes.
        _ => {
            let mut address = [0; 16];
            address[..2].copy_from_slice(&HARDWARE.to_le_bytes());
            put(argument, NAME_BYTES, &address)
        }
    }
}

fn put(request: u64, at: usize, bytes: &[u8]) -> SysResult {
    let to = user::slice_mut(request.wrapping_add(at as u64), bytes.len() as u64)?;
    to.copy_from_slice(bytes);
    Ok(0)
}

fn put_ip(request: u64, ip: Ip) -> SysResult {
    let (bytes, length) = Address::Inet(ip, 0).encode(AF_INET);
    put(request, NAME_BYTES, &bytes[..length])
}

/// `SIOCGIFCONF`: a `struct ifconf` with room for `struct ifreq`s, or with none to be told how much it takes.
fn list(configuration: u64) -> SysResult {
    let room: i32 = user::read(configuration)?;
    let place: u64 = user::read(configuration.wrapping_add(8))?;
    let used = match (place, usize::try_from(room)) {
        (0, _) => REQUEST_BYTES,
        (_, Ok(REQUEST_BYTES..)) => {
            user::slice_mut(place, REQUEST_BYTES as u64)?.fill(0);
            put(place, 0, NAME)?;
            put_ip(place, Ip::LOOPBACK_V4)?;
            REQUEST_BYTES
        }
        _ => 0,
    };
    user::write(configuration, used as i32)?;
    Ok(0)
}
