/* Queues: transfers, launches and their profile. */
#include "worker/cl/internal.h"

#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PENDING 2048u /* events of launches whose time was not yet read */

typedef struct kernel_entry {
    const pseg_kernel *key;
    cl_kernel kernel;
    uint64_t launches;
    double total_ms, max_ms, flops, bytes;
} kernel_entry;

typedef struct pending_event {
    cl_event event;
    size_t kernel; /* index into kernels */
} pending_event;

struct pseg_stream {
    pseg_cl *cl;
    cl_command_queue queue;
    kernel_entry *kernels;
    size_t n_kernels, cap_kernels;
    pending_event *pending; /* NULL unless profiling */
    size_t n_pending;
    size_t last; /* kernel of the last launch */
    pseg_mem *scratch;
    pseg_rehearsal *rehearsal; /* NULL: launches run */
    pseg_trace_fn *trace;
    void *trace_ud;
};

pseg_status pseg_stream_open(pseg_stream **out, pseg_cl *cl, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_stream *s = NULL;
    cl_int code = CL_SUCCESS;

    *out = NULL;
    s = pseg_calloc(1, sizeof *s);
    if (!s)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    s->cl = cl;
    if (cl->profile) {
        s->pending = pseg_calloc(MAX_PENDING, sizeof *s->pending);
        if (!s->pending)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    }
    s->queue = clCreateCommandQueue(cl->context, cl->device,
                                    cl->profile ? CL_QUEUE_PROFILING_ENABLE : 0, &code);
    PSEG_CL_TRY(clCreateCommandQueue, code);
    *out = s;
    s = NULL;
out:
    pseg_stream_close(s);
    return rc;
}

/* Reads the times of all pending launches; the queue has finished. */
static void collect_profile(pseg_stream *s)
{
    for (size_t i = 0; i < s->n_pending; i++) {
        pending_event *p = &s->pending[i];
        kernel_entry *k = &s->kernels[p->kernel];
        cl_ulong start = 0, end = 0;

        if (clGetEventProfilingInfo(p->event, CL_PROFILING_COMMAND_START, sizeof start, &start,
                                    NULL) == CL_SUCCESS &&
            clGetEventProfilingInfo(p->event, CL_PROFILING_COMMAND_END, sizeof end, &end, NULL) ==
                CL_SUCCESS &&
            end >= start) {
            double ms = (double)(end - start) * 1e-6;

            if (s->trace)
                s->trace(s->trace_ud, k->key->name, start, end);
            k->launches++;
            k->total_ms += ms;
            if (ms > k->max_ms)
                k->max_ms = ms;
        }
        clReleaseEvent(p->event);
    }
    s->n_pending = 0;
}

/* PoCL tells that a command is over before its thread has let go of it, and with it of the queue.
 * Whoever closes everything at once would take both from under that thread. A queue may keep its
 * last command, and so itself: then this waits for nothing, but not for long. */
static void wait_for_driver(cl_command_queue queue)
{
    int64_t end = pseg_clock_mono_ms() + 20;
    cl_uint n = 0;

    while (clGetCommandQueueInfo(queue, CL_QUEUE_REFERENCE_COUNT, sizeof n, &n, NULL) ==
               CL_SUCCESS &&
           n > 1 && pseg_clock_mono_ms() < end)
        sched_yield();
}

void pseg_stream_close(pseg_stream *s)
{
    if (!s)
        return;
    if (s->queue) {
        clFinish(s->queue);
        collect_profile(s);
        wait_for_driver(s->queue);
    }
    for (size_t i = 0; i < s->n_kernels; i++)
        clReleaseKernel(s->kernels[i].kernel);
    if (s->queue)
        clReleaseCommandQueue(s->queue);
    pseg_rehearsal_free(s->rehearsal);
    pseg_mem_free(s->scratch);
    pseg_free(s->pending);
    pseg_free(s->kernels);
    pseg_free(s);
}

pseg_status pseg_stream_scratch(pseg_mem **out, pseg_stream *s, size_t bytes, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (!s->scratch || pseg_mem_size(s->scratch) < bytes) {
        /* OpenCL keeps the old one until what is enqueued has used it. */
        pseg_mem_free(s->scratch);
        s->scratch = NULL;
        PSEG_TRY(pseg_mem_new(&s->scratch, s->cl, bytes, err));
    }
    *out = s->scratch;
out:
    return rc;
}

pseg_cl *pseg_stream_cl(const pseg_stream *s)
{
    return s->cl;
}

pseg_status pseg_stream_flush(pseg_stream *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_CL_TRY(clFlush, clFlush(s->queue));
out:
    return rc;
}

