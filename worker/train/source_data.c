#include "worker/train/source_data.h"
#include "common/base/alloc.h"
#include "worker/train/init.h"
#include "worker/train/source_data_parts.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VISION_IMAGES 8

static void side_deinit(data_side *s)
{
    pseg_free(s->places);
    pseg_free(s->cuts);
}

static void data_free(void *ud)
{
    data_sets *q = ud;

    if (!q)
        return;
    for (size_t i = 0; q->parts && i <= q->n_parts; i++) {
        pseg_dataset_close(q->parts[i].d);
        pseg_data_selection_free(&q->parts[i].images);
        pseg_free(q->parts[i].entries);
        pseg_free(q->parts[i].examples);
        pseg_free(q->parts[i].first_of);
        pseg_free(q->parts[i].blocks);
    }
    side_deinit(&q->val);
    side_deinit(&q->train);
    pseg_feature_cache_close(q->cache);
    pseg_free(q->parts);
    pseg_free(q);
}

/* ---- opening --------------------------------------------------------------------------------- */

static pseg_status open_part(data_part *p, const char *path, const char *which,
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
static pseg_status leave_out(data_part *p, const data_part *held, pseg_err *err)
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

static pseg_status fill_features(data_sets *q, data_part *p, pseg_vision *v,
                                 const pseg_train_data_options *o, pseg_err *err)
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

    PSEG_TRY(pseg_feature_fill(p->entries, &skipped, q->cache, v, &job, err));
out:
    return rc;
}

bool data_sets_is_of_image(const pseg_err *e)
{
    return e->code == PSEG_EINVAL || e->code == PSEG_ECORRUPT || e->code == PSEG_ENOTFOUND;
}

pseg_data_fault data_sets_fault_of(const pseg_err *e)
{
    return e->code == PSEG_ENOTFOUND ? PSEG_DATA_IMAGE_MISSING : PSEG_DATA_IMAGE_BROKEN;
}

void data_sets_leave_out(const data_sets *q, data_part *p, size_t place, pseg_data_fault fault,
                         const char *what)
{
    size_t variants = q->has_mirror ? 2 : 1;
    pseg_data_record *r = NULL;

    for (size_t v = 0; v < variants; v++)
        p->entries[place * variants + v] = PSEG_NO_FEATURE;
    if (!q->report)
        return;
    pseg_dataset_read(&r, p->d, p->images.images[place], NULL);
    q->report(q->report_ud, fault, r ? r->where : pseg_dataset_path(p->d), what);
    pseg_data_record_free(r);
}

bool data_sets_is_left_out(const data_sets *q, const data_part *p, size_t place)
{
    return p->entries[place * (q->has_mirror ? 2 : 1)] == PSEG_NO_FEATURE;
}

/* What the header tells of an image's file; decoding all of them would take as long as an epoch's
 * loading, at each start. */
static pseg_status look_at(bool *is_good, data_sets *q, data_part *p, size_t place, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_image_limits limits = PSEG_IMAGE_LIMITS_DEFAULT;
    pseg_data_image of = pseg_dataset_at(p->d, p->images.images[place]);
    pseg_data_bytes file = {0};
    pseg_image_info info = {0};
    pseg_err e = PSEG_ERR_INIT;
    char what[160];

    rc = pseg_dataset_image(&file, p->d, p->images.images[place], &e);
    if (rc == PSEG_OK)
        rc = pseg_image_probe(&info, file.data, file.len, &limits, &e);
    *is_good = rc == PSEG_OK && info.width == of.width && info.height == of.height;
    if (rc == PSEG_OK && !*is_good) {
        snprintf(what, sizeof what, "the image has %u x %u pixels, its masks %u x %u", info.width,
                 info.height, of.width, of.height);
        data_sets_leave_out(q, p, place, PSEG_DATA_MASK_SIZE, what);
    } else if (rc != PSEG_OK && data_sets_is_of_image(&e)) {
        data_sets_leave_out(q, p, place, data_sets_fault_of(&e), e.msg);
        rc = PSEG_OK;
    } else if (rc != PSEG_OK && err) {
        *err = e;
    }
    pseg_data_bytes_free(&file);
    return rc;
}

static pseg_status look_at_all(data_sets *q, data_part *p, const pseg_train_data_options *o,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t skipped = 0, n = p->images.n;
    bool is_good;

    for (size_t i = 0; i < n; i++) {
        PSEG_TRY(look_at(&is_good, q, p, i, err));
        skipped += !is_good;
        if (o->progress && (i % 64 == 63 || i + 1 == n) &&
            !o->progress(o->progress_ud, i + 1, skipped, n))
            PSEG_FAIL(PSEG_R_CANCELLED, 0, "stopped after %zu of %zu images", i + 1, n);
    }
    if (skipped == n)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "%s: none of %zu images can be used",
                  pseg_dataset_path(p->d), n);
out:
    return rc;
}

/* The phrases of image i of p, if it can be used and their kind is asked for. */
static pseg_status add_examples(data_sets *q, data_part *p, size_t i, const char *kind,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_data_record *r = NULL;

    if (data_sets_is_left_out(q, p, i))
        goto out;
    PSEG_TRY(pseg_dataset_read(&r, p->d, p->images.images[i], err));
    for (uint32_t s = 0; s < r->n_samples; s++) {
        if (!data_sets_is_wanted(&r->samples[s], kind))
            continue;
        for (uint32_t k = 0; k < r->samples[s].n_sentences; k++)
            p->examples[p->n++] = (data_example){s, k};
    }
out:
    pseg_data_record_free(r);
    return rc;
}

