#include "worker/apps/load.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/hash.h"
#include "common/job/job.h"
#include "common/rpc/rpc_client.h"
#include "pseg/v1/pseg.pb-c.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

struct pseg_load {
    const pseg_load_options *o;
    char digest[PSEG_SHA256_HEX + 1]; /* of the image, if it is named by it from now on; else "" */
    pseg_rpc_channel *channel;
    pthread_t *threads;
    size_t n_threads;
    pthread_mutex_t mu; /* guards all below */
    pthread_cond_t cv;  /* something has ended, or is to end */
    int64_t n_begun, n_ended, n_jobs;
    bool is_stopping;
    int64_t due_us; /* when the next job of an open loop is to begin */
    double due_rest;
    uint64_t random;
    pseg_latency *window;
    int64_t failed, late, window_us;
    pseg_err first;
};

/* ---- one job ---- */

/* The image, with the job's id behind its end: decoders stop before it. */
static uint8_t *image_of(const pseg_load_options *o, const char *id, size_t *len)
{
    uint8_t *own = pseg_malloc(o->image_len + PSEG_JOB_ID_LEN);

    if (own) {
        memcpy(own, o->image, o->image_len);
        memcpy(own + o->image_len, id, PSEG_JOB_ID_LEN);
        *len = o->image_len + PSEG_JOB_ID_LEN;
    }
    return own;
}

static pseg_status one_job(const pseg_load *l, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_load_options *o = l->o;
    Pseg__V1__SegmentRequest q = PSEG__V1__SEGMENT_REQUEST__INIT;
    Pseg__V1__JobSpec spec = PSEG__V1__JOB_SPEC__INIT;
    Pseg__V1__MaskFormat format = PSEG__V1__MASK_FORMAT__INIT;
    Pseg__V1__Prompt prompt = PSEG__V1__PROMPT__INIT, *prompts[] = {&prompt};
    Pseg__V1__SegmentResponse *r = NULL;
    char id[PSEG_JOB_ID_LEN + 1];
    uint8_t *own = NULL;

    PSEG_TRY(pseg_job_new_id(id, err));
    prompt.text = (char *)(uintptr_t)o->prompt;
    spec.image_case = PSEG__V1__JOB_SPEC__IMAGE_CONTENT;
    spec.content.data = (uint8_t *)(uintptr_t)o->image;
    spec.content.len = o->image_len;
    if (o->is_distinct) {
        own = image_of(o, id, &spec.content.len);
        if (!own)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an image");
        spec.content.data = own;
    }
    if (*l->digest) {
        spec.image_case = PSEG__V1__JOB_SPEC__IMAGE_SHA256;
        spec.sha256 = (char *)(uintptr_t)l->digest;
    }
    spec.prompts = prompts;
    spec.n_prompts = 1;
    spec.model = (char *)(uintptr_t)o->model;
    format.encoding = PSEG__V1__MASK_ENCODING__MASK_ENCODING_COCO_RLE;
    q.request_id = id;
    q.job = &spec;
    q.format = &format;
    PSEG_TRY(pseg_rpc_unary((ProtobufCMessage **)&r, l->channel,
                            "/pseg.v1.SegmentationService/Segment", &q.base,
                            &pseg__v1__segment_response__descriptor, o->timeout_ms, err));
    if (r->job->state != PSEG__V1__STATE__STATE_SUCCEEDED)
        PSEG_FAIL(PSEG_R_JOB_FAILED, 0, "%s ended as %s: %s", r->job->name,
                  pseg_job_state_name((pseg_job_state)r->job->state),
                  r->job->error ? r->job->error->message : "");
out:
    pseg_free(own);
    if (r)
        pseg_rpc_message_free(&r->base);
    return rc;
}

/* ---- when the next one begins ---- */

/* In (0, 1). splitmix64 (S. Vigna). */
static double draw(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return ((double)(z >> 11) + 0.5) / 9007199254740992.0;
}

/* With the mutex held. The moment at which the job is due, moving on to the next one's. */
static int64_t take_due(pseg_load *l)
{
    int64_t due = l->due_us;
    double gap = l->o->is_even ? 1 : -log(draw(&l->random));

    l->due_rest += gap * 1e6 / l->o->rate;
    l->due_us += (int64_t)l->due_rest;
    l->due_rest -= (double)(int64_t)l->due_rest;
    return due;
}

/* With the mutex held. Until the next job of this client is due; *due: from when it counts. False:
 * there is none. */
