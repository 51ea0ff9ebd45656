/* Cases of what schedulers ask of a queue. */
#include "tests/support/queue_cases_impl.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <stdio.h>
#include <string.h>

static pseg_queue_reply *submit(pseg_queue *q, const pseg_queue_submit_args *a)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_submit, q, a);
    case_keep(r);
    return r;
}

static void a_job_is_stored_as_it_was_sent(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id;
    pseg_queue_submit_args a = case_args(&id);
    int64_t before = pseg_clock_unix_us();

    (void)state;
    a.request_id = "r-1";
    a.spec = (pseg_bytes){(const uint8_t *)"\0\1\xff spec", 8};
    a.deadline_unix_us = before + 3600 * (int64_t)1000000;
    pseg_queue_reply *r = submit(q, &a);
    assert_int_equal(r->err.code, PSEG_OK);
    assert_true(r->created);
    const pseg_job *seen[2] = {&r->jobs[0], case_job(q, id.s)};
    for (int i = 0; i < 2; i++) {
        const pseg_job *j = seen[i];
        assert_string_equal(j->id, id.s);
        assert_string_equal(j->tenant, T);
        assert_string_equal(j->request_id, "r-1");
        assert_string_equal(j->model, "m");
        assert_string_equal(j->worker, "");
        assert_string_equal(j->message, "");
        assert_int_equal(j->state, PSEG_JOB_QUEUED);
        assert_int_equal(j->reason, PSEG_R_NONE);
        assert_int_equal(j->spec.len, 8);
        assert_memory_equal(j->spec.data, a.spec.data, 8);
        assert_int_equal(j->result.len, 0);
        assert_int_equal(j->attempts, 0);
        assert_false(j->cancel_requested);
        /* The server's clock is this machine's. */
        assert_in_range(j->created_unix_us, before - 1000000, pseg_clock_unix_us() + 1000000);
        assert_true(j->deadline_unix_us == a.deadline_unix_us);
        assert_int_equal(j->started_unix_us, 0);
        assert_int_equal(j->finished_unix_us, 0);
        assert_int_equal(j->expire_unix_us, 0);
    }
}

static void no_deadline_is_the_longest_age(void **state)
{
    pseg_queue_options o = case_options();
    id_text id;

    (void)state;
    o.max_age_ms = 5000;
    pseg_queue *q = case_open(&o);
    id = case_submit(q);
    const pseg_job *j = case_job(q, id.s);
    assert_true(j->deadline_unix_us == j->created_unix_us + 5000000);
    pseg_queue_submit_args a = case_args(&id);
    a.deadline_unix_us = pseg_clock_unix_us() + 3600 * (int64_t)1000000;
    const pseg_queue_reply *r = submit(q, &a);
    assert_true(r->jobs[0].deadline_unix_us == r->jobs[0].created_unix_us + 5000000);
}

static void a_repeated_request_gives_the_same_job(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text first, second;
    pseg_queue_submit_args a = case_args(&first), b = case_args(&second);

    (void)state;
    a.request_id = b.request_id = "again";
    assert_true(submit(q, &a)->created);
    pseg_queue_reply *r = submit(q, &b);
    assert_int_equal(r->err.code, PSEG_OK);
    assert_false(r->created);
    assert_string_equal(r->jobs[0].id, first.s);
    assert_int_equal(queue_state_of(q, second.s), PSEG_JOB_UNKNOWN);
    /* Also by the id alone: the same call, made again by the queue's user. */
    a.request_id = "";
    r = submit(q, &a);
    assert_int_equal(r->err.code, PSEG_OK);
    assert_false(r->created);
    assert_int_equal(case_stats(q).submitted, 1);
    /* It holds beyond the job's end, and says how that was. */
    CALL(r, pseg_queue_cancel, q, T, first.s);
    case_keep(r);
    r = submit(q, &b);
    assert_false(r->created);
    assert_int_equal(r->jobs[0].state, PSEG_JOB_CANCELLED);
}

