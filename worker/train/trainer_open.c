/* A trainer's beginning: options, parts on the device, and the weights that it takes up. */
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "worker/train/trainer_parts.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_ENCODED     8 /* images in one pass of the encoder */
#define PSEG_TRAIN_LAST "last.safetensors"

/* ---- opening --------------------------------------------------------------------------------- */

static pseg_status check_numbers(const pseg_trainer_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (o->sizes.batch < 1 || o->sizes.images < 1 || o->sizes.images > o->sizes.batch ||
        o->accumulate < 1 || o->epochs < 1 || o->save_every < 1)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "batch %u of %u images, %u at a time, %u epochs, a save every %" PRIu64
                  " steps: none may be 0, nor the images more than the batch",
                  o->sizes.batch, o->sizes.images, o->accumulate, o->epochs, o->save_every);
    if (o->max_tokens < 3)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "phrases of %u tokens: 3 at least", o->max_tokens);
out:
    return rc;
}

static pseg_status check_towers(const pseg_trainer_options *o, const pseg_encoders *e,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_train_towers t = {0};

    PSEG_TRY(pseg_encoders_towers(&t, e, o->towers.vision, o->towers.text, err));
    if (t.text && o->max_tokens > t.text->max_pos)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--max-tokens %u: the text encoder that is trained has positions for %u; give "
                  "--max-tokens %u",
                  o->max_tokens, t.text->max_pos, t.text->max_pos);
out:
    return rc;
}

pseg_status pseg_trainer_check(const pseg_trainer_options *o, const pseg_encoders *e, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *last = pseg_path_join(o->folder, PSEG_TRAIN_LAST);

    if (!last)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a trainer");
    PSEG_TRY(check_numbers(o, err));
    PSEG_TRY(check_towers(o, e, err));
    if (!o->resume && pseg_file_exists(last))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "%s holds a run already: --resume goes on with it; give another --out to begin "
                  "anew",
                  o->folder);
out:
    pseg_free(last);
    return rc;
}

static pseg_status check_source(const pseg_trainer_options *o, const pseg_train_source *source,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (source->n_train == 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "the data hold nothing to train on");
    if (o->towers.vision && source->has_taps)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "an image encoder that is trained needs pixels, not features");
out:
    return rc;
}

/* What decides a run's numbers, beside the head's configuration. */
static pseg_status make_settings(pseg_trainer *t, pseg_err *err)
{
    const pseg_trainer_options *o = &t->o;
    pseg_status rc = PSEG_OK;
    const struct {
        const char *key;
        double value;
    } numbers[] = {
        {"batch", o->sizes.batch},
        {"images", o->sizes.images},
        {"accumulate", o->accumulate},
        {"epochs", o->epochs},
        {"warm_epochs", o->warm_epochs},
        {"max_tokens", o->max_tokens},
        {"lr_neck", (double)o->optim.lr[PSEG_PARAM_NECK]},
        {"lr_decoder", (double)o->optim.lr[PSEG_PARAM_DECODER]},
        {"weight_decay", (double)o->optim.decay},
        {"beta1", (double)o->optim.beta1},
        {"beta2", (double)o->optim.beta2},
        {"eps", (double)o->optim.eps},
        {"clip", (double)o->optim.clip},
        {"ema", (double)o->optim.ema},
        {"loss_bce", (double)o->loss.bce},
        {"loss_dice", (double)o->loss.dice},
        {"loss_iou", (double)o->loss.iou},
        {"loss_at_input", o->sizes.at_input},
        {"loss_deep", (double)o->loss_deep},
        {"lr_muon", (double)o->optim.lr_muon},
        {"lr_probe", (double)o->optim.lr[PSEG_PARAM_PROBE]},
        {"vision_layers", o->towers.vision ? o->towers.vision_layers : 0},
        {"text_layers", o->towers.text ? o->towers.text_layers : 0},
        {"lora_rank", o->towers.lora_rank},
        {"lr_vision", (double)o->optim.lr[PSEG_PARAM_VISION]},
        {"lr_text", (double)o->optim.lr[PSEG_PARAM_TEXT]},
    };
    char seed[24];
    const struct {
        const char *key, *value;
    } texts[] = {{"seed", seed},
                 {"data", t->source->description},
                 {"vision", pseg_encoders_vision_digest(t->e)},
                 {"text", pseg_encoders_text_digest(t->e)}};
    enum { N_TEXTS = sizeof texts / sizeof *texts };
    size_t n = sizeof numbers / sizeof *numbers, all = n + N_TEXTS;

    t->settings = pseg_calloc(all, sizeof *t->settings);
    if (!t->settings)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a run's settings");
    for (size_t i = 0; i < n; i++) {
        snprintf(t->settings[i].key, sizeof t->settings[i].key, "%s", numbers[i].key);
        snprintf(t->settings[i].value, sizeof t->settings[i].value, "%.9g", numbers[i].value);
    }
    snprintf(seed, sizeof seed, "%" PRIu64, o->sizes.seed);
    for (size_t i = 0; i < N_TEXTS; i++) {
        pseg_train_setting *to = &t->settings[n + i];

        snprintf(to->key, sizeof to->key, "%s", texts[i].key);
        snprintf(to->value, sizeof to->value, "%s", texts[i].value);
    }
    t->checkpoint = (pseg_checkpoint){t->params, &t->head_config, t->settings, all};
out:
    return rc;
}

