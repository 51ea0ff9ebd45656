#include "worker/eval/plan.h"
#include "common/base/alloc.h"
#include "worker/eval/bootstrap.h"

#include <pthread.h>
#include <string.h>

typedef struct lister {
    pseg_eval_source *s;
    pseg_eval_listing *listings; /* [n_images] */
    pthread_mutex_t mu;
    uint32_t next;
    bool (*is_cancelled)(void *ud);
    void *ud;
    pseg_status rc;
    pseg_err err;
} lister;

typedef struct hand {
    lister *l;
    pseg_arena *arena; /* what this thread's listings lie in */
    pthread_t thread;
    bool is_started;
} hand;

static void *list(void *arg)
{
    hand *h = arg;
    lister *l = h->l;

    for (;;) {
        pseg_err err = PSEG_ERR_INIT;
        pthread_mutex_lock(&l->mu);
        bool is_over = l->rc != PSEG_OK || l->next == l->s->n_images;
        uint32_t i = is_over ? 0 : l->next++;
        pthread_mutex_unlock(&l->mu);
        if (is_over)
            return NULL;
        pseg_status rc = l->is_cancelled && l->is_cancelled(l->ud)
                             ? pseg_err_set(&err, PSEG_R_CANCELLED, 0, PSEG_HERE,
                                            "stopped while phrases were read; nothing was written")
                             : l->s->list(&l->listings[i], l->s, i, h->arena, &err);
        if (rc == PSEG_OK)
            continue;
        pthread_mutex_lock(&l->mu);
        if (l->rc == PSEG_OK) {
            l->rc = rc;
            l->err = err;
        }
        pthread_mutex_unlock(&l->mu);
    }
}

/* Everything from the listings into the plan, in the order of images. */
static pseg_status take_in(pseg_eval_plan *p, const pseg_eval_listing *listings, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t n = 0;

    for (uint32_t i = 0; i < p->n_images; i++)
        n += listings[i].n;
    if (n >= PSEG_EVAL_NONE)
        PSEG_FAIL(PSEG_R_REQUEST_TOO_LARGE, 0,
                  "%llu phrases are more than can be evaluated at once", (unsigned long long)n);
    p->entries = pseg_calloc(n, sizeof *p->entries);
    if (!p->entries)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %llu phrases", (unsigned long long)n);
    for (uint32_t i = 0; i < p->n_images; i++) {
        const pseg_eval_listing *l = &listings[i];
        p->first[i] = p->n;
        p->names[i] = pseg_arena_strdup(p->arena, l->name);
        if (!p->names[i])
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the names of images");
        for (uint32_t k = 0; k < l->n; k++) {
            const pseg_eval_phrase *from = &l->phrases[k];
            pseg_eval_entry *e = &p->entries[p->n++];
            *e = (pseg_eval_entry){.image = i,
                                   .target = from->target,
                                   .sentence = from->sentence,
                                   .swap = from->swap < l->n ? p->first[i] + from->swap
                                                             : PSEG_EVAL_NONE,
                                   .shuffled = PSEG_EVAL_NONE};
            PSEG_TRY(pseg_eval_texts_put(&e->phrase, &p->texts, from->text, err));
            PSEG_TRY(pseg_eval_texts_put(&e->kind, &p->texts, from->kind, err));
            PSEG_TRY(pseg_eval_texts_put(&e->category, &p->texts, from->category, err));
        }
    }
    p->first[p->n_images] = p->n;
out:
    return rc;
}

