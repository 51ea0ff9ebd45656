#include "worker/model/packed.h"
#include "common/base/alloc.h"
#include "common/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAGIC      "PSEGPAK\n"
#define ORDER_MARK 0x01020304u
#define MAX_PIECES (1u << 20)

typedef struct header {
    char magic[8];
    uint32_t order, format, n_pieces, reserved;
    uint64_t file_bytes, table_at, table_sum;
    uint8_t key[PSEG_SHA256_BYTES];
    uint64_t zeros[5];
    uint64_t sum; /* of all before it */
} header;

typedef struct entry {
    uint64_t at, bytes, sum;
    uint32_t type, reserved;
    char name[PSEG_PACKED_NAME];
} entry;

_Static_assert(sizeof(header) == 128 && sizeof(entry) == 144, "no padding: both are written");

/* Eight lanes, as many as a core keeps in flight; each step is a bijection of the lane and of the
 * word. The turn brings high bits down, where the product carries them up again: without it two
 * turned signs of the same lane would cancel. */
uint64_t pseg_packed_sum(const void *data, size_t n)
{
    const uint64_t prime = 0x9E3779B185EBCA87u;
    uint64_t lane[8] = {1, 2, 3, 4, 5, 6, 7, 8}, word[8], h = n;
    const unsigned char *p = data;

#define TURNED(x) ((x) << 29 | (x) >> 35)
    for (; n >= sizeof word; n -= sizeof word, p += sizeof word) {
        memcpy(word, p, sizeof word);
        for (size_t i = 0; i < 8; i++)
            lane[i] = (TURNED(lane[i]) ^ word[i]) * prime;
    }
    if (n) {
        memset(word, 0, sizeof word);
        memcpy(word, p, n);
        for (size_t i = 0; i < 8; i++)
            lane[i] = (TURNED(lane[i]) ^ word[i]) * prime;
    }
    for (size_t i = 0; i < 8; i++)
        h = (TURNED(h) ^ lane[i]) * prime;
#undef TURNED
    return h ^ h >> 32;
}

static uint64_t header_sum(const header *h)
{
    return pseg_packed_sum(h, offsetof(header, sum));
}

/* ---- reading --------------------------------------------------------------------------------- */

struct pseg_packed {
    pseg_map map;
    char *path;
    const entry *table; /* in the map, aligned */
    uint32_t n, next;
    bool is_bad;
};

/* What is wrong with the header, or NULL. */
static const char *header_fault(const header *h, size_t size, const uint8_t *key)
{
    if (memcmp(h->magic, MAGIC, sizeof h->magic) != 0)
        return "it is no file of packed weights";
    if (h->order != ORDER_MARK || h->format != PSEG_PACKED_FORMAT)
        return "it was made by another version or machine";
    if (h->sum != header_sum(h))
        return "its header is damaged";
    if (memcmp(h->key, key, sizeof h->key) != 0)
        return "it was made for other weights";
    if (h->file_bytes != size)
        return "it is cut short or has grown";
    if (h->n_pieces > MAX_PIECES || h->table_at > size || h->table_at % PSEG_PACKED_ALIGN ||
        size - h->table_at != h->n_pieces * sizeof(entry))
        return "its table lies outside";
    return NULL;
}

static const char *table_fault(const header *h, const entry *table)
{
    uint64_t end = sizeof *h;

    if (h->table_sum != pseg_packed_sum(table, h->n_pieces * sizeof *table))
        return "its table is damaged";
    for (uint32_t i = 0; i < h->n_pieces; i++) {
        const entry *e = &table[i];
        if (e->at < end || e->at % PSEG_PACKED_ALIGN || e->at > h->table_at ||
            e->bytes > h->table_at - e->at || e->name[PSEG_PACKED_NAME - 1])
            return "a piece lies outside";
        end = e->at + e->bytes;
    }
    return NULL;
}

pseg_status pseg_packed_open(pseg_packed **out, const char *path,
                             const uint8_t key[PSEG_SHA256_BYTES], pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_packed *f = NULL;
    const char *fault;
    header h;

    *out = NULL;
    f = pseg_calloc(1, sizeof *f);
    if (!f || !(f->path = pseg_strdup(path)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to open %s", path);
    PSEG_TRY(pseg_map_open(&f->map, path, err));
    if (f->map.size < sizeof h)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: it is cut short or has grown", path);
    memcpy(&h, f->map.data, sizeof h);
    fault = header_fault(&h, f->map.size, key);
    if (!fault) {
        f->n = h.n_pieces;
        f->table = (const entry *)(const void *)(f->map.data + h.table_at);
        fault = table_fault(&h, f->table);
    }
    if (fault)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: %s", path, fault);
    /* All of it is read at once, in order: a disk should not wait to be asked page by page. */
    madvise((void *)(uintptr_t)f->map.data, f->map.size, MADV_WILLNEED);
    *out = f;
    f = NULL;
out:
    pseg_packed_close(f);
    return rc;
}

pseg_status pseg_packed_next(const void **out, pseg_packed *f, const char *name, uint32_t type,
                             size_t bytes, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const entry *e = f->next < f->n ? &f->table[f->next] : NULL;

    *out = NULL;
    if (f->is_bad)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: a piece before %s was refused", f->path, name);
    f->is_bad = true;
    if (!e || strcmp(e->name, name) != 0 || e->type != type || e->bytes != bytes)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0,
                  "%s: piece %" PRIu32 " is %.80s of %" PRIu64 " bytes; expected %.80s of %zu",
                  f->path, f->next, e ? e->name : "none", e ? e->bytes : 0, name, bytes);
    const uint8_t *data = f->map.data + e->at;
    if (e->sum != pseg_packed_sum(data, bytes))
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: piece %" PRIu32 ", %.80s, is damaged", f->path,
                  f->next, name);
    f->is_bad = false;
    f->next++;
    *out = data;
out:
    return rc;
}

