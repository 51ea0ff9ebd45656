/* Cases of what workers ask of a queue: leases, fences, attempts. */
#include "tests/support/queue_cases_impl.h"
#include "common/base/clock.h"

#include <stdio.h>
#include <string.h>

static const pseg_queue_claim *begun(pseg_queue *q, id_text *id)
{
    *id = case_submit(q);
    case_register(q, "w");
    return case_claim(q, "w");
}

static void claims_come_in_order(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text ids[5];
    pseg_queue_reply *r;

    (void)state;
    case_register(q, "w");
    assert_int_equal(case_claim_count(q, "w"), 0);
    for (int i = 0; i < 5; i++)
        ids[i] = case_submit(q);
    CALL(r, pseg_queue_claim_jobs, q, "w", "m", 3, 0, 0);
    case_keep(r);
    assert_int_equal(r->n_claims, 3);
    for (int i = 0; i < 3; i++) {
        const pseg_queue_claim *c = &r->claims[i];
        assert_string_equal(c->id, ids[i].s);
        assert_string_equal(c->tenant, T);
        assert_int_equal(c->attempt, 1);
        assert_true(c->fence > 0);
        assert_bytes(c->spec, "spec");
        assert_true(c->created_unix_us > 0 && c->deadline_unix_us > c->created_unix_us);
    }
    const pseg_job *j = case_job(q, ids[0].s);
    assert_int_equal(j->state, PSEG_JOB_RUNNING);
    assert_string_equal(j->worker, "w");
    assert_int_equal(j->attempts, 1);
    assert_true(j->started_unix_us >= j->created_unix_us);
    /* What one has, no other gets; and only jobs of the model asked for. */
    CALL(r, pseg_queue_claim_jobs, q, "w", "other", 3, 0, 0);
    assert_int_equal(r->n_claims, 0);
    pseg_queue_reply_free(r);
    assert_int_equal(case_claim_count(case_open_again(), "w2"), 2);
    assert_int_equal(case_claim_count(q, "w"), 0);
    pseg_queue_stats s = case_stats(q);
    assert_int_equal(s.leased, 5);
    assert_int_equal(s.live, 5);
}

static void a_publication_is_whole(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id;
    const pseg_queue_claim *c = begun(q, &id);
    pseg_queue_reply *r;

    (void)state;
    assert_int_equal(case_publish(q, "w", c, NULL), PSEG_JOB_SUCCEEDED);
    CALL(r, pseg_queue_masks, q, T, id.s, ((uint32_t[]){1, 0, 7}), 3);
    case_keep(r);
    assert_int_equal(r->n_jobs, 1);
    const pseg_job *j = &r->jobs[0];
    assert_int_equal(j->state, PSEG_JOB_SUCCEEDED);
    assert_bytes(j->result, "result");
    assert_true(j->finished_unix_us >= j->started_unix_us);
    assert_true(j->expire_unix_us == j->finished_unix_us + 60000000);
    assert_int_equal(r->n_blobs, 3);
    assert_bytes(r->blobs[0], "mask 1");
    assert_bytes(r->blobs[1], "mask 0");
    assert_null(r->blobs[2].data);
    pseg_queue_stats s = case_stats(q);
    assert_int_equal(s.succeeded, 1);
    assert_int_equal(s.live, 0);
    assert_int_equal(s.leased, 0);
    /* The answer was lost and the worker asks again: the same answer, nothing twice. */
    assert_int_equal(case_publish(q, "w", c, NULL), PSEG_JOB_SUCCEEDED);
    assert_int_equal(case_stats(q).succeeded, 1);
    assert_int_equal(case_renew(q, "w", c), PSEG_LEASE_LOST);
}

