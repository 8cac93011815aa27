/* What /proc tells of the program: told here as far as it is the same on the host. */
#include "guest.h"
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/auxv.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static char text[65536];

static long content(const char *path) {
    int fd = open(path, O_RDONLY);
    long used = 0, got;
    if (fd < 0)
        return -1;
    while ((got = read(fd, text + used, sizeof text - 1 - (size_t)used)) > 0)
        used += got;
    text[used] = '\0';
    close(fd);
    return used;
}

/* The text behind `key` in the content of a file, up to the end of its line. */
static const char *line_of(const char *path, const char *key) {
    static char line[256];
    if (content(path) < 0)
        return "none";
    char *at = strstr(text, key);
    if (at == NULL)
        return "missing";
    snprintf(line, sizeof line, "%.*s", (int)strcspn(at, "\n"), at);
    return line;
}

static int words(const char *path) {
    int count = 0;
    if (content(path) < 0)
        return -1;
    for (char *word = strtok(text, " \n\t"); word != NULL; word = strtok(NULL, " \n\t"))
        count++;
    return count;
}

static void link_of(int fd) {
    char path[64], to[256];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    long bytes = readlink(path, to, sizeof to - 1);
    to[bytes < 0 ? 0 : bytes] = '\0';
    /* Numbers of sockets and pipes are nobody's promise. */
    tell("%.*s\n", (int)strcspn(to, "0123456789"), to);
}

static int entries(const char *path, int number) {
    DIR *directory = opendir(path);
    int found = 0;
    if (directory == NULL)
        return -1;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
        found += atoi(entry->d_name) == number && entry->d_name[0] != '.';
    closedir(directory);
    return found;
}

static void descriptors(void) {
    int two[2], file = open("/tmp/proc-self", O_CREAT | O_RDWR | O_APPEND, 0600);
    int all[] = {file, open("/dev/null", O_RDONLY), open("/tmp", O_RDONLY | O_DIRECTORY), eventfd(7, 0),
                 epoll_create1(0), socket(AF_INET, SOCK_STREAM, 0), pipe(two) == 0 ? two[0] : -1};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        link_of(all[i]);
        tell("listed %d %d\n", entries("/proc/self/fd", all[i]), entries("/proc/self/fdinfo", all[i]));
    }
    char path[64];
    tell_result("write", write(file, "12345", 5));
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", file);
    tell("%s\n", line_of(path, "pos:"));
    tell("%s\n", line_of(path, "flags:"));
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        close(all[i]);
    close(two[1]);
    tell("not any more %d\n", entries("/proc/self/fd", file));
    unlink("/tmp/proc-self");
}

static volatile int thread_id, done;

static void *is_named(void *unused) {
    (void)unused;
    thread_id = (int)syscall(SYS_gettid);
    while (!done)
        usleep(1000);
    return NULL;
}

static void threads(void) {
    pthread_t thread;
    char path[64], name[32] = {0};
    pthread_create(&thread, NULL, is_named, NULL);
    while (thread_id == 0)
        usleep(1000);
    tell("listed %d\n", entries("/proc/self/task", thread_id));
    prctl(PR_SET_NAME, "first thread");
    tell_result("name", pthread_setname_np(thread, "the other one"));
    tell_result("name", pthread_getname_np(thread, name, sizeof name));
    tell("%s\n", name);
    snprintf(path, sizeof path, "/proc/self/task/%d/comm", thread_id);
    content(path);
    tell("%s", text);
    content("/proc/self/comm");
    tell("%s", text);
    tell("%s\n", line_of("/proc/self/status", "Name:"));
    tell("%s\n", line_of("/proc/self/status", "Threads:"));
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", thread_id);
    tell("of the thread: %d\n", words(path) > 50);
    struct stat status;
    snprintf(path, sizeof path, "/proc/self/task/%d/task", thread_id);
    tell_result("threads of a thread", stat(path, &status));
    done = 1;
    pthread_join(thread, NULL);
}

