/* Device memory of a model, and the loaders that fill it (weights.h). */
#include "common/base/alloc.h"
#include "worker/model/weights.h"

#include <stdio.h>
#include <string.h>

typedef struct piece {
    pseg_mem *mem;
    void *host; /* kept while the device uses it in place */
} piece;

struct pseg_store {
    pseg_cl *cl;
    piece *items;
    size_t n, cap;
    pseg_dtype type;
    uint64_t weight_bytes, activation_bytes;
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
    pseg_free(s->items);
    pseg_free(s);
}

uint64_t pseg_store_weight_bytes(const pseg_store *s)
{
    return s->weight_bytes;
}

uint64_t pseg_store_activation_bytes(const pseg_store *s)
{
    return s->activation_bytes;
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

/* Takes ownership of host, also on failure. */
static pseg_status keep(pseg_view *out, pseg_store *s, void *host, pseg_dtype type, size_t n,
                        pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_mem *mem = NULL;
    size_t bytes = n * size_of(type);

    PSEG_TRY(reserve(s, err));
    PSEG_TRY(pseg_mem_wrap(&mem, s->cl, host, bytes, err));
    piece *p = &s->items[s->n++];
    *p = (piece){.mem = mem};
    if (pseg_mem_is_in_place(mem)) {
        p->host = host;
        host = NULL;
    }
    s->weight_bytes += bytes;
    *out = (pseg_view){mem, 0, type};
out:
    pseg_free(host);
    return rc;
}

pseg_status pseg_store_floats(pseg_view *out, pseg_store *s, float *host, size_t n, pseg_err *err)
{
    return keep(out, s, host, PSEG_F32, n, err);
}

pseg_status pseg_store_scratch_of(pseg_view *out, pseg_store *s, pseg_dtype type, size_t n,
                                  pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_mem *mem = NULL;
    size_t bytes;

    if (!pseg_mul_size(&bytes, n, size_of(type)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "an activation of %zu numbers is too large", n);
    PSEG_TRY(reserve(s, err));
    PSEG_TRY(pseg_mem_new(&mem, s->cl, bytes ? bytes : 4, err));
    s->items[s->n++] = (piece){.mem = mem};
    s->activation_bytes += bytes;
    *out = (pseg_view){mem, 0, type};
out:
    return rc;
}

pseg_status pseg_store_scratch(pseg_view *out, pseg_store *s, size_t n, pseg_err *err)
{
    return pseg_store_scratch_of(out, s, PSEG_F32, n, err);
}

/* ---- loaders --------------------------------------------------------------------------------- */

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

pseg_status pseg_load_vector(pseg_view *out, pseg_store *s, pseg_weights *w, size_t n,
                             pseg_err *err, const char *fmt, ...)
{
    pseg_status rc = PSEG_OK;
    char name[PSEG_SPEC_NAME];
    pseg_values v;
    float *host = NULL;
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    PSEG_TRY(pseg_weights_get(&v, w, n, err, "%s", name));
    PSEG_TRY(floats_new(&host, n, err));
    pseg_to_f32(host, v.data, v.type, n);
    PSEG_TRY(pseg_store_floats(out, s, host, n, err));
out:
    return rc;
}

/* Room for a packed [n, k] matrix of the store's type, all zeros; caller frees with pseg_free. */
static pseg_status packed_new(void **out, size_t *elems, const pseg_store *s, size_t n, size_t k,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t bytes = 0;

    *elems = s->type != PSEG_F32 ? pseg_gemm_packed_bf16_elems(n, k) : pseg_gemm_packed_elems(n, k);
    *out = NULL;
    if (!*elems || !pseg_mul_size(&bytes, *elems, size_of(s->type)) ||
        !(*out = pseg_aligned_alloc(bytes)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a matrix of %zu x %zu weights", n, k);
    memset(*out, 0, bytes);
out:
    return rc;
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

static pseg_linear linear_of(const pseg_store *s, size_t n, size_t k)
{
    size_t kp = (k + PSEG_BF16_STEP - 1) / PSEG_BF16_STEP * PSEG_BF16_STEP;

    return (pseg_linear){.n = n, .k = s->type == PSEG_BF16 ? kp : k};
}

/* Packs an [n, k] matrix that lies in host memory; frees nothing. */
static pseg_status load_packed(pseg_view *out, pseg_store *s, const void *data, pseg_dtype type,
                               size_t n, size_t k, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    void *host = NULL;
    size_t elems;

    PSEG_TRY(packed_new(&host, &elems, s, n, k, err));
    pack_rows(host, s, 0, data, type, n, k);
    PSEG_TRY(keep(out, s, host, s->type, elems, err));
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
    pseg_status rc = PSEG_OK;
    size_t n = n_prefixes * n_each, elems;
    void *packed = NULL, *full;
    float *bias = NULL, *given;
    pseg_values v;

    *out = linear_of(s, n, k);
    PSEG_TRY(packed_new(&packed, &elems, s, n, k, err));
    for (size_t i = 0; i < n_prefixes; i++) {
        PSEG_TRY(pseg_weights_get(&v, w, n_each * k, err, "%s.weight", prefixes[i]));
        pack_rows(packed, s, i * n_each, v.data, v.type, n_each, k);
    }
    full = packed;
    packed = NULL;
    PSEG_TRY(keep(&out->w, s, full, s->type, elems, err));
    if (!with_bias)
        goto out;
    PSEG_TRY(floats_new(&bias, n, err));
    for (size_t i = 0; i < n_prefixes; i++) {
        PSEG_TRY(pseg_weights_get(&v, w, n_each, err, "%s.bias", prefixes[i]));
        pseg_to_f32(bias + i * n_each, v.data, v.type, n_each);
    }
    given = bias;
    bias = NULL;
    PSEG_TRY(pseg_store_floats(&out->bias, s, given, n, err));
out:
    pseg_free(packed);
    pseg_free(bias);
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

pseg_status pseg_load_conv3(pseg_linear *out, pseg_store *s, pseg_weights *w, const char *prefix,
                            size_t n, size_t c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    float *plain = NULL, *turned = NULL;

    *out = linear_of(s, n, 9 * c);
    PSEG_TRY(get_f32(&plain, w, n * c * 9, prefix, err));
    PSEG_TRY(floats_new(&turned, n * c * 9, err));
    pseg_conv3_weight(turned, plain, n, c);
    PSEG_TRY(load_packed(&out->w, s, turned, PSEG_F32, n, 9 * c, err));
    PSEG_TRY(pseg_load_vector(&out->bias, s, w, n, err, "%s.bias", prefix));
out:
    pseg_free(plain);
    pseg_free(turned);
    return rc;
}

pseg_status pseg_load_convt2(pseg_linear *out, pseg_store *s, pseg_weights *w, const char *prefix,
                             size_t c, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    float *plain = NULL, *turned = NULL, *one = NULL, *four = NULL;
    pseg_values v;

    *out = linear_of(s, 4 * n, c);
    PSEG_TRY(get_f32(&plain, w, c * n * 4, prefix, err));
    PSEG_TRY(floats_new(&turned, c * n * 4, err));
    pseg_convt2_weight(turned, plain, c, n);
    PSEG_TRY(load_packed(&out->w, s, turned, PSEG_F32, 4 * n, c, err));
    PSEG_TRY(pseg_weights_get(&v, w, n, err, "%s.bias", prefix));
    PSEG_TRY(floats_new(&one, n, err));
    PSEG_TRY(floats_new(&four, 4 * n, err));
    pseg_to_f32(one, v.data, v.type, n);
    pseg_convt2_bias(four, one, n);
    float *given = four;
    four = NULL;
    PSEG_TRY(pseg_store_floats(&out->bias, s, given, 4 * n, err));
out:
    pseg_free(plain);
    pseg_free(turned);
    pseg_free(one);
    pseg_free(four);
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
