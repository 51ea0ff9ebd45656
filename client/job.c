/* A job from the client's side: sent, awaited, fetched. */
#include "client/client.h"
#include "common/base/alloc.h"
#include "common/base/buf.h"
#include "common/base/clock.h"
#include "common/base/hash.h"
#include "common/job/job.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define CHUNK_BYTES ((size_t)256 << 10)

static char *unconst(const char *s)
{
    return (char *)(uintptr_t)s;
}

/* Four times a second, once the upload has taken one. */
static void show_upload(int64_t *shown_ms, int64_t begin_ms, size_t done, size_t len)
{
    int64_t now = pseg_clock_mono_ms();

    if (now - begin_ms < 1000 || now - *shown_ms < 250 || !isatty(STDERR_FILENO))
        return;
    *shown_ms = now;
    fprintf(stderr, "\r\033[Kuploading, %.1f of %.1f MiB ", (double)done / (1 << 20),
            (double)len / (1 << 20));
}

pseg_status cli_upload(cli *c, const char *sha256, const uint8_t *image, size_t len, bool shows,
                       pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_rpc_stream *s = NULL;
    Pseg__V1__UploadImageRequest q = PSEG__V1__UPLOAD_IMAGE_REQUEST__INIT;
    Pseg__V1__UploadHeader h = PSEG__V1__UPLOAD_HEADER__INIT;
    int64_t begin = pseg_clock_mono_ms(), shown = 0;

    PSEG_TRY(pseg_rpc_open(&s, c->channel, "/pseg.v1.SegmentationService/UploadImage",
                           &pseg__v1__image__descriptor, c->timeout_ms, err));
    h.sha256 = unconst(sha256);
    h.size_bytes = len;
    q.part_case = PSEG__V1__UPLOAD_IMAGE_REQUEST__PART_HEADER;
    q.header = &h;
    bool more = pseg_rpc_stream_send(s, &q.base);
    q.part_case = PSEG__V1__UPLOAD_IMAGE_REQUEST__PART_CHUNK;
    for (size_t at = 0; more && at < len; at += q.chunk.len) {
        if (shows)
            show_upload(&shown, begin, at, len);
        q.chunk.data = (uint8_t *)(uintptr_t)image + at;
        q.chunk.len = len - at < CHUNK_BYTES ? len - at : CHUNK_BYTES;
        more = pseg_rpc_stream_send(s, &q.base); /* false: held already, or refused */
    }
    if (shown)
        fprintf(stderr, "\r\033[K");
    pseg_rpc_stream_half_close(s);
    pseg_rpc_message_free(pseg_rpc_stream_recv(s));
    rc = pseg_rpc_close(s, NULL, err);
out:
    return rc;
}

static pseg_status set_labels(Pseg__V1__JobSpec *spec, Pseg__V1__JobSpec__LabelsEntry *labels,
                              Pseg__V1__JobSpec__LabelsEntry **list, const job_args *a,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (size_t i = 0; i < a->labels.n; i++) {
        char *text = unconst(a->labels.items[i]), *eq = strchr(text, '=');
        if (!eq)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--label \"%s\" is not KEY=VALUE", text);
        *eq = '\0'; /* the string is our copy of the argument */
        pseg__v1__job_spec__labels_entry__init(&labels[i]);
        labels[i].key = text;
        labels[i].value = eq + 1;
        list[i] = &labels[i];
    }
    spec->labels = list;
    spec->n_labels = a->labels.n;
out:
    return rc;
}

