/* A worker on a queue in memory, with the model in the box: which jobs share what, and what becomes
 * of the others when one of them fails. Needs a device for most: skipped without one. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/file.h"
#include "common/base/half.h"
#include "common/base/hash.h"
#include "pseg/internal/v1/record.pb-c.h"
#include "tests/support/skips.h"
#include "worker/serve/internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MODEL        PSEG_TEST_SOURCE_DIR "/deploy/models/scenes"
#define SCENE        PSEG_TEST_SOURCE_DIR "/docs/example/scene.png"
#define MAX_JOBS     16
#define KEPT_PHRASES 6
#define WAIT_MS      120000

static pseg_engine *engine; /* NULL: no device */
static pseg_engine *pair;   /* with two devices, halves of one; NULL: there is no such thing */
static uint8_t *scene;
static size_t scene_len;

/* ---- images at hand, without a device ---- */

static void a_picture_is_filled_once_and_shared(void **state)
{
    pseg_pictures s;
    pseg_picture *a, *b, *c;
    pseg_waiter first = {0}, second = {0};

    (void)state;
    pseg_pictures_init(&s, 0);
    assert_int_equal(pseg_pictures_take(&a, &s, "t:1", &first), PSEG_PICTURE_MINE);
    assert_int_equal(pseg_pictures_take(&b, &s, "t:1", &first), PSEG_PICTURE_AWAITED);
    assert_int_equal(pseg_pictures_take(&b, &s, "t:1", &second), PSEG_PICTURE_AWAITED);
    assert_int_equal(pseg_pictures_take(&c, &s, "u:1", NULL), PSEG_PICTURE_MINE); /* a stranger */
    assert_ptr_not_equal(a, c);
    pseg_waiter *all = pseg_pictures_filled(&s, a, true);
    assert_ptr_equal(all, &first);
    assert_ptr_equal(all->next, &second);
    assert_ptr_equal(first.picture, a);
    assert_ptr_equal(second.picture, a);
    assert_int_equal(pseg_pictures_take(&b, &s, "t:1", NULL), PSEG_PICTURE_READY);
    assert_ptr_equal(a, b);
    for (int i = 0; i < 4; i++)
        pseg_pictures_drop(&s, a);
    /* Not encoded: nothing of it stays. */
    assert_int_equal(pseg_pictures_take(&b, &s, "t:1", NULL), PSEG_PICTURE_MINE);
    pseg_pictures_drop(&s, b);
    pseg_pictures_drop(&s, c);
    pseg_pictures_deinit(&s);
}

static void a_picture_that_fails_is_forgotten(void **state)
{
    pseg_pictures s;
    pseg_picture *a, *b;
    pseg_waiter w = {0};

    (void)state;
    pseg_pictures_init(&s, 0);
    assert_int_equal(pseg_pictures_take(&a, &s, "t:1", NULL), PSEG_PICTURE_MINE);
    assert_int_equal(pseg_pictures_take(&b, &s, "t:1", &w), PSEG_PICTURE_AWAITED);
    assert_ptr_equal(pseg_pictures_filled(&s, a, false), &w);
    assert_null(w.picture);
    assert_int_equal(pseg_pictures_take(&b, &s, "t:1", NULL), PSEG_PICTURE_MINE);
    pseg_pictures_drop(&s, a);
    pseg_pictures_drop(&s, b);
    pseg_pictures_deinit(&s);
}

