/* From stored records to the messages of the API. */
#include "scheduler/service/internal.h"
#include "common/rpc/status.h"

#include <string.h>

static void *allocate(void *arena, size_t n)
{
    return pseg_arena_alloc(arena, n);
}

static void leave(void *arena, void *p)
{
    (void)arena;
    (void)p;
}

ProtobufCAllocator arena_allocator(pseg_arena *a)
{
    return (ProtobufCAllocator){allocate, leave, a};
}

/* A zeroed T of the arena, initialised; returns NULL from the function it stands in otherwise. */
#define NEW(var, a, init)                                 \
    do {                                                  \
        (var) = pseg_arena_calloc((a), 1, sizeof *(var)); \
        if (!(var))                                       \
            return NULL;                                  \
        init(var);                                        \
    } while (0)

static char *unconst(const char *s)
{
    return (char *)(uintptr_t)s;
}

Google__Protobuf__Timestamp *timestamp_of(pseg_arena *a, int64_t unix_us)
{
    Google__Protobuf__Timestamp *t;

    if (unix_us == 0)
        return NULL;
    NEW(t, a, google__protobuf__timestamp__init);
    t->seconds = unix_us / 1000000;
    t->nanos = (int32_t)(unix_us % 1000000) * 1000;
    return t;
}

static Pseg__V1__PromptResult *result_view(pseg_arena *a, const Pseg__Internal__V1__PromptResult *r,
                                           size_t index)
{
    Pseg__V1__PromptResult *v;

    NEW(v, a, pseg__v1__prompt_result__init);
    v->prompt_index = (uint32_t)index;
    v->predicted_iou = r->predicted_iou;
    v->area_px = r->area_px;
    v->truncated = r->truncated;
    if (r->box_width) {
        NEW(v->box, a, pseg__v1__bounding_box__init);
        v->box->x = r->box_x;
        v->box->y = r->box_y;
        v->box->width = r->box_width;
        v->box->height = r->box_height;
    }
    return v;
}

static Pseg__V1__StageTime *stage_view(pseg_arena *a, const Pseg__Internal__V1__Stage *s)
{
    Pseg__V1__StageTime *v;

    NEW(v, a, pseg__v1__stage_time__init);
    NEW(v->duration, a, google__protobuf__duration__init);
    v->stage = s->name;
    v->duration->seconds = (int64_t)(s->duration_us / 1000000);
    v->duration->nanos = (int32_t)(s->duration_us % 1000000) * 1000;
    return v;
}

static Pseg__V1__Receipt *receipt_view(pseg_arena *a, const Pseg__Internal__V1__JobResult *r,
                                       const char *scheduler_version)
{
    Pseg__V1__Receipt *v;

    NEW(v, a, pseg__v1__receipt__init);
    v->model = r->model;
    v->model_digest = r->model_digest;
    v->kernel_digest = r->kernel_digest;
    v->device = r->device;
    v->driver = r->driver;
    v->precision = r->precision;
    v->worker = r->worker;
    v->worker_version = r->worker_version;
    v->scheduler_version = unconst(scheduler_version);
    return v;
}

static bool view_result(Pseg__V1__Job *v, pseg_arena *a, const pseg_job *j,
                        const char *scheduler_version)
{
    ProtobufCAllocator alloc = arena_allocator(a);
    Pseg__Internal__V1__JobResult *r =
        pseg__internal__v1__job_result__unpack(&alloc, j->result.len, j->result.data);

    if (!r)
        return false;
    v->image_width = r->image_width;
    v->image_height = r->image_height;
    v->results = pseg_arena_calloc(a, r->n_results, sizeof *v->results);
    v->stages = pseg_arena_calloc(a, r->n_stages, sizeof *v->stages);
    v->receipt = receipt_view(a, r, scheduler_version);
    if (!v->results || !v->stages || !v->receipt)
        return false;
    for (; v->n_results < r->n_results; v->n_results++)
        if (!(v->results[v->n_results] = result_view(a, r->results[v->n_results], v->n_results)))
            return false;
    for (; v->n_stages < r->n_stages; v->n_stages++)
        if (!(v->stages[v->n_stages] = stage_view(a, r->stages[v->n_stages])))
            return false;
    return true;
}

static bool view_spec(Pseg__V1__Job *v, pseg_arena *a, const Pseg__Internal__V1__JobSpec *s)
{
    v->image_sha256 = s->image_sha256;
    v->mask_threshold = s->mask_threshold;
    v->prompts = pseg_arena_calloc(a, s->n_prompts, sizeof *v->prompts);
    v->labels = pseg_arena_calloc(a, s->n_labels, sizeof *v->labels);
    if (!v->prompts || !v->labels)
        return false;
    for (; v->n_prompts < s->n_prompts; v->n_prompts++) {
        Pseg__V1__Prompt *p = pseg_arena_calloc(a, 1, sizeof *p);
        if (!p)
            return false;
        pseg__v1__prompt__init(p);
        p->text = s->prompts[v->n_prompts];
        v->prompts[v->n_prompts] = p;
    }
    for (; v->n_labels < s->n_labels; v->n_labels++) {
        Pseg__V1__Job__LabelsEntry *l = pseg_arena_calloc(a, 1, sizeof *l);
        if (!l)
            return false;
        pseg__v1__job__labels_entry__init(l);
        l->key = s->labels[v->n_labels]->key;
        l->value = s->labels[v->n_labels]->value;
        v->labels[v->n_labels] = l;
    }
    return true;
}

