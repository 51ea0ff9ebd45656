#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "scheduler/service/scale.h"

#define S   ((int64_t)1000000)
#define NOW (1767323045 * S)

static pseg_queue_backlog backlog(int64_t live, int64_t workers, double cost_s)
{
    return (pseg_queue_backlog){
        .live = live, .workers = workers, .cost_us = (int64_t)(cost_s * 1e6), .now_unix_us = NOW};
}

static void near(double is, double should)
{
    /* The difference of a NaN is not below anything. */
    assert_true((is > should ? is - should : should - is) < 1e-9 * (1 + should));
}

static void work_is_jobs_by_their_cost(void **state)
{
    const pseg_scale_target t = PSEG_SCALE_TARGET_DEFAULT;
    pseg_queue_backlog b = backlog(0, 3, 2);

    (void)state;
    near(pseg_scale_backlog_s(&b, &t), 0);
    b.live = 100;
    near(pseg_scale_backlog_s(&b, &t), 200);
    b.cost_us = 0; /* nobody has told yet */
    near(pseg_scale_backlog_s(&b, &t), 100);
    b.cost_us = 1;
    b.live = 1;
    assert_true(pseg_scale_backlog_s(&b, &t) > 0);
}

static void a_job_has_one_worker_at_most(void **state)
{
    const pseg_scale_target t = {10, 60, 1};
    pseg_queue_backlog b = backlog(4, 1, 1000);
    const pseg_queue_due due = {4, NOW + 1500 * S};

    (void)state;
    near(pseg_scale_backlog_s(&b, &t), 40);
    b.due = &due;
    b.n_due = 1;
    near(pseg_scale_backlog_s(&b, &t), 40);
}

/* Workers that there should be, of a target so far away that deadlines alone decide. */
static double due_workers(pseg_queue_backlog b, int64_t each, int64_t from_s, int64_t step_s,
                          double startup_s)
{
    const pseg_scale_target t = {1e9, startup_s, 1};
    pseg_queue_due due[64];

    for (int64_t i = 0; i < each; i++)
        due[i] = (pseg_queue_due){i + 1, NOW + (from_s + i * step_s) * S};
    b.due = due;
    b.n_due = (size_t)each;
    return pseg_scale_backlog_s(&b, &t) / 1e9;
}

static void deadlines_raise_it(void **state)
{
    (void)state;
    /* 60 jobs of 10 s in half of 100 s. */
    near(due_workers(backlog(60, 0, 10), 60, 100, 0, 0), 600 / 50.0);
    /* The first deadlines are the hard ones. */
    near(due_workers(backlog(60, 0, 10), 60, 100, 100, 0), 10 / 50.0);
    /* New workers have 25 s of the 50 left: two are there, which do 10 of the 60 jobs. */
    near(due_workers(backlog(60, 2, 10), 60, 100, 0, 25), 2 + 500 / 25.0);
    /* Enough are there: what is needed, not more. */
    near(due_workers(backlog(60, 20, 10), 60, 100, 0, 25), 600 / 50.0);
    /* New ones come too late: those that are there stay. */
    near(due_workers(backlog(60, 2, 10), 60, 100, 0, 1000), 2);
    /* What is past asks for nothing. */
    near(due_workers(backlog(60, 2, 10), 60, -100, 0, 0), 60 * 10 / 1e9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(work_is_jobs_by_their_cost),
        cmocka_unit_test(a_job_has_one_worker_at_most),
        cmocka_unit_test(deadlines_raise_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