static void a_picture_is_encoded_by_one_device_at_a_time(void **state)
{
    pseg_pictures s;
    pseg_picture *p;

    (void)state;
    pseg_pictures_init(&s, 0);
    s.n_devices = 2;
    assert_int_equal(pseg_pictures_take(&p, &s, "t:1", NULL), PSEG_PICTURE_MINE);
    assert_null(pseg_pictures_filled(&s, p, true));
    assert_true(pseg_pictures_claim(&s, p, 1));
    assert_true(pseg_pictures_claim(&s, p, 1)); /* by another job on it */
    assert_false(pseg_pictures_claim(&s, p, 0));
    pseg_pictures_unclaim(&s, p, 0); /* which is not its to end */
    assert_false(pseg_pictures_claim(&s, p, 0));
    pseg_pictures_unclaim(&s, p, 1); /* nothing came of it: the next may try */
    assert_false(pseg_picture_is_encoded(&s, p));
    assert_true(pseg_pictures_claim(&s, p, 0));
    assert_false(pseg_pictures_claim(&s, p, 1));
    p->numbers = pseg_calloc(1, sizeof *p->numbers);
    assert_non_null(p->numbers);
    pseg_pictures_unclaim(&s, p, 0);
    assert_true(pseg_picture_is_encoded(&s, p));
    assert_true(pseg_pictures_claim(&s, p, 1)); /* both at once from now on */
    assert_true(pseg_pictures_claim(&s, p, 0));
    pseg_pictures_drop(&s, p);
    pseg_pictures_deinit(&s);
}

/* ---- jobs ---- */

/* A worker whose device waits, after a first job that is nobody's concern, until the jobs of the
 * test are ready: so it finds all of them at once, on a machine of any speed. */
typedef struct run {
    pseg_queue *q;
    char name[24];
    char ids[MAX_JOBS][PSEG_JOB_ID_LEN + 1];
    size_t n;
    pseg_worker *_Atomic w;
    _Atomic bool is_held;
    _Atomic size_t n_awaited; /* jobs that are to be ready; 0: not said yet */
    bool needs_both; /* no device goes on after its first pass until the other has had one, too */
    _Atomic size_t n_on[2]; /* passes of each device */
    /* of the worker's hooks, without the first job */
    _Atomic size_t n_passes, n_jobs, n_encodes, n_texts, n_pairs, n_ended;
} run;

/* Waits until cond, checked every few milliseconds; fails after WAIT_MS. */
#define WAIT_UNTIL(cond)                                                       \
    do {                                                                       \
        pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;                        \
        pthread_cond_t never;                                                  \
        int64_t until = pseg_clock_mono_ms() + WAIT_MS;                        \
        pseg_cond_init(&never);                                                \
        pthread_mutex_lock(&mu);                                               \
        while (!(cond) && pseg_clock_mono_ms() < until)                        \
            pseg_cond_wait_until_us(&never, &mu, pseg_clock_mono_us() + 2000); \
        pthread_mutex_unlock(&mu);                                             \
        pthread_cond_destroy(&never);                                          \
    } while (0)

static size_t n_ready(run *r)
{
    pseg_worker *w = atomic_load(&r->w);
    size_t n = 0;

    if (w) {
        pthread_mutex_lock(&w->mu);
        n = w->ready.n;
        pthread_mutex_unlock(&w->mu);
    }
    return n;
}

static void on_batch(void *ud, size_t device, size_t n_jobs, const pseg_engine_batch *done)
{
    run *r = ud;

    if (r->needs_both) {
        atomic_fetch_add(&r->n_on[device], 1);
        WAIT_UNTIL(atomic_load(&r->n_on[!device]) > 0);
    }
    if (!r->needs_both && !atomic_exchange(&r->is_held, true)) {
        WAIT_UNTIL(atomic_load(&r->n_awaited) && n_ready(r) >= atomic_load(&r->n_awaited));
        return;
    }
    atomic_fetch_add(&r->n_passes, 1);
    atomic_fetch_add(&r->n_jobs, n_jobs);
    atomic_fetch_add(&r->n_encodes, done->n_encodes);
    atomic_fetch_add(&r->n_texts, done->n_texts);
    atomic_fetch_add(&r->n_pairs, done->n_pairs);
}

static void on_ended(void *ud, const pseg_worker_ended *e)
{
    (void)e;
    atomic_fetch_add(&((run *)ud)->n_ended, 1);
}

static pseg_queue_options options_of(const run *r)
{
    pseg_queue_options o = PSEG_QUEUE_OPTIONS_DEFAULT;

    o.url = "mem:";
    o.name = r->name;
    return o;
}

