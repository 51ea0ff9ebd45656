/* The queue in memory: the cases of every queue, and what tests use it for. */
#include "tests/support/queue_cases_impl.h"
#include "common/base/alloc.h"
#include "common/queue/queue_mem.h"

#include <string.h>

static pseg_queue *open_mem(void)
{
    pseg_queue_options o = PSEG_QUEUE_OPTIONS_DEFAULT;
    pseg_queue *q;

    o.url = "mem:";
    o.name = "own";
    assert_int_equal(pseg_queue_open(&q, &o, NULL), PSEG_OK);
    return q;
}

static void its_clock_can_be_moved(void **state)
{
    pseg_queue *q = open_mem();
    id_text id = case_submit(q);

    (void)state;
    case_register(q, "w");
    case_claim(q, "w");
    pseg_queue_mem_advance_ms(q, 9000);
    case_sweep(q);
    assert_int_equal(queue_state_of(q, id.s), PSEG_JOB_RUNNING);
    pseg_queue_mem_advance_ms(q, 1001);
    case_sweep(q);
    assert_int_equal(queue_state_of(q, id.s), PSEG_JOB_QUEUED);
    pseg_queue_mem_advance_ms(q, 86400000);
    case_sweep(q);
    assert_int_equal(queue_state_of(q, id.s), PSEG_JOB_EXPIRED);
    pseg_queue_close(q);
    /* With its last handle a queue is gone. */
    q = open_mem();
    assert_int_equal(queue_state_of(q, id.s), PSEG_JOB_UNKNOWN);
    assert_int_equal(case_stats(q).submitted, 0);
    pseg_queue_close(q);
}

static void faults_can_be_ordered(void **state)
{
    pseg_queue *q = open_mem();
    id_text id;

    (void)state;
    pseg_queue_mem_fail_nth(q, 2, PSEG_R_BROKER_UNAVAILABLE, false);
    assert_int_equal(queue_try_submit(q, id.s), PSEG_R_NONE);
    assert_int_equal(queue_try_submit(q, id.s), PSEG_R_BROKER_UNAVAILABLE);
    assert_int_equal(queue_state_of(q, id.s), PSEG_JOB_UNKNOWN);
    pseg_queue_mem_fail_nth(q, 1, PSEG_R_BROKER_UNAVAILABLE, true);
    assert_int_equal(queue_try_submit(q, id.s), PSEG_R_BROKER_UNAVAILABLE);
    assert_int_equal(queue_state_of(q, id.s), PSEG_JOB_QUEUED);
    pseg_queue_close(q);
}

/* Whatever allocation fails, a request is answered, and the queue goes on. */
static void no_memory_is_an_answer(void **state)
{
    pseg_queue *q = open_mem();
    int refused = 0;

    (void)state;
    for (uint64_t n = 1; n < 40; n++) {
        id_text id;
        pseg_alloc_fail_nth(n);
        pseg_reason reason = queue_try_submit(q, id.s);
        pseg_alloc_fail_nth(0);
        assert_true(reason == PSEG_R_NONE || reason == PSEG_R_OUT_OF_MEMORY);
        assert_int_equal(queue_state_of(q, id.s), reason ? PSEG_JOB_UNKNOWN : PSEG_JOB_QUEUED);
        refused += reason != PSEG_R_NONE;
    }
    assert_true(refused > 3);
    assert_int_equal(case_stats(q).live, case_stats(q).submitted);
    pseg_queue_close(q);
}

int main(void)
{
    const struct CMUnitTest own[] = {
        CASE(its_clock_can_be_moved),
        CASE(faults_can_be_ordered),
        CASE(no_memory_is_an_answer),
    };
    int failed = queue_cases_run("queue in memory", "mem:");

    failed += cmocka_run_group_tests_name("queue of tests", own, NULL, NULL);
    return failed ? 1 : 0;
}
