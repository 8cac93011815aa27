/* The one process: who it is, its limits and its scheduling, and what it may not do. */
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <sys/wait.h>

static void process_start(void) {}

static void process_step(void) {
    struct pointer at = any_pointer();
    int64_t whom = PICK(0, 0, 0, -1, 4000000);
    say("%u ", step);
    switch (below(36)) {
    case 0: {
        int64_t resource = PICK(0, 1, 2, 4, 5, 6, 8, 10, 15, 16, -1);
        struct rlimit limit;
        say("getrlimit(%ld)", (long)resource);
        recorded(CALL(SYS_getrlimit, resource, &limit));
        break;
    }
    case 1: {
        struct rlimit now, set = {(rlim_t)PICK(64, 256, 1024), (rlim_t)PICK(1024, 512)};
        say("prlimit(%ld, NOFILE, %ld, %ld)", (long)whom, (long)set.rlim_cur, (long)set.rlim_max);
        if (set.rlim_max < 1024)
            set.rlim_max = set.rlim_cur - 1;
        recorded(CALL(SYS_prlimit64, whom, RLIMIT_NOFILE, &set, &now));
        CALL(SYS_getrlimit, RLIMIT_NOFILE, &now);
        say(" now %ld of %ld", (long)now.rlim_cur, (long)now.rlim_max);
        break;
    }
    case 2: {
        struct rlimit now, set = {(rlim_t)PICK(0, 0), RLIM_INFINITY};
        int resource = RLIMIT_CORE;
        say("setrlimit(CORE, %ld)", (long)set.rlim_cur);
        recorded(CALL(SYS_setrlimit, resource, &set));
        CALL(SYS_getrlimit, resource, &now);
        say(" now %ld", (long)now.rlim_cur);
        break;
    }
    case 3:
        say("prlimit(%ld, NOFILE, %s)", (long)whom, at.name);
        recorded(CALL(SYS_prlimit64, whom, RLIMIT_NOFILE, NULL, at.at));
        break;
    case 4: {
        char name[17] = "";
        static const char *const given[] = {"worker", "a name that is much too long", ""};
        const char *set = given[below(3)];
        say("prctl(SET_NAME, \"%s\")", set);
        recorded(CALL(SYS_prctl, PR_SET_NAME, set));
        CALL(SYS_prctl, PR_GET_NAME, name);
        say(" \"%s\"", name);
        break;
    }
    case 5:
        say("prctl(GET_NAME, %s)", at.name);
        recorded(CALL(SYS_prctl, PR_GET_NAME, at.at));
        break;
    case 6: {
        int64_t option = PICK(PR_GET_TIMING, PR_SET_TIMING, PR_GET_TSC, PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER,
                              PR_GET_PDEATHSIG, PR_SET_THP_DISABLE, PR_GET_THP_DISABLE, PR_GET_TIMERSLACK,
                              PR_GET_SECUREBITS, PR_MCE_KILL_GET, PR_SET_KEEPCAPS, PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_GET_KEEPCAPS, PR_SET_PDEATHSIG,
                              PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS, PR_SET_TIMERSLACK, 9999);
        int64_t argument = PICK(0, 1, 1, 77);
        if (option == PR_SET_PDEATHSIG)
            argument = PICK(0, 77, -1);
        if (option == PR_SET_TIMERSLACK)
            argument = 50000;
        if (option == PR_GET_TSC || option == PR_GET_CHILD_SUBREAPER || option == PR_GET_PDEATHSIG) {
            int value = -1;
            say("prctl(%ld, %s)", (long)option, at.name);
            recorded(CALL(SYS_prctl, option, at.at == ground ? (char *)&value : at.at, 0, 0, 0));
            say(" %d", value);
            break;
        }
        say("prctl(%ld, %ld)", (long)option, (long)argument);
        recorded(CALL(SYS_prctl, option, argument, 0, 0, 0));
        break;
    }
    case 7: {
        uint64_t base = 0, again = 0;
        say("arch_prctl");
        recorded(CALL(SYS_arch_prctl, 0x1003, &base));
        recorded(CALL(SYS_arch_prctl, 0x1004, &again));
        recorded(CALL(SYS_arch_prctl, PICK(0, 0x7777, -1), 0));
        recorded(CALL(SYS_arch_prctl, 0x1002, 1L << 63));
        recorded(CALL(SYS_arch_prctl, 0x1003, NULL));
        say(" %s %ld", base != 0 ? "set" : "unset", (long)again);
        break;
    }
    case 8: {
        int policy = (int)PICK(0, 1, 2, 3, 5, 4, 99, -1);
        say("sched_get_priority_max/min(%d)", policy);
        recorded(CALL(SYS_sched_get_priority_max, policy));
        recorded(CALL(SYS_sched_get_priority_min, policy));
        break;
    }
    case 9:
        say("sched_getscheduler(%ld)", (long)whom);
        recorded(CALL(SYS_sched_getscheduler, whom));
        break;
    case 10:
        say("sched_getparam(%ld, %s)", (long)whom, at.name);
        recorded(CALL(SYS_sched_getparam, whom, at.at));
        break;
    case 11: {
        int64_t bytes = PICK(0, 1, 8, 128, 1024, 12);
        say("sched_getaffinity(%ld, %ld)", (long)whom, (long)bytes);
        memset(ground, 0, 1024);
        long got = CALL(SYS_sched_getaffinity, whom, bytes, ground);
        tell_success(got);
        break;
    }
    case 12: {
        uint64_t set = (uint64_t)PICK(1, 0, -1);
        say("sched_setaffinity(%ld, %lx)", (long)whom, (long)set);
        recorded(CALL(SYS_sched_setaffinity, whom, 8, &set));
        break;
    }
    case 13:
        say("getrandom(%s, 100, %ld)", at.name, (long)PICK(0));
        recorded(CALL(SYS_getrandom, at.at, PICK(0, 1, 5, 100), PICK(0, 1, 2, 3, 8)));
        break;
    case 14:
        say("getcpu(%s)", at.name);
        recorded(CALL(SYS_getcpu, at.at, NULL, NULL));
        break;
    case 15: {
        struct utsname name;
        say("uname(%s)", at.name);
        recorded(CALL(SYS_uname, at.at));
        CALL(SYS_uname, &name);
        say(" %s %s", name.sysname, name.machine);
        break;
    }
    case 16: {
        struct sysinfo info;
        say("sysinfo(%s)", at.name);
        recorded(CALL(SYS_sysinfo, at.at));
        CALL(SYS_sysinfo, &info);
        say(" %s %s", info.mem_unit == 1 ? "bytes" : "units", info.freeram <= info.totalram && info.totalram > 0 ? "fits" : "does not fit");
        break;
    }
    case 17: {
        int options = (int)PICK(0, WNOHANG, 0x100, WUNTRACED);
        int64_t pid = PICK(-1, 0, 4000000);
        say("wait4(%ld, %#x)", (long)pid, options);
        recorded(CALL(SYS_wait4, pid, NULL, options, NULL));
        break;
    }
    case 18: {
        int64_t kind = PICK(0, 1, 2, 9), options = PICK(4, 4 | WNOHANG, 0);
        say("waitid(%ld, %#lx)", (long)kind, (long)options);
        recorded(CALL(SYS_waitid, kind, PICK(0, 4000000), NULL, options, NULL));
        break;
    }
    case 19:
        say("ids %ld %ld %ld %ld", CALL(SYS_getuid), CALL(SYS_geteuid), CALL(SYS_getgid), CALL(SYS_getegid));
        say(" %s", CALL(SYS_getpid) == CALL(SYS_gettid) ? "first thread" : "another thread");
        break;
    case 20:
        say("getpgid(%ld)", (long)whom);
        tell_success(CALL(SYS_getpgid, whom));
        say(" getsid");
        tell_success(CALL(SYS_getsid, whom));
        say(" getpgrp");
        tell_success(CALL(SYS_getpgrp));
        break;
    case 21: {
        int64_t which = PICK(0, 0, 1, 3), nice = PICK(0, 5, 100);
        if (whom < 0)
            whom = 4000000;
        say("setpriority(%ld, %ld, %ld)", (long)which, (long)whom, (long)nice);
        if (which == 1 || which == 2)
            which = 0;
        recorded(CALL(SYS_setpriority, which, whom, nice));
        say(" getpriority");
        recorded(CALL(SYS_getpriority, which, whom));
        break;
    }
    case 22: {
        uint32_t header[2] = {(uint32_t)PICK(0x20080522, 0x19980330, 0x20071026, 1), 0}, data[6];
        say("capget(%#x)", header[0]);
        recorded(CALL(SYS_capget, header, one_in(3) ? NULL : data));
        say(" %#x", header[0]);
        break;
    }
    case 23: {
        int64_t persona = PICK(0xffffffff, 0xffffffff, 0);
        say("personality(%#lx)", (long)persona);
        recorded(CALL(SYS_personality, persona));
        break;
    }
    case 24: {
        int64_t bytes = PICK(24, 0, 16);
        static long head[3];
        head[0] = (long)head;
        say("set_robust_list(%ld)", (long)bytes);
        recorded(CALL(SYS_set_robust_list, head, bytes));
        break;
    }
    case 25: {
        int command = (int)PICK(8, 16, 77, -1);
        say("membarrier(%d)", command);
        recorded(CALL(SYS_membarrier, command, PICK(0, 0, 2), 0));
        break;
    }
    case 26: {
        int64_t bytes = PICK(0, 1, 2, -1);
        gid_t groups[64];
        (void)groups;
        say("getgroups(%ld)", (long)(bytes < 0 ? bytes : 0));
        tell_success(CALL(SYS_getgroups, bytes < 0 ? bytes : 0, groups));
        break;
    }
    case 27: {
        /* 2 is MFD_ALLOW_SEALING; what older kernels do not know is left to the test of seals. */
        int64_t flags = PICK(0, MFD_CLOEXEC, 0x1000, 2, 2, 2);
        int64_t seals = PICK(0, 1, 2, 4, 8, 16, 6, 20, 64), at = PICK(0, 900, 4000, 5000);
        say("memfd_create(%#lx)", (long)flags);
        long fd = recorded(CALL(SYS_memfd_create, "name", flags));
        if (fd >= 0) {
            fill((char)step);
            recorded(CALL(SYS_write, fd, ground, 1000));
            say(" seals %#lx", (long)seals);
            recorded(CALL(SYS_fcntl, fd, 1033, seals));
            recorded(CALL(SYS_fcntl, fd, 1034, 0));
            say(" at %ld", (long)at);
            recorded(CALL(SYS_pwrite64, fd, ground, 200, at));
            recorded(CALL(SYS_fchmod, fd, PICK(0644, 0755)));
            memset(ground, 0, BUFFER_BYTES);
            recorded(CALL(SYS_pread64, fd, ground, 2000, 10));
            say_hash(ground, 2000);
            recorded(CALL(SYS_ftruncate, fd, 500));
            recorded(CALL(SYS_ftruncate, fd, 5000));
            recorded(CALL(SYS_lseek, fd, 0, SEEK_END));
            recorded(CALL(SYS_close, fd));
        }
        break;
    }
    case 29: {
        int64_t bytes = PICK(48, 48, 100, 47, 0, 5000), flags = PICK(0, 0, 1);
        memset(ground, 1, 200);
        say("sched_getattr(%ld, %ld, %ld)", (long)whom, (long)bytes, (long)flags);
        if (recorded(CALL(SYS_sched_getattr, whom, ground, bytes, flags)) == 0)
            say(" policy %u nice %s priority %u", *(uint32_t *)(ground + 4),
                *(int32_t *)(ground + 16) == 20 - CALL(SYS_getpriority, 0, 0) ? "as set" : "another",
                *(uint32_t *)(ground + 20));
        break;
    }
    case 30: {
        int64_t which = PICK(1, 1, 2, 9, 0);
        say("ioprio_get(%ld, %ld)", (long)which, (long)whom);
        if (which == 2)
            whom = 0;
        tell_success(CALL(SYS_ioprio_get, which, whom));
        break;
    }
    case 31: {
        int mode = -1;
        say("get_mempolicy");
        recorded(CALL(SYS_get_mempolicy, &mode, NULL, 0, NULL, 0));
        say(" %d unshare", mode);
        recorded(CALL(SYS_unshare, PICK(0, 0x400, 0x200, 1)));
        break;
    }
    case 32: {
        static const char *const files[] = {"/tmp", "/tmp/none", "/tmp/x/y"};
        int which = (int)below(3), file = (int)below(3);
        say("xattr %d \"%s\"", which, files[file]);
        long got = which == 0   ? CALL(SYS_getxattr, files[file], "user.none", ground, 10)
                   : which == 1 ? CALL(SYS_listxattr, files[file], ground, 10)
                                : CALL(SYS_fgetxattr, PICK(-1, 1000), "user.none", ground, 10);
        recorded(got);
        break;
    }
    case 33: {
        int number = (int)PICK(SYS_ptrace, SYS_process_vm_readv, SYS_setns, SYS_syncfs, SYS_sync_file_range, SYS_sync);
        say("call %d of what is not here", number);
        if (number == SYS_syncfs || number == SYS_sync_file_range)
            recorded(CALL(number, PICK(-1, 1000), 0, 0, 0));
        else
            say(" left out");
        break;
    }
    case 34: {
        int64_t flags = PICK(O_RDONLY, O_RDWR | O_CREAT, 1L << 40), mode = PICK(0, 0600, 010000), size = PICK(24, 24, 20, 32, 5000);
        uint64_t how[4] = {(uint64_t)flags, (uint64_t)mode, 0, (uint64_t)PICK(0, 0, 1)};
        say("openat2(%#lx, %#lo, %ld, %d)", (unsigned long)flags, (unsigned long)mode, (long)size, (int)how[3]);
        long fd = recorded(CALL(SYS_openat2, AT_FDCWD, "/tmp/how", size > 32 ? how : how, size));
        if (fd >= 0)
            CALL(SYS_close, fd);
        break;
    }
    case 28:
        say("sched_rr_get_interval(%ld)", (long)whom);
        tell_success(CALL(SYS_sched_rr_get_interval, whom, ground));
        recorded(CALL(SYS_sched_yield));
        say(" getresuid");
        recorded(CALL(SYS_getresuid, ground, ground + 4, at.at));
        break;
    default: {
        say("getcwd(%s, 100)", at.name);
        recorded(CALL(SYS_set_tid_address, ground) > 0 ? 0 : -1);
        break;
    }
    }
    say("\n");
}
