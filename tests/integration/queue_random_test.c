/* Random requests, the same ones to Redis and to the in-memory queue: their answers must agree. */
#include "tests/support/queue_cases_impl.h"
#include "tests/support/redis.h"
#include "common/base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_JOBS = 600, STEPS = 4000, N_WORKERS = 3, N_TENANTS = 2, N_MODELS = 2 };

static const char *const tenants[N_TENANTS] = {"default", "other"};
static const char *const workers[N_WORKERS] = {"w0", "w1", "w2"};
static const char *const models[N_MODELS] = {"m", "n"};
static const char *const shas[3] = {"sha-a", "sha-b", "sha-c"};
static const pseg_reason reasons[4] = {PSEG_R_DEVICE_FAILED, PSEG_R_IMAGE_UNDECODABLE,
                                       PSEG_R_CANCELLED, PSEG_R_OUT_OF_MEMORY};

typedef struct model_job {
    id_text id;
    int64_t fence;
    const char *worker; /* that claimed it last */
} model_job;

static uint64_t random_state;
static model_job jobs[MAX_JOBS];
static int n_jobs, n_batches, n_packed, n_ends;
static int n_said[64];

static unsigned rnd(unsigned n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)(random_state >> 33) % n;
}

static void same_text(const char *a, const char *b)
{
    assert_true(!a == !b);
    if (a)
        assert_string_equal(a, b);
}

static void same_bytes(pseg_bytes a, pseg_bytes b)
{
    assert_true(!a.data == !b.data);
    assert_int_equal(a.len, b.len);
    if (a.data)
        assert_memory_equal(a.data, b.data, a.len);
}

/* Times apart, which are the clocks' own. */
static void same_job(const pseg_job *a, const pseg_job *b)
{
    same_text(a->id, b->id);
    if (!a->id)
        return;
    same_text(a->tenant, b->tenant);
    same_text(a->request_id, b->request_id);
    same_text(a->model, b->model);
    same_text(a->worker, b->worker);
    same_text(a->message, b->message);
    same_bytes(a->spec, b->spec);
    same_bytes(a->result, b->result);
    assert_int_equal(a->state, b->state);
    assert_int_equal(a->reason, b->reason);
    assert_int_equal(a->attempts, b->attempts);
    assert_int_equal(a->cancel_requested, b->cancel_requested);
    assert_int_equal(a->started_unix_us != 0, b->started_unix_us != 0);
    assert_int_equal(a->finished_unix_us != 0, b->finished_unix_us != 0);
    assert_int_equal(a->expire_unix_us != 0, b->expire_unix_us != 0);
}

static void same_reply(const pseg_queue_reply *a, const pseg_queue_reply *b)
{
    assert_string_equal(pseg_reason_name(a->err.reason), pseg_reason_name(b->err.reason));
    n_said[a->err.reason]++;
    assert_int_equal(a->created, b->created);
    assert_int_equal(a->state, b->state);
    assert_int_equal(a->n_jobs, b->n_jobs);
    for (size_t i = 0; i < a->n_jobs; i++)
        same_job(&a->jobs[i], &b->jobs[i]);
    same_text(a->next_id, b->next_id);
    if (a->err.code == PSEG_OK)
        assert_int_equal(a->n_images, b->n_images);
    for (size_t i = 0; i < a->n_images && i < b->n_images; i++) {
        assert_int_equal(a->images[i].size_bytes, b->images[i].size_bytes);
        assert_int_equal(a->images[i].existed, b->images[i].existed);
    }
    assert_int_equal(a->n_blobs, b->n_blobs);
    for (size_t i = 0; i < a->n_blobs; i++)
        same_bytes(a->blobs[i], b->blobs[i]);
    assert_int_equal(a->n_claims, b->n_claims);
    for (size_t i = 0; i < a->n_claims; i++) {
        same_text(a->claims[i].id, b->claims[i].id);
        same_text(a->claims[i].tenant, b->claims[i].tenant);
        same_text(a->claims[i].image, b->claims[i].image);
        same_bytes(a->claims[i].spec, b->claims[i].spec);
        assert_int_equal(a->claims[i].fence, b->claims[i].fence);
        assert_int_equal(a->claims[i].attempt, b->claims[i].attempt);
    }
    assert_int_equal(a->again_ms > 0, b->again_ms > 0);
    assert_int_equal(a->n_leases, b->n_leases);
    for (size_t i = 0; i < a->n_leases; i++)
        assert_int_equal(a->leases[i], b->leases[i]);
    assert_memory_equal(&a->stats, &b->stats, sizeof a->stats);
    assert_int_equal(a->n_workers, b->n_workers);
    assert_int_equal(a->n_batches, b->n_batches);
    for (size_t i = 0; i < a->n_batches; i++) {
        assert_int_equal(a->batches[i].next_seq, b->batches[i].next_seq);
        assert_int_equal(a->batches[i].n_ended, b->batches[i].n_ended);
        assert_int_equal(a->batches[i].refused, b->batches[i].refused);
        assert_memory_equal(a->batches[i].ended, b->batches[i].ended, sizeof a->batches[i].ended);
    }
}

