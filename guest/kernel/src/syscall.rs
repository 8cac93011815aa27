//! The system calls: the frame that the entry leaves, and which call is served where.
//!
//! A call that is not served is ENOSYS, named once in the function's log.

mod left;
mod memory;
mod refused;
mod vectors;

use holm_hostcall::Registers;

use crate::errno::{Errno, SysResult, to_rax};
use crate::files::lookup::AT_FDCWD;
use crate::files::names::AT_REMOVEDIR;
use crate::files::{
    attributes, change, copy, descriptors, directory, locks, map, names, open, read_write, splice,
    status, watch,
};
use crate::memory::guest;
use crate::sockets::{bind, connect, messages, options, transfer};
use crate::{
    identity, pipes, poll, process, signals, sockets, stat, state, threads, time, timers, user,
};
use left::{Left, time_value};
use refused::{MISSING, REFUSED, refuse, refuse_silently, served};
use vectors::{positioned_vector, read_vector, read_vector_at, write_vector, write_vector_at};

/// Serves one system call; the answer is put into rax.
pub extern "C" fn handle(frame: &mut Registers) {
    const RT_SIGRETURN: u64 = 15;
    let number = frame.rax;
    state::threads().begin_call();
    if number == RT_SIGRETURN {
        signals::go_back(frame);
    } else {
        frame.rax = to_rax(serve(frame));
        if state::memory().take_cut() {
            // What was transferred looks like all there was, after which some wait for an edge: there is one then. Of
            // all calls that transfer, the descriptor comes first.
            state::files().edge_of(frame.rdi);
        }
    }
    threads::preempt_if_missed();
    signals::deliver(frame, (number != RT_SIGRETURN).then_some(number));
}

const O_CREAT_WRONLY_TRUNC: u64 = 0o1101;