static void a_lost_lease_cannot_publish(void **state)
{
    pseg_queue *a = case_open(NULL), *b = case_open_again();
    id_text id = case_submit(a);
    pseg_reason reason;

    (void)state;
    case_register(a, "a");
    case_register(b, "b");
    const pseg_queue_claim *old = case_claim(a, "a");
    /* a is frozen; b sweeps, and gets the job. */
    SWEEP_UNTIL(b, queue_state_of(b, id.s) == PSEG_JOB_QUEUED);
    assert_int_equal(case_job(b, id.s)->reason, PSEG_R_LEASE_LOST);
    /* Neither before the job is claimed again nor after it. */
    for (int i = 0; i < 2; i++) {
        pseg_job_state state_now = i ? PSEG_JOB_RUNNING : PSEG_JOB_QUEUED;
        if (i)
            assert_int_equal(case_claim(b, "b")->attempt, 2);
        assert_int_equal(case_renew(a, "a", old), PSEG_LEASE_LOST);
        case_publish(a, "a", old, &reason);
        assert_int_equal(reason, PSEG_R_LEASE_LOST);
        case_fail(a, "a", old, PSEG_R_INTERNAL, 0, &reason);
        assert_int_equal(reason, PSEG_R_LEASE_LOST);
        case_release(a, "a", old, &reason);
        assert_int_equal(reason, PSEG_R_LEASE_LOST);
        assert_int_equal(queue_state_of(a, id.s), state_now);
    }
    const pseg_job *j = case_job(b, id.s);
    assert_string_equal(j->worker, "b");
    assert_int_equal(j->result.len, 0);
    pseg_queue_claim mine = {.id = id.s, .fence = old->fence + 1};
    assert_int_equal(case_publish(b, "b", &mine, NULL), PSEG_JOB_SUCCEEDED);
    case_publish(a, "a", old, &reason);
    assert_int_equal(reason, PSEG_R_LEASE_LOST);
    assert_int_equal(case_stats(b).succeeded, 1);
}

static void a_fence_names_one_lease(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id;
    const pseg_queue_claim *first = begun(q, &id);
    pseg_reason reason;

    (void)state;
    assert_int_equal(case_release(q, "w", first, NULL), PSEG_JOB_QUEUED);
    const pseg_queue_claim *second = case_claim(q, "w");
    assert_string_equal(second->id, first->id);
    assert_true(second->fence > first->fence);
    /* The same worker, the earlier lease. */
    assert_int_equal(case_renew(q, "w", first), PSEG_LEASE_LOST);
    case_publish(q, "w", first, &reason);
    assert_int_equal(reason, PSEG_R_LEASE_LOST);
    /* The right fence in the wrong hands, and a fence that never was. */
    case_publish(q, "thief", second, &reason);
    assert_int_equal(reason, PSEG_R_LEASE_LOST);
    pseg_queue_claim wrong = *second;
    wrong.fence = 99;
    case_publish(q, "w", &wrong, &reason);
    assert_int_equal(reason, PSEG_R_LEASE_LOST);
    wrong.id = "00000000000000000000000000000000";
    case_publish(q, "w", &wrong, &reason);
    assert_int_equal(reason, PSEG_R_LEASE_LOST);
    assert_int_equal(case_publish(q, "w", second, NULL), PSEG_JOB_SUCCEEDED);
}

static void a_dead_workers_job_is_taken_within_the_bound(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id;

    (void)state;
    case_register(q, "b");
    int64_t at = pseg_clock_mono_ms();
    begun(q, &id);
    SWEEP_UNTIL(q, case_claim_count(q, "b") == 1);
    int64_t took = pseg_clock_mono_ms() - at;
    /* The lease is 300 ms, and this sweeps all the time. */
    assert_true(took >= 250);
    assert_true(took < 300 + 2000);
}

static void a_long_job_stays_with_a_living_worker(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id;
    const pseg_queue_claim *c = begun(q, &id);
    pseg_queue *other = case_open_again();

    (void)state;
    case_register(other, "b");
    for (int64_t until = pseg_clock_mono_ms() + 1000; pseg_clock_mono_ms() < until;) {
        assert_int_equal(case_renew(q, "w", c), PSEG_LEASE_OK);
        case_sweep(other);
        assert_int_equal(case_claim_count(other, "b"), 0);
        queue_pause_ms(20);
    }
    assert_int_equal(case_publish(q, "w", c, NULL), PSEG_JOB_SUCCEEDED);
    assert_int_equal(case_job(q, id.s)->attempts, 1);
}