static bool view_times(Pseg__V1__Job *v, pseg_arena *a, const pseg_job *j)
{
    const struct {
        Google__Protobuf__Timestamp **to;
        int64_t at;
    } times[] = {{&v->create_time, j->created_unix_us},
                 {&v->start_time, j->started_unix_us},
                 {&v->finish_time, j->finished_unix_us},
                 {&v->deadline, j->deadline_unix_us},
                 {&v->expire_time, j->expire_unix_us}};

    for (size_t i = 0; i < sizeof times / sizeof *times; i++)
        if (times[i].at && !(*times[i].to = timestamp_of(a, times[i].at)))
            return false;
    return true;
}

Pseg__V1__Job *job_view(pseg_arena *a, const pseg_job *j, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    ProtobufCAllocator alloc = arena_allocator(a);
    Pseg__V1__Job *v = pseg_arena_calloc(a, 1, sizeof *v);

    (void)rc;
    if (!v)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for job %s", j->id);
    pseg__v1__job__init(v);
    char *name = pseg_arena_alloc(a, PSEG_JOB_ID_LEN + 6);
    Pseg__Internal__V1__JobSpec *s =
        pseg__internal__v1__job_spec__unpack(&alloc, j->spec.len, j->spec.data);
    if (!name || !s || !view_spec(v, a, s) || !view_times(v, a, j))
        PSEG_FAIL(PSEG_R_JOB_CORRUPT, 0, "the record of job %s does not parse", j->id);
    memcpy(name, "jobs/", 5);
    memcpy(name + 5, j->id, PSEG_JOB_ID_LEN + 1);
    v->name = name;
    v->request_id = pseg_arena_strndup(a, j->request_id, strlen(j->request_id));
    v->state = (Pseg__V1__State)j->state;
    v->model = pseg_arena_strndup(a, j->model, strlen(j->model));
    if (!v->request_id || !v->model)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for job %s", j->id);
    v->attempts = (uint32_t)j->attempts;
    v->cancel_requested = j->cancel_requested;
    if (j->state == PSEG_JOB_SUCCEEDED && !view_result(v, a, j, s->scheduler_version))
        PSEG_FAIL(PSEG_R_JOB_CORRUPT, 0, "the result of job %s does not parse", j->id);
    if (j->reason != PSEG_R_NONE && j->state != PSEG_JOB_SUCCEEDED) {
        pseg_err e = PSEG_ERR_INIT;
        pseg_err_set(&e, j->reason, 0, PSEG_HERE, "%s", j->message);
        v->error = pseg_rpc_status_of(a, &e, -1);
    }
    return v;
out:
    return NULL;
}

/* The two enumerations are cast into each other. */
_Static_assert((int)PSEG_JOB_QUEUED == PSEG__V1__STATE__STATE_QUEUED &&
                   (int)PSEG_JOB_RUNNING == PSEG__V1__STATE__STATE_RUNNING &&
                   (int)PSEG_JOB_SUCCEEDED == PSEG__V1__STATE__STATE_SUCCEEDED &&
                   (int)PSEG_JOB_FAILED == PSEG__V1__STATE__STATE_FAILED &&
                   (int)PSEG_JOB_CANCELLED == PSEG__V1__STATE__STATE_CANCELLED &&
                   (int)PSEG_JOB_EXPIRED == PSEG__V1__STATE__STATE_EXPIRED,
               "states of the API and of the queue");

_Static_assert((int)PSEG_DURABILITY_MEMORY + 1 == PSEG__V1__DURABILITY__DURABILITY_MEMORY &&
                   (int)PSEG_DURABILITY_REPLICATED + 1 ==
                       PSEG__V1__DURABILITY__DURABILITY_REPLICATED,
               "durabilities of the API and of the queue");

void reply_with_job(pseg_rpc_call *c, pseg_queue_reply *r)
{
    pseg_err e = PSEG_ERR_INIT;

    if (fail_if_error(c, r))
        return;
    if (r->n_jobs == 0 || !r->jobs[0].id) {
        fail_job_not_found(c);
        return;
    }
    Pseg__V1__Job *v = job_view(pseg_rpc_arena(c), &r->jobs[0], &e);
    if (v)
        v->durability = (Pseg__V1__Durability)(service_of(c)->opt.durability + 1);
    if (v)
        pseg_rpc_reply(c, &v->base);
    else
        pseg_rpc_fail(c, &e);
}
