/* Cases of those who watch the events. */
#include "tests/support/queue_cases_impl.h"
#include "common/base/clock.h"

#include <stdio.h>
#include <string.h>

#define BEGINNING ((pseg_queue_place){0, 0, PSEG_QUEUE_WHOLE})

static pseg_queue_reply *read_events(pseg_queue *q, const char *tenant, pseg_queue_place from,
                                     size_t limit)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_events, q, tenant, "", from, limit);
    case_keep(r);
    if (r->err.code != PSEG_OK)
        fail_msg("%s", r->err.msg);
    assert_true(r->n_events <= limit);
    return r;
}

static pseg_queue_reply *read_states(pseg_queue *q, const char *const *ids, size_t n)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_states, q, T, ids, n);
    case_keep(r);
    if (r->err.code != PSEG_OK)
        fail_msg("%s", r->err.msg);
    assert_int_equal(r->n_events, n);
    return r;
}

static void is_event(const pseg_queue_event *e, const char *id, pseg_job_state state,
                     const char *worker)
{
    assert_string_equal(e->id, id);
    assert_int_equal(e->state, state);
    assert_string_equal(e->worker, worker);
    assert_string_equal(e->batch, "");
    assert_in_range(e->at_unix_us, pseg_clock_unix_us() - 60000000, pseg_clock_unix_us() + 1000000);
}

/* Three jobs that one worker takes at once and ends in the order of `ids`. */
static void three_lives(pseg_queue *q, id_text ids[3])
{
    pseg_queue_reply *r;

    for (int i = 0; i < 3; i++)
        ids[i] = case_submit(q);
    case_register(q, "w");
    CALL(r, pseg_queue_claim_jobs, q, "w", "m", 3, 0, 0);
    case_keep(r);
    assert_int_equal(r->n_claims, 3);
    for (int i = 0; i < 3; i++)
        case_publish(q, "w", &r->claims[i], NULL);
}

static void events_are_read_from_any_place(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text ids[3];

    (void)state;
    assert_int_equal(read_events(q, T, BEGINNING, 10)->n_events, 0);
    three_lives(q, ids);
    pseg_queue_reply *all = read_events(q, T, BEGINNING, 100);
    assert_int_equal(all->n_events, 6);
    assert_false(all->has_gap || all->has_more);
    for (int i = 0; i < 3; i++) {
        is_event(&all->events[i], ids[i].s, PSEG_JOB_RUNNING, "w");
        is_event(&all->events[3 + i], ids[i].s, PSEG_JOB_SUCCEEDED, "");
    }
    /* From behind each of them on come exactly those that follow, however small the pieces, also in
     * the middle of an entry that tells of three. */
    for (size_t from = 0; from < 6; from++)
        for (size_t limit = 1; limit < 7; limit++) {
            pseg_queue_place at = all->events[from].place;
            size_t n = from + 1;
            for (bool more = true; more;) {
                pseg_queue_reply *r = read_events(q, T, at, limit);
                assert_false(r->has_gap);
                for (size_t i = 0; i < r->n_events; i++, n++) {
                    assert_string_equal(r->events[i].id, all->events[n].id);
                    assert_int_equal(r->events[i].state, all->events[n].state);
                    assert_int_equal(
                        pseg_queue_place_compare(r->events[i].place, all->events[n].place), 0);
                }
                at = r->place;
                more = r->has_more;
            }
            assert_int_equal(n, 6);
        }
    for (int i = 0; i < 5; i++)
        assert_true(pseg_queue_place_compare(all->events[i].place, all->events[i + 1].place) < 0);
}

