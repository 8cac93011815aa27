//! What is kept of a file beside its content: permissions, owner and times. Nothing of it is ever heeded.

use super::directory::path_of;
use super::lookup::{AT_FDCWD, Follow, Found, find, resolve};
use super::paths::Path;
use super::status::{AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW};
use super::{Object, seals, temporary, watch};
use crate::errno::{Errno, SysResult};
use crate::{state, time, user};

const SECOND: u64 = 1_000_000_000;
/// What leaves an owner as it is.
const UNCHANGED: u32 = u32::MAX;

/// The node at a path; `None` for a directory of which nothing is kept.
fn node_at(path: &Path) -> Result<Option<u16>, Errno> {
    // Libraries change what a descriptor stands for by its entry in /proc.
    if let Found::Descriptor(descriptor) = find(path)? {
        return node_of(descriptor);
    }
    let number = state::temporary().find(path.as_bytes());
    match number.is_some() || temporary::is_root(path.as_bytes()) {
        true => Ok(number),
        false => Err(Errno::EROFS),
    }
}

/// The node that a descriptor stands for; `None` for what is no file.
fn node_of(descriptor: u64) -> Result<Option<u16>, Errno> {
    match state::files().get(descriptor)?.object {
        Object::Directory(number) => node_at(&path_of(number)),
        Object::Brought(_) | Object::Made(_) | Object::Info(_) | Object::Name(_) => {
            Err(Errno::EROFS)
        }
        object => Ok(object.node()),
    }
}

/// The node that a call with flags is about.
fn node(directory: u64, path: u64, flags: u64) -> Result<Option<u16>, Errno> {
    if flags as u32 as u64 & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & AT_EMPTY_PATH != 0 && user::path(path)?.is_empty() {
        return match directory as u32 == AT_FDCWD as u32 {
            true => node_at(state::working_directory()),
            false => node_of(directory),
        };
    }
    let follow = Follow::unless(flags & AT_SYMLINK_NOFOLLOW != 0);
    node_at(&resolve(directory, path, follow)?)
}

/// The same for a descriptor that is no mere name.
fn node_of_open(descriptor: u64) -> Result<Option<u16>, Errno> {
    match state::files().get(descriptor)?.is_name() {
        true => Err(Errno::EBADF),
        false => node_of(descriptor),
    }
}

fn set_mode(node: Option<u16>, mode: u64) -> Result<(), Errno> {
    let Some(number) = node else {
        return Ok(());
    };
    let node = state::temporary().node(number);
    let mode = mode as u32 & 0o7777;
    if node.seals & seals::EXEC != 0 && (node.mode ^ mode) & seals::EXECUTABLE != 0 {
        return Err(Errno::EPERM);
    }
    node.mode = mode;
    watch::tell_attributes(number);
    Ok(())
}

/// `chmod`, `fchmodat` and `fchmodat2`
pub fn change_mode(directory: u64, path: u64, mode: u64, flags: u64) -> SysResult {
    let node = node(directory, path, flags)?;
    let is_link = |number: u16| state::temporary().node(number).kind == temporary::Kind::Link;
    if node.is_some_and(is_link) {
        return Err(Errno::EOPNOTSUPP);
    }
    set_mode(node, mode)?;
    Ok(0)
}

/// `fchmod`
pub fn change_mode_of(descriptor: u64, mode: u64) -> SysResult {
    set_mode(node_of_open(descriptor)?, mode)?;
    Ok(0)
}

/// Another owner, on which a program loses the right to run as the one before.
fn set_owner(node: Option<u16>, user: u64, group: u64) {
    const SET_USER: u32 = 0o4000;
    const SET_GROUP: u32 = 0o2000;
    const GROUP_EXECUTES: u32 = 0o010;
    let Some(number) = node else {
        return;
    };
    let node = state::temporary().node(number);
    for (kept, new) in [(&mut node.user, user), (&mut node.group, group)] {
        if new as u32 != UNCHANGED {
            *kept = new as u32;
        }
    }
    if node.kind != temporary::Kind::Directory {
        node.mode &= !SET_USER;
        if node.mode & GROUP_EXECUTES != 0 {
            node.mode &= !SET_GROUP;
        }
    }
    watch::tell_attributes(number);
}

