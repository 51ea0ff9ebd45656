/* The tensors that a model needs, and where they come from: files, or a generator (random numbers
 * for measurements, a formula in tests).
 *
 * A part of a model (vit.c, text.c, head.c) lists what it needs as pseg_specs. pseg_weights_check
 * compares the list with the source, so that a folder that does not fit is refused by name before
 * anything is read. Then the part fetches each tensor by the same name. */
#ifndef PSEG_MODEL_WEIGHTS_H
#define PSEG_MODEL_WEIGHTS_H

#include "common/base/err.h"
#include "worker/model/packed.h"
#include "worker/model/safetensors.h"
#include "worker/ops/ops.h"

#include <stdint.h>

#define PSEG_SPEC_NAME     112
#define PSEG_SPEC_MAX_RANK 4

typedef struct pseg_spec {
    char name[PSEG_SPEC_NAME]; /* without the source's prefix */
    uint32_t rank;
    uint64_t dims[PSEG_SPEC_MAX_RANK];
    bool is_unused; /* counted as a parameter, but may be missing: DINOv2's mask token */
} pseg_spec;

typedef struct pseg_specs {
    pseg_spec *items;
    size_t n, cap;
} pseg_specs;

/* Appends. fmt names the tensor, with at most one %u, which is `layer`. dims: rank of them. */
pseg_status pseg_specs_add(pseg_specs *s, uint32_t rank, const uint64_t *dims, pseg_err *err,
                           const char *fmt, ...) __attribute__((format(printf, 5, 6)));
/* A Linear: "PREFIX.weight" [n, k] and, with_bias, "PREFIX.bias" [n]. */
pseg_status pseg_specs_linear(pseg_specs *s, const char *prefix, uint64_t n, uint64_t k,
                              bool with_bias, pseg_err *err);
/* A norm: "PREFIX.weight" [n] and "PREFIX.bias" [n]. */
pseg_status pseg_specs_norm(pseg_specs *s, const char *prefix, uint64_t n, pseg_err *err);
void pseg_specs_deinit(pseg_specs *s);
uint64_t pseg_specs_params(const pseg_specs *s); /* numbers in all of them */

typedef struct pseg_weights pseg_weights;

/* Tensors of t, whose names begin with prefix ("" or "dinov2."). t is borrowed until
 * pseg_weights_free. */
pseg_status pseg_weights_from_tensors(pseg_weights **out, const pseg_tensors *t, const char *prefix,
                                      pseg_err *err);
/* Numbers that fn makes: n of them for the tensor `name`. ud is borrowed until
 * pseg_weights_free. */
typedef void pseg_fill_fn(void *ud, float *out, uint64_t n, const char *name);
pseg_status pseg_weights_from_fn(pseg_weights **out, pseg_fill_fn *fn, void *ud, pseg_err *err);
/* A pseg_fill_fn: random numbers of a trained model's size; ud points at a uint64_t, the seed. */
pseg_fill_fn pseg_fill_random;
/* fn is asked first for every tensor from now on: true if it has written the n numbers. ud is
 * borrowed until pseg_weights_free. */
typedef bool pseg_overlay_fn(void *ud, float *out, uint64_t n, const char *name);
void pseg_weights_overlay(pseg_weights *w, pseg_overlay_fn *fn, void *ud);
void pseg_weights_free(pseg_weights *w); /* NULL: nothing happens */

/* Is every tensor of the list there, in its shape and in a floating-point type? Errors:
 * PSEG_R_MODEL_MISMATCH, naming file, tensor, expected and found shape. */
pseg_status pseg_weights_check(const pseg_weights *w, const pseg_specs *s, pseg_err *err);
bool pseg_weights_has(const pseg_weights *w, const char *name);
/* Do values stay where they are until the tensors are closed? False for a generator's. */
bool pseg_weights_is_mapped(const pseg_weights *w);

/* Numbers of one tensor: of any alignment, n of them, as a check has promised. Borrowed until the
 * next call (generators) or the end of the tensors (files, which let go of the memory that the
 * tensor before took). Errors: PSEG_R_INTERNAL if there are
 * not n.
 */
typedef struct pseg_values {
    const void *data;
    pseg_dtype type;
} pseg_values;
pseg_status pseg_weights_get(pseg_values *out, pseg_weights *w, uint64_t n, pseg_err *err,
                             const char *fmt, ...) __attribute__((format(printf, 5, 6)));

