/* What is trained: named tensors on the device, in the layouts that the kernels want, each with its
 * gradient, the optimiser's two averages and, if asked for, a slow average of its values (EMA).
 *
 * All tensors lie one behind the other in five buffers of the same plan, sorted so that those with
 * the same learning rate and weight decay are neighbours: an optimiser's step is one launch a
 * group, whatever the number of tensors. Gaps between tensors hold zeros and stay zero. Tensors
 * that are frozen lie behind all others, in the buffer of values alone.
 *
 *     pseg_params_new(&p, cl, &specs, options, &err);
 *     pseg_params_load(p, s, PSEG_PARAMS_VALUE, weights, &err);   // from pseg.safetensors
 *     ... forward, backward, pseg_optim_step ...
 *     pseg_params_read(host, p, s, PSEG_PARAMS_VALUE, &err);      // everything, packed
 *     pseg_params_unpack(plain, p, i, host);                      // one tensor, PyTorch's layout
 *
 * An object of one thread. Letters as in worker/ops/ops.h. */
#ifndef PSEG_TRAIN_PARAMS_H
#define PSEG_TRAIN_PARAMS_H

#include "worker/cl/cl.h"
#include "worker/model/weights.h"
#include "worker/ops/ops.h"

typedef struct pseg_params pseg_params;

/* How a tensor of the file lies on the device. */
typedef enum pseg_param_kind {
    PSEG_PARAM_VECTOR, /* as it is */
    PSEG_PARAM_LINEAR, /* [n, k], [n, k, 1, 1], or patches' [n, c, p, p]: packed for gemm */
    PSEG_PARAM_CONV3,  /* [n, c, 3, 3]: packed [n, 9c] */
    PSEG_PARAM_CONVT2, /* [c, n, 2, 2]: packed [4n, c] */
    PSEG_PARAM_GRID,   /* [1, D, gh, gw]: token-major, [gh*gw, D] */
} pseg_param_kind;

/* The learning rate that applies. */
typedef enum pseg_param_group {
    PSEG_PARAM_NECK,
    PSEG_PARAM_DECODER,
    PSEG_PARAM_VISION, /* names that begin with "vision." */
    PSEG_PARAM_TEXT,   /* and with "text." */
    PSEG_PARAM_PROBE,  /* "probe.": deep supervision's, which are never exported */
    PSEG_PARAM_N_GROUPS
} pseg_param_group;

typedef struct pseg_param {
    pseg_spec spec; /* name and PyTorch's shape */
    pseg_param_kind kind;
    pseg_param_group group;
    bool has_decay;    /* matrices and convolutions; not norms, biases, tokens and positions */
    bool is_frozen;    /* it has a value and nothing else */
    size_t n, k;       /* rows and columns of the packed matrix, else n numbers */
    size_t off, elems; /* in each buffer */
    size_t plain;      /* numbers in PyTorch's layout */
} pseg_param;

typedef enum pseg_params_buffer {
    PSEG_PARAMS_VALUE,
    PSEG_PARAMS_GRAD,
    PSEG_PARAMS_MEAN,   /* AdamW's average of gradients */
    PSEG_PARAMS_SQUARE, /* and of their squares */
    PSEG_PARAMS_EMA,
    PSEG_PARAMS_N_BUFFERS
} pseg_params_buffer;

/* All buffers are zeros at first. is_frozen: one for each of specs, or NULL: none is. has_ema:
 * without it, PSEG_PARAMS_EMA has no memory. Errors: PSEG_R_UNSUPPORTED (a shape that is none of
 * the kinds), device errors. */
pseg_status pseg_params_new(pseg_params **out, pseg_cl *cl, const pseg_specs *specs,
                            const bool *is_frozen, bool has_ema, pseg_err *err);
void pseg_params_free(pseg_params *p); /* NULL: nothing happens */

size_t pseg_params_count(const pseg_params *p);
const pseg_param *pseg_params_at(const pseg_params *p, size_t i); /* in the specs' order */
/* SIZE_MAX: no such tensor. */
size_t pseg_params_find(const pseg_params *p, const char *name);
size_t pseg_params_elems(const pseg_params *p);     /* that are trained, gaps included */
size_t pseg_params_all_elems(const pseg_params *p); /* of the buffer of values */
uint64_t pseg_params_total(const pseg_params *p);   /* numbers that are trained */
bool pseg_params_has_ema(const pseg_params *p);

/* The buffer from a tensor on, and a buffer as a whole. */
pseg_view pseg_params_view(const pseg_params *p, size_t i, pseg_params_buffer which);
pseg_mem *pseg_params_mem(const pseg_params *p, pseg_params_buffer which);

/* Neighbours that are treated alike; n_ranges of them cover all tensors that are trained. */
typedef struct pseg_params_range {
    size_t off, elems;
    pseg_param_group group;
    bool has_decay;
} pseg_params_range;
size_t pseg_params_ranges(const pseg_params *p, const pseg_params_range **out);

/* Waits. host: pseg_params_elems floats, with VALUE pseg_params_all_elems. */
pseg_status pseg_params_read(float *host, const pseg_params *p, pseg_stream *s,
                             pseg_params_buffer which, pseg_err *err);
pseg_status pseg_params_write(pseg_params *p, pseg_stream *s, pseg_params_buffer which,
                              const float *host, pseg_err *err);
/* Enqueues. copy: what is trained. */
pseg_status pseg_params_zero(pseg_params *p, pseg_stream *s, pseg_params_buffer which,
                             pseg_err *err);
pseg_status pseg_params_copy(pseg_params *p, pseg_stream *s, pseg_params_buffer to,
                             pseg_params_buffer from, pseg_err *err);

/* Tensor i between the packed layout of `host`, a whole buffer, and PyTorch's, param.plain floats.
 * Both directions are exact. Errors: PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_params_pack(float *host, const pseg_params *p, size_t i, const float *plain,
                             pseg_err *err);
pseg_status pseg_params_unpack(float *plain, const pseg_params *p, size_t i, const float *host,
                               pseg_err *err);

/* Fills a buffer from weights, whose tensors must have been checked against the specs. Those whose
 * names begin with `under` are loaded, each from prefix and the rest of its name: ("adam.mean.",
 * "") or ("", "vision."), a file whose names have no such beginning. What is frozen is left out
 * unless with_frozen. Waits. */
pseg_status pseg_params_load(pseg_params *p, pseg_stream *s, pseg_params_buffer which,
                             pseg_weights *w, const char *prefix, const char *under,
                             bool with_frozen, pseg_err *err);

#endif
