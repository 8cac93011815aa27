//! The network interfaces: loopback, and the way by which connections leave the guest. What `ioctl` tells of them is
//! here; `netlink`, /proc/net/dev and SO_BINDTODEVICE look in the same table.

use core::fmt::{self, Write as _};

use super::address::{AF_INET, Address, Ip};
use super::outbound::{OWN_V4, OWN_V6};
use crate::errno::{Errno, SysResult};
use crate::files::builtin::Content;
use crate::user;

/// An interface.
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// Its name, with the zero byte behind it.
    pub name: &'static [u8],
    /// Longest packet.
    pub mtu: u32,
    /// What kind of hardware it is (`ARPHRD_LOOPBACK`, `ARPHRD_NONE`).
    pub hardware: u16,
    /// IFF_UP, IFF_RUNNING, and those of its kind.
    pub flags: u32,
    /// Packets that wait to be sent.
    pub queue: u32,
    /// Its address of version 4, and how many bits of it are the network's.
    pub v4: (Ip, u8),
    /// The same of version 6.
    pub v6: (Ip, u8),
}

/// All of them, in the order of their numbers.
pub const ALL: [Interface; 2] = [
    Interface {
        index: 1,
        name: b"lo\0",
        mtu: 65_536,
        hardware: 772,
        // IFF_UP, IFF_LOOPBACK, IFF_RUNNING
        flags: 0x49,
        queue: 1000,
        v4: (Ip::LOOPBACK_V4, 8),
        v6: (Ip::LOOPBACK_V6, 128),
    },
    // Of a point-to-point kind, without a hardware address: all instances would have the same, and programs take one
    // for unique.
    Interface {
        index: 2,
        name: b"net0\0",
        mtu: 1500,
        hardware: 0xfffe,
        // IFF_UP, IFF_POINTOPOINT, IFF_RUNNING, IFF_NOARP
        flags: 0xd1,
        queue: 500,
        v4: (OWN_V4, 24),
        v6: (OWN_V6, 64),
    },
];

impl Interface {
    /// Whether it is the one by which the guest reaches itself.
    pub fn is_loopback(&self) -> bool {
        self.v4.0.is_own()
    }
}

/// The interface of a number.
pub fn by_index(index: u32) -> Option<&'static Interface> {
    ALL.iter().find(|one| one.index == index)
}

/// The interface of a name, which ends with a zero byte or with `bytes`.
pub fn by_name(bytes: &[u8]) -> Option<&'static Interface> {
    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    ALL.iter()
        .find(|one| one.name.strip_suffix(b"\0") == Some(name))
}

/// What /proc/net/dev tells: packets are not counted.
pub fn counts(to: &mut Content) -> fmt::Result {
    to.write_str(
        "Inter-|   Receive                                                |  Transmit\n \
         face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo \
         colls carrier compressed\n",
    )?;
    for one in &ALL {
        let name = core::str::from_utf8(one.name).unwrap_or_default();
        writeln!(
            to,
            "{:>6}:       0       0    0    0    0     0          0         0        \
             0       0    0    0    0     0       0          0",
            name.trim_end_matches('\0')
        )?;
    }
    Ok(())
}

/// Bytes of a `struct ifreq`: a name, and what is told of the interface.
const REQUEST_BYTES: usize = 40;
/// Longest name of an interface, its zero byte included.
pub const NAME_BYTES: usize = 16;

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
            return put(argument, 0, by_index(index).ok_or(Errno::ENODEV)?.name);
        }
        SIOCGIFFLAGS | SIOCGIFADDR | SIOCGIFDSTADDR | SIOCGIFBRDADDR | SIOCGIFNETMASK
        | SIOCGIFMETRIC | SIOCGIFMTU | SIOCGIFHWADDR | SIOCGIFINDEX | SIOCGIFTXQLEN => {}
        // Those that change something.
        _ if request & 1 == 0 && request < SIOCGIFMTU => return Err(Errno::EPERM),
        _ => return Err(Errno::ENOTTY),
    }
    let name: [u8; NAME_BYTES] = user::read(argument)?;
    let one = by_name(&name).ok_or(Errno::ENODEV)?;
    let mask = u32::MAX << (32 - one.v4.1);
    match request {
        SIOCGIFFLAGS => put(argument, NAME_BYTES, &(one.flags as u16).to_le_bytes()),
        SIOCGIFADDR | SIOCGIFDSTADDR => put_ip(argument, one.v4.0),
        SIOCGIFBRDADDR => put_ip(argument, Ip::ANY_V4),
        SIOCGIFNETMASK => put_ip(argument, Ip::v4(mask.to_be_bytes())),
        SIOCGIFMETRIC => put(argument, NAME_BYTES, &[0; 4]),
        SIOCGIFMTU => put(argument, NAME_BYTES, &one.mtu.to_le_bytes()),
        SIOCGIFTXQLEN => put(argument, NAME_BYTES, &one.queue.to_le_bytes()),
        SIOCGIFINDEX => put(argument, NAME_BYTES, &one.index.to_le_bytes()),
        // SIOCGIFHWADDR: a family that says what hardware it is, and an address of zeroes.
        _ => {
            let mut address = [0; 16];
            address[..2].copy_from_slice(&one.hardware.to_le_bytes());
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
        (0, _) => ALL.len() * REQUEST_BYTES,
        (_, Ok(room)) => {
            let fit = ALL.iter().take(room / REQUEST_BYTES);
            for (one, place) in fit.clone().zip((place..).step_by(REQUEST_BYTES)) {
                user::slice_mut(place, REQUEST_BYTES as u64)?.fill(0);
                put(place, 0, one.name)?;
                put_ip(place, one.v4.0)?;
            }
            fit.count() * REQUEST_BYTES
        }
        (_, Err(_)) => 0,
    };
    user::write(configuration, used as i32)?;
    Ok(0)
}
