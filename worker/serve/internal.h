/* What the files of worker/serve share: the worker with its lines of jobs, and what each thread
 * does. A job goes claim.c -> prepare.c -> device.c -> ending.c; one whose image is at hand passes
 * over the preparing threads. lease.c and watch.c look at it from beside. */
#ifndef PSEG_SERVE_INTERNAL_H
#define PSEG_SERVE_INTERNAL_H

#include "worker/serve/serve.h"

#include <pthread.h>
#include <stdatomic.h>

#define PSEG_MAX_PREPARERS  64u
#define PSEG_FEATURE_TTL_MS 3600000

/* A job that this worker holds. It is in `held` from claim to the end, and in at most one line. */
typedef struct pseg_task {
    struct pseg_task *next_held;
    struct pseg_task *next; /* in its line; NULL in none */
    pseg_arena *arena;
    char id[PSEG_JOB_ID_LEN + 1];
    int64_t fence, attempt;
    size_t group;  /* while it is held, no more jobs than that may be; 0: any number */
    uint64_t turn; /* in the order of claims */
    const char *image;
    pseg_bytes spec;
    int64_t created_unix_us;
    const char *traceparent; /* in the arena, or NULL */
    int64_t claimed_mono_us;
    pseg_work work;
    pseg_waiter waiter; /* for an image that another job prepares */
    bool is_alone;      /* prepares its image itself: who did it for it failed */
    bool runs_alone;    /* it failed in company: no other goes to a device with it again */
    bool is_coming;     /* guarded by mu: not ready yet, but on the way */
    bool is_in_batch;   /* guarded by mu: on `device` with others, one of which may be to blame */
    size_t device;      /* guarded by mu: where it runs or ran last */
    _Atomic bool cancelled, lost;
    struct pseg_worker *worker;
} pseg_task;

typedef struct pseg_task_line {
    pseg_task *head, *tail;
    size_t n;
    pthread_cond_t more; /* a job came into it, or none will any more */
} pseg_task_line;

enum {
    PSEG_WATCH_DEVICE, /* and those of the other devices */
    PSEG_WATCH_PREPARE = PSEG_WATCH_DEVICE + PSEG_MAX_DEVICES,
    PSEG_N_WATCHES = PSEG_WATCH_PREPARE + PSEG_MAX_PREPARERS,
    PSEG_N_WATCH_KINDS = PSEG_WATCH_PREPARE + 1, /* each device, and preparing */
};

/* What a thread is at, for the watchdog. */
typedef struct pseg_watch {
    pseg_task *at; /* guarded by mu; NULL: nothing */
    int64_t since_us;
} pseg_watch;

/* A thread that gets images ready. */
typedef struct pseg_preparer {
    struct pseg_worker *worker;
    pthread_t thread;
    size_t watch;
} pseg_preparer;

/* A thread that owns a device. */
typedef struct pseg_runner {
    struct pseg_worker *worker;
    pthread_t thread;
    size_t device;
    double load; /* share of its passes at which other jobs stood ready */
    bool is_out; /* guarded by mu: the device failed */
} pseg_runner;

struct pseg_worker {
    pseg_worker_options opt;
    pseg_queue *queue;
    pthread_t claim, publish, heartbeat;
    bool has_claim, has_publish, has_heartbeat; /* which of them run */
    pseg_runner runners[PSEG_MAX_DEVICES];
    size_t n_runners; /* of them run, and */
    size_t n_out;     /* guarded by mu: of these are out */
    pseg_preparer preparers[PSEG_MAX_PREPARERS];
    size_t n_preparers;
    pthread_mutex_t mu;
    /* Each tells one kind of thread, and no job passes without waking two of them: what every
     * change of everything would wake costs more than the job's own work. */
    pthread_cond_t over;  /* the worker stops, or has nothing left to end: for who rests */
    pthread_cond_t timer; /* the claiming thread is to wake up at another time, or to end */
    pseg_task *held;
    size_t n_held, window; /* window: as many as may be held now, see claim.c */
    uint64_t turn, n_freed;
    uint64_t n_freed_before; /* when the rate was last taken, at */
    int64_t rate_mono_us;
    double rate; /* jobs a microsecond that come to their end here */
    pseg_task_line claimed, ready, done;
    bool stopping;                                     /* no more claims */
    bool claims_are_over, ready_is_over, done_is_over; /* nothing more comes into these lines */
    /* A claim at a time, made by whichever thread finds it due and answered on the queue's. */
    bool may_claim;   /* something may wait in line */
    bool is_claiming; /* one is under way, or the claiming thread has not begun */
    bool is_withheld; /* something waited that the last claim was not given */
    size_t n_asked;   /* by the one under way */
    int64_t again_mono_us; /* when to claim though nobody tells; 0: not known */
    pseg_watch watches[PSEG_N_WATCHES];
    int64_t longest_us[PSEG_N_WATCH_KINDS];
    _Atomic bool failed, hung;
};

