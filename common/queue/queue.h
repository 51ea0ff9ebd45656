/* The queue: everything that must not be lost, kept in Redis behind one atomic function per step.
 *
 * A handle owns one thread and its connections. A request is queued from any thread and answered by
 * a callback on the handle's thread, which must not block; pseg_queue_sync turns that into a wait.
 * Requests are pipelined, so many may be under way. When Redis shows no sign of life for
 * timeout_ms, or leaves one request unanswered for five times that, all that wait end as
 * PSEG_R_BROKER_UNAVAILABLE and the connection is made anew: for a write the outcome is then
 * unknown, and repeating it is safe (submit by the job's id or the request id, all others by
 * fence).
 *
 * This header knows neither Redis nor gRPC. proto/KEYS.md has the keys, docs/job-lifecycle.md the
 * transitions.
 *
 *     pseg_queue_sync wait;
 *     pseg_queue_sync_init(&wait);
 *     pseg_queue_get(q, "default", ids, 1, pseg_queue_sync_done, &wait);
 *     pseg_queue_reply *r = pseg_queue_sync_take(&wait);
 *     if (r->err.code == PSEG_OK && r->n_jobs == 1) ...
 *     pseg_queue_reply_free(r);
 */
#ifndef PSEG_QUEUE_QUEUE_H
#define PSEG_QUEUE_QUEUE_H

#include "common/base/arena.h"
#include "common/base/err.h"
#include "common/base/log.h"
#include "common/job/job.h"

#include <pthread.h>
#include <stdint.h>

typedef struct pseg_queue pseg_queue;

/* How far somebody has come in the events: the first `n` of what entry ms-seq of the stream tells
 * have been dealt with. Places are ordered, and the same for every handle of a queue; of a queue in
 * parts each part has its own. */
typedef struct pseg_queue_place {
    uint64_t ms, seq;
    uint32_t n; /* PSEG_QUEUE_WHOLE: all of it */
} pseg_queue_place;

#define PSEG_QUEUE_WHOLE       UINT32_MAX
#define PSEG_QUEUE_PLACE_BYTES 56 /* of its text, with the NUL */

/* "1764288000000-0" or, of an entry in part, "1764288000000-0.3". */
void pseg_queue_place_format(char out[PSEG_QUEUE_PLACE_BYTES], pseg_queue_place p);
/* False: it is no such text. */
bool pseg_queue_place_parse(pseg_queue_place *out, const char *text);
/* Negative, 0, positive: a comes before, is, comes after b. */
int pseg_queue_place_compare(pseg_queue_place a, pseg_queue_place b);

/* A change of a job's state. The submit is none. */
typedef struct pseg_queue_event {
    const char *id;
    const char *tenant; /* told to on_event; "" in an answer */
    const char *batch;  /* that it is of, or "" */
    const char *worker; /* RUNNING: that has it; else "" */
    pseg_job_state state;
    int64_t at_unix_us;     /* to the millisecond */
    pseg_queue_place place; /* when it has been dealt with */
    size_t part;            /* that tells it, see pseg_queue_part_of */
} pseg_queue_event;

/* What has to be true before a submit is answered with OK. The server is asked at each connection
 * whether it can give that; if it cannot, every request ends as BROKER_UNAVAILABLE and says so:
 * nothing is lowered in silence. */
typedef enum pseg_durability {
    PSEG_DURABILITY_MEMORY, /* Redis has it: lost with its process unless its log keeps it */
    PSEG_DURABILITY_FSYNC, /* it is in Redis' log on the disk: appendonly yes, appendfsync always */
    PSEG_DURABILITY_REPLICATED /* `replicas` replicas have it in memory (WAIT) */
} pseg_durability;

