//! Socket addresses: how programs write them, and how they are kept.

use crate::errno::Errno;
use crate::user;

/// `AF_UNSPEC`
pub const AF_UNSPEC: u16 = 0;
/// `AF_UNIX`
pub const AF_UNIX: u16 = 1;
/// `AF_INET`
pub const AF_INET: u16 = 2;
/// `AF_INET6`
pub const AF_INET6: u16 = 10;
/// `AF_NETLINK`
pub const AF_NETLINK: u16 = 16;

/// Longest name of a local socket (`sun_path`).
const MAX_NAME_BYTES: usize = 108;
/// Room for any address that is understood.
const MAX_ADDRESS_BYTES: usize = 2 + MAX_NAME_BYTES + 1;

/// An IP address. Those of version 4 are kept as version 6 maps them, `::ffff:a.b.c.d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip(pub [u8; 16]);

impl Ip {
    /// `0.0.0.0`
    pub const ANY_V4: Ip = Ip::v4([0, 0, 0, 0]);
    /// `127.0.0.1`
    pub const LOOPBACK_V4: Ip = Ip::v4([127, 0, 0, 1]);
    /// `::`
    pub const ANY_V6: Ip = Ip([0; 16]);
    /// `::1`
    pub const LOOPBACK_V6: Ip = Ip([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    /// An address of version 4.
    pub const fn v4(ip: [u8; 4]) -> Ip {
        let [a, b, c, d] = ip;
        Ip([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// The address of version 4 that this is, if it is one.
    pub fn as_v4(self) -> Option<[u8; 4]> {
        let [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] = self.0 else {
            return None;
        };
        Some([a, b, c, d])
    }

    /// Whether it stands for every address.
    pub fn is_any(self) -> bool {
        self == Ip::ANY_V4 || self == Ip::ANY_V6
    }

    /// Whether it is the guest itself.
    pub fn is_own(self) -> bool {
        self == Ip::LOOPBACK_V6 || self.as_v4().is_some_and(|[first, ..]| first == 127)
    }
}

/// The name of a local socket: a path, or with a zero byte in front a name that is no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    bytes: [u8; MAX_NAME_BYTES],
    used: u8,
}

impl Name {
    /// No name.
    pub const NONE: Name = Name {
        bytes: [0; MAX_NAME_BYTES],
        used: 0,
    };

    /// A name of at most 108 bytes; what is longer is cut.
    pub fn new(name: &[u8]) -> Self {
        let mut new = Name::NONE;
        let used = name.len().min(MAX_NAME_BYTES);
        new.bytes[..used].copy_from_slice(&name[..used]);
        new.used = used as u8;
        new
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.used)]
    }

    /// Whether it is the path of a file.
    pub fn is_path(&self) -> bool {
        self.as_bytes().first().is_some_and(|first| *first != 0)
    }
}

/// An address, of whichever family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// AF_INET and AF_INET6.
    Inet(Ip, u16),
    /// AF_UNIX.
    Unix(Name),
    /// AF_NETLINK: the port, which is 0 for the kernel.
    Netlink(u32),
    /// AF_UNSPEC.
    Unspecified,
}

impl Address {
    /// Reads a `struct sockaddr` of `bytes` bytes.
    pub fn read(address: u64, bytes: u64) -> Result<Address, Errno> {
        Address::decode(Address::look(address, bytes)?)
    }

    /// The bytes of a `struct sockaddr`, whatever they say.
    pub fn look(address: u64, bytes: u64) -> Result<&'static [u8], Errno> {
        match u64::from(bytes as u32) {
            bytes @ ..=128 => user::slice(address, bytes),
            _ => Err(Errno::EINVAL),
        }
    }

    /// What they say to a socket of IP of family `domain`, which looks at their length before it looks at them.
    pub fn decode_ip(domain: u16, bytes: &[u8]) -> Result<Address, Errno> {
        let least = if domain == AF_INET { 16 } else { 24 };
        if bytes.len() < least {
            return Err(Errno::EINVAL);
        }
        match Address::decode(bytes)? {
            Address::Inet(..) if domain == AF_INET && bytes[0] == AF_INET6 as u8 => {
                Err(Errno::EAFNOSUPPORT)
            }
            Address::Unix(_) | Address::Netlink(_) => Err(Errno::EAFNOSUPPORT),
            address => Ok(address),
        }
    }

