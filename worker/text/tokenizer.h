/* CLIP's tokenizer: text to token ids, as Hugging Face's fast CLIPTokenizer makes them.
 *
 *   special tokens (<|startoftext|>, <|endoftext|>) are found in the text as it stands;
 *   the rest: NFC; each run of white space to one space; lower case, each character on its own;
 *   words: 's 't 're 've 'm 'll 'd, runs of letters, single numbers, runs of anything else;
 *   each word: bytes to symbols, "</w>" on the last, pairs merged by rank, lowest first.
 *
 * Ids follow from the merges alone: 256 byte symbols, the same with "</w>", one for each merge in
 * order, BOS, EOS. Where a vocabulary stands beside them, its ids are taken instead.
 *
 *     pseg_tokenizer_open(&t, "deploy/models/scenes/text", &err);
 *     pseg_tokenizer_encode(ids, 77, &n, &is_cut, t, "a red circle", 12, &err);
 *
 * Unicode's tables come from utf8proc; strings with characters that a version of utf8proc does not
 * know may be split differently there. A pseg_tokenizer never changes: any thread. */
#ifndef PSEG_TEXT_TOKENIZER_H
#define PSEG_TEXT_TOKENIZER_H

#include "common/base/err.h"

#include <stdint.h>

typedef struct pseg_tokenizer pseg_tokenizer;

/* From a folder: tokenizer.json, else merges.txt (with vocab.json, if there), else OpenAI's
 * bpe_simple_vocab_16e6.txt.gz. Errors: PSEG_R_MODEL_MISSING, PSEG_R_MODEL_CORRUPT,
 * PSEG_R_MODEL_UNSUPPORTED (a tokenizer.json of another kind). */
pseg_status pseg_tokenizer_open(pseg_tokenizer **out, const char *folder, pseg_err *err);
/* From a merges file in memory: lines of two symbols; a first line that begins with "#version", or
 * with OpenAI's name, is skipped. max_merges: lines behind it are ignored (CLIP: 48,894 of
 * OpenAI's 262,144). name: for messages. */
pseg_status pseg_tokenizer_from_merges(pseg_tokenizer **out, const char *text, size_t n,
                                       size_t max_merges, const char *name, pseg_err *err);
/* Without merges: bytes are tokens. 514 ids. */
pseg_status pseg_tokenizer_bytes(pseg_tokenizer **out, pseg_err *err);
void pseg_tokenizer_free(pseg_tokenizer *t); /* NULL: nothing happens */

uint32_t pseg_tokenizer_vocab(const pseg_tokenizer *t); /* largest id + 1 */
int32_t pseg_tokenizer_bos(const pseg_tokenizer *t);
int32_t pseg_tokenizer_eos(const pseg_tokenizer *t);

/* BOS, tokens, EOS: at most max ids (2 or more); what is too long is cut and EOS kept. *n: how many
 * were written. *is_cut may be NULL. Errors: PSEG_R_PROMPT_NOT_TEXT (not UTF-8),
 * PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_tokenizer_encode(int32_t *ids, size_t max, size_t *n, bool *is_cut,
                                  const pseg_tokenizer *t, const char *text, size_t len,
                                  pseg_err *err);

#endif