static void events_are_the_tenants_own(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text mine, theirs;
    pseg_queue_submit_args a = case_args(&theirs);
    pseg_queue_reply *r;

    (void)state;
    a.tenant = "other";
    CALL(r, pseg_queue_submit, q, &a);
    case_keep(r);
    mine = case_submit(q);
    case_register(q, "w");
    CALL(r, pseg_queue_claim_jobs, q, "w", "m", 2, 0, 0); /* one entry tells of both */
    case_keep(r);
    assert_int_equal(r->n_claims, 2);
    r = read_events(q, T, BEGINNING, 10);
    assert_int_equal(r->n_events, 1);
    is_event(&r->events[0], mine.s, PSEG_JOB_RUNNING, "w");
    assert_int_equal(read_events(q, T, r->place, 10)->n_events, 0);
    r = read_events(q, "other", BEGINNING, 10);
    assert_int_equal(r->n_events, 1);
    is_event(&r->events[0], theirs.s, PSEG_JOB_RUNNING, "w");
    assert_int_equal(read_events(q, "nobody", BEGINNING, 10)->n_events, 0);
}

static void events_and_states_name_the_batch(void **state)
{
    pseg_queue *q = case_open(NULL);
    pseg_queue_reply *r;
    id_text alone = case_submit(q), item;

    (void)state;
    CALL(r, pseg_queue_create_batch, q, T, "b", 60000, case_bytes(""));
    case_keep(r);
    pseg_queue_item_args a = {.job = case_args(&item), .batch = "b", .seq = 1, .custom_id = ""};
    CALL(r, pseg_queue_submit_item, q, &a);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    case_register(q, "w");
    CALL(r, pseg_queue_claim_jobs, q, "w", "m", 2, 0, 0);
    case_keep(r);
    assert_int_equal(r->n_claims, 2);
    case_publish(q, "w", &r->claims[1], NULL);
    case_publish(q, "w", &r->claims[0], NULL);
    r = read_events(q, T, BEGINNING, 10);
    assert_int_equal(r->n_events, 4);
    for (int i = 0; i < 4; i++)
        assert_string_equal(r->events[i].batch, strcmp(r->events[i].id, item.s) == 0 ? "b" : "");
    pseg_queue_place end = r->place;
    CALL(r, pseg_queue_events, q, T, "b", BEGINNING, 10);
    case_keep(r);
    assert_int_equal(r->n_events, 2);
    assert_string_equal(r->events[0].id, item.s);
    assert_int_equal(r->events[1].state, PSEG_JOB_SUCCEEDED);
    assert_int_equal(pseg_queue_place_compare(r->place, end), 0);
    CALL(r, pseg_queue_events, q, T, "other", BEGINNING, 10);
    case_keep(r);
    assert_int_equal(r->n_events, 0);
    const char *ids[] = {alone.s, item.s};
    r = read_states(q, ids, 2);
    assert_string_equal(r->events[0].batch, "");
    assert_string_equal(r->events[1].batch, "b");
}

static void states_are_of_one_moment(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text waits = case_submit(q), runs, ends, theirs;
    pseg_queue_submit_args a = case_args(&theirs);
    pseg_queue_reply *r;

    (void)state;
    assert_int_equal(pseg_queue_place_compare(read_states(q, NULL, 0)->place, BEGINNING), 0);
    a.tenant = "other";
    CALL(r, pseg_queue_submit, q, &a);
    case_keep(r);
    case_register(q, "w");
    CALL(r, pseg_queue_cancel, q, T, waits.s);
    case_keep(r);
    ends = waits;
    runs = case_submit(q);
    CALL(r, pseg_queue_claim_jobs, q, "w", "m", 2, 0, 0);
    case_keep(r);
    waits = case_submit(q);
    const char *ids[] = {ends.s, theirs.s, runs.s, waits.s, "00000000000000000000000000000000"};
    r = read_states(q, ids, 5);
    is_event(&r->events[0], ends.s, PSEG_JOB_CANCELLED, "");
    assert_null(r->events[1].id);
    is_event(&r->events[2], runs.s, PSEG_JOB_RUNNING, "w");
    is_event(&r->events[3], waits.s, PSEG_JOB_QUEUED, "");
    assert_null(r->events[4].id);
    /* What comes later is read from there on, and nothing else. */
    assert_int_equal(read_events(q, T, r->place, 10)->n_events, 0);
    pseg_queue_reply *c;
    CALL(c, pseg_queue_cancel, q, T, waits.s);
    case_keep(c);
    c = read_events(q, T, r->place, 10);
    assert_int_equal(c->n_events, 1);
    is_event(&c->events[0], waits.s, PSEG_JOB_CANCELLED, "");
}

