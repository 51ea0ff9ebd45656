/* pseg-train: trains neck and decoder on frozen encoders; docs/training.md tells the way. */
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "worker/apps/engine_options.h"
#include "worker/apps/program.h"
#include "worker/model/sam.h"
#include "worker/train/head.h"
#include "worker/train/init.h"
#include "worker/train/source_data.h"
#include "worker/train/trainer.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

typedef struct args {
    pseg_conf_list data;
    const char *val, *val_images, *kind, *features, *vision, *text, *out, *init, *sam, *device,
        *cache, *train, *train_layers, *text_mode, *taps, *tap_norm, *preprocess, *upsample, *name;
    int64_t lora_rank, image_size, dim, heads, depth, mlp, batch, images, accumulate, epochs,
        patience, seed, max_tokens, max_skips, save_every, threads;
    double lr_neck, lr_decoder, lr_vision, lr_text, decay, warm_epochs, clip, ema, bce, dice, iou;
    bool resume, mirror, half, profile, json, verbose;
} args;

static const pseg_conf_option options[] = {
    {"data", PSEG_CONF_LIST, offsetof(args, data), NULL, .unit = "SET", .letter = 'D',
     .help = "a data set (docs/data.md), SET,weight=0.5 to take half of it an epoch; again for "
             "more sets; or scenes:N, N new drawn scenes an epoch, scenes:N,fixed the same N"},
    {"val", PSEG_CONF_STRING, offsetof(args, val), NULL, .unit = "SET",
     .help =
         "what to validate on after each epoch, or none; default the first --data, or scenes:64"},
    {"val_images", PSEG_CONF_STRING, offsetof(args, val_images), "hash:10%", .unit = "SPEC",
     .help =
         "which images of --val: all, last:N, first:N, hash:P%, list:FILE; they are left out of "
         "training"},
    {"kind", PSEG_CONF_STRING, offsetof(args, kind), NULL, .unit = "NAME",
     .help = "samples of this kind alone, in training and validation"},
    {"mirror", PSEG_CONF_BOOL, offsetof(args, mirror), "false",
     .help = "take about half of the photos mirrored, left and right exchanged in the phrase"},
    {"features", PSEG_CONF_STRING, offsetof(args, features), NULL, .unit = "DIR",
     .help = "where features of images are kept; default `features` in the cache"},
    {"vision", PSEG_CONF_STRING, offsetof(args, vision), NULL, .unit = "DIR",
     .help = "Hugging Face folder of the image encoder"},
    {"text", PSEG_CONF_STRING, offsetof(args, text), NULL, .unit = "DIR",
     .help = "Hugging Face folder of the text encoder"},
    {"out", PSEG_CONF_STRING, offsetof(args, out), NULL, .unit = "DIR", .letter = 'o',
     .help = "folder for the model, its checkpoints, log and curves"},
    {"resume", PSEG_CONF_BOOL, offsetof(args, resume), "false",
     .help = "go on with the run in --out, if there is one"},
    {"init", PSEG_CONF_STRING, offsetof(args, init), NULL, .unit = "FILE",
     .help = "pseg.safetensors to begin from; its shapes are taken, --dim and the like ignored"},
    {"sam", PSEG_CONF_STRING, offsetof(args, sam), NULL, .unit = "DIR",
     .help = "SAM-base folder that parts of the decoder begin from"},
    {"name", PSEG_CONF_STRING, offsetof(args, name), "trained", .unit = "NAME",
     .help = "of the model, for pseg.json"},
    {"batch", PSEG_CONF_INT, offsetof(args, batch), "32", .min = 1, .max = 1024,
     .help = "samples (phrases) of a step on the device"},
    {"images", PSEG_CONF_INT, offsetof(args, images), "0", .min = 0, .max = 1024,
     .help = "images of a batch, each with several of its phrases; 0: as many as samples"},
    {"accumulate", PSEG_CONF_INT, offsetof(args, accumulate), "1", .min = 1, .max = 1024,
     .help = "batches whose gradients are added up before a step"},
    {"epochs", PSEG_CONF_INT, offsetof(args, epochs), "20", .min = 1, .max = 100000,
     .help = "passes over the data; the learning rate falls to 0 over them"},
    {"warm_epochs", PSEG_CONF_REAL, offsetof(args, warm_epochs), "2", .min = 0, .max = 1000,
     .help = "epochs in which the learning rate rises"},
    {"lr_neck", PSEG_CONF_REAL, offsetof(args, lr_neck), "1e-4", .min = 0, .max = 1,
     .help = "highest learning rate of the neck"},
    {"lr_decoder", PSEG_CONF_REAL, offsetof(args, lr_decoder), "2e-4", .min = 0, .max = 1,
     .help = "highest learning rate of the decoder and the text projection"},
    {"train", PSEG_CONF_STRING, offsetof(args, train), NULL, .unit = "NAME,..",
     .help = "encoders that are trained too: vision, text, or vision,text; default none"},
    {"train_layers", PSEG_CONF_STRING, offsetof(args, train_layers), "all", .unit = "N",
     .help = "of an encoder that is trained: the last N blocks and the norm behind them, or all, "
             "embeddings too"},
    {"lora_rank", PSEG_CONF_INT, offsetof(args, lora_rank), "0", .min = 0, .max = 256,
     .help = "train small matrices of this rank beside the blocks' queries and values (LoRA) "
             "instead of the encoders' own weights; they are added up in what is exported; 0: no"},
    {"lr_vision", PSEG_CONF_REAL, offsetof(args, lr_vision), "1e-5", .min = 0, .max = 1,
     .help = "highest learning rate of an image encoder that is trained"},
    {"lr_text", PSEG_CONF_REAL, offsetof(args, lr_text), "1e-5", .min = 0, .max = 1,
     .help = "highest learning rate of a text encoder that is trained"},
    {"half", PSEG_CONF_BOOL, offsetof(args, half), "false",
     .help = "export weights in float16, half the size: neck and decoder, and encoders that are "
             "trained"},
    {"weight_decay", PSEG_CONF_REAL, offsetof(args, decay), "1e-2", .min = 0, .max = 1,
     .help = "AdamW's, of matrices and convolutions alone"},
    {"clip", PSEG_CONF_REAL, offsetof(args, clip), "1", .min = 0, .max = 1e6,
     .help = "largest norm of the gradient; 0: any"},
    {"ema", PSEG_CONF_REAL, offsetof(args, ema), "0", .min = 0, .max = 0.999999,
     .help = "what a slow average of the weights keeps of itself a step; it is validated and "
             "exported; 0: none"},
    {"loss_bce", PSEG_CONF_REAL, offsetof(args, bce), "1", .min = 0, .max = 1000,
     .help = "weight of the cross-entropy of pixels"},
    {"loss_dice", PSEG_CONF_REAL, offsetof(args, dice), "1", .min = 0, .max = 1000,
     .help = "weight of the Dice loss of masks"},
    {"loss_iou", PSEG_CONF_REAL, offsetof(args, iou), "0.2", .min = 0, .max = 1000,
     .help = "weight of the predicted IoU's square error"},
    {"patience", PSEG_CONF_INT, offsetof(args, patience), "0", .min = 0, .max = 100000,
     .help = "epochs without a better validation after which the run ends; 0: never"},
    {"seed", PSEG_CONF_INT, offsetof(args, seed), "0", .min = 0, .max = 1e15,
     .help = "decides first weights and the order of the data"},
    {"max_tokens", PSEG_CONF_INT, offsetof(args, max_tokens), "32", .min = 3, .max = 77,
     .help = "longest phrase in tokens, with BOS and EOS; longer ones are cut and counted"},
    {"max_skips", PSEG_CONF_INT, offsetof(args, max_skips), "10", .min = 1, .max = 1000000,
     .help = "steps in a row whose loss is not a number, after which the run fails"},
    {"save_every", PSEG_CONF_INT, offsetof(args, save_every), "500", .min = 1, .max = 1e9,
     .help = "steps between checkpoints; there is one after each epoch too"},
    {"image_size", PSEG_CONF_INT, offsetof(args, image_size), "224", .unit = "px", .min = 14,
     .max = 4096, .help = "side of the model's input, a multiple of the encoder's patch"},
    {"preprocess", PSEG_CONF_STRING, offsetof(args, preprocess), "squash", .unit = "NAME",
     .help = "how an image becomes square: squash or letterbox"},
    {"text_mode", PSEG_CONF_STRING, offsetof(args, text_mode), "pooled", .unit = "NAME",
     .help = "what the decoder reads of a phrase: pooled, one vector, or tokens, each word too"},
    {"taps", PSEG_CONF_STRING, offsetof(args, taps), NULL, .unit = "N,N,..",
     .help = "blocks of the image encoder whose outputs are read; default 3,6,9,11 of 12"},
    {"tap_norm", PSEG_CONF_STRING, offsetof(args, tap_norm), "none", .unit = "NAME",
     .help = "none, or final_ln: taps go through the encoder's last norm"},
    {"dim", PSEG_CONF_INT, offsetof(args, dim), "256", .min = 32, .max = 4096,
     .help = "width of neck and decoder"},
    {"heads", PSEG_CONF_INT, offsetof(args, heads), "8", .min = 1, .max = 256,
     .help = "attention heads of the decoder"},
    {"depth", PSEG_CONF_INT, offsetof(args, depth), "3", .min = 1, .max = 64,
     .help = "two-way blocks of the decoder"},
    {"mlp_dim", PSEG_CONF_INT, offsetof(args, mlp), "2048", .min = 8, .max = 65536,
     .help = "inner width of the decoder's MLPs"},
    {"upsample", PSEG_CONF_STRING, offsetof(args, upsample), "128,64,32", .unit = "N,N,..",
     .help = "channels after each doubling of the mask's sides, 1 to 4 of them"},
    {"device", PSEG_CONF_STRING, offsetof(args, device), "auto", .unit = "NAME", .letter = 'd',
     .help = "auto, cpu, gpu, P:D or part of a name; `pseg devices` lists them"},
    {"threads", PSEG_CONF_INT, offsetof(args, threads), "0", .min = 0, .max = 4096,
     .help = THREADS_HELP},
    {"cache", PSEG_CONF_STRING, offsetof(args, cache), NULL, .unit = "DIR",
     .help = "compiled kernels; default ~/.cache/pseg"},
    {"profile", PSEG_CONF_BOOL, offsetof(args, profile), "false",
     .help = "at the end, the time on the device of each kernel; costs a little speed"},
    {"json", PSEG_CONF_BOOL, offsetof(args, json), "false", .help = "print JSON"},
    {"verbose", PSEG_CONF_BOOL, offsetof(args, verbose), "false", .letter = 'v',
     .help = "log what happens"},
    {0}};

