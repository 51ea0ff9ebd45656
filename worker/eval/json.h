/* Small helpers around jansson. Private to worker/eval. */
#ifndef PSEG_EVAL_JSON_H
#define PSEG_EVAL_JSON_H

#include "worker/eval/bootstrap.h"

#include <jansson.h>

json_t *eval_json_text(const char *s); /* what is not UTF-8 becomes '?'; NULL: null */
json_t *eval_json_number(double x);    /* null, if it is none */
json_t *eval_json_interval(const pseg_eval_interval *i); /* {"value", "low", "high"} */

#endif
