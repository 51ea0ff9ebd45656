#include "worker/data/parquet.h"
#include "common/base/alloc.h"
#include "worker/data/parquet_impl.h"

#include <string.h>

#define CORRUPT(...) PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, __VA_ARGS__)

/* ---- files ----------------------------------------------------------------------------------- */

static pseg_status new_file(parquet **out, const char *name, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    parquet *p = pseg_calloc(1, sizeof *p);

    *out = p;
    if (!p || !(p->arena = pseg_arena_new(64 << 20)) || !(p->name = pseg_strdup(name)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %s", name);
out:
    return rc;
}

pseg_status parquet_open(parquet **out, const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *slash = strrchr(path, '/');
    parquet *p = NULL;

    *out = NULL;
    PSEG_TRY(new_file(&p, slash ? slash + 1 : path, err));
    PSEG_TRY(pseg_map_open(&p->map, path, err));
    p->is_mapped = true;
    p->data = p->map.data;
    p->size = p->map.size;
    PSEG_TRY(parquet_read_footer(p, err));
    *out = p;
    p = NULL;
out:
    parquet_close(p);
    return rc;
}

pseg_status parquet_from(parquet **out, const uint8_t *data, size_t n, const char *name,
                         pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    parquet *p = NULL;

    *out = NULL;
    PSEG_TRY(new_file(&p, name, err));
    p->data = data;
    p->size = n;
    PSEG_TRY(parquet_read_footer(p, err));
    *out = p;
    p = NULL;
out:
    parquet_close(p);
    return rc;
}

void parquet_close(parquet *p)
{
    if (!p)
        return;
    if (p->is_mapped)
        pseg_map_close(&p->map);
    pseg_arena_free(p->arena);
    pseg_free(p->columns);
    pseg_free(p->chunks);
    pseg_free(p->group_rows);
    pseg_free(p->name);
    pseg_free(p);
}

uint64_t parquet_n_rows(const parquet *p)
{
    return p->n_rows;
}

const char *parquet_name(const parquet *p)
{
    return p->name;
}

uint64_t parquet_group_rows(const parquet *p, uint32_t group)
{
    return p->group_rows[group];
}

uint32_t parquet_n_columns(const parquet *p)
{
    return p->n_columns;
}

const parquet_column *parquet_column_at(const parquet *p, uint32_t i)
{
    return &p->columns[i];
}

uint32_t parquet_find(const parquet *p, const char *plain)
{
    for (uint32_t i = 0; i < p->n_columns; i++)
        if (strcmp(p->columns[i].plain, plain) == 0)
            return i;
    return UINT32_MAX;
}

/* ---- pages ----------------------------------------------------------------------------------- */

/* A page as it was decoded. */
typedef struct page {
    uint8_t *own;        /* decompressed bytes, or NULL: values lie in the file */
    uint32_t *rep, *def; /* [n]; NULL where the column has none */
    parquet_values values;
    uint32_t n, at, at_value; /* of the next value */
    bool is_there;
} page;

struct parquet_cursor {
    const parquet *p;
    const parquet_column *c;
    uint32_t column, group; /* group: whose pages come */
    bool is_in_group;
    uint64_t at;   /* the next page's header, in the file */
    uint64_t left; /* values of the group behind the page */
    uint64_t row;  /* of the page's first value; columns in no list alone */
    uint8_t *dictionary_own;
    parquet_values dictionary;
    bool has_dictionary;
    page page;
};

static void page_deinit(page *g)
{
    pseg_free(g->own);
    pseg_free(g->rep);
    pseg_free(g->def);
    parquet_values_deinit(&g->values);
    *g = (page){0};
}

static void drop_dictionary(parquet_cursor *c)
{
    parquet_values_deinit(&c->dictionary);
    pseg_free(c->dictionary_own);
    c->dictionary_own = NULL;
    c->has_dictionary = false;
}

static uint32_t bits_for(uint32_t most)
{
    return most ? 32 - (uint32_t)__builtin_clz(most) : 0;
}

static pseg_status read_levels(uint32_t **out, uint32_t n, uint32_t most, const uint8_t *data,
                               size_t len, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *out = pseg_calloc((size_t)n + 1, sizeof **out);
    if (!*out)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u levels", n);
    PSEG_TRY(parquet_hybrid(*out, n, data, len, bits_for(most), most, err));
out:
    return rc;
}

/* Levels of a page of version 1, which say their length in bytes before them; *data moves on. */
static pseg_status take_levels(uint32_t **out, uint32_t n, uint32_t most, parquet_encoding encoding,
                               const uint8_t **data, size_t *len, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t bytes = 0;

    if (!most)
        return rc;
    if (encoding != PARQUET_RLE)
        PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "levels in encoding %d, which is not read", (int)encoding);
    if (*len >= 4)
        memcpy(&bytes, *data, 4);
    if (*len < 4 || bytes > *len - 4)
        CORRUPT("levels are cut off");
    PSEG_TRY(read_levels(out, n, most, *data + 4, bytes, err));
    *data += 4 + (size_t)bytes;
    *len -= 4 + (size_t)bytes;
out:
    return rc;
}

/* How many of the page's entries have a value. */
static uint32_t count_values(const page *g, const parquet_column *c)
{
    uint32_t n = 0;

    for (uint32_t i = 0; g->def && i < g->n; i++)
        n += g->def[i] == c->max_def;
    return g->def ? n : g->n;
}

/* A page's bytes, decompressed if they are not as they are: *data, *len. */
static pseg_status unwrap(uint8_t **own, const uint8_t **data, size_t *len,
                          const parquet_page_header *h, const parquet *p, uint64_t at,
                          parquet_codec codec, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const uint8_t *in = p->data + at;
    /* Of version 2, levels are not compressed. */
    size_t lead = h->type == 3 ? (size_t)h->def_bytes + h->rep_bytes : 0;

    if (codec == PARQUET_PLAIN_BYTES || (h->type == 3 && !h->is_compressed)) {
        *data = in;
        *len = h->compressed_size;
        return rc;
    }
    *own = pseg_malloc((size_t)h->size + 1);
    if (!*own)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a page of %u bytes", h->size);
    memcpy(*own, in, lead);
    if (h->size > lead || h->compressed_size > lead)
        PSEG_TRY(parquet_decompress(*own + lead, h->size - lead, in + lead,
                                    h->compressed_size - lead, codec, err));
    *data = *own;
    *len = h->size;
out:
    return rc;
}

static pseg_status read_dictionary(parquet_cursor *c, const parquet_page_header *h, uint64_t at,
                                   const parquet_chunk *chunk, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const uint8_t *data;
    size_t len;

    if (c->has_dictionary)
        CORRUPT("a second dictionary");
    if (h->encoding != PARQUET_PLAIN && h->encoding != PARQUET_PLAIN_DICTIONARY)
        PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "a dictionary in encoding %d, which is not read",
                  (int)h->encoding);
    PSEG_TRY(unwrap(&c->dictionary_own, &data, &len, h, c->p, at, chunk->codec, err));
    /* Each value takes a byte at least: no dictionary is larger than its page. */
    if (h->n_values > len)
        CORRUPT("a dictionary of %u values in %zu bytes", h->n_values, len);
    PSEG_TRY(parquet_values_init(&c->dictionary, c->c, h->n_values, err));
    PSEG_TRY(parquet_decode(&c->dictionary, c->c, PARQUET_PLAIN, data, len, NULL, err));
    c->has_dictionary = true;
out:
    return rc;
}

