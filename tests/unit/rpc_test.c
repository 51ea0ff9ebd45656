/* common/rpc end to end: our server and our client in one process, over loopback. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/rpc/rpc_client.h"
#include "grpc/health/v1/health.pb-c.h"
#include "grpc/reflection/v1/reflection.pb-c.h"
#include "tests/unit/rpc_demo.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MS           20000 /* deadline of calls that are expected to be answered */
#define DEMO(method) "/pseg.test.v1.Demo/" method

typedef Pseg__Test__V1__EchoRequest echo_request;
typedef Pseg__Test__V1__EchoReply echo_reply;
#define ECHO_INIT  PSEG__TEST__V1__ECHO_REQUEST__INIT
#define REPLY_TYPE &pseg__test__v1__echo_reply__descriptor
#define HOW(x)     PSEG__TEST__V1__WAIT_REQUEST__HOW__##x

static pseg_status echo(echo_reply **r, pseg_rpc_channel *ch, const char *text, size_t n,
                        pseg_err *err)
{
    echo_request q = ECHO_INIT;
    q.text = (char *)text;
    q.data.len = n;
    q.data.data = n ? calloc(1, n) : NULL;
    pseg_status rc =
        pseg_rpc_unary((ProtobufCMessage **)r, ch, DEMO("Echo"), &q.base, REPLY_TYPE, MS, err);
    free(q.data.data);
    return rc;
}

static void drop(void *m)
{
    pseg_rpc_message_free(m);
}

/* ---- calls ---- */

static void test_unary(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    echo_reply *r;
    pseg_rpc_stats stats;

    (void)state;
    demo_up(&f, NULL, NULL);
    assert_int_equal(echo(&r, f.ch,
                          "gr\xc3\xbc\xc3\x9f"
                          "e",
                          3 << 20, &err),
                     PSEG_OK);
    assert_string_equal(r->text, "gr\xc3\xbc\xc3\x9f"
                                 "e");
    assert_string_equal(r->tenant, "default");
    assert_int_equal(r->size, 3 << 20);
    drop(r);
    for (int i = 0; i < 200; i++) {
        assert_int_equal(echo(&r, f.ch, "", 0, &err), PSEG_OK);
        drop(r);
    }
    pseg_rpc_server_stats(f.s, &stats);
    assert_int_equal(stats.calls, 201);
    assert_int_equal(stats.refused, 0);
    demo_down(&f);
}

static void test_client_stream(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    echo_request q = ECHO_INIT;
    pseg_rpc_stream *s;

    (void)state;
    demo_up(&f, NULL, NULL);
    q.data.len = 1 << 20;
    q.data.data = calloc(1, q.data.len);
    for (int n = 0; n <= 20; n += 20) { /* no message at all, and many */
        assert_int_equal(pseg_rpc_open(&s, f.ch, DEMO("Upload"), REPLY_TYPE, MS, &err), PSEG_OK);
        for (int i = 0; i < n; i++)
            assert_true(pseg_rpc_stream_send(s, &q.base));
        pseg_rpc_stream_half_close(s);
        echo_reply *r = (echo_reply *)pseg_rpc_stream_recv(s);
        assert_non_null(r);
        assert_int_equal(r->size, (uint64_t)n << 20);
        drop(r);
        assert_null(pseg_rpc_stream_recv(s));
        assert_int_equal(pseg_rpc_close(s, NULL, &err), PSEG_OK);
    }
    /* The server answers before the client is through: that is a success. */
    assert_int_equal(pseg_rpc_open(&s, f.ch, DEMO("Upload"), REPLY_TYPE, MS, &err), PSEG_OK);
    q.text = (char *)"enough";
    while (pseg_rpc_stream_send(s, &q.base))
        ;
    echo_reply *r = (echo_reply *)pseg_rpc_stream_recv(s);
    assert_non_null(r);
    assert_int_equal(r->size, 1 << 20);
    drop(r);
    assert_int_equal(pseg_rpc_close(s, NULL, &err), PSEG_OK);
    free(q.data.data);
    demo_down(&f);
}

