/* The footer of a Parquet file, and the headers of its pages. */
#include "common/base/alloc.h"
#include "worker/data/parquet_impl.h"
#include "worker/data/thrift.h"

#include <string.h>

#define CORRUPT(...) PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, __VA_ARGS__)

enum { MAX_DEPTH = 32, MAX_SCHEMA = 8192, MAX_GROUPS = 1 << 20 };

/* ---- schema ---------------------------------------------------------------------------------- */

typedef struct element {
    const char *name;
    uint32_t name_len;
    int64_t type, fixed_len, repetition, n_children;
    bool has_type;
} element;

static element read_element(thrift *t)
{
    element e = {.name = ""};
    thrift_type type;
    int16_t id = 0;

    while (thrift_field(&id, &type, t)) {
        if (id == 1) {
            e.type = thrift_int(t, type);
            e.has_type = true;
        } else if (id == 2) {
            e.fixed_len = thrift_int(t, type);
        } else if (id == 3) {
            e.repetition = thrift_int(t, type);
        } else if (id == 4) {
            e.name = thrift_text(&e.name_len, t, type);
        } else if (id == 5) {
            e.n_children = thrift_int(t, type);
        } else {
            thrift_skip(t, type);
        }
    }
    return e;
}

/* Where a walk down the schema is. */
typedef struct walk {
    const element *e;
    uint32_t n, at; /* at: the next element */
    parquet *p;
    char path[PARQUET_MAX_NAME], plain[PARQUET_MAX_NAME];
} walk;

static bool append(char *path, const element *e)
{
    size_t n = strlen(path);

    if (n + e->name_len + 2 > PARQUET_MAX_NAME)
        return false;
    if (n)
        path[n++] = '.';
    memcpy(path + n, e->name, e->name_len);
    path[n + e->name_len] = 0;
    return true;
}

static pseg_status add_leaf(walk *w, const element *e, const parquet_column *levels, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    parquet *p = w->p;
    parquet_column c = *levels;

    if (p->n_columns >= PARQUET_MAX_COLUMNS || e->type < 0 || e->type > PARQUET_FIXED_BYTES)
        CORRUPT("%s: a column of type %lld, or more than %d columns", p->name, (long long)e->type,
                PARQUET_MAX_COLUMNS);
    c.type = (parquet_type)e->type;
    if (c.type == PARQUET_FIXED_BYTES && (e->fixed_len < 1 || e->fixed_len > 1 << 20))
        CORRUPT("%s: column %s has values of %lld bytes", p->name, w->path,
                (long long)e->fixed_len);
    c.fixed_len = (uint32_t)e->fixed_len;
    c.path = pseg_arena_strdup(p->arena, w->path);
    c.plain = pseg_arena_strdup(p->arena, w->plain);
    if (!c.path || !c.plain)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the columns of %s", p->name);
    p->columns[p->n_columns++] = c;
out:
    return rc;
}

/* One element and all below it. hides: its name does not show in the plain path, being the only
 * member of a repeated group (list.element, bag.array_element). */
static pseg_status walk_down(walk *w, parquet_column levels, uint32_t depth, bool hides,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const element *e = w->at < w->n ? &w->e[w->at] : NULL;
    size_t path_len = strlen(w->path), plain_len = strlen(w->plain);

    if (!e || depth > MAX_DEPTH || e->repetition < 0 || e->repetition > 2)
        CORRUPT("%s: its schema is broken", w->p->name);
    w->at++;
    if (!append(w->path, e) || memchr(e->name, 0, e->name_len))
        CORRUPT("%s: a column's name is too long or no text", w->p->name);
    if (e->repetition == 2 && levels.max_rep == PARQUET_MAX_REP)
        PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "%s: %s lies in more than %d lists", w->p->name, w->path,
                  PARQUET_MAX_REP);
    levels.max_def += e->repetition != 0;
    if (e->repetition == 2)
        levels.def_of_rep[++levels.max_rep] = levels.max_def;
    /* A repeated group with one member is the middle of a list: neither shows. */
    bool is_middle = e->repetition == 2 && !e->has_type && e->n_children == 1;
    if (!hides && !is_middle && !append(w->plain, e))
        CORRUPT("%s: a column's name is too long", w->p->name);
    if (e->has_type && !e->n_children)
        PSEG_TRY(add_leaf(w, e, &levels, err));
    else
        for (int64_t i = 0; i < e->n_children; i++)
            PSEG_TRY(walk_down(w, levels, depth + 1, is_middle, err));
    w->path[path_len] = 0;
    w->plain[plain_len] = 0;
out:
    return rc;
}

