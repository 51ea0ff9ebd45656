/* A walk over a JSON file too large to be parsed whole: the members of the object at its top, and
 * the elements of those that are lists, one at a time. Private to worker/data. */
#ifndef PSEG_DATA_JSON_SCAN_H
#define PSEG_DATA_JSON_SCAN_H

#include "common/base/err.h"
#include "common/base/file.h"

#include <jansson.h>

/* An element of the list, or the value, that stands under `key`; text[0..len) as it stands in the
 * file, at byte `at`. Not PSEG_OK ends the walk. */
typedef pseg_status json_scan_fn(void *ud, const char *key, const char *text, size_t len,
                                 uint64_t at, pseg_err *err);

/* Only what stands under one of `keys` (NULL ends them) is shown; memory of what was passed is let
 * go. Errors: PSEG_R_DATA_CORRUPT (no object, cut off), those of fn. */
pseg_status json_scan(const pseg_map *map, const char *name, const char *const *keys,
                      json_scan_fn *fn, void *ud, pseg_err *err);

#endif