/// `chown`, `lchown` and `fchownat`
pub fn change_owner(directory: u64, path: u64, user: u64, group: u64, flags: u64) -> SysResult {
    set_owner(node(directory, path, flags)?, user, group);
    Ok(0)
}

/// `fchown`
pub fn change_owner_of(descriptor: u64, user: u64, group: u64) -> SysResult {
    set_owner(node_of_open(descriptor)?, user, group);
    Ok(0)
}

/// Two times as `utimensat` has them: when a file was read, and when it was changed.
struct Times([[u64; 2]; 2]);

const NOW: u64 = 0x3fff_ffff;
const OMIT: u64 = 0x3fff_fffe;

impl Times {
    const NOW: Times = Times([[0, NOW]; 2]);

    fn read(at: u64) -> Result<Self, Errno> {
        match at {
            0 => Ok(Times::NOW),
            at => Ok(Times([user::read(at)?, user::read(at.wrapping_add(16))?])),
        }
    }

    /// The same of microseconds.
    fn read_us(at: u64) -> Result<Self, Errno> {
        let mut times = Times::read(at)?;
        if at != 0 {
            for [_, part] in &mut times.0 {
                if *part >= 1_000_000 {
                    return Err(Errno::EINVAL);
                }
                *part *= 1000;
            }
        }
        Ok(times)
    }

    fn is_wrong(&self) -> bool {
        let wrong = |ns: u64| ns >= SECOND && !matches!(ns, NOW | OMIT);
        self.0.iter().any(|[_, ns]| wrong(*ns))
    }

    fn is_nothing(&self) -> bool {
        self.0.iter().all(|[_, ns]| *ns == OMIT)
    }

    fn set(&self, node: Option<u16>) {
        let Some(number) = node else {
            return;
        };
        let now = time::realtime_ns();
        let node = state::temporary().node(number);
        for (kept, [s, ns]) in [&mut node.accessed_ns, &mut node.modified_ns]
            .into_iter()
            .zip(self.0)
        {
            *kept = match ns {
                NOW => now,
                OMIT => continue,
                // Nothing here is older than 1970.
                _ if (s as i64) < 0 => 0,
                ns => s.saturating_mul(SECOND).saturating_add(ns),
            };
        }
        watch::tell_attributes(number);
    }
}

/// `utimensat`. Without a path it is about the descriptor.
pub fn set_times(directory: u64, path: u64, times: u64, flags: u64) -> SysResult {
    let times = Times::read(times)?;
    if times.is_nothing() {
        return Ok(0);
    }
    let node = match path {
        0 if flags as u32 != 0 => return Err(Errno::EINVAL),
        0 if directory as u32 == AT_FDCWD as u32 => return Err(Errno::EFAULT),
        0 => node_of_open(directory)?,
        path => node(directory, path, flags)?,
    };
    // Told only when the file is known to be there.
    if times.is_wrong() {
        return Err(Errno::EINVAL);
    }
    times.set(node);
    Ok(0)
}

/// `utimes` and `futimesat`: in microseconds.
pub fn set_times_us(directory: u64, path: u64, times: u64) -> SysResult {
    let times = Times::read_us(times)?;
    let node = match path {
        0 if directory as u32 != AT_FDCWD as u32 => node_of_open(directory)?,
        path => node(directory, path, 0)?,
    };
    times.set(node);
    Ok(0)
}

/// `utime`: in seconds.
pub fn set_times_s(path: u64, times: u64) -> SysResult {
    let times = match times {
        0 => Times::NOW,
        at => {
            let [accessed, modified] = user::read::<[u64; 2]>(at)?;
            Times([[accessed, 0], [modified, 0]])
        }
    };
    times.set(node(AT_FDCWD, path, 0)?);
    Ok(0)
}
