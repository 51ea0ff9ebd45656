/* Building, starting and stopping a server. */
#include "common/rpc/internal.h"

#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define REQUESTED_AHEAD    32   /* calls asked for in advance, per loop */
#define CONCURRENT_STREAMS 1024 /* per connection */
#define MAX_HEADER_BYTES   8192
#define CORE_MESSAGE_FACTOR                                              \
    4 /* above max_message_bytes we say why, above this the core ends it \
       */
#define HANDSHAKE_TIMEOUT_MS 10000
#define SETTLE_MS            200 /* without a call, after which a server that stops hangs up */

static int as_int(size_t n)
{
    return n > INT_MAX ? INT_MAX : (int)n;
}

static grpc_server *create_core(const pseg_rpc_server_options *o)
{
    grpc_resource_quota *quota = grpc_resource_quota_create("pseg");
    int age_ms = o->max_connection_ms > 0 && o->max_connection_ms < INT_MAX
                     ? (int)o->max_connection_ms
                     : INT_MAX;
    int idle_ms = o->idle_ms > 0 && o->idle_ms < INT_MAX ? (int)o->idle_ms : INT_MAX;
    int handshake_ms = o->first_message_ms < HANDSHAKE_TIMEOUT_MS ? (int)o->first_message_ms
                                                                  : HANDSHAKE_TIMEOUT_MS;
    const struct {
        const char *key;
        int value;
    } ints[] = {
        {GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, handshake_ms},
        {GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, as_int(o->max_message_bytes * CORE_MESSAGE_FACTOR)},
        {GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, as_int(o->max_reply_bytes)},
        {GRPC_ARG_MAX_CONCURRENT_STREAMS, CONCURRENT_STREAMS},
        {GRPC_ARG_MAX_METADATA_SIZE, MAX_HEADER_BYTES},
        {GRPC_ARG_KEEPALIVE_TIME_MS, 60000},
        {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000},
        {GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1},
        {GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10000},
        {GRPC_ARG_MAX_CONNECTION_AGE_MS, age_ms},
        {GRPC_ARG_MAX_CONNECTION_IDLE_MS, idle_ms},
        /* Identity only: the size limit holds after inflating, so gzip would be a bomb. */
        {GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1},
        /* The core's default is to share a port silently with whoever else has it. */
        {GRPC_ARG_ALLOW_REUSEPORT, o->reuse_port},
    };
    enum { N_INTS = sizeof ints / sizeof *ints };
    grpc_arg list[N_INTS + 1];
    grpc_channel_args args = {N_INTS + 1, list};

    for (size_t i = 0; i < N_INTS; i++)
        list[i] = (grpc_arg){
            .type = GRPC_ARG_INTEGER, .key = (char *)ints[i].key, .value.integer = ints[i].value};
    list[N_INTS] = (grpc_arg){.type = GRPC_ARG_POINTER,
                              .key = (char *)GRPC_ARG_RESOURCE_QUOTA,
                              .value.pointer = {quota, grpc_resource_quota_arg_vtable()}};
    if (o->max_memory_bytes)
        grpc_resource_quota_resize(quota, o->max_memory_bytes);
    grpc_server *server = grpc_server_create(&args, NULL);
    grpc_resource_quota_unref(quota);
    return server;
}

pseg_status pseg_rpc_server_new(pseg_rpc_server **out, const pseg_rpc_server_options *options,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_rpc_server *s = NULL;

    *out = NULL;
    PSEG_REQUIRE(options->n_loops >= 1 && options->n_loops <= 64, "1 to 64 loops");
    PSEG_REQUIRE(options->max_live_calls >= 1, "at least one call");
    PSEG_REQUIRE(options->descriptors, "the descriptors of the methods");
    PSEG_REQUIRE(options->max_message_bytes >= 1 && options->max_message_bytes <= (size_t)1 << 29,
                 "messages of 1 byte to 512 MiB");
    s = pseg_calloc(1, sizeof *s);
    if (s)
        s->loops = pseg_calloc((size_t)options->n_loops, sizeof *s->loops);
    if (s)
        s->health = pseg_rpc_health_new(options->log);
    if (!s || !s->loops || !s->health)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    s->options = *options;
    PSEG_TRY(pseg_rpc_tls_new(&s->tls, options, err));
    PSEG_TRY(pseg_rpc_descriptors_new(&s->descriptors, options->descriptors,
                                      options->descriptors_len, err));
    s->server = create_core(options);
    for (int i = 0; i < options->n_loops; i++) {
        s->loops[i].server = s;
        s->loops[i].cq = grpc_completion_queue_create_for_next(NULL);
        grpc_server_register_completion_queue(s->server, s->loops[i].cq, NULL);
    }
    PSEG_TRY(pseg_rpc_server_add(s, pseg_rpc_health_methods, s->health, err));
    PSEG_TRY(pseg_rpc_server_add(s, pseg_rpc_reflection_methods, s->descriptors, err));
    *out = s;
    s = NULL;
out:
    pseg_rpc_server_free(s);
    return rc;
}

