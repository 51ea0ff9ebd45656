/* rpc: a gRPC server for handlers that know nothing of gRPC.
 *
 * One loop is one thread, and a call stays on one loop for life: no callback of a call ever runs
 * beside another of the same call, and with one loop (the default) handlers need no locks at all.
 * A handler must never block; what takes time goes to another thread and comes back by
 * pseg_rpc_hold() and pseg_rpc_post(). This header knows no gRPC types, and nothing here knows what
 * the services mean.
 *
 *     static void get_job(pseg_rpc_call *c, const void *msg)
 *     {
 *         const Pseg__V1__GetJobRequest *q = msg;       // valid as long as the call
 *         pseg_err err = PSEG_ERR_INIT;
 *         ...
 *         if (rc != PSEG_OK)
 *             pseg_rpc_fail(c, &err);
 *         else
 *             pseg_rpc_reply(c, &job.base);
 *     }
 *     static const pseg_rpc_method methods[] = {
 *         {"/pseg.v1.SegmentationService/GetJob", PSEG_RPC_UNARY,
 *          &pseg__v1__get_job_request__descriptor, .on_message = get_job},
 *         {0}};
 *
 *     pseg_rpc_init(&log, NULL, NULL);                   // block signals first
 *     pseg_rpc_server_new(&s, &options, &err);
 *     pseg_rpc_server_add(s, methods, service, &err);
 *     pseg_rpc_server_listen(s, "127.0.0.1:0", &port, &err);
 *     pseg_rpc_server_start(s, &err);
 *     pseg_rpc_server_set_serving(s, "", true);
 *     ... sigwait ...
 *     pseg_rpc_server_stop(s, 5000);
 *     pseg_rpc_server_free(s);
 *     pseg_rpc_shutdown();
 */
#ifndef PSEG_RPC_RPC_H
#define PSEG_RPC_RPC_H

#include "common/base/arena.h"
#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/trace_context.h"

#include <protobuf-c/protobuf-c.h>
#include <stdint.h>

typedef struct pseg_rpc_server pseg_rpc_server;
typedef struct pseg_rpc_call pseg_rpc_call;
typedef struct pseg_rpc_loop pseg_rpc_loop;
typedef struct pseg_rpc_ticket pseg_rpc_ticket;
typedef struct pseg_rpc_timer pseg_rpc_timer;

/* ---- the process ---- */

/* Once per process, before any server or channel. Signals that the program waits for must be
 * blocked before, because this starts threads; fork is not allowed afterwards. Raises the limit on
 * open files to the hard limit (running out costs a listener for ever, see below) and takes over
 * the log of the core: one line per event, at most 20 in ten seconds.
 * log: borrowed until pseg_rpc_shutdown; NULL is silent.
 * on_listener_lost(ud): the core failed to accept a connection, after which the listener never
 * accepts another one (its known fault): the process should stop with a failure, so that its
 * supervisor starts a new one. Any thread; must not call this module. NULL: only logged. */
void pseg_rpc_init(const pseg_log *log, void (*on_listener_lost)(void *ud), void *ud);
/* After the last server and channel are freed. Waits for the core's threads. */
void pseg_rpc_shutdown(void);

/* ---- methods ---- */

enum {
    PSEG_RPC_UNARY = 0,
    PSEG_RPC_CLIENT_STREAM = 1, /* many requests */
    PSEG_RPC_SERVER_STREAM = 2, /* many replies */
    PSEG_RPC_PUBLIC = 4,        /* no authentication, and answered when the server is busy */
};

/* A row of a service's table; {0} ends it. Tables are static. All callbacks run on the loop of the
 * call. All but on_message may be NULL. */
