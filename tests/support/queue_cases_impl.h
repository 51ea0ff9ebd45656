/* Between the parts of the queue's cases. */
#ifndef PSEG_TESTS_SUPPORT_QUEUE_CASES_IMPL_H
#define PSEG_TESTS_SUPPORT_QUEUE_CASES_IMPL_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/support/queue_cases.h"

#define SHA "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define T   "default"

typedef struct id_text {
    char s[PSEG_JOB_ID_LEN + 1];
} id_text;

/* A queue of the case's own with short times: lease 300 ms, 3 attempts. Ends with the case. */
pseg_queue_options case_options(void);
pseg_queue *case_open(const pseg_queue_options *o); /* NULL: case_options() */
/* A further handle on the queue opened last. */
pseg_queue *case_open_again(void);

pseg_queue_submit_args case_args(id_text *id);
/* Submits and asserts that it is a new job. */
id_text case_submit(pseg_queue *q);
void case_register(pseg_queue *q, const char *worker);
/* The one job that can be claimed; its memory lives until the case ends. */
const pseg_queue_claim *case_claim(pseg_queue *q, const char *worker);
size_t case_claim_count(pseg_queue *q, const char *worker);
/* At most so many; they live until the case ends. */
const pseg_queue_reply *case_claim_many(pseg_queue *q, const char *worker, size_t most);
/* Batch "b" of T, new. */
void case_create_batch(pseg_queue *q, int64_t ttl_ms);
/* Items `from` to `from + n - 1` of it, sent at once, so that they lie in packs; each has its
 * number as spec and name. terms: time to live, deadline and priority of all, or NULL. */
void case_put_items(pseg_queue *q, int from, int n, const pseg_queue_submit_args *terms);
void case_sweep(pseg_queue *q);
pseg_queue_lease case_lease(const pseg_queue_claim *c);
pseg_lease_state case_renew(pseg_queue *q, const char *worker, const pseg_queue_claim *c);
/* The state after it; or UNKNOWN and *reason (may be NULL). */
pseg_job_state case_publish(pseg_queue *q, const char *worker, const pseg_queue_claim *c,
                            pseg_reason *reason);
pseg_job_state case_fail(pseg_queue *q, const char *worker, const pseg_queue_claim *c,
                         pseg_reason why, int64_t delay_ms, pseg_reason *reason);
pseg_job_state case_release(pseg_queue *q, const char *worker, const pseg_queue_claim *c,
                            pseg_reason *reason);
pseg_queue_stats case_stats(pseg_queue *q);
/* The job with all its strings; lives until the case ends. */
const pseg_job *case_job(pseg_queue *q, const char *id);
void case_keep(pseg_queue_reply *r);
pseg_bytes case_bytes(const char *s);
void assert_bytes(pseg_bytes b, const char *s);
/* Sweeps until cond, for 10 s at most. */
#define SWEEP_UNTIL(q, cond)                                      \
    do {                                                          \
        bool is_so = false;                                       \
        for (int sweeps = 0; !is_so && sweeps < 2000; sweeps++) { \
            case_sweep(q);                                        \
            is_so = (cond);                                       \
            if (!is_so)                                           \
                queue_pause_ms(5);                                \
        }                                                         \
        assert_true(is_so);                                       \
    } while (0)

extern const struct CMUnitTest client_cases[], worker_cases[], order_cases[], backlog_cases[],
    event_cases[], batch_cases[], estimate_cases[], feature_cases[], near_cases[], pack_cases[];
extern const size_t n_client_cases, n_worker_cases, n_order_cases, n_backlog_cases, n_event_cases,
    n_batch_cases, n_estimate_cases, n_feature_cases, n_near_cases, n_pack_cases;
int case_setup(void **state);
int case_teardown(void **state);
#define CASE(fn) cmocka_unit_test_setup_teardown(fn, case_setup, case_teardown)

#endif
