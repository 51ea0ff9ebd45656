#include "worker/train/source_data.h"
#include "common/base/alloc.h"
#include "worker/data/arrays.h"
#include "worker/train/init.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VISION_IMAGES 8

/* One phrase of one image. */
typedef struct item {
    uint32_t part;            /* the validation set is the last */
    uint32_t entry, mirrored; /* in the cache */
    pseg_data_example example;
} item;

typedef struct part {
    pseg_dataset *d;
    pseg_data_selection images;
    uint32_t *entries; /* [images.n] or [images.n, 2] */
    double weight;
    item *items;
    size_t n;
} part;

typedef struct data {
    pseg_head_config head;
    pseg_train_sizes sizes;
    pseg_preprocess how;
    pseg_feature_cache *cache;
    bool has_mirror;
    part *parts; /* n_parts, and one more for validation */
    size_t n_parts;
    const item **order; /* of an epoch */
    size_t length;
    uint64_t order_of; /* the epoch; UINT64_MAX: none yet */
} data;

static void data_free(void *ud)
{
    data *q = ud;

    if (!q)
        return;
    for (size_t i = 0; q->parts && i <= q->n_parts; i++) {
        pseg_dataset_close(q->parts[i].d);
        pseg_data_selection_free(&q->parts[i].images);
        pseg_free(q->parts[i].entries);
        pseg_free(q->parts[i].items);
    }
    pseg_feature_cache_close(q->cache);
    pseg_free(q->parts);
    pseg_free(q->order);
    pseg_free(q);
}

/* ---- opening --------------------------------------------------------------------------------- */

static pseg_status open_part(part *p, const char *path, const char *which,
                             const pseg_train_data_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_data_options d = PSEG_DATA_OPTIONS_DEFAULT;

    d.report = o->report;
    d.report_ud = o->report_ud;
    PSEG_TRY(pseg_dataset_open(&p->d, path, &d, err));
    PSEG_TRY(pseg_data_select(&p->images, p->d, which, err));
out:
    return rc;
}

static int by_key(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;

    return *x < *y ? -1 : *x > *y;
}

/* Takes out of p the images that `held` holds. */
static pseg_status leave_out(part *p, const part *held, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t *keys = pseg_malloc((held->images.n + 1) * sizeof *keys);
    size_t n = 0;

    if (!keys)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a data set");
    for (size_t i = 0; i < held->images.n; i++)
        keys[i] = pseg_dataset_at(held->d, held->images.images[i]).key;
    qsort(keys, held->images.n, sizeof *keys, by_key);
    for (size_t i = 0; i < p->images.n; i++) {
        uint64_t key = pseg_dataset_at(p->d, p->images.images[i]).key;
        if (!bsearch(&key, keys, held->images.n, sizeof *keys, by_key))
            p->images.images[n++] = p->images.images[i];
    }
    p->images.n = n;
    if (n == 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "%s: all its images are held out for validation, none is left to train on",
                  pseg_dataset_path(p->d));
out:
    pseg_free(keys);
    return rc;
}

static pseg_status fill_features(data *q, part *p, pseg_vision *v, const pseg_train_data_options *o,
                                 pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t skipped;
    pseg_feature_job job = {.d = p->d,
                            .images = &p->images,
                            .has_mirrored = q->has_mirror,
                            .report = o->report,
                            .report_ud = o->report_ud,
                            .progress = o->progress,
                            .progress_ud = o->progress_ud};

    p->entries = pseg_calloc(p->images.n + 1, 2 * sizeof *p->entries);
    if (!p->entries)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a data set");
    PSEG_TRY(pseg_feature_fill(p->entries, &skipped, q->cache, v, &job, err));
out:
    return rc;
}

/* The phrases of image i of p, if its features are there and their kind is asked for. */
static pseg_status add_items(data *q, part *p, size_t i, uint32_t number, const char *kind,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t variants = q->has_mirror ? 2 : 1;
    uint32_t entry = p->entries[i * variants];
    uint32_t mirrored = q->has_mirror ? p->entries[i * variants + 1] : PSEG_NO_FEATURE;
    pseg_data_record *r = NULL;

    if (entry == PSEG_NO_FEATURE)
        goto out;
    PSEG_TRY(pseg_dataset_read(&r, p->d, p->images.images[i], err));
    for (uint32_t s = 0; s < r->n_samples; s++) {
        if (kind && strcmp(r->samples[s].kind, kind) != 0)
            continue;
        for (uint32_t k = 0; k < r->samples[s].n_sentences; k++)
            p->items[p->n++] = (item){number, entry, mirrored, {p->images.images[i], s, k}};
    }
out:
    pseg_data_record_free(r);
    return rc;
}

