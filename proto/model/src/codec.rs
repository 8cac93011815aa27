//! Frames: how a message becomes bytes on a stream, and what is kept on disk becomes a file.
//!
//! ```text
//! frame = length u32 LE | version u16 LE | bincode payload
//! ```
//! `length` counts the version and the payload. On a stream the version is the protocol's, as both sides have agreed on
//! it ([`crate::protocol`]). In a file it is the file's own format, which knows nothing of the protocol: a node that was
//! updated reads what it kept. Formats begin with 5 because the protocol's version stood there until it was 5.
//!
//! This is the only file that uses bincode.

use std::fmt;
use std::ops::RangeInclusive;

use serde::Serialize;
use serde::de::{DeserializeOwned, Deserializer, Visitor};

use crate::control::PROTOCOL_VERSION;
use crate::limits::MAX_CONTROL_FRAME_BYTES;
use crate::protocol::{Message, Version};
use crate::usage::UsageRecord;

/// Bytes before the payload.
pub const FRAME_HEADER_BYTES: usize = 6;
/// Formats of a usage record that a node may have stored, until there were chains ([`crate::chain`]).
const RECORD_FORMATS: RangeInclusive<u16> = 3..=5;

/// A frame cannot be made or read. All but `TooLarge` and `NotThere` on encoding are the peer's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`MAX_CONTROL_FRAME_BYTES`].
    #[error("the frame has {0} bytes, more than the {MAX_CONTROL_FRAME_BYTES} allowed")]
    TooLarge(usize),
    /// A protocol version that this side does not speak.
    #[error(
        "the peer speaks protocol version {0}, this side {PROTOCOL_VERSION} and the one before; update the older of \
         the two"
    )]
    Version(u16),
    /// Not the protocol version that both sides have agreed on.
    #[error("the peer's frame is of protocol version {said}, after {agreed} was agreed on")]
    NotAgreed {
        /// In the frame.
        said: u16,
        /// By TLS.
        agreed: u16,
    },
    /// A message of a kind that this side does not know. What comes after it can be read.
    #[error("this side of protocol version {PROTOCOL_VERSION} does not know messages of kind {0}")]
    Unknown(u32),
    /// The message is one that the agreed version does not have.
    #[error(
        "the peer speaks protocol version {0}, which does not have this message; update the peer"
    )]
    NotThere(u16),
    /// A stored file's format is not known.
    #[error(
        "it is of format {0}, which this version of Holm cannot read; a newer one has written it"
    )]
    Format(u16),
    /// The payload is not the message that was expected.
    #[error("the peer's message cannot be read: {0}")]
    Malformed(String),
    /// The file is not what was stored.
    #[error("it is damaged: {0}")]
    Damaged(String),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_CONTROL_FRAME_BYTES>()
}

/// One frame holding `message`, for a peer with which [`Version::NOW`] is agreed on.
pub fn encode<T: Message>(message: &T) -> Result<Vec<u8>, FrameError> {
    encode_for(message, Version::NOW)
}

/// One frame holding `message`, for a peer with which `version` is agreed on.
pub fn encode_for<T: Message>(message: &T, version: Version) -> Result<Vec<u8>, FrameError> {
    let number = version.number();
    if version == Version::NOW {
        return frame(message, number);
    }
    let own = frame(message, number)?;
    match kinds::<T>() {
        Some(_) if kind(&own[FRAME_HEADER_BYTES..])? >= T::KINDS_BEFORE => {
            Err(FrameError::NotThere(number))
        }
        _ => frame(message.to_before().as_ref(), number),
    }
}

/// A file that holds `stored`.
pub fn encode_file<T: Serialize>(stored: &T, format: u16) -> Result<Vec<u8>, FrameError> {
    frame(stored, format)
}

fn frame<T: Serialize>(payload: &T, version: u16) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; FRAME_HEADER_BYTES];
    frame[4..6].copy_from_slice(&version.to_le_bytes());
    bincode::serde::encode_into_std_write(payload, &mut frame, config())
        .map_err(|error| FrameError::Malformed(error.to_string()))?;
    let length = frame.len() - 4;
    match u32::try_from(length) {
        Ok(short) if length <= MAX_CONTROL_FRAME_BYTES => {
            frame[..4].copy_from_slice(&short.to_le_bytes());
            Ok(frame)
        }
        _ => Err(FrameError::TooLarge(length)),
    }
}

/// From a frame's first four bytes: how many bytes follow. Checked before anything is allocated.
pub fn following_bytes(length: [u8; 4]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(length) as usize;
    match length {
        0..2 => Err(FrameError::Malformed("a frame without a version".into())),
        _ if length > MAX_CONTROL_FRAME_BYTES => Err(FrameError::TooLarge(length)),
        _ => Ok(length),
    }
}

/// Reads the message from the bytes that follow a frame's length, of a peer with which [`Version::NOW`] is agreed on.
pub fn decode<T: Message>(following: &[u8]) -> Result<T, FrameError> {
    decode_for(following, Version::NOW)
}

/// Reads the message from the bytes that follow a frame's length, of a peer with which `agreed` is agreed on; all of
/// them must be used.
pub fn decode_for<T: Message>(following: &[u8], agreed: Version) -> Result<T, FrameError> {
    let (said, payload) = split_version(following)
        .ok_or_else(|| FrameError::Malformed("a frame without a version".into()))?;
    let agreed_number = agreed.number();
    match said {
        _ if said == agreed_number => {}
        _ if [Version::NOW, Version::BEFORE]
            .map(Version::number)
            .contains(&said) =>
        {
            let agreed = agreed_number;
            return Err(FrameError::NotAgreed { said, agreed });
        }
        _ => return Err(FrameError::Version(said)),
    }
    match agreed {
        Version::NOW => decode_message(payload),
        _ => decode_message::<T::Before>(payload).map(Into::into),
    }
}

