//! Programs that do what they should not: each gets a report that names it, and the next instance is
//! well.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{Function, boot, config, each_libc};
use holm_hostcall::{
    IDT_ADDR, PAGE_BYTES, STUB_ADDR, STUB_CR3_ADDR, STUB_HOSTCALL_ADDR, STUB_SCRATCH_ADDR,
    STUB_STACK_ADDR, TABLES_ADDR, USER_START,
};
use holm_test_support::{guest, is_slow, musl_guest, patience, require_kvm};
use holm_vmm::Failure;

/// Asserts that each path of a guest fails with a text that contains what is given for it.
fn each_fails(name: &str, cases: &[(&str, &str)]) {
    let mut function = Function::new(&guest(name));
    for (path, expected) in cases {
        let failure = function.failure(path);
        assert!(failure.contains(expected), "{name} {path}: {failure}");
    }
}

#[test]
fn kvm_a_null_pointer_is_named_with_the_function_that_used_it() {
    if !require_kvm() {
        return;
    }
    let mut function = Function::new(&guest("dereferences_null"));
    for (path, verb, symbol) in [
        ("/", "read", Some("reads_through_null")),
        ("/write", "write", Some("handle")),
        ("/call", "execute", None),
    ] {
        let outcome = function.fresh("GET", path, b"");
        let Err(Failure::Crash(report)) = outcome.result else {
            panic!("{path}: no crash")
        };
        assert_eq!(
            (report.vector, report.address),
            (Some(14), Some(0)),
            "{path}"
        );
        assert!(
            report.what.contains(verb) && report.what.contains("null"),
            "{path}: {report}"
        );
        if let Some(symbol) = symbol {
            assert!(
                report.symbol.as_deref().unwrap().starts_with(symbol),
                "{path}: {report}"
            );
        }
        assert!(report.instruction.is_some() && report.registers.is_some());
    }
}

#[test]
fn kvm_every_exception_is_the_programs_own_crash() {
    if !require_kvm() {
        return;
    }
    each_fails(
        "faults",
        &[
            ("/divide", "divided by zero"),
            ("/undefined", "does not exist or is not allowed"),
            ("/breakpoint", "breakpoint"),
            ("/int80", "vector"),
            ("/double_fault_gate", "vector"),
            ("/page_fault_gate", "vector"),
            ("/noncanonical", "general protection fault"),
            ("/single_step", "debug"),
            ("/bad_stack", "vector"),
            ("/supervisor_read", "read memory that it may not"),
            ("/supervisor_write", "write memory that it may not"),
            ("/boot_page_write", "write memory that it may not"),
            ("/kernel_write", "write memory that it may not"),
            ("/beyond_memory", "write memory that it may not"),
        ],
    );
    // Alignment checks are on as on Linux, but QEMU's emulated CPU does not make them.
    let mut function = Function::new(&guest("faults"));
    match function.fresh("GET", "/alignment", b"").result {
        Ok(response) => assert_eq!(response.body, b"/alignment did not fault\n"),
        Err(failure) => assert!(failure.to_string().contains("not aligned"), "{failure}"),
    }
    assert_eq!(function.get("/ok"), "ok\n");
}

#[test]
fn kvm_a_jump_to_where_the_library_os_is_comes_to_the_programs_handler() {
    if !require_kvm() {
        return;
    }
    each_libc("jumps", |path| {
        let mut function = Function::new(path);
        for _ in 0..2 {
            let outcome = function.fresh("GET", "/handled", b"");
            let body = outcome.result.unwrap().body;
            assert_eq!(body, b"36 of 36\n", "{}", outcome.log);
            assert_eq!(function.get("/steps"), "20 right, stepped: 1\n");
        }
        let failure = function.failure("/handler");
        assert!(failure.contains("no handler of signal 10"), "{failure}");
    });
}

#[test]
fn kvm_the_library_os_run_from_anywhere_is_the_programs_own_loss() {
    if !require_kvm() {
        return;
    }
    let mut function = Function::new(&guest("jumps"));
    function.deadline = patience(Duration::from_millis(300));
    function.cpu = function.deadline;
    let mut handled = 0;
    let places = if is_slow() { 8 } else { 100 };
    for place in 0..places {
        // All over the stubs and the library OS's code, at the start of an instruction or not.
        let at = match place % 4 {
            0 => 0x3_0000 + place * 37,
            _ => 0x10_0000 + place * 1117,
        };
        let outcome = function.fresh("GET", &format!("/at/{at:x}"), b"");
        match outcome.result {
            Ok(_) => handled += 1,
            Err(Failure::Host(error)) => panic!("{at:#x} is blamed on the host: {error}"),
            Err(_) => {}
        }
    }
    println!("{handled} of {places} came back");
    function.deadline = patience(Duration::from_secs(10));
    function.cpu = function.deadline;
    assert_eq!(function.get("/ok"), "ok\n");
}

