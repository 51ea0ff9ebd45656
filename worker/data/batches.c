#include "worker/data/batches.h"
#include "common/base/alloc.h"
#include "common/base/half.h"
#include "worker/data/arrays.h"
#include "worker/data/idmap.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* An image with some of its phrases: examples [first, first + n) of a side's list. */
typedef struct group {
    uint32_t first, n;
} group;

/* Training or validation. */
typedef struct side {
    pseg_mix *mix;
    pseg_mix_part *parts; /* selections are copies */
    size_t n_parts;
    uint32_t **entries; /* of each part: [images of the set, variants], or NULL */
    uint64_t n_batches, n_examples;
    /* the epoch that is laid out */
    uint64_t epoch;
    bool is_laid_out;
    uint32_t *order; /* [length]: examples, those of a group behind each other */
    group *groups;
    size_t n_groups;
} side;

struct pseg_batches {
    pseg_batches_options o;
    side side[2]; /* validation, training */
    pseg_feature_cache *cache;
    size_t n_variants, n_taps, tap; /* numbers of a tap of an image */
    uint64_t n_broken;
    char description[200];
};

static void side_deinit(side *s)
{
    for (size_t i = 0; s->parts && i < s->n_parts; i++) {
        pseg_data_selection *copy = (pseg_data_selection *)(uintptr_t)s->parts[i].images;
        if (copy)
            pseg_data_selection_free(copy);
        pseg_free(copy);
        if (s->entries)
            pseg_free(s->entries[i]);
    }
    pseg_free(s->parts);
    pseg_free(s->entries);
    pseg_free(s->order);
    pseg_free(s->groups);
    pseg_mix_free(s->mix);
}

void pseg_batches_close(pseg_batches *b)
{
    if (!b)
        return;
    side_deinit(&b->side[0]);
    side_deinit(&b->side[1]);
    pseg_free(b);
}

/* ---- opening --------------------------------------------------------------------------------- */

static pseg_data_selection *copy_selection(const pseg_data_selection *s)
{
    pseg_data_selection *copy = pseg_calloc(1, sizeof *copy);

    if (!copy)
        return NULL;
    copy->n = s->n;
    copy->images = pseg_memdup(s->images, s->n * sizeof *s->images);
    if (copy->images)
        return copy;
    pseg_free(copy);
    return NULL;
}

static pseg_status side_init(side *s, const pseg_mix_part *parts, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    s->parts = pseg_calloc(n + 1, sizeof *s->parts);
    s->entries = pseg_calloc(n + 1, sizeof *s->entries);
    if (!s->parts || !s->entries)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for batches");
    s->n_parts = n;
    for (size_t i = 0; i < n; i++) {
        s->parts[i] = parts[i];
        s->parts[i].images = copy_selection(parts[i].images);
        if (!s->parts[i].images)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for batches");
    }
out:
    return rc;
}

static void describe(pseg_batches *b)
{
    size_t n = 0, size = sizeof b->description;
    char *s = b->description;

    for (int k = 1; k >= 0; k--)
        for (size_t i = 0; i < b->side[k].n_parts && n < size; i++) {
            const pseg_mix_part *p = &b->side[k].parts[i];
            uint64_t h = 0;
            for (size_t j = 0; j < p->images->n; j++)
                h = idmap_mix(h ^ pseg_dataset_at(p->d, p->images->images[j]).key);
            n += (size_t)snprintf(s + n, size - n, "%s %zu images %08" PRIx32 " x%g; ",
                                  k ? "train" : "val", p->images->n, (uint32_t)h, p->weight);
        }
    if (n < size)
        snprintf(s + n, size - n, "seed %" PRIu64 ", mirror %g", b->o.seed, b->o.mirror);
}

/* ---- an epoch -------------------------------------------------------------------------------- */

static uint32_t *entries_of(const pseg_batches *b, const side *s, pseg_mix_item item)
{
    return s->entries[item.part]
               ? s->entries[item.part] + (size_t)item.example.image * b->n_variants
               : NULL;
}

static bool is_usable(const pseg_batches *b, const side *s, pseg_mix_item item)
{
    const uint32_t *entry = entries_of(b, s, item);

    return !entry || entry[0] != PSEG_NO_FEATURE;
}

