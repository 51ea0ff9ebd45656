/* Cases of who comes next, who may have how much, and what becomes of jobs that kill. */
#include "tests/support/queue_cases_impl.h"
#include "common/base/clock.h"

#include <stdio.h>
#include <string.h>

/* A job of `tenant`; with priority, and limits if not NULL. */
static pseg_queue_reply *try_submit(pseg_queue *q, id_text *id, const char *tenant,
                                    int64_t priority, const pseg_queue_tenant *limits)
{
    pseg_queue_submit_args a = case_args(id);
    pseg_queue_reply *r;

    a.tenant = tenant;
    a.priority = priority;
    a.limits = limits;
    CALL(r, pseg_queue_submit, q, &a);
    case_keep(r);
    return r;
}

static id_text submit_for(pseg_queue *q, const char *tenant, int64_t priority,
                          const pseg_queue_tenant *limits)
{
    id_text id;
    pseg_queue_reply *r = try_submit(q, &id, tenant, priority, limits);

    if (r->err.code != PSEG_OK)
        fail_msg("%s", r->err.msg);
    return id;
}

static pseg_queue_reply *claim_near(pseg_queue *q, const char *worker, size_t max, size_t held,
                                    int64_t near_ms)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_claim_jobs, q, worker, "m", max, held, near_ms);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    return r;
}

static pseg_queue_reply *claim_n(pseg_queue *q, const char *worker, size_t max, size_t held)
{
    return claim_near(q, worker, max, held, 0);
}

/* ---- one tenant ---- */

static void a_retried_job_keeps_its_place(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text first = case_submit(q);

    (void)state;
    case_register(q, "w");
    const pseg_queue_claim *c = case_claim(q, "w");
    for (int i = 0; i < 3; i++)
        case_submit(q);
    assert_int_equal(case_release(q, "w", c, NULL), PSEG_JOB_QUEUED);
    c = case_claim(q, "w");
    assert_string_equal(c->id, first.s);
    /* After a fault, too, once its delay is over; others go on meanwhile. */
    assert_int_equal(case_fail(q, "w", c, PSEG_R_DEVICE_FAILED, 50, NULL), PSEG_JOB_QUEUED);
    const pseg_queue_claim *other = case_claim(q, "w");
    assert_string_not_equal(other->id, first.s);
    SWEEP_UNTIL(q, case_stats(q).delayed == 0);
    assert_string_equal(case_claim(q, "w")->id, first.s);
}

static void a_priority_is_a_head_start(void **state)
{
    pseg_queue *q = case_open(NULL);

    (void)state;
    case_register(q, "w");
    id_text low = submit_for(q, T, -1, NULL), plain = submit_for(q, T, 0, NULL),
            high = submit_for(q, T, 2, NULL), next = submit_for(q, T, 2, NULL);
    const pseg_queue_reply *r = claim_n(q, "w", 4, 0);
    assert_int_equal(r->n_claims, 4);
    assert_string_equal(r->claims[0].id, high.s);
    assert_string_equal(r->claims[1].id, next.s);
    assert_string_equal(r->claims[2].id, plain.s);
    assert_string_equal(r->claims[3].id, low.s);
}

/* ---- several ---- */

static void tenants_take_turns(void **state)
{
    enum { N = 12 };
    pseg_queue *q = case_open(NULL);
    int n_of_small = 0;

    (void)state;
    case_register(q, "w");
    for (int i = 0; i < 4 * N; i++)
        submit_for(q, "big", 0, NULL);
    for (int i = 0; i < N; i++)
        submit_for(q, "small", 0, NULL);
    for (int i = 0; i < 2 * N; i++)
        n_of_small += strcmp(case_claim(q, "w")->tenant, "small") == 0;
    assert_in_range(n_of_small, N - 1, N);
    /* Also within one claim. */
    for (int i = 0; i < N; i++)
        submit_for(q, "other", 0, NULL);
    const pseg_queue_reply *r = claim_n(q, "w", N, 0);
    int n_of_other = 0;
    for (size_t i = 0; i < r->n_claims; i++)
        n_of_other += strcmp(r->claims[i].tenant, "other") == 0;
    assert_in_range(n_of_other, N / 2 - 1, N / 2 + 1);
}

static void a_weight_is_a_share(void **state)
{
    const pseg_queue_tenant heavy = {.weight = 3};
    pseg_queue *q = case_open(NULL);
    int n = 0;

    (void)state;
    case_register(q, "w");
    for (int i = 0; i < 40; i++) {
        submit_for(q, "light", 0, NULL);
        submit_for(q, "heavy", 0, &heavy);
    }
    for (int i = 0; i < 40; i++)
        n += strcmp(case_claim(q, "w")->tenant, "heavy") == 0;
    assert_in_range(n, 29, 31);
}

