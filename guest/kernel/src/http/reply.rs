//! What the program writes to its connection, read as one response.

use holm_hostcall::message::{Malformed, Sink, SliceSink, encode_response};

/// Largest response head, as text and encoded.
const HEAD_BYTES: usize = 64 << 10;
/// Body bytes kept back so that a small response leaves in one hostcall.
const BODY_BYTES: usize = 64 << 10;
/// Most headers of a response.
const MAX_HEADERS: usize = 128;
/// Longest line with a chunk's size.
const CHUNK_LINE_BYTES: usize = 256;

/// Where a response goes: the host.
pub trait Output {
    /// The head and the first, or (with `end`) the only, part of the body.
    fn respond(&mut self, head: &[u8], body: &[u8], end: bool);
    /// A further part of the body.
    fn body(&mut self, body: &[u8], end: bool);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The response is complete. First, so that a reader that is all zero is in this state.
    Done,
    /// Collecting the head.
    Head,
    /// So many bytes of body to come.
    Length(u64),
    /// The body ends when the program closes the connection.
    UntilClose,
    /// Collecting the line with a chunk's size.
    ChunkSize,
    /// So many bytes of the chunk to come.
    Chunk(u64),
    /// The line end after a chunk.
    ChunkEnd,
    /// Lines after the last chunk, until an empty one.
    Trailer,
}

/// Reads what the program writes to its connection as one response.
pub struct Reply {
    state: State,
    /// The request was HEAD: the response has no body whatever its head says.
    head_only: bool,
    text: [u8; HEAD_BYTES],
    text_used: usize,
    head: [u8; HEAD_BYTES],
    head_used: usize,
    head_sent: bool,
    body: [u8; BODY_BYTES],
    body_used: usize,
    line: [u8; CHUNK_LINE_BYTES],
    line_used: usize,
}

impl Reply {
    /// Ready for the first response.
    pub const fn new() -> Self {
        Reply {
            state: State::Done,
            head_only: false,
            text: [0; HEAD_BYTES],
            text_used: 0,
            head: [0; HEAD_BYTES],
            head_used: 0,
            head_sent: false,
            body: [0; BODY_BYTES],
            body_used: 0,
            line: [0; CHUNK_LINE_BYTES],
            line_used: 0,
        }
    }

    /// Makes one where the buffers are zero and all else is not anything yet.
    ///
    /// # Safety
    /// `this` is for writing, and nobody else's; the buffers behind it are valid.
    pub unsafe fn clear_at(this: *mut Reply) {
        // SAFETY: as the caller promises.
        unsafe {
            (&raw mut (*this).state).write(State::Done);
            (&raw mut (*this).head_only).write(false);
            (&raw mut (*this).text_used).write(0);
            (&raw mut (*this).head_used).write(0);
            (&raw mut (*this).head_sent).write(false);
            (&raw mut (*this).body_used).write(0);
            (&raw mut (*this).line_used).write(0);
        }
    }

    /// What comes is no response, and nothing more is expected of it.
    pub fn give_up(&mut self) {
        self.state = State::Done;
    }

    /// A new request is there; `head_only` if its method is HEAD.
    pub fn start(&mut self, head_only: bool) {
        self.state = State::Head;
        self.head_only = head_only;
        self.text_used = 0;
        self.head_used = 0;
        self.head_sent = false;
        self.body_used = 0;
        self.line_used = 0;
    }

    /// Whether the response is complete.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the program has written nothing of a response yet.
    pub fn is_untouched(&self) -> bool {
        self.state == State::Head && self.text_used == 0
    }

    /// Whether the close of the connection is what ends the response.
    pub fn ends_at_close(&self) -> bool {
        self.state == State::UntilClose
    }

    /// The program wrote `bytes`. What comes after the response's end is dropped.
    pub fn write(&mut self, mut bytes: &[u8], out: &mut impl Output) -> Result<(), Malformed> {
        while !bytes.is_empty() && self.state != State::Done {
            let used = self.step(bytes, out)?;
            bytes = &bytes[used..];
        }
        Ok(())
    }

