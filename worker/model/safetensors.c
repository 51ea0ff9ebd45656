#include "worker/model/safetensors.h"
#include "common/base/alloc.h"
#include "common/base/arena.h"
#include "common/base/file.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* DINOv2-giant's header takes 100 kB; a parsed header takes some twenty times its bytes. */
#define MAX_HEADER_BYTES (16u << 20)
#define MAX_INDEX_BYTES  (16u << 20)
#define MAX_SHARDS       1000
#define MAX_ARENA_BYTES  ((size_t)256 << 20)

typedef struct shard {
    const char *path;
    pseg_map map;
    json_t *metadata; /* or NULL */
} shard;

struct pseg_tensors {
    pseg_arena *arena; /* holds this struct's strings and arrays */
    const char *path;
    shard *shards;
    size_t n_shards;
    pseg_tensor *items; /* in order of names */
    size_t n, cap;
};

static const struct {
    const char *name;
    pseg_tensor_type type;
    uint32_t bytes;
} types[] = {
    {"F32", PSEG_TENSOR_F32, 4},       {"F16", PSEG_TENSOR_F16, 2},
    {"BF16", PSEG_TENSOR_BF16, 2},     {"I64", PSEG_TENSOR_I64, 8},
    {"F64", PSEG_TENSOR_OTHER, 8},     {"U64", PSEG_TENSOR_OTHER, 8},
    {"I32", PSEG_TENSOR_OTHER, 4},     {"U32", PSEG_TENSOR_OTHER, 4},
    {"I16", PSEG_TENSOR_OTHER, 2},     {"U16", PSEG_TENSOR_OTHER, 2},
    {"I8", PSEG_TENSOR_OTHER, 1},      {"U8", PSEG_TENSOR_OTHER, 1},
    {"BOOL", PSEG_TENSOR_OTHER, 1},    {"C64", PSEG_TENSOR_OTHER, 8},
    {"F8_E4M3", PSEG_TENSOR_OTHER, 1}, {"F8_E5M2", PSEG_TENSOR_OTHER, 1},
    {"F8_E8M0", PSEG_TENSOR_OTHER, 1},
};

const char *pseg_tensor_type_name(pseg_tensor_type type)
{
    return type < PSEG_TENSOR_OTHER ? types[type].name : "another type";
}

void pseg_tensor_shape(char *out, size_t size, const uint64_t *dims, uint32_t rank)
{
    size_t at = (size_t)snprintf(out, size, "[");

    for (uint32_t i = 0; i < rank && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%" PRIu64, i ? ", " : "", dims[i]);
    if (at < size)
        snprintf(out + at, size - at, "]");
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const pseg_tensor *)a)->name, ((const pseg_tensor *)b)->name);
}

/* All tensors of a file lie in one block of memory, so addresses order them by offset. */
static int by_data(const void *a, const void *b)
{
    const pseg_tensor *x = a, *y = b;

    if (x->data != y->data)
        return x->data < y->data ? -1 : 1;
    return x->bytes != y->bytes ? (x->bytes < y->bytes ? -1 : 1) : strcmp(x->name, y->name);
}

static bool get_u64(uint64_t *out, const json_t *v)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return false;
    *out = (uint64_t)json_integer_value(v);
    return true;
}

