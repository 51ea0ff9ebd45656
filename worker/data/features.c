#include "worker/data/features.h"
#include "common/base/alloc.h"
#include "common/base/buf.h"
#include "common/base/file.h"
#include "common/base/hash.h"
#include "worker/data/features_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { INDEX_MAGIC = 0x31584650, SOURCE_MAGIC = 0x31534650 }; /* "PFX1", "PFS1" */
enum { PAGE = 4096, SHARD_BYTES = 1 << 30, MAX_SPEC = 4096 };

_Static_assert(sizeof(index_line) == 64 && sizeof(source_line) == 64, "lines of 64 bytes");

/* Four lanes of 64 bits, each xored with its word, multiplied and turned; quick, and any change of
 * a few bits changes it. No defence against malice, which has the files anyway. */
static uint64_t sum_of(const void *data, size_t n)
{
    static const uint64_t prime = 0x9E3779B97F4A7C15u;
    uint64_t lane[4] = {1, 2, 3, n};
    const uint8_t *p = data;

    for (; n >= 32; p += 32, n -= 32)
        for (int i = 0; i < 4; i++) {
            uint64_t w;
            memcpy(&w, p + 8 * i, 8);
            lane[i] = (lane[i] ^ w) * prime;
            lane[i] ^= lane[i] >> 29;
        }
    for (; n; p++, n--)
        lane[n & 3] = (lane[n & 3] ^ *p) * prime;
    return idmap_mix(lane[0] ^ idmap_mix(lane[1] ^ idmap_mix(lane[2] ^ idmap_mix(lane[3]))));
}

static pseg_status io_failed(const pseg_feature_cache *c, const char *what, pseg_err *err)
{
    int e = errno;

    return pseg_err_set(err, PSEG_R_FILE_IO, e, PSEG_HERE,
                        "cannot %s in the feature cache %s: %s%s", what, c->folder, strerror(e),
                        e == ENOSPC || e == EDQUOT
                            ? "; the features that are there stay good: make room and start again"
                            : "");
}

/* Opens a file of the folder; -1 with errno. */
static int open_file(const pseg_feature_cache *c, const char *name, int flags)
{
    char *path = pseg_path_join(c->folder, name);
    int fd = path ? open(path, flags | O_CLOEXEC, 0666) : -1;
    int e = path ? errno : ENOMEM;

    pseg_free(path);
    errno = e;
    return fd;
}

/* All of n bytes, or an error. */
static bool write_all(int fd, const void *data, size_t n, uint64_t at)
{
    const uint8_t *p = data;

    while (n) {
        ssize_t k = pwrite(fd, p, n, (off_t)at);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0) {
            errno = k == 0 ? ENOSPC : errno;
            return false;
        }
        p += k;
        at += (uint64_t)k;
        n -= (size_t)k;
    }
    return true;
}

/* ---- what the folder is for ------------------------------------------------------------------ */

static pseg_status describe(pseg_buf *b, const pseg_vision_info *v, const pseg_preprocess *how,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_buf_printf(b, err, "features 1\nimage encoder %s\nprecision %s\ntaps", v->digest,
                             pseg_precision_name(v->precision)));
    for (uint32_t i = 0; i < v->n_taps; i++)
        PSEG_TRY(pseg_buf_printf(b, err, " %u", v->taps[i]));
    PSEG_TRY(pseg_buf_printf(b, err, "%s\ngrid %u x %u, hidden %u\n",
                             v->is_tap_normed ? ", through the last norm" : "", v->gw, v->gh,
                             v->hidden));
    PSEG_TRY(pseg_buf_printf(
        b, err, "input %u x %u px, fit %d, edge %u\nmean %.9g %.9g %.9g\nstd %.9g %.9g %.9g\n",
        how->width, how->height, (int)how->fit,
        how->fit == PSEG_IMAGE_CENTRE_CROP ? how->resize_edge : 0, (double)how->mean[0],
        (double)how->mean[1], (double)how->mean[2], (double)how->std[0], (double)how->std[1],
        (double)how->std[2]));
out:
    return rc;
}