/* ---- on the device --------------------------------------------------------------------------- */

/* Owns what a model has on the device. */
typedef struct pseg_store pseg_store;
pseg_status pseg_store_new(pseg_store **out, pseg_cl *cl, pseg_err *err);
void pseg_store_free(pseg_store *s); /* NULL: nothing happens */
uint64_t pseg_store_weight_bytes(const pseg_store *s);
uint64_t pseg_store_activation_bytes(const pseg_store *s);
/* Of the weights, what lies in a file that other processes share. */
uint64_t pseg_store_shared_bytes(const pseg_store *s);

/* Loading goes through a file of packed weights in two passes over the same loaders. The first
 * only writes: with a packer, which is borrowed until pseg_store_free, the store hands every piece
 * to it and forgets it, and gives views without memory, of weights and of scratch; so nothing that
 * is made of such a store can run, and no loader may run anything on the device. The second takes
 * the pieces out of the file, and reads no weights. To be called before anything is loaded. */
void pseg_store_pack_to(pseg_store *s, pseg_packer *p);
/* Takes ownership. A piece that is refused, and all after it, come from the weights. */
void pseg_store_take_from(pseg_store *s, pseg_packed *f);
/* After everything is loaded. False if the file was refused on the way or holds more than was asked
 * for: *why says so. Lets go of a file that the device has copied. */
bool pseg_store_loaded(pseg_store *s, pseg_err *why);

/* Gives n floats, which the loader has made of the weights, allocated with pseg_aligned_alloc, to
 * the device, read-only. Takes ownership of host, also on failure. */
pseg_status pseg_store_floats(pseg_view *out, pseg_store *s, float *host, size_t n, pseg_err *err);
/* n elements of 4 bytes to work in. */
pseg_status pseg_store_scratch(pseg_view *out, pseg_store *s, size_t n, pseg_err *err);
/* n elements of type F32 or BF16. */
pseg_status pseg_store_scratch_of(pseg_view *out, pseg_store *s, pseg_dtype type, size_t n,
                                  pseg_err *err);
/* The type of the matrices that are loaded from now on: F32, as it is at first, BF16 or BF16X2. */
void pseg_store_set_type(pseg_store *s, pseg_dtype type);
pseg_dtype pseg_store_type(const pseg_store *s);
/* The type of what is multiplied by them: BF16 for BF16, else F32. */
pseg_dtype pseg_store_input_type(const pseg_store *s);

/* From w to the device. A vector [n]. */
pseg_status pseg_load_vector(pseg_view *out, pseg_store *s, pseg_weights *w, size_t n,
                             pseg_err *err, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));

/* A matrix packed for pseg_op_gemm with its bias (w.mem set, bias.mem NULL if it has none). In
 * BF16, k is rounded up to a multiple of 32: what is multiplied has zeros there. */
typedef struct pseg_linear {
    pseg_view w, bias;
    size_t n, k;
} pseg_linear;
/* "PREFIX.weight" [n, k] and, if with_bias, "PREFIX.bias". */
pseg_status pseg_load_linear(pseg_linear *out, pseg_store *s, pseg_weights *w, const char *prefix,
                             size_t n, size_t k, bool with_bias, pseg_err *err);
/* Several of [n_each, k] below each other: one gemm for query, key and value. */
pseg_status pseg_load_stacked(pseg_linear *out, pseg_store *s, pseg_weights *w,
                              const char *const *prefixes, size_t n_prefixes, size_t n_each,
                              size_t k, bool with_bias, pseg_err *err);
/* Conv2d 3x3 [n, c, 3, 3] for im2col3, and ConvTranspose2d k2 s2 [c, n, 2, 2] for shuffle2. */
pseg_status pseg_load_conv3(pseg_linear *out, pseg_store *s, pseg_weights *w, const char *prefix,
                            size_t n, size_t c, pseg_err *err);
pseg_status pseg_load_convt2(pseg_linear *out, pseg_store *s, pseg_weights *w, const char *prefix,
                             size_t c, size_t n, pseg_err *err);

typedef struct pseg_norm {
    pseg_view w, b;
} pseg_norm;
pseg_status pseg_load_norm(pseg_norm *out, pseg_store *s, pseg_weights *w, const char *prefix,
                           size_t n, pseg_err *err);

#endif
