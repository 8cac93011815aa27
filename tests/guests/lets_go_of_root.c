/* What servers do at their start: find the user that they are to run as and become that, lock memory
   and ask how much they use, mark descriptors, look up a service by its name. `/` says "fine", or what is
   not as on Linux. */
#include "guest.h"
#include <grp.h>
#include <netdb.h>
#include <pwd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>

static const char *problem;

static void check(int good, const char *what) {
    if (!good && problem == NULL)
        problem = what;
}

static void refused(int result, int error, const char *what) {
    check(result == -1 && errno == error, what);
}

static void become_nobody(void) {
    struct passwd *nobody = getpwnam("nobody");
    struct group *nogroup = getgrnam("nogroup");
    if (nobody == NULL || nogroup == NULL) {
        check(0, "there is no nobody");
        return;
    }
    uid_t user = nobody->pw_uid, real, effective, saved;
    check(setgroups(0, NULL) == 0 && setgid(nogroup->gr_gid) == 0, "setgid as root");
    check(getgid() == nogroup->gr_gid && getegid() == nogroup->gr_gid, "the group");
    check(setresuid(user, user, 0) == 0, "setresuid as root");
    check(getresuid(&real, &effective, &saved) == 0 && real == user && effective == user && saved == 0,
          "getresuid");
    refused(setgid(0), EPERM, "setgid as nobody");
    refused(setgroups(0, NULL), EPERM, "setgroups as nobody");
    check(seteuid(0) == 0 && geteuid() == 0 && getuid() == user, "back to the saved user");
    check(setuid(user) == 0 && getuid() == user && geteuid() == user, "setuid for good");
    refused(setuid(0), EPERM, "setuid as nobody");
    refused(seteuid(0), EPERM, "seteuid as nobody");
}

static void lock_memory(void) {
    char *pages = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(mlock(pages + 100, 5000) == 0 && munlock(pages + 100, 5000) == 0, "mlock");
    check(mlockall(MCL_CURRENT) == 0 && munlockall() == 0, "mlockall");
    munmap(pages + 8192, 8192);
    refused(mlock(pages, 16384), ENOMEM, "mlock of what is not there");
}

static void handle(const struct request *request) {
    become_nobody();
    lock_memory();
    struct rusage usage;
    check(getrusage(RUSAGE_SELF, &usage) == 0 && usage.ru_maxrss > 0, "ru_maxrss");
    check(ioctl(request->connection, FIOCLEX) == 0, "FIOCLEX");
    check(ioctl(request->connection, FIONCLEX) == 0, "FIONCLEX");
    refused(ioctl(999, FIOCLEX), EBADF, "FIOCLEX of nothing");
    struct addrinfo *found = NULL, hints = {.ai_socktype = SOCK_STREAM};
    check(getaddrinfo("127.0.0.1", "https", &hints, &found) == 0 &&
              ((struct sockaddr_in *)found->ai_addr)->sin_port == htons(443),
          "the service https");
    answer(request, "%s\n", problem == NULL ? "fine" : problem);
}

int main(void) {
    serve(handle);
}