#[test]
fn kvm_privileged_instructions_are_refused() {
    if !require_kvm() {
        return;
    }
    each_fails("executes_hlt", &[("/", "privileged instruction")]);
    const WAYS: [&str; 13] = [
        "/cli",
        "/out_hostcall",
        "/out_exception",
        "/in",
        "/read_cr3",
        "/write_cr3",
        "/write_dr7",
        "/wrmsr",
        "/rdmsr",
        "/lgdt",
        "/invlpg",
        "/swapgs",
        "/iretq",
    ];
    each_fails(
        "executes_privileged",
        &WAYS.map(|way| (way, "privileged instruction")),
    );
}

#[test]
fn kvm_the_stub_and_what_it_works_with_cannot_be_written_to() {
    if !require_kvm() {
        return;
    }
    // Its tables, its stack, its scratch page, its code, and the pages around them.
    let places = [
        TABLES_ADDR,
        IDT_ADDR,
        STUB_STACK_ADDR,
        STUB_SCRATCH_ADDR,
        STUB_CR3_ADDR,
        STUB_ADDR - 1,
        STUB_ADDR,
        STUB_HOSTCALL_ADDR,
        STUB_ADDR + PAGE_BYTES,
        USER_START - 1,
    ];
    let mut function = Function::new(&guest("faults"));
    for place in places {
        let failure = function.failure(&format!("/write/{place}"));
        let is_refused = failure.contains("write memory that it may not");
        assert!(is_refused, "{place:#x}: {failure}");
    }
}

#[test]
fn kvm_code_is_never_writable_and_data_never_executable() {
    if !require_kvm() {
        return;
    }
    each_fails("writes_code", &[("/", "write memory that it may not")]);
    each_fails(
        "executes_stack",
        &[
            ("/", "execute data"),
            ("/heap", "execute data"),
            ("/data", "execute data"),
        ],
    );
    // Where a program asks for both, an instruction that writes to its own page gets no further.
    each_fails(
        "run_time_code",
        &[("/own_page", "write memory that it may not")],
    );
}

#[test]
fn kvm_code_that_is_made_at_run_time_runs_wherever_it_was_written() {
    if !require_kvm() {
        return;
    }
    each_libc("run_time_code", |path| {
        let mut guest = Function::new(path);
        for _ in 0..2 {
            for target in [
                "/protected",
                "/both",
                "/heap",
                "/patched",
                "/file",
                "/given_back",
                "/threads",
            ] {
                assert_eq!(guest.get(target), "fine\n", "{target}");
            }
        }
    });
}

#[test]
fn kvm_functions_within_functions_run_from_a_stack_that_may_be_executed() {
    if !require_kvm() {
        return;
    }
    each_libc("executable_stack", |path| {
        let mut guest = Function::new(path);
        assert_eq!(guest.get("/main"), "4950\n");
    });
    // Musl's threads have no such stacks, on the host either.
    let mut threads = Function::new(&guest("executable_stack"));
    assert_eq!(threads.get("/thread"), "4950\n");
}

#[test]
fn kvm_the_host_writes_no_request_over_code() {
    if !require_kvm() {
        return;
    }
    // `mov eax, 1337; ret`, over and over; more than what comes along with the head.
    let code: Vec<u8> = [0xB8, 0x39, 0x05, 0, 0, 0xC3, 0x90, 0x90].repeat(60_000);
    let mut function = Function::new(&guest("reads_into_code"));
    let outcome = function.fresh("POST", "/", &code);
    assert_eq!(
        outcome.result.unwrap().body,
        b"7\n",
        "the code is what it was"
    );
    assert!(outcome.log.contains("Bad address"), "{}", outcome.log);
    assert_eq!(function.get("/ok"), "ok\n");
}

#[test]
fn kvm_guards_hold() {
    if !require_kvm() {
        return;
    }
    each_fails("stack_overflow", &[("/", "overflowed its stack")]);
    each_fails(
        "reads_guard_pages",
        &[("/protected", "memory that it may not")],
    );
}

