/* Images per second of an encoder with random weights, time per stage, cost of a further phrase,
 * time to ready, memory. */
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/file.h"
#include "worker/apps/bench.h"
#include "worker/apps/bench_roof.h"
#include "worker/apps/engine_options.h"
#include "worker/model/pseg.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_RUNS = 200, MAX_PHRASES = 32 };

typedef struct args {
    const char *preset, *model, *device, *precision, *trace;
    pseg_conf_list batches;
    int64_t threads;
    double seconds;
    bool profile, json;
} args;

static const pseg_conf_option options[] = {
    {"preset", PSEG_CONF_STRING, offsetof(args, preset), "dinov2-base", .unit = "NAME",
     .help =
         "dinov2-small, -base, -large or -giant (also with -reg, @448), vit-base; random weights"},
    {"model", PSEG_CONF_STRING, offsetof(args, model), NULL, .unit = "DIR",
     .help = "a model folder instead of a preset"},
    {"batch", PSEG_CONF_LIST, offsetof(args, batches), NULL, .unit = "N",
     .help = "images at once; may be given again [1 and 8]"},
    {"seconds", PSEG_CONF_REAL, offsetof(args, seconds), "5", .min = 0.1, .max = 600,
     .help = "for each measurement"},
    {"device", PSEG_CONF_STRING, offsetof(args, device), "auto", .unit = "NAME", .letter = 'd',
     .help = "as for the worker"},
    {"threads", PSEG_CONF_INT, offsetof(args, threads), "0", .min = 0, .max = 4096,
     .help = THREADS_HELP},
    {"precision", PSEG_CONF_STRING, offsetof(args, precision), "fp32", .unit = "NAME",
     .help = "fp32, bf16x3 or bf16"},
    {"profile", PSEG_CONF_BOOL, offsetof(args, profile), "false",
     .help = "device time and rates of each operation instead"},
    {"trace", PSEG_CONF_STRING, offsetof(args, trace), NULL, .unit = "FILE",
     .help = "write one pass as a trace for chrome://tracing or ui.perfetto.dev"},
    {"json", PSEG_CONF_BOOL, offsetof(args, json), "false", .help = "print JSON"},
    {0}};

static const char *const phrases[MAX_PHRASES] = {
    "a red circle",     "the small dog",     "a person in a blue coat",      "the car on the left",
    "a wooden table",   "the tall tree",     "two birds on a wire",          "the open window",
    "a cup of coffee",  "the striped ball",  "a woman with an umbrella",     "the nearest bus",
    "a green bottle",   "the black cat",     "a man riding a bicycle",       "the white plate",
    "a pair of shoes",  "the bridge",        "a child holding a kite",       "the second chair",
    "a stack of books", "the traffic light", "a boat near the shore",        "the old clock",
    "a slice of pizza", "the laptop",        "a horse in a field",           "the fire hydrant",
    "a yellow taxi",    "the snowboard",     "the bench under the big tree", "a vase with flowers"};

typedef pseg_status (*step)(void *ud, pseg_err *err);

/* Median milliseconds of what is run again and again for `seconds`, after one warm-up; cpu_ms, may
 * be NULL: the mean processor time of all threads, which neighbours on the machine disturb less. */
static pseg_status timed_cpu(double *ms, double *cpu_ms, double seconds, step f, void *ud,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    static double v[MAX_RUNS];
    size_t n = 0;

    PSEG_TRY(f(ud, err));
    int64_t begin = pseg_clock_mono_us();
    clock_t cpu = clock();
    while (n < 3 || (n < MAX_RUNS && (double)(pseg_clock_mono_us() - begin) < seconds * 1e6)) {
        int64_t t = pseg_clock_mono_us();
        PSEG_TRY(f(ud, err));
        v[n++] = (double)(pseg_clock_mono_us() - t) / 1e3;
    }
    *ms = bench_median(v, n);
    if (cpu_ms)
        *cpu_ms = (double)(clock() - cpu) * 1e3 / CLOCKS_PER_SEC / (double)n;
out:
    return rc;
}

static pseg_status timed(double *ms, double seconds, step f, void *ud, pseg_err *err)
{
    return timed_cpu(ms, NULL, seconds, f, ud, err);
}

