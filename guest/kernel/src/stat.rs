//! What `fstat`, `statx` and their kin say of files.

use crate::errno::SysResult;
use crate::user;

const S_IFCHR: u32 = 0o020_000;
const S_IFIFO: u32 = 0o010_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFSOCK: u32 = 0o140_000;

/// The kinds of file a path or a descriptor can stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A device such as /dev/null.
    Device,
    /// A pipe, as stdin, stdout and stderr are.
    Pipe,
    /// A socket.
    Socket,
    /// An epoll instance or an eventfd.
    Anonymous,
}

/// What `stat` says of a file.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// Its kind.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// The same for the same file.
    pub number: u64,
    /// Whose it is.
    pub user: u32,
    /// Of which group.
    pub group: u32,
    /// When it was read, in nanoseconds since 1970 UTC.
    pub accessed_ns: u64,
    /// When it was changed.
    pub modified_ns: u64,
    /// Names that lead to it.
    pub names: u32,
}

impl Status {
    /// Of something that has neither size nor time.
    pub fn of(kind: Kind) -> Self {
        let mode = match kind {
            Kind::File => 0o444,
            Kind::Directory => 0o555,
            Kind::Link | Kind::Socket => 0o777,
            Kind::Device => 0o666,
            Kind::Pipe | Kind::Anonymous => 0o600,
        };
        Status {
            kind,
            mode,
            size: 0,
            number: 1,
            user: 0,
            group: 0,
            accessed_ns: 0,
            modified_ns: 0,
            names: 1,
        }
    }

    fn mode(&self) -> u32 {
        let kind = match self.kind {
            Kind::File => S_IFREG,
            Kind::Directory => S_IFDIR,
            Kind::Link => S_IFLNK,
            Kind::Device => S_IFCHR,
            Kind::Pipe => S_IFIFO,
            Kind::Socket => S_IFSOCK,
            Kind::Anonymous => 0,
        };
        kind | self.mode
    }

    /// When it was read and when it was changed, in seconds and nanoseconds.
    fn times(&self) -> [[u64; 2]; 2] {
        [self.accessed_ns, self.modified_ns].map(|ns| [ns / 1_000_000_000, ns % 1_000_000_000])
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
pub fn stat(status: Status, to: u64) -> SysResult {
    let [[accessed, accessed_ns], [s, ns]] = status.times();
    user::write(
        to,
        Stat {
            uid: status.user,
            gid: status.group,
            ino: status.number,
            nlink: u64::from(status.names),
            mode: status.mode(),
            size: status.size as i64,
            blksize: 4096,
            blocks: status.size.div_ceil(512) as i64,
            times: [accessed, accessed_ns, s, ns, s, ns],
            ..Stat::default()
        },
    )?;
    Ok(0)
}

/// Fills in a `struct statx`.
pub fn statx(status: Status, to: u64) -> SysResult {
    const BASIC_STATS: u32 = 0x7ff;
    let [accessed, changed] = status.times();
    let mut rest = [0; 24];
    // atime, btime, ctime, mtime
    for (time, known) in rest
        .chunks_exact_mut(2)
        .zip([accessed, changed, changed, changed])
    {
        time.copy_from_slice(&known);
    }
    let statx = Statx {
        mask: BASIC_STATS,
        blksize: 4096,
        attributes: 0,
        nlink: status.names,
        uid: status.user,
        gid: status.group,
        mode: status.mode() as u16,
        pad: 0,
        ino: status.number,
        size: status.size,
        blocks: status.size.div_ceil(512),
        attributes_mask: 0,
        rest,
    };
    user::write(to, statx)?;
    Ok(0)
}

/// C's `struct statfs`: 120 bytes.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FileSystem {
    kind: u64,
    block_bytes: u64,
    blocks: u64,
    free: u64,
    available: u64,
    files: u64,
    files_free: u64,
    id: u64,
    name_bytes: u64,
    fragment_bytes: u64,
    flags: u64,
    spare: [u64; 4],
}

user::plain!(FileSystem);

/// Fills in a `struct statfs`: one like /tmp's, or like that of a packed image.
pub fn file_system(total_bytes: u64, free_bytes: u64, read_only: bool, to: u64) -> SysResult {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    const SQUASHFS_MAGIC: u64 = 0x7371_7368;
    const ST_RDONLY: u64 = 1;
    const ST_VALID: u64 = 0x20;
    const BLOCK_BYTES: u64 = 4096;
    user::write(
        to,
        FileSystem {
            kind: if read_only {
                SQUASHFS_MAGIC
            } else {
                TMPFS_MAGIC
            },
            flags: ST_VALID | if read_only { ST_RDONLY } else { 0 },
            block_bytes: BLOCK_BYTES,
            blocks: total_bytes.div_ceil(BLOCK_BYTES),
            free: free_bytes / BLOCK_BYTES,
            available: free_bytes / BLOCK_BYTES,
            name_bytes: 255,
            fragment_bytes: BLOCK_BYTES,
            ..FileSystem::default()
        },
    )?;
    Ok(0)
}