/* ---- progress -------------------------------------------------------------------------------- */

static volatile sig_atomic_t stop;

static void on_signal(int number)
{
    (void)number;
    stop = 1;
}

static void remaining(char *out, size_t size, double s)
{
    if (!(s >= 0) || s > 1e8)
        snprintf(out, size, "?");
    else if (s < 90)
        snprintf(out, size, "%.0f s", s);
    else if (s < 5400)
        snprintf(out, size, "%.0f min", s / 60);
    else
        snprintf(out, size, "%.1f h", s / 3600);
}

/* One line that is written over on a terminal; a line an epoch stays. */
static void on_event(void *ud, const pseg_train_event *e)
{
    bool is_terminal = *(const bool *)ud;
    char left[32];

    remaining(left, sizeof left, e->remaining_s);
    switch (e->kind) {
    case PSEG_TRAIN_STEPPED:
        if (is_terminal)
            fprintf(stderr,
                    "\r\033[Kepoch %" PRIu64 "/%" PRIu64 "  step %" PRIu64 "/%" PRIu64
                    "  loss %.4f  IoU %.3f  %.3g samples/s  %s left",
                    e->epoch + 1, e->epochs, e->step, e->steps, e->loss, e->iou, e->images_per_s,
                    left);
        break;
    case PSEG_TRAIN_SKIPPED:
        fprintf(stderr, "%sstep %" PRIu64 " skipped, its loss is not a number: %s\n",
                is_terminal ? "\r\033[K" : "", e->step, e->text);
        break;
    case PSEG_TRAIN_EPOCH_DONE:
        fprintf(stderr, "%sepoch %" PRIu64 "/%" PRIu64 "  loss %.4f  IoU %.4f",
                is_terminal ? "\r\033[K" : "", e->epoch, e->epochs, e->loss, e->iou);
        if (isfinite(e->val_iou))
            fprintf(stderr, "  validation: loss %.4f  IoU %.4f%s", e->val_loss, e->val_iou,
                    e->is_best ? " (best)" : "");
        fprintf(stderr, "  %.3g samples/s  %s left\n", e->images_per_s, left);
        break;
    case PSEG_TRAIN_STOPPED_EARLY:
        fprintf(stderr, "no better validation for long: the run ends here\n");
        break;
    case PSEG_TRAIN_VALIDATED:
        break;
    }
}

