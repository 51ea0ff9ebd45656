/* Records as they lie in the spool: numbers and strings behind each other, written and read by this
 * file alone and on one machine. */
#include "common/base/alloc.h"
#include "common/base/arena.h"
#include "common/base/buf.h"
#include "worker/data/builder.h"

#include <string.h>

enum { MAX_RECORD = 256 << 20 };

/* ---- writing --------------------------------------------------------------------------------- */

static pseg_status put_u32(pseg_buf *b, uint32_t v, pseg_err *err)
{
    return pseg_buf_append(b, &v, sizeof v, err);
}

static pseg_status put_text(pseg_buf *b, const char *s, pseg_err *err)
{
    return pseg_buf_append(b, s, strlen(s) + 1, err);
}

static pseg_status finish(uint64_t *at, uint32_t *len, spool *s, pseg_buf *b, pseg_err *err)
{
    *len = (uint32_t)b->len;
    return spool_append(at, s, b->data, b->len, err);
}

pseg_status record_write_image(uint64_t *at, uint32_t *len, spool *s, const builder_image_in *in,
                               const char *key, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_buf b;

    pseg_buf_init(&b, MAX_RECORD);
    PSEG_TRY(pseg_buf_append(&b, &in->image_id, sizeof in->image_id, err));
    PSEG_TRY(put_u32(&b, in->width, err));
    PSEG_TRY(put_u32(&b, in->height, err));
    PSEG_TRY(put_text(&b, key, err));
    PSEG_TRY(put_text(&b, in->file_name, err));
    PSEG_TRY(put_text(&b, in->where, err));
    PSEG_TRY(finish(at, len, s, &b, err));
out:
    pseg_buf_deinit(&b);
    return rc;
}

static pseg_status put_mask(pseg_buf *b, const pseg_data_mask *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n_points = 0;

    PSEG_TRY(put_u32(b, m->form, err));
    PSEG_TRY(put_u32(b, m->width, err));
    PSEG_TRY(put_u32(b, m->height, err));
    if (m->form == PSEG_DATA_MASK_RLE) {
        PSEG_TRY(put_text(b, m->rle, err));
    } else if (m->form == PSEG_DATA_MASK_RUNS) {
        PSEG_TRY(put_u32(b, (uint32_t)m->n_runs, err));
        PSEG_TRY(pseg_buf_append(b, m->runs, m->n_runs * sizeof *m->runs, err));
    } else {
        for (uint32_t i = 0; i < m->n_rings; i++)
            n_points += m->ring_len[i];
        PSEG_TRY(put_u32(b, m->n_rings, err));
        PSEG_TRY(pseg_buf_append(b, m->ring_len, m->n_rings * sizeof *m->ring_len, err));
        PSEG_TRY(pseg_buf_append(b, m->points, n_points * sizeof *m->points, err));
    }
out:
    return rc;
}

pseg_status record_write_sample(uint64_t *at, uint32_t *len, spool *s, const pseg_data_sample *in,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_buf b;

    pseg_buf_init(&b, MAX_RECORD);
    PSEG_TRY(pseg_buf_append(&b, &in->id, sizeof in->id, err));
    PSEG_TRY(pseg_buf_append(&b, in->bbox, sizeof in->bbox, err));
    PSEG_TRY(pseg_buf_append(&b, &in->area, sizeof in->area, err));
    PSEG_TRY(put_u32(&b, in->is_crowd, err));
    PSEG_TRY(put_u32(&b, in->n_sentences, err));
    PSEG_TRY(put_text(&b, in->category, err));
    PSEG_TRY(put_text(&b, in->kind, err));
    for (uint32_t i = 0; i < in->n_sentences; i++)
        PSEG_TRY(put_text(&b, in->sentences[i], err));
    PSEG_TRY(put_mask(&b, &in->mask, err));
    PSEG_TRY(finish(at, len, s, &b, err));
out:
    pseg_buf_deinit(&b);
    return rc;
}

/* ---- reading --------------------------------------------------------------------------------- */

typedef struct reader {
    const uint8_t *at;
} reader;

static void get(void *out, reader *r, size_t n)
{
    memcpy(out, r->at, n);
    r->at += n;
}

static uint32_t get_u32(reader *r)
{
    uint32_t v;

    get(&v, r, sizeof v);
    return v;
}