fn serve(frame: &Registers) -> SysResult {
    let (a, b, c, d, e) = (frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8);
    match frame.rax {
        0 => read_write::read(a, b, c),
        1 => told(a, 0, || read_write::write(a, b, c)),
        2 => open::open(AT_FDCWD, a, b, c),
        3 => descriptors::close(a),
        4 => stat::stat(status::at(AT_FDCWD, a, 0)?, b),
        5 => stat::stat(status::of_descriptor(a)?, b),
        6 => stat::stat(status::of_link(a)?, b),
        7 => poll::poll(a, b, poll::timeout_ms(c)),
        8 => read_write::seek(a, b, c),
        9 => map::map(a, b, c, d, e, frame.r9),
        10 => state::memory().protect(a, b, c, &mut guest()),
        11 => map::unmap(a, b),
        12 => Ok(state::memory().brk(a, &mut guest())),
        13 => signals::action(a, b, c, d),
        14 => signals::mask(a, b, c, d),
        16 => descriptors::ioctl(a, b, c),
        17 => read_write::read_placed(a, b, c, d),
        18 => read_write::write_placed(a, b, c, d),
        19 => read_vector(a, b, c),
        20 => told(a, 0, || write_vector(a, b, c)),
        21 => status::access(AT_FDCWD, a, b),
        22 => pipes::pipe(a, 0),
        23 => {
            let left = Left::of(e, time_value(e)?, 1000);
            left.told(poll::select(a, b, c, d, left.given))
        }
        24 => threads::yield_now(),
        25 => map::remap(a, b, c, d, e),
        26 => state::memory().synchronise(a, b, c),
        27 => memory::resident(a, b, c),
        28 => map::advise(a, b, c),
        32 => descriptors::duplicate(a),
        33 => descriptors::duplicate_to(a, b),
        292 => descriptors::duplicate_to_other(a, b, c),
        34 => signals::suspend(0, 0),
        35 => time::sleep(1, false, a, b),
        36 if b == 0 => Err(Errno::EFAULT),
        36 => signals::timers::set_interval(a, 0, b),
        37 => signals::timers::alarm(a),
        38 => signals::timers::set_interval(a, b, c),
        222 => signals::timers::create(a, b, c),
        223 => signals::timers::set(a, b, c, d),
        224 => signals::timers::get(a, b),
        225 => signals::timers::missed(a),
        226 => signals::timers::delete(a),
        282 => signals::descriptor::open(a, b, c, 0),
        289 => signals::descriptor::open(a, b, c, d),
        39 | 110 => Ok(process::PROCESS_ID),
        40 => copy::send_file(a, b, c, d),
        41 => sockets::socket(a, b, c),
        42 => connect::connect(a, b, c),
        43 => connect::accept(a, b, c, 0),
        44 => told(a, d, || transfer::send_to(a, b, c, d, e, frame.r9)),
        45 => transfer::receive_from(a, b, c, d, e, frame.r9),
        46 => told(a, c, || messages::send(a, b, c)),
        47 => messages::receive(a, b, c),
        48 => sockets::shutdown(a, b),
        49 => bind::bind(a, b, c),
        50 => connect::listen(a, b),
        51 => sockets::name(a, b, c, false),
        52 => sockets::name(a, b, c, true),
        53 => sockets::pair(a, b, c, d),
        54 => options::set_option(a, b, c, d, e),
        55 => options::get_option(a, b, c, d, e),
        56 => served(56, threads::clone(frame, a, b, c, d, e)),
        60 => threads::exit(a),
        62 => signals::kill(a, b),
        200 => signals::kill_thread(a, b),
        63 => process::names(a),
        72 => descriptors::control(a, b, c),
        73 => locks::lock_whole(a, b),
        74 | 75 => read_write::synchronise(a),
        76 => change::truncate(a, b),
        77 => change::truncate_open(a, b),
        79 => directory::working_directory(a, b),
        80 => directory::change_directory(a),
        81 => directory::change_directory_to(a),
        82 => names::rename(AT_FDCWD, a, AT_FDCWD, b, 0),
        83 => names::make_directory(AT_FDCWD, a, b),
        84 => names::remove(AT_FDCWD, a, AT_REMOVEDIR),
        85 => open::open(AT_FDCWD, a, O_CREAT_WRONLY_TRUNC, b),
        86 => names::link(AT_FDCWD, a, AT_FDCWD, b, 0),
        87 => names::remove(AT_FDCWD, a, 0),
        88 => names::make_link(a, AT_FDCWD, b),
        89 => names::read_link(AT_FDCWD, a, b, c),
        90 => attributes::change_mode(AT_FDCWD, a, b, 0),
        91 => attributes::change_mode_of(a, b),
        92 => attributes::change_owner(AT_FDCWD, a, b, c, 0),
        94 => attributes::change_owner(AT_FDCWD, a, b, c, status::AT_SYMLINK_NOFOLLOW),
        93 => attributes::change_owner_of(a, b, c),
        95 => Ok(u64::from(core::mem::replace(
            state::file_mask(),
            a as u32 & 0o777,
        ))),
        96 => time::gettimeofday(a, b),
        97 if b == 0 => Err(Errno::EFAULT),
        97 => process::limits(0, a, 0, b),
        160 if b == 0 => Err(Errno::EFAULT),
        160 => process::limits(0, a, b, 0),
        98 => process::usage(a, b),
        99 => process::system_information(a),
        100 => process::times(a),
        61 => process::wait(a, c),
        247 => process::wait_for(a, b, d),
        102 => Ok(identity::user().real.into()),
        104 => Ok(identity::group().real.into()),
        107 => Ok(identity::user().effective.into()),
        108 => Ok(identity::group().effective.into()),
        105 => identity::user().set(a),
        106 => identity::group().set(a),
        113 => identity::user().set_two(a, b),
        114 => identity::group().set_two(a, b),
        116 => identity::set_groups(a, b),
        117 => identity::user().set_three(a, b, c),
        119 => identity::group().set_three(a, b, c),
        111 => process::group(0),
        121 | 124 => process::group(a),
        // The one process leads its group and its session already.
        109 => process::group(a).map(|_| 0),
        112 => Err(Errno::EPERM),
        115 => identity::groups(a),
        118 => identity::user().get([a, b, c]),
        120 => identity::group().get([a, b, c]),
        125 => process::capabilities(a, b),
        135 => process::personality(a),
        140 => process::priority(a, b),
        141 => process::set_priority(a, b, c),
        142 => process::set_scheduling(a, 0, b),
        143 => process::scheduling(a, b),
        144 => process::set_scheduling(a, b, c),
        145 => process::scheduler(a),
        146 | 147 => process::priority_range(a, frame.rax == 146),
        127 => signals::pending(a, b),
        128 => signals::wait_for(a, b, c, d),
        129 => signals::send_with_info(a, b, c),
        297 => signals::send_with_info_to(a, b, c, d),
        130 if b != 8 => Err(Errno::EINVAL),
        130 => signals::suspend(a, b),
        131 => signals::stack(a, b, frame.rsp),
        132 => attributes::set_times_s(a, b),
        235 => attributes::set_times_us(AT_FDCWD, a, b),
        261 => attributes::set_times_us(a, b, c),
        137 => status::file_system(a, b),
        138 => status::file_system_of(a, b),
        157 => process::control(a, b, [c, d, e]),
        162 => Ok(0),
        149 => state::memory().lock(a, b, 0, &mut guest()),
        150 => state::memory().unlock(a, b),
        151 => memory::lock_all(a),
        152 => Ok(0),
        325 => state::memory().lock(a, b, c, &mut guest()),
        158 => threads::architecture(a, b),
        201 => time::time(a),
        186 => Ok(u64::from(state::threads().id())),
        202 => threads::futex(a, b, c, d, e, frame.r9),
        203 => process::set_affinity(a, b, c),
        204 => process::affinity(a, b, c),
        // The size that the older one is told means nothing.
        213 if (a as i32) <= 0 => Err(Errno::EINVAL),
        213 => open::open_epoll(0),
        291 => open::open_epoll(a),
        217 => directory::list(a, b, c),
        218 => Ok(state::threads().clear_at_end(a)),
        187 => read_write::read_ahead(a),
        221 => read_write::advise(a, d),
        228 => time::clock_gettime(a, b),
        229 => time::clock_getres(a, b),
        230 => time::sleep(a, b & 1 != 0, c, d),
        231 => threads::end(a),
        232 => poll::epoll_wait(a, b, c, poll::timeout_ms(d)),
        281 => signals::masked(e, frame.r9, || {
            poll::epoll_wait(a, b, c, poll::timeout_ms(d))
        }),
        441 => signals::masked(e, frame.r9, || {
            poll::epoll_wait(a, b, c, time::timespec(d)?)
        }),
        233 => poll::epoll_control(a, b, c, d),
        234 => signals::kill_thread_of(a, b, c),
        257 => open::open(a, b, c, d),
        258 => names::make_directory(a, b, c),
        260 => attributes::change_owner(a, b, c, d, e),
        262 => stat::stat(status::at(a, b, d)?, c),
        263 => names::remove(a, b, c),
        264 => names::rename(a, b, c, d, 0),
        265 => names::link(a, b, c, d, e),
        266 => names::make_link(a, b, c),
        267 => names::read_link(a, b, c, d),
        268 => attributes::change_mode(a, b, c, 0),
        452 => attributes::change_mode(a, b, c, d),
        269 | 439 => status::access(a, b, c),
        270 => {
            // The mask is behind a pointer of its own.
            let [mask, bytes] = match frame.r9 {
                0 => [0, 0],
                both => user::read(both)?,
            };
            let left = Left::of(e, time::timespec(e)?, 1);
            signals::check_mask(mask, bytes)?;
            left.told(signals::masked(mask, bytes, || {
                poll::select(a, b, c, d, left.given)
            }))
        }
        271 => {
            let left = Left::of(c, time::timespec(c)?, 1);
            signals::check_mask(d, e)?;
            left.told(signals::masked(d, e, || poll::poll(a, b, left.given)))
        }
        273 => threads::robust_list(a, b),
        274 => threads::robust_list_of(a, b, c),
        275 => told(c, 0, || splice::splice(a, b, c, d, e, frame.r9)),
        276 => told(b, 0, || splice::tee(a, b, c, d)),
        278 if c > 1024 => Err(Errno::EINVAL),
        278 => told(a, 0, || splice::from_memory(a, b, c, d)),
        280 => attributes::set_times(a, b, c, d),
        285 => change::allocate(a, b, c, d),
        288 => connect::accept(a, b, c, d),
        283 => timers::create(a, b),
        286 => timers::set(a, b, c, d),
        287 => timers::get(a, b),
        284 => open::open_event(a, 0),
        290 => open::open_event(a, b),
        299 => messages::receive_several(a, b, c, d, e),
        307 => told(a, d, || messages::send_several(a, b, c, d)),
        293 => pipes::pipe(a, b),
        295 => read_vector_at(a, b, c, d),
        296 => write_vector_at(a, b, c, d),
        302 => process::limits(a, b, c, d),
        309 => process::cpu(a, b),
        316 => names::rename(a, b, c, d, e),
        318 => process::random(a, b, c),
        319 => open::open_memory(a, b),
        324 => process::barrier(a, b),
        326 => copy::copy_range(a, b, c, d, e),
        332 => status::check_statx(c, d).and_then(|()| stat::statx(status::at(a, b, c)?, e)),
        436 => descriptors::close_range(a, b, c),
        435 => served(435, threads::clone_with(frame, a, b)),
        // glibc asks for restartable sequences at every start, and does without.
        334 => Err(Errno::ENOSYS),
        327 | 328 => positioned_vector(a, b, c, d, frame.r9, frame.rax == 328),
        133 => names::make_node(AT_FDCWD, a, b),
        259 => names::make_node(a, b, c),
        437 => open::open_how(a, b, c, d),
        188..=199 => status::extended(frame.rax, a),
        253 => watch::open(0),
        254 => watch::add(a, b, c),
        255 => watch::remove(a, b),
        294 => watch::open(a),
        277 => read_write::synchronise_range(a, b, c, d),
        306 => state::files().get(a).map(|_| 0),
        122 => Ok(identity::user().effective.into()),
        123 => Ok(identity::group().effective.into()),
        126 => process::set_capabilities(a, b),
        148 => process::interval(a, b),
        251 => process::check_io_priority(a, b).map(|()| 0),
        252 => process::check_io_priority(a, b).map(|()| process::IO_PRIORITY),
        315 => process::scheduling_attributes(a, b, c, d),
        237 | 238 => Ok(0),
        239 => process::memory_policy(a, b, c),
        272 => process::unshare(a),
        303 => Err(Errno::EOPNOTSUPP),
        number if REFUSED.contains(&number) => refuse_silently(number, Errno::EPERM),
        number if MISSING.contains(&number) => refuse_silently(number, Errno::ENOSYS),
        number => refuse(number),
    }
}

/// A write to what nobody reads is a signal too, unless the flags of a send say otherwise, or it is a message.
fn told(descriptor: u64, flags: u64, call: impl FnOnce() -> SysResult) -> SysResult {
    const MSG_NOSIGNAL: u64 = 0x4000;
    // While the call waits the descriptor may become another one.
    let is_silent = flags & MSG_NOSIGNAL != 0 || sockets::keeps_borders(descriptor);
    let result = call();
    if result == Err(Errno::EPIPE) && !is_silent {
        signals::raise(signals::SIGPIPE);
    }
    result
}
