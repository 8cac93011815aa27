//! A request of the host's as text, for the program to read.

use holm_hostcall::message::{BODY_UNKNOWN, Request, Sink};

/// Writes `request` as the text of an HTTP/1.1 request, without the body. `false` if it does not fit.
pub fn write_request(request: &Request<'_>, sink: &mut impl Sink) -> bool {
    let mut fits = sink.put(request.method)
        && sink.put(b" ")
        && sink.put(request.target)
        && sink.put(b" HTTP/1.1\r\n");
    let framing = |name: &[u8]| {
        matches!(
            name,
            b"content-length" | b"transfer-encoding" | b"connection" | b"expect"
        )
    };
    let mut has_length = false;
    for (name, value) in request.headers.iter() {
        has_length |= name == b"content-length";
        if !framing(name) {
            fits = fits && put_name(sink, name) && sink.put(value) && sink.put(b"\r\n");
        }
    }
    if request.body_bytes == BODY_UNKNOWN {
        fits = fits && sink.put(b"Transfer-Encoding: chunked\r\n");
    } else if request.body_bytes > 0 || has_length {
        let mut digits = [0; 20];
        fits = fits
            && sink.put(b"Content-Length: ")
            && sink.put(decimal(request.body_bytes, &mut digits))
            && sink.put(b"\r\n");
    }
    fits && sink.put(b"Connection: close\r\n\r\n")
}

/// Header names as most clients write them (`Content-Type`), because many a small server compares
/// them so.
fn put_name(sink: &mut impl Sink, name: &[u8]) -> bool {
    let mut first = true;
    for byte in name {
        let byte = if first {
            byte.to_ascii_uppercase()
        } else {
            *byte
        };
        if !sink.put(&[byte]) {
            return false;
        }
        first = byte == b'-';
    }
    sink.put(b": ")
}

fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holm_hostcall::message::{SliceSink, encode_request};

    #[test]
    fn a_request_becomes_text_that_servers_expect() {
        let mut message = [0; 512];
        let mut sink = SliceSink::new(&mut message);
        let headers = [
            (&b"host"[..], &b"a"[..]),
            (b"content-type", b"text/plain"),
            (b"connection", b"x"),
        ];
        assert!(encode_request(
            &mut sink,
            b"POST",
            b"/p?q",
            headers.into_iter(),
            3
        ));
        let used = sink.used();
        let mut text = [0; 512];
        let mut sink = SliceSink::new(&mut text);
        assert!(write_request(
            &Request::decode(&message[..used]).unwrap(),
            &mut sink
        ));
        let used = sink.used();
        assert_eq!(
            core::str::from_utf8(&text[..used]).unwrap(),
            "POST /p?q HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\
             Connection: close\r\n\r\n"
        );
    }
}
