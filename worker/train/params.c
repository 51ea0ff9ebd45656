#include "worker/train/params.h"
#include "common/base/alloc.h"

#include <string.h>

#define ALIGN 64 /* elements: every tensor begins on a cache line of any device */

struct pseg_params {
    pseg_param *items;
    size_t n, elems, all;
    uint64_t total;
    pseg_params_range ranges[2 * PSEG_PARAM_N_GROUPS];
    size_t n_ranges;
    pseg_mem *mem[PSEG_PARAMS_N_BUFFERS];
};

/* ---- which tensor lies how ------------------------------------------------------------------- */

static bool starts(const char *s, const char *with)
{
    return strncmp(s, with, strlen(with)) == 0;
}

static pseg_status classify(pseg_param *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_spec *s = &p->spec;
    const uint64_t *d = s->dims;
    size_t n = 1;

    for (uint32_t i = 0; i < s->rank; i++)
        n *= (size_t)d[i];
    p->plain = n;
    p->group = starts(s->name, "neck.")     ? PSEG_PARAM_NECK
               : starts(s->name, "vision.") ? PSEG_PARAM_VISION
               : starts(s->name, "text.")   ? PSEG_PARAM_TEXT
               : starts(s->name, "probe.")  ? PSEG_PARAM_PROBE
                                            : PSEG_PARAM_DECODER;
    p->n = n;
    p->k = 1;
    if (s->rank == 4 && strcmp(s->name, "decoder.pos_embed") == 0) {
        p->kind = PSEG_PARAM_GRID;
    } else if (s->rank == 4 && (p->group == PSEG_PARAM_VISION || (d[2] == 1 && d[3] == 1))) {
        p->kind = PSEG_PARAM_LINEAR;
    } else if (s->rank == 4 && starts(s->name, "decoder.upsample.") && d[2] == 2 && d[3] == 2) {
        p->kind = PSEG_PARAM_CONVT2;
    } else if (s->rank == 4 && d[2] == 3 && d[3] == 3) {
        p->kind = PSEG_PARAM_CONV3;
    } else if (s->rank == 2 && strstr(s->name, "embedding.weight")) {
        p->kind = PSEG_PARAM_VECTOR; /* a table of tokens, or of positions */
    } else if (s->rank == 2 && d[0] > 1) {
        p->kind = PSEG_PARAM_LINEAR;
    } else if (s->rank == 2 && strstr(s->name, ".weight")) {
        p->kind = PSEG_PARAM_LINEAR; /* a Linear to one number */
    } else if (s->rank >= 1 && s->rank <= 3) {
        p->kind = PSEG_PARAM_VECTOR;
    } else {
        PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "tensor %s: no way to train one of its shape", s->name);
    }
    p->has_decay = p->kind != PSEG_PARAM_VECTOR && p->kind != PSEG_PARAM_GRID;
    switch (p->kind) {
    case PSEG_PARAM_LINEAR:
        p->n = (size_t)d[0], p->k = n / (size_t)d[0];
        break;
    case PSEG_PARAM_CONV3:
        p->n = (size_t)d[0], p->k = 9 * (size_t)d[1];
        break;
    case PSEG_PARAM_CONVT2:
        p->n = 4 * (size_t)d[1], p->k = (size_t)d[0];
        break;
    default:
        break;
    }
    p->elems = p->has_decay ? pseg_gemm_packed_elems(p->n, p->k) : p->n;
out:
    return rc;
}

/* Offsets, group by group. */
static void place(pseg_params *p)
{
    for (int group = 0; group < PSEG_PARAM_N_GROUPS; group++)
        for (int decay = 0; decay < 2; decay++) {
            pseg_params_range r = {.off = p->elems, .group = (pseg_param_group)group};

            r.has_decay = decay;
            for (size_t i = 0; i < p->n; i++) {
                pseg_param *t = &p->items[i];

                if (t->is_frozen || (int)t->group != group || t->has_decay != r.has_decay)
                    continue;
                t->off = p->elems;
                p->elems += (t->elems + ALIGN - 1) / ALIGN * ALIGN;
            }
            r.elems = p->elems - r.off;
            if (r.elems)
                p->ranges[p->n_ranges++] = r;
        }
    p->all = p->elems;
    for (size_t i = 0; i < p->n; i++) {
        pseg_param *t = &p->items[i];

        if (!t->is_frozen)
            continue;
        t->off = p->all;
        p->all += (t->elems + ALIGN - 1) / ALIGN * ALIGN;
    }
}

static size_t elems_of(const pseg_params *p, pseg_params_buffer which)
{
    return which == PSEG_PARAMS_VALUE ? p->all : p->elems;
}

