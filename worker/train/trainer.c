#include "worker/train/trainer.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/file.h"
#include "worker/train/trainer_parts.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- saving ---------------------------------------------------------------------------------- */

static pseg_status write_folder(pseg_trainer *t, bool is_best, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_folder f = t->o.about;

    if (t->towers.vision || t->towers.text || t->o.exports_half) {
        pseg_train_export x = {.folder = t->o.folder,
                               .best = t->best,
                               .vision = t->towers.vision ? t->o.about.vision : NULL,
                               .text = t->towers.text ? t->o.about.text : NULL,
                               .towers = &t->towers,
                               .head = &t->head_config,
                               .about = &t->o.about,
                               .is_half = t->o.exports_half};
        if (is_best || !t->has_folder)
            PSEG_TRY(pseg_train_export_write(&x, err));
        t->has_folder = true;
        goto out;
    }
    if (t->has_folder)
        goto out;
    snprintf(f.decoder, sizeof f.decoder, "best.safetensors");
    PSEG_TRY(pseg_folder_write(&f, t->o.folder, err));
    t->has_folder = true;
out:
    return rc;
}

static pseg_status save(pseg_trainer *t, bool is_best, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t now = pseg_clock_mono_us();

    t->state.seconds += (double)(now - t->counted_us) / 1e6;
    t->counted_us = now;
    if (is_best || !pseg_file_exists(t->best))
        PSEG_TRY(pseg_checkpoint_write(t->best, &t->checkpoint, &t->state, false, t->s, err));
    PSEG_TRY(pseg_checkpoint_write(t->last, &t->checkpoint, &t->state, true, t->s, err));
    PSEG_TRY(write_folder(t, is_best, err));
out:
    return rc;
}

/* ---- one step -------------------------------------------------------------------------------- */

static uint64_t steps_of_epoch(const pseg_trainer *t)
{
    return (t->source->n_train + t->o.accumulate - 1) / t->o.accumulate;
}

static void tell(const pseg_trainer *t, pseg_train_event e)
{
    const pseg_train_state *s = &t->state;

    e.epochs = t->o.epochs;
    e.epoch = s->epoch;
    e.step = s->step;
    e.steps = t->o.epochs * steps_of_epoch(t);
    e.images_per_s = t->images_per_s;
    e.remaining_s =
        t->step_s > 0 ? t->step_s * (double)(e.steps > e.step ? e.steps - e.step : 0) : NAN;
    if (t->o.on_event)
        t->o.on_event(t->o.event_ud, &e);
}

/* Adds a batch that was run to the step's sums; notes samples that gave no number. */
static void count(pseg_trainer *t, pseg_step *step, const pseg_train_batch *b, uint32_t group)
{
    const float *stats = pseg_feed_stats(t->feed);

    for (uint32_t i = 0; i < b->n_samples; i++) {
        const float *o = stats + (size_t)i * PSEG_LOSS_STATS;
        double parts[] = {(double)o[PSEG_LOSS_TOTAL] * group * b->n_samples,
                          (double)o[PSEG_LOSS_BCE], (double)o[PSEG_LOSS_DICE],
                          (double)o[PSEG_LOSS_MISS], (double)o[PSEG_LOSS_IOU]};

        for (size_t k = 0; k < 5; k++)
            step->sums[k] += parts[k];
        if (!isfinite(parts[0]) && step->n_bad < PSEG_STEP_BAD)
            memcpy(step->bad[step->n_bad++], b->id[i], PSEG_TRAIN_ID);
    }
    step->n += b->n_samples;
}

static pseg_status train_batch(pseg_trainer *t, pseg_step *step, uint32_t group, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_graph *g = pseg_train_head_graph(t->head);
    const pseg_train_batch *b;
    pseg_loader_place place;

    PSEG_TRY(pseg_loader_next(&b, &place, t->loader, err));
    PSEG_ASSERT(b && place.is_train && place.epoch == t->state.epoch);
    PSEG_TRY(pseg_feed_put(t->feed, b, group, err));
    PSEG_TRY(pseg_graph_forward(g, t->s, err));
    PSEG_TRY(pseg_graph_backward(g, t->s, err));
    PSEG_TRY(pseg_feed_read_stats(t->feed, err));
    count(t, step, b, group);
    if (step->n_bad == 0)
        memcpy(step->some, b->id[0], PSEG_TRAIN_ID);
out:
    return rc;
}

static pseg_status skip(pseg_trainer *t, pseg_step *step, const pseg_report_step *r, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *names[PSEG_STEP_BAD];
    char text[PSEG_TRAIN_ID + 64];

    if (step->n_bad == 0) /* losses are numbers, gradients are not: the batch as a whole */
        memcpy(step->bad[step->n_bad++], step->some, PSEG_TRAIN_ID);
    for (size_t i = 0; i < step->n_bad; i++)
        names[i] = step->bad[i];
    t->n_skipped++;
    t->state.skipped_in_a_row++;
    PSEG_TRY(pseg_report_add_skip(t->report, r, names, step->n_bad, err));
    snprintf(text, sizeof text, "%s%s", names[0], step->n_bad > 1 ? " and others" : "");
    tell(t, (pseg_train_event){.kind = PSEG_TRAIN_SKIPPED, .text = text});
    if (t->state.skipped_in_a_row >= t->o.max_skips)
        PSEG_FAIL(PSEG_R_INTERNAL, 0,
                  "%u steps in a row gave no number, the last with %.80s; %s holds the last good "
                  "weights; a lower learning rate may help",
                  t->o.max_skips, text, t->o.folder);
out:
    return rc;
}