    /// Sends what has been kept back, if the head is complete.
    pub fn send_part(&mut self, out: &mut impl Output) {
        let begun = !matches!(self.state, State::Done | State::Head);
        if begun && (self.body_used > 0 || !self.head_sent) {
            self.flush(out, &[], false);
        }
    }

    /// The program closed the connection.
    pub fn close(&mut self, out: &mut impl Output) -> Result<(), Malformed> {
        match self.state {
            State::UntilClose => {
                self.finish(out);
                Ok(())
            }
            State::Done => Ok(()),
            _ => Err(Malformed(
                "the connection was closed in the middle of the response",
            )),
        }
    }

    /// Takes some of `bytes`, at least one.
    fn step(&mut self, bytes: &[u8], out: &mut impl Output) -> Result<usize, Malformed> {
        match self.state {
            State::Head => self.collect_head(bytes, out),
            State::Length(left) => {
                let used = (bytes.len() as u64).min(left) as usize;
                let left = left - used as u64;
                if left == 0 {
                    self.finish_with(&bytes[..used], out);
                } else {
                    self.put_body(&bytes[..used], out);
                    self.state = State::Length(left);
                }
                Ok(used)
            }
            State::UntilClose => {
                self.put_body(bytes, out);
                Ok(bytes.len())
            }
            State::Chunk(left) => {
                let used = (bytes.len() as u64).min(left) as usize;
                self.put_body(&bytes[..used], out);
                self.state = match left - used as u64 {
                    0 => State::ChunkEnd,
                    left => State::Chunk(left),
                };
                Ok(used)
            }
            State::ChunkSize | State::ChunkEnd | State::Trailer => self.collect_line(bytes, out),
            State::Done => Ok(bytes.len()),
        }
    }

    fn collect_head(&mut self, bytes: &[u8], out: &mut impl Output) -> Result<usize, Malformed> {
        let before = self.text_used;
        let taken = bytes.len().min(HEAD_BYTES - before);
        if taken == 0 {
            return Err(Malformed("the response's head is longer than 64 KiB"));
        }
        self.text[before..before + taken].copy_from_slice(&bytes[..taken]);
        self.text_used = before + taken;
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let head_bytes = match response.parse(&self.text[..self.text_used]) {
            Ok(httparse::Status::Partial) => return Ok(taken),
            Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
            Err(httparse::Error::TooManyHeaders) => {
                return Err(Malformed("the response has more than 128 headers"));
            }
            Err(_) => {
                return Err(Malformed(
                    "what the program wrote is not an HTTP/1.1 response",
                ));
            }
        };
        let status = response
            .code
            .ok_or(Malformed("the response has no status"))?;
        if (100..200).contains(&status) && status != 101 {
            // An interim response: the real one follows.
            self.text_used = 0;
            return Ok(head_bytes - before);
        }
        let framing = framing(status, self.head_only, response.headers)?;
        let mut name = [0u8; 256];
        let mut sink = SliceSink::new(&mut self.head);
        if response
            .headers
            .iter()
            .any(|header| header.name.len() > name.len())
        {
            return Err(Malformed(
                "the response has a header name longer than 256 bytes",
            ));
        }
        // Encoded one by one, because a name is lowered into a buffer that the next one reuses.
        let mut count = 0u16;
        let mut fits = encode_response(&mut sink, status, core::iter::empty());
        for header in response.headers.iter() {
            let lower = &mut name[..header.name.len()];
            lower.copy_from_slice(header.name.as_bytes());
            lower.make_ascii_lowercase();
            let value = u16::try_from(header.value.len())
                .map_err(|_| Malformed("the response has a header longer than 64 KiB"))?;
            fits = fits
                && sink.put(&(lower.len() as u16).to_le_bytes())
                && sink.put(&value.to_le_bytes())
                && sink.put(lower)
                && sink.put(header.value);
            count += 1;
        }
        if !fits {
            return Err(Malformed("the response's head is longer than 64 KiB"));
        }
        self.head_used = sink.used();
        self.head[..4].copy_from_slice(&(self.head_used as u32).to_le_bytes());
        self.head[4..6].copy_from_slice(&count.to_le_bytes());
        self.state = framing;
        if framing == State::Length(0) {
            self.finish(out);
        }
        Ok(head_bytes - before)
    }

