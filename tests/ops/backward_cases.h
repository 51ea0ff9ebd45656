/* A case of the table with what its gradient needs: inputs, a gradient of the output, what the
 * reference makes of them, and device memory for all, with margins that nothing may touch. */
#ifndef PSEG_TESTS_OPS_BACKWARD_CASES_H
#define PSEG_TESTS_OPS_BACKWARD_CASES_H

#include "worker/ops/table.h"

#include <math.h>

#define MARGIN 67u /* elements on each side of a tensor */
#define CANARY NAN /* around gradients, in those that are overwritten, and in what is not read */

typedef struct backward_case {
    const pseg_op *op;
    pseg_op_args args; /* numbers and types */
    size_t n[PSEG_OP_MAX_SLOTS];
    double *x[PSEG_OP_MAX_SLOTS]; /* inputs; 0: what the forward reference made of them */
    int32_t *index[PSEG_OP_MAX_SLOTS];
    double *grad[1];                 /* of the output */
    double *want[PSEG_OP_MAX_SLOTS]; /* gradients; NAN where the reference wrote nothing */
    pseg_mem *mem[PSEG_OP_MAX_SLOTS], *grad_mem[PSEG_OP_MAX_SLOTS];
    uint32_t read;       /* slots whose values are on the device since the last upload */
    uint32_t all;        /* slots that have a gradient here */
    bool is_unsupported; /* by the operation's own word; then nothing else is made */
} backward_case;

/* Caller frees with backward_case_free, also on failure. */
pseg_status backward_case_make(backward_case *out, pseg_stream *s, const pseg_op *op,
                               const pseg_op_case *c, uint64_t seed, pseg_err *err);
void backward_case_free(backward_case *d);
/* Tensors for references: hosts are d's doubles. */
pseg_op_args backward_case_host_args(const backward_case *d);
/* What is in element k of a gradient, margins counted, before it is added to. */
float backward_case_start(size_t k);
/* Writes everything to the device anew, and a and g for a call that wants `wanted` and adds to
 * `added`. Forward tensors that the operation says it does not read hold nothing but NaN. */
pseg_status backward_case_upload(backward_case *d, pseg_stream *s, uint32_t wanted, uint32_t added,
                                 pseg_op_args *a, pseg_op_grads *g, pseg_err *err);
/* PSEG_EINTERNAL, with the name, if an input changed on the device since. */
pseg_status backward_case_unchanged(const backward_case *d, pseg_stream *s, pseg_err *err);

#endif
