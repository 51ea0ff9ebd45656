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

static void events_that_were_trimmed_are_a_gap(void **state)
{
    pseg_queue *q = open_mem();
    pseg_queue_reply *r;

    (void)state;
    for (int i = 0; i < 4; i++)
        case_submit(q);
    case_register(q, "w");
    for (int i = 0; i < 4; i++)
        case_claim(q, "w");
    CALL(r, pseg_queue_events, q, T, "", ((pseg_queue_place){0, 0, PSEG_QUEUE_WHOLE}), 1);
    case_keep(r);
    assert_false(r->has_gap);
    pseg_queue_place first = r->place;
    CALL(r, pseg_queue_events, q, T, "", first, 1);
    case_keep(r);
    assert_false(r->has_gap);
    pseg_queue_place second = r->place;
    pseg_queue_mem_trim_events(q, 3);
    CALL(r, pseg_queue_events, q, T, "", first, 10);
    case_keep(r);
    assert_true(r->has_gap);
    assert_int_equal(r->n_events, 3);
    CALL(r, pseg_queue_events, q, T, "", second, 10);
    case_keep(r);
    assert_false(r->has_gap);
    assert_int_equal(r->n_events, 2);
    CALL(r, pseg_queue_events, q, T, "", ((pseg_queue_place){0, 0, PSEG_QUEUE_WHOLE}), 10);
    case_keep(r);
    assert_true(r->has_gap);
    pseg_queue_close(q);
}

static void places_are_text_and_back(void **state)
{
    static const char *const bad[] = {"",
                                      "1",
                                      "1-",
                                      "-1",
                                      "1-2.",
                                      "1-2.x",
                                      "1-2x",
                                      "1-2.4294967295",
                                      " 1-2",
                                      "+1-2",
                                      "1 - 2",
                                      "1--2",
                                      "1-2 ",
                                      "0x1-2",
                                      "18446744073709551616-0",
                                      "1-2.3.4",
                                      "1-2-3"};
    char text[PSEG_QUEUE_PLACE_BYTES];
    pseg_queue_place p, widest = {UINT64_MAX, UINT64_MAX, PSEG_QUEUE_WHOLE - 1};

    (void)state;
    pseg_queue_place_format(text, widest);
    assert_string_equal(text, "18446744073709551615-18446744073709551615.4294967294");
    assert_true(pseg_queue_place_parse(&p, text));
    assert_int_equal(pseg_queue_place_compare(p, widest), 0);
    pseg_queue_place_format(text, (pseg_queue_place){17, 3, PSEG_QUEUE_WHOLE});
    assert_string_equal(text, "17-3");
    assert_true(pseg_queue_place_parse(&p, "17-3.0"));
    assert_true(pseg_queue_place_compare(p, (pseg_queue_place){17, 3, 1}) < 0);
    assert_true(pseg_queue_place_compare((pseg_queue_place){17, 3, PSEG_QUEUE_WHOLE}, p) > 0);
    assert_true(pseg_queue_place_compare((pseg_queue_place){17, 4, 0}, p) > 0);
    assert_true(pseg_queue_place_compare((pseg_queue_place){16, 9, 9}, p) < 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (pseg_queue_place_parse(&p, bad[i]))
            fail_msg("\"%s\" is taken for a place", bad[i]);
}

int main(void)
{
    const struct CMUnitTest own[] = {
        CASE(its_clock_can_be_moved),   CASE(faults_can_be_ordered),
        CASE(no_memory_is_an_answer),   CASE(events_that_were_trimmed_are_a_gap),
        CASE(places_are_text_and_back),
    };
    int failed = queue_cases_run("queue in memory", "mem:");
    failed += queue_cases_run("queue in memory, in parts", "mem: mem: mem:");

    failed += cmocka_run_group_tests_name("queue of tests", own, NULL, NULL);
    return failed ? 1 : 0;
}
