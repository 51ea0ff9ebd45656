/* RefCOCO-m as it is published: rows of image bytes, image_id, file_name and a list of samples.
 *
 * A row's samples lie in some ten columns, which are read side by side, a row at a time. Their
 * place in the lists is told by levels (Dremel: Melnik and others, 2010): a repetition level of 0
 * begins a row, of 1 a sample, of 2 the next value of a list inside a sample. */
#include "common/base/alloc.h"
#include "common/base/arena.h"
#include "common/base/file.h"
#include "common/base/utf8.h"
#include "worker/data/builder.h"
#include "worker/data/parquet.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { MAX_SAMPLES = 100000, MAX_SENTENCES = 10000, MAX_IMAGE = 64 << 20 };

/* ---- images ---------------------------------------------------------------------------------- */

struct parquet_images {
    parquet **file;
    parquet_cursor **cursor; /* of each file's images */
    size_t n;
    uint64_t *identity; /* of each file, hashed */
    pthread_mutex_t mu;
};

void parquet_images_free(parquet_images *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < p->n; i++) {
        parquet_cursor_close(p->cursor[i]);
        parquet_close(p->file[i]);
    }
    pthread_mutex_destroy(&p->mu);
    pseg_free(p->file);
    pseg_free(p->cursor);
    pseg_free(p->identity);
    pseg_free(p);
}

/* place: the file's number and the row in it. */
static uint64_t place_of(size_t file, uint64_t row)
{
    return (uint64_t)file << 40 | row;
}

static pseg_status copy_image(pseg_data_bytes *out, parquet_cursor *c, uint64_t row, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    parquet_value v;
    bool has;

    PSEG_TRY(parquet_cursor_seek(c, row, err));
    PSEG_TRY(parquet_cursor_next(&v, &has, c, err));
    if (!has || !v.len)
        PSEG_FAIL(PSEG_R_FILE_NOT_FOUND, 0, "row %llu has no image", (unsigned long long)row);
    if (v.len > MAX_IMAGE)
        PSEG_FAIL(PSEG_R_REQUEST_TOO_LARGE, 0, "an image of %u bytes; the limit is %d", v.len,
                  MAX_IMAGE);
    out->owned = pseg_memdup(v.bytes, v.len);
    if (!out->owned)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an image of %u bytes", v.len);
    out->data = out->owned;
    out->len = v.len;
out:
    return rc;
}

pseg_status parquet_image(pseg_data_bytes *out, parquet_images *p, uint64_t place, pseg_err *err)
{
    pseg_status rc;

    pthread_mutex_lock(&p->mu);
    rc = copy_image(out, p->cursor[place >> 40], place & (((uint64_t)1 << 40) - 1), err);
    pthread_mutex_unlock(&p->mu);
    return rc;
}

uint64_t parquet_image_file(const parquet_images *p, uint64_t place)
{
    return p->identity[place >> 40];
}

/* ---- columns --------------------------------------------------------------------------------- */

enum { IMAGE_ID, FILE_NAME, ID, CATEGORY, LABEL, SENTENCES, BBOX, COUNTS, SIZE, N_COLUMNS };

static const struct {
    const char *plain, *other;
    bool is_needed;
    uint32_t rep; /* lists around it */
    bool is_number;
} columns[N_COLUMNS] = {
    [IMAGE_ID] = {"image_id", NULL, false, 0, true},
    [FILE_NAME] = {"file_name", "image.path", true, 0, false},
    [ID] = {"samples.id", NULL, false, 1, true},
    [CATEGORY] = {"samples.category", NULL, false, 1, false},
    [LABEL] = {"samples.label", NULL, false, 1, false},
    [SENTENCES] = {"samples.sentences", NULL, true, 2, false},
    [BBOX] = {"samples.bbox", NULL, false, 2, true},
    [COUNTS] = {"samples.mask.counts", NULL, true, 1, false},
    [SIZE] = {"samples.mask.size", NULL, true, 2, true},
};

/* A sample as it is put together; texts lie in the row's arena. */
typedef struct part {
    int64_t id;
    const char *category, *label, *counts;
    const char **sentences;
    uint32_t n_sentences, cap;
    double bbox[4], size[2];
    uint32_t n_bbox, n_size;
} part;

typedef struct table {
    pseg_dataset *d;
    parquet *file;
    size_t number; /* of the file */
    const parquet_column *column[N_COLUMNS];
    parquet_cursor *cursor[N_COLUMNS]; /* NULL: not there */
    uint64_t row;
    pseg_arena *arena; /* of the row */
    part *parts;
    uint32_t n_parts, cap_parts;
    int64_t image_id;
    const char *file_name;
} table;

static bool is_number(const parquet_column *c)
{
    return c->type == PARQUET_INT32 || c->type == PARQUET_INT64 || c->type == PARQUET_FLOAT ||
           c->type == PARQUET_DOUBLE;
}

