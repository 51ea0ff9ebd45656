/* A tuning that no rule would make, and whether it is in force. Apart from tests that know models,
 * since tensors of a model and tensors of an operation have the same name. */
#ifndef PSEG_TESTS_TUNED_CHOICE_H
#define PSEG_TESTS_TUNED_CHOICE_H

#include "worker/cl/cl.h"

/* Into the cache folder of cl: 2 x 1 tiles for float32 products of many rows. */
pseg_status tuned_choice_keep(const pseg_cl *cl, pseg_err *err);
bool tuned_choice_is_taken(const pseg_cl *cl);

#endif