static pseg_status make_folder(pseg_feature_cache *c, const char *dir, const pseg_buf *spec,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t sum[PSEG_SHA256_BYTES], *found = NULL;
    char name[2 * PSEG_SHA256_BYTES + 1];
    char *path = NULL;
    size_t len;

    pseg_sha256_of(sum, spec->data, spec->len);
    pseg_hex(name, sum, 12);
    c->folder = pseg_path_join(dir, name);
    path = c->folder ? pseg_path_join(c->folder, "spec.txt") : NULL;
    if (!path)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a feature cache");
    PSEG_TRY(pseg_dir_make(c->folder, err));
    if (!pseg_file_exists(path))
        PSEG_TRY(pseg_file_write(path, spec->data, spec->len, err));
    PSEG_TRY(pseg_file_read(&found, &len, path, MAX_SPEC, err));
    if (len != spec->len || memcmp(found, spec->data, len) != 0)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0,
                  "%s tells of other features than are asked for; remove %s", path, c->folder);
out:
    pseg_free(found);
    pseg_free(path);
    return rc;
}

/* ---- the index ------------------------------------------------------------------------------- */

static uint64_t key_hash(const uint8_t of_bytes[24], bool is_mirrored)
{
    uint64_t h;

    memcpy(&h, of_bytes, sizeof h);
    return h ^ (is_mirrored ? 0x5A5A5A5A5A5A5A5Au : 0);
}

static bool grow(void **list, size_t *cap, size_t n, size_t size)
{
    size_t bigger = *cap ? *cap * 2 : 256, bytes;
    void *p;

    if (n < *cap)
        return true;
    p = pseg_mul_size(&bytes, bigger, size) ? pseg_realloc(*list, bytes) : NULL;
    if (!p)
        return false;
    *list = p;
    *cap = bigger;
    return true;
}

/* An entry takes the place of an earlier one of the same key. */
static pseg_status set_latest(idmap *m, uint64_t id, uint32_t value, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t found;
    bool is_new;

    PSEG_TRY(idmap_put(&found, m, id, value, &is_new, err));
    if (!is_new)
        idmap_set(m, id, value);
out:
    return rc;
}

static pseg_status add_line(pseg_feature_cache *c, const index_line *line, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t cap = c->cap, state_cap = c->cap;

    if (c->n >= PSEG_NO_FEATURE - 1 ||
        !grow((void **)&c->state, &state_cap, c->n, sizeof *c->state) ||
        !grow((void **)&c->lines, &cap, c->n, sizeof *c->lines))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu features", c->n);
    c->cap = cap;
    c->state[c->n] = 0;
    c->lines[c->n] = *line;
    PSEG_TRY(
        set_latest(&c->by_key, key_hash(line->of_bytes, line->is_mirrored), (uint32_t)c->n, err));
    if (line->slot >= c->n_slots)
        c->n_slots = line->slot + 1;
    c->n++;
out:
    return rc;
}

static pseg_status add_source(pseg_feature_cache *c, const source_line *line, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (!grow((void **)&c->sources, &c->cap_sources, c->n_sources, sizeof *c->sources))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu image files", c->n_sources);
    c->sources[c->n_sources] = *line;
    PSEG_TRY(set_latest(&c->by_source, key_hash(line->source, false), (uint32_t)c->n_sources, err));
    c->n_sources++;
out:
    return rc;
}

typedef pseg_status take_fn(pseg_feature_cache *c, const uint8_t line[64], pseg_err *err);

static pseg_status take_index(pseg_feature_cache *c, const uint8_t raw[64], pseg_err *err)
{
    index_line line;

    memcpy(&line, raw, sizeof line);
    if (line.magic == INDEX_MAGIC && line.line_sum == sum_of(raw, 56) && line.slot < UINT32_MAX / 2)
        return add_line(c, &line, err);
    c->n_damaged++;
    return PSEG_OK;
}

static pseg_status take_source(pseg_feature_cache *c, const uint8_t raw[64], pseg_err *err)
{
    source_line line;

    memcpy(&line, raw, sizeof line);
    if (line.magic == SOURCE_MAGIC && line.line_sum == sum_of(raw, 56))
        return add_source(c, &line, err);
    return PSEG_OK;
}

