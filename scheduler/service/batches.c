/* Batches as resources: CreateBatch, GetBatch, ListBatches, CancelBatch. Their streams are in
 * submit_stream.c and results.c. */
#include "scheduler/service/internal.h"
#include "scheduler/service/validate.h"

#include <stdio.h>
#include <string.h>

#define DEFAULT_TTL_MS (86400 * (int64_t)1000)

/* ---- views ---- */

static bool labels_view(Pseg__V1__Batch *v, pseg_arena *a, pseg_bytes packed)
{
    ProtobufCAllocator alloc = arena_allocator(a);
    Pseg__Internal__V1__JobSpec *s =
        pseg__internal__v1__job_spec__unpack(&alloc, packed.len, packed.data);

    v->labels = s ? pseg_arena_calloc(a, s->n_labels, sizeof *v->labels) : NULL;
    if (!v->labels)
        return false;
    for (; v->n_labels < s->n_labels; v->n_labels++) {
        Pseg__V1__Batch__LabelsEntry *l = pseg_arena_calloc(a, 1, sizeof *l);
        if (!l)
            return false;
        pseg__v1__batch__labels_entry__init(l);
        l->key = s->labels[v->n_labels]->key;
        l->value = s->labels[v->n_labels]->value;
        v->labels[v->n_labels] = l;
    }
    return true;
}

Pseg__V1__Batch *batch_view(pseg_arena *a, const pseg_queue_batch *b, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__V1__Batch *v = pseg_arena_calloc(a, 1, sizeof *v);
    Pseg__V1__BatchCounts *n = pseg_arena_calloc(a, 1, sizeof *n);
    char name[80];

    (void)rc;
    if (!v || !n)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for batch %s", b->id);
    pseg__v1__batch__init(v);
    pseg__v1__batch_counts__init(n);
    snprintf(name, sizeof name, "batches/%s", b->id);
    v->name = pseg_arena_strdup(a, name);
    v->create_time = timestamp_of(a, b->created_unix_us);
    v->expire_time = timestamp_of(a, b->expire_unix_us);
    v->estimated_finish_time = timestamp_of(a, b->finish_unix_us);
    v->next_seq = b->next_seq;
    v->sealed = b->sealed;
    v->cancel_requested = b->cancel_requested;
    v->counts = n;
    n->succeeded = b->ended[PSEG_JOB_SUCCEEDED];
    n->failed = b->ended[PSEG_JOB_FAILED];
    n->cancelled = b->ended[PSEG_JOB_CANCELLED];
    n->expired = b->ended[PSEG_JOB_EXPIRED];
    n->refused = b->refused;
    n->queued = b->next_seq - 1 - b->n_ended;
    if (!v->name || !labels_view(v, a, b->labels))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for batch %s", b->id);
    return v;
out:
    return NULL;
}

void fail_batch_not_found(pseg_rpc_call *c, const char *id)
{
    pseg_err e = PSEG_ERR_INIT;
    char name[80];

    snprintf(name, sizeof name, "batches/%s", id);
    pseg_err_set(&e, PSEG_R_BATCH_NOT_FOUND, 0, PSEG_HERE,
                 "no batch %s: it never was, it is another tenant's, or its time to live is over",
                 name);
    pseg_err_resource(&e, "pseg.v1.Batch", name);
    pseg_rpc_fail(c, &e);
}

static void reply_with_batch(pseg_rpc_call *c, pseg_queue_reply *r)
{
    pseg_err e = PSEG_ERR_INIT;

    if (fail_if_error(c, r))
        return;
    if (!r->n_batches) {
        fail_batch_not_found(c, state_of(c)->batch);
        return;
    }
    Pseg__V1__Batch *v = batch_view(pseg_rpc_arena(c), &r->batches[0], &e);
    if (v)
        pseg_rpc_reply(c, &v->base);
    else
        pseg_rpc_fail(c, &e);
}

/* ---- CreateBatch ---- */

