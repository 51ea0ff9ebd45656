/* Cases of items that are sent together: on Redis they lie in packs (lua/pack.lua), and nothing of
 * that may be seen. */
#include "tests/support/queue_cases_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ITEMS = 200 };

static const pseg_queue_estimate_args one_more = {.tenant = T,
                                                  .model = "m",
                                                  .model_is_default = true,
                                                  .request_id = "",
                                                  .phrases = 1,
                                                  .weight = 1};

/* Its number. */
static int number(const pseg_queue_claim *c)
{
    char text[16] = "";

    assert_true(c->spec.len < sizeof text);
    memcpy(text, c->spec.data, c->spec.len);
    return atoi(text);
}

static pseg_queue_batch look(pseg_queue *q)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_get_batch, q, T, "b");
    assert_int_equal(r->n_batches, 1);
    pseg_queue_batch b = r->batches[0];
    pseg_queue_reply_free(r);
    return b;
}

/* All ends of the batch: each number once, with its name, and a job in that state. -> how many */
static int check_ends(pseg_queue *q, int n_items)
{
    bool seen[MAX_ITEMS + 1] = {false};
    pseg_queue_reply *r;

    CALL(r, pseg_queue_batch_ends, q, T, "b", 0, 1000, true, PSEG_NO_MASKS);
    case_keep(r);
    for (size_t i = 0; i < r->n_items; i++) {
        int64_t seq = r->items[i].seq;
        char text[16];
        assert_in_range(seq, 1, n_items);
        assert_false(seen[seq]);
        seen[seq] = true;
        snprintf(text, sizeof text, "%d", (int)seq);
        assert_string_equal(r->items[i].custom_id, text);
        assert_string_equal(r->jobs[i].id, r->items[i].job_id);
        assert_int_equal(r->jobs[i].state, r->items[i].state);
        assert_bytes(r->jobs[i].spec, text);
        assert_true(r->jobs[i].finished_unix_us > 0);
        assert_true(r->jobs[i].expire_unix_us == r->jobs[i].finished_unix_us + 60000000);
    }
    return (int)r->n_items;
}

static void publish_all(pseg_queue *q, const char *worker, const pseg_queue_reply *r)
{
    for (size_t i = 0; i < r->n_claims; i++)
        assert_int_equal(case_publish(q, worker, &r->claims[i], NULL), PSEG_JOB_SUCCEEDED);
}

static void workers_share_what_was_sent_together(void **state)
{
    enum { N = 40 };
    pseg_queue *q = case_open(NULL);

    (void)state;
    case_create_batch(q, 60000);
    case_register(q, "v");
    case_register(q, "w");
    case_put_items(q, 1, N, NULL);
    assert_int_equal(case_stats(q).live, N);
    const pseg_queue_reply *a = case_claim_many(q, "v", 3), *b = case_claim_many(q, "w", 5),
                           *c = case_claim_many(q, "v", N);
    assert_int_equal(a->n_claims, 3);
    assert_int_equal(b->n_claims, 5);
    assert_int_equal(c->n_claims, N - 8);
    for (int i = 0; i < N; i++) {
        const pseg_queue_claim *k = i < 3   ? &a->claims[i]
                                    : i < 8 ? &b->claims[i - 3]
                                            : &c->claims[i - 8];
        assert_int_equal(number(k), i + 1);
        assert_string_equal(k->tenant, T);
        assert_string_equal(k->image, T ":" SHA);
        assert_true(k->fence > 0);
        assert_int_equal(k->attempt, 1);
        assert_int_equal(k->group, 0);
        assert_true(k->deadline_unix_us > k->created_unix_us);
    }
    assert_int_equal(case_claim_count(q, "w"), 0);
    assert_int_equal(case_stats(q).leased, N);
    const pseg_job *j = case_job(q, b->claims[1].id);
    assert_int_equal(j->state, PSEG_JOB_RUNNING);
    assert_string_equal(j->worker, "w");
    publish_all(q, "w", b);
    assert_int_equal(case_stats(q).leased, N - 5);
    publish_all(q, "v", c);
    publish_all(q, "v", a);
    assert_int_equal(check_ends(q, N), N);
    pseg_queue_stats s = case_stats(q);
    assert_int_equal(s.live, 0);
    assert_int_equal(s.leased, 0);
    assert_int_equal(s.succeeded, N);
    /* Asked again, its holder gets the same answer, and nobody else. */
    pseg_reason why;
    assert_int_equal(case_publish(q, "w", &b->claims[0], NULL), PSEG_JOB_SUCCEEDED);
    assert_int_equal(case_publish(q, "v", &b->claims[0], &why), PSEG_JOB_UNKNOWN);
    assert_int_equal(why, PSEG_R_LEASE_LOST);
    assert_int_equal(check_ends(q, N), N);
}

