//! Frames: how a message becomes bytes on a stream.
//!
//! ```text
//! frame = length u32 LE | version u16 LE | bincode payload
//! ```
//! `length` counts the version and the payload. This is the only file that uses bincode.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::PROTOCOL_VERSION;
use crate::limits::MAX_CONTROL_FRAME_BYTES;
use crate::usage::UsageRecord;

/// Bytes before the payload.
pub const FRAME_HEADER_BYTES: usize = 6;

/// A frame cannot be made or read. All but `TooLarge` on encoding are the peer's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`MAX_CONTROL_FRAME_BYTES`].
    #[error("the frame has {0} bytes, more than the {MAX_CONTROL_FRAME_BYTES} allowed")]
    TooLarge(usize),
    /// Another protocol version.
    #[error(
        "the peer speaks protocol version {0}, this side {PROTOCOL_VERSION}; update the older of the two"
    )]
    Version(u16),
    /// The payload is not the message that was expected.
    #[error("the peer's message cannot be read: {0}")]
    Malformed(String),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_CONTROL_FRAME_BYTES>()
}

/// One frame holding `message`.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; FRAME_HEADER_BYTES];
    frame[4..6].copy_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    bincode::serde::encode_into_std_write(message, &mut frame, config())
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

/// Reads the message from the bytes that follow a frame's length; all of them must be used.
pub fn decode<T: DeserializeOwned>(following: &[u8]) -> Result<T, FrameError> {
    let (version, payload) = following
        .split_first_chunk::<2>()
        .ok_or_else(|| FrameError::Malformed("a frame without a version".into()))?;
    let version = u16::from_le_bytes(*version);
    if version != PROTOCOL_VERSION {
        return Err(FrameError::Version(version));
    }
    decode_payload(payload)
}

/// Reads a usage record that a node has stored as a whole frame, maybe before it was updated: a record is the same in
/// all protocol versions from 3 on.
pub fn decode_stored(frame: &[u8]) -> Result<UsageRecord, FrameError> {
    let cut = || FrameError::Malformed("a stored record is cut short".into());
    let (length, following) = frame.split_first_chunk::<4>().ok_or_else(cut)?;
    if following_bytes(*length)? != following.len() {
        return Err(cut());
    }
    match following.split_first_chunk::<2>() {
        Some((version, payload))
            if (3..=PROTOCOL_VERSION).contains(&u16::from_le_bytes(*version)) =>
        {
            decode_payload(payload)
        }
        _ => decode(following),
    }
}

fn decode_payload<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    let (message, used) = bincode::serde::decode_from_slice(payload, config())
        .map_err(|error| FrameError::Malformed(error.to_string()))?;
    if used != payload.len() {
        return Err(FrameError::Malformed("bytes after the message".into()));
    }
    Ok(message)
}