/* ---- the head's configuration ---------------------------------------------------------------- */

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

static pseg_status new_shape(pseg_head_config *c, const args *a, const pseg_encoders *e,
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

typedef struct start {
    pseg_tensors *file; /* --init */
    pseg_sam *sam;
    pseg_specs specs;
    pseg_init init;
    pseg_weights *weights;
} start;

static void start_deinit(start *s)
{
    pseg_weights_free(s->weights);
    pseg_specs_deinit(&s->specs);
    pseg_tensors_close(s->file);
    pseg_sam_close(s->sam);
}

static pseg_status start_open(start *s, pseg_head_config *c, const args *a, const pseg_encoders *e,
                              pseg_err *err)
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

/* ---- the run --------------------------------------------------------------------------------- */

/* scenes:N or, where it may be, scenes:N,fixed. */
static pseg_status scenes_of(uint64_t *out, bool *is_fixed, const char *option, const char *set,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *end = NULL;

    *out = strncmp(set, "scenes:", 7) == 0 && set[7] >= '0' && set[7] <= '9'
               ? strtoull(set + 7, &end, 10)
               : 0;
    if (end && is_fixed && strcmp(end, ",fixed") == 0) {
        *is_fixed = true;
        end += strlen(end);
    }
    if (!end || *end || *out > 1000000000)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--%s \"%.80s\": expected scenes:N%s, N up to 10^9",
                  option, set, is_fixed ? " or scenes:N,fixed" : "");
out:
    return rc;
}

