/* common/rpc at its edges: addresses, stopping, health, reflection, TLS, identities. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/file.h"
#include "common/base/hash.h"
#include "grpc/health/v1/health.pb-c.h"
#include "grpc/reflection/v1/reflection.pb-c.h"
#include "scheduler/keys.h"
#include "tests/unit/rpc_demo.h"

#include <sched.h>
#include <stdatomic.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MS           20000
#define DEMO(method) "/pseg.test.v1.Demo/" method

typedef Pseg__Test__V1__EchoRequest echo_request;
typedef Pseg__Test__V1__EchoReply echo_reply;
#define ECHO_INIT  PSEG__TEST__V1__ECHO_REQUEST__INIT
#define REPLY_TYPE &pseg__test__v1__echo_reply__descriptor
#define HOW(x)     PSEG__TEST__V1__WAIT_REQUEST__HOW__##x

static char folder[] = "/tmp/pseg-rpc-XXXXXX"; /* certificates and sockets of this run */

static const char *in_folder(const char *name)
{
    static char paths[256][96]; /* enough for a whole run */
    static int next;
    char *p = paths[next++ % 256];

    snprintf(p, sizeof paths[0], "%s/%s", folder, name);
    return p;
}

/* ---- addresses ---- */

static void expect_listen(const char *address, pseg_reason reason, const char *words)
{
    pseg_rpc_server_options o = demo_options();
    pseg_err err = PSEG_ERR_INIT;
    pseg_rpc_server *s;
    int port;

    assert_int_equal(pseg_rpc_server_new(&s, &o, &err), PSEG_OK);
    pseg_status rc = pseg_rpc_server_listen(s, address, &port, &err);
    assert_int_equal(err.reason, reason);
    assert_int_equal(rc, reason ? pseg_reason_status(reason) : PSEG_OK);
    assert_non_null(strstr(err.msg, words));
    pseg_rpc_server_free(s); /* never started */
}

static void test_addresses(void **state)
{
    struct addrinfo *names = NULL;
    demo_server f;
    char address[128];

    (void)state;
    demo_up(&f, NULL, NULL);
    expect_listen(f.target, PSEG_R_ADDRESS_IN_USE, f.target);
    expect_listen(f.target, PSEG_R_ADDRESS_IN_USE, "choose another port");
    snprintf(address, sizeof address, "localhost:%d", f.port);
    /* A bare root made by debootstrap has no /etc/hosts. */
    bool has_localhost = getaddrinfo("localhost", NULL, NULL, &names) == 0;
    expect_listen(address, has_localhost ? PSEG_R_ADDRESS_IN_USE : PSEG_R_INVALID_ARGUMENT,
                  address);
    if (has_localhost)
        freeaddrinfo(names);
    snprintf(address, sizeof address, "0.0.0.0:%d", f.port);
    expect_listen(address, PSEG_R_ADDRESS_IN_USE, address);
    demo_down(&f);
    expect_listen(f.target, PSEG_R_NONE, ""); /* and it is free at once */
    expect_listen("127.0.0.1", PSEG_R_INVALID_ARGUMENT, "is not HOST:PORT");
    expect_listen("", PSEG_R_INVALID_ARGUMENT, "is not HOST:PORT");
    expect_listen("::1:80", PSEG_R_INVALID_ARGUMENT, "is not HOST:PORT");
    expect_listen("127.0.0.1:http", PSEG_R_INVALID_ARGUMENT, "is not HOST:PORT");
    expect_listen("127.0.0.1:65536", PSEG_R_INVALID_ARGUMENT, "is not HOST:PORT");
    expect_listen("[::1:80", PSEG_R_INVALID_ARGUMENT, "is not HOST:PORT");
    expect_listen("192.0.2.1:8080", PSEG_R_INVALID_ARGUMENT, "an address of this machine");
    expect_listen("no-such-host.invalid:8080", PSEG_R_INVALID_ARGUMENT, "no-such-host.invalid");
    memset(address, 'x', sizeof address - 1);
    address[sizeof address - 1] = '\0';
    memcpy(address, "unix:", 5);
    expect_listen(address, PSEG_R_INVALID_ARGUMENT, "the limit is 107");
}

static void leave_stale_socket(const char *path)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    snprintf(un.sun_path, sizeof un.sun_path, "%s", path);
    unlink(path);
    assert_int_equal(bind(fd, (const struct sockaddr *)&un, sizeof un), 0);
    close(fd);
}

