/* All jobs as one batch: items a second into Redis, and results a second out of it. */
#include "common/base/clock.h"
#include "common/base/hash.h"
#include "common/job/job.h"
#include "pseg/v1/batch.pb-c.h"
#include "worker/apps/bench_service.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define METHOD(name) "/pseg.v1.BatchService/" name

typedef struct batch_load {
    const bench_load *l;
    char name[80];
    pseg_rpc_stream *submit, *results;
    pthread_mutex_t mu;
    pthread_cond_t moved;
    int64_t next_seq, window_end; /* guarded by mu, as all below */
    bool is_open, is_sealed, has_ended;
    int64_t sealed_us, n_results, n_succeeded;
    pseg_err read_err;
} batch_load;

/* ---- items ---- */

static void *take_answers(void *arg)
{
    batch_load *b = arg;
    ProtobufCMessage *m;

    while ((m = pseg_rpc_stream_recv(b->submit)) != NULL) {
        const Pseg__V1__SubmitJobsResponse *r = (const Pseg__V1__SubmitJobsResponse *)m;
        pthread_mutex_lock(&b->mu);
        b->next_seq = r->next_seq;
        b->window_end = r->window_end;
        b->is_open = true;
        b->is_sealed = b->is_sealed || r->sealed;
        b->sealed_us = pseg_clock_mono_us();
        pthread_cond_signal(&b->moved);
        pthread_mutex_unlock(&b->mu);
        pseg_rpc_message_free(m);
    }
    pthread_mutex_lock(&b->mu);
    b->has_ended = true;
    pthread_cond_signal(&b->moved);
    pthread_mutex_unlock(&b->mu);
    return NULL;
}

/* False: the stream has ended. */
static bool wait_for_window(batch_load *b, int64_t seq)
{
    pthread_mutex_lock(&b->mu);
    while (!b->has_ended && (!b->is_open || seq > b->window_end))
        pthread_cond_wait(&b->moved, &b->mu);
    bool goes = !b->has_ended;
    pthread_mutex_unlock(&b->mu);
    return goes;
}

static void send_items(batch_load *b)
{
    const bench_load *l = b->l;
    uint8_t digest[PSEG_SHA256_BYTES];
    char sha256[PSEG_SHA256_HEX + 1];
    Pseg__V1__SubmitJobsRequest q = PSEG__V1__SUBMIT_JOBS_REQUEST__INIT;
    Pseg__V1__SubmitSeal seal = PSEG__V1__SUBMIT_SEAL__INIT;
    Pseg__V1__BatchItem item = PSEG__V1__BATCH_ITEM__INIT;
    Pseg__V1__JobSpec spec = PSEG__V1__JOB_SPEC__INIT;
    Pseg__V1__Prompt prompt = PSEG__V1__PROMPT__INIT, *prompts[] = {&prompt};

    pseg_sha256_of(digest, l->image, l->image_len);
    pseg_hex(sha256, digest, sizeof digest);
    prompt.text = (char *)(uintptr_t)l->a->prompt;
    spec.image_case = PSEG__V1__JOB_SPEC__IMAGE_SHA256;
    spec.sha256 = sha256;
    spec.prompts = prompts;
    spec.n_prompts = 1;
    spec.model = (char *)(uintptr_t)l->a->model;
    item.job = &spec;
    q.part_case = PSEG__V1__SUBMIT_JOBS_REQUEST__PART_ITEM;
    q.item = &item;
    for (item.seq = 1; item.seq <= l->a->jobs; item.seq++)
        if (!wait_for_window(b, item.seq) || !pseg_rpc_stream_send(b->submit, &q.base))
            return;
    q.part_case = PSEG__V1__SUBMIT_JOBS_REQUEST__PART_SEAL;
    q.seal = &seal;
    (void)pseg_rpc_stream_send(b->submit, &q.base);
}

static pseg_status submit(batch_load *b, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__V1__SubmitJobsRequest q = PSEG__V1__SUBMIT_JOBS_REQUEST__INIT;
    Pseg__V1__SubmitHeader header = PSEG__V1__SUBMIT_HEADER__INIT;
    pthread_t reader;

    header.batch = b->name;
    q.part_case = PSEG__V1__SUBMIT_JOBS_REQUEST__PART_HEADER;
    q.header = &header;
    PSEG_TRY(pseg_rpc_open(&b->submit, b->l->channel, METHOD("SubmitJobs"),
                           &pseg__v1__submit_jobs_response__descriptor, b->l->a->timeout_ms, err));
    (void)pseg_rpc_stream_send(b->submit, &q.base);
    if (pthread_create(&reader, NULL, take_answers, b))
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "cannot start a thread");
    send_items(b);
    pseg_rpc_stream_half_close(b->submit);
    pthread_join(reader, NULL);
    rc = pseg_rpc_close(b->submit, NULL, err);
    b->submit = NULL;
    if (rc == PSEG_OK && !b->is_sealed)
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "the stream of items ended early");
out:
    if (b->submit) {
        pseg_rpc_stream_cancel(b->submit);
        (void)pseg_rpc_close(b->submit, NULL, NULL);
    }
    return rc;
}

