//! What sockets are ready for, as poll says it.

use super::address::AF_UNIX;
use super::table::{Connecting, SOCK_SEQPACKET, SOCK_STREAM, Socket, State};
use super::{connect, datagrams, outbound};
use crate::errno::{Errno, SysResult};
use crate::poll::{POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDHUP, POLLWRBAND};
use crate::{pipes, state};

/// Bytes that a read of a socket would find.
pub fn readable_bytes(number: u16) -> SysResult {
    let socket = *state::sockets().get(number);
    Ok(match socket.state {
        State::Listening { .. } => return Err(Errno::EINVAL),
        State::Request(id) => state::server().tell_readable_bytes(id),
        State::Stream { from, .. } if socket.kind == SOCK_SEQPACKET => datagrams::all_bytes(from),
        State::Stream { from, .. } => pipes::queue(from).map_or(0, |queue| queue.used()),
        // The first datagram: glibc makes room for so much.
        State::Datagrams(mailbox) => datagrams::first_bytes(mailbox.inbox)
            .or_else(|| outbound::answer(mailbox.queries, &mut [], true).ok())
            .unwrap_or(0),
        State::Outbound(_) => outbound::readable_bytes(number),
        _ => 0,
    })
}

/// What a socket is ready for.
pub fn ready(number: u16) -> u32 {
    let socket = *state::sockets().get(number);
    let found = of(number, socket);
    // TCP alone does not tell it.
    let has_bands = !(socket.kind == SOCK_STREAM && socket.domain != AF_UNIX);
    match has_bands && found & POLLOUT != 0 {
        true => found | POLLWRBAND,
        false => found,
    }
}

fn of(number: u16, socket: Socket) -> u32 {
    let when = |holds: bool, events: u32| if holds { events } else { 0 };
    let failed = when(socket.error != 0, POLLERR);
    match socket.state {
        State::Listening { .. } => {
            // A local one that was shut tells it; it takes nobody any more.
            let shut = socket.domain == AF_UNIX && socket.read_shut;
            when(connect::is_awaited(number) || shut, POLLIN)
                | when(shut, POLLRDHUP)
                | when(shut && socket.write_shut, POLLHUP)
        }
        State::Request(id) => {
            let server = state::server();
            if server.is_expected(id) {
                return POLLOUT;
            }
            let ended = socket.read_shut || server.is_ended(id);
            when(ended || server.is_readable(id), POLLIN)
                | POLLOUT
                | when(ended, POLLRDHUP)
                | when(ended && socket.write_shut, POLLHUP)
        }
        State::Stream { from, to } => {
            let (input, output) = (pipes::queue(from), pipes::queue(to));
            let (readable, mut ended) =
                input.map_or((false, true), |queue| (queue.used() > 0, queue.is_ended()));
            ended |= socket.read_shut || socket.reset;
            let is_local = socket.domain == AF_UNIX;
            let (writable, refused) = output.map_or((true, true), |queue| {
                (
                    queue.is_writable(),
                    socket.reset || is_local && queue.is_refused(),
                )
            });
            when(readable || ended, POLLIN)
                | when(writable, POLLOUT)
                | when(ended, POLLRDHUP)
                | when(ended && refused, POLLHUP)
                | failed
        }
        State::Outbound(outbound) => {
            let is = |half: u8| outbound.ready & half != 0;
            let ended = is(outbound::ENDED) || socket.read_shut;
            when(is(outbound::READ) || ended, POLLIN)
                | when(is(outbound::WRITE), POLLOUT)
                | when(ended, POLLRDHUP)
                | when(ended && socket.write_shut, POLLHUP)
                | when(is(outbound::FAILED), POLLERR)
        }
        State::Datagrams(mailbox) => {
            let has_come = datagrams::first_bytes(mailbox.inbox).is_some()
                || outbound::answer(mailbox.queries, &mut [], true).is_ok();
            when(has_come || socket.read_shut, POLLIN)
                | when(datagrams::is_writable(&socket), POLLOUT)
                | when(socket.read_shut, POLLRDHUP)
                | when(socket.read_shut && socket.write_shut, POLLHUP)
                | failed
        }
        State::Fresh if socket.connecting != Connecting::No && socket.error != 0 => {
            POLLIN | POLLOUT | POLLERR | POLLHUP | POLLRDHUP
        }
        State::Fresh => POLLOUT | POLLHUP | failed | when(socket.read_shut, POLLIN | POLLRDHUP),
        State::Free => 0,
    }
}
