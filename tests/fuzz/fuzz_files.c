#include "tests/fuzz/fuzz_files.h"
#include "common/base/alloc.h"
#include "common/base/file.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_FILES = 8 };

typedef struct file {
    const char *name;
    const void *data;
    size_t size;
} file;

static file files[MAX_FILES];

/* The names that the linker gives. */
pseg_status __wrap_pseg_file_read(uint8_t **out, size_t *out_len, const char *path,
                                  size_t max_bytes, pseg_err *err);
pseg_status __real_pseg_file_read(uint8_t **out, size_t *out_len, const char *path,
                                  size_t max_bytes, pseg_err *err);
pseg_status __wrap_pseg_map_open(pseg_map *out, const char *path, pseg_err *err);
pseg_status __real_pseg_map_open(pseg_map *out, const char *path, pseg_err *err);
void __wrap_pseg_map_close(pseg_map *m);
void __real_pseg_map_close(pseg_map *m);
void __wrap_pseg_map_drop(const void *data, size_t n);
bool __wrap_pseg_file_exists(const char *path);
bool __real_pseg_file_exists(const char *path);
int __wrap_stat(const char *path, struct stat *st);
int __real_stat(const char *path, struct stat *st);

void fuzz_files_set(const char *name, const void *data, size_t size)
{
    file *to = NULL;

    for (size_t i = 0; i < MAX_FILES; i++) {
        if (files[i].name && strcmp(files[i].name, name) == 0) {
            to = &files[i];
            break;
        }
        if (!files[i].name && !to)
            to = &files[i];
    }
    if (!to)
        abort();
    *to = data ? (file){name, data, size} : (file){0};
}

void fuzz_files_clear(void)
{
    memset(files, 0, sizeof files);
}

static bool is_ours(const char *path)
{
    size_t n = sizeof FUZZ_FILES - 1;

    return strncmp(path, FUZZ_FILES, n) == 0 && (path[n] == '/' || path[n] == '\0');
}

static const file *find(const char *path)
{
    const char *name = path + sizeof FUZZ_FILES - 1;

    for (size_t i = 0; *name == '/' && i < MAX_FILES; i++)
        if (files[i].name && strcmp(files[i].name, name + 1) == 0)
            return &files[i];
    return NULL;
}

static pseg_status missing(const char *path, pseg_err *err)
{
    return pseg_err_set(err, PSEG_R_FILE_NOT_FOUND, 0, PSEG_HERE, "cannot open %s", path);
}

pseg_status __wrap_pseg_file_read(uint8_t **out, size_t *out_len, const char *path,
                                  size_t max_bytes, pseg_err *err)
{
    if (!is_ours(path))
        return __real_pseg_file_read(out, out_len, path, max_bytes, err);
    const file *f = find(path);
    *out = NULL;
    *out_len = 0;
    if (!f)
        return missing(path, err);
    if (f->size > max_bytes)
        return pseg_err_set(err, PSEG_R_REQUEST_TOO_LARGE, 0, PSEG_HERE,
                            "%s is larger than the limit of %zu bytes", path, max_bytes);
    uint8_t *copy = pseg_malloc(f->size + 1);
    if (!copy)
        return pseg_err_set(err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE, "no memory for %s", path);
    if (f->size)
        memcpy(copy, f->data, f->size);
    copy[f->size] = 0;
    *out = copy;
    *out_len = f->size;
    return PSEG_OK;
}

pseg_status __wrap_pseg_map_open(pseg_map *out, const char *path, pseg_err *err)
{
    if (!is_ours(path))
        return __real_pseg_map_open(out, path, err);
    const file *f = find(path);
    *out = (pseg_map){0};
    if (!f)
        return missing(path, err);
    if (f->size) {
        void *copy;
        if (posix_memalign(&copy, 64, f->size))
            return pseg_err_set(err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE, "no memory for %s", path);
        memcpy(copy, f->data, f->size);
        *out = (pseg_map){.data = copy, .size = f->size, .id = {.inode = 1, .size = f->size}};
    }
    return PSEG_OK;
}

/* A real map is known by its inode: those here have 1, which no file system gives a file. */
void __wrap_pseg_map_close(pseg_map *m)
{
    if (m->data && m->id.device == 0 && m->id.inode == 1) {
        free((void *)(uintptr_t)m->data);
        *m = (pseg_map){0};
    } else {
        __real_pseg_map_close(m);
    }
}

/* A hint, which on a block of the heap would wipe it out. */
void __wrap_pseg_map_drop(const void *data, size_t n)
{
    (void)data;
    (void)n;
}

bool __wrap_pseg_file_exists(const char *path)
{
    if (!is_ours(path))
        return __real_pseg_file_exists(path);
    return strcmp(path, FUZZ_FILES) == 0 || find(path);
}

int __wrap_stat(const char *path, struct stat *st)
{
    if (!is_ours(path))
        return __real_stat(path, st);
    const file *f = find(path);
    if (!f)
        return -1;
    memset(st, 0, sizeof *st);
    st->st_mode = S_IFREG | 0600;
    st->st_size = (off_t)f->size;
    return 0;
}