/* Labels, checked as a job's are, in the form in which they are stored. */
static pseg_status pack_labels(pseg_bytes *out, pseg_arena *a,
                               const Pseg__V1__CreateBatchRequest *q, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__Internal__V1__JobSpec stored = PSEG__INTERNAL__V1__JOB_SPEC__INIT;
    Pseg__V1__JobSpec spec = PSEG__V1__JOB_SPEC__INIT;

    spec.labels = pseg_arena_calloc(a, q->n_labels, sizeof *spec.labels);
    Pseg__V1__JobSpec__LabelsEntry *entries = pseg_arena_calloc(a, q->n_labels, sizeof *entries);
    if (!spec.labels || !entries)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the batch");
    for (; spec.n_labels < q->n_labels; spec.n_labels++) {
        Pseg__V1__JobSpec__LabelsEntry *l = &entries[spec.n_labels];
        pseg__v1__job_spec__labels_entry__init(l);
        l->key = q->labels[spec.n_labels]->key;
        l->value = q->labels[spec.n_labels]->value;
        spec.labels[spec.n_labels] = l;
    }
    PSEG_TRY(pseg_check_labels(&spec, "", err));
    PSEG_TRY(labels_take(&stored, a, &spec, err));
    uint8_t *data = pseg_arena_alloc(a, pseg__internal__v1__job_spec__get_packed_size(&stored) + 1);
    if (!data)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the batch");
    *out = (pseg_bytes){data, pseg__internal__v1__job_spec__pack(&stored, data)};
out:
    return rc;
}

void create_batch(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__CreateBatchRequest *q = msg;
    pseg_status rc = PSEG_OK;
    pseg_err e = PSEG_ERR_INIT, *err = &e;
    char made[PSEG_JOB_ID_LEN + 1];
    const char *id = q->batch_id;
    pseg_bytes labels;

    PSEG_TRY(pseg_check_new_batch(q, err));
    PSEG_TRY(pack_labels(&labels, pseg_rpc_arena(c), q, err));
    if (!*id) {
        PSEG_TRY(pseg_job_new_id(made, err));
        id = made;
    }
    op *o = state_of(c) ? op_new(c, reply_with_batch) : NULL;
    if (o)
        pseg_queue_create_batch(service_of(c)->queue, pseg_rpc_tenant(c), id,
                                q->ttl ? q->ttl->seconds * 1000 + q->ttl->nanos / 1000000
                                       : DEFAULT_TTL_MS,
                                labels, op_done, o);
    return;
out:
    pseg_rpc_fail(c, &e);
}

/* ---- the others ---- */

/* The request to the queue about the batch of this name; NULL, with the call failed, if it is none.
 */
static op *about(pseg_rpc_call *c, const char *name)
{
    pseg_err e = PSEG_ERR_INIT;
    call_state *state = state_of(c);
    const char *id;

    if (!state) {
        fail_no_memory(c);
        return NULL;
    }
    if (pseg_check_batch_name(&id, name, "name", &e) != PSEG_OK) {
        pseg_rpc_fail(c, &e);
        return NULL;
    }
    state->batch = id;
    return op_new(c, reply_with_batch);
}

void get_batch(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__GetBatchRequest *q = msg;
    op *o = about(c, q->name);

    if (o)
        pseg_queue_get_batch(service_of(c)->queue, pseg_rpc_tenant(c), state_of(c)->batch, op_done,
                             o);
}

void cancel_batch(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__CancelBatchRequest *q = msg;
    op *o = about(c, q->name);

    if (o)
        pseg_queue_cancel_batch(service_of(c)->queue, pseg_rpc_tenant(c), state_of(c)->batch,
                                op_done, o);
}

static void batches_listed(pseg_rpc_call *c, pseg_queue_reply *r)
{
    pseg_arena *a = pseg_rpc_arena(c);
    Pseg__V1__ListBatchesResponse out = PSEG__V1__LIST_BATCHES_RESPONSE__INIT;
    pseg_err e = PSEG_ERR_INIT;

    if (fail_if_error(c, r))
        return;
    out.batches = pseg_arena_calloc(a, r->n_batches, sizeof *out.batches);
    if (!out.batches) {
        fail_no_memory(c);
        return;
    }
    for (; out.n_batches < r->n_batches; out.n_batches++) {
        out.batches[out.n_batches] = batch_view(a, &r->batches[out.n_batches], &e);
        if (!out.batches[out.n_batches]) {
            pseg_rpc_fail(c, &e);
            return;
        }
    }
    out.next_page_token = (char *)(uintptr_t)r->next_id;
    pseg_rpc_reply(c, &out.base);
}

void list_batches(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__ListBatchesRequest *q = msg;
    int32_t size = q->page_size ? q->page_size : PSEG_DEFAULT_PAGE_SIZE;
    pseg_err e = PSEG_ERR_INIT;

    if (pseg_check_batch_page(size, q->page_token, &e) != PSEG_OK) {
        pseg_rpc_fail(c, &e);
        return;
    }
    op *o = op_new(c, batches_listed);
    if (o)
        pseg_queue_list_batches(service_of(c)->queue, pseg_rpc_tenant(c), q->page_token,
                                (size_t)size, op_done, o);
}
