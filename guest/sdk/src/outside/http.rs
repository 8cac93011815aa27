//! HTTP/1.1 over a pair of byte streams (RFC 9112).
//!
//! A request is translated into the message that Holm's host would send, so that a handler cannot
//! tell the difference. Everything is bounded; what is ambiguous about a body's length is refused,
//! because proxies in front may read it the other way.

use std::io::{self, BufRead, BufReader, Read, Write};

use holm_hostcall::message::{self, Sink, encode_request};

use crate::{Request, Response};

/// Largest head of a request.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 128;
/// Largest body of a request.
const MAX_BODY_BYTES: usize = 32 << 20;
/// Longest line that gives a chunk's size, extensions included.
const MAX_CHUNK_LINE_BYTES: usize = 1 << 10;

/// Headers of the connection, which end here (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [&str; 7] = [
    "connection",
    "expect",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Why a request is not served.
#[derive(Debug)]
enum Bad {
    /// The caller's fault: this status and text are the answer, and the connection closes.
    Request(u16, &'static str),
    /// The connection itself failed.
    Io(io::Error),
}

impl From<io::Error> for Bad {
    fn from(error: io::Error) -> Self {
        Bad::Io(error)
    }
}

/// How a request's body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
}

/// What the head says about the connection, beside the message.
#[derive(Clone, Copy, Debug)]
struct Head {
    framing: Framing,
    keep_alive: bool,
    wants_continue: bool,
    is_head: bool,
}

/// Answers the requests that come over `input` until it ends or one of them cannot be served.
pub(super) fn serve(
    input: impl Read,
    mut output: impl Write,
    answer: &dyn Fn(Request<'_>) -> Response,
) -> io::Result<()> {
    let mut input = BufReader::new(input);
    let (mut head, mut body, mut encoded, mut out) = (vec![], vec![], vec![], vec![]);
    loop {
        let outcome = receive(&mut input, &mut output, &mut head, &mut body, &mut encoded);
        let parsed = match outcome {
            Ok(Some(parsed)) => parsed,
            Ok(None) => return Ok(()),
            Err(Bad::Io(error)) => return Err(error),
            Err(Bad::Request(status, text)) => {
                write(&mut out, &Response::text(text).status(status), false, false);
                return output.write_all(&out);
            }
        };
        let request = message::Request::decode(&encoded)
            .ok()
            .and_then(Request::new);
        let response = request.map_or_else(|| Response::new(400), answer);
        write(&mut out, &response, parsed.keep_alive, parsed.is_head);
        output.write_all(&out)?;
        if !parsed.keep_alive {
            return Ok(());
        }
    }
}

/// Reads one request and leaves it in `encoded`; `None` when the caller has closed between two.
fn receive(
    input: &mut impl BufRead,
    output: &mut impl Write,
    head: &mut Vec<u8>,
    body: &mut Vec<u8>,
    encoded: &mut Vec<u8>,
) -> Result<Option<Head>, Bad> {
    if !read_head(input, head)? {
        return Ok(None);
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Bad::Request(431, "too many headers\n"));
        }
        _ => return Err(Bad::Request(400, "this is not an HTTP request\n")),
    }
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(Bad::Request(400, "this is not an HTTP request\n"));
    };
    let parsed = inspect(method, version, request.headers)?;
    if parsed.wants_continue {
        output.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    read_body(input, parsed.framing, body)?;
    let names: Vec<String> = request
        .headers
        .iter()
        .map(|h| h.name.to_ascii_lowercase())
        .collect();
    let kept = names
        .iter()
        .zip(request.headers.iter())
        .filter(|(name, _)| !HOP_BY_HOP.contains(&name.as_str()))
        .map(|(name, header)| (name.as_bytes(), header.value));
    encoded.clear();
    let mut sink = Growing(encoded);
    let whole = encode_request(
        &mut sink,
        method.as_bytes(),
        origin_form(target)?.as_bytes(),
        kept,
        body.len() as u64,
    ) && sink.put(body);
    match whole {
        true => Ok(Some(parsed)),
        false => Err(Bad::Request(431, "a header is too long\n")),
    }
}

struct Growing<'a>(&'a mut Vec<u8>);

impl Sink for Growing<'_> {
    fn put(&mut self, bytes: &[u8]) -> bool {
        self.0.extend_from_slice(bytes);
        true
    }
}

/// Reads up to and with the empty line. `false` when the input ends before the first byte.
fn read_head(input: &mut impl BufRead, head: &mut Vec<u8>) -> Result<bool, Bad> {
    head.clear();
    loop {
        let before = head.len();
        let room = (MAX_HEAD_BYTES + 1 - before) as u64;
        input.by_ref().take(room).read_until(b'\n', head)?;
        if head.len() > MAX_HEAD_BYTES {
            return Err(Bad::Request(431, "the head of the request is too large\n"));
        }
        match &head[before..] {
            [] if before == 0 => return Ok(false),
            [.., b'\n'] => {}
            _ => return Err(Bad::Io(io::ErrorKind::UnexpectedEof.into())),
        }
        // An empty line before the request line is to be ignored (RFC 9112, section 2.2).
        match &head[before..] {
            b"\r\n" | b"\n" if before == 0 => head.clear(),
            b"\r\n" | b"\n" => return Ok(true),
            _ => {}
        }
    }
}

