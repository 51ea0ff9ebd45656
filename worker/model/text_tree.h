/* Phrases of a batch as a tree of tokens: a row for each beginning that is new. Host only; it knows
 * ids and rows, nothing of models. */
#ifndef PSEG_MODEL_TEXT_TREE_H
#define PSEG_MODEL_TEXT_TREE_H

#include "common/base/err.h"

#include <stdint.h>

typedef struct pseg_text_tree {
    uint32_t n, max;   /* rows */
    int32_t *token;    /* [n] */
    int32_t *position; /* [n]: in its phrases, from 0 */
    int32_t *back;     /* [n]: rows to the one before it in its phrases; 0 for a first one */
    int32_t *child,
        *sibling; /* [n]: the first and the next one, 0: none (row 0 is nobody's child) */
} pseg_text_tree;

/* Caller frees with pseg_text_tree_deinit, also on failure. */
pseg_status pseg_text_tree_init(pseg_text_tree *t, uint32_t max_rows, pseg_err *err);
void pseg_text_tree_deinit(pseg_text_tree *t); /* of zeros: nothing happens */
void pseg_text_tree_clear(pseg_text_tree *t);

/* rows[i] = row of ids[i], i < n, the new ones behind all others. All phrases of a tree begin with
 * the same token. Errors: PSEG_R_INTERNAL for another first token, or more rows than there may be.
 */
pseg_status pseg_text_tree_add(int32_t *rows, pseg_text_tree *t, const int32_t *ids, uint32_t n,
                               pseg_err *err);

#endif