typedef struct pseg_queue_options {
    /* redis://[[user]:password@]host[:port][/db], redis+sentinel://.../MASTER[/db], unix:/path,
     * redis+cluster://[[user]:password@]host[:port],.../PARTS, or mem: (tests). Several, with
     * blanks between: the queue lies on all of them, see pseg_queue_part_of. */
    const char *url;
    const char *name; /* of the queue: [a-z0-9_-]{1,32}; queues of one server are strangers */
    const pseg_log *log;
    int64_t timeout_ms;   /* for one answer of Redis */
    int64_t lease_ms;     /* a worker silent for longer loses its jobs */
    int64_t max_attempts; /* how often a job is begun at most */
    int64_t max_jobs;     /* alive at once */
    int64_t max_bytes;    /* of images held */
    int64_t image_ttl_ms; /* of an image since its last use */
    int64_t max_age_ms;   /* of a job that names no deadline, and of any other at most */
    pseg_durability durability;
    int64_t replicas; /* REPLICATED: how many */
    /* Called on the handle's thread (of a queue in parts: on each part's, so by several at once) at
     * every change of a job's state, with e = NULL when events may have been missed (after a
     * reconnect): look at everything again. NULL: not watched. */
    void (*on_event)(void *ud, const pseg_queue_event *e);
    /* Called when something may wait in the line of `watch_model`, and after a reconnect. NULL:
     * this handle is for submits, and its server is asked whether it may evict keys, as for
     * durability. */
    void (*on_ready)(void *ud);
    const char *watch_model;
    void *ud;
} pseg_queue_options;

#define PSEG_QUEUE_OPTIONS_DEFAULT                                                                 \
    {                                                                                              \
        .url = "redis://127.0.0.1:6379", .name = "default", .timeout_ms = 2000, .lease_ms = 10000, \
        .max_attempts = 3, .max_jobs = 1000000, .max_bytes = (int64_t)4 << 30,                     \
        .image_ttl_ms = 3600000, .max_age_ms = 86400000, .replicas = 1                             \
    }

/* Starts the thread; a server that is not there yet is no error. Strings are copied.
 * Errors: PSEG_R_CONFIG_INVALID (url, name), PSEG_R_OUT_OF_MEMORY, PSEG_R_INTERNAL. */
pseg_status pseg_queue_open(pseg_queue **out, const pseg_queue_options *o, pseg_err *err);
/* Answers what is under way with PSEG_R_CANCELLED, then ends the thread. */
void pseg_queue_close(pseg_queue *q);

/* Milliseconds since Redis last answered, of parts: the one that answered last; a large number if
 * it never did. Any thread. */
int64_t pseg_queue_silence_ms(const pseg_queue *q);

/* ---- a queue in parts ----
 * Each tenant's jobs, images, batches and events lie in one part, by the tenant's name (rendezvous
 * hashing), and all that is promised of a queue is kept there; tenants' shares of the compute-time
 * hold within a part, and limits of the queue (max_jobs, max_bytes) are each part's. A worker takes
 * jobs of every part in turn. What asks about all of them fails if one does not answer, but
 * register, unregister, sweep, workers and claims do with those that do. */

enum { PSEG_QUEUE_MAX_PARTS = 64 };
size_t pseg_queue_n_parts(const pseg_queue *q); /* 1 or more */
size_t pseg_queue_part_of(const pseg_queue *q, const char *tenant);
int64_t pseg_queue_part_silence_ms(const pseg_queue *q, size_t part);

/* ---- answers ---- */

typedef struct pseg_queue_image {
    uint64_t size_bytes; /* 0: not held */
    int64_t expire_unix_us;
    bool existed;
} pseg_queue_image;

typedef struct pseg_queue_worker {
    const char *id, *model, *digest, *device, *version;
    const char *log; /* register: its last lines, the evidence if it dies; an answer has none */
} pseg_queue_worker;

