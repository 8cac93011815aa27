//! Heads on their way through: what belongs to one connection stays there (RFC 9110, section 7.6.1),
//! and the node adds what a function and a caller may want to know.

use std::net::IpAddr;

use holm_model::ids::RequestId;
use holm_model::limits::{MAX_HEAD_BYTES, MAX_HEADERS};
use hyper::body::Bytes;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Removes what is about one connection only.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        CONNECTION,
        PROXY_CONNECTION,
        KEEP_ALIVE,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
}

/// Whether the caller wants to go on with WebSocket (RFC 6455, section 4.1). Any other protocol that it would
/// rather speak it can do without.
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    let wanted = headers.get_all(UPGRADE).iter();
    let mut wanted = wanted.filter_map(|value| value.to_str().ok());
    wanted.any(|value| {
        value
            .split(',')
            .any(|one| one.trim().eq_ignore_ascii_case("websocket"))
    })
}

/// Makes a caller's headers those that the function sees.
/// The body's length is that of `body_bytes`, if it is known.
pub(crate) fn inward(parts: &mut Parts, peer: IpAddr, id: RequestId, body_bytes: Option<u64>) {
    let headers = &mut parts.headers;
    strip_hop_by_hop(headers);
    // The node has answered this already.
    headers.remove(EXPECT);
    let had_length = headers.remove(CONTENT_LENGTH).is_some();
    if let Some(body_bytes) = body_bytes.filter(|bytes| had_length || *bytes > 0) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body_bytes));
    }
    // HTTP/2 has the host in the URI. Where it stands there, that is the one the function was found by,
    // whatever else is said (RFC 9112, section 3.2.2).
    if let Some(authority) = parts.uri.authority()
        && let Some(host) = authority.as_str().rsplit('@').next()
        && let Ok(host) = HeaderValue::from_str(host)
    {
        headers.insert(HOST, host);
    }
    let mut chain: Vec<u8> = Vec::new();
    for value in headers.get_all(&FORWARDED_FOR) {
        chain.extend_from_slice(value.as_bytes());
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(peer.to_string().as_bytes());
    if let Ok(chain) = HeaderValue::from_bytes(&chain) {
        headers.insert(FORWARDED_FOR, chain);
    }
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(REQUEST_ID, id);
    }
}

/// Whether the head can be handed to a guest.
pub(crate) fn fits(target: &str, headers: &HeaderMap) -> bool {
    let bytes: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum();
    headers.len() <= MAX_HEADERS && bytes + target.len() + 64 <= MAX_HEAD_BYTES
}

/// Makes a function's whole answer a response. The error says what is wrong with it.
pub(crate) fn outward(
    answer: holm_vmm::Response,
    method: &Method,
) -> Result<Response<Bytes>, String> {
    let (mut response, body) = split(answer)?;
    let length = response.headers_mut().remove(CONTENT_LENGTH);
    let status = response.status();
    let bodyless = *method == Method::HEAD || has_no_body(status);
    // The length of a body that is there is the server's to say; that of one that a HEAD or a 304
    // only speaks of is the function's.
    if let Some(length) = length.filter(|_| bodyless && status != StatusCode::NO_CONTENT)
        && is_length(&length)
    {
        response.headers_mut().insert(CONTENT_LENGTH, length);
    } else if *method == Method::HEAD && !body.is_empty() {
        let length = HeaderValue::from(body.len());
        response.headers_mut().insert(CONTENT_LENGTH, length);
    }
    let body = if bodyless { Bytes::new() } else { body };
    Ok(response.map(|()| body))
}

/// The same of an answer whose body goes on: what the function says of its length holds.
pub(crate) fn begun(answer: holm_vmm::Response) -> Result<(Response<()>, Bytes), String> {
    let (mut response, body) = split(answer)?;
    let length = response.headers_mut().remove(CONTENT_LENGTH);
    if let Some(length) = length.filter(is_length) {
        response.headers_mut().insert(CONTENT_LENGTH, length);
    }
    match has_no_body(response.status()) {
        true => Err(format!("its status {} has no body", response.status())),
        false => Ok((response, body)),
    }
}

fn has_no_body(status: StatusCode) -> bool {
    status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}

fn is_length(value: &HeaderValue) -> bool {
    let digits = !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit);
    digits && value.to_str().is_ok_and(|text| text.parse::<u64>().is_ok())
}

