/* FIFOs: pipes that are found by a name in /tmp. Each path tells what it found; on the host the same program tells
   the same. */
#include "guest.h"
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

static char name[64];

static void make(void) {
    static int made;
    snprintf(name, sizeof name, "/tmp/holm-fifo-%d-%d", getpid(), made++);
    tell_result("mkfifo", mkfifo(name, 0640));
}

static int opened(const char *what, int flags) {
    int fd = open(name, flags);
    if (fd < 0)
        tell("%s: %s\n", what, errno == ENXIO ? "ENXIO" : strerrorname(errno));
    else
        tell("%s: open\n", what);
    return fd;
}

static void tell_read(const char *what, int fd) {
    char text[64] = {0};
    ssize_t got = read(fd, text, sizeof text - 1);
    if (got < 0)
        tell_result(what, got);
    else
        tell("%s: %zd \"%s\"\n", what, got, text);
}

static void tell_poll(const char *what, int fd) {
    struct pollfd one = {.fd = fd, .events = POLLIN | POLLOUT};
    int found = poll(&one, 1, 0);
    tell("%s: %d %#x\n", what, found, one.revents);
}

/* Ends that need not wait for each other. */
static void without_waits(void) {
    make();
    opened("a writer alone", O_WRONLY | O_NONBLOCK);
    int reader = opened("a reader alone", O_RDONLY | O_NONBLOCK);
    tell_read("nobody writes", reader);
    tell_poll("and none ever did", reader);
    int writer = opened("a writer", O_WRONLY | O_NONBLOCK);
    tell_read("nothing there", reader);
    tell_result("write", write(writer, "one two", 7));
    tell_poll("the reader", reader);
    tell_poll("the writer", writer);
    tell_read("read", reader);
    int second = opened("another writer", O_WRONLY);
    close(writer);
    tell_read("one is left", reader);
    close(second);
    tell_read("none is left", reader);
    tell_poll("they have gone", reader);
    writer = opened("one more", O_WRONLY);
    tell_poll("it is back", reader);
    tell_result("write", write(writer, "kept", 4));
    close(reader);
    tell_poll("nobody reads", writer);
    signal(SIGPIPE, SIG_IGN);
    tell_result("write", write(writer, "x", 1));
    reader = opened("a new reader", O_RDONLY | O_NONBLOCK);
    tell_read("what was kept", reader);
    tell_result("write", write(writer, "lost", 4));
    close(reader);
    close(writer);
    int both = opened("both", O_RDWR);
    tell_result("write", write(both, "itself", 6));
    tell_read("read", both);
    tell_result("size", fcntl(both, F_GETPIPE_SZ));
    tell_result("seek", lseek(both, 0, SEEK_CUR) < 0 && errno == ESPIPE ? 0 : 1);
    close(both);
    tell_result("unlink", unlink(name));
}

static void *writes_late(void *arg) {
    (void)arg;
    usleep(20000);
    int fd = open(name, O_WRONLY);
    if (fd < 0 || write(fd, "from a thread", 13) != 13)
        exit(60);
    close(fd);
    return NULL;
}

static void *reads_late(void *to) {
    usleep(20000);
    int fd = open(name, O_RDONLY);
    if (fd < 0 || read(fd, to, 63) < 0)
        exit(61);
    close(fd);
    return NULL;
}

static void nothing(int number) { (void)number; }

/* Who opens one end waits for the other. */
static void with_waits(void) {
    pthread_t thread;
    make();
    if (pthread_create(&thread, NULL, writes_late, NULL) != 0)
        exit(62);
    int fd = opened("a reader", O_RDONLY);
    tell_read("read", fd);
    tell_read("the end", fd);
    close(fd);
    pthread_join(thread, NULL);

    char text[64] = {0};
    if (pthread_create(&thread, NULL, reads_late, text) != 0)
        exit(63);
    fd = opened("a writer", O_WRONLY);
    tell_result("write", write(fd, "to a thread", 11));
    close(fd);
    pthread_join(thread, NULL);
    tell("it read \"%s\"\n", text);

    struct sigaction action = {.sa_handler = nothing};
    sigaction(SIGALRM, &action, NULL);
    ualarm(20000, 0);
    opened("interrupted", O_RDONLY);
    opened("nobody has stayed", O_WRONLY | O_NONBLOCK);
    tell_result("unlink", unlink(name));
}

static void names(void) {
    struct stat by_name, by_descriptor;
    char link[64], path[64] = {0}, own[80];
    make();
    tell_result("again", mkfifo(name, 0600));
    tell_result("stat", stat(name, &by_name));
    tell("mode %o, %ld bytes, %ld names\n", by_name.st_mode, (long)by_name.st_size, (long)by_name.st_nlink);
    int fd = opened("both", O_RDWR);
    tell_result("fstat", fstat(fd, &by_descriptor));
    tell("the same: %d\n", by_name.st_ino == by_descriptor.st_ino && by_name.st_mode == by_descriptor.st_mode);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    tell_result("readlink", readlink(link, path, sizeof path - 1) > 0 ? 0 : -1);
    tell("its name: %d\n", strcmp(path, name) == 0);
    tell_result("fchmod", fchmod(fd, 0600));
    stat(name, &by_name);
    tell("mode %o\n", by_name.st_mode);
    tell_result("truncate", truncate(name, 5));
    tell_result("ftruncate", ftruncate(fd, 5));
    int list = open(name, O_PATH);
    fstat(list, &by_descriptor);
    tell("by its mere name: mode %o\n", by_descriptor.st_mode);
    close(list);

    DIR *directory = opendir("/tmp");
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
        if (strcmp(entry->d_name, name + 5) == 0)
            tell("listed as %d\n", entry->d_type);
    closedir(directory);

    snprintf(own, sizeof own, "%s-moved", name);
    tell_result("another name", linkat(fd, "", AT_FDCWD, own, AT_EMPTY_PATH));
    stat(own, &by_name);
    tell("names: %ld\n", (long)by_name.st_nlink);
    tell_result("unlink", unlink(own));

    tell_result("rename", rename(name, own));
    int second = open(own, O_WRONLY | O_NONBLOCK);
    tell_result("write", write(second, "moved", 5));
    tell_read("read", fd);
    tell_result("unlink", unlink(own));
    tell_result("write", write(second, "nameless", 8));
    tell_read("read", fd);
    close(fd);
    close(second);
    tell_result("gone", open(own, O_RDWR));

    struct sockaddr_un to = {.sun_family = AF_UNIX};
    snprintf(own, sizeof own, "%s-socket", name);
    tell_result("a socket's name", mknod(own, S_IFSOCK | 0600, 0));
    strcpy(to.sun_path, own);
    int socket_fd = socket(AF_UNIX, SOCK_STREAM, 0);
    tell_result("connect", connect(socket_fd, (struct sockaddr *)&to, sizeof to));
    close(socket_fd);
    tell_result("unlink", unlink(own));
}

static void handle(const struct request *request) {
    told[0] = 0;
    if (is_path(request, "/without_waits"))
        without_waits();
    else if (is_path(request, "/with_waits"))
        with_waits();
    else
        names();
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
