/* Those who watch jobs: a table from events to calls. Private to this folder.
 *
 * A watcher holds no events. It has a place in the stream, reads on from there in small pieces, one
 * message under way at a time, and is told here that there is something to read, and where: so a
 * client that reads slowly, or never, costs the same as one that has nothing to read. */
#ifndef PSEG_SERVICE_WATCH_H
#define PSEG_SERVICE_WATCH_H

#include "common/queue/queue.h"
#include "common/rpc/rpc.h"

#include <pthread.h>

typedef struct watch watch;

/* A job that is watched by its name. */
typedef struct watch_name {
    struct watch_name *next; /* in its slot of the table */
    watch *of;
    char id[PSEG_JOB_ID_LEN + 1];
    pseg_job_state told; /* the loop's, as all below: the state that the client knows */
    bool has_told, has_ended;
} watch_name;

/* What the table and a watcher have in common; under the table's mutex. */
typedef struct watch_entry {
    struct watch *next, **link; /* among all; link: what points to it */
    const char *tenant, *batch; /* batch: "" means any */
    size_t part;                /* of the queue, in which the tenant's events are told */
    watch_name *names;          /* n_names; 0: all of the batch, or of the tenant */
    size_t n_names;
    pseg_rpc_ticket *ticket; /* set: the call rests, and is to be woken by it */
    bool has_missed;         /* events may have been missed */
    bool has_news;           /* events of its jobs lie behind `from`, the last of them at `to` */
    pseg_queue_place from, to;
} watch_entry;

enum { N_WATCH_SLOTS = 4096 };
typedef struct watch_table {
    pthread_mutex_t mu;
    watch *first;
    watch_name *slots[N_WATCH_SLOTS];
    /* By part of the queue: everybody has been told of all its events up to here. */
    pseg_queue_place seen[PSEG_QUEUE_MAX_PARTS];
} watch_table;

/* What a watcher finds when it looks. */
typedef struct watch_news {
    bool has_missed, has_news;
    pseg_queue_place from, to;
    pseg_queue_place seen; /* if there are no news: nothing of its jobs lies before this */
} watch_news;

void watch_table_init(watch_table *t);
void watch_table_deinit(watch_table *t);
/* A thread of the queue's. e NULL: events may have been missed. */
void watch_on_event(watch_table *t, const pseg_queue_event *e);

/* From now on w is told of events; its entry is filled in but for the links. */
void watch_enter(watch_table *t, watch *w);
/* Gives back the ticket of one that rests; NULL: none. Also for one that has never entered. */
pseg_rpc_ticket *watch_leave(watch_table *t, watch *w);
/* The stream is another one than that of which events were told. */
void watch_begin_anew(watch_table *t);
/* What has come since it looked last. */
watch_news watch_look(watch_table *t, watch *w);
/* Lets w rest until there are news: watch_woken runs then, once. False: there are some already; the
 * ticket stays the caller's. Not while it rests. */
bool watch_rest(watch_table *t, watch *w, pseg_rpc_ticket *ticket);

/* ---- watch.c ---- */

watch_entry *watch_entry_of(watch *w);
void watch_woken(pseg_rpc_call *c, void *w);

void watch_jobs(pseg_rpc_call *c, const void *msg);
void watch_writable(pseg_rpc_call *c);
void watch_drain(pseg_rpc_call *c);
void watch_end(pseg_rpc_call *c);

#endif
