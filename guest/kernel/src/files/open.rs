//! Opening files, and making what is a descriptor only.

use core::fmt::Write as _;

use super::builtin::{self, Entry};
use super::lookup::{
    AT_FDCWD, Follow, Found, PROGRAM, find, is_directory, is_writable, missing, resolve,
    resolve_text, room_for,
};
use super::paths::Path;
use super::temporary::Kind;
use super::{
    O_ACCESS, O_CLOEXEC, O_NONBLOCK, O_PATH, O_RDWR, O_WRONLY, Object, fifo, seals, watch,
};
use crate::errno::{Errno, SysResult};
use crate::host::Text;
use crate::{log, state, user};

const O_CREAT: u64 = 0o100;
const O_EXCL: u64 = 0o200;
const O_TRUNC: u64 = 0o1000;
/// What every open adds on a 64-bit system.
const O_LARGEFILE: u64 = 0o100_000;
const O_DIRECTORY: u64 = 0o200_000;
const O_NOFOLLOW: u64 = 0o400_000;
const O_TMPFILE: u64 = 0o20_000_000 | O_DIRECTORY;

/// The path of a file that is not there, as the program wrote it.
pub type NotFound = Text<160>;

/// `open` and `openat`
pub fn open(directory: u64, path: u64, flags: u64, mode: u64) -> SysResult {
    let result = open_at(directory, path, flags, mode);
    if result == Err(Errno::ENOENT) && !*state::ready() {
        let path = user::path(path)?;
        let told = state::not_found();
        told.used = 0;
        // Cutting what is too long is right here.
        let _ = told.write_str(core::str::from_utf8(path).unwrap_or_default());
    }
    result
}

/// Of a program that ends before it is ready: what it may lack.
pub fn tell_not_found() {
    let NotFound { bytes, used } = state::not_found();
    match core::str::from_utf8(&bytes[..*used]) {
        Ok(path) if *used > 0 && !*state::ready() => log::note(format_args!(
            "the last file that it looked for and did not find: {path} (an artifact brings files by [files])"
        )),
        _ => {}
    }
}

fn open_at(directory: u64, path: u64, flags: u64, mode: u64) -> SysResult {
    let flags = match flags & O_PATH {
        0 => u64::from(flags as u32) | O_LARGEFILE,
        // Nothing else is heeded.
        _ => flags & (O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC),
    };
    if flags & O_TMPFILE == O_TMPFILE {
        return open_nameless(directory, path, flags, mode);
    }
    if flags & (O_CREAT | O_DIRECTORY) == O_CREAT | O_DIRECTORY {
        return Err(Errno::EINVAL);
    }
    let new = flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL;
    // A directory is not made by this, whatever the name leads to.
    let makes_directory = flags & O_CREAT != 0 && user::path(path)?.ends_with(b"/");
    let follow = match new || makes_directory {
        true => Follow::Never,
        false => Follow::unless(flags & O_NOFOLLOW != 0),
    };
    let path = resolve(directory, path, follow)?;
    if flags & O_CREAT != 0 && path.is_directory && !path.is_dots {
        return Err(match is_directory(path.parent()) {
            true => Errno::EISDIR,
            false => missing(&path),
        });
    }
    let writes = flags & O_ACCESS != 0 || flags & O_TRUNC != 0;
    match find(&path) {
        Ok(_) if new => Err(Errno::EEXIST),
        Ok(Found::Directory) if writes || flags & O_CREAT != 0 => Err(Errno::EISDIR),
        Ok(Found::Directory) => open_directory(&path, flags),
        Ok(Found::Descriptor(number)) => open_again(number, flags),
        Ok(_) if flags & O_DIRECTORY != 0 => Err(Errno::ENOTDIR),
        Ok(Found::Brought(_)) if writes || flags & O_TRUNC != 0 => Err(Errno::EROFS),
        Ok(Found::Brought(number)) => state::files().open(Object::Brought(number), flags),
        Ok(Found::Node(number)) if flags & O_PATH != 0 => open_node(number, flags),
        Ok(Found::Link(to)) => Err(match to {
            PROGRAM if flags & O_NOFOLLOW == 0 => Errno::ENOENT,
            _ => Errno::ELOOP,
        }),
        Ok(Found::Info(_)) if writes => Err(Errno::EACCES),
        Ok(Found::Info(number)) => state::files().open(Object::Info(number as u16), flags),
        Ok(Found::Name(thread)) => state::files().open(Object::Name(thread), flags),
        Ok(Found::Entry(entry)) => match builtin::ENTRIES[entry].1 {
            Entry::Device(object) => state::files().open(object, flags),
            _ if writes => Err(Errno::EACCES),
            _ => state::files().open(Object::Made(entry as u8), flags),
        },
        Ok(Found::Node(number)) => {
            match state::temporary().node(number).kind {
                Kind::Link => return Err(Errno::ELOOP),
                Kind::Socket => return Err(Errno::ENXIO),
                Kind::Fifo => return fifo::open(number, flags),
                Kind::File | Kind::Directory => {}
            }
            open_content(number, flags)
        }
        Err(Errno::ENOENT) if flags & O_CREAT != 0 => {
            room_for(&path)?;
            if path.is_directory {
                return Err(Errno::EISDIR);
            }
            let mode = mode as u32 & 0o7777 & !*state::file_mask();
            let number = state::temporary().make(path.as_bytes(), Kind::File, mode)?;
            watch::tell(path.as_bytes(), watch::CREATE);
            open_node(number, flags)
        }
        Err(error) => Err(error),
    }
}