pseg_status pseg_params_new(pseg_params **out, pseg_cl *cl, const pseg_specs *specs,
                            const bool *is_frozen, bool has_ema, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_params *p = pseg_calloc(1, sizeof *p);
    pseg_stream *s = NULL;

    *out = NULL;
    if (!p || !(p->items = pseg_calloc(specs->n, sizeof *p->items)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a list of parameters");
    PSEG_TRY(pseg_stream_open(&s, cl, err));
    for (size_t i = 0; i < specs->n; i++) {
        if (specs->items[i].is_unused)
            continue;
        p->items[p->n].spec = specs->items[i];
        PSEG_TRY(classify(&p->items[p->n], err));
        p->items[p->n].is_frozen = is_frozen && is_frozen[i];
        p->total += p->items[p->n].is_frozen ? 0 : p->items[p->n].plain;
        p->n++;
    }
    place(p);
    PSEG_REQUIRE(p->elems > 0, "something to train");
    for (int i = 0; i < PSEG_PARAMS_N_BUFFERS; i++) {
        if (i == PSEG_PARAMS_EMA && !has_ema)
            continue;
        PSEG_TRY(
            pseg_mem_new(&p->mem[i], cl, elems_of(p, (pseg_params_buffer)i) * sizeof(float), err));
        PSEG_TRY(pseg_params_zero(p, s, (pseg_params_buffer)i, err));
    }
    PSEG_TRY(pseg_stream_finish(s, err));
    *out = p;
    p = NULL;
out:
    pseg_stream_close(s);
    pseg_params_free(p);
    return rc;
}

void pseg_params_free(pseg_params *p)
{
    if (!p)
        return;
    for (int i = 0; i < PSEG_PARAMS_N_BUFFERS; i++)
        pseg_mem_free(p->mem[i]);
    pseg_free(p->items);
    pseg_free(p);
}

/* ---- looking --------------------------------------------------------------------------------- */

size_t pseg_params_count(const pseg_params *p)
{
    return p->n;
}

const pseg_param *pseg_params_at(const pseg_params *p, size_t i)
{
    return &p->items[i];
}

size_t pseg_params_find(const pseg_params *p, const char *name)
{
    for (size_t i = 0; i < p->n; i++)
        if (strcmp(p->items[i].spec.name, name) == 0)
            return i;
    return SIZE_MAX;
}

size_t pseg_params_elems(const pseg_params *p)
{
    return p->elems;
}

size_t pseg_params_all_elems(const pseg_params *p)
{
    return p->all;
}

uint64_t pseg_params_total(const pseg_params *p)
{
    return p->total;
}

bool pseg_params_has_ema(const pseg_params *p)
{
    return p->mem[PSEG_PARAMS_EMA];
}

pseg_view pseg_params_view(const pseg_params *p, size_t i, pseg_params_buffer which)
{
    return pseg_view_of(p->mem[which], p->items[i].off);
}

pseg_mem *pseg_params_mem(const pseg_params *p, pseg_params_buffer which)
{
    return p->mem[which];
}

size_t pseg_params_ranges(const pseg_params *p, const pseg_params_range **out)
{
    *out = p->ranges;
    return p->n_ranges;
}

/* ---- whole buffers --------------------------------------------------------------------------- */

pseg_status pseg_params_read(float *host, const pseg_params *p, pseg_stream *s,
                             pseg_params_buffer which, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_mem_read(host, s, p->mem[which], 0, elems_of(p, which) * sizeof *host, err));
    PSEG_TRY(pseg_stream_finish(s, err));
out:
    return rc;
}

pseg_status pseg_params_write(pseg_params *p, pseg_stream *s, pseg_params_buffer which,
                              const float *host, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_mem_write(s, p->mem[which], 0, host, elems_of(p, which) * sizeof *host, err));
    PSEG_TRY(pseg_stream_finish(s, err));
out:
    return rc;
}

pseg_status pseg_params_zero(pseg_params *p, pseg_stream *s, pseg_params_buffer which,
                             pseg_err *err)
{
    return pseg_mem_zero(s, p->mem[which], 0, elems_of(p, which) * sizeof(float), err);
}

pseg_status pseg_params_copy(pseg_params *p, pseg_stream *s, pseg_params_buffer to,
                             pseg_params_buffer from, pseg_err *err)
{
    return pseg_mem_copy(s, p->mem[to], 0, p->mem[from], 0, p->elems * sizeof(float), err);
}

/* ---- layouts --------------------------------------------------------------------------------- */