/* Jobs of one take nine times as long: it gets as much time as the other, not as many jobs. */
static void shares_are_of_compute_time(void **state)
{
    pseg_queue *q = case_open(NULL);
    int64_t used[2] = {0, 0};

    (void)state;
    case_register(q, "w");
    for (int i = 0; i < 120; i++) {
        submit_for(q, "long", 0, NULL);
        submit_for(q, "short", 0, NULL);
    }
    for (int i = 0; i < 100; i++) {
        const pseg_queue_claim *c = case_claim(q, "w");
        bool is_long = strcmp(c->tenant, "long") == 0;
        pseg_queue_reply *r;
        CALL(r, pseg_queue_publish, q, "w", case_lease(c), case_bytes("r"), NULL, 0,
             is_long ? 90000 : 10000);
        case_keep(r);
        assert_int_equal(r->state, PSEG_JOB_SUCCEEDED);
        used[is_long] += is_long ? 90000 : 10000;
    }
    assert_true(used[0] > 0 && used[1] > 0);
    assert_in_range(100 * used[1] / used[0], 85, 120);
}

static void staying_away_saves_nothing_up(void **state)
{
    pseg_queue *q = case_open(NULL);
    int n = 0;

    (void)state;
    case_register(q, "w");
    for (int i = 0; i < 60; i++) {
        submit_for(q, "a", 0, NULL);
        submit_for(q, "b", 0, NULL);
    }
    for (int i = 0; i < 40; i++)
        case_claim(q, "w");
    for (int i = 0; i < 30; i++)
        submit_for(q, "late", 0, NULL);
    for (int i = 0; i < 30; i++)
        n += strcmp(case_claim(q, "w")->tenant, "late") == 0;
    assert_in_range(n, 9, 11);
}

/* ---- limits ---- */

static void a_tenant_has_its_limits(void **state)
{
    const pseg_queue_tenant two = {.max_jobs = 2}, small = {.max_bytes = 7},
                            slow = {.rate = 1, .burst = 3};
    pseg_queue *q = case_open(NULL);
    pseg_queue_reply *r;
    id_text id;

    (void)state;
    case_register(q, "w");
    submit_for(q, "a", 0, &two);
    submit_for(q, "a", 0, &two);
    r = try_submit(q, &id, "a", 0, &two);
    assert_int_equal(r->err.reason, PSEG_R_TENANT_LIMIT);
    assert_string_equal(r->err.msg,
                        "2 jobs of tenant a are alive, its limit is 2; try again later");
    submit_for(q, "b", 0, &two);
    CALL(r, pseg_queue_publish, q, "w", case_lease(case_claim(q, "w")), case_bytes("r"), NULL, 0,
         0);
    case_keep(r);
    submit_for(q, "a", 0, &two);
    /* Bytes: "image" is 5 of them, held once. */
    submit_for(q, "c", 0, &small);
    submit_for(q, "c", 0, &small);
    CALL(r, pseg_queue_put_image, q, "c", "other", case_bytes("abc"), 7);
    case_keep(r);
    assert_int_equal(r->err.reason, PSEG_R_TENANT_LIMIT);
    CALL(r, pseg_queue_put_image, q, "c", "other", case_bytes("ab"), 7);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    /* Rate. */
    for (int i = 0; i < 3; i++)
        submit_for(q, "d", 0, &slow);
    r = try_submit(q, &id, "d", 0, &slow);
    assert_int_equal(r->err.reason, PSEG_R_TENANT_LIMIT);
    assert_non_null(strstr(r->err.msg, "more than 1 jobs a second; try again in "));
    submit_for(q, "e", 0, &slow);
}

static void expect_use(const pseg_queue_use *u, const char *tenant, int64_t jobs, int64_t bytes,
                       int64_t batches)
{
    assert_string_equal(u->tenant, tenant);
    assert_int_equal(u->jobs, jobs);
    assert_int_equal(u->image_bytes, bytes);
    assert_int_equal(u->batches, batches);
}