static void test_server_stream(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    Pseg__Test__V1__CountRequest q = PSEG__TEST__V1__COUNT_REQUEST__INIT;
    pseg_rpc_stream *s;
    ProtobufCMessage *m;

    (void)state;
    demo_up(&f, NULL, NULL);
    for (q.n = 0; q.n <= 2000; q.n += 2000) {
        uint64_t n = 0;
        assert_int_equal(pseg_rpc_open(&s, f.ch, DEMO("Count"), REPLY_TYPE, MS, &err), PSEG_OK);
        assert_true(pseg_rpc_stream_send(s, &q.base));
        pseg_rpc_stream_half_close(s);
        while ((m = pseg_rpc_stream_recv(s)) != NULL) {
            assert_int_equal(((echo_reply *)m)->size, n++);
            drop(m);
        }
        assert_int_equal(n, q.n);
        assert_int_equal(pseg_rpc_close(s, NULL, &err), PSEG_OK);
    }
    /* A client that leaves in the middle. */
    q.n = 1000000000;
    assert_int_equal(pseg_rpc_open(&s, f.ch, DEMO("Count"), REPLY_TYPE, MS, &err), PSEG_OK);
    assert_true(pseg_rpc_stream_send(s, &q.base));
    for (int i = 0; i < 100; i++)
        drop(pseg_rpc_stream_recv(s));
    pseg_rpc_stream_cancel(s);
    assert_int_equal(pseg_rpc_close(s, NULL, &err), PSEG_ECANCELLED);
    assert_int_equal(err.reason, PSEG_R_CANCELLED);
    demo_down(&f);
}

static void test_bidi(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    echo_request q = ECHO_INIT;
    pseg_rpc_stream *s;
    char text[16];

    (void)state;
    demo_up(&f, NULL, NULL);
    assert_int_equal(pseg_rpc_open(&s, f.ch, DEMO("Chat"), REPLY_TYPE, MS, &err), PSEG_OK);
    for (int i = 0; i < 100; i++) {
        snprintf(text, sizeof text, "%d", i);
        q.text = text;
        assert_true(pseg_rpc_stream_send(s, &q.base));
        echo_reply *r = (echo_reply *)pseg_rpc_stream_recv(s);
        assert_non_null(r);
        assert_string_equal(r->text, text);
        drop(r);
    }
    pseg_rpc_stream_half_close(s);
    assert_null(pseg_rpc_stream_recv(s));
    assert_int_equal(pseg_rpc_close(s, NULL, &err), PSEG_OK);
    demo_down(&f);
}

/* ---- errors ---- */

static pseg_status fail_with(demo_server *f, const char *reason, const char *message,
                             const char *field, int64_t ask_ms, int64_t *retry_ms, pseg_err *err)
{
    Pseg__Test__V1__FailRequest q = PSEG__TEST__V1__FAIL_REQUEST__INIT;
    pseg_rpc_stream *s;

    q.reason = (char *)reason;
    q.message.data = (uint8_t *)message;
    q.message.len = strlen(message);
    q.field = (char *)field;
    q.retry_after_ms = ask_ms;
    pseg_err_clear(err);
    assert_int_equal(pseg_rpc_open(&s, f->ch, DEMO("Fail"), REPLY_TYPE, MS, err), PSEG_OK);
    assert_true(pseg_rpc_stream_send(s, &q.base));
    return pseg_rpc_close(s, retry_ms, err);
}

static void test_every_reason_reaches_the_client(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    int64_t retry;

    (void)state;
    demo_up(&f, NULL, NULL);
    for (int i = 1; i < PSEG_R_COUNT; i++) {
        pseg_reason reason = (pseg_reason)i;
        assert_int_equal(
            fail_with(&f, pseg_reason_name(reason), "why", "a.b[2].c", 0, &retry, &err),
            pseg_reason_status(reason));
        assert_int_equal(err.reason, reason);
        assert_int_equal(err.detail, pseg_reason_grpc(reason));
        assert_string_equal(err.msg, "why");
        assert_string_equal(err.field, "a.b[2].c");
        assert_int_equal(retry, pseg_reason_is_retryable(reason) ? 1000 : -1);
    }
    fail_with(&f, "QUEUE_FULL", "full", "", 12345, &retry, &err);
    assert_int_equal(retry, 12345);
    assert_string_equal(err.field, "");
    demo_down(&f);
}

