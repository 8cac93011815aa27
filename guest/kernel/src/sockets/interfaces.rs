//! The interfaces of the network, as a program sees them, and the `ioctl` requests about one of them (netdevice(7)).
//!
//! Beside loopback there is the way out of the guest, with the addresses that connections by it show: without it glibc
//! would take names to be of no use (AI_ADDRCONFIG). It has no hardware address. All instances would have the same, and
//! programs make unique numbers of it.

use super::address::{AF_INET, Ip};
use super::outbound::{OWN_V4, OWN_V6};
use crate::errno::{Errno, SysResult};
use crate::user;

/// An interface.
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: &'static str,
    /// ARPHRD_LOOPBACK, ARPHRD_NONE
    pub(super) kind: u16,
    /// IFF_UP, IFF_RUNNING, IFF_LOWER_UP, and what it is.
    pub(super) flags: u32,
    pub(super) most_bytes: u32,
    /// Six zero bytes of loopback's.
    pub(super) hardware: &'static [u8],
    pub(super) addresses: [(Ip, u8); 2],
    /// RT_SCOPE_HOST, RT_SCOPE_UNIVERSE
    pub(super) scope: u8,
}

/// All of them.
pub(super) const INTERFACES: [Interface; 2] = [
    Interface {
        index: 1,
        name: "lo",
        kind: 772,
        flags: 0x1_0049,
        most_bytes: 65_536,
        hardware: &[0; 6],
        addresses: [(Ip::LOOPBACK_V4, 8), (Ip::LOOPBACK_V6, 128)],
        scope: 254,
    },
    Interface {
        index: 2,
        name: "net0",
        kind: 0xfffe,
        // IFF_POINTOPOINT, IFF_NOARP
        flags: 0x1_00d1,
        most_bytes: 1500,
        hardware: &[],
        addresses: [(OWN_V4, 24), (OWN_V6, 64)],
        scope: 0,
    },
];

/// Whether an address is one of an interface's.
pub(super) fn has_address(ip: Ip) -> bool {
    let of = |one: &Interface| one.addresses.iter().any(|(own, _)| *own == ip);
    INTERFACES.iter().any(of)
}

/// A request about one interface, with a `struct ifreq` at `at`; ENOTTY for every other.
pub fn ask(request: u64, at: u64) -> SysResult {
    const GET_NAME: u64 = 0x8910;
    const GET_FLAGS: u64 = 0x8913;
    const GET_ADDRESS: u64 = 0x8915;
    const GET_MTU: u64 = 0x8921;
    const GET_HARDWARE: u64 = 0x8927;
    const GET_INDEX: u64 = 0x8933;
    const NAME_BYTES: usize = 16;
    const BYTES: u64 = 40;
    if !matches!(
        request,
        GET_NAME | GET_FLAGS | GET_ADDRESS | GET_MTU | GET_HARDWARE | GET_INDEX
    ) {
        return Err(Errno::ENOTTY);
    }
    let (name, value) = user::slice_mut(at, BYTES)?.split_at_mut(NAME_BYTES);
    let is_it = |one: &&Interface| match request {
        GET_NAME => value.starts_with(&one.index.to_le_bytes()),
        _ => name.split(|byte| *byte == 0).next() == Some(one.name.as_bytes()),
    };
    let one = INTERFACES.iter().find(is_it).ok_or(Errno::ENODEV)?;
    let mut put = |at: usize, bytes: &[u8]| value[at..at + bytes.len()].copy_from_slice(bytes);
    match request {
        GET_NAME => {
            name.fill(0);
            name[..one.name.len()].copy_from_slice(one.name.as_bytes());
        }
        GET_FLAGS => put(0, &(one.flags as u16).to_le_bytes()),
        GET_ADDRESS => {
            let v4 = one.addresses.iter().find_map(|(ip, _)| ip.as_v4());
            put(0, &u64::from(AF_INET).to_le_bytes());
            put(4, &v4.unwrap_or_default());
            put(8, &[0; 8]);
        }
        GET_MTU => put(0, &one.most_bytes.to_le_bytes()),
        GET_HARDWARE => {
            put(0, &[0; 16]);
            put(0, &one.kind.to_le_bytes());
            put(2, one.hardware);
        }
        _ => put(0, &one.index.to_le_bytes()),
    }
    Ok(0)
}
