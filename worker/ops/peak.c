/* Peaks of a device by kernels that do nothing else (kernels/peak.cl). */
#include "worker/ops/internal.h"
#include "worker/ops/tune.h"

#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <math.h>
#include <string.h>

#define RUNS       40
#define TILE_WORDS 1024u                 /* four tiles of 16 x 32 bfloat16 */
#define READ_BYTES ((uint64_t)128 << 20) /* more than caches hold */

/* Sums in registers: on a CPU of 16 or of 32 vector registers, or of a lane. */
static const pseg_kernel fma_6 = {"peak.cl", "peak_fma", "-DN=6"};
static const pseg_kernel fma_12 = {"peak.cl", "peak_fma", "-DN=12"};
static const pseg_kernel by_dot = {"peak.cl", "peak_dot", "-DN=12 -DDOT"};
static const pseg_kernel by_amx = {"peak.cl", "peak_amx", "-DAMX"};
static const pseg_kernel reading = {"peak.cl", "peak_read", "-DN=6"};

typedef struct load {
    const pseg_kernel *kernel;
    size_t items, group;
    double work; /* of a step of an item: operations, or bytes */
    const pseg_mem *in;
    bool is_reading; /* then steps are given, else as many as take some milliseconds */
    uint64_t steps;
} load;

/* Work a second, of the best of some launches, each long enough for starting it not to count. */
static pseg_status best_rate(double *rate, pseg_stream *s, const load *l, pseg_mem *out,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t steps = l->is_reading ? l->steps : 1000;

    *rate = 0;
    /* Many short launches: some of them have the machine to themselves. */
    for (int run = 0; run < (l->is_reading ? RUNS / 4 : RUNS); run++) {
        uint32_t n = (uint32_t)steps;
        pseg_arg args[3] = {PSEG_ARG_MEM(out)};
        size_t n_args = 1;

        if (l->in)
            args[n_args++] = PSEG_ARG_MEM(l->in);
        args[n_args++] = l->is_reading ? PSEG_ARG_VALUE(steps) : PSEG_ARG_VALUE(n);
        int64_t begin = pseg_clock_mono_us();
        PSEG_TRY(pseg_launch(s, l->kernel, 1, &l->items, &l->group, args, n_args, err));
        PSEG_TRY(pseg_stream_finish(s, err));
        double us = (double)(pseg_clock_mono_us() - begin);
        if (run > 0) /* the first one builds */
            *rate = fmax(*rate, l->work * (double)l->items * (double)steps / fmax(us, 1) * 1e6);
        if (!l->is_reading && run > 0 && us < 500)
            steps = steps * 4 < UINT32_MAX ? steps * 4 : UINT32_MAX;
    }
out:
    return rc;
}

static pseg_status random_pairs(pseg_mem **out, pseg_stream *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t words[TILE_WORDS], x = 1;

    for (size_t i = 0; i < TILE_WORDS; i++) {
        /* Two bfloat16 of +-(1 to 2) with random bits behind the point. */
        x = x * 1664525u + 1013904223u;
        words[i] = (x & 0x807f807fu) | 0x3f803f80u;
    }
    PSEG_TRY(pseg_mem_new(out, pseg_stream_cl(s), sizeof words, err));
    PSEG_TRY(pseg_mem_write(s, *out, 0, words, sizeof words, err));
    PSEG_TRY(pseg_stream_finish(s, err));
out:
    return rc;
}

static pseg_status measure_read(double *gbytes, pseg_stream *s, pseg_mem *out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_cl *cl = pseg_stream_cl(s);
    const pseg_device_info *d = pseg_cl_device(cl);
    bool is_cpu = pseg_cl_variant_of(cl) == PSEG_CL_CPU;
    uint64_t bytes = READ_BYTES;
    pseg_mem *x = NULL;

    while (bytes > d->max_alloc_bytes / 2 || bytes > d->mem_bytes / 8)
        bytes /= 2;
    load l = {.kernel = &reading,
              .items = is_cpu ? 8 * (size_t)d->compute_units : 256 * (size_t)d->compute_units,
              .group = is_cpu ? 1 : 64,
              .work = sizeof(float),
              .is_reading = true};
    l.steps = bytes / sizeof(float) / l.items / 64 * 64;
    PSEG_TRY(pseg_mem_new(&x, pseg_stream_cl(s), bytes, err));
    PSEG_TRY(pseg_mem_zero(s, x, 0, bytes, err)); /* else all pages are one page of zeros */
    l.in = x;
    PSEG_TRY(best_rate(gbytes, s, &l, out, err));
    *gbytes *= 1e-9;
out:
    pseg_mem_free(x);
    return rc;
}

pseg_status pseg_peaks_measure(pseg_peaks *out, pseg_stream *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_cl *cl = pseg_stream_cl(s);
    const pseg_device_info *d = pseg_cl_device(cl);
    bool is_cpu = pseg_cl_variant_of(cl) == PSEG_CL_CPU, is_wide = !is_cpu || d->vector_width >= 16;
    size_t items = is_cpu ? 4 * (size_t)d->compute_units : 2048 * (size_t)d->compute_units;
    double rate = 0, sums = is_wide ? 12 : 6;
    pseg_mem *mem = NULL, *pairs = NULL;

    *out = (pseg_peaks){0};
    PSEG_TRY(pseg_mem_new(&mem, cl, items * 256 * sizeof(float), err));
    PSEG_TRY(random_pairs(&pairs, s, err));
    load fma = {.kernel = is_wide ? &fma_12 : &fma_6,
                .items = items,
                .group = is_cpu ? 1 : 64,
                .work = 2 * sums * (is_cpu ? 16 : 1)};
    PSEG_TRY(best_rate(&rate, s, &fma, mem, err));
    out->bf16_gflops = out->fp32_gflops = rate * 1e-9;
    load dot = {.kernel = &by_dot, .items = items, .group = 1, .work = 4 * 12 * 16, .in = pairs};
    load amx = {
        .kernel = &by_amx, .items = items, .group = 1, .work = 4 * 2 * 16 * 16 * 32, .in = pairs};
    if (pseg_cl_features(cl) & (PSEG_CL_AMX_BF16 | PSEG_CL_AVX512_BF16)) {
        PSEG_TRY(
            best_rate(&rate, s, pseg_cl_features(cl) & PSEG_CL_AMX_BF16 ? &amx : &dot, mem, err));
        out->bf16_gflops = rate * 1e-9;
    }
    PSEG_TRY(measure_read(&out->read_gbytes, s, mem, err));
out:
    pseg_mem_free(mem);
    pseg_mem_free(pairs);
    return rc;
}

double pseg_attainable(double peak_gflops, double read_gbytes, double flops, double bytes)
{
    return bytes > 0 ? fmin(peak_gflops, flops / bytes * read_gbytes) : peak_gflops;
}
