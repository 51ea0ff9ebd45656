#include "worker/eval/source_data.h"
#include "common/base/alloc.h"
#include "common/base/hash.h"

#include <stdio.h>
#include <string.h>

typedef struct data_source {
    pseg_eval_source base;
    pseg_dataset *d;
    uint32_t *images; /* [base.n_images] */
    pseg_image_limits limits;
} data_source;

static void data_close(pseg_eval_source *s)
{
    data_source *of = (data_source *)s;

    pseg_free(of->images);
    pseg_free(of);
}

/* The next phrase in turn that means another target. */
static uint32_t pick_swap(const pseg_eval_listing *l, uint32_t i)
{
    for (uint32_t step = 1; step < l->n; step++) {
        uint32_t k = (i + step) % l->n;
        if (l->phrases[k].target != l->phrases[i].target &&
            strcmp(l->phrases[k].text, l->phrases[i].text) != 0)
            return k;
    }
    return UINT32_MAX;
}

static bool is_same_mask(const pseg_data_mask *a, const pseg_data_mask *b)
{
    if (a->form != b->form)
        return false;
    if (a->form == PSEG_DATA_MASK_RLE)
        return strcmp(a->rle, b->rle) == 0;
    if (a->form == PSEG_DATA_MASK_RUNS)
        return a->n_runs == b->n_runs && memcmp(a->runs, b->runs, a->n_runs * sizeof *a->runs) == 0;
    size_t n = 0;
    if (a->n_rings != b->n_rings ||
        memcmp(a->ring_len, b->ring_len, a->n_rings * sizeof *a->ring_len) != 0)
        return false;
    for (uint32_t i = 0; i < a->n_rings; i++)
        n += a->ring_len[i];
    return memcmp(a->points, b->points, n * sizeof *a->points) == 0;
}

/* Samples with one mask are one target: the first of them. *said: sentences of it before k. */
static uint32_t target_of(const pseg_data_record *r, uint32_t k, uint32_t *said)
{
    uint32_t target = k;

    *said = 0;
    for (uint32_t i = 0; i < k; i++)
        if (is_same_mask(&r->samples[i].mask, &r->samples[k].mask)) {
            target = target < i ? target : i;
            *said += r->samples[i].n_sentences;
        }
    return target;
}

static pseg_status data_list(pseg_eval_listing *out, pseg_eval_source *s, uint32_t image,
                             pseg_arena *arena, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const data_source *of = (const data_source *)s;
    pseg_data_record *r = NULL;
    uint32_t at = 0, n = pseg_dataset_at(of->d, of->images[image]).n_phrases;

    PSEG_TRY(pseg_dataset_read(&r, of->d, of->images[image], err));
    *out = (pseg_eval_listing){.name = pseg_arena_strdup(arena, r->key),
                               .phrases = pseg_arena_calloc(arena, n, sizeof *out->phrases)};
    if (!out->name || !out->phrases)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the phrases of an image");
    for (uint32_t k = 0; k < r->n_samples; k++) {
        const pseg_data_sample *sample = &r->samples[k];
        const char *kind = pseg_arena_strdup(arena, sample->kind);
        const char *category = pseg_arena_strdup(arena, sample->category);
        uint32_t said, target = target_of(r, k, &said);
        for (uint32_t i = 0; i < sample->n_sentences && at < n; i++) {
            pseg_eval_phrase *p = &out->phrases[at++];
            *p = (pseg_eval_phrase){.text = pseg_arena_strdup(arena, sample->sentences[i]),
                                    .kind = kind,
                                    .category = category,
                                    .target = target,
                                    .sentence = said + i};
            if (!p->text || !kind || !category)
                PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the phrases of an image");
        }
    }
    out->n = at;
    for (uint32_t i = 0; i < out->n; i++)
        out->phrases[i].swap = pick_swap(out, i);
out:
    pseg_data_record_free(r);
    return rc;
}

static pseg_status data_load(pseg_eval_photo *out, float *chw, pseg_eval_source *s, uint32_t image,
                             const pseg_preprocess *how, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    data_source *of = (data_source *)s;
    pseg_data_record *r = NULL;
    pseg_data_bytes file = {0};
    pseg_image_prepared p;

    PSEG_TRY(pseg_dataset_image(&file, of->d, of->images[image], err));
    PSEG_TRY(
        pseg_image_prepare(&p, chw, (pseg_image_file){file.data, file.len}, &of->limits, how, err));
    PSEG_TRY(pseg_dataset_read(&r, of->d, of->images[image], err));
    *out = (pseg_eval_photo){.width = p.width, .height = p.height, .held = r};
    memcpy(out->rect, p.rect, sizeof out->rect);
    r = NULL;
out:
    pseg_data_bytes_free(&file);
    pseg_data_record_free(r);
    return rc;
}

static void data_unload(pseg_eval_source *s, pseg_eval_photo *p)
{
    (void)s;
    pseg_data_record_free(p->held);
    p->held = NULL;
}

static pseg_status data_truth(pseg_mask **out, pseg_eval_source *s, const pseg_eval_photo *p,
                              uint32_t target, pseg_err *err)
{
    const pseg_data_record *r = p->held;

    (void)s;
    return pseg_data_mask_decode(out, &r->samples[target].mask, err);
}

