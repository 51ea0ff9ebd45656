/* common/rpc where both sides talk at once. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/rpc_demo.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define MS           60000
#define TALK         "/pseg.test.v1.Demo/Talk"
#define MESSAGE_SIZE 1000

typedef Pseg__Test__V1__EchoRequest echo_request;
typedef Pseg__Test__V1__EchoReply echo_reply;
#define REPLY_TYPE &pseg__test__v1__echo_reply__descriptor

static uint8_t data[MESSAGE_SIZE];

static pseg_rpc_stream *open_talk(demo_server *f)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_rpc_stream *s;

    assert_int_equal(pseg_rpc_open(&s, f->ch, TALK, REPLY_TYPE, MS, &err), PSEG_OK);
    return s;
}

/* How many of n went out. */
static int say(pseg_rpc_stream *s, int n)
{
    echo_request q = PSEG__TEST__V1__ECHO_REQUEST__INIT;
    int sent = 0;

    q.data.data = data;
    q.data.len = sizeof data;
    while (sent < n && pseg_rpc_stream_send(s, &q.base))
        sent++;
    return sent;
}

typedef struct listener {
    pthread_t thread;
    pseg_rpc_stream *s;
    _Atomic uint64_t sum; /* that was told last */
    int n, n_backwards;
} listener;

static void *listen_main(void *arg)
{
    listener *l = arg;
    ProtobufCMessage *m;

    while ((m = pseg_rpc_stream_recv(l->s)) != NULL) {
        uint64_t sum = ((echo_reply *)m)->size;
        l->n_backwards += sum <= atomic_load(&l->sum);
        atomic_store(&l->sum, sum);
        l->n++;
        pseg_rpc_message_free(m);
    }
    return NULL;
}

static void listen_to(listener *l, pseg_rpc_stream *s)
{
    *l = (listener){.s = s};
    assert_int_equal(pthread_create(&l->thread, NULL, listen_main, l), 0);
}

/* Messages go out while answers come, and after the client's half-close the rest of them still
 * does. */
static void both_talk_at_once(void **state)
{
    enum { N = 20000 };
    demo_server f;
    listener l;
    pseg_err err = PSEG_ERR_INIT;

    (void)state;
    demo_up(&f, NULL, NULL);
    pseg_rpc_stream *s = open_talk(&f);
    listen_to(&l, s);
    assert_int_equal(say(s, N), N);
    pseg_rpc_stream_half_close(s);
    pthread_join(l.thread, NULL);
    assert_int_equal(pseg_rpc_close(s, NULL, &err), PSEG_OK);
    assert_int_equal(atomic_load(&l.sum), (uint64_t)N * MESSAGE_SIZE);
    assert_int_equal(l.n_backwards, 0);
    assert_true(l.n > 1);
    demo_until_ended(&f.d, 1);
    assert_int_equal(atomic_load(&f.d.cancelled), 0);
    demo_down(&f);
}

static void an_empty_talk_ends_well(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;

    (void)state;
    demo_up(&f, NULL, NULL);
    pseg_rpc_stream *s = open_talk(&f);
    pseg_rpc_stream_half_close(s);
    assert_null(pseg_rpc_stream_recv(s));
    assert_int_equal(pseg_rpc_close(s, NULL, &err), PSEG_OK);
    demo_down(&f);
}

/* The server learns it, whichever side was talking, and its on_end runs once. */
static void a_client_that_goes_away_is_noticed(void **state)
{
    enum { N = 20 };
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;

    (void)state;
    demo_up(&f, NULL, NULL);
    for (int i = 0; i < N; i++) {
        pseg_rpc_stream *s = open_talk(&f);
        assert_int_equal(say(s, i * 10), i * 10);
        if (i % 2 && i > 1)
            pseg_rpc_message_free(pseg_rpc_stream_recv(s));
        pseg_rpc_stream_cancel(s);
        assert_int_equal(pseg_rpc_close(s, NULL, &err), PSEG_ECANCELLED);
        /* The core may take back a call of which the server has not heard. */
        if (i > 1)
            demo_until_ended(&f.d, atomic_load(&f.d.begun));
    }
    demo_down(&f);
    assert_int_equal(atomic_load(&f.d.ended), atomic_load(&f.d.begun));
    assert_true(atomic_load(&f.d.cancelled) > 0);
}

/* The server has one message under way and goes on reading; what the client finds when it reads at
 * last is what is true then. */
static void a_client_that_never_reads_is_no_obstacle(void **state)
{
    enum { N = 50000 };
    demo_server f;
    listener l;
    pseg_err err = PSEG_ERR_INIT;

    (void)state;
    demo_up(&f, NULL, NULL);
    pseg_rpc_stream *s = open_talk(&f);
    assert_int_equal(say(s, N), N);
    pseg_rpc_stream_half_close(s);
    listen_to(&l, s);
    pthread_join(l.thread, NULL);
    assert_int_equal(pseg_rpc_close(s, NULL, &err), PSEG_OK);
    assert_int_equal(atomic_load(&l.sum), (uint64_t)N * MESSAGE_SIZE);
    demo_down(&f);
}

/* Streams are told when the server stops, in the middle of what they say. */
static void a_stop_ends_talks(void **state)
{
    enum { N = 4 };
    demo_server f;
    listener l[N];
    pseg_rpc_stream *s[N];
    pseg_err err = PSEG_ERR_INIT;

    (void)state;
    demo_up(&f, NULL, NULL);
    for (int i = 0; i < N; i++) {
        s[i] = open_talk(&f);
        listen_to(&l[i], s[i]);
        assert_int_equal(say(s[i], 10), 10);
        while (atomic_load(&l[i].sum) < 10 * MESSAGE_SIZE)
            sched_yield();
    }
    pseg_rpc_server_stop(f.s, MS);
    for (int i = 0; i < N; i++) {
        pthread_join(l[i].thread, NULL);
        assert_int_equal(pseg_rpc_close(s[i], NULL, &err), PSEG_EBUSY);
        assert_int_equal(err.reason, PSEG_R_DRAINING);
        pseg_err_clear(&err);
    }
    assert_int_equal(atomic_load(&f.d.drained), N);
    assert_int_equal(atomic_load(&f.d.ended), N);
    pseg_rpc_hangup(f.ch);
    pseg_rpc_server_free(f.s);
    demo_stop(&f.d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_talk_at_once),
        cmocka_unit_test(an_empty_talk_ends_well),
        cmocka_unit_test(a_client_that_goes_away_is_noticed),
        cmocka_unit_test(a_client_that_never_reads_is_no_obstacle),
        cmocka_unit_test(a_stop_ends_talks),
    };

    pseg_rpc_init(&demo_log, NULL, NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    pseg_rpc_shutdown();
    return failed ? 1 : 0;
}