/* A job that was claimed. */
typedef struct pseg_queue_claim {
    const char *id, *tenant, *image; /* image: for pseg_queue_fetch_image */
    int64_t fence;                   /* names this lease in renew, publish, fail and release */
    int64_t attempt, deadline_unix_us, created_unix_us;
    /* While this job is held, no more than `group` may be held in all; 0: any number. A worker that
     * died had it among others, and which of them killed it is found by trying them among fewer. */
    int64_t group;
    pseg_bytes spec;
} pseg_queue_claim;

typedef enum pseg_lease_state {
    PSEG_LEASE_OK,
    PSEG_LEASE_LOST,
    PSEG_LEASE_CANCEL, /* still held; the job is to be cancelled */
    PSEG_LEASE_EXPIRED /* the job's deadline has passed; it has ended */
} pseg_lease_state;

typedef struct pseg_queue_stats {
    int64_t live, leased, delayed, image_bytes;
    int64_t submitted, succeeded, failed, cancelled, expired;
    int64_t quarantined; /* now */
} pseg_queue_stats;

/* What a tenant has now. */
typedef struct pseg_queue_use {
    const char *tenant;
    int64_t jobs; /* alive */
    int64_t image_bytes, batches;
} pseg_queue_use;

typedef struct pseg_queue_due {
    int64_t jobs, deadline_unix_us;
} pseg_queue_due;

/* What waits for a model's workers. */
typedef struct pseg_queue_backlog {
    int64_t live;        /* jobs that wait or run */
    int64_t workers;     /* live ones that serve the model */
    int64_t cost_us;     /* mean compute-time of a job, on what they run on; 0: none has told yet */
    int64_t now_unix_us; /* by the queue's clock */
    /* How many of them are due by when, both rising. */
    const pseg_queue_due *due;
    size_t n_due;
} pseg_queue_backlog;

/* What lies before a job that would be submitted now, by the order in which jobs are begun: the
 * tenant's own by priority and time, tenants among each other by their shares. */
typedef struct pseg_queue_estimate {
    bool is_known;       /* the tenant has a job of this request_id already */
    int64_t now_unix_us; /* by the queue's clock */
    int64_t workers;     /* live ones that serve the model */
    int64_t busy;        /* jobs of the model that run, or wait for another attempt */
    int64_t ahead;       /* waiting ones that are begun before it, whoever's they are */
    int64_t waiting;     /* all that wait in line */
    int64_t mean_us;     /* compute-time of a job of the model; 0: none has told yet */
    int64_t cost_us;     /* of this one, with its number of phrases; 0: as mean_us */
} pseg_queue_estimate;

typedef struct pseg_queue_estimate_args {
    const char *tenant, *model;
    bool model_is_default;
    const char *request_id; /* or "" */
    int64_t phrases;        /* 1 or more */
    int64_t priority;
    int64_t weight; /* of the tenant, 1 or more */
} pseg_queue_estimate_args;

/* A job that failed at its last attempt, kept for somebody to look at. */
typedef struct pseg_queue_case {
    const char *id, *tenant, *model, *message, *request_id;
    const char
        *evidence; /* per attempt: when, worker, device, reason, the worker's last log lines */
    pseg_reason reason;
    int64_t attempts, at_unix_us;
} pseg_queue_case;

/* A batch: items of one tenant, numbered from 1. Those before next_seq are stored; each of them
 * ends once: as its job does, or as FAILED where it was refused and never was a job. */
typedef struct pseg_queue_batch {
    const char *id;
    pseg_bytes labels; /* as given when it was made */
    int64_t created_unix_us, expire_unix_us, ttl_ms;
    int64_t finish_unix_us; /* when the last item will have ended; 0: cannot be told */
    int64_t next_seq;
    bool sealed; /* no item comes any more */
    bool cancel_requested;
    int64_t ended[PSEG_JOB_EXPIRED + 1]; /* by terminal state */
    int64_t n_ended;                     /* of all, with those refused */
    int64_t refused;                     /* of the failed */
} pseg_queue_batch;