/// By its entry in /proc: a file or directory anew, as by its path if it has one; of anything else one more name.
fn open_again(descriptor: u64, flags: u64) -> SysResult {
    let object = state::files().get(descriptor)?.object;
    match object {
        object if flags & O_DIRECTORY != 0 && !matches!(object, Object::Directory(_)) => {
            Err(Errno::ENOTDIR)
        }
        Object::File(number) if flags & O_PATH == 0 => open_content(number, flags),
        Object::File(number) => open_node(number, flags),
        Object::Brought(_) if flags & (O_ACCESS | O_TRUNC) != 0 => Err(Errno::EROFS),
        Object::Brought(number) => state::files().open(Object::Brought(number), flags),
        Object::Directory(_) if flags & O_ACCESS != 0 => Err(Errno::EISDIR),
        Object::Directory(number) => open_directory(&state::open_directories().path(number), flags),
        _ => state::files().duplicate(descriptor, 0, flags & O_CLOEXEC != 0),
    }
}

/// A file that the program has written, to be used as `flags` say.
fn open_content(number: u16, flags: u64) -> SysResult {
    if flags & O_TRUNC != 0 {
        state::temporary().node(number).resize(0)?;
        watch::tell_node(number, watch::MODIFY);
    }
    open_node(number, flags)
}

/// `O_TMPFILE`: a file in a directory that can be written to, with no name there, unless it is given one later.
fn open_nameless(directory: u64, path: u64, flags: u64, mode: u64) -> SysResult {
    if flags & O_CREAT != 0 || !matches!(flags & O_ACCESS, O_WRONLY | O_RDWR) {
        return Err(Errno::EINVAL);
    }
    let path = resolve(directory, path, Follow::Always)?;
    match find(&path)? {
        Found::Directory if is_writable(&path) => {}
        Found::Directory => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::ENOTDIR),
    }
    let mode = mode as u32 & 0o7777 & !*state::file_mask();
    let number = state::temporary().make_nameless(Kind::File, mode)?;
    state::temporary().node(number).may_be_named = flags & O_EXCL == 0;
    let descriptor = open_node(number, flags);
    if descriptor.is_err() {
        state::temporary().free_if_unused(number);
    }
    descriptor
}

/// `openat2`, without rules for the way to the file, which older kernels do not know either.
pub fn open_how(directory: u64, path: u64, how: u64, bytes: u64) -> SysResult {
    const KNOWN_BYTES: u64 = 24;
    const MOST_BYTES: u64 = 4096;
    match bytes {
        ..KNOWN_BYTES => return Err(Errno::EINVAL),
        KNOWN_BYTES..=MOST_BYTES => {}
        _ => return Err(Errno::E2BIG),
    }
    let unknown = user::slice(how, bytes)?.iter().skip(KNOWN_BYTES as usize);
    if unknown.into_iter().any(|byte| *byte != 0) {
        return Err(Errno::E2BIG);
    }
    let [flags, mode, rules] = user::read::<[u64; 3]>(how)?;
    match rules {
        0 if flags > u64::from(u32::MAX) || mode > 0o7777 => Err(Errno::EINVAL),
        0 if mode != 0 && flags & O_CREAT == 0 && flags & O_TMPFILE != O_TMPFILE => {
            Err(Errno::EINVAL)
        }
        0 => open(directory, path, flags, mode),
        _ => Err(Errno::ENOSYS),
    }
}

