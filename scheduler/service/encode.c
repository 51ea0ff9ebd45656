/* Turning stored logits into masks: on threads for that, or, if it is little, on the loop. */
#include "scheduler/service/internal.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/mask/mask.h"

#include <stdatomic.h>
#include <string.h>

#define MAX_MASK_BYTES ((size_t)1 << 31)

static pseg_status encode_one(Pseg__V1__Mask *out, const encode_task *t, size_t i, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const Pseg__Internal__V1__PromptResult *r = t->result->results[t->indexes[i]];
    pseg_bytes blob = t->blobs[i];
    pseg_mask *m = NULL;
    pseg_buf b;

    pseg_buf_init(&b, MAX_MASK_BYTES);
    if (!blob.data || blob.len != (size_t)r->grid_width * r->grid_height * 2)
        PSEG_FAIL(PSEG_R_RESULT_EXPIRED, 0,
                  "the mask of prompt %u is no longer held; submit the job again",
                  (unsigned)t->indexes[i]);
    pseg_mask_grid g = {.logits = (const uint16_t *)(const void *)blob.data,
                        .grid_width = r->grid_width,
                        .grid_height = r->grid_height,
                        .width = t->result->image_width,
                        .height = t->result->image_height,
                        .x0 = r->x0,
                        .y0 = r->y0,
                        .x1 = r->x1,
                        .y1 = r->y1};
    pseg__v1__mask__init(out);
    out->prompt_index = t->indexes[i];
    out->width = g.width;
    out->height = g.height;
    out->encoding = (Pseg__V1__MaskEncoding)t->encoding;
    if (t->encoding == PSEG__V1__MASK_ENCODING__MASK_ENCODING_FLOAT16) {
        PSEG_TRY(pseg_mask_probabilities(&b, &g, err));
    } else {
        out->threshold = t->threshold;
        PSEG_TRY(pseg_mask_make(&m, &g, t->threshold, err));
        switch (t->encoding) {
        case MASK_ENCODING_RAW:
            PSEG_TRY(pseg_buf_append(&b, m->data, (size_t)m->width * m->height, err));
            break;
        case PSEG__V1__MASK_ENCODING__MASK_ENCODING_COCO_RLE:
            PSEG_TRY(pseg_mask_rle(&b, m, err));
            break;
        case PSEG__V1__MASK_ENCODING__MASK_ENCODING_PACKED_BITS:
            PSEG_TRY(pseg_mask_bits(&b, m, err));
            break;
        case PSEG__V1__MASK_ENCODING__MASK_ENCODING_POLYGON:
            PSEG_TRY(pseg_mask_polygon(&b, m, err));
            break;
        default:
            PSEG_TRY(pseg_mask_png(&b, m, err));
        }
    }
    out->data.data = pseg_buf_take(&b, &out->data.len);
out:
    pseg_buf_deinit(&b);
    pseg_mask_free(m);
    return rc;
}

/* All masks of a task, until they are more than the task may hold. One mask may be 400 MB (float16
 * of 200 megapixels) and a job has up to 64: this is what keeps memory bounded. */
static void encode_all(pseg_service *s, encode_task *t)
{
    const Pseg__Internal__V1__JobResult *r = t->result;
    size_t pixel_bytes = t->encoding == PSEG__V1__MASK_ENCODING__MASK_ENCODING_FLOAT16 ? 2
                         : t->encoding == MASK_ENCODING_RAW                            ? 1
                                                                                       : 0;
    size_t raw_bytes = (size_t)r->image_width * r->image_height * pixel_bytes, bytes = 0;

    for (size_t i = 0; i < t->n && t->err.code == PSEG_OK && !atomic_load(&t->is_unwanted); i++) {
        t->is_cut = t->max_bytes && bytes + raw_bytes > t->max_bytes;
        if (t->is_cut)
            return;
        /* Taken before it is there, for others encode beside. */
        if (atomic_fetch_add(&s->mask_bytes, (int64_t)raw_bytes) + (int64_t)raw_bytes >
            s->opt.max_mask_bytes) {
            atomic_fetch_sub(&s->mask_bytes, (int64_t)raw_bytes);
            pseg_err_set(&t->err, PSEG_R_SERVER_BUSY, 0, PSEG_HERE,
                         "masks that clients have not read yet fill their limit of %lld bytes; "
                         "try again later",
                         (long long)s->opt.max_mask_bytes);
            pseg_err_limit(&t->err, "%lld", (long long)s->opt.max_mask_bytes);
            return;
        }
        encode_one(&t->masks[i], t, i, &t->err);
        bytes += t->masks[i].data.len;
        atomic_fetch_add(&s->mask_bytes, (int64_t)t->masks[i].data.len - (int64_t)raw_bytes);
    }
    t->is_cut = t->max_bytes && bytes > t->max_bytes;
}