/* The end of an item. */
typedef struct pseg_queue_item {
    int64_t seq, at_unix_us;
    const char *custom_id;
    pseg_job_state state;
    const char *job_id;  /* "": it was refused, for: */
    pseg_reason refusal; /* PSEG_R_NONE: it was a job */
    const char *message;
    const pseg_bytes *masks; /* if they came with it: all of them, by prompt */
    size_t n_masks;
    bool has_masks; /* they came, be it that there are none any more */
} pseg_queue_item;

/* Everything in it is borrowed until pseg_queue_reply_free; what a request does not fill is 0. */
typedef struct pseg_queue_reply {
    pseg_err err; /* err.code == PSEG_OK: good */
    bool created; /* submit: a new job */
    pseg_job *jobs;
    size_t n_jobs;       /* get: as many as asked, with id = NULL for those not found */
    const char *next_id; /* list: where the next page begins, or "" */
    pseg_queue_image *images;
    size_t n_images;
    pseg_bytes *blobs; /* masks, one per index asked; an image: data = NULL if it is gone */
    size_t n_blobs;
    pseg_queue_worker *workers;
    size_t n_workers;
    pseg_queue_claim *claims;
    size_t n_claims;
    /* claim: in so long, or once the worker holds none, there may be more for it; 0: none is known
     * of */
    int64_t again_ms;
    pseg_lease_state *leases;
    size_t n_leases;
    pseg_queue_case *cases;
    size_t n_cases;
    pseg_queue_batch *batches;
    size_t n_batches;
    pseg_queue_item *items; /* jobs[i] is that of items[i]; id = NULL: none, or gone */
    size_t n_items;
    int64_t next_seq; /* submit_item: what the batch's next item must have */
    pseg_queue_event *events;
    size_t n_events;        /* states: as many as asked, with id = NULL for those not found */
    pseg_queue_place place; /* events: where reading ended; states: the end of all events */
    bool has_gap;           /* events: some before the first of these were lost */
    bool has_more;          /* events: reading did not come to the end */
    pseg_job_state state;   /* publish, fail, release: what the job is now */
    pseg_queue_stats stats;
    pseg_queue_use *uses;
    size_t n_uses;
    pseg_queue_backlog backlog;
    pseg_queue_estimate estimate;
    pseg_arena *arena;
    struct pseg_queue_reply *lent; /* an answer that this one borrows from, freed with it */
} pseg_queue_reply;

void pseg_queue_reply_free(pseg_queue_reply *r);

/* Takes ownership of r. Runs on the handle's thread, or at once on the caller's if the request
 * could not be queued. */
typedef void (*pseg_queue_done)(void *ud, pseg_queue_reply *r);

typedef struct pseg_queue_sync {
    pthread_mutex_t mu;
    pthread_cond_t cv;
    pseg_queue_reply *reply;
} pseg_queue_sync;
void pseg_queue_sync_init(pseg_queue_sync *s);
void pseg_queue_sync_done(void *sync, pseg_queue_reply *r);
/* Waits for the answer (every request is answered, after five times timeout_ms at the latest) and
 * destroys s. Caller frees the reply. */
pseg_queue_reply *pseg_queue_sync_take(pseg_queue_sync *s);

/* ---- for schedulers ---- */

/* What a tenant may have; 0: no limit. */
typedef struct pseg_queue_tenant {
    int64_t weight;      /* share of the compute-time while others wait, too; 0: 1 */
    int64_t max_jobs;    /* alive at once */
    int64_t max_bytes;   /* of images held */
    int64_t rate, burst; /* submits a second, and how many at once */
} pseg_queue_tenant;

