//! Requests and responses as they cross the boundary: flat bytes, no pointers.
//!
//! ```text
//! request  = head_bytes u32 | header_count u16 | method_bytes u16 | target_bytes u32
//!          | reserved u32 | body_bytes u64 | method | target | headers | body…
//! response = head_bytes u32 | header_count u16 | status u16 | headers
//! headers  = { name_bytes u16 | value_bytes u16 | name | value }*
//! ```
//! All integers are little-endian. `head_bytes` counts everything before the body. Header names
//! are lower case. Both sides decode into views that cannot be wrong: a decoder checks every length
//! against the bytes at hand and gives [`Malformed`] otherwise.

/// Bytes of a request before the method.
pub const REQUEST_FIXED_BYTES: usize = 24;
/// Bytes of a response before the headers.
pub const RESPONSE_FIXED_BYTES: usize = 8;

/// `body_bytes` of a request whose body's length is not known before its end.
pub const BODY_UNKNOWN: u64 = u64::MAX;

/// The bytes are not what this module describes; the text says what is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.0)
    }
}

/// A place to write an encoded message; says whether the bytes fit.
pub trait Sink {
    /// Appends `bytes`, or does nothing and returns `false` when there is no room.
    fn put(&mut self, bytes: &[u8]) -> bool;
}

/// A [`Sink`] over a fixed buffer.
#[derive(Debug)]
pub struct SliceSink<'a> {
    buffer: &'a mut [u8],
    used: usize,
}

impl<'a> SliceSink<'a> {
    /// An empty sink over `buffer`.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        SliceSink { buffer, used: 0 }
    }

    /// Bytes written so far.
    pub fn used(&self) -> usize {
        self.used
    }
}

impl Sink for SliceSink<'_> {
    fn put(&mut self, bytes: &[u8]) -> bool {
        let Some(end) = self.used.checked_add(bytes.len()) else {
            return false;
        };
        let Some(room) = self.buffer.get_mut(self.used..end) else {
            return false;
        };
        room.copy_from_slice(bytes);
        self.used = end;
        true
    }
}

/// One header: name in lower case, and value.
pub type Header<'a> = (&'a [u8], &'a [u8]);

/// Bytes that `headers` take when encoded, or `None` if one of them is too long to encode.
pub fn headers_bytes<'a>(headers: impl Iterator<Item = Header<'a>>) -> Option<usize> {
    let mut total = 0usize;
    for (name, value) in headers {
        u16::try_from(name.len()).ok()?;
        u16::try_from(value.len()).ok()?;
        total = total.checked_add(4 + name.len() + value.len())?;
    }
    Some(total)
}

fn put_headers<'a>(sink: &mut impl Sink, headers: impl Iterator<Item = Header<'a>>) -> bool {
    for (name, value) in headers {
        let lengths = (u16::try_from(name.len()), u16::try_from(value.len()));
        let (Ok(name_bytes), Ok(value_bytes)) = lengths else {
            return false;
        };
        let fits = sink.put(&name_bytes.to_le_bytes())
            && sink.put(&value_bytes.to_le_bytes())
            && sink.put(name)
            && sink.put(value);
        if !fits {
            return false;
        }
    }
    true
}

/// Writes the head of a request; the body is to follow it. `false` when it does not fit the sink or
/// a part is too long to encode, with the sink then holding a useless part of it.
pub fn encode_request<'a>(
    sink: &mut impl Sink,
    method: &[u8],
    target: &[u8],
    headers: impl Iterator<Item = Header<'a>> + Clone,
    body_bytes: u64,
) -> bool {
    let Some(encoded_headers) = headers_bytes(headers.clone()) else {
        return false;
    };
    let head = REQUEST_FIXED_BYTES + method.len() + target.len() + encoded_headers;
    let (Ok(head), Ok(count), Ok(method_bytes), Ok(target_bytes)) = (
        u32::try_from(head),
        u16::try_from(headers.clone().count()),
        u16::try_from(method.len()),
        u32::try_from(target.len()),
    ) else {
        return false;
    };
    sink.put(&head.to_le_bytes())
        && sink.put(&count.to_le_bytes())
        && sink.put(&method_bytes.to_le_bytes())
        && sink.put(&target_bytes.to_le_bytes())
        && sink.put(&0u32.to_le_bytes())
        && sink.put(&body_bytes.to_le_bytes())
        && sink.put(method)
        && sink.put(target)
        && put_headers(sink, headers)
}

/// Writes the head of a response. `false` as in [`encode_request`].
pub fn encode_response<'a>(
    sink: &mut impl Sink,
    status: u16,
    headers: impl Iterator<Item = Header<'a>> + Clone,
) -> bool {
    let Some(encoded_headers) = headers_bytes(headers.clone()) else {
        return false;
    };
    let head = RESPONSE_FIXED_BYTES + encoded_headers;
    let (Ok(head), Ok(count)) = (u32::try_from(head), u16::try_from(headers.clone().count()))
    else {
        return false;
    };
    sink.put(&head.to_le_bytes())
        && sink.put(&count.to_le_bytes())
        && sink.put(&status.to_le_bytes())
        && put_headers(sink, headers)
}