/* BOTH(fn, q, arguments...): both answers to one request, compared; the first is kept until the
 * next. The arguments are evaluated twice. */
#define BOTH(fn, ...)                  \
    do {                               \
        pseg_queue_reply *second;      \
        pseg_queue *q = redis;         \
        pseg_queue_reply_free(said);   \
        CALL(said, fn, __VA_ARGS__);   \
        q = mem;                       \
        CALL(second, fn, __VA_ARGS__); \
        same_reply(said, second);      \
        pseg_queue_reply_free(second); \
    } while (0)

static pseg_queue *redis, *mem;
static pseg_queue_reply *said;

static void submit_one(void)
{
    model_job *job = &jobs[n_jobs];
    pseg_queue_submit_args a = case_args(&job->id);
    char request_id[16], text[32];

    /* Ids of one millisecond have no order; here they count. */
    snprintf(job->id.s, sizeof job->id.s, "%028x0000", n_jobs + 1);
    a.id = job->id.s;
    a.tenant = tenants[rnd(N_TENANTS)];
    a.model = models[rnd(N_MODELS)];
    a.model_is_default = rnd(2);
    a.image_sha256 = shas[rnd(3)];
    if (rnd(3) == 0)
        a.content = (pseg_bytes){NULL, 0};
    else
        a.content = case_bytes(a.image_sha256);
    snprintf(request_id, sizeof request_id, "r%u", rnd(60));
    if (rnd(2))
        a.request_id = request_id;
    a.fingerprint = rnd(4) ? "f" : "g";
    snprintf(text, sizeof text, "spec %u", rnd(1000));
    a.spec = case_bytes(text);
    a.ttl_ms = 3600000;
    BOTH(pseg_queue_submit, q, &a);
    if (said->created)
        n_jobs++;
}

/* The ids of a tenant's newest jobs, newest first. */
static size_t newest(const char *tenant, id_text *out, size_t most)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_list, redis, tenant, "", most);
    size_t n = r->n_jobs;
    for (size_t i = 0; i < n; i++)
        snprintf(out[i].s, sizeof out[i].s, "%s", r->jobs[i].id);
    pseg_queue_reply_free(r);
    return n;
}

static bool is_known(const char *id)
{
    for (int i = 0; i < n_jobs; i++)
        if (strcmp(jobs[i].id.s, id) == 0)
            return true;
    return false;
}

/* Items of a batch, sent at once: Redis packs them (lua/pack.lua), and gives those that follow one
 * another ids of its own; memory gets the same ones after it. */
static void submit_items(void)
{
    enum { MOST = 8 };
    static int64_t next_seq[N_TENANTS];
    pseg_queue_item_args items[MOST];
    pseg_queue_sync waits[MOST];
    pseg_queue_reply *theirs[MOST];
    id_text ids[MOST], found[MOST];
    char spec[MOST][24];
    unsigned t = rnd(N_TENANTS), n = 1 + rnd(MOST);
    const char *model = models[rnd(N_MODELS)], *sha = shas[rnd(3)];

    if (!n_batches++)
        memset(next_seq, 0, sizeof next_seq);
    if (!next_seq[t]) {
        BOTH(pseg_queue_create_batch, q, tenants[t], "b", 3600000, case_bytes(""));
        next_seq[t] = 1;
    }
    for (unsigned i = 0; i < n; i++) {
        items[i] = (pseg_queue_item_args){
            .job = case_args(&ids[i]), .batch = "b", .seq = next_seq[t] + i, .custom_id = "c"};
        /* In their order, as those of jobs. */
        snprintf(ids[i].s, sizeof ids[i].s, "%028x%02x00", n_jobs + 1, i);
        snprintf(spec[i], sizeof spec[i], "item %lld", (long long)items[i].seq);
        if (rnd(6) == 0)
            sha = shas[rnd(3)];
        items[i].job.tenant = tenants[t];
        items[i].job.model = model;
        items[i].job.image_sha256 = sha;
        items[i].job.content = rnd(5) ? case_bytes(sha) : (pseg_bytes){NULL, 0};
        items[i].job.spec = case_bytes(spec[i]);
        items[i].job.ttl_ms = 3600000;
        items[i].job.priority = rnd(10) == 0;
        pseg_queue_sync_init(&waits[i]);
        pseg_queue_submit_item(redis, &items[i], pseg_queue_sync_done, &waits[i]);
    }
    for (unsigned i = 0; i < n; i++)
        theirs[i] = pseg_queue_sync_take(&waits[i]);
    size_t n_found = newest(tenants[t], found, n);
    for (unsigned i = 0; i < n; i++) {
        pseg_queue_reply *r, *job;
        for (size_t k = n_found; k-- > 0;) {
            const char *one = found[k].s;
            if (is_known(one))
                continue;
            CALL(job, pseg_queue_get, redis, tenants[t], &one, 1);
            bool is_this = job->n_jobs == 1 && job->jobs[0].id &&
                           job->jobs[0].spec.len == strlen(spec[i]) &&
                           memcmp(job->jobs[0].spec.data, spec[i], strlen(spec[i])) == 0;
            pseg_queue_reply_free(job);
            if (is_this) {
                jobs[n_jobs] = (model_job){.id = found[k]};
                items[i].job.id = jobs[n_jobs++].id.s;
                n_packed++;
            }
        }
        CALL(r, pseg_queue_submit_item, mem, &items[i]);
        assert_string_equal(pseg_reason_name(theirs[i]->err.reason),
                            pseg_reason_name(r->err.reason));
        if (r->err.code == PSEG_OK)
            assert_int_equal(theirs[i]->next_seq, r->next_seq);
        next_seq[t] = r->next_seq;
        pseg_queue_reply_free(r);
        pseg_queue_reply_free(theirs[i]);
    }
    BOTH(pseg_queue_get_batch, q, tenants[t], "b");
}