void mask_free(pseg_service *s, Pseg__V1__Mask *m)
{
    atomic_fetch_sub(&s->mask_bytes, (int64_t)m->data.len);
    pseg_free(m->data.data);
    m->data.data = NULL;
    m->data.len = 0;
}

void encode_free(pseg_service *s, encode_task *t)
{
    for (size_t i = 0; i < t->n && t->masks; i++)
        mask_free(s, &t->masks[i]);
}

static void encoded(pseg_rpc_call *c, void *arg)
{
    encode_task *t = arg;

    if (t->is_of_many) {
        t->then(c, t);
        return;
    }
    state_of(c)->task = NULL;
    if (!pseg_rpc_is_over(c))
        t->then(c, t);
    encode_free(service_of(c), t);
    pseg_queue_reply_free(t->reply);
    t->reply = NULL;
}

void encode_end(pseg_rpc_call *c)
{
    call_state *state = pseg_rpc_state(c);

    if (state && state->task)
        atomic_store(&state->task->is_unwanted, true);
}

static void *encoder_main(void *arg)
{
    pseg_service *s = arg;

    pthread_mutex_lock(&s->encode_mu);
    for (;;) {
        while (!s->encode_head && !s->stopping)
            pthread_cond_wait(&s->encode_cv, &s->encode_mu);
        encode_task *t = s->encode_head;
        if (!t)
            break;
        s->encode_head = t->next;
        if (!s->encode_head)
            s->encode_tail = NULL;
        s->n_encode--;
        pthread_mutex_unlock(&s->encode_mu);
        encode_all(s, t);
        pseg_rpc_post(t->ticket, encoded, t);
        pthread_mutex_lock(&s->encode_mu);
    }
    pthread_mutex_unlock(&s->encode_mu);
    return NULL;
}

pseg_status encoders_start(pseg_service *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_REQUIRE(s->opt.mask_threads > 0 && s->opt.mask_threads <= PSEG_MAX_MASK_THREADS,
                 "mask_threads");
    for (; s->n_encoders < (size_t)s->opt.mask_threads; s->n_encoders++)
        if (pthread_create(&s->encoders[s->n_encoders], NULL, encoder_main, s))
            PSEG_FAIL(PSEG_R_INTERNAL, 0, "cannot start the threads that encode masks");
out:
    return rc;
}

void encoders_stop(pseg_service *s)
{
    pthread_mutex_lock(&s->encode_mu);
    s->stopping = true;
    pthread_cond_broadcast(&s->encode_cv);
    pthread_mutex_unlock(&s->encode_mu);
    for (; s->n_encoders > 0; s->n_encoders--)
        pthread_join(s->encoders[s->n_encoders - 1], NULL);
}

static pseg_status prepare(encode_task *t, pseg_arena *a, const pseg_job *j,
                           const Pseg__V1__MaskFormat *format, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    ProtobufCAllocator alloc = arena_allocator(a);

    t->result = pseg__internal__v1__job_result__unpack(&alloc, j->result.len, j->result.data);
    Pseg__Internal__V1__JobSpec *spec =
        pseg__internal__v1__job_spec__unpack(&alloc, j->spec.len, j->spec.data);
    if (!t->result || !spec)
        PSEG_FAIL(PSEG_R_JOB_CORRUPT, 0, "the record of job %s does not parse", j->id);
    for (size_t i = 0; i < t->n; i++)
        if (t->indexes[i] >= t->result->n_results)
            PSEG_FAIL(PSEG_R_MASK_NOT_FOUND, 0, "prompt %u of job %s does not exist: it has %zu",
                      (unsigned)t->indexes[i], j->id, t->result->n_results);
    t->masks = pseg_arena_calloc(a, t->n, sizeof *t->masks);
    if (!t->masks)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu masks", t->n);
    t->encoding = format && format->encoding ? (int)format->encoding
                                             : PSEG__V1__MASK_ENCODING__MASK_ENCODING_PNG;
    t->threshold = format && format->threshold != 0 ? format->threshold : spec->mask_threshold;
out:
    return rc;
}