bool pseg_packed_is_used_up(const pseg_packed *f)
{
    return !f->is_bad && f->next == f->n;
}

void pseg_packed_close(pseg_packed *f)
{
    if (!f)
        return;
    pseg_map_close(&f->map);
    pseg_free(f->path);
    pseg_free(f);
}

/* ---- writing --------------------------------------------------------------------------------- */

struct pseg_packer {
    char *path, *tmp;
    int fd; /* -1: closed */
    bool has_file, has_failed;
    uint64_t at; /* where the next byte goes */
    uint8_t key[PSEG_SHA256_BYTES];
    entry *table;
    uint32_t n, cap;
};

pseg_status pseg_packer_new(pseg_packer **out, const char *path,
                            const uint8_t key[PSEG_SHA256_BYTES], pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_packer *p = NULL;
    uint8_t r[8] = {0};
    char hex[2 * sizeof r + 1];

    *out = NULL;
    p = pseg_calloc(1, sizeof *p);
    if (!p)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to write %s", path);
    p->fd = -1;
    p->at = sizeof(header);
    memcpy(p->key, key, sizeof p->key);
    pseg_random_bytes(r, sizeof r); /* none: O_EXCL refuses a name that is taken */
    pseg_hex(hex, r, sizeof r);
    p->path = pseg_strdup(path);
    p->tmp = pseg_asprintf("%s.%s.tmp", path, hex);
    if (!p->path || !p->tmp)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to write %s", path);
    p->fd = open(p->tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (p->fd < 0)
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot create %s: %s", p->tmp, strerror(errno));
    p->has_file = true;
    *out = p;
    p = NULL;
out:
    pseg_packer_free(p);
    return rc;
}

static pseg_status write_at(pseg_packer *p, const void *data, size_t n, uint64_t at, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const uint8_t *from = data;

    while (n) {
        ssize_t w = pwrite(p->fd, from, n, (off_t)at);
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0)
            PSEG_FAIL(PSEG_R_FILE_IO, w ? errno : EIO, "cannot write %s: %s", p->tmp,
                      strerror(w ? errno : EIO));
        from += w;
        at += (uint64_t)w;
        n -= (size_t)w;
    }
out:
    return rc;
}

static uint64_t round_up(uint64_t at, uint64_t to)
{
    return (at + to - 1) / to * to;
}

pseg_status pseg_packer_add(pseg_packer *p, const char *name, uint32_t type, const void *data,
                            size_t bytes, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t at = round_up(p->at, bytes >= PSEG_PACKED_PAGE ? PSEG_PACKED_PAGE : PSEG_PACKED_ALIGN);

    PSEG_REQUIRE(!p->has_failed && strlen(name) < PSEG_PACKED_NAME && p->n < MAX_PIECES, "piece");
    if (p->n == p->cap) {
        uint32_t cap = p->cap ? 2 * p->cap : 64;
        entry *table = pseg_realloc(p->table, cap * sizeof *table);
        if (!table)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the table of %s", p->path);
        p->table = table;
        p->cap = cap;
    }
    PSEG_TRY(write_at(p, data, bytes, at, err));
    entry *e = &p->table[p->n++];
    *e = (entry){.at = at, .bytes = bytes, .sum = pseg_packed_sum(data, bytes), .type = type};
    snprintf(e->name, sizeof e->name, "%s", name);
    p->at = at + bytes;
out:
    p->has_failed |= rc != PSEG_OK;
    return rc;
}

bool pseg_packer_has_failed(const pseg_packer *p)
{
    return p->has_failed;
}

/* A rename is for ever only once its folder is on the disk too. */
static void sync_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash ? pseg_strndup(path, (size_t)(slash - path) + 1) : pseg_strdup(".");
    int fd = folder ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

    if (fd >= 0) {
        fsync(fd); /* failed: after a power cut the file may be missing, and is made again */
        close(fd);
    }
    pseg_free(folder);
}

pseg_status pseg_packer_commit(pseg_packer *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const size_t n_table = p->n * sizeof *p->table;
    header h = {.magic = MAGIC,
                .order = ORDER_MARK,
                .format = PSEG_PACKED_FORMAT,
                .n_pieces = p->n,
                .table_at = round_up(p->at, PSEG_PACKED_ALIGN),
                .table_sum = pseg_packed_sum(p->table, n_table)};

    PSEG_REQUIRE(!p->has_failed && p->n, "a whole file");
    h.file_bytes = h.table_at + n_table;
    memcpy(h.key, p->key, sizeof h.key);
    h.sum = header_sum(&h);
    PSEG_TRY(write_at(p, p->table, n_table, h.table_at, err));
    PSEG_TRY(write_at(p, &h, sizeof h, 0, err));
    if (fsync(p->fd) || rename(p->tmp, p->path))
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write %s: %s", p->path, strerror(errno));
    p->has_file = false;
    sync_folder(p->path);
out:
    p->has_failed |= rc != PSEG_OK;
    return rc;
}

void pseg_packer_free(pseg_packer *p)
{
    if (!p)
        return;
    if (p->fd >= 0)
        close(p->fd);
    if (p->has_file)
        unlink(p->tmp);
    pseg_free(p->path);
    pseg_free(p->tmp);
    pseg_free(p->table);
    pseg_free(p);
}