static void a_request_id_with_other_content_is_refused(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text first, second;
    pseg_queue_submit_args a = case_args(&first), b = case_args(&second);

    (void)state;
    a.request_id = b.request_id = "again";
    b.fingerprint = "other";
    assert_true(submit(q, &a)->created);
    assert_int_equal(submit(q, &b)->err.reason, PSEG_R_REQUEST_ID_REUSED);
    assert_int_equal(case_stats(q).live, 1);
    /* Another tenant's request ids are its own. */
    b.tenant = "other";
    assert_true(submit(q, &b)->created);
}

static void a_job_of_another_tenant_is_not_found(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id = case_submit(q);
    const char *ids[1] = {id.s};
    pseg_queue_reply *r;

    (void)state;
    CALL(r, pseg_queue_get, q, "other", ids, 1);
    assert_int_equal(r->n_jobs, 1);
    assert_null(r->jobs[0].id);
    case_keep(r);
    CALL(r, pseg_queue_cancel, q, "other", id.s);
    assert_int_equal(r->err.code, PSEG_OK);
    assert_int_equal(r->n_jobs, 0);
    case_keep(r);
    CALL(r, pseg_queue_masks, q, "other", id.s, (uint32_t[]){0}, 1);
    assert_int_equal(r->n_jobs, 0);
    case_keep(r);
    CALL(r, pseg_queue_list, q, "other", "", 10);
    assert_int_equal(r->n_jobs, 0);
    assert_string_equal(r->next_id, "");
    case_keep(r);
    assert_int_equal(queue_state_of(q, id.s), PSEG_JOB_QUEUED);
    /* Nor does its image help. */
    id_text mine;
    pseg_queue_submit_args a = case_args(&mine);
    a.tenant = "other";
    a.content = (pseg_bytes){NULL, 0};
    assert_int_equal(submit(q, &a)->err.reason, PSEG_R_IMAGE_NOT_HELD);
}

static void unknown_jobs_are_empty_places(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id = case_submit(q);
    const char *ids[3] = {"00000000000000000000000000000000", id.s, "x"};
    pseg_queue_reply *r;

    (void)state;
    CALL(r, pseg_queue_get, q, T, ids, 3);
    case_keep(r);
    assert_int_equal(r->n_jobs, 3);
    assert_null(r->jobs[0].id);
    assert_string_equal(r->jobs[1].id, id.s);
    assert_null(r->jobs[2].id);
}

/* ---- images ---- */

static void images_are_held_once(void **state)
{
    pseg_queue *q = case_open(NULL);
    const char *both[2] = {SHA, "unknown"};
    pseg_queue_reply *r;
    id_text id;

    (void)state;
    CALL(r, pseg_queue_put_image, q, T, SHA, case_bytes("a photo"), 0);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    assert_false(r->images[0].existed);
    assert_int_equal(r->images[0].size_bytes, 7);
    assert_true(r->images[0].expire_unix_us > pseg_clock_unix_us());
    CALL(r, pseg_queue_put_image, q, T, SHA, case_bytes("a photo"), 0);
    case_keep(r);
    assert_true(r->images[0].existed);
    CALL(r, pseg_queue_has_images, q, T, both, 2);
    case_keep(r);
    assert_int_equal(r->n_images, 2);
    assert_int_equal(r->images[0].size_bytes, 7);
    assert_int_equal(r->images[1].size_bytes, 0);
    pseg_queue_submit_args a = case_args(&id);
    a.content = (pseg_bytes){NULL, 0};
    assert_true(submit(q, &a)->created);
    case_submit(q); /* brings the same image along */
    assert_int_equal(case_stats(q).image_bytes, 7);
    case_register(q, "w");
    const pseg_queue_claim *c = case_claim(q, "w");
    CALL(r, pseg_queue_fetch_image, q, c->image);
    case_keep(r);
    assert_bytes(r->blobs[0], "a photo");
    CALL(r, pseg_queue_fetch_image, q, "default:nothing");
    case_keep(r);
    assert_int_equal(r->n_blobs, 1);
    assert_null(r->blobs[0].data);
}

