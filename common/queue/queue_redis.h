/* Between the parts of the Redis form. Private to this folder.
 *   queue_redis.c        the thread: reading, time-outs, faults
 *   queue_redis_lines.c  a connection: what waits on it, writing, its end
 *   queue_redis_gather.c requests that travel together, and those that wait for replicas
 *   queue_redis_greet.c  from dialling to the first request
 *   queue_redis_watch.c  the second connection, which blocks on events
 *   queue_redis_open.c   open, close, the inbox
 *   queue_redis_url.c    where Redis is
 *   queue_redis_sentinel.c  asking Sentinels which server is the master
 *   queue_redis_ops.c    what each request says to Redis, by
 *   queue_redis_backlog.c, queue_redis_estimate.c  one of them, with its answer
 *   queue_redis_bulk.c   the same, of batches, and what its answers mean
 *   queue_redis_call.c   a call of a function and its arguments
 *   queue_redis_parse.c  what an answer means
 *   queue_redis_events.c both, for events
 * All but open and the inbox runs on the queue's thread. */
#ifndef PSEG_QUEUE_QUEUE_REDIS_H
#define PSEG_QUEUE_QUEUE_REDIS_H

#include "common/queue/queue_impl.h"

#include <hiredis/hiredis.h>

typedef struct command command;
typedef struct batch_kind batch_kind;
typedef struct line line;
typedef struct loop loop;

/* Fills r from the answer; r->err is set if it does not have the shape expected. */
typedef void (*reply_parser)(pseg_queue_reply *r, const redisReply *from, const command *c);

struct command {
    command *next;
    char *text;     /* in Redis' protocol, by hiredis; or */
    char *own_text; /* by us */
    size_t len;
    /* Of the greeting and the watch, and then the rest is unused. May end the line. */
    void (*internal)(loop *lp, line *l, const redisReply *from);
    reply_parser parse;
    pseg_queue_done done;
    void *ud;
    int64_t since_mono_us; /* when it was given to the line */
    /* A request of a kind that travels together: `text` is its part of the arguments, and the
     * requests of one call follow each other by `next_item`. */
    const batch_kind *kind;
    command *next_item;
    /* What is known before Redis answers; then, of a request that waits for replicas, the answer.
     */
    pseg_queue_reply *reply;
    int n_args;
    bool is_write;   /* a lost answer leaves the outcome unknown */
    bool was_resent; /* after the functions were loaded anew */
    size_t n_asked;
};

enum { KIND_SUBMIT, KIND_PUBLISH, KIND_ITEM };
/* Requests that are sent as one call of a function: while a few calls of a kind are under way, what
 * comes waits and goes together with what comes after it. (The group commit of databases.) */
struct batch_kind {
    const char *function;
    int index;       /* KIND_*, in loop.gathering */
    bool is_promise; /* its answer promises what the queue's durability says */
    int most; /* in one call: Redis does nothing else meanwhile, so a few milliseconds' worth */
};
enum { N_BATCH_KINDS = 3, BATCHES_UNDER_WAY = 2, BATCH_BYTES = 1 << 20 };

/* What waits of one kind. */
typedef struct gathering {
    command *head, *tail;
    size_t n, bytes;
    int under_way;
} gathering;

enum { MAX_NODES = 16 };

typedef struct redis_address {
    const char *host;
    int port;
} redis_address;

typedef struct redis_queue {
    pseg_queue base;
    const char *prefix;             /* "pseg:{NAME}:" */
    const char *socket;             /* or */
    redis_address nodes[MAX_NODES]; /* a server, or some nodes of a cluster; or */
    size_t n_nodes;
    bool is_cluster;
    redis_address sentinels[MAX_NODES];
    size_t n_sentinels; /* who know where the master is that they call so: */
    const char *master_name;
    const char *user, *password;
    int db;

    pthread_t thread;
    loop *loop; /* the thread's own */
    int wake_fd;
    pthread_mutex_t mu; /* guards inbox, inbox_tail, stopping */
    command *inbox, *inbox_tail;
    bool stopping;
    _Atomic int64_t answered_mono_us;
} redis_queue;

typedef enum line_phase { LINE_DOWN, LINE_CONNECTING, LINE_GREETING, LINE_READY } line_phase;

/* Of both connections. */
typedef struct reader_bounds {
    redisReplyObjectFunctions functions;
    void *(*create_array)(const redisReadTask *task, int elements); /* hiredis' own */
} reader_bounds;

/* One connection. */
struct line {
    line_phase phase;
    redisContext *redis;  /* NULL: DOWN */
    command *head, *tail; /* sent or to be sent, in the order of their answers */
    command *unsent;      /* the first of them that is not wholly written */
    size_t unsent_off;
    command *held, *held_tail; /* requests that wait for the end of the greeting */
    int64_t retry_mono_us, backoff_us, timeout_us;
    int64_t read_mono_us, written_mono_us; /* the last progress */
    bool told_lost;
    char why[160]; /* the last fault */
};