/* All ends of all batches. */
static void same_ends(void)
{
    for (int t = 0; t < N_TENANTS; t++) {
        pseg_queue_reply *a, *b;
        CALL(a, pseg_queue_batch_ends, redis, tenants[t], "b", 0, 1000, true, PSEG_NO_MASKS);
        CALL(b, pseg_queue_batch_ends, mem, tenants[t], "b", 0, 1000, true, PSEG_NO_MASKS);
        same_reply(a, b);
        assert_int_equal(a->n_items, b->n_items);
        for (size_t i = 0; i < a->n_items; i++) {
            assert_int_equal(a->items[i].seq, b->items[i].seq);
            assert_int_equal(a->items[i].state, b->items[i].state);
            assert_int_equal(a->items[i].refusal, b->items[i].refusal);
            assert_string_equal(a->items[i].job_id, b->items[i].job_id);
            assert_string_equal(a->items[i].custom_id, b->items[i].custom_id);
            n_ends++;
        }
        pseg_queue_reply_free(a);
        pseg_queue_reply_free(b);
    }
}

static const char *some_id(void)
{
    return n_jobs && rnd(50) ? jobs[rnd((unsigned)n_jobs)].id.s
                             : "ffffffffffffffffffffffffffffffff";
}

static pseg_queue_lease some_lease(const char *id)
{
    pseg_queue_lease l = {id, 1};

    for (int i = 0; i < n_jobs; i++)
        if (strcmp(jobs[i].id.s, id) == 0)
            l.fence = jobs[i].fence - (rnd(8) == 0);
    return l;
}

static void claim_some(void)
{
    const char *worker = workers[rnd(N_WORKERS)], *model = models[rnd(N_MODELS)];
    size_t max = 1 + rnd(3);
    /* What time decides is for the cases. */
    int64_t near_ms = rnd(2) ? 0 : 1000000000;

    BOTH(pseg_queue_claim_jobs, q, worker, model, max, 0, near_ms);
    for (size_t i = 0; i < said->n_claims; i++)
        for (int k = 0; k < n_jobs; k++)
            if (strcmp(jobs[k].id.s, said->claims[i].id) == 0) {
                jobs[k].fence = said->claims[i].fence;
                jobs[k].worker = worker;
            }
}

static void end_one(void)
{
    unsigned k = rnd(n_jobs ? (unsigned)n_jobs : 1);
    const char *id = rnd(8) && n_jobs ? jobs[k].id.s : some_id();
    const char *worker = rnd(8) && jobs[k].worker ? jobs[k].worker : workers[rnd(N_WORKERS)];
    pseg_queue_lease l = some_lease(id);
    pseg_bytes masks[2] = {case_bytes("one"), case_bytes("two")};
    pseg_err e = PSEG_ERR_INIT;
    char message[200];
    size_t n = rnd(3);
    int64_t delay_ms = rnd(4) ? 0 : 1000000000;

    switch (rnd(3)) {
    case 0:
        BOTH(pseg_queue_publish, q, worker, l, case_bytes("result"), masks, n, 0);
        break;
    case 1:
        snprintf(message, sizeof message, "fault %0*u", (int)rnd(180) + 1, rnd(10));
        pseg_err_set(&e, reasons[rnd(4)], 0, PSEG_HERE, "%s", message);
        BOTH(pseg_queue_fail, q, worker, l, &e, delay_ms);
        break;
    default:
        BOTH(pseg_queue_release, q, worker, l);
    }
}

