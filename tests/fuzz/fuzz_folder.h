/* For targets whose code reads files: a folder of memory-backed files that the target writes its
 * input into, removed at exit. One per process. */
#ifndef PSEG_FUZZ_FOLDER_H
#define PSEG_FUZZ_FOLDER_H

#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char fuzz_folder[64];

static inline void fuzz_folder_remove(void)
{
    char path[512];
    DIR *d = opendir(fuzz_folder);

    for (struct dirent *e; d && (e = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", fuzz_folder, e->d_name);
        unlink(path);
    }
    if (d)
        closedir(d);
    rmdir(fuzz_folder);
}

static inline void fuzz_folder_make(void)
{
    const char *parent = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";

    snprintf(fuzz_folder, sizeof fuzz_folder, "%s/pseg-fuzz-XXXXXX", parent);
    if (!mkdtemp(fuzz_folder))
        abort();
    atexit(fuzz_folder_remove);
}

/* Returns the file's path, valid until the next call. */
static inline const char *fuzz_folder_write(const char *name, const void *data, size_t size)
{
    static char path[512];

    snprintf(path, sizeof path, "%s/%s", fuzz_folder, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size || close(fd))
        abort();
    return path;
}

#endif