/* ---- results ---- */

static void *take_results(void *arg)
{
    batch_load *b = arg;
    ProtobufCMessage *m;

    while ((m = pseg_rpc_stream_recv(b->results)) != NULL) {
        const Pseg__V1__StreamBatchResultsResponse *r =
            (const Pseg__V1__StreamBatchResultsResponse *)m;
        if (r->what_case == PSEG__V1__STREAM_BATCH_RESULTS_RESPONSE__WHAT_RESULT) {
            b->n_results++;
            b->n_succeeded += r->result->state == PSEG__V1__STATE__STATE_SUCCEEDED;
        }
        pseg_rpc_message_free(m);
    }
    return NULL;
}

static pseg_status make_batch(batch_load *b, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__V1__CreateBatchRequest q = PSEG__V1__CREATE_BATCH_REQUEST__INIT;
    Pseg__V1__Batch *made = NULL;

    PSEG_TRY(pseg_rpc_unary((ProtobufCMessage **)&made, b->l->channel, METHOD("CreateBatch"),
                            &q.base, &pseg__v1__batch__descriptor, b->l->a->timeout_ms, err));
    snprintf(b->name, sizeof b->name, "%s", made->name);
    pseg_rpc_message_free(&made->base);
out:
    return rc;
}

static void report(const batch_load *b, double submit_s, double all_s, json_t *out)
{
    double n = (double)b->l->a->jobs;

    json_object_set_new(out, "jobs", json_integer(b->l->a->jobs));
    json_object_set_new(out, "failed", json_integer(b->n_results - b->n_succeeded));
    json_object_set_new(out, "items_per_s", json_real(n / submit_s));
    json_object_set_new(out, "jobs_per_s", json_real(n / all_s));
    if (!b->l->a->json)
        printf("%lld items in one batch: %.0f items/s taken, %.0f results/s; %lld failed\n",
               (long long)b->l->a->jobs, n / submit_s, n / all_s,
               (long long)(b->n_results - b->n_succeeded));
}

pseg_status bench_service_batch(const bench_load *l, json_t *out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    batch_load b = {.l = l, .mu = PTHREAD_MUTEX_INITIALIZER};
    Pseg__V1__StreamBatchResultsRequest q = PSEG__V1__STREAM_BATCH_RESULTS_REQUEST__INIT;
    pthread_t reader;
    bool reads = false;

    pseg_cond_init(&b.moved);
    PSEG_TRY(make_batch(&b, err));
    q.name = b.name;
    PSEG_TRY(pseg_rpc_open(&b.results, l->channel, METHOD("StreamBatchResults"),
                           &pseg__v1__stream_batch_results_response__descriptor, l->a->timeout_ms,
                           err));
    (void)pseg_rpc_stream_send(b.results, &q.base);
    pseg_rpc_stream_half_close(b.results);
    reads = pthread_create(&reader, NULL, take_results, &b) == 0;
    if (!reads)
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "cannot start a thread");
    int64_t begin = pseg_clock_mono_us();
    PSEG_TRY(submit(&b, err));
    double submit_s = (double)(b.sealed_us - begin) / 1e6;
    pthread_join(reader, NULL);
    reads = false;
    rc = pseg_rpc_close(b.results, NULL, err);
    b.results = NULL;
    if (rc == PSEG_OK)
        report(&b, submit_s, (double)(pseg_clock_mono_us() - begin) / 1e6, out);
    if (rc == PSEG_OK && b.n_succeeded != l->a->jobs)
        PSEG_FAIL(PSEG_R_JOB_FAILED, 0, "%lld of %lld items did not succeed",
                  (long long)(l->a->jobs - b.n_succeeded), (long long)l->a->jobs);
out:
    if (b.results)
        pseg_rpc_stream_cancel(b.results);
    if (reads)
        pthread_join(reader, NULL);
    if (b.results)
        (void)pseg_rpc_close(b.results, NULL, NULL);
    return rc;
}