static pseg_status open_scenes(pseg_train_source *out, const args *a, const pseg_head_config *c,
                               const pseg_train_sizes *sizes, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_train_scene_set set = {0};
    const char *val = !a->val ? "scenes:64" : strcmp(a->val, "none") == 0 ? "scenes:0" : a->val;

    if (a->data.n > 1)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--data %s: scenes are not mixed with other sets",
                  a->data.items[0]);
    PSEG_TRY(scenes_of(&set.train, &set.is_fixed, "data", a->data.items[0], err));
    PSEG_TRY(scenes_of(&set.val, NULL, "val", val, err));
    if (set.train == 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--data %s: nothing to train on", a->data.items[0]);
    PSEG_TRY(pseg_train_scenes(out, c, sizes, &set, err));
out:
    return rc;
}

/* PATH or PATH,weight=W; the path is cut off in place. */
static pseg_status part_of(pseg_train_part *out, char *text, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *comma = strstr(text, ",weight="), *end;

    *out = (pseg_train_part){text, 1};
    if (!comma)
        goto out;
    out->weight = strtod(comma + strlen(",weight="), &end);
    if (*end || end == comma + strlen(",weight=") || !(out->weight > 0 && out->weight <= 1000))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--data \"%.80s\": expected PATH,weight=W with W above 0, at most 1000", text);
    *comma = '\0';
out:
    return rc;
}

/* What is left out of data sets, by its fault; of pixels, also while the run goes on. */
typedef struct left_out {
    uint64_t n[PSEG_DATA_N_FAULTS], told[PSEG_DATA_N_FAULTS];
} left_out;

enum { NAMED = 5 }; /* of each fault; the others are counted */

static void on_left_out(void *ud, pseg_data_fault fault, const char *where, const char *what)
{
    left_out *l = ud;

    if (l->n[fault]++ < NAMED)
        fprintf(stderr, "left out: %s: %s (%s)\n", where, what, pseg_data_fault_name(fault));
}