static void a_place_of_a_lost_stream_is_a_gap(void **state)
{
    pseg_queue *q = case_open(NULL);
    id_text ids[3];

    (void)state;
    pseg_queue_place future = {(uint64_t)pseg_clock_unix_us() / 1000 + 86400000, 0,
                               PSEG_QUEUE_WHOLE};
    pseg_queue_reply *r = read_events(q, T, future, 10);
    assert_true(r->has_gap);
    assert_int_equal(r->n_events, 0);
    assert_false(read_events(q, T, r->place, 10)->has_gap);
    three_lives(q, ids);
    r = read_events(q, T, future, 4);
    assert_true(r->has_gap && r->has_more);
    assert_int_equal(r->n_events, 4);
    r = read_events(q, T, r->place, 4);
    assert_false(r->has_gap || r->has_more);
    assert_int_equal(r->n_events, 2);
    /* Of a time before the first entry: what came between is not known. */
    pseg_queue_place past = {1, 0, 1};
    r = read_events(q, T, past, 10);
    assert_true(r->has_gap);
    assert_int_equal(r->n_events, 6);
}

/* ---- pushed and read ---- */

typedef struct told {
    pthread_mutex_t mu;
    int n_missed, n;
    struct {
        char id[PSEG_JOB_ID_LEN + 1], tenant[64], worker[64];
        pseg_job_state state;
        pseg_queue_place place;
    } seen[16];
} told;

static void on_event(void *ud, const pseg_queue_event *e)
{
    told *t = ud;

    pthread_mutex_lock(&t->mu);
    if (!e) {
        t->n_missed++;
    } else if (t->n < 16) {
        snprintf(t->seen[t->n].id, sizeof t->seen->id, "%s", e->id);
        snprintf(t->seen[t->n].tenant, sizeof t->seen->tenant, "%s", e->tenant);
        snprintf(t->seen[t->n].worker, sizeof t->seen->worker, "%s", e->worker);
        t->seen[t->n].state = e->state;
        t->seen[t->n++].place = e->place;
    }
    pthread_mutex_unlock(&t->mu);
}

static bool have_come(told *t, const int *count, int n)
{
    for (int64_t until = pseg_clock_mono_ms() + 10000; pseg_clock_mono_ms() < until;) {
        pthread_mutex_lock(&t->mu);
        bool good = *count >= n;
        pthread_mutex_unlock(&t->mu);
        if (good)
            return true;
        queue_pause_ms(2);
    }
    return false;
}

static void an_event_is_told_with_the_place_it_is_read_at(void **state)
{
    static told t;
    pseg_queue_options o = case_options();
    id_text ids[3];

    (void)state;
    memset(&t, 0, sizeof t);
    pthread_mutex_init(&t.mu, NULL);
    o.on_event = on_event;
    o.ud = &t;
    pseg_queue *q = case_open(&o);
    assert_true(have_come(&t, &t.n_missed, 1));
    three_lives(q, ids);
    assert_true(have_come(&t, &t.n, 6));
    pseg_queue_reply *r = read_events(q, T, BEGINNING, 100);
    assert_int_equal(r->n_events, 6);
    for (int i = 0; i < 6; i++) {
        assert_string_equal(t.seen[i].id, r->events[i].id);
        assert_string_equal(t.seen[i].tenant, T);
        assert_string_equal(t.seen[i].worker, r->events[i].worker);
        assert_int_equal(t.seen[i].state, r->events[i].state);
        assert_int_equal(pseg_queue_place_compare(t.seen[i].place, r->events[i].place), 0);
    }
}

const struct CMUnitTest event_cases[] = {
    CASE(events_are_read_from_any_place),    CASE(events_are_the_tenants_own),
    CASE(events_and_states_name_the_batch),  CASE(states_are_of_one_moment),
    CASE(a_place_of_a_lost_stream_is_a_gap), CASE(an_event_is_told_with_the_place_it_is_read_at),
};
const size_t n_event_cases = sizeof event_cases / sizeof *event_cases;