#[test]
fn kvm_memory_ends_at_the_limit_and_the_report_says_so() {
    if !require_kvm() {
        return;
    }
    each_fails("exhausts_memory", &[("/", "memory limit was reached")]);
    let mut function = Function::new(&guest("exhausts_memory"));
    let text = function.get("/refused");
    let mib: u64 = text
        .split(|c: char| !c.is_ascii_digit())
        .find_map(|w| w.parse().ok())
        .unwrap();
    assert!((30..64).contains(&mib), "{text}");
    let report = Function::new(&guest("uses_promised_memory")).failure("/");
    assert!(
        report.contains("uses more memory than [limits] memory allows"),
        "{report}"
    );
    assert!(report.contains(" in touch_all+"), "{report}");
    assert!(report.contains("called by main+"), "{report}");
}

#[test]
fn kvm_a_program_that_ends_itself_is_told_apart() {
    if !require_kvm() {
        return;
    }
    each_fails(
        "aborts",
        &[
            ("/", "SIGABRT"),
            ("/exit/7", "status 7"),
            ("/kill/9", "SIGKILL"),
        ],
    );
    each_fails("closes_unanswered", &[("/", "without answering")]);
}

#[test]
fn kvm_a_malformed_response_is_the_programs_fault() {
    if !require_kvm() {
        return;
    }
    let source = include_str!("../../../tests/guests/malformed_response.c");
    let paths: Vec<&str> = source
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("{\"")?.split_once('"'))
        .map(|(path, _)| path)
        .collect();
    assert!(paths.len() > 5, "{paths:?}");
    let mut function = Function::new(&guest("malformed_response"));
    for path in paths {
        let failure = function.failure(path);
        assert!(failure.contains("response"), "{path}: {failure}");
    }
}

#[test]
fn kvm_an_oversized_response_is_refused_and_one_at_the_limit_is_not() {
    if !require_kvm() {
        return;
    }
    let mut function = Function::new(&guest("oversized_response"));
    assert_eq!(function.get("/body/1048576").len(), 1 << 20);
    for (path, expected) in [
        ("/body/1048577", "response_body"),
        ("/body/100000000", "response_body"),
        ("/chunked/100000000", "response_body"),
        ("/head/200000", "64 KiB"),
        ("/headers/500", "128 headers"),
    ] {
        let failure = function.failure(path);
        assert!(failure.contains(expected), "{path}: {failure}");
    }
}

/// Bad hostcalls, and a part of what each comes to: of the failure's text, or of the guest's answer.
const BAD_HOSTCALLS: [(&str, &str); 36] = [
    ("/number_zero", "hostcall 0, which does not exist"),
    ("/number_unknown", "hostcall 9999, which does not exist"),
    ("/all_ones", "which does not exist"),
    ("/flags_unknown", "it has begun to respond already"),
    (
        "/head_in_stub",
        "to respond: its buffer is not the guest's memory",
    ),
    (
        "/head_wild",
        "to respond: its buffer is not the guest's memory",
    ),
    ("/head_empty", "response cannot be passed on: cut short"),
    (
        "/head_garbage",
        "response cannot be passed on: head_bytes differs",
    ),
    ("/head_huge", "its head is longer than 65536 bytes"),
    ("/body_huge", "its body is larger than the 1048576 bytes"),
    (
        "/body_wraps",
        "to respond: its buffer is not the guest's memory",
    ),
    (
        "/body_in_page_tables",
        "to respond: its buffer is not the guest's memory",
    ),
    (
        "/wait_into_stub",
        "to wait for a request: its buffer is not memory that the guest may write",
    ),
    (
        "/wait_into_boot_page",
        "to wait for a request: its buffer is not memory that the guest may write",
    ),
    (
        "/wait_into_kernel",
        "to wait for a request: its buffer is not memory that the guest may write",
    ),
    (
        "/wait_wild",
        "to wait for a request: its buffer is not memory that the guest may write",
    ),
    ("/wait_tiny", "returned 0"),
    (
        "/place_unknown",
        "to name a request: there are not so many places",
    ),
    (
        "/request_body_into_stub",
        "to read the request's body: its buffer is not memory that the guest may write",
    ),
    (
        "/request_body_wild",
        "to read the request's body: its buffer is not memory that the guest may write",
    ),
    (
        "/body_before_head",
        "to respond: a body came without a head",
    ),
    ("/head_twice", "it has begun to respond already"),
    ("/wait_unanswered", "returned 0"),
    ("/log_huge", "returned"),
    (
        "/abort_text_wild",
        "gave up for an unknown reason (18446744073709551615): it does not say why",
    ),
    (
        "/abort_text_in_stub",
        "gave up, for a fault of its own or because the program damaged it",
    ),
    ("/exit", "exited with status 7 before it answered"),
    (
        "/park_for_ever",
        "did not answer before its deadline; it was waiting for the host",
    ),
    ("/park_in_the_past", "returned 0"),
    ("/protect_stub", "returned -1"),
    ("/protect_kernel", "returned -1"),
    ("/protect_wild", "returned -1"),
    ("/protect_wraps", "returned -1"),
    ("/protect_unaligned", "returned -1"),
    ("/protect_kind", "returned -1"),
    ("/for_ever", "did not answer before its deadline"),
];

