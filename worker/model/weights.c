#include "worker/model/weights.h"
#include "common/base/alloc.h"
#include "common/base/file.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- lists of expected tensors --------------------------------------------------------------- */

static pseg_status specs_push(pseg_specs *s, const char *name, uint32_t rank, const uint64_t *dims,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 64;
        pseg_spec *items = pseg_realloc(s->items, cap * sizeof *items);
        if (!items)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a list of tensors");
        s->items = items;
        s->cap = cap;
    }
    pseg_spec *p = &s->items[s->n];
    *p = (pseg_spec){.rank = rank};
    snprintf(p->name, sizeof p->name, "%s", name);
    memcpy(p->dims, dims, rank * sizeof *dims);
    s->n++;
out:
    return rc;
}

pseg_status pseg_specs_add(pseg_specs *s, uint32_t rank, const uint64_t *dims, pseg_err *err,
                           const char *fmt, ...)
{
    char name[PSEG_SPEC_NAME];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    return specs_push(s, name, rank, dims, err);
}

pseg_status pseg_specs_linear(pseg_specs *s, const char *prefix, uint64_t n, uint64_t k,
                              bool with_bias, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_specs_add(s, 2, (uint64_t[]){n, k}, err, "%s.weight", prefix));
    if (with_bias)
        PSEG_TRY(pseg_specs_add(s, 1, &n, err, "%s.bias", prefix));
out:
    return rc;
}

pseg_status pseg_specs_norm(pseg_specs *s, const char *prefix, uint64_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_specs_add(s, 1, &n, err, "%s.weight", prefix));
    PSEG_TRY(pseg_specs_add(s, 1, &n, err, "%s.bias", prefix));
out:
    return rc;
}

void pseg_specs_deinit(pseg_specs *s)
{
    pseg_free(s->items);
    *s = (pseg_specs){NULL, 0, 0};
}

static uint64_t product(const uint64_t *dims, uint32_t rank)
{
    uint64_t n = 1;

    for (uint32_t i = 0; i < rank; i++)
        n *= dims[i];
    return n;
}

uint64_t pseg_specs_params(const pseg_specs *s)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < s->n; i++)
        sum += product(s->items[i].dims, s->items[i].rank);
    return sum;
}

/* ---- sources --------------------------------------------------------------------------------- */

struct pseg_weights {
    const pseg_tensors *tensors; /* NULL: fn makes the numbers */
    char prefix[64];
    pseg_fill_fn *fn;
    pseg_overlay_fn *over; /* or NULL */
    void *ud, *over_ud;
    float *scratch; /* what fn or over made in the last get */
    size_t cap;
    const pseg_tensor *last; /* what the last get gave out of a file */
};

pseg_status pseg_weights_from_tensors(pseg_weights **out, const pseg_tensors *t, const char *prefix,
                                      pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_weights *w = NULL;

    *out = NULL;
    PSEG_REQUIRE(strlen(prefix) < sizeof w->prefix, "prefix");
    w = pseg_calloc(1, sizeof *w);
    if (!w)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to read weights");
    w->tensors = t;
    memcpy(w->prefix, prefix, strlen(prefix));
    *out = w;
out:
    return rc;
}

pseg_status pseg_weights_from_fn(pseg_weights **out, pseg_fill_fn *fn, void *ud, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *out = pseg_calloc(1, sizeof **out);
    if (!*out)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for weights");
    (*out)->fn = fn;
    (*out)->ud = ud;
out:
    return rc;
}

void pseg_weights_overlay(pseg_weights *w, pseg_overlay_fn *fn, void *ud)
{
    w->over = fn;
    w->over_ud = ud;
}

void pseg_weights_free(pseg_weights *w)
{
    if (!w)
        return;
    pseg_free(w->scratch);
    pseg_free(w);
}

static const pseg_tensor *find(const pseg_weights *w, const char *name)
{
    char full[PSEG_SPEC_NAME + sizeof w->prefix];

    snprintf(full, sizeof full, "%s%s", w->prefix, name);
    return pseg_tensors_find(w->tensors, full);
}

bool pseg_weights_has(const pseg_weights *w, const char *name)
{
    return !w->tensors || find(w, name);
}

bool pseg_weights_is_mapped(const pseg_weights *w)
{
    return w->tensors && !w->over;
}

static bool same_shape(const pseg_spec *s, const pseg_tensor *t)
{
    return s->rank == t->rank && memcmp(s->dims, t->dims, s->rank * sizeof *s->dims) == 0;
}

