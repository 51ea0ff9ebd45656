/* A closed loop of clients against a running scheduler: jobs per second and latency from submit to
 * result. With a worker of the empty model it measures everything but the model. */
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/file.h"
#include "common/job/job.h"
#include "common/rpc/rpc.h"
#include "common/rpc/rpc_client.h"
#include "pseg/v1/pseg.pb-c.h"
#include "worker/apps/bench.h"
#include "worker/apps/bench_service.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef bench_service_args args;

static const pseg_conf_option options[] = {
    {"server", PSEG_CONF_STRING, offsetof(args, server), "127.0.0.1:7433", .unit = "ADDR",
     .help = "host:port or unix:/path of the scheduler"},
    {"image", PSEG_CONF_STRING, offsetof(args, image), NULL, .unit = "FILE", .letter = 'i',
     .help = "sent with every job"},
    {"prompt", PSEG_CONF_STRING, offsetof(args, prompt), "a red circle", .unit = "TEXT",
     .letter = 'p'},
    {"model", PSEG_CONF_STRING, offsetof(args, model), "", .unit = "NAME",
     .help = "empty: the server's default"},
    {"jobs", PSEG_CONF_INT, offsetof(args, jobs), "1000", .min = 1, .max = 10000000,
     .help = "in all"},
    {"clients", PSEG_CONF_INT, offsetof(args, clients), "16", .min = 1, .max = 512,
     .help = "each with one job at a time"},
    {"batch", PSEG_CONF_BOOL, offsetof(args, batch), "false",
     .help = "all jobs as one batch, through two streams"},
    {"timeout_ms", PSEG_CONF_INT, offsetof(args, timeout_ms), "60s", .unit = "ms", .min = 1,
     .max = 86400000, .help = "for one job"},
    {"json", PSEG_CONF_BOOL, offsetof(args, json), "false", .help = "print JSON"},
    {0}};

typedef struct load {
    bench_load common;
    double *ms; /* of each job */
    _Atomic int64_t next;
    _Atomic int64_t failed;
    pthread_mutex_t mu;
    pseg_err err; /* the first */
} load;

static pseg_status one_job(load *l, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__V1__SegmentRequest q = PSEG__V1__SEGMENT_REQUEST__INIT;
    Pseg__V1__JobSpec spec = PSEG__V1__JOB_SPEC__INIT;
    Pseg__V1__MaskFormat format = PSEG__V1__MASK_FORMAT__INIT;
    Pseg__V1__Prompt prompt = PSEG__V1__PROMPT__INIT, *prompts[] = {&prompt};
    Pseg__V1__SegmentResponse *r = NULL;
    char id[PSEG_JOB_ID_LEN + 1];

    PSEG_TRY(pseg_job_new_id(id, err));
    prompt.text = (char *)(uintptr_t)l->common.a->prompt;
    spec.image_case = PSEG__V1__JOB_SPEC__IMAGE_CONTENT;
    spec.content.data = l->common.image;
    spec.content.len = l->common.image_len;
    spec.prompts = prompts;
    spec.n_prompts = 1;
    spec.model = (char *)(uintptr_t)l->common.a->model;
    format.encoding = PSEG__V1__MASK_ENCODING__MASK_ENCODING_COCO_RLE;
    q.request_id = id;
    q.job = &spec;
    q.format = &format;
    PSEG_TRY(pseg_rpc_unary((ProtobufCMessage **)&r, l->common.channel,
                            "/pseg.v1.SegmentationService/Segment", &q.base,
                            &pseg__v1__segment_response__descriptor, l->common.a->timeout_ms, err));
    if (r->job->state != PSEG__V1__STATE__STATE_SUCCEEDED)
        PSEG_FAIL(PSEG_R_JOB_FAILED, 0, "%s ended as %s: %s", r->job->name,
                  pseg_job_state_name((pseg_job_state)r->job->state),
                  r->job->error ? r->job->error->message : "");
out:
    if (r)
        pseg_rpc_message_free(&r->base);
    return rc;
}