/* Of each image the group that has room, by part and image. */
static uint64_t image_id(pseg_mix_item item)
{
    return (uint64_t)item.part << 32 | item.example.image;
}

/* Puts the examples of an order into groups: each goes to its image's group that has room, or
 * begins a new one. to[i]: the group of example i of the order, or UINT32_MAX. */
static pseg_status make_groups(side *s, uint32_t *to, const uint32_t *order, size_t n,
                               const pseg_batches *b, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t most = b->o.batch / b->o.images, found;
    idmap open = {0};
    bool is_new;

    s->n_groups = 0;
    for (size_t i = 0; i < n; i++) {
        pseg_mix_item item = pseg_mix_at(s->mix, order[i]);
        to[i] = UINT32_MAX;
        if (!is_usable(b, s, item))
            continue;
        PSEG_TRY(idmap_put(&found, &open, image_id(item), (uint32_t)s->n_groups, &is_new, err));
        if (!is_new && s->groups[found].n == most) {
            idmap_set(&open, image_id(item), (uint32_t)s->n_groups);
            is_new = true;
        }
        if (is_new) {
            found = (uint32_t)s->n_groups++;
            s->groups[found] = (group){0, 0};
        }
        s->groups[found].n++;
        to[i] = found;
    }
out:
    idmap_deinit(&open);
    return rc;
}

/* Lays out an epoch: s->order holds the examples group by group. */
static pseg_status lay_out(pseg_batches *b, side *s, bool is_train, uint64_t epoch, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n = pseg_mix_length(s->mix);
    uint32_t *order = NULL, *to = NULL, at = 0;

    if (s->is_laid_out && s->epoch == epoch)
        return rc;
    s->is_laid_out = false;
    order = pseg_calloc(n, sizeof *order);
    to = pseg_calloc(n, sizeof *to);
    if (!s->order)
        s->order = pseg_calloc(n, sizeof *s->order);
    if (!s->groups)
        s->groups = pseg_calloc(n, sizeof *s->groups);
    if (!order || !to || !s->order || !s->groups)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an epoch of %zu examples", n);
    for (size_t i = 0; i < n; i++)
        order[i] = (uint32_t)i; /* validation: in the sets' order, each once */
    if (is_train)
        PSEG_TRY(pseg_mix_order(order, s->mix, b->o.seed, epoch, err));
    PSEG_TRY(make_groups(s, to, order, n, b, err));
    for (size_t i = 0; i < s->n_groups; i++) {
        s->groups[i].first = at;
        at += s->groups[i].n;
        s->groups[i].n = 0;
    }
    for (size_t i = 0; i < n; i++)
        if (to[i] != UINT32_MAX) {
            group *g = &s->groups[to[i]];
            s->order[g->first + g->n++] = order[i];
        }
    s->n_examples = at;
    s->epoch = epoch;
    s->is_laid_out = true;
out:
    pseg_free(order);
    pseg_free(to);
    return rc;
}

/* Lays out epoch 0, whose number of batches is that of all. */
static pseg_status count_batches(pseg_batches *b, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (int k = 0; k < 2; k++) {
        side *s = &b->side[k];
        s->is_laid_out = false;
        if (!s->mix)
            continue;
        PSEG_TRY(lay_out(b, s, k == 1, 0, err));
        s->n_batches = (s->n_groups + b->o.images - 1) / b->o.images;
        if (!s->n_groups)
            PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "no image can be used for %s",
                      k ? "training" : "validation");
    }
out:
    return rc;
}

pseg_status pseg_batches_open(pseg_batches **out, const pseg_batches_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_batches *b = NULL;

    *out = NULL;
    if (!o->batch || !o->images || o->batch % o->images || o->batch > 65536)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "a batch of %u phrases with %u images: images must divide the batch", o->batch,
                  o->images);
    if (!(o->mirror >= 0 && o->mirror <= 1))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "mirroring with probability %g: it must be 0 to 1",
                  o->mirror);
    PSEG_REQUIRE(o->n_train && o->mask_width && o->mask_height, "options");
    b = pseg_calloc(1, sizeof *b);
    if (!b)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for batches");
    b->o = *o;
    b->n_variants = o->mirror > 0 ? 2 : 1;
    PSEG_TRY(side_init(&b->side[1], o->train, o->n_train, err));
    PSEG_TRY(side_init(&b->side[0], o->val, o->n_val, err));
    for (size_t i = 0; i < o->n_val; i++)
        b->side[0].parts[i].weight = 1;
    PSEG_TRY(pseg_mix_new(&b->side[1].mix, b->side[1].parts, o->n_train, b->side[0].parts, o->n_val,
                          err));
    if (o->n_val)
        PSEG_TRY(pseg_mix_new(&b->side[0].mix, b->side[0].parts, o->n_val, NULL, 0, err));
    describe(b);
    PSEG_TRY(count_batches(b, err));
    *out = b;
    b = NULL;