struct loop {
    redis_queue *q;
    line commands, events, sentinel;
    bool stopping;
    char moved_host[64]; /* another node of the cluster serves the queue, or the Sentinels' master;
                            "": not known */
    int moved_port, n_moves;
    size_t sentinel_at, node_at;         /* the one that is asked now, or next */
    char last_event[40], last_ready[40]; /* stream positions */
    int n_positions;                     /* how many of them are being asked for */
    gathering gathering[N_BATCH_KINDS];
    command *unconfirmed,
        *unconfirmed_tail; /* answered well, but not yet known to have been replicated */
    reader_bounds bounds;
    uint8_t buf[128 << 10];
};

/* ---- queue_redis.c ---- */

void *queue_redis_run(void *redis_queue);
/* A call of many requests answers each of them. */
void queue_answer_error(command *c, const pseg_err *err);
void queue_answer_lost(const loop *lp, command *c, const char *why, bool was_sent);
void queue_error_of(pseg_err *err, const char *text); /* of an error reply of Redis */
/* hiredis 0.14 makes room for as many elements as an answer claims to have, 3 GB for 14 bytes. This
 * bounds them: an answer of more is none, and ends the line. `b` must outlive the reader. */
void queue_bound_reader(redisReader *r, reader_bounds *b);

/* ---- queue_redis_lines.c ---- */

void line_push(line *l, command *c);
void line_hold(line *l, command *c);
/* As much as the socket takes. send(2) and not hiredis' buffer: that moves what is left after every
 * partial write, which is quadratic for an image, and raises SIGPIPE. */
void line_write(loop *lp, line *l);
/* Sends words on l; on failure the line is ended. */
void line_say(loop *lp, line *l, void (*internal)(loop *, line *, const redisReply *), int argc,
              const char **argv);
/* Ends the connection without a word; nothing may wait on it. */
void line_end(line *l);
/* Answers all that wait with the fault, and dials again after a while. */
void line_fail(loop *lp, line *l, const char *why);
void line_is_ready(loop *lp, line *l);
/* Goes to the node that an answer "MOVED slot host:port" names; false if it is no such answer. */
bool line_follow(loop *lp, line *l, const redisReply *from);

/* ---- queue_redis_gather.c ---- */

/* Sends what waits of a kind, as long as few enough calls are under way. */
void queue_send_gathered(loop *lp, line *l, gathering *g);
void queue_gather(loop *lp, command *c);
/* What has not been sent when the line ends. */
void queue_answer_gathered(loop *lp, const char *why);
void queue_answer_unconfirmed(loop *lp, const char *why);
/* The answer to a call of many requests: one element for each, of which any may be an error. */
void queue_take_batch(loop *lp, command *call, const redisReply *from);

/* ---- queue_redis_greet.c ---- */

void line_load_functions(loop *lp, line *l);
void line_dial(loop *lp, line *l);
void line_connected(loop *lp, line *l);

/* ---- queue_redis_watch.c ---- */

bool watch_is_wanted(const redis_queue *q);
void watch_greet(loop *lp); /* after AUTH and SELECT have been sent */
void watch_on_read(loop *lp, line *l, const redisReply *from); /* the answer to an XREAD */

/* ---- queue_redis_url.c ---- */

/* Errors: CONFIG_INVALID; none tells what stands before an "@". */
pseg_status queue_parse_url(redis_queue *q, const char *url, pseg_err *err);

/* ---- queue_redis_sentinel.c ---- */

bool sentinel_is_wanted(const loop *lp); /* the master is not known */
void sentinel_greet(loop *lp);           /* as soon as a Sentinel is being dialled */
/* The answer to ROLE: ends the line where it is not a master's. */
void sentinel_on_role(loop *lp, line *l, const redisReply *from);

/* ---- queue_redis_open.c ---- */

command *command_new(int argc, const char **argv, const size_t *len); /* NULL: no memory */
void command_free(command *c);
void command_set_text(command *c, char *text, size_t len); /* takes ownership, pseg_free */
command *queue_take_inbox(redis_queue *q, bool *stopping);
bool queue_has_inbox(redis_queue *q);
/* wake_fd: what other threads put into the inbox sets it; the queue's own looks there anyway. */
void queue_enter_thread(const redis_queue *q); /* by that thread, once */
void queue_heard_wake(redis_queue *q);
void queue_redis_close(pseg_queue *q);
int64_t queue_redis_silence_ms(const pseg_queue *q);

/* Queues a command made of argc arguments; answers at once if memory is short. Any thread. */
void queue_send(redis_queue *q, bool is_write, reply_parser parse, size_t n_asked, int argc,
                const char **argv, const size_t *len, pseg_queue_done done, void *ud);