#[test]
fn kvm_a_bad_hostcall_harms_only_the_one_who_makes_it() {
    if !require_kvm() {
        return;
    }
    let source = include_str!("../../../tests/guests/bad_hostcall.c");
    let made = source.matches("is_path(request, \"").count();
    assert_eq!(made, BAD_HOSTCALLS.len(), "each has its line in the table");
    let mut function = Function::new(&guest("bad_hostcall"));
    function.deadline = holm_test_support::patience(Duration::from_millis(500));
    // Of which the guest reads only the beginning.
    let body = vec![b'b'; 256 << 10];
    for (path, expected) in BAD_HOSTCALLS {
        let what = match function.fresh("GET", path, &body).result {
            Ok(response) => String::from_utf8_lossy(&response.body).into_owned(),
            Err(Failure::Host(error)) => panic!("{path} is blamed on the host: {error}"),
            Err(failure) => failure.to_string(),
        };
        assert!(what.contains(expected), "{path}: {what}");
        assert_eq!(function.get("/ok"), "ok\n", "the instance after {path}");
    }
}

#[test]
fn kvm_a_program_that_never_answers_is_stopped_at_its_deadline() {
    if !require_kvm() {
        return;
    }
    for (name, path) in [
        ("loops", "/"),
        ("loops", "/syscalls"),
        ("sleeps", "/for_ever"),
    ] {
        let mut function = Function::new(&guest(name));
        function.deadline = holm_test_support::patience(Duration::from_millis(100));
        let start = Instant::now();
        let outcome = function.fresh("GET", path, b"");
        let late = start.elapsed().saturating_sub(function.deadline);
        assert!(
            late < holm_test_support::patience(Duration::from_millis(200)),
            "{late:?}"
        );
        match outcome.result {
            Err(Failure::Deadline(place)) => {
                assert!(place.to_string().contains("it was "), "{place}");
            }
            // A wait without end is found out at once.
            Err(Failure::Crash(report)) if name == "sleeps" => {
                assert!(report.what.contains("never come"), "{report}");
            }
            _ => panic!("{name} {path} was not stopped"),
        }
        assert_eq!(function.get("/ok"), "ok\n");
    }
}

#[test]
fn kvm_the_cpu_limit_stops_what_computes_too_long() {
    if !require_kvm() {
        return;
    }
    let mut function = Function::new(&guest("loops"));
    function.cpu = Duration::from_millis(30);
    let outcome = function.fresh("GET", "/", b"");
    let failure = outcome.result.unwrap_err();
    assert!(matches!(failure, Failure::CpuLimit(_)));
    assert!(
        failure.to_string().contains("it was at instruction"),
        "{failure}"
    );
    assert!(function.slot.stats().cpu < function.deadline);
}

