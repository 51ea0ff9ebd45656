/* CLIP's text tower with its projection.
 *
 * Pre-norm blocks under a causal mask; a final layer norm over all tokens; the phrase is the row of
 * its EOS token through text_projection.
 *
 * The mask makes a token's row depend on what stands before it and on nothing else. So a batch is
 * computed as a tree: phrases share the rows of a beginning that they have in common (BOS at
 * least), equal phrases share all, and nothing behind EOS is computed. A row comes out the same, to
 * the last bit, whatever else the batch holds. Where only EOS is asked for, the last block computes
 * no more than keys and values for other tokens.
 *
 * The table of token embeddings stays on the host, where the file lies: a phrase needs a few rows
 * of its 49,408. */
#ifndef PSEG_MODEL_TEXT_H
#define PSEG_MODEL_TEXT_H

#include "worker/model/config.h"
#include "worker/model/stage.h"
#include "worker/model/weights.h"

/* Names without "text_model." are those of a tower saved alone; pseg_text_detect finds out. */
pseg_status pseg_text_specs(pseg_specs *out, const pseg_clip_config *c, const char *prefix,
                            pseg_err *err);
/* prefix: static, "text_model." or "". Errors: PSEG_R_MODEL_MISMATCH. */
pseg_status pseg_text_detect(const char **prefix, const pseg_tensors *t, pseg_err *err);

typedef struct pseg_text pseg_text;

/* max_tokens: of one phrase, at most c->max_pos. Everything on the device belongs to store. The
 * tensors behind w are borrowed until pseg_text_free. */
pseg_status pseg_text_new(pseg_text **out, pseg_store *store, pseg_weights *w, const char *prefix,
                          const pseg_clip_config *c, uint32_t max_tokens, uint32_t max_batch,
                          pseg_err *err);
void pseg_text_free(pseg_text *t); /* NULL: nothing happens */

/* Phrase i: lens[i] tokens from ids + i * row on, BOS first, EOS last; ids below the vocabulary's
 * size. */
typedef struct pseg_text_phrases {
    const int32_t *ids;
    const uint32_t *lens;
    size_t row;
    uint32_t batch;
    bool has_words; /* all tokens are asked for, not only EOS */
} pseg_text_phrases;

typedef struct pseg_text_rows {
    pseg_view embeds;   /* [batch, proj] */
    pseg_view hidden;   /* [n, hidden], normalised: the tree's rows; absent unless has_words */
    pseg_view words;    /* int32 [batch, length]: the row of each token, -1 behind a phrase's end */
    uint32_t n, length; /* length: tokens of the longest phrase */
} pseg_text_rows;

/* Enqueues; what out shows is valid until the next run. p is used during the call only. */
pseg_status pseg_text_run(pseg_text_rows *out, pseg_text *t, pseg_stage *st,
                          const pseg_text_phrases *p, pseg_err *err);

#endif
