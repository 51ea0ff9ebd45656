/* Those who read the results of batches: a table from events to calls. Private to this folder.
 *
 * A reader has a place in the list of a batch's ends (result_place.h) and reads on from there in small pieces, one
 * message under way at a time; the table wakes it when there may be more. What no event tells of
 * (an item that was refused, a seal, both perhaps at another scheduler) it finds by looking once a
 * second. */
#ifndef PSEG_SERVICE_RESULTS_H
#define PSEG_SERVICE_RESULTS_H

#include "common/queue/queue.h"
#include "common/rpc/rpc.h"

#include <pthread.h>

typedef struct result_stream result_stream;

/* What the table and a reader have in common; under the table's mutex. */
typedef struct result_entry {
    result_stream *next, **link; /* link: what points to it; NULL: not in the table */
    const char *tenant, *batch;
    pseg_rpc_ticket *ticket; /* set: the call rests, and is to be woken by it */
    bool has_news;
} result_entry;

typedef struct result_table {
    pthread_mutex_t mu;
    result_stream *first;
} result_table;

void result_table_init(result_table *t);
void result_table_deinit(result_table *t);
/* The queue's thread. e NULL: events may have been missed. */
void results_on_event(result_table *t, const pseg_queue_event *e);
/* There may be something new of this batch. Any thread. */
void results_wake(result_table *t, const char *tenant, const char *batch);

/* From now on s is told; its entry has tenant and batch. */
void result_enter(result_table *t, result_stream *s);
/* Wakes s if it rests. Also for one that has never entered. */
void result_leave(result_table *t, result_stream *s);
/* Lets s rest until there is something new: results_woken runs then, once. False: there is already,
 * or it rests; the ticket stays the caller's. */
bool result_rest(result_table *t, result_stream *s, pseg_rpc_ticket *ticket);
bool result_rests(result_table *t, result_stream *s);
/* Has there been something since this was asked last? */
bool result_take_news(result_table *t, result_stream *s);

/* ---- results.c ---- */

result_entry *result_entry_of(result_stream *s);
void results_woken(pseg_rpc_call *c, void *stream);

void stream_results(pseg_rpc_call *c, const void *msg);
void results_writable(pseg_rpc_call *c);
void results_drain(pseg_rpc_call *c);
void results_end(pseg_rpc_call *c);

#endif