static void what_is_kept_of_them_can_be_read(void **state)
{
    enum { N = 30 };
    pseg_queue *q = case_open(NULL);
    static const char *ids[N];
    pseg_queue_reply *r;
    char after[PSEG_JOB_ID_LEN + 1] = "";
    int n = 0;

    (void)state;
    case_create_batch(q, 60000);
    case_register(q, "w");
    case_put_items(q, 1, N, NULL);
    const pseg_queue_reply *a = case_claim_many(q, "w", N / 2), *b = case_claim_many(q, "w", N);
    for (int i = 0; i < N; i++)
        ids[i] = i < N / 2 ? a->claims[i].id : b->claims[i - N / 2].id;
    const pseg_bytes masks[2] = {case_bytes("one"), case_bytes("two")};
    CALL(r, pseg_queue_publish, q, "w", case_lease(&a->claims[2]), case_bytes("result"), masks, 2,
         7);
    case_keep(r);
    assert_int_equal(r->state, PSEG_JOB_SUCCEEDED);
    const uint32_t which[] = {1, 0, 2};
    CALL(r, pseg_queue_masks, q, T, ids[2], which, 3);
    case_keep(r);
    assert_bytes(r->jobs[0].result, "result");
    assert_bytes(r->jobs[0].spec, "3");
    assert_bytes(r->blobs[0], "two");
    assert_bytes(r->blobs[1], "one");
    assert_null(r->blobs[2].data);
    CALL(r, pseg_queue_get, q, "other", ids, N);
    case_keep(r);
    for (int i = 0; i < N; i++)
        assert_null(r->jobs[i].id);
    /* Newest first, in pages that end in the middle. */
    for (bool more = true; more;) {
        CALL(r, pseg_queue_list, q, T, after, 7);
        case_keep(r);
        for (size_t i = 0; i < r->n_jobs; i++)
            assert_string_equal(r->jobs[i].id, ids[N - 1 - n++]);
        more = *r->next_id != '\0';
        snprintf(after, sizeof after, "%s", r->next_id);
    }
    assert_int_equal(n, N);
    CALL(r, pseg_queue_states, q, T, ids, N);
    case_keep(r);
    for (int i = 0; i < N; i++) {
        assert_int_equal(r->events[i].state, i == 2 ? PSEG_JOB_SUCCEEDED : PSEG_JOB_RUNNING);
        assert_string_equal(r->events[i].batch, "b");
    }
}

static void their_events_are_told_one_by_one(void **state)
{
    enum { N = 30 };
    pseg_queue *q = case_open(NULL);
    pseg_queue_place from = {0};
    pseg_job_state last[N + 1] = {0};
    const char *ids[N];
    pseg_queue_reply *r;
    int n = 0;

    (void)state;
    case_create_batch(q, 60000);
    case_register(q, "w");
    case_put_items(q, 1, N, NULL);
    const pseg_queue_reply *a = case_claim_many(q, "w", N);
    assert_int_equal(a->n_claims, N);
    for (int i = 0; i < N; i++)
        ids[i] = a->claims[i].id;
    publish_all(q, "w", a);
    for (bool more = true; more; n += (int)r->n_events) {
        CALL(r, pseg_queue_events, q, T, n % 2 ? "b" : "", from, 7);
        case_keep(r);
        assert_false(r->has_gap);
        for (size_t i = 0; i < r->n_events; i++) {
            const pseg_queue_event *e = &r->events[i];
            int k = 0;
            while (k < N && strcmp(ids[k], e->id) != 0)
                k++;
            assert_true(k < N);
            assert_int_equal(e->state, last[k] ? PSEG_JOB_SUCCEEDED : PSEG_JOB_RUNNING);
            assert_string_equal(e->worker, last[k] ? "" : "w");
            assert_string_equal(e->batch, "b");
            assert_true(pseg_queue_place_compare(e->place, from) > 0);
            last[k] = e->state;
            from = e->place;
        }
        more = r->n_events > 0;
    }
    assert_int_equal(n, 2 * N);
}

