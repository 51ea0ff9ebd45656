/* Device memory of a model, and the loaders that fill it (weights.h). */
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "worker/model/weights.h"

#include <stdio.h>
#include <string.h>

typedef struct piece {
    pseg_mem *mem;
    void *host; /* ours, kept while the device uses it in place */
} piece;

struct pseg_store {
    pseg_cl *cl;
    piece *items;
    size_t n, cap;
    pseg_dtype type;
    uint64_t weight_bytes, activation_bytes, shared_bytes;
    pseg_packer *packer; /* borrowed; NULL: pieces go to the device */
    pseg_packed *packed; /* or NULL */
    bool is_refused;
    pseg_err why; /* if is_refused */
};

pseg_status pseg_store_new(pseg_store **out, pseg_cl *cl, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *out = pseg_calloc(1, sizeof **out);
    if (!*out)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a model");
    (*out)->cl = cl;
out:
    return rc;
}

void pseg_store_free(pseg_store *s)
{
    if (!s)
        return;
    for (size_t i = s->n; i-- > 0;) {
        pseg_mem_free(s->items[i].mem);
        pseg_free(s->items[i].host);
    }
    pseg_packed_close(s->packed);
    pseg_free(s->items);
    pseg_free(s);
}

void pseg_store_pack_to(pseg_store *s, pseg_packer *p)
{
    s->packer = p;
}

void pseg_store_take_from(pseg_store *s, pseg_packed *f)
{
    s->packed = f;
}

bool pseg_store_loaded(pseg_store *s, pseg_err *why)
{
    if (s->packed && !s->is_refused && !pseg_packed_is_used_up(s->packed)) {
        s->is_refused = true;
        pseg_err_set(&s->why, PSEG_R_MODEL_CORRUPT, 0, PSEG_HERE,
                     "it has more pieces than the model asks for");
    }
    if (s->is_refused && why)
        *why = s->why;
    if (!s->shared_bytes) {
        pseg_packed_close(s->packed);
        s->packed = NULL;
    }
    return !s->is_refused;
}

uint64_t pseg_store_weight_bytes(const pseg_store *s)
{
    return s->weight_bytes;
}

uint64_t pseg_store_activation_bytes(const pseg_store *s)
{
    return s->activation_bytes;
}

uint64_t pseg_store_shared_bytes(const pseg_store *s)
{
    return s->shared_bytes;
}

/* Room for one more piece, so that keeping it cannot fail after it was made. */
static pseg_status reserve(pseg_store *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 64;
        piece *items = pseg_realloc(s->items, cap * sizeof *items);
        if (!items)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a model's list of buffers");
        s->items = items;
        s->cap = cap;
    }
out:
    return rc;
}

void pseg_store_set_type(pseg_store *s, pseg_dtype type)
{
    s->type = type;
}

pseg_dtype pseg_store_type(const pseg_store *s)
{
    return s->type;
}

pseg_dtype pseg_store_input_type(const pseg_store *s)
{
    return s->type == PSEG_BF16 ? PSEG_BF16 : PSEG_F32;
}

static size_t size_of(pseg_dtype type)
{
    return type == PSEG_BF16 ? sizeof(uint16_t) : sizeof(float);
}

/* Writes a piece's numbers; to: zeros. */
typedef pseg_status make_fn(void *to, void *ud, pseg_err *err);

/* The piece in the file, or NULL: then it must be made. */
static const void *take(pseg_store *s, const char *name, pseg_dtype type, size_t bytes)
{
    const void *data = NULL;

    if (s->packed && !s->is_refused &&
        pseg_packed_next(&data, s->packed, name, (uint32_t)type, bytes, &s->why) != PSEG_OK)
        s->is_refused = true;
    return data;
}

/* The way of every weight to the device: n numbers that lie in the file of packed weights, or that
 * make writes; into the file, in the pass that makes it. name, type and n, in this order of calls,
 * are what both passes must agree on. */