/* Reads whole lines behind *at. A part of one at the end is what a dying process left. */
static pseg_status read_lines(pseg_feature_cache *c, const char *name, uint64_t *at, take_fn *take,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t lines[64 * 256];
    int fd = open_file(c, name, O_RDONLY);
    ssize_t n;

    if (fd < 0 && errno == ENOENT)
        return rc;
    if (fd < 0)
        return io_failed(c, "open a list", err);
    while ((n = pread(fd, lines, sizeof lines, (off_t)*at)) >= 64 || (n < 0 && errno == EINTR))
        for (ssize_t i = 0; i + 64 <= n; i += 64) {
            PSEG_TRY(take(c, lines + i, err));
            *at += 64;
        }
    if (n < 0)
        rc = io_failed(c, "read a list", err);
out:
    close(fd);
    return rc;
}

static pseg_status refresh(pseg_feature_cache *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(read_lines(c, "index", &c->index_read, take_index, err));
    PSEG_TRY(read_lines(c, "sources", &c->sources_read, take_source, err));
out:
    return rc;
}

/* ---- opening --------------------------------------------------------------------------------- */

static void set_sizes(pseg_feature_cache *c, const pseg_vision_info *v)
{
    c->bytes = 2 * (size_t)v->n_taps * v->gh * v->gw * v->hidden;
    c->slot_bytes = (c->bytes + PAGE - 1) / PAGE * PAGE;
    c->per_shard = SHARD_BYTES / c->slot_bytes ? SHARD_BYTES / c->slot_bytes : 1;
}

pseg_status pseg_feature_cache_open(pseg_feature_cache **out, const char *dir,
                                    const pseg_vision_info *vision, const pseg_preprocess *how,
                                    pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_feature_cache *c = NULL;
    pseg_buf spec;

    *out = NULL;
    pseg_buf_init(&spec, MAX_SPEC);
    c = pseg_calloc(1, sizeof *c);
    if (!c || !(c->mutex = pseg_calloc(1, sizeof(pthread_mutex_t))))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a feature cache");
    pthread_mutex_init(c->mutex, NULL);
    c->lock = c->index = c->source_fd = -1;
    c->how = *how;
    set_sizes(c, vision);
    PSEG_REQUIRE(c->bytes, "vision");
    PSEG_TRY(describe(&spec, vision, how, err));
    PSEG_TRY(make_folder(c, dir, &spec, err));
    PSEG_TRY(refresh(c, err));
    *out = c;
    c = NULL;
out:
    pseg_buf_deinit(&spec);
    pseg_feature_cache_close(c);
    return rc;
}

void pseg_feature_cache_close(pseg_feature_cache *c)
{
    if (!c)
        return;
    pseg_feature_cache_unlock(c);
    for (size_t i = 0; i < c->n_shards; i++)
        if (c->shards[i].data)
            munmap((void *)(uintptr_t)c->shards[i].data, c->shards[i].size);
    if (c->mutex)
        pthread_mutex_destroy(c->mutex);
    pseg_free(c->mutex);
    idmap_deinit(&c->by_key);
    idmap_deinit(&c->by_source);
    pseg_free(c->lines);
    pseg_free(c->sources);
    pseg_free(c->state);
    pseg_free(c->shards);
    pseg_free(c->folder);
    pseg_free(c);
}

size_t pseg_feature_cache_count(const pseg_feature_cache *c)
{
    return c->n;
}

const char *pseg_feature_cache_folder(const pseg_feature_cache *c)
{
    return c->folder;
}

size_t pseg_feature_cache_n_damaged(const pseg_feature_cache *c)
{
    return c->n_damaged;
}

/* ---- reading --------------------------------------------------------------------------------- */

pseg_feature_key pseg_feature_key_of(const pseg_data_bytes *file, bool is_mirrored)
{
    pseg_feature_key key = {.is_mirrored = is_mirrored};
    uint8_t sum[PSEG_SHA256_BYTES];

    pseg_sha256_of(sum, file->data, file->len);
    memcpy(key.of_bytes, sum, sizeof key.of_bytes);
    return key;
}