out:
    pseg_batches_close(b);
    return rc;
}

/* ---- the cache ------------------------------------------------------------------------------- */

static pseg_status fill_part(pseg_batches *b, side *s, size_t i, pseg_vision *v,
                             pseg_feature_progress_fn *progress, void *ud, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_mix_part *p = &s->parts[i];
    bool has_mirrored = b->n_variants == 2 && s == &b->side[1];
    size_t n = has_mirrored ? 2 : 1, n_skipped, all = pseg_dataset_n_images(p->d);
    uint32_t *entries = pseg_calloc(p->images->n * n, sizeof *entries);
    pseg_feature_job job = {.d = (pseg_dataset *)(uintptr_t)p->d,
                            .images = p->images,
                            .has_mirrored = has_mirrored,
                            .report = b->o.report,
                            .report_ud = b->o.report_ud,
                            .progress = progress,
                            .progress_ud = ud};

    pseg_free(s->entries[i]);
    s->entries[i] = pseg_calloc(all * b->n_variants, sizeof **s->entries);
    if (!entries || !s->entries[i])
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the features of %zu images", all);
    for (size_t k = 0; k < all * b->n_variants; k++)
        s->entries[i][k] = PSEG_NO_FEATURE;
    PSEG_TRY(pseg_feature_fill(entries, &n_skipped, b->cache, v, &job, err));
    b->n_broken += n_skipped;
    for (size_t k = 0; k < p->images->n; k++)
        memcpy(&s->entries[i][(size_t)p->images->images[k] * b->n_variants], &entries[k * n],
               n * sizeof *entries);
out:
    pseg_free(entries);
    return rc;
}

pseg_status pseg_batches_use_cache(pseg_batches *b, pseg_feature_cache *c, pseg_vision *v,
                                   pseg_feature_progress_fn *progress, void *ud, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_vision_info *info = pseg_vision_get_info(v);

    b->cache = c;
    b->n_taps = info->n_taps;
    b->tap = (size_t)info->gh * info->gw * info->hidden;
    for (int k = 1; k >= 0; k--)
        for (size_t i = 0; i < b->side[k].n_parts; i++)
            PSEG_TRY(fill_part(b, &b->side[k], i, v, progress, ud, err));
    PSEG_TRY(count_batches(b, err));
out:
    return rc;
}

/* ---- asking ---------------------------------------------------------------------------------- */

uint64_t pseg_batches_n_train(const pseg_batches *b)
{
    return b->side[1].n_batches;
}

uint64_t pseg_batches_n_val(const pseg_batches *b)
{
    return b->side[0].n_batches;
}

uint64_t pseg_batches_n_examples(const pseg_batches *b, bool is_train)
{
    return b->side[is_train].n_examples;
}

uint64_t pseg_batches_n_held_out(const pseg_batches *b)
{
    uint64_t n = 0;

    for (size_t i = 0; i < b->side[1].n_parts; i++)
        n += pseg_mix_n_left_out(b->side[1].mix, i);
    return n;
}

uint64_t pseg_batches_n_broken(const pseg_batches *b)
{
    return b->n_broken;
}

const char *pseg_batches_description(const pseg_batches *b)
{
    return b->description;
}

static pseg_status tell_phrase(idmap *seen, const char *phrase, const char *where,
                               pseg_batches_phrase_fn *fn, void *ud, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t found;
    bool is_new;

    PSEG_TRY(idmap_put(&found, seen, idmap_hash(phrase, strlen(phrase)), 0, &is_new, err));
    if (is_new)
        PSEG_TRY(fn(ud, phrase, where, err));
out:
    return rc;
}