static pseg_status list_items(data *q, part *p, uint32_t number, const char *kind, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    p->items = pseg_malloc((pseg_dataset_n_phrases(p->d) + 1) * sizeof *p->items);
    if (!p->items)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a data set");
    for (size_t i = 0; i < p->images.n; i++)
        PSEG_TRY(add_items(q, p, i, number, kind, err));
    if (p->n == 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s: no phrase is left%s%.40s", pseg_dataset_path(p->d),
                  kind ? " of kind " : "", kind ? kind : "");
out:
    return rc;
}

static size_t copies(const part *p)
{
    double whole = floor(p->weight);

    return (size_t)whole * p->n + (size_t)lround((p->weight - whole) * (double)p->n);
}

static pseg_status open_all(data *q, pseg_cl *cl, const pseg_train_data_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_head_config *h = &q->head;
    part *val = &q->parts[q->n_parts];
    pseg_vision_options vo = {.n_taps = h->n_taps,
                              .is_tap_normed = h->is_tap_normed,
                              .height = h->height,
                              .width = h->width,
                              .max_images = VISION_IMAGES};
    pseg_vision *v = NULL;

    memcpy(vo.taps, h->taps, sizeof vo.taps);
    if (o->val)
        PSEG_TRY(open_part(val, o->val, o->val_images, o, err));
    for (size_t i = 0; i < q->n_parts; i++) {
        part *p = &q->parts[i];

        p->weight = o->parts[i].weight;
        PSEG_TRY(open_part(p, o->parts[i].path, "all", o, err));
        if (o->val)
            PSEG_TRY(leave_out(p, val, err));
    }
    PSEG_TRY(pseg_vision_open(&v, cl, o->vision, &vo, err));
    PSEG_TRY(pseg_feature_cache_open(&q->cache, o->cache, pseg_vision_get_info(v), &q->how, err));
    for (size_t i = 0; i < q->n_parts + (o->val ? 1 : 0); i++) {
        PSEG_TRY(fill_features(q, &q->parts[i], v, o, err));
        PSEG_TRY(list_items(q, &q->parts[i], (uint32_t)i, o->kind, err));
    }
    for (size_t i = 0; i < q->n_parts; i++)
        q->length += copies(&q->parts[i]);
out:
    pseg_vision_close(v);
    return rc;
}

/* ---- order ----------------------------------------------------------------------------------- */

/* Fisher, Yates; which numbers are drawn depends on seed and epoch alone. */
static void shuffle(const item **list, size_t n, uint64_t seed, uint64_t epoch)
{
    for (size_t i = n; i > 1; i--) {
        size_t k = (size_t)(pseg_hash3(seed, epoch, i) % i);
        const item *x = list[i - 1];

        list[i - 1] = list[k];
        list[k] = x;
    }
}