static void test_unix_socket_in_use(void **state)
{
    pseg_rpc_server_options o = demo_options();
    pseg_err err = PSEG_ERR_INIT;
    pseg_rpc_server *s;
    char address[128];

    (void)state;
    snprintf(address, sizeof address, "unix:%s", in_folder("a.sock"));
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pseg_rpc_server_new(&s, &o, &err), PSEG_OK);
        assert_int_equal(pseg_rpc_server_listen(s, address, NULL, &err), PSEG_OK);
        assert_int_equal(pseg_rpc_server_start(s, &err), PSEG_OK);
        expect_listen(address, PSEG_R_ADDRESS_IN_USE, address);
        pseg_rpc_server_free(s); /* stops by itself */
        if (i == 0)              /* what a killed server leaves behind is no obstacle */
            leave_stale_socket(in_folder("a.sock"));
    }
    assert_int_equal(pseg_file_write(in_folder("a.sock"), "x", 1, &err), PSEG_OK);
    expect_listen(address, PSEG_R_ADDRESS_IN_USE, "no socket");
}

static void test_ports_are_shared_when_asked(void **state)
{
    demo_server f;
    pseg_rpc_server_options o = demo_options();
    pseg_err err = PSEG_ERR_INIT;
    pseg_rpc_server *s;
    int port;

    (void)state;
    o.reuse_port = true;
    demo_up(&f, &o, NULL);
    assert_int_equal(pseg_rpc_server_new(&s, &o, &err), PSEG_OK);
    assert_int_equal(pseg_rpc_server_listen(s, f.target, &port, &err), PSEG_OK);
    assert_int_equal(port, f.port);
    pseg_rpc_server_free(s);
    demo_down(&f);
}

/* ---- tables ---- */

static void nothing(pseg_rpc_call *c, const void *msg)
{
    (void)c;
    (void)msg;
}

static void test_wrong_tables_are_refused(void **state)
{
    static const pseg_rpc_method wrong[][2] = {
        {{"/pseg.test.v1.Demo/Nothing", 0, &pseg__test__v1__echo_request__descriptor, nothing}},
        {{"/pseg.test.v1.Demo/Echo", 0, &pseg__test__v1__count_request__descriptor, nothing}},
        {{"/pseg.test.v1.Demo/Echo", PSEG_RPC_CLIENT_STREAM,
          &pseg__test__v1__echo_request__descriptor, nothing}},
        {{"/pseg.test.v1.Demo/Count", 0, &pseg__test__v1__count_request__descriptor, nothing}},
        {{"/grpc.health.v1.Health/Check", 0, &grpc__health__v1__health_check_request__descriptor,
          nothing}},
        {{"pseg", 0, &pseg__test__v1__echo_request__descriptor, nothing}},
    };
    pseg_rpc_server_options o = demo_options();
    pseg_err err = PSEG_ERR_INIT;
    pseg_rpc_server *s;

    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(pseg_rpc_server_new(&s, &o, &err), PSEG_OK);
        assert_int_equal(pseg_rpc_server_add(s, wrong[i], NULL, &err), PSEG_OK);
        assert_int_equal(pseg_rpc_server_start(s, &err), PSEG_EINTERNAL);
        assert_non_null(strstr(err.msg, wrong[i][0].path));
        pseg_rpc_server_free(s);
    }
}

/* ---- stopping ---- */

typedef struct waiter {
    demo_server *f;
    int how;
    pthread_t thread;
    pseg_status rc;
    pseg_err err;
} waiter;

static void *wait_main(void *arg)
{
    waiter *w = arg;
    Pseg__Test__V1__WaitRequest q = PSEG__TEST__V1__WAIT_REQUEST__INIT;
    ProtobufCMessage *m;

    q.how = (Pseg__Test__V1__WaitRequest__How)w->how;
    w->rc = pseg_rpc_unary(&m, w->f->ch, DEMO("Wait"), &q.base, REPLY_TYPE, MS, &w->err);
    pseg_rpc_message_free(m);
    return NULL;
}