static void large_binary_images_survive(void **state)
{
    enum { N = 5 << 20 };
    pseg_queue *q = case_open(NULL);
    uint8_t *data = pseg_malloc(N);
    pseg_queue_reply *r;

    (void)state;
    for (size_t i = 0; i < N; i++)
        data[i] = (uint8_t)(i * 2654435761u >> 24);
    CALL(r, pseg_queue_put_image, q, T, SHA, ((pseg_bytes){data, N}), 0);
    assert_int_equal(r->err.code, PSEG_OK);
    pseg_queue_reply_free(r);
    CALL(r, pseg_queue_fetch_image, q, T ":" SHA);
    assert_int_equal(r->blobs[0].len, N);
    assert_memory_equal(r->blobs[0].data, data, N);
    pseg_queue_reply_free(r);
    pseg_free(data);
}

static void held_bytes_are_bounded_and_counted_exactly(void **state)
{
    enum { TTL_MS = 600 }; /* longer than the first calls take, however busy the machine */
    pseg_queue_options o = case_options();
    pseg_queue_reply *r;
    id_text id;

    (void)state;
    o.max_bytes = 20;
    o.image_ttl_ms = TTL_MS;
    pseg_queue *q = case_open(&o);
    CALL(r, pseg_queue_put_image, q, T, "one", case_bytes("0123456789"), 0);
    case_keep(r);
    CALL(r, pseg_queue_put_image, q, T, "two", case_bytes("01234567890"), 0);
    case_keep(r);
    assert_int_equal(r->err.reason, PSEG_R_QUEUE_FULL);
    assert_non_null(strstr(r->err.msg, "10 of 20"));
    pseg_queue_submit_args a = case_args(&id);
    a.content = case_bytes("01234567890");
    assert_int_equal(submit(q, &a)->err.reason, PSEG_R_QUEUE_FULL);
    assert_int_equal(case_stats(q).live, 0);
    assert_int_equal(queue_state_of(q, id.s), PSEG_JOB_UNKNOWN);
    a.content = case_bytes("0123456789");
    assert_true(submit(q, &a)->created);
    assert_int_equal(case_stats(q).image_bytes, 20);
    /* The unused one leaves, the job's own stays for as long as the job lives. */
    SWEEP_UNTIL(q, case_stats(q).image_bytes == 10);
    queue_pause_ms(TTL_MS + 10);
    case_sweep(q);
    assert_int_equal(case_stats(q).image_bytes, 10);
    CALL(r, pseg_queue_has_images, q, T, (const char *const[]){SHA}, 1);
    case_keep(r);
    assert_int_equal(r->images[0].size_bytes, 10);
}

static void unused_images_leave_in_time(void **state)
{
    pseg_queue_options o = case_options();
    pseg_queue_reply *r;

    (void)state;
    o.image_ttl_ms = 50;
    o.max_bytes = 10;
    pseg_queue *q = case_open(&o);
    CALL(r, pseg_queue_put_image, q, T, SHA, case_bytes("0123456789"), 0);
    case_keep(r);
    SWEEP_UNTIL(q, case_stats(q).image_bytes == 0);
    CALL(r, pseg_queue_fetch_image, q, T ":" SHA);
    case_keep(r);
    assert_null(r->blobs[0].data);
    /* A full account makes room by itself, without a sweep. */
    CALL(r, pseg_queue_put_image, q, T, SHA, case_bytes("0123456789"), 0);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    queue_pause_ms(60);
    CALL(r, pseg_queue_put_image, q, T, "other", case_bytes("012345678"), 0);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    assert_int_equal(case_stats(q).image_bytes, 9);
}

/* ---- limits and models ---- */