#[test]
fn kvm_a_program_that_is_never_ready_fails_with_the_reason_and_its_log() {
    if !require_kvm() {
        return;
    }
    for (name, expected) in [
        (
            "exits_before_ready",
            "exited with status 3 before it was ready",
        ),
        ("crashes_before_ready", "null pointer"),
        ("never_listens", "not ready within"),
        (
            "waits_for_nothing",
            "can never come, and does not listen on $PORT (8080), at instruction ",
        ),
        ("waits_for_nothing", "called by wait_for_settings+"),
        ("sleeps_before_ready", ""),
    ] {
        let error = boot(&guest(name), &config(&[])).unwrap_err();
        assert!(
            !matches!(error.failure, Failure::Host(_)),
            "{name}: {error}"
        );
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
}

#[test]
fn kvm_of_a_program_that_ends_early_the_file_is_told_that_it_did_not_find() {
    if !require_kvm() {
        return;
    }
    let path = guest("lacks_a_file");
    let error = boot(&path, &config(&[])).unwrap_err();
    let log = String::from_utf8_lossy(&error.log).into_owned();
    assert!(
        log.contains("did not find: /etc/greeter/settings.toml (an artifact brings files"),
        "{log}"
    );
    // Later it may be as it should.
    let mut function = Function::with(&path, &config(&[("LATER", "1")]));
    let outcome = function.send("GET", "/", b"");
    assert!(outcome.result.is_err());
    assert!(!outcome.log.contains("did not find"), "{}", outcome.log);
}

#[test]
fn kvm_whatever_ends_a_program_early_its_last_lines_name_the_calls_it_lacked() {
    if !require_kvm() {
        return;
    }
    for (end, expected) in [
        ("exit", "exited with status 3 before it was ready"),
        ("crash", "null pointer"),
        ("abort", "SIGABRT"),
        ("spin", "not ready within"),
        ("sleep", "not ready within"),
    ] {
        let check = |path: &Path| {
            let error = boot(path, &config(&[("HOLM_END", end)])).unwrap_err();
            let log = String::from_utf8_lossy(&error.log);
            assert!(error.to_string().contains(expected), "{end}: {error}");
            // As little as the shortest report of a failure has.
            let tail = &log[log.len() - 2000..];
            let last: Vec<&str> = tail.lines().rev().take(20).collect();
            assert!(
                last[0].starts_with("holm: system calls that it made and that are not supported"),
                "{end}: {last:?}"
            );
            for name in ["execve", "number 461"] {
                assert!(last[0].contains(name), "{end}: {last:?}");
            }
            assert!(
                last[0].contains("fork") || last[0].contains("clone"),
                "{end}: {last:?}"
            );
            assert!(last.contains(&"the last line"), "{end}: {last:?}");
            assert!(log.len() < 100_000, "{end}: {} bytes", log.len());
        };
        match expected {
            // This takes a while.
            "not ready within" => check(&guest("lacks_calls")),
            _ => each_libc("lacks_calls", check),
        }
    }
}

#[test]
fn kvm_a_program_that_does_not_do_without_what_some_kernels_refuse_is_told_its_name() {
    if !require_kvm() {
        return;
    }
    let error = boot(&guest("needs_io_uring"), &config(&[])).unwrap_err();
    let log = String::from_utf8_lossy(&error.log);
    assert!(
        log.ends_with("that some kernels refuse, and Holm too: io_uring_setup\n"),
        "{}",
        &log[log.len() - 300..]
    );
}

#[test]
fn kvm_a_program_larger_than_its_memory_is_refused_with_the_size_it_needs() {
    if !require_kvm() {
        return;
    }
    let mut small = config(&[]);
    small.memory_bytes = 1 << 20;
    let error = boot(&guest("scribbles"), &small).unwrap_err().to_string();
    assert!(error.contains("[limits] memory"), "{error}");
    let mut env = config(&[]);
    env.env = vec![("LONG".into(), "x".repeat(4 << 20))];
    let error = boot(&guest("state"), &env).unwrap_err().to_string();
    assert!(error.contains("[env]"), "{error}");
}

#[test]
fn kvm_the_page_gate_gives_a_hostile_program_nothing_that_is_not_its_own() {
    if !require_kvm() {
        return;
    }
    let mut function = Function::new(&guest("page_gate"));
    for seed in 1..=3 {
        let answer = function.get(&format!("/{seed}"));
        let numbers: Vec<u64> = answer
            .split_ascii_whitespace()
            .skip(1)
            .filter_map(|word| word.parse().ok())
            .collect();
        assert!(answer.starts_with("fine"), "seed {seed}: {answer}");
        assert!(
            numbers.iter().all(|number| *number > 100),
            "seed {seed}: {answer}"
        );
    }
    assert_eq!(function.get("/ok"), "ok\n");
}

#[test]
fn kvm_a_crash_tells_who_called_whom() {
    if !require_kvm() {
        return;
    }
    for path in [Some(guest("backtrace")), musl_guest("backtrace")]
        .into_iter()
        .flatten()
    {
        let mut guest = Function::new(&path);
        for target in ["/null", "/abort", "/jump"] {
            let report = guest.failure(target);
            // What a crash in a library's depth passes through is its own matter; the order has to be right.
            let places = ["by middle+", "by outermost+", "by main+"].map(|name| report.find(name));
            assert!(
                places[0].is_some() && places.is_sorted(),
                "{target} of {}: {report}",
                path.display()
            );
        }
        let report = guest.failure("/signal");
        let places = [
            "by handler+",
            "by innermost+",
            ", which a signal had interrupted\n",
            "by middle+",
            "by outermost+",
        ];
        let places = places.map(|name| report.find(name));
        assert!(
            places[0].is_some() && places.is_sorted(),
            "{}: {report}",
            path.display()
        );
        let report = guest.failure("/deep");
        assert_eq!(report.matches("called by deeper+").count(), 1, "{report}");
        assert!(report.ends_with(", 23 times"), "{report}");
        let report = guest.failure("/smashed");
        assert!(!report.contains("called by"), "{report}");
    }
}
