//! Connections that a guest makes to elsewhere. The VMM knows nothing of networks: it copies bytes
//! between the guest and whoever does ([`Outbound`]), and holds the bounds.

use std::fmt::Debug;
use std::net::Ipv6Addr;
use std::os::fd::BorrowedFd;

use holm_hostcall::{Call, CallPage, receive_flags, shut_how};

use crate::hostcall::{NOT_READABLE, NOT_WRITABLE, bad_call};
use crate::layout::View;
use crate::{VmmError, hostcall::Action};

/// Most bytes that go through one call.
const MAX_CALL_BYTES: u64 = 64 << 10;
/// Longest name of a host (RFC 1035, 2.3.4).
const MAX_NAME_BYTES: u64 = 253;
/// Most addresses of one host.
const MAX_ADDRESSES: usize = 16;

const EACCES: i32 = libc::EACCES;

/// What is known of a host's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Not known yet.
    Pending,
    /// These, those of version 4 as version 6 maps them.
    Known(Vec<Ipv6Addr>),
    /// There is no such host, or it may not be reached.
    Unknown,
}

/// What one instance of a function may reach. Dropping it closes everything. Errors are `errno` values.
/// No method blocks.
pub trait Outbound: Debug + Send {
    /// The addresses of a host. One that is pending is asked for again after an event.
    fn resolve(&mut self, name: &str) -> Resolution;
    /// Begins a connection; gives its handle. No handle is given twice, none has its highest bit set, and
    /// its low byte is below [`holm_hostcall::socket_events::MAX_CONNECTIONS`].
    fn connect(&mut self, ip: Ipv6Addr, port: u16) -> Result<u64, i32>;
    /// Sends; gives the bytes taken.
    fn send(&mut self, handle: u64, bytes: &[u8]) -> Result<usize, i32>;
    /// Receives; gives the bytes written, 0 at the end.
    fn receive(&mut self, handle: u64, to: &mut [u8], peek: bool) -> Result<usize, i32>;
    /// Ends the sending half.
    fn shut(&mut self, handle: u64) -> Result<(), i32>;
    /// Ends it.
    fn close(&mut self, handle: u64) -> Result<(), i32>;
    /// The error that a connection has, or 0.
    fn error(&mut self, handle: u64) -> Result<i32, i32>;
    /// Which of `events` ([`holm_hostcall::socket_events`]) are there.
    fn ready(&mut self, events: u64) -> u64;
    /// What becomes readable when one of `events` is there; none if nothing ever will.
    fn wake(&mut self, events: u64) -> Option<BorrowedFd<'_>>;
}

/// Serves one of the calls about connections; gives its result, or the guest's fault.
pub(crate) fn serve(
    call: &CallPage,
    view: View<'_>,
    outbound: Option<&mut dyn Outbound>,
    stats: &mut crate::RunStats,
) -> Result<Result<i64, Action>, VmmError> {
    let [a, b, c, d] = call.args;
    let Some(outbound) = outbound else {
        return Ok(Ok(-i64::from(EACCES)));
    };
    let handle = a;
    let counted = |result: Result<usize, i32>| match result {
        Ok(count) => count as i64,
        Err(errno) => -i64::from(errno),
    };
    let done = |result: Result<(), i32>| counted(result.map(|()| 0));
    Ok(Ok(match Call(call.number) {
        Call::RESOLVE => {
            let mut name = vec![0; b.min(MAX_NAME_BYTES) as usize];
            if !view.read(a, &mut name)? {
                return Ok(Err(bad_call("resolve a name", NOT_READABLE)));
            }
            let resolution = match std::str::from_utf8(&name) {
                Ok(name) if b <= MAX_NAME_BYTES => outbound.resolve(name),
                _ => Resolution::Unknown,
            };
            match resolution {
                Resolution::Pending => -i64::from(libc::EAGAIN),
                Resolution::Unknown => -i64::from(libc::ENOENT),
                Resolution::Known(addresses) => {
                    let most = MAX_ADDRESSES.min((d / 16).min(MAX_ADDRESSES as u64) as usize);
                    let bytes: Vec<u8> = addresses
                        .iter()
                        .take(most)
                        .flat_map(Ipv6Addr::octets)
                        .collect();
                    if !view.write(c, &bytes)? {
                        return Ok(Err(bad_call("resolve a name", NOT_WRITABLE)));
                    }
                    bytes.len() as i64
                }
            }
        }
        Call::CONNECT => {
            let ip = Ipv6Addr::from(u128::from(a) << 64 | u128::from(b));
            match u16::try_from(c) {
                Ok(port) => counted(outbound.connect(ip, port).map(|handle| handle as usize)),
                Err(_) => -i64::from(libc::EINVAL),
            }
        }
        Call::SEND => {
            let mut bytes = vec![0; c.min(MAX_CALL_BYTES) as usize];
            if !view.read(b, &mut bytes)? {
                return Ok(Err(bad_call("send", NOT_READABLE)));
            }
            let sent = outbound.send(handle, &bytes);
            if let Ok(sent) = sent {
                stats.egress_bytes = stats.egress_bytes.saturating_add(sent as u64);
            }
            counted(sent)
        }
        Call::RECEIVE => {
            // Looked at first: what was received could not be given back.
            let room = c.min(MAX_CALL_BYTES);
            if !view.is_writable(b, room)? {
                return Ok(Err(bad_call("receive", NOT_WRITABLE)));
            }
            let peek = call.flags & receive_flags::PEEK != 0;
            let mut bytes = vec![0; room as usize];
            let received = outbound.receive(handle, &mut bytes, peek);
            if let Ok(count) = received {
                view.write(b, &bytes[..count.min(bytes.len())])?;
                if !peek {
                    stats.ingress_bytes = stats.ingress_bytes.saturating_add(count as u64);
                }
            }
            counted(received)
        }
        Call::SHUT => match b {
            shut_how::SENDING => done(outbound.shut(handle)),
            shut_how::ALL => done(outbound.close(handle)),
            _ => -i64::from(libc::EINVAL),
        },
        Call::SOCKET_ERROR => counted(outbound.error(handle).map(|errno| errno.max(0) as usize)),
        _ => return Err(VmmError::Misuse("a hostcall that is not about connections")),
    }))
}