/// The path of the file by which a local socket is to be found: nothing is there yet.
pub fn place_for_socket(text: &[u8]) -> Result<Path, Errno> {
    let path = resolve_text(AT_FDCWD, text, Follow::Never)?;
    match find(&path) {
        Ok(_) => return Err(Errno::EADDRINUSE),
        Err(Errno::ENOENT) => room_for(&path)?,
        Err(error) => return Err(error),
    }
    Ok(path)
}

/// Makes the file by which a local socket is found; one object stands for it then.
pub fn make_socket(path: &Path) -> Result<u16, Errno> {
    let mode = 0o777 & !*state::file_mask();
    let number = state::temporary().make(path.as_bytes(), Kind::Socket, mode)?;
    state::temporary().opened(number);
    Ok(number)
}

/// The file of a local socket.
pub fn find_socket(text: &[u8]) -> Result<u16, Errno> {
    match find(&resolve_text(AT_FDCWD, text, Follow::Always)?)? {
        Found::Node(number) if state::temporary().node(number).kind == Kind::Socket => Ok(number),
        _ => Err(Errno::ECONNREFUSED),
    }
}

fn open_node(number: u16, flags: u64) -> SysResult {
    let descriptor = state::files().open(Object::File(number), flags)?;
    state::temporary().opened(number);
    if flags & O_PATH == 0 {
        watch::tell_node(number, watch::OPEN);
    }
    Ok(descriptor)
}

fn open_directory(path: &Path, flags: u64) -> SysResult {
    let number = state::open_directories().add(path)?;
    let opened = state::files().open(Object::Directory(number), flags);
    if opened.is_err() {
        state::open_directories().remove(number);
    }
    opened
}

/// `memfd_create`: a file like a written one that never had a path.
pub fn open_memory(name: u64, flags: u64) -> SysResult {
    const MAX_NAME_BYTES: u64 = 249;
    // MFD_CLOEXEC, MFD_ALLOW_SEALING, MFD_NOEXEC_SEAL, MFD_EXEC
    const KNOWN: u64 = 0x1 | 0x2 | 0x8 | 0x10;
    if flags as u32 as u64 & !KNOWN != 0
        || user::text(name, MAX_NAME_BYTES + 1)?.len() as u64 > MAX_NAME_BYTES
    {
        return Err(Errno::EINVAL);
    }
    const MFD_CLOEXEC: u64 = 1;
    let (mode, kept) = seals::of_memory(flags)?;
    let number = state::temporary().make_nameless(Kind::File, mode)?;
    state::temporary().node(number).seals = kept;
    let closed_on_exec = if flags & MFD_CLOEXEC != 0 {
        O_CLOEXEC
    } else {
        0
    };
    let descriptor = open_node(number, O_RDWR | O_LARGEFILE | closed_on_exec);
    if descriptor.is_err() {
        state::temporary().free_if_unused(number);
    }
    descriptor
}

/// `epoll_create1`
pub fn open_epoll(flags: u64) -> SysResult {
    if flags as u32 as u64 & !O_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    let epoll = state::epolls().make().ok_or(Errno::EMFILE)?;
    let descriptor = state::files().open(Object::Epoll(epoll), O_RDWR | flags & O_CLOEXEC);
    if descriptor.is_err() {
        state::epolls().close(epoll);
    }
    descriptor
}

/// `eventfd2`
pub fn open_event(initial: u64, flags: u64) -> SysResult {
    const EFD_SEMAPHORE: u64 = 1;
    if flags as u32 as u64 & !(EFD_SEMAPHORE | O_CLOEXEC | O_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let event = Object::Event(u64::from(initial as u32), flags & EFD_SEMAPHORE != 0);
    state::files().open(event, flags & (O_NONBLOCK | O_CLOEXEC) | O_RDWR)
}
