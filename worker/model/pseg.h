/* PSEG as a whole: from normalised pixels and phrases to mask logits and a predicted IoU.
 *
 * It knows nothing of files of images, jobs or servers: pixels come in as the numbers that
 * pseg_model_info asks for, and logits go out on the model's grid.
 *
 *     pseg_model_source src = {.folder = "deploy/models/scenes"};
 *     pseg_model_options o = PSEG_MODEL_OPTIONS_DEFAULT;
 *     pseg_model_open(&m, cl, &src, &o, &err);
 *     pseg_model_encode_images(&image, m, chw, 1, &err);           // once an image
 *     pseg_model_encode_texts(prompts, m, phrases, n, &err);       // once a phrase
 *     pseg_model_decode(logits, iou, m, images_of, prompts, n, &err);   // pairs of the two
 *     pseg_features_free(image); ...
 *
 * Threads: a pseg_model has one owner at a time, and what it made belongs to the same owner;
 * pseg_model_info may be read by any thread. All calls return when their results are there.
 * Letters: B images, P phrases, D width of the decoder, T prompt tokens, (gh, gw) patch grid. */
#ifndef PSEG_MODEL_PSEG_H
#define PSEG_MODEL_PSEG_H

#include "common/base/err.h"
#include "common/base/hash.h"
#include "common/base/log.h"
#include "worker/cl/cl.h"
#include "worker/ops/ops.h"

#include <stdint.h>

typedef struct pseg_model pseg_model;
typedef struct pseg_features pseg_features; /* of one image: device f32 [gh*gw, D] */
typedef struct pseg_prompt pseg_prompt;     /* of one phrase: device f32 [T, D] */

/* How an image of any size becomes height x width. */
typedef enum pseg_model_fit {
    PSEG_MODEL_SQUASH,      /* each side on its own */
    PSEG_MODEL_LETTERBOX,   /* longest side fits, centred; outside it is 0 after normalisation */
    PSEG_MODEL_CENTRE_CROP, /* shortest side to resize_edge, then the middle */
} pseg_model_fit;

/* What products are computed in; sums, norms, softmax and whatever is added up are float32 always.
 */
typedef enum pseg_precision {
    PSEG_PRECISION_FP32,
    PSEG_PRECISION_BF16,   /* operands rounded to bfloat16 */
    PSEG_PRECISION_BF16X3, /* operands split in two bfloat16, 17 bits; attention in float32 */
} pseg_precision;
#define PSEG_N_PRECISIONS 3
/* Static: "fp32", "bf16", "bf16x3". */
const char *pseg_precision_name(pseg_precision p);

typedef struct pseg_model_info {
    char name[64], description[256];
    char digest[PSEG_SHA256_HEX + 1]; /* of all files; of shapes and seed, if random */
    uint64_t vision_params, text_params, decoder_params;
    uint32_t height, width; /* of the image that goes in, px */
    uint32_t patch, gh, gw, dim;
    uint32_t mask_height, mask_width; /* of the logits */
    uint32_t max_tokens;              /* of a phrase, BOS and EOS included; the rest is cut */
    pseg_model_fit fit;
    uint32_t resize_edge;  /* CENTRE_CROP only, px */
    float mean[3], std[3]; /* a channel's number is (value / 255 - mean) / std */
    pseg_precision precision;
    float threshold;                         /* that the model was made for, on sigmoid(logit) */
    bool is_pos_resized;                     /* run at another grid than it was trained for */
    uint64_t weight_bytes, activation_bytes; /* device memory */
    /* Of weight_bytes, what lies in the file of packed weights, where the system keeps it once for
     * all processes of the machine; 0 on a device with memory of its own. */
    uint64_t shared_bytes;
} pseg_model_info;

/* folder: a PSEG folder with pseg.json. Or the parts, each alone or in place of the folder's:
 * vision and text: Hugging Face folders; decoder: a pseg.safetensors. */
typedef struct pseg_model_source {
    const char *folder, *vision, *text, *decoder;
    /* a SAM folder from which parts of the decoder start (sam.h), to be trained further */
    const char *sam;
    uint32_t height, width; /* px, multiples of the patch; 0: as the decoder was trained */
} pseg_model_source;

