/* A text encoder that is a table: the embeddings of phrases that were computed before.
 *
 * A folder with names.json, a list of phrases, and embeddings.safetensors, whose tensor
 * `embeddings` [n, dim] has a row for each. A phrase is sought without regard to the case of
 * letters and to white space at its ends and runs of it; what the table lacks is refused, with the
 * nearest names. It never changes: any thread. */
#ifndef PSEG_MODEL_TEXT_TABLE_H
#define PSEG_MODEL_TEXT_TABLE_H

#include "worker/model/safetensors.h"

typedef struct pseg_text_table pseg_text_table;

/* Is the folder such a table, and no tower? */
bool pseg_text_table_is(const char *folder);

/* The file of embeddings in it; caller frees with pseg_free; NULL when memory is short. */
char *pseg_text_table_file(const char *folder);

/* Errors: PSEG_R_MODEL_MISSING, PSEG_R_MODEL_CORRUPT (no list of texts, a name twice, as many
 * names as rows, a row of zeros or of what is no number), PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_text_table_open(pseg_text_table **out, const char *folder, pseg_err *err);
void pseg_text_table_close(pseg_text_table *t); /* NULL: nothing happens */

uint32_t pseg_text_table_count(const pseg_text_table *t);
uint32_t pseg_text_table_dim(const pseg_text_table *t);
const char *pseg_text_table_name(const pseg_text_table *t, uint32_t row); /* as in the file */

/* The row of a phrase. Errors: PSEG_R_PROMPT_UNKNOWN, naming the phrase and up to three near ones;
 * PSEG_R_PROMPT_NOT_TEXT. */
pseg_status pseg_text_table_find(uint32_t *row, const pseg_text_table *t, const char *phrase,
                                 pseg_err *err);
/* dim floats, of length 1. Borrowed until close. */
const float *pseg_text_table_row(const pseg_text_table *t, uint32_t row);

#endif
