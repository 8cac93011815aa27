//! `[network]`: where a function may connect to.
//!
//! ```text
//! place   = host ":" port          port = 1 to 65535
//! host    = name                   api.example.com
//!         | "*." name              every name below it, and not it
//!         | IPv4 ["/" prefix]      192.0.2.1, 10.0.0.0/8
//!         | "[" IPv6 ["/" prefix] "]"
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{ManifestError, cut, require};
use crate::limits::{MAX_ALLOWED, MAX_ALLOWED_BYTES};

/// Longest name of a host (RFC 1035, 2.3.4).
const MAX_HOST_BYTES: usize = 253;
/// Longest part of one.
const MAX_LABEL_BYTES: usize = 63;

/// `[network]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Where the function may connect to, each a [`Place`]; empty means nowhere.
    #[serde(default)]
    pub allow: Vec<String>,
}

impl Network {
    /// Whether nothing is allowed.
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty()
    }

    /// The places.
    pub fn places(&self) -> Result<Vec<Place>, PlaceError> {
        self.allow.iter().map(|text| text.parse()).collect()
    }

    pub(super) fn check(&self) -> Result<(), ManifestError> {
        let key = "network.allow";
        require(
            self.allow.len() <= MAX_ALLOWED,
            key,
            format!("{} places", self.allow.len()),
            || format!("at most {MAX_ALLOWED} places"),
        )?;
        for text in &self.allow {
            let place = text.parse::<Place>();
            let why = place.as_ref().err().map(|error| error.0);
            require(place.is_ok(), key, format!("\"{}\"", cut(text)), || {
                format!(
                    "a list of HOST:PORT, such as \"api.example.com:443\", \"*.example.com:443\", \
                     \"10.0.0.0/8:5432\" or \"[2001:db8::1]:443\"; in \"{}\" {}",
                    cut(text),
                    why.unwrap_or_default()
                )
            })?;
        }
        Ok(())
    }
}

/// A host or hosts, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which hosts.
    pub host: Host,
    /// The one port.
    pub port: u16,
}

/// Which hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// The host with this name, in lower case.
    Name(String),
    /// Every host whose name ends with a dot and this.
    Below(String),
    /// Every address whose first `prefix` bits are those of `ip`.
    Network {
        /// With zeroes behind the prefix.
        ip: IpAddr,
        /// Bits.
        prefix: u8,
    },
}

impl Place {
    /// Whether the host with this name, in lower case, is meant.
    pub fn has_name(&self, name: &str) -> bool {
        match &self.host {
            Host::Name(own) => own == name,
            Host::Below(own) => name
                .strip_suffix(own.as_str())
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            Host::Network { .. } => false,
        }
    }

    /// Whether this address is meant, as one of a list of addresses.
    pub fn has_address(&self, address: IpAddr) -> bool {
        match (&self.host, address) {
            (Host::Network { ip, prefix }, address) => masked(address, *prefix) == Some(*ip),
            _ => false,
        }
    }
}

/// The address with zeroes behind the first `prefix` bits; none if it has not so many.
fn masked(ip: IpAddr, prefix: u8) -> Option<IpAddr> {
    let prefix = u32::from(prefix);
    match ip {
        IpAddr::V4(ip) if prefix <= 32 => {
            let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            Some(Ipv4Addr::from(u32::from(ip) & mask).into())
        }
        IpAddr::V6(ip) if prefix <= 128 => {
            let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            Some(Ipv6Addr::from(u128::from(ip) & mask).into())
        }
        _ => None,
    }
}

/// Why a text is no [`Place`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PlaceError(&'static str);

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let error = |why| Err(PlaceError(why));
        if text.len() > MAX_ALLOWED_BYTES {
            return error("there are too many characters");
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return error("the port is missing");
        };
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = match port.parse::<u16>() {
            Ok(port) if port > 0 && digits => port,
            _ => return error("the port is not a number from 1 to 65535"),
        };
        let host = match host.strip_prefix('[') {
            Some(rest) => match rest.strip_suffix(']') {
                Some(inside) => network::<Ipv6Addr>(inside, 128)?,
                None => return error("the ] behind the address is missing"),
            },
            None if host.contains(':') => {
                return error("an IPv6 address must stand between [ and ]");
            }
            None if looks_like_v4(host) => network::<Ipv4Addr>(host, 32)?,
            None => match host.strip_prefix("*.") {
                Some(name) if !name.contains('.') => {
                    return error("*. must be followed by at least two parts of a name");
                }
                Some(name) => Host::Below(self::name(name)?),
                None => Host::Name(name(host)?),
            },
        };
        Ok(Place { host, port })
    }
}

/// No name of a host ends with a number (RFC 1123, 2.1).
fn looks_like_v4(host: &str) -> bool {
    let address = host.split('/').next().unwrap_or(host);
    let last = address.rsplit('.').next().unwrap_or(address);
    !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit())
}