static void make_order(data *q, uint64_t epoch)
{
    size_t at = 0;

    for (size_t i = 0; i < q->n_parts; i++) {
        const part *p = &q->parts[i];
        size_t end = at + copies(p);

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

static pseg_status put_image(data *q, pseg_train_batch *b, uint32_t entry, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t tap = (size_t)q->head.gh * q->head.gw * q->head.vision_dim;
    pseg_feature f;

    PSEG_TRY(pseg_feature_cache_get(&f, q->cache, entry, err));
    for (uint32_t i = 0; i < q->head.n_taps; i++)
        pseg_to_f32(b->taps[i] + b->n_images * tap, f.taps + i * tap, PSEG_F16, tap);
    b->n_images++;
out:
    return rc;
}

static pseg_status put_item(data *q, pseg_train_batch *b, const item *it, bool mirror,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const part *p = &q->parts[it->part];
    uint32_t mh = q->head.gh << q->head.n_upsample, mw = q->head.gw << q->head.n_upsample;
    uint32_t i = b->n_samples;
    pseg_mirror what = PSEG_MIRROR_SAME;
    pseg_data_record *r = NULL;
    pseg_mask *m = NULL;
    char *phrase = NULL;

    PSEG_TRY(pseg_dataset_read(&r, p->d, it->example.image, err));
    const pseg_data_sample *s = &r->samples[it->example.sample];
    const char *text = s->sentences[it->example.sentence];
    if (mirror) {
        PSEG_TRY(pseg_data_mirror_phrase(&phrase, &what, text, err));
        mirror = what != PSEG_MIRROR_UNSAFE;
        text = phrase;
    }
    b->image_of[i] = b->n_images; /* its own, also where samples before it are of the same photo */
    PSEG_TRY(put_image(q, b, mirror ? it->mirrored : it->entry, err));
    PSEG_TRY(pseg_data_mask_decode(&m, &s->mask, err));
    PSEG_TRY(
        pseg_data_make_target(b->target + (size_t)i * mh * mw, mw, mh, m, &q->how, mirror, err));
    b->phrases[i] = pseg_arena_strdup(b->arena, text);
    if (!b->phrases[i])
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a phrase");
    snprintf(b->id[i], PSEG_TRAIN_ID, "%.60s, sample %u.%u%s", r->where, it->example.sample,
             it->example.sentence, mirror ? ", mirrored" : "");
    b->n_samples++;
out:
    pseg_free(phrase);
    pseg_mask_free(m);
    pseg_data_record_free(r);
    return rc;
}

static pseg_status load(void *ud, pseg_train_batch *b, bool is_train, uint64_t epoch,
                        uint64_t batch, pseg_err *err)
{
    data *q = ud;
    pseg_status rc = PSEG_OK;
    const part *val = &q->parts[q->n_parts];
    size_t n = is_train ? q->length : val->n, first = batch * q->sizes.batch;

    b->n_images = b->n_samples = 0;
    if (is_train && q->order_of != epoch)
        make_order(q, epoch);
    for (size_t i = first; i < n && i < first + q->sizes.batch; i++) {
        const item *it = is_train ? q->order[i] : &val->items[i];
        bool mirror = is_train && q->has_mirror && it->mirrored != PSEG_NO_FEATURE &&
                      pseg_hash3(q->sizes.seed + 1, epoch, i) & 1;

        PSEG_TRY(put_item(q, b, it, mirror, err));
    }
out:
    return rc;
}

/* ---- the source ------------------------------------------------------------------------------ */

static pseg_preprocess how_of(const pseg_head_config *h)
{
    static const pseg_image_fit fits[] = {[PSEG_MODEL_SQUASH] = PSEG_IMAGE_SQUASH,
                                          [PSEG_MODEL_LETTERBOX] = PSEG_IMAGE_LETTERBOX,
                                          [PSEG_MODEL_CENTRE_CROP] = PSEG_IMAGE_CENTRE_CROP};
    pseg_preprocess how = {.fit = fits[h->fit],
                           .width = h->width,
                           .height = h->height,
                           .resize_edge = 256 * h->height / 224};

    memcpy(how.mean, h->mean, sizeof how.mean);
    memcpy(how.std, h->std, sizeof how.std);
    return how;
}

/* What the examples are: names and weights of the sets, and a hash over all examples. */
static void describe(char *out, size_t size, const data *q, const pseg_train_data_options *o)
{
    uint64_t h = 0;
    size_t at = 0;

    for (size_t i = 0; i <= q->n_parts; i++)
        for (size_t k = 0; k < q->parts[i].n; k++) {
            const item *it = &q->parts[i].items[k];
            uint64_t key = pseg_dataset_at(q->parts[i].d, it->example.image).key;

            h = pseg_hash3(h, key, (uint64_t)it->example.sample << 32 | it->example.sentence);
        }
    at += (size_t)snprintf(out, size, "%016" PRIx64 "%s", h, q->has_mirror ? ", mirrored" : "");
    for (size_t i = 0; i < q->n_parts && at < size; i++) {
        const char *slash = strrchr(o->parts[i].path, '/');

        at +=
            (size_t)snprintf(out + at, size - at, ", %.40s x %g",
                             slash && slash[1] ? slash + 1 : o->parts[i].path, q->parts[i].weight);
    }
}

pseg_status pseg_train_data(pseg_train_source *out, pseg_cl *cl, const pseg_head_config *head,
                            const pseg_train_sizes *sizes, const pseg_train_data_options *o,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    data *q = NULL;
    char description[sizeof out->description];

    *out = (pseg_train_source){0};
    if (sizes->images != sizes->batch)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--images %u: batches of a data set have as many images as samples, %u (or 0)",
                  sizes->images, sizes->batch);
    PSEG_REQUIRE(o->n_parts >= 1, "a data set");
    q = pseg_calloc(1, sizeof *q);
    if (!q || !(q->parts = pseg_calloc(o->n_parts + 1, sizeof *q->parts)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for data sets");
    q->n_parts = o->n_parts;
    q->head = *head;
    q->sizes = *sizes;
    q->how = how_of(head);
    q->has_mirror = o->has_mirror;
    q->order_of = UINT64_MAX;
    PSEG_TRY(open_all(q, cl, o, err));
    q->order = pseg_calloc(q->length + 1, sizeof(item *));
    if (!q->order)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for data sets");
    describe(description, sizeof description, q, o);
    *out = (pseg_train_source){.ud = q,
                               .load = load,
                               .close = data_free,
                               .n_train = (q->length + sizes->batch - 1) / sizes->batch,
                               .n_val = (q->parts[q->n_parts].n + sizes->batch - 1) / sizes->batch,
                               .has_taps = true};
    memcpy(out->description, description, sizeof description);
    q = NULL;
out:
    data_free(q);
    return rc;
}