/* The same for one request of a kind, whose answer is one element of its call's. reply: what the
 * parser is to fill, or NULL: an empty one; takes ownership, also on failure. */
void queue_send_item(redis_queue *q, const batch_kind *kind, reply_parser parse,
                     pseg_queue_reply *reply, int argc, const char **argv, const size_t *len,
                     pseg_queue_done done, void *ud);

/* ---- queue_redis_bulk.c ---- */

void redis_create_batch(pseg_queue *q, const char *tenant, const char *id, int64_t ttl_ms,
                        pseg_bytes labels, pseg_queue_done done, void *ud);
void redis_get_batch(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                     void *ud);
void redis_list_batches(pseg_queue *q, const char *tenant, const char *token, size_t limit,
                        pseg_queue_done done, void *ud);
void redis_seal_batch(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                      void *ud);
void redis_cancel_batch(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                        void *ud);
void redis_batch_ends(pseg_queue *q, const char *tenant, const char *id, int64_t from, size_t limit,
                      bool with_jobs, int64_t masks_from, pseg_queue_done done, void *ud);
void redis_submit_item(pseg_queue *q, const pseg_queue_item_args *a, pseg_queue_done done,
                       void *ud);
void queue_parse_item(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_batch(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_created(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_batches(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_ends(pseg_queue_reply *r, const redisReply *from, const command *c);

/* ---- queue_redis_features.c ---- */

void redis_get_features(pseg_queue *q, const char *key, int64_t ttl_ms, pseg_queue_done done,
                        void *ud);
void redis_put_features(pseg_queue *q, const char *key, pseg_bytes data, int64_t budget,
                        int64_t ttl_ms, pseg_queue_done done, void *ud);

/* ---- queue_redis_ops.c ---- */

/* What many jobs of a call have in common, as one text, which the library takes apart once. False:
 * a name of it would not arrive as it is; to be answered by the next function. */
bool queue_terms(char *out, size_t size, const pseg_queue_submit_args *a);
void queue_answer_bad_name(const pseg_queue_submit_args *a, pseg_queue_done done, void *ud);

extern const queue_ops queue_redis_ops;
/* The fixed arguments of a call of `kind` and their number, at most 6. */
int queue_batch_head(const redis_queue *q, const batch_kind *kind, char head[6][24]);

/* ---- queue_redis_estimate.c ---- */

void queue_redis_estimate(pseg_queue *q, const pseg_queue_estimate_args *a, pseg_queue_done done,
                          void *ud);
void queue_parse_estimate(pseg_queue_reply *r, const redisReply *from, const command *c);

/* ---- queue_redis_backlog.c ---- */

void queue_redis_backlog(pseg_queue *q, const char *model, size_t limit, pseg_queue_done done,
                         void *ud);
void queue_parse_backlog(pseg_queue_reply *r, const redisReply *from, const command *c);

/* ---- queue_redis_parse.c ---- */

void queue_parse_submit(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_view(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_get(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_list(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_masks(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_image(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_put(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_has(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_workers(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_claims(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_leases(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_state(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_stats(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_uses(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_cases(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_case(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_dropped(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_requeued(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_nothing(pseg_queue_reply *r, const redisReply *from, const command *c);
/* ---- queue_redis_events.c ---- */

void redis_events(pseg_queue *q, const char *tenant, const char *batch, pseg_queue_place from,
                  size_t limit, pseg_queue_done done, void *ud);
void redis_states(pseg_queue *q, const char *tenant, const char *const *ids, size_t n,
                  pseg_queue_done done, void *ud);
void queue_parse_events(pseg_queue_reply *r, const redisReply *from, const command *c);
void queue_parse_states(pseg_queue_reply *r, const redisReply *from, const command *c);
/* Tells on_event of what an entry of the stream holds. */
void queue_tell_events(const pseg_queue_options *o, const char *entry, const redisReply *fields);

/* Parts of answers. Strings are copied into r's arena; what is no string is "". */
void queue_bad_shape(pseg_queue_reply *r);
bool queue_is_array(const redisReply *r, size_t at_least);
pseg_bytes queue_bytes_at(pseg_queue_reply *r, const redisReply *from, size_t i);
const char *queue_text_at(pseg_queue_reply *r, const redisReply *from, size_t i);
int64_t queue_number_at(const redisReply *from, size_t i);
bool queue_job_of(pseg_job *j, pseg_queue_reply *r, const redisReply *v, size_t at);
void queue_no_room(pseg_queue_reply *r);
/* Every parser of an answer, for whoever tries them with answers that Redis would not give. */
extern const reply_parser queue_reply_parsers[];
extern const size_t queue_n_reply_parsers;

#endif
