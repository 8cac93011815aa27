//! Name resolution as programs do it: queries of DNS (RFC 1035) to the name server that
//! /etc/resolv.conf names, which is the library OS itself. It asks the host and writes the answer.

use crate::errno::Errno;
use crate::host;
use holm_hostcall::Call;

/// Where the name server is: 127.0.0.53, port 53.
pub const SERVER: [u8; 4] = [127, 0, 0, 53];
/// Its port.
pub const PORT: u16 = 53;
/// Longest query that is understood.
pub const MAX_QUERY_BYTES: usize = 512;
/// Longest name, without a dot at its end.
const MAX_NAME_BYTES: usize = 253;
/// Most addresses in an answer: what 512 bytes hold.
const MAX_ADDRESSES: usize = 8;

const HEAD_BYTES: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;
const NO_ERROR: u8 = 0;
const FORMAT_ERROR: u8 = 1;
const NO_SUCH_NAME: u8 = 3;
const NOT_IMPLEMENTED: u8 = 4;
/// How long programs may remember an address.
const TTL_SECONDS: u32 = 5;

/// A query with one question.
#[derive(Clone, Copy, Debug)]
struct Question {
    name: [u8; MAX_NAME_BYTES],
    name_bytes: usize,
    kind: u16,
    class: u16,
    /// Where the question ends in the query.
    end: usize,
}

impl Question {
    fn name(&self) -> &[u8] {
        &self.name[..self.name_bytes]
    }
}

/// The question of a query, or the code that says what is wrong with it.
fn question(query: &[u8]) -> Result<Question, u8> {
    let word = |at: usize| -> Option<u16> {
        Some(u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]))
    };
    let flags = word(2).ok_or(FORMAT_ERROR)?;
    if flags & 0x7800 != 0 {
        return Err(NOT_IMPLEMENTED);
    }
    // A question, and no answer to one.
    if word(4) != Some(1) || flags & 0x8000 != 0 {
        return Err(FORMAT_ERROR);
    }
    let (mut name, mut used, mut at) = ([0; MAX_NAME_BYTES], 0, HEAD_BYTES);
    loop {
        let length = usize::from(*query.get(at).ok_or(FORMAT_ERROR)?);
        at += 1;
        if length == 0 {
            break;
        }
        // The two highest bits would be a pointer, which a first name has no use for.
        let label = match length {
            1..=63 => query.get(at..at + length).ok_or(FORMAT_ERROR)?,
            _ => return Err(FORMAT_ERROR),
        };
        let dot = usize::from(used > 0);
        let room = name.get_mut(used..used + dot + length);
        let room = room.ok_or(FORMAT_ERROR)?;
        room[..dot].fill(b'.');
        room[dot..].copy_from_slice(label);
        used += dot + length;
        at += length;
    }
    Ok(Question {
        name,
        name_bytes: used,
        kind: word(at).ok_or(FORMAT_ERROR)?,
        class: word(at + 2).ok_or(FORMAT_ERROR)?,
        end: at + 4,
    })
}