/* One entry of the header. data: the first byte behind the header; avail: bytes from there on. */
static pseg_status read_entry(pseg_tensor *out, pseg_tensors *t, const shard *s, const char *name,
                              const json_t *entry, const uint8_t *data, uint64_t avail,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const json_t *shape = json_object_get(entry, "shape");
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const char *type = json_string_value(json_object_get(entry, "dtype"));
    uint64_t begin, end, bytes = 0;
    size_t k = 0;

    *out = (pseg_tensor){.path = s->path, .n = 1};
    if (!type || !json_is_array(shape) || json_array_size(offsets) != 2)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0,
                  "%s: tensor %s: dtype, shape or data_offsets missing or of the wrong type",
                  s->path, name);
    while (k < sizeof types / sizeof *types && strcmp(types[k].name, type) != 0)
        k++;
    if (k == sizeof types / sizeof *types)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: tensor %s: unknown dtype \"%s\"", s->path, name,
                  type);
    out->type = types[k].type;
    if (json_array_size(shape) > PSEG_TENSOR_MAX_RANK)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: tensor %s: %zu dimensions, the limit is %d",
                  s->path, name, json_array_size(shape), PSEG_TENSOR_MAX_RANK);
    out->rank = (uint32_t)json_array_size(shape);
    for (uint32_t i = 0; i < out->rank; i++)
        if (!get_u64(&out->dims[i], json_array_get(shape, i)) ||
            __builtin_mul_overflow(out->n, out->dims[i], &out->n))
            PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: tensor %s: impossible shape", s->path, name);
    if (!get_u64(&begin, json_array_get(offsets, 0)) ||
        !get_u64(&end, json_array_get(offsets, 1)) || begin > end || end > avail)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0,
                  "%s: tensor %s: data_offsets lie outside the file's %" PRIu64
                  " bytes of data: is it cut short?",
                  s->path, name, avail);
    if (__builtin_mul_overflow(out->n, (uint64_t)types[k].bytes, &bytes) || bytes != end - begin)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0,
                  "%s: tensor %s: %" PRIu64 " bytes of data, but its shape needs %" PRIu64, s->path,
                  name, end - begin, bytes);
    out->data = data + begin;
    out->bytes = bytes;
    out->name = pseg_arena_strdup(t->arena, name);
    if (!out->name)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the names of %s", s->path);
out:
    return rc;
}

static pseg_status grow(pseg_tensors *t, size_t more, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t bytes;
    pseg_tensor *items = NULL;

    if (!pseg_mul_size(&bytes, t->n + more, sizeof *items) ||
        !(items = pseg_realloc(t->items, bytes ? bytes : 1)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu tensors of %s", more, t->path);
    t->items = items;
    t->cap = t->n + more;
out:
    return rc;
}

/* The data must be covered without gaps and overlaps, by the tensors in order of their offsets. */
static pseg_status check_cover(pseg_tensors *t, const shard *s, size_t first, const uint8_t *data,
                               uint64_t avail, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const uint8_t *at = data;

    qsort(t->items + first, t->n - first, sizeof *t->items, by_data);
    for (size_t i = first; i < t->n; i++) {
        const pseg_tensor *x = &t->items[i];
        if (x->data != at)
            PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: tensor %s %s", s->path, x->name,
                      x->data < at ? "overlaps another" : "leaves a gap before it");
        at += x->bytes;
    }
    if ((uint64_t)(at - data) != avail)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: %" PRIu64 " bytes at the end belong to no tensor",
                  s->path, avail - (uint64_t)(at - data));
out:
    return rc;
}

/* Maps s->path and appends its tensors to t. */
static pseg_status read_shard(pseg_tensors *t, shard *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    json_t *root = NULL, *entry;
    json_error_t why;
    const char *name;
    uint64_t n_header = 0;
    size_t first = t->n;

    rc = pseg_map_open(&s->map, s->path, err);
    if (rc == PSEG_ENOTFOUND)
        PSEG_FAIL(PSEG_R_MODEL_MISSING, 0, "%s: no such file", s->path);
    PSEG_TRY(rc);
    if (s->map.size < 8)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: %zu bytes are too few for a safetensors file",
                  s->path, s->map.size);
    for (int i = 7; i >= 0; i--)
        n_header = n_header << 8 | s->map.data[i];
    if (n_header > MAX_HEADER_BYTES || n_header > s->map.size - 8)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0,
                  "%s: its header claims %" PRIu64
                  " bytes; the file has %zu and the limit is %u: not safetensors, or cut short",
                  s->path, n_header, s->map.size, MAX_HEADER_BYTES);
    root =
        json_loadb((const char *)s->map.data + 8, (size_t)n_header, JSON_REJECT_DUPLICATES, &why);
    if (!json_is_object(root))
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: its header is not a JSON object: %.80s", s->path,
                  root ? "another value" : why.text);
    const uint8_t *data = s->map.data + 8 + n_header;
    uint64_t avail = s->map.size - 8 - n_header;
    PSEG_TRY(grow(t, json_object_size(root), err));
    json_object_foreach(root, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0) {
            if (!json_is_object(entry))
                PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: __metadata__ is not an object", s->path);
            s->metadata = json_incref(entry);
            continue;
        }
        PSEG_TRY(read_entry(&t->items[t->n], t, s, name, entry, data, avail, err));
        t->n++;
    }
    PSEG_TRY(check_cover(t, s, first, data, avail, err));