static pseg_status read_data(parquet_cursor *c, const parquet_page_header *h, uint64_t at,
                             const parquet_chunk *chunk, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const parquet_column *col = c->c;
    page *g = &c->page;
    const uint8_t *data;
    size_t len;

    page_deinit(g);
    g->n = h->n_values;
    if (g->n > c->left)
        CORRUPT("a page of %u values where %llu are left", g->n, (unsigned long long)c->left);
    PSEG_TRY(unwrap(&g->own, &data, &len, h, c->p, at, chunk->codec, err));
    if (h->type == 3) {
        if (h->rep_bytes > len || h->def_bytes > len - h->rep_bytes)
            CORRUPT("levels are cut off");
        if (col->max_rep)
            PSEG_TRY(read_levels(&g->rep, g->n, col->max_rep, data, h->rep_bytes, err));
        if (col->max_def)
            PSEG_TRY(
                read_levels(&g->def, g->n, col->max_def, data + h->rep_bytes, h->def_bytes, err));
        data += (size_t)h->rep_bytes + h->def_bytes;
        len -= (size_t)h->rep_bytes + h->def_bytes;
    } else {
        PSEG_TRY(take_levels(&g->rep, g->n, col->max_rep, h->rep_encoding, &data, &len, err));
        PSEG_TRY(take_levels(&g->def, g->n, col->max_def, h->def_encoding, &data, &len, err));
    }
    PSEG_TRY(parquet_values_init(&g->values, col, count_values(g, col), err));
    PSEG_TRY(parquet_decode(&g->values, col, h->encoding, data, len,
                            c->has_dictionary ? &c->dictionary : NULL, err));
    c->left -= g->n;
    g->is_there = true;
out:
    return rc;
}