/* The inverse of pseg_gemm_pack. */
static void unpack_matrix(float *out, const float *packed, size_t n, size_t k)
{
    for (size_t r = 0; r < n; r++) {
        const float *from = packed + r / PSEG_PANEL * k * PSEG_PANEL + r % PSEG_PANEL;

        for (size_t c = 0; c < k; c++)
            out[r * k + c] = from[c * PSEG_PANEL];
    }
}

/* [rows, cols] to [cols, rows]. */
static void transpose(float *out, const float *in, size_t rows, size_t cols)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++)
            out[c * rows + r] = in[r * cols + c];
}

pseg_status pseg_params_pack(float *host, const pseg_params *p, size_t i, const float *plain,
                             pseg_err *err)
{
    const pseg_param *t = &p->items[i];
    pseg_status rc = PSEG_OK;
    float *to = host + t->off, *turned = NULL;

    switch (t->kind) {
    case PSEG_PARAM_VECTOR:
        memcpy(to, plain, t->n * sizeof *to);
        goto out;
    case PSEG_PARAM_GRID:
        transpose(to, plain, (size_t)t->spec.dims[1], (size_t)(t->spec.dims[2] * t->spec.dims[3]));
        goto out;
    case PSEG_PARAM_LINEAR:
        pseg_gemm_pack(to, plain, PSEG_F32, t->n, t->k);
        goto out;
    default:
        break;
    }
    turned = pseg_malloc(t->plain * sizeof *turned);
    if (!turned)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %s", t->spec.name);
    if (t->kind == PSEG_PARAM_CONV3)
        pseg_conv3_weight(turned, plain, t->n, t->k / 9);
    else
        pseg_convt2_weight(turned, plain, t->k, t->n / 4);
    pseg_gemm_pack(to, turned, PSEG_F32, t->n, t->k);
out:
    pseg_free(turned);
    return rc;
}

pseg_status pseg_params_unpack(float *plain, const pseg_params *p, size_t i, const float *host,
                               pseg_err *err)
{
    const pseg_param *t = &p->items[i];
    pseg_status rc = PSEG_OK;
    const float *from = host + t->off;
    float *turned = NULL;

    switch (t->kind) {
    case PSEG_PARAM_VECTOR:
        memcpy(plain, from, t->n * sizeof *plain);
        goto out;
    case PSEG_PARAM_GRID:
        transpose(plain, from, (size_t)(t->spec.dims[2] * t->spec.dims[3]),
                  (size_t)t->spec.dims[1]);
        goto out;
    case PSEG_PARAM_LINEAR:
        unpack_matrix(plain, from, t->n, t->k);
        goto out;
    default:
        break;
    }
    turned = pseg_malloc(t->plain * sizeof *turned);
    if (!turned)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %s", t->spec.name);
    unpack_matrix(turned, from, t->n, t->k);
    if (t->kind == PSEG_PARAM_CONV3) {
        size_t c = t->k / 9;
        for (size_t o = 0; o < t->n; o++) /* [9, c] to [c, 9] */
            transpose(plain + o * t->k, turned + o * t->k, 9, c);
    } else {
        /* [4, n] rows of c to [c][n][4] */
        size_t n = t->n / 4, c = t->k;
        for (size_t tap = 0; tap < 4; tap++)
            for (size_t o = 0; o < n; o++)
                for (size_t j = 0; j < c; j++)
                    plain[(j * n + o) * 4 + tap] = turned[(tap * n + o) * c + j];
    }
out:
    pseg_free(turned);
    return rc;
}

pseg_status pseg_params_load(pseg_params *p, pseg_stream *s, pseg_params_buffer which,
                             pseg_weights *w, const char *prefix, const char *under,
                             bool with_frozen, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    float *host = pseg_calloc(elems_of(p, which), sizeof *host), *plain = NULL;

    if (!host)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the parameters");
    PSEG_TRY(pseg_params_read(host, p, s, which, err));
    for (size_t i = 0; i < p->n; i++) {
        const pseg_param *t = &p->items[i];
        pseg_values v;

        if (!starts(t->spec.name, under) || (t->is_frozen && !with_frozen))
            continue;
        PSEG_TRY(
            pseg_weights_get(&v, w, t->plain, err, "%s%s", prefix, t->spec.name + strlen(under)));
        pseg_free(plain);
        plain = pseg_malloc(t->plain * sizeof *plain);
        if (!plain)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %s", t->spec.name);
        pseg_to_f32(plain, v.data, v.type, t->plain);
        PSEG_TRY(pseg_params_pack(host, p, i, plain, err));
    }
    PSEG_TRY(pseg_params_write(p, s, which, host, err));
out:
    pseg_free(plain);
    pseg_free(host);
    return rc;
}
