/* Batches of scenes that are drawn when they are asked for. */
#include "common/base/alloc.h"
#include "worker/scenes/scenes.h"
#include "worker/train/init.h"
#include "worker/train/source.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Held-out test scenes are 0..999, and nothing below these is ever drawn here. */
#define VALIDATION_SEED UINT64_C(500000)
#define TRAINING_SEED   UINT64_C(1000000)
#define MAX_IMAGES      1024                /* of a batch */
#define RUN_STRIDE      (UINT64_C(1) << 32) /* from one run's first scene to another's */

typedef struct scenes {
    pseg_head_config head;
    pseg_train_sizes sizes;
    pseg_train_scene_set set;
    bool has_weights;
    uint32_t times; /* scenes that are drawn for one that is taken, in training */
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
    uint32_t i = b->n_samples, mh, mw;
    size_t len = strlen(p->text) + 1;
    char *text = pseg_arena_alloc(b->arena, len);

    if (!text)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a phrase");
    pseg_train_mask_size(&mh, &mw, &q->head, &q->sizes);
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

/* ---- which scenes, and which of their phrases ------------------------------------------------ */

pseg_train_phrase pseg_train_phrase_of(const char *text, bool is_relational, bool is_superlative)
{
    if (is_superlative)
        return PSEG_TRAIN_SUPERLATIVE;
    if (!is_relational)
        return PSEG_TRAIN_ATTRIBUTE;
    return strstr(text, " next to ") || strstr(text, " nearest to ") || strstr(text, " closest to ")
               ? PSEG_TRAIN_NEAR
               : PSEG_TRAIN_DIRECTION;
}

static double weight_of(const scenes *q, bool is_train, const pseg_scene_phrase *p)
{
    return is_train && q->has_weights
               ? (double)q->set.weights[pseg_train_phrase_of(
                     p->text, p->kind == PSEG_PHRASE_RELATION, p->kind == PSEG_PHRASE_SUPERLATIVE)]
               : 1;
}

/* One that may be taken. What has the lowest times is: with -log(u) / weight a weighted draw
 * without putting back (Efraimidis, Spirakis 2006). */
typedef struct candidate {
    double time;
    uint32_t image, phrase;
} candidate;

static double time_of(double weight, uint64_t h)
{
    double u = ((double)(h >> 11) + 0.5) * 0x1p-53;

    return weight > 0 ? -log(u) / weight : INFINITY;
}

static int sooner_first(const void *a, const void *b)
{
    const candidate *x = a, *y = b;

    if (x->time != y->time)
        return x->time < y->time ? -1 : 1;
    return x->image != y->image ? (x->image < y->image ? -1 : 1) : (int)x->phrase - (int)y->phrase;
}

static int in_order(const void *a, const void *b)
{
    const candidate *x = a, *y = b;

    return x->image != y->image ? (x->image < y->image ? -1 : 1) : (int)x->phrase - (int)y->phrase;
}

/* Keeps n of the drawn scenes, those of more weight likelier; the others are freed. */
static void keep_scenes(const scenes *q, pseg_scene **drawn, uint32_t n_drawn, uint32_t n)
{
    candidate c[2 * MAX_IMAGES];

    for (uint32_t i = 0; i < n_drawn; i++) {
        const pseg_scene *s = drawn[i];
        double sum = 0;

        for (int k = 0; k < s->n_phrases; k++)
            sum += weight_of(q, true, &s->phrases[k]);
        c[i] = (candidate){time_of(sum, pseg_hash3(q->sizes.seed, s->seed, 1)), i, 0};
    }
    qsort(c, n_drawn, sizeof *c, sooner_first);
    for (uint32_t i = n; i < n_drawn; i++) {
        pseg_scene_free(drawn[c[i].image]);
        drawn[c[i].image] = NULL;
    }
    for (uint32_t i = 0, at = 0; i < n_drawn; i++)
        if (drawn[i]) {
            pseg_scene *s = drawn[i];

            drawn[i] = NULL;
            drawn[at++] = s;
        }
}

/* Which phrases of n scenes: at most `want` of all of them, or one of each. Returns how many. */
static uint32_t choose_phrases(const scenes *q, candidate *c, pseg_scene *const *of, uint32_t n,
                               bool is_train)
{
    uint32_t want = q->sizes.batch, all = 0;
    bool one_each = q->sizes.images == q->sizes.batch;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t first = all;

        for (uint32_t k = 0; k < (uint32_t)of[i]->n_phrases; k++)
            c[all++] = (candidate){time_of(weight_of(q, is_train, &of[i]->phrases[k]),
                                           pseg_hash3(q->sizes.seed, of[i]->seed, 2 + k)),
                                   i, k};
        if (one_each) {
            qsort(c + first, all - first, sizeof *c, sooner_first);
            all = first + 1;
        }
    }
    if (all > want) {
        qsort(c, all, sizeof *c, sooner_first);
        all = want;
    }
    qsort(c, all, sizeof *c, in_order);
    return all;
}

