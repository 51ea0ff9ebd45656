/* What waits for a model's workers, as whoever starts and stops workers is told. */
#include "tests/support/queue_cases_impl.h"

static const pseg_queue_backlog *backlog(pseg_queue *q, const char *model, size_t limit)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_get_backlog, q, model, limit);
    case_keep(r);
    if (r->err.code != PSEG_OK)
        fail_msg("%s", r->err.msg);
    assert_true(r->backlog.now_unix_us > 1500000000000000);
    return &r->backlog;
}

static void submit_due(pseg_queue *q, const char *model, int64_t deadline_unix_us)
{
    id_text id;
    pseg_queue_submit_args a = case_args(&id);
    pseg_queue_reply *r;

    a.model = model;
    a.deadline_unix_us = deadline_unix_us;
    CALL(r, pseg_queue_submit, q, &a);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
}

static void what_waits_and_what_runs_is_counted(void **state)
{
    pseg_queue *q = case_open(NULL);

    (void)state;
    const pseg_queue_backlog *b = backlog(q, "m", 10);
    assert_int_equal(b->live, 0);
    assert_int_equal(b->workers, 0);
    assert_int_equal(b->cost_us, 0);
    assert_int_equal(b->n_due, 0);
    case_register(q, "w");
    for (int i = 0; i < 3; i++)
        case_submit(q);
    submit_due(q, "other", 0);
    const pseg_queue_claim *c = case_claim(q, "w");
    b = backlog(q, "m", 10);
    assert_int_equal(b->live, 3);
    assert_int_equal(b->workers, 1);
    assert_int_equal(b->n_due, 3);
    /* One that waits for another attempt has not ended. */
    assert_int_equal(case_fail(q, "w", c, PSEG_R_DEVICE_FAILED, 60000, NULL), PSEG_JOB_QUEUED);
    assert_int_equal(backlog(q, "m", 10)->live, 3);
    case_publish(q, "w", case_claim(q, "w"), NULL);
    assert_int_equal(backlog(q, "m", 10)->live, 2);
    assert_int_equal(backlog(q, "other", 10)->live, 1);
    assert_int_equal(backlog(q, "other", 10)->workers, 0);
    assert_int_equal(backlog(q, "none", 10)->live, 0);
}

static void it_tells_what_a_job_costs(void **state)
{
    pseg_queue *q = case_open(NULL);
    pseg_bytes mask = case_bytes("mask");
    pseg_queue_reply *r;

    (void)state;
    case_register(q, "w");
    case_submit(q);
    pseg_queue_lease l = case_lease(case_claim(q, "w"));
    CALL(r, pseg_queue_publish, q, "w", l, case_bytes("result"), &mask, 1, 250000);
    case_keep(r);
    assert_int_equal(r->state, PSEG_JOB_SUCCEEDED);
    assert_int_equal(backlog(q, "m", 0)->cost_us, 250000);
}

static void deadlines_come_in_order_and_bounded(void **state)
{
    pseg_queue *q = case_open(NULL);

    (void)state;
    int64_t now = backlog(q, "m", 0)->now_unix_us / 1000000 * 1000000;
    submit_due(q, "m", now + 30000000);
    submit_due(q, "m", now + 20000000);
    submit_due(q, "other", now + 10000000);
    submit_due(q, "m", 0); /* the queue's longest */
    const pseg_queue_backlog *b = backlog(q, "m", 4);
    assert_int_equal(b->live, 3);
    assert_int_equal(b->n_due, 3);
    for (int i = 0; i < 3; i++)
        assert_int_equal(b->due[i].jobs, i + 1);
    assert_int_equal(b->due[0].deadline_unix_us, now + 20000000);
    assert_int_equal(b->due[1].deadline_unix_us, now + 30000000);
    assert_true(b->due[2].deadline_unix_us > now + 80000000);
    assert_int_equal(backlog(q, "m", 0)->n_due, 0);
    /* The first is the other model's; three of four jobs being this one's, so are those behind it.
     */
    b = backlog(q, "m", 1);
    assert_int_equal(b->n_due, 3);
    assert_int_equal(b->due[0].jobs, 1);
    assert_int_equal(b->due[0].deadline_unix_us, now + 20000000);
    assert_int_equal(b->due[2].jobs, 3);
    b = backlog(q, "other", 1);
    assert_int_equal(b->n_due, 1);
    assert_int_equal(b->due[0].deadline_unix_us, now + 10000000);
}

/* Every job counts, however many there are, and few are looked at. */
static void of_many_jobs_all_are_due(void **state)
{
    pseg_queue *q = case_open(NULL);
    enum { N = 60, LIMIT = 4 };

    (void)state;
    int64_t now = backlog(q, "m", 0)->now_unix_us / 1000000 * 1000000;
    for (int i = 0; i < N; i++)
        submit_due(q, i % 3 ? "m" : "other", now + (i + 100) * INT64_C(1000000));
    const pseg_queue_backlog *b = backlog(q, "m", LIMIT);
    assert_in_range(b->n_due, LIMIT, N / 2);
    for (size_t i = 1; i < b->n_due; i++) {
        assert_true(b->due[i].jobs > b->due[i - 1].jobs);
        assert_true(b->due[i].deadline_unix_us > b->due[i - 1].deadline_unix_us);
        /* Of the jobs due by then two thirds are this model's. */
        int64_t rank = (b->due[i].deadline_unix_us - now) / 1000000 - 99;
        assert_in_range(b->due[i].jobs, rank * 2 / 3 - 1, rank * 2 / 3 + 1);
    }
    assert_int_equal(b->due[b->n_due - 1].jobs, 2 * N / 3);
    assert_int_equal(b->due[b->n_due - 1].deadline_unix_us, now + (N + 99) * INT64_C(1000000));
}

const struct CMUnitTest backlog_cases[] = {
    CASE(what_waits_and_what_runs_is_counted),
    CASE(it_tells_what_a_job_costs),
    CASE(deadlines_come_in_order_and_bounded),
    CASE(of_many_jobs_all_are_due),
};
const size_t n_backlog_cases = sizeof backlog_cases / sizeof *backlog_cases;