static void a_dead_worker_leaves_the_others_alone(void **state)
{
    enum { N = 12 };
    pseg_queue *q = case_open(NULL);
    bool seen[N + 1] = {false};
    pseg_reason why;
    int n = 0;

    (void)state;
    case_create_batch(q, 60000);
    case_register(q, "dead");
    case_register(q, "w");
    case_put_items(q, 1, N, NULL);
    const pseg_queue_reply *a = case_claim_many(q, "dead", 6);
    publish_all(q, "dead", &(pseg_queue_reply){.claims = a->claims, .n_claims = 2});
    SWEEP_UNTIL(q, case_stats(q).leased == 0);
    assert_int_equal(case_publish(q, "dead", &a->claims[3], &why), PSEG_JOB_UNKNOWN);
    assert_int_equal(why, PSEG_R_LEASE_LOST);
    assert_int_equal(case_renew(q, "dead", &a->claims[3]), PSEG_LEASE_LOST);
    /* The four come first, among ever fewer and with no attempt burnt. */
    for (const pseg_queue_reply *r; (r = case_claim_many(q, "w", N))->n_claims;
         n += (int)r->n_claims)
        for (size_t i = 0; i < r->n_claims; i++) {
            int k = number(&r->claims[i]);
            assert_false(seen[k]);
            seen[k] = true;
            assert_int_equal(r->claims[i].attempt, 1);
            assert_true(k <= 6 ? r->claims[i].group > 0 && r->n_claims <= 2
                               : r->claims[i].group == 0);
            assert_int_equal(case_publish(q, "w", &r->claims[i], NULL), PSEG_JOB_SUCCEEDED);
        }
    assert_int_equal(n, N - 2);
    assert_int_equal(check_ends(q, N), N);
}

static void a_living_worker_keeps_them(void **state)
{
    enum { N = 8 };
    pseg_queue_options o = case_options();
    o.lease_ms = 200;
    pseg_queue *q = case_open(&o);

    (void)state;
    case_create_batch(q, 60000);
    case_register(q, "w");
    case_put_items(q, 1, N, NULL);
    const pseg_queue_reply *a = case_claim_many(q, "w", N);
    pseg_queue_lease l[N];
    for (int i = 0; i < N; i++)
        l[i] = case_lease(&a->claims[i]);
    for (int k = 0; k < 20; k++) {
        pseg_queue_reply *r;
        case_register(q, "w");
        CALL(r, pseg_queue_renew, q, "w", l, N);
        assert_int_equal(r->n_leases, N);
        for (int i = 0; i < N; i++)
            assert_int_equal(r->leases[i], PSEG_LEASE_OK);
        pseg_queue_reply_free(r);
        queue_pause_ms(20);
        case_sweep(q);
    }
    publish_all(q, "w", a);
    assert_int_equal(check_ends(q, N), N);
}

static void one_of_them_can_be_cancelled(void **state)
{
    enum { N = 10 };
    pseg_queue *q = case_open(NULL);
    pseg_queue_reply *r;

    (void)state;
    case_create_batch(q, 60000);
    case_register(q, "w");
    case_put_items(q, 1, N, NULL);
    CALL(r, pseg_queue_list, q, T, "", N);
    case_keep(r);
    const pseg_job *third = &r->jobs[N - 3];
    assert_bytes(third->spec, "3");
    const pseg_queue_reply *a = case_claim_many(q, "w", 1);
    CALL(r, pseg_queue_cancel, q, "other", third->id);
    case_keep(r);
    assert_int_equal(r->n_jobs, 0);
    CALL(r, pseg_queue_cancel, q, T, third->id);
    case_keep(r);
    assert_int_equal(r->jobs[0].state, PSEG_JOB_CANCELLED);
    CALL(r, pseg_queue_cancel, q, T, a->claims[0].id);
    case_keep(r);
    assert_true(r->jobs[0].cancel_requested);
    assert_int_equal(case_renew(q, "w", &a->claims[0]), PSEG_LEASE_CANCEL);
    assert_int_equal(case_publish(q, "w", &a->claims[0], NULL), PSEG_JOB_CANCELLED);
    const pseg_queue_reply *rest = case_claim_many(q, "w", N);
    assert_int_equal(rest->n_claims, N - 2);
    for (size_t i = 0; i < rest->n_claims; i++)
        assert_int_equal(number(&rest->claims[i]), i ? i + 3 : 2);
    publish_all(q, "w", rest);
    assert_int_equal(check_ends(q, N), N);
    assert_int_equal(look(q).ended[PSEG_JOB_CANCELLED], 2);
}