pseg_status cli_create_job(Pseg__V1__Job **job, cli *c, const job_args *a, const uint8_t *image,
                           size_t len, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__V1__CreateJobRequest q = PSEG__V1__CREATE_JOB_REQUEST__INIT;
    Pseg__V1__JobSpec spec = PSEG__V1__JOB_SPEC__INIT;
    Google__Protobuf__Timestamp deadline = GOOGLE__PROTOBUF__TIMESTAMP__INIT;
    Google__Protobuf__Duration ttl = GOOGLE__PROTOBUF__DURATION__INIT;
    size_t n = a->prompts.n, m = a->labels.n;
    Pseg__V1__Prompt *prompts = pseg_calloc(n, sizeof *prompts),
                     **prompt_list = pseg_calloc(n, sizeof *prompt_list);
    Pseg__V1__JobSpec__LabelsEntry *labels = pseg_calloc(m, sizeof *labels),
                                   **label_list = pseg_calloc(m, sizeof *label_list);
    uint8_t digest[PSEG_SHA256_BYTES];
    char sha256[PSEG_SHA256_HEX + 1], id[PSEG_JOB_ID_LEN + 1];

    *job = NULL;
    if (!prompts || !prompt_list || !labels || !label_list)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu prompts", n);
    for (size_t i = 0; i < n; i++) {
        pseg__v1__prompt__init(&prompts[i]);
        prompts[i].text = unconst(a->prompts.items[i]);
        prompt_list[i] = &prompts[i];
    }
    spec.prompts = prompt_list;
    spec.n_prompts = n;
    PSEG_TRY(set_labels(&spec, labels, label_list, a, err));
    spec.model = unconst(a->model);
    spec.mask_threshold = (float)a->threshold;
    if (a->deadline_ms) {
        int64_t at = pseg_clock_unix_us() / 1000 + a->deadline_ms;
        deadline.seconds = at / 1000;
        deadline.nanos = (int32_t)(at % 1000) * 1000000;
        spec.deadline = &deadline;
    }
    ttl.seconds = a->ttl_ms / 1000;
    if (a->ttl_ms)
        spec.result_ttl = &ttl;
    if (len <= CLI_INLINE_BYTES) {
        spec.image_case = PSEG__V1__JOB_SPEC__IMAGE_CONTENT;
        spec.content.data = (uint8_t *)(uintptr_t)image;
        spec.content.len = len;
    } else {
        pseg_sha256_of(digest, image, len);
        pseg_hex(sha256, digest, sizeof digest);
        PSEG_TRY(cli_upload(c, sha256, image, len, true, err));
        spec.image_case = PSEG__V1__JOB_SPEC__IMAGE_SHA256;
        spec.sha256 = sha256;
    }
    /* Always an id, so that a retried call cannot make a second job. */
    PSEG_TRY(pseg_job_new_id(id, err));
    q.request_id = unconst(a->request_id ? a->request_id : id);
    q.job = &spec;
    PSEG_TRY(cli_call((ProtobufCMessage **)job, c, "CreateJob", &q.base, &pseg__v1__job__descriptor,
                      c->timeout_ms, err));
out:
    pseg_free(prompts);
    pseg_free(prompt_list);
    pseg_free(labels);
    pseg_free(label_list);
    return rc;
}

/* What an interrupt says before it ends the process. Written before the handler is set. */
static char farewell[160];

static void on_interrupt(int sig)
{
    ssize_t ignored = write(STDERR_FILENO, farewell, strlen(farewell));

    (void)ignored;
    signal(sig, SIG_DFL);
    raise(sig);
}

static bool is_terminal(const Pseg__V1__Job *j)
{
    return j->state >= PSEG__V1__STATE__STATE_SUCCEEDED;
}

/* One call of a second or so, that there is progress to show. */
static pseg_status wait_a_while(Pseg__V1__Job **job, cli *c, const Pseg__V1__WaitJobRequest *q,
                                int64_t spent_ms, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t left = c->timeout_ms - spent_ms, slice = left < 1200 ? left : 1200;

    if (left > 0)
        rc = cli_call((ProtobufCMessage **)job, c, "WaitJob", &q->base, &pseg__v1__job__descriptor,
                      slice, err);
    /* The server answers a little before a call's deadline, if there is the time for that. */
    if (left <= 0 || (rc != PSEG_OK && slice == left && err->reason == PSEG_R_DEADLINE_EXCEEDED))
        PSEG_FAIL(PSEG_R_DEADLINE_EXCEEDED, 0,
                  "%s is not done after %lld ms; `pseg wait %s` waits on", q->name,
                  (long long)c->timeout_ms, q->name);
out:
    return rc;
}