pseg_status pseg_stream_finish(pseg_stream *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_CL_TRY(clFinish, clFinish(s->queue));
    collect_profile(s);
out:
    return rc;
}

/* ---- transfers ---------------------------------------------------------------------------- */

static bool is_inside(const pseg_mem *m, size_t off, size_t n)
{
    return off <= m->size && n <= m->size - off;
}

pseg_status pseg_mem_write(pseg_stream *s, pseg_mem *m, size_t off, const void *src, size_t n,
                           pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_REQUIRE(m && !m->read_only && is_inside(m, off, n), "range to write");
    if (n > 0)
        PSEG_CL_TRY(clEnqueueWriteBuffer,
                    clEnqueueWriteBuffer(s->queue, m->mem, CL_FALSE, off, n, src, 0, NULL, NULL));
out:
    return rc;
}

pseg_status pseg_mem_read(void *dst, pseg_stream *s, const pseg_mem *m, size_t off, size_t n,
                          pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_REQUIRE(m && is_inside(m, off, n), "range to read");
    if (n > 0)
        PSEG_CL_TRY(clEnqueueReadBuffer,
                    clEnqueueReadBuffer(s->queue, m->mem, CL_FALSE, off, n, dst, 0, NULL, NULL));
out:
    return rc;
}

pseg_status pseg_mem_copy(pseg_stream *s, pseg_mem *dst, size_t dst_off, const pseg_mem *src,
                          size_t src_off, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_REQUIRE(dst && src && !dst->read_only && is_inside(dst, dst_off, n) &&
                     is_inside(src, src_off, n),
                 "ranges to copy");
    PSEG_REQUIRE(dst != src || dst_off + n <= src_off || src_off + n <= dst_off, "overlap");
    if (n > 0)
        PSEG_CL_TRY(clEnqueueCopyBuffer, clEnqueueCopyBuffer(s->queue, src->mem, dst->mem, src_off,
                                                             dst_off, n, 0, NULL, NULL));
out:
    return rc;
}

pseg_status pseg_mem_zero(pseg_stream *s, pseg_mem *m, size_t off, size_t n, pseg_err *err)
{
    static const uint8_t zero = 0;
    pseg_status rc = PSEG_OK;

    PSEG_REQUIRE(m && !m->read_only && is_inside(m, off, n), "range to zero");
    if (n > 0)
        PSEG_CL_TRY(clEnqueueFillBuffer,
                    clEnqueueFillBuffer(s->queue, m->mem, &zero, 1, off, n, 0, NULL, NULL));
out:
    return rc;
}

/* ---- launches ----------------------------------------------------------------------------- */

static pseg_status find_kernel(size_t *out, pseg_stream *s, const pseg_kernel *k, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    cl_program program = NULL;
    cl_int code = CL_SUCCESS;

    for (size_t i = 0; i < s->n_kernels; i++)
        if (s->kernels[i].key == k) {
            *out = i;
            return PSEG_OK;
        }
    if (s->n_kernels == s->cap_kernels) {
        size_t cap = s->cap_kernels ? 2 * s->cap_kernels : 32;
        kernel_entry *grown = pseg_realloc(s->kernels, cap * sizeof *grown);

        if (!grown)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
        s->kernels = grown;
        s->cap_kernels = cap;
    }
    PSEG_TRY(pseg_program_get(&program, s->cl, k, err));
    kernel_entry e = {.key = k};
    e.kernel = clCreateKernel(program, k->name, &code);
    if (code != CL_SUCCESS) {
        rc = pseg_cl_fail(err, code, PSEG_HERE, "clCreateKernel");
        pseg_err_prefix(err, "kernel %s of %s", k->name, k->file);
        goto out;
    }
    *out = s->n_kernels;
    s->kernels[s->n_kernels++] = e;
out:
    return rc;
}

pseg_status pseg_kernel_prepare(pseg_stream *s, const pseg_kernel *k, pseg_err *err)
{
    size_t i;

    return find_kernel(&i, s, k, err);
}

static cl_int set_arg(const pseg_cl *cl, cl_kernel k, cl_uint i, const pseg_arg *a)
{
    if (a->mem)
        return clSetKernelArg(k, i, sizeof a->mem->mem, &a->mem->mem);
    if (a->size > 0)
        return clSetKernelArg(k, i, a->size, a->value);
    return clSetKernelArg(k, i, sizeof cl->none, &cl->none);
}