/* A job of the tenant on the image. */
static void submit(run *r, const char *tenant, const uint8_t *image, size_t len,
                   const char *const *phrases, size_t n)
{
    uint8_t digest[PSEG_SHA256_BYTES], packed[2000];
    char sha[PSEG_SHA256_HEX + 1];
    Pseg__Internal__V1__JobSpec spec = PSEG__INTERNAL__V1__JOB_SPEC__INIT;
    pseg_queue_sync sync;
    char *id = r->ids[r->n++];

    assert_true(r->n <= MAX_JOBS);
    assert_int_equal(pseg_job_new_id(id, NULL), PSEG_OK);
    pseg_sha256_of(digest, image, len);
    pseg_hex(sha, digest, sizeof digest);
    spec.image_sha256 = sha;
    spec.prompts = (char **)(uintptr_t)phrases;
    spec.n_prompts = n;
    assert_true(pseg__internal__v1__job_spec__get_packed_size(&spec) <= sizeof packed);
    pseg_queue_submit_args a = {
        .tenant = tenant,
        .id = id,
        .request_id = "",
        .fingerprint = "",
        .model = "scenes",
        .model_is_default = true,
        .image_sha256 = sha,
        .spec = {packed, pseg__internal__v1__job_spec__pack(&spec, packed)},
        .content = {image, len},
        .ttl_ms = 3600000,
    };
    pseg_queue_sync_init(&sync);
    pseg_queue_submit(r->q, &a, pseg_queue_sync_done, &sync);
    pseg_queue_reply *reply = pseg_queue_sync_take(&sync);
    assert_int_equal(reply->err.code, PSEG_OK);
    pseg_queue_reply_free(reply);
}

static void submit_one(run *r, const char *tenant, const char *phrase)
{
    submit(r, tenant, scene, scene_len, &phrase, 1);
}

static int n_runs;

static void run_begin_with(run *r, const char *queue, size_t batch, int64_t feature_bytes,
                           bool share)
{
    pseg_worker *w = NULL;

    memset(r, 0, sizeof *r);
    snprintf(r->name, sizeof r->name, "serve%d", n_runs++);
    if (queue)
        snprintf(r->name, sizeof r->name, "%s", queue);
    pseg_worker_options o = {.queue = options_of(r),
                             .engine = engine,
                             .id = "w",
                             .ahead = MAX_JOBS,
                             .preparers = 2,
                             .batch = batch,
                             .feature_bytes = feature_bytes,
                             .share_features = share,
                             .on_ended = on_ended,
                             .on_batch = on_batch,
                             .on_ended_ud = r};
    assert_int_equal(pseg_queue_open(&r->q, &o.queue, NULL), PSEG_OK);
    submit_one(r, "nobody", "a star");
    r->n = 0;
    assert_int_equal(pseg_worker_start(&w, &o, NULL), PSEG_OK);
    atomic_store(&r->w, w);
    WAIT_UNTIL(atomic_load(&r->is_held));
    assert_true(atomic_load(&r->is_held));
}

static void run_begin(run *r, size_t batch)
{
    run_begin_with(r, NULL, batch, 0, false);
}

/* On two devices, of which each takes jobs one by one. All jobs are there before it begins. */
static void run_on_pair(run *r, const char *const *tenants, const char *const *phrases, size_t n)
{
    pseg_worker *w = NULL;

    memset(r, 0, sizeof *r);
    snprintf(r->name, sizeof r->name, "serve%d", n_runs++);
    r->needs_both = true;
    pseg_worker_options o = {.queue = options_of(r),
                             .engine = pair,
                             .id = "w",
                             .ahead = MAX_JOBS,
                             .preparers = 2,
                             .batch = 1,
                             .on_ended = on_ended,
                             .on_batch = on_batch,
                             .on_ended_ud = r};
    assert_int_equal(pseg_queue_open(&r->q, &o.queue, NULL), PSEG_OK);
    for (size_t i = 0; i < n; i++)
        submit(r, tenants[i], scene, scene_len, &phrases[i], 1);
    assert_int_equal(pseg_worker_start(&w, &o, NULL), PSEG_OK);
    atomic_store(&r->w, w);
    WAIT_UNTIL(atomic_load(&r->n_ended) == n);
    assert_int_equal(atomic_load(&r->n_ended), n);
    assert_true(atomic_load(&r->n_on[0]) > 0 && atomic_load(&r->n_on[1]) > 0);
    assert_int_equal(atomic_load(&r->n_on[0]) + atomic_load(&r->n_on[1]), n);
    pseg_worker_stop(w);
}