/* A queue is empty when it says so, and only then may it be destroyed. */
static void drain_queue(grpc_completion_queue *cq)
{
    grpc_completion_queue_shutdown(cq);
    while (grpc_completion_queue_next(cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
           GRPC_QUEUE_SHUTDOWN)
        ;
}

void pseg_rpc_server_free(pseg_rpc_server *s)
{
    if (!s)
        return;
    pseg_rpc_server_stop(s, 0); /* where that has been forgotten */
    if (s->server && !s->started) {
        /* The core wants the end announced even where there was no beginning. */
        pseg_rpc_tag unused = {NULL};
        grpc_server_shutdown_and_notify(s->server, s->loops[0].cq, &unused);
        for (int i = 0; i < s->options.n_loops; i++)
            drain_queue(s->loops[i].cq);
    }
    if (s->server)
        grpc_server_destroy(s->server);
    for (int i = 0; s->server && i < s->options.n_loops; i++)
        grpc_completion_queue_destroy(s->loops[i].cq);
    pseg_rpc_tls_free(s->tls);
    pseg_rpc_descriptors_free(s->descriptors);
    pseg_rpc_health_free(s->health);
    pseg_free(s->loops);
    pseg_free(s->rows);
    pseg_free(s);
}

pseg_status pseg_rpc_server_add(pseg_rpc_server *s, const pseg_rpc_method *methods, void *ud,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n = 0;

    PSEG_REQUIRE(!s->started, "services are added before the start");
    while (methods[n].path)
        n++;
    pseg_rpc_row *rows = pseg_realloc(s->rows, (s->n_rows + n) * sizeof *rows);
    if (!rows)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    s->rows = rows;
    for (size_t i = 0; i < n; i++)
        s->rows[s->n_rows++] = (pseg_rpc_row){&methods[i], ud};
out:
    return rc;
}

pseg_status pseg_rpc_server_listen(pseg_rpc_server *s, const char *address, int *port,
                                   pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    grpc_server_credentials *credentials = NULL;

    PSEG_REQUIRE(!s->started, "addresses are added before the start");
    if (!s->options.reuse_port)
        PSEG_TRY(pseg_rpc_probe_address(address, err));
    credentials = pseg_rpc_tls_credentials(s->tls);
    if (!credentials)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    int bound = grpc_server_add_http2_port(s->server, address, credentials);
    if (bound <= 0) {
        PSEG_TRY(pseg_rpc_probe_address(address, err));
        if (s->tls)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                      "cannot use the certificate %s with the key %s%s%s: not PEM, or they do not "
                      "belong together",
                      s->options.cert_file, s->options.key_file,
                      s->options.client_ca_file ? " and the authority " : "",
                      s->options.client_ca_file ? s->options.client_ca_file : "");
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "cannot listen on %s", address);
    }
    if (port)
        *port = strncmp(address, "unix:", 5) == 0 ? 0 : bound;
out:
    if (credentials)
        grpc_server_credentials_release(credentials);
    return rc;
}

/* The order of grpc_slice_str_cmp: length, then bytes. */
static int by_path(const void *a, const void *b)
{
    const char *x = ((const pseg_rpc_row *)a)->method->path;
    const char *y = ((const pseg_rpc_row *)b)->method->path;
    size_t nx = strlen(x), ny = strlen(y);

    return nx != ny ? (nx < ny ? -1 : 1) : memcmp(x, y, nx);
}

static pseg_status check_rows(pseg_rpc_server *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    qsort(s->rows, s->n_rows, sizeof *s->rows, by_path);
    for (size_t i = 0; i < s->n_rows; i++) {
        if (i && by_path(&s->rows[i - 1], &s->rows[i]) == 0)
            PSEG_FAIL(PSEG_R_INTERNAL, 0, "method %s is there twice", s->rows[i].method->path);
        PSEG_TRY(pseg_rpc_descriptors_serve(s->descriptors, s->rows[i].method, err));
    }
out:
    return rc;
}

