//! Versions of the control protocol: which ones this side speaks, and how two sides agree on one.
//!
//! Each side speaks two, its own and the one before, so nodes and coordinators can be updated one by one and in either
//! order. They agree in the TLS handshake (ALPN, RFC 7301): the node offers a name for each version that it speaks, the
//! newest first, and the coordinator takes the first of its own that was offered. That is the older side's newest.
//!
//! ```text
//! holm/6 …    that version, control link          holm-join/6 …    the same, joining
//! holm/1      any version up to 5                  holm-join/1
//! ```
//! The last ones are from before there were such names. They are always offered and served too, at the end: two sides
//! that are too far apart meet there, and the first frame, which says its version, is refused with both versions named.

use std::borrow::Cow;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::{
    BulkAnswer, BulkRequest, CoordinatorMessage, JoinAnswer, JoinRequest, NodeMessage,
    PROTOCOL_VERSION, before,
};

/// The first version that has an ALPN name of its own.
const FIRST_NAMED: u16 = 6;

/// A version of the protocol that this side speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u16);

impl Version {
    /// Its own.
    pub const NOW: Version = Version(PROTOCOL_VERSION);
    /// The one before.
    pub const BEFORE: Version = Version(PROTOCOL_VERSION - 1);

    /// As frames say it.
    pub const fn number(self) -> u16 {
        self.0
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A node's control link.
    Link,
    /// Joining the fleet.
    Join,
}

impl Purpose {
    /// ALPN names to offer or to serve, the preferred one first.
    pub fn names(self) -> Vec<Vec<u8>> {
        let versions = [Version::NOW, Version::BEFORE];
        let named = versions.into_iter().filter(|v| v.0 >= FIRST_NAMED);
        let mut names: Vec<_> = named.map(|version| self.name(version.0)).collect();
        names.push(self.name(1));
        names
    }

    /// The version that both sides speak if TLS has agreed on this name; none if the name is for something else.
    pub fn agreed(self, name: &[u8]) -> Option<Version> {
        let versions = [Version::NOW, Version::BEFORE];
        let mut named = versions.into_iter().filter(|v| v.0 >= FIRST_NAMED);
        if let Some(version) = named.find(|version| self.name(version.0) == name) {
            return Some(version);
        }
        // Where no version without a name is spoken any more, the peer's first frame will be refused.
        let unnamed = match Version::BEFORE.0 < FIRST_NAMED {
            true => Version::BEFORE,
            false => Version::NOW,
        };
        (self.name(1) == name).then_some(unnamed)
    }

    fn name(self, number: u16) -> Vec<u8> {
        let kind = match self {
            Purpose::Link => "holm",
            Purpose::Join => "holm-join",
        };
        format!("{kind}/{number}").into_bytes()
    }
}

/// What one frame holds.
///
/// The kinds of an enum are its wire numbers, so a new one is only ever added at the end; a peer that does not know it
/// refuses that message and goes on. Anything else that changes needs the shape of the version before, in
/// [`crate::control::before`], as long as that version is spoken.
pub trait Message: Serialize + DeserializeOwned {
    /// Its shape in [`Version::BEFORE`].
    type Before: Clone + Serialize + DeserializeOwned + Into<Self>;
    /// How many kinds it had there; for a structure, any number above 0.
    const KINDS_BEFORE: u32;

    /// What a peer of that version is sent in its place. Asked only for kinds that it had there.
    fn to_before(&self) -> Cow<'_, Self::Before>;
}

/// Messages that were the same in version 5, but for kinds added since.
macro_rules! same_before {
    ($($message:ty: $kinds:literal),+ $(,)?) => {$(
        impl Message for $message {
            type Before = Self;
            const KINDS_BEFORE: u32 = $kinds;

            fn to_before(&self) -> Cow<'_, Self> {
                Cow::Borrowed(self)
            }
        }
    )+};
}

same_before! {
    CoordinatorMessage: 4,
    BulkRequest: 5,
    BulkAnswer: 5,
    JoinRequest: 1,
    JoinAnswer: 2,
}

impl Message for NodeMessage {
    type Before = before::NodeMessage;
    const KINDS_BEFORE: u32 = 4;

    fn to_before(&self) -> Cow<'_, before::NodeMessage> {
        Cow::Owned(self.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{ALPN, JOIN_ALPN};

    /// What TLS agrees on: the first of the server's names that the client offers.
    fn pick<'a>(server: &'a [Vec<u8>], client: &[Vec<u8>]) -> &'a [u8] {
        server.iter().find(|name| client.contains(name)).unwrap()
    }

    fn names(of: &[&str]) -> Vec<Vec<u8>> {
        of.iter().map(|name| name.as_bytes().to_vec()).collect()
    }

    #[test]
    fn two_sides_agree_on_the_older_ones_newest_version_whichever_side_it_is() {
        let own = Purpose::Link.names();
        assert_eq!(own, names(&["holm/6", "holm/1"]));
        let (now, before) = (Some(Version::NOW), Some(Version::BEFORE));
        for (peer, version) in [
            (own.clone(), now),
            (names(&["holm/1"]), before),
            (names(&["holm/7", "holm/6", "holm/1"]), now),
        ] {
            assert_eq!(Purpose::Link.agreed(pick(&own, &peer)), version);
            assert_eq!(Purpose::Link.agreed(pick(&peer, &own)), version);
        }
        // Two versions apart they meet where frames tell them so.
        let newer = names(&["holm/8", "holm/7", "holm/1"]);
        assert_eq!(pick(&own, &newer), b"holm/1");
    }

    #[test]
    fn a_name_for_something_else_is_no_version() {
        assert_eq!(Purpose::Link.agreed(JOIN_ALPN), None);
        assert_eq!(Purpose::Join.agreed(ALPN), None);
        assert_eq!(Purpose::Link.agreed(b"holm/7"), None);
        assert_eq!(Purpose::Link.agreed(ALPN), Some(Version::NOW));
        assert_eq!(Purpose::Join.agreed(JOIN_ALPN), Some(Version::NOW));
    }
}