/// Head and body, without what is about one connection only.
fn split(answer: holm_vmm::Response) -> Result<(Response<()>, Bytes), String> {
    let status = StatusCode::from_u16(answer.status)
        .ok()
        .filter(|s| !s.is_informational());
    let status =
        status.ok_or_else(|| format!("its status {} is not a final one", answer.status))?;
    let mut headers = HeaderMap::with_capacity(answer.headers.len() + 4);
    for (name, value) in answer.headers {
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| format!("`{}` is no header name", name.escape_debug()))?;
        let value = HeaderValue::from_maybe_shared(Bytes::from(value))
            .map_err(|_| format!("its header {name} has no valid value"))?;
        headers.append(name, value);
    }
    strip_hop_by_hop(&mut headers);
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok((response, Bytes::from(answer.body)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    fn parts(headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri("http://h.example/x");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> holm_vmm::Response {
        let headers = headers
            .iter()
            .map(|(n, v)| ((*n).into(), v.as_bytes().to_vec()))
            .collect();
        holm_vmm::Response {
            place: holm_vmm::RequestPlace::FIRST,
            continues: false,
            status,
            headers,
            body: body.into(),
        }
    }

    #[test]
    fn what_belongs_to_the_connection_does_not_reach_the_function() {
        let mut parts = parts(&[
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
            ("traceparent", "00-abc"),
        ]);
        inward(
            &mut parts,
            [127, 0, 0, 1].into(),
            RequestId([1; 16]),
            Some(5),
        );
        let mut names: Vec<_> = parts.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let expected = [
            "content-length",
            "host",
            "traceparent",
            "x-forwarded-for",
            "x-request-id",
        ];
        assert_eq!(names, expected);
        assert_eq!(parts.headers["content-length"], "5");
        assert_eq!(parts.headers["host"], "h.example");
        assert_eq!(parts.headers["traceparent"], "00-abc");
    }

    #[test]
    fn the_caller_is_added_to_those_it_was_forwarded_for() {
        let mut parts = parts(&[("x-forwarded-for", "10.0.0.1"), ("x-request-id", "forged")]);
        inward(
            &mut parts,
            [127, 0, 0, 1].into(),
            RequestId([1; 16]),
            Some(0),
        );
        assert_eq!(parts.headers["x-forwarded-for"], "10.0.0.1, 127.0.0.1");
        assert_eq!(parts.headers["x-request-id"], "01".repeat(16));
        assert!(!parts.headers.contains_key("content-length"));
    }

    #[test]
    fn a_head_over_the_bounds_does_not_fit() {
        let mut headers = HeaderMap::new();
        assert!(fits("/", &headers));
        headers.insert(
            "x-a",
            HeaderValue::from_str(&"a".repeat(MAX_HEAD_BYTES)).unwrap(),
        );
        assert!(!fits("/", &headers));
        headers.clear();
        for _ in 0..=MAX_HEADERS {
            headers.append("x-b", HeaderValue::from_static("b"));
        }
        assert!(!fits("/", &headers));
    }

    #[test]
    fn a_functions_framing_is_replaced_by_the_nodes() {
        let answer = answer(
            200,
            &[
                ("content-length", "999"),
                ("transfer-encoding", "chunked"),
                ("connection", "close"),
            ],
            "hello",
        );
        let response = outward(answer, &Method::GET).unwrap();
        assert!(response.headers().is_empty());
        assert_eq!(response.body(), "hello");
    }

    #[test]
    fn an_answer_to_head_has_no_body_but_keeps_its_length() {
        for (headers, body) in [(&[("content-length", "7")][..], ""), (&[][..], "7 bytes")] {
            let response = outward(answer(200, headers, body), &Method::HEAD).unwrap();
            assert_eq!(response.headers()["content-length"], "7");
            assert!(response.body().is_empty());
        }
    }

    #[test]
    fn the_host_that_led_to_the_function_is_the_one_it_sees() {
        let mut parts = parts(&[("host", "other.example")]);
        inward(&mut parts, [127, 0, 0, 1].into(), RequestId([1; 16]), None);
        assert_eq!(parts.headers["host"], "h.example");
        parts.uri = "http://me@h.example:80/x".parse().unwrap();
        inward(&mut parts, [127, 0, 0, 1].into(), RequestId([1; 16]), None);
        assert_eq!(parts.headers["host"], "h.example:80");
    }

    #[test]
    fn only_websocket_is_an_upgrade_that_cannot_be_left_out() {
        for (upgrade, is) in [
            ("websocket", true),
            ("h2c, WebSocket", true),
            ("h2c", false),
            ("websockets", false),
        ] {
            assert_eq!(
                is_websocket(&parts(&[("upgrade", upgrade)]).headers),
                is,
                "{upgrade}"
            );
        }
        assert!(!is_websocket(&HeaderMap::new()));
    }

    #[test]
    fn a_length_that_is_none_is_not_passed_on() {
        for length in ["+7", "-7", "", "7, 7", "0x7", "99999999999999999999"] {
            let mut answer = answer(200, &[("content-length", length)], "");
            let response = outward(answer.clone(), &Method::HEAD).unwrap();
            assert!(response.headers().is_empty(), "{length}");
            answer.body = b"x".to_vec();
            assert!(begun(answer).unwrap().0.headers().is_empty(), "{length}");
        }
    }

    #[test]
    fn an_answer_without_content_has_no_body() {
        let response =
            outward(answer(204, &[("content-length", "3")], "abc"), &Method::GET).unwrap();
        assert!(response.body().is_empty());
        assert!(response.headers().is_empty());
    }

    #[test]
    fn an_answer_that_is_not_http_is_refused_with_its_fault() {
        let bad = [
            (answer(99, &[], ""), "99"),
            (answer(101, &[], ""), "101"),
            (answer(200, &[("a b", "")], ""), "a b"),
            (answer(200, &[("a", "x\r\ny: z")], ""), "header a"),
        ];
        for (answer, fault) in bad {
            let error = outward(answer, &Method::GET).unwrap_err();
            assert!(error.contains(fault), "{error}");
        }
    }
}