/* From the last save of this folder, or from the beginning. */
static pseg_status take_up(pseg_trainer *t, pseg_weights *init, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    t->state = (pseg_train_state){.best_iou = -1, .val_loss = NAN, .val_iou = NAN};
    PSEG_TRY(pseg_encoders_fill(t->e, t->params, t->s, &t->towers, &t->head_config, &t->specs,
                                t->o.sizes.seed, err));
    if (pseg_file_exists(t->last)) {
        PSEG_TRY(pseg_checkpoint_read(&t->state, t->last, &t->checkpoint, t->params, t->s, err));
        pseg_optim_set_steps(t->optim, t->state.steps_taken);
        PSEG_INFO(t->o.log, "train", "resumed step=%" PRIu64 " epoch=%" PRIu64 " batch=%" PRIu64,
                  t->state.step, t->state.epoch, t->state.batch);
        goto out;
    }
    PSEG_TRY(
        pseg_params_load(t->params, t->s, PSEG_PARAMS_VALUE, init, "neck.", "neck.", false, err));
    PSEG_TRY(pseg_params_load(t->params, t->s, PSEG_PARAMS_VALUE, init, "decoder.", "decoder.",
                              false, err));
    PSEG_TRY(
        pseg_params_load(t->params, t->s, PSEG_PARAMS_VALUE, init, "text_", "text_", false, err));
    if (pseg_params_has_ema(t->params))
        PSEG_TRY(pseg_params_copy(t->params, t->s, PSEG_PARAMS_EMA, PSEG_PARAMS_VALUE, err));
out:
    return rc;
}

/* The device's part. */
static pseg_status make_parts(pseg_trainer *t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_trainer_options *o = &t->o;
    const pseg_head_config *c = &t->head_config;
    pseg_train_shape shape = {.gh = c->gh,
                              .gw = c->gw,
                              .n_images = o->sizes.images,
                              .batch = o->sizes.batch,
                              .max_prompt = c->has_word_tokens ? o->max_tokens : 1,
                              .has_backward = true,
                              .loss = o->loss,
                              .at_input = o->sizes.at_input,
                              .deep = o->loss_deep};

    pseg_tuning_load(t->cl);
    PSEG_TRY(pseg_stream_open(&t->s, t->cl, err));
    PSEG_TRY(pseg_encoders_towers(&t->towers, t->e, o->towers.vision, o->towers.text, err));
    t->towers.max_tokens = o->max_tokens;
    t->towers.vision_layers = o->towers.vision_layers;
    t->towers.text_layers = o->towers.text_layers;
    t->towers.lora_rank = o->towers.lora_rank;
    if (t->towers.vision || t->towers.text)
        shape.towers = &t->towers;
    PSEG_TRY(pseg_train_head_specs(&t->specs, c, err));
    if (o->loss_deep > 0)
        PSEG_TRY(pseg_train_probe_specs(&t->specs, c, err));
    PSEG_TRY(pseg_train_towers_specs(&t->specs, &t->is_frozen, &t->towers, c, err));
    PSEG_TRY(pseg_params_new(&t->params, t->cl, &t->specs, t->is_frozen, o->optim.ema > 0, err));
    PSEG_TRY(pseg_optim_new(&t->optim, t->cl, t->params, &o->optim, err));
    PSEG_TRY(pseg_train_head_new(&t->head, t->cl, t->params, c, &shape, err));
    uint32_t encoded = o->sizes.images < MAX_ENCODED ? o->sizes.images : MAX_ENCODED;
    PSEG_TRY(pseg_encoders_load(
        t->e, t->s, c, t->source->has_taps || t->towers.vision ? 0 : encoded, o->sizes.batch, err));
    PSEG_TRY(pseg_feed_new(&t->feed, t->head, t->e, t->s, c, &shape, err));
out:
    return rc;
}

pseg_status pseg_trainer_new(pseg_trainer **out, pseg_cl *cl, pseg_encoders *e,
                             const pseg_train_source *source, const pseg_head_config *head,
                             pseg_weights *init, const pseg_trainer_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_trainer *t = pseg_calloc(1, sizeof *t);

    *out = NULL;
    if (!t)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a trainer");
    t->cl = cl;
    t->e = e;
    t->source = source;
    t->head_config = *head;
    t->o = *o;
    PSEG_TRY(pseg_trainer_check(o, e, err));
    PSEG_TRY(check_source(o, source, err));
    PSEG_TRY(pseg_dir_make(o->folder, err));
    t->last = pseg_path_join(o->folder, PSEG_TRAIN_LAST);
    t->best = pseg_path_join(o->folder, "best.safetensors");
    if (!t->last || !t->best)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a trainer");
    PSEG_TRY(make_parts(t, err));
    PSEG_TRY(make_settings(t, err));
    PSEG_TRY(take_up(t, init, err));
    PSEG_TRY(pseg_report_open(&t->report, o->folder, t->state.step, t->state.epoch, err));
    *out = t;
    t = NULL;
out:
    pseg_trainer_free(t);
    return rc;
}

void pseg_trainer_free(pseg_trainer *t)
{
    if (!t)
        return;
    pseg_loader_close(t->loader);
    pseg_report_close(t->report);
    pseg_feed_free(t->feed);
    pseg_train_head_free(t->head);
    pseg_optim_free(t->optim);
    pseg_params_free(t->params);
    pseg_specs_deinit(&t->specs);
    pseg_free(t->is_frozen);
    pseg_stream_close(t->s);
    pseg_free(t->settings);
    pseg_free(t->last);
    pseg_free(t->best);
    pseg_free(t);
}