static void test_messages_are_made_utf8(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    char longest[400];

    (void)state;
    demo_up(&f, NULL, NULL);
    fail_with(&f, "INTERNAL",
              "a\xff"
              "b\xc3\xa9"
              "c\xc3",
              "", 0, NULL, &err);
    assert_string_equal(err.msg, "a?b\xc3\xa9"
                                 "c?");
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    fail_with(&f, "INTERNAL", longest, "", 0, NULL, &err);
    assert_int_equal(strlen(err.msg), sizeof err.msg - 1);
    demo_down(&f);
}

static void test_client_errors(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    pseg_rpc_channel_options co = PSEG_RPC_CHANNEL_OPTIONS_DEFAULT;
    pseg_rpc_channel *ch;
    ProtobufCMessage *m;
    echo_request q = ECHO_INIT;
    echo_reply *r;

    (void)state;
    demo_up(&f, NULL, NULL);
    assert_int_equal(
        pseg_rpc_unary(&m, f.ch, "/no.such.Service/Method", &q.base, REPLY_TYPE, MS, &err),
        PSEG_EUNSUPPORTED);
    assert_int_equal(err.reason, PSEG_R_UNSUPPORTED);
    assert_null(m);
    /* A reply of another type than expected. */
    q.text = (char *)"\x01\x02";
    assert_int_equal(pseg_rpc_unary(&m, f.ch, DEMO("Echo"), &q.base,
                                    &grpc__health__v1__health_check_response__descriptor, MS, &err),
                     PSEG_EINTERNAL);
    assert_non_null(strstr(err.msg, "is no grpc.health.v1.HealthCheckResponse"));
    demo_down(&f);

    /* Nobody there; the port was ours a moment ago. */
    co.target = f.target;
    assert_int_equal(pseg_rpc_dial(&ch, &co, &err), PSEG_OK);
    assert_int_equal(echo(&r, ch, "x", 0, &err), PSEG_EIO);
    assert_int_equal(err.reason, PSEG_R_SERVER_UNAVAILABLE);
    assert_true(strncmp(err.msg, "cannot reach 127.0.0.1:", 23) == 0);
    assert_non_null(strstr(err.msg, "Connection refused"));
    pseg_rpc_hangup(ch);
    co.target = "";
    assert_int_equal(pseg_rpc_dial(&ch, &co, &err), PSEG_EINVAL);
    assert_null(ch);
}

static void test_retry_waits_for_the_server(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    pseg_rpc_server *s;
    pseg_rpc_server_options o = demo_options();
    echo_reply *r;
    char path[64];

    (void)state;
    snprintf(path, sizeof path, "unix:/tmp/pseg-rpc-%d.sock", (int)getpid());
    pseg_rpc_channel_options co = PSEG_RPC_CHANNEL_OPTIONS_DEFAULT;
    co.target = path;
    co.wait_for_ready = true;
    assert_int_equal(pseg_rpc_dial(&f.ch, &co, &err), PSEG_OK);
    /* A deadline is kept while waiting. */
    echo_request q = ECHO_INIT;
    assert_int_equal(
        pseg_rpc_unary((ProtobufCMessage **)&r, f.ch, DEMO("Echo"), &q.base, REPLY_TYPE, 50, &err),
        PSEG_ETIMEOUT);
    demo_start(&f.d);
    assert_int_equal(pseg_rpc_server_new(&s, &o, &err), PSEG_OK);
    assert_int_equal(pseg_rpc_server_add(s, demo_methods, &f.d, &err), PSEG_OK);
    assert_int_equal(pseg_rpc_server_listen(s, path, &f.port, &err), PSEG_OK);
    assert_int_equal(f.port, 0);
    assert_int_equal(pseg_rpc_server_start(s, &err), PSEG_OK);
    assert_int_equal(echo(&r, f.ch, "x", 0, &err), PSEG_OK);
    drop(r);
    f.s = s;
    demo_down(&f);
}

/* ---- time and threads ---- */

static pseg_status wait_for(demo_server *f, int how, int64_t ms, int64_t timeout_ms, echo_reply **r,
                            pseg_err *err)
{
    Pseg__Test__V1__WaitRequest q = PSEG__TEST__V1__WAIT_REQUEST__INIT;
    q.how = (Pseg__Test__V1__WaitRequest__How)how;
    q.ms = ms;
    return pseg_rpc_unary((ProtobufCMessage **)r, f->ch, DEMO("Wait"), &q.base, REPLY_TYPE,
                          timeout_ms, err);
}