pseg_status pseg_weights_check(const pseg_weights *w, const pseg_specs *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char want[80], found[80];

    for (size_t i = 0; w->tensors && i < s->n; i++) {
        const pseg_spec *p = &s->items[i];
        const pseg_tensor *t = find(w, p->name);
        pseg_tensor_shape(want, sizeof want, p->dims, p->rank);
        if (!t && p->is_unused)
            continue;
        if (!t)
            PSEG_FAIL(PSEG_R_MODEL_MISMATCH, 0, "%s: tensor %s%s is missing; expected %s",
                      pseg_tensors_path(w->tensors), w->prefix, p->name, want);
        pseg_tensor_shape(found, sizeof found, t->dims, t->rank);
        if (!same_shape(p, t))
            PSEG_FAIL(PSEG_R_MODEL_MISMATCH, 0, "%s: tensor %s has shape %s; expected %s", t->path,
                      t->name, found, want);
        if (t->type != PSEG_TENSOR_F32 && t->type != PSEG_TENSOR_F16 && t->type != PSEG_TENSOR_BF16)
            PSEG_FAIL(PSEG_R_MODEL_MISMATCH, 0, "%s: tensor %s holds %s; expected F32, F16 or BF16",
                      t->path, t->name, pseg_tensor_type_name(t->type));
    }
out:
    return rc;
}

/* splitmix64: one step and one mixing, so that numbers may be taken in any order. */
static uint64_t mix(uint64_t x)
{
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

static bool has_end(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);

    return n >= k && strcmp(s + n - k, end) == 0;
}

/* Norms near 1, biases near 0, matrices as in a trained transformer (0.02), LayerScale 0.1: so that
 * activations stay finite through any depth. */
void pseg_fill_random(void *ud, float *out, uint64_t n, const char *name)
{
    bool is_norm = has_end(name, ".weight") && (strstr(name, "norm") != NULL);
    float mean = is_norm ? 1.0f : has_end(name, "lambda1") ? 0.1f : 0.0f;
    float width = is_norm || mean != 0 ? 0.02f : 0.035f; /* uniform: sd 0.02 */
    uint64_t at = *(const uint64_t *)ud;

    for (const char *p = name; *p; p++)
        at = mix(at ^ (unsigned char)*p);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t r = mix(at + i);
        out[i] = mean + width * ((float)(r >> 40) * (2.0f / 16777216.0f) - 1.0f);
    }
}

/* Room in the scratch for n numbers. */
static pseg_status reserve(pseg_weights *w, uint64_t n, const char *name, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (n <= w->cap)
        goto out;
    pseg_free(w->scratch);
    w->cap = 0;
    w->scratch = pseg_calloc(n, sizeof *w->scratch);
    if (!w->scratch)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to make the tensor %s", name);
    w->cap = n;
out:
    return rc;
}

static pseg_status get(pseg_values *out, pseg_weights *w, uint64_t n, const char *name,
                       pseg_err *err)
{
    static const pseg_dtype types[] = {
        [PSEG_TENSOR_F32] = PSEG_F32, [PSEG_TENSOR_F16] = PSEG_F16, [PSEG_TENSOR_BF16] = PSEG_BF16};
    pseg_status rc = PSEG_OK;

    if (!w->tensors || w->over)
        PSEG_TRY(reserve(w, n, name, err));
    if (w->over && w->over(w->over_ud, w->scratch, n, name)) {
        *out = (pseg_values){w->scratch, PSEG_F32};
    } else if (w->tensors) {
        const pseg_tensor *t = find(w, name);
        if (!t || t->n != n || t->type > PSEG_TENSOR_BF16)
            PSEG_FAIL(PSEG_R_INTERNAL, 0, "%s: tensor %s was not checked before its use",
                      pseg_tensors_path(w->tensors), name);
        if (w->last)
            pseg_map_drop(w->last->data, w->last->bytes);
        w->last = t;
        *out = (pseg_values){t->data, types[t->type]};
    } else {
        w->fn(w->ud, w->scratch, n, name);
        *out = (pseg_values){w->scratch, PSEG_F32};
    }
out:
    return rc;
}

pseg_status pseg_weights_get(pseg_values *out, pseg_weights *w, uint64_t n, pseg_err *err,
                             const char *fmt, ...)
{
    char name[PSEG_SPEC_NAME];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    return get(out, w, n, name, err);
}
