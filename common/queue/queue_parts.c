/* A queue that lies on several servers, or in several slots of a cluster: a handle for each part,
 * and which of them a request goes to. A tenant's part is the one of the highest weight, by a hash
 * of both (Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996): every
 * process finds the same without asking. */
#include "common/queue/queue_parts.h"
#include "common/base/alloc.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CLUSTER "redis+cluster://"

/* ---- where the parts are ---- */

/* The number of parts behind a cluster's nodes. */
static pseg_status parts_of_cluster(size_t *out, const char *url, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *slash = strrchr(url + sizeof CLUSTER - 1, '/');
    char *end = NULL;

    errno = 0;
    long n = slash && slash[1] >= '0' && slash[1] <= '9' ? strtol(slash + 1, &end, 10) : 0;
    if (n < 1 || n > PSEG_QUEUE_MAX_PARTS || errno || *end)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "redis url of a cluster must end in the number of the queue's parts, 1 to %d: "
                  "write " CLUSTER "HOST:6379,HOST:6379,HOST:6379/3",
                  PSEG_QUEUE_MAX_PARTS);
    *out = (size_t)n;
out:
    return rc;
}

pseg_status queue_split_urls(const char *const **out, size_t *n, pseg_arena *a, const char *list,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *text = pseg_arena_strdup(a, list), *rest = NULL;
    const char **urls = pseg_arena_calloc(a, PSEG_QUEUE_MAX_PARTS, sizeof *urls);

    *n = 0;
    if (!text || !urls)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the queue");
    for (char *url = strtok_r(text, " ", &rest); url; url = strtok_r(NULL, " ", &rest)) {
        size_t times = 1;
        if (strncmp(url, CLUSTER, sizeof CLUSTER - 1) == 0)
            PSEG_TRY(parts_of_cluster(&times, url, err));
        if (*n + times > PSEG_QUEUE_MAX_PARTS)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                      "the redis urls make %zu parts of a queue, more than %d: name fewer",
                      *n + times, PSEG_QUEUE_MAX_PARTS);
        while (times--)
            urls[(*n)++] = url;
    }
    if (*n == 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "redis url is empty: write redis://HOST:6379");
    *out = urls;
out:
    return rc;
}

/* ---- which part ---- */

/* FNV-1a, then the finisher of MurmurHash3 over it and the part. */
static uint64_t weight_of(uint64_t name, size_t part)
{
    uint64_t x = name + (part + 1) * UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ x >> 33) * UINT64_C(0xff51afd7ed558ccd);
    x = (x ^ x >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
    return x ^ x >> 33;
}

static size_t part_of(const pseg_queue *q, const char *name, size_t len)
{
    uint64_t hash = UINT64_C(14695981039346656037), highest = 0;
    size_t best = 0;

    for (size_t i = 0; i < len; i++)
        hash = (hash ^ (unsigned char)name[i]) * UINT64_C(1099511628211);
    for (size_t i = 0; i < q->n_parts; i++) {
        uint64_t w = weight_of(hash, i);
        if (i == 0 || w > highest) {
            highest = w;
            best = i;
        }
    }
    return best;
}

size_t pseg_queue_part_of(const pseg_queue *q, const char *tenant)
{
    return q->n_parts ? part_of(q, tenant, strlen(tenant)) : 0;
}

pseg_queue *queue_part(pseg_queue *q, const char *tenant)
{
    return q->n_parts ? q->parts[part_of(q, tenant, strlen(tenant))] : q;
}

pseg_queue *queue_part_of_image(pseg_queue *q, const char *image)
{
    return q->n_parts ? q->parts[part_of(q, image, strcspn(image, ":"))] : q;
}

/* Redis counts leases in 32 bits. */
enum { FENCE_BITS = 32 };

int64_t queue_fence_in_part(int64_t fence, size_t part)
{
    return fence | (int64_t)part << FENCE_BITS;
}

pseg_queue *queue_part_of_lease(pseg_queue *q, pseg_queue_lease *l)
{
    size_t part = (uint64_t)l->fence >> FENCE_BITS;

    if (!q->n_parts)
        return q;
    l->fence &= ((int64_t)1 << FENCE_BITS) - 1;
    return q->parts[part < q->n_parts ? part : 0];
}

/* ---- open and close ---- */

typedef struct part_watch {
    pseg_queue *q;
    size_t part;
} part_watch;