typedef struct pseg_model_options {
    uint32_t max_images;  /* one pass of the image encoder, 1..256: decides the memory */
    uint32_t max_phrases; /* one pass of text encoder or decoder, 1..1024 */
    pseg_precision precision;
    const pseg_log *log; /* borrowed until pseg_model_close; NULL: silent */
} pseg_model_options;
#define PSEG_MODEL_OPTIONS_DEFAULT        \
    {                                     \
        8, 16, PSEG_PRECISION_FP32, NULL, \
    }

/* Reads, checks and places all weights, from the file of packed weights in cl's cache folder if
 * there is one for them, which is made otherwise, and plans all memory for the largest batch. cl is
 * borrowed until pseg_model_close. Errors: PSEG_R_MODEL_MISSING (folder or file),
 * PSEG_R_MODEL_CORRUPT, PSEG_R_MODEL_MISMATCH (which tensor, which shape was expected and found),
 * PSEG_R_MODEL_UNSUPPORTED (also BF16 with a width that is no multiple of 32), device errors. */
pseg_status pseg_model_open(pseg_model **out, pseg_cl *cl, const pseg_model_source *src,
                            const pseg_model_options *o, pseg_err *err);

/* A model of random weights, for measurements: an image encoder of the preset's shape, CLIP
 * ViT-B/16's text tower with a vocabulary of bytes, PSEG-1 at its reference shape. preset:
 * "dinov2-small", "-base", "-large", "-giant", each also with "-reg", or "vit-base"; a suffix
 * "@448" sets height and width. Errors: PSEG_R_MODEL_UNKNOWN, device errors. */
pseg_status pseg_model_random(pseg_model **out, pseg_cl *cl, const char *preset, uint64_t seed,
                              const pseg_model_options *o, pseg_err *err);

/* After all its features and prompts are freed. NULL: nothing happens. */
void pseg_model_close(pseg_model *m);
const pseg_model_info *pseg_model_get_info(const pseg_model *m); /* borrowed until close */

/* chw: [n, 3, height, width] normalised pixels. out: n new features; caller frees each with
 * pseg_features_free; all NULL on failure. n of any size: more than max_images takes more passes.
 */
pseg_status pseg_model_encode_images(pseg_features **out, pseg_model *m, const float *chw, size_t n,
                                     pseg_err *err);
void pseg_features_free(pseg_features *f); /* NULL: nothing happens */
/* Features as numbers, to be kept elsewhere, and back: [gh*gw, D]. */
pseg_status pseg_features_read(float *out, pseg_model *m, const pseg_features *f, pseg_err *err);
pseg_status pseg_features_write(pseg_features **out, pseg_model *m, const float *numbers,
                                pseg_err *err);

/* phrases: n strings of UTF-8. out: n new prompts; caller frees each with pseg_prompt_free; all
 * NULL on failure. Errors: PSEG_R_PROMPT_NOT_TEXT, with err.field = "prompts[i].text". */
pseg_status pseg_model_encode_texts(pseg_prompt **out, pseg_model *m, const char *const *phrases,
                                    size_t n, pseg_err *err);
void pseg_prompt_free(pseg_prompt *p);               /* NULL: nothing happens */
uint32_t pseg_prompt_n_tokens(const pseg_prompt *p); /* BOS and EOS included, after the cut */
bool pseg_prompt_is_cut(const pseg_prompt *p);

/* n pairs of an image and a phrase. logits: [n, mask_height, mask_width]; iou: [n], 0..1. */
pseg_status pseg_model_decode(float *logits, float *iou, pseg_model *m,
                              const pseg_features *const *images, const pseg_prompt *const *prompts,
                              size_t n, pseg_err *err);

/* Runs everything once on nothing in particular, so that the first job does not wait for the
 * compiler. */
pseg_status pseg_model_warm_up(pseg_model *m, pseg_err *err);

/* Called as each stage is enqueued, for tests and timelines. v: [batch, rows, c] token-major,
 * row by row without gaps, of v.type; what it holds is valid after pseg_stream_finish(s), until the
 * hook returns. Names are those of tests/golden's reference: "vision.hidden.3", "neck.fuse",
 * "decoder.tokens", "mask_logits"... fn = NULL switches it off. */
typedef void pseg_stage_fn(void *ud, pseg_stream *s, const char *name, pseg_view v, size_t batch,
                           size_t rows, size_t c);
void pseg_model_set_stage_hook(pseg_model *m, pseg_stage_fn *fn, void *ud);

/* The stream that the model runs on, for profiles. Borrowed until close. */
pseg_stream *pseg_model_stream(const pseg_model *m);

#endif
