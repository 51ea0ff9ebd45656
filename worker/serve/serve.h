/* The worker's life: claim, prepare, run, publish, with the leases renewed beside it.
 *
 * Threads besides the caller's: that of the queue takes jobs, a few ahead of the device, whenever
 * another one finds that a claim is due, `claim` where it is a matter of time; one or more of
 * `prepare` fetch, decode and resize their images, each once however many jobs need it; `device`,
 * one for each, runs the job claimed first of those that are ready, and with it, as a batch, those
 * that gain by it; `publish` writes results; `heartbeat` renews leases, learns of cancellations and
 * sweeps the queue. None of them waits for another's slow side: the device never
 * waits for Redis, and the heartbeat for nothing. */
#ifndef PSEG_SERVE_SERVE_H
#define PSEG_SERVE_SERVE_H

#include "common/base/log.h"
#include "common/queue/queue.h"
#include "worker/serve/engine.h"

typedef struct pseg_worker pseg_worker;

/* A job that this worker no longer holds. Borrowed until the hook returns. */
typedef struct pseg_worker_ended {
    const char *outcome; /* static: "published", "failed", "released" or "lost" (nothing written) */
    const char *reason;  /* static: why it failed, by name; "" otherwise */
    int64_t attempt;
    const char *job;         /* id */
    const char *traceparent; /* W3C, of whoever made the job; "": not traced, or not known yet */
    const pseg_work *work;   /* prompts and stages, as far as they came */
} pseg_worker_ended;

typedef struct pseg_worker_options {
    pseg_queue_options queue; /* on_ready and watch_model are set by the worker */
    pseg_engine *engine;      /* borrowed */
    const char *id;           /* of this worker, not shared with any other alive */
    size_t ahead;             /* jobs held besides one on each device */
    size_t preparers;         /* images made ready at once, at most 64; 0: one */
    size_t batch;             /* jobs on a device at once, at most 64; 0: one */
    /* How long a batch may wait for jobs that are being prepared, when every pass of late had more
     * than one job to choose from; less the fewer had. */
    int64_t batch_delay_us;
    /* Bytes of features that all workers of the queue keep in it together, so that a further phrase
     * on an image costs any of them no more than the decoder; each counts with its own. 0: none.
     * The engine must have reads_features. */
    int64_t feature_bytes;
    bool share_features; /* among tenants; else each finds its own only */
    /* Works whose traceparent is sampled get pseg_work.kernels. The engine must have cl.profile. */
    bool times_kernels;
    /* So long a job may be left to another worker that has its image at hand, and be passed by jobs
     * whose images this one has; where the engine keeps images. 0: jobs come in their order. */
    int64_t near_ms;
    /* A job that is this long in one stage hangs, unless stages of this worker take as long: ten
     * times the longest seen is allowed. 0: no watch is kept. */
    int64_t watchdog_ms;
    /* Called on the thread that ended the job, for whoever counts; must not block. NULL: nobody. */
    void (*on_ended)(void *ud, const pseg_worker_ended *e);
    /* Called on the device's thread after each pass, with the number of its jobs. NULL: nobody. */
    void (*on_batch)(void *ud, size_t device, size_t n_jobs, const pseg_engine_batch *done);
    void *on_ended_ud; /* of both */
    const pseg_log *log;
} pseg_worker_options;

/* Starts the threads and registers. Errors: PSEG_R_CONFIG_INVALID, PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_worker_start(pseg_worker **out, const pseg_worker_options *o, pseg_err *err);

/* Did the device fail, the last of them where there are several, so that the process should end and
 * be started anew? Any thread. */
bool pseg_worker_has_failed(const pseg_worker *w);
/* Did this device fail? It takes no more jobs, while others may. Any thread. */
bool pseg_worker_is_out(const pseg_worker *w, size_t device);
/* Does a job hang? It has been reported as DEVICE_HUNG and the others have been handed back; the
 * threads cannot be ended any more, so the process must: by pseg_worker_abandon and _exit. Any
 * thread. */
bool pseg_worker_is_hung(const pseg_worker *w);
/* Does Redis answer, of a queue in parts: any of them? Any thread. */
bool pseg_worker_is_connected(const pseg_worker *w);
/* The same of each part of the queue. Any thread. */
size_t pseg_worker_n_parts(const pseg_worker *w);
bool pseg_worker_reaches(const pseg_worker *w, size_t part);

/* Jobs claimed and not ended yet. Any thread. */
size_t pseg_worker_n_held(const pseg_worker *w);
/* Microseconds since the job held longest was claimed; 0: none is held. Any thread. */
int64_t pseg_worker_oldest_us(const pseg_worker *w);

/* Claims nothing more from now on; what is on the device goes on. */
void pseg_worker_drain(pseg_worker *w);
/* Hands back all that is held, with no attempt burnt, and unregisters, while the threads go on: the
 * process is to end at once. What they still publish is refused, for the leases have gone. */
void pseg_worker_abandon(pseg_worker *w);
/* Claims nothing more, finishes what is on the device, hands back the rest with no attempt burnt,
 * unregisters, ends the threads and frees. */
void pseg_worker_stop(pseg_worker *w);

#endif
