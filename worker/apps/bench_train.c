/* A training step of neck and decoder on features that are there already: what an epoch costs once
 * the cache of features is filled. tests/bench/train_peer.py holds PyTorch beside it. */
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "worker/apps/bench.h"
#include "worker/apps/engine_options.h"
#include "worker/train/head.h"
#include "worker/train/init.h"
#include "worker/train/optim.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

typedef struct args {
    const char *device, *cache;
    int64_t batch, images, words, threads, steps;
    bool profile, json;
} args;

static const pseg_conf_option options[] = {
    {"batch", PSEG_CONF_INT, offsetof(args, batch), "32", .min = 1, .max = 1024,
     .help = "samples (phrases) of a step"},
    {"images", PSEG_CONF_INT, offsetof(args, images), "0", .min = 0, .max = 1024,
     .help = "images of a batch; 0: as many as samples"},
    {"words", PSEG_CONF_INT, offsetof(args, words), "0", .min = 0, .max = 76,
     .help = "word tokens of a phrase; 0: pooled text"},
    {"steps", PSEG_CONF_INT, offsetof(args, steps), "10", .min = 1, .max = 100000,
     .help = "steps that count; one more goes before"},
    {"device", PSEG_CONF_STRING, offsetof(args, device), "auto", .unit = "NAME", .letter = 'd',
     .help = "as for the worker"},
    {"threads", PSEG_CONF_INT, offsetof(args, threads), "0", .min = 0, .max = 4096,
     .help = THREADS_HELP},
    {"cache", PSEG_CONF_STRING, offsetof(args, cache), NULL, .unit = "DIR",
     .help = "compiled kernels; default ~/.cache/pseg"},
    {"profile", PSEG_CONF_BOOL, offsetof(args, profile), "false",
     .help = "time on the device and GFLOP/s of each kernel; costs a little speed"},
    {"json", PSEG_CONF_BOOL, offsetof(args, json), "false", .help = "print JSON"},
    {0}};

enum {
    PUT,
    FORWARD,
    BACKWARD,
    OPTIM,
    STEP,
    CPU,
    N_TIMES
}; /* CPU: of all threads, the whole step */
static const char *const names[N_TIMES] = {"put", "forward", "backward", "optim", "step", "cpu"};

typedef struct bench {
    pseg_cl *cl;
    pseg_stream *s;
    pseg_specs specs;
    pseg_params *params;
    pseg_optim *optim;
    pseg_train_head *head;
    float *taps, *rest; /* random inputs: of one tap; of all else */
    size_t tap, n_rest;
    double *times[N_TIMES];
    float norm;
} bench;

/* Evenly spread in 0..1. */
static void spread(float *out, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (float)(pseg_hash3(seed, i, 0) >> 40) * 0x1p-24f;
}

static pseg_status put(bench *b, pseg_view v, const void *from, size_t n, pseg_err *err)
{
    return v.mem ? pseg_mem_write(b->s, v.mem, v.off * 4, from, n * 4, err) : PSEG_OK;
}

/* All inputs, as the trainer does it before each pass: from host memory. */
static pseg_status put_batch(bench *b, const args *a, const pseg_head_config *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_train_views *v = pseg_train_head_views(b->head);
    size_t batch = (size_t)a->batch, images = (size_t)a->images;
    int32_t image_of[1024], key_len[1024];
    float weight[1024];

    for (size_t i = 0; i < batch; i++) {
        image_of[i] = (int32_t)(i % images);
        key_len[i] = (int32_t)(3 + a->words);
        weight[i] = 1.0f / (float)batch;
    }
    for (uint32_t i = 0; i < c->n_taps; i++)
        PSEG_TRY(put(b, v->taps[i], b->taps, b->tap, err));
    PSEG_TRY(put(b, v->text, b->rest, batch * c->text_dim, err));
    PSEG_TRY(put(b, v->words, b->rest, batch * (size_t)a->words * c->text_hidden, err));
    PSEG_TRY(put(b, v->target, b->rest, batch * pseg_train_head_pixels(b->head), err));
    PSEG_TRY(put(b, v->weight, weight, batch, err));
    PSEG_TRY(put(b, v->key_len, key_len, batch, err));
    PSEG_TRY(put(b, v->image_of, image_of, batch, err));
    PSEG_TRY(pseg_stream_finish(b->s, err));
out:
    return rc;
}

