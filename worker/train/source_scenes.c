/* Batches of scenes that are drawn when they are asked for. */
#include "common/base/alloc.h"
#include "worker/scenes/scenes.h"
#include "worker/train/init.h"
#include "worker/train/source.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Held-out test scenes are 0..999, and nothing below these is ever drawn here. */
#define VALIDATION_SEED UINT64_C(500000)
#define TRAINING_SEED   UINT64_C(1000000)
#define RUN_STRIDE      (UINT64_C(1) << 32) /* from one run's first scene to another's */

typedef struct scenes {
    pseg_head_config head;
    pseg_train_sizes sizes;
    pseg_train_scene_set set;
} scenes;

static void fill_pixels(float *out, const pseg_scene *s, const pseg_head_config *h)
{
    size_t n = (size_t)s->width * (size_t)s->height;

    for (size_t c = 0; c < 3; c++)
        for (size_t i = 0; i < n; i++)
            out[c * n + i] = ((float)s->rgb[3 * i + c] / 255.0f - h->mean[c]) / h->std[c];
}

static pseg_status add_phrase(const scenes *q, pseg_train_batch *b, const pseg_scene *s, int which,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_scene_phrase *p = &s->phrases[which];
    uint32_t mh = q->head.gh << q->head.n_upsample, mw = q->head.gw << q->head.n_upsample;
    uint32_t i = b->n_samples;
    size_t len = strlen(p->text) + 1;
    char *text = pseg_arena_alloc(b->arena, len);

    if (!text)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a phrase");
    memcpy(text, p->text, len);
    b->phrases[i] = text;
    b->image_of[i] = b->n_images;
    snprintf(b->id[i], PSEG_TRAIN_ID, "scene %" PRIu64 ", phrase %d", s->seed, which);
    PSEG_TRY(pseg_train_area(b->target + (size_t)i * mh * mw, mh, mw, s->id,
                             (uint8_t)(p->target + 1), (uint32_t)s->height, (uint32_t)s->width,
                             err));
    b->n_samples++;
out:
    return rc;
}

static pseg_status load(void *ud, pseg_train_batch *b, bool is_train, uint64_t epoch,
                        uint64_t batch, pseg_err *err)
{
    const scenes *q = ud;
    pseg_status rc = PSEG_OK;
    pseg_scene *s = NULL;
    uint64_t all = is_train ? q->set.train : q->set.val, first = batch * q->sizes.images;
    uint64_t base = is_train ? TRAINING_SEED + q->sizes.seed * RUN_STRIDE +
                                   (q->set.is_fixed ? 0 : epoch) * q->set.train
                             : VALIDATION_SEED;
    int want = (int)(q->sizes.batch / q->sizes.images);

    b->n_images = b->n_samples = 0;
    for (uint32_t i = 0; i < q->sizes.images && first + i < all; i++) {
        PSEG_TRY(pseg_scene_make(&s, base + first + i, (int)q->head.width, err));
        fill_pixels(b->pixels + (size_t)b->n_images * 3 * q->head.height * q->head.width, s,
                    &q->head);
        int n = s->n_phrases < want ? s->n_phrases : want;
        /* Neighbours in a scene's list, from a place that is drawn. */
        int at = (int)(pseg_hash3(q->sizes.seed, s->seed, 0) % (uint64_t)s->n_phrases);
        for (int k = 0; k < n; k++)
            PSEG_TRY(add_phrase(q, b, s, (at + k) % s->n_phrases, err));
        b->n_images++;
        pseg_scene_free(s);
        s = NULL;
    }
out:
    pseg_scene_free(s);
    return rc;
}

pseg_status pseg_train_scenes(pseg_train_source *out, const pseg_head_config *head,
                              const pseg_train_sizes *sizes, const pseg_train_scene_set *set,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    scenes *q = NULL;

    *out = (pseg_train_source){0};
    if (head->width != head->height || head->width < 64 || head->width > 1024)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "scenes of %ux%u px: they are square, of 64 to 1024 px; choose --image-size so",
                  head->height, head->width);
    PSEG_REQUIRE(set->train > 0 && sizes->images > 0 && sizes->batch >= sizes->images, "sizes");
    q = pseg_calloc(1, sizeof *q);
    if (!q)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for scenes");
    *q = (scenes){*head, *sizes, *set};
    *out = (pseg_train_source){.ud = q,
                               .load = load,
                               .close = pseg_free,
                               .n_train = (set->train + sizes->images - 1) / sizes->images,
                               .n_val = (set->val + sizes->images - 1) / sizes->images};
    snprintf(out->description, sizeof out->description,
             "scenes:%" PRIu64 "%s, validation on %" PRIu64, set->train,
             set->is_fixed ? ",fixed" : "", set->val);
out:
    return rc;
}
