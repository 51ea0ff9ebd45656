/* What the threads of `pseg batch` share: batch.c begins and ends them and shows progress,
 * batch_submit.c sends items, batch_read.c reads their images ahead, batch_collect.c takes results.
 */
#ifndef PSEG_CLIENT_BATCH_RUN_H
#define PSEG_CLIENT_BATCH_RUN_H

#include "client/batch/output.h"
#include "client/batch/plan.h"
#include "client/batch/state.h"
#include "client/batch/told.h"
#include "client/client.h"
#include "pseg/v1/batch.pb-c.h"

#include <pthread.h>

#define BATCH_CUSTOM_ID_BYTES 256 /* with the NUL: the API's limit */

typedef struct batch_run {
    /* Of the command; not changed by the threads. */
    cli *cli;
    const batch_plan *plan;
    uint64_t n_items;
    const char *base;  /* folder of images whose path is relative */
    const char *name;  /* "batches/ID" */
    const char *model; /* for items that name none, as all of these */
    double threshold;
    int64_t priority, ttl_ms;
    bool skip_held;      /* ask of every image whether the server holds it; else where that pays */
    int64_t patience_ms; /* for a server that does not answer */
    batch_format format;
    batch_state *state;   /* the collector's; read by others when it has ended */
    batch_output *output; /* the collector's; so is: */
    batch_told *told;

    /* Under mu; cv tells of changes, and room tells those who read ahead that they may go on: they
     * are the many, and sleep through most of it. */
    pthread_mutex_t mu;
    pthread_cond_t cv, room;
    bool stop;      /* all threads end soon */
    pseg_status rc; /* the first failure, with its error */
    pseg_err error;
    uint64_t sent_end;    /* 1 + the last item that the server has */
    bool sending_is_over; /* it will have no more */
    uint64_t succeeded, failed;
    char trouble[160]; /* what is being tried again; "" where all is well */
} batch_run;

/* For the owner of a zeroed run, before and after its threads. */
void batch_run_init(batch_run *r);
void batch_run_deinit(batch_run *r);
/* With mu held. */
void batch_run_stop(batch_run *r);
/* Stops the run for err, unless another reason stands there already. Any thread. */
void batch_run_fail(batch_run *r, pseg_status rc, const pseg_err *err);
bool batch_run_is_stopped(batch_run *r);

/* How long a failing call is tried again: for patience_ms since it first failed. */
typedef struct batch_patience {
    batch_run *run;
    int64_t since_ms; /* of the first failure in a row */
    int attempt;
} batch_patience;
void batch_patience_begin(batch_patience *p, batch_run *r);
void batch_patience_reset(batch_patience *p); /* something went well */
/* Waits before another attempt: 100 ms and twice as long each time, at most 5 s, or what the server
 * asked for (retry_after_ms, or -1). PSEG_OK: try again; else err as it came, with a hint, or
 * PSEG_R_CANCELLED where the run was stopped. */
pseg_status batch_patience_wait(batch_patience *p, int64_t retry_after_ms, pseg_err *err);

/* The custom id of an item that cannot be sent: the server gives it back with the refusal, so that
 * the reason need not be kept here. */
void batch_bad_id(char out[BATCH_CUSTOM_ID_BYTES], const char *reason, const char *message);
/* Takes one apart: true, reason and message filled, if it is one. */
bool batch_bad_id_read(char reason[64], char message[BATCH_CUSTOM_ID_BYTES], const char *custom_id);
/* Of any other item: its id, or its image's name, without control characters. */
void batch_good_id(char out[BATCH_CUSTOM_ID_BYTES], const json_t *item);

/* ---- an item on its way (batch_read.c) ---- */

typedef struct batch_ready {
    json_t *item;
    uint8_t *content; /* or NULL, and sha256 names the image, or neither: the item is a bad one */
    size_t len;
    char sha256[65];
    char custom_id[BATCH_CUSTOM_ID_BYTES];
} batch_ready;
void batch_ready_free(batch_ready *k);

typedef struct batch_reader batch_reader;
/* Threads that read images ahead. Caller frees with batch_reader_free, which waits for them. */
pseg_status batch_reader_new(batch_reader **out, batch_run *r, pseg_err *err);
void batch_reader_free(batch_reader *b); /* NULL is accepted; the run must be stopped, or over */
/* What was read is dropped, and nothing is until batch_reader_start. */
void batch_reader_halt(batch_reader *b);
/* From item seq on. */
void batch_reader_start(batch_reader *b, uint64_t seq);
/* Items up to this one may be read and their images uploaded; none since halt. Also before start.
 */
void batch_reader_allow(batch_reader *b, uint64_t last);
/* The next item, or NULL where is_over(ud) is true or the run stopped; is_over is asked with the
 * run's mu held whenever cv tells of a change. Borrowed until batch_reader_drop. */
const batch_ready *batch_reader_next(batch_reader *b, bool (*is_over)(void *ud), void *ud);
void batch_reader_drop(batch_reader *b);

/* ---- threads ---- */

/* Sends all items and seals the batch. */
void batch_submit(batch_run *r);
/* Takes results until all are told. */
void batch_collect(batch_run *r);
/* Both at once, until both have ended, one has failed, or SIGINT or SIGTERM has come. shows:
 * progress also where standard error is no terminal. Once a process. */
pseg_status batch_attend(batch_run *r, bool shows, pseg_err *err);
int batch_signal(void); /* the one that came, or 0 */

#endif