static void nothing(pseg_rpc_call *c, void *arg)
{
    (void)c;
    (void)arg;
}

/* To the end of what waits to be encoded. */
static pseg_status enqueue(pseg_service *s, encode_task *t, pseg_err *err)
{
    pthread_mutex_lock(&s->encode_mu);
    bool room = s->n_encode < s->opt.max_encode_queue && !s->stopping;
    if (room) {
        if (s->encode_tail)
            s->encode_tail->next = t;
        else
            s->encode_head = t;
        s->encode_tail = t;
        s->n_encode++;
        pthread_cond_signal(&s->encode_cv);
    }
    pthread_mutex_unlock(&s->encode_mu);
    if (room)
        return PSEG_OK;
    pseg_rpc_post(t->ticket, nothing, NULL);
    return pseg_err_set(err, PSEG_R_SERVER_BUSY, 0, PSEG_HERE,
                        "%lld requests for masks wait already; try again later",
                        (long long)s->opt.max_encode_queue);
}

/* A mask of so few pixels takes about as long as two changes of thread. */
#define PIXELS_HERE ((size_t)1 << 17)
/* But of the loop's time it takes one part in so many. */
#define SHARE_HERE 5

static bool may_encode_here(const pseg_service *s, const encode_task *t, int64_t now)
{
    const Pseg__Internal__V1__JobResult *r = t->result;

    return t->n * r->image_width * r->image_height <= PIXELS_HERE && now >= s->encode_here_us;
}

static pseg_status encode_somewhere(pseg_service *s, encode_task *t, pseg_err *err)
{
    int64_t begin = pseg_clock_mono_us();

    if (t->is_of_many || !may_encode_here(s, t, begin))
        return enqueue(s, t, err);
    encode_all(s, t);
    int64_t end = pseg_clock_mono_us();
    s->encode_here_us = end + (SHARE_HERE - 1) * (end - begin);
    pseg_rpc_post(t->ticket, encoded, t);
    return PSEG_OK;
}

static pseg_status begin(encode_task **out, pseg_rpc_call *c, pseg_arena *a,
                         const encode_order *order, pseg_queue_reply *reply, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    encode_task *t = pseg_arena_calloc(a, 1, sizeof *t);

    if (!t)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu masks", order->n);
    t->reply = reply;
    t->is_of_many = !reply;
    t->blobs = order->blobs;
    t->indexes = order->indexes;
    t->n = order->n;
    t->max_bytes = order->max_bytes;
    t->then = order->then;
    t->ud = order->ud;
    PSEG_TRY(prepare(t, a, order->job, order->format, err));
    t->ticket = pseg_rpc_hold(c);
    if (!t->ticket)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu masks", order->n);
    PSEG_TRY(encode_somewhere(service_of(c), t, err));
    *out = t; /* `encoded` comes by the loop, on which this runs */
out:
    return rc;
}

pseg_status encode_begin(encode_task **out, pseg_rpc_call *c, pseg_arena *a,
                         const encode_order *order, pseg_err *err)
{
    return begin(out, c, a, order, NULL, err);
}

void encode_masks(pseg_rpc_call *c, pseg_queue_reply *r, const uint32_t *indexes, size_t n,
                  const Pseg__V1__MaskFormat *format, size_t max_bytes,
                  void (*then)(pseg_rpc_call *, encode_task *))
{
    const encode_order order = {.job = &r->jobs[0],
                                .blobs = r->blobs,
                                .indexes = indexes,
                                .n = n,
                                .format = format,
                                .max_bytes = max_bytes,
                                .then = then};
    pseg_err e = PSEG_ERR_INIT;

    if (begin(&state_of(c)->task, c, pseg_rpc_arena(c), &order, r, &e) == PSEG_OK)
        state_of(c)->kept = r;
    else
        pseg_rpc_fail(c, &e);
}