bool pseg_feature_cache_find(uint32_t *entry, const pseg_feature_cache *c,
                             const pseg_feature_key *key)
{
    return idmap_get(entry, &c->by_key, key_hash(key->of_bytes, key->is_mirrored)) &&
           memcmp(c->lines[*entry].of_bytes, key->of_bytes, sizeof key->of_bytes) == 0 &&
           c->lines[*entry].is_mirrored == key->is_mirrored && c->state[*entry] != 2;
}

bool features_known_source(uint8_t of_bytes[24], const pseg_feature_cache *c,
                           const uint8_t source[24])
{
    uint32_t i;

    if (!idmap_get(&i, &c->by_source, key_hash(source, false)) ||
        memcmp(c->sources[i].source, source, 24) != 0)
        return false;
    memcpy(of_bytes, c->sources[i].of_bytes, 24);
    return true;
}

static void shard_name(char name[32], size_t i)
{
    snprintf(name, 32, "taps-%06zu", i);
}

static bool has_shards(pseg_feature_cache *c, size_t n)
{
    shard *more = n > c->n_shards ? pseg_realloc(c->shards, n * sizeof *more) : c->shards;

    if (n > c->n_shards && !more)
        return false;
    c->shards = more;
    for (; c->n_shards < n; c->n_shards++)
        c->shards[c->n_shards] = (shard){NULL, 0, -1};
    return true;
}

/* Maps shard i whole, so that it reaches to `end`. A file of a writer is mapped at the size that it
 * will grow to: what lies past its end is not touched. */
static pseg_status map_shard(pseg_feature_cache *c, size_t i, size_t end, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    struct stat st;
    char name[32];
    int fd = -1;
    void *data;

    if (!has_shards(c, i + 1))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the feature cache");
    shard_name(name, i);
    fd = open_file(c, name, O_RDONLY);
    if (fd < 0 || fstat(fd, &st) != 0) {
        rc = io_failed(c, "open a file", err);
        goto out;
    }
    if ((uint64_t)st.st_size < end)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "%s/%s ends at byte %" PRIu64 " of %zu", c->folder, name,
                  (uint64_t)st.st_size, end);
    if (!c->shards[i].data) {
        data = mmap(NULL, c->per_shard * c->slot_bytes, PROT_READ, MAP_SHARED, fd, 0);
        if (data == MAP_FAILED) {
            rc = io_failed(c, "map a file", err);
            goto out;
        }
        c->shards[i].data = data;
        c->shards[i].size = c->per_shard * c->slot_bytes;
    }
out:
    if (fd >= 0)
        close(fd);
    return rc;
}

static pseg_status look_at(pseg_feature_cache *c, uint32_t entry, const uint8_t **data,
                           pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const index_line *line = &c->lines[entry];
    size_t i = line->slot / c->per_shard, at = line->slot % c->per_shard * c->slot_bytes;

    if (c->state[entry] == 0)
        PSEG_TRY(map_shard(c, i, at + c->bytes, err));
    *data = c->shards[i].data + at;
out:
    return rc;
}

pseg_status pseg_feature_cache_get(pseg_feature *out, pseg_feature_cache *c, uint32_t entry,
                                   pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const index_line *line;
    const uint8_t *data = NULL;
    uint8_t state;

    PSEG_REQUIRE(entry < c->n, "entry");
    line = &c->lines[entry];
    pthread_mutex_lock(c->mutex);
    state = c->state[entry];
    rc = state == 2 ? PSEG_OK : look_at(c, entry, &data, err);
    pthread_mutex_unlock(c->mutex);
    if (rc == PSEG_EIO)
        goto out;
    if (rc == PSEG_OK && state == 0)
        state = sum_of(data, c->bytes) == line->numbers_sum ? 1 : 2;
    else if (rc != PSEG_OK)
        state = 2;
    pthread_mutex_lock(c->mutex);
    c->n_damaged += state == 2 && c->state[entry] != 2;
    c->state[entry] = state;
    pthread_mutex_unlock(c->mutex);
    if (state == 2)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0,
                  "entry %u of the feature cache %s is damaged; it will be made again", entry,
                  c->folder);
    *out = (pseg_feature){(const uint16_t *)data, line->width, line->height};
out:
    return rc;
}

/* ---- writing --------------------------------------------------------------------------------- */