typedef struct parts_queue {
    pseg_queue base;
    pseg_queue *parts[PSEG_QUEUE_MAX_PARTS];
    part_watch watches[PSEG_QUEUE_MAX_PARTS];
    _Atomic bool may_wait[PSEG_QUEUE_MAX_PARTS]; /* somebody said so since it was asked */
    _Atomic unsigned turn;                       /* of the part that a claim asks first */
    pthread_mutex_t mu;                          /* recursive; guards */
    bool closing;
} parts_queue;

static void on_event(void *ud, const pseg_queue_event *e)
{
    const part_watch *w = ud;
    const pseg_queue_options *o = &w->q->opt;

    if (!e) {
        o->on_event(o->ud, NULL);
        return;
    }
    pseg_queue_event own = *e;
    own.part = w->part;
    o->on_event(o->ud, &own);
}

static void on_ready(void *ud)
{
    const part_watch *w = ud;

    ((parts_queue *)w->q)->may_wait[w->part] = true;
    w->q->opt.on_ready(w->q->opt.ud);
}

size_t queue_parts_in_turn(pseg_queue *base, size_t order[PSEG_QUEUE_MAX_PARTS])
{
    parts_queue *q = (parts_queue *)base;
    size_t n = 0, n_sure, first = q->turn++ % base->n_parts;
    bool is_in[PSEG_QUEUE_MAX_PARTS] = {0};

    for (size_t i = 0; i < base->n_parts; i++) {
        size_t part = (first + i) % base->n_parts;
        /* That in turn in any case, so that none waits for ever; all, if nobody tells. */
        is_in[part] = atomic_exchange(&q->may_wait[part], false) || i == 0 || !base->opt.on_ready;
        if (is_in[part])
            order[n++] = part;
    }
    n_sure = n;
    for (size_t i = 0; i < base->n_parts; i++)
        if (!is_in[(first + i) % base->n_parts])
            order[n++] = (first + i) % base->n_parts;
    return n_sure;
}

void queue_parts_may_wait(pseg_queue *base, size_t part)
{
    ((parts_queue *)base)->may_wait[part] = true;
}

bool queue_parts_enter(pseg_queue *base)
{
    parts_queue *q = (parts_queue *)base;

    pthread_mutex_lock(&q->mu);
    if (!q->closing)
        return true;
    pthread_mutex_unlock(&q->mu);
    return false;
}

void queue_parts_leave(pseg_queue *base)
{
    pthread_mutex_unlock(&((parts_queue *)base)->mu);
}

void queue_parts_close(pseg_queue *base)
{
    parts_queue *q = (parts_queue *)base;

    pthread_mutex_lock(&q->mu);
    q->closing = true;
    pthread_mutex_unlock(&q->mu);
    for (size_t i = 0; i < base->n_parts; i++)
        pseg_queue_close(base->parts[i]);
    pthread_mutex_destroy(&q->mu);
    pseg_arena_free(base->arena);
    pseg_free(q);
}

/* The first part has the queue's own name: a queue in one part is laid out like any other. */
static void name_of(char *out, size_t cap, const char *name, size_t part)
{
    if (part)
        snprintf(out, cap, "%s.%zu", name, part);
    else
        snprintf(out, cap, "%s", name);
}

pseg_status queue_parts_open(pseg_queue **out, const pseg_queue *base, const char *const *urls,
                             size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    parts_queue *q = pseg_calloc(1, sizeof *q);
    char name[PSEG_QUEUE_MAX_NAME + 8];

    pthread_mutexattr_t attr;

    if (!q)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the queue");
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&q->mu, &attr);
    pthread_mutexattr_destroy(&attr);
    q->base = *base;
    q->base.ops = &queue_parts_ops;
    q->base.opt.url = q->base.opt.name = q->base.opt.watch_model = NULL; /* the parts have theirs */
    q->base.parts = q->parts;
    q->base.n_layout = n;
    for (size_t i = 0; i < n; i++) {
        pseg_queue_options o = base->opt;
        q->watches[i] = (part_watch){&q->base, i};
        o.url = urls[i];
        o.name = name;
        o.ud = &q->watches[i];
        o.on_event = base->opt.on_event ? on_event : NULL;
        o.on_ready = base->opt.on_ready ? on_ready : NULL;
        name_of(name, sizeof name, base->opt.name, i);
        PSEG_TRY(queue_open_one(&q->parts[i], &o, n, err));
        q->base.n_parts++;
    }
    *out = &q->base;
    q = NULL;
out:
    for (size_t i = 0; q && i < q->base.n_parts; i++)
        pseg_queue_close(q->parts[i]);
    if (q)
        pthread_mutex_destroy(&q->mu);
    pseg_free(q);
    return rc;
}
