/* Cases of batches: numbered items, each of which is taken once and ends once. */
#include "tests/support/queue_cases_impl.h"

#include <stdio.h>
#include <string.h>

static pseg_queue_batch create(pseg_queue *q, const char *id, int64_t ttl_ms)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_create_batch, q, T, id, ttl_ms, case_bytes("labels"));
    case_keep(r);
    if (r->err.code != PSEG_OK)
        fail_msg("%s", r->err.msg);
    assert_int_equal(r->n_batches, 1);
    return r->batches[0];
}

/* NULL: there is none. */
static const pseg_queue_batch *look(pseg_queue *q, const char *id)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_get_batch, q, T, id);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    return r->n_batches ? &r->batches[0] : NULL;
}

/* For polling: nothing is kept. */
static int64_t n_ended_as(pseg_queue *q, const char *id, pseg_job_state state)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_get_batch, q, T, id);
    int64_t n = r->n_batches ? (int64_t)r->batches[0].ended[state] : -1;
    pseg_queue_reply_free(r);
    return n;
}

static const pseg_queue_reply *ends(pseg_queue *q, const char *id, int64_t from, size_t limit)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_batch_ends, q, T, id, from, limit, true, PSEG_NO_MASKS);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    assert_int_equal(r->n_batches, 1);
    assert_int_equal(r->n_jobs, r->n_items);
    return r;
}

static pseg_reason put_args(pseg_queue *q, pseg_queue_item_args *a, int64_t *next)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_submit_item, q, a);
    case_keep(r);
    if (next)
        *next = r->next_seq;
    return r->err.reason;
}

static pseg_queue_item_args item(id_text *id, int64_t seq, const char *custom_id)
{
    return (pseg_queue_item_args){
        .job = case_args(id), .batch = "b", .seq = seq, .custom_id = custom_id};
}

static id_text put(pseg_queue *q, int64_t seq)
{
    id_text id;
    char custom[32];
    int64_t next;

    snprintf(custom, sizeof custom, "line %lld", (long long)seq);
    pseg_queue_item_args a = item(&id, seq, custom);
    assert_int_equal(put_args(q, &a, &next), PSEG_R_NONE);
    assert_int_equal(next, seq + 1);
    return id;
}

static void a_batch_is_made_once(void **state)
{
    pseg_queue *q = case_open(NULL);
    pseg_queue_batch b = create(q, "b", 60000);
    pseg_queue_reply *r;

    (void)state;
    assert_string_equal(b.id, "b");
    assert_bytes(b.labels, "labels");
    assert_int_equal(b.next_seq, 1);
    assert_int_equal(b.ttl_ms, 60000);
    assert_int_equal(b.n_ended, 0);
    assert_false(b.sealed || b.cancel_requested);
    assert_true(b.expire_unix_us == b.created_unix_us + 60000000);
    put(q, 1);
    CALL(r, pseg_queue_create_batch, q, T, "b", 1000, case_bytes("others"));
    case_keep(r);
    assert_false(r->created);
    assert_int_equal(r->batches[0].next_seq, 2);
    assert_bytes(r->batches[0].labels, "labels");
    /* Another tenant's of the same name is another. */
    CALL(r, pseg_queue_get_batch, q, "other", "b");
    case_keep(r);
    assert_int_equal(r->n_batches, 0);
    CALL(r, pseg_queue_create_batch, q, "other", "b", 1000, case_bytes(""));
    case_keep(r);
    assert_true(r->created);
    assert_int_equal(r->batches[0].next_seq, 1);
}

static void batches_are_listed_newest_first(void **state)
{
    pseg_queue *q = case_open(NULL);
    char id[8];
    pseg_queue_reply *r;
    const char *token = "";

    (void)state;
    for (int i = 0; i < 5; i++) {
        snprintf(id, sizeof id, "b%d", i);
        create(q, id, 60000);
    }
    for (int i = 4; i >= 0; i -= 2) {
        CALL(r, pseg_queue_list_batches, q, T, token, 2);
        case_keep(r);
        assert_int_equal(r->n_batches, i ? 2 : 1);
        snprintf(id, sizeof id, "b%d", i);
        assert_string_equal(r->batches[0].id, id);
        token = r->next_id;
    }
    assert_string_equal(token, "");
}