/* Opens a list for appending, and cuts off what is no whole line. */
static pseg_status open_list(int *fd, pseg_feature_cache *c, const char *name, uint64_t whole,
                             pseg_err *err)
{
    *fd = open_file(c, name, O_RDWR | O_CREAT);
    if (*fd < 0 || ftruncate(*fd, (off_t)whole) != 0)
        return io_failed(c, "write a list", err);
    return PSEG_OK;
}

pseg_status pseg_feature_cache_lock(pseg_feature_cache *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int got;

    PSEG_REQUIRE(c->lock < 0, "not locked");
    c->lock = open_file(c, "lock", O_RDWR | O_CREAT);
    do
        got = c->lock < 0 ? -1 : flock(c->lock, LOCK_EX);
    while (got < 0 && c->lock >= 0 && errno == EINTR);
    if (got < 0) {
        rc = io_failed(c, "take the lock", err);
        goto out;
    }
    PSEG_TRY(refresh(c, err));
    PSEG_TRY(open_list(&c->index, c, "index", c->index_read, err));
    PSEG_TRY(open_list(&c->source_fd, c, "sources", c->sources_read, err));
out:
    if (rc != PSEG_OK)
        pseg_feature_cache_unlock(c);
    return rc;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void pseg_feature_cache_unlock(pseg_feature_cache *c)
{
    for (size_t i = 0; i < c->n_shards; i++)
        close_fd(&c->shards[i].fd);
    close_fd(&c->index);
    close_fd(&c->source_fd);
    close_fd(&c->lock);
}

/* Writes the numbers to a slot, which nothing refers to yet. */
static pseg_status write_slot(pseg_feature_cache *c, uint32_t slot, const void *numbers,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t i = slot / c->per_shard;
    uint64_t at = (uint64_t)(slot % c->per_shard) * c->slot_bytes;
    char name[32];

    pthread_mutex_lock(c->mutex);
    bool good = has_shards(c, i + 1);
    pthread_mutex_unlock(c->mutex);
    if (!good)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the feature cache");
    shard_name(name, i);
    if (c->shards[i].fd < 0) {
        for (size_t k = 0; k < c->n_shards; k++) /* one at a time */
            close_fd(&c->shards[k].fd);
        c->shards[i].fd = open_file(c, name, O_RDWR | O_CREAT);
    }
    if (c->shards[i].fd < 0 || !write_all(c->shards[i].fd, numbers, c->bytes, at))
        rc = io_failed(c, "write", err);
out:
    return rc;
}

pseg_status pseg_feature_cache_put(uint32_t *entry, pseg_feature_cache *c,
                                   const pseg_feature_key *key, const pseg_feature *f,
                                   pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    index_line line = {.magic = INDEX_MAGIC,
                       .slot = c->n_slots,
                       .width = f->width,
                       .height = f->height,
                       .is_mirrored = key->is_mirrored};

    PSEG_REQUIRE(c->index >= 0, "locked");
    memcpy(line.of_bytes, key->of_bytes, sizeof line.of_bytes);
    line.numbers_sum = sum_of(f->taps, c->bytes);
    line.line_sum = sum_of(&line, 56);
    PSEG_TRY(write_slot(c, line.slot, f->taps, err));
    if (!write_all(c->index, &line, sizeof line, c->index_read)) {
        rc = io_failed(c, "write the index", err);
        goto out;
    }
    PSEG_TRY(add_line(c, &line, err));
    c->index_read += sizeof line;
    if (entry)
        *entry = (uint32_t)c->n - 1;
out:
    return rc;
}

pseg_status features_add_source(pseg_feature_cache *c, const uint8_t source[24],
                                const uint8_t of_bytes[24], pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    source_line line = {.magic = SOURCE_MAGIC};

    PSEG_REQUIRE(c->source_fd >= 0, "locked");
    memcpy(line.source, source, 24);
    memcpy(line.of_bytes, of_bytes, 24);
    line.line_sum = sum_of(&line, 56);
    if (!write_all(c->source_fd, &line, sizeof line, c->sources_read)) {
        rc = io_failed(c, "write the list of files", err);
        goto out;
    }
    PSEG_TRY(add_source(c, &line, err));
    c->sources_read += sizeof line;
out:
    return rc;
}
