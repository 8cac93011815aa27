//! Serving inside Holm: one wait, one answer, nothing between them but the handler.
//!
//! Every buffer is made and written to before the first wait, so that the snapshot holds its pages
//! and a request does not pay for fresh ones; they are used again for every request.

use std::io;

use holm_hostcall::WAIT_ENDED;
use holm_hostcall::message::{self, Sink, encode_response};
use holm_kernel_door::{Door, Part};

use crate::{Request, Response};

/// Room for a request: the largest head that a node passes on, and a body of usual size. A larger
/// body is read on into the same buffer, which then grows.
const REQUEST_BUFFER_BYTES: usize = 96 << 10;
/// Room for a response's head of usual size.
const HEAD_BUFFER_BYTES: usize = 4 << 10;

/// Answers requests until no more will come or a call fails.
pub(crate) fn serve(door: Door, answer: &dyn Fn(Request<'_>) -> Response) -> io::Result<()> {
    let mut buffer = warm(REQUEST_BUFFER_BYTES);
    let mut head = warm(HEAD_BUFFER_BYTES);
    let mut fresh = true;
    loop {
        let used = match door.wait_request(&mut buffer) {
            Ok(used) => used,
            Err(error) if -i64::from(error) == WAIT_ENDED => return Ok(()),
            Err(error) => return Err(io::Error::from_raw_os_error(error)),
        };
        if std::mem::take(&mut fresh) {
            crate::restored();
        }
        let response = match complete(door, &mut buffer, used)? {
            Some(bytes) => match Request::new(decode(&buffer[..bytes])?) {
                Some(request) => answer(request),
                None => Response::new(400),
            },
            None => Response::text("the body does not fit the function's memory\n").status(413),
        };
        encode(&mut head, &response);
        door.respond(&head, response.body(), Part::Last)
            .map_err(io::Error::from_raw_os_error)?;
        // After a large body under `isolation = "instance"`: back to the usual size.
        buffer.truncate(REQUEST_BUFFER_BYTES);
    }
}

/// `bytes` bytes of memory that has been written to. Zeroes would not do: the allocator takes them
/// from fresh pages without touching these.
fn warm(bytes: usize) -> Vec<u8> {
    vec![0xA5; bytes]
}

/// Reads the rest of a body that did not come with the head, and gives the bytes of the whole
/// message in `buffer`; `None` if there is no memory for it.
fn complete(door: Door, buffer: &mut Vec<u8>, used: usize) -> io::Result<Option<usize>> {
    let message = decode(&buffer[..used])?;
    let missing = message.body_bytes - message.body.len() as u64;
    let Some(whole) = usize::try_from(missing)
        .ok()
        .and_then(|missing| used.checked_add(missing))
    else {
        return Ok(None);
    };
    if whole > buffer.len() {
        if buffer.try_reserve_exact(whole - buffer.len()).is_err() {
            return Ok(None);
        }
        buffer.resize(whole, 0);
    }
    let mut filled = used;
    while filled < whole {
        match door
            .request_body(&mut buffer[filled..whole])
            .map_err(io::Error::from_raw_os_error)?
        {
            0 => return Err(broken("the request's body ended early")),
            more => filled += more,
        }
    }
    Ok(Some(whole))
}

fn decode(bytes: &[u8]) -> io::Result<message::Request<'_>> {
    message::Request::decode(bytes).map_err(|malformed| broken(malformed.0))
}

/// The host broke the contract; the program cannot go on, and this is the last line of its log.
fn broken(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("Holm's host sent a bad request: {what}"),
    )
}

/// Replaces `head` with the encoded head of `response`.
fn encode(head: &mut Vec<u8>, response: &Response) {
    struct Growing<'a>(&'a mut Vec<u8>);
    impl Sink for Growing<'_> {
        fn put(&mut self, bytes: &[u8]) -> bool {
            self.0.extend_from_slice(bytes);
            true
        }
    }
    head.clear();
    let complete = encode_response(&mut Growing(head), response.code(), response.headers());
    debug_assert!(
        complete,
        "checked responses have headers that can be encoded"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoded_head_says_what_the_response_says() {
        let mut head = warm(HEAD_BUFFER_BYTES);
        encode(
            &mut head,
            &Response::text("x").status(201).header("X-A", "b"),
        );
        let decoded = message::Response::decode(&head).unwrap();
        assert_eq!(decoded.status, 201);
        assert_eq!(decoded.headers.get(b"x-a"), Some(&b"b"[..]));
        assert_eq!(decoded.headers.len(), 2);
    }
}