static pseg_status open_columns(table *t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (int i = 0; i < N_COLUMNS; i++) {
        uint32_t k = parquet_find(t->file, columns[i].plain);
        if (k == UINT32_MAX && columns[i].other)
            k = parquet_find(t->file, columns[i].other);
        if (k == UINT32_MAX && columns[i].is_needed)
            PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0,
                      "%s has no column %s: expected are image, file_name and samples with "
                      "sentences and mask, as in RefCOCO-m",
                      parquet_name(t->file), columns[i].plain);
        if (k == UINT32_MAX)
            continue;
        t->column[i] = parquet_column_at(t->file, k);
        if (t->column[i]->max_rep != columns[i].rep ||
            is_number(t->column[i]) != columns[i].is_number)
            PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "%s: column %s is of another kind than in RefCOCO-m",
                      parquet_name(t->file), t->column[i]->path);
        PSEG_TRY(parquet_cursor_open(&t->cursor[i], t->file, k, err));
    }
out:
    return rc;
}

/* ---- a row ----------------------------------------------------------------------------------- */

static pseg_status text_of(const char **out, table *t, const parquet_value *v, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *s = pseg_arena_strndup(t->arena, (const char *)v->bytes, v->len);

    if (!s)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a row's texts");
    if (memchr(s, 0, v->len)) /* told as what is no text, not as what stands before the NUL */
        memcpy(s, "\xff", v->len < 2 ? v->len : 2);
    *out = s;
out:
    return rc;
}

static pseg_status add_part(table *t, uint32_t number, part **out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *out = NULL;
    if (number >= MAX_SAMPLES)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "%s: row %llu has more than %d samples",
                  parquet_name(t->file), (unsigned long long)t->row, MAX_SAMPLES);
    if (number >= t->cap_parts) {
        uint32_t cap = t->cap_parts ? 2 * t->cap_parts : 16;
        part *more = pseg_realloc(t->parts, cap * sizeof *more);
        if (!more)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a row's samples");
        t->parts = more;
        t->cap_parts = cap;
    }
    for (; t->n_parts <= number; t->n_parts++)
        t->parts[t->n_parts] = (part){.id = -1, .category = "", .label = "", .counts = NULL};
    *out = &t->parts[number];
out:
    return rc;
}

static pseg_status add_sentence(table *t, part *p, const parquet_value *v, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (p->n_sentences == p->cap) {
        uint32_t cap = p->cap ? 2 * p->cap : 8;
        const char **more = pseg_arena_alloc(t->arena, cap * sizeof *more);
        if (!more || cap > MAX_SENTENCES)
            PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "%s: row %llu has a sample of more than %d phrases",
                      parquet_name(t->file), (unsigned long long)t->row, MAX_SENTENCES);
        if (p->n_sentences)
            memcpy(more, p->sentences, p->n_sentences * sizeof *more);
        p->sentences = more;
        p->cap = cap;
    }
    PSEG_TRY(text_of(&p->sentences[p->n_sentences], t, v, err));
    p->n_sentences++;
out:
    return rc;
}

static pseg_status set_value(table *t, int i, part *p, const parquet_value *v, pseg_err *err)
{
    switch (i) {
    case IMAGE_ID:
        t->image_id = v->i;
        return PSEG_OK;
    case FILE_NAME:
        return text_of(&t->file_name, t, v, err);
    case ID:
        p->id = v->i;
        return PSEG_OK;
    case CATEGORY:
        return text_of(&p->category, t, v, err);
    case LABEL:
        return text_of(&p->label, t, v, err);
    case SENTENCES:
        return add_sentence(t, p, v, err);
    case BBOX:
        if (p->n_bbox < 4)
            p->bbox[p->n_bbox] = v->d;
        p->n_bbox++;
        return PSEG_OK;
    case COUNTS:
        return text_of(&p->counts, t, v, err);
    default:
        if (p->n_size < 2)
            p->size[p->n_size] = v->d;
        p->n_size++;
        return PSEG_OK;
    }
}

/* All values of column i that belong to the row. */
static pseg_status read_cells(table *t, int i, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const parquet_column *c = t->column[i];
    uint32_t n = 0; /* samples so far */
    bool goes_on = true, has;
    parquet_value v;
    part *p = NULL;

    for (uint32_t k = 0; goes_on; k++) {
        PSEG_TRY(parquet_cursor_next(&v, &has, t->cursor[i], err));
        if (!has || (k == 0) != (v.rep == 0))
            PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "%s: column %s ends or tears at row %llu",
                      parquet_name(t->file), c->path, (unsigned long long)t->row);
        if (c->max_rep && v.rep < 2 && v.def >= c->def_of_rep[1])
            PSEG_TRY(add_part(t, n++, &p, err));
        if (v.def == c->max_def && (p || !c->max_rep))
            PSEG_TRY(set_value(t, i, p, &v, err));
        PSEG_TRY(parquet_cursor_goes_on(&goes_on, t->cursor[i], err));
    }
out:
    return rc;
}