/// Answers a query into `to`, asking `resolve` for the addresses of a name (EAGAIN: not yet; ENOENT: there
/// is no such host); gives the bytes of the answer.
fn answer(
    query: &[u8],
    to: &mut [u8; MAX_QUERY_BYTES],
    resolve: impl FnOnce(&[u8], &mut [[u8; 16]; MAX_ADDRESSES]) -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    let mut addresses = [[0; 16]; MAX_ADDRESSES];
    let asked = question(query);
    let (code, count) = match &asked {
        Err(code) => (*code, 0),
        Ok(asked) if asked.class != CLASS_IN || asked.name_bytes == 0 => (NO_ERROR, 0),
        Ok(asked) => match resolve(asked.name(), &mut addresses) {
            Ok(count) => (NO_ERROR, count.min(MAX_ADDRESSES)),
            Err(Errno::EAGAIN) => return Err(Errno::EAGAIN),
            Err(_) => (NO_SUCH_NAME, 0),
        },
    };
    let (end, kind) = asked.map_or((HEAD_BYTES, 0), |asked| (asked.end, asked.kind));
    to.fill(0);
    // The query's number, and its question.
    let head = query.get(..2).unwrap_or(&[0, 0]);
    to[..2].copy_from_slice(head);
    if let (true, Some(question), Some(room)) = (
        end > HEAD_BYTES,
        query.get(HEAD_BYTES..end),
        to.get_mut(HEAD_BYTES..end),
    ) {
        room.copy_from_slice(question);
        to[5] = 1;
    }
    // An answer; recursion was desired and is there.
    to[2] = 0x81;
    to[3] = 0x80 | code;
    let (mut used, mut answers) = (end, 0u8);
    for address in &addresses[..count] {
        let is_v4 = address.starts_with(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
        let data = match (kind, is_v4) {
            (TYPE_A, true) => &address[12..],
            (TYPE_AAAA, false) => &address[..],
            _ => continue,
        };
        let Some(room) = to.get_mut(used..used + 12 + data.len()) else {
            break;
        };
        // The name is the question's, at byte 12.
        room[..2].copy_from_slice(&[0xC0, HEAD_BYTES as u8]);
        room[2..4].copy_from_slice(&kind.to_be_bytes());
        room[4..6].copy_from_slice(&CLASS_IN.to_be_bytes());
        room[6..10].copy_from_slice(&TTL_SECONDS.to_be_bytes());
        room[10..12].copy_from_slice(&(data.len() as u16).to_be_bytes());
        room[12..].copy_from_slice(data);
        used += room.len();
        answers += 1;
    }
    to[7] = answers;
    Ok(used)
}

/// Answers a query by asking the host; EAGAIN while that does not know yet.
pub fn serve(query: &[u8], to: &mut [u8; MAX_QUERY_BYTES]) -> Result<usize, Errno> {
    answer(query, to, |name, addresses| {
        let args = [
            name.as_ptr() as u64,
            name.len() as u64,
            addresses.as_mut_ptr() as u64,
            size_of_val(addresses) as u64,
        ];
        match host::call(Call::RESOLVE, 0, args) {
            bytes if bytes >= 0 => Ok(bytes as usize / 16),
            errno => Err(Errno(errno.unsigned_abs() as i32)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn query(name: &[&[u8]], kind: u16) -> Vec<u8> {
        let mut bytes = Vec::from([0xAB, 0xCD, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
        for label in name {
            bytes.push(label.len() as u8);
            bytes.extend_from_slice(label);
        }
        bytes.push(0);
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&[0, 1]);
        // The additional record of EDNS, which is not looked at.
        bytes.extend_from_slice(&[0, 0, 41, 4, 0xD0, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    fn v4(ip: [u8; 4]) -> [u8; 16] {
        super::super::address::Ip::v4(ip).0
    }

    fn answered(query: &[u8], known: &[[u8; 16]]) -> Vec<u8> {
        let mut to = [0; MAX_QUERY_BYTES];
        let used = answer(query, &mut to, |name, addresses| {
            assert_eq!(name, b"api.example.com");
            addresses[..known.len()].copy_from_slice(known);
            Ok(known.len())
        })
        .unwrap();
        to[..used].to_vec()
    }

    #[test]
    fn a_name_has_the_addresses_of_the_kind_that_was_asked_for() {
        let known = [v4([192, 0, 2, 1]), [0x20; 16], v4([192, 0, 2, 2])];
        let name: &[&[u8]] = &[b"api", b"example", b"com"];
        let asked = query(name, TYPE_A);
        let reply = answered(&asked, &known);
        assert_eq!(reply[..4], [0xAB, 0xCD, 0x81, 0x80]);
        assert_eq!(reply[4..12], [0, 1, 0, 2, 0, 0, 0, 0]);
        assert_eq!(reply[12..33], asked[12..33]);
        assert_eq!(
            reply[33..49],
            [0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 192, 0, 2, 1]
        );
        assert_eq!(reply[61..], [192, 0, 2, 2]);
        let reply = answered(&query(name, TYPE_AAAA), &known);
        assert_eq!((reply[7], &reply[45..]), (1, &[0x20; 16][..]));
        let mail = answered(&query(name, 15), &known);
        assert_eq!(
            (mail[3], mail[7]),
            (0x80, 0),
            "a kind that is not there: nothing, no error"
        );
    }

    #[test]
    fn a_host_that_is_not_there_is_no_such_name_and_one_under_way_waits() {
        let asked = query(&[b"x", b"y"], TYPE_A);
        let mut to = [0; MAX_QUERY_BYTES];
        answer(&asked, &mut to, |_, _| Err(Errno::ENOENT)).unwrap();
        assert_eq!(to[3] & 15, NO_SUCH_NAME);
        let waits = answer(&asked, &mut to, |_, _| Err(Errno::EAGAIN));
        assert_eq!(waits, Err(Errno::EAGAIN));
    }

    #[test]
    fn whatever_is_sent_is_answered_within_bounds() {
        let whole = query(
            &[&[b'a'; 63], &[b'b'; 63], &[b'c'; 63], &[b'd'; 61]],
            TYPE_A,
        );
        let mut to = [0; MAX_QUERY_BYTES];
        for end in 0..whole.len() {
            let _ = answer(&whole[..end], &mut to, |_, _| Ok(MAX_ADDRESSES)).unwrap();
        }
        // Every byte at every place, one at a time.
        for at in 0..whole.len() {
            for byte in [0, 1, 12, 0x3f, 0x40, 0x80, 0xc0, 0xff] {
                let mut wrong = whole.clone();
                wrong[at] = byte;
                let used = answer(&wrong, &mut to, |_, _| Ok(MAX_ADDRESSES)).unwrap();
                assert!((HEAD_BYTES..=MAX_QUERY_BYTES).contains(&used));
            }
        }
        let label: &[u8] = &[b'a'; 63];
        let long = query(&[label; 5], TYPE_A);
        answer(&long, &mut to, |_, _| panic!("it is too long")).unwrap();
        assert_eq!(to[3] & 15, FORMAT_ERROR);
        let pointer = query(&[&[b'a'; 10]], TYPE_A);
        let mut pointer = pointer.clone();
        pointer[12] = 0xC0;
        answer(&pointer, &mut to, |_, _| panic!("a pointer")).unwrap();
        assert_eq!(to[3] & 15, FORMAT_ERROR);
    }
}