/* Time of a step, as a mean that forgets. */
static void time_step(pseg_trainer *t, uint64_t samples, int64_t start_us)
{
    double s = (double)(pseg_clock_mono_us() - start_us) / 1e6;

    t->step_s = t->step_s > 0 ? 0.9 * t->step_s + 0.1 * s : s;
    double rate = (double)samples / s;
    t->images_per_s = t->images_per_s > 0 ? 0.9 * t->images_per_s + 0.1 * rate : rate;
}

static pseg_status train_step(pseg_trainer *t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_train_state *st = &t->state;
    uint64_t left = t->source->n_train - st->batch, per_epoch = steps_of_epoch(t);
    uint32_t group = left < t->o.accumulate ? (uint32_t)left : t->o.accumulate;
    float scale = pseg_optim_schedule(st->step, (uint64_t)(t->o.warm_epochs * (double)per_epoch),
                                      t->o.epochs * per_epoch);
    int64_t start = pseg_clock_mono_us();
    pseg_step step = {.n = 0};
    float norm = NAN;

    PSEG_TRY(pseg_params_zero(t->params, t->s, PSEG_PARAMS_GRAD, err));
    for (uint32_t i = 0; i < group; i++)
        PSEG_TRY(train_batch(t, &step, group, err));
    if (step.n_bad == 0)
        PSEG_TRY(pseg_optim_step(&norm, t->optim, t->s, scale, err));
    time_step(t, step.n, start);
    double n = (double)step.n;
    pseg_report_step r = {.step = st->step,
                          .epoch = st->epoch,
                          .batch = st->batch,
                          .loss = step.sums[0] / n,
                          .bce = step.sums[1] / n,
                          .dice = step.sums[2] / n,
                          .iou_loss = step.sums[3] / n,
                          .iou = step.sums[4] / n,
                          .norm = (double)norm,
                          .lr = (double)(t->o.optim.lr[PSEG_PARAM_DECODER] * scale),
                          .images_per_s = t->images_per_s,
                          .seconds =
                              st->seconds + (double)(pseg_clock_mono_us() - t->counted_us) / 1e6};
    st->step++;
    st->batch += group;
    st->steps_taken = pseg_optim_steps(t->optim);
    if (!isfinite(norm)) {
        PSEG_TRY(skip(t, &step, &r, err));
        goto out;
    }
    st->skipped_in_a_row = 0;
    st->sum_loss += step.sums[0];
    st->sum_iou += step.sums[4];
    st->n_sum += step.n;
    PSEG_TRY(pseg_report_add_step(t->report, &r, err));
    tell(t, (pseg_train_event){.kind = PSEG_TRAIN_STEPPED, .loss = r.loss, .iou = r.iou});
out:
    return rc;
}

/* ---- validation ------------------------------------------------------------------------------ */

typedef struct score {
    double loss, iou, over_half, pred_off;
    uint64_t n;
} score;

static pseg_status validate_batch(pseg_trainer *t, score *v, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_train_batch *b;
    pseg_loader_place place;

    PSEG_TRY(pseg_loader_next(&b, &place, t->loader, err));
    PSEG_ASSERT(b && !place.is_train && place.epoch == t->state.epoch);
    PSEG_TRY(pseg_feed_put(t->feed, b, 1, err));
    PSEG_TRY(pseg_graph_forward(pseg_train_head_graph(t->head), t->s, err));
    PSEG_TRY(pseg_feed_read_stats(t->feed, err));
    for (uint32_t i = 0; i < b->n_samples; i++) {
        const float *o = pseg_feed_stats(t->feed) + (size_t)i * PSEG_LOSS_STATS;

        v->loss += (double)o[PSEG_LOSS_TOTAL] * b->n_samples;
        v->iou += (double)o[PSEG_LOSS_IOU];
        v->over_half += o[PSEG_LOSS_IOU] >= 0.5f;
        v->pred_off += fabs((double)o[PSEG_LOSS_PRED] - (double)o[PSEG_LOSS_IOU]);
    }
    v->n += b->n_samples;
    tell(t, (pseg_train_event){.kind = PSEG_TRAIN_VALIDATED});
out:
    return rc;
}

/* The slow average takes the weights' place, which wait among the gradients meanwhile. */
static pseg_status exchange(pseg_trainer *t, bool back, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (!pseg_params_has_ema(t->params))
        goto out;
    if (back) {
        PSEG_TRY(pseg_params_copy(t->params, t->s, PSEG_PARAMS_VALUE, PSEG_PARAMS_GRAD, err));
    } else {
        PSEG_TRY(pseg_params_copy(t->params, t->s, PSEG_PARAMS_GRAD, PSEG_PARAMS_VALUE, err));
        PSEG_TRY(pseg_params_copy(t->params, t->s, PSEG_PARAMS_VALUE, PSEG_PARAMS_EMA, err));
    }
out:
    return rc;
}

