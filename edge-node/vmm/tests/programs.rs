//! What static programs can count on in a guest.

mod common;

use common::{Function, boot, config, each_libc};
use holm_test_support::{function, guest, patience, require_kvm};
use holm_vmm::{Hypervisor, Slot, Snapshot};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[test]
fn kvm_every_way_to_answer_gives_the_same_response() {
    if !require_kvm() {
        return;
    }
    each_libc("ways_to_answer", |path| {
        let mut guest = Function::new(path);
        for way in [
            "/writev",
            "/sendmsg",
            "/send",
            "/bytes",
            "/chunked",
            "/until_close",
            "/http_1_0",
            "/continue",
        ] {
            let response = guest.fresh("GET", way, b"").result.unwrap();
            assert_eq!(response.status, 200, "{way}");
            assert_eq!(response.body, b"hello from the guest\n", "{way}");
            assert!(
                response
                    .headers
                    .contains(&("x-way".into(), b"here".to_vec())),
                "{way}"
            );
        }
        let empty = guest.fresh("GET", "/no_content", b"").result.unwrap();
        assert_eq!((empty.status, empty.body.len()), (204, 0));
        let head = guest.fresh("HEAD", "/no_content", b"").result.unwrap();
        assert_eq!((head.status, head.body.len()), (204, 0));
    });
}

#[test]
fn kvm_memory_behaves_as_on_linux() {
    if !require_kvm() {
        return;
    }
    each_libc("memory", |path| {
        let mut guest = Function::new(path);
        for _ in 0..3 {
            assert_eq!(guest.get("/"), "fine\n");
        }
    });
}

#[test]
fn kvm_poll_and_epoll_servers_answer() {
    if !require_kvm() {
        return;
    }
    each_libc("poll_server", |path| {
        let mut guest = Function::new(path);
        assert!(guest.get("/some/path").contains("/some/path"));
    });
    for edge in ["0", "1"] {
        each_libc("epoll_server", |path| {
            let env = config(if edge == "1" {
                &[("HOLM_EDGE", "1")]
            } else {
                &[]
            });
            let mut guest = Function::with(path, &env);
            let response = guest.fresh("POST", "/x", &[7; 5000]).result.unwrap();
            let text = String::from_utf8(response.body).unwrap();
            assert!(text.contains("POST") && text.contains("5000"), "{text}");
        });
    }
}

#[test]
fn kvm_large_bodies_go_in_and_out_whole() {
    if !require_kvm() {
        return;
    }
    let mut guest = Function::new(&guest("large_body"));
    for size in [0, 1, 100_000, 131_072, 1_000_000] {
        let body: Vec<u8> = (0..size).map(|n: u32| (n % 251) as u8).collect();
        let outcome = guest.fresh("POST", "/echo", &body);
        assert!(outcome.result.unwrap().body == body, "{size} bytes");
    }
}

#[test]
fn kvm_the_environment_and_the_arguments_are_those_of_the_configuration() {
    if !require_kvm() {
        return;
    }
    each_libc("env_and_args", |path| {
        let mut guest = Function::with(path, &config(&[("COLOUR", "blue"), ("EMPTY", "")]));
        let text = guest.get("/");
        for line in [
            "tests/guest",
            "PORT=8080",
            "COLOUR=blue",
            "EMPTY=",
            "HOLM=1",
        ] {
            assert!(
                text.lines().any(|one| one.contains(line)),
                "{line} in {text}"
            );
        }
    });
}

#[test]
fn kvm_the_wall_clock_is_right_after_a_restore_of_an_older_snapshot() {
    if !require_kvm() {
        return;
    }
    let mut guest = Function::new(&guest("clocks"));
    std::thread::sleep(Duration::from_millis(1100));
    for _ in 0..2 {
        let text = guest.get("/");
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let seconds: u64 = text
            .split(|c: char| !c.is_ascii_digit())
            .find_map(|word| word.parse().ok().filter(|seconds| *seconds > 1_000_000_000))
            .unwrap_or_else(|| panic!("no time in {text}"));
        assert!(now.abs_diff(seconds) <= 1, "guest {seconds}, host {now}");
    }
}