/* Until all jobs have ended. n_good: how many of them come as far as the device. */
static void run_jobs(run *r, size_t n_good)
{
    atomic_store(&r->n_awaited, n_good);
    WAIT_UNTIL(atomic_load(&r->n_ended) == r->n + 1);
    assert_int_equal(atomic_load(&r->n_ended), r->n + 1);
    pseg_worker_stop(atomic_load(&r->w));
}

/* Caller frees the reply: jobs[0] and its masks. */
static pseg_queue_reply *outcome(run *r, const char *tenant, size_t i, size_t n_masks)
{
    static const uint32_t indexes[MAX_JOBS] = {0, 1, 2, 3, 4, 5, 6, 7};
    pseg_queue_sync sync;

    pseg_queue_sync_init(&sync);
    pseg_queue_masks(r->q, tenant, r->ids[i], indexes, n_masks, pseg_queue_sync_done, &sync);
    pseg_queue_reply *reply = pseg_queue_sync_take(&sync);
    assert_int_equal(reply->err.code, PSEG_OK);
    assert_int_equal(reply->n_jobs, 1);
    return reply;
}

static void assert_state(run *r, const char *tenant, size_t i, pseg_job_state state)
{
    pseg_queue_reply *reply = outcome(r, tenant, i, 0);

    assert_int_equal(reply->jobs[0].state, state);
    assert_int_equal(reply->jobs[0].attempts, 1);
    pseg_queue_reply_free(reply);
}

static void run_end(run *r)
{
    pseg_queue_close(r->q);
}

#define NEEDS_DEVICE()   \
    do {                 \
        if (!engine)     \
            skip_here(); \
    } while (0)

static void jobs_on_one_image_share_its_encoding(void **state)
{
    run r;

    (void)state;
    NEEDS_DEVICE();
    run_begin(&r, 8);
    submit_one(&r, "t", "the small red circle");
    submit_one(&r, "t", "a star");
    submit_one(&r, "t", "a ring");
    submit_one(&r, "t", "a star"); /* the same again: it runs once */
    run_jobs(&r, 4);
    for (size_t i = 0; i < 4; i++)
        assert_state(&r, "t", i, PSEG_JOB_SUCCEEDED);
    assert_int_equal(atomic_load(&r.n_encodes), 1);
    assert_int_equal(atomic_load(&r.n_passes), 1);
    assert_int_equal(atomic_load(&r.n_jobs), 4);
    assert_int_equal(atomic_load(&r.n_pairs), 3);
    run_end(&r);
}

static void tenants_share_nothing(void **state)
{
    run r;

    (void)state;
    NEEDS_DEVICE();
    run_begin(&r, 8);
    submit_one(&r, "t", "a star");
    submit_one(&r, "u", "a star");
    run_jobs(&r, 2);
    assert_state(&r, "t", 0, PSEG_JOB_SUCCEEDED);
    assert_state(&r, "u", 1, PSEG_JOB_SUCCEEDED);
    assert_int_equal(atomic_load(&r.n_encodes), 2);
    run_end(&r);
}

/* One job each, in a run of its own: how many phrases had to be encoded. */
static size_t texts_of(const char *tenant, bool share, const char *const *phrases, size_t n)
{
    run r;

    run_begin_with(&r, NULL, 8, 0, share);
    submit(&r, tenant, scene, scene_len, phrases, n);
    run_jobs(&r, 1);
    assert_state(&r, tenant, 0, PSEG_JOB_SUCCEEDED);
    run_end(&r);
    return atomic_load(&r.n_texts);
}

