//! What a program that was never ready lacked: the system calls that it made and that are not served. They are probably
//! why it got no further, and may be far above its last lines, or nowhere in its log.

use std::mem::offset_of;

use holm_hostcall::{LACKING_ADDR, LackingPage};

use crate::runner::Runner;

/// Most calls that are named of each kind.
const MOST: usize = 10;
/// The names of the calls that are not served, by their numbers (Linux's syscall_64.tbl).
const NAMES: &[(u64, &str)] = &[
    (29, "shmget"),
    (30, "shmat"),
    (31, "shmctl"),
    (56, "clone"),
    (57, "fork"),
    (58, "vfork"),
    (59, "execve"),
    (64, "semget"),
    (65, "semop"),
    (66, "semctl"),
    (67, "shmdt"),
    (68, "msgget"),
    (69, "msgsnd"),
    (70, "msgrcv"),
    (71, "msgctl"),
    (101, "ptrace"),
    (103, "syslog"),
    (153, "vhangup"),
    (155, "pivot_root"),
    (161, "chroot"),
    (163, "acct"),
    (164, "settimeofday"),
    (165, "mount"),
    (166, "umount2"),
    (167, "swapon"),
    (168, "swapoff"),
    (169, "reboot"),
    (170, "sethostname"),
    (171, "setdomainname"),
    (172, "iopl"),
    (173, "ioperm"),
    (175, "init_module"),
    (176, "delete_module"),
    (179, "quotactl"),
    (202, "futex"),
    (206, "io_setup"),
    (207, "io_destroy"),
    (208, "io_getevents"),
    (209, "io_submit"),
    (210, "io_cancel"),
    (220, "semtimedop"),
    (227, "clock_settime"),
    (240, "mq_open"),
    (241, "mq_unlink"),
    (242, "mq_timedsend"),
    (243, "mq_timedreceive"),
    (244, "mq_notify"),
    (245, "mq_getsetattr"),
    (246, "kexec_load"),
    (248, "add_key"),
    (249, "request_key"),
    (250, "keyctl"),
    (298, "perf_event_open"),
    (300, "fanotify_init"),
    (301, "fanotify_mark"),
    (304, "open_by_handle_at"),
    (308, "setns"),
    (310, "process_vm_readv"),
    (311, "process_vm_writev"),
    (312, "kcmp"),
    (313, "finit_module"),
    (317, "seccomp"),
    (320, "kexec_file_load"),
    (321, "bpf"),
    (322, "execveat"),
    (323, "userfaultfd"),
    (329, "pkey_mprotect"),
    (330, "pkey_alloc"),
    (331, "pkey_free"),
    (333, "io_pgetevents"),
    (424, "pidfd_send_signal"),
    (425, "io_uring_setup"),
    (426, "io_uring_enter"),
    (427, "io_uring_register"),
    (434, "pidfd_open"),
    (435, "clone3"),
    (438, "pidfd_getfd"),
    (440, "process_madvise"),
    (444, "landlock_create_ruleset"),
    (445, "landlock_add_rule"),
    (446, "landlock_restrict_self"),
    (447, "memfd_secret"),
    (448, "process_mrelease"),
    (449, "futex_waitv"),
    (450, "set_mempolicy_home_node"),
    (451, "cachestat"),
    (453, "map_shadow_stack"),
    (454, "futex_wake"),
    (455, "futex_wait"),
    (456, "futex_requeue"),
    (457, "statmount"),
    (458, "listmount"),
    (459, "lsm_get_self_attr"),
    (460, "lsm_set_self_attr"),
];

/// The last lines of a log. That the guest cannot be read is not what it fails of.
pub(super) fn lines(runner: &Runner) -> String {
    let named = numbers(runner, offset_of!(LackingPage, named));
    let silent = numbers(runner, offset_of!(LackingPage, silent));
    let mut lines = String::new();
    for (calls, what) in [
        (silent, "that some kernels refuse, and Holm too"),
        (named, "that are not supported"),
    ] {
        if !calls.is_empty() {
            let calls: Vec<String> = calls.into_iter().take(MOST).map(name).collect();
            let calls = calls.join(", ");
            lines += &format!("\nholm: system calls that it made and {what}: {calls}\n");
        }
    }
    lines
}

/// The numbers of the calls that are marked in one part of the page.
fn numbers(runner: &Runner, part: usize) -> Vec<u64> {
    const WORDS: u64 = 8;
    let word = |index: u64| {
        let memory = runner.machine.memory().ok()?;
        memory.read_u64(LACKING_ADDR + part as u64 + index * 8).ok()
    };
    let words = (0..WORDS).map(|index| word(index).unwrap_or(0));
    let bits = words.enumerate();
    bits.flat_map(|(index, word)| {
        let marked = (0..64).filter(move |bit| word >> bit & 1 != 0);
        marked.map(move |bit| index as u64 * 64 + bit)
    })
    .collect()
}

fn name(number: u64) -> String {
    match NAMES.binary_search_by_key(&number, |(number, _)| *number) {
        Ok(at) => NAMES[at].1.to_owned(),
        Err(_) => format!("number {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_order_of_their_numbers() {
        assert!(NAMES.is_sorted_by(|one, next| one.0 < next.0));
        assert_eq!(name(425), "io_uring_setup");
        assert_eq!(name(461), "number 461");
    }
}