#[test]
fn kvm_clocks_are_read_without_a_system_call_and_say_the_same_as_with_one() {
    if !require_kvm() {
        return;
    }
    each_libc("vdso", |path| {
        let mut guest = Function::new(path);
        let text = guest.get("/");
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(words.first(), Some(&"right"), "{text}");
        for target in ["/deep", "/turns"] {
            assert_eq!(guest.get(target), "done\n", "{target}");
        }
        println!(
            "clock_gettime: {} ns, as a system call {} ns",
            words[1], words[2]
        );
    });
}

#[test]
fn kvm_a_system_call_that_was_made_a_jump_is_what_it_was_for_all_who_come_to_it() {
    if !require_kvm() {
        return;
    }
    each_libc("rewritten_calls", |path| {
        let mut guest = Function::new(path);
        for _ in 0..2 {
            assert_eq!(guest.get("/"), "0x1ffff\n");
        }
    });
}

#[test]
fn kvm_cpuid_that_was_made_a_jump_answers_what_the_instruction_answers_and_changes_nothing_else() {
    if !require_kvm() {
        return;
    }
    each_libc("cpuid", |path| {
        let mut guest = Function::new(path);
        assert_all_right(&guest.get("/"));
        // The table is the snapshot's, the vCPU another's.
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("snapshot");
        guest.prepared.snapshot.save(&file).unwrap();
        let hypervisor = Hypervisor::open().unwrap();
        guest.slot = Slot::new(&hypervisor).unwrap();
        guest
            .slot
            .load(&Snapshot::load(&hypervisor, &file).unwrap())
            .unwrap();
        assert_all_right(&guest.get("/"));
    });
}

/// The guest has written what differs, and then how many of its questions were answered alike.
fn assert_all_right(text: &str) {
    let (right, all) = text.trim_end().split_once(" of ").expect(text);
    assert_eq!(right, all, "{text}");
    assert!(all.parse().is_ok_and(|all: u32| all > 1000), "{text}");
}

#[test]
fn kvm_an_instance_that_was_kept_is_told_to_end_by_sigterm() {
    if !require_kvm() {
        return;
    }
    each_libc("ends_on_sigterm", |path| {
        for (target, log, how) in [
            ("/handled", "saw 1 requests\n", "exited with status 7"),
            ("/default", "", "ended by SIGTERM"),
            ("/slow", "slept\n", "exited with status 8"),
            ("/ignored", "", ""),
            ("/never", "", "deadline"),
        ] {
            let mut guest = Function::new(path);
            guest.send("GET", target, b"").result.unwrap();
            guest
                .slot
                .again(Instant::now() + Duration::from_secs(5))
                .unwrap();
            let grace = patience(Duration::from_millis(500));
            let end = guest.slot.terminate(Instant::now() + grace).unwrap();
            let end = end.map(|failure| failure.to_string()).unwrap_or_default();
            assert!(
                end.contains(how) && end.is_empty() == how.is_empty(),
                "{target}: {end}"
            );
            assert_eq!(
                String::from_utf8(guest.slot.take_log()).unwrap(),
                log,
                "{target}"
            );
            assert!(guest.slot.reset().is_err(), "{target}");
        }
    });
}

#[test]
fn kvm_two_instances_of_a_snapshot_never_share_random_bytes() {
    if !require_kvm() {
        return;
    }
    let mut guest = Function::new(&guest("random"));
    let mut seen = std::collections::HashSet::new();
    for _ in 0..20 {
        let text = guest.get("/");
        let (from_kernel, of_process) = text.trim().split_once(' ').unwrap();
        assert!(from_kernel.len() == 32 && of_process.len() == 32, "{text}");
        for bytes in [from_kernel, of_process] {
            assert!(seen.insert(bytes.to_owned()), "{text}");
        }
    }
}

