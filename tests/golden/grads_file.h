/* Tensors of data/grads.safetensors by name: of the test's two sides this is the one that knows
 * worker/model, whose pseg_tensor is another than that of worker/ops. */
#ifndef PSEG_TESTS_GOLDEN_GRADS_FILE_H
#define PSEG_TESTS_GOLDEN_GRADS_FILE_H

#include <stddef.h>
#include <stdint.h>

void grads_open(void); /* ends the test on failure */
void grads_close(void);
/* Caller frees. *n: elements. NULL: not there. Ends the test if the type is another. */
float *grads_floats(size_t *n, const char *test_case, const char *name);
int64_t *grads_ints(size_t *n, const char *test_case, const char *name);
/* How many tensors the file has, and how many were asked for. */
void grads_counts(size_t *all, size_t *seen);

#endif
