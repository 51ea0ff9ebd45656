/* The shape of what pseg-train trains, and where its weights begin. */
#include "worker/apps/train.h"
#include "worker/train/head.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pseg_status numbers_of(uint32_t *out, uint32_t *n, uint32_t max_n, const char *option,
                              const char *text, uint32_t max, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *n = 0;
    for (const char *at = text;;) {
        char *end;
        unsigned long v = strtoul(at, &end, 10);
        if (end == at || (*end && *end != ',') || v < 1 || v > max || *n == max_n)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                      "--%s \"%.60s\": expected 1 to %u numbers of 1 to %u, joined by commas",
                      option, text, max_n, max);
        out[(*n)++] = (uint32_t)v;
        if (!*end)
            break;
        at = end + 1;
    }
out:
    return rc;
}

static pseg_status choice_of(bool *is_second, const char *option, const char *value,
                             const char *first, const char *second, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *is_second = strcmp(value, second) == 0;
    if (!*is_second && strcmp(value, first) != 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--%s \"%.40s\": expected %s or %s", option, value,
                  first, second);
out:
    return rc;
}

static pseg_status check_shape(const pseg_head_config *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (c->dim % c->groups || c->dim % (c->downsample * c->heads) || c->dim / c->heads > 128)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--dim %u must be a multiple of 32 and of --heads %u times 2, with at most 128 "
                  "channels a head",
                  c->dim, c->heads);
    if (c->height % c->patch)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--image-size %u is no multiple of the patch, %u px",
                  c->height, c->patch);
    for (uint32_t i = 1; i < c->n_taps; i++)
        if (c->taps[i] < c->taps[i - 1])
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--taps must not fall");
out:
    return rc;
}

static pseg_status new_shape(pseg_head_config *c, const train_args *a, const pseg_encoders *e,
                             pseg_err *err)
{
    const pseg_vit_config *v = pseg_encoders_vision(e);
    const pseg_text_shape *t = pseg_encoders_text(e);
    pseg_status rc = PSEG_OK;
    bool letterbox;

    pseg_head_config_default(c);
    if (a->taps) {
        PSEG_TRY(numbers_of(c->taps, &c->n_taps, PSEG_MAX_TAPS, "taps", a->taps, v->layers, err));
    } else {
        for (uint32_t i = 0; i < c->n_taps; i++) /* at the same depths of any number of blocks */
            c->taps[i] = (c->taps[i] * v->layers + 6) / 12;
    }
    PSEG_TRY(numbers_of(c->upsample, &c->n_upsample, PSEG_MAX_UPSAMPLE, "upsample", a->upsample,
                        4096, err));
    PSEG_TRY(choice_of(&c->is_tap_normed, "tap-norm", a->tap_norm, "none", "final_ln", err));
    PSEG_TRY(choice_of(&c->has_word_tokens, "text-mode", a->text_mode, "pooled", "tokens", err));
    PSEG_TRY(choice_of(&letterbox, "preprocess", a->preprocess, "squash", "letterbox", err));
    c->fit = letterbox ? PSEG_MODEL_LETTERBOX : PSEG_MODEL_SQUASH;
    c->dim = (uint32_t)a->dim;
    c->heads = (uint32_t)a->heads;
    c->depth = (uint32_t)a->depth;
    c->mlp = (uint32_t)a->mlp;
    c->vision_dim = v->hidden;
    c->patch = v->patch;
    c->text_dim = t->dim;
    c->text_hidden = t->hidden;
    c->height = c->width = (uint32_t)a->image_size;
    c->gh = c->gw = c->height / c->patch;
    if (v->has_preprocess) {
        memcpy(c->mean, v->mean, sizeof c->mean);
        memcpy(c->std, v->std, sizeof c->std);
    }
    PSEG_TRY(check_shape(c, err));
out:
    return rc;
}

/* ---- where the weights begin ----------------------------------------------------------------- */

void train_begin_deinit(train_begin *s)
{
    pseg_weights_free(s->weights);
    pseg_specs_deinit(&s->specs);
    pseg_tensors_close(s->file);
    pseg_sam_close(s->sam);
}

pseg_status train_begin_open(train_begin *s, pseg_head_config *c, const train_args *a,
                             const pseg_encoders *e, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_clip_config text;

    if (a->init) {
        PSEG_TRY(pseg_tensors_open_file(&s->file, a->init, err));
        PSEG_TRY(pseg_head_config_read(c, s->file, err));
    } else {
        PSEG_TRY(new_shape(c, a, e, err));
    }
    text = (pseg_clip_config){.proj = pseg_encoders_text(e)->dim,
                              .hidden = pseg_encoders_text(e)->hidden};
    PSEG_TRY(pseg_config_check(pseg_encoders_vision(e), &text, c, err));
    PSEG_TRY(pseg_train_head_specs(&s->specs, c, err));
    if (s->file) {
        PSEG_TRY(pseg_weights_from_tensors(&s->weights, s->file, "", err));
        PSEG_TRY(pseg_weights_check(s->weights, &s->specs, err));
    } else {
        s->init = (pseg_init){(uint64_t)a->seed, &s->specs};
        PSEG_TRY(pseg_weights_from_fn(&s->weights, pseg_init_fill, &s->init, err));
    }
    if (a->sam) {
        PSEG_TRY(pseg_sam_open(&s->sam, a->sam, &s->specs, err));
        pseg_weights_overlay(s->weights, pseg_sam_fill, s->sam);
    }
out:
    return rc;
}
