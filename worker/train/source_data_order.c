/* Which phrases make a batch: an image's come together in blocks, blocks are drawn anew for each
 * epoch, and a batch takes them in a row until its images or its phrases are full. */
#include "common/base/alloc.h"
#include "worker/train/init.h"
#include "worker/train/source_data_parts.h"

#include <math.h>
#include <string.h>

/* ---- blocks ---------------------------------------------------------------------------------- */

/* Each image's phrases in as few blocks of at most `most` as there can be, of nearly one size. */
static pseg_status make_blocks(data_part *p, uint32_t number, uint32_t most, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    pseg_free(p->blocks);
    p->blocks = pseg_calloc(p->n + 1, sizeof *p->blocks);
    p->n_blocks = 0;
    if (!p->blocks)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a data set");
    for (size_t i = 0; i < p->images.n; i++) {
        size_t n = p->first_of[i + 1] - p->first_of[i], parts = (n + most - 1) / most;

        for (size_t k = 0; k < parts; k++) {
            uint32_t first = (uint32_t)(k * n / parts), end = (uint32_t)((k + 1) * n / parts);
            p->blocks[p->n_blocks++] = (data_block){number, (uint32_t)i, first, end - first};
        }
    }
out:
    return rc;
}

pseg_status data_sets_phrases(size_t **out, const data_sets *q, const data_block *k, bool is_train,
                              uint64_t epoch, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const data_part *p = &q->parts[k->part];
    size_t first = p->first_of[k->place], n = p->first_of[k->place + 1] - first;
    uint64_t image = pseg_hash3(q->sizes.seed + 2, epoch, (uint64_t)k->part << 32 | k->place);
    size_t *list = pseg_calloc(n, sizeof *list);

    *out = NULL;
    if (!list)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu phrases", n);
    for (size_t i = 0; i < n; i++)
        list[i] = first + i;
    /* One phrase a block: blocks are drawn, there is nothing to mix. */
    for (size_t i = n; is_train && q->most > 1 && i > 1; i--) {
        size_t j = (size_t)(pseg_hash3(image, i, 0) % i), x = list[i - 1];

        list[i - 1] = list[j];
        list[j] = x;
    }
    *out = list;
out:
    return rc;
}

/* ---- an epoch -------------------------------------------------------------------------------- */

/* Blocks of an epoch that p has by its weight. */
static size_t copies(const data_part *p)
{
    double whole = floor(p->weight);
    size_t n =
        (size_t)whole * p->n_blocks + (size_t)lround((p->weight - whole) * (double)p->n_blocks);

    return n ? n : 1;
}

/* Fisher, Yates; which numbers are drawn depends on seed and epoch alone. */
static void shuffle(data_place *list, size_t n, uint64_t seed, uint64_t epoch)
{
    for (size_t i = n; i > 1; i--) {
        size_t k = (size_t)(pseg_hash3(seed, epoch, i) % i);
        data_place x = list[i - 1];

        list[i - 1] = list[k];
        list[k] = x;
    }
}

static data_place place_of(const data_block *of, bool is_rest)
{
    return (data_place){of, of->n, is_rest};
}

static void draw(data_place *list, const data_sets *q, uint64_t epoch)
{
    size_t at = 0;

    for (size_t i = 0; i < q->n_parts; i++) {
        const data_part *p = &q->parts[i];
        size_t end = at + copies(p);

        /* Whole copies first; of the last one a part, which is drawn. */
        while (at + p->n_blocks <= end)
            for (size_t k = 0; k < p->n_blocks; k++)
                list[at++] = place_of(&p->blocks[k], false);
        if (at < end) {
            size_t left = end - at;
            size_t first = (size_t)(pseg_hash3(q->sizes.seed, epoch, i) % p->n_blocks);
            /* Every n/left-th from a place that is drawn: no two are one. */
            for (size_t k = 0; k < left; k++)
                list[at++] =
                    place_of(&p->blocks[(first + k * p->n_blocks / left) % p->n_blocks], true);
        }
    }
    shuffle(list, at, q->sizes.seed, epoch);
}

/* Places that may take each other's blocks have one key, and larger rooms come first. */
static size_t key_of(const data_place *p, uint32_t most)
{
    return (p->is_rest && most > 1 ? most : 0) + (most - p->room);
}

/* out: 0..n-1 by key, equal ones as they stood. count: [2 * most + 1]. */
static void by_key(size_t *out, size_t *count, const data_place *list, size_t n, uint32_t most)
{
    memset(count, 0, (2 * (size_t)most + 1) * sizeof *count);
    for (size_t i = 0; i < n; i++)
        count[key_of(&list[i], most) + 1]++;
    for (size_t k = 1; k < 2 * (size_t)most; k++)
        count[k] += count[k - 1];
    for (size_t i = 0; i < n; i++)
        out[count[key_of(&list[i], most)]++] = i;
}

