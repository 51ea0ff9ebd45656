/* Arrays of a batch: taps out of the cache, or pixels out of the files; masks and phrases. */
#include "common/base/alloc.h"
#include "worker/data/arrays.h"
#include "worker/train/init.h"
#include "worker/train/source_data_parts.h"

#include <stdio.h>
#include <string.h>

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
                              uint32_t place, bool mirror, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t image = p->images.images[place];
    size_t one = 3 * (size_t)q->head.height * q->head.width;
    pseg_data_image of = pseg_dataset_at(p->d, image);
    pseg_data_bytes file = {0};
    pseg_err e = PSEG_ERR_INIT;
    uint32_t w, h;

    rc = pseg_dataset_image(&file, p->d, image, &e);
    if (rc == PSEG_OK)
        rc =
            pseg_data_make_input(b->pixels + b->n_images * one, &w, &h, &file, &q->how, mirror, &e);
    if (rc == PSEG_OK && (w != of.width || h != of.height))
        rc = pseg_err_set(&e, PSEG_R_DATA_CORRUPT, 0, PSEG_HERE,
                          "the image has %u x %u pixels now, its masks %u x %u", w, h, of.width,
                          of.height);
    *is_there = rc == PSEG_OK;
    if (rc != PSEG_OK && data_sets_is_of_image(&e)) {
        data_sets_leave_out(q, p, place, data_sets_fault_of(&e), e.msg);
        rc = PSEG_OK;
    } else if (rc != PSEG_OK && err) {
        *err = e;
    }
    pseg_data_bytes_free(&file);
    return rc;
}

static pseg_status put_image(bool *is_there, pseg_train_batch *b, data_sets *q, data_part *p,
                             uint32_t place, bool mirror, pseg_err *err)
{
    size_t variants = q->has_mirror ? 2 : 1;

    *is_there = true;
    return q->cache ? put_taps(b, q, p->entries[place * variants + mirror], err)
                    : put_pixels(is_there, b, q, p, place, mirror, err);
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

/* Some phrases of a block. */
typedef struct slot {
    const data_block *of;
    uint32_t from, to; /* of the block's; none if from >= to */
    bool is_mirrored;
    const data_example *examples; /* of the part */
    size_t *phrases;              /* of the block's image, in the epoch's order */
    pseg_data_record *r;
} slot;

/* Phrase k of the block. */
static const data_example *example_of(const slot *s, uint32_t k)
{
    return &s->examples[s->phrases[s->of->first + k]];
}

static const char *text_of(const slot *s, uint32_t k)
{
    const data_example *e = example_of(s, k);

    return s->r->samples[e->sample].sentences[e->sentence];
}

/* An image is not mirrored if one of the phrases does not allow it. */
static pseg_status ask_mirror(slot *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (uint32_t k = s->from; k < s->to && s->is_mirrored; k++) {
        pseg_mirror what;
        char *phrase;

        PSEG_TRY(pseg_data_mirror_phrase(&phrase, &what, text_of(s, k), err));
        pseg_free(phrase);
        s->is_mirrored = what != PSEG_MIRROR_UNSAFE;
    }
out:
    return rc;
}

static pseg_status put_phrase(pseg_train_batch *b, const data_sets *q, const slot *s, uint32_t k,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const data_example *e = example_of(s, k);
    const char *text = text_of(s, k);
    uint32_t i = b->n_samples;
    pseg_mirror what;
    char *phrase = NULL;

    if (s->is_mirrored)
        PSEG_TRY(pseg_data_mirror_phrase(&phrase, &what, text, err));
    PSEG_TRY(put_target(b, q, &s->r->samples[e->sample], s->is_mirrored, err));
    b->phrases[i] = pseg_arena_strdup(b->arena, phrase ? phrase : text);
    if (!b->phrases[i])
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a phrase");
    snprintf(b->id[i], PSEG_TRAIN_ID, "%.60s, sample %u.%u%s", s->r->where, e->sample, e->sentence,
             s->is_mirrored ? ", mirrored" : "");
    b->image_of[i] = b->n_images;
    b->n_samples++;
out:
    pseg_free(phrase);
    return rc;
}

/* The image, and its phrases; nothing if it is broken. */
static pseg_status put_slot(pseg_train_batch *b, data_sets *q, slot *s, bool is_train,
                            uint64_t epoch, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    data_part *p = &q->parts[s->of->part];
    bool is_there;

    s->examples = p->examples;
    PSEG_TRY(data_sets_phrases(&s->phrases, q, s->of, is_train, epoch, err));
    PSEG_TRY(pseg_dataset_read(&s->r, p->d, p->images.images[s->of->place], err));
    PSEG_TRY(ask_mirror(s, err));
    PSEG_TRY(put_image(&is_there, b, q, p, s->of->place, s->is_mirrored, err));
    for (uint32_t k = s->from; is_there && k < s->to; k++)
        PSEG_TRY(put_phrase(b, q, s, k, err));
    b->n_images += is_there;
out:
    pseg_free(s->phrases);
    pseg_data_record_free(s->r);
    return rc;
}

/* What place i of a side has for the batch that ends at `end`. */
static slot slot_of(const data_side *s, size_t i, uint32_t from, const data_cut *end)
{
    slot x = {.of = s->places[i].of, .from = from};

    x.to = i == end->place ? end->from : s->places[i].room;
    x.to = x.to < x.of->n ? x.to : x.of->n;
    return x;
}

/* The batch's own phrases that can be used; if there are none, the first block behind them that
 * can. */
pseg_status data_sets_load(void *ud, pseg_train_batch *b, bool is_train, uint64_t epoch,
                           uint64_t batch, pseg_err *err)
{
    data_sets *q = ud;
    pseg_status rc = PSEG_OK;
    const data_side *s = is_train ? &q->train : &q->val;
    const data_cut *begin = &s->cuts[batch], *end = begin + 1;
    size_t own = end->place - begin->place + (end->from > 0);

    b->n_images = b->n_samples = 0;
    if (is_train && q->order_of != epoch)
        PSEG_TRY(data_sets_draw(q, epoch, err));
    for (size_t k = 0; k < s->n && (k < own || b->n_samples == 0); k++) {
        size_t i = (begin->place + k) % s->n;
        slot x = slot_of(s, i, k ? 0 : begin->from, k < own ? end : &(data_cut){s->n, 0});

        x.is_mirrored = is_train && q->has_mirror && pseg_hash3(q->sizes.seed + 1, epoch, i) & 1;
        if (x.from < x.to && !data_sets_is_left_out(q, &q->parts[x.of->part], x.of->place))
            PSEG_TRY(put_slot(b, q, &x, is_train, epoch, err));
    }
    if (b->n_samples == 0)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0,
                  "none of the %zu images can be used any more: they are missing or broken", s->n);
out:
    return rc;
}