typedef struct bench {
    pseg_model *m;
    float *chw, *logits, iou[MAX_PHRASES];
    pseg_features *images[64];
    pseg_prompt *prompts[MAX_PHRASES];
    size_t n;
} bench;

static pseg_status encode_images(void *ud, pseg_err *err)
{
    bench *b = ud;
    pseg_status rc = pseg_model_encode_images(b->images, b->m, b->chw, b->n, err);

    for (size_t i = 0; rc == PSEG_OK && i < b->n; i++)
        pseg_features_free(b->images[i]);
    return rc;
}

static pseg_status encode_texts(void *ud, pseg_err *err)
{
    bench *b = ud;
    pseg_status rc = pseg_model_encode_texts(b->prompts, b->m, phrases, b->n, err);

    for (size_t i = 0; rc == PSEG_OK && i < b->n; i++)
        pseg_prompt_free(b->prompts[i]);
    return rc;
}

static pseg_status decode(void *ud, pseg_err *err)
{
    bench *b = ud;
    const pseg_features *same[MAX_PHRASES];

    for (size_t i = 0; i < b->n; i++)
        same[i] = b->images[0];
    return pseg_model_decode(b->logits, b->iou, b->m, same, (const pseg_prompt *const *)b->prompts,
                             b->n, err);
}

/* All that the device does for a job: an image, a phrase, their mask. */
static pseg_status whole_job(void *ud, pseg_err *err)
{
    bench *b = ud;
    pseg_status rc = PSEG_OK;
    pseg_features *image = NULL;
    pseg_prompt *prompt = NULL;

    PSEG_TRY(pseg_model_encode_images(&image, b->m, b->chw, 1, err));
    PSEG_TRY(pseg_model_encode_texts(&prompt, b->m, phrases, 1, err));
    PSEG_TRY(pseg_model_decode(b->logits, b->iou, b->m, (const pseg_features *const[]){image},
                               (const pseg_prompt *const[]){prompt}, 1, err));
out:
    pseg_features_free(image);
    pseg_prompt_free(prompt);
    return rc;
}

static pseg_status bench_job(bench *b, const args *a, json_t *out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    double ms, cpu_ms;

    PSEG_TRY(timed_cpu(&ms, &cpu_ms, a->seconds, whole_job, b, err));
    json_object_set_new(
        out, "job",
        json_pack("{s:f, s:f, s:f}", "ms", ms, "cpu_ms", cpu_ms, "jobs_per_s", 1e3 / ms));
    if (!a->json)
        printf("a job of one phrase on an image of its own: %.2f ms, %.2f jobs/s\n", ms, 1e3 / ms);
out:
    return rc;
}

/* Texts and decoder at 1 and at MAX_PHRASES phrases. */
static pseg_status bench_phrases(bench *b, const args *a, json_t *out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    static const size_t counts[] = {1, 8, MAX_PHRASES};
    double text[3], mask[3];
    size_t made = 0;
    bool has_image = false;

    for (int k = 0; k < 3; k++) {
        b->n = counts[k];
        PSEG_TRY(timed(&text[k], a->seconds / 3, encode_texts, b, err));
    }
    PSEG_TRY(pseg_model_encode_images(b->images, b->m, b->chw, 1, err));
    has_image = true;
    PSEG_TRY(pseg_model_encode_texts(b->prompts, b->m, phrases, MAX_PHRASES, err));
    made = MAX_PHRASES;
    json_t *list = json_array();
    json_object_set_new(out, "phrases", list);
    for (int k = 0; k < 3; k++) {
        b->n = counts[k];
        PSEG_TRY(timed(&mask[k], a->seconds / 3, decode, b, err));
        json_array_append_new(list, json_pack("{s:i, s:f, s:f}", "phrases", (int)counts[k],
                                              "encode_text_ms", text[k], "decode_ms", mask[k]));
        if (!a->json)
            printf("%2zu phrases: text %.2f ms, decoder %.2f ms\n", counts[k], text[k], mask[k]);
    }
    double further = (text[2] + mask[2] - text[0] - mask[0]) / (MAX_PHRASES - 1);
    json_object_set_new(out, "further_phrase_ms", json_real(further));
    if (!a->json)
        printf("a further phrase on the same image: %.2f ms\n", further);
out:
    for (size_t i = 0; i < made; i++)
        pseg_prompt_free(b->prompts[i]);
    if (has_image)
        pseg_features_free(b->images[0]);
    return rc;
}