/// Reads what [`encode_file`] has made of it, in one of these formats.
pub fn decode_file<T: DeserializeOwned>(
    file: &[u8],
    formats: RangeInclusive<u16>,
) -> Result<T, FrameError> {
    let damaged = |why: &str| FrameError::Damaged(why.to_owned());
    let (length, following) = file
        .split_first_chunk::<4>()
        .ok_or_else(|| damaged("it is cut short"))?;
    if u32::from_le_bytes(*length) as usize != following.len() {
        return Err(damaged("its length is not the one that it says"));
    }
    let (format, payload) = split_version(following).ok_or_else(|| damaged("it is cut short"))?;
    if !formats.contains(&format) {
        return Err(FrameError::Format(format));
    }
    decode_payload(payload).map_err(|why| damaged(&why))
}

/// Reads a usage record that a node has stored before it was updated.
pub fn decode_stored(file: &[u8]) -> Result<UsageRecord, FrameError> {
    decode_file(file, RECORD_FORMATS)
}

fn split_version(following: &[u8]) -> Option<(u16, &[u8])> {
    let (version, payload) = following.split_first_chunk::<2>()?;
    Some((u16::from_le_bytes(*version), payload))
}

fn decode_message<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    if let Some(kinds) = kinds::<T>() {
        let kind = kind(payload)?;
        if kind >= kinds {
            return Err(FrameError::Unknown(kind));
        }
    }
    decode_payload(payload).map_err(FrameError::Malformed)
}

fn decode_payload<T: DeserializeOwned>(payload: &[u8]) -> Result<T, String> {
    let (message, used) =
        bincode::serde::decode_from_slice(payload, config()).map_err(|error| error.to_string())?;
    if used != payload.len() {
        return Err("bytes after the message".into());
    }
    Ok(message)
}

/// Which kind of an enum's a payload is: bincode begins with its number.
fn kind(payload: &[u8]) -> Result<u32, FrameError> {
    let (kind, _) = bincode::decode_from_slice(payload, config())
        .map_err(|error| FrameError::Malformed(error.to_string()))?;
    Ok(kind)
}

/// How many kinds an enum has, none if it is not one. Asked of what serde derives, so that nobody has to keep a
/// number beside it.
fn kinds<T: DeserializeOwned>() -> Option<u32> {
    T::deserialize(Kinds(None)).err()?.0
}

/// Reads nothing, and is the error in which a type's number of kinds comes back.
#[derive(Debug)]
struct Kinds(Option<u32>);

impl<'de> Deserializer<'de> for Kinds {
    type Error = Kinds;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Kinds> {
        Err(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        kinds: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Kinds> {
        Err(Kinds(u32::try_from(kinds.len()).ok()))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl serde::de::Error for Kinds {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Kinds(None)
    }
}

impl std::error::Error for Kinds {}

impl fmt::Display for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a type with {:?} kinds", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::borrow::Cow;

    /// Had one kind in the version before, which said less.
    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    enum Word {
        Old { number: u8, more: String },
        New,
    }

    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    enum WordBefore {
        Old { number: u8 },
    }

    impl From<WordBefore> for Word {
        fn from(WordBefore::Old { number }: WordBefore) -> Self {
            let more = String::new();
            Word::Old { number, more }
        }
    }

    impl Message for Word {
        type Before = WordBefore;
        const KINDS_BEFORE: u32 = 1;

        fn to_before(&self) -> Cow<'_, WordBefore> {
            match self {
                Word::Old { number, .. } => Cow::Owned(WordBefore::Old { number: *number }),
                Word::New => unreachable!("it was not there"),
            }
        }
    }

    #[test]
    fn an_older_peer_gets_messages_in_its_own_shape_and_none_that_it_does_not_have() {
        let more = "m".to_owned();
        let word = Word::Old { number: 7, more };
        let number = Version::BEFORE.number();
        let frame = encode_for(&word, Version::BEFORE).unwrap();
        assert_eq!(frame[4..], [number as u8, 0, 0, 7]);
        let more = String::new();
        let back = decode_for::<Word>(&frame[4..], Version::BEFORE);
        assert_eq!(back, Ok(Word::Old { number: 7, more }));
        let error = encode_for(&Word::New, Version::BEFORE).unwrap_err();
        assert_eq!(error, FrameError::NotThere(number));
        assert!(encode(&Word::New).is_ok());
    }

    #[test]
    fn a_file_is_read_by_its_own_format_whatever_the_protocol() {
        let file = encode_file(&(1_u8, 2_u8), 5).unwrap();
        assert_eq!(file, [4, 0, 0, 0, 5, 0, 1, 2]);
        assert_eq!(decode_file(&file, 5..=5), Ok((1_u8, 2_u8)));
        let newer = decode_file::<(u8, u8)>(&file, 3..=4);
        assert_eq!(newer, Err(FrameError::Format(5)));
        for cut in 0..file.len() {
            let error = decode_file::<(u8, u8)>(&file[..cut], 5..=5).unwrap_err();
            assert!(matches!(error, FrameError::Damaged(_)), "{cut}: {error}");
        }
    }
}