static void *client_main(void *arg)
{
    load *l = arg;
    int64_t k;

    while ((k = atomic_fetch_add(&l->next, 1)) < l->common.a->jobs) {
        pseg_err e = PSEG_ERR_INIT;
        int64_t begin = pseg_clock_mono_us();
        pseg_status rc = one_job(l, &e);
        l->ms[k] = (double)(pseg_clock_mono_us() - begin) / 1e3;
        if (rc != PSEG_OK && atomic_fetch_add(&l->failed, 1) == 0) {
            pthread_mutex_lock(&l->mu);
            l->err = e;
            pthread_mutex_unlock(&l->mu);
        }
    }
    return NULL;
}

static void report(load *l, double seconds, json_t *out)
{
    size_t n = (size_t)l->common.a->jobs;
    double median = bench_median(l->ms, n); /* sorts */

    json_object_set_new(out, "jobs", json_integer(l->common.a->jobs));
    json_object_set_new(out, "clients", json_integer(l->common.a->clients));
    json_object_set_new(out, "failed", json_integer(atomic_load(&l->failed)));
    json_object_set_new(out, "jobs_per_s", json_real((double)n / seconds));
    json_object_set_new(out, "latency_ms",
                        json_pack("{s:f, s:f, s:f, s:f}", "p50", median, "p90",
                                  bench_percentile(l->ms, n, 90), "p99",
                                  bench_percentile(l->ms, n, 99), "max", l->ms[n - 1]));
    if (!l->common.a->json)
        printf("%lld jobs by %lld clients: %.1f jobs/s; latency p50 %.2f ms, p90 %.2f, p99 %.2f, "
               "max %.2f; %lld failed\n",
               (long long)l->common.a->jobs, (long long)l->common.a->clients, (double)n / seconds,
               median, bench_percentile(l->ms, n, 90), bench_percentile(l->ms, n, 99), l->ms[n - 1],
               (long long)atomic_load(&l->failed));
}

static pseg_status run(const args *a, json_t *out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_rpc_channel_options co = PSEG_RPC_CHANNEL_OPTIONS_DEFAULT;
    load l = {.common = {.a = a}, .mu = PTHREAD_MUTEX_INITIALIZER};
    pthread_t *threads = pseg_calloc((size_t)a->clients, sizeof *threads);
    size_t n = 0;
    int64_t begin = 0;

    l.ms = pseg_calloc((size_t)a->jobs, sizeof *l.ms);
    if (!threads || !l.ms)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %lld jobs", (long long)a->jobs);
    if (!a->image)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--image FILE is needed");
    PSEG_TRY(pseg_file_read(&l.common.image, &l.common.image_len, a->image, (size_t)3 << 20, err));
    co.target = a->server;
    PSEG_TRY(pseg_rpc_dial(&l.common.channel, &co, err));
    PSEG_TRY(one_job(&l, err)); /* connects, and shows mistakes before the load */
    if (a->batch) {
        PSEG_TRY(bench_service_batch(&l.common, out, err));
        goto out;
    }
    begin = pseg_clock_mono_us();
    for (; n < (size_t)a->clients; n++)
        if (pthread_create(&threads[n], NULL, client_main, &l))
            PSEG_FAIL(PSEG_R_INTERNAL, 0, "cannot start client %zu", n);
out:
    for (size_t i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
    if (rc == PSEG_OK && !a->batch) {
        report(&l, (double)(pseg_clock_mono_us() - begin) / 1e6, out);
        if (atomic_load(&l.failed)) {
            *err = l.err;
            rc = l.err.code;
        }
    }
    pseg_rpc_hangup(l.common.channel);
    pseg_free(l.common.image);
    pseg_free(l.ms);
    pseg_free(threads);
    return rc;
}

static pseg_status run_service(const void *given, json_t *out, pseg_err *err)
{
    pseg_rpc_init(NULL, NULL, NULL);
    pseg_status rc = run(given, out, err);
    pseg_rpc_shutdown();
    return rc;
}

int bench_service(int argc, char **argv)
{
    static const pseg_conf_about about = {
        .name = "pseg bench service",
        .usage = "--image FILE [--jobs N] [--clients N] [--batch] [--json]",
        .what = "Jobs per second and latency through a running scheduler. Each client sends a job, "
                "waits for\n"
                "its mask, and sends the next; or all are items of one batch.",
        .example = "pseg bench service --image scene.png --jobs 1000 --clients 16 --json"};
    static const bench_program p = {options, &about, run_service, "jobs"};
    args a = {0};

    return bench_main(&a, &a.json, &p, argc, argv);
}