static void the_batch_can_be_cancelled(void **state)
{
    enum { N = 150 };
    pseg_queue *q = case_open(NULL);
    pseg_queue_reply *r;

    (void)state;
    case_create_batch(q, 60000);
    case_register(q, "w");
    case_put_items(q, 1, N, NULL);
    const pseg_queue_reply *a = case_claim_many(q, "w", 20);
    publish_all(q, "w", &(pseg_queue_reply){.claims = a->claims, .n_claims = 5});
    CALL(r, pseg_queue_cancel_batch, q, T, "b");
    case_keep(r);
    SWEEP_UNTIL(q, look(q).ended[PSEG_JOB_CANCELLED] == N - 20);
    for (int i = 5; i < 20; i++) {
        assert_int_equal(case_renew(q, "w", &a->claims[i]), PSEG_LEASE_CANCEL);
        assert_int_equal(case_publish(q, "w", &a->claims[i], NULL), PSEG_JOB_CANCELLED);
    }
    assert_int_equal(check_ends(q, N), N);
    assert_int_equal(case_stats(q).live, 0);
    assert_int_equal(case_claim_count(q, "w"), 0);
}

static void one_that_fails_is_tried_again_at_its_place(void **state)
{
    enum { N = 8 };
    pseg_queue_options o = case_options();
    o.lease_ms = 60000;
    pseg_queue *q = case_open(&o);

    (void)state;
    case_create_batch(q, 60000);
    case_register(q, "w");
    case_put_items(q, 1, N, NULL);
    const pseg_queue_reply *a = case_claim_many(q, "w", 4);
    assert_int_equal(case_fail(q, "w", &a->claims[1], PSEG_R_DEVICE_FAILED, 0, NULL),
                     PSEG_JOB_QUEUED);
    assert_int_equal(case_release(q, "w", &a->claims[3], NULL), PSEG_JOB_QUEUED);
    assert_int_equal(case_fail(q, "w", &a->claims[2], PSEG_R_IMAGE_UNDECODABLE, 0, NULL),
                     PSEG_JOB_FAILED);
    assert_int_equal(case_stats(q).leased, 1);
    const int order[] = {2, 4, 5, 6, 7, 8};
    const pseg_queue_reply *b = case_claim_many(q, "w", N);
    assert_int_equal(b->n_claims, 6);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(number(&b->claims[i]), order[i]);
        assert_int_equal(b->claims[i].attempt, i == 0 ? 2 : 1);
    }
    publish_all(q, "w", b);
    publish_all(q, "w", &(pseg_queue_reply){.claims = a->claims, .n_claims = 1});
    assert_int_equal(check_ends(q, N), N);
    assert_int_equal(look(q).ended[PSEG_JOB_FAILED], 1);
}

static void their_deadline_bites(void **state)
{
    enum { N = 20 };
    pseg_queue_options o = case_options();
    o.lease_ms = 60000;
    pseg_queue *q = case_open(&o);
    pseg_queue_reply *r;

    (void)state;
    case_create_batch(q, 60000);
    case_register(q, "w");
    CALL(r, pseg_queue_get_estimate, q, &one_more);
    case_keep(r);
    case_put_items(q, 1, N,
                   &(pseg_queue_submit_args){.deadline_unix_us = r->estimate.now_unix_us + 300000});
    const pseg_queue_reply *a = case_claim_many(q, "w", 6);
    publish_all(q, "w", &(pseg_queue_reply){.claims = a->claims, .n_claims = 2});
    queue_pause_ms(310);
    assert_int_equal(case_publish(q, "w", &a->claims[2], NULL), PSEG_JOB_EXPIRED);
    assert_int_equal(case_renew(q, "w", &a->claims[3]), PSEG_LEASE_EXPIRED);
    assert_int_equal(case_claim_count(q, "w"), 0);
    SWEEP_UNTIL(q, case_stats(q).live == 0);
    assert_int_equal(check_ends(q, N), N);
    assert_int_equal(look(q).ended[PSEG_JOB_EXPIRED], N - 2);
}