static void many_leases_are_renewed_at_once(void **state)
{
    enum { N = 100 };
    pseg_queue *q = case_open(NULL);
    pseg_queue_lease l[N + 1] = {{"00000000000000000000000000000000", 1}};
    id_text ids[N];
    pseg_queue_reply *r;

    (void)state;
    case_register(q, "w");
    for (int i = 0; i < N; i++)
        ids[i] = case_submit(q);
    CALL(r, pseg_queue_claim_jobs, q, "w", "m", N, 0, 0);
    case_keep(r);
    assert_int_equal(r->n_claims, N);
    for (int i = 0; i < N; i++)
        l[i + 1] = (pseg_queue_lease){ids[i].s, r->claims[i].fence};
    CALL(r, pseg_queue_cancel, q, T, ids[4].s);
    case_keep(r);
    CALL(r, pseg_queue_renew, q, "w", l, N + 1);
    case_keep(r);
    assert_int_equal(r->n_leases, N + 1);
    assert_int_equal(r->leases[0], PSEG_LEASE_LOST);
    for (int i = 0; i < N; i++)
        assert_int_equal(r->leases[i + 1], i == 4 ? PSEG_LEASE_CANCEL : PSEG_LEASE_OK);
    CALL(r, pseg_queue_renew, q, "w", l, 0);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    assert_int_equal(r->n_leases, 0);
}

/* ---- cancel and deadline of a running job ---- */

static const pseg_queue_claim *cancelled_while_running(pseg_queue *q, id_text *id)
{
    const pseg_queue_claim *c = begun(q, id);
    pseg_queue_reply *r;

    CALL(r, pseg_queue_cancel, q, T, id->s);
    case_keep(r);
    assert_int_equal(r->jobs[0].state, PSEG_JOB_RUNNING);
    assert_true(r->jobs[0].cancel_requested);
    assert_int_equal(case_renew(q, "w", c), PSEG_LEASE_CANCEL);
    return c;
}

static void a_running_job_is_cancelled_by_its_worker(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id;
    const pseg_queue_claim *c = cancelled_while_running(q, &id);

    (void)state;
    assert_int_equal(case_fail(q, "w", c, PSEG_R_CANCELLED, 0, NULL), PSEG_JOB_CANCELLED);
    assert_false(case_job(q, id.s)->cancel_requested);
    /* A publication that comes too late loses, and so does a hand-back. */
    c = cancelled_while_running(q, &id);
    assert_int_equal(case_publish(q, "w", c, NULL), PSEG_JOB_CANCELLED);
    assert_int_equal(case_job(q, id.s)->result.len, 0);
    c = cancelled_while_running(q, &id);
    assert_int_equal(case_release(q, "w", c, NULL), PSEG_JOB_CANCELLED);
    c = cancelled_while_running(q, &id);
    assert_int_equal(case_fail(q, "w", c, PSEG_R_DEVICE_FAILED, 0, NULL), PSEG_JOB_CANCELLED);
    assert_int_equal(case_stats(q).cancelled, 4);
    assert_int_equal(case_stats(q).live, 0);
}

static void a_running_job_of_a_dead_worker_is_cancelled_when_its_lease_ends(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id;

    (void)state;
    cancelled_while_running(q, &id);
    SWEEP_UNTIL(q, queue_state_of(q, id.s) == PSEG_JOB_CANCELLED);
    assert_int_equal(case_claim_count(q, "w"), 0);
}

static const pseg_queue_claim *begun_with_deadline(pseg_queue *q, id_text *id, int64_t ms)
{
    pseg_queue_submit_args a = case_args(id);
    pseg_queue_reply *r;

    a.deadline_unix_us = pseg_clock_unix_us() + ms * 1000;
    CALL(r, pseg_queue_submit, q, &a);
    case_keep(r);
    assert_true(r->created);
    case_register(q, "w");
    const pseg_queue_claim *c = case_claim(q, "w");
    /* And the millisecond to which deadlines are rounded up. */
    while (pseg_clock_unix_us() <= a.deadline_unix_us + 2000)
        queue_pause_ms(5);
    return c;
}

static void a_running_job_expires_at_its_deadline(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id;
    pseg_reason reason;

    (void)state;
    const pseg_queue_claim *c = begun_with_deadline(q, &id, 400);
    assert_int_equal(case_renew(q, "w", c), PSEG_LEASE_EXPIRED);
    assert_int_equal(queue_state_of(q, id.s), PSEG_JOB_EXPIRED);
    case_publish(q, "w", c, &reason);
    assert_int_equal(reason, PSEG_R_LEASE_LOST);
    /* Seen first by a sweep, by a publication, by a failure, by a hand-back. */
    c = begun_with_deadline(q, &id, 400);
    case_sweep(q);
    assert_int_equal(queue_state_of(q, id.s), PSEG_JOB_EXPIRED);
    assert_int_equal(case_renew(q, "w", c), PSEG_LEASE_EXPIRED);
    c = begun_with_deadline(q, &id, 400);
    assert_int_equal(case_publish(q, "w", c, NULL), PSEG_JOB_EXPIRED);
    c = begun_with_deadline(q, &id, 400);
    assert_int_equal(case_fail(q, "w", c, PSEG_R_DEVICE_FAILED, 0, NULL), PSEG_JOB_EXPIRED);
    c = begun_with_deadline(q, &id, 400);
    assert_int_equal(case_release(q, "w", c, NULL), PSEG_JOB_EXPIRED);
    assert_int_equal(case_stats(q).expired, 5);
}