out:
    json_decref(root);
    return rc;
}

/* With all shards read: sorts by name, so that find is a binary search. */
static pseg_status finish(pseg_tensors *t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (t->n)
        qsort(t->items, t->n, sizeof *t->items, by_name);
    for (size_t i = 1; i < t->n; i++)
        if (strcmp(t->items[i - 1].name, t->items[i].name) == 0)
            PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: tensor %s stands also in %s", t->items[i].path,
                      t->items[i].name, t->items[i - 1].path);
out:
    return rc;
}

static pseg_status tensors_new(pseg_tensors **out, const char *path, size_t n_shards, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_tensors *t = pseg_calloc(1, sizeof *t);

    if (!t || !(t->arena = pseg_arena_new(MAX_ARENA_BYTES)) ||
        !(t->path = pseg_arena_strdup(t->arena, path)) ||
        !(t->shards = pseg_arena_calloc(t->arena, n_shards, sizeof *t->shards)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to open %s", path);
    t->n_shards = n_shards;
    *out = t;
    t = NULL;
out:
    pseg_tensors_close(t);
    return rc;
}

pseg_status pseg_tensors_open_file(pseg_tensors **out, const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_tensors *t = NULL;

    *out = NULL;
    PSEG_TRY(tensors_new(&t, path, 1, err));
    t->shards[0].path = t->path;
    PSEG_TRY(read_shard(t, &t->shards[0], err));
    PSEG_TRY(finish(t, err));
    *out = t;
    t = NULL;
out:
    pseg_tensors_close(t);
    return rc;
}

/* A shard's name must be a plain file name: an index is data, and must not lead elsewhere. */
static bool is_plain_name(const char *s)
{
    return s && *s && *s != '.' && !strchr(s, '/');
}

static int by_string(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The distinct file names of an index's weight_map, in order. Caller frees *out with pseg_free;
 * the strings are borrowed from map. */
static pseg_status shard_names(const char ***out, size_t *n, const char *path, json_t *map,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *name;
    json_t *file;
    size_t k = 0, size = json_object_size(map);
    const char **names = NULL;

    if (size == 0)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: weight_map is missing or empty", path);
    names = pseg_calloc(size, sizeof *names);
    if (!names)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the index %s", path);
    json_object_foreach(map, name, file)
    {
        names[k] = json_string_value(file);
        if (!is_plain_name(names[k]))
            PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: tensor %s: its file is not a plain file name",
                      path, name);
        k++;
    }
    qsort(names, size, sizeof *names, by_string);
    k = 1;
    for (size_t i = 1; i < size; i++)
        if (strcmp(names[i], names[k - 1]) != 0)
            names[k++] = names[i];
    if (k > MAX_SHARDS)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: %zu files, the limit is %d", path, k, MAX_SHARDS);
    *out = names;
    *n = k;
    names = NULL;
out:
    pseg_free(names);
    return rc;
}

static pseg_status read_index(pseg_tensors **out, const char *folder, const char *path,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t *text = NULL;
    size_t n_text = 0, n_names = 0;
    json_t *root = NULL, *map, *file;
    json_error_t why;
    const char **names = NULL, *name;
    pseg_tensors *t = NULL;

    PSEG_TRY(pseg_file_read(&text, &n_text, path, MAX_INDEX_BYTES, err));
    root = json_loadb((const char *)text, n_text, JSON_REJECT_DUPLICATES, &why);
    if (!root)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: not JSON: %.80s", path, why.text);
    map = json_object_get(root, "weight_map");
    PSEG_TRY(shard_names(&names, &n_names, path, map, err));
    PSEG_TRY(tensors_new(&t, folder, n_names, err));
    for (size_t i = 0; i < n_names; i++) {
        char *joined = pseg_path_join(folder, names[i]);
        t->shards[i].path = joined ? pseg_arena_strdup(t->arena, joined) : NULL;
        pseg_free(joined);
        if (!t->shards[i].path)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to open %s", folder);
        PSEG_TRY(read_shard(t, &t->shards[i], err));
    }
    PSEG_TRY(finish(t, err));
    json_object_foreach(map, name, file)
    {
        if (!pseg_tensors_find(t, name))
            PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: tensor %s is not in %s as the index says", path,
                      name, json_string_value(file));
    }
    *out = t;
    t = NULL;
out:
    pseg_tensors_close(t);
    pseg_free(names);
    json_decref(root);
    pseg_free(text);
    return rc;
}

pseg_status pseg_tensors_open_folder(pseg_tensors **out, const char *folder, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *single = NULL, *index = NULL, *pickled = NULL;

    *out = NULL;
    single = pseg_path_join(folder, "model.safetensors");
    index = pseg_path_join(folder, "model.safetensors.index.json");
    pickled = pseg_path_join(folder, "pytorch_model.bin");
    if (!single || !index || !pickled)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to open %s", folder);
    if (pseg_file_exists(single))
        PSEG_TRY(pseg_tensors_open_file(out, single, err));
    else if (pseg_file_exists(index))
        PSEG_TRY(read_index(out, folder, index, err));
    else
        PSEG_FAIL(PSEG_R_MODEL_MISSING, 0, "%s: no model.safetensors there%s", folder,
                  !pseg_file_exists(folder) ? ": no such folder"
                  : pseg_file_exists(pickled)
                      ? ", only pytorch_model.bin: convert it with safetensors' convert.py"
                      : "");
out:
    pseg_free(single);
    pseg_free(index);
    pseg_free(pickled);
    return rc;
}

void pseg_tensors_close(pseg_tensors *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n_shards; i++) {
        json_decref(t->shards[i].metadata);
        pseg_map_close(&t->shards[i].map);
    }
    pseg_free(t->items);
    pseg_arena_free(t->arena);
    pseg_free(t);
}

