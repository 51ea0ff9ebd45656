/* Images read ahead of their sending, by a few threads into a ring of bounded size: disks and
 * uploads take their time side by side, and memory does not follow the manifest. */
#include "client/batch_run.h"

#include "client/batch/json.h"
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "common/base/hash.h"

#include <string.h>

#define N_READERS 4
#define N_SLOTS   128
#define AHEAD_BYTES                                                                              \
    ((size_t)32 << 20)                 /* of images in the ring; each reader may go past it once \
                                        */
#define IMAGE_BYTES ((size_t)64 << 20) /* the servers' own limit, by default */
/* Sending an image that is held costs more than asking, by about a third at 150 kB over loopback
 * and by far more over a network; asking for one that is not is for nothing. So a few are asked
 * for, and where most are held, all of the next; else many go by until a few are asked for again.
 */
#define CHECK_ITEMS   16 /* in one call */
#define UNASKED_ITEMS 1000

typedef enum slot_state { SLOT_EMPTY, SLOT_READING, SLOT_READY } slot_state;

typedef struct slot {
    slot_state state;
    batch_ready ready;
} slot;

struct batch_reader {
    batch_run *run;
    /* Under the run's mu. */
    slot slots[N_SLOTS]; /* item seq lies in slots[seq % N_SLOTS] */
    uint64_t next_read, next_take, allowed;
    uint64_t generation; /* of halts: what was begun before one is dropped */
    size_t bytes;
    uint64_t unasked; /* so many items go by before the server is asked what it holds */
    int n_busy;
    bool is_started, quit;
    pthread_t threads[N_READERS];
    int n_threads;
};

void batch_ready_free(batch_ready *k)
{
    json_decref(k->item);
    pseg_free(k->content);
    *k = (batch_ready){0};
}

/* ---- one item ---- */

static void set_bad(batch_ready *k, const char *reason, const char *message)
{
    pseg_free(k->content);
    k->content = NULL;
    k->len = 0;
    k->sha256[0] = '\0';
    batch_bad_id(k->custom_id, reason, message);
}

/* What is wrong with the file is the item's; a lack of memory is not. */
static pseg_status read_image(batch_ready *k, const batch_run *r, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_err error = PSEG_ERR_INIT;
    const char *image = batch_json_get(k->item, "image");
    char *path = image[0] == '/' ? pseg_strdup(image) : pseg_path_join(r->base, image);

    if (!path)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    rc = pseg_file_read(&k->content, &k->len, path, IMAGE_BYTES, &error);
    if (rc == PSEG_OK && k->len == 0)
        rc = pseg_err_set(&error, PSEG_R_IMAGE_MISSING, 0, PSEG_HERE, "%s is empty", path);
    if (rc == PSEG_ENOMEM) {
        if (err)
            *err = error;
        goto out;
    }
    if (rc != PSEG_OK) {
        bool is_large = error.reason == PSEG_R_REQUEST_TOO_LARGE;
        set_bad(k, pseg_reason_name(is_large ? PSEG_R_IMAGE_TOO_LARGE : error.reason), error.msg);
    }
    rc = PSEG_OK;
out:
    pseg_free(path);
    return rc;
}

static pseg_status load(batch_ready *k, const batch_run *r, uint64_t seq, bool asks, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(batch_plan_get(&k->item, r->plan, seq, err));
    const char *reason = batch_json_get(k->item, "reason");
    if (*reason) {
        set_bad(k, reason, batch_json_get(k->item, "message"));
        goto out;
    }
    batch_good_id(k->custom_id, k->item);
    PSEG_TRY(read_image(k, r, err));
    if (k->content && (k->len > CLI_INLINE_BYTES || asks)) {
        uint8_t digest[PSEG_SHA256_BYTES];
        pseg_sha256_of(digest, k->content, k->len);
        pseg_hex(k->sha256, digest, sizeof digest);
    }
out:
    return rc;
}

static void drop_content(batch_ready *k)
{
    pseg_free(k->content);
    k->content = NULL;
    k->len = 0;
}

/* The upload is answered at once if the image is held. What the server says against the image is
 * the item's; anything else that is not worth another attempt ends the run. */
static pseg_status upload(batch_ready *k, batch_run *r, pseg_err *err)
{
    pseg_status rc;
    batch_patience patience;

    batch_patience_begin(&patience, r);
    while ((rc = cli_upload(r->cli, k->sha256, k->content, k->len, false, err)) != PSEG_OK) {
        if (rc == PSEG_EINVAL || rc == PSEG_ECORRUPT) {
            set_bad(k, pseg_reason_name(err->reason), err->msg);
            return PSEG_OK;
        }
        PSEG_TRY(batch_patience_wait(&patience, -1, err));
    }
    batch_patience_reset(&patience);
    drop_content(k);
out:
    return rc;
}