static void test_stop_ends_calls(void **state)
{
    demo_server f;
    waiter w[3] = {{.how = HOW(NEVER)}, {.how = HOW(STUBBORN)}, {.how = HOW(THREAD)}};
    pseg_rpc_channel_options co = PSEG_RPC_CHANNEL_OPTIONS_DEFAULT;

    (void)state;
    co.retry = false;
    demo_up(&f, NULL, &co);
    demo_hold(&f.d, true);
    for (int i = 0; i < 3; i++) {
        w[i].f = &f;
        pthread_create(&w[i].thread, NULL, wait_main, &w[i]);
    }
    while (atomic_load(&f.d.begun) < 3)
        sched_yield();
    demo_hold(&f.d, false); /* the ticket comes back while the server stops, or before */
    int64_t begin = pseg_clock_mono_ms();
    pseg_rpc_server_stop(f.s, 200);
    int64_t took = pseg_clock_mono_ms() - begin;
    for (int i = 0; i < 3; i++)
        pthread_join(w[i].thread, NULL);
    assert_int_equal(w[0].err.reason, PSEG_R_DRAINING);
    assert_int_equal(w[1].err.reason, PSEG_R_SERVER_UNAVAILABLE); /* cancelled, but not by us */
    assert_true(w[2].rc == PSEG_OK || w[2].err.reason == PSEG_R_DRAINING);
    assert_true(took >= 199 && took < 10000); /* the stubborn one was given its time */
    assert_int_equal(f.d.ended, 3);
    demo_down(&f);
}

static void test_stop_without_calls_is_quick(void **state)
{
    demo_server f;

    (void)state;
    demo_up(&f, NULL, NULL);
    int64_t begin = pseg_clock_mono_ms();
    pseg_rpc_server_stop(f.s, 60000);
    assert_true(pseg_clock_mono_ms() - begin < 10000);
    demo_down(&f);
}

typedef struct hammer {
    demo_server *f;
    pthread_t thread;
    int good, bad_text, other; /* other: an error that stopping does not explain */
    pseg_err last;
} hammer;

static void *hammer_main(void *arg)
{
    hammer *h = arg;
    echo_request q = ECHO_INIT;
    char text[32];

    for (int i = 0;; i++) {
        ProtobufCMessage *m;
        pseg_err_clear(&h->last);
        snprintf(text, sizeof text, "%p %d", arg, i);
        q.text = text;
        if (pseg_rpc_unary(&m, h->f->ch, DEMO("Echo"), &q.base, REPLY_TYPE, MS, &h->last) !=
            PSEG_OK)
            break;
        h->good++;
        h->bad_text += strcmp(((echo_reply *)m)->text, text) != 0;
        pseg_rpc_message_free(m);
    }
    h->other = h->last.reason != PSEG_R_DRAINING && h->last.reason != PSEG_R_SERVER_UNAVAILABLE;
    return NULL;
}

/* The threads stop at their first failure, so the server's end is what ends them. */
static void stop_under_load(int n_loops)
{
    enum { N = 4 };
    demo_server f;
    hammer h[N] = {{0}};
    pseg_rpc_server_options o = demo_options();
    pseg_rpc_channel_options co = PSEG_RPC_CHANNEL_OPTIONS_DEFAULT;
    pseg_rpc_stats stats;

    co.retry = false;
    o.n_loops = n_loops;
    demo_up(&f, &o, &co);
    for (int i = 0; i < N; i++) {
        h[i].f = &f;
        pthread_create(&h[i].thread, NULL, hammer_main, &h[i]);
    }
    do {
        sched_yield();
        pseg_rpc_server_stats(f.s, &stats);
    } while (stats.calls < 300);
    pseg_rpc_server_stop(f.s, 5000);
    for (int i = 0; i < N; i++) {
        pthread_join(h[i].thread, NULL);
        assert_true(h[i].good > 0);
        assert_int_equal(h[i].bad_text, 0);
        if (h[i].other)
            fail_msg("unexpected end: %s", h[i].last.msg);
    }
    pseg_rpc_server_stats(f.s, &stats);
    assert_int_equal(stats.live, 0);
    demo_down(&f);
}

static void test_stop_under_load(void **state)
{
    (void)state;
    for (int i = 0; i < 5; i++)
        stop_under_load(1);
    stop_under_load(3);
}

/* ---- health ---- */

#define HEALTH_REPLY &grpc__health__v1__health_check_response__descriptor

static pseg_status check_health(demo_server *f, const char *service, int *status, pseg_err *err)
{
    Grpc__Health__V1__HealthCheckRequest q = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    ProtobufCMessage *m;

    q.service = (char *)(uintptr_t)service;
    pseg_status rc =
        pseg_rpc_unary(&m, f->ch, "/grpc.health.v1.Health/Check", &q.base, HEALTH_REPLY, MS, err);
    if (rc == PSEG_OK)
        *status = (int)((Grpc__Health__V1__HealthCheckResponse *)m)->status;
    pseg_rpc_message_free(m);
    return rc;
}