static pseg_status data_picture(pseg_image **out, pseg_eval_source *s, uint32_t image,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    data_source *of = (data_source *)s;
    pseg_data_bytes file = {0};

    *out = NULL;
    PSEG_TRY(pseg_dataset_image(&file, of->d, of->images[image], err));
    PSEG_TRY(pseg_image_decode(out, file.data, file.len, &of->limits, err));
out:
    pseg_data_bytes_free(&file);
    return rc;
}

static void hash_text(pseg_sha256 *h, const char *s)
{
    pseg_sha256_update(h, s, strlen(s) + 1);
}

/* Keys, masks and phrases of what is evaluated, in order; the photos' own bytes are not read. */
static void hash_record(pseg_sha256 *h, const pseg_data_record *r)
{
    hash_text(h, r->key);
    for (uint32_t k = 0; k < r->n_samples; k++) {
        const pseg_data_sample *s = &r->samples[k];
        const pseg_data_mask *m = &s->mask;
        const uint32_t head[3] = {(uint32_t)m->form, m->width, m->height};
        size_t n_points = 0;

        pseg_sha256_update(h, head, sizeof head);
        if (m->form == PSEG_DATA_MASK_RLE) {
            hash_text(h, m->rle);
        } else if (m->form == PSEG_DATA_MASK_RUNS) {
            pseg_sha256_update(h, m->runs, m->n_runs * sizeof *m->runs);
        } else {
            for (uint32_t i = 0; i < m->n_rings; i++)
                n_points += m->ring_len[i];
            pseg_sha256_update(h, m->ring_len, m->n_rings * sizeof *m->ring_len);
            pseg_sha256_update(h, m->points, n_points * sizeof *m->points);
        }
        for (uint32_t i = 0; i < s->n_sentences; i++)
            hash_text(h, s->sentences[i]);
    }
}

static pseg_status digest(data_source *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t bytes[PSEG_SHA256_BYTES];
    pseg_sha256 *h = pseg_sha256_new();
    pseg_data_record *r = NULL;

    if (!h)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a digest");
    for (uint32_t i = 0; i < s->base.n_images; i++) {
        PSEG_TRY(pseg_dataset_read(&r, s->d, s->images[i], err));
        hash_record(h, r);
        pseg_data_record_free(r);
        r = NULL;
    }
    pseg_sha256_finish(h, bytes);
    pseg_hex(s->base.digest, bytes, sizeof bytes);
out:
    pseg_data_record_free(r);
    pseg_sha256_free(h);
    return rc;
}

/* What was wrong when the set was opened, in an evaluation's terms. */
static void take_faults(data_source *s)
{
    static const struct {
        pseg_data_fault from;
        pseg_eval_fault to;
    } map[] = {
        {PSEG_DATA_BAD_RECORD, PSEG_EVAL_FAULT_RECORD},
        {PSEG_DATA_IMAGE_REPEATED, PSEG_EVAL_FAULT_RECORD},
        {PSEG_DATA_NO_SAMPLES, PSEG_EVAL_FAULT_RECORD},
        {PSEG_DATA_IMAGE_MISSING, PSEG_EVAL_FAULT_IMAGE_MISSING},
        {PSEG_DATA_IMAGE_BROKEN, PSEG_EVAL_FAULT_IMAGE_BROKEN},
        {PSEG_DATA_MASK_BROKEN, PSEG_EVAL_FAULT_MASK_BROKEN},
        {PSEG_DATA_MASK_SIZE, PSEG_EVAL_FAULT_MASK_SIZE},
        {PSEG_DATA_MASK_EMPTY, PSEG_EVAL_FAULT_MASK_EMPTY},
        {PSEG_DATA_PHRASE_MISSING, PSEG_EVAL_FAULT_PHRASE_BAD},
        {PSEG_DATA_PHRASE_EMPTY, PSEG_EVAL_FAULT_PHRASE_BAD},
        {PSEG_DATA_PHRASE_LONG, PSEG_EVAL_FAULT_PHRASE_BAD},
        {PSEG_DATA_PHRASE_NOT_TEXT, PSEG_EVAL_FAULT_PHRASE_BAD},
    };

    for (size_t i = 0; i < sizeof map / sizeof *map; i++)
        s->base.faults[map[i].to] += pseg_dataset_n_faults(s->d, map[i].from);
}

pseg_status pseg_eval_source_data(pseg_eval_source **out, pseg_dataset *d,
                                  const pseg_data_selection *images, const char *description,
                                  const pseg_image_limits *limits, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    data_source *s = pseg_calloc(1, sizeof *s);

    *out = NULL;
    if (!s || !(s->images = pseg_memdup(images->images, images->n * sizeof *s->images)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu images", images->n);
    s->d = d;
    s->limits = *limits;
    s->base.n_images = (uint32_t)images->n;
    s->base.close = data_close;
    s->base.list = data_list;
    s->base.load = data_load;
    s->base.unload = data_unload;
    s->base.truth = data_truth;
    s->base.picture = data_picture;
    snprintf(s->base.description, sizeof s->base.description, "%s", description);
    take_faults(s);
    PSEG_TRY(digest(s, err));
    *out = &s->base;
    s = NULL;
out:
    if (s)
        data_close(&s->base);
    return rc;
}