/// A decoded request, borrowing from the bytes it came in.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method, as sent: `GET`.
    pub method: &'a [u8],
    /// Path and query: `/a?b=c`.
    pub target: &'a [u8],
    /// The headers.
    pub headers: Headers<'a>,
    /// Bytes of the whole body, or [`BODY_UNKNOWN`].
    pub body_bytes: u64,
    /// As much of the body as came with the head.
    pub body: &'a [u8],
}

impl<'a> Request<'a> {
    /// Decodes what [`encode_request`] wrote, with the body's start after it.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        let head_bytes = reader.u32()? as usize;
        let count = reader.u16()?;
        let method_bytes = reader.u16()?;
        let target_bytes = reader.u32()?;
        reader.u32()?;
        let body_bytes = reader.u64()?;
        let method = reader.take(usize::from(method_bytes))?;
        let target = reader.take(target_bytes as usize)?;
        let before = REQUEST_FIXED_BYTES + method.len() + target.len();
        let rest = head_bytes
            .checked_sub(before)
            .ok_or(Malformed("head_bytes is too small"))?;
        let headers = Headers::decode(reader.take(rest)?, count)?;
        let body = reader.0;
        if body.len() as u64 > body_bytes {
            return Err(Malformed("more body than body_bytes says"));
        }
        Ok(Request {
            method,
            target,
            headers,
            body_bytes,
            body,
        })
    }
}

/// A decoded response head.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// Status code, 100 to 999 and not yet checked further.
    pub status: u16,
    /// The headers.
    pub headers: Headers<'a>,
}

impl<'a> Response<'a> {
    /// Decodes what [`encode_response`] wrote, exactly.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        let head_bytes = reader.u32()? as usize;
        let count = reader.u16()?;
        let status = reader.u16()?;
        if head_bytes != bytes.len() {
            return Err(Malformed("head_bytes differs from the bytes given"));
        }
        if !(100..=999).contains(&status) {
            return Err(Malformed("the status is not a number of three digits"));
        }
        Ok(Response {
            status,
            headers: Headers::decode(reader.0, count)?,
        })
    }
}

/// Headers whose encoding has been checked.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'a> {
    bytes: &'a [u8],
    count: u16,
}

impl<'a> Headers<'a> {
    fn decode(bytes: &'a [u8], count: u16) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        for _ in 0..count {
            let (name, value) = (reader.u16()?, reader.u16()?);
            if name == 0 {
                return Err(Malformed("a header without a name"));
            }
            reader.take(usize::from(name))?;
            reader.take(usize::from(value))?;
        }
        if !reader.0.is_empty() {
            return Err(Malformed("bytes after the last header"));
        }
        Ok(Headers { bytes, count })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The headers in order.
    pub fn iter(&self) -> impl Iterator<Item = Header<'a>> + Clone + use<'a> {
        let mut reader = Reader(self.bytes);
        // Decoding checked every length, so the iterator ends only at the end.
        core::iter::from_fn(move || {
            let (name, value) = (reader.u16().ok()?, reader.u16().ok()?);
            Some((
                reader.take(usize::from(name)).ok()?,
                reader.take(usize::from(value)).ok()?,
            ))
        })
    }

    /// The value of the first header called `name` (lower case).
    pub fn get(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.iter()
            .find(|(n, _)| *n == name)
            .map(|(_, value)| value)
    }
}

#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self
            .0
            .split_at_checked(bytes)
            .ok_or(Malformed("cut short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(Malformed("cut short"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample<'a>() -> [Header<'a>; 2] {
        [(b"host", b"example.org"), (b"x-empty", b"")]
    }

    #[test]
    fn a_request_comes_back_as_it_was_sent() {
        let mut buffer = [0u8; 256];
        let mut sink = SliceSink::new(&mut buffer);
        assert!(encode_request(
            &mut sink,
            b"POST",
            b"/a?b=c",
            sample().into_iter(),
            10
        ));
        assert!(sink.put(b"12345"));
        let used = sink.used();
        let request = Request::decode(&buffer[..used]).unwrap();
        assert_eq!(request.method, b"POST");
        assert_eq!(request.target, b"/a?b=c");
        assert_eq!(request.headers.len(), 2);
        assert_eq!(request.headers.get(b"host"), Some(&b"example.org"[..]));
        assert_eq!(request.headers.get(b"x-empty"), Some(&b""[..]));
        assert_eq!((request.body_bytes, request.body), (10, &b"12345"[..]));
    }

    #[test]
    fn every_cut_of_a_response_is_malformed_and_none_panics() {
        let mut buffer = [0u8; 256];
        let mut sink = SliceSink::new(&mut buffer);
        assert!(encode_response(&mut sink, 200, sample().into_iter()));
        let used = sink.used();
        assert_eq!(Response::decode(&buffer[..used]).unwrap().status, 200);
        for cut in 0..used {
            assert!(Response::decode(&buffer[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut small = [0u8; 16];
        assert!(!encode_response(
            &mut SliceSink::new(&mut small),
            200,
            sample().into_iter()
        ));
        let long = [b'x'; 70_000];
        let mut buffer = [0u8; 256];
        let headers = [(&b"a"[..], &long[..])];
        assert!(!encode_response(
            &mut SliceSink::new(&mut buffer),
            200,
            headers.into_iter()
        ));
    }
}
