/* What the files of this folder share: the structures behind rpc.h. The only header besides those
 * of gRPC that knows its types. */
#ifndef PSEG_RPC_INTERNAL_H
#define PSEG_RPC_INTERNAL_H

#include "common/rpc/descriptors.h"
#include "common/rpc/rpc.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>

#include <pthread.h>
#include <stdatomic.h>

/* Every completion is a tag; it lies inside what it completes. Runs on the loop. */
typedef struct pseg_rpc_tag pseg_rpc_tag;
struct pseg_rpc_tag {
    void (*fn)(pseg_rpc_tag *t, bool ok);
};

typedef struct pseg_rpc_row { /* a method and whom it belongs to */
    const pseg_rpc_method *method;
    void *ud;
} pseg_rpc_row;

/* Calls of a class have a bound of their own: who needs no key must not crowd out who has one, and
 * a watch of health that stays must not crowd out a check. */
typedef enum pseg_rpc_class {
    PSEG_RPC_ORDINARY,
    PSEG_RPC_PUBLIC_UNARY,
    PSEG_RPC_PUBLIC_STREAM,
    PSEG_RPC_N_CLASSES
} pseg_rpc_class;

struct pseg_rpc_loop {
    pseg_rpc_server *server;
    grpc_completion_queue *cq;
    pthread_t thread;
    bool has_thread;
    pseg_rpc_timer *timers; /* root of a pairing heap */
    pseg_rpc_call *calls;   /* live ones */
    bool draining;
    pseg_rpc_timer unread;        /* while draining: looks for messages that clients do not take */
    int64_t drain_us;             /* when the stop began */
    int n_of[PSEG_RPC_N_CLASSES]; /* calls that were admitted */
    /* Calls that exist (requested or live), the loop itself until it drains, and on loop 0 the
     * notification of the server's end. At 0 the queue is shut down: a batch that is started on a
     * queue after that is a fatal assertion in the core. */
    long n_open;
    int n_missing; /* requests for calls that could not be made because memory was short */
    pseg_rpc_timer retry;
    _Atomic uint64_t n_calls, n_refused, n_live;
};

struct pseg_rpc_call {
    pseg_rpc_call *next, *prev;
    grpc_call *call;
    pseg_rpc_loop *loop;
    const pseg_rpc_row *row; /* NULL: not (yet) dispatched */
    grpc_call_details details;
    grpc_metadata_array headers;
    pseg_rpc_tag on_new, on_received, on_sent, on_closed, on_finished;
    grpc_byte_buffer *in, *out;
    pseg_arena *arena;
    void *state;
    char *peer_address;               /* in the arena */
    pseg_trace_context trace, caller; /* see pseg_rpc_trace; the caller's, if has_caller */
    bool has_trace, has_caller, looked_for_trace;
    char tenant[PSEG_RPC_TENANT_MAX];
    int64_t began_us, sent_us;
    int refs;             /* batches in flight and tickets; loop thread only */
    pseg_rpc_timer first; /* until the first message has come */
    int cancelled;
    pseg_rpc_class class; /* counted in the loop's n_of, if is_counted */
    bool is_counted;
    bool dispatched;     /* on_end is owed */
    bool sent_headers;   /* the initial metadata */
    bool reading, eof;   /* a receive is in flight; the client has half-closed */
    bool sending;        /* a send is in flight, since sent_us */
    bool finish_started; /* the status is on its way */
    bool finish_wanted;  /* the status follows the send in flight */
    bool closed;
    /* The status; the slices are owned. */
    int code;
    grpc_slice text, details_bin;
};

struct pseg_rpc_ticket {
    pseg_rpc_tag tag;
    pseg_rpc_call *call;
    void (*fn)(pseg_rpc_call *c, void *arg);
    void *arg;
};

typedef struct pseg_rpc_health pseg_rpc_health;
typedef struct pseg_rpc_tls pseg_rpc_tls;

struct pseg_rpc_server {
    pseg_rpc_server_options options;
    grpc_server *server;
    pseg_rpc_row *rows; /* sorted as grpc_slice_str_cmp does: by length, then bytes */
    size_t n_rows;
    pseg_rpc_loop *loops;
    pseg_rpc_health *health;
    pseg_rpc_descriptors *descriptors;
    pseg_rpc_tls *tls;
    bool started, stopped;
    int64_t grace_ms; /* of the stop; set before the loops hear of it */
};

/* ---- loop.c ---- */
void *pseg_rpc_loop_main(void *loop);
void pseg_rpc_loop_unref(pseg_rpc_loop *l);
bool pseg_rpc_run_timers(pseg_rpc_loop *l); /* true: some are left */

/* ---- call.c ---- */
void pseg_rpc_call_request(pseg_rpc_loop *l); /* asks the core for one more call */
/* A bare gRPC status, for services whose contract names codes of their own (health). */
void pseg_rpc_fail_code(pseg_rpc_call *c, int code, const char *text);
void pseg_rpc_ticket_drop(pseg_rpc_ticket *t); /* on the loop, instead of posting */

/* ---- drain.c ---- */
void pseg_rpc_drain(pseg_rpc_loop *l); /* once; the stop has been asked for */

/* ---- message.c ---- */
/* protobuf-c may need sixty times the bytes of a hostile message; a request gets this much. */
#define PSEG_RPC_MEMORY_PER_BYTE    4
#define PSEG_RPC_MEMORY_PER_REQUEST ((size_t)256 << 10)

grpc_slice pseg_rpc_pack(const ProtobufCMessage *m);
grpc_byte_buffer *pseg_rpc_buffer(grpc_slice s); /* takes ownership */
/* The message in one piece, to be unreffed; false if it cannot be read. */
bool pseg_rpc_flatten(grpc_byte_buffer *b, grpc_slice *out);
/* A request of c's method into `arena`, after a look at its size and strings. */
pseg_status pseg_rpc_unpack(ProtobufCMessage **out, const pseg_rpc_call *c, pseg_arena *arena,
                            const uint8_t *data, size_t len, pseg_err *err);

/* ---- peer.c ---- */
pseg_status pseg_rpc_authorize(pseg_rpc_call *c, pseg_err *err);

/* ---- address.c ---- */
/* Can `address` be bound? Says so before the core does, which binds what it can of several
 * addresses, takes over unix sockets in use, and tells no reason. */
pseg_status pseg_rpc_probe_address(const char *address, pseg_err *err);

/* ---- tls.c ---- */
pseg_status pseg_rpc_tls_new(pseg_rpc_tls **out, const pseg_rpc_server_options *o, pseg_err *err);
void pseg_rpc_tls_free(pseg_rpc_tls *t); /* after the server is destroyed */
grpc_server_credentials *pseg_rpc_tls_credentials(pseg_rpc_tls *t); /* caller releases */

/* ---- health.c, reflection.c: services like any other; ud is the object ---- */
extern const pseg_rpc_method pseg_rpc_health_methods[], pseg_rpc_reflection_methods[];
pseg_rpc_health *pseg_rpc_health_new(const pseg_log *log);
void pseg_rpc_health_free(pseg_rpc_health *h);
void pseg_rpc_health_set(pseg_rpc_health *h, const char *service, bool serving);
void pseg_rpc_health_all_down(pseg_rpc_health *h);

#endif