/* The engine of these tests keeps KEPT_PHRASES of them. */
static void phrases_are_encoded_once_for_a_tenant(void **state)
{
    static const char *const two[] = {"a phrase of one", "a phrase of two"};
    static const char *const other[] = {"a phrase of three", "a phrase of one"};
    static const char *const many[KEPT_PHRASES] = {"1", "2", "3", "4", "5", "6"};

    (void)state;
    NEEDS_DEVICE();
    assert_int_equal(texts_of("phrases", false, two, 2), 2);
    assert_int_equal(texts_of("phrases", false, two, 2), 0);
    assert_int_equal(texts_of("phrases", false, other, 2), 1);
    assert_int_equal(texts_of("others", false, two, 2), 2);
    assert_int_equal(texts_of("others", true, two, 2), 2); /* shared: what was kept so */
    assert_int_equal(texts_of("phrases", true, two, 2), 0);
    assert_int_equal(texts_of("phrases", false, many, KEPT_PHRASES), KEPT_PHRASES);
    assert_int_equal(texts_of("phrases", false, two, 2), 2); /* used longest ago: gone */
    assert_int_equal(texts_of("phrases", false, many + 3, KEPT_PHRASES - 3), 0);
}

/* With batches of one, each job is alone; what it gets is what all must get. 15 phrases: one pass.
 */
static void masks_are_those_of_a_job_alone(void **state)
{
    static const char *const phrases[] = {"the small red circle", "a star",
                                          "the striped yellow circle", "a ring", "a star"};
    enum { N = 5 };
    run alone, together;

    (void)state;
    NEEDS_DEVICE();
    for (int k = 0; k < 2; k++) {
        run *r = k ? &together : &alone;
        run_begin(r, k ? 8 : 1);
        for (size_t i = 0; i < N; i++)
            submit(r, "t", scene, scene_len, phrases, i + 1);
        run_jobs(r, N);
        assert_int_equal(atomic_load(&r->n_passes), k ? 1 : N);
    }
    for (size_t i = 0; i < N; i++) {
        pseg_queue_reply *a = outcome(&alone, "t", i, i + 1),
                         *b = outcome(&together, "t", i, i + 1);
        assert_int_equal(a->n_blobs, i + 1);
        assert_int_equal(b->n_blobs, i + 1);
        for (size_t k = 0; k <= i; k++) {
            assert_true(a->blobs[k].len > 1000);
            assert_int_equal(a->blobs[k].len, b->blobs[k].len);
            assert_memory_equal(a->blobs[k].data, b->blobs[k].data, a->blobs[k].len);
        }
        pseg_queue_reply_free(a);
        pseg_queue_reply_free(b);
    }
    run_end(&alone);
    run_end(&together);
}

static void assert_same_masks(run *a, run *b, const char *const *tenants, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        pseg_queue_reply *x = outcome(a, tenants[i], i, 1), *y = outcome(b, tenants[i], i, 1);
        assert_int_equal(x->jobs[0].state, PSEG_JOB_SUCCEEDED);
        assert_int_equal(y->jobs[0].state, PSEG_JOB_SUCCEEDED);
        assert_true(x->blobs[0].len > 1000);
        assert_int_equal(x->blobs[0].len, y->blobs[0].len);
        assert_memory_equal(x->blobs[0].data, y->blobs[0].data, x->blobs[0].len);
        pseg_queue_reply_free(x);
        pseg_queue_reply_free(y);
    }
}

static void two_devices(const char *const *tenants, size_t n_encodes)
{
    static const char *const phrases[] = {"a star", "a ring", "the small red circle",
                                          "the striped yellow circle"};
    enum { N = 4 };
    run one, two;

    NEEDS_DEVICE();
    if (!pair)
        skip_here();
    run_begin(&one, 1);
    for (size_t i = 0; i < N; i++)
        submit(&one, tenants[i], scene, scene_len, &phrases[i], 1);
    run_jobs(&one, N);
    run_on_pair(&two, tenants, phrases, N);
    assert_int_equal(atomic_load(&two.n_encodes), n_encodes);
    assert_same_masks(&one, &two, tenants, N);
    run_end(&one);
    run_end(&two);
}

static void two_devices_share_the_work(void **state)
{
    static const char *const tenants[] = {"t", "u", "v", "w"};

    (void)state;
    two_devices(tenants, 4);
}

/* What one device has encoded serves the other. */
static void two_devices_encode_an_image_once(void **state)
{
    static const char *const tenants[] = {"t", "t", "t", "t"};

    (void)state;
    two_devices(tenants, 1);
}