static pseg_status validate(pseg_trainer *t, score *v, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *v = (score){0};
    PSEG_TRY(exchange(t, false, err));
    for (uint64_t i = 0; i < t->source->n_val && !pseg_trainer_is_stopped(t); i++)
        PSEG_TRY(validate_batch(t, v, err));
    PSEG_TRY(exchange(t, true, err));
    double n = (double)v->n; /* 0: all become nan */
    v->loss /= n;
    v->iou /= n;
    v->over_half /= n;
    v->pred_off /= n;
out:
    return rc;
}

/* ---- the run --------------------------------------------------------------------------------- */

bool pseg_trainer_is_stopped(const pseg_trainer *t)
{
    return t->o.stop && *t->o.stop;
}

static pseg_status end_epoch(pseg_trainer *t, const score *v, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_train_state *st = &t->state;
    bool is_best = v->n == 0 || v->iou > st->best_iou;
    pseg_report_epoch e = {.epoch = st->epoch,
                           .step = st->step,
                           .loss = st->sum_loss / (double)st->n_sum,
                           .iou = st->sum_iou / (double)st->n_sum,
                           .val_loss = v->loss,
                           .val_iou = v->iou,
                           .val_iou_50 = v->over_half,
                           .val_pred_off = v->pred_off,
                           .is_best = is_best};

    if (is_best && v->n) {
        st->best_iou = v->iou;
        st->best_epoch = st->epoch;
    }
    st->epochs_without = is_best ? 0 : st->epochs_without + 1;
    st->val_loss = v->loss;
    st->val_iou = v->iou;
    st->epoch++;
    st->batch = 0;
    st->sum_loss = st->sum_iou = 0;
    st->n_sum = 0;
    /* The log first: what is written again after a fall is cut off before. */
    e.seconds = st->seconds + (double)(pseg_clock_mono_us() - t->counted_us) / 1e6;
    PSEG_TRY(pseg_report_add_epoch(t->report, &e, err));
    PSEG_TRY(save(t, is_best, err));
    tell(t, (pseg_train_event){.kind = PSEG_TRAIN_EPOCH_DONE,
                               .loss = e.loss,
                               .iou = e.iou,
                               .val_loss = e.val_loss,
                               .val_iou = e.val_iou,
                               .is_best = is_best});
out:
    return rc;
}

static pseg_status train_epoch(pseg_trainer *t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    score v = {0};
    bool stops;

    while (t->state.batch < t->source->n_train && !pseg_trainer_is_stopped(t)) {
        PSEG_TRY(train_step(t, err));
        if (t->state.step % t->o.save_every == 0)
            PSEG_TRY(save(t, false, err));
    }
    stops = pseg_trainer_is_stopped(t);
    if (!stops) {
        PSEG_TRY(validate(t, &v, err));
        stops = pseg_trainer_is_stopped(t); /* the score may be of a part only */
    }
    if (stops)
        PSEG_TRY(save(t, false, err));
    else
        PSEG_TRY(end_epoch(t, &v, err));
out:
    return rc;
}

pseg_status pseg_trainer_run(pseg_trainer *t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_loader_place from = {t->state.epoch, t->state.batch, true};

    t->counted_us = pseg_clock_mono_us();
    PSEG_TRY(pseg_loader_open(&t->loader, t->source, &t->head_config, &t->o.sizes, from,
                              t->o.epochs, err));
    while (t->state.epoch < t->o.epochs && !pseg_trainer_is_stopped(t)) {
        if (t->o.patience && t->state.epochs_without >= t->o.patience) {
            tell(t, (pseg_train_event){.kind = PSEG_TRAIN_STOPPED_EARLY});
            break;
        }
        PSEG_TRY(train_epoch(t, err));
    }
    t->is_done = !pseg_trainer_is_stopped(t);
out:
    if (rc != PSEG_OK)
        pseg_stream_finish(t->s, NULL);
    pseg_loader_close(t->loader);
    t->loader = NULL;
    return rc;
}

void pseg_trainer_sum_up(pseg_train_summary *out, const pseg_trainer *t)
{
    size_t buffers = pseg_params_has_ema(t->params) ? 5 : 4;

    *out =
        (pseg_train_summary){.state = t->state,
                             .params = pseg_params_total(t->params),
                             .graph_bytes = pseg_graph_bytes(pseg_train_head_graph(t->head)),
                             .param_bytes = buffers * pseg_params_elems(t->params) * sizeof(float) +
                                            pseg_optim_bytes(t->optim),
                             .encoder_bytes = pseg_encoders_bytes(t->e),
                             .skipped = t->n_skipped,
                             .cut_phrases = pseg_feed_cut(t->feed),
                             .is_done = t->is_done,
                             .is_stopped = pseg_trainer_is_stopped(t)};
}

pseg_stream *pseg_trainer_stream(const pseg_trainer *t)
{
    return t->s;
}
