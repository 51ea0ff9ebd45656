/* The typed forms of worker/ops/ops.h and backward.h, called with a row's arguments. */
#ifndef PSEG_TESTS_OPS_TYPED_H
#define PSEG_TESTS_OPS_TYPED_H

#include "worker/ops/table.h"

/* The operation `name` through its typed form; PSEG_EUNSUPPORTED if typed.c lacks it. */
pseg_status typed_run(pseg_stream *s, const char *name, const pseg_op_args *a, pseg_err *err);
/* Its gradient through the typed form of backward.h; weights of products are turned first, and
 * handed in. */
pseg_status typed_run_backward(pseg_stream *s, const char *name, const pseg_op_args *a,
                               const pseg_op_grads *g, pseg_err *err);

#endif