static void process(void) {
    char to[256];
    tell("arguments: %d\n", content("/proc/self/cmdline") > 1 && text[0] != '\0');
    setenv("LATER", "1", 1);
    content("/proc/self/environ");
    tell("environment of the start: %d\n", strchr(text, '=') != NULL && strstr(text, "LATER") == NULL);
    long bytes = content("/proc/self/auxv");
    int known = 0;
    for (long at = 0; at < bytes; at += 16) {
        unsigned long pair[2];
        memcpy(pair, text + at, sizeof pair);
        if (pair[0] == AT_PAGESZ || pair[0] == AT_PHDR || pair[0] == AT_ENTRY)
            known += pair[1] == getauxval(pair[0]);
    }
    tell("as the libc knows it: %d\n", known);
    tell_result("cwd", readlink("/proc/self/cwd", to, sizeof to) > 0);
    tell_result("chdir", chdir("/tmp"));
    bytes = readlink("/proc/self/cwd", to, sizeof to - 1);
    to[bytes] = '\0';
    tell("%s\n", to);
    tell("root %d\n", (int)readlink("/proc/self/root", to, sizeof to));
    tell("stat %d\n", words("/proc/self/stat"));
    tell("statm %d\n", words("/proc/self/statm"));
    tell("loadavg %d\n", words("/proc/loadavg"));
    tell("uptime %d\n", words("/proc/uptime"));
    tell("%.25s\n", line_of("/proc/self/limits", "Max open files"));
    tell("%.25s\n", line_of("/proc/self/limits", "Max realtime timeout"));
    tell("%s\n", line_of("/proc/self/status", "Pid:") != NULL && atoi(text) >= 0 ? "pid" : "no pid");
    tell("%.6s\n", line_of("/proc/self/status", "VmRSS:"));
    tell("%.7s\n", line_of("/proc/self/status", "SigCgt:"));
    tell("%.5s\n", line_of("/proc/self/smaps", "Size:"));
    tell("%.4s\n", line_of("/proc/self/smaps", "Rss:"));
    tell("%.5s\n", line_of("/proc/stat", "btime"));
    tell("%.13s\n", line_of("/proc/version", "Linux version"));
    tell("%s\n", line_of("/proc/filesystems", "tmpfs"));
    tell("overcommit %d\n", words("/proc/sys/vm/overcommit_memory"));
    tell("backlog %s\n", line_of("/proc/sys/net/core/somaxconn", "4"));
    tell("mounts %d\n", words("/proc/self/mountinfo") > 9 && words("/proc/mounts") % 6 == 0);
    bytes = readlink("/proc/self", to, sizeof to - 1);
    to[bytes > 0 ? bytes : 0] = '\0';
    tell("it is this process: %d\n", atoi(to) == getpid());
    struct stat status;
    char own[32];
    snprintf(own, sizeof own, "/proc/%d", getpid());
    tell("by its number a directory: %d\n", lstat(own, &status) == 0 && S_ISDIR(status.st_mode));
    tell("%.6s\n", line_of("/proc/meminfo", "Dirty:"));
    tell("%.13s\n", line_of("/proc/meminfo", "Committed_AS:"));
    tell("%.6s\n", line_of("/proc/self/io", "rchar:"));
    tell_result("dead", stat("/proc/self/fd/999", &status));
    tell_result("no thread", stat("/proc/self/task/99999999", &status));
    tell_result("this thread", stat("/proc/thread-self/status", &status));
}

/* More mappings than fit a small buffer, and the stack among them. */
static void mappings(void) {
    enum { MANY = 600, PAGE = 4096 };
    char *at = mmap(NULL, MANY * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < MANY; i += 2)
        mprotect(at + i * PAGE, PAGE, PROT_READ);
    FILE *file = fopen("/proc/self/maps", "r");
    char line[512];
    int stacks = 0, ours = 0, holds = 0, ordered = 1, whole = 1;
    unsigned long last = 0, start, end;
    while (fgets(line, sizeof line, file) != NULL) {
        whole &= line[strlen(line) - 1] == '\n' && sscanf(line, "%lx-%lx", &start, &end) == 2;
        /* vsyscall is not at an address of the program's. */
        ordered &= start >= last;
        last = end;
        ours += start >= (unsigned long)at && end <= (unsigned long)at + MANY * PAGE;
        if (strstr(line, "[stack]") != NULL) {
            stacks++;
            holds = start <= (unsigned long)line && (unsigned long)line < end;
        }
    }
    fclose(file);
    tell("in order: %d, whole: %d, stacks: %d, this one: %d, many: %d\n", ordered, whole, stacks, holds,
         ours >= MANY - 2);
    pthread_attr_t attributes;
    tell_result("attributes", pthread_getattr_np(pthread_self(), &attributes));
    void *lowest;
    size_t bytes;
    pthread_attr_getstack(&attributes, &lowest, &bytes);
    tell("on it: %d\n", (char *)lowest <= line && line < (char *)lowest + bytes);
    munmap(at, MANY * PAGE);
}

static void handle(const struct request *request) {
    told[0] = '\0';
    if (is_path(request, "/descriptors"))
        descriptors();
    else if (is_path(request, "/threads"))
        threads();
    else if (is_path(request, "/mappings"))
        mappings();
    else
        process();
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