pseg_status pseg_rpc_server_start(pseg_rpc_server *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int failure = 0;

    PSEG_REQUIRE(!s->started, "a server starts once");
    PSEG_TRY(check_rows(s, err));
    grpc_server_start(s->server);
    s->started = true;
    for (int i = 0; i < s->options.n_loops; i++) {
        pseg_rpc_loop *l = &s->loops[i];
        l->n_open = 1 + (i == 0); /* itself, and the tag of pseg_rpc_server_stop */
        for (int k = 0; k < REQUESTED_AHEAD; k++)
            pseg_rpc_call_request(l);
        if (!failure)
            failure = pthread_create(&l->thread, NULL, pseg_rpc_loop_main, l);
        l->has_thread = !failure;
    }
    if (failure) {
        pseg_rpc_server_stop(s, 0);
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, failure, "cannot start %d threads: %s", s->options.n_loops,
                  strerror(failure));
    }
out:
    return rc;
}

void pseg_rpc_server_set_serving(pseg_rpc_server *s, const char *service, bool serving)
{
    pseg_rpc_health_set(s->health, service, serving);
}

typedef struct stop {
    pseg_rpc_tag tag;
    pseg_rpc_loop *loop;
    pthread_mutex_t mu;
    pthread_cond_t cv;
    bool done;
} stop;

/* All calls are gone for the core; the loops may still have events and tickets of theirs. */
static void on_stopped(pseg_rpc_tag *t, bool ok)
{
    stop *st = (stop *)t;

    (void)ok;
    pseg_rpc_loop_unref(st->loop);
    pthread_mutex_lock(&st->mu);
    st->done = true;
    pthread_cond_signal(&st->cv);
    pthread_mutex_unlock(&st->mu);
}

/* Until the core is done, the grace is over, or no call has been live for a while: the core waits
 * for clients to hang up, and an idle one looks at its connection every five seconds only. */
static void wait_for_calls(const pseg_rpc_server *s, stop *st, int64_t grace_ms)
{
    int64_t now = pseg_clock_mono_us(), until_us = now + grace_ms * 1000, quiet_us = now;
    pseg_rpc_stats stats;

    while (!st->done && now < until_us && now - quiet_us < SETTLE_MS * 1000) {
        int64_t next_us = now + 10000;
        pseg_cond_wait_until_us(&st->cv, &st->mu, next_us < until_us ? next_us : until_us);
        now = pseg_clock_mono_us();
        pseg_rpc_server_stats(s, &stats);
        if (stats.live)
            quiet_us = now;
    }
    if (!st->done && now >= until_us && grace_ms > 0)
        PSEG_WARN(s->options.log, "rpc", "calls are cancelled: not over after grace_ms=%lld",
                  (long long)grace_ms);
}

void pseg_rpc_server_stop(pseg_rpc_server *s, int64_t grace_ms)
{
    stop st = {.tag.fn = on_stopped, .loop = &s->loops[0], .mu = PTHREAD_MUTEX_INITIALIZER};
    bool threads = true;

    if (!s->started || s->stopped)
        return;
    s->stopped = true;
    s->grace_ms = grace_ms;
    for (int i = 0; i < s->options.n_loops; i++)
        threads = threads && s->loops[i].has_thread;
    pseg_cond_init(&st.cv);
    pseg_rpc_health_all_down(s->health);
    grpc_server_shutdown_and_notify(s->server, s->loops[0].cq, &st.tag);
    pthread_mutex_lock(&st.mu);
    if (threads)
        wait_for_calls(s, &st, grace_ms);
    if (!st.done)
        grpc_server_cancel_all_calls(s->server);
    pthread_mutex_unlock(&st.mu);
    /* A loop ends when nothing is open on it. Those whose thread could not be started (the last
     * ones) are run here, and loop 0, which waits for the whole server, last. */
    for (int i = s->options.n_loops - 1; i >= 0; i--)
        if (s->loops[i].has_thread)
            pthread_join(s->loops[i].thread, NULL);
        else
            pseg_rpc_loop_main(&s->loops[i]);
    pthread_cond_destroy(&st.cv);
    pthread_mutex_destroy(&st.mu);
}

void pseg_rpc_server_stats(const pseg_rpc_server *s, pseg_rpc_stats *out)
{
    *out = (pseg_rpc_stats){0};
    for (int i = 0; i < s->options.n_loops; i++) {
        out->calls += atomic_load(&s->loops[i].n_calls);
        out->refused += atomic_load(&s->loops[i].n_refused);
        out->live += atomic_load(&s->loops[i].n_live);
    }
}