static pseg_status list_examples(data_sets *q, data_part *p, const char *kind, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    p->examples = pseg_malloc((pseg_dataset_n_phrases(p->d) + 1) * sizeof *p->examples);
    p->first_of = pseg_calloc(p->images.n + 1, sizeof *p->first_of);
    if (!p->examples || !p->first_of)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a data set");
    for (size_t i = 0; i < p->images.n; i++) {
        PSEG_TRY(add_examples(q, p, i, kind, err));
        p->first_of[i + 1] = p->n;
    }
    if (p->n == 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s: no phrase is left%s%.40s", pseg_dataset_path(p->d),
                  kind ? " of kind " : "", kind ? kind : "");
out:
    return rc;
}

/* Which images can be used, and what they are trained on: features that the cache then holds, or
 * their pixels. */
static pseg_status ready_images(data_sets *q, pseg_cl *cl, const pseg_train_data_options *o,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_head_config *h = &q->head;
    pseg_vision_options vo = {.n_taps = h->n_taps,
                              .is_tap_normed = h->is_tap_normed,
                              .height = h->height,
                              .width = h->width,
                              .max_images = VISION_IMAGES};
    pseg_vision *v = NULL;

    memcpy(vo.taps, h->taps, sizeof vo.taps);
    if (!o->has_pixels) {
        PSEG_TRY(pseg_vision_open(&v, cl, o->vision, &vo, err));
        PSEG_TRY(
            pseg_feature_cache_open(&q->cache, o->cache, pseg_vision_get_info(v), &q->how, err));
    }
    for (size_t i = 0; i < q->n_parts + (o->val ? 1 : 0); i++) {
        data_part *p = &q->parts[i];

        p->entries = pseg_calloc(p->images.n + 1, 2 * sizeof *p->entries);
        if (!p->entries)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a data set");
        PSEG_TRY(v ? fill_features(q, p, v, o, err) : look_at_all(q, p, o, err));
    }
out:
    pseg_vision_close(v);
    return rc;
}

static pseg_status open_all(data_sets *q, pseg_cl *cl, const pseg_train_data_options *o,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    data_part *val = &q->parts[q->n_parts];

    if (o->val)
        PSEG_TRY(open_part(val, o->val, o->val_images, o, err));
    for (size_t i = 0; i < q->n_parts; i++) {
        data_part *p = &q->parts[i];

        p->weight = o->parts[i].weight;
        PSEG_TRY(open_part(p, o->parts[i].path, "all", o, err));
        if (o->val)
            PSEG_TRY(leave_out(p, val, err));
    }
    for (size_t i = 0; o->table && i < q->n_parts + (o->val ? 1 : 0); i++)
        PSEG_TRY(data_sets_seek_phrases(&q->parts[i], o, i < q->n_parts && o->has_mirror, err));
    PSEG_TRY(ready_images(q, cl, o, err));
    for (size_t i = 0; i < q->n_parts + (o->val ? 1 : 0); i++)
        PSEG_TRY(list_examples(q, &q->parts[i], o->kind, err));
    PSEG_TRY(data_sets_plan(q, err));
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

static uint64_t hash_part(uint64_t h, const data_part *p)
{
    for (size_t i = 0; i < p->images.n; i++) {
        uint64_t key = pseg_dataset_at(p->d, p->images.images[i]).key;

        for (size_t k = p->first_of[i]; k < p->first_of[i + 1]; k++)
            h = pseg_hash3(h, key, (uint64_t)p->examples[k].sample << 32 | p->examples[k].sentence);
    }
    return h;
}

/* What the examples are: names and weights of the sets, and a hash over all examples. */
static void describe(char *out, size_t size, const data_sets *q, const pseg_train_data_options *o)
{
    uint64_t h = 0;
    size_t at = 0;

    for (size_t i = 0; i <= q->n_parts; i++)
        h = hash_part(h, &q->parts[i]);
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
    data_sets *q = NULL;
    char description[sizeof out->description];

    *out = (pseg_train_source){0};
    PSEG_REQUIRE(sizes->images && sizes->batch % sizes->images == 0, "sizes");
    PSEG_REQUIRE(o->n_parts >= 1, "a data set");
    q = pseg_calloc(1, sizeof *q);
    if (!q || !(q->parts = pseg_calloc(o->n_parts + 1, sizeof *q->parts)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for data sets");
    q->n_parts = o->n_parts;
    q->head = *head;
    q->sizes = *sizes;
    q->how = how_of(head);
    q->has_mirror = o->has_mirror;
    q->report = o->report;
    q->report_ud = o->report_ud;
    PSEG_TRY(open_all(q, cl, o, err));
    describe(description, sizeof description, q, o);
    *out = (pseg_train_source){.ud = q,
                               .load = data_sets_load,
                               .close = data_free,
                               .n_train = q->train.n_batches,
                               .n_val = q->val.n_batches,
                               .n_phrases = data_sets_n_phrases(q),
                               .has_taps = !o->has_pixels};
    memcpy(out->description, description, sizeof description);
    q = NULL;
out:
    data_free(q);
    return rc;
}
