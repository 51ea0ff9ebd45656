/* What lies before a job that would be submitted now: held against the order in which jobs are then
 * begun. */
#include "tests/support/queue_cases_impl.h"

#include <math.h>
#include <string.h>

static const pseg_queue_estimate *estimate(pseg_queue *q, const char *tenant, int64_t priority,
                                           int64_t weight, int64_t phrases)
{
    const pseg_queue_estimate_args a = {.tenant = tenant,
                                        .model = "m",
                                        .model_is_default = true,
                                        .request_id = "",
                                        .phrases = phrases,
                                        .priority = priority,
                                        .weight = weight};
    pseg_queue_reply *r;

    CALL(r, pseg_queue_get_estimate, q, &a);
    case_keep(r);
    if (r->err.code != PSEG_OK)
        fail_msg("%s", r->err.msg);
    assert_true(r->estimate.now_unix_us > 1500000000000000);
    return &r->estimate;
}

static id_text submit_as(pseg_queue *q, const char *tenant, int64_t priority, int64_t weight)
{
    id_text id;
    pseg_queue_submit_args a = case_args(&id);
    const pseg_queue_tenant limits = {.weight = weight};
    pseg_queue_reply *r;

    a.tenant = tenant;
    a.priority = priority;
    a.limits = &limits;
    CALL(r, pseg_queue_submit, q, &a);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    return id;
}

/* How many are begun before it, one claim at a time. */
static int64_t begun_before(pseg_queue *q, const char *id)
{
    int64_t n = 0;

    while (strcmp(case_claim(q, "w")->id, id) != 0)
        n++;
    return n;
}

static unsigned rnd(unsigned *state, unsigned n)
{
    *state = *state * 1664525u + 1013904223u;
    return (*state >> 16) % n;
}

/* Tenants of different weights with jobs of different priorities: as many are begun before the new
 * one as was told, and none of what comes after it was counted. */
static void the_place_in_line_is_the_order_of_claims(void **state)
{
    static const char *const tenants[] = {"alpha", T, "omega", "zeta"};
    static const int64_t weights[] = {1, 2, 4, 1};
    unsigned seed = 7;

    (void)state;
    pseg_queue *q = case_open(NULL);
    case_register(q, "w");
    for (int round = 0; round < 12; round++) {
        for (unsigned n = 5 + rnd(&seed, 15); n > 0; n--) {
            unsigned t = rnd(&seed, 4);
            submit_as(q, tenants[t], (int64_t)rnd(&seed, 5) - 2, weights[t]);
        }
        for (unsigned n = rnd(&seed, 4); n > 0; n--)
            case_claim(q, "w");
        unsigned t = rnd(&seed, 4);
        int64_t priority = (int64_t)rnd(&seed, 5) - 2;
        const pseg_queue_estimate *e = estimate(q, tenants[t], priority, weights[t], 1);
        int64_t told = e->ahead;
        id_text id = submit_as(q, tenants[t], priority, weights[t]);
        int64_t found = begun_before(q, id.s);
        if (told != found)
            fail_msg("round %d, tenant %s: %lld ahead were told, %lld were begun before", round,
                     tenants[t], (long long)told, (long long)found);
        while (case_claim_count(q, "w") > 0)
            ;
    }
}

static void what_runs_and_who_serves_is_counted(void **state)
{
    pseg_queue *q = case_open(NULL);

    (void)state;
    const pseg_queue_estimate *e = estimate(q, T, 0, 1, 1);
    assert_int_equal(e->workers + e->busy + e->ahead + e->mean_us + e->cost_us, 0);
    assert_false(e->is_known);
    case_register(q, "w");
    case_register(q, "v");
    for (int i = 0; i < 4; i++)
        case_submit(q);
    const pseg_queue_claim *c = case_claim(q, "w");
    case_claim(q, "v");
    e = estimate(q, T, 0, 1, 1);
    assert_int_equal(e->workers, 2);
    assert_int_equal(e->busy, 2);
    assert_int_equal(e->ahead, 2);
    assert_int_equal(e->waiting, 2);
    /* One that waits for another attempt still has to be done. */
    case_fail(q, "w", c, PSEG_R_DEVICE_FAILED, 60000, NULL);
    e = estimate(q, T, 0, 1, 1);
    assert_int_equal(e->busy, 2);
    /* The next minute's priority comes before all that waits, the last minute's behind. */
    assert_int_equal(estimate(q, T, 1, 1, 1)->ahead, 0);
    assert_int_equal(estimate(q, T, 1, 1, 1)->waiting, 2);
    assert_int_equal(estimate(q, T, -1, 1, 1)->ahead, 2);
}

static void publish_with(pseg_queue *q, size_t phrases, int64_t cost_us)
{
    pseg_bytes masks[16];
    pseg_queue_reply *r;

    case_submit(q);
    for (size_t i = 0; i < phrases; i++)
        masks[i] = case_bytes("mask");
    CALL(r, pseg_queue_publish, q, "w", case_lease(case_claim(q, "w")), case_bytes("result"), masks,
         phrases, cost_us);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
}

static void is_near(int64_t found, double expected, double share)
{
    if (!(fabs((double)found - expected) <= share * expected))
        fail_msg("%lld us, not about %.0f", (long long)found, expected);
}

static void phrases_have_their_own_price(void **state)
{
    pseg_queue *q = case_open(NULL);

    (void)state;
    case_register(q, "w");
    /* All have two phrases: nothing tells what another number would cost. */
    publish_with(q, 2, 30000);
    publish_with(q, 2, 30000);
    is_near(estimate(q, T, 0, 1, 2)->cost_us, 30000, 0.01);
    is_near(estimate(q, T, 0, 1, 10)->cost_us, 30000, 0.01);
    /* 20 ms for the image and 5 ms for each phrase. */
    for (int i = 0; i < 200; i++) {
        size_t phrases = 1 + (size_t)i % 10;
        publish_with(q, phrases, 20000 + 5000 * (int64_t)phrases);
    }
    is_near(estimate(q, T, 0, 1, 1)->cost_us, 25000, 0.15);
    is_near(estimate(q, T, 0, 1, 10)->cost_us, 70000, 0.15);
    is_near(estimate(q, T, 0, 1, 64)->cost_us, 340000, 0.2);
}

static void what_cannot_be_estimated_is_told(void **state)
{
    pseg_queue *q = case_open(NULL);
    pseg_queue_estimate_args a = {
        .tenant = T, .model = "nobody's", .request_id = "again", .phrases = 1, .weight = 1};
    id_text id;
    pseg_queue_submit_args job = case_args(&id);
    pseg_queue_reply *r;

    (void)state;
    CALL(r, pseg_queue_get_estimate, q, &a);
    case_keep(r);
    assert_int_equal(r->err.reason, PSEG_R_MODEL_UNKNOWN);
    a.model = "m";
    a.model_is_default = true;
    job.request_id = "again";
    CALL(r, pseg_queue_submit, q, &job);
    case_keep(r);
    CALL(r, pseg_queue_get_estimate, q, &a);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    assert_true(r->estimate.is_known);
    a.tenant = "other";
    CALL(r, pseg_queue_get_estimate, q, &a);
    case_keep(r);
    assert_false(r->estimate.is_known);
}

const struct CMUnitTest estimate_cases[] = {
    CASE(the_place_in_line_is_the_order_of_claims),
    CASE(what_runs_and_who_serves_is_counted),
    CASE(phrases_have_their_own_price),
    CASE(what_cannot_be_estimated_is_told),
};
const size_t n_estimate_cases = sizeof estimate_cases / sizeof *estimate_cases;