static void what_tenants_use_is_told(void **state)
{
    pseg_queue *q = case_open(NULL);
    pseg_queue_reply *r;

    (void)state;
    CALL(r, pseg_queue_get_uses, q);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    assert_int_equal(r->n_uses, 0);
    case_register(q, "w");
    submit_for(q, "b", 0, NULL);
    submit_for(q, "b", 0, NULL);
    CALL(r, pseg_queue_put_image, q, "c", "other", case_bytes("ab"), 0);
    case_keep(r);
    CALL(r, pseg_queue_create_batch, q, "b", "x", 60000, case_bytes(""));
    case_keep(r);
    submit_for(q, "a", 0, NULL);
    CALL(r, pseg_queue_get_uses, q);
    case_keep(r);
    assert_int_equal(r->n_uses, 3);
    expect_use(&r->uses[0], "a", 1, 5, 0);
    expect_use(&r->uses[1], "b", 2, 5, 1);
    expect_use(&r->uses[2], "c", 0, 2, 0);
    /* One that runs is alive, one that has ended is not; its image is held on. */
    const pseg_queue_claim *c = case_claim(q, "w");
    CALL(r, pseg_queue_get_uses, q);
    case_keep(r);
    expect_use(&r->uses[1], "b", 2, 5, 1);
    case_publish(q, "w", c, NULL);
    CALL(r, pseg_queue_get_uses, q);
    case_keep(r);
    assert_int_equal(r->uses[0].jobs + r->uses[1].jobs, 2);
    assert_int_equal(r->uses[0].image_bytes + r->uses[1].image_bytes, 10);
}

/* ---- jobs that kill ---- */

/* Workers with hands for N jobs die whenever the one among them is `killer`. */
static void find_killer(int64_t near_ms)
{
    enum { N = 8 };
    pseg_queue *q = case_open(NULL);
    id_text ids[N];
    int deaths = 0, done = 0;

    for (int i = 0; i < N; i++)
        ids[i] = case_submit(q);
    const char *killer = ids[5].s;
    for (int i = 0; done < N - 1 || queue_state_of(q, killer) != PSEG_JOB_FAILED; i++) {
        char worker[16];
        assert_true(i < 200);
        snprintf(worker, sizeof worker, "w%d", i);
        case_register(q, worker);
        const pseg_queue_reply *r = claim_near(q, worker, N, 0, near_ms);
        bool dies = false;
        for (size_t k = 0; k < r->n_claims; k++) {
            const pseg_queue_claim *c = &r->claims[k];
            assert_true(!c->group || r->n_claims <= (size_t)c->group);
            dies = dies || strcmp(c->id, killer) == 0;
        }
        for (size_t k = 0; k < r->n_claims && !dies; k++, done++)
            assert_int_equal(case_publish(q, worker, &r->claims[k], NULL), PSEG_JOB_SUCCEEDED);
        deaths += dies;
        if (dies) {
            SWEEP_UNTIL(q, case_stats(q).leased == 0);
        } else {
            pseg_queue_reply *left;
            CALL(left, pseg_queue_unregister, q, worker);
            case_keep(left);
        }
    }
    /* 8, 4, 2, and three attempts alone. */
    assert_int_equal(deaths, 6);
    for (int i = 0; i < N; i++)
        assert_int_equal(case_job(q, ids[i].s)->attempts, i == 5 ? 3 : 1);
    assert_int_equal(case_job(q, killer)->reason, PSEG_R_ATTEMPTS_EXHAUSTED);
}

static void a_killer_is_found_among_many(void **state)
{
    (void)state;
    find_killer(0);
}

/* All of them are on one image, which the dead had at hand. */
static void a_killer_is_found_by_who_keeps_images(void **state)
{
    (void)state;
    find_killer(1000000000);
}

/* Jobs that died together are tried one at a time, and a worker that holds something is told that
 * there is more for empty hands. */
static void what_is_withheld_is_told_of(void **state)
{
    pseg_queue *q = case_open(NULL);

    (void)state;
    case_submit(q);
    case_submit(q);
    case_register(q, "dies");
    assert_int_equal(claim_n(q, "dies", 2, 0)->n_claims, 2);
    SWEEP_UNTIL(q, case_stats(q).leased == 0);
    case_register(q, "w");
    for (int near = 0; near < 2; near++) {
        const pseg_queue_reply *r = claim_near(q, "w", 2, 1, near * 1000);
        assert_int_equal(r->n_claims, 0);
        assert_in_range(r->again_ms, 1, 1000);
    }
    const pseg_queue_reply *r = claim_n(q, "w", 2, 0);
    assert_int_equal(r->n_claims, 1);
    assert_int_equal(r->claims[0].group, 1);
    assert_int_equal(r->again_ms, 0);
}