typedef struct pseg_rpc_method {
    const char *path; /* "/package.Service/Method" */
    unsigned flags;
    const ProtobufCMessageDescriptor *request;
    /* A request. It parses, its strings are UTF-8 without NUL. Without CLIENT_STREAM: once, and msg
     * lives as long as the call. With CLIENT_STREAM: msg is valid during the callback; the first
     * one comes by itself and each further one after pseg_rpc_read; NULL is the client's end. */
    void (*on_message)(pseg_rpc_call *c, const void *msg);
    /* What pseg_rpc_send took has gone out: send the next one. */
    void (*on_writable)(pseg_rpc_call *c);
    /* The server stops: calls that could go on for long should end themselves now. One whose client
     * does not take the message before the end for 5 s, or half of the grace, is cut off with the
     * same status. */
    void (*on_drain)(pseg_rpc_call *c);
    /* The call is over, for whatever reason (pseg_rpc_is_cancelled tells): exactly once for every
     * call that passed authentication, also where on_message never ran. Cancel timers here. Memory
     * of the call's arena stays until the last ticket is back. */
    void (*on_end)(pseg_rpc_call *c);
} pseg_rpc_method;

/* ---- server ---- */

/* Who calls. All strings are borrowed until the hook returns. */
typedef struct pseg_rpc_peer {
    const char *address;          /* "ipv4:127.0.0.1:40000" */
    bool has_certificate;         /* a client certificate that our authority signed */
    const char *common_name;      /* of that certificate, or "" */
    const char *const *alt_names; /* its n_alt_names subject alternative names */
    size_t n_alt_names;
    const char *bearer; /* KEY of `authorization: Bearer KEY`, or NULL */
} pseg_rpc_peer;

/* A call that is over. Borrowed until the hook returns. */
typedef struct pseg_rpc_ended {
    const char *path;   /* of the method */
    const char *tenant; /* "default" where the call was refused before it had one */
    const char *code;   /* static: "OK", "NOT_FOUND"; "CANCELLED" where the client went away */
    int64_t us;         /* since the call came in */
    /* The call as a span of a trace, and 8 bytes of the span above it (NULL: it is the first). NULL
     * where the server does not trace, or memory was short. */
    const pseg_trace_context *trace;
    const uint8_t *trace_parent;
} pseg_rpc_ended;

#define PSEG_RPC_TENANT_MAX 64 /* bytes, with the NUL */

/* Asked before every call that is not PUBLIC. Writes the tenant's name (at most
 * PSEG_RPC_TENANT_MAX bytes with the NUL; "default" stands there already) or fails with
 * PSEG_R_UNAUTHENTICATED or PSEG_R_PERMISSION_DENIED. On the loop: must not block. */
typedef pseg_status (*pseg_rpc_authorize_fn)(void *ud, char *tenant, const pseg_rpc_peer *peer,
                                             const char *method, pseg_err *err);

typedef struct pseg_rpc_server_options {
    const pseg_log *log; /* borrowed; NULL is silent */
    int n_loops;         /* threads; more than one only with GRPC_POLL_STRATEGY=poll */
    int max_live_calls;  /* per loop; more are answered with SERVER_BUSY. PUBLIC ones are counted
                            apart */
    size_t max_message_bytes; /* a request message; larger ones are REQUEST_TOO_LARGE */
    size_t max_reply_bytes;   /* a reply message */
    /* What all requests that are still arriving may take, and what the core keeps beside them;
     * beyond it the core cancels calls. 0: no limit. */
    size_t max_memory_bytes;
    int64_t max_connection_ms; /* age at which clients are asked to reconnect; 0: none */
    int64_t idle_ms;           /* without a call, after which a connection ends; 0: none */
    /* A call whose first message has not come by then is ended, and so is a connection that has not
     * opened with a whole handshake (10 s at most for that). */
    int64_t first_message_ms;
    bool reuse_port; /* several processes on one port; off: a port in use is an error */

    /* TLS when cert_file and key_file are set (PEM). With client_ca_file clients must present a
     * certificate that it signed. The files are read again when they change, without a restart;
     * files that do not fit leave the earlier ones in force. */
    const char *cert_file, *key_file, *client_ca_file;

    pseg_rpc_authorize_fn authorize; /* NULL: everyone is tenant "default" */
    void *authorize_ud;

    /* The reason when a string of a request is not UTF-8 or holds a NUL; NULL: REQUEST_MALFORMED.
     */
    pseg_reason (*text_reason)(const ProtobufCMessageDescriptor *message,
                               const ProtobufCFieldDescriptor *field);

    /* Calls are spans of the trace that their header `traceparent` names, or begin one that is kept
     * with this probability. Negative: they are no spans. */
    double trace_ratio;

    /* Told of every call of a known method when it is over, on its loop; for whoever counts. */
    void (*on_ended)(void *ud, const pseg_rpc_ended *e);
    void *on_ended_ud;

    /* Serialised FileDescriptorSet of all methods, for reflection and to check the tables against;
     * borrowed until the server is freed. "pseg/descriptors.h" holds that of the public API. */
    const uint8_t *descriptors;
    size_t descriptors_len;
} pseg_rpc_server_options;

