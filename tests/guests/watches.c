/* inotify: what happens to files of /tmp is told to who watches them. On the host the same program tells the same. */
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

static void told_events(const char *what, int fd) {
    char room[4096] __attribute__((aligned(8)));
    tell("%s:", what);
    long got = read(fd, room, sizeof room);
    if (got < 0)
        tell(" %s", strerrorname(errno));
    unsigned cookie = 0;
    for (long at = 0; at < got;) {
        struct inotify_event *event = (void *)(room + at);
        tell(" [%d %#x%s \"%s\"]", event->wd, event->mask,
             event->cookie == 0 ? "" : event->cookie == cookie ? " the same cookie" : " a cookie",
             event->len > 0 ? event->name : "");
        cookie = event->cookie;
        at += (long)sizeof *event + event->len;
    }
    tell("\n");
}

static void handle(const struct request *request) {
    told[0] = '\0';
    /* On the host others may run the same program. */
    char own[64];
    snprintf(own, sizeof own, "/tmp/watches_%d", (int)getpid());
    if (mkdir(own, 0755) != 0 || chdir(own) != 0 || mkdir("watched", 0755) != 0)
        exit(95);
    int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC), available = 0;
    tell_result("flags", inotify_init1(1));
    tell_result("watch", inotify_add_watch(fd, "watched", IN_ALL_EVENTS));
    tell_result("again", inotify_add_watch(fd, "watched/.", IN_ALL_EVENTS & ~(IN_ACCESS | IN_OPEN)));
    tell_result("none there", inotify_add_watch(fd, "watched/none", IN_ALL_EVENTS));
    tell_result("nothing", inotify_add_watch(fd, "watched", 0));
    tell_result("no watcher", inotify_add_watch(0, "watched", IN_CREATE));
    told_events("quiet", fd);
    int file = open("watched/a", O_CREAT | O_RDWR, 0644);
    told_events("made", fd);
    tell_result("write", write(file, "12345", 5));
    tell_result("write", write(file, "12345", 5));
    tell_result("inside", inotify_add_watch(fd, "watched/a", IN_MODIFY | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF));
    ftruncate(file, 3);
    struct pollfd one = {.fd = fd, .events = POLLIN};
    tell_result("poll", poll(&one, 1, 0));
    tell("bytes: %d %d\n", ioctl(fd, FIONREAD, &available), available);
    char small[16];
    tell_result("too small", read(fd, small, 10));
    told_events("written", fd);
    fchmod(file, 0600);
    told_events("mode", fd);
    close(file);
    told_events("closed", fd);
    rename("watched/a", "watched/b");
    told_events("renamed", fd);
    mkdir("watched/d", 0755);
    symlink("b", "watched/l");
    link("watched/b", "watched/c");
    told_events("more", fd);
    unlink("watched/c");
    unlink("watched/l");
    rmdir("watched/d");
    told_events("less", fd);
    unlink("watched/b");
    told_events("gone", fd);
    tell_result("remove", inotify_rm_watch(fd, 1));
    tell_result("twice", inotify_rm_watch(fd, 1));
    told_events("ignored", fd);
    tell_result("once", inotify_add_watch(fd, "watched", IN_CREATE | IN_ONESHOT));
    close(open("watched/x", O_CREAT | O_WRONLY, 0644));
    close(open("watched/y", O_CREAT | O_WRONLY, 0644));
    told_events("one shot", fd);
    unlink("watched/x");
    unlink("watched/y");
    tell_result("directory", inotify_add_watch(fd, "watched", IN_DELETE_SELF | IN_ONLYDIR));
    rmdir("watched");
    told_events("the end", fd);
    chdir("/");
    rmdir(own);
    close(fd);
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