typedef struct pseg_queue_submit_args {
    /* id: 32 hexadecimal digits, see pseg_job_new_id; of an item of a batch the last two are the
     * queue's to choose. */
    const char *tenant, *id;
    const char *request_id;  /* or "" */
    const char *fingerprint; /* of the request's content, to tell a repeat from a reuse */
    const char *model;
    bool model_is_default; /* then it need not be served yet */
    const char *image_sha256;
    pseg_bytes spec;          /* packed pseg.internal.v1.JobSpec */
    pseg_bytes content;       /* the image, or empty if it was uploaded */
    int64_t deadline_unix_us; /* 0: none */
    int64_t ttl_ms;           /* of the result */
    int64_t
        priority; /* among the tenant's own jobs: begun as if submitted that many minutes earlier */
    const pseg_queue_tenant *limits; /* NULL: none */
} pseg_queue_submit_args;

/* -> created, jobs[0]. Errors: REQUEST_ID_REUSED, MODEL_UNKNOWN, IMAGE_NOT_HELD, QUEUE_FULL,
 * TENANT_LIMIT, BROKER_FULL, BROKER_UNAVAILABLE (as for every request). Submits that come while
 * others are under way travel together; so do publications. */
void pseg_queue_submit(pseg_queue *q, const pseg_queue_submit_args *a, pseg_queue_done done,
                       void *ud);
/* ---- batches: for schedulers, too ---- */

/* -> batches[0], created: false if the tenant has one of this id, which stays as it is. id: 1 to 64
 * of [A-Za-z0-9._-]. It is kept for ttl_ms after its last end. Errors: BATCH_LIMIT, BROKER_FULL. */
void pseg_queue_create_batch(pseg_queue *q, const char *tenant, const char *id, int64_t ttl_ms,
                             pseg_bytes labels, pseg_queue_done done, void *ud);
/* -> batches[0]; n_batches 0 if there is none. So does cancel. */
void pseg_queue_get_batch(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                          void *ud);
/* -> batches, newest first, from `token` on ("": from the newest), which is the next_id of the
 * answer before. */
void pseg_queue_list_batches(pseg_queue *q, const char *tenant, const char *token, size_t limit,
                             pseg_queue_done done, void *ud);
/* -> next_seq. No item is taken any more; what durability promises of items it promises of this.
 * Errors: BATCH_NOT_FOUND, BROKER_FULL. */
void pseg_queue_seal_batch(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                           void *ud);
/* No item is taken any more, and what has not ended is cancelled by the sweeps that follow, 500
 * items each. */
void pseg_queue_cancel_batch(pseg_queue *q, const char *tenant, const char *id,
                             pseg_queue_done done, void *ud);
/* -> batches[0] (n_batches 0 if there is none), and its ends from number `from` on (0: the first),
 * in their order, as items; with_jobs: jobs, too. masks_from: with the masks of those that
 * SUCCEEDED from that number on, until they are more than PSEG_ENDS_MASK_BYTES (the first is whole
 * in any case); PSEG_NO_MASKS: none. */
#define PSEG_ENDS_MASK_BYTES ((size_t)256 << 10)
#define PSEG_NO_MASKS        INT64_MAX
void pseg_queue_batch_ends(pseg_queue *q, const char *tenant, const char *id, int64_t from,
                           size_t limit, bool with_jobs, int64_t masks_from, pseg_queue_done done,
                           void *ud);

typedef struct pseg_queue_item_args {
    pseg_queue_submit_args job; /* request_id is not used. Of a refused item only the tenant is */
    const char *batch;
    int64_t seq;
    const char *custom_id;  /* at most 255 bytes */
    const pseg_err *refuse; /* NULL, or why it is to end at once as FAILED */
} pseg_queue_item_args;
/* -> next_seq. An item before it is there already, and nothing happens. An unknown model and an
 * image that is not held refuse the item, which is no error here. Items that come while others are
 * under way travel together, in the order in which they came. Errors, which leave the batch as it
 * was: BATCH_NOT_FOUND, BATCH_SEALED, BATCH_OUT_OF_ORDER (an item before it is missing),
 * QUEUE_FULL, TENANT_LIMIT, BROKER_FULL. */
void pseg_queue_submit_item(pseg_queue *q, const pseg_queue_item_args *a, pseg_queue_done done,
                            void *ud);