/* What a reader does at once: items seq to seq + n - 1. */
typedef struct stretch {
    uint64_t seq;
    size_t n;
    bool asks;              /* the server, what it holds of these */
    size_t n_asked, n_held; /* what came of it */
    batch_ready list[CHECK_ITEMS];
} stretch;

/* Asks which of the images are held, and forgets the content of those. */
static pseg_status skip_held(stretch *t, batch_run *r, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__V1__BatchCheckImagesRequest q = PSEG__V1__BATCH_CHECK_IMAGES_REQUEST__INIT;
    Pseg__V1__BatchCheckImagesResponse *reply = NULL;
    batch_patience patience;
    char *digests[CHECK_ITEMS];
    batch_ready *of[CHECK_ITEMS];

    for (size_t i = 0; i < t->n; i++)
        if (t->list[i].content) {
            of[q.n_sha256] = &t->list[i];
            digests[q.n_sha256++] = t->list[i].sha256;
        }
    if (q.n_sha256 == 0)
        goto out;
    q.sha256 = digests;
    batch_patience_begin(&patience, r);
    while ((rc = cli_call((ProtobufCMessage **)&reply, r->cli, "BatchCheckImages", &q.base,
                          &pseg__v1__batch_check_images_response__descriptor, r->cli->timeout_ms,
                          err)) != PSEG_OK)
        PSEG_TRY(batch_patience_wait(&patience, -1, err));
    batch_patience_reset(&patience);
    t->n_asked = q.n_sha256;
    for (size_t i = 0; i < q.n_sha256; i++) {
        bool is_held = i < reply->n_images && reply->images[i]->size_bytes;
        t->n_held += is_held;
        if (is_held)
            drop_content(of[i]);
        else if (of[i]->len <= CLI_INLINE_BYTES)
            of[i]->sha256[0] = '\0'; /* goes with the item */
    }
out:
    if (reply)
        pseg_rpc_message_free(&reply->base);
    return rc;
}

static pseg_status prepare(stretch *t, batch_run *r, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (size_t i = 0; i < t->n; i++)
        PSEG_TRY(load(&t->list[i], r, t->seq + i, t->asks, err));
    if (t->asks)
        PSEG_TRY(skip_held(t, r, err));
    for (size_t i = 0; i < t->n; i++)
        if (t->list[i].content && t->list[i].len > CLI_INLINE_BYTES)
            PSEG_TRY(upload(&t->list[i], r, err));
out:
    return rc;
}

/* ---- the ring: the run's mu is held ---- */

static uint64_t last_to_read(const batch_reader *b)
{
    uint64_t last = b->next_take + N_SLOTS - 1;

    last = last < b->allowed ? last : b->allowed;
    return last < b->run->n_items ? last : b->run->n_items;
}

static bool may_read(const batch_reader *b)
{
    /* The item that is waited for is always let in. */
    return b->is_started && b->next_read <= last_to_read(b) &&
           (b->bytes < AHEAD_BYTES || b->next_read == b->next_take);
}

static void put(batch_reader *b, uint64_t seq, batch_ready *ready)
{
    slot *k = &b->slots[seq % N_SLOTS];

    k->ready = *ready;
    k->state = SLOT_READY;
    b->bytes += ready->len;
    *ready = (batch_ready){0};
}

static void take_stretch(stretch *t, batch_reader *b)
{
    uint64_t left = last_to_read(b) - b->next_read + 1;

    *t = (stretch){.seq = b->next_read, .n = 1, .asks = b->unasked == 0 || b->run->skip_held};
    if (t->asks)
        t->n = left < CHECK_ITEMS ? (size_t)left : CHECK_ITEMS;
    else
        b->unasked--;
    for (size_t i = 0; i < t->n; i++)
        b->slots[(t->seq + i) % N_SLOTS].state = SLOT_READING;
    b->next_read += t->n;
    b->n_busy++;
}

static void put_stretch(batch_reader *b, stretch *t, bool is_wanted)
{
    for (size_t i = 0; i < t->n; i++) {
        if (is_wanted)
            put(b, t->seq + i, &t->list[i]);
        else
            batch_ready_free(&t->list[i]);
    }
    if (t->n_asked)
        b->unasked = 2 * t->n_held >= t->n_asked ? 0 : UNASKED_ITEMS;
    b->n_busy--;
    /* What nobody waits for is not told: at full speed that is most of it. */
    if (!b->is_started || (b->next_take >= t->seq && b->next_take < t->seq + t->n))
        pthread_cond_broadcast(&b->run->cv);
}