/* Its phrase is not text, which the scheduler would have refused: it fails in company, and then by
 * itself; the others lose no attempt. */
static void one_that_fails_takes_nobody_with_it(void **state)
{
    run r;

    (void)state;
    NEEDS_DEVICE();
    run_begin(&r, 8);
    submit_one(&r, "t", "a star");
    submit_one(&r, "t", "\xff\xfe");
    submit_one(&r, "t", "a ring");
    run_jobs(&r, 3);
    assert_state(&r, "t", 0, PSEG_JOB_SUCCEEDED);
    assert_state(&r, "t", 1, PSEG_JOB_FAILED);
    assert_state(&r, "t", 2, PSEG_JOB_SUCCEEDED);
    assert_int_equal(atomic_load(&r.n_encodes), 1); /* what had been made is not made again */
    assert_int_equal(atomic_load(&r.n_passes), 4);
    run_end(&r);
}

/* One image cannot be decoded: each of its jobs says so itself, and those of the other go on. */
static void an_image_that_is_none_fails_its_own_jobs(void **state)
{
    const char *phrase = "a star";
    run r;

    (void)state;
    NEEDS_DEVICE();
    run_begin(&r, 8);
    for (int i = 0; i < 3; i++) {
        submit(&r, "t", scene, scene_len / 2, &phrase, 1);
        submit_one(&r, "t", phrase);
    }
    run_jobs(&r, 3);
    for (size_t i = 0; i < 6; i++)
        assert_state(&r, "t", i, i % 2 ? PSEG_JOB_SUCCEEDED : PSEG_JOB_FAILED);
    assert_int_equal(atomic_load(&r.n_encodes), 1);
    run_end(&r);
}

/* Images that a new worker on the queue encodes for one job of the tenant; its mask. */
static size_t encodes_of(const char *queue, const char *tenant, const char *phrase, bool share,
                         uint8_t *mask, size_t *len)
{
    run r;

    run_begin_with(&r, queue, 1, 1 << 26, share);
    submit_one(&r, tenant, phrase);
    run_jobs(&r, 1);
    pseg_queue_reply *reply = outcome(&r, tenant, 0, 1);
    assert_int_equal(reply->jobs[0].state, PSEG_JOB_SUCCEEDED);
    assert_true(reply->blobs[0].len <= *len);
    *len = reply->blobs[0].len;
    memcpy(mask, reply->blobs[0].data, *len);
    pseg_queue_reply_free(reply);
    run_end(&r);
    return atomic_load(&r.n_encodes);
}

static void features_serve_other_workers_of_the_tenant(void **state)
{
    static uint8_t fresh[1 << 20], found[1 << 20];
    static float a[1 << 19], b[1 << 19];
    size_t n_fresh = sizeof fresh, n_found = sizeof found, n = sizeof found;
    pseg_queue_options o = PSEG_QUEUE_OPTIONS_DEFAULT;
    pseg_queue *keeper;
    double worst = 0, largest = 0;

    (void)state;
    NEEDS_DEVICE();
    o.url = "mem:";
    o.name = "features";
    assert_int_equal(pseg_queue_open(&keeper, &o, NULL), PSEG_OK);
    assert_int_equal(encodes_of("features", "t", "a star", false, fresh, &n_fresh), 1);
    assert_int_equal(encodes_of("features", "t", "a star", false, found, &n_found), 0);
    assert_int_equal(encodes_of("features", "u", "a star", false, found, &n), 1);
    n = sizeof found;
    assert_int_equal(encodes_of("features", "v", "a star", true, found, &n), 1);
    n_found = sizeof found;
    assert_int_equal(encodes_of("features", "u", "a star", true, found, &n_found), 0);

    /* Through float16: logits within a hundredth of the largest. */
    assert_int_equal(n_fresh, n_found);
    pseg_half_to_floats(a, (const uint16_t *)(const void *)fresh, n_fresh / 2);
    pseg_half_to_floats(b, (const uint16_t *)(const void *)found, n_fresh / 2);
    for (size_t i = 0; i < n_fresh / 2; i++) {
        worst = fmax(worst, fabs((double)a[i] - (double)b[i]));
        largest = fmax(largest, fabs((double)a[i]));
        assert_true(fabsf(a[i]) < 1e4f && fabsf(b[i]) < 1e4f); /* numbers, too */
    }
    printf("largest logit %.3g, largest difference %.3g\n", largest, worst);
    assert_true(worst <= largest / 100);
    pseg_queue_close(keeper);
}