static pseg_status bench_batches(bench *b, const args *a, json_t *out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    static const char *usual[] = {"1", "8"};
    size_t n = a->batches.n ? a->batches.n : 2;
    json_t *list = json_array();

    json_object_set_new(out, "encode_image", list);
    for (size_t i = 0; i < n; i++) {
        const char *text = a->batches.n ? a->batches.items[i] : usual[i];
        char *end;
        long batch = strtol(text, &end, 10);
        double ms, cpu_ms;
        if (*end || batch < 1 || batch > 64)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--batch \"%s\" is not between 1 and 64", text);
        b->n = (size_t)batch;
        PSEG_TRY(timed_cpu(&ms, &cpu_ms, a->seconds, encode_images, b, err));
        json_array_append_new(list, json_pack("{s:i, s:f, s:f, s:f}", "batch", (int)batch, "ms", ms,
                                              "cpu_ms", cpu_ms, "images_per_s",
                                              (double)batch * 1e3 / ms));
        if (!a->json)
            printf("batch %ld: %.1f ms, %.2f images/s (encoder and neck)\n", batch, ms,
                   (double)batch * 1e3 / ms);
    }
out:
    return rc;
}

/* Device time of each operation in a step: the mean of as many runs as fit. */
typedef struct roofline {
    const args *a;
    pseg_peaks peaks;
    pseg_precision precision;
    json_t *list;
} roofline;

/* Products and attention are in the model's precision, but attention of bf16x3 and all else in
 * float32. */
static bench_kind kind_of(const roofline *l, const char *op)
{
    bool is_gemm = strcmp(op, "gemm") == 0;
    bool is_product = is_gemm || strstr(op, "attention");

    return l->precision == PSEG_PRECISION_BF16 && is_product  ? BENCH_BF16
           : l->precision == PSEG_PRECISION_BF16X3 && is_gemm ? BENCH_PARTS
                                                              : BENCH_FP32;
}

static pseg_status profile_step(bench *b, const roofline *l, const char *name, step f,
                                pseg_err *err)
{
    enum { MAX_KERNELS = 32 };
    pseg_status rc = PSEG_OK;
    const args *a = l->a;
    pseg_stream *s = pseg_model_stream(b->m);
    pseg_profile_entry e[MAX_KERNELS];
    double runs = 0, sum = 0;

    PSEG_TRY(f(b, err));
    pseg_stream_profile_reset(s);
    int64_t begin = pseg_clock_mono_us();
    while (runs < 3 || (double)(pseg_clock_mono_us() - begin) < a->seconds * 1e6) {
        PSEG_TRY(f(b, err));
        runs++;
    }
    size_t n = pseg_stream_profile(e, MAX_KERNELS, s);
    n = n < MAX_KERNELS ? n : MAX_KERNELS;
    for (size_t i = 0; i < n; i++)
        sum += e[i].total_ms / runs;
    if (!a->json)
        printf("%s of %zu: %.2f ms on the device\n", name, b->n, sum);
    for (size_t i = 0; i < n; i++) {
        double ms = e[i].total_ms / runs, launches = (double)e[i].launches / runs;
        double gflops = e[i].flops / e[i].total_ms / 1e6, gbytes = e[i].bytes / e[i].total_ms / 1e6;
        bench_roof r =
            bench_roof_of(&l->peaks, kind_of(l, e[i].name), e[i].flops, e[i].bytes, e[i].total_ms);

        json_array_append_new(
            l->list, json_pack("{s:s, s:i, s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "step", name,
                               "n", (int)b->n, "op", e[i].name, "ms", ms, "launches", launches,
                               "gflops", gflops, "gbytes_per_s", gbytes, "flops_per_byte",
                               r.intensity, "attainable_gflops", r.attainable, "share", r.share));
        if (!a->json)
            printf("  %-16s %9.3f ms %5.1f %% %5.0f launches %8.1f GFLOP/s %6.1f GB/s %6.1f op/B "
                   "%4.0f %% of attainable\n",
                   e[i].name, ms, 100 * ms / sum, launches, gflops, gbytes, r.intensity,
                   100 * r.share);
    }
out:
    return rc;
}

