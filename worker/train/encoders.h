/* The frozen encoders beside a training graph: pixels to taps, phrases to embeddings.
 *
 * A phrase is encoded once and kept, by its text, up to a limit of memory. An object of one thread,
 * which owns the stream. */
#ifndef PSEG_TRAIN_ENCODERS_H
#define PSEG_TRAIN_ENCODERS_H

#include "worker/train/towers.h"

typedef struct pseg_encoders pseg_encoders;

typedef struct pseg_text_shape {
    uint32_t dim, hidden; /* of a phrase, of a word */
    bool is_table;        /* a table of phrases: it has no words */
} pseg_text_shape;

/* Reads the configurations; vision may be NULL where taps come from elsewhere. Folders are those
 * that pseg_model_open takes; text may be a table of embeddings too (text_table.h). Errors: those
 * of pseg_model_open. */
pseg_status pseg_encoders_open(pseg_encoders **out, pseg_cl *cl, const char *vision,
                               const char *text, pseg_err *err);
void pseg_encoders_close(pseg_encoders *e);                          /* NULL: nothing happens */
const pseg_vit_config *pseg_encoders_vision(const pseg_encoders *e); /* NULL: there is none */
const pseg_text_shape *pseg_encoders_text(const pseg_encoders *e);

/* How the towers of a graph are made of these encoders: those that are asked for; the numbers in
 * *out are the caller's. Errors: PSEG_R_CONFIG_INVALID (a table of phrases, or no image encoder).
 */
pseg_status pseg_encoders_towers(pseg_train_towers *out, const pseg_encoders *e, bool has_vision,
                                 bool has_text, pseg_err *err);
/* The towers' weights as their folders have them, positions at the head's grid, LoRA's as they
 * begin (by seed). specs: those of the towers. Waits. */
pseg_status pseg_encoders_fill(pseg_encoders *e, pseg_params *params, pseg_stream *s,
                               const pseg_train_towers *t, const pseg_head_config *head,
                               const pseg_specs *specs, uint64_t seed, pseg_err *err);

/* Loads the weights for a head, max_images (0: none are encoded here) and max_phrases at once. s is
 * borrowed until close. */
pseg_status pseg_encoders_load(pseg_encoders *e, pseg_stream *s, const pseg_head_config *head,
                               uint32_t max_images, uint32_t max_phrases, pseg_err *err);
uint64_t pseg_encoders_bytes(const pseg_encoders *e); /* of device memory, images alone */
/* SHA-256 as hex, of each encoder's weights; after load, borrowed until close. vision: "" if there
 * is none. */
const char *pseg_encoders_vision_digest(const pseg_encoders *e);
const char *pseg_encoders_text_digest(const pseg_encoders *e);

/* pixels: [n, 3, height, width], normalised; taps: where the head's taps go, [n, gh*gw, hidden]
 * each. Waits. */
pseg_status pseg_encoders_images(pseg_encoders *e, const pseg_view *taps, const float *pixels,
                                 uint32_t n, pseg_err *err);

typedef struct pseg_encoded_text {
    const float *embed; /* [text_dim], of length 1 */
    const float *words; /* [n_tokens - 1, text_hidden]: what follows BOS, EOS included; or NULL */
    uint32_t n_tokens;
    bool is_cut;
} pseg_encoded_text;
/* What out shows is valid until the next call. Errors: those of
 * pseg_phrases_run: a phrase that a table lacks among them. */
pseg_status pseg_encoders_phrases(pseg_encoded_text *out, pseg_encoders *e,
                                  const char *const *phrases, size_t n, pseg_err *err);

/* pseg_phrases_tokens of its text encoder. */
pseg_status pseg_encoders_tokens(int32_t *ids, uint32_t *lens, bool *is_cut, const pseg_encoders *e,
                                 uint32_t row, const char *const *phrases, size_t n, pseg_err *err);

#endif
