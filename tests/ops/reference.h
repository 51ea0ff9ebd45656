/* The rows' CPU references, which work in double, on tensors of float32. */
#ifndef PSEG_TESTS_OPS_REFERENCE_H
#define PSEG_TESTS_OPS_REFERENCE_H

#include "worker/ops/table.h"

/* op->ref on hosts that hold float32 or int32, in the layout of a. What the reference does not
 * write keeps its bits. false: no memory. */
bool reference_run(const pseg_op *op, const pseg_op_args *a);

#endif