/* As of a job: what is no time names none. */
static void a_deadline_below_zero_is_none(void **state)
{
    pseg_queue *q = case_open(NULL);

    (void)state;
    case_create_batch(q, 60000);
    case_register(q, "w");
    case_put_items(q, 1, 10, &(pseg_queue_submit_args){.deadline_unix_us = -5});
    publish_all(q, "w", case_claim_many(q, "w", 10));
    assert_int_equal(check_ends(q, 10), 10);
    assert_int_equal(look(q).ended[PSEG_JOB_SUCCEEDED], 10);
}

static void they_count_one_by_one(void **state)
{
    enum { N = 50 };
    pseg_queue_options o = case_options();
    o.lease_ms = 60000;
    pseg_queue *q = case_open(&o);
    pseg_queue_reply *r;

    (void)state;
    case_create_batch(q, 60000);
    case_register(q, "w");
    case_put_items(q, 1, N, NULL);
    for (int claimed = 0; claimed < 20; claimed += 10) {
        CALL(r, pseg_queue_get_estimate, q, &one_more);
        case_keep(r);
        assert_int_equal(r->estimate.ahead, N - claimed);
        assert_int_equal(r->estimate.waiting, N - claimed);
        assert_int_equal(r->estimate.busy, claimed);
        case_claim_many(q, "w", 10);
    }
    CALL(r, pseg_queue_get_backlog, q, "m", 100);
    case_keep(r);
    assert_int_equal(r->backlog.live, N);
    assert_int_equal(r->backlog.due[r->backlog.n_due - 1].jobs, N);
    CALL(r, pseg_queue_get_uses, q);
    case_keep(r);
    assert_int_equal(r->n_uses, 1);
    assert_int_equal(r->uses[0].jobs, N);
}

static void the_queue_has_room_for_so_many(void **state)
{
    enum { MOST = 25, N = 40 };
    pseg_queue_options o = case_options();
    static pseg_queue_sync waits[N];
    int n_taken = 0;
    id_text id;

    (void)state;
    o.max_jobs = MOST;
    o.lease_ms = 60000;
    pseg_queue *q = case_open(&o);
    case_create_batch(q, 60000);
    case_register(q, "w");
    for (int i = 0; i < N; i++) {
        pseg_queue_item_args a = {
            .job = case_args(&id), .batch = "b", .seq = i + 1, .custom_id = ""};
        pseg_queue_sync_init(&waits[i]);
        pseg_queue_submit_item(q, &a, pseg_queue_sync_done, &waits[i]);
    }
    for (int i = 0; i < N; i++) {
        pseg_queue_reply *r = pseg_queue_sync_take(&waits[i]);
        n_taken += r->err.code == PSEG_OK;
        if (r->err.code != PSEG_OK)
            assert_true(r->err.reason == PSEG_R_QUEUE_FULL ||
                        r->err.reason == PSEG_R_BATCH_OUT_OF_ORDER);
        pseg_queue_reply_free(r);
    }
    assert_int_equal(n_taken, MOST);
    assert_int_equal(case_stats(q).live, MOST);
    publish_all(q, "w", case_claim_many(q, "w", 10));
    assert_int_equal(case_stats(q).live, MOST - 10);
    case_put_items(q, MOST + 1, 10, NULL);
    assert_int_equal(case_stats(q).live, MOST);
}

