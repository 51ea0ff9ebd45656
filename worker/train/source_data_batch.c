/* The order of an epoch, and its batches: taps out of the cache, or pixels out of the files. */
#include "common/base/alloc.h"
#include "worker/data/arrays.h"
#include "worker/train/init.h"
#include "worker/train/source_data_parts.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ---- order ----------------------------------------------------------------------------------- */

/* Fisher, Yates; which numbers are drawn depends on seed and epoch alone. */
static void shuffle(const data_item **list, size_t n, uint64_t seed, uint64_t epoch)
{
    for (size_t i = n; i > 1; i--) {
        size_t k = (size_t)(pseg_hash3(seed, epoch, i) % i);
        const data_item *x = list[i - 1];

        list[i - 1] = list[k];
        list[k] = x;
    }
}

static void make_order(data_sets *q, uint64_t epoch)
{
    size_t at = 0;

    for (size_t i = 0; i < q->n_parts; i++) {
        const data_part *p = &q->parts[i];
        size_t end = at + data_sets_copies(p);

        /* Whole copies first; of the last one a part, which is drawn. */
        while (at + p->n <= end)
            for (size_t k = 0; k < p->n; k++)
                q->order[at++] = &p->items[k];
        if (at < end) {
            size_t left = end - at, first = (size_t)(pseg_hash3(q->sizes.seed, epoch, i) % p->n);
            /* Every n/left-th from a place that is drawn: no two are one. */
            for (size_t k = 0; k < left; k++)
                q->order[at++] = &p->items[(first + k * p->n / left) % p->n];
        }
    }
    shuffle(q->order, q->length, q->sizes.seed, epoch);
    q->order_of = epoch;
}

/* ---- a batch --------------------------------------------------------------------------------- */

static pseg_status put_taps(pseg_train_batch *b, data_sets *q, uint32_t entry, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t tap = (size_t)q->head.gh * q->head.gw * q->head.vision_dim;
    pseg_feature f;

    PSEG_TRY(pseg_feature_cache_get(&f, q->cache, entry, err));
    for (uint32_t i = 0; i < q->head.n_taps; i++)
        pseg_to_f32(b->taps[i] + b->n_images * tap, f.taps + i * tap, PSEG_F16, tap);
out:
    return rc;
}

/* An image that cannot be decoded is left out from here on, and *is_there is false. */
static pseg_status put_pixels(bool *is_there, pseg_train_batch *b, data_sets *q, data_part *p,
                              const data_item *it, bool mirror, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t one = 3 * (size_t)q->head.height * q->head.width;
    pseg_data_image of = pseg_dataset_at(p->d, it->example.image);
    pseg_data_bytes file = {0};
    pseg_err e = PSEG_ERR_INIT;
    uint32_t w, h;

    rc = pseg_dataset_image(&file, p->d, it->example.image, &e);
    if (rc == PSEG_OK)
        rc =
            pseg_data_make_input(b->pixels + b->n_images * one, &w, &h, &file, &q->how, mirror, &e);
    if (rc == PSEG_OK && (w != of.width || h != of.height))
        rc = pseg_err_set(&e, PSEG_R_DATA_CORRUPT, 0, PSEG_HERE,
                          "the image has %u x %u pixels now, its masks %u x %u", w, h, of.width,
                          of.height);
    *is_there = rc == PSEG_OK;
    if (rc != PSEG_OK && data_sets_is_of_image(&e)) {
        data_sets_leave_out(q, p, it->place, data_sets_fault_of(&e), e.msg);
        rc = PSEG_OK;
    } else if (rc != PSEG_OK && err) {
        *err = e;
    }
    pseg_data_bytes_free(&file);
    return rc;
}

/* The image of the next sample: its own, also where samples before it are of the same photo. */
static pseg_status put_image(bool *is_there, pseg_train_batch *b, data_sets *q, data_part *p,
                             const data_item *it, bool mirror, pseg_err *err)
{
    size_t variants = q->has_mirror ? 2 : 1;

    *is_there = true;
    return q->cache ? put_taps(b, q, p->entries[it->place * variants + mirror], err)
                    : put_pixels(is_there, b, q, p, it, mirror, err);
}

static pseg_status put_target(pseg_train_batch *b, const data_sets *q, const pseg_data_sample *s,
                              bool mirror, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t mh, mw;
    pseg_mask *m = NULL;

    pseg_train_mask_size(&mh, &mw, &q->head, &q->sizes);
    PSEG_TRY(pseg_data_mask_decode(&m, &s->mask, err));
    PSEG_TRY(pseg_data_make_target(b->target + (size_t)b->n_samples * mh * mw, mw, mh, m, &q->how,
                                   mirror, err));
out:
    pseg_mask_free(m);
    return rc;
}

static pseg_status put_item(data_sets *q, pseg_train_batch *b, const data_item *it, bool mirror,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    data_part *p = &q->parts[it->part];
    uint32_t i = b->n_samples;
    pseg_mirror what = PSEG_MIRROR_SAME;
    pseg_data_record *r = NULL;
    char *phrase = NULL;
    bool is_there;

    PSEG_TRY(pseg_dataset_read(&r, p->d, it->example.image, err));
    const pseg_data_sample *s = &r->samples[it->example.sample];
    const char *text = s->sentences[it->example.sentence];
    if (mirror) {
        PSEG_TRY(pseg_data_mirror_phrase(&phrase, &what, text, err));
        mirror = what != PSEG_MIRROR_UNSAFE;
        text = phrase;
    }
    PSEG_TRY(put_image(&is_there, b, q, p, it, mirror, err));
    if (!is_there)
        goto out;
    PSEG_TRY(put_target(b, q, s, mirror, err));
    b->phrases[i] = pseg_arena_strdup(b->arena, text);
    if (!b->phrases[i])
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a phrase");
    snprintf(b->id[i], PSEG_TRAIN_ID, "%.60s, sample %u.%u%s", r->where, it->example.sample,
             it->example.sentence, mirror ? ", mirrored" : "");
    b->image_of[i] = b->n_images++;
    b->n_samples++;
out:
    pseg_free(phrase);
    pseg_data_record_free(r);
    return rc;
}

/* The batch's own examples that can be used; if there are none, the first behind them that can. */
pseg_status data_sets_load(void *ud, pseg_train_batch *b, bool is_train, uint64_t epoch,
                           uint64_t batch, pseg_err *err)
{
    data_sets *q = ud;
    pseg_status rc = PSEG_OK;
    const data_part *val = &q->parts[q->n_parts];
    size_t n = is_train ? q->length : val->n, first = batch * q->sizes.batch;
    size_t own = n - first < q->sizes.batch ? n - first : q->sizes.batch;

    b->n_images = b->n_samples = 0;
    if (is_train && q->order_of != epoch)
        make_order(q, epoch);
    for (size_t k = 0; k < n && (k < own || b->n_samples == 0); k++) {
        size_t i = (first + k) % n;
        const data_item *it = is_train ? q->order[i] : &val->items[i];
        bool mirror = is_train && q->has_mirror && pseg_hash3(q->sizes.seed + 1, epoch, i) & 1;

        if (!data_sets_is_left_out(q, &q->parts[it->part], it->place))
            PSEG_TRY(put_item(q, b, it, mirror, err));
    }
    if (b->n_samples == 0)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0,
                  "none of the %zu examples can be used any more: their "
                  "images are missing or broken",
                  n);
out:
    return rc;
}