/* ---- attempts ---- */

static void a_fault_that_may_pass_is_tried_again(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id;
    const pseg_queue_claim *c = begun(q, &id);

    (void)state;
    int64_t at = pseg_clock_mono_ms();
    assert_int_equal(case_fail(q, "w", c, PSEG_R_DEVICE_FAILED, 150, NULL), PSEG_JOB_QUEUED);
    assert_int_equal(case_stats(q).delayed, 1);
    const pseg_job *j = case_job(q, id.s);
    assert_int_equal(j->reason, PSEG_R_DEVICE_FAILED);
    assert_string_equal(j->message, "it went wrong");
    assert_string_equal(j->worker, "");
    case_sweep(q);
    assert_int_equal(case_claim_count(q, "w"), 0);
    SWEEP_UNTIL(q, case_stats(q).delayed == 0);
    assert_true(pseg_clock_mono_ms() - at >= 140);
    c = case_claim(q, "w");
    assert_int_equal(c->attempt, 2);
    assert_int_equal(case_fail(q, "w", c, PSEG_R_DEVICE_FAILED, 0, NULL), PSEG_JOB_QUEUED);
    /* Repeated, its answer having been lost. */
    assert_int_equal(case_fail(q, "w", c, PSEG_R_DEVICE_FAILED, 0, NULL), PSEG_JOB_QUEUED);
    c = case_claim(q, "w");
    assert_int_equal(c->attempt, 3);
    assert_int_equal(case_fail(q, "w", c, PSEG_R_DEVICE_OUT_OF_MEMORY, 0, NULL), PSEG_JOB_FAILED);
    assert_int_equal(case_fail(q, "w", c, PSEG_R_DEVICE_OUT_OF_MEMORY, 0, NULL), PSEG_JOB_FAILED);
    j = case_job(q, id.s);
    assert_int_equal(j->reason, PSEG_R_DEVICE_OUT_OF_MEMORY);
    assert_string_equal(j->message, "it went wrong (attempt 3; before: 1: DEVICE_FAILED, it went "
                                    "wrong; 2: DEVICE_FAILED, it went wrong)");
    assert_int_equal(case_stats(q).failed, 1);
    assert_int_equal(case_claim_count(q, "w"), 0);
}

static void a_fault_that_stays_is_not_tried_again(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id;
    const pseg_queue_claim *c = begun(q, &id);

    (void)state;
    assert_int_equal(case_fail(q, "w", c, PSEG_R_IMAGE_UNDECODABLE, 1000, NULL), PSEG_JOB_FAILED);
    const pseg_job *j = case_job(q, id.s);
    assert_int_equal(j->state, PSEG_JOB_FAILED);
    assert_int_equal(j->reason, PSEG_R_IMAGE_UNDECODABLE);
    assert_string_equal(j->message, "it went wrong");
    assert_true(j->expire_unix_us > j->finished_unix_us);
}

static void a_job_that_kills_its_workers_ends(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id = case_submit(q);
    char worker[8];

    (void)state;
    for (int i = 1; i <= 3; i++) {
        snprintf(worker, sizeof worker, "w%d", i);
        case_register(q, worker);
        assert_int_equal(case_claim(q, worker)->attempt, i);
        SWEEP_UNTIL(q, queue_state_of(q, id.s) != PSEG_JOB_RUNNING);
    }
    const pseg_job *j = case_job(q, id.s);
    assert_int_equal(j->state, PSEG_JOB_FAILED);
    assert_int_equal(j->reason, PSEG_R_ATTEMPTS_EXHAUSTED);
    assert_string_equal(j->message,
                        "worker w3 went away during attempt 3, the last of 3 (before: 1: "
                        "LEASE_LOST, worker w1 went away during attempt 1; 2: LEASE_LOST, worker "
                        "w2 went away during attempt 2)");
    assert_int_equal(j->attempts, 3);
    assert_int_equal(case_stats(q).live, 0);
}