static void tell_left_out(left_out *l)
{
    for (size_t i = 0; i < PSEG_DATA_N_FAULTS; i++) {
        if (l->n[i] > NAMED && l->n[i] != l->told[i])
            fprintf(stderr, "left out: %" PRIu64 " in all (%s)\n", l->n[i],
                    pseg_data_fault_name((pseg_data_fault)i));
        l->told[i] = l->n[i];
    }
}

typedef struct looking {
    bool is_terminal, has_pixels;
} looking;

static bool on_images(void *ud, size_t done, size_t n_skipped, size_t total)
{
    const looking *l = ud;

    if (l->is_terminal)
        fprintf(stderr, "\r\033[K%s %zu of %zu images%s",
                l->has_pixels ? "looked at" : "features of", done, total,
                done == total ? "\n" : "");
    (void)n_skipped;
    return !stop;
}

static pseg_status open_data(pseg_train_source *out, pseg_cl *cl, const args *a,
                             const pseg_head_config *c, const pseg_trainer_options *t,
                             left_out *left, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    looking l = {isatty(STDERR_FILENO), t->towers.vision};
    char **texts = pseg_calloc(a->data.n, sizeof *texts), *cache = NULL;
    pseg_train_part *parts = pseg_calloc(a->data.n, sizeof *parts);
    pseg_train_data_options o = {.parts = parts,
                                 .n_parts = a->data.n,
                                 .val_images = a->val_images,
                                 .kind = a->kind,
                                 .has_pixels = l.has_pixels,
                                 .vision = a->vision,
                                 .has_mirror = a->mirror,
                                 .report = on_left_out,
                                 .report_ud = left,
                                 .progress = on_images,
                                 .progress_ud = &l};

    if (!texts || !parts)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for data sets");
    for (size_t i = 0; i < a->data.n; i++) {
        texts[i] = pseg_strdup(a->data.items[i]);
        if (!texts[i])
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for data sets");
        PSEG_TRY(part_of(&parts[i], texts[i], err));
    }
    o.val = !a->val ? parts[0].path : strcmp(a->val, "none") == 0 ? NULL : a->val;
    if (a->features)
        cache = pseg_strdup(a->features);
    else if (pseg_cl_cache_dir(cl))
        cache = pseg_path_join(pseg_cl_cache_dir(cl), "features");
    if (!cache && !l.has_pixels)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "no folder for features: give --features DIR");
    o.cache = cache;
    PSEG_TRY(pseg_train_data(out, cl, c, &t->sizes, &o, err));
    tell_left_out(left);
out:
    for (size_t i = 0; texts && i < a->data.n; i++)
        pseg_free(texts[i]);
    pseg_free(texts);
    pseg_free(parts);
    pseg_free(cache);
    return rc;
}

static pseg_status open_source(pseg_train_source *out, pseg_cl *cl, const args *a,
                               const pseg_head_config *c, const pseg_trainer_options *t,
                               left_out *left, pseg_err *err)
{
    return strncmp(a->data.items[0], "scenes:", 7) == 0 ? open_scenes(out, a, c, &t->sizes, err)
                                                        : open_data(out, cl, a, c, t, left, err);
}

static pseg_status about_of(pseg_folder *f, const args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char vision[PATH_MAX], text[PATH_MAX];

    if (!realpath(a->vision, vision) || !realpath(a->text, text) ||
        strlen(vision) >= sizeof f->vision || strlen(text) >= sizeof f->text)
        PSEG_FAIL(PSEG_R_FILE_NOT_FOUND, errno, "cannot tell where %s and %s lie, or too deep",
                  a->vision, a->text);
    snprintf(f->vision, sizeof f->vision, "%s", vision);
    snprintf(f->text, sizeof f->text, "%s", text);
    snprintf(f->name, sizeof f->name, "%s", a->name);
    snprintf(f->description, sizeof f->description, "Trained on %s.", a->data.items[0]);
out:
    return rc;
}

