/* Between the parts of the in-memory queue. Private to this folder.
 *   queue_mem_base.c    copies into arenas and answers; finding
 *   queue_mem_lines.c   lines, and the transitions of a job
 *   queue_mem_images.c  images and their bounds
 *   queue_mem_submit.c  what is accepted, and what is a repeat
 *   queue_mem_read.c    reading and cancelling
 *   queue_mem_backlog.c what waits for a model's workers
 *   queue_mem_estimate.c when a job would be done
 *   queue_mem_events.c  the events: kept, and read
 *   queue_mem_work.c    what workers ask for
 *   queue_mem_near.c    which job a worker gets that keeps images
 *   queue_mem_bulk.c    batches
 *   queue_mem_sweep.c   what time does; quarantine; the end
 * They are lua/ in C, with lists in the place of keys. If you change one, change the other: the
 * cases of tests/support/queue_cases.c hold both to the same answers. Every function runs with the
 * store's mutex held. */
#ifndef PSEG_QUEUE_QUEUE_MEM_IMPL_H
#define PSEG_QUEUE_QUEUE_MEM_IMPL_H

#include "common/queue/queue_mem_store.h"

#define MAX_JOB_BYTES  ((size_t)1 << 30)
#define HISTORY_LENGTH 1024
#define DELAY_MAX_MS   300000

struct mem_job {
    mem_job *next;
    pseg_arena *arena;
    pseg_job j; /* strings in the arena */
    const char *fingerprint;
    mem_image *image;
    int64_t ttl_ms, fence;
    int64_t place; /* in line, if in_line */
    bool in_line;
    int64_t weight, charge_us, group;
    char *evidence;        /* pseg_free */
    int64_t due_us;        /* back into line then; 0: not delayed */
    int64_t lease_us;      /* RUNNING: until then */
    const char *by_worker; /* who ended its own lease last, and which */
    int64_t by_fence;
    char history[HISTORY_LENGTH];
    pseg_bytes *masks;
    size_t n_masks;
    mem_batch *batch; /* NULL: of none */
    int64_t seq;
    const char *custom_id;
    int64_t left_us; /* since when it is left to the worker that has its image; 0: it never was */
    char requeue_of[PSEG_JOB_ID_LEN + 1]; /* the case that it was; "": none */
};

struct mem_image {
    mem_image *next;
    char *name; /* "TENANT:SHA256" */
    uint8_t *data;
    size_t len;
    int64_t expire_us, uses;
};

struct mem_worker {
    mem_worker *next;
    pseg_queue_worker w;
    int64_t expire_us, seen_us;
};

struct mem_model {
    mem_model *next;
    char *name;
    int64_t seen_us; /* 0: asked for, but never served */
    double cost_us;  /* of a job; 0: not known */
    /* Means beside it: of the number of phrases, of its square, of its product with the cost. */
    double phrases, squares, products;
    double clock;
};

/* A tenant's virtual time in the line of a model. */
struct mem_share {
    mem_share *next;
    char *model, *tenant;
    double time;
    bool waits;
};

struct mem_case {
    mem_case *next;
    pseg_arena *arena;
    pseg_queue_case c;
    mem_image *image;
    pseg_bytes spec;
    int64_t ttl_ms, expire_us;
};

struct mem_event {
    mem_event *next;
    pseg_queue_event e; /* strings behind it, in the same piece of memory */
};

/* Per tenant, for the limit of its rate. */
struct mem_rate {
    mem_rate *next;
    char *tenant;
    double due_us;
};

typedef struct mem_end mem_end;

struct mem_batch {
    mem_batch *next;
    char *tenant, *id;
    uint8_t *labels;
    size_t n_labels;
    int64_t created_us, place, ttl_ms, next_seq;
    bool sealed, cancel;
    int64_t ended[PSEG_JOB_EXPIRED + 1], refused;
    mem_end *ends; /* in their order */
    size_t n_ends, n_room;
};

/* ---- queue_mem_base.c ---- */

int64_t mem_now_us(const mem_store *s);
void mem_no_memory(pseg_queue_reply *r);
pseg_bytes mem_bytes_in(pseg_arena *a, pseg_bytes b);
const char *mem_text_in(pseg_arena *a, const char *s);
void mem_job_in(pseg_arena *a, pseg_job *to, const pseg_job *j);
bool mem_reply_jobs(pseg_queue_reply *r, size_t n);
void mem_reply_job(pseg_queue_reply *r, const mem_job *job);
mem_job *mem_job_of(mem_store *s, const char *id);
mem_job *mem_job_of_tenant(mem_store *s, const char *tenant, const char *id);
mem_image *mem_image_of(mem_store *s, const char *name);
mem_model *mem_model_of(mem_store *s, const char *name, bool make);

