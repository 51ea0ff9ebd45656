/* A queue's connections to Redis: cut, closed, led to another node, and many at a time. */
#include "tests/support/queue_own.h"
#include "common/base/clock.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static void cut_connections_are_made_anew(void **state)
{
    pseg_queue_options o;
    id_text id;

    (void)state;
    start(NULL);
    o = options_of(server.socket_url);
    o.on_event = count_event;
    atomic_store(&n_ended, 0);
    atomic_store(&n_missed, 0);
    pseg_queue *q = case_open(&o);
    case_register(q, "w");
    for (int i = 0; i < 30; i++) {
        int missed = atomic_load(&n_missed);
        assert_true(ask("CLIENT KILL TYPE normal SKIPME yes"));
        for (int tries = 0; tries < 100 && queue_try_submit(q, id.s) != PSEG_R_NONE; tries++)
            queue_pause_ms(5);
        await_answer(q);
        for (int tries = 0; tries < 4000 && atomic_load(&n_missed) == missed; tries++)
            queue_pause_ms(5);
        /* Whoever was told that events may have been missed, hears of all that come later. */
        int ended = atomic_load(&n_ended);
        case_publish(q, "w", case_claim(q, "w"), NULL);
        for (int tries = 0; tries < 4000 && atomic_load(&n_ended) == ended; tries++)
            queue_pause_ms(5);
        assert_int_equal(atomic_load(&n_ended), ended + 1);
        assert_true(case_claim_count(q, "w") <= 1); /* of a submit whose answer was cut */
    }
}

static void closing_answers_what_is_under_way(void **state)
{
    enum { N = 20 };
    pseg_queue_sync wait[N];
    pseg_queue *q;
    id_text id;

    (void)state;
    start(NULL);
    pseg_queue_options o = options_of(server.socket_url);
    assert_int_equal(pseg_queue_open(&q, &o, NULL), PSEG_OK);
    await_answer(q);
    test_redis_freeze(&server);
    for (int i = 0; i < N; i++) {
        pseg_queue_submit_args a = case_args(&id);
        pseg_queue_sync_init(&wait[i]);
        pseg_queue_submit(q, &a, pseg_queue_sync_done, &wait[i]);
    }
    int64_t at = pseg_clock_mono_ms();
    pseg_queue_close(q);
    assert_true(pseg_clock_mono_ms() - at < 5000);
    for (int i = 0; i < N; i++) {
        pseg_queue_reply *r = pseg_queue_sync_take(&wait[i]);
        assert_int_equal(r->err.reason, PSEG_R_CANCELLED);
        pseg_queue_reply_free(r);
    }
    test_redis_thaw(&server);
}

/* Two nodes, the slots halved: whichever the URL names, the queue is found. */
static void another_node_of_the_cluster_is_followed(void **state)
{
    static const char *const args[] = {"--cluster-enabled", "yes", "--cluster-node-timeout", "2000",
                                       NULL};
    test_redis second = {.args = args};

    (void)state;
    start(args);
    assert_true(test_redis_start(&second));
    assert_true(ask("CLUSTER ADDSLOTSRANGE 0 8191"));
    assert_true(test_redis_ask(&second, answer, sizeof answer, "CLUSTER ADDSLOTSRANGE 8192 16383"));
    assert_true(
        test_redis_ask(&server, answer, sizeof answer, "CLUSTER MEET 127.0.0.1 %d", second.port));
    const test_redis *nodes[2] = {&server, &second};
    for (int i = 0; i < 2; i++)
        for (int tries = 0;; tries++) {
            assert_true(tries < 4000);
            if (test_redis_ask(nodes[i], answer, sizeof answer, "CLUSTER INFO") &&
                strstr(answer, "cluster_state:ok") && strstr(answer, "cluster_size:2"))
                break;
            queue_pause_ms(5);
        }
    for (int i = 0; i < 2; i++) {
        pseg_queue_options o = options_of(nodes[i]->tcp_url);
        o.on_event = count_event;
        atomic_store(&n_ended, 0);
        atomic_store(&n_missed, 0);
        pseg_queue *q = case_open(&o);
        await_answer(q);
        case_submit(q);
        case_register(q, "w");
        for (int tries = 0; tries < 4000 && !atomic_load(&n_missed); tries++)
            queue_pause_ms(5);
        case_publish(q, "w", case_claim(q, "w"), NULL);
        for (int tries = 0; tries < 4000 && !atomic_load(&n_ended); tries++)
            queue_pause_ms(5);
        assert_int_equal(atomic_load(&n_ended), 1);
        assert_int_equal(case_stats(q).succeeded, i + 1);
        case_teardown(NULL);
    }
    test_redis_stop(&second);
}