static pseg_status load(void *ud, pseg_train_batch *b, bool is_train, uint64_t epoch,
                        uint64_t batch, pseg_err *err)
{
    const scenes *q = ud;
    pseg_status rc = PSEG_OK;
    pseg_scene *drawn[2 * MAX_IMAGES] = {NULL};
    candidate *c = pseg_calloc(q->sizes.images, PSEG_SCENE_MAX_PHRASES * sizeof *c);
    uint32_t times = is_train ? q->times : 1, n_drawn = 0;
    uint64_t all = is_train ? q->set.train : q->set.val, first = batch * q->sizes.images;
    uint64_t base = is_train ? TRAINING_SEED + q->sizes.seed * RUN_STRIDE +
                                   (q->set.is_fixed ? 0 : epoch) * q->set.train * times
                             : VALIDATION_SEED;

    b->n_images = b->n_samples = 0;
    if (!c)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for scenes");
    uint32_t n = (uint32_t)(all - first < q->sizes.images ? all - first : q->sizes.images);
    for (; n_drawn < n * times; n_drawn++)
        PSEG_TRY(pseg_scene_make(&drawn[n_drawn], base + first * times + n_drawn,
                                 (int)q->head.width, err));
    if (times > 1)
        keep_scenes(q, drawn, n_drawn, n);
    uint32_t n_phrases = choose_phrases(q, c, drawn, n, is_train);
    for (uint32_t i = 0, at = 0; i < n; i++) {
        fill_pixels(b->pixels + (size_t)i * 3 * q->head.height * q->head.width, drawn[i], &q->head);
        for (; at < n_phrases && c[at].image == i; at++)
            PSEG_TRY(add_phrase(q, b, drawn[i], (int)c[at].phrase, err));
        b->n_images++;
    }
out:
    for (uint32_t i = 0; i < n_drawn; i++)
        pseg_scene_free(drawn[i]);
    pseg_free(c);
    return rc;
}

/* Told of in the checkpoint: another weighting is another run. */
static bool describe_weights(char *out, size_t size, const pseg_train_scene_set *set)
{
    const float *w = set->weights;
    bool has_any = false;

    for (size_t i = 1; i < PSEG_TRAIN_N_PHRASES; i++)
        has_any = has_any || w[i] != w[0];
    *out = '\0';
    if (has_any)
        snprintf(out, size, ", attribute %g, direction %g, near %g, superlative %g",
                 (double)w[PSEG_TRAIN_ATTRIBUTE], (double)w[PSEG_TRAIN_DIRECTION],
                 (double)w[PSEG_TRAIN_NEAR], (double)w[PSEG_TRAIN_SUPERLATIVE]);
    return has_any;
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
    PSEG_REQUIRE(set->train > 0 && sizes->images > 0 && sizes->images <= MAX_IMAGES &&
                     sizes->batch >= sizes->images,
                 "sizes");
    q = pseg_calloc(1, sizeof *q);
    if (!q)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for scenes");
    char weights[120];
    bool has_weights = describe_weights(weights, sizeof weights, set);
    *q = (scenes){*head, *sizes, *set, has_weights, has_weights && !set->is_fixed ? 2 : 1};
    *out = (pseg_train_source){.ud = q,
                               .load = load,
                               .close = pseg_free,
                               .n_train = (set->train + sizes->images - 1) / sizes->images,
                               .n_val = (set->val + sizes->images - 1) / sizes->images};
    snprintf(out->description, sizeof out->description,
             "scenes:%" PRIu64 "%s, validation on %" PRIu64 "%s", set->train,
             set->is_fixed ? ",fixed" : "", set->val, weights);
out:
    return rc;
}