static void a_success_forgets_earlier_faults(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id;

    (void)state;
    case_fail(q, "w", begun(q, &id), PSEG_R_DEVICE_FAILED, 0, NULL);
    assert_int_equal(case_publish(q, "w", case_claim(q, "w"), NULL), PSEG_JOB_SUCCEEDED);
    const pseg_job *j = case_job(q, id.s);
    assert_int_equal(j->reason, PSEG_R_NONE);
    assert_string_equal(j->message, "");
    assert_int_equal(j->attempts, 2);
}

static void a_job_handed_back_burns_no_attempt(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id;
    const pseg_queue_claim *c = begun(q, &id);

    (void)state;
    for (int i = 0; i < 5; i++) {
        assert_int_equal(case_release(q, "w", c, NULL), PSEG_JOB_QUEUED);
        assert_int_equal(case_job(q, id.s)->attempts, 0);
        c = case_claim(q, "w");
        assert_int_equal(c->attempt, 1);
    }
    /* Repeated, its answer having been lost. */
    case_release(q, "w", c, NULL);
    assert_int_equal(case_release(q, "w", c, NULL), PSEG_JOB_QUEUED);
    assert_int_equal(case_job(q, id.s)->attempts, 0);
    assert_int_equal(case_claim_count(q, "w"), 1);
    assert_int_equal(case_claim_count(q, "w"), 0);
}

/* ---- workers ---- */

static void workers_are_listed_while_they_live(void **state)
{
    pseg_queue *q = case_open(NULL);
    pseg_queue_worker w = {"w", "m", "d1g", "a device", "1.2", ""};
    pseg_queue_reply *r;

    (void)state;
    for (int i = 0; i < 2; i++) {
        CALL(r, pseg_queue_register, q, &w);
        case_keep(r);
        assert_int_equal(r->err.code, PSEG_OK);
    }
    CALL(r, pseg_queue_workers, q);
    case_keep(r);
    assert_int_equal(r->n_workers, 1);
    assert_string_equal(r->workers[0].id, "w");
    assert_string_equal(r->workers[0].model, "m");
    assert_string_equal(r->workers[0].digest, "d1g");
    assert_string_equal(r->workers[0].device, "a device");
    assert_string_equal(r->workers[0].version, "1.2");
    CALL(r, pseg_queue_unregister, q, "w");
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    CALL(r, pseg_queue_workers, q);
    case_keep(r);
    assert_int_equal(r->n_workers, 0);
    CALL(r, pseg_queue_unregister, q, "never was");
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
}

static void a_worker_that_leaves_loses_no_job(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id;
    pseg_queue_reply *r;

    (void)state;
    begun(q, &id);
    CALL(r, pseg_queue_unregister, q, "w");
    case_keep(r);
    CALL(r, pseg_queue_workers, q);
    case_keep(r);
    assert_int_equal(r->n_workers, 0);
    case_register(q, "b");
    SWEEP_UNTIL(q, queue_state_of(q, id.s) == PSEG_JOB_QUEUED);
    assert_int_equal(case_publish(q, "b", case_claim(q, "b"), NULL), PSEG_JOB_SUCCEEDED);
}

const struct CMUnitTest worker_cases[] = {
    CASE(claims_come_in_order),
    CASE(a_publication_is_whole),
    CASE(a_lost_lease_cannot_publish),
    CASE(a_fence_names_one_lease),
    CASE(a_dead_workers_job_is_taken_within_the_bound),
    CASE(a_long_job_stays_with_a_living_worker),
    CASE(many_leases_are_renewed_at_once),
    CASE(a_running_job_is_cancelled_by_its_worker),
    CASE(a_running_job_of_a_dead_worker_is_cancelled_when_its_lease_ends),
    CASE(a_running_job_expires_at_its_deadline),
    CASE(a_fault_that_may_pass_is_tried_again),
    CASE(a_fault_that_stays_is_not_tried_again),
    CASE(a_job_that_kills_its_workers_ends),
    CASE(a_success_forgets_earlier_faults),
    CASE(a_job_handed_back_burns_no_attempt),
    CASE(workers_are_listed_while_they_live),
    CASE(a_worker_that_leaves_loses_no_job),
};
const size_t n_worker_cases = sizeof worker_cases / sizeof *worker_cases;
