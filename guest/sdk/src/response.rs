//! A response, and what a handler may return instead of one.

use std::borrow::Cow;
use std::fmt::Display;

/// What a handler answers.
///
/// ```
/// use holm_sdk::Response;
/// let response = Response::text("made\n").status(201).header("x-kind", "sample");
/// assert_eq!(response.body(), b"made\n");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    status: u16,
    headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    body: Cow<'static, [u8]>,
}

/// Headers that belong to the connection and are made by whoever writes to it, from the body at
/// hand. A handler's own are left out, so that they cannot contradict it (RFC 9112, section 6).
const FRAMING: [&str; 5] = [
    "connection",
    "content-length",
    "keep-alive",
    "transfer-encoding",
    "upgrade",
];

impl Response {
    /// A response with a status, without headers and with an empty body.
    pub fn new(status: u16) -> Self {
        Response {
            status,
            headers: Vec::new(),
            body: Cow::Borrowed(&[]),
        }
    }

    /// 200 with plain text.
    pub fn text(text: impl Into<Cow<'static, str>>) -> Self {
        let body = match text.into() {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        };
        Response::bytes(body, "text/plain; charset=utf-8")
    }

    /// 200 with JSON that is already encoded.
    pub fn json(json: impl Into<Cow<'static, [u8]>>) -> Self {
        Response::bytes(json, "application/json")
    }

    /// 200 with a body of any type.
    pub fn bytes(
        body: impl Into<Cow<'static, [u8]>>,
        content_type: impl Into<Cow<'static, str>>,
    ) -> Self {
        let headers = vec![(Cow::Borrowed("content-type"), content_type.into())];
        Response {
            status: 200,
            headers,
            body: body.into(),
        }
    }

    /// Changes the status. What is not 200 to 599 is sent as 500, with a line in the log.
    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Adds a header. Those of the connection (`content-length` and its like) are made by the SDK
    /// and ignored here. A header that HTTP does not allow makes the response a 500, with a line in
    /// the log.
    #[must_use]
    pub fn header(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<Cow<'static, str>>,
    ) -> Self {
        let mut name = name.into();
        if name.bytes().any(|b| b.is_ascii_uppercase()) {
            name = Cow::Owned(name.to_ascii_lowercase());
        }
        if !FRAMING.contains(&name.as_ref()) {
            self.headers.push((name, value.into()));
        }
        self
    }

    /// Replaces the body and leaves the headers.
    #[must_use]
    pub fn with_body(mut self, body: impl Into<Cow<'static, [u8]>>) -> Self {
        self.body = body.into();
        self
    }

    /// The status.
    pub fn code(&self) -> u16 {
        self.status
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The headers, names in lower case.
    pub fn headers(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        self.headers
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
    }

    /// Whether it can be sent as HTTP; tells what is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !(200..=599).contains(&self.status) {
            return Err(format!("status {} is not one of 200 to 599", self.status));
        }
        for (name, value) in &self.headers {
            if name.is_empty() || !name.bytes().all(is_token) {
                return Err(format!("`{}` is not a header name", name.escape_debug()));
            }
            if value.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
                return Err(format!(
                    "header `{name}` has control characters in its value"
                ));
            }
            if name.len().max(value.len()) > usize::from(u16::MAX) {
                return Err("a header is longer than 65535 bytes".to_owned());
            }
        }
        Ok(())
    }
}

/// `tchar` of RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What a handler may return.
pub trait IntoResponse {
    /// The response that it stands for.
    fn into_response(self) -> Response;
}

impl IntoResponse for Response {
    fn into_response(self) -> Response {
        self
    }
}

impl IntoResponse for &'static str {
    fn into_response(self) -> Response {
        Response::text(self)
    }
}

impl IntoResponse for String {
    fn into_response(self) -> Response {
        Response::text(self)
    }
}

/// An error answers 500; what it says goes to the log and not to the caller.
impl<R: IntoResponse, E: Display> IntoResponse for Result<R, E> {
    fn into_response(self) -> Response {
        match self {
            Ok(response) => response.into_response(),
            Err(error) => {
                crate::complain(&format!("the handler failed: {error}"));
                Response::new(500)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_http_does_not_allow_is_found() {
        assert!(
            Response::text("ok")
                .header("X-Fine", "a\tb")
                .check()
                .is_ok()
        );
        for bad in [
            Response::new(99),
            Response::new(101),
            Response::new(600),
            Response::new(200).header("", "x"),
            Response::new(200).header("a b", "x"),
            Response::new(200).header("a", "x\r\ninjected: y"),
            Response::new(200).header("a", "x".repeat(70_000)),
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_handler_cannot_contradict_the_framing() {
        let response = Response::text("12345").header("Content-Length", "3");
        assert!(
            response
                .headers()
                .all(|(name, _)| name != b"content-length")
        );
    }

    #[test]
    fn an_error_answers_500_and_keeps_its_text_from_the_caller() {
        let response = Err::<Response, _>("the password is x").into_response();
        assert_eq!((response.code(), response.body()), (500, &b""[..]));
    }
}
