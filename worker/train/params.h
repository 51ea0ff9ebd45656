/* What is trained: named tensors on the device, in the layouts that the kernels want, each with its
 * gradient, the optimiser's two averages and, if asked for, a slow average of its values (EMA).
 *
 * All tensors lie one behind the other in five buffers of the same plan, sorted so that those with
 * the same learning rate and weight decay are neighbours: an optimiser's step is one launch a
 * group, whatever the number of tensors. Gaps between tensors hold zeros and stay zero.
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
    PSEG_PARAM_LINEAR, /* [n, k] or [n, k, 1, 1]: packed for gemm */
    PSEG_PARAM_CONV3,  /* [n, c, 3, 3]: packed [n, 9c] */
    PSEG_PARAM_CONVT2, /* [c, n, 2, 2]: packed [4n, c] */
    PSEG_PARAM_GRID,   /* [1, D, gh, gw]: token-major, [gh*gw, D] */
} pseg_param_kind;

/* The learning rate that applies. */
typedef enum pseg_param_group {
    PSEG_PARAM_NECK,
    PSEG_PARAM_DECODER,
    PSEG_PARAM_N_GROUPS
} pseg_param_group;

typedef struct pseg_param {
    pseg_spec spec; /* name and PyTorch's shape */
    pseg_param_kind kind;
    pseg_param_group group;
    bool has_decay;    /* matrices and convolutions; not norms, biases, tokens and positions */
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

/* All buffers are zeros at first. has_ema: without it, PSEG_PARAMS_EMA has no memory. Errors:
 * PSEG_R_UNSUPPORTED (a shape that is none of the kinds), device errors. */
pseg_status pseg_params_new(pseg_params **out, pseg_cl *cl, const pseg_specs *specs, bool has_ema,
                            pseg_err *err);
void pseg_params_free(pseg_params *p); /* NULL: nothing happens */

size_t pseg_params_count(const pseg_params *p);
const pseg_param *pseg_params_at(const pseg_params *p, size_t i); /* in the specs' order */
/* SIZE_MAX: no such tensor. */
size_t pseg_params_find(const pseg_params *p, const char *name);
size_t pseg_params_elems(const pseg_params *p);   /* of a buffer, gaps included */
uint64_t pseg_params_total(const pseg_params *p); /* numbers that are trained */
bool pseg_params_has_ema(const pseg_params *p);

/* The buffer from a tensor on, and a buffer as a whole. */
pseg_view pseg_params_view(const pseg_params *p, size_t i, pseg_params_buffer which);
pseg_mem *pseg_params_mem(const pseg_params *p, pseg_params_buffer which);

/* Neighbours that are treated alike; n_ranges of them cover all tensors. */
typedef struct pseg_params_range {
    size_t off, elems;
    pseg_param_group group;
    bool has_decay;
} pseg_params_range;
size_t pseg_params_ranges(const pseg_params *p, const pseg_params_range **out);

/* Waits. host: pseg_params_elems floats. */
pseg_status pseg_params_read(float *host, const pseg_params *p, pseg_stream *s,
                             pseg_params_buffer which, pseg_err *err);
pseg_status pseg_params_write(pseg_params *p, pseg_stream *s, pseg_params_buffer which,
                              const float *host, pseg_err *err);
/* Enqueues. */
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

/* Fills a buffer from weights, whose tensors must have been checked against the specs. prefix goes
 * before each name ("" or "adam.mean."). Waits. */
pseg_status pseg_params_load(pseg_params *p, pseg_stream *s, pseg_params_buffer which,
                             pseg_weights *w, const char *prefix, pseg_err *err);

#endif
