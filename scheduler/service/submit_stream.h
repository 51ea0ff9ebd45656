/* Between the parts of SubmitJobs. Private to this folder.
 *   submit_stream.c     the stream: order, window, what is sent to the queue and when
 *   submit_items.c      an item: from its message to what the queue is asked for
 *   submit_deadlines.c  which items come too late, where the server refuses these */
#ifndef PSEG_SERVICE_SUBMIT_STREAM_H
#define PSEG_SERVICE_SUBMIT_STREAM_H

#include "scheduler/service/internal.h"

/* An item that is not known to be safe. */
typedef struct item {
    struct item *next;
    struct submit_stream *stream;
    pseg_rpc_ticket *ticket;
    pseg_queue_reply *reply;
    pseg_err *refuse; /* NULL, or why it is no job */
    const char *custom_id;
    int64_t seq, phrases;
    size_t bytes;
    bool in_flight;
    made_job job;
    char data[]; /* what job and custom_id point to */
} item;

/* What lies before a kind of item. */
typedef struct submit_outlook {
    char model[64];
    int64_t phrases, priority;
    pseg_queue_estimate estimate;
    int64_t taken_ms;   /* 0: never */
    int64_t sent_since; /* items of this stream that go before such a one */
} submit_outlook;

enum { SUBMIT_OUTLOOKS = 8 }; /* kinds of items that a stream knows at once */

typedef struct submit_stream {
    pseg_rpc_call *call;
    char *batch;
    pseg_queue_tenant limits;
    item *head, *tail, *unsent; /* by seq; from `unsent` on they have not been sent to the queue */
    int64_t next_seq;           /* all before it are safe */
    int64_t due_seq;            /* that the client sends next */
    int64_t window_end;         /* as the client was told */
    size_t bytes;
    int under_way, allowed; /* allowed: how many may be under way */
    int64_t retry_ms;
    pseg_rpc_timer retry, room;
    submit_outlook outlooks[SUBMIT_OUTLOOKS];
    size_t asked; /* the outlook that was asked for last */
    op asking;
    bool is_open;   /* the header has been answered */
    bool is_sealed; /* the batch takes nothing more */
    bool is_full;   /* until the timer, nothing is sent to the queue */
    bool is_sending, owes_ack, wants_seal, is_sealing, is_eof, is_draining, has_ended, is_asking;
} submit_stream;

/* An item of s from its message, which it copies. It is refused where the message is no job.
 * NULL: memory is short. */
item *submit_item_new(submit_stream *s, const Pseg__V1__BatchItem *q);
void submit_item_free(item *it); /* NULL is accepted */

/* Everything that may be the next thing to do. */
void submit_go_on(submit_stream *s);

/* Whether it can go to the queue now, as a job or as one that is refused for its deadline. False:
 * nothing goes, and submit_go_on is called once it is known; or the call has failed. */
bool submit_is_decided(submit_stream *s, item *it);
void submit_was_sent(submit_stream *s, const item *it);

#endif