static int next_status(pseg_rpc_stream *s)
{
    ProtobufCMessage *m = pseg_rpc_stream_recv(s);
    int status = m ? (int)((Grpc__Health__V1__HealthCheckResponse *)m)->status : -1;

    pseg_rpc_message_free(m);
    return status;
}

static void test_health(void **state)
{
    enum { WATCHERS = 8, SERVING = 1, NOT_SERVING = 2, UNKNOWN = 3 };
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    Grpc__Health__V1__HealthCheckRequest q = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    pseg_rpc_stream *s[WATCHERS];
    pseg_rpc_channel_options co = PSEG_RPC_CHANNEL_OPTIONS_DEFAULT;
    int status = -1;

    (void)state;
    co.retry = false;
    demo_up(&f, NULL, &co);
    assert_int_equal(check_health(&f, "a", &status, &err), PSEG_ENOTFOUND);
    assert_int_equal(err.detail, 5);
    assert_int_equal(err.reason, PSEG_R_NOT_FOUND);
    q.service = (char *)"a";
    for (int i = 0; i < WATCHERS; i++) {
        assert_int_equal(
            pseg_rpc_open(&s[i], f.ch, "/grpc.health.v1.Health/Watch", HEALTH_REPLY, MS, &err),
            PSEG_OK);
        assert_true(pseg_rpc_stream_send(s[i], &q.base));
        pseg_rpc_stream_half_close(s[i]);
        assert_int_equal(next_status(s[i]), UNKNOWN);
    }
    pseg_rpc_server_set_serving(f.s, "other", true);
    pseg_rpc_server_set_serving(f.s, "a", true);
    for (int i = 0; i < WATCHERS; i++)
        assert_int_equal(next_status(s[i]), SERVING);
    assert_int_equal(check_health(&f, "a", &status, &err), PSEG_OK);
    assert_int_equal(status, SERVING);
    /* Many changes: a watcher may miss some in between, and sees the last one. */
    for (int i = 0; i < 1000; i++)
        pseg_rpc_server_set_serving(f.s, "a", i % 2 == 0); /* false at last */
    for (int i = 0; i < 3; i++) {                          /* some leave */
        pseg_rpc_stream_cancel(s[i]);
        assert_int_equal(pseg_rpc_close(s[i], NULL, &err), PSEG_ECANCELLED);
    }
    for (int i = 3; i < WATCHERS; i++)
        while (next_status(s[i]) != NOT_SERVING)
            ;
    pseg_rpc_server_stop(f.s, 5000);
    for (int i = 3; i < WATCHERS; i++) {
        while ((status = next_status(s[i])) == SERVING || status == NOT_SERVING)
            ;
        assert_int_equal(status, -1);
        assert_int_equal(pseg_rpc_close(s[i], NULL, &err), PSEG_EBUSY);
        assert_int_equal(err.reason, PSEG_R_DRAINING);
    }
    demo_down(&f);
}

/* ---- reflection ---- */

typedef Grpc__Reflection__V1__ServerReflectionRequest refl_request;
typedef Grpc__Reflection__V1__ServerReflectionResponse refl_response;
#define ASK(x)  GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_##x
#define SAYS(x) GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_##x

static refl_response *ask(pseg_rpc_stream *s, int what, const char *text)
{
    refl_request q = GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__INIT;
    Grpc__Reflection__V1__ExtensionRequest e = GRPC__REFLECTION__V1__EXTENSION_REQUEST__INIT;

    q.message_request_case = what;
    q.file_by_filename = (char *)(uintptr_t)text; /* all strings share the union */
    if (what == (int)ASK(FILE_CONTAINING_EXTENSION)) {
        e.containing_type = (char *)(uintptr_t)text;
        q.file_containing_extension = &e;
    }
    assert_true(pseg_rpc_stream_send(s, &q.base));
    refl_response *r = (refl_response *)pseg_rpc_stream_recv(s);
    assert_non_null(r);
    assert_int_equal(r->original_request->message_request_case, what);
    return r;
}