#define PSEG_RPC_SERVER_OPTIONS_DEFAULT                                                  \
    {                                                                                    \
        .n_loops = 1, .max_live_calls = 10000, .max_message_bytes = (size_t)4 << 20,     \
        .max_reply_bytes = (size_t)20 << 20, .max_memory_bytes = (size_t)512 << 20,      \
        .trace_ratio = -1, .idle_ms = 600000, .max_connection_ms = (int64_t)3600 * 1000, \
        .first_message_ms = 60000                                                        \
    }

/* Health and reflection (v1, v1alpha) are there from the start. Caller frees with
 * pseg_rpc_server_free. Options are copied but for what they point to. */
pseg_status pseg_rpc_server_new(pseg_rpc_server **out, const pseg_rpc_server_options *options,
                                pseg_err *err);
/* NULL is accepted. */
void pseg_rpc_server_free(pseg_rpc_server *s);

/* A service's table, before start; `ud` is what pseg_rpc_ud gives its handlers. Both borrowed until
 * the server is freed. */
pseg_status pseg_rpc_server_add(pseg_rpc_server *s, const pseg_rpc_method *methods, void *ud,
                                pseg_err *err);

/* "127.0.0.1:7433", "[::]:7433", "host:0" (a free port), "unix:/path". *port (may be NULL) gets the
 * port; 0 for unix. Before start; may be called again for more addresses.
 * Errors: PSEG_R_ADDRESS_IN_USE, PSEG_R_INVALID_ARGUMENT (no such address),
 * PSEG_R_PERMISSION_DENIED (low port), PSEG_R_FILE_NOT_FOUND and PSEG_R_CONFIG_INVALID
 * (certificates). */
pseg_status pseg_rpc_server_listen(pseg_rpc_server *s, const char *address, int *port,
                                   pseg_err *err);

/* Checks the tables against the descriptors and serves. */
pseg_status pseg_rpc_server_start(pseg_rpc_server *s, pseg_err *err);

/* grpc.health.v1 status of a service; "" is the whole server. Any thread, also before start.
 * Unknown names are added (64 at most; more are ignored and logged). */
void pseg_rpc_server_set_serving(pseg_rpc_server *s, const char *service, bool serving);

/* Health says NOT_SERVING, no new calls come in, on_drain runs for live calls, and those that are
 * not over after grace_ms are cancelled. Returns when every call is gone and every ticket is back:
 * whoever holds tickets must still be running. Not on a loop; once. */
void pseg_rpc_server_stop(pseg_rpc_server *s, int64_t grace_ms);

typedef struct pseg_rpc_stats {
    uint64_t calls, refused; /* so far; refused: busy, unknown method, not authorized, malformed */
    uint64_t live;           /* now */
} pseg_rpc_stats;
void pseg_rpc_server_stats(const pseg_rpc_server *s, pseg_rpc_stats *out); /* any thread */

/* ---- calls: all on the loop of the call, unless said otherwise ---- */

/* One reply and the end with OK. `msg` is packed before this returns. A reply over max_reply_bytes
 * fails the call. Does nothing if the call has ended or is ending, as do all of these. */
void pseg_rpc_reply(pseg_rpc_call *c, const ProtobufCMessage *msg);