    fn collect_line(&mut self, bytes: &[u8], out: &mut impl Output) -> Result<usize, Malformed> {
        let newline = bytes.iter().position(|byte| *byte == b'\n');
        let used = newline.map_or(bytes.len(), |at| at + 1);
        let end = self.line_used + used;
        let room = self.line.get_mut(self.line_used..end).ok_or(Malformed(
            "a line between the response's chunks is too long",
        ))?;
        room.copy_from_slice(&bytes[..used]);
        self.line_used = end;
        if newline.is_none() {
            return Ok(used);
        }
        let line = &self.line[..end];
        let empty = matches!(line, b"\r\n" | b"\n");
        self.line_used = 0;
        self.state = match self.state {
            State::ChunkSize => match httparse::parse_chunk_size(line) {
                Ok(httparse::Status::Complete((_, 0))) => State::Trailer,
                Ok(httparse::Status::Complete((_, size))) => State::Chunk(size),
                _ => {
                    return Err(Malformed(
                        "the size of one of the response's chunks is wrong",
                    ));
                }
            },
            State::ChunkEnd if empty => State::ChunkSize,
            State::ChunkEnd => {
                return Err(Malformed(
                    "one of the response's chunks is longer than its size",
                ));
            }
            State::Trailer if empty => {
                self.finish(out);
                State::Done
            }
            other => other,
        };
        Ok(used)
    }

    fn put_body(&mut self, bytes: &[u8], out: &mut impl Output) {
        if self.head_only {
            return;
        }
        if self.body_used + bytes.len() > BODY_BYTES {
            self.flush(out, &[], false);
        }
        if bytes.len() > BODY_BYTES {
            self.flush(out, bytes, false);
        } else {
            self.body[self.body_used..self.body_used + bytes.len()].copy_from_slice(bytes);
            self.body_used += bytes.len();
        }
    }

    /// The last part of the body; leaves directly from the program's memory where it can.
    fn finish_with(&mut self, bytes: &[u8], out: &mut impl Output) {
        if self.body_used == 0 && !self.head_only {
            self.flush(out, bytes, true);
            self.state = State::Done;
        } else {
            self.put_body(bytes, out);
            self.finish(out);
        }
    }

    fn finish(&mut self, out: &mut impl Output) {
        self.flush(out, &[], true);
        self.state = State::Done;
    }

    /// Sends what is kept back, and then `direct`.
    fn flush(&mut self, out: &mut impl Output, direct: &[u8], end: bool) {
        let kept = &self.body[..self.body_used];
        self.body_used = 0;
        let (first, rest) = if kept.is_empty() {
            (direct, &[][..])
        } else {
            (kept, direct)
        };
        let only = rest.is_empty();
        if !self.head_sent {
            out.respond(&self.head[..self.head_used], first, end && only);
            self.head_sent = true;
        } else if !first.is_empty() || end {
            out.body(first, end && only);
        }
        if !only {
            out.body(rest, end);
        }
    }
}

impl Default for Reply {
    fn default() -> Self {
        Reply::new()
    }
}