fn network<A: FromStr + Into<IpAddr>>(text: &str, bits: u8) -> Result<Host, PlaceError> {
    let (ip, prefix) = match text.split_once('/') {
        None => (text, bits),
        Some((ip, prefix)) => match prefix.parse::<u8>() {
            Ok(prefix) if prefix <= bits && !prefix_is_odd(text) => (ip, prefix),
            _ => {
                return Err(PlaceError(
                    "the number behind the / is not a length in bits",
                ));
            }
        },
    };
    let ip: IpAddr = match ip.parse::<A>() {
        Ok(ip) => ip.into(),
        Err(_) => return Err(PlaceError("the address is not one")),
    };
    match masked(ip, prefix) == Some(ip) {
        true => Ok(Host::Network { ip, prefix }),
        false => Err(PlaceError(
            "the address has bits behind its prefix; make them zero",
        )),
    }
}

/// A sign or a zero in front would be another way to write the same.
fn prefix_is_odd(text: &str) -> bool {
    let prefix = text.rsplit('/').next().unwrap_or_default();
    prefix.starts_with('+') || (prefix.len() > 1 && prefix.starts_with('0'))
}

/// Checks the name of a host; gives it in lower case.
fn name(text: &str) -> Result<String, PlaceError> {
    if text.is_empty() || text.len() > MAX_HOST_BYTES {
        return Err(PlaceError("the host is missing or its name too long"));
    }
    let good = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    match text.split('.').all(good) {
        true => Ok(text.to_ascii_lowercase()),
        false => Err(PlaceError(
            "the host is not a name of letters, digits, - and dots between them; a * stands in \
             front alone",
        )),
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port;
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{port}"),
            Host::Below(name) => write!(f, "*.{name}:{port}"),
            Host::Network { ip, prefix } => match (ip, prefix) {
                (IpAddr::V4(ip), 32) => write!(f, "{ip}:{port}"),
                (IpAddr::V4(ip), prefix) => write!(f, "{ip}/{prefix}:{port}"),
                (IpAddr::V6(ip), 128) => write!(f, "[{ip}]:{port}"),
                (IpAddr::V6(ip), prefix) => write!(f, "[{ip}/{prefix}]:{port}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Place {
        text.parse().unwrap()
    }

    #[test]
    fn places_are_read_and_written_alike() {
        for text in [
            "api.example.com:443",
            "*.example.com:443",
            "10.0.0.0/8:5432",
            "192.0.2.1:80",
            "[2001:db8::1]:9000",
            "[2001:db8::/32]:1",
            "0.0.0.0/0:443",
            "localhost:65535",
        ] {
            assert_eq!(place(text).to_string(), text);
        }
        assert_eq!(
            place("API.Example.com:443").to_string(),
            "api.example.com:443"
        );
    }

    #[test]
    fn what_is_no_place_is_refused_and_says_why() {
        for (text, why) in [
            ("api.example.com", "port is missing"),
            ("api.example.com:0", "1 to 65535"),
            ("api.example.com:+80", "1 to 65535"),
            ("api.example.com:65536", "1 to 65535"),
            (":443", "host is missing"),
            ("*:443", "stands in front alone"),
            ("*.com:443", "at least two parts"),
            ("a.*.com:443", "stands in front alone"),
            ("https://example.com:443", "between [ and ]"),
            ("2001:db8::1:443", "between [ and ]"),
            ("[2001:db8::1:443", "] behind"),
            ("10.0.0.0/33:1", "length in bits"),
            ("10.0.0.0/08:1", "length in bits"),
            ("10.0.0.1/8:1", "bits behind its prefix"),
            ("10.0.0:1", "not one"),
            ("300.1.1.1:1", "not one"),
            ("exa mple.com:1", "letters, digits"),
            ("-a.com:1", "letters, digits"),
            ("a..b:1", "letters, digits"),
        ] {
            let error = text.parse::<Place>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn names_and_addresses_are_told_apart() {
        let below = place("*.example.com:443");
        assert!(below.has_name("a.example.com") && below.has_name("b.a.example.com"));
        assert!(!below.has_name("example.com") && !below.has_name("badexample.com"));
        assert!(!below.has_name(".example.com"));
        let net = place("10.0.0.0/8:1");
        assert!(net.has_address([10, 1, 2, 3].into()) && !net.has_address([11, 0, 0, 0].into()));
        assert!(!net.has_address(Ipv6Addr::LOCALHOST.into()) && !net.has_name("10.0.0.0"));
        assert!(place("0.0.0.0/0:1").has_address([1, 2, 3, 4].into()));
        assert!(!place("example.com:1").has_address([1, 2, 3, 4].into()));
    }
}
