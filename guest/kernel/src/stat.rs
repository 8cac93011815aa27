//! What `fstat`, `statx` and their kin say of the few files there are.

use crate::errno::SysResult;
use crate::user;

const S_IFCHR: u32 = 0o020_000;
const S_IFIFO: u32 = 0o010_000;
const S_IFSOCK: u32 = 0o140_000;

/// The kinds of file a descriptor can stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A device such as /dev/null.
    Device,
    /// A pipe, as stdin, stdout and stderr are.
    Pipe,
    /// A socket.
    Socket,
    /// An epoll instance or an eventfd.
    Anonymous,
}

fn mode(kind: Kind) -> u32 {
    match kind {
        Kind::Device => S_IFCHR | 0o666,
        Kind::Pipe => S_IFIFO | 0o600,
        Kind::Socket => S_IFSOCK | 0o777,
        Kind::Anonymous => 0o600,
    }
}

/// C's `struct stat` of x86-64: 144 bytes.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Stat {
    dev: u64,
    ino: u64,
    nlink: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    pad: u32,
    rdev: u64,
    size: i64,
    blksize: i64,
    blocks: i64,
    times: [u64; 6],
    unused: [i64; 3],
}

/// C's `struct statx`: 256 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
struct Statx {
    mask: u32,
    blksize: u32,
    attributes: u64,
    nlink: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    pad: u16,
    ino: u64,
    size: u64,
    blocks: u64,
    attributes_mask: u64,
    rest: [u64; 24],
}

user::plain!(Stat, Statx);

const _: () = assert!(size_of::<Stat>() == 144 && size_of::<Statx>() == 256);

/// Fills in a `struct stat`.
pub fn stat(kind: Kind, to: u64) -> SysResult {
    user::write(
        to,
        Stat {
            nlink: 1,
            mode: mode(kind),
            blksize: 4096,
            ..Stat::default()
        },
    )?;
    Ok(0)
}

/// Fills in a `struct statx`.
pub fn statx(kind: Kind, to: u64) -> SysResult {
    const BASIC_STATS: u32 = 0x7ff;
    let statx = Statx {
        mask: BASIC_STATS,
        blksize: 4096,
        attributes: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        mode: mode(kind) as u16,
        pad: 0,
        ino: 0,
        size: 0,
        blocks: 0,
        attributes_mask: 0,
        rest: [0; 24],
    };
    user::write(to, statx)?;
    Ok(0)
}
