/* What the files of the engine share. */
#ifndef PSEG_SERVE_ENGINE_INTERNAL_H
#define PSEG_SERVE_ENGINE_INTERNAL_H

#include "worker/serve/engine.h"

#include "worker/decode/decoders.h"
#include "worker/serve/phrases.h"

typedef struct pseg_engine_unit {
    char id[PSEG_DEVICE_ID]; /* "": as the options' cl.device says */
    pseg_cl *cl;
    pseg_model *model;    /* NULL: the empty model */
    pseg_phrases phrases; /* of the thread that runs on it */
    size_t max_encode;
    char name[192], driver[224];
} pseg_engine_unit;

struct pseg_engine {
    pseg_engine_unit devices[PSEG_MAX_DEVICES];
    size_t n_devices;
    pseg_decoders *decoders; /* NULL: images are decoded in this process */
    pseg_pictures pictures;
    bool reads_features;
    size_t max_decode;
    const pseg_model_info *info; /* the same for all devices; NULL: the empty model */
    pseg_preprocess how;
    pseg_image_limits limits;
    char name[64], digest[PSEG_SHA256_HEX + 1], kernel_digest[PSEG_SHA256_HEX + 1];
    char worker[96];
};

/* ---- engine_open.c ---- */

/* Opens the devices that o names with the model on each, and fills what is known from then on. What
 * was opened is in e also on failure. */
pseg_status pseg_engine_open_devices(pseg_engine *e, const pseg_engine_options *o, pseg_err *err);

/* ---- engine_phrases.c ---- */

/* Phrases and who asked for each. */
typedef struct pseg_phrase_list {
    const char **phrases, **owners;
    size_t n;
} pseg_phrase_list;

/* out: a prompt of each, NULL at first; given back by pseg_engine_give_prompts, also on failure.
 * *n_made: how many had to be encoded. Errors: those of pseg_model_encode_texts. */
pseg_status pseg_engine_take_prompts(pseg_prompt **out, size_t *n_made, pseg_engine_unit *d,
                                     pseg_arena *a, const pseg_phrase_list *l, pseg_err *err);
void pseg_engine_give_prompts(pseg_engine_unit *d, pseg_prompt **prompts,
                              const pseg_phrase_list *l);

/* ---- engine_kernels.c ---- */

/* From begin to end what the model launches is noted, if one of the works wants it; else NULL, and
 * all of these do nothing. A step names what comes after it, once the stream has finished what came
 * before. End hands the times to the works that want them. */
typedef struct pseg_kernel_times pseg_kernel_times;
pseg_kernel_times *pseg_kernel_times_begin(pseg_model *m, const pseg_engine_job *jobs, size_t n);
void pseg_kernel_times_step(pseg_kernel_times *t, const char *stage);
void pseg_kernel_times_end(pseg_kernel_times *t, pseg_model *m, const pseg_engine_job *jobs,
                           size_t n);

/* Numbers of one image's features. */
static inline size_t pseg_engine_n_features(const pseg_engine *e)
{
    return (size_t)e->info->gh * e->info->gw * e->info->dim;
}

/* Logits of one mask. */
static inline size_t pseg_engine_grid(const pseg_engine *e)
{
    return e->info ? (size_t)e->info->mask_width * e->info->mask_height : 1;
}

#endif