static void tenants_take_turns(void **state)
{
    enum { N = 20 };
    pseg_queue_options o = case_options();
    o.lease_ms = 60000;
    pseg_queue *q = case_open(&o);
    int n_other = 0;
    id_text id;

    (void)state;
    case_create_batch(q, 60000);
    case_register(q, "w");
    case_put_items(q, 1, N, NULL);
    for (int i = 0; i < N; i++) {
        pseg_queue_reply *r;
        pseg_queue_submit_args a = case_args(&id);
        a.tenant = "other";
        CALL(r, pseg_queue_submit, q, &a);
        case_keep(r);
    }
    const pseg_queue_reply *a = case_claim_many(q, "w", 10);
    assert_int_equal(a->n_claims, 10);
    for (int i = 0; i < 10; i++)
        n_other += strcmp(a->claims[i].tenant, "other") == 0;
    assert_int_equal(n_other, 5);
}

static void those_of_higher_priority_come_first(void **state)
{
    pseg_queue *q = case_open(NULL);

    (void)state;
    case_create_batch(q, 60000);
    case_register(q, "w");
    case_put_items(q, 1, 10, NULL);
    case_put_items(q, 11, 10, &(pseg_queue_submit_args){.priority = 5});
    const pseg_queue_reply *a = case_claim_many(q, "w", 15);
    for (int i = 0; i < 15; i++)
        assert_int_equal(number(&a->claims[i]), i < 10 ? 11 + i : i - 9);
}

static void a_worker_that_keeps_images_gets_them(void **state)
{
    enum { N = 20 };
    pseg_queue *q = case_open(NULL);
    pseg_queue_reply *r;

    (void)state;
    case_create_batch(q, 60000);
    case_register(q, "w");
    case_put_items(q, 1, N, NULL);
    for (int n = 0; n < N; n += 5) {
        CALL(r, pseg_queue_claim_jobs, q, "w", "m", 5, 0, 1000000000);
        case_keep(r);
        assert_int_equal(r->n_claims, 5);
        for (int i = 0; i < 5; i++)
            assert_int_equal(number(&r->claims[i]), n + i + 1);
        publish_all(q, "w", r);
    }
    assert_int_equal(check_ends(q, N), N);
}

/* Of the same bytes, sent by two tenants at once, each has to hold its own. */
static void an_image_of_another_tenant_is_not_held(void **state)
{
    enum { N = 24 };
    pseg_queue *q = case_open(NULL);
    static const char *const tenants[2] = {T, "other"};
    static pseg_queue_sync waits[N];
    pseg_queue_reply *r;
    id_text id;

    (void)state;
    case_create_batch(q, 60000);
    CALL(r, pseg_queue_create_batch, q, "other", "b", 60000, case_bytes(""));
    case_keep(r);
    CALL(r, pseg_queue_put_image, q, T, SHA, case_bytes("image"), 0);
    case_keep(r);
    for (int i = 0; i < N; i++) {
        pseg_queue_item_args a = {
            .job = case_args(&id), .batch = "b", .seq = 1 + i / 2, .custom_id = ""};
        a.job.tenant = tenants[i % 2];
        a.job.content = (pseg_bytes){NULL, 0};
        pseg_queue_sync_init(&waits[i]);
        pseg_queue_submit_item(q, &a, pseg_queue_sync_done, &waits[i]);
    }
    for (int i = 0; i < N; i++) {
        r = pseg_queue_sync_take(&waits[i]);
        assert_int_equal(r->err.code, PSEG_OK);
        pseg_queue_reply_free(r);
    }
    for (int i = 0; i < 2; i++) {
        CALL(r, pseg_queue_get_batch, q, tenants[i], "b");
        case_keep(r);
        assert_int_equal(r->batches[0].next_seq, N / 2 + 1);
        assert_int_equal(r->batches[0].refused, i ? N / 2 : 0);
    }
}

/* Item n has n % 4 masks, each its name; that of `big` is larger than what one answer brings. */
static void publish_masks(pseg_queue *q, const pseg_queue_reply *claims, int big)
{
    static uint8_t large[PSEG_ENDS_MASK_BYTES + 1];
    pseg_queue_reply *r;

    for (size_t i = 0; i < claims->n_claims; i++) {
        const pseg_queue_claim *c = &claims->claims[i];
        pseg_bytes masks[3];
        char text[3][32];
        size_t n = number(c) == big ? 1 : (size_t)number(c) % 4;
        for (size_t k = 0; k < n; k++) {
            snprintf(text[k], sizeof text[k], "%d of %d", (int)k, number(c));
            masks[k] = case_bytes(text[k]);
        }
        if (number(c) == big)
            masks[0] = (pseg_bytes){large, sizeof large};
        CALL(r, pseg_queue_publish, q, "w", case_lease(c), case_bytes("result"), masks, n, 7);
        assert_int_equal(r->state, PSEG_JOB_SUCCEEDED);
        pseg_queue_reply_free(r);
    }
}

