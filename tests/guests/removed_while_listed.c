/* A directory of which files are removed while it is listed, in small pieces: each is found all the same. On the host
   the same program tells the same. */
#include "guest.h"
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

enum { FILES = 200, PIECE = 512 };

static char directory[64];

static void fill(void) {
    snprintf(directory, sizeof directory, "/tmp/holm-listed-%d", getpid());
    tell_result("mkdir", mkdir(directory, 0700));
    for (int i = 0; i < FILES; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/file-%d", directory, i);
        close(open(path, O_CREAT | O_WRONLY, 0600));
    }
}

/* Removes what each piece names before it asks for the next. */
static void removes(void) {
    fill();
    static char piece[PIECE];
    int fd = open(directory, O_RDONLY | O_DIRECTORY), removed = 0;
    for (;;) {
        long bytes = syscall(SYS_getdents64, fd, piece, sizeof piece);
        if (bytes <= 0)
            break;
        for (long at = 0; at < bytes;) {
            struct dirent64 *entry = (struct dirent64 *)(piece + at);
            at += entry->d_reclen;
            if (entry->d_name[0] != '.')
                removed += unlinkat(fd, entry->d_name, 0) == 0;
        }
    }
    tell("removed: %d\n", removed);
    close(fd);
    tell_result("rmdir", rmdir(directory));
}

/* A position stands for the same name although others before it have gone. */
static void seeks(void) {
    fill();
    DIR *open = opendir(directory);
    char names[20][256];
    for (int i = 0; i < 20; i++)
        strcpy(names[i], readdir(open)->d_name);
    long position = telldir(open);
    char after[256];
    strcpy(after, readdir(open)->d_name);
    for (int i = 0; i < 20; i++)
        unlinkat(dirfd(open), names[i], 0);
    seekdir(open, position);
    tell("the same: %d\n", strcmp(readdir(open)->d_name, after) == 0);
    rewinddir(open);
    int left = 0;
    for (struct dirent *entry; (entry = readdir(open)) != NULL;)
        left += unlinkat(dirfd(open), entry->d_name, 0) == 0;
    closedir(open);
    tell("few were left: %d\n", left >= FILES - 20 && left < FILES);
    tell_result("rmdir", rmdir(directory));
}

static void handle(const struct request *request) {
    told[0] = 0;
    if (is_path(request, "/removes"))
        removes();
    else
        seeks();
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