size_t pseg_tensors_count(const pseg_tensors *t)
{
    return t->n;
}

const pseg_tensor *pseg_tensors_at(const pseg_tensors *t, size_t i)
{
    return i < t->n ? &t->items[i] : NULL;
}

const pseg_tensor *pseg_tensors_find(const pseg_tensors *t, const char *name)
{
    pseg_tensor key = {.name = name};

    return t->n ? bsearch(&key, t->items, t->n, sizeof key, by_name) : NULL;
}

const char *pseg_tensors_metadata(const pseg_tensors *t, const char *key)
{
    for (size_t i = 0; i < t->n_shards; i++) {
        const char *v = json_string_value(json_object_get(t->shards[i].metadata, key));
        if (v)
            return v;
    }
    return NULL;
}

const char *pseg_tensors_path(const pseg_tensors *t)
{
    return t->path;
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

void pseg_tensors_digest(const pseg_tensors *t, pseg_sha256 *h)
{
    const size_t run = (size_t)16 << 20; /* dropped behind itself: a model need not fit in memory */

    for (size_t i = 0; i < t->n_shards; i++) {
        const shard *s = &t->shards[i];
        const char *name = last_part(s->path);
        char head[32];
        int n = snprintf(head, sizeof head, " %zu\n", s->map.size);
        pseg_sha256_update(h, name, strlen(name));
        pseg_sha256_update(h, head, (size_t)n);
        for (size_t at = 0; at < s->map.size; at += run) {
            size_t part = s->map.size - at < run ? s->map.size - at : run;
            pseg_sha256_update(h, s->map.data + at, part);
            pseg_map_drop(s->map.data + at, part);
        }
    }
}

void pseg_tensors_identify(const pseg_tensors *t, pseg_sha256 *h, int64_t *changed_ns)
{
    for (size_t i = 0; i < t->n_shards; i++) {
        const shard *s = &t->shards[i];
        const char *name = last_part(s->path);
        const pseg_file_id *id = &s->map.id;
        pseg_sha256_update(h, name, strlen(name) + 1);
        pseg_sha256_update(h, id, sizeof *id);
        if (id->written_ns > *changed_ns)
            *changed_ns = id->written_ns;
        if (id->changed_ns > *changed_ns)
            *changed_ns = id->changed_ns;
    }
}

bool pseg_tensors_are_current(const pseg_tensors *t)
{
    pseg_file_id id;

    for (size_t i = 0; i < t->n_shards; i++)
        if (pseg_file_identify(&id, t->shards[i].path, NULL) != PSEG_OK ||
            memcmp(&id, &t->shards[i].map.id, sizeof id) != 0)
            return false;
    return true;
}

void pseg_tensors_drop(const pseg_tensors *t)
{
    for (size_t i = 0; i < t->n_shards; i++)
        pseg_map_drop(t->shards[i].map.data, t->shards[i].map.size);
}