static void test_deadline(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    echo_reply *r;

    (void)state;
    demo_up(&f, NULL, NULL);
    int64_t begin = pseg_clock_mono_ms();
    assert_int_equal(wait_for(&f, HOW(NEVER), 0, 80, &r, &err), PSEG_ETIMEOUT);
    assert_int_equal(err.reason, PSEG_R_DEADLINE_EXCEEDED);
    assert_int_equal(err.detail, 4);
    assert_true(pseg_clock_mono_ms() - begin >= 79);
    demo_until_ended(&f.d, 1);
    assert_int_equal(f.d.cancelled, 1);
    demo_down(&f);
}

static void *cancel_when_begun(void *arg)
{
    demo_server *f = arg;
    while (atomic_load(&f->d.begun) == 0)
        sched_yield();
    pseg_rpc_cancel_all(f->ch);
    return NULL;
}

static void test_cancel_from_another_thread(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    echo_reply *r;
    pthread_t t;

    (void)state;
    demo_up(&f, NULL, NULL);
    pthread_create(&t, NULL, cancel_when_begun, &f);
    assert_int_equal(wait_for(&f, HOW(NEVER), 0, MS, &r, &err), PSEG_ECANCELLED);
    pthread_join(t, NULL);
    demo_until_ended(&f.d, 1);
    assert_int_equal(f.d.cancelled, 1);
    demo_down(&f);
}

static void test_answers_from_a_thread_and_from_timers(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    echo_reply *r;

    (void)state;
    demo_up(&f, NULL, NULL);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(wait_for(&f, HOW(THREAD), 0, MS, &r, &err), PSEG_OK);
        assert_string_equal(r->text, "thread");
        drop(r);
    }
    int64_t begin = pseg_clock_mono_ms();
    assert_int_equal(wait_for(&f, HOW(TIMER), 60, MS, &r, &err), PSEG_OK);
    assert_true(pseg_clock_mono_ms() - begin >= 60);
    drop(r);
    assert_int_equal(wait_for(&f, HOW(TIMERS), 300, MS, &r, &err), PSEG_OK);
    assert_string_equal(r->text, "in order");
    drop(r);
    /* A timer that is longer than the call is cancelled with it. */
    assert_int_equal(wait_for(&f, HOW(TIMER), 3600000, 30, &r, &err), PSEG_ETIMEOUT);
    /* A ticket that comes back after the call is over, and while the server stops. */
    demo_hold(&f.d, true);
    assert_int_equal(wait_for(&f, HOW(THREAD), 0, 30, &r, &err), PSEG_ETIMEOUT);
    demo_until_ended(&f.d, 102);
    demo_hold(&f.d, false);
    demo_down(&f);
}

/* ---- limits ---- */

static void test_too_large(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    pseg_rpc_server_options o = demo_options();
    echo_reply *r;
    echo_request q = ECHO_INIT;

    (void)state;
    o.max_message_bytes = 100000;
    o.max_reply_bytes = 50000;
    demo_up(&f, &o, NULL);
    assert_int_equal(echo(&r, f.ch, "", 99000, &err), PSEG_OK);
    drop(r);
    assert_int_equal(echo(&r, f.ch, "", 100001, &err), PSEG_EINVAL); /* said by us */
    assert_int_equal(err.reason, PSEG_R_REQUEST_TOO_LARGE);
    assert_int_equal(err.detail, 3);
    assert_int_equal(echo(&r, f.ch, "", 900000, &err), PSEG_EINVAL); /* said by the core */
    assert_int_equal(err.reason, PSEG_R_REQUEST_TOO_LARGE);
    assert_int_equal(err.detail, 8);
    q.reply_bytes = 60000;
    assert_int_equal(
        pseg_rpc_unary((ProtobufCMessage **)&r, f.ch, DEMO("Echo"), &q.base, REPLY_TYPE, MS, &err),
        PSEG_EINTERNAL);
    assert_non_null(strstr(err.msg, "over the limit of 50000"));
    demo_down(&f);
}

