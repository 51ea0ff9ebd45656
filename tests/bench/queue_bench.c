/* Jobs a second of the queue alone: one handle submits as a scheduler does, others claim and
 * publish as workers with an empty model do, all through Redis, nothing through gRPC. What is
 * missing to the figure of `pseg bench service` is the price of gRPC.
 *
 *     test_queue_bench [--fsync everysec] [--seconds S] [--depth N] [--claim N] [--workers N]
 * [--rate N] [--items 1] [--same-image 1] [--servers N] [--tenants N]
 *
 * fsync: of the Redis that it starts, or "off": no log; --redis URL: another. depth: submits under
 * way at once; claim: jobs of one claim; rate: submits a second, 0: as many as go; items: of one
 * batch instead of jobs of their own; same-image: each job is of the first one's. workers 0: jobs
 * are submitted and none is done. servers: as many parts of the queue, a Redis each; tenants: whose
 * the jobs are in turn, which decides their part. */
#include "common/base/clock.h"
#include "common/base/hash.h"
#include "common/queue/queue.h"
#include "tests/support/redis.h"

#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_WORKERS = 16, MAX_SERVERS = 8, MAX_BACKLOG = 20000, MAX_SAMPLES = 1 << 20 };

static struct {
    const char *url, *fsync;
    int seconds, depth, claim, workers, rate, image_bytes, items, same_image, servers, tenants;
    const char *durability;
} opt = {.fsync = "everysec",
         .seconds = 1,
         .depth = 64,
         .claim = 32,
         .workers = 2,
         .image_bytes = 100,
         .servers = 1,
         .tenants = 1};

static _Atomic bool stopping;
static _Atomic long submitted, completed, refused, n_samples;
static _Atomic int under_way;
static int64_t samples[MAX_SAMPLES];
static uint8_t image[1 << 20];
static pseg_queue *scheduler;
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER; /* items are numbered as they go out */
static long last_item;

typedef struct submit_call {
    int64_t begin_us;
    char id[PSEG_JOB_ID_LEN + 1], request[48], sha[80], tenant[16];
} submit_call;

typedef struct bench_worker {
    pseg_queue *q;
    char name[16];
    _Atomic bool is_open, claiming, again;
} bench_worker;

static void submit_done(void *ud, pseg_queue_reply *r);
static void fill(submit_call *c);

static void submit_one(submit_call *c)
{
    fill(c);
    pseg_queue_submit_args a = {.tenant = c->tenant,
                                .id = c->id,
                                .request_id = c->request,
                                .fingerprint = "0123456789abcdef0123456789abcdef",
                                .model = "empty",
                                .model_is_default = true,
                                .image_sha256 = c->sha,
                                .spec = {image, 150},
                                .content = {image, (size_t)opt.image_bytes},
                                .ttl_ms = 60000};
    if (!opt.items) {
        pseg_queue_submit(scheduler, &a, submit_done, c);
        return;
    }
    pthread_mutex_lock(&order);
    pseg_queue_item_args item = {.job = a, .batch = "b", .seq = ++last_item, .custom_id = c->sha};
    pseg_queue_submit_item(scheduler, &item, submit_done, c);
    pthread_mutex_unlock(&order);
}

static void fill(submit_call *c)
{
    static _Atomic long number;
    long n = atomic_fetch_add(&number, 1);

    pseg_job_new_id(c->id, NULL);
    snprintf(c->request, sizeof c->request, "request-%s", c->id);
    snprintf(c->sha, sizeof c->sha, "%064ld", opt.same_image ? 0 : n);
    snprintf(c->tenant, sizeof c->tenant, "%s%.0ld", opt.tenants > 1 ? "t" : "default",
             n % opt.tenants);
    c->begin_us = pseg_clock_mono_us();
}

/* Without workers the backlog is what is measured. */
static bool is_full(void)
{
    return opt.workers && atomic_load(&submitted) - atomic_load(&completed) > MAX_BACKLOG;
}

