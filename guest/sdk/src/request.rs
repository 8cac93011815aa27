//! A request as a handler sees it, in both worlds: a view of one encoded message.

use std::borrow::Cow;

use holm_hostcall::message;

/// A request. Borrows from the buffer that it came in, and copies nothing.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    method: &'a str,
    path: &'a str,
    query: Option<&'a str>,
    headers: message::Headers<'a>,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    /// A view of a decoded message whose body has come whole. `None` if the method or the target is
    /// not text.
    pub(crate) fn new(message: message::Request<'a>) -> Option<Self> {
        let method = std::str::from_utf8(message.method).ok()?;
        let target = std::str::from_utf8(message.target).ok()?;
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        Some(Request {
            method,
            path,
            query,
            headers: message.headers,
            body: message.body,
        })
    }

    /// The method, as sent: `GET`.
    pub fn method(&self) -> &'a str {
        self.method
    }

    /// The path as sent, percent-encoding and all: `/a%20b`.
    pub fn path(&self) -> &'a str {
        self.path
    }

    /// What follows the `?` of the target, as sent.
    pub fn query(&self) -> Option<&'a str> {
        self.query
    }

    /// The first value of `name` in the query, with percent-encoding and `+` undone. `None` if it is
    /// not there or is not UTF-8.
    pub fn query_value(&self, name: &str) -> Option<Cow<'a, str>> {
        self.query?.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(key)? == name).then(|| decoded(value)).flatten()
        })
    }

    /// The headers in order, names in lower case. A name that comes twice is here twice.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + Clone + use<'a> {
        self.headers
            .iter()
            .filter_map(|(name, value)| Some((std::str::from_utf8(name).ok()?, value)))
    }

    /// The first value of the header `name`, in any case. `None` if there is none or it is not
    /// UTF-8.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        let (_, value) = self
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes()))?;
        std::str::from_utf8(value).ok()
    }

    /// The whole body.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }
}

/// Undoes `application/x-www-form-urlencoded`. A `%` without two hexadecimal digits stands for
/// itself, as in the URL standard.
fn decoded(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        let digit = |at: usize| after.get(at).and_then(|&b| char::from(b).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                // Two digits make at most 255.
                bytes.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            (b'+', ..) => bytes.push(b' '),
            _ => bytes.push(first),
        }
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holm_hostcall::message::{Sink as _, SliceSink, encode_request};

    fn with_target(target: &str, check: impl FnOnce(Request<'_>)) {
        let mut buffer = [0; 512];
        let mut sink = SliceSink::new(&mut buffer);
        let headers = [
            (&b"x-a"[..], &b"1"[..]),
            (b"x-a", b"2"),
            (b"x-bytes", b"\xff"),
        ];
        assert!(encode_request(
            &mut sink,
            b"GET",
            target.as_bytes(),
            headers.into_iter(),
            2
        ));
        assert!(sink.put(b"ab"));
        let used = sink.used();
        let message = message::Request::decode(&buffer[..used]).unwrap();
        check(Request::new(message).unwrap());
    }

    #[test]
    fn path_and_query_are_parted_at_the_first_question_mark() {
        with_target("/a/b?c=d?e", |request| {
            assert_eq!((request.path(), request.query()), ("/a/b", Some("c=d?e")));
        });
        with_target("/a", |request| assert_eq!(request.query(), None));
    }

    #[test]
    fn a_query_value_is_decoded() {
        with_target("/?a=1&b%20c=x+y%2Fz&d&bad=%ff&odd=%4", |request| {
            assert_eq!(request.query_value("a").as_deref(), Some("1"));
            assert_eq!(request.query_value("b c").as_deref(), Some("x y/z"));
            assert_eq!(request.query_value("d").as_deref(), Some(""));
            assert_eq!(request.query_value("bad"), None);
            assert_eq!(request.query_value("odd").as_deref(), Some("%4"));
            assert_eq!(request.query_value("none"), None);
        });
    }

    #[test]
    fn headers_are_found_in_any_case_and_the_first_wins() {
        with_target("/", |request| {
            assert_eq!(request.header("X-A"), Some("1"));
            assert_eq!(request.header("x-bytes"), None);
            assert_eq!(request.headers().count(), 3);
            assert_eq!(request.body(), b"ab");
        });
    }
}