/* Whatever lies in the cache, a job gets its mask. */
static void features_of_no_use_are_not_used(void **state)
{
    pseg_work w = {.arena = pseg_arena_new(1 << 26)};
    uint8_t junk[64] = "PSF1 and what else was found";
    pseg_err e = PSEG_ERR_INIT;
    char key[PSEG_ENGINE_MAX_KEY + 1];

    (void)state;
    NEEDS_DEVICE();
    assert_non_null(w.arena);
    assert_int_equal(pseg_engine_share(engine, &w, "t:none", NULL), PSEG_PICTURE_MINE);
    assert_int_equal(pseg_engine_restore(engine, &w, (pseg_bytes){junk, sizeof junk}, &e),
                     PSEG_EINVAL);
    assert_int_equal(pseg_engine_restore(engine, &w, (pseg_bytes){NULL, 0}, &e), PSEG_EINVAL);
    assert_null(pseg_engine_shared(engine, &w, false));
    pseg_work_free(engine, &w);
    pseg_arena_free(w.arena);
    pseg_engine_features_key(engine, key, "t:none");
    assert_non_null(strstr(key, pseg_engine_digest(engine)));
    assert_string_equal(key + strlen(key) - 7, ":t:none");
}

/* Packed features as another worker would have left them, of a picture of this size. */
static pseg_status restore_picture(const char *key, uint32_t width, uint32_t height)
{
    const float rect[4] = {0, 0, 1, 1};
    pseg_work w = {.arena = pseg_arena_new(1 << 26)};
    pseg_err e = PSEG_ERR_INIT;
    size_t bytes = 0;

    assert_non_null(w.arena);
    assert_int_equal(pseg_engine_share(engine, &w, key, NULL), PSEG_PICTURE_MINE);
    assert_int_equal(pseg_engine_restore(engine, &w, (pseg_bytes){NULL, 0}, &e), PSEG_EINVAL);
    assert_int_equal(sscanf(e.msg, "features of 0 bytes: %zu were", &bytes), 1);
    uint8_t *packed = pseg_calloc(1, bytes);
    assert_non_null(packed);
    const uint32_t head[4] = {0x31465350, width, height, (uint32_t)(bytes - 32) / 2};
    memcpy(packed, head, sizeof head);
    memcpy(packed + sizeof head, rect, sizeof rect);
    pseg_status rc = pseg_engine_restore(engine, &w, (pseg_bytes){packed, bytes}, &e);
    assert_true(rc != PSEG_OK || (w.width == width && w.height == height));
    pseg_free(packed);
    pseg_work_free(engine, &w);
    pseg_arena_free(w.arena);
    return rc;
}

/* Masks are made at the size that the features name. */
static void features_of_no_picture_are_not_used(void **state)
{
    (void)state;
    NEEDS_DEVICE();
    assert_int_equal(restore_picture("t:fits", 100, 80), PSEG_OK);
    assert_int_equal(restore_picture("t:none", 0, 80), PSEG_EINVAL);
    assert_int_equal(restore_picture("t:side", 32769, 1), PSEG_EINVAL);
    assert_int_equal(restore_picture("t:huge", UINT32_MAX, UINT32_MAX), PSEG_EINVAL);
    assert_int_equal(restore_picture("t:area", 32768, 32768), PSEG_EINVAL);
}

/* A batch of works of which one is cancelled between the steps. */
typedef struct canceller {
    int asked, at; /* cancelled from the question number `at` on; 0: never */
} canceller;

static bool is_cancelled(void *ud)
{
    canceller *c = ud;

    return ++c->asked >= c->at && c->at > 0;
}