/* Blocks go to the places that have their size. Those that a weight's fraction adds are others each
 * time, and some sizes differ then: they go to the next smaller or larger place among themselves.
 */
pseg_status data_sets_draw(data_sets *q, uint64_t epoch, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    data_side *s = &q->train;
    data_place *drawn = pseg_calloc(s->n, sizeof *drawn);
    size_t *blocks = pseg_calloc(s->n, sizeof *blocks), *places = pseg_calloc(s->n, sizeof *places);
    size_t *count = pseg_calloc(2 * (size_t)q->most + 1, sizeof *count);

    if (!drawn || !blocks || !places || !count)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an epoch of %zu images", s->n);
    draw(drawn, q, epoch);
    by_key(blocks, count, drawn, s->n, q->most);
    by_key(places, count, s->places, s->n, q->most);
    for (size_t i = 0; i < s->n; i++)
        s->places[places[i]].of = drawn[blocks[i]].of;
    q->order_of = epoch;
out:
    pseg_free(drawn);
    pseg_free(blocks);
    pseg_free(places);
    pseg_free(count);
    return rc;
}

/* ---- batches --------------------------------------------------------------------------------- */

/* Where batches of s->places begin: a batch is full of images or of phrases; a block that
 * has room in it for some of its phrases alone is cut. Returns how many; cuts may be NULL. */
static size_t cut(data_cut *cuts, const data_side *s, const pseg_train_sizes *sizes)
{
    uint32_t images = sizes->images, samples = 0;
    size_t n = 0;

    for (size_t i = 0; i < s->n; i++)
        for (uint32_t from = 0; from < s->places[i].room;) {
            if (images == sizes->images || samples == sizes->batch) {
                if (cuts)
                    cuts[n] = (data_cut){i, from};
                n++;
                images = samples = 0;
            }
            uint32_t left = s->places[i].room - from, free = sizes->batch - samples;
            uint32_t some = left < free ? left : free;

            images++;
            samples += some;
            from += some;
        }
    if (cuts)
        cuts[n] = (data_cut){s->n, 0};
    return n;
}

static pseg_status make_places(data_side *s, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    pseg_free(s->places);
    s->n = n;
    s->places = pseg_calloc(n + 1, sizeof *s->places);
    if (!s->places)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an epoch of %zu images", n);
out:
    return rc;
}

static pseg_status make_cuts(data_side *s, const pseg_train_sizes *sizes, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    s->n_batches = cut(NULL, s, sizes);
    pseg_free(s->cuts);
    s->cuts = pseg_calloc(s->n_batches + 1, sizeof *s->cuts);
    if (!s->cuts)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu batches", s->n_batches);
    cut(s->cuts, s, sizes);
out:
    return rc;
}

static pseg_status plan_with(data_sets *q, uint32_t most, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    data_part *val = &q->parts[q->n_parts];
    size_t n = 0;

    q->most = most;
    for (size_t i = 0; i <= q->n_parts; i++)
        if (q->parts[i].d)
            PSEG_TRY(make_blocks(&q->parts[i], (uint32_t)i, most, err));
    for (size_t i = 0; i < q->n_parts; i++)
        n += copies(&q->parts[i]);
    PSEG_TRY(make_places(&q->train, n, err));
    draw(q->train.places, q, 0);
    PSEG_TRY(make_cuts(&q->train, &q->sizes, err));
    PSEG_TRY(make_places(&q->val, val->n_blocks, err));
    for (size_t i = 0; i < val->n_blocks; i++)
        q->val.places[i] = place_of(&val->blocks[i], false);
    PSEG_TRY(make_cuts(&q->val, &q->sizes, err));
out:
    return rc;
}

/* Blocks of batch / images phrases fill batches of as many images as are asked for; where images
 * have a few more, twice as large ones need fewer batches, of fewer images. */
pseg_status data_sets_plan(data_sets *q, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t share = q->sizes.batch / q->sizes.images, best = share;
    size_t fewest;

    PSEG_TRY(plan_with(q, share, err));
    fewest = q->train.n_batches;
    /* Without a batch of fewer images than phrases each phrase has an image of its own. */
    for (uint32_t most = share + share / 2; share > 1 && most <= 2 * share; most += share / 2) {
        PSEG_TRY(plan_with(q, most, err));
        if (q->train.n_batches < fewest) {
            fewest = q->train.n_batches;
            best = most;
        }
    }
    if (best != q->most)
        PSEG_TRY(plan_with(q, best, err));
out:
    return rc;
}

uint64_t data_sets_n_phrases(const data_sets *q)
{
    uint64_t n = 0;

    for (size_t i = 0; i < q->train.n; i++)
        n += q->train.places[i].room;
    return n;
}