static void live_jobs_are_bounded(void **state)
{
    pseg_queue_options o = case_options();
    id_text a, c;
    pseg_queue_reply *r;

    (void)state;
    o.max_jobs = 2;
    pseg_queue *q = case_open(&o);
    a = case_submit(q);
    case_submit(q);
    pseg_queue_submit_args args = case_args(&c);
    r = submit(q, &args);
    assert_int_equal(r->err.reason, PSEG_R_QUEUE_FULL);
    assert_non_null(strstr(r->err.msg, "the limit is 2"));
    assert_int_equal(queue_state_of(q, c.s), PSEG_JOB_UNKNOWN);
    CALL(r, pseg_queue_cancel, q, T, a.s);
    case_keep(r);
    assert_true(submit(q, &args)->created);
}

static void models_must_be_known_or_the_default(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id;
    pseg_queue_submit_args a = case_args(&id);
    pseg_queue_worker w = {"w", "n", "", "", "", ""};
    pseg_queue_reply *r;

    (void)state;
    case_submit(q); /* the default model, before any worker */
    a.model_is_default = false;
    assert_int_equal(submit(q, &a)->err.reason, PSEG_R_MODEL_UNKNOWN);
    a.model = "n";
    assert_int_equal(submit(q, &a)->err.reason, PSEG_R_MODEL_UNKNOWN);
    CALL(r, pseg_queue_register, q, &w);
    case_keep(r);
    assert_true(submit(q, &a)->created);
    /* A model whose worker is away for a while stays known. */
    CALL(r, pseg_queue_unregister, q, "w");
    case_keep(r);
    id_text later;
    pseg_queue_submit_args b = case_args(&later);
    b.model = "n";
    b.model_is_default = false;
    assert_true(submit(q, &b)->created);
}

/* ---- cancel, list, time ---- */

static void a_waiting_job_is_cancelled_at_once(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id = case_submit(q), next = case_submit(q);
    pseg_queue_reply *r;

    (void)state;
    CALL(r, pseg_queue_cancel, q, T, id.s);
    case_keep(r);
    assert_int_equal(r->n_jobs, 1);
    assert_int_equal(r->jobs[0].state, PSEG_JOB_CANCELLED);
    assert_true(r->jobs[0].finished_unix_us > 0);
    assert_true(r->jobs[0].expire_unix_us > r->jobs[0].finished_unix_us);
    /* Once more changes nothing. */
    int64_t finished = r->jobs[0].finished_unix_us;
    CALL(r, pseg_queue_cancel, q, T, id.s);
    case_keep(r);
    assert_true(r->jobs[0].finished_unix_us == finished);
    case_register(q, "w");
    assert_string_equal(case_claim(q, "w")->id, next.s);
    assert_int_equal(case_claim_count(q, "w"), 0);
    pseg_queue_stats s = case_stats(q);
    assert_int_equal(s.cancelled, 1);
    assert_int_equal(s.live, 1);
    CALL(r, pseg_queue_cancel, q, T, "00000000000000000000000000000000");
    case_keep(r);
    assert_int_equal(r->n_jobs, 0);
}

static void lists_go_by_pages_from_the_newest(void **state)
{
    enum { N = 7 };
    pseg_queue *q = case_open(NULL);
    id_text ids[N];
    char after[PSEG_JOB_ID_LEN + 1] = "";
    size_t seen = 0;
    pseg_queue_reply *r;

    (void)state;
    for (int i = 0; i < N; i++) {
        ids[i] = case_submit(q);
        queue_pause_ms(2); /* ids of one millisecond have no order */
    }
    do {
        CALL(r, pseg_queue_list, q, T, after, 3);
        case_keep(r);
        assert_int_equal(r->err.code, PSEG_OK);
        for (size_t i = 0; i < r->n_jobs; i++, seen++)
            assert_string_equal(r->jobs[i].id, ids[N - 1 - seen].s);
        snprintf(after, sizeof after, "%s", r->next_id);
    } while (*after);
    assert_int_equal(seen, N);
}