static pseg_status place(pseg_view *out, pseg_store *s, const char *name, pseg_dtype type, size_t n,
                         make_fn *make, void *ud, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_mem *mem = NULL;
    size_t bytes = 0;
    void *own = NULL;

    *out = (pseg_view){NULL, 0, type};
    if (n == 0 || !pseg_mul_size(&bytes, n, size_of(type)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu weights of %s", n, name);
    PSEG_TRY(reserve(s, err));
    const void *host = take(s, name, type, bytes);
    bool is_shared = host != NULL;
    if (!host) {
        own = pseg_aligned_alloc(bytes);
        if (!own)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu weights of %s", n, name);
        memset(own, 0, bytes);
        PSEG_TRY(make(own, ud, err));
        host = own;
    }
    if (s->packer) {
        PSEG_TRY(pseg_packer_add(s->packer, name, (uint32_t)type, host, bytes, err));
        goto out;
    }
    PSEG_TRY(pseg_mem_wrap(&mem, s->cl, host, bytes, err));
    piece *p = &s->items[s->n++];
    *p = (piece){.mem = mem};
    if (pseg_mem_is_in_place(mem)) {
        p->host = own;
        own = NULL;
        s->shared_bytes += is_shared ? bytes : 0;
    } else if (is_shared) {
        pseg_map_drop(host, bytes); /* copied */
    }
    s->weight_bytes += bytes;
    out->mem = mem;
out:
    pseg_free(own);
    return rc;
}

typedef struct given {
    const float *host;
    size_t n;
} given;

static pseg_status copy_given(void *to, void *ud, pseg_err *err)
{
    const given *g = ud;

    (void)err;
    memcpy(to, g->host, g->n * sizeof *g->host);
    return PSEG_OK;
}

pseg_status pseg_store_floats(pseg_view *out, pseg_store *s, float *host, size_t n, pseg_err *err)
{
    pseg_status rc = place(out, s, "(made)", PSEG_F32, n, copy_given, &(given){host, n}, err);

    pseg_free(host);
    return rc;
}

pseg_status pseg_store_scratch_of(pseg_view *out, pseg_store *s, pseg_dtype type, size_t n,
                                  pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_mem *mem = NULL;
    size_t bytes;

    if (!pseg_mul_size(&bytes, n, size_of(type)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "an activation of %zu numbers is too large", n);
    *out = (pseg_view){NULL, 0, type};
    if (s->packer)
        goto out;
    PSEG_TRY(reserve(s, err));
    PSEG_TRY(pseg_mem_new(&mem, s->cl, bytes ? bytes : 4, err));
    s->items[s->n++] = (piece){.mem = mem};
    s->activation_bytes += bytes;
    out->mem = mem;
out:
    return rc;
}

pseg_status pseg_store_scratch(pseg_view *out, pseg_store *s, size_t n, pseg_err *err)
{
    return pseg_store_scratch_of(out, s, PSEG_F32, n, err);
}

/* ---- loaders --------------------------------------------------------------------------------- */

/* What a piece is made of: n_parts tensors "PART.weight" or "PART.bias", or one by its whole name,
 * of n x k numbers each. */
typedef struct origin {
    const pseg_store *s;
    pseg_weights *w;
    const char *const *parts;
    size_t n_parts, n, k;
} origin;

static pseg_status floats_new(float **out, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t bytes = 0;

    *out = NULL;
    if (n == 0 || !pseg_mul_size(&bytes, n, sizeof **out) || !(*out = pseg_aligned_alloc(bytes)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu weights", n);
out:
    return rc;
}

static pseg_status make_vector(void *to, void *ud, pseg_err *err)
{
    const origin *o = ud;
    pseg_status rc = PSEG_OK;
    pseg_values v;

    PSEG_TRY(pseg_weights_get(&v, o->w, o->n, err, "%s", o->parts[0]));
    pseg_to_f32(to, v.data, v.type, o->n);
out:
    return rc;
}

pseg_status pseg_load_vector(pseg_view *out, pseg_store *s, pseg_weights *w, size_t n,
                             pseg_err *err, const char *fmt, ...)
{
    char name[PSEG_SPEC_NAME];
    const char *whole = name;
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    return place(out, s, name, PSEG_F32, n, make_vector, &(origin){.w = w, .parts = &whole, .n = n},
                 err);
}

static void pack_rows(void *out, const pseg_store *s, size_t row, const void *data, pseg_dtype type,
                      size_t n, size_t k)
{
    if (s->type == PSEG_BF16)
        pseg_gemm_pack_bf16_rows(out, row, data, type, n, k);
    else if (s->type == PSEG_BF16X2)
        pseg_gemm_pack_bf16x2_rows(out, row, data, type, n, k);
    else
        pseg_gemm_pack_rows(out, row, data, type, n, k);
}

/* Places "PREFIX.weight", a matrix [n, k] that make packs as the store's type wants it. */
static pseg_status place_matrix(pseg_linear *out, pseg_store *s, const char *prefix, size_t n,
                                size_t k, make_fn *make, origin *o, pseg_err *err)
{
    size_t kp = (k + PSEG_BF16_STEP - 1) / PSEG_BF16_STEP * PSEG_BF16_STEP;
    size_t elems =
        s->type == PSEG_F32 ? pseg_gemm_packed_elems(n, k) : pseg_gemm_packed_bf16_elems(n, k);
    char name[PSEG_SPEC_NAME];

    *out = (pseg_linear){.n = n, .k = s->type == PSEG_BF16 ? kp : k};
    snprintf(name, sizeof name, "%s.weight", prefix);
    return place(&out->w, s, name, s->type, elems, make, o, err);
}

static pseg_status place_bias(pseg_view *out, pseg_store *s, const char *prefix, size_t n,
                              make_fn *make, origin *o, pseg_err *err)
{
    char name[PSEG_SPEC_NAME];

    snprintf(name, sizeof name, "%s.bias", prefix);
    return place(out, s, name, PSEG_F32, n, make, o, err);
}

static pseg_status make_stacked(void *to, void *ud, pseg_err *err)
{
    const origin *o = ud;
    pseg_status rc = PSEG_OK;
    pseg_values v;

    for (size_t i = 0; i < o->n_parts; i++) {
        PSEG_TRY(pseg_weights_get(&v, o->w, o->n * o->k, err, "%s.weight", o->parts[i]));
        pack_rows(to, o->s, i * o->n, v.data, v.type, o->n, o->k);
    }
out:
    return rc;
}

static pseg_status make_biases(void *to, void *ud, pseg_err *err)
{
    const origin *o = ud;
    pseg_status rc = PSEG_OK;
    pseg_values v;

    for (size_t i = 0; i < o->n_parts; i++) {
        PSEG_TRY(pseg_weights_get(&v, o->w, o->n, err, "%s.bias", o->parts[i]));
        pseg_to_f32((float *)to + i * o->n, v.data, v.type, o->n);
    }
out:
    return rc;
}

pseg_status pseg_load_linear(pseg_linear *out, pseg_store *s, pseg_weights *w, const char *prefix,
                             size_t n, size_t k, bool with_bias, pseg_err *err)
{
    return pseg_load_stacked(out, s, w, &prefix, 1, n, k, with_bias, err);
}

pseg_status pseg_load_stacked(pseg_linear *out, pseg_store *s, pseg_weights *w,
                              const char *const *prefixes, size_t n_prefixes, size_t n_each,
                              size_t k, bool with_bias, pseg_err *err)
{
    origin o = {s, w, prefixes, n_prefixes, n_each, k};
    pseg_status rc = PSEG_OK;
    size_t n = n_prefixes * n_each;

    PSEG_TRY(place_matrix(out, s, prefixes[0], n, k, make_stacked, &o, err));
    if (with_bias)
        PSEG_TRY(place_bias(&out->bias, s, prefixes[0], n, make_biases, &o, err));
out:
    return rc;
}

/* "PREFIX.weight" as float32; caller frees with pseg_free. */
static pseg_status get_f32(float **out, pseg_weights *w, size_t n, const char *prefix,
                           pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_values v;

    PSEG_TRY(pseg_weights_get(&v, w, n, err, "%s.weight", prefix));
    PSEG_TRY(floats_new(out, n, err));
    pseg_to_f32(*out, v.data, v.type, n);
out:
    return rc;
}

/* n: out channels; k: in channels. */
static pseg_status make_conv3(void *to, void *ud, pseg_err *err)
{
    const origin *o = ud;
    pseg_status rc = PSEG_OK;
    float *plain = NULL, *turned = NULL;
    size_t all = o->n * o->k * 9;

    PSEG_TRY(get_f32(&plain, o->w, all, o->parts[0], err));
    PSEG_TRY(floats_new(&turned, all, err));
    pseg_conv3_weight(turned, plain, o->n, o->k);
    pack_rows(to, o->s, 0, turned, PSEG_F32, o->n, 9 * o->k);
out:
    pseg_free(plain);
    pseg_free(turned);
    return rc;
}

pseg_status pseg_load_conv3(pseg_linear *out, pseg_store *s, pseg_weights *w, const char *prefix,
                            size_t n, size_t c, pseg_err *err)
{
    origin o = {s, w, &prefix, 1, n, c};
    pseg_status rc = PSEG_OK;

    PSEG_TRY(place_matrix(out, s, prefix, n, 9 * c, make_conv3, &o, err));
    PSEG_TRY(place_bias(&out->bias, s, prefix, n, make_biases, &o, err));
out:
    return rc;
}

static pseg_status make_convt2(void *to, void *ud, pseg_err *err)
{
    const origin *o = ud;
    pseg_status rc = PSEG_OK;
    float *plain = NULL, *turned = NULL;
    size_t all = o->n * o->k * 4;

    PSEG_TRY(get_f32(&plain, o->w, all, o->parts[0], err));
    PSEG_TRY(floats_new(&turned, all, err));
    pseg_convt2_weight(turned, plain, o->k, o->n);
    pack_rows(to, o->s, 0, turned, PSEG_F32, 4 * o->n, o->k);
out:
    pseg_free(plain);
    pseg_free(turned);
    return rc;
}

static pseg_status make_four_biases(void *to, void *ud, pseg_err *err)
{
    const origin *o = ud;
    pseg_status rc = PSEG_OK;
    float *one = NULL;

    PSEG_TRY(floats_new(&one, o->n, err));
    PSEG_TRY(make_biases(one, ud, err));
    pseg_convt2_bias(to, one, o->n);
out:
    pseg_free(one);
    return rc;
}

pseg_status pseg_load_convt2(pseg_linear *out, pseg_store *s, pseg_weights *w, const char *prefix,
                             size_t c, size_t n, pseg_err *err)
{
    origin o = {s, w, &prefix, 1, n, c};
    pseg_status rc = PSEG_OK;

    PSEG_TRY(place_matrix(out, s, prefix, 4 * n, c, make_convt2, &o, err));
    PSEG_TRY(place_bias(&out->bias, s, prefix, 4 * n, make_four_biases, &o, err));
out:
    return rc;
}

pseg_status pseg_load_norm(pseg_norm *out, pseg_store *s, pseg_weights *w, const char *prefix,
                           size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_load_vector(&out->w, s, w, n, err, "%s.weight", prefix));
    PSEG_TRY(pseg_load_vector(&out->b, s, w, n, err, "%s.bias", prefix));
out:
    return rc;
}