/// Reads what the headers say about the body and the connection.
fn inspect(method: &str, version: u8, headers: &[httparse::Header<'_>]) -> Result<Head, Bad> {
    let mut length = None;
    let mut chunked = false;
    let mut keep_alive = version == 1;
    let mut wants_continue = false;
    for header in headers {
        let value = std::str::from_utf8(header.value).unwrap_or("").trim();
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            // `parse` alone would take a sign.
            let digits = value.bytes().all(|b| b.is_ascii_digit());
            let bytes = value.parse::<usize>().ok().filter(|_| digits);
            let bytes = bytes.ok_or(Bad::Request(400, "content-length is not a number\n"))?;
            if length.is_some_and(|other| other != bytes) {
                return Err(Bad::Request(400, "two different content-lengths\n"));
            }
            length = Some(bytes);
        } else if is("transfer-encoding") {
            if chunked || !value.eq_ignore_ascii_case("chunked") {
                return Err(Bad::Request(
                    501,
                    "the only transfer-encoding here is chunked\n",
                ));
            }
            chunked = true;
        } else if is("connection") {
            for option in value.split(',').map(str::trim) {
                if option.eq_ignore_ascii_case("close") {
                    keep_alive = false;
                } else if option.eq_ignore_ascii_case("keep-alive") && version == 0 {
                    keep_alive = true;
                }
            }
        } else if is("expect") {
            wants_continue = value.eq_ignore_ascii_case("100-continue") && version == 1;
        }
    }
    let framing = match (length, chunked) {
        (Some(_), true) => {
            return Err(Bad::Request(
                400,
                "both content-length and transfer-encoding\n",
            ));
        }
        (None, true) => Framing::Chunked,
        (length, false) => Framing::Length(length.unwrap_or(0)),
    };
    if framing == Framing::Length(0) {
        wants_continue = false;
    }
    if matches!(framing, Framing::Length(bytes) if bytes > MAX_BODY_BYTES) {
        return Err(Bad::Request(413, "the body is too large\n"));
    }
    Ok(Head {
        framing,
        keep_alive,
        wants_continue,
        is_head: method == "HEAD",
    })
}

fn read_body(input: &mut impl BufRead, framing: Framing, body: &mut Vec<u8>) -> Result<(), Bad> {
    body.clear();
    match framing {
        Framing::Length(bytes) => append(input, bytes, body),
        Framing::Chunked => loop {
            let size = chunk_size(input)?;
            if size == 0 {
                // Trailers are read and dropped; they end with an empty line, like a head.
                return match line(input, MAX_HEAD_BYTES)?.as_slice() {
                    b"" => Ok(()),
                    _ => read_head(input, &mut Vec::new()).map(|_| ()),
                };
            }
            if size > MAX_BODY_BYTES - body.len() {
                return Err(Bad::Request(413, "the body is too large\n"));
            }
            append(input, size, body)?;
            if !line(input, MAX_CHUNK_LINE_BYTES)?.is_empty() {
                return Err(Bad::Request(400, "a chunk is longer than it says\n"));
            }
        },
    }
}

/// Reads exactly `bytes` bytes. Memory grows with what has come, not with what was announced.
fn append(input: &mut impl BufRead, bytes: usize, body: &mut Vec<u8>) -> Result<(), Bad> {
    let read = input.by_ref().take(bytes as u64).read_to_end(body)?;
    match read == bytes {
        true => Ok(()),
        false => Err(Bad::Io(io::ErrorKind::UnexpectedEof.into())),
    }
}

fn chunk_size(input: &mut impl BufRead) -> Result<usize, Bad> {
    let line = line(input, MAX_CHUNK_LINE_BYTES)?;
    let size = line
        .split(|&b| b == b';')
        .next()
        .unwrap_or(&[])
        .trim_ascii();
    let digits = !size.is_empty() && size.iter().all(u8::is_ascii_hexdigit);
    std::str::from_utf8(size)
        .ok()
        .filter(|_| digits)
        .and_then(|size| usize::from_str_radix(size, 16).ok())
        .ok_or(Bad::Request(400, "a chunk's size is not a number\n"))
}

