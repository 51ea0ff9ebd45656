/* The CPU references of the operations in place of the kernels. */
#ifndef PSEG_TESTS_FIDELITY_REFERENCE_H
#define PSEG_TESTS_FIDELITY_REFERENCE_H

#include <stdbool.h>

/* From now on every operation that a model runs reads its inputs from the device, runs the row's
 * plain loops in double, rounds to float32 and writes the output back. Only for float32. */
void fidelity_use_references(bool yes);

#endif