pseg_status pseg_eval_plan_new(pseg_eval_plan **out, pseg_eval_source *s, unsigned threads,
                               bool (*is_cancelled)(void *), void *ud, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_eval_plan *p = pseg_calloc(1, sizeof *p);
    lister l = {.s = s,
                .mu = PTHREAD_MUTEX_INITIALIZER,
                .is_cancelled = is_cancelled,
                .ud = ud,
                .err = PSEG_ERR_INIT};
    hand *hands = pseg_calloc(threads, sizeof *hands);

    *out = NULL;
    l.listings = pseg_calloc(s->n_images, sizeof *l.listings);
    if (!p || !hands || !l.listings || !(p->arena = pseg_arena_new((size_t)1 << 36)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a plan of %u images", s->n_images);
    pseg_eval_texts_init(&p->texts, p->arena);
    p->n_images = s->n_images;
    p->names = pseg_calloc(p->n_images, sizeof *p->names);
    p->first = pseg_calloc((size_t)p->n_images + 1, sizeof *p->first);
    if (!p->names || !p->first)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a plan of %u images", s->n_images);
    for (unsigned t = 0; t < threads; t++) {
        hands[t].l = &l;
        if (!(hands[t].arena = pseg_arena_new((size_t)1 << 36)))
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a plan of %u images", s->n_images);
    }
    for (unsigned t = 1; t < threads; t++)
        hands[t].is_started = pthread_create(&hands[t].thread, NULL, list, &hands[t]) == 0;
    list(&hands[0]);
    for (unsigned t = 1; t < threads; t++)
        if (hands[t].is_started)
            pthread_join(hands[t].thread, NULL);
    if (l.rc != PSEG_OK) {
        if (err)
            *err = l.err;
        rc = l.rc;
        goto out;
    }
    PSEG_TRY(take_in(p, l.listings, err));
    *out = p;
    p = NULL;
out:
    for (unsigned t = 0; hands && t < threads; t++)
        pseg_arena_free(hands[t].arena);
    pseg_free(hands);
    pseg_free(l.listings);
    pseg_eval_plan_free(p);
    return rc;
}

void pseg_eval_plan_free(pseg_eval_plan *p)
{
    if (!p)
        return;
    pseg_eval_texts_deinit(&p->texts);
    pseg_free(p->names);
    pseg_free(p->first);
    pseg_free(p->entries);
    pseg_arena_free(p->arena);
    pseg_free(p);
}

/* May entry i be asked for with the phrase of entry j? */
static bool is_control(const pseg_eval_plan *p, uint32_t i, uint32_t j)
{
    const pseg_eval_entry *a = &p->entries[i], *b = &p->entries[j];

    if (a->image == b->image || a->phrase == b->phrase)
        return false;
    if (a->category == b->category && p->texts.text[a->category][0])
        return false;
    /* The other sentences of the same target mean it too. */
    for (uint32_t k = p->first[a->image]; k < p->first[a->image + 1]; k++)
        if (p->entries[k].target == a->target && p->entries[k].phrase == b->phrase)
            return false;
    return true;
}

/* Data of one category alone have no control for anything: looking on is bounded. */
enum { TRIES = 200, STEPS = 4096 };

/* Finds for entry i, whose place in the permutation is no control, one to exchange with, such that
 * both are well afterwards. */
static bool exchange(const pseg_eval_plan *p, uint32_t *order, uint32_t i, pseg_eval_random *random)
{
    for (int t = 0; t < TRIES; t++) {
        uint32_t k = pseg_eval_random_below(random, p->n);
        if (is_control(p, i, order[k]) && is_control(p, k, order[i])) {
            uint32_t keep = order[i];
            order[i] = order[k];
            order[k] = keep;
            return true;
        }
    }
    return false;
}

static uint32_t any_control(const pseg_eval_plan *p, uint32_t i, pseg_eval_random *random)
{
    for (int t = 0; t < TRIES; t++) {
        uint32_t k = pseg_eval_random_below(random, p->n);
        if (is_control(p, i, k))
            return k;
    }
    uint32_t from = pseg_eval_random_below(random, p->n);
    for (uint32_t t = 0; t < p->n && t < STEPS; t++)
        if (is_control(p, i, (from + t) % p->n))
            return (from + t) % p->n;
    return PSEG_EVAL_NONE;
}

pseg_status pseg_eval_plan_shuffle(pseg_eval_plan *p, uint64_t seed, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t *order = pseg_calloc(p->n, sizeof *order);
    pseg_eval_random random;

    if (!order)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to shuffle %u phrases", p->n);
    pseg_eval_random_seed(&random, seed, 0x5348554646ULL);
    for (uint32_t i = 0; i < p->n; i++)
        order[i] = i;
    for (uint32_t i = p->n; i > 1; i--) {
        uint32_t k = pseg_eval_random_below(&random, i), keep = order[i - 1];
        order[i - 1] = order[k];
        order[k] = keep;
    }
    for (uint32_t i = 0; i < p->n; i++)
        if (!is_control(p, i, order[i]))
            exchange(p, order, i, &random);
    for (uint32_t i = 0; i < p->n; i++) {
        uint32_t j = is_control(p, i, order[i]) ? order[i] : any_control(p, i, &random);
        p->entries[i].shuffled = j == PSEG_EVAL_NONE ? PSEG_EVAL_NONE : p->entries[j].phrase;
    }
out:
    pseg_free(order);
    return rc;
}