static void test_busy(void **state)
{
    enum { LIMIT = 5 };
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    pseg_rpc_server_options o = demo_options();
    Pseg__Test__V1__WaitRequest q = PSEG__TEST__V1__WAIT_REQUEST__INIT;
    Grpc__Health__V1__HealthCheckRequest hq = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    pseg_rpc_stream *s[LIMIT], *over;
    ProtobufCMessage *m;
    int64_t retry;

    (void)state;
    o.max_live_calls = LIMIT;
    demo_up(&f, &o, NULL);
    for (int i = 0; i < LIMIT; i++) {
        assert_int_equal(pseg_rpc_open(&s[i], f.ch, DEMO("Wait"), REPLY_TYPE, MS, &err), PSEG_OK);
        assert_true(pseg_rpc_stream_send(s[i], &q.base));
    }
    while (atomic_load(&f.d.begun) < LIMIT)
        sched_yield();
    assert_int_equal(pseg_rpc_open(&over, f.ch, DEMO("Wait"), REPLY_TYPE, MS, &err), PSEG_OK);
    assert_int_equal(pseg_rpc_close(over, &retry, &err), PSEG_EBUSY);
    assert_int_equal(err.reason, PSEG_R_SERVER_BUSY);
    assert_int_equal(retry, 1000);
    /* Health is answered all the same. */
    pseg_rpc_server_set_serving(f.s, "", true);
    assert_int_equal(pseg_rpc_unary(&m, f.ch, "/grpc.health.v1.Health/Check", &hq.base,
                                    &grpc__health__v1__health_check_response__descriptor, MS, &err),
                     PSEG_OK);
    drop(m);
    for (int i = 0; i < LIMIT; i++) {
        pseg_rpc_stream_cancel(s[i]);
        assert_int_equal(pseg_rpc_close(s[i], NULL, &err), PSEG_ECANCELLED);
    }
    demo_until_ended(&f.d, LIMIT);
    assert_int_equal(f.d.begun, LIMIT);
    demo_down(&f);
}

/* ---- hostile requests ---- */

static pseg_status raw(demo_server *f, const Pseg__Test__V1__RawRequest *q, pseg_err *err)
{
    ProtobufCMessage *m;
    pseg_err_clear(err);
    pseg_status rc = pseg_rpc_unary(&m, f->ch, DEMO("Echo"), &q->base, REPLY_TYPE, MS, err);
    drop(m);
    return rc;
}

#define BYTES(s)                                 \
    (ProtobufCBinaryData)                        \
    {                                            \
        sizeof(s) - 1, (uint8_t *)(uintptr_t)(s) \
    }

static void test_bad_text(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    Pseg__Test__V1__RawRequest q = PSEG__TEST__V1__RAW_REQUEST__INIT;
    ProtobufCBinaryData names[] = {BYTES("good"), BYTES("\xed\xa0\x80"), BYTES("good")};
    ProtobufCBinaryData list[] = {BYTES(""), BYTES("\x1a\x01x\x1a\x03"
                                                   "b\0c")};
    ProtobufCBinaryData wrong[] = {BYTES("\x0a\x05x"),
                                   BYTES("\x0b\x0c"),
                                   BYTES("\x0f"),
                                   BYTES("\x0a"),
                                   BYTES("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
                                   BYTES("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")};

    (void)state;
    demo_up(&f, NULL, NULL);
    q.text = BYTES("a\xff");
    assert_int_equal(raw(&f, &q, &err), PSEG_EINVAL);
    assert_int_equal(err.reason, PSEG_R_REQUEST_MALFORMED);
    assert_string_equal(err.field, "text");
    q.text = BYTES("a\0b");
    assert_int_equal(raw(&f, &q, &err), PSEG_EINVAL);
    assert_string_equal(err.field, "text");
    assert_non_null(strstr(err.msg, "NUL"));
    q.text = BYTES("fine");
    q.names = names;
    q.n_names = 3;
    assert_int_equal(raw(&f, &q, &err), PSEG_EINVAL);
    assert_string_equal(err.field, "names[1]");
    q.n_names = 1;
    q.list = list;
    q.n_list = 2;
    assert_int_equal(raw(&f, &q, &err), PSEG_EINVAL);
    assert_string_equal(err.field, "list[1].names[1]");
    q.n_list = 1;
    assert_int_equal(raw(&f, &q, &err), PSEG_OK);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        q.list = &wrong[i];
        assert_int_equal(raw(&f, &q, &err), PSEG_EINVAL);
        assert_int_equal(err.reason, PSEG_R_REQUEST_MALFORMED);
    }
    demo_down(&f);
}