static void trace_launch(void *ud, const char *name, uint64_t start_ns, uint64_t end_ns)
{
    json_array_append_new(ud, json_pack("{s:s, s:s, s:f, s:f, s:i, s:i}", "name", name, "ph", "X",
                                        "ts", (double)start_ns / 1e3, "dur",
                                        (double)(end_ns - start_ns) / 1e3, "pid", 1, "tid", 1));
}

/* One image, eight phrases and their masks, in the form of Chrome's trace events. */
static pseg_status trace(bench *b, const args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_stream *s = pseg_model_stream(b->m);
    json_t *events = json_array();
    size_t n_images = 0, n_prompts = 0;
    char *text = NULL;

    pseg_stream_trace(s, trace_launch, events);
    PSEG_TRY(pseg_model_encode_images(b->images, b->m, b->chw, 1, err));
    n_images = 1;
    PSEG_TRY(pseg_model_encode_texts(b->prompts, b->m, phrases, 8, err));
    n_prompts = b->n = 8;
    PSEG_TRY(decode(b, err));
    size_t n = json_dumpb(events, NULL, 0, JSON_COMPACT);
    text = pseg_malloc(n + 1);
    if (!text)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a trace of %zu bytes", n);
    json_dumpb(events, text, n, JSON_COMPACT);
    PSEG_TRY(pseg_file_write(a->trace, text, n, err));
    if (!a->json)
        printf("%zu launches written to %s\n", json_array_size(events), a->trace);
out:
    pseg_stream_trace(s, NULL, NULL);
    for (size_t i = 0; i < n_prompts; i++)
        pseg_prompt_free(b->prompts[i]);
    for (size_t i = 0; i < n_images; i++)
        pseg_features_free(b->images[i]);
    json_decref(events);
    pseg_free(text);
    return rc;
}

static pseg_status profile(bench *b, const args *a, json_t *out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    json_t *list = json_array();
    roofline l = {.a = a, .precision = pseg_model_get_info(b->m)->precision, .list = list};
    size_t n_images = 0, n_prompts = 0;

    json_object_set_new(out, "profile", list);
    PSEG_TRY(pseg_peaks_get(&l.peaks, pseg_model_stream(b->m), err));
    json_object_set_new(out, "peaks", bench_peaks(&l.peaks));
    if (!a->json)
        printf("peaks: %.0f GFLOP/s fp32, %.0f bf16, %.1f GB/s\n", l.peaks.fp32_gflops,
               l.peaks.bf16_gflops, l.peaks.read_gbytes);
    for (int k = 0; k < 2; k++) {
        b->n = k ? 8 : 1;
        PSEG_TRY(profile_step(b, &l, "images", encode_images, err));
        PSEG_TRY(profile_step(b, &l, "phrases", encode_texts, err));
    }
    PSEG_TRY(pseg_model_encode_images(b->images, b->m, b->chw, 1, err));
    n_images = 1;
    PSEG_TRY(pseg_model_encode_texts(b->prompts, b->m, phrases, b->n, err));
    n_prompts = b->n;
    PSEG_TRY(profile_step(b, &l, "masks", decode, err));
out:
    for (size_t i = 0; i < n_prompts; i++)
        pseg_prompt_free(b->prompts[i]);
    for (size_t i = 0; i < n_images; i++)
        pseg_features_free(b->images[i]);
    return rc;
}

