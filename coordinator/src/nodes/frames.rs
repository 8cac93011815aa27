//! Frames on QUIC streams, within bounds.
//!
//! A frame's length is an allegation: memory grows with the bytes that arrive, not with the bytes
//! that are announced.

use holm_model::codec::{self, FrameError};
use holm_model::protocol::{Message, Version};
use quinn::{ReadError, ReadExactError, RecvStream, SendStream, WriteError};

/// Most bytes to take from the stream at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// Why a frame cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the peer ended its stream in the middle of a frame, after {have} of {want} bytes")]
    Truncated { have: usize, want: usize },
    #[error("the peer ended its stream where a message was due")]
    Ended,
    #[error("reading from the peer failed: {0}")]
    Read(#[from] ReadError),
    #[error("writing to the peer failed: {0}")]
    Write(#[from] WriteError),
}

impl WireError {
    /// Whether the peer broke the protocol, and did not just go away or say what a newer one may say.
    pub(super) fn is_breach(&self) -> bool {
        match self {
            WireError::Frame(error) => !matches!(error, FrameError::Unknown(_)),
            WireError::Truncated { .. } | WireError::Ended => true,
            WireError::Read(_) | WireError::Write(_) => false,
        }
    }
}

/// The next message; none if the peer has ended the stream after a whole one.
pub(super) async fn read<T: Message>(
    stream: &mut RecvStream,
    version: Version,
) -> Result<Option<T>, WireError> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(ReadExactError::FinishedEarly(have)) => {
            return Err(WireError::Truncated {
                have,
                want: length.len(),
            });
        }
        Err(ReadExactError::ReadError(error)) => return Err(error.into()),
    }
    let want = codec::following_bytes(length)?;
    let mut following = Vec::with_capacity(want.min(CHUNK_BYTES));
    while following.len() < want {
        let limit = (want - following.len()).min(CHUNK_BYTES);
        match stream.read_chunk(limit, true).await? {
            Some(chunk) => following.extend_from_slice(&chunk.bytes),
            None => {
                return Err(WireError::Truncated {
                    have: following.len(),
                    want,
                });
            }
        }
    }
    Ok(Some(codec::decode_for(&following, version)?))
}

/// The next message, which must come.
pub(super) async fn expect<T: Message>(
    stream: &mut RecvStream,
    version: Version,
) -> Result<T, WireError> {
    read(stream, version).await?.ok_or(WireError::Ended)
}

/// Sends one message.
pub(super) async fn write<T: Message>(
    stream: &mut SendStream,
    message: &T,
    version: Version,
) -> Result<(), WireError> {
    let frame = codec::encode_for(message, version)?;
    stream.write_all(&frame).await?;
    Ok(())
}