static const char *get_text(reader *r)
{
    const char *s = (const char *)r->at;

    r->at += strlen(s) + 1;
    return s;
}

/* n bytes of numbers, aligned, in the arena. */
static const void *get_array(reader *r, pseg_arena *a, size_t n)
{
    void *p = pseg_arena_alloc(a, n);

    if (p)
        get(p, r, n);
    return p;
}

static bool get_mask(pseg_data_mask *m, reader *r, pseg_arena *a)
{
    size_t n_points = 0;

    m->form = (pseg_data_mask_form)get_u32(r);
    m->width = get_u32(r);
    m->height = get_u32(r);
    if (m->form == PSEG_DATA_MASK_RLE) {
        m->rle = get_text(r);
        return true;
    }
    if (m->form == PSEG_DATA_MASK_RUNS) {
        m->n_runs = get_u32(r);
        m->runs = get_array(r, a, m->n_runs * sizeof *m->runs);
        return m->runs != NULL;
    }
    m->n_rings = get_u32(r);
    m->ring_len = get_array(r, a, m->n_rings * sizeof *m->ring_len);
    if (!m->ring_len)
        return false;
    for (uint32_t i = 0; i < m->n_rings; i++)
        n_points += m->ring_len[i];
    m->points = get_array(r, a, n_points * sizeof *m->points);
    return m->points != NULL;
}

static bool get_sample(pseg_data_sample *s, reader *r, pseg_arena *a)
{
    const char **sentences;

    get(&s->id, r, sizeof s->id);
    get(s->bbox, r, sizeof s->bbox);
    get(&s->area, r, sizeof s->area);
    s->is_crowd = get_u32(r) != 0;
    s->n_sentences = get_u32(r);
    s->category = get_text(r);
    s->kind = get_text(r);
    s->sentences = sentences = pseg_arena_alloc(a, (s->n_sentences + 1) * sizeof *sentences);
    if (!sentences)
        return false;
    for (uint32_t i = 0; i < s->n_sentences; i++)
        sentences[i] = get_text(r);
    return get_mask(&s->mask, r, a);
}

/* The record and everything it shows, in one arena. */
typedef struct whole_record {
    pseg_data_record r;
    pseg_arena *arena;
} whole_record;

static pseg_status load(reader *out, pseg_arena *a, const spool *s, uint64_t at, uint32_t len,
                        pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t *data = pseg_arena_alloc(a, len);

    if (!data)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a record of %u bytes", len);
    PSEG_TRY(spool_read(data, s, at, len, err));
    out->at = data;
out:
    return rc;
}

pseg_status pseg_dataset_read(pseg_data_record **out, const pseg_dataset *d, size_t image,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_arena *a = NULL;
    whole_record *w = NULL;
    pseg_data_sample *samples = NULL;
    const image_entry *e = image < d->n_images ? &d->image[image] : NULL;
    reader r;

    *out = NULL;
    PSEG_REQUIRE(e, "image");
    a = pseg_arena_new((size_t)2 << 30);
    w = a ? pseg_arena_calloc(a, 1, sizeof *w) : NULL;
    samples = w ? pseg_arena_calloc(a, e->of.n_samples, sizeof *samples) : NULL;
    if (!samples)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a record");
    w->arena = a;
    PSEG_TRY(load(&r, a, &d->spool, e->at, e->len, err));
    get(&w->r.image_id, &r, sizeof w->r.image_id);
    w->r.width = get_u32(&r);
    w->r.height = get_u32(&r);
    w->r.key = get_text(&r);
    w->r.file_name = get_text(&r);
    w->r.where = get_text(&r);
    for (uint32_t i = 0; i < e->of.n_samples; i++) {
        const sample_entry *s = &d->sample[e->first_sample + i];
        PSEG_TRY(load(&r, a, &d->spool, s->at, s->len, err));
        if (!get_sample(&samples[i], &r, a))
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a record");
    }
    w->r.samples = samples;
    w->r.n_samples = e->of.n_samples;
    *out = &w->r;
    a = NULL;
out:
    pseg_arena_free(a);
    return rc;
}

void pseg_data_record_free(pseg_data_record *r)
{
    if (r)
        pseg_arena_free(((whole_record *)r)->arena);
}
