/* FetchMasks, and the thread that turns stored logits into masks. */
#include "scheduler/service/internal.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/mask/mask.h"
#include "scheduler/service/validate.h"

#include <stdio.h>
#include <string.h>

#define MAX_MASK_BYTES ((size_t)1 << 31)
#define CHUNK_BYTES    ((size_t)1 << 20)

/* ---- encoding ---- */

static pseg_status encode_one(Pseg__V1__Mask *out, const encode_task *t, size_t i, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const Pseg__Internal__V1__PromptResult *r = t->result->results[t->indexes[i]];
    pseg_bytes blob = t->reply->blobs[i];
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

static void encoded(pseg_rpc_call *c, void *arg)
{
    encode_task *t = arg;

    if (!pseg_rpc_is_over(c))
        t->then(c, t);
    for (size_t i = 0; i < t->n && t->masks; i++)
        pseg_free(t->masks[i].data.data);
    pseg_queue_reply_free(t->reply);
    t->reply = NULL;
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
        for (size_t i = 0; i < t->n && t->err.code == PSEG_OK; i++)
            encode_one(&t->masks[i], t, i, &t->err);
        pseg_rpc_post(t->ticket, encoded, t);
        pthread_mutex_lock(&s->encode_mu);
    }
    pthread_mutex_unlock(&s->encode_mu);
    return NULL;
}

pseg_status encoder_start(pseg_service *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    pthread_mutex_init(&s->encode_mu, NULL);
    pseg_cond_init(&s->encode_cv);
    if (pthread_create(&s->encoder, NULL, encoder_main, s))
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "cannot start the thread that encodes masks");
    s->encoder_runs = true;
out:
    return rc;
}

void encoder_stop(pseg_service *s)
{
    if (!s->encoder_runs)
        return;
    pthread_mutex_lock(&s->encode_mu);
    s->stopping = true;
    pthread_cond_signal(&s->encode_cv);
    pthread_mutex_unlock(&s->encode_mu);
    pthread_join(s->encoder, NULL);
    pthread_cond_destroy(&s->encode_cv);
    pthread_mutex_destroy(&s->encode_mu);
}