static void quarantine(pseg_queue *q, id_text *id)
{
    *id = case_submit(q);
    for (int i = 1; i <= 3; i++) {
        case_register(q, "w");
        assert_int_equal(case_fail(q, "w", case_claim(q, "w"), PSEG_R_DEVICE_FAILED, 0, NULL),
                         i < 3 ? PSEG_JOB_QUEUED : PSEG_JOB_FAILED);
    }
}

static void quarantine_keeps_the_evidence(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text one, two;
    pseg_queue_reply *r;

    (void)state;
    quarantine(q, &one);
    quarantine(q, &two);
    assert_int_equal(case_stats(q).quarantined, 2);
    CALL(r, pseg_queue_list_cases, q, "", 10);
    case_keep(r);
    assert_int_equal(r->n_cases, 2);
    bool newest_first = strcmp(r->cases[0].id, r->cases[1].id) > 0;
    assert_true(newest_first);
    CALL(r, pseg_queue_list_cases, q, r->cases[0].id, 10);
    case_keep(r);
    assert_int_equal(r->n_cases, 1);
    CALL(r, pseg_queue_get_case, q, one.s);
    case_keep(r);
    assert_int_equal(r->n_cases, 1);
    const pseg_queue_case *c = &r->cases[0];
    assert_string_equal(c->id, one.s);
    assert_string_equal(c->tenant, T);
    assert_string_equal(c->model, "m");
    assert_int_equal(c->reason, PSEG_R_DEVICE_FAILED);
    assert_int_equal(c->attempts, 3);
    assert_true(c->at_unix_us > 0);
    /* Each attempt with worker, device and the worker's last words. */
    const char *text = c->evidence;
    for (int i = 1; i <= 3; i++) {
        char begin[32];
        snprintf(begin, sizeof begin, "attempt %d at ", i);
        text = strstr(text, begin);
        assert_non_null(text);
        text = strstr(text, " on w, device device: DEVICE_FAILED, it went wrong\nlast words\n");
        assert_non_null(text);
    }
    CALL(r, pseg_queue_get_case, q, "00000000000000000000000000000000");
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    assert_int_equal(r->n_cases, 0);
}

static void quarantine_is_left_by_hand(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text one, two, again;
    pseg_queue_reply *r;

    (void)state;
    quarantine(q, &one);
    quarantine(q, &two);
    CALL(r, pseg_queue_drop_case, q, one.s);
    case_keep(r);
    assert_int_equal(r->n_cases, 1);
    CALL(r, pseg_queue_drop_case, q, one.s);
    case_keep(r);
    assert_int_equal(r->n_cases, 0);
    assert_int_equal(pseg_job_new_id(again.s, NULL), PSEG_OK);
    CALL(r, pseg_queue_requeue_case, q, two.s, again.s);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    assert_int_equal(r->n_jobs, 1);
    assert_int_equal(case_stats(q).quarantined, 0);
    /* What has ended stays so; its work is another job, with the same image and phrases. */
    assert_int_equal(queue_state_of(q, two.s), PSEG_JOB_FAILED);
    const pseg_queue_claim *c = case_claim(q, "w");
    assert_string_equal(c->id, again.s);
    assert_int_equal(c->attempt, 1);
    assert_bytes(c->spec, "spec");
    CALL(r, pseg_queue_fetch_image, q, c->image);
    case_keep(r);
    assert_bytes(r->blobs[0], "image");
    assert_int_equal(case_publish(q, "w", c, NULL), PSEG_JOB_SUCCEEDED);
}

/* Its answer may be lost, and whoever asks again gets what the first call made, and no second
 * job. */
static void requeueing_twice_makes_one_job(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text two, again, other;
    pseg_queue_reply *r;

    (void)state;
    quarantine(q, &two);
    assert_int_equal(pseg_job_new_id(again.s, NULL), PSEG_OK);
    assert_int_equal(pseg_job_new_id(other.s, NULL), PSEG_OK);
    CALL(r, pseg_queue_requeue_case, q, two.s, again.s);
    case_keep(r);
    assert_true(r->created);
    assert_int_equal(case_stats(q).live, 1);
    for (int i = 0; i < 2; i++) {
        CALL(r, pseg_queue_requeue_case, q, two.s, other.s);
        case_keep(r);
        assert_int_equal(r->err.code, PSEG_OK);
        assert_false(r->created);
        assert_int_equal(r->n_jobs, 1);
        assert_string_equal(r->jobs[0].id, again.s);
        assert_int_equal(case_stats(q).live, 1);
    }
    /* It is no case any more. */
    CALL(r, pseg_queue_get_case, q, two.s);
    case_keep(r);
    assert_int_equal(r->n_cases, 0);
    CALL(r, pseg_queue_list_cases, q, "", 10);
    case_keep(r);
    assert_int_equal(r->n_cases, 0);
    CALL(r, pseg_queue_drop_case, q, two.s);
    case_keep(r);
    assert_int_equal(r->n_cases, 0);
    CALL(r, pseg_queue_requeue_case, q, two.s, other.s);
    case_keep(r);
    assert_string_equal(r->jobs[0].id, again.s);
}