static void records_expire(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id, again;
    pseg_queue_submit_args a = case_args(&id), b = case_args(&again);
    pseg_queue_reply *r;

    (void)state;
    a.request_id = b.request_id = "r";
    b.fingerprint = "other";
    a.ttl_ms = 100;
    assert_true(submit(q, &a)->created);
    case_register(q, "w");
    assert_int_equal(case_publish(q, "w", case_claim(q, "w"), NULL), PSEG_JOB_SUCCEEDED);
    assert_int_equal(queue_state_of(q, id.s), PSEG_JOB_SUCCEEDED);
    SWEEP_UNTIL(q, queue_state_of(q, id.s) == PSEG_JOB_UNKNOWN);
    CALL(r, pseg_queue_masks, q, T, id.s, (uint32_t[]){0}, 1);
    case_keep(r);
    assert_int_equal(r->n_jobs, 0);
    CALL(r, pseg_queue_list, q, T, "", 10);
    case_keep(r);
    assert_int_equal(r->n_jobs, 0);
    /* Its request id is free again. */
    assert_true(submit(q, &b)->created);
}

static void a_waiting_job_expires_at_its_deadline(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id, other;
    pseg_queue_submit_args a = case_args(&id), b = case_args(&other);

    (void)state;
    a.deadline_unix_us = b.deadline_unix_us = pseg_clock_unix_us() + 50000;
    assert_true(submit(q, &a)->created);
    SWEEP_UNTIL(q, queue_state_of(q, id.s) == PSEG_JOB_EXPIRED);
    assert_true(case_job(q, id.s)->finished_unix_us >= a.deadline_unix_us);
    /* Nor does a worker get one, with no sweep between. */
    case_register(q, "w");
    assert_true(submit(q, &b)->created);
    while (pseg_clock_unix_us() <= b.deadline_unix_us)
        queue_pause_ms(5);
    assert_int_equal(case_claim_count(q, "w"), 0);
    assert_int_equal(queue_state_of(q, other.s), PSEG_JOB_EXPIRED);
    assert_int_equal(case_stats(q).expired, 2);
    assert_int_equal(case_stats(q).live, 0);
}

/* ---- events ---- */

typedef struct watcher {
    pthread_mutex_t mu;
    int n_missed, n_ready, n;
    struct {
        char id[PSEG_JOB_ID_LEN + 1];
        pseg_job_state state;
    } seen[64];
} watcher;

static void on_event(void *ud, const pseg_queue_event *e)
{
    watcher *w = ud;

    pthread_mutex_lock(&w->mu);
    if (!e) {
        w->n_missed++;
    } else if (w->n < 64) {
        snprintf(w->seen[w->n].id, sizeof w->seen[w->n].id, "%s", e->id);
        w->seen[w->n++].state = e->state;
    }
    pthread_mutex_unlock(&w->mu);
}

static void on_ready(void *ud)
{
    watcher *w = ud;

    pthread_mutex_lock(&w->mu);
    w->n_ready++;
    pthread_mutex_unlock(&w->mu);
}

static bool has_seen(watcher *w, const int *count, int n)
{
    for (int64_t until = pseg_clock_mono_ms() + 10000; pseg_clock_mono_ms() < until;) {
        pthread_mutex_lock(&w->mu);
        bool good = *count >= n;
        pthread_mutex_unlock(&w->mu);
        if (good)
            return true;
        queue_pause_ms(2);
    }
    return false;
}