pseg_status pseg_launch(pseg_stream *s, const pseg_kernel *k, unsigned n_dims, const size_t *global,
                        const size_t *local, const pseg_arg *args, size_t n_args, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t index = 0, rounded[3];
    cl_event event = NULL;

    PSEG_REQUIRE(n_dims >= 1 && n_dims <= 3, "n_dims");
    for (unsigned d = 0; d < n_dims; d++) {
        if (global[d] == 0)
            goto out; /* nothing to do */
        size_t unit = local ? local[d] : 1;

        PSEG_REQUIRE(unit > 0 && global[d] <= SIZE_MAX - unit, "local size");
        rounded[d] = (global[d] + unit - 1) / unit * unit;
    }
    if (s->rehearsal) {
        rc = pseg_rehearsal_note(s->rehearsal, k, n_dims, global, local, args, n_args, err);
        goto out;
    }
    PSEG_TRY(find_kernel(&index, s, k, err));
    cl_kernel kernel = s->kernels[index].kernel;
    for (size_t i = 0; i < n_args; i++) {
        cl_int code = set_arg(s->cl, kernel, (cl_uint)i, &args[i]);

        if (code != CL_SUCCESS) {
            rc = pseg_cl_fail(err, code, PSEG_HERE, "clSetKernelArg");
            pseg_err_prefix(err, "kernel %s, argument %zu", k->name, i);
            goto out;
        }
    }
    if (s->pending && s->n_pending == MAX_PENDING)
        PSEG_TRY(pseg_stream_finish(s, err));
    cl_int code = clEnqueueNDRangeKernel(s->queue, kernel, n_dims, NULL, rounded, local, 0, NULL,
                                         s->pending ? &event : NULL);
    if (code != CL_SUCCESS) {
        rc = pseg_cl_fail(err, code, PSEG_HERE, "clEnqueueNDRangeKernel");
        pseg_err_prefix(err, "kernel %s", k->name);
        goto out;
    }
    if (event)
        s->pending[s->n_pending++] = (pending_event){event, index};
    s->last = index;
out:
    return rc;
}

pseg_status pseg_stream_rehearse(pseg_stream *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_REQUIRE(!s->rehearsal, "one rehearsal at a time");
    s->rehearsal = pseg_rehearsal_new();
    if (!s->rehearsal)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
out:
    return rc;
}

pseg_status pseg_stream_compile_rehearsed(pseg_stream *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_rehearsal *r = s->rehearsal;

    s->rehearsal = NULL;
    PSEG_REQUIRE(r, "a rehearsal before");
    PSEG_TRY(pseg_stream_finish(s, err)); /* what was written is there */
    rc = pseg_rehearsal_run(r, s, err);
out:
    pseg_rehearsal_free(r);
    return rc;
}

/* ---- profile ------------------------------------------------------------------------------ */

static int by_total(const void *a, const void *b)
{
    const pseg_profile_entry *x = a, *y = b;

    return (x->total_ms < y->total_ms) - (x->total_ms > y->total_ms);
}

size_t pseg_stream_profile(pseg_profile_entry *out, size_t cap, const pseg_stream *s)
{
    size_t n = 0;

    /* Kernels that share a name are variants of one operation: their times are one entry. */
    for (size_t i = 0; i < s->n_kernels; i++) {
        const kernel_entry *k = &s->kernels[i];
        size_t at = 0;

        if (k->launches == 0)
            continue;
        while (at < n && strcmp(out[at].name, k->key->name) != 0)
            at++;
        if (at == n && n == cap)
            continue;
        if (at == n)
            out[n++] = (pseg_profile_entry){.name = k->key->name};
        out[at].launches += k->launches;
        out[at].total_ms += k->total_ms;
        out[at].flops += k->flops;
        out[at].bytes += k->bytes;
        if (k->max_ms > out[at].max_ms)
            out[at].max_ms = k->max_ms;
    }
    if (n > 0)
        qsort(out, n, sizeof *out, by_total);
    return n;
}

void pseg_stream_profile_reset(pseg_stream *s)
{
    for (size_t i = 0; i < s->n_kernels; i++) {
        s->kernels[i].launches = 0;
        s->kernels[i].total_ms = s->kernels[i].max_ms = 0;
        s->kernels[i].flops = s->kernels[i].bytes = 0;
    }
}

void pseg_stream_credit(pseg_stream *s, double flops, double bytes)
{
    if (s->pending && s->n_kernels > 0) {
        s->kernels[s->last].flops += flops;
        s->kernels[s->last].bytes += bytes;
    }
}

void pseg_stream_trace(pseg_stream *s, pseg_trace_fn *fn, void *ud)
{
    s->trace = fn;
    s->trace_ud = ud;
}