static void tell(table *t, const char *where, uint32_t i, const char *why)
{
    char at[320];

    snprintf(at, sizeof at, "%s sample %u", where, i);
    builder_fault(t->d, PSEG_DATA_BAD_RECORD, at, "%s", why);
}

static bool is_side(double x)
{
    return x >= 1 && x <= INT32_MAX;
}

static pseg_status give_part(table *t, uint32_t index, uint32_t i, const char *where, pseg_err *err)
{
    const part *p = &t->parts[i];
    pseg_data_sample s = {.id = p->id,
                          .category = p->category[0] ? p->category : p->label,
                          .kind = "",
                          .sentences = p->sentences,
                          .n_sentences = p->n_sentences,
                          .bbox = {0, 0, -1, -1},
                          .area = -1};
    char at[320];

    if (!p->counts || p->n_size != 2 || !is_side(p->size[0]) || !is_side(p->size[1])) {
        tell(t, where, i, "its mask lacks counts, or size: height and width");
        return PSEG_OK;
    }
    if (p->n_bbox == 4)
        memcpy(s.bbox, p->bbox, sizeof s.bbox);
    s.mask = (pseg_data_mask){.form = PSEG_DATA_MASK_RLE,
                              .height = (uint32_t)p->size[0],
                              .width = (uint32_t)p->size[1],
                              .rle = p->counts};
    snprintf(at, sizeof at, "%s sample %u", where, i);
    return builder_sample(t->d, index, &s, at, err);
}

static pseg_status read_row(table *t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char where[256];
    builder_image_in in = {.where = where, .place = place_of(t->number, t->row)};
    uint32_t index;

    pseg_arena_free(t->arena);
    t->arena = pseg_arena_new((size_t)1 << 30);
    if (!t->arena)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a row");
    t->n_parts = 0;
    t->image_id = -1;
    t->file_name = NULL;
    snprintf(where, sizeof where, "%.200s:row %llu", parquet_name(t->file),
             (unsigned long long)t->row);
    for (int i = 0; i < N_COLUMNS; i++)
        if (t->cursor[i])
            PSEG_TRY(read_cells(t, i, err));
    if (!t->file_name || !t->file_name[0] ||
        !pseg_utf8_is_valid(t->file_name, strlen(t->file_name))) {
        builder_fault(t->d, PSEG_DATA_BAD_RECORD, where, "the row has no file_name");
        return rc;
    }
    in.file_name = t->file_name;
    in.image_id = t->image_id;
    PSEG_TRY(builder_image(&index, t->d, &in, err));
    for (uint32_t i = 0; i < t->n_parts; i++)
        PSEG_TRY(give_part(t, index, i, where, err));
out:
    return rc;
}

static pseg_status read_file(pseg_dataset *d, parquet *file, size_t number, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    table t = {.d = d, .file = file, .number = number};

    PSEG_TRY(open_columns(&t, err));
    for (t.row = 0; t.row < parquet_n_rows(file); t.row++)
        PSEG_TRY(read_row(&t, err));
out:
    for (int i = 0; i < N_COLUMNS; i++)
        parquet_cursor_close(t.cursor[i]);
    pseg_arena_free(t.arena);
    pseg_free(t.parts);
    return rc;
}

static pseg_status open_images(parquet_images *p, size_t i, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t k = parquet_find(p->file[i], "image");

    if (k == UINT32_MAX)
        k = parquet_find(p->file[i], "image.bytes");
    if (k == UINT32_MAX || parquet_column_at(p->file[i], k)->max_rep ||
        parquet_column_at(p->file[i], k)->type != PARQUET_BYTE_ARRAY)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "%s has no column image (or image.bytes) of bytes",
                  parquet_name(p->file[i]));
    PSEG_TRY(parquet_cursor_open(&p->cursor[i], p->file[i], k, err));
out:
    return rc;
}

pseg_status parquet_read(pseg_dataset *d, char *const *paths, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    parquet_images *p = pseg_calloc(1, sizeof *p);
    pseg_file_id id;

    if (!p)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a data set");
    d->parquet = p;
    pthread_mutex_init(&p->mu, NULL);
    p->file = pseg_calloc(n, sizeof *p->file);
    p->cursor = pseg_calloc(n, sizeof *p->cursor);
    p->identity = pseg_calloc(n, sizeof *p->identity);
    if (!p->file || !p->cursor || !p->identity)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a data set");
    p->n = n;
    for (size_t i = 0; i < n; i++) {
        PSEG_TRY(parquet_open(&p->file[i], paths[i], err));
        PSEG_TRY(open_images(p, i, err));
        PSEG_TRY(pseg_file_identify(&id, paths[i], err));
        p->identity[i] = idmap_hash(&id.size, sizeof id.size) ^
                         idmap_mix(idmap_hash(&id.written_ns, sizeof id.written_ns));
        PSEG_TRY(read_file(d, p->file[i], i, err));
    }
out:
    return rc;
}