/* SERVER_STREAM: one reply of many. The next one only after on_writable. */
void pseg_rpc_send(pseg_rpc_call *c, const ProtobufCMessage *msg);
/* SERVER_STREAM: the end with OK, after what has been sent. */
void pseg_rpc_finish(pseg_rpc_call *c);
/* CLIENT_STREAM: lets the next request come. */
void pseg_rpc_read(pseg_rpc_call *c);

/* Ends the call with the status of err->reason and google.rpc.Status details: ErrorInfo{reason,
 * domain "pseg", metadata "value" and "limit" where err has them}, BadRequest if err->field is set,
 * ResourceInfo if err->resource is set, RetryInfo if the reason is retryable (after
 * retry_after_ms; pseg_rpc_fail: 1 s). Bytes of the message that are not UTF-8 become '?'. */
void pseg_rpc_fail(pseg_rpc_call *c, const pseg_err *err);
void pseg_rpc_fail_after(pseg_rpc_call *c, const pseg_err *err, int64_t retry_after_ms);

/* Ends the call at once, where the client does not even read what is being sent: it learns no more
 * than that the call was cancelled. */
void pseg_rpc_abort(pseg_rpc_call *c);

/* Is it pointless to go on: has a reply or an error been given, or the client gone? */
bool pseg_rpc_is_over(const pseg_rpc_call *c);
/* In on_end: did the call end before its status went out (client gone, deadline, server stopped)?
 */
bool pseg_rpc_is_cancelled(const pseg_rpc_call *c);
/* Milliseconds until the client's deadline; INT64_MAX: none; negative: past. */
int64_t pseg_rpc_ms_left(const pseg_rpc_call *c);

void *pseg_rpc_ud(const pseg_rpc_call *c);           /* of pseg_rpc_server_add */
const char *pseg_rpc_tenant(const pseg_rpc_call *c); /* never empty */
const char *pseg_rpc_peer_address(pseg_rpc_call *c); /* "" when memory is short */
pseg_rpc_loop *pseg_rpc_loop_of(const pseg_rpc_call *c);
/* Value of a request header (lower-case name), or NULL. Not checked to be UTF-8. Borrowed until the
 * call's memory goes. */
const char *pseg_rpc_header(pseg_rpc_call *c, const char *name);

/* Where in a trace this call is, for those it calls in turn: its own span where the server traces,
 * else its caller's. NULL: in none. */
const pseg_trace_context *pseg_rpc_trace(pseg_rpc_call *c);

/* The handler's own state; NULL at first. */
void pseg_rpc_set_state(pseg_rpc_call *c, void *state);
void *pseg_rpc_state(const pseg_rpc_call *c);

/* Memory that ends with the call, when its last ticket is back; its clean-ups run on the loop.
 * At most 64 MiB and what the request took. */
pseg_arena *pseg_rpc_arena(pseg_rpc_call *c);

/* ---- away from the loop and back ---- */

/* A ticket keeps the call's memory while another thread works for it. NULL when memory is short.
 * Every ticket must be posted, exactly once. */
pseg_rpc_ticket *pseg_rpc_hold(pseg_rpc_call *c);
/* Any thread; cannot fail: fn(c, arg) runs on the loop of the call, soon, also when the call is
 * over meanwhile (then pseg_rpc_is_over). The ticket is gone. */
void pseg_rpc_post(pseg_rpc_ticket *t, void (*fn)(pseg_rpc_call *c, void *arg), void *arg);

/* A timer lives in memory of the caller, zeroed before first use, and runs on one loop. */
struct pseg_rpc_timer {
    void (*fn)(pseg_rpc_timer *t, void *ud);
    void *ud;
    int64_t at_us; /* the rest is private */
    pseg_rpc_timer *child, *sibling, **slot;
    bool armed;
};
/* fn(t, ud) in `ms` milliseconds, once; a timer that is armed is set anew. A timer that has not run
 * when its loop ends never runs. On that loop only. */
void pseg_rpc_timer_set(pseg_rpc_loop *l, pseg_rpc_timer *t, int64_t ms,
                        void (*fn)(pseg_rpc_timer *t, void *ud), void *ud);
void pseg_rpc_timer_cancel(pseg_rpc_loop *l, pseg_rpc_timer *t); /* not armed: nothing happens */

#endif