static void step(void)
{
    const char *tenant = tenants[rnd(N_TENANTS)], *ids[3] = {some_id(), some_id(), some_id()};
    const char *worker = workers[rnd(N_WORKERS)], *after = rnd(2) ? "" : ids[0],
               *sha = shas[rnd(3)];
    uint32_t indexes[2] = {rnd(3), rnd(3)};
    size_t n = rnd(3), limit = 1 + rnd(10);

    switch (rnd(16)) {
    case 0:
    case 1:
    case 2:
        if (n_jobs < MAX_JOBS - 8 && rnd(3) == 0)
            submit_items();
        else if (n_jobs < MAX_JOBS)
            submit_one();
        break;
    case 3:
    case 4:
        claim_some();
        break;
    case 5:
    case 6:
    case 7:
    case 8:
        end_one();
        break;
    case 9: {
        pseg_queue_lease l[2] = {some_lease(ids[0]), some_lease(ids[1])};
        BOTH(pseg_queue_renew, q, worker, l, n);
        break;
    }
    case 10:
        BOTH(pseg_queue_cancel, q, tenant, ids[0]);
        break;
    case 11:
        BOTH(pseg_queue_get, q, tenant, ids, n + 1);
        break;
    case 12:
        BOTH(pseg_queue_list, q, tenant, after, limit);
        break;
    case 13:
        BOTH(pseg_queue_masks, q, tenant, ids[0], indexes, n);
        break;
    case 14:
        BOTH(pseg_queue_put_image, q, tenant, sha, case_bytes("sha-a"), 0);
        BOTH(pseg_queue_has_images, q, tenant, shas, 3);
        break;
    default: {
        pseg_queue_worker w = {workers[rnd(N_WORKERS)], models[rnd(N_MODELS)], "", "", "", ""};
        if (rnd(3))
            BOTH(pseg_queue_register, q, &w);
        else
            BOTH(pseg_queue_unregister, q, w.id);
        pseg_queue_reply *r;
        CALL(r, pseg_queue_sweep, redis);
        assert_int_equal(r->err.code, PSEG_OK);
        pseg_queue_reply_free(r);
        CALL(r, pseg_queue_sweep, mem);
        pseg_queue_reply_free(r);
        BOTH(pseg_queue_workers, q);
        BOTH(pseg_queue_get_stats, q);
    }
    }
}

static test_redis server;

static void both_forms_agree(void **state)
{
    pseg_queue_options o = PSEG_QUEUE_OPTIONS_DEFAULT;

    (void)state;
    o.timeout_ms = 20000;
    o.lease_ms = 3600000;
    o.max_jobs = 60;
    o.max_bytes = 18;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        char name[16];
        snprintf(name, sizeof name, "seed-%d", (int)seed);
        o.name = name;
        o.url = server.socket_url;
        redis = case_open(&o);
        o.url = "mem:";
        mem = case_open(&o);
        random_state = seed * 0x9E3779B97F4A7C15u;
        n_jobs = n_batches = 0;
        memset(jobs, 0, sizeof jobs);
        for (int i = 0; i < STEPS; i++)
            step();
        same_ends();
        BOTH(pseg_queue_get_stats, q);
        pseg_queue_stats s = said->stats;
        print_message("seed %d: %lld submitted, %lld succeeded, %lld failed, %lld cancelled\n",
                      (int)seed, (long long)s.submitted, (long long)s.succeeded,
                      (long long)s.failed, (long long)s.cancelled);
        assert_true(s.succeeded > 10 && s.failed > 10 && s.cancelled > 10);
        pseg_queue_reply_free(said);
        said = NULL;
        case_teardown(NULL);
    }
    print_message("%d items, %d of their ends\n", n_packed, n_ends);
    assert_true(n_packed > 100 && n_ends > 100);
    /* The walk reached every refusal that it could. */
    const pseg_reason all[] = {PSEG_R_QUEUE_FULL, PSEG_R_LEASE_LOST, PSEG_R_REQUEST_ID_REUSED,
                               PSEG_R_MODEL_UNKNOWN, PSEG_R_IMAGE_NOT_HELD};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!n_said[all[i]])
            fail_msg("%s never came up", pseg_reason_name(all[i]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {CASE(both_forms_agree)};

    if (!test_redis_start(&server))
        return TEST_SKIPPED;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    test_redis_stop(&server);
    return failed;
}
