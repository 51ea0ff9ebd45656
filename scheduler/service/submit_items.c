/* Items of SubmitJobs: checked, and copied out of their messages. */
#include "common/base/alloc.h"
#include "scheduler/service/submit_stream.h"
#include "scheduler/service/validate.h"

#include <string.h>

void submit_item_free(item *it)
{
    if (!it)
        return;
    upload_give(&service_of(it->stream->call)->uploads, pseg_rpc_tenant(it->stream->call),
                (int64_t)it->bytes);
    it->stream->bytes -= it->bytes;
    pseg_free(it->refuse);
    pseg_free(it);
}

static const char *keep(char **at, const void *from, size_t n)
{
    char *to = *at;

    if (n)
        memcpy(to, from, n);
    to[n] = '\0';
    *at += n + 1;
    return to;
}

/* The name of the client's own as far as it may go. */
static size_t custom_id_len(const char *s)
{
    size_t n = strlen(s);

    if (n <= PSEG_MAX_CUSTOM_ID_BYTES)
        return n;
    n = PSEG_MAX_CUSTOM_ID_BYTES;
    while (n > 0 && ((unsigned char)s[n] & 0xC0) == 0x80)
        n--;
    return n;
}

static pseg_status make_job(made_job *out, submit_stream *s, pseg_arena *scratch,
                            const Pseg__V1__BatchItem *q, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (strlen(q->custom_id) > PSEG_MAX_CUSTOM_ID_BYTES) {
        rc = pseg_err_set(err, PSEG_R_INVALID_ARGUMENT, 0, PSEG_HERE,
                          "custom_id of %zu bytes is over the limit of %d", strlen(q->custom_id),
                          PSEG_MAX_CUSTOM_ID_BYTES);
        goto out;
    }
    PSEG_TRY(job_make(out, s->call, scratch, q->job, "job", "", err));
out:
    return rc;
}

item *submit_item_new(submit_stream *s, const Pseg__V1__BatchItem *q)
{
    pseg_err e = PSEG_ERR_INIT, *err = &e;
    pseg_arena *scratch = pseg_arena_new((size_t)1 << 20);
    size_t n_custom = custom_id_len(q->custom_id);
    made_job job = {0};
    item *it = NULL;

    if (!scratch ||
        (make_job(&job, s, scratch, q, err) != PSEG_OK && err->reason == PSEG_R_OUT_OF_MEMORY))
        goto out;
    if (err->code != PSEG_OK)
        job.args = (pseg_queue_submit_args){.model = ""};
    size_t n = n_custom + job.args.spec.len + job.args.content.len + strlen(job.args.model) + 4;
    pseg_err *refuse = err->code != PSEG_OK ? pseg_memdup(err, sizeof *err) : NULL;
    it = err->code != PSEG_OK && !refuse ? NULL : pseg_malloc(sizeof *it + n);
    if (it && !upload_count(&service_of(s->call)->uploads, pseg_rpc_tenant(s->call),
                            (int64_t)(sizeof *it + n))) {
        pseg_free(it);
        it = NULL;
    }
    if (!it) {
        pseg_free(refuse);
        goto out;
    }
    *it = (item){.stream = s,
                 .seq = q->seq,
                 .phrases = q->job ? (int64_t)q->job->n_prompts : 0,
                 .refuse = refuse,
                 .job = job};
    it->bytes = sizeof *it + n;
    char *at = it->data;
    pseg_queue_submit_args *a = &it->job.args;
    it->custom_id = keep(&at, q->custom_id, n_custom);
    a->model = keep(&at, a->model, strlen(a->model));
    a->spec.data = (const uint8_t *)keep(&at, a->spec.data, a->spec.len);
    a->content.data = (const uint8_t *)keep(&at, a->content.data, a->content.len);
    a->tenant = pseg_rpc_tenant(s->call);
    a->id = it->job.id;
    a->image_sha256 = it->job.sha256;
    a->request_id = a->fingerprint = "";
    a->limits = &s->limits;
    s->bytes += it->bytes;
out:
    pseg_arena_free(scratch);
    return it;
}
