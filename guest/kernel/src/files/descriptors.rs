//! The calls about a descriptor itself, whatever it stands for: close, dup, fcntl, ioctl.

use super::{
    MAX_DESCRIPTORS, O_ACCESS, O_APPEND, O_CLOEXEC, O_NONBLOCK, O_PATH, O_RDWR, O_WRONLY, Object,
    fifo,
    locks::{self, Operation},
    seals, watch,
};
use crate::errno::{Errno, SysResult};
use crate::sockets::{interfaces, rights};
use crate::{pipes, sockets, state, timers, user};

/// `close`
pub fn close(descriptor: u64) -> SysResult {
    let index = state::files().free(descriptor)?;
    release(index);
    Ok(0)
}

/// Something less stands for an object, and what travelled to a socket that is gone with it goes too.
pub fn release(index: u16) {
    let_go(index);
    rights::free_lost();
}

/// Something less stands for an object; with the last it is gone.
pub fn let_go(index: u16) {
    let flags = u64::from(state::files().object(index).flags);
    let Some(object) = state::files().let_go(index) else {
        return;
    };
    state::epolls().forget(index);
    locks::forget(index);
    match object {
        Object::Socket(number) => sockets::close(number),
        Object::Timer(number) => timers::close(number),
        Object::Stream { from, to } => fifo::close(from, to),
        Object::Epoll(number) => state::epolls().close(number),
        Object::Watcher(number) => watch::close(number),
        Object::File(number) => {
            let was_written = matches!(flags & O_ACCESS, O_WRONLY | O_RDWR);
            if flags & O_PATH == 0 {
                watch::tell_closed(number, was_written);
            }
            state::temporary().closed(number);
        }
        Object::Directory(number) => state::open_directories().remove(number),
        _ => {}
    }
}

/// `close_range`
pub fn close_range(first: u64, last: u64, flags: u64) -> SysResult {
    const UNSHARE: u32 = 2;
    const ON_EXEC: u32 = 4;
    let (first, last) = (first as u32 as usize, last as u32 as usize);
    if flags as u32 & !(UNSHARE | ON_EXEC) != 0 || first > last {
        return Err(Errno::EINVAL);
    }
    for descriptor in first..=last.min(MAX_DESCRIPTORS - 1) {
        match flags as u32 & ON_EXEC {
            // One that is not open is as good as closed.
            0 => drop(close(descriptor as u64)),
            _ => state::files().set_closed_on_exec(descriptor, true),
        }
    }
    Ok(0)
}

/// `dup`
pub fn duplicate(descriptor: u64) -> SysResult {
    state::files().duplicate(descriptor, 0, false)
}

/// `dup2`
pub fn duplicate_to(descriptor: u64, to: u64) -> SysResult {
    match descriptor as u32 == to as u32 {
        true => state::files().index(descriptor).map(|_| to as u32 as u64),
        false => duplicate_to_other(descriptor, to, 0),
    }
}

/// `dup3`: to another one, with flags that are known.
pub fn duplicate_to_other(descriptor: u64, to: u64, flags: u64) -> SysResult {
    if flags as u32 as u64 & !O_CLOEXEC != 0 || descriptor as u32 == to as u32 {
        return Err(Errno::EINVAL);
    }
    let to = to as u32 as usize;
    if to >= MAX_DESCRIPTORS {
        return Err(Errno::EBADF);
    }
    let index = state::files().index(descriptor)?;
    // Not open before is as good.
    let _ = close(to as u64);
    state::files().place(index, to, flags & O_CLOEXEC != 0)
}