static void submit_done(void *ud, pseg_queue_reply *r)
{
    submit_call *c = ud;
    long n = atomic_fetch_add(&n_samples, 1);

    if (n < MAX_SAMPLES)
        samples[n] = pseg_clock_mono_us() - c->begin_us;
    if (r->err.code != PSEG_OK) {
        if (atomic_fetch_add(&refused, 1) == 0)
            fprintf(stderr, "submit: %s\n", r->err.msg);
    } else {
        atomic_fetch_add(&submitted, 1);
    }
    pseg_queue_reply_free(r);
    bool full = is_full();
    if (opt.rate || full || atomic_load(&stopping)) {
        free(c);
        atomic_fetch_sub(&under_way, 1);
    } else {
        submit_one(c);
    }
}

static void start_submit(void)
{
    atomic_fetch_add(&under_way, 1);
    submit_one(calloc(1, sizeof(submit_call)));
}

/* ---- workers ---- */

static void claim(bench_worker *w);

static void published(void *ud, pseg_queue_reply *r)
{
    (void)ud;
    if (r->err.code == PSEG_OK)
        atomic_fetch_add(&completed, 1);
    else if (r->err.reason != PSEG_R_CANCELLED)
        fprintf(stderr, "publish: %s\n", r->err.msg);
    pseg_queue_reply_free(r);
}

static void claimed(void *ud, pseg_queue_reply *r)
{
    bench_worker *w = ud;
    size_t n = r->n_claims;
    static const uint8_t mask[2];

    for (size_t i = 0; i < n; i++) {
        pseg_queue_lease l = {r->claims[i].id, r->claims[i].fence};
        pseg_bytes one = {mask, sizeof mask};
        pseg_queue_publish(w->q, w->name, l, (pseg_bytes){image, 200}, &one, 1, 1000, published, w);
    }
    pseg_queue_reply_free(r);
    atomic_store(&w->claiming, false);
    if (n || atomic_exchange(&w->again, false))
        claim(w);
}

static void claim(bench_worker *w)
{
    if (atomic_load(&stopping))
        return;
    if (atomic_exchange(&w->claiming, true)) {
        atomic_store(&w->again, true);
        return;
    }
    pseg_queue_claim_jobs(w->q, w->name, "empty", (size_t)opt.claim, 0, 0, claimed, w);
}

static void on_ready(void *ud)
{
    bench_worker *w = ud;

    if (atomic_load(&w->is_open)) /* it may come before the handle is known */
        claim(w);
}

/* ---- the run ---- */

static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return x < y ? -1 : x > y;
}

static void parse(int argc, char **argv)
{
    const struct {
        const char *name;
        int *value;
    } numbers[] = {{"--seconds", &opt.seconds}, {"--depth", &opt.depth},
                   {"--claim", &opt.claim},     {"--workers", &opt.workers},
                   {"--rate", &opt.rate},       {"--image-bytes", &opt.image_bytes},
                   {"--items", &opt.items},     {"--same-image", &opt.same_image},
                   {"--servers", &opt.servers}, {"--tenants", &opt.tenants}};

    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--redis") == 0)
            opt.url = argv[i + 1];
        if (strcmp(argv[i], "--fsync") == 0)
            opt.fsync = argv[i + 1];
        if (strcmp(argv[i], "--durability") == 0)
            opt.durability = argv[i + 1];
        for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++)
            if (strcmp(argv[i], numbers[k].name) == 0)
                *numbers[k].value = atoi(argv[i + 1]);
    }
    if (opt.workers < 0 || opt.workers > MAX_WORKERS || opt.image_bytes > 1 << 20 ||
        opt.servers < 1 || opt.servers > MAX_SERVERS || opt.tenants < 1 ||
        (opt.items && opt.tenants > 1)) {
        fprintf(stderr, "usage: see the head of queue_bench.c\n");
        exit(2);
    }
}

static pseg_queue *open_queue(void (*ready)(void *), void *ud)
{
    pseg_queue_options o = PSEG_QUEUE_OPTIONS_DEFAULT;
    pseg_queue *q;
    pseg_err e = PSEG_ERR_INIT;

    o.url = opt.url;
    o.name = "bench";
    o.on_ready = ready;
    o.watch_model = "empty";
    o.ud = ud;
    if (pseg_queue_open(&q, &o, &e) != PSEG_OK) {
        fprintf(stderr, "%s\n", e.msg);
        exit(1);
    }
    return q;
}

