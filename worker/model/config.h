/* What a model is made of: shapes and choices, read from the files that come with the weights.
 *
 * Hugging Face folders are read as they come (config.json, preprocessor_config.json), PSEG's own
 * decoder from the __metadata__ of its pseg.safetensors. Every number is checked for range and the
 * numbers against each other, so that later code may multiply them without fear. */
#ifndef PSEG_MODEL_CONFIG_H
#define PSEG_MODEL_CONFIG_H

#include "common/base/err.h"
#include "worker/model/pseg.h"
#include "worker/model/safetensors.h"
#include "worker/model/safetensors_write.h"
#include "worker/ops/ops.h"

#include <stdint.h>

typedef enum pseg_vit_kind { PSEG_VIT_DINOV2, PSEG_VIT_DINOV2_REG, PSEG_VIT_PLAIN } pseg_vit_kind;

/* An image encoder: DINOv2, DINOv2 with registers, or a plain ViT. */
typedef struct pseg_vit_config {
    pseg_vit_kind kind;
    uint32_t hidden, layers, heads;
    uint32_t mlp;          /* inner width: of fc1, or of the gated half of SwiGLU */
    uint32_t patch;        /* px */
    uint32_t pos_h, pos_w; /* grid of the stored position embeddings */
    uint32_t n_regs;
    bool has_swiglu, has_layer_scale, has_qkv_bias, has_mask_token;
    pseg_act act;
    float eps;
    /* preprocessor_config.json, or fields of config.json; has_preprocess tells if any were there */
    bool has_preprocess;
    pseg_model_fit fit;
    uint32_t height, width, resize_edge; /* px; 0: not said */
    float mean[3], std[3];
} pseg_vit_config;

/* CLIP's text tower. */
typedef struct pseg_clip_config {
    uint32_t vocab, hidden, layers, heads, mlp, max_pos, proj;
    pseg_act act;
    float eps;
} pseg_clip_config;

/* Smallest term under the square root of a norm: 0 would divide a constant row by zero. */
#define PSEG_MIN_EPS      1e-20
#define PSEG_MAX_TAPS     8
#define PSEG_MAX_UPSAMPLE 4

/* PSEG-1: neck, text projection and decoder. Fields as in tests/golden/pseg_reference.py. */
typedef struct pseg_head_config {
    uint32_t taps[PSEG_MAX_TAPS], n_taps; /* in completed blocks, shallow to deep */
    bool is_tap_normed;                   /* through the encoder's final layer norm */
    uint32_t dim, heads, depth, mlp, downsample, groups;
    uint32_t gh, gw; /* grid of pos_embed */
    uint32_t upsample[PSEG_MAX_UPSAMPLE], n_upsample;
    float gn_eps, upsample_eps, ln_eps, final_ln_eps;
    bool has_word_tokens; /* text_mode = tokens */
    uint32_t vision_dim, text_dim, text_hidden, patch;
    uint32_t height, width; /* px */
    pseg_model_fit fit;
    float mean[3], std[3];
    float threshold;
} pseg_head_config;

/* folder/config.json and, if there, folder/preprocessor_config.json. Errors: PSEG_R_MODEL_MISSING,
 * PSEG_R_MODEL_CORRUPT (not JSON, out of range), PSEG_R_MODEL_UNSUPPORTED (model_type, act). */
pseg_status pseg_vit_config_read(pseg_vit_config *out, const char *folder, pseg_err *err);
/* A text tower alone (clip_text_model) or the text half of a whole CLIP (clip). */
pseg_status pseg_clip_config_read(pseg_clip_config *out, const char *folder, pseg_err *err);
/* Writes image_size of folder/config.json anew: positions at another grid have been saved beside it.
 * A number if both are the same. Errors: PSEG_R_MODEL_MISSING, PSEG_R_MODEL_CORRUPT, PSEG_R_FILE_IO. */
pseg_status pseg_vit_config_set_size(const char *folder, uint32_t height, uint32_t width,
                                     pseg_err *err);
/* Is it a SAM (model_type sam)? Its shapes are told by its tensors. */
pseg_status pseg_sam_config_check(const char *folder, pseg_err *err);
/* From the __metadata__ of an open pseg.safetensors; fields that are absent have PSEG-1's
 * reference values. Errors: PSEG_R_MODEL_CORRUPT, PSEG_R_MODEL_UNSUPPORTED. */
pseg_status pseg_head_config_read(pseg_head_config *out, const pseg_tensors *file, pseg_err *err);

/* The same as metadata of a file that is written: reading it gives *c again, to the last bit. */
pseg_status pseg_head_config_write(pseg_tensors_writer *w, const pseg_head_config *c,
                                   pseg_err *err);
/* Calls fn for each field that pseg_head_config_write writes, in its order. */
typedef pseg_status pseg_head_field_fn(void *ud, const char *key, const char *value, pseg_err *err);
pseg_status pseg_head_config_each(const pseg_head_config *c, pseg_head_field_fn *fn, void *ud,
                                  pseg_err *err);

/* PSEG-1's reference: DINOv2-base at 224 with CLIP ViT-B/16. */
void pseg_head_config_default(pseg_head_config *out);
/* CLIP ViT-B/16. */
void pseg_clip_config_default(pseg_clip_config *out);
/* "dinov2-base", "dinov2-giant-reg", "vit-base"...; false if there is no such preset. */
bool pseg_vit_config_preset(pseg_vit_config *out, const char *name);

/* Do the three fit together, and the image size with the patch? Errors: PSEG_R_MODEL_MISMATCH,
 * naming both sides. */
pseg_status pseg_config_check(const pseg_vit_config *v, const pseg_clip_config *t,
                              const pseg_head_config *h, pseg_err *err);

/* pseg.json: what a PSEG folder consists of. Strings are cut to their arrays. */
typedef struct pseg_folder {
    char name[64], description[256];
    char vision[256], text[256], decoder[256]; /* relative to the folder, or absolute */
} pseg_folder;
pseg_status pseg_folder_read(pseg_folder *out, const char *folder, pseg_err *err);
/* Errors: PSEG_R_FILE_IO, PSEG_R_CONFIG_INVALID (a string that is not UTF-8). */
pseg_status pseg_folder_write(const pseg_folder *f, const char *folder, pseg_err *err);

#endif