/// `fcntl`
pub fn control(descriptor: u64, command: u64, argument: u64) -> SysResult {
    const F_DUPFD: u64 = 0;
    const F_GETFD: u64 = 1;
    const F_SETFD: u64 = 2;
    const F_GETFL: u64 = 3;
    const F_SETFL: u64 = 4;
    const F_DUPFD_CLOEXEC: u64 = 1030;
    const F_SETPIPE_SZ: u64 = 1031;
    const F_GETPIPE_SZ: u64 = 1032;
    const F_ADD_SEALS: u64 = 1033;
    const F_GET_SEALS: u64 = 1034;
    const F_SETOWN: u64 = 8;
    const F_GETOWN: u64 = 9;
    const F_SETSIG: u64 = 10;
    const F_GETSIG: u64 = 11;
    const F_GETLK: u64 = 5;
    const F_SETLK: u64 = 6;
    const F_SETLKW: u64 = 7;
    const F_OFD_GETLK: u64 = 36;
    const F_OFD_SETLK: u64 = 37;
    const F_OFD_SETLKW: u64 = 38;
    const FD_CLOEXEC: u64 = 1;
    // Beside O_NONBLOCK: O_DIRECT, O_NOATIME.
    const O_CHANGEABLE: u64 = O_APPEND | 0o1_040_000;
    let lock = |operation, is_own| locks::lock_range(descriptor, operation, is_own, argument);
    let files = state::files();
    let open = files.get_mut(descriptor)?;
    match command {
        _ if open.is_name()
            && !matches!(
                command,
                F_DUPFD | F_DUPFD_CLOEXEC | F_GETFD | F_SETFD | F_GETFL
            ) =>
        {
            Err(Errno::EBADF)
        }
        F_DUPFD | F_DUPFD_CLOEXEC if argument as u32 as usize >= MAX_DESCRIPTORS => {
            Err(Errno::EINVAL)
        }
        F_DUPFD | F_DUPFD_CLOEXEC => {
            let from = u64::from(argument as u32);
            files.duplicate(descriptor, from, command == F_DUPFD_CLOEXEC)
        }
        F_GETFD => Ok(u64::from(
            files.is_closed_on_exec(descriptor as u32 as usize),
        )),
        F_SETFD => {
            files.set_closed_on_exec(descriptor as u32 as usize, argument & FD_CLOEXEC != 0);
            Ok(0)
        }
        F_GETFL => {
            let nonblocking = if open.nonblocking { O_NONBLOCK } else { 0 };
            Ok(u64::from(open.flags) | nonblocking)
        }
        F_SETFL => {
            open.nonblocking = argument & O_NONBLOCK != 0;
            open.flags = open.flags & !O_CHANGEABLE as u32 | (argument & O_CHANGEABLE) as u32;
            Ok(0)
        }
        F_GETPIPE_SZ | F_SETPIPE_SZ => match (open.object, command) {
            (Object::Stream { from, to }, F_GETPIPE_SZ) => pipes::size(from.min(to)),
            (Object::Stream { from, to }, _) => pipes::set_size(from.min(to), argument),
            _ => Err(Errno::EBADF),
        },
        F_ADD_SEALS => seals::add(open, argument),
        F_GET_SEALS => seals::get(open),
        // Nobody is told of what comes by a signal.
        F_GETOWN | F_GETSIG => Ok(0),
        F_SETOWN | F_SETSIG => Ok(0),
        F_GETLK | F_OFD_GETLK => lock(Operation::Get, command == F_OFD_GETLK),
        F_SETLK | F_OFD_SETLK => lock(Operation::Set, command == F_OFD_SETLK),
        F_SETLKW | F_OFD_SETLKW => lock(Operation::SetWaiting, command == F_OFD_SETLKW),
        _ => Err(Errno::EINVAL),
    }
}

/// `ioctl`
pub fn ioctl(descriptor: u64, request: u64, argument: u64) -> SysResult {
    const FIONREAD: u64 = 0x541B;
    const FIONBIO: u64 = 0x5421;
    const FIONCLEX: u64 = 0x5450;
    const FIOCLEX: u64 = 0x5451;
    let files = state::files();
    files.index(descriptor)?;
    if matches!(request, FIOCLEX | FIONCLEX) {
        files.set_closed_on_exec(descriptor as u32 as usize, request == FIOCLEX);
        return Ok(0);
    }
    let open = files.get_mut(descriptor)?;
    match (request, open.object) {
        (FIONBIO, _) => {
            open.nonblocking = user::read::<i32>(argument)? != 0;
            Ok(0)
        }
        (FIONREAD, Object::Socket(number)) => {
            let bytes = sockets::ready::readable_bytes(number)?;
            user::write(argument, bytes.min(i32::MAX as u64) as i32)?;
            Ok(0)
        }
        (_, Object::Socket(_)) if interfaces::REQUESTS.contains(&request) => {
            interfaces::ioctl(request, argument)
        }
        (FIONREAD, Object::Watcher(number)) => {
            user::write(argument, watch::readable_bytes(number) as i32)?;
            Ok(0)
        }
        (FIONREAD, Object::Stream { from, .. }) => {
            let bytes = pipes::queue(from).map_or(0, |queue| queue.used());
            user::write(argument, bytes as i32)?;
            Ok(0)
        }
        _ => Err(Errno::ENOTTY),
    }
}