static double redis_cpu_us(const test_redis *r)
{
    char answer[2048];
    double sys = 0, user = 0;

    if (test_redis_ask(r, answer, sizeof answer, "INFO cpu")) {
        const char *a = strstr(answer, "used_cpu_sys:"), *b = strstr(answer, "used_cpu_user:");
        sys = a ? strtod(a + 13, NULL) : 0;
        user = b ? strtod(b + 14, NULL) : 0;
    }
    return (sys + user) * 1e6;
}

static test_redis servers[MAX_SERVERS];

static bool start_servers(const char *const *args)
{
    static char urls[MAX_SERVERS * 100];
    size_t n = 0;

    for (int i = 0; i < opt.servers; i++) {
        servers[i].args = args;
        if (!test_redis_start(&servers[i]))
            return false;
        n += (size_t)snprintf(urls + n, sizeof urls - n, "%s%s", i ? " " : "",
                              servers[i].socket_url);
    }
    opt.url = urls;
    return true;
}

int main(int argc, char **argv)
{
    static bench_worker workers[MAX_WORKERS];
    bool off;

    parse(argc, argv);
    off = strcmp(opt.fsync, "off") == 0;
    const char *const args[] = {"--appendonly", off ? "no" : "yes", "--appendfsync",
                                off ? "no" : opt.fsync, NULL};
    bool is_own = !opt.url;
    if (is_own && !start_servers(args)) {
        printf("skipped: no redis-server\n");
        return TEST_SKIPPED;
    }
    scheduler = open_queue(NULL, NULL);
    pseg_queue_sync batch;
    pseg_queue_sync_init(&batch);
    pseg_queue_create_batch(scheduler, "default", "b", 60000, (pseg_bytes){NULL, 0},
                            pseg_queue_sync_done, &batch);
    pseg_queue_reply_free(pseg_queue_sync_take(&batch));
    for (int i = 0; i < opt.workers; i++) {
        bench_worker *w = &workers[i];
        snprintf(w->name, sizeof w->name, "w%d", i);
        w->q = open_queue(on_ready, w);
        pseg_queue_worker me = {w->name, "empty", "digest", "none", "bench", ""};
        pseg_queue_sync sync;
        pseg_queue_sync_init(&sync);
        pseg_queue_register(w->q, &me, pseg_queue_sync_done, &sync);
        pseg_queue_reply_free(pseg_queue_sync_take(&sync));
        atomic_store(&w->is_open, true);
        claim(w);
    }
    int64_t begin = pseg_clock_mono_us(), end = begin + opt.seconds * (int64_t)1000000;
    for (long made = 0; pseg_clock_mono_us() < end;) {
        int64_t now = pseg_clock_mono_us();
        if (opt.rate)
            for (long due = (now - begin) * opt.rate / 1000000; made < due; made++)
                start_submit();
        else
            while (atomic_load(&under_way) < opt.depth && !is_full())
                start_submit();
        poll(NULL, 0, 1);
    }
    atomic_store(&stopping, true);
    long done = atomic_load(&completed);
    double s = (double)(pseg_clock_mono_us() - begin) / 1e6;
    while (atomic_load(&under_way))
        poll(NULL, 0, 1);
    long n = atomic_load(&n_samples) < MAX_SAMPLES ? atomic_load(&n_samples) : MAX_SAMPLES;
    qsort(samples, (size_t)n, sizeof *samples, by_size);
    printf("%.0f jobs/s completed, %.0f submitted, %ld refused; submit p50 %.2f ms, p99 %.2f ms\n",
           (double)done / s, (double)n / s, atomic_load(&refused),
           n ? (double)samples[n / 2] / 1e3 : 0, n ? (double)samples[n * 99 / 100] / 1e3 : 0);
    for (int i = 0; is_own && i < opt.servers; i++)
        printf("redis %d: %.1f us of processor time for each of all jobs\n", i,
               redis_cpu_us(&servers[i]) / (double)(opt.workers ? done ? done : 1 : n));
    for (int i = 0; i < opt.workers; i++)
        pseg_queue_close(workers[i].q);
    pseg_queue_close(scheduler);
    for (int i = 0; is_own && i < opt.servers; i++)
        test_redis_stop(&servers[i]);
    return (done > 0 || !opt.workers) && !atomic_load(&refused) ? 0 : 1;
}