static pseg_status read_schema(parquet *p, thrift *t, thrift_type type, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t n = thrift_list(t, type, THRIFT_STRUCT);
    element *e = NULL;
    walk *w = NULL;

    if (t->failed || n < 1 || n > MAX_SCHEMA || p->columns)
        CORRUPT("%s: its schema is broken", p->name);
    e = pseg_calloc(n, sizeof *e);
    w = pseg_calloc(1, sizeof *w);
    p->columns = pseg_calloc(PARQUET_MAX_COLUMNS, sizeof *p->columns);
    if (!e || !w || !p->columns)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the columns of %s", p->name);
    for (uint32_t i = 0; i < n; i++)
        e[i] = read_element(t);
    if (t->failed)
        CORRUPT("%s: its schema is broken", p->name);
    *w = (walk){.e = e, .n = n, .at = 1, .p = p};
    for (int64_t i = 0; i < e[0].n_children; i++)
        PSEG_TRY(walk_down(w, (parquet_column){.max_def = 0}, 0, false, err));
out:
    pseg_free(e);
    pseg_free(w);
    return rc;
}

/* ---- row groups ------------------------------------------------------------------------------ */

static pseg_status read_chunk_meta(parquet_chunk *c, const parquet *p, thrift *t, thrift_type type,
                                   pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t codec = 0, n_values = -1, size = -1, data_at = -1, dictionary_at = 0, begin;
    int16_t id = 0;

    if (type != THRIFT_STRUCT)
        CORRUPT("%s: a column's data are not described", p->name);
    while (thrift_field(&id, &type, t)) {
        if (id == 4)
            codec = thrift_int(t, type);
        else if (id == 5)
            n_values = thrift_int(t, type);
        else if (id == 7)
            size = thrift_int(t, type);
        else if (id == 9)
            data_at = thrift_int(t, type);
        else if (id == 11)
            dictionary_at = thrift_int(t, type);
        else
            thrift_skip(t, type);
    }
    /* Some writers put the dictionary's place where there is none: 0 is the file's mark. */
    begin = dictionary_at > 0 && dictionary_at < data_at ? dictionary_at : data_at;
    if (t->failed || codec < 0 || codec > 64 || n_values < 0 || size < 0 || begin < 4 ||
        (uint64_t)begin > p->size || (uint64_t)size > p->size - (uint64_t)begin)
        CORRUPT("%s: a column's data lie outside of the file", p->name);
    *c = (parquet_chunk){(uint64_t)begin, (uint64_t)begin + (uint64_t)size, (uint64_t)n_values,
                         (parquet_codec)codec};
out:
    return rc;
}

static pseg_status read_chunk(parquet_chunk *c, const parquet *p, thrift *t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    thrift_type type;
    int16_t id = 0;
    uint32_t len;

    while (thrift_field(&id, &type, t)) {
        if (id == 1) {
            thrift_text(&len, t, type);
            if (len)
                PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "%s: columns in other files are not read",
                          p->name);
        } else if (id == 3) {
            PSEG_TRY(read_chunk_meta(c, p, t, type, err));
        } else {
            thrift_skip(t, type);
        }
    }
    if (t->failed || !c->begin)
        CORRUPT("%s: a column's data are not described", p->name);
out:
    return rc;
}

static pseg_status read_group(parquet *p, uint32_t i, thrift *t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    thrift_type type;
    int16_t id = 0;
    bool has_columns = false;

    while (thrift_field(&id, &type, t)) {
        if (id == 1) {
            uint32_t n = thrift_list(t, type, THRIFT_STRUCT);
            if (t->failed || n != p->n_columns || has_columns)
                CORRUPT("%s: row group %u has %u columns, the schema %u", p->name, i, n,
                        p->n_columns);
            for (uint32_t k = 0; k < n; k++)
                PSEG_TRY(read_chunk(&p->chunks[(size_t)i * n + k], p, t, err));
            has_columns = true;
        } else if (id == 3) {
            p->group_rows[i] = (uint64_t)thrift_int(t, type);
        } else {
            thrift_skip(t, type);
        }
    }
    if (t->failed || !has_columns || p->group_rows[i] > INT64_MAX / MAX_GROUPS)
        CORRUPT("%s: row group %u is broken", p->name, i);
    p->n_rows += p->group_rows[i];
out:
    return rc;
}

static pseg_status read_groups(parquet *p, thrift *t, thrift_type type, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t n = thrift_list(t, type, THRIFT_STRUCT);

    if (t->failed || !p->columns || n > MAX_GROUPS || p->chunks)
        CORRUPT("%s: its row groups are broken", p->name);
    p->chunks = pseg_calloc((size_t)n * p->n_columns + 1, sizeof *p->chunks);
    p->group_rows = pseg_calloc((size_t)n + 1, sizeof *p->group_rows);
    if (!p->chunks || !p->group_rows)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the row groups of %s", p->name);
    p->n_groups = n;
    for (uint32_t i = 0; i < n; i++)
        PSEG_TRY(read_group(p, i, t, err));
out:
    return rc;
}

