//! Which addresses an export may reach. A tenant's own administrator says where events go, and must not make the
//! coordinator speak to what only it can reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect;

use crate::limits::MAX_WEBHOOK_URL_CHARS;

/// A URL is none for a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadUrl {
    #[error("it is longer than {MAX_WEBHOOK_URL_CHARS} characters")]
    TooLong,
    #[error("it is no URL")]
    Unreadable,
    #[error("it does not begin with https://")]
    NotHttps,
    #[error(
        "it names a user or a password, which would be shown with the export; receivers verify the signature"
    )]
    User,
    #[error("it has a fragment, which no server gets")]
    Fragment,
    #[error(
        "its address is not public; whoever administers the whole fleet may allow it for this export (`--private`)"
    )]
    NotPublic,
}

/// Reads a webhook's URL. A name in it is resolved when it is connected to, and what it resolves to looked at then.
pub(crate) fn read(text: &str, private: bool) -> Result<Url, BadUrl> {
    if text.chars().count() > MAX_WEBHOOK_URL_CHARS {
        return Err(BadUrl::TooLong);
    }
    let url = Url::parse(text).map_err(|_| BadUrl::Unreadable)?;
    if url.scheme() != "https" {
        return Err(BadUrl::NotHttps);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(BadUrl::User);
    }
    if url.fragment().is_some() {
        return Err(BadUrl::Fragment);
    }
    let host = url.host_str().ok_or(BadUrl::Unreadable)?;
    let literal: Option<IpAddr> = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .ok();
    let local = host == "localhost" || host.ends_with(".localhost");
    match private || literal.is_none_or(is_public) && !local {
        true => Ok(url),
        false => Err(BadUrl::NotPublic),
    }
}

/// Of a URL that was read the host, and the port if it says one.
pub(crate) fn host(url: &str) -> String {
    Url::parse(url).map_or_else(|_| String::new(), |url| url.authority().to_owned())
}

/// No redirect is followed: it would be a way around what was looked at.
pub(super) fn no_redirects() -> redirect::Policy {
    redirect::Policy::none()
}

/// Resolves names to public addresses alone. A URL with an address in place of a name does not come here, see
/// [`read`].
#[derive(Clone, Copy, Debug)]
pub(super) struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let name = name.as_str().to_owned();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|found| is_public(found.ip())).collect();
            if public.is_empty() {
                return Err(format!("{name} has no public address").into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// By IANA's registries of special addresses (RFC 6890 and its successors): what is not known to be public is not.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let protocols = a == 192 && b == 0 && c == 0;
    let relays = a == 192 && b == 88 && c == 99;
    let benchmarks = a == 198 && (b == 18 || b == 19);
    !(a == 0
        || a >= 240
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || shared
        || protocols
        || relays
        || benchmarks)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    // 2000::/3 is all that is given to networks; of that, not what leads on to IPv4 (6to4, Teredo) or to nothing.
    let given = a & 0xe000 == 0x2000;
    let protocols = a == 0x2001 && b < 0x200;
    let documentation = a == 0x2001 && b == 0xdb8 || a == 0x3fff && b < 0x1000;
    let to_v4 = a == 0x2002;
    given && !protocols && !documentation && !to_v4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_not_public_are_known_as_such() {
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.0.0.8",
            "192.168.1.1",
            "192.88.99.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:8.8.8.8",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "ff02::1",
            "64:ff9b::808:808",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "100::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "172.15.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "2a00::1",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn a_url_is_https_to_a_public_place_and_shows_no_secret() {
        for (text, why) in [
            ("http://example.com/", BadUrl::NotHttps),
            ("ftp://example.com/", BadUrl::NotHttps),
            ("https://", BadUrl::Unreadable),
            ("example.com/x", BadUrl::Unreadable),
            ("https://a:b@example.com/", BadUrl::User),
            ("https://a@example.com/", BadUrl::User),
            ("https://example.com/#x", BadUrl::Fragment),
            ("https://127.0.0.1/", BadUrl::NotPublic),
            ("https://2130706433/", BadUrl::NotPublic),
            ("https://0x7f.1/", BadUrl::NotPublic),
            ("https://[::1]:8443/", BadUrl::NotPublic),
            ("https://[::ffff:127.0.0.1]/", BadUrl::NotPublic),
            ("https://169.254.169.254/latest", BadUrl::NotPublic),
            ("https://localhost/", BadUrl::NotPublic),
            ("https://a.localhost/", BadUrl::NotPublic),
        ] {
            assert_eq!(read(text, false), Err(why), "{text}");
        }
        let long = format!("https://example.com/{}", "x".repeat(MAX_WEBHOOK_URL_CHARS));
        assert_eq!(read(&long, true), Err(BadUrl::TooLong));
        assert!(read("https://127.0.0.1:9/hook", true).is_ok());
        assert!(read("https://hooks.example.com/usage?x=1", false).is_ok());
    }

    #[tokio::test]
    async fn a_name_of_this_machine_resolves_to_nothing() {
        let refused = PublicOnly.resolve("localhost".parse().unwrap()).await;
        assert!(refused.is_err());
    }
}