static pseg_status prepare(encode_task *t, pseg_rpc_call *c, const Pseg__V1__MaskFormat *format,
                           pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_arena *a = pseg_rpc_arena(c);
    const pseg_job *j = &t->reply->jobs[0];
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

void encode_masks(pseg_rpc_call *c, pseg_queue_reply *r, const uint32_t *indexes, size_t n,
                  const Pseg__V1__MaskFormat *format, void (*then)(pseg_rpc_call *, encode_task *))
{
    pseg_service *s = service_of(c);
    encode_task *t = pseg_arena_calloc(pseg_rpc_arena(c), 1, sizeof *t);
    pseg_err e = PSEG_ERR_INIT;

    if (!t) {
        fail_no_memory(c);
        return;
    }
    t->reply = r;
    t->indexes = indexes;
    t->n = n;
    t->then = then;
    if (prepare(t, c, format, &e) != PSEG_OK) {
        pseg_rpc_fail(c, &e);
        return;
    }
    t->ticket = pseg_rpc_hold(c);
    if (!t->ticket) {
        fail_no_memory(c);
        return;
    }
    state_of(c)->kept = r;
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
        return;
    pseg_err_set(&t->err, PSEG_R_SERVER_BUSY, 0, PSEG_HERE,
                 "%lld requests for masks wait already; try again later",
                 (long long)s->opt.max_encode_queue);
    pseg_rpc_fail(c, &t->err);
    pseg_rpc_post(t->ticket, encoded, t);
}

/* ---- FetchMasks ---- */

/* Masks go out one by one, so that a large job never lies in memory whole. */
typedef struct fetch {
    const Pseg__V1__FetchMasksRequest *request;
    const char *id;
    uint32_t *indexes;
    size_t n, next;      /* prompts; the next to encode */
    Pseg__V1__Mask mask; /* being sent; data is ours */
    size_t sent;
} fetch;

static void fetch_next(pseg_rpc_call *c);

static void send_chunk(pseg_rpc_call *c, fetch *f)
{
    Pseg__V1__FetchMasksResponse out = PSEG__V1__FETCH_MASKS_RESPONSE__INIT;
    Pseg__V1__Mask part = f->mask;
    size_t left = f->mask.data.len - f->sent;

    part.data.data = f->mask.data.data + f->sent;
    part.data.len = left < CHUNK_BYTES ? left : CHUNK_BYTES;
    f->sent += part.data.len;
    out.mask = &part;
    out.last_chunk = f->sent == f->mask.data.len;
    pseg_rpc_send(c, &out.base);
}

static void drop_mask(fetch *f)
{
    pseg_free(f->mask.data.data);
    f->mask.data.data = NULL;
    f->mask.data.len = f->sent = 0;
}

void fetch_writable(pseg_rpc_call *c)
{
    fetch *f = state_of(c)->fetch;

    if (f->sent < f->mask.data.len) {
        send_chunk(c, f);
        return;
    }
    drop_mask(f);
    fetch_next(c);
}

static void one_encoded(pseg_rpc_call *c, encode_task *t)
{
    fetch *f = state_of(c)->fetch;

    if (t->err.code != PSEG_OK) {
        pseg_rpc_fail(c, &t->err);
        return;
    }
    f->mask = t->masks[0];
    t->masks[0].data.data = NULL; /* ours now */
    f->sent = 0;
    send_chunk(c, f);
}

static void refuse(pseg_rpc_call *c, const pseg_job *j)
{
    pseg_err e = PSEG_ERR_INIT;

    if (!j || !j->id) {
        fail_job_not_found(c);
        return;
    }
    if (j->state == PSEG_JOB_FAILED)
        pseg_err_set(&e, PSEG_R_JOB_FAILED, 0, PSEG_HERE, "job %s failed: %s", j->id, j->message);
    else if (j->state == PSEG_JOB_CANCELLED)
        pseg_err_set(&e, PSEG_R_JOB_CANCELLED, 0, PSEG_HERE, "job %s was cancelled", j->id);
    else if (j->state == PSEG_JOB_EXPIRED)
        pseg_err_set(&e, PSEG_R_JOB_EXPIRED, 0, PSEG_HERE, "job %s was not done by its deadline",
                     j->id);
    else
        pseg_err_set(&e, PSEG_R_JOB_NOT_DONE, 0, PSEG_HERE,
                     "job %s is %s; wait for it with WaitJob", j->id,
                     pseg_job_state_name(j->state));
    pseg_err_value(&e, "%s", pseg_job_state_name(j->state));
    pseg_err_limit(&e, "%s", pseg_job_state_name(PSEG_JOB_SUCCEEDED));
    pseg_rpc_fail(c, &e);
}

static bool is_ready(pseg_rpc_call *c, const pseg_queue_reply *r)
{
    if (fail_if_error(c, r))
        return false;
    if (r->n_jobs == 1 && r->jobs[0].id && r->jobs[0].state == PSEG_JOB_SUCCEEDED)
        return true;
    refuse(c, r->n_jobs ? &r->jobs[0] : NULL);
    return false;
}

static void one_fetched(pseg_rpc_call *c, pseg_queue_reply *r)
{
    fetch *f = state_of(c)->fetch;

    if (is_ready(c, r))
        encode_masks(c, r, &f->indexes[f->next++], 1, f->request->format, one_encoded);
}

static void fetch_next(pseg_rpc_call *c)
{
    fetch *f = state_of(c)->fetch;

    if (f->next == f->n) {
        pseg_rpc_finish(c);
        return;
    }
    op *o = op_new(c, one_fetched);
    if (o)
        pseg_queue_masks(service_of(c)->queue, pseg_rpc_tenant(c), f->id, &f->indexes[f->next], 1,
                         op_done, o);
}

/* The job, to know how many prompts it has. */
static void fetch_begun(pseg_rpc_call *c, pseg_queue_reply *r)
{
    fetch *f = state_of(c)->fetch;
    pseg_err e = PSEG_ERR_INIT;

    if (!is_ready(c, r))
        return;
    Pseg__V1__Job *j = job_view(pseg_rpc_arena(c), &r->jobs[0], &e);
    if (!j) {
        pseg_rpc_fail(c, &e);
        return;
    }
    f->n = f->request->n_prompt_indexes ? f->request->n_prompt_indexes : j->n_prompts;
    f->indexes = pseg_arena_calloc(pseg_rpc_arena(c), f->n, sizeof *f->indexes);
    if (!f->indexes) {
        fail_no_memory(c);
        return;
    }
    for (size_t i = 0; i < f->n; i++) {
        f->indexes[i] = f->request->n_prompt_indexes ? f->request->prompt_indexes[i] : (uint32_t)i;
        if (f->indexes[i] >= j->n_prompts) {
            pseg_err_set(&e, PSEG_R_MASK_NOT_FOUND, 0, PSEG_HERE,
                         "prompt_indexes[%zu] is %u; the job has %zu prompts", i,
                         (unsigned)f->indexes[i], j->n_prompts);
            pseg_err_field(&e, "prompt_indexes[%zu]", i);
            char mask[PSEG_JOB_ID_LEN + 24];
            snprintf(mask, sizeof mask, "jobs/%s/masks/%u", f->id, (unsigned)f->indexes[i]);
            pseg_err_resource(&e, "pseg.v1.Mask", mask);
            pseg_err_limit(&e, "0..%zu", j->n_prompts - 1);
            pseg_rpc_fail(c, &e);
            return;
        }
    }
    fetch_next(c);
}

void fetch_masks(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__FetchMasksRequest *q = msg;
    call_state *state = state_of(c);
    fetch *f = pseg_arena_calloc(pseg_rpc_arena(c), 1, sizeof *f);
    pseg_err e = PSEG_ERR_INIT;

    if (!state || !f) {
        fail_no_memory(c);
        return;
    }
    f->request = q;
    pseg__v1__mask__init(&f->mask);
    state->fetch = f;
    if (pseg_check_job_name(&f->id, q->name, &e) != PSEG_OK ||
        pseg_check_format(q->format, &e) != PSEG_OK) {
        pseg_rpc_fail(c, &e);
        return;
    }
    if (q->n_prompt_indexes > PSEG_MAX_PROMPTS) {
        pseg_err_set(&e, PSEG_R_INVALID_ARGUMENT, 0, PSEG_HERE,
                     "%zu prompt_indexes are over the limit of %d", q->n_prompt_indexes,
                     PSEG_MAX_PROMPTS);
        pseg_err_field(&e, "prompt_indexes");
        pseg_err_value(&e, "%zu", q->n_prompt_indexes);
        pseg_err_limit(&e, "%d", PSEG_MAX_PROMPTS);
        pseg_rpc_fail(c, &e);
        return;
    }
    memcpy(state->job_id, f->id, PSEG_JOB_ID_LEN);
    op *o = op_new(c, fetch_begun);
    if (o)
        pseg_queue_get(service_of(c)->queue, pseg_rpc_tenant(c), &f->id, 1, op_done, o);
}

void fetch_end(pseg_rpc_call *c)
{
    call_state *state = pseg_rpc_state(c);

    if (state && state->fetch)
        drop_mask(state->fetch);
}