/* ---- for schedulers ---- */

/* -> images[0]. tenant_bytes: what the tenant may hold, 0: no limit. Errors: QUEUE_FULL,
 * TENANT_LIMIT, BROKER_FULL. */
void pseg_queue_put_image(pseg_queue *q, const char *tenant, const char *sha256, pseg_bytes data,
                          int64_t tenant_bytes, pseg_queue_done done, void *ud);
/* -> images, as many as asked. Extends the life of those held. */
void pseg_queue_has_images(pseg_queue *q, const char *tenant, const char *const *sha256, size_t n,
                           pseg_queue_done done, void *ud);
/* -> jobs, as many as asked. */
void pseg_queue_get(pseg_queue *q, const char *tenant, const char *const *ids, size_t n,
                    pseg_queue_done done, void *ud);
/* -> jobs, newest first, from those older than after_id ("": from the newest); next_id. */
void pseg_queue_list(pseg_queue *q, const char *tenant, const char *after_id, size_t limit,
                     pseg_queue_done done, void *ud);
/* -> jobs[0] (n_jobs 0 if not found), blobs in the order of indexes. */
void pseg_queue_masks(pseg_queue *q, const char *tenant, const char *id, const uint32_t *indexes,
                      size_t n, pseg_queue_done done, void *ud);
/* -> jobs[0] as it is now (n_jobs 0 if not found). */
void pseg_queue_cancel(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                       void *ud);
/* -> events of the tenant's jobs (of that batch, unless it is ""), at most `limit`, in their order,
 * from `from` on; place, has_gap, has_more. A piece may hold none while there are more. About the
 * last 100,000 entries are kept. Where `from` is of a stream that Redis has lost, reading begins at
 * the beginning of the new one. */
void pseg_queue_events(pseg_queue *q, const char *tenant, const char *batch, pseg_queue_place from,
                       size_t limit, pseg_queue_done done, void *ud);
/* -> events: the state that each job is in and since when (of a queued one: since its submit), of
 * one moment; place: this moment's. n may be 0: the place alone. */
void pseg_queue_states(pseg_queue *q, const char *tenant, const char *const *ids, size_t n,
                       pseg_queue_done done, void *ud);
/* -> workers. */
void pseg_queue_workers(pseg_queue *q, pseg_queue_done done, void *ud);
/* -> stats. */
void pseg_queue_get_stats(pseg_queue *q, pseg_queue_done done, void *ud);
/* -> uses: of each tenant that has live jobs or images, by name. */
void pseg_queue_get_uses(pseg_queue *q, pseg_queue_done done, void *ud);
/* -> backlog. Deadlines are counted among the `limit` jobs of the queue that are due first, about 4
 * microseconds of Redis' time for each, and estimated for those behind them: from a few of all, by
 * the model's share of the live jobs. 0: without deadlines. */
void pseg_queue_get_backlog(pseg_queue *q, const char *model, size_t limit, pseg_queue_done done,
                            void *ud);
/* -> estimate. Looks at a hundred tenants at most. Errors: MODEL_UNKNOWN. */
void pseg_queue_get_estimate(pseg_queue *q, const pseg_queue_estimate_args *a, pseg_queue_done done,
                             void *ud);
/* Due retries, lost leases, passed deadlines, unused images, lost workers: to be called a few times
 * a second by every scheduler and worker; how often decides how late a deadline may bite. */
void pseg_queue_sweep(pseg_queue *q, pseg_queue_done done, void *ud);

/* -> cases, newest first, from those older than after_id ("": from the newest). */
void pseg_queue_list_cases(pseg_queue *q, const char *after_id, size_t limit, pseg_queue_done done,
                           void *ud);