static double cpu_ms(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return ((double)u.ru_utime.tv_sec + (double)u.ru_stime.tv_sec) * 1e3 +
           ((double)u.ru_utime.tv_usec + (double)u.ru_stime.tv_usec) / 1e3;
}

static pseg_status step(bench *b, const args *a, const pseg_head_config *c, size_t i, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_graph *g = pseg_train_head_graph(b->head);
    int64_t at[STEP + 1];
    double cpu = cpu_ms();

    at[PUT] = pseg_clock_mono_us();
    PSEG_TRY(put_batch(b, a, c, err));
    at[FORWARD] = pseg_clock_mono_us();
    PSEG_TRY(pseg_params_zero(b->params, b->s, PSEG_PARAMS_GRAD, err));
    PSEG_TRY(pseg_graph_forward(g, b->s, err));
    PSEG_TRY(pseg_stream_finish(b->s, err));
    at[BACKWARD] = pseg_clock_mono_us();
    PSEG_TRY(pseg_graph_backward(g, b->s, err));
    PSEG_TRY(pseg_stream_finish(b->s, err));
    at[OPTIM] = pseg_clock_mono_us();
    PSEG_TRY(pseg_optim_step(&b->norm, b->optim, b->s, 1, err));
    at[STEP] = pseg_clock_mono_us();
    for (int t = 0; t < STEP; t++)
        b->times[t][i] = (double)(at[t + 1] - at[t]) / 1e3;
    b->times[STEP][i] = (double)(at[STEP] - at[PUT]) / 1e3;
    b->times[CPU][i] = cpu_ms() - cpu;
    if (!isfinite(b->norm))
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "step %zu: the gradient is not a number", i + 1);
out:
    return rc;
}

static pseg_status open_head(bench *b, const args *a, const pseg_head_config *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_train_shape shape = {.gh = c->gh,
                              .gw = c->gw,
                              .n_images = (uint32_t)a->images,
                              .batch = (uint32_t)a->batch,
                              .max_prompt = (uint32_t)a->words + 1,
                              .has_backward = true,
                              .loss = {1, 1, 0.2f}};
    pseg_optim_options oo = PSEG_OPTIM_OPTIONS_DEFAULT;
    pseg_weights *weights = NULL;

    PSEG_TRY(pseg_train_head_specs(&b->specs, c, err));
    pseg_init init = {1, &b->specs};
    PSEG_TRY(pseg_params_new(&b->params, b->cl, &b->specs, NULL, false, err));
    PSEG_TRY(pseg_weights_from_fn(&weights, pseg_init_fill, &init, err));
    PSEG_TRY(pseg_params_load(b->params, b->s, PSEG_PARAMS_VALUE, weights, "", "", true, err));
    PSEG_TRY(pseg_optim_new(&b->optim, b->cl, b->params, &oo, err));
    PSEG_TRY(pseg_train_head_new(&b->head, b->cl, b->params, c, &shape, err));
out:
    pseg_weights_free(weights);
    return rc;
}

static pseg_status make_inputs(bench *b, const args *a, const pseg_head_config *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t batch = (size_t)a->batch, pixels = pseg_train_head_pixels(b->head);
    size_t word = (size_t)a->words * c->text_hidden;

    b->tap = (size_t)a->images * c->gh * c->gw * c->vision_dim;
    b->n_rest = batch * (pixels > c->text_dim ? pixels : c->text_dim);
    if (batch * word > b->n_rest)
        b->n_rest = batch * word;
    b->taps = pseg_calloc(b->tap, sizeof *b->taps);
    b->rest = pseg_calloc(b->n_rest, sizeof *b->rest);
    if (!b->taps || !b->rest)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a batch of %zu", batch);
    spread(b->taps, b->tap, 1);
    spread(b->rest, b->n_rest, 2);
    for (int t = 0; t < N_TIMES; t++) {
        b->times[t] = pseg_calloc((size_t)a->steps, sizeof(double));
        if (!b->times[t])
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the times");
    }
out:
    return rc;
}

static void tell_profile(bench *b, const args *a, json_t *out)
{
    pseg_profile_entry found[64];
    size_t n = pseg_stream_profile(found, 64, b->s);
    json_t *list = json_array();
    double steps = (double)a->steps;

    for (size_t i = 0; i < n && i < 64; i++) {
        const pseg_profile_entry *e = &found[i];
        double ms = e->total_ms / steps,
               gflops = e->total_ms > 0 ? e->flops / e->total_ms / 1e6 : 0;

        json_array_append_new(list,
                              json_pack("{s:s, s:f, s:f, s:f}", "kernel", e->name, "launches",
                                        (double)e->launches / steps, "ms", ms, "gflops", gflops));
        if (!a->json)
            printf("  %-26s %6.0f launches %10.2f ms %8.1f GFLOP/s\n", e->name,
                   (double)e->launches / steps, ms, gflops);
    }
    json_object_set_new(out, "profile", list);
}

