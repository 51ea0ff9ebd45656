/* The two frozen encoders of a model, each alone: for who trains a neck and a decoder on them.
 *
 *     pseg_vision_options vo = {.taps = {3, 6, 9, 11}, .n_taps = 4, .max_images = 8};
 *     PSEG_TRY(pseg_vision_open(&v, cl, "dinov2-base", &vo, err));
 *     PSEG_TRY(pseg_vision_run(halves, v, chw, n, err));      // what the neck takes
 *
 *     pseg_phrases_options po = {.max_phrases = 64, .has_words = true};
 *     PSEG_TRY(pseg_phrases_open(&p, cl, "clip-vit-base-patch16", &po, err));
 *     PSEG_TRY(pseg_phrases_run(&out, p, phrases, n, err));   // what the decoder takes
 *
 * Threads: each has one owner at a time; the get_info calls may come from any. */
#ifndef PSEG_MODEL_TOWERS_H
#define PSEG_MODEL_TOWERS_H

#include "worker/model/config.h"
#include "worker/model/pseg.h"

/* ---- images ---------------------------------------------------------------------------------- */

typedef struct pseg_vision pseg_vision;

typedef struct pseg_vision_options {
    uint32_t taps[PSEG_MAX_TAPS], n_taps; /* completed blocks, none before the last, 1..layers */
    bool is_tap_normed;                   /* through the encoder's final layer norm */
    uint32_t height, width;               /* px, multiples of the patch; 0: 224 */
    uint32_t max_images;                  /* one pass, 1..256 */
    pseg_precision precision;
} pseg_vision_options;

typedef struct pseg_vision_info {
    char digest[PSEG_SHA256_HEX + 1]; /* of configuration and weights of the image encoder alone */
    uint64_t params;
    uint32_t hidden, layers, patch, gh, gw, height, width;
    uint32_t taps[PSEG_MAX_TAPS], n_taps;
    bool is_tap_normed;
    pseg_precision precision;
    /* As the encoder's own files say, if they do; a decoder may have been trained with others. */
    bool has_preprocess;
    pseg_model_fit fit;
    uint32_t resize_edge;
    float mean[3], std[3];
} pseg_vision_info;

/* folder: as pseg_model_source.vision. Blocks behind the last tap are not read. cl is borrowed
 * until close. Errors: those of pseg_model_open. */
pseg_status pseg_vision_open(pseg_vision **out, pseg_cl *cl, const char *folder,
                             const pseg_vision_options *o, pseg_err *err);
/* The image encoder of an open model, with the taps and the size that its decoder wants: the same
 * that pseg_model_encode_images runs. m is borrowed until close, and still has its one owner.
 * Errors: PSEG_R_UNSUPPORTED (a random model), PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_vision_of_model(pseg_vision **out, pseg_model *m, pseg_err *err);
void pseg_vision_close(pseg_vision *v);                             /* NULL: nothing happens */
const pseg_vision_info *pseg_vision_get_info(const pseg_vision *v); /* borrowed until close */

/* float16 numbers of one image: n_taps * gh * gw * hidden. */
size_t pseg_vision_numbers(const pseg_vision *v);

/* chw: [n, 3, height, width], normalised. out: float16 [n, n_taps, gh*gw, hidden], patches only,
 * row by row. n of any size. Errors: device errors; PSEG_R_MODEL_UNSUPPORTED if a number is not
 * finite or lies past float16's 65504. */
pseg_status pseg_vision_run(uint16_t *out, pseg_vision *v, const float *chw, size_t n,
                            pseg_err *err);

/* ---- phrases --------------------------------------------------------------------------------- */

typedef struct pseg_phrases pseg_phrases;

typedef struct pseg_phrases_options {
    uint32_t max_phrases; /* one pass, 1..1024 */
    bool has_words;       /* pseg_phrases_run may be asked for every word */
    pseg_precision precision;
} pseg_phrases_options;

typedef struct pseg_phrases_info {
    char digest[PSEG_SHA256_HEX + 1]; /* of the text encoder alone, tokenizer included */
    uint64_t params;
    bool is_table;       /* text_table.h: no words, and only the phrases that it holds */
    uint32_t dim;        /* of a phrase as a whole */
    uint32_t hidden;     /* of a word */
    uint32_t max_tokens; /* BOS and EOS included; the rest is cut. Table: 1 */
} pseg_phrases_info;

/* folder: a text tower as pseg_model_source.text, or a table of embeddings. Errors: those of
 * pseg_model_open, PSEG_R_MODEL_UNSUPPORTED (has_words of a table). */
pseg_status pseg_phrases_open(pseg_phrases **out, pseg_cl *cl, const char *folder,
                              const pseg_phrases_options *o, pseg_err *err);
void pseg_phrases_close(pseg_phrases *p);                              /* NULL: nothing happens */
const pseg_phrases_info *pseg_phrases_get_info(const pseg_phrases *p); /* borrowed until close */

/* Where results go. */
typedef struct pseg_phrases_out {
    float *pooled; /* [n, dim], each of length 1 */
    float *words;  /* [n, row, hidden]: the rows behind BOS up to EOS; zeros behind. NULL: no */
    size_t row;    /* max_tokens - 1 is always enough */
    uint32_t *n_tokens; /* [n], BOS and EOS included, after the cut; or NULL */
    bool *is_cut;       /* [n]; or NULL */
} pseg_phrases_out;

/* Of n phrases, token ids [n, row] and how many each has, BOS and EOS included, at most row; is_cut
 * where there were more. Behind a phrase's end: EOS again. Errors: PSEG_R_PROMPT_NOT_TEXT;
 * PSEG_R_UNSUPPORTED of a table. */
pseg_status pseg_phrases_tokens(int32_t *ids, uint32_t *lens, bool *is_cut, const pseg_phrases *p,
                                uint32_t row, const char *const *phrases, size_t n, pseg_err *err);

/* n of any size. Errors: PSEG_R_PROMPT_NOT_TEXT, PSEG_R_PROMPT_UNKNOWN, with err.field =
 * "prompts[i].text"; PSEG_R_INVALID_ARGUMENT (a phrase of more words than row); device errors. */
pseg_status pseg_phrases_run(const pseg_phrases_out *out, pseg_phrases *p,
                             const char *const *phrases, size_t n, pseg_err *err);

#endif