/* --train and --train-layers. */
static pseg_status towers_of(pseg_trainer_options *o, const args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char text[64] = "", *rest = text, *end;
    uint32_t layers = PSEG_TRAIN_ALL;

    if (a->train)
        snprintf(text, sizeof text, "%s", a->train);
    for (char *name; *text && (name = strsep(&rest, ","));) {
        o->towers.vision = o->towers.vision || strcmp(name, "vision") == 0;
        o->towers.text = o->towers.text || strcmp(name, "text") == 0;
        if (strcmp(name, "vision") != 0 && strcmp(name, "text") != 0)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                      "--train \"%.60s\": expected vision, text, or vision,text", a->train);
    }
    if (strcmp(a->train_layers, "all") != 0) {
        unsigned long n = strtoul(a->train_layers, &end, 10);
        if (end == a->train_layers || *end || n < 1 || n > 1000)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                      "--train-layers \"%.40s\": expected all, or a number of 1 to 1000",
                      a->train_layers);
        layers = (uint32_t)n;
    }
    if (layers != PSEG_TRAIN_ALL && !o->towers.vision && !o->towers.text)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--train-layers %s: of which encoder? Add --train vision, text, or vision,text",
                  a->train_layers);
    if (a->lora_rank && !o->towers.vision && !o->towers.text)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--lora-rank %d: of which encoder? Add --train vision, text, or vision,text",
                  (int)a->lora_rank);
    o->towers.vision_layers = o->towers.text_layers = layers;
    o->towers.lora_rank = (uint32_t)a->lora_rank;
    o->exports_half = a->half;
    o->optim.lr[PSEG_PARAM_VISION] = (float)a->lr_vision;
    o->optim.lr[PSEG_PARAM_TEXT] = (float)a->lr_text;
out:
    return rc;
}

static pseg_status options_of(pseg_trainer_options *o, const args *a, const pseg_log *log,
                              bool *is_terminal, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t batch = (uint32_t)a->batch, images = a->images ? (uint32_t)a->images : batch;

    if (batch % images)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--images %u must divide --batch %u", images, batch);
    *o = (pseg_trainer_options){
        .sizes = {batch, images, (uint64_t)a->seed},
        .accumulate = (uint32_t)a->accumulate,
        .epochs = (uint32_t)a->epochs,
        .warm_epochs = a->warm_epochs,
        .patience = (uint32_t)a->patience,
        .max_skips = (uint32_t)a->max_skips,
        .max_tokens = (uint32_t)a->max_tokens,
        .save_every = (uint64_t)a->save_every,
        .optim = PSEG_OPTIM_OPTIONS_DEFAULT,
        .loss = {(float)a->bce, (float)a->dice, (float)a->iou},
        .folder = a->out,
        .resume = a->resume,
        .stop = &stop,
        .on_event = on_event,
        .event_ud = is_terminal,
        .log = log,
    };
    o->optim.lr[PSEG_PARAM_NECK] = (float)a->lr_neck;
    o->optim.lr[PSEG_PARAM_DECODER] = (float)a->lr_decoder;
    o->optim.decay = (float)a->decay;
    o->optim.clip = (float)a->clip;
    o->optim.ema = (float)a->ema;
    PSEG_TRY(towers_of(o, a, err));
    PSEG_TRY(about_of(&o->about, a, err));
out:
    return rc;
}