static pseg_status tell_sample(idmap *seen, const pseg_data_sample *s, const char *where,
                               bool has_mirrored, pseg_batches_phrase_fn *fn, void *ud,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *mirrored = NULL;
    pseg_mirror what;

    for (uint32_t k = 0; k < s->n_sentences; k++) {
        PSEG_TRY(tell_phrase(seen, s->sentences[k], where, fn, ud, err));
        if (!has_mirrored)
            continue;
        pseg_free(mirrored);
        PSEG_TRY(pseg_data_mirror_phrase(&mirrored, &what, s->sentences[k], err));
        PSEG_TRY(tell_phrase(seen, mirrored, where, fn, ud, err));
    }
out:
    pseg_free(mirrored);
    return rc;
}

pseg_status pseg_batches_each_phrase(const pseg_batches *b, pseg_batches_phrase_fn *fn, void *ud,
                                     pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_data_record *r = NULL;
    idmap seen = {0};

    for (int k = 0; k < 2; k++)
        for (size_t i = 0; i < b->side[k].n_parts; i++) {
            const pseg_mix_part *p = &b->side[k].parts[i];
            for (size_t j = 0; j < p->images->n; j++) {
                pseg_data_record_free(r);
                PSEG_TRY(pseg_dataset_read(&r, p->d, p->images->images[j], err));
                for (uint32_t m = 0; m < r->n_samples; m++)
                    PSEG_TRY(tell_sample(&seen, &r->samples[m], r->where, k && b->o.mirror > 0, fn,
                                         ud, err));
            }
        }
out:
    pseg_data_record_free(r);
    idmap_deinit(&seen);
    return rc;
}

/* ---- loading --------------------------------------------------------------------------------- */

/* A group on its way into a batch. */
typedef struct loading {
    pseg_batches *b;
    side *s;
    group g;
    pseg_mix_item item; /* of its first example */
    pseg_data_record *r;
    bool is_mirrored;
    uint64_t dice; /* of this group in this epoch */
} loading;

static const pseg_data_sample *sample_of(const loading *l, uint32_t k, const char **phrase)
{
    pseg_mix_item item = pseg_mix_at(l->s->mix, l->s->order[l->g.first + k]);
    const pseg_data_sample *s = &l->r->samples[item.example.sample];

    *phrase = s->sentences[item.example.sentence];
    return s;
}

/* May the group be mirrored, and shall it? */
static pseg_status choose_side(loading *l, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *phrase;
    pseg_mirror what;
    char *text = NULL;

    l->is_mirrored = l->s == &l->b->side[1] && (double)(l->dice >> 11) * 0x1p-53 < l->b->o.mirror;
    for (uint32_t k = 0; l->is_mirrored && k < l->g.n; k++) {
        sample_of(l, k, &phrase);
        PSEG_TRY(pseg_data_mirror_phrase(&text, &what, phrase, err));
        pseg_free(text);
        l->is_mirrored = what != PSEG_MIRROR_UNSAFE;
    }
out:
    return rc;
}

static pseg_status put_pixels(pseg_data_batch *out, const loading *l, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_dataset *d = (pseg_dataset *)(uintptr_t)l->s->parts[l->item.part].d;
    const pseg_preprocess *how = &l->b->o.how;
    pseg_data_image of = pseg_dataset_at(d, l->item.example.image);
    pseg_data_bytes file = {0};
    uint32_t w, h;

    PSEG_TRY(pseg_dataset_image(&file, d, l->item.example.image, err));
    PSEG_TRY(
        pseg_data_make_input(out->pixels + (size_t)out->n_images * 3 * how->width * how->height, &w,
                             &h, &file, how, l->is_mirrored, err));
    if (w != of.width || h != of.height)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "the image has %u x %u pixels, its masks %u x %u", w, h,
                  of.width, of.height);
out:
    pseg_data_bytes_free(&file);
    return rc;
}

static pseg_status put_taps(pseg_data_batch *out, const loading *l, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_batches *b = l->b;
    uint32_t entry = entries_of(b, l->s, l->item)[l->is_mirrored];
    pseg_feature f;

    PSEG_TRY(pseg_feature_cache_get(&f, b->cache, entry, err));
    for (size_t t = 0; t < b->n_taps; t++)
        pseg_half_to_floats(out->taps[t] + out->n_images * b->tap, f.taps + t * b->tap, b->tap);
    pseg_feature_cache_drop(b->cache, entry);
out:
    return rc;
}