/* ---- cursors --------------------------------------------------------------------------------- */

pseg_status parquet_cursor_open(parquet_cursor **out, const parquet *p, uint32_t column,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    parquet_cursor *c = NULL;
    parquet_values none;

    *out = NULL;
    PSEG_REQUIRE(column < p->n_columns, "column");
    PSEG_TRY(parquet_values_init(&none, &p->columns[column], 0, err)); /* a type that is read? */
    parquet_values_deinit(&none);
    c = pseg_calloc(1, sizeof *c);
    if (!c)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to read %s", p->name);
    c->p = p;
    c->c = &p->columns[column];
    c->column = column;
    *out = c;
out:
    return rc;
}

void parquet_cursor_close(parquet_cursor *c)
{
    if (!c)
        return;
    drop_dictionary(c);
    page_deinit(&c->page);
    pseg_free(c);
}

static const parquet_chunk *chunk_of(const parquet_cursor *c)
{
    return &c->p->chunks[(size_t)c->group * c->p->n_columns + c->column];
}

static void enter_group(parquet_cursor *c, uint32_t group)
{
    page_deinit(&c->page);
    drop_dictionary(c);
    c->group = group;
    c->is_in_group = group < c->p->n_groups;
    if (c->is_in_group) {
        c->at = chunk_of(c)->begin;
        c->left = chunk_of(c)->n_values;
    }
}

/* The next page's header, past dictionaries, which are read. *at: its bytes. */
static pseg_status next_header(parquet_page_header *h, uint64_t *at, parquet_cursor *c,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const parquet_chunk *chunk = chunk_of(c);

    do {
        if (c->at >= chunk->end)
            CORRUPT("%llu values are missing", (unsigned long long)c->left);
        PSEG_TRY(parquet_read_page_header(h, c->p, chunk, &c->at, err));
        *at = c->at;
        c->at += h->compressed_size;
        if (h->type == 2)
            PSEG_TRY(read_dictionary(c, h, *at, chunk, err));
    } while (h->type != 0 && h->type != 3);
out:
    return rc;
}

