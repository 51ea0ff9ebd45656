/* Launches that are noted instead of run, and compiled later in another order: so a process learns
 * within milliseconds what another is about to compile, and begins at the other end. */
#include "worker/cl/internal.h"

#include "common/base/alloc.h"

#include <string.h>

/* A kernel and the smallest of its launches: running that one costs least, in time and memory. */
typedef struct rehearsed {
    const pseg_kernel *kernel;
    size_t program; /* counted in the order of their first kernels */
    size_t items;
    unsigned n_dims;
    size_t global[3], local[3];
    bool has_local;
    pseg_arg *args; /* in a block with what they point to; buffers are retained */
    size_t n_args;
} rehearsed;

struct pseg_rehearsal {
    rehearsed *all;
    size_t n, cap, n_programs;
};

static void args_free(pseg_arg *args, size_t n)
{
    for (size_t i = 0; args && i < n; i++)
        if (args[i].mem)
            clReleaseMemObject(args[i].mem->mem);
    pseg_free(args);
}

void pseg_rehearsal_free(pseg_rehearsal *r)
{
    if (!r)
        return;
    for (size_t i = 0; i < r->n; i++)
        args_free(r->all[i].args, r->all[i].n_args);
    pseg_free(r->all);
    pseg_free(r);
}

/* A copy that lives on when the caller frees its memory; NULL: none is left. */
static pseg_arg *args_copy(const pseg_arg *args, size_t n)
{
    size_t head = n * (sizeof *args + sizeof(pseg_mem)), bytes = head;

    for (size_t i = 0; i < n; i++)
        bytes += args[i].value ? args[i].size : 0;
    pseg_arg *copy = pseg_calloc(1, bytes + 1);
    if (!copy)
        return NULL;
    pseg_mem *mem = (pseg_mem *)(copy + n);
    uint8_t *value = (uint8_t *)copy + head;
    for (size_t i = 0; i < n; i++) {
        copy[i] = args[i];
        if (args[i].mem) {
            mem[i] = *args[i].mem;
            clRetainMemObject(mem[i].mem);
            copy[i].mem = &mem[i];
        } else if (args[i].value) {
            memcpy(value, args[i].value, args[i].size);
            copy[i].value = value;
            value += args[i].size;
        }
    }
    return copy;
}

static bool is_same(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

/* The entry of k, a new one if there is none yet; NULL: no memory. */
static rehearsed *entry_of(pseg_rehearsal *r, const pseg_kernel *k)
{
    size_t program = r->n_programs;

    for (size_t i = 0; i < r->n; i++) {
        const pseg_kernel *other = r->all[i].kernel;
        if (!is_same(other->file, k->file) || !is_same(other->options, k->options))
            continue;
        if (strcmp(other->name, k->name) == 0)
            return &r->all[i];
        program = r->all[i].program;
    }
    if (r->n == r->cap) {
        size_t cap = r->cap ? 2 * r->cap : 64;
        rehearsed *grown = pseg_realloc(r->all, cap * sizeof *grown);
        if (!grown)
            return NULL;
        r->all = grown;
        r->cap = cap;
    }
    r->n_programs += program == r->n_programs;
    r->all[r->n] = (rehearsed){.kernel = k, .program = program, .items = SIZE_MAX};
    return &r->all[r->n++];
}

pseg_status pseg_rehearsal_note(pseg_rehearsal *r, const pseg_kernel *k, unsigned n_dims,
                                const size_t *global, const size_t *local, const pseg_arg *args,
                                size_t n_args, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    rehearsed *e = entry_of(r, k);
    size_t items = 1;

    if (!e)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    for (unsigned d = 0; d < n_dims; d++)
        items *= global[d];
    if (items >= e->items)
        goto out;
    pseg_arg *copy = args_copy(args, n_args);
    if (!copy)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    args_free(e->args, e->n_args);
    e->args = copy;
    e->n_args = n_args;
    e->items = items;
    e->n_dims = n_dims;
    e->has_local = local != NULL;
    for (unsigned d = 0; d < n_dims; d++) {
        e->global[d] = global[d];
        e->local[d] = local ? local[d] : 0;
    }
out:
    return rc;
}

pseg_rehearsal *pseg_rehearsal_new(void)
{
    return pseg_calloc(1, sizeof(pseg_rehearsal));
}

/* Programs from the last to the first, so that those which the other process begins with, and
 * shares among many kernels, are ready when it is their turn. */
pseg_status pseg_rehearsal_run(pseg_rehearsal *r, pseg_stream *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (size_t p = r->n_programs; p-- > 0;)
        for (size_t i = r->n; i-- > 0;) {
            const rehearsed *e = &r->all[i];
            if (e->program != p || !e->args)
                continue;
            PSEG_TRY(pseg_launch(s, e->kernel, e->n_dims, e->global, e->has_local ? e->local : NULL,
                                 e->args, e->n_args, err));
            PSEG_TRY(pseg_stream_finish(s, err));
        }
out:
    return rc;
}
