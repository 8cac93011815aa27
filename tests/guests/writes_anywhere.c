/* Writes files where it is, in directories that it makes there, and moves them to /tmp and back. Answers "fine" or what
   was not. */
#include "guest.h"
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

static const char *problem;

static void expect(int good, const char *what) {
    if (!good && problem == NULL)
        problem = what;
}

static int holds(const char *path, const char *text) {
    char found[64] = "";
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return 0;
    ssize_t bytes = read(fd, found, sizeof found - 1);
    close(fd);
    return bytes == (ssize_t)strlen(text) && strcmp(found, text) == 0;
}

static void put(const char *path, const char *text) {
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0644);
    expect(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), path);
    close(fd);
}

static int count(const char *path, const char *name) {
    int found = 0;
    DIR *directory = opendir(path);
    if (directory == NULL)
        return -1;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
        found += strcmp(entry->d_name, name) == 0;
    closedir(directory);
    return found;
}

static void handle(const struct request *request) {
    struct stat status;
    problem = NULL;
    put("app.db", "one");
    expect(holds("/app.db", "one") && access("/app.db", W_OK) == 0, "a file where the program is");
    expect(mkdir("data", 0755) == 0 && mkdir("/data/logs", 0755) == 0, "directories");
    put("./data/logs/today", "two");
    expect(count("/", "data") == 1 && count("/", "app.db") == 1 && count("/", "tmp") == 1, "what is in /");
    expect(count("data/logs", "today") == 1 && count("data", "logs") == 1, "what is in a directory");
    expect(chdir("data") == 0, "chdir");
    put("../new", "three");
    expect(rename("../new", "/tmp/new") == 0 && holds("/tmp/new", "three"), "moved to /tmp");
    expect(rename("/tmp/new", "old") == 0 && holds("/data/old", "three"), "moved from /tmp");
    expect(link("old", "other") == 0 && stat("other", &status) == 0 && status.st_nlink == 2, "two names");
    expect(symlink("logs/today", "latest") == 0 && holds("latest", "two"), "a link");
    expect(rename("logs", "/tmp/logs") == 0 && holds("/tmp/logs/today", "two"), "a directory moved");
    expect(rmdir("/data") == -1 && errno == ENOTEMPTY, "a directory that is not empty");
    expect(unlink("old") == 0 && unlink("other") == 0 && unlink("latest") == 0, "unlink");
    expect(chdir("/") == 0 && rmdir("data") == 0 && count("/", "data") == 0, "rmdir");
    expect(open("/etc/new", O_CREAT | O_WRONLY, 0600) == -1, "a new file in /etc");
    expect(open("/proc/new", O_CREAT | O_WRONLY, 0600) == -1, "a new file in /proc");
    expect(unlink("/etc/hosts") == -1 && rmdir("/tmp") == -1 && rename("/app.db", "/etc/hosts") == -1, "what is Holm's");
    expect(holds("app.db", "one"), "the file is still there");
    answer(request, "%s\n", problem == NULL ? "fine" : problem);
}

int main(void) {
    serve(handle);
}