static void assert_masks(const pseg_queue_item *it)
{
    size_t n = (size_t)it->seq % 4;

    assert_true(it->has_masks);
    assert_int_equal(it->n_masks, n);
    for (size_t k = 0; k < n; k++) {
        char text[32];
        snprintf(text, sizeof text, "%d of %d", (int)k, (int)it->seq);
        assert_bytes(it->masks[k], text);
    }
}

static void masks_come_with_the_ends(void **state)
{
    enum { N = 20, BIG = 14 };
    pseg_queue *q = case_open(NULL);
    pseg_queue_reply *r;

    (void)state;
    case_create_batch(q, 60000);
    case_register(q, "w");
    case_put_items(q, 1, N, NULL);
    const pseg_queue_reply *a = case_claim_many(q, "w", 4);
    assert_int_equal(case_release(q, "w", &a->claims[1], NULL),
                     PSEG_JOB_QUEUED); /* now by itself */
    publish_masks(q, &(pseg_queue_reply){.claims = a->claims, .n_claims = 1}, BIG);
    publish_masks(q, &(pseg_queue_reply){.claims = a->claims + 2, .n_claims = 2}, BIG);
    publish_masks(q, case_claim_many(q, "w", N), BIG);
    CALL(r, pseg_queue_batch_ends, q, T, "b", 0, 1000, true, 2);
    case_keep(r);
    assert_int_equal(r->n_items, N);
    bool is_over = false;
    for (size_t i = 0; i < N; i++) {
        const pseg_queue_item *it = &r->items[i];
        if (i < 2 || is_over)
            assert_false(it->has_masks);
        else if (it->seq != BIG)
            assert_masks(it);
        is_over = is_over || it->seq == BIG;
    }
    assert_true(is_over);
    /* The first that is wanted comes whole, whatever its size; and after it no other. */
    size_t big = 0;
    while (r->items[big].seq != BIG)
        big++;
    CALL(r, pseg_queue_batch_ends, q, T, "b", (int64_t)big - 1, 1000, true, (int64_t)big);
    case_keep(r);
    assert_false(r->items[0].has_masks);
    assert_int_equal(r->items[1].masks[0].len, PSEG_ENDS_MASK_BYTES + 1);
    assert_false(r->items[2].has_masks);
    CALL(r, pseg_queue_batch_ends, q, T, "b", 0, 1000, true, PSEG_NO_MASKS);
    case_keep(r);
    for (size_t i = 0; i < N; i++)
        assert_false(r->items[i].has_masks);
    CALL(r, pseg_queue_batch_ends, q, T, "b", 0, 1000, false, 0);
    case_keep(r);
    for (size_t i = 0; i < N; i++)
        assert_true(!r->items[i].has_masks && !r->jobs[i].id);
}

const struct CMUnitTest pack_cases[] = {
    CASE(masks_come_with_the_ends),
    CASE(an_image_of_another_tenant_is_not_held),
    CASE(workers_share_what_was_sent_together),
    CASE(what_is_kept_of_them_can_be_read),
    CASE(their_events_are_told_one_by_one),
    CASE(a_dead_worker_leaves_the_others_alone),
    CASE(a_living_worker_keeps_them),
    CASE(one_of_them_can_be_cancelled),
    CASE(the_batch_can_be_cancelled),
    CASE(one_that_fails_is_tried_again_at_its_place),
    CASE(their_deadline_bites),
    CASE(a_deadline_below_zero_is_none),
    CASE(they_count_one_by_one),
    CASE(the_queue_has_room_for_so_many),
    CASE(tenants_take_turns),
    CASE(those_of_higher_priority_come_first),
    CASE(a_worker_that_keeps_images_gets_them),
};
const size_t n_pack_cases = sizeof pack_cases / sizeof *pack_cases;