static void reflect(demo_server *f, const char *method)
{
    static const char *const symbols[] = {
        "pseg.test.v1.Demo",           "pseg.test.v1.Demo.Echo",
        "pseg.test.v1.EchoRequest",    ".pseg.test.v1.EchoRequest",
        "pseg.test.v1.WaitRequest",    "pseg.test.v1.WaitRequest.TIMER",
        "pseg.test.v1.EchoReply.size", "google.rpc.BadRequest.FieldViolation"};
    pseg_err err = PSEG_ERR_INIT;
    pseg_rpc_stream *s;
    refl_response *r;

    assert_int_equal(pseg_rpc_open(&s, f->ch, method,
                                   &grpc__reflection__v1__server_reflection_response__descriptor,
                                   MS, &err),
                     PSEG_OK);
    r = ask(s, ASK(LIST_SERVICES), "");
    assert_int_equal(r->message_response_case, SAYS(LIST_SERVICES_RESPONSE));
    assert_int_equal(r->list_services_response->n_service, 4);
    pseg_rpc_message_free(&r->base);
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        r = ask(s, ASK(FILE_CONTAINING_SYMBOL), symbols[i]);
        assert_int_equal(r->message_response_case, SAYS(FILE_DESCRIPTOR_RESPONSE));
        pseg_rpc_message_free(&r->base);
    }
    /* A file comes with what it imports. */
    r = ask(s, ASK(FILE_BY_FILENAME), "google/rpc/status.proto");
    assert_int_equal(r->message_response_case, SAYS(FILE_DESCRIPTOR_RESPONSE));
    assert_int_equal(r->file_descriptor_response->n_file_descriptor_proto, 2);
    pseg_rpc_message_free(&r->base);
    r = ask(s, ASK(ALL_EXTENSION_NUMBERS_OF_TYPE), "pseg.test.v1.EchoReply");
    assert_int_equal(r->message_response_case, SAYS(ALL_EXTENSION_NUMBERS_RESPONSE));
    assert_string_equal(r->all_extension_numbers_response->base_type_name,
                        "pseg.test.v1.EchoReply");
    pseg_rpc_message_free(&r->base);
    const int missing[] = {ASK(FILE_BY_FILENAME), ASK(FILE_CONTAINING_SYMBOL),
                           ASK(FILE_CONTAINING_EXTENSION), ASK(ALL_EXTENSION_NUMBERS_OF_TYPE)};
    for (int i = 0; i < 4; i++) {
        r = ask(s, missing[i], "no.such.thing");
        assert_int_equal(r->message_response_case, SAYS(ERROR_RESPONSE));
        assert_int_equal(r->error_response->error_code, 5);
        pseg_rpc_message_free(&r->base);
    }
    pseg_rpc_stream_half_close(s);
    assert_int_equal(pseg_rpc_close(s, NULL, &err), PSEG_OK);
}

