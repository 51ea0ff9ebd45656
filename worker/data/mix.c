#include "common/base/alloc.h"
#include "worker/data/idmap.h"
#include "worker/data/split.h"

#include <math.h>
#include <string.h>

typedef struct mix_part {
    size_t first, n; /* of all examples */
    size_t whole;    /* times that each comes in every epoch */
    size_t rest;     /* of them that come once more */
    size_t left_out;
} mix_part;

struct pseg_mix {
    pseg_data_example *example;
    mix_part *part;
    size_t n, n_parts, length;
};

static pseg_status index_keys(idmap *keys, const pseg_mix_part *parts, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t found;
    bool is_new;

    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < parts[i].images->n; k++)
            PSEG_TRY(idmap_put(&found, keys,
                               pseg_dataset_at(parts[i].d, parts[i].images->images[k]).key, 0,
                               &is_new, err));
out:
    return rc;
}

/* With m->example: fills it in; without: counts. */
static pseg_status add_part(pseg_mix *m, mix_part *out, const pseg_mix_part *in, const idmap *keys,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t found;

    *out = (mix_part){.first = m->n};
    for (size_t k = 0; k < in->images->n; k++) {
        uint32_t image = in->images->images[k];
        pseg_data_image of = pseg_dataset_at(in->d, image);
        if (idmap_get(&found, keys, of.key)) {
            out->left_out++;
            continue;
        }
        if (m->example)
            PSEG_TRY(pseg_dataset_examples(m->example + m->n, in->d, image, err));
        m->n += of.n_phrases;
    }
    out->n = m->n - out->first;
    if (!out->n)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "%s: all of its %zu images are held out for validation; nothing is left to train "
                  "on",
                  pseg_dataset_path(in->d), out->left_out);
    out->whole = (size_t)floor(in->weight);
    out->rest = (size_t)llround((in->weight - floor(in->weight)) * (double)out->n);
    if (!out->whole && !out->rest)
        out->rest = 1;
out:
    return rc;
}

static pseg_status add_parts(pseg_mix *m, const pseg_mix_part *parts, const idmap *keys,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    m->n = m->length = 0;
    for (size_t i = 0; i < m->n_parts; i++) {
        if (!(parts[i].weight > 0 && parts[i].weight <= 1000))
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                      "%s: a weight of %g: it must be above 0 and at most 1000",
                      pseg_dataset_path(parts[i].d), parts[i].weight);
        PSEG_TRY(add_part(m, &m->part[i], &parts[i], keys, err));
        m->length += m->part[i].whole * m->part[i].n + m->part[i].rest;
    }
    if (m->length > UINT32_MAX)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "an epoch of %zu examples; the limit is 2^32 - 1",
                  m->length);
out:
    return rc;
}

pseg_status pseg_mix_new(pseg_mix **out, const pseg_mix_part *parts, size_t n,
                         const pseg_mix_part *held_out, size_t n_held_out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_mix *m = NULL;
    idmap keys = {0};

    *out = NULL;
    PSEG_REQUIRE(n > 0, "n");
    m = pseg_calloc(1, sizeof *m);
    if (!m || !(m->part = pseg_calloc(n, sizeof *m->part)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a mix of data sets");
    m->n_parts = n;
    PSEG_TRY(index_keys(&keys, held_out, n_held_out, err));
    PSEG_TRY(add_parts(m, parts, &keys, err));
    m->example = pseg_calloc(m->n, sizeof *m->example);
    if (!m->example)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu examples", m->n);
    PSEG_TRY(add_parts(m, parts, &keys, err));
    *out = m;
    m = NULL;
out:
    idmap_deinit(&keys);
    pseg_mix_free(m);
    return rc;
}

void pseg_mix_free(pseg_mix *m)
{
    if (!m)
        return;
    pseg_free(m->example);
    pseg_free(m->part);
    pseg_free(m);
}

size_t pseg_mix_n_left_out(const pseg_mix *m, size_t part)
{
    return part < m->n_parts ? m->part[part].left_out : 0;
}

size_t pseg_mix_n_examples(const pseg_mix *m)
{
    return m->n;
}

size_t pseg_mix_length(const pseg_mix *m)
{
    return m->length;
}

pseg_mix_item pseg_mix_at(const pseg_mix *m, uint32_t example)
{
    uint32_t part = 0;

    while (part + 1 < m->n_parts && example >= m->part[part + 1].first)
        part++;
    return (pseg_mix_item){part, example < m->n ? m->example[example] : (pseg_data_example){0}};
}

/* ---- order ----------------------------------------------------------------------------------- */

/* splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t draw(uint64_t *state)
{
    uint64_t x = *state;

    *state += 0x9E3779B97F4A7C15u;
    return idmap_mix(x);
}

/* 0 .. n-1, n < 2^32, each as likely: numbers that would favour some are drawn again. */
static uint32_t draw_below(uint64_t *state, uint32_t n)
{
    uint64_t x;

    do
        x = draw(state) >> 32;
    while (x >= ((uint64_t)1 << 32) / n * n);
    return (uint32_t)(x % n);
}

/* The first k of a shuffled list (Fisher, Yates). */
static void shuffle(uint32_t *list, size_t n, size_t k, uint64_t *state)
{
    for (size_t i = 0; i < k && i + 1 < n; i++) {
        size_t j = i + draw_below(state, (uint32_t)(n - i));
        uint32_t t = list[i];
        list[i] = list[j];
        list[j] = t;
    }
}

static pseg_status draw_rest(uint32_t *out, const mix_part *p, uint64_t *state, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t *all = p->rest ? pseg_calloc(p->n, sizeof *all) : NULL;

    if (p->rest && !all)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu examples", p->n);
    for (size_t i = 0; p->rest && i < p->n; i++)
        all[i] = (uint32_t)(p->first + i);
    if (p->rest) {
        shuffle(all, p->n, p->rest, state);
        memcpy(out, all, p->rest * sizeof *all);
    }
out:
    pseg_free(all);
    return rc;
}

pseg_status pseg_mix_order(uint32_t *order, const pseg_mix *m, uint64_t seed, uint64_t epoch,
                           pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t state = idmap_mix(seed) ^ idmap_mix(~epoch);
    size_t n = 0;

    for (size_t i = 0; i < m->n_parts; i++) {
        const mix_part *p = &m->part[i];
        for (size_t k = 0; k < p->whole; k++)
            for (size_t j = 0; j < p->n; j++)
                order[n++] = (uint32_t)(p->first + j);
        PSEG_TRY(draw_rest(order + n, p, &state, err));
        n += p->rest;
    }
    shuffle(order, n, n, &state);
out:
    return rc;
}
