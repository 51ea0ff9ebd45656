/* Cases of which worker gets a job whose image one of them has at hand. */
#include "tests/support/queue_cases_impl.h"

#include <stdio.h>
#include <string.h>

#define FOR_EVER_MS 1000000000
#define OTHER_SHA   "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

/* Workers that are not heard of for long, on a slow machine, still live. */
static pseg_queue *open_calm(void)
{
    pseg_queue_options o = case_options();

    o.lease_ms = 600000;
    return case_open(&o);
}

static id_text submit_on(pseg_queue *q, const char *tenant, const char *sha)
{
    id_text id;
    pseg_queue_submit_args a = case_args(&id);
    pseg_queue_reply *r;

    a.tenant = tenant;
    a.image_sha256 = sha;
    CALL(r, pseg_queue_submit, q, &a);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    return id;
}

static pseg_queue_reply *claim_near(pseg_queue *q, const char *worker, size_t max, int64_t near_ms)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_claim_jobs, q, worker, "m", max, 0, near_ms);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    return r;
}

static void is_claimed(const pseg_queue_reply *r, size_t i, id_text id)
{
    assert_true(i < r->n_claims);
    assert_string_equal(r->claims[i].id, id.s);
}

static void is_left(const pseg_queue_reply *r)
{
    assert_int_equal(r->n_claims, 0);
    assert_in_range(r->again_ms, 1, FOR_EVER_MS);
}

/* One job on the image is claimed by "holder". */
static pseg_queue *open_with_holder(void)
{
    pseg_queue *q = open_calm();

    case_register(q, "holder");
    case_register(q, "other");
    id_text id = submit_on(q, T, SHA);
    is_claimed(claim_near(q, "holder", 1, FOR_EVER_MS), 0, id);
    return q;
}

static void a_job_goes_to_who_has_its_image(void **state)
{
    pseg_queue *q = open_with_holder();
    id_text near = submit_on(q, T, SHA);

    (void)state;
    is_left(claim_near(q, "other", 3, FOR_EVER_MS));
    id_text free = submit_on(q, T, OTHER_SHA);
    const pseg_queue_reply *r = claim_near(q, "other", 3, FOR_EVER_MS);
    assert_int_equal(r->n_claims, 1);
    is_claimed(r, 0, free);
    assert_true(r->again_ms > 0);
    r = claim_near(q, "holder", 3, FOR_EVER_MS);
    assert_int_equal(r->n_claims, 1);
    is_claimed(r, 0, near);
    assert_int_equal(r->again_ms, 0);
    /* Each has its own now. */
    id_text others = submit_on(q, T, OTHER_SHA);
    is_left(claim_near(q, "holder", 1, FOR_EVER_MS));
    is_claimed(claim_near(q, "other", 1, FOR_EVER_MS), 0, others);
}

static void a_holder_takes_its_own_before_older_ones(void **state)
{
    pseg_queue *q = open_with_holder();
    id_text older = submit_on(q, T, OTHER_SHA), mine = submit_on(q, T, SHA);

    (void)state;
    is_claimed(claim_near(q, "holder", 1, FOR_EVER_MS), 0, mine);
    /* The older one has been passed over once, and its time begins with that. */
    id_text next = submit_on(q, T, SHA);
    queue_pause_ms(5);
    const pseg_queue_reply *r = claim_near(q, "holder", 2, 1);
    is_claimed(r, 0, older);
    is_claimed(r, 1, next);
}

static void no_job_is_passed_over_for_longer(void **state)
{
    pseg_queue *q = open_with_holder();
    id_text first = submit_on(q, T, SHA);

    (void)state;
    is_left(claim_near(q, "other", 1, FOR_EVER_MS));
    queue_pause_ms(5);
    const pseg_queue_reply *r = claim_near(q, "other", 1, 1);
    is_claimed(r, 0, first);
    /* That one has the image now. */
    id_text next = submit_on(q, T, SHA);
    is_left(claim_near(q, "holder", 1, FOR_EVER_MS));
    is_claimed(claim_near(q, "other", 1, FOR_EVER_MS), 0, next);
    /* Whoever does not ask for this gets jobs as they come. */
    id_text last = submit_on(q, T, SHA);
    is_claimed(claim_near(q, "holder", 1, 0), 0, last);
}