static void tell(bench *b, const args *a, json_t *out)
{
    json_t *median = json_object();

    for (int t = 0; t < N_TIMES; t++)
        json_object_set_new(median, names[t],
                            json_real(bench_median(b->times[t], (size_t)a->steps)));
    json_object_set_new(out, "median_ms", median);
    json_object_set_new(out, "steps", json_integer(a->steps));
    json_object_set_new(out, "last_norm", json_real((double)b->norm));
    json_object_set_new(
        out, "graph_mib",
        json_real((double)pseg_graph_bytes(pseg_train_head_graph(b->head)) / (1 << 20)));
    json_object_set_new(out, "device_mib", json_real((double)pseg_cl_mem_used(b->cl) / (1 << 20)));
    json_object_set_new(out, "peak_rss_mib", json_real(bench_peak_rss_mib()));
    if (a->json)
        return;
    printf("%lld samples, %zu trained numbers on %s\n", (long long)a->batch,
           (size_t)pseg_params_total(b->params), pseg_cl_device(b->cl)->name);
    for (int t = 0; t < N_TIMES; t++)
        printf("  %-9s %9.1f ms\n", names[t], json_real_value(json_object_get(median, names[t])));
    printf("graph %.0f MiB; resident at most %.0f MiB\n",
           json_real_value(json_object_get(out, "graph_mib")), bench_peak_rss_mib());
}

static pseg_status run(const void *given, json_t *out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_cl_options co = PSEG_CL_OPTIONS_DEFAULT;
    pseg_head_config c;
    bench b = {0};
    args a = *(const args *)given;

    a.images = a.images ? a.images : a.batch;
    if (a.images > a.batch)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--images %lld: at most --batch %lld",
                  (long long)a.images, (long long)a.batch);
    pseg_head_config_default(&c);
    c.has_word_tokens = a.words > 0;
    PSEG_TRY(pseg_device_set_threads((unsigned)a.threads, err));
    co.device = a.device;
    co.cache_dir = a.cache;
    co.profile = a.profile;
    PSEG_TRY(pseg_cl_open(&b.cl, &co, err));
    PSEG_TRY(pseg_stream_open(&b.s, b.cl, err));
    pseg_tuning_load(b.cl);
    PSEG_TRY(open_head(&b, &a, &c, err));
    PSEG_TRY(make_inputs(&b, &a, &c, err));
    json_object_set_new(out, "device", json_string(pseg_cl_device(b.cl)->name));
    json_object_set_new(out, "shape",
                        json_pack("{s:i, s:i, s:i}", "batch", (int)a.batch, "images", (int)a.images,
                                  "words", (int)a.words));
    PSEG_TRY(step(&b, &a, &c, 0, err)); /* builds kernels, touches memory for the first time */
    pseg_stream_profile_reset(b.s);
    for (size_t i = 0; i < (size_t)a.steps; i++)
        PSEG_TRY(step(&b, &a, &c, i, err));
    tell(&b, &a, out);
    if (a.profile)
        tell_profile(&b, &a, out);
out:
    for (int t = 0; t < N_TIMES; t++)
        pseg_free(b.times[t]);
    pseg_free(b.taps);
    pseg_free(b.rest);
    pseg_train_head_free(b.head);
    pseg_optim_free(b.optim);
    pseg_params_free(b.params);
    pseg_specs_deinit(&b.specs);
    pseg_stream_close(b.s);
    pseg_cl_close(b.cl);
    return rc;
}

int bench_train(int argc, char **argv)
{
    static const pseg_conf_about about = {
        .name = "pseg bench train",
        .usage = "[--batch N] [--words N] [--profile] [--json]",
        .what = "A training step of neck and decoder at the reference's shape (DINOv2-base's taps, "
                "16 x 16 patches),\nrandom features and weights: medians of copying the batch, "
                "forward, backward and AdamW.",
        .example = "pseg bench train --json"};
    static const bench_program p = {options, &about, run, NULL};
    args a = {0};

    return bench_main(&a, &a.json, &p, argc, argv);
}