static void test_reflection(void **state)
{
    demo_server f;

    (void)state;
    demo_up(&f, NULL, NULL);
    reflect(&f, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo");
    reflect(&f, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo");
    demo_down(&f);
}

/* ---- TLS ---- */

static int make_certificates(void **state)
{
    char command[4096];

    (void)state;
    if (!mkdtemp(folder))
        return -1;
    snprintf(command, sizeof command,
             "cd %s && exec >openssl.log 2>&1 && set -ex\n"
             "ca() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "
             "-keyout $1.key -out $1.crt -days 30 -subj /CN=$1; }\n"
             "cert() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "
             "-keyout $1.key -out $1.csr -subj \"/CN=$3\"; printf 'subjectAltName=%%s' \"$4\" "
             ">$1.ext; openssl x509 -req -in $1.csr -CA $2.crt -CAkey $2.key -CAcreateserial "
             "-days 30 -extfile $1.ext -out $1.crt; }\n"
             "ca ca; ca other\n"
             "cert server ca localhost DNS:localhost,IP:127.0.0.1\n"
             "cert renewed ca localhost DNS:renewed.example\n"
             "cert client ca tenant-a DNS:client.example,email:a@client.example\n"
             "cert odd ca 'not a tenant' DNS:odd.example\n"
             "cert stranger other tenant-a DNS:client.example\n",
             folder);
    return system(command);
}

static int remove_folder(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

static pseg_status call(const char *target, pseg_rpc_channel_options co, char *tenant,
                        pseg_err *err)
{
    pseg_rpc_channel *ch;
    echo_request q = ECHO_INIT;
    ProtobufCMessage *m;

    co.target = target;
    co.retry = false;
    pseg_err_clear(err);
    pseg_status rc = pseg_rpc_dial(&ch, &co, err);
    if (rc != PSEG_OK)
        return rc;
    rc = pseg_rpc_unary(&m, ch, DEMO("Echo"), &q.base, REPLY_TYPE, MS, err);
    if (m && tenant)
        snprintf(tenant, PSEG_RPC_TENANT_MAX, "%s", ((echo_reply *)m)->tenant);
    pseg_rpc_message_free(m);
    pseg_rpc_hangup(ch);
    return rc;
}

static void test_tls(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    pseg_rpc_server_options o = demo_options();
    pseg_rpc_channel_options good = {.ca_file = in_folder("ca.crt"), .max_message_bytes = 1 << 20};
    pseg_rpc_channel_options bad = good;

    (void)state;
    o.cert_file = in_folder("server.crt");
    o.key_file = in_folder("server.key");
    demo_up(&f, &o, &good);
    assert_int_equal(call(f.target, good, NULL, &err), PSEG_OK);
    bad.ca_file = in_folder("other.crt"); /* signed by somebody else */
    assert_int_equal(call(f.target, bad, NULL, &err), PSEG_EIO);
    assert_int_equal(err.reason, PSEG_R_SERVER_UNAVAILABLE);
    bad.ca_file = NULL; /* no TLS */
    assert_int_equal(call(f.target, bad, NULL, &err), PSEG_EIO);
    bad = good;
    bad.authority = "somebody.else";
    assert_int_equal(call(f.target, bad, NULL, &err), PSEG_EIO);
    bad.ca_file = in_folder("no-such-file");
    assert_int_equal(call(f.target, bad, NULL, &err), PSEG_ENOTFOUND);
    bad.ca_file = in_folder("openssl.log");
    assert_int_equal(call(f.target, bad, NULL, &err), PSEG_EINVAL);
    assert_int_equal(err.reason, PSEG_R_CONFIG_INVALID);
    bad = good;
    bad.cert_file = in_folder("client.crt");
    assert_int_equal(call(f.target, bad, NULL, &err), PSEG_EINVAL);
    demo_down(&f);
}

static void test_wrong_server_certificates(void **state)
{
    static const struct {
        const char *cert, *key, *ca;
        pseg_reason reason;
    } cases[] = {
        {"server.crt", "client.key", NULL, PSEG_R_CONFIG_INVALID}, /* do not belong together */
        {"server.crt", NULL, NULL, PSEG_R_CONFIG_INVALID},
        {NULL, NULL, "ca.crt", PSEG_R_CONFIG_INVALID},
        {"server.crt", "openssl.log", NULL, PSEG_R_CONFIG_INVALID},
        {"server.crt", "nowhere.key", NULL, PSEG_R_FILE_NOT_FOUND},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pseg_rpc_server_options o = demo_options();
        static const pseg_log silent = {PSEG_LOG_ERROR, -1};
        pseg_err err = PSEG_ERR_INIT;
        pseg_rpc_server *s;
        o.log = &silent;
        o.cert_file = cases[i].cert ? in_folder(cases[i].cert) : NULL;
        o.key_file = cases[i].key ? in_folder(cases[i].key) : NULL;
        o.client_ca_file = cases[i].ca ? in_folder(cases[i].ca) : NULL;
        pseg_status rc = pseg_rpc_server_new(&s, &o, &err);
        if (rc == PSEG_OK)
            rc = pseg_rpc_server_listen(s, "127.0.0.1:0", NULL, &err);
        assert_int_not_equal(rc, PSEG_OK);
        assert_int_equal(err.reason, cases[i].reason);
        pseg_rpc_server_free(s);
    }
}

static void copy(const char *from, const char *to)
{
    pseg_err err = PSEG_ERR_INIT;
    uint8_t *data;
    size_t n;

    assert_int_equal(pseg_file_read(&data, &n, in_folder(from), 1 << 20, &err), PSEG_OK);
    assert_int_equal(pseg_file_write(in_folder(to), data, n, &err), PSEG_OK);
    free(data);
}

static void test_certificates_are_renewed_in_place(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    pseg_rpc_server_options o = demo_options();
    pseg_rpc_channel_options old = {.ca_file = in_folder("ca.crt"), .max_message_bytes = 1 << 20};
    pseg_rpc_channel_options renewed = old;
    static const pseg_log silent = {PSEG_LOG_ERROR, -1};

    (void)state;
    old.authority = "localhost";
    renewed.authority = "renewed.example";
    copy("server.crt", "live.crt");
    copy("server.key", "live.key");
    o.log = &silent;
    o.cert_file = in_folder("live.crt");
    o.key_file = in_folder("live.key");
    demo_up(&f, &o, &old);
    assert_int_equal(call(f.target, old, NULL, &err), PSEG_OK);
    assert_int_equal(call(f.target, renewed, NULL, &err), PSEG_EIO);
    copy("renewed.crt", "live.crt"); /* the old key is still there: nothing changes yet */
    assert_int_equal(call(f.target, old, NULL, &err), PSEG_OK);
    copy("renewed.key", "live.key");
    assert_int_equal(call(f.target, renewed, NULL, &err), PSEG_OK);
    assert_int_equal(call(f.target, old, NULL, &err), PSEG_EIO);
    copy("openssl.log", "live.crt"); /* rubbish */
    assert_int_equal(call(f.target, renewed, NULL, &err), PSEG_OK);
    assert_int_equal(unlink(in_folder("live.key")), 0);
    assert_int_equal(call(f.target, renewed, NULL, &err), PSEG_OK);
    demo_down(&f);
}

/* ---- identities ---- */

static void write_keys(const char *name, const char *const *pairs, size_t n)
{
    char text[2048] = "# keys\n\n", hex[PSEG_SHA256_HEX + 1];
    uint8_t sha[PSEG_SHA256_BYTES];
    pseg_err err = PSEG_ERR_INIT;

    for (size_t i = 0; i < n; i += 2) {
        pseg_sha256_of(sha, pairs[i], strlen(pairs[i]));
        pseg_hex(hex, sha, sizeof sha);
        size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, "  %s\t%s # comment\r\n", hex, pairs[i + 1]);
    }
    assert_int_equal(pseg_file_write(in_folder(name), text, strlen(text), &err), PSEG_OK);
}

static void test_mutual_tls(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    pseg_rpc_server_options o = demo_options();
    pseg_auth auth = {.needs_certificate = true};
    char tenant[PSEG_RPC_TENANT_MAX];
    pseg_rpc_channel_options co = {.ca_file = in_folder("ca.crt"), .max_message_bytes = 1 << 20};
    pseg_rpc_channel_options none = co;

    (void)state;
    o.cert_file = in_folder("server.crt");
    o.key_file = in_folder("server.key");
    o.client_ca_file = in_folder("ca.crt");
    o.authorize = pseg_auth_check;
    o.authorize_ud = &auth;
    co.cert_file = in_folder("client.crt");
    co.key_file = in_folder("client.key");
    demo_up(&f, &o, &co);
    assert_int_equal(call(f.target, co, tenant, &err), PSEG_OK);
    assert_string_equal(tenant, "tenant-a");
    assert_int_equal(call(f.target, none, NULL, &err), PSEG_EIO);
    co.cert_file = in_folder("stranger.crt");
    co.key_file = in_folder("stranger.key");
    assert_int_equal(call(f.target, co, NULL, &err), PSEG_EIO);
    co.cert_file = in_folder("odd.crt");
    co.key_file = in_folder("odd.key");
    assert_int_equal(call(f.target, co, NULL, &err), PSEG_EDENIED);
    assert_int_equal(err.reason, PSEG_R_PERMISSION_DENIED);
    demo_down(&f);
}

/* What the hook is told of a certificate. */
static pseg_status look_at_peer(void *ud, char *tenant, const pseg_rpc_peer *peer,
                                const char *method, pseg_err *err)
{
    (void)ud;
    (void)err;
    snprintf(tenant, PSEG_RPC_TENANT_MAX, "%d %s %zu %s %s %d", peer->has_certificate,
             peer->common_name, peer->n_alt_names, peer->n_alt_names ? peer->alt_names[0] : "",
             strrchr(method, '/') + 1, strncmp(peer->address, "ipv4:127.0.0.1:", 15));
    return PSEG_OK;
}

static pseg_status no_tenant(void *ud, char *tenant, const pseg_rpc_peer *peer, const char *method,
                             pseg_err *err)
{
    (void)ud;
    (void)peer;
    (void)method;
    (void)err;
    tenant[0] = '\0';
    return PSEG_OK;
}

static void test_the_hook_sees_the_peer(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    pseg_rpc_server_options o = demo_options();
    char tenant[PSEG_RPC_TENANT_MAX];
    pseg_rpc_channel_options co = {.ca_file = in_folder("ca.crt"), .max_message_bytes = 1 << 20};
    pseg_rpc_channel_options plain = {.max_message_bytes = 1 << 20};

    (void)state;
    o.authorize = look_at_peer;
    demo_up(&f, &o, NULL);
    assert_int_equal(call(f.target, plain, tenant, &err), PSEG_OK);
    assert_string_equal(tenant, "0  0  Echo 0");
    demo_down(&f);
    o.cert_file = in_folder("server.crt");
    o.key_file = in_folder("server.key");
    o.client_ca_file = in_folder("ca.crt");
    co.cert_file = in_folder("client.crt");
    co.key_file = in_folder("client.key");
    demo_up(&f, &o, &co);
    assert_int_equal(call(f.target, co, tenant, &err), PSEG_OK);
    assert_string_equal(tenant, "1 tenant-a 2 client.example Echo 0");
    demo_down(&f);
    o = demo_options();
    o.authorize = no_tenant;
    demo_up(&f, &o, NULL);
    assert_int_equal(call(f.target, plain, tenant, &err), PSEG_EDENIED);
    assert_int_equal(err.reason, PSEG_R_PERMISSION_DENIED);
    demo_down(&f);
}

static void test_bearer_keys(void **state)
{
    demo_server f;
    pseg_err err = PSEG_ERR_INIT;
    pseg_rpc_server_options o = demo_options();
    pseg_auth auth = {NULL, false};
    pseg_rpc_channel_options co = {.max_message_bytes = 1 << 20};
    char tenant[PSEG_RPC_TENANT_MAX];
    const char *const two[] = {"key one", "alice", "key-two", "bob_2"};
    int status;

    (void)state;
    write_keys("keys", two, 4);
    assert_int_equal(pseg_keys_open(&auth.keys, in_folder("keys"), NULL, &err), PSEG_OK);
    o.authorize = pseg_auth_check;
    o.authorize_ud = &auth;
    demo_up(&f, &o, NULL);
    assert_int_equal(call(f.target, co, NULL, &err), PSEG_EDENIED);
    assert_int_equal(err.reason, PSEG_R_UNAUTHENTICATED);
    assert_int_equal(err.detail, 16);
    co.bearer = "key one";
    assert_int_equal(call(f.target, co, tenant, &err), PSEG_OK);
    assert_string_equal(tenant, "alice");
    co.bearer = "key-two";
    assert_int_equal(call(f.target, co, tenant, &err), PSEG_OK);
    assert_string_equal(tenant, "bob_2");
    co.bearer = "key-three";
    assert_int_equal(call(f.target, co, NULL, &err), PSEG_EDENIED);
    co.bearer = "x\r\ny";
    assert_int_equal(call(f.target, co, NULL, &err), PSEG_EINVAL);
    /* Health and reflection need no key. */
    pseg_rpc_server_set_serving(f.s, "", true);
    assert_int_equal(check_health(&f, "", &status, &err), PSEG_OK);
    reflect(&f, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo");
    demo_down(&f);
    pseg_keys_free(auth.keys);

    /* A file that is wrong is told by line, but not by what it holds. */
    assert_int_equal(pseg_file_write(in_folder("keys"), "#\nrubbish\n", 10, &err), PSEG_OK);
    assert_int_equal(pseg_keys_open(&auth.keys, in_folder("keys"), NULL, &err), PSEG_EINVAL);
    assert_non_null(strstr(err.msg, ":2: "));
    assert_null(strstr(err.msg, "rubbish"));
    assert_int_equal(pseg_file_write(in_folder("keys"), "#\n", 2, &err), PSEG_OK);
    assert_int_equal(pseg_keys_open(&auth.keys, in_folder("keys"), NULL, &err), PSEG_EINVAL);
    assert_int_equal(pseg_keys_open(&auth.keys, in_folder("nowhere"), NULL, &err), PSEG_ENOTFOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_addresses),
        cmocka_unit_test(test_unix_socket_in_use),
        cmocka_unit_test(test_ports_are_shared_when_asked),
        cmocka_unit_test(test_wrong_tables_are_refused),
        cmocka_unit_test(test_stop_ends_calls),
        cmocka_unit_test(test_stop_without_calls_is_quick),
        cmocka_unit_test(test_stop_under_load),
        cmocka_unit_test(test_health),
        cmocka_unit_test(test_reflection),
        cmocka_unit_test(test_tls),
        cmocka_unit_test(test_wrong_server_certificates),
        cmocka_unit_test(test_certificates_are_renewed_in_place),
        cmocka_unit_test(test_mutual_tls),
        cmocka_unit_test(test_the_hook_sees_the_peer),
        cmocka_unit_test(test_bearer_keys),
    };

    if (system("openssl version >/dev/null 2>&1") != 0) {
        printf("skipped: there is no openssl command to make certificates with\n");
        return 77;
    }
    pseg_rpc_init(NULL, NULL, NULL); /* the core logs every refused handshake */
    int failed = cmocka_run_group_tests(tests, make_certificates, remove_folder);
    pseg_rpc_shutdown();
    return failed ? 1 : 0;
}