static void *reader(void *ud)
{
    batch_reader *b = ud;
    batch_run *r = b->run;
    stretch t;

    pthread_mutex_lock(&r->mu);
    for (;;) {
        while (!b->quit && !r->stop && !may_read(b))
            pthread_cond_wait(&r->room, &r->mu);
        if (b->quit || r->stop)
            break;
        uint64_t generation = b->generation;
        take_stretch(&t, b);
        pthread_mutex_unlock(&r->mu);
        pseg_err err = PSEG_ERR_INIT;
        pseg_status rc = prepare(&t, r, &err);
        if (rc != PSEG_OK)
            batch_run_fail(r, rc, &err);
        pthread_mutex_lock(&r->mu);
        put_stretch(b, &t, rc == PSEG_OK && generation == b->generation);
    }
    pthread_mutex_unlock(&r->mu);
    return NULL;
}

static void clear(batch_reader *b)
{
    for (size_t i = 0; i < N_SLOTS; i++) {
        batch_ready_free(&b->slots[i].ready);
        b->slots[i].state = SLOT_EMPTY;
    }
    b->bytes = 0;
}

/* ---- for the sender ---- */

pseg_status batch_reader_new(batch_reader **out, batch_run *r, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    batch_reader *b = pseg_calloc(1, sizeof *b);

    *out = NULL;
    if (!b)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    b->run = r;
    b->next_read = b->next_take = 1;
    for (int i = 0; i < N_READERS; i++, b->n_threads++)
        if (pthread_create(&b->threads[i], NULL, reader, b))
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "cannot start a thread that reads images");
    *out = b;
    b = NULL;
out:
    batch_reader_free(b);
    return rc;
}

void batch_reader_free(batch_reader *b)
{
    if (!b)
        return;
    pthread_mutex_lock(&b->run->mu);
    b->quit = true;
    pthread_cond_broadcast(&b->run->room);
    pthread_mutex_unlock(&b->run->mu);
    for (int i = 0; i < b->n_threads; i++)
        pthread_join(b->threads[i], NULL);
    clear(b);
    pseg_free(b);
}

void batch_reader_halt(batch_reader *b)
{
    pthread_mutex_lock(&b->run->mu);
    b->generation++;
    b->is_started = false;
    b->allowed = 0;
    while (b->n_busy) /* their slots must be free again */
        pthread_cond_wait(&b->run->cv, &b->run->mu);
    clear(b);
    pthread_mutex_unlock(&b->run->mu);
}

void batch_reader_start(batch_reader *b, uint64_t seq)
{
    pthread_mutex_lock(&b->run->mu);
    b->next_read = b->next_take = seq;
    b->is_started = true;
    pthread_cond_broadcast(&b->run->room);
    pthread_mutex_unlock(&b->run->mu);
}

void batch_reader_allow(batch_reader *b, uint64_t last)
{
    pthread_mutex_lock(&b->run->mu);
    if (last > b->allowed) {
        b->allowed = last;
        if (b->next_read - b->next_take <= N_SLOTS / 2 && may_read(b))
            pthread_cond_broadcast(&b->run->room);
    }
    pthread_mutex_unlock(&b->run->mu);
}

const batch_ready *batch_reader_next(batch_reader *b, bool (*is_over)(void *ud), void *ud)
{
    batch_run *r = b->run;
    slot *k = &b->slots[b->next_take % N_SLOTS];

    pthread_mutex_lock(&r->mu);
    while (!r->stop && !is_over(ud) && k->state != SLOT_READY)
        pthread_cond_wait(&r->cv, &r->mu);
    bool is_ready = !r->stop && !is_over(ud) && k->state == SLOT_READY;
    pthread_mutex_unlock(&r->mu);
    return is_ready ? &k->ready : NULL;
}

void batch_reader_drop(batch_reader *b)
{
    batch_run *r = b->run;

    pthread_mutex_lock(&r->mu);
    slot *k = &b->slots[b->next_take++ % N_SLOTS];
    size_t len = k->ready.len;
    b->bytes -= len;
    batch_ready_free(&k->ready);
    k->state = SLOT_EMPTY;
    /* The readers begin again when half of the ring is to be filled, and not for every item. Where
     * bytes hold them back, that half may be much. */
    bool is_time = b->next_read - b->next_take <= N_SLOTS / 2 || b->bytes + len >= AHEAD_BYTES;
    if (is_time && may_read(b))
        pthread_cond_broadcast(&r->room);
    pthread_mutex_unlock(&r->mu);
}