pseg_status cli_wait_job(Pseg__V1__Job **job, cli *c, const char *name, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__V1__WaitJobRequest q = PSEG__V1__WAIT_JOB_REQUEST__INIT;
    int64_t begin = pseg_clock_mono_ms(), shown = 0;
    Pseg__V1__Job *j = NULL;

    *job = NULL;
    q.name = unconst(name);
    snprintf(farewell, sizeof farewell,
             "\n%s goes on; `pseg wait %s` waits for it, `pseg cancel %s` ends it\n", name, name,
             name);
    if (signal(SIGINT, on_interrupt) == SIG_IGN)
        signal(SIGINT, SIG_IGN); /* a shell's background command is not to be interrupted */
    for (;;) {
        PSEG_TRY(wait_a_while(&j, c, &q, pseg_clock_mono_ms() - begin, err));
        if (is_terminal(j))
            break;
        shown = pseg_clock_mono_ms() - begin;
        if (shown > 1000 && isatty(STDERR_FILENO))
            fprintf(stderr, "\r%s %s, %lld s ", name,
                    j->state == PSEG__V1__STATE__STATE_RUNNING ? "runs" : "waits in line",
                    (long long)(shown / 1000));
        pseg_rpc_message_free(&j->base);
        j = NULL;
    }
    *job = j;
    j = NULL;
out:
    if (signal(SIGINT, SIG_DFL) == SIG_IGN)
        signal(SIGINT, SIG_IGN);
    if (shown > 1000 && isatty(STDERR_FILENO))
        fprintf(stderr, "\r\033[K");
    if (j)
        pseg_rpc_message_free(&j->base);
    return rc;
}

pseg_status cli_job_status(const Pseg__V1__Job *job, pseg_err *err)
{
    const char *why = job->error ? job->error->message : "";

    switch (job->state) {
    case PSEG__V1__STATE__STATE_SUCCEEDED:
        return PSEG_OK;
    case PSEG__V1__STATE__STATE_FAILED:
        return pseg_err_set(err, PSEG_R_JOB_FAILED, 0, PSEG_HERE, "%s failed: %s", job->name, why);
    case PSEG__V1__STATE__STATE_CANCELLED:
        return pseg_err_set(err, PSEG_R_JOB_CANCELLED, 0, PSEG_HERE, "%s was cancelled", job->name);
    case PSEG__V1__STATE__STATE_EXPIRED:
        return pseg_err_set(err, PSEG_R_JOB_EXPIRED, 0, PSEG_HERE,
                            "%s was not done by its deadline", job->name);
    default:
        return pseg_err_set(err, PSEG_R_JOB_NOT_DONE, 0, PSEG_HERE, "%s is not done yet",
                            job->name);
    }
}

pseg_status cli_fetch_mask(uint8_t **data, size_t *len, Pseg__V1__Mask *head, cli *c,
                           const char *name, uint32_t index, Pseg__V1__MaskEncoding encoding,
                           float threshold, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__V1__FetchMasksRequest q = PSEG__V1__FETCH_MASKS_REQUEST__INIT;
    Pseg__V1__MaskFormat format = PSEG__V1__MASK_FORMAT__INIT;
    Pseg__V1__FetchMasksResponse *part;
    pseg_rpc_stream *s = NULL;
    pseg_buf b;

    *data = NULL;
    pseg_buf_init(&b, (size_t)1 << 31);
    q.name = unconst(name);
    q.prompt_indexes = &index;
    q.n_prompt_indexes = 1;
    format.encoding = encoding;
    format.threshold = threshold;
    q.format = &format;
    PSEG_TRY(pseg_rpc_open(&s, c->channel, "/pseg.v1.SegmentationService/FetchMasks",
                           &pseg__v1__fetch_masks_response__descriptor, c->timeout_ms, err));
    pseg_rpc_stream_send(s, &q.base);
    pseg_rpc_stream_half_close(s);
    while (rc == PSEG_OK && (part = (Pseg__V1__FetchMasksResponse *)pseg_rpc_stream_recv(s))) {
        if (part->mask) {
            *head = *part->mask;
            head->data.data = NULL;
            rc = pseg_buf_append(&b, part->mask->data.data, part->mask->data.len, err);
        }
        pseg_rpc_message_free(&part->base);
    }
    if (rc != PSEG_OK)
        pseg_rpc_stream_cancel(s);
    pseg_status closed = pseg_rpc_close(s, NULL, rc == PSEG_OK ? err : NULL);
    rc = rc == PSEG_OK ? closed : rc;
    if (rc == PSEG_OK)
        *data = pseg_buf_take(&b, len);
out:
    pseg_buf_deinit(&b);
    return rc;
}