/* ---- many at once ---- */

enum { CROWD_JOBS = 300, CROWD = 3 };

typedef struct crowd {
    char worker[16];
    _Atomic int *left;
    int published;
    const char *url;
} crowd;

static void *crowd_worker(void *arg)
{
    crowd *c = arg;
    pseg_queue_options o = options_of(c->url);
    pseg_queue *q = NULL;
    pseg_queue_reply *r;
    pseg_queue_worker w = {c->worker, "m", "", "", "", ""};

    if (pseg_queue_open(&q, &o, NULL) != PSEG_OK)
        return NULL;
    CALL(r, pseg_queue_register, q, &w);
    pseg_queue_reply_free(r);
    for (int64_t until = pseg_clock_mono_ms() + 60000;
         atomic_load(c->left) > 0 && pseg_clock_mono_ms() < until;) {
        pseg_queue_reply *claims, *swept;
        CALL(swept, pseg_queue_sweep, q);
        pseg_queue_reply_free(swept);
        CALL(claims, pseg_queue_claim_jobs, q, c->worker, "m", 7, 0, 0);
        for (size_t i = 0; i < claims->n_claims; i++) {
            pseg_queue_lease l = {claims->claims[i].id, claims->claims[i].fence};
            /* Every fifth first attempt is dropped, as if its worker had died. */
            if (claims->claims[i].attempt == 1 && claims->claims[i].id[31] % 5 == 0)
                continue;
            CALL(r, pseg_queue_publish, q, c->worker, l, case_bytes("r"), NULL, 0, 0);
            if (r->err.code == PSEG_OK) {
                c->published++;
                atomic_fetch_sub(c->left, 1);
            }
            pseg_queue_reply_free(r);
        }
        if (claims->n_claims == 0)
            queue_pause_ms(5);
        pseg_queue_reply_free(claims);
    }
    pseg_queue_close(q);
    return NULL;
}

static void each_job_of_a_crowd_ends_once(void **state)
{
    static _Atomic int left;
    crowd crowds[CROWD];
    pthread_t threads[CROWD];
    int published = 0;
    id_text id;

    (void)state;
    start(NULL);
    pseg_queue *q = open_queue();
    atomic_store(&left, CROWD_JOBS);
    for (int i = 0; i < CROWD; i++) {
        crowds[i] = (crowd){.left = &left, .url = server.socket_url};
        snprintf(crowds[i].worker, sizeof crowds[i].worker, "w%d", i);
        assert_int_equal(pthread_create(&threads[i], NULL, crowd_worker, &crowds[i]), 0);
    }
    for (int i = 0; i < CROWD_JOBS; i++)
        assert_int_equal(queue_try_submit(q, id.s), PSEG_R_NONE);
    for (int i = 0; i < CROWD; i++) {
        pthread_join(threads[i], NULL);
        published += crowds[i].published;
    }
    pseg_queue_stats s = case_stats(q);
    assert_int_equal(published, CROWD_JOBS);
    assert_int_equal(s.succeeded, CROWD_JOBS);
    assert_int_equal(s.live, 0);
    assert_int_equal(s.leased, 0);
    assert_int_equal(test_redis_number(&server, "LLEN pseg:{%s}:ready:m", queue_name), 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest own[] = {
        OWN(cut_connections_are_made_anew),
        OWN(closing_answers_what_is_under_way),
        OWN(another_node_of_the_cluster_is_followed),
        OWN(each_job_of_a_crowd_ends_once),
    };

    return own_run("queue on redis, connections", own, sizeof own / sizeof *own, argc, argv);
}