/* The next page that has a value, of this group or those behind it. */
static pseg_status fill_page(parquet_cursor *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    parquet_page_header h;
    uint64_t at;

    if (!c->is_in_group && c->group == 0)
        enter_group(c, 0);
    while (c->is_in_group && c->page.at == c->page.n) {
        if (c->left == 0) {
            c->row += c->page.n;
            enter_group(c, c->group + 1);
            continue;
        }
        c->row += c->page.n;
        c->page.n = c->page.at = 0;
        PSEG_TRY(next_header(&h, &at, c, err));
        PSEG_TRY(read_data(c, &h, at, chunk_of(c), err));
    }
out:
    if (rc != PSEG_OK && rc != PSEG_ENOMEM)
        pseg_err_prefix(err, "%s: column %s, row group %u", c->p->name, c->c->path, c->group);
    if (rc != PSEG_OK) /* half a page is none: there is nothing behind a fault */
        enter_group(c, c->p->n_groups);
    return rc;
}

pseg_status parquet_cursor_next(parquet_value *out, bool *has, parquet_cursor *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    page *g = &c->page;

    *out = (parquet_value){.bytes = (const uint8_t *)""};
    *has = false;
    PSEG_TRY(fill_page(c, err));
    if (!c->is_in_group)
        goto out;
    *has = true;
    out->rep = g->rep ? g->rep[g->at] : 0;
    out->def = g->def ? g->def[g->at] : c->c->max_def;
    g->at++;
    if (out->def < c->c->max_def)
        goto out;
    if (g->values.ints) {
        out->i = g->values.ints[g->at_value];
        out->d = (double)out->i;
    } else if (g->values.reals) {
        out->d = g->values.reals[g->at_value];
    } else {
        out->bytes = g->values.bytes[g->at_value].data;
        out->len = g->values.bytes[g->at_value].len;
    }
    g->at_value++;
out:
    return rc;
}

pseg_status parquet_cursor_goes_on(bool *out, parquet_cursor *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *out = false;
    if (c->c->max_rep == 0)
        return rc;
    PSEG_TRY(fill_page(c, err));
    *out = c->is_in_group && c->page.rep[c->page.at] > 0;
out:
    return rc;
}

/* Steps of a seek: moves to the page that holds the row, without reading pages on the way. */
static pseg_status find_page(parquet_cursor *c, uint64_t row, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    parquet_page_header h;
    uint64_t at;

    while (row >= c->row + c->page.n) {
        c->row += c->page.n;
        page_deinit(&c->page);
        if (c->left == 0)
            CORRUPT("row %llu is missing", (unsigned long long)row);
        PSEG_TRY(next_header(&h, &at, c, err));
        if (h.n_values > c->left)
            CORRUPT("a page of %u values where %llu are left", h.n_values,
                    (unsigned long long)c->left);
        if (row >= c->row + h.n_values) {
            c->row += h.n_values;
            c->left -= h.n_values;
            continue;
        }
        PSEG_TRY(read_data(c, &h, at, chunk_of(c), err));
    }
out:
    return rc;
}

pseg_status parquet_cursor_seek(parquet_cursor *c, uint64_t row, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t first = 0;
    uint32_t group = 0;

    PSEG_REQUIRE(c->c->max_rep == 0 && row < c->p->n_rows, "row");
    while (row >= first + c->p->group_rows[group])
        first += c->p->group_rows[group++];
    if (!c->is_in_group || c->group != group || row < c->row || c->row < first) {
        enter_group(c, group);
        c->row = first;
    }
    PSEG_TRY(find_page(c, row, err));
    c->page.at = (uint32_t)(row - c->row);
    c->page.at_value = 0;
    for (uint32_t i = 0; i < c->page.at; i++)
        c->page.at_value += !c->page.def || c->page.def[i] == c->c->max_def;
out:
    if (rc != PSEG_OK && rc != PSEG_ENOMEM && rc != PSEG_EINVAL)
        pseg_err_prefix(err, "%s: column %s, row group %u", c->p->name, c->c->path, group);
    if (rc != PSEG_OK)
        enter_group(c, c->p->n_groups);
    return rc;
}