/* -> cases[0]; n_cases 0 if there is none. */
void pseg_queue_get_case(pseg_queue *q, const char *id, pseg_queue_done done, void *ud);
/* -> n_cases: 1 if there was one. Its image may go. */
void pseg_queue_drop_case(pseg_queue *q, const char *id, pseg_queue_done done, void *ud);
/* -> created, jobs[0]: its work submitted anew, as new_id, past its tenant's limits; or, for a case
 * that was requeued before, the job that it became then, while that is kept. n_jobs 0 if there is
 * no such case. The job itself has ended and stays so. Errors: as submit. */
void pseg_queue_requeue_case(pseg_queue *q, const char *id, const char *new_id,
                             pseg_queue_done done, void *ud);

/* ---- for workers ---- */

/* Makes the worker and its model known; to be repeated with every heartbeat. */
void pseg_queue_register(pseg_queue *q, const pseg_queue_worker *w, pseg_queue_done done, void *ud);
void pseg_queue_unregister(pseg_queue *q, const char *worker, pseg_queue_done done, void *ud);
/* -> claims, at most max; each lease runs from now. Does not wait. held: how many jobs the worker
 * has already, see pseg_queue_claim.group. near_ms above 0: the worker has at hand, for a while,
 * the images of jobs that it claimed so. Those it gets first, and those that another living worker
 * has at hand it leaves to that one, each until near_ms after the job was first passed over. 0: jobs
 * in their order. again_ms: see there; one that is to be tried among fewer than are held waits, too. */
void pseg_queue_claim_jobs(pseg_queue *q, const char *worker, const char *model, size_t max,
                           size_t held, int64_t near_ms, pseg_queue_done done, void *ud);
/* -> blobs[0]. */
void pseg_queue_fetch_image(pseg_queue *q, const char *image, pseg_queue_done done, void *ud);
/* A cache of what models made of images, kept by use within a budget: nothing is lost with it. key:
 * [!-~]{1,300}, whatever tells one content from another. -> blobs[0], data = NULL if it is not
 * there; what is lives for ttl_ms from now on. */
void pseg_queue_get_features(pseg_queue *q, const char *key, int64_t ttl_ms, pseg_queue_done done,
                             void *ud);
/* -> created: it is there now, for ttl_ms; those used longest ago went until all fit into `budget`
 * bytes. data: copied. Errors: BROKER_FULL. */
void pseg_queue_put_features(pseg_queue *q, const char *key, pseg_bytes data, int64_t budget,
                             int64_t ttl_ms, pseg_queue_done done, void *ud);

typedef struct pseg_queue_lease {
    const char *id;
    int64_t fence;
} pseg_queue_lease;
/* -> leases, one per lease given. */
void pseg_queue_renew(pseg_queue *q, const char *worker, const pseg_queue_lease *l, size_t n,
                      pseg_queue_done done, void *ud);
/* -> state: SUCCEEDED, or CANCELLED or EXPIRED if that came first. masks: n in prompt order.
 * cost_us: what the job took to compute, for its tenant's share; 0: not known. Whoever ended its
 * lease by this, by fail or by release gets the same answer when it asks again. Errors: LEASE_LOST
 * (nothing was written). */
void pseg_queue_publish(pseg_queue *q, const char *worker, pseg_queue_lease l, pseg_bytes result,
                        const pseg_bytes *masks, size_t n, int64_t cost_us, pseg_queue_done done,
                        void *ud);
/* -> state: QUEUED (another attempt after delay_ms, 300,000 at most), FAILED, CANCELLED or EXPIRED.
 * `why` tells the reason, the message and, by its reason, whether another attempt makes sense.
 * Errors: LEASE_LOST.
 */
void pseg_queue_fail(pseg_queue *q, const char *worker, pseg_queue_lease l, const pseg_err *why,
                     int64_t delay_ms, pseg_queue_done done, void *ud);
/* -> state: QUEUED, with no attempt burnt; or CANCELLED or EXPIRED. Errors: LEASE_LOST. */
void pseg_queue_release(pseg_queue *q, const char *worker, pseg_queue_lease l, pseg_queue_done done,
                        void *ud);

#endif
