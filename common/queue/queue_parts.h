/* A queue in parts: between its files and queue.c. Private to this folder.
 *   queue_parts.c        where the parts are, which of them a request goes to, open and close
 *   queue_parts_ask.c    asking all
 *   queue_parts_all.c    requests that all have to answer, but for
 *   queue_parts_counts.c what is counted
 *   queue_parts_claim.c  claims */
#ifndef PSEG_QUEUE_QUEUE_PARTS_H
#define PSEG_QUEUE_QUEUE_PARTS_H

#include "common/queue/queue_impl.h"

#include <stdatomic.h>

/* Opens a handle for each URL. base: as for queue_redis_open. */
pseg_status queue_parts_open(pseg_queue **out, const pseg_queue *base, const char *const *urls,
                             size_t n, pseg_err *err);
/* The URLs of a list, by blanks, those of a cluster as often as they say; *out and what it points
 * to lie in the arena. Errors: PSEG_R_CONFIG_INVALID, PSEG_R_OUT_OF_MEMORY. */
pseg_status queue_split_urls(const char *const **out, size_t *n, pseg_arena *a, const char *list,
                             pseg_err *err);
/* The handle that a request of this tenant, or of this lease, goes to; q itself if it has no parts.
 * The lease is then what that handle calls it. */
pseg_queue *queue_part(pseg_queue *q, const char *tenant);
pseg_queue *queue_part_of_lease(pseg_queue *q, pseg_queue_lease *l);
/* By the tenant that an image's name begins with. */
pseg_queue *queue_part_of_image(pseg_queue *q, const char *image);
/* Which part: a lease's fence tells, since jobs of a worker come from all of them. */
int64_t queue_fence_in_part(int64_t fence, size_t part);
/* All parts in the order in which a claim asks them: first those (as many as is returned) that are
 * to be asked until the claim is full, since they have told of jobs, which is forgotten, or it is
 * their turn. */
size_t queue_parts_in_turn(pseg_queue *q, size_t order[PSEG_QUEUE_MAX_PARTS]);
/* As if it had told of a job. */
void queue_parts_may_wait(pseg_queue *q, size_t part);
/* For who asks a part within the answer of another: until leave none is closed. False: they are
 * being closed. */
bool queue_parts_enter(pseg_queue *q);
void queue_parts_leave(pseg_queue *q);
void queue_parts_close(pseg_queue *q);

extern const queue_ops queue_parts_ops; /* queue_parts_all.c */

/* ---- queue_parts_ask.c: a question to all parts at once, and one answer made of theirs ---- */

typedef struct parts_asked parts_asked;
typedef struct parts_slot {
    parts_asked *of;
    size_t part;
} parts_slot;

/* Makes one answer of those of all parts; it owns none of them, but may borrow. r has no error. */
typedef void (*parts_merge)(pseg_queue_reply *r, parts_asked *g);

struct parts_asked {
    parts_merge merge;
    bool is_lenient; /* an answer of some is one */
    size_t limit;    /* of a list */
    size_t home;     /* the tenant's part */
    size_t *part_of; /* of each lease of a renewal */
    size_t n_leases;
    pseg_queue_done done;
    void *ud;
    _Atomic size_t n_left;
    size_t n;
    parts_slot slots[PSEG_QUEUE_MAX_PARTS];
    pseg_queue_reply *from[PSEG_QUEUE_MAX_PARTS];
};

bool parts_is_good(const pseg_queue_reply *r);
void parts_out_of_memory(pseg_queue_reply *r);
/* Every part of q is to be asked then, by EACH_PART, with parts_answered and its slot; when the
 * last has answered, merge (NULL: nothing is to be made) has run, done is called and the rest is
 * freed. NULL: done has been told that there is no memory. */
parts_asked *parts_ask(const pseg_queue *q, parts_merge merge, bool is_lenient, size_t limit,
                       pseg_queue_done done, void *ud);
void parts_answered(void *slot, pseg_queue_reply *r);
/* For each part, with its handle and parts_slot. The last answer may come, and end g, within the
 * loop. */
#define EACH_PART(q, g, i) for (size_t i = 0, n_##i = (g) ? (q)->n_parts : 0; i < n_##i; i++)

/* ---- queue_parts_counts.c ---- */

void queue_parts_stats(pseg_queue *q, pseg_queue_done done, void *ud);
void queue_parts_uses(pseg_queue *q, pseg_queue_done done, void *ud);
void queue_parts_backlog(pseg_queue *q, const char *model, size_t limit, pseg_queue_done done,
                         void *ud);
void queue_parts_estimate(pseg_queue *q, const pseg_queue_estimate_args *a, pseg_queue_done done,
                          void *ud);

/* ---- queue_parts_claim.c ---- */

void queue_parts_claim(pseg_queue *q, const char *worker, const char *model, size_t max,
                       size_t held, int64_t near_ms, pseg_queue_done done, void *ud);

#endif