#[test]
fn kvm_a_restore_is_a_fork_for_generators_that_look_out_for_one() {
    if !require_kvm() {
        return;
    }
    each_libc("wipes_on_restore", |path| {
        let mut guest = Function::new(path);
        for _ in 0..3 {
            assert_eq!(guest.get("/"), "1 1 1 1 1 1\n");
        }
    });
    let mut hello = Function::new(&function("hello"));
    let mut seen = std::collections::HashSet::new();
    for _ in 0..5 {
        assert!(seen.insert(hello.get("/instance")), "{seen:?}");
    }
}

#[test]
fn kvm_a_sleeping_program_takes_its_time_and_no_cpu() {
    if !require_kvm() {
        return;
    }
    let mut guest = Function::new(&guest("sleeps"));
    for target in ["/nanosleep/60", "/poll/60"] {
        let text = guest.get(target);
        let took: u64 = text
            .trim()
            .split(' ')
            .find_map(|word| word.parse().ok())
            .unwrap();
        assert!((60..5000).contains(&took), "{target}: {text}");
    }
}

#[test]
fn kvm_state_is_fresh_for_every_request_unless_it_is_asked_to_stay() {
    if !require_kvm() {
        return;
    }
    let mut guest = Function::new(&guest("state"));
    let first = guest.get("/");
    for _ in 0..5 {
        assert_eq!(guest.get("/"), first);
    }
    let kept: Vec<String> = (0..4)
        .map(|_| {
            let outcome = guest.send("GET", "/", b"");
            guest
                .slot
                .again(std::time::Instant::now() + guest.deadline)
                .unwrap();
            String::from_utf8(outcome.result.unwrap().body).unwrap()
        })
        .collect();
    assert_eq!(kept[0], first);
    let distinct: std::collections::HashSet<_> = kept.iter().collect();
    assert_eq!(distinct.len(), kept.len(), "each counts on: {kept:?}");
    guest.slot.reset().unwrap();
    assert_eq!(guest.get("/"), first);
}

#[test]
fn kvm_a_reset_undoes_everything_that_a_program_can_change() {
    if !require_kvm() {
        return;
    }
    each_libc("scribbles", |path| {
        let mut guest = Function::new(path);
        let pristine = guest.get("/read");
        for _ in 0..3 {
            assert_eq!(guest.get("/scribble"), "scribbled\n");
            assert_eq!(guest.get("/read"), pristine);
        }
    });
}

#[test]
fn kvm_no_request_sees_what_another_left_in_the_extended_state() {
    if !require_kvm() {
        return;
    }
    each_libc("extended_state", |path| {
        let mut guest = Function::new(path);
        for seed in 0..4 {
            assert_eq!(guest.get(&format!("/{seed}")), "as before the wait\n");
        }
        for _ in 0..3 {
            guest.send("GET", "/", b"").result.unwrap();
            let deadline = std::time::Instant::now() + guest.deadline;
            guest.slot.again(deadline).unwrap();
        }
        let kept = guest.send("GET", "/", b"").result.unwrap();
        assert_eq!(kept.body, b"as before the wait\n");
    });
}

#[test]
fn kvm_what_a_program_writes_becomes_its_log() {
    if !require_kvm() {
        return;
    }
    let mut guest = Function::new(&guest("writes_log"));
    assert!(String::from_utf8_lossy(&guest.prepared.log).contains("starting"));
    let outcome = guest.fresh("GET", "/here", b"");
    assert_eq!(outcome.log.matches("/here").count(), 2, "{}", outcome.log);
    let outcome = guest.fresh("GET", "/lines/20000", b"");
    assert!(outcome.result.is_ok());
    assert!(
        outcome.log.len() < 70_000 && outcome.log.contains("dropped"),
        "{}",
        outcome.log.len()
    );
}