/// How the body of a response is delimited (RFC 9112, section 6.3).
fn framing(
    status: u16,
    head_only: bool,
    headers: &[httparse::Header<'_>],
) -> Result<State, Malformed> {
    if head_only || status == 204 || status == 304 {
        return Ok(State::Length(0));
    }
    let mut length = None;
    for header in headers {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return match header.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                true => Ok(State::ChunkSize),
                false => Err(Malformed(
                    "the response has a transfer encoding other than chunked",
                )),
            };
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let value = core::str::from_utf8(header.value)
                .ok()
                .map(str::trim)
                .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|text| text.parse::<u64>().ok())
                .ok_or(Malformed("the response's Content-Length is not a number"))?;
            if length.is_some_and(|other| other != value) {
                return Err(Malformed("the response has two different Content-Lengths"));
            }
            length = Some(value);
        }
    }
    Ok(length.map_or(State::UntilClose, State::Length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holm_hostcall::message::Response;
    use std::string::String;
    use std::vec::Vec;

    #[derive(Default)]
    struct Seen {
        head: Vec<u8>,
        body: Vec<u8>,
        calls: usize,
        ended: bool,
    }

    impl Output for Seen {
        fn respond(&mut self, head: &[u8], body: &[u8], end: bool) {
            assert!(self.head.is_empty(), "one head");
            self.head = head.to_vec();
            Output::body(self, body, end);
        }

        fn body(&mut self, body: &[u8], end: bool) {
            assert!(!self.ended, "nothing after the end");
            self.body.extend_from_slice(body);
            self.calls += 1;
            self.ended = end;
        }
    }

    fn read(parts: &[&[u8]], head_only: bool, close: bool) -> Result<Seen, Malformed> {
        let mut reply = std::boxed::Box::new(Reply::new());
        let mut seen = Seen::default();
        reply.start(head_only);
        for part in parts {
            reply.write(part, &mut seen)?;
        }
        if close {
            reply.close(&mut seen)?;
        }
        assert_eq!(reply.is_done(), seen.ended);
        Ok(seen)
    }

    const HELLO: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello";

    #[test]
    fn a_response_in_one_write_leaves_in_one_call() {
        let seen = read(&[HELLO], false, false).unwrap();
        assert_eq!(
            (seen.body.as_slice(), seen.calls, seen.ended),
            (&b"hello"[..], 1, true)
        );
        let head = Response::decode(&seen.head).unwrap();
        assert_eq!(head.status, 200);
        assert_eq!(head.headers.get(b"x-a"), Some(&b"b"[..]));
    }

    #[test]
    fn a_response_cut_anywhere_is_the_same() {
        for cut in 1..HELLO.len() {
            let seen = read(&[&HELLO[..cut], &HELLO[cut..]], false, false).unwrap();
            assert_eq!(
                (seen.body.as_slice(), seen.calls),
                (&b"hello"[..], 1),
                "cut at {cut}"
            );
        }
        let bytes: Vec<&[u8]> = HELLO.chunks(1).collect();
        assert_eq!(read(&bytes, false, false).unwrap().body, b"hello");
    }

    #[test]
    fn chunks_are_joined_and_trailers_dropped() {
        let text = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: v\r\n\r\n";
        for cut in 1..text.len() {
            let seen = read(&[&text[..cut], &text[cut..]], false, false).unwrap();
            assert_eq!(
                (seen.body.as_slice(), seen.ended),
                (&b"abcde"[..], true),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn without_a_length_the_close_ends_the_body() {
        let seen = read(&[b"HTTP/1.0 200 OK\r\n\r\nab", b"cd"], false, true).unwrap();
        assert_eq!((seen.body.as_slice(), seen.ended), (&b"abcd"[..], true));
    }

    #[test]
    fn head_204_and_interim_responses_have_no_body() {
        assert!(
            read(
                &[b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"],
                true,
                false
            )
            .unwrap()
            .ended
        );
        assert!(
            read(&[b"HTTP/1.1 204 No Content\r\n\r\n"], false, false)
                .unwrap()
                .ended
        );
        let seen = read(&[b"HTTP/1.1 100 Continue\r\n\r\n", HELLO], false, false).unwrap();
        assert_eq!(seen.body, b"hello");
    }

    #[test]
    fn a_large_body_comes_whole_and_in_order() {
        let body: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        let mut text = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n".to_vec();
        text.extend_from_slice(&body);
        for size in [1000, 65_536, 70_000, 300_100] {
            let parts: Vec<&[u8]> = text.chunks(size).collect();
            let seen = read(&parts, false, false).unwrap();
            assert!(seen.ended && seen.body == body, "writes of {size}");
        }
    }

    #[test]
    fn what_is_not_a_response_is_named() {
        for bad in [
            &b"hello, world\r\n\r\n"[..],
            b"HTTP/1.1 abc OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        ] {
            assert!(
                read(&[bad], false, false).is_err(),
                "{:?}",
                String::from_utf8_lossy(bad)
            );
        }
        assert!(
            read(&[&HELLO[..50]], false, true).is_err(),
            "closed in the middle"
        );
    }
}