static double mib(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

static void print_summary(const args *a, const pseg_trainer *t)
{
    pseg_train_summary s;
    struct rusage use = {0};

    pseg_trainer_sum_up(&s, t);
    getrusage(RUSAGE_SELF, &use);
    if (a->json) {
        json_t *best = s.state.best_iou >= 0 ? json_real(s.state.best_iou) : json_null();
        program_print(json_pack("{s:o, s:b, s:I, s:I, s:I, s:o, s:I, s:I, s:I, s:f, s:f, s:f}",
                                "folder", program_text(a->out), "done", s.is_done, "epochs",
                                (json_int_t)s.state.epoch, "steps", (json_int_t)s.state.step,
                                "params", (json_int_t)s.params, "best_iou", best, "best_epoch",
                                (json_int_t)s.state.best_epoch + 1, "skipped_steps",
                                (json_int_t)s.skipped, "cut_phrases", (json_int_t)s.cut_phrases,
                                "seconds", s.state.seconds, "graph_mib", mib(s.graph_bytes),
                                "peak_mib", (double)use.ru_maxrss / 1024));
        return;
    }
    printf("%s after %" PRIu64 " epochs, %" PRIu64 " steps, %.0f s", s.is_done ? "done" : "stopped",
           s.state.epoch, s.state.step, s.state.seconds);
    if (s.state.best_iou >= 0)
        printf("; best IoU %.4f in epoch %" PRIu64, s.state.best_iou, s.state.best_epoch + 1);
    printf("\n");
    if (s.skipped || s.cut_phrases)
        printf("%" PRIu64 " steps skipped, %" PRIu64 " phrases cut\n", s.skipped, s.cut_phrases);
    printf("%s\n  model    %s\n", s.is_stopped ? "--resume goes on" : "", a->out);
}

static void print_profile(const pseg_trainer *t)
{
    pseg_profile_entry found[64];
    size_t n = pseg_stream_profile(found, 64, pseg_trainer_stream(t));

    for (size_t i = 0; i < n && i < 64; i++)
        fprintf(stderr, "%-26s %8" PRIu64 " launches %10.1f ms\n", found[i].name, found[i].launches,
                found[i].total_ms);
}

static pseg_status check_paths(const args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (!a->data.n || !a->vision || !a->text || !a->out)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--data SET, --vision DIR, --text DIR and --out DIR are needed (--help tells "
                  "more)");
out:
    return rc;
}

static pseg_status run(const args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_log log = {a->verbose ? PSEG_LOG_DEBUG : PSEG_LOG_WARN, STDERR_FILENO};
    pseg_cl_options co = PSEG_CL_OPTIONS_DEFAULT;
    pseg_trainer_options o;
    pseg_train_source source = {0};
    start begin = {0};
    pseg_head_config head;
    pseg_cl *cl = NULL;
    pseg_encoders *e = NULL;
    pseg_trainer *t = NULL;
    bool is_terminal = isatty(STDERR_FILENO);
    left_out left = {0};

    PSEG_TRY(check_paths(a, err));
    PSEG_TRY(options_of(&o, a, &log, &is_terminal, err));
    PSEG_TRY(pseg_device_set_threads((unsigned)a->threads, err));
    co.device = a->device;
    co.cache_dir = a->cache;
    co.log = &log;
    co.profile = a->profile;
    PSEG_TRY(pseg_image_init(err));
    PSEG_TRY(pseg_cl_open(&cl, &co, err));
    PSEG_TRY(pseg_encoders_open(&e, cl, a->vision, a->text, err));
    PSEG_TRY(pseg_trainer_check(&o, e, err));
    PSEG_TRY(start_open(&begin, &head, a, e, err));
    PSEG_TRY(open_source(&source, cl, a, &head, &o, &left, err));
    PSEG_TRY(pseg_trainer_new(&t, cl, e, &source, &head, begin.weights, &o, err));
    PSEG_TRY(pseg_trainer_run(t, err));
    tell_left_out(&left);
    print_summary(a, t);
    if (a->profile)
        print_profile(t);
out:
    pseg_trainer_free(t);
    start_deinit(&begin);
    pseg_train_source_close(&source);
    pseg_encoders_close(e);
    pseg_cl_close(cl);
    return rc;
}

int main(int argc, char **argv)
{
    static const pseg_conf_about about = {
        .name = "pseg train",
        .usage = "--data SET --vision DIR --text DIR --out DIR",
        .what =
            "Trains neck and decoder on frozen encoders, and leaves a model that `pseg run` and\n"
            "`pseg-worker` open. Interrupted at any moment, it goes on with --resume.",
        .example = "pseg train --data scenes:2000 --vision scenes/vision --text scenes/text "
                   "--text-mode tokens --out run1\n"
                   "pseg run --model run1 --image scene.png --prompt \"the red circle\""};
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_RESETHAND};
    args a = {0};
    pseg_conf *conf = NULL;
    pseg_err err = PSEG_ERR_INIT;
    int status = 0;

    /* The first asks for an orderly end; the second ends at once. */
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
    if (program_begin(&conf, &a, options, &about, argc, argv, &status))
        status = program_end(run(&a, &err), &err, a.json);
    pseg_conf_free(conf);
    return status;
}