#[test]
fn kvm_what_is_not_supported_is_an_errno_and_is_named_once() {
    if !require_kvm() {
        return;
    }
    let mut unknown = Function::new(&guest("unknown_syscall"));
    let outcome = unknown.fresh("GET", "/syscall/400", b"");
    assert!(
        String::from_utf8(outcome.result.unwrap().body)
            .unwrap()
            .contains("38")
    );
    assert_eq!(
        outcome
            .log
            .matches("system call number 400: ENOSYS")
            .count(),
        1,
        "{}",
        outcome.log
    );
    let fork = unknown.fresh("GET", "/syscall/57", b"");
    assert!(fork.log.contains("fork"), "{}", fork.log);
    let segment = unknown.fresh("GET", "/syscall/29", b"");
    let shared =
        "system call shmget: ENOSYS (a function is one process; shm_open and mmap share memory";
    assert!(segment.log.contains(shared), "{}", segment.log);

    let mut files = Function::new(&guest("files"));
    assert_eq!(
        files.get("/etc/shadow").trim(),
        "2 2",
        "ENOENT of open and of stat"
    );
    assert_eq!(files.get("/dev/null").trim(), "0 0");
}

#[test]
fn kvm_one_exit_serves_a_request_of_the_sdk_and_of_a_small_http_server() {
    if !require_kvm() {
        return;
    }
    for name in ["hello", "hello-c"] {
        let mut guest = Function::new(&function(name));
        for _ in 0..3 {
            let response = guest.send("GET", "/", b"").result.unwrap();
            assert!(String::from_utf8_lossy(&response.body).starts_with("hello from"));
            assert_eq!(guest.slot.stats().exits, 1, "{name}");
            guest.slot.reset().unwrap();
        }
    }
}

#[test]
fn kvm_a_snapshot_comes_back_from_disk_and_a_damaged_one_is_named() {
    if !require_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("version.snap");
    let prepared = boot(&guest("state"), &config(&[])).unwrap();
    prepared.snapshot.save(&path).unwrap();
    let hypervisor = Hypervisor::open().unwrap();

    let mut live = Function::new(&guest("state"));
    let expected = live.get("/");
    live.slot
        .load(&Snapshot::load(&hypervisor, &path).unwrap())
        .unwrap();
    assert_eq!(live.get("/"), expected);
    live.slot.load(&prepared.snapshot).unwrap();
    assert_eq!(live.get("/"), expected);

    let good = std::fs::read(&path).unwrap();
    let memory = 64 << 10;
    let nonzero = (memory..good.len()).find(|at| good[*at] != 0).unwrap();
    for at in [0, 9, 20, 60, 300, nonzero, good.len() - 3] {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        std::fs::write(&path, &bad).unwrap();
        let error = Snapshot::load(&hypervisor, &path).unwrap_err().to_string();
        assert!(error.contains("made again"), "byte {at}: {error}");
    }
    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    assert!(
        Snapshot::load(&hypervisor, &path)
            .unwrap_err()
            .to_string()
            .contains("damaged")
    );
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "no temporary file stays"
    );
}

#[test]
fn kvm_a_server_lets_go_of_root_and_finds_what_it_looks_for_at_its_start() {
    if !require_kvm() {
        return;
    }
    each_libc("lets_go_of_root", |path| {
        let mut guest = Function::new(path);
        for _ in 0..2 {
            assert_eq!(guest.get("/"), "fine\n", "and it is root again");
        }
    });
}

#[test]
fn kvm_threads_share_memory_and_take_turns() {
    if !require_kvm() {
        return;
    }
    each_libc("threads", |path| {
        let mut guest = Function::new(path);
        for (target, expected) in [
            ("/join", "1 42\n"),
            ("/many/4", "1 400\n"),
            ("/many/16", "1 1600\n"),
            ("/condition", "100\n"),
            ("/timed", "timed out\n"),
            ("/thread_local", "1 3\n"),
            ("/wide", "1\n"),
            ("/detached", "from a thread\n"),
        ] {
            assert_eq!(guest.get(target), expected, "{}: {target}", path.display());
        }
    });
}