static void a_users_fault_is_not_quarantined(void **state)
{
    pseg_queue *q = case_open(NULL);

    (void)state;
    case_submit(q);
    case_register(q, "w");
    case_fail(q, "w", case_claim(q, "w"), PSEG_R_IMAGE_UNDECODABLE, 0, NULL);
    assert_int_equal(case_stats(q).quarantined, 0);
}

/* A worker that lives and renews, but never heard of one claim: its answer was lost. */
static void a_claim_without_an_answer_burns_no_attempt(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text unheard = case_submit(q);

    (void)state;
    case_register(q, "w");
    case_claim(q, "w"); /* nobody renews it */
    case_submit(q);
    const pseg_queue_claim *held = case_claim(q, "w");
    SWEEP_UNTIL(q, (case_register(q, "w"), case_renew(q, "w", held), true) &&
                       queue_state_of(q, unheard.s) == PSEG_JOB_QUEUED);
    assert_int_equal(case_renew(q, "w", held), PSEG_LEASE_OK);
    assert_int_equal(case_job(q, unheard.s)->attempts, 0);
    const pseg_queue_claim *c = case_claim(q, "w");
    assert_string_equal(c->id, unheard.s);
    assert_int_equal(c->group, 0);
}

/* Submits that travel together, every third of them for the second time: by the request's id, or
 * all of the call anew. Nothing is stored or counted twice. */
static void repeats_that_come_together_are_one_job(void **state)
{
    enum { N = 90 };
    static pseg_queue_sync waits[N];
    static id_text ids[N];
    static char requests[N][16];
    char first[N][PSEG_JOB_ID_LEN + 1];
    pseg_queue *q = case_open(NULL);

    (void)state;
    for (int i = 0; i < N; i++) {
        pseg_queue_submit_args a = case_args(&ids[i]);
        int of = i % 3 == 2 ? i - 1 : i;
        snprintf(requests[i], sizeof requests[i], "r%d", of);
        a.request_id = requests[i];
        if (i % 6 == 5)
            a.id = ids[of].s;
        pseg_queue_sync_init(&waits[i]);
        pseg_queue_submit(q, &a, pseg_queue_sync_done, &waits[i]);
    }
    for (int i = 0; i < N; i++) {
        pseg_queue_reply *r = pseg_queue_sync_take(&waits[i]);
        assert_int_equal(r->err.code, PSEG_OK);
        assert_int_equal(r->created, i % 3 != 2);
        assert_int_equal(r->n_jobs, 1);
        memcpy(first[i], r->jobs[0].id, sizeof first[i]);
        assert_string_equal(first[i], i % 3 == 2 ? first[i - 1] : ids[i].s);
        pseg_queue_reply_free(r);
    }
    pseg_queue_stats s = case_stats(q);
    assert_int_equal(s.live, 2 * N / 3);
    assert_int_equal(s.submitted, 2 * N / 3);
    pseg_queue_reply *r;
    CALL(r, pseg_queue_get_backlog, q, "m", 0);
    assert_int_equal(r->backlog.live, 2 * N / 3);
    pseg_queue_reply_free(r);
}

const struct CMUnitTest order_cases[] = {
    CASE(a_retried_job_keeps_its_place),
    CASE(a_priority_is_a_head_start),
    CASE(tenants_take_turns),
    CASE(a_weight_is_a_share),
    CASE(shares_are_of_compute_time),
    CASE(staying_away_saves_nothing_up),
    CASE(repeats_that_come_together_are_one_job),
    CASE(a_tenant_has_its_limits),
    CASE(what_tenants_use_is_told),
    CASE(a_killer_is_found_among_many),
    CASE(a_killer_is_found_by_who_keeps_images),
    CASE(what_is_withheld_is_told_of),
    CASE(quarantine_keeps_the_evidence),
    CASE(quarantine_is_left_by_hand),
    CASE(requeueing_twice_makes_one_job),
    CASE(a_users_fault_is_not_quarantined),
    CASE(a_claim_without_an_answer_burns_no_attempt),
};
const size_t n_order_cases = sizeof order_cases / sizeof *order_cases;