/* A job that comes back has been passed over long enough, for whom it was is told by its claims. */
static void time_passed_over_is_counted_once(void **state)
{
    pseg_queue *q = open_with_holder();
    id_text id = submit_on(q, T, SHA);

    (void)state;
    is_left(claim_near(q, "other", 1, FOR_EVER_MS));
    queue_pause_ms(5);
    const pseg_queue_reply *r = claim_near(q, "other", 1, 1);
    is_claimed(r, 0, id);
    assert_int_equal(case_release(q, "other", &r->claims[0], NULL), PSEG_JOB_QUEUED);
    is_claimed(claim_near(q, "holder", 1, 1), 0, id);
}

static void a_holder_that_leaves_is_forgotten(void **state)
{
    pseg_queue *q = open_with_holder();
    id_text id = submit_on(q, T, SHA);
    pseg_queue_reply *r;

    (void)state;
    is_left(claim_near(q, "other", 1, FOR_EVER_MS));
    CALL(r, pseg_queue_unregister, q, "holder");
    case_keep(r);
    is_claimed(claim_near(q, "other", 1, FOR_EVER_MS), 0, id);
}

static void a_holder_that_is_silent_is_forgotten(void **state)
{
    pseg_queue *q = case_open(NULL);

    (void)state;
    case_register(q, "holder");
    submit_on(q, T, SHA);
    assert_int_equal(claim_near(q, "holder", 1, FOR_EVER_MS)->n_claims, 1);
    case_register(q, "other");
    id_text id = submit_on(q, T, SHA);
    /* Its lease has ended by then, and that job is back, too. */
    SWEEP_UNTIL(q, case_stats(q).leased == 0);
    const pseg_queue_reply *r = claim_near(q, "other", 2, FOR_EVER_MS);
    assert_true(r->n_claims > 0);
    is_claimed(r, r->n_claims - 1, id);
}

static void images_of_tenants_are_strangers(void **state)
{
    pseg_queue *q = open_with_holder();
    id_text id = submit_on(q, "stranger", SHA);

    (void)state;
    is_claimed(claim_near(q, "other", 1, FOR_EVER_MS), 0, id);
}

/* While one's job is passed over others' go on, and it is behind by nothing afterwards. */
static void shares_are_kept(void **state)
{
    enum { N = 6 };
    pseg_queue *q = open_with_holder();
    id_text id = submit_on(q, T, SHA);
    int n = 0;

    (void)state;
    for (int i = 0; i < N; i++)
        submit_on(q, "b", OTHER_SHA);
    const pseg_queue_reply *r = claim_near(q, "other", 3, FOR_EVER_MS);
    assert_int_equal(r->n_claims, 3);
    for (size_t i = 0; i < 3; i++)
        assert_string_equal(r->claims[i].tenant, "b");
    for (int i = 0; i < N; i++)
        submit_on(q, T, OTHER_SHA);
    r = claim_near(q, "holder", 1, FOR_EVER_MS);
    is_claimed(r, 0, id);
    r = claim_near(q, "other", 4, FOR_EVER_MS);
    assert_int_equal(r->n_claims, 4);
    for (size_t i = 0; i < 4; i++)
        n += strcmp(r->claims[i].tenant, T) == 0;
    assert_in_range(n, 2, 4);
}

/* Longer lines than a claim looks at: what lies behind comes to its turn with them. */
static void a_long_line_is_looked_at_in_pieces(void **state)
{
    enum { N = 100 };
    pseg_queue *q = open_with_holder();
    size_t n = 0;

    (void)state;
    for (int i = 0; i < N; i++)
        submit_on(q, T, SHA);
    id_text last = submit_on(q, T, OTHER_SHA);
    is_left(claim_near(q, "other", 2, FOR_EVER_MS));
    is_left(claim_near(q, "other", 2, FOR_EVER_MS));
    while (n < N - 1) {
        const pseg_queue_reply *r = claim_near(q, "holder", 9, FOR_EVER_MS);
        assert_int_equal(r->n_claims, 9);
        n += r->n_claims;
    }
    const pseg_queue_reply *r = claim_near(q, "other", 2, FOR_EVER_MS);
    assert_int_equal(r->n_claims, 1);
    is_claimed(r, 0, last);
}

const struct CMUnitTest near_cases[] = {
    CASE(a_job_goes_to_who_has_its_image),    CASE(a_holder_takes_its_own_before_older_ones),
    CASE(no_job_is_passed_over_for_longer),   CASE(time_passed_over_is_counted_once),
    CASE(a_holder_that_leaves_is_forgotten),  CASE(a_holder_that_is_silent_is_forgotten),
    CASE(images_of_tenants_are_strangers),    CASE(shares_are_kept),
    CASE(a_long_line_is_looked_at_in_pieces),
};
const size_t n_near_cases = sizeof near_cases / sizeof *near_cases;