static void changes_are_told_in_order(void **state)
{
    static watcher w, other;
    pseg_queue_options o = case_options();

    (void)state;
    memset(&w, 0, sizeof w);
    memset(&other, 0, sizeof other);
    pthread_mutex_init(&w.mu, NULL);
    pthread_mutex_init(&other.mu, NULL);
    o.on_event = on_event;
    o.on_ready = on_ready;
    o.watch_model = "m";
    o.ud = &w;
    pseg_queue *q = case_open(&o);
    o.on_event = NULL;
    o.watch_model = "other";
    o.ud = &other;
    case_open(&o);
    /* Whoever begins to watch is told to look once. */
    int parts = (int)pseg_queue_n_parts(q);
    assert_true(has_seen(&w, &w.n_missed, parts) && has_seen(&w, &w.n_ready, parts));
    assert_true(has_seen(&other, &other.n_ready, parts));
    int ready = w.n_ready;
    id_text a = case_submit(q);
    assert_true(has_seen(&w, &w.n_ready, ready + 1));
    id_text b = case_submit(q);
    case_register(q, "w");
    const pseg_queue_claim *ca = case_claim(q, "w"), *cb = case_claim(q, "w");
    case_fail(q, "w", cb, PSEG_R_DEVICE_FAILED, 0, NULL);
    case_publish(q, "w", ca, NULL);
    const struct {
        const id_text *id;
        pseg_job_state state;
    } expected[] = {{&a, PSEG_JOB_RUNNING},
                    {&b, PSEG_JOB_RUNNING},
                    {&b, PSEG_JOB_QUEUED},
                    {&a, PSEG_JOB_SUCCEEDED}};
    assert_true(has_seen(&w, &w.n, 4));
    for (int i = 0; i < 4; i++) {
        assert_string_equal(w.seen[i].id, expected[i].id->s);
        assert_int_equal(w.seen[i].state, expected[i].state);
    }
    assert_int_equal(w.n, 4);
    assert_int_equal(w.n_missed, parts);
    assert_int_equal(other.n_ready, parts);
}

static void options_are_checked(void **state)
{
    static const struct {
        const char *url, *name;
    } bad[] = {{"redis://", "Upper"},
               {"redis://", ""},
               {"redis://", "a:b"},
               {"redis://", "123456789012345678901234567890123"},
               {"http://x", "q"},
               {"redis://h:port", "q"},
               {"redis://h:0", "q"},
               {"redis://h:65536", "q"},
               {"redis://h:6379x", "q"},
               {"redis://h/db", "q"},
               {"redis://h/-1", "q"},
               {"redis://u:%@h", "q"},
               {"unix:", "q"}};
    pseg_queue_options o = case_options();
    pseg_queue *q;
    pseg_err e = PSEG_ERR_INIT;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        o.url = bad[i].url;
        o.name = bad[i].name;
        assert_int_not_equal(pseg_queue_open(&q, &o, &e), PSEG_OK);
        assert_int_equal(e.reason, PSEG_R_CONFIG_INVALID);
        assert_null(q);
    }
    o.url = "redis://user:secret@host:x";
    o.name = "q";
    assert_int_not_equal(pseg_queue_open(&q, &o, &e), PSEG_OK);
    assert_null(strstr(e.msg, "secret"));
    o = case_options();
    o.lease_ms = 0;
    assert_int_not_equal(pseg_queue_open(&q, &o, &e), PSEG_OK);
}

const struct CMUnitTest client_cases[] = {
    CASE(a_job_is_stored_as_it_was_sent),
    CASE(no_deadline_is_the_longest_age),
    CASE(a_repeated_request_gives_the_same_job),
    CASE(a_request_id_with_other_content_is_refused),
    CASE(a_job_of_another_tenant_is_not_found),
    CASE(unknown_jobs_are_empty_places),
    CASE(images_are_held_once),
    CASE(large_binary_images_survive),
    CASE(held_bytes_are_bounded_and_counted_exactly),
    CASE(unused_images_leave_in_time),
    CASE(live_jobs_are_bounded),
    CASE(models_must_be_known_or_the_default),
    CASE(a_waiting_job_is_cancelled_at_once),
    CASE(lists_go_by_pages_from_the_newest),
    CASE(records_expire),
    CASE(a_waiting_job_expires_at_its_deadline),
    CASE(changes_are_told_in_order),
    CASE(options_are_checked),
};
const size_t n_client_cases = sizeof client_cases / sizeof *client_cases;