static pseg_reason prompt_reason(const ProtobufCMessageDescriptor *m,
                                 const ProtobufCFieldDescriptor *f)
{
    (void)m;
    return strcmp(f->name, "text") == 0 ? PSEG_R_PROMPT_NOT_TEXT : PSEG_R_REQUEST_MALFORMED;
}

static void test_depth_and_amplification(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    pseg_rpc_server_options o = demo_options();
    Pseg__Test__V1__RawRequest q = PSEG__TEST__V1__RAW_REQUEST__INIT;
    size_t max = 3 << 20, len = 0;
    uint8_t *bytes = malloc(max);

    (void)state;
    o.text_reason = prompt_reason;
    demo_up(&f, &o, NULL);
    q.text = BYTES("\xff");
    raw(&f, &q, &err);
    assert_int_equal(err.reason, PSEG_R_PROMPT_NOT_TEXT);
    q.text = BYTES("");
    /* 100,000 levels, from the inside out at the end of the buffer. */
    for (int depth = 0; depth < 100000; depth++) {
        uint8_t head[6] = {0x2a};
        size_t n = 1;
        for (size_t v = len; n == 1 || v; v >>= 7)
            head[n++] = (uint8_t)((v & 0x7F) | (v > 0x7F ? 0x80 : 0));
        memcpy(bytes + max - len - n, head, n);
        len += n;
    }
    q.nested = (ProtobufCBinaryData){len, bytes + max - len};
    assert_int_equal(raw(&f, &q, &err), PSEG_EINVAL);
    assert_non_null(strstr(err.msg, "nested deeper than 32"));
    /* Millions of empty map entries, which protobuf-c would turn into 60 times their size. */
    for (size_t i = 0; i + 2 <= max; i += 2) {
        bytes[i] = 0x22;
        bytes[i + 1] = 0;
    }
    q.nested = (ProtobufCBinaryData){max, bytes};
    assert_int_equal(raw(&f, &q, &err), PSEG_EINVAL);
    assert_int_equal(err.reason, PSEG_R_REQUEST_MALFORMED);
    assert_non_null(strstr(err.msg, "memory"));
    free(bytes);
    demo_down(&f);
}

/* Every allocation fails once, at the server or at the client: an error or a success, no crash. */
static void test_memory_is_short(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    echo_reply *r;
    int failed = 0;

    (void)state;
    demo_up(&f, NULL, NULL);
    for (uint64_t n = 1; n <= 60; n++) {
        pseg_alloc_fail_nth(n);
        pseg_status rc =
            n % 2 ? echo(&r, f.ch, "x", 10, &err) : wait_for(&f, HOW(TIMER), 1, 3000, &r, &err);
        pseg_alloc_fail_nth(0);
        assert_true(rc == PSEG_OK || rc == PSEG_ENOMEM || rc == PSEG_EINVAL);
        failed += rc != PSEG_OK;
        if (rc == PSEG_OK)
            drop(r);
    }
    assert_true(failed > 0);
    for (int i = 0; i < 100; i++) { /* and the server takes as many calls as before */
        assert_int_equal(echo(&r, f.ch, "x", 10, &err), PSEG_OK);
        drop(r);
    }
    demo_down(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unary),
        cmocka_unit_test(test_client_stream),
        cmocka_unit_test(test_server_stream),
        cmocka_unit_test(test_bidi),
        cmocka_unit_test(test_every_reason_reaches_the_client),
        cmocka_unit_test(test_messages_are_made_utf8),
        cmocka_unit_test(test_client_errors),
        cmocka_unit_test(test_retry_waits_for_the_server),
        cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_cancel_from_another_thread),
        cmocka_unit_test(test_answers_from_a_thread_and_from_timers),
        cmocka_unit_test(test_too_large),
        cmocka_unit_test(test_busy),
        cmocka_unit_test(test_bad_text),
        cmocka_unit_test(test_depth_and_amplification),
        cmocka_unit_test(test_memory_is_short),
    };

    pseg_rpc_init(&demo_log, NULL, NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    pseg_rpc_shutdown();
    return failed ? 1 : 0;
}