static bool await_next(pseg_load *l, int64_t *due)
{
    if (l->is_stopping || (l->n_jobs && l->n_begun >= l->n_jobs))
        return false;
    l->n_begun++;
    if (l->o->rate <= 0) {
        *due = pseg_clock_mono_us();
        return true;
    }
    *due = take_due(l);
    while (!l->is_stopping && pseg_clock_mono_us() < *due)
        pseg_cond_wait_until_us(&l->cv, &l->mu, *due);
    if (l->is_stopping) {
        l->n_begun--;
        return false;
    }
    l->late += pseg_clock_mono_us() - *due > 1000;
    return true;
}

static void *client_main(void *arg)
{
    pseg_load *l = arg;
    int64_t due;

    pthread_mutex_lock(&l->mu);
    while (await_next(l, &due)) {
        pthread_mutex_unlock(&l->mu);
        pseg_err e = PSEG_ERR_INIT;
        pseg_status rc = one_job(l, &e);
        int64_t took = pseg_clock_mono_us() - due;
        pthread_mutex_lock(&l->mu);
        pseg_latency_add(l->window, took);
        if (rc != PSEG_OK && l->first.code == PSEG_OK)
            l->first = e;
        l->failed += rc != PSEG_OK;
        if (++l->n_ended == l->n_jobs)
            pthread_cond_broadcast(&l->cv);
    }
    pthread_mutex_unlock(&l->mu);
    return NULL;
}

/* ---- open, windows, end ---- */

pseg_status pseg_load_open(pseg_load **out, const pseg_load_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_rpc_channel_options co = PSEG_RPC_CHANNEL_OPTIONS_DEFAULT;
    pseg_load *l = pseg_calloc(1, sizeof *l);

    *out = NULL;
    if (!l)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the load");
    pthread_mutex_init(&l->mu, NULL);
    pseg_cond_init(&l->cv);
    l->o = o;
    l->random = (uint64_t)o->seed;
    l->threads = pseg_calloc((size_t)o->clients, sizeof *l->threads);
    if (!l->threads)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %lld clients", (long long)o->clients);
    PSEG_TRY(pseg_latency_new(&l->window, err));
    co.target = o->server;
    PSEG_TRY(pseg_rpc_dial(&l->channel, &co, err));
    PSEG_TRY(one_job(l, err)); /* connects, and shows mistakes before the load */
    if (o->by_digest) {
        uint8_t digest[PSEG_SHA256_BYTES];
        pseg_sha256_of(digest, o->image, o->image_len);
        pseg_hex(l->digest, digest, sizeof digest);
    }
    *out = l;
    l = NULL;
out:
    pseg_load_close(l);
    return rc;
}

pseg_status pseg_load_start(pseg_load *l, int64_t jobs, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    l->n_jobs = jobs;
    l->due_us = l->window_us = pseg_clock_mono_us();
    for (; l->n_threads < (size_t)l->o->clients; l->n_threads++)
        if (pthread_create(&l->threads[l->n_threads], NULL, client_main, l))
            PSEG_FAIL(PSEG_R_INTERNAL, 0, "cannot start client %zu", l->n_threads + 1);
out:
    return rc;
}

bool pseg_load_take(pseg_load *l, double seconds, pseg_latency *into, pseg_load_window *w)
{
    pthread_mutex_lock(&l->mu);
    int64_t until = l->window_us + (int64_t)(seconds * 1e6);
    while ((!l->n_jobs || l->n_ended < l->n_jobs) && pseg_clock_mono_us() < until)
        pseg_cond_wait_until_us(&l->cv, &l->mu, until);
    int64_t now = pseg_clock_mono_us();
    *w = (pseg_load_window){(double)(now - l->window_us) / 1e6, l->failed, l->late};
    pseg_latency_clear(into);
    pseg_latency_merge(into, l->window);
    pseg_latency_clear(l->window);
    l->failed = l->late = 0;
    l->window_us = now;
    bool goes_on = !l->n_jobs || l->n_ended < l->n_jobs;
    pthread_mutex_unlock(&l->mu);
    return goes_on;
}

pseg_status pseg_load_stop(pseg_load *l, pseg_err *err)
{
    pthread_mutex_lock(&l->mu);
    l->is_stopping = true;
    pthread_cond_broadcast(&l->cv);
    pthread_mutex_unlock(&l->mu);
    while (l->n_threads)
        pthread_join(l->threads[--l->n_threads], NULL);
    if (l->first.code != PSEG_OK && err)
        *err = l->first;
    return l->first.code;
}

void pseg_load_close(pseg_load *l)
{
    if (!l)
        return;
    pseg_rpc_hangup(l->channel);
    pseg_latency_free(l->window);
    pthread_cond_destroy(&l->cv);
    pthread_mutex_destroy(&l->mu);
    pseg_free(l->threads);
    pseg_free(l);
}