static pseg_status run(const void *given, json_t *out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const args *a = given;
    pseg_cl_options co = PSEG_CL_OPTIONS_DEFAULT;
    pseg_model_options mo = PSEG_MODEL_OPTIONS_DEFAULT;
    pseg_model_source source = {.folder = a->model};
    pseg_cl *cl = NULL;
    bench b = {0};
    unsigned built, cached;
    int64_t begin = pseg_clock_mono_us();

    PSEG_TRY(pseg_device_set_threads((unsigned)a->threads, err));
    mo.max_images = 8;
    mo.max_phrases = MAX_PHRASES;
    co.device = a->device;
    co.profile = a->profile || a->trace;
    PSEG_TRY(precision_of(&mo.precision, a->precision, err));
    PSEG_TRY(pseg_cl_open(&cl, &co, err));
    if (a->model)
        PSEG_TRY(pseg_model_open(&b.m, cl, &source, &mo, err));
    else
        PSEG_TRY(pseg_model_random(&b.m, cl, a->preset, 1, &mo, err));
    int64_t opened = pseg_clock_mono_us();
    PSEG_TRY(pseg_model_warm_up(b.m, err));
    int64_t ready = pseg_clock_mono_us();
    const pseg_model_info *info = pseg_model_get_info(b.m);
    pseg_cl_program_counts(cl, &built, &cached);
    size_t pixels = 3 * (size_t)info->width * info->height;
    b.chw = pseg_aligned_alloc(64 * pixels * sizeof *b.chw);
    b.logits =
        pseg_calloc((size_t)MAX_PHRASES * info->mask_width * info->mask_height, sizeof *b.logits);
    if (!b.chw || !b.logits)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the images");
    for (size_t i = 0; i < 64 * pixels; i++)
        b.chw[i] = (float)((i * 2654435761u >> 16) % 1000) / 500 - 1;
    json_object_set_new(out, "model", json_string(info->name));
    json_object_set_new(out, "device", json_string(pseg_cl_device(cl)->name));
    json_object_set_new(out, "driver", json_string(pseg_cl_device(cl)->platform_version));
    json_object_set_new(out, "precision", json_string(pseg_precision_name(info->precision)));
    json_object_set_new(out, "input", json_pack("[i,i]", (int)info->width, (int)info->height));
    json_object_set_new(out, "open_ms", json_real((double)(opened - begin) / 1e3));
    json_object_set_new(out, "warm_up_ms", json_real((double)(ready - opened) / 1e3));
    json_object_set_new(out, "kernels_built", json_integer(built));
    json_object_set_new(out, "kernels_from_cache", json_integer(cached));
    if (!a->json)
        printf("%s in %s on %s\nopened in %.0f ms, warm in %.0f ms more (%u kernels built, %u from "
               "the "
               "cache)\n",
               info->name, pseg_precision_name(info->precision), pseg_cl_device(cl)->name,
               (double)(opened - begin) / 1e3, (double)(ready - opened) / 1e3, built, cached);
    if (a->trace) {
        PSEG_TRY(trace(&b, a, err));
        goto out;
    }
    if (a->profile) {
        PSEG_TRY(profile(&b, a, out, err));
        goto out;
    }
    PSEG_TRY(bench_batches(&b, a, out, err));
    PSEG_TRY(bench_phrases(&b, a, out, err));
    PSEG_TRY(bench_job(&b, a, out, err));
    json_object_set_new(out, "weight_mib", json_real((double)info->weight_bytes / (1 << 20)));
    json_object_set_new(out, "activation_mib",
                        json_real((double)info->activation_bytes / (1 << 20)));
    json_object_set_new(out, "rss_mib", json_real(bench_rss_mib()));
    json_object_set_new(out, "peak_rss_mib", json_real(bench_peak_rss_mib()));
    if (!a->json)
        printf("weights %.0f MiB, activations %.0f MiB; resident %.0f MiB, at most %.0f\n",
               (double)info->weight_bytes / (1 << 20), (double)info->activation_bytes / (1 << 20),
               bench_rss_mib(), bench_peak_rss_mib());
out:
    pseg_free(b.chw);
    pseg_free(b.logits);
    pseg_model_close(b.m);
    pseg_cl_close(cl);
    return rc;
}

int bench_engine(int argc, char **argv)
{
    static const pseg_conf_about about = {
        .name = "pseg bench engine",
        .usage = "[--preset NAME | --model DIR] [--batch N ...] [--json]",
        .what = "Images per second of an encoder, time per stage, cost of a phrase, time of a "
                "whole job. Medians over "
                "repeated runs,\n"
                "the first one not counted.",
        .example = "pseg bench engine --preset dinov2-base --batch 1 --batch 8 --json"};
    static const bench_program p = {options, &about, run, NULL};
    args a = {0};

    return bench_main(&a, &a.json, &p, argc, argv);
}