#[test]
fn kvm_a_pool_of_threads_made_at_the_start_answers_from_the_snapshot() {
    if !require_kvm() {
        return;
    }
    each_libc("threads", |path| {
        let mut guest = Function::with(path, &config(&[("HOLM_POOL", "1")]));
        for _ in 0..5 {
            assert_eq!(guest.get("/"), "from the pool\n");
        }
        for _ in 0..5 {
            let outcome = guest.send("GET", "/", b"");
            assert_eq!(outcome.result.unwrap().body, b"from the pool\n");
            guest
                .slot
                .again(std::time::Instant::now() + guest.deadline)
                .unwrap();
        }
    });
}

#[test]
fn kvm_a_program_whose_threads_all_wait_for_each_other_is_told_so() {
    if !require_kvm() {
        return;
    }
    each_libc("threads", |path| {
        let mut guest = Function::new(path);
        assert!(guest.failure("/deadlock").contains("never come"));
    });
}

#[test]
fn kvm_signals_are_handled_as_on_linux() {
    if !require_kvm() {
        return;
    }
    each_libc("signals", |path| {
        let mut guest = Function::new(path);
        for way in [
            "/raised",
            "/stepped_over",
            "/overflow",
            "/interrupted",
            "/threads",
            "/broken_pipe",
            "/wide",
        ] {
            assert_eq!(guest.get(way), "fine\n", "{way}");
        }
        assert!(guest.failure("/unhandled_alarm").contains("SIGALRM"));
        // Frames that no kernel laid: the program's end, or nothing, and never the library OS's.
        for number in 1..=7 {
            let failure = guest.failure(&format!("/forge/{number}"));
            assert!(!failure.contains("library OS"), "{number}: {failure}");
        }
        assert_eq!(
            guest.get("/forge/8"),
            "went on\n",
            "selectors are what they are"
        );
    });
}

#[test]
fn kvm_files_behave_as_on_linux_and_are_gone_with_the_instance() {
    if !require_kvm() {
        return;
    }
    each_libc("file_system", |path| {
        let mut guest = Function::new(path);
        assert_eq!(guest.get("/run"), "fine\n");
        assert_eq!(
            (guest.get("/left"), guest.get("/left")),
            ("0\n".into(), "0\n".into())
        );
        assert_eq!(guest.get("/fill"), "1 1\n", "ENOSPC, and room again");
    });
}

#[test]
fn kvm_memory_that_requests_use_much_or_little_of_is_zero_again_for_the_next() {
    if !require_kvm() {
        return;
    }
    let mut slots = Vec::new();
    let mut config = config(&[]);
    config.memory_bytes = 128 << 20;
    let mut guest = Function::with(&guest("uses_memory"), &config);
    // An emulated machine that shares its host touches some MiB a second.
    guest.deadline *= 6;
    guest.cpu = guest.deadline;
    let hypervisor = Hypervisor::open().unwrap();
    // What the first ones use decides how the memory of later instances is backed, in other slots too.
    for mib in [40, 1, 40, 80, 1, 4, 80, 40] {
        let answer = format!("{mib} MiB, 0 words were not zero\n");
        for _ in 0..2 {
            assert_eq!(guest.get(&format!("/{mib}")), answer);
        }
        let mut other = Slot::new(&hypervisor).unwrap();
        other.load(&guest.prepared.snapshot).unwrap();
        slots.push(std::mem::replace(&mut guest.slot, other));
        assert_eq!(guest.get(&format!("/{mib}")), answer);
        std::mem::swap(&mut guest.slot, &mut slots[0]);
    }
}

#[test]
fn kvm_a_program_writes_where_it_is_and_each_request_finds_nothing_of_it() {
    if !require_kvm() {
        return;
    }
    each_libc("writes_anywhere", |path| {
        let mut guest = Function::new(path);
        for _ in 0..2 {
            assert_eq!(guest.get("/"), "fine\n");
        }
    });
}