/* ---- queue_mem_lines.c ---- */

mem_share *mem_share_of(mem_store *s, const char *model, const char *tenant, bool make);
bool mem_waits_any(const mem_store *s, const char *model, const char *tenant);
/* After a job has left a line: if it was the tenant's last, and if it was the model's last. */
void mem_left_line(mem_store *s, const char *model, const char *tenant);
void mem_enqueue(mem_store *s, mem_job *job);
/* What came to nothing, for the message of the job's end and for the case in quarantine. */
void mem_note(const mem_store *s, mem_job *job, const char *reason, const char *message);
void mem_say(mem_job *job, pseg_reason reason, const char *message);
void mem_finish(mem_store *s, mem_job *job, pseg_job_state state);
void mem_quarantine(mem_store *s, mem_job *job);
void mem_requeue(mem_store *s, mem_job *job, int64_t delay_ms);

/* ---- queue_mem_events.c ---- */

/* A copy of its own, for pseg_free; NULL: memory is short. */
mem_event *mem_event_new(const pseg_queue_event *e);
/* The job has come to the state it is in. */
void mem_tell(mem_store *s, const mem_job *job);
/* Keeps the `keep` newest. */
void mem_trim_events(mem_store *s, size_t keep);

/* ---- queue_mem_images.c ---- */

void mem_image_free(mem_store *s, mem_image *i);
void mem_purge_images(mem_store *s);
/* NULL: r->err is set. */
mem_image *mem_store_image(mem_store *s, const pseg_queue_options *o, const char *name,
                           pseg_bytes data, int64_t tenant_bytes, pseg_queue_reply *r);
void mem_extend(const mem_store *s, const pseg_queue_options *o, mem_image *i);
void mem_image_name(char out[192], const char *tenant, const char *sha256);
void mem_reply_blobs(pseg_queue_reply *r, size_t n);

/* ---- queue_mem_submit.c ---- */

void mem_job_free(mem_job *job);

/* ---- queue_mem_bulk.c ---- */

/* A job of a batch has ended. */
void mem_batch_end(const mem_store *s, const mem_job *job);
/* What is left of batches that are to be cancelled, and batches whose time is over. */
void mem_sweep_batches(mem_store *s);
void mem_free_batches(mem_store *s);

/* ---- queue_mem_estimate.c ---- */

/* A job of the model took so long. */
void mem_learn_cost(mem_model *m, double cost_us, double phrases);
#define FIRST_COST_US 10000 /* of a job, until one of its model has told */
#define HEAD_START_US ((int64_t)60 * 1000000)

/* ---- queue_mem_near.c ---- */

enum { WITHHELD_MS = 1000 };
enum { LOOK_AHEAD = 16, LOOK_SHARED = 8, LOOKS = 64 };
#define HOLDER_KEPT_MS ((int64_t)60 * 1000)

/* A claim under way. */
typedef struct mem_claimer {
    const char *worker, *model;
    double cost_us, clock;
    size_t held, most;
    int64_t lease_us;
    int64_t near_us, again_ms, looks; /* looks: jobs that may still be looked at */
    pseg_queue_reply *r;
} mem_claimer;

/* A job of a line, as the worker sees it. */
typedef struct mem_seen {
    mem_job *job;
    bool is_first; /* in its turn here */
    bool is_open;  /* for anybody */
    bool is_taken;
} mem_seen;

/* The beginning of a tenant's line. Zeroed at first, with room for all that a look may see. */
typedef struct mem_view {
    mem_seen *seen;
    size_t n, n_left; /* n_left: not taken yet */
    size_t n_passed;  /* before so many one behind was taken */
    bool is_passed;   /* none of them is for this worker now */
} mem_view;

/* The next job of the tenant. False: nothing more is to be given. */
bool mem_claim_near(mem_store *s, mem_claimer *c, mem_view *v, mem_share *x, bool alone);
/* Notes since when jobs are passed over, and in c->again_ms how long that lasts. */
void mem_pass_over(mem_store *s, mem_claimer *c, mem_view *v);
void mem_free_holders(mem_store *s);

/* ---- queue_mem_work.c ---- */

/* Takes the job off its line. False: it must wait until the worker's hands are empty. */
bool mem_claim_one(mem_store *s, mem_claimer *c, mem_job *job, mem_share *x);

void mem_worker_free(mem_worker *w);
/* After so long a silence a worker counts as gone. */
int64_t mem_worker_kept_us(const pseg_queue_options *o);
/* Cancelled or past its deadline. */
bool mem_is_over(mem_store *s, mem_job *job);

#endif
