#include "tests/support/queue_cases_impl.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MAX_HANDLES = 8, MAX_KEPT = 1024, MAX_CASES = 120 };

static const char *case_url;
static int n_cases;
static pseg_queue *handles[MAX_HANDLES];
static int n_handles;
static pseg_queue_reply *kept[MAX_KEPT];
static int n_kept;
static char name[33];

int case_setup(void **state)
{
    (void)state;
    snprintf(name, sizeof name, "case-%d-%d", (int)getpid(), ++n_cases);
    return 0;
}

int case_teardown(void **state)
{
    (void)state;
    while (n_kept)
        pseg_queue_reply_free(kept[--n_kept]);
    while (n_handles)
        pseg_queue_close(handles[--n_handles]);
    return 0;
}

pseg_queue_options case_options(void)
{
    pseg_queue_options o = PSEG_QUEUE_OPTIONS_DEFAULT;

    o.url = case_url;
    o.name = name;
    o.lease_ms = 300;
    o.timeout_ms = 10000; /* of a machine that is busy with other tests */
    return o;
}

pseg_queue *case_open(const pseg_queue_options *o)
{
    pseg_queue_options standard = case_options();
    pseg_err e = PSEG_ERR_INIT;

    assert_true(n_handles < MAX_HANDLES);
    if (pseg_queue_open(&handles[n_handles], o ? o : &standard, &e) != PSEG_OK)
        fail_msg("%s", e.msg);
    return handles[n_handles++];
}

pseg_queue *case_open_again(void)
{
    return case_open(NULL);
}

void case_keep(pseg_queue_reply *r)
{
    assert_true(n_kept < MAX_KEPT);
    kept[n_kept++] = r;
}

void queue_pause_ms(int ms)
{
    poll(NULL, 0, ms);
}

pseg_bytes case_bytes(const char *s)
{
    return (pseg_bytes){(const uint8_t *)s, strlen(s)};
}

void assert_bytes(pseg_bytes b, const char *s)
{
    assert_int_equal(b.len, strlen(s));
    assert_memory_equal(b.data, s, b.len);
}

pseg_queue_submit_args case_args(id_text *id)
{
    assert_int_equal(pseg_job_new_id(id->s, NULL), PSEG_OK);
    return (pseg_queue_submit_args){.tenant = T,
                                    .id = id->s,
                                    .request_id = "",
                                    .fingerprint = "f",
                                    .model = "m",
                                    .model_is_default = true,
                                    .image_sha256 = SHA,
                                    .spec = case_bytes("spec"),
                                    .content = case_bytes("image"),
                                    .ttl_ms = 60000};
}

id_text case_submit(pseg_queue *q)
{
    id_text id;
    pseg_queue_submit_args a = case_args(&id);
    pseg_queue_reply *r;

    CALL(r, pseg_queue_submit, q, &a);
    case_keep(r);
    if (r->err.code != PSEG_OK)
        fail_msg("%s", r->err.msg);
    assert_true(r->created);
    return id;
}

void case_create_batch(pseg_queue *q, int64_t ttl_ms)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_create_batch, q, T, "b", ttl_ms, case_bytes(""));
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    assert_true(r->created);
}

void case_put_items(pseg_queue *q, int from, int n, const pseg_queue_submit_args *terms)
{
    enum { MOST = 200 };
    static pseg_queue_sync waits[MOST];
    static char text[MOST][16];
    id_text id;

    assert_true(n <= MOST);
    for (int i = 0; i < n; i++) {
        snprintf(text[i], sizeof text[i], "%d", from + i);
        pseg_queue_item_args a = {
            .job = case_args(&id), .batch = "b", .seq = from + i, .custom_id = text[i]};
        a.job.spec = case_bytes(text[i]);
        if (terms) {
            a.job.ttl_ms = terms->ttl_ms ? terms->ttl_ms : a.job.ttl_ms;
            a.job.deadline_unix_us = terms->deadline_unix_us;
            a.job.priority = terms->priority;
        }
        pseg_queue_sync_init(&waits[i]);
        pseg_queue_submit_item(q, &a, pseg_queue_sync_done, &waits[i]);
    }
    for (int i = 0; i < n; i++) {
        pseg_queue_reply *r = pseg_queue_sync_take(&waits[i]);
        if (r->err.code != PSEG_OK)
            fail_msg("%s", r->err.msg);
        assert_int_equal(r->next_seq, from + i + 1);
        pseg_queue_reply_free(r);
    }
}

pseg_reason queue_try_submit(pseg_queue *q, char id[PSEG_JOB_ID_LEN + 1])
{
    id_text text;
    pseg_queue_submit_args a = case_args(&text);
    pseg_queue_reply *r;

    CALL(r, pseg_queue_submit, q, &a);
    pseg_reason reason = r->err.reason;
    pseg_queue_reply_free(r);
    memcpy(id, text.s, sizeof text.s);
    return reason;
}

pseg_job_state queue_state_of(pseg_queue *q, const char *id)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_get, q, T, &id, 1);
    pseg_job_state state = r->n_jobs == 1 && r->jobs[0].id ? r->jobs[0].state : PSEG_JOB_UNKNOWN;
    pseg_queue_reply_free(r);
    return state;
}