static pseg_status put_phrase(pseg_data_batch *out, const loading *l, uint32_t k, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_batches_options *o = &l->b->o;
    const char *phrase;
    const pseg_data_sample *s = sample_of(l, k, &phrase);
    size_t at = out->n_samples;
    pseg_mask *m = NULL;
    pseg_mirror what;
    char *text = NULL;

    PSEG_TRY(pseg_data_mask_decode(&m, &s->mask, err));
    if (m->area == 0)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "the mask of \"%.60s\" has no pixel", phrase);
    PSEG_TRY(pseg_data_make_target(out->target + at * o->mask_width * o->mask_height, o->mask_width,
                                   o->mask_height, m, &o->how, l->is_mirrored, err));
    if (l->is_mirrored)
        PSEG_TRY(pseg_data_mirror_phrase(&text, &what, phrase, err));
    out->phrases[at] = pseg_arena_strdup(out->arena, text ? text : phrase);
    if (!out->phrases[at])
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a phrase");
    snprintf(out->id[at], PSEG_DATA_ID, "%.40s \"%.40s\"%s", l->r->where, phrase,
             l->is_mirrored ? ", mirrored" : "");
    out->image_of[at] = out->n_images;
    out->n_samples++;
out:
    pseg_mask_free(m);
    pseg_free(text);
    return rc;
}

static bool is_of_data(const pseg_err *e)
{
    return e->code == PSEG_EINVAL || e->code == PSEG_ECORRUPT || e->code == PSEG_ENOTFOUND;
}

static void leave_out(const loading *l, const pseg_err *e)
{
    const pseg_batches_options *o = &l->b->o;

    l->b->n_broken++;
    if (o->report)
        o->report(o->report_ud,
                  e->code == PSEG_ENOTFOUND ? PSEG_DATA_IMAGE_MISSING : PSEG_DATA_IMAGE_BROKEN,
                  l->r->where, e->msg);
}

/* The image, then its phrases; an image none of whose masks can be used is not counted. */
static pseg_status put_group(pseg_data_batch *out, loading *l, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_err e = PSEG_ERR_INIT;
    uint32_t before = out->n_samples;

    PSEG_TRY(pseg_dataset_read(&l->r, l->s->parts[l->item.part].d, l->item.example.image, &e));
    PSEG_TRY(choose_side(l, &e));
    PSEG_TRY(l->b->cache ? put_taps(out, l, &e) : put_pixels(out, l, &e));
    for (uint32_t k = 0; k < l->g.n; k++) {
        rc = put_phrase(out, l, k, &e);
        if (rc != PSEG_OK && !is_of_data(&e))
            goto out;
        if (rc != PSEG_OK)
            leave_out(l, &e);
        rc = PSEG_OK;
    }
    out->n_images += out->n_samples > before;
out:
    if (rc != PSEG_OK && l->r && is_of_data(&e)) {
        leave_out(l, &e);
        rc = PSEG_OK;
    } else if (rc != PSEG_OK && err) {
        *err = e;
    }
    pseg_data_record_free(l->r);
    return rc;
}

pseg_status pseg_batches_load(pseg_data_batch *out, pseg_batches *b, bool is_train, uint64_t epoch,
                              uint64_t batch, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    side *s = &b->side[is_train];

    PSEG_REQUIRE(batch < s->n_batches, "batch");
    PSEG_TRY(lay_out(b, s, is_train, is_train ? epoch : 0, err));
    out->n_images = out->n_samples = 0;
    for (uint64_t i = batch * b->o.images; i < (batch + 1) * b->o.images; i++) {
        if (i >= s->n_groups && out->n_samples)
            break;
        loading l = {.b = b, .s = s, .g = s->groups[i % s->n_groups]};
        l.item = pseg_mix_at(s->mix, s->order[l.g.first]);
        l.dice = idmap_mix(b->o.seed ^ idmap_mix(epoch ^ idmap_mix(i + 1)));
        PSEG_TRY(put_group(out, &l, err));
    }
    if (!out->n_samples)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0,
                  "batch %" PRIu64 " of epoch %" PRIu64 ": none of its images can be used", batch,
                  epoch);
out:
    return rc;
}