static void items_are_taken_in_order_and_once(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id, again;
    int64_t next;

    (void)state;
    pseg_queue_item_args a = item(&id, 1, "");
    assert_int_equal(put_args(q, &a, NULL), PSEG_R_BATCH_NOT_FOUND);
    create(q, "b", 60000);
    a = item(&id, 2, "");
    assert_int_equal(put_args(q, &a, NULL), PSEG_R_BATCH_OUT_OF_ORDER);
    assert_int_equal(case_stats(q).submitted, 0);
    put(q, 1);
    put(q, 2);
    /* Both are there already, whatever comes under their number. */
    a = item(&again, 1, "other");
    assert_int_equal(put_args(q, &a, &next), PSEG_R_NONE);
    assert_int_equal(next, 3);
    assert_int_equal(case_stats(q).submitted, 2);
    assert_int_equal(queue_state_of(q, again.s), PSEG_JOB_UNKNOWN);
    assert_int_equal(look(q, "b")->next_seq, 3);
}

/* Hundreds at once travel together, in their order. */
static void many_items_keep_their_order(void **state)
{
    enum { N = 300 };
    pseg_queue *q = case_open(NULL);
    static pseg_queue_sync waits[N];
    static id_text ids[N];

    (void)state;
    create(q, "b", 60000);
    for (int i = 0; i < N; i++) {
        pseg_queue_item_args a = item(&ids[i], i + 1, "x");
        pseg_queue_sync_init(&waits[i]);
        pseg_queue_submit_item(q, &a, pseg_queue_sync_done, &waits[i]);
    }
    for (int i = 0; i < N; i++) {
        pseg_queue_reply *r = pseg_queue_sync_take(&waits[i]);
        assert_int_equal(r->err.code, PSEG_OK);
        assert_int_equal(r->next_seq, i + 2);
        pseg_queue_reply_free(r);
    }
    case_register(q, "w");
    /* Of items that follow one another the queue may take other ids, but for the beginning. */
    assert_memory_equal(case_claim(q, "w")->id, ids[0].s, PSEG_JOB_ID_LEN - 2);
    assert_int_equal(case_stats(q).live, N);
}

static void every_end_is_told_once_in_order(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id[5];
    pseg_queue_reply *r;

    (void)state;
    create(q, "b", 60000);
    case_register(q, "w");
    for (int i = 0; i < 5; i++)
        id[i] = put(q, i + 1);
    const pseg_queue_claim *first = case_claim(q, "w"), *second = case_claim(q, "w");
    const pseg_queue_claim *third = case_claim(q, "w");
    CALL(r, pseg_queue_cancel, q, T, id[3].s);
    case_keep(r);
    assert_int_equal(case_publish(q, "w", second, NULL), PSEG_JOB_SUCCEEDED);
    assert_int_equal(case_fail(q, "w", first, PSEG_R_IMAGE_UNDECODABLE, 0, NULL), PSEG_JOB_FAILED);
    /* A lease that is ended twice counts once; one that goes back into line not at all. */
    assert_int_equal(case_publish(q, "w", second, NULL), PSEG_JOB_SUCCEEDED);
    assert_int_equal(case_release(q, "w", third, NULL), PSEG_JOB_QUEUED);
    static const int seq[] = {4, 2, 1};
    static const pseg_job_state how[] = {PSEG_JOB_CANCELLED, PSEG_JOB_SUCCEEDED, PSEG_JOB_FAILED};
    const pseg_queue_reply *e = ends(q, "b", 0, 10);
    assert_int_equal(e->n_items, 3);
    for (int i = 0; i < 3; i++) {
        char custom[32];
        snprintf(custom, sizeof custom, "line %d", seq[i]);
        assert_int_equal(e->items[i].seq, seq[i]);
        assert_int_equal(e->items[i].state, how[i]);
        assert_string_equal(e->items[i].custom_id, custom);
        assert_string_equal(e->items[i].job_id, id[seq[i] - 1].s);
        assert_int_equal(e->items[i].refusal, PSEG_R_NONE);
        assert_string_equal(e->jobs[i].id, id[seq[i] - 1].s);
        assert_int_equal(e->jobs[i].state, how[i]);
        assert_true(e->items[i].at_unix_us / 1000 == e->jobs[i].finished_unix_us / 1000);
    }
    e = ends(q, "b", 1, 1);
    assert_int_equal(e->n_items, 1);
    assert_int_equal(e->items[0].seq, 2);
    assert_int_equal(ends(q, "b", 3, 10)->n_items, 0);
    const pseg_queue_batch *b = look(q, "b");
    assert_int_equal(b->n_ended, 3);
    assert_int_equal(b->ended[PSEG_JOB_SUCCEEDED], 1);
    assert_int_equal(b->ended[PSEG_JOB_FAILED], 1);
    assert_int_equal(b->ended[PSEG_JOB_CANCELLED], 1);
    assert_int_equal(b->refused, 0);
    assert_int_equal(b->finish_unix_us, 0);
    CALL(r, pseg_queue_seal_batch, q, T, "b");
    case_keep(r);
    assert_int_equal(r->next_seq, 6);
    assert_true(look(q, "b")->sealed);
    assert_true(look(q, "b")->finish_unix_us > 0);
}