static void a_cancelled_one_leaves_the_batch(void **state)
{
    static const char *const phrase[] = {"a star", "a ring"};

    (void)state;
    NEEDS_DEVICE();
    for (int at = 1; at <= 3; at++) {
        pseg_work works[2] = {0};
        canceller c[2] = {{0, at}, {0, 0}};
        pseg_engine_job jobs[2];
        pseg_engine_batch done;

        for (int i = 0; i < 2; i++) {
            works[i] = (pseg_work){.arena = pseg_arena_new(1 << 26),
                                   .prompts = &phrase[i],
                                   .n_prompts = 1,
                                   .threshold = 0.5f};
            assert_non_null(works[i].arena);
            assert_int_equal(pseg_engine_prepare(engine, &works[i], NULL,
                                                 (pseg_bytes){scene, scene_len}, NULL, NULL),
                             PSEG_OK);
            jobs[i] = (pseg_engine_job){.work = &works[i], .ud = &c[i]};
        }
        pseg_engine_run_batch(engine, 0, jobs, 2, is_cancelled, &done);
        assert_int_equal(jobs[0].rc, PSEG_ECANCELLED);
        assert_int_equal(jobs[0].err.reason, PSEG_R_CANCELLED);
        assert_int_equal(jobs[1].rc, PSEG_OK);
        assert_int_equal(done.n_pairs, 1);
        assert_null(works[0].logits);
        assert_non_null(works[1].logits);
        for (int i = 0; i < 2; i++) {
            pseg_work_free(engine, &works[i]);
            pseg_arena_free(works[i].arena);
        }
    }
}

static int set_up(void **state)
{
    pseg_engine_options o = {.source = {.folder = MODEL},
                             .name = "scenes",
                             .cl = PSEG_CL_OPTIONS_DEFAULT,
                             .model = PSEG_MODEL_OPTIONS_DEFAULT,
                             .limits = PSEG_IMAGE_LIMITS_DEFAULT,
                             .kept_phrases = KEPT_PHRASES,
                             .reads_features = true};
    pseg_err e = PSEG_ERR_INIT;

    (void)state;
    if (pseg_image_init(&e) != PSEG_OK ||
        pseg_file_read(&scene, &scene_len, SCENE, 1 << 24, &e) != PSEG_OK)
        return -1;
    static const char *const halves = "cpu/2";
    assert_int_equal(pseg_device_set_threads(2, &e), PSEG_OK); /* also where there is one CPU */
    if (pseg_engine_open(&engine, &o, &e) != PSEG_OK && e.reason != PSEG_R_DEVICE_NOT_FOUND) {
        printf("%s\n", e.msg);
        return -1;
    }
    o.devices = &halves;
    o.n_devices = 1;
    pseg_err_clear(&e);
    if (pseg_engine_open(&pair, &o, &e) != PSEG_OK)
        printf("not two devices: %s\n", e.msg);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    pseg_engine_close(pair);
    pseg_engine_close(engine);
    pseg_free(scene);
    pseg_image_shutdown();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_picture_is_filled_once_and_shared),
        cmocka_unit_test(a_picture_that_fails_is_forgotten),
        cmocka_unit_test(a_picture_is_encoded_by_one_device_at_a_time),
        cmocka_unit_test(jobs_on_one_image_share_its_encoding),
        cmocka_unit_test(tenants_share_nothing),
        cmocka_unit_test(phrases_are_encoded_once_for_a_tenant),
        cmocka_unit_test(masks_are_those_of_a_job_alone),
        cmocka_unit_test(two_devices_share_the_work),
        cmocka_unit_test(two_devices_encode_an_image_once),
        cmocka_unit_test(one_that_fails_takes_nobody_with_it),
        cmocka_unit_test(an_image_that_is_none_fails_its_own_jobs),
        cmocka_unit_test(a_cancelled_one_leaves_the_batch),
        cmocka_unit_test(features_serve_other_workers_of_the_tenant),
        cmocka_unit_test(features_of_no_use_are_not_used),
        cmocka_unit_test(features_of_no_picture_are_not_used),
    };

    return with_skips(cmocka_run_group_tests(tests, set_up, tear_down));
}