/* ---- task.c: jobs and the lines in which they wait; each call takes the lock ---- */

/* Held from now on. NULL: no memory. */
pseg_task *pseg_task_new(pseg_worker *w, const pseg_queue_claim *c);
/* Held no more, and freed. */
void pseg_task_free(pseg_worker *w, pseg_task *t);
static inline pseg_queue_lease pseg_task_lease(const pseg_task *t)
{
    return (pseg_queue_lease){t->id, t->fence};
}
/* Under which features of its image are kept in the queue. */
void pseg_task_features_key(const pseg_worker *w, const pseg_task *t,
                            char out[PSEG_ENGINE_MAX_KEY + 1]);
/* A job, or several by `next`, that are in no line: each behind those that were claimed before it,
 * however long each took to get here. Whoever waits for the line finds all of them. */
void pseg_line_push(pseg_worker *w, pseg_task_line *l, pseg_task *first);
/* Waits for the next; NULL once *is_over and the line is empty. */
pseg_task *pseg_line_pop(pseg_worker *w, pseg_task_line *l, const bool *is_over);
/* The first, or NULL. With the lock held. */
pseg_task *pseg_line_first(pseg_task_line *l);
/* Takes t, which is in the line, out of it. With the lock held. */
void pseg_line_take(pseg_task_line *l, pseg_task *t);
/* Sets a flag of the worker and wakes all who wait for anything. */
void pseg_worker_tell(pseg_worker *w, bool *flag);
bool pseg_worker_is_stopping(pseg_worker *w);

/* ---- claim.c; no lock held ---- */

/* Claims if something may wait and there is room; does not wait for the answer. To be called after
 * every change that may make a claim due: a line is empty, a job is held no more. */
void pseg_claim_if_due(pseg_worker *w);
void pseg_claim_on_ready(void *worker); /* something may wait */

/* ---- prepare.c ---- */

/* Does t, new and in no line, need nothing but a device? */
bool pseg_prepare_at_hand(pseg_worker *w, pseg_task *t);

/* ---- ending.c ---- */

typedef enum pseg_ending { PSEG_END_PUBLISH, PSEG_END_FAIL, PSEG_END_RELEASE } pseg_ending;

/* Tells the queue, again and again while Redis is away and the lease may still be ours; frees t.
 * why: of PSEG_END_FAIL. */
void pseg_task_end(pseg_worker *w, pseg_task *t, pseg_ending how, const pseg_err *why);

/* ---- lease.c; no lock held ---- */

/* Says to the queue that this worker lives, with its last lines of log. */
void pseg_lease_register(pseg_worker *w);
/* Gives every lease back but `kept`'s, if not NULL, which is charged with *why. If that one was on
 * a device with others, nobody knows who is to blame: none of these is given back or charged, and
 * when their leases end the queue lets them be tried among fewer. */
void pseg_lease_give_back(pseg_worker *w, const char *kept, const pseg_err *why);

/* ---- watch.c; no lock held ---- */

/* A thread begins with a job, comes to its next stage, or (t = NULL) is done with it. */
void pseg_watch_moved(pseg_worker *w, size_t which, pseg_task *t);
/* True if a job hangs: it is charged, the others are handed back. */
bool pseg_watch_check(pseg_worker *w);

/* ---- threads: arg is the worker, of prepare a pseg_preparer, of device a pseg_runner ---- */

void *pseg_claim_main(void *arg); /* claims when it is time to, though nobody tells */
void *pseg_prepare_main(void *arg);
void *pseg_device_main(void *arg);
void *pseg_publish_main(void *arg);
void *pseg_heartbeat_main(void *arg);

#endif