static void a_deadline_and_a_lost_worker_count(void **state)
{
    pseg_queue_options o = case_options();
    id_text id;

    (void)state;
    o.max_attempts = 1;
    pseg_queue *q = case_open(&o);
    create(q, "b", 60000);
    pseg_queue_item_args a = item(&id, 1, "");
    a.job.deadline_unix_us = 1000;
    assert_int_equal(put_args(q, &a, NULL), PSEG_R_NONE);
    SWEEP_UNTIL(q, n_ended_as(q, "b", PSEG_JOB_EXPIRED) == 1);
    put(q, 2);
    assert_int_equal(case_claim_count(q, "dead"), 1);
    SWEEP_UNTIL(q, n_ended_as(q, "b", PSEG_JOB_FAILED) == 1);
    assert_int_equal(look(q, "b")->n_ended, 2);
    assert_int_equal(ends(q, "b", 1, 5)->jobs[0].reason, PSEG_R_ATTEMPTS_EXHAUSTED);
}

static void a_refused_item_is_its_own_end(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id;
    pseg_err why = PSEG_ERR_INIT;
    pseg_queue_reply *r;

    (void)state;
    create(q, "b", 60000);
    pseg_err_set(&why, PSEG_R_PROMPT_MISSING, 0, PSEG_HERE, "a job needs a prompt");
    pseg_queue_item_args a = item(&id, 1, "my name 12 34");
    a.refuse = &why;
    assert_int_equal(put_args(q, &a, NULL), PSEG_R_NONE);
    a = item(&id, 2, "");
    a.job.content = (pseg_bytes){NULL, 0};
    a.job.image_sha256 = "not held";
    assert_int_equal(put_args(q, &a, NULL), PSEG_R_NONE);
    a = item(&id, 3, "\xc3\xa4\n");
    a.job.model = "unknown";
    a.job.model_is_default = false;
    assert_int_equal(put_args(q, &a, NULL), PSEG_R_NONE);
    put(q, 4);
    const pseg_queue_reply *e = ends(q, "b", 0, 10);
    static const pseg_reason reasons[] = {PSEG_R_PROMPT_MISSING, PSEG_R_IMAGE_NOT_HELD,
                                          PSEG_R_MODEL_UNKNOWN};
    static const char *const customs[] = {"my name 12 34", "", "\xc3\xa4\n"};
    assert_int_equal(e->n_items, 3);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(e->items[i].seq, i + 1);
        assert_int_equal(e->items[i].state, PSEG_JOB_FAILED);
        assert_int_equal(e->items[i].refusal, reasons[i]);
        assert_string_equal(e->items[i].custom_id, customs[i]);
        assert_string_equal(e->items[i].job_id, "");
        assert_null(e->jobs[i].id);
    }
    assert_string_equal(e->items[0].message, "a job needs a prompt");
    assert_non_null(strstr(e->items[1].message, "image not held"));
    assert_int_equal(e->batches[0].refused, 3);
    assert_int_equal(e->batches[0].ended[PSEG_JOB_FAILED], 3);
    assert_int_equal(e->batches[0].next_seq, 5);
    assert_int_equal(case_stats(q).submitted, 1);
    /* Repeating it adds nothing. */
    a = item(&id, 1, "");
    a.refuse = &why;
    assert_int_equal(put_args(q, &a, NULL), PSEG_R_NONE);
    CALL(r, pseg_queue_get_batch, q, T, "b");
    case_keep(r);
    assert_int_equal(r->batches[0].n_ended, 3);
}

static void a_full_queue_takes_the_item_later(void **state)
{
    pseg_queue_options o = case_options();
    pseg_queue_tenant limits = {.max_bytes = 4};
    id_text id;
    pseg_queue_reply *r;

    (void)state;
    o.max_jobs = 1;
    pseg_queue *q = case_open(&o);
    create(q, "b", 60000);
    id_text first = put(q, 1);
    pseg_queue_item_args a = item(&id, 2, "");
    assert_int_equal(put_args(q, &a, NULL), PSEG_R_QUEUE_FULL);
    a.seq = 3;
    assert_int_equal(put_args(q, &a, NULL), PSEG_R_BATCH_OUT_OF_ORDER);
    assert_int_equal(look(q, "b")->next_seq, 2);
    CALL(r, pseg_queue_cancel, q, T, first.s);
    case_keep(r);
    put(q, 2);
    /* An image that would never fit does not stop what comes after it. */
    case_register(q, "w");
    case_publish(q, "w", case_claim(q, "w"), NULL);
    a = item(&id, 3, "");
    a.job.limits = &limits;
    a.job.image_sha256 = "another";
    assert_int_equal(put_args(q, &a, NULL), PSEG_R_NONE);
    assert_int_equal(look(q, "b")->refused, 1);
}

