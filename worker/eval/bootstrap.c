#include "worker/eval/bootstrap.h"
#include "common/base/alloc.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static uint64_t splitmix(uint64_t *x)
{
    uint64_t z = *x += 0x9E3779B97F4A7C15;

    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

void pseg_eval_random_seed(pseg_eval_random *r, uint64_t seed, uint64_t stream)
{
    uint64_t x = seed;

    x = splitmix(&x) ^ stream;
    for (int i = 0; i < 4; i++)
        r->s[i] = splitmix(&x);
}

static uint64_t rotate(uint64_t x, int k)
{
    return x << k | x >> (64 - k);
}

static uint64_t next(pseg_eval_random *r)
{
    uint64_t *s = r->s, out = rotate(s[1] * 5, 7) * 9, t = s[1] << 17;

    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 45);
    return out;
}

/* Lemire, Fast Random Integer Generation in an Interval, 2019. */
uint32_t pseg_eval_random_below(pseg_eval_random *r, uint32_t n)
{
    uint64_t m = (next(r) >> 32) * n;
    uint32_t least = -n % n;

    while ((uint32_t)m < least)
        m = (next(r) >> 32) * n;
    return (uint32_t)(m >> 32);
}

typedef struct crew {
    pseg_eval_statistic_fn *fn;
    void *ud;
    const pseg_eval_bootstrap_options *o;
    size_t n_statistics;
    uint32_t n_images;
    double *replicates; /* [replicates][n_statistics] */
} crew;

typedef struct hand {
    const crew *c;
    unsigned number;
    pthread_t thread;
    bool is_started;
    uint32_t *weight;
    double *scratch;
} hand;

/* Every threads-th replicate. */
static void *draw(void *arg)
{
    hand *h = arg;
    const crew *c = h->c;
    pseg_eval_random random;

    for (uint32_t r = h->number; r < c->o->replicates; r += c->o->threads) {
        pseg_eval_random_seed(&random, c->o->seed, r);
        memset(h->weight, 0, c->n_images * sizeof *h->weight);
        for (uint32_t i = 0; i < c->n_images; i++)
            h->weight[pseg_eval_random_below(&random, c->n_images)]++;
        c->fn(c->ud, c->replicates + r * c->n_statistics, h->weight, h->scratch);
    }
    return NULL;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static double quantile(const double *sorted, size_t n, double q)
{
    double place = q * (double)(n - 1);
    size_t low = (size_t)place, high = low + 1 < n ? low + 1 : low;

    return sorted[low] + (place - (double)low) * (sorted[high] - sorted[low]);
}

static void intervals(pseg_eval_interval *out, const crew *c, double *room)
{
    double tail = (1 - c->o->level) / 2;

    for (size_t k = 0; k < c->n_statistics; k++) {
        size_t n = 0;
        for (uint32_t r = 0; r < c->o->replicates; r++) {
            double v = c->replicates[r * c->n_statistics + k];
            if (!isnan(v))
                room[n++] = v;
        }
        qsort(room, n, sizeof *room, compare_doubles);
        if (n > 0 && !isnan(out[k].value)) {
            out[k].low = quantile(room, n, tail);
            out[k].high = quantile(room, n, 1 - tail);
        }
    }
}

pseg_status pseg_eval_bootstrap(pseg_eval_interval *out, size_t n_statistics, uint32_t n_images,
                                pseg_eval_statistic_fn *fn, void *ud,
                                const pseg_eval_bootstrap_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    crew c = {fn, ud, o, n_statistics, n_images, NULL};
    hand *hands = pseg_calloc(o->threads, sizeof *hands);
    double *room = pseg_calloc((size_t)o->replicates + n_statistics, sizeof *room);

    PSEG_REQUIRE(o->level > 0 && o->level < 1, "level");
    PSEG_REQUIRE(o->threads > 0, "threads");
    c.replicates = pseg_calloc(o->replicates, n_statistics * sizeof *c.replicates);
    if (!hands || !room || !c.replicates)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u replicates of %zu figures",
                  o->replicates, n_statistics);
    for (unsigned t = 0; t < o->threads; t++) {
        hands[t].c = &c;
        hands[t].number = t;
        hands[t].weight = pseg_calloc(n_images, sizeof *hands[t].weight);
        hands[t].scratch = pseg_calloc(o->n_scratch, sizeof(double));
        if (!hands[t].weight || !hands[t].scratch)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the bootstrap of %u images",
                      n_images);
    }
    fn(ud, room, NULL, hands[0].scratch);
    for (size_t k = 0; k < n_statistics; k++)
        out[k] = (pseg_eval_interval){room[k], NAN, NAN};
    /* A thread that cannot be had is done without: its share is drawn here. */
    for (unsigned t = 1; t < o->threads; t++)
        hands[t].is_started = pthread_create(&hands[t].thread, NULL, draw, &hands[t]) == 0;
    for (unsigned t = 0; t < o->threads; t++)
        if (!hands[t].is_started)
            draw(&hands[t]);
    for (unsigned t = 1; t < o->threads; t++)
        if (hands[t].is_started)
            pthread_join(hands[t].thread, NULL);
    intervals(out, &c, room);
out:
    for (unsigned t = 0; hands && t < o->threads; t++) {
        pseg_free(hands[t].weight);
        pseg_free(hands[t].scratch);
    }
    pseg_free(hands);
    pseg_free(c.replicates);
    pseg_free(room);
    return rc;
}