    /// What the bytes of a `struct sockaddr` say.
    pub fn decode(bytes: &[u8]) -> Result<Address, Errno> {
        let Some((family, rest)) = bytes.split_first_chunk::<2>() else {
            return Err(Errno::EINVAL);
        };
        let port = |rest: &[u8]| match rest {
            [high, low, ..] => u16::from_be_bytes([*high, *low]),
            _ => 0,
        };
        match (u16::from_le_bytes(*family), rest) {
            (AF_INET, [_, _, a, b, c, d, ..]) if bytes.len() >= 16 => {
                Ok(Address::Inet(Ip::v4([*a, *b, *c, *d]), port(rest)))
            }
            (AF_INET6, [_, _, _, _, _, _, ip @ ..]) if bytes.len() >= 24 => {
                let ip = ip.first_chunk::<16>().ok_or(Errno::EINVAL)?;
                Ok(Address::Inet(Ip(*ip), port(rest)))
            }
            (AF_INET | AF_INET6, _) => Err(Errno::EINVAL),
            (AF_UNIX, name) if name.len() > MAX_NAME_BYTES => Err(Errno::EINVAL),
            (AF_UNIX, [0, ..]) => Ok(Address::Unix(Name::new(rest))),
            (AF_UNIX, path) => {
                let end = path.iter().position(|byte| *byte == 0);
                Ok(Address::Unix(Name::new(&path[..end.unwrap_or(path.len())])))
            }
            (AF_NETLINK, [_, _, a, b, c, d, _, _, _, _, ..]) => {
                Ok(Address::Netlink(u32::from_le_bytes([*a, *b, *c, *d])))
            }
            (AF_NETLINK, _) => Err(Errno::EINVAL),
            (AF_UNSPEC, _) => Ok(Address::Unspecified),
            _ => Err(Errno::EAFNOSUPPORT),
        }
    }

    /// As a socket of family `domain` shows it, and its length.
    pub(super) fn encode(&self, domain: u16) -> ([u8; MAX_ADDRESS_BYTES], usize) {
        let mut bytes = [0; MAX_ADDRESS_BYTES];
        bytes[..2].copy_from_slice(&domain.to_le_bytes());
        match (self, domain) {
            (Address::Unix(name), _) => {
                let name_bytes = name.as_bytes();
                bytes[2..2 + name_bytes.len()].copy_from_slice(name_bytes);
                // A path is followed by a zero byte.
                (bytes, 2 + name_bytes.len() + usize::from(name.is_path()))
            }
            (Address::Netlink(port), _) => {
                bytes[4..8].copy_from_slice(&port.to_le_bytes());
                (bytes, 12)
            }
            (Address::Unspecified, _) => (bytes, 2),
            (Address::Inet(ip, port), AF_INET6) => {
                bytes[2..4].copy_from_slice(&port.to_be_bytes());
                bytes[8..24].copy_from_slice(&ip.0);
                (bytes, 28)
            }
            (Address::Inet(ip, port), _) => {
                bytes[2..4].copy_from_slice(&port.to_be_bytes());
                bytes[4..8].copy_from_slice(&ip.as_v4().unwrap_or_default());
                (bytes, 16)
            }
        }
    }

    /// Writes it where a call asks for an address, cut to the room there, and its whole length.
    pub fn write(&self, domain: u16, address: u64, bytes: u64) -> Result<(), Errno> {
        let (encoded, length) = self.encode(domain);
        let room = user::read::<i32>(bytes)?;
        let room = usize::try_from(room)
            .map_err(|_| Errno::EINVAL)?
            .min(length);
        user::slice_mut(address, room as u64)?.copy_from_slice(&encoded[..room]);
        user::write(bytes, length as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_were() {
        let v4 = [2, 0, 0x1f, 0x90, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        let address = Address::decode(&v4).unwrap();
        assert_eq!(address, Address::Inet(Ip::LOOPBACK_V4, 8080));
        assert_eq!(address.encode(AF_INET).0[..16], v4);
        let (mapped, bytes) = address.encode(AF_INET6);
        assert_eq!(bytes, 28);
        assert_eq!(Address::decode(&mapped[..28]).unwrap(), address);

        let port = Address::Netlink(7);
        assert_eq!(
            Address::decode(&port.encode(AF_NETLINK).0[..12]).unwrap(),
            port
        );

        for (name, bytes) in [(&b"/tmp/a"[..], 9), (b"\0b", 4), (b"", 2)] {
            let local = Address::Unix(Name::new(name));
            let (encoded, length) = local.encode(AF_UNIX);
            assert_eq!(length, bytes);
            assert_eq!(Address::decode(&encoded[..length]).unwrap(), local);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bytes in [
            &[][..],
            &[2],
            &[2, 0, 1],
            &[10, 0, 0, 0, 0, 0, 0, 0],
            &[1; 120],
        ] {
            assert!(Address::decode(bytes).is_err(), "{bytes:?}");
        }
        assert_eq!(Address::decode(&[77, 0, 0]), Err(Errno::EAFNOSUPPORT));
        let mut long = [b'a'; 112];
        long[..2].copy_from_slice(&[1, 0]);
        assert_eq!(Address::decode(&long), Err(Errno::EINVAL));
    }
}
