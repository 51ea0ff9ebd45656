/* W3C Trace Context: what is well formed, what is not, and what a span below another inherits. */
#include "common/base/trace_context.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#define TRACE "4bf92f3577b34da6a3ce929d0e0e4736"
#define SPAN  "00f067aa0ba902b7"

/* The cases of W3C Trace Context, 3.2.2 and 3.2.4, and the project's own test suite. */
static void well_formed(void **state)
{
    static const struct {
        const char *text;
        bool good, sampled;
    } cases[] = {
        {"00-" TRACE "-" SPAN "-01", true, true},
        {"00-" TRACE "-" SPAN "-00", true, false},
        {"00-" TRACE "-" SPAN "-ff", true, true},
        {"00-" TRACE "-" SPAN "-02", true, false},
        {"cc-" TRACE "-" SPAN "-01", true, true},        /* a later version */
        {"cc-" TRACE "-" SPAN "-01-what", true, true},   /* may say more */
        {"cc-" TRACE "-" SPAN "-01.what", false, false}, /* but behind a dash */
        {"00-" TRACE "-" SPAN "-01-what", false, false}, /* version 00 may not */
        {"00-" TRACE "-" SPAN "-01 ", false, false},
        {"ff-" TRACE "-" SPAN "-01", false, false},
        {"00-00000000000000000000000000000000-" SPAN "-01", false, false},
        {"00-" TRACE "-0000000000000000-01", false, false},
        {"00-4BF92F3577B34DA6A3CE929D0E0E4736-" SPAN "-01", false, false},
        {"00-" TRACE "_" SPAN "-01", false, false},
        {"00-" TRACE "-" SPAN "-0", false, false},
        {"00-" TRACE "-" SPAN "-0g", false, false},
        {"0g-" TRACE "-" SPAN "-01", false, false},
        {"", false, false},
        {"00", false, false},
        {NULL, false, false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pseg_trace_context c = {.is_sampled = !cases[i].sampled}, before = c;
        bool good = pseg_trace_context_parse(&c, cases[i].text);
        if (good != cases[i].good || (good && c.is_sampled != cases[i].sampled))
            fail_msg("%s", cases[i].text ? cases[i].text : "NULL");
        if (!good)
            assert_memory_equal(&c, &before, sizeof c);
    }
}

static void there_and_back(void **state)
{
    pseg_trace_context c;
    char text[PSEG_TRACEPARENT_LEN + 1];

    (void)state;
    assert_true(pseg_trace_context_parse(&c, "00-" TRACE "-" SPAN "-01"));
    pseg_trace_context_format(text, &c);
    assert_string_equal(text, "00-" TRACE "-" SPAN "-01");
    c.is_sampled = false;
    pseg_trace_context_format(text, &c);
    assert_string_equal(text, "00-" TRACE "-" SPAN "-00");
}

static void a_child_is_of_its_parents_trace(void **state)
{
    pseg_trace_context parent, child;

    (void)state;
    assert_true(pseg_trace_context_parse(&parent, "00-" TRACE "-" SPAN "-01"));
    for (int sampled = 0; sampled < 2; sampled++) {
        parent.is_sampled = sampled;
        assert_true(pseg_trace_context_begin(&child, &parent, 1 - sampled));
        assert_memory_equal(child.trace_id, parent.trace_id, 16);
        assert_memory_not_equal(child.span_id, parent.span_id, 8);
        assert_int_equal(child.is_sampled, sampled);
    }
}

static void the_share_of_traces_kept(void **state)
{
    enum { N = 20000 };
    pseg_trace_context c;
    int kept = 0;

    (void)state;
    for (int i = 0; i < N; i++) {
        assert_true(pseg_trace_context_begin(&c, NULL, 0.25));
        kept += c.is_sampled;
    }
    assert_in_range(kept, N / 4 - 400, N / 4 + 400); /* over six standard deviations */
    for (int i = 0; i < 1000; i++) {
        assert_true(pseg_trace_context_begin(&c, NULL, 0));
        assert_false(c.is_sampled);
        assert_true(pseg_trace_context_begin(&c, NULL, 1));
        assert_true(c.is_sampled);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(well_formed),
        cmocka_unit_test(there_and_back),
        cmocka_unit_test(a_child_is_of_its_parents_trace),
        cmocka_unit_test(the_share_of_traces_kept),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