void case_register(pseg_queue *q, const char *worker)
{
    pseg_queue_worker w = {worker, "m", "digest", "device", "1.0", "last words"};
    pseg_queue_reply *r;

    CALL(r, pseg_queue_register, q, &w);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
}

const pseg_queue_claim *case_claim(pseg_queue *q, const char *worker)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_claim_jobs, q, worker, "m", 1, 0, 0);
    case_keep(r);
    if (r->err.code != PSEG_OK)
        fail_msg("%s", r->err.msg);
    assert_int_equal(r->n_claims, 1);
    return &r->claims[0];
}

const pseg_queue_reply *case_claim_many(pseg_queue *q, const char *worker, size_t most)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_claim_jobs, q, worker, "m", most, 0, 0);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    return r;
}

size_t case_claim_count(pseg_queue *q, const char *worker)
{
    return case_claim_many(q, worker, 100)->n_claims;
}

void case_sweep(pseg_queue *q)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_sweep, q);
    if (r->err.code != PSEG_OK)
        fail_msg("%s", r->err.msg);
    pseg_queue_reply_free(r);
}

pseg_queue_lease case_lease(const pseg_queue_claim *c)
{
    return (pseg_queue_lease){c->id, c->fence};
}

pseg_lease_state case_renew(pseg_queue *q, const char *worker, const pseg_queue_claim *c)
{
    pseg_queue_lease l = case_lease(c);
    pseg_queue_reply *r;

    CALL(r, pseg_queue_renew, q, worker, &l, 1);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    assert_int_equal(r->n_leases, 1);
    return r->leases[0];
}

static pseg_job_state outcome(pseg_queue_reply *r, pseg_reason *reason)
{
    case_keep(r);
    if (reason)
        *reason = r->err.reason;
    else if (r->err.code != PSEG_OK)
        fail_msg("%s", r->err.msg);
    return r->state;
}

pseg_job_state case_publish(pseg_queue *q, const char *worker, const pseg_queue_claim *c,
                            pseg_reason *reason)
{
    pseg_bytes masks[2] = {case_bytes("mask 0"), case_bytes("mask 1")};
    pseg_queue_reply *r;

    CALL(r, pseg_queue_publish, q, worker, case_lease(c), case_bytes("result"), masks, 2, 0);
    return outcome(r, reason);
}

pseg_job_state case_fail(pseg_queue *q, const char *worker, const pseg_queue_claim *c,
                         pseg_reason why, int64_t delay_ms, pseg_reason *reason)
{
    pseg_err e = PSEG_ERR_INIT;
    pseg_queue_reply *r;

    pseg_err_set(&e, why, 0, PSEG_HERE, "it went wrong");
    CALL(r, pseg_queue_fail, q, worker, case_lease(c), &e, delay_ms);
    return outcome(r, reason);
}

pseg_job_state case_release(pseg_queue *q, const char *worker, const pseg_queue_claim *c,
                            pseg_reason *reason)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_release, q, worker, case_lease(c));
    return outcome(r, reason);
}

pseg_queue_stats case_stats(pseg_queue *q)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_get_stats, q);
    pseg_queue_stats s = r->stats;
    assert_int_equal(r->err.code, PSEG_OK);
    pseg_queue_reply_free(r);
    return s;
}

const pseg_job *case_job(pseg_queue *q, const char *id)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_get, q, T, &id, 1);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    assert_int_equal(r->n_jobs, 1);
    return &r->jobs[0];
}

/* What holds among all tenants of a part, and budgets, which each part has a share of. */
static bool is_of_one_part(const char *of)
{
    static const char *const names[] = {"tenants_take_turns",
                                        "a_weight_is_a_share",
                                        "shares_are_of_compute_time",
                                        "the_place_in_line_is_the_order_of_claims",
                                        "those_used_longest_ago_make_room",
                                        "features_end_by_themselves"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(of, names[i]) == 0)
            return true;
    return false;
}

int queue_cases_run(const char *group, const char *url)
{
    const struct {
        const struct CMUnitTest *cases;
        size_t n;
    } parts[] = {{client_cases, n_client_cases}, {worker_cases, n_worker_cases},
                 {order_cases, n_order_cases},   {backlog_cases, n_backlog_cases},
                 {event_cases, n_event_cases},   {estimate_cases, n_estimate_cases},

                 {batch_cases, n_batch_cases},   {feature_cases, n_feature_cases},
                 {near_cases, n_near_cases},     {pack_cases, n_pack_cases}};
    struct CMUnitTest all[MAX_CASES];
    size_t n = 0, n_left_out = 0;

    case_url = url;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        for (size_t k = 0; k < parts[i].n; k++) {
            if (is_of_one_part(parts[i].cases[k].name) && strpbrk(url, " +")) {
                n_left_out++;
                continue;
            }
            if (n == MAX_CASES)
                return 1;
            all[n++] = parts[i].cases[k];
        }
    if (n_left_out)
        print_message("%s: %zu cases left out, which hold in one part alone\n", group, n_left_out);
    return _cmocka_run_group_tests(group, all, n, NULL, NULL);
}