static void a_sealed_batch_takes_what_it_has(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text id;
    int64_t next;
    pseg_queue_reply *r;

    (void)state;
    create(q, "b", 60000);
    put(q, 1);
    CALL(r, pseg_queue_seal_batch, q, T, "b");
    case_keep(r);
    CALL(r, pseg_queue_seal_batch, q, T, "b");
    case_keep(r);
    assert_int_equal(r->next_seq, 2);
    assert_true(look(q, "b")->sealed);
    assert_false(look(q, "b")->cancel_requested);
    pseg_queue_item_args a = item(&id, 1, "");
    assert_int_equal(put_args(q, &a, &next), PSEG_R_NONE);
    assert_int_equal(next, 2);
    a = item(&id, 2, "");
    assert_int_equal(put_args(q, &a, NULL), PSEG_R_BATCH_SEALED);
    CALL(r, pseg_queue_seal_batch, q, T, "none");
    case_keep(r);
    assert_int_equal(r->err.reason, PSEG_R_BATCH_NOT_FOUND);
}

static void cancelling_keeps_what_is_done(void **state)
{
    enum { N = 700 };
    pseg_queue_options o = case_options();
    pseg_queue_reply *r;

    (void)state;
    o.lease_ms = 60000; /* one job is held all the while */
    pseg_queue *q = case_open(&o);
    create(q, "b", 60000);
    case_register(q, "w");
    for (int i = 1; i <= N; i++)
        put(q, i);
    assert_int_equal(case_publish(q, "w", case_claim(q, "w"), NULL), PSEG_JOB_SUCCEEDED);
    const pseg_queue_claim *runs = case_claim(q, "w");
    id_text apart = case_submit(q);
    for (int i = 0; i < 2; i++) {
        CALL(r, pseg_queue_cancel_batch, q, T, "b");
        case_keep(r);
        assert_true(r->batches[0].sealed && r->batches[0].cancel_requested);
    }
    SWEEP_UNTIL(q, n_ended_as(q, "b", PSEG_JOB_CANCELLED) == N - 2);
    assert_int_equal(case_renew(q, "w", runs), PSEG_LEASE_CANCEL);
    assert_int_equal(case_publish(q, "w", runs, NULL), PSEG_JOB_CANCELLED);
    const pseg_queue_batch *b = look(q, "b");
    assert_int_equal(b->n_ended, N);
    assert_int_equal(b->ended[PSEG_JOB_SUCCEEDED], 1);
    assert_int_equal(queue_state_of(q, apart.s), PSEG_JOB_QUEUED);
    assert_int_equal(case_stats(q).live, 1);
}

static void a_batch_goes_after_its_last_end(void **state)
{
    pseg_queue *q = case_open(NULL);
    pseg_queue_reply *r;

    (void)state;
    create(q, "b", 100);
    create(q, "empty", 100);
    case_register(q, "w");
    put(q, 1);
    SWEEP_UNTIL(q, !look(q, "empty"));
    queue_pause_ms(150);
    case_sweep(q);
    assert_non_null(look(q, "b")); /* its item has not ended */
    CALL(r, pseg_queue_cancel, q, T, ends(q, "b", 0, 1)->n_items ? "" : case_claim(q, "w")->id);
    case_keep(r);
    SWEEP_UNTIL(q, !look(q, "b"));
    CALL(r, pseg_queue_list_batches, q, T, "", 10);
    case_keep(r);
    assert_int_equal(r->n_batches, 0);
    CALL(r, pseg_queue_batch_ends, q, T, "b", 0, 10, true, PSEG_NO_MASKS);
    case_keep(r);
    assert_int_equal(r->n_batches, 0);
}

const struct CMUnitTest batch_cases[] = {
    CASE(a_batch_is_made_once),
    CASE(batches_are_listed_newest_first),
    CASE(items_are_taken_in_order_and_once),
    CASE(many_items_keep_their_order),
    CASE(every_end_is_told_once_in_order),
    CASE(a_deadline_and_a_lost_worker_count),
    CASE(a_refused_item_is_its_own_end),
    CASE(a_full_queue_takes_the_item_later),
    CASE(a_sealed_batch_takes_what_it_has),
    CASE(cancelling_keeps_what_is_done),
    CASE(a_batch_goes_after_its_last_end),
};
const size_t n_batch_cases = sizeof batch_cases / sizeof *batch_cases;
