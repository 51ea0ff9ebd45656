/* CLIP's text tower with its projection.
 *
 * Pre-norm blocks under a causal mask; a final layer norm over all tokens; the phrase is the row of
 * its EOS token through text_projection. Only tokens 0..EOS are computed: the mask keeps whatever
 * stands behind EOS from reaching it, so padding would change nothing.
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

/* ids: [batch, length], each phrase BOS first, EOS at lens[i] - 1, anything behind it; ids below
 * the vocabulary's size. Enqueues; the results are valid until the next run, ids and lens are
 * borrowed until pseg_stream_finish. */
pseg_status pseg_text_run(pseg_text *t, pseg_stage *st, const int32_t *ids, const uint32_t *lens,
                          uint32_t batch, uint32_t length, pseg_err *err);
pseg_view pseg_text_hidden(const pseg_text *t); /* [batch, length, hidden], normalised */
pseg_view pseg_text_embeds(const pseg_text *t); /* [batch, proj] */

#endif