/// Reads a line and gives it without its end.
fn line(input: &mut impl BufRead, most: usize) -> Result<Vec<u8>, Bad> {
    let mut line = Vec::new();
    input
        .by_ref()
        .take(most as u64)
        .read_until(b'\n', &mut line)?;
    match line.pop() {
        Some(b'\n') => {}
        Some(_) if line.len() + 1 == most => return Err(Bad::Request(400, "a line is too long\n")),
        _ => return Err(Bad::Io(io::ErrorKind::UnexpectedEof.into())),
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(line)
}

/// Path and query of a target, which may come as a whole URL (RFC 9112, section 3.2.2).
fn origin_form(target: &str) -> Result<&str, Bad> {
    if target.starts_with('/') || target == "*" {
        return Ok(target);
    }
    let after = target.split_once("://").map(|(_, after)| after);
    match after {
        Some(after) => Ok(after.find('/').map_or("/", |slash| &after[slash..])),
        None => Err(Bad::Request(400, "the request's target is not a path\n")),
    }
}

/// Replaces `out` with the bytes of `response`.
fn write(out: &mut Vec<u8>, response: &Response, keep_alive: bool, is_head: bool) {
    out.clear();
    let status = response.code();
    out.extend_from_slice(format!("HTTP/1.1 {status} {}\r\n", reason(status)).as_bytes());
    for (name, value) in response.headers() {
        for part in [name, b": ", value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    // These have no body and no length of one (RFC 9110, section 6.4.1).
    let bodiless = matches!(status, 204 | 304);
    if !bodiless {
        out.extend_from_slice(format!("content-length: {}\r\n", response.body().len()).as_bytes());
    }
    if !keep_alive {
        out.extend_from_slice(b"connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
    if !bodiless && !is_head {
        out.extend_from_slice(response.body());
    }
}

/// The reason phrase; clients ignore it, people do not.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        413 => "Content Too Large",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the server answers to these bytes; the handler answers with all it was given.
    fn exchange(input: &[u8]) -> String {
        let mut output = Vec::new();
        let _ = serve(input, &mut output, &|request| {
            let headers: Vec<_> = request.headers().map(|(name, _)| name).collect();
            let text = format!(
                "{} {} {:?} {} {}",
                request.method(),
                request.path(),
                request.query(),
                headers.join(","),
                String::from_utf8_lossy(request.body())
            );
            Response::text(text)
        });
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn requests_follow_each_other_on_one_connection() {
        let out = exchange(
            b"\r\nPOST /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\n\r\n",
        );
        assert!(
            out.contains("POST /a Some(\"b\") host,content-length abc"),
            "{out}"
        );
        assert!(out.ends_with("GET /2 None  "), "{out}");
        assert_eq!(out.matches("HTTP/1.1 200 OK").count(), 2);
    }

    #[test]
    fn a_chunked_body_is_put_together_and_its_trailers_dropped() {
        let out = exchange(
            b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
              3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nTrailer: 1\r\nOther: 2\r\n\r\nGET /next HTTP/1.1\r\n\r\n",
        );
        assert!(out.contains("PUT / None  abcd"), "{out}");
        assert!(out.contains("GET /next"), "{out}");
    }

    #[test]
    fn a_caller_that_expects_a_100_gets_it_before_the_answer() {
        let out =
            exchange(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx");
        assert!(
            out.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"),
            "{out}"
        );
    }

    #[test]
    fn a_head_request_gets_the_length_and_no_body() {
        let out = exchange(b"HEAD / HTTP/1.1\r\n\r\n");
        assert!(
            out.contains("content-length: 13\r\n") && out.ends_with("\r\n\r\n"),
            "{out}"
        );
    }

    #[test]
    fn an_http_1_0_connection_closes_unless_it_asks_otherwise() {
        let two = |head: &str| format!("GET / HTTP/1.0\r\n{head}\r\nGET / HTTP/1.0\r\n{head}\r\n");
        assert_eq!(exchange(two("").as_bytes()).matches("200 OK").count(), 1);
        let kept = exchange(two("Connection: keep-alive\r\n").as_bytes());
        assert_eq!(kept.matches("200 OK").count(), 2);
    }

    #[test]
    fn what_is_ambiguous_or_too_large_is_refused() {
        let cases: [(&[u8], &str); 11] = [
            (b"nonsense\r\n\r\n", "400"),
            (b"GET nowhere HTTP/1.1\r\n\r\n", "400"),
            (b"GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx", "400"),
            (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", "400"),
            (
                b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                "400",
            ),
            (b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", "501"),
            (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "400"),
            (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", "400"),
            (
                b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
                "413",
            ),
            (b"GET / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", "413"),
            (&[b'x'; MAX_HEAD_BYTES + 10], "431"),
        ];
        for (input, status) in cases {
            let out = exchange(input);
            let shown = String::from_utf8_lossy(&input[..input.len().min(80)]).into_owned();
            assert!(
                out.starts_with(&format!("HTTP/1.1 {status} ")),
                "{shown}: {out}"
            );
            assert!(out.contains("connection: close"), "{shown}: {out}");
        }
    }

    #[test]
    fn a_request_cut_short_is_never_given_to_the_handler() {
        let whole = b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
        for cut in 0..whole.len() {
            assert_eq!(exchange(&whole[..cut]), "", "cut at {cut}");
        }
        assert!(exchange(whole).contains("200 OK"));
    }
}