static uint32_t le32(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

pseg_status parquet_read_footer(parquet *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const uint8_t *end = p->data + p->size;
    thrift_type type;
    int16_t id = 0;
    thrift t;

    if (p->size < 12 || memcmp(p->data, "PAR1", 4) != 0)
        CORRUPT("%s is no Parquet file: it does not begin with PAR1", p->name);
    if (memcmp(end - 4, "PARE", 4) == 0)
        PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "%s is encrypted, which is not read", p->name);
    if (memcmp(end - 4, "PAR1", 4) != 0 || le32(end - 8) > p->size - 12)
        CORRUPT("%s is cut off: a Parquet file ends with its description and PAR1", p->name);
    t = (thrift){.at = end - 8 - le32(end - 8), .end = end - 8};
    while (thrift_field(&id, &type, &t)) {
        if (id == 2)
            PSEG_TRY(read_schema(p, &t, type, err));
        else if (id == 4)
            PSEG_TRY(read_groups(p, &t, type, err));
        else
            thrift_skip(&t, type);
    }
    if (t.failed || !p->chunks)
        CORRUPT("%s: its description is broken", p->name);
out:
    return rc;
}

/* ---- pages ----------------------------------------------------------------------------------- */

static void read_data_header(parquet_page_header *h, thrift *t)
{
    thrift_type type;
    int16_t id = 0;

    while (thrift_field(&id, &type, t)) {
        int64_t v = 0;
        if (id >= 1 && id <= 4 && type >= THRIFT_I16)
            v = thrift_int(t, type); /* a dictionary's third field is a bool */
        else
            thrift_skip(t, type);
        if (id == 1)
            h->n_values = v < 0 || v > PARQUET_MAX_VALUES ? UINT32_MAX : (uint32_t)v;
        else if (id == 2)
            h->encoding = (parquet_encoding)v;
        else if (id == 3)
            h->def_encoding = (parquet_encoding)v;
        else if (id == 4)
            h->rep_encoding = (parquet_encoding)v;
    }
}

static uint32_t size_of(int64_t v)
{
    return v < 0 || v > PARQUET_MAX_PAGE ? UINT32_MAX : (uint32_t)v;
}

static void read_data_header_v2(parquet_page_header *h, thrift *t)
{
    thrift_type type;
    int16_t id = 0;

    while (thrift_field(&id, &type, t)) {
        if (id == 7) {
            h->is_compressed = thrift_bool(t, type);
            continue;
        }
        int64_t v = 0;
        if (id >= 1 && id <= 6)
            v = thrift_int(t, type);
        else
            thrift_skip(t, type);
        if (id == 1)
            h->n_values = v < 0 || v > PARQUET_MAX_VALUES ? UINT32_MAX : (uint32_t)v;
        else if (id == 3)
            h->n_rows = size_of(v);
        else if (id == 4)
            h->encoding = (parquet_encoding)v;
        else if (id == 5)
            h->def_bytes = size_of(v);
        else if (id == 6)
            h->rep_bytes = size_of(v);
    }
}

pseg_status parquet_read_page_header(parquet_page_header *h, const parquet *p,
                                     const parquet_chunk *chunk, uint64_t *at, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    thrift t = {.at = p->data + *at, .end = p->data + chunk->end};
    thrift_type type;
    int16_t id = 0;

    *h = (parquet_page_header){.type = -1,
                               .def_encoding = PARQUET_RLE,
                               .rep_encoding = PARQUET_RLE,
                               .is_compressed = true};
    while (thrift_field(&id, &type, &t)) {
        if (id == 1)
            h->type = (int32_t)thrift_int(&t, type);
        else if (id == 2)
            h->size = size_of(thrift_int(&t, type));
        else if (id == 3)
            h->compressed_size = size_of(thrift_int(&t, type));
        else if ((id == 5 || id == 7) && type == THRIFT_STRUCT)
            read_data_header(h, &t);
        else if (id == 8 && type == THRIFT_STRUCT)
            read_data_header_v2(h, &t);
        else
            thrift_skip(&t, type);
    }
    if (t.failed || h->size > PARQUET_MAX_PAGE || h->n_values > PARQUET_MAX_VALUES ||
        h->compressed_size > (uint64_t)(t.end - t.at) || h->def_bytes > h->compressed_size ||
        h->rep_bytes > h->compressed_size - h->def_bytes ||
        (h->type == 3 && h->def_bytes + h->rep_bytes > h->size))
        CORRUPT("%s: a page at byte %llu is broken, or larger than %d MiB", p->name,
                (unsigned long long)*at, PARQUET_MAX_PAGE >> 20);
    *at = (uint64_t)(t.at - p->data);
out:
    return rc;
}
