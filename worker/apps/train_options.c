/* pseg-train's options, and what they mean to the trainer. */
#include "worker/apps/engine_options.h"
#include "worker/apps/train.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const pseg_conf_option train_options[] = {
    {"data", PSEG_CONF_LIST, offsetof(train_args, data), NULL, .unit = "SET", .letter = 'D',
     .help = "a data set (docs/data.md), SET,weight=0.5 to take half of it an epoch; again for "
             "more sets; or scenes:N, N new drawn scenes an epoch, scenes:N,fixed the same N"},
    {"val", PSEG_CONF_STRING, offsetof(train_args, val), NULL, .unit = "SET",
     .help =
         "what to validate on after each epoch, or none; default the first --data, or scenes:64"},
    {"val_images", PSEG_CONF_STRING, offsetof(train_args, val_images), "hash:10%", .unit = "SPEC",
     .help =
         "which images of --val: all, last:N, first:N, hash:P%, list:FILE; they are left out of "
         "training"},
    {"kind", PSEG_CONF_STRING, offsetof(train_args, kind), NULL, .unit = "NAME",
     .help = "samples of this kind alone, in training and validation"},
    {"kind_weight", PSEG_CONF_STRING, offsetof(train_args, kind_weight), NULL, .unit = "KIND=W,..",
     .help = "of scenes: draw phrases of a kind likelier in training, W of 0.01 to 100 in place of "
             "1; attribute, direction, near (next to, closest to), superlative"},
    {"mirror", PSEG_CONF_BOOL, offsetof(train_args, mirror), "false",
     .help = "take about half of the photos mirrored, left and right exchanged in the phrase"},
    {"features", PSEG_CONF_STRING, offsetof(train_args, features), NULL, .unit = "DIR",
     .help = "where features of images are kept; default `features` in the cache"},
    {"vision", PSEG_CONF_STRING, offsetof(train_args, vision), NULL, .unit = "DIR",
     .help = "Hugging Face folder of the image encoder"},
    {"text", PSEG_CONF_STRING, offsetof(train_args, text), NULL, .unit = "DIR",
     .help = "Hugging Face folder of the text encoder"},
    {"out", PSEG_CONF_STRING, offsetof(train_args, out), NULL, .unit = "DIR", .letter = 'o',
     .help = "folder for the model, its checkpoints, log and curves"},
    {"resume", PSEG_CONF_BOOL, offsetof(train_args, resume), "false",
     .help = "go on with the run in --out, if there is one"},
    {"init", PSEG_CONF_STRING, offsetof(train_args, init), NULL, .unit = "FILE",
     .help = "pseg.safetensors to begin from; its shapes are taken, --dim and the like ignored"},
    {"sam", PSEG_CONF_STRING, offsetof(train_args, sam), NULL, .unit = "DIR",
     .help = "SAM-base folder that parts of the decoder begin from"},
    {"name", PSEG_CONF_STRING, offsetof(train_args, name), "trained", .unit = "NAME",
     .help = "of the model, for pseg.json"},
    {"batch", PSEG_CONF_INT, offsetof(train_args, batch), "32", .min = 1, .max = 1024,
     .help = "samples (phrases) of a step on the device"},
    {"images", PSEG_CONF_INT, offsetof(train_args, images), "0", .min = 0, .max = 1024,
     .help = "images of a batch, each with several of its phrases; 0: as many as samples"},
    {"accumulate", PSEG_CONF_INT, offsetof(train_args, accumulate), "1", .min = 1, .max = 1024,
     .help = "batches whose gradients are added up before a step"},
    {"epochs", PSEG_CONF_INT, offsetof(train_args, epochs), "20", .min = 1, .max = 100000,
     .help = "passes over the data; the learning rate falls to 0 over them"},
    {"warm_epochs", PSEG_CONF_REAL, offsetof(train_args, warm_epochs), "2", .min = 0, .max = 1000,
     .help = "epochs in which the learning rate rises"},
    {"lr_neck", PSEG_CONF_REAL, offsetof(train_args, lr_neck), "1e-4", .min = 0, .max = 1,
     .help = "highest learning rate of the neck"},
    {"lr_decoder", PSEG_CONF_REAL, offsetof(train_args, lr_decoder), "2e-4", .min = 0, .max = 1,
     .help = "highest learning rate of the decoder and the text projection"},
    {"train", PSEG_CONF_STRING, offsetof(train_args, train), NULL, .unit = "NAME,..",
     .help = "encoders that are trained too: vision, text, or vision,text; default none"},
    {"train_layers", PSEG_CONF_STRING, offsetof(train_args, train_layers), "all", .unit = "N",
     .help = "of an encoder that is trained: the last N blocks and the norm behind them, or all, "
             "embeddings too"},
    {"lora_rank", PSEG_CONF_INT, offsetof(train_args, lora_rank), "0", .min = 0, .max = 256,
     .help = "train small matrices of this rank beside the blocks' queries and values (LoRA) "
             "instead of the encoders' own weights; they are added up in what is exported; 0: no"},
    {"lr_vision", PSEG_CONF_REAL, offsetof(train_args, lr_vision), "1e-5", .min = 0, .max = 1,
     .help = "highest learning rate of an image encoder that is trained"},
    {"lr_text", PSEG_CONF_REAL, offsetof(train_args, lr_text), "1e-5", .min = 0, .max = 1,
     .help = "highest learning rate of a text encoder that is trained"},
    {"half", PSEG_CONF_BOOL, offsetof(train_args, half), "false",
     .help = "export weights in float16, half the size: neck and decoder, and encoders that are "
             "trained"},
    {"optimizer", PSEG_CONF_STRING, offsetof(train_args, optimizer), "adamw", .unit = "NAME",
     .help = "adamw; or muon, whose steps of matrices are made orthogonal, and AdamW for the rest"},
    {"lr_muon", PSEG_CONF_REAL, offsetof(train_args, lr_muon), "0.01", .min = 1e-9, .max = 1,
     .help = "highest learning rate of Muon's matrices, of all parts of the model"},
    {"weight_decay", PSEG_CONF_REAL, offsetof(train_args, decay), "1e-2", .min = 0, .max = 1,
     .help = "of matrices and convolutions alone"},
    {"clip", PSEG_CONF_REAL, offsetof(train_args, clip), "1", .min = 0, .max = 1e6,
     .help = "largest norm of the gradient; 0: any"},
    {"ema", PSEG_CONF_REAL, offsetof(train_args, ema), "0", .min = 0, .max = 0.999999,
     .help = "what a slow average of the weights keeps of itself a step; it is validated and "
             "exported; 0: none"},
    {"loss_bce", PSEG_CONF_REAL, offsetof(train_args, bce), "1", .min = 0, .max = 1000,
     .help = "weight of the cross-entropy of pixels"},
    {"loss_dice", PSEG_CONF_REAL, offsetof(train_args, dice), "1", .min = 0, .max = 1000,
     .help = "weight of the Dice loss of masks"},
    {"loss_iou", PSEG_CONF_REAL, offsetof(train_args, iou), "0.2", .min = 0, .max = 1000,
     .help = "weight of the predicted IoU's square error"},
    {"loss_at", PSEG_CONF_STRING, offsetof(train_args, loss_at), "logits", .unit = "NAME",
     .help = "where masks are compared, in training and validation: logits, at their resolution, "
             "or input, enlarged to the model's input as inference does it"},
    {"loss_deep", PSEG_CONF_REAL, offsetof(train_args, deep), "0", .min = 0, .max = 1000,
     .help = "weight of a loss of masks read off the image's keys after each two-way block by a "
             "linear map that only training has; 0: none"},
    {"lr_probe", PSEG_CONF_REAL, offsetof(train_args, lr_probe), "1e-3", .min = 0, .max = 1,
     .help = "highest learning rate of --loss-deep's linear maps"},
    {"patience", PSEG_CONF_INT, offsetof(train_args, patience), "0", .min = 0, .max = 100000,
     .help = "epochs without a better validation after which the run ends; 0: never"},
    {"seed", PSEG_CONF_INT, offsetof(train_args, seed), "0", .min = 0, .max = 1e15,
     .help = "decides first weights and the order of the data"},
    {"max_tokens", PSEG_CONF_INT, offsetof(train_args, max_tokens), "32", .min = 3, .max = 77,
     .help = "longest phrase in tokens, with BOS and EOS; longer ones are cut and counted"},
    {"max_skips", PSEG_CONF_INT, offsetof(train_args, max_skips), "10", .min = 1, .max = 1000000,
     .help = "steps in a row whose loss is not a number, after which the run fails"},
    {"save_every", PSEG_CONF_INT, offsetof(train_args, save_every), "500", .min = 1, .max = 1e9,
     .help = "steps between checkpoints; there is one after each epoch too"},
    {"image_size", PSEG_CONF_INT, offsetof(train_args, image_size), "224", .unit = "px", .min = 14,
     .max = 4096, .help = "side of the model's input, a multiple of the encoder's patch"},
    {"preprocess", PSEG_CONF_STRING, offsetof(train_args, preprocess), "squash", .unit = "NAME",
     .help = "how an image becomes square: squash or letterbox"},
    {"text_mode", PSEG_CONF_STRING, offsetof(train_args, text_mode), "pooled", .unit = "NAME",
     .help = "what the decoder reads of a phrase: pooled, one vector, or tokens, each word too"},
    {"taps", PSEG_CONF_STRING, offsetof(train_args, taps), NULL, .unit = "N,N,..",
     .help = "blocks of the image encoder whose outputs are read; default 3,6,9,11 of 12"},
    {"tap_norm", PSEG_CONF_STRING, offsetof(train_args, tap_norm), "none", .unit = "NAME",
     .help = "none, or final_ln: taps go through the encoder's last norm"},
    {"dim", PSEG_CONF_INT, offsetof(train_args, dim), "256", .min = 32, .max = 4096,
     .help = "width of neck and decoder"},
    {"heads", PSEG_CONF_INT, offsetof(train_args, heads), "8", .min = 1, .max = 256,
     .help = "attention heads of the decoder"},
    {"depth", PSEG_CONF_INT, offsetof(train_args, depth), "3", .min = 1, .max = 64,
     .help = "two-way blocks of the decoder"},
    {"mlp_dim", PSEG_CONF_INT, offsetof(train_args, mlp), "2048", .min = 8, .max = 65536,
     .help = "inner width of the decoder's MLPs"},
    {"upsample", PSEG_CONF_STRING, offsetof(train_args, upsample), "128,64,32", .unit = "N,N,..",
     .help = "channels after each doubling of the mask's sides, 1 to 4 of them"},
    {"device", PSEG_CONF_STRING, offsetof(train_args, device), "auto", .unit = "NAME",
     .letter = 'd', .help = "auto, cpu, gpu, P:D or part of a name; `pseg devices` lists them"},
    {"threads", PSEG_CONF_INT, offsetof(train_args, threads), "0", .min = 0, .max = 4096,
     .help = THREADS_HELP},
    {"cache", PSEG_CONF_STRING, offsetof(train_args, cache), NULL, .unit = "DIR",
     .help = "compiled kernels; default ~/.cache/pseg"},
    {"profile", PSEG_CONF_BOOL, offsetof(train_args, profile), "false",
     .help = "at the end, the time on the device of each kernel; costs a little speed"},
    {"json", PSEG_CONF_BOOL, offsetof(train_args, json), "false", .help = "print JSON"},
    {"verbose", PSEG_CONF_BOOL, offsetof(train_args, verbose), "false", .letter = 'v',
     .help = "log what happens"},
    {0}};

static pseg_status about_of(pseg_folder *f, const train_args *a, pseg_err *err)
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

/* --train: names, joined by commas. */
static pseg_status encoders_of(pseg_trainer_options *o, const train_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char text[64] = "", *rest = text;

    if (a->train)
        snprintf(text, sizeof text, "%s", a->train);
    for (char *name; *text && (name = strsep(&rest, ","));) {
        o->towers.vision = o->towers.vision || strcmp(name, "vision") == 0;
        o->towers.text = o->towers.text || strcmp(name, "text") == 0;
        if (strcmp(name, "vision") != 0 && strcmp(name, "text") != 0)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                      "--train \"%.60s\": expected vision, text, or vision,text", a->train);
    }
out:
    return rc;
}

/* --train-layers, which is of no use alone, nor is --lora-rank. */
static pseg_status layers_of(uint32_t *layers, const pseg_trainer_options *o, const train_args *a,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    bool has_encoder = o->towers.vision || o->towers.text;
    char *end;

    *layers = PSEG_TRAIN_ALL;
    if (strcmp(a->train_layers, "all") != 0) {
        unsigned long n = strtoul(a->train_layers, &end, 10);
        if (end == a->train_layers || *end || n < 1 || n > 1000)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                      "--train-layers \"%.40s\": expected all, or a number of 1 to 1000",
                      a->train_layers);
        *layers = (uint32_t)n;
    }
    if (*layers != PSEG_TRAIN_ALL && !has_encoder)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--train-layers %s: of which encoder? Add --train vision, text, or vision,text",
                  a->train_layers);
    if (a->lora_rank && !has_encoder)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--lora-rank %d: of which encoder? Add --train vision, text, or vision,text",
                  (int)a->lora_rank);
out:
    return rc;
}

static pseg_status towers_of(pseg_trainer_options *o, const train_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t layers;

    PSEG_TRY(encoders_of(o, a, err));
    PSEG_TRY(layers_of(&layers, o, a, err));
    o->towers.vision_layers = o->towers.text_layers = layers;
    o->towers.lora_rank = (uint32_t)a->lora_rank;
    o->exports_half = a->half;
    o->optim.lr[PSEG_PARAM_VISION] = (float)a->lr_vision;
    o->optim.lr[PSEG_PARAM_TEXT] = (float)a->lr_text;
out:
    return rc;
}

static pseg_status check_paths(const train_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (!a->data.n || !a->vision || !a->text || !a->out)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--data SET, --vision DIR, --text DIR and --out DIR are needed (--help tells "
                  "more)");
out:
    return rc;
}

pseg_status train_options_of(pseg_trainer_options *o, const train_args *a, const pseg_log *log,
                             const volatile sig_atomic_t *stop, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t batch = (uint32_t)a->batch, images = a->images ? (uint32_t)a->images : batch;

    if (batch % images)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--images %u must divide --batch %u", images, batch);
    *o = (pseg_trainer_options){
        .sizes = {.batch = batch, .images = images, .seed = (uint64_t)a->seed},
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
        .stop = stop,
        .log = log,
    };
    o->optim.lr[PSEG_PARAM_NECK] = (float)a->lr_neck;
    o->optim.lr[PSEG_PARAM_DECODER] = (float)a->lr_decoder;
    o->optim.decay = (float)a->decay;
    o->optim.clip = (float)a->clip;
    o->optim.ema = (float)a->ema;
    if (strcmp(a->optimizer, "muon") == 0)
        o->optim.lr_muon = (float)a->lr_muon;
    else if (strcmp(a->optimizer, "adamw") != 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--optimizer \"%.40s\": expected adamw or muon",
                  a->optimizer);
    o->loss_deep = (float)a->deep;
    o->optim.lr[PSEG_PARAM_PROBE] = (float)a->lr_probe;
    o->sizes.at_input = strcmp(a->loss_at, "input") == 0;
    if (!o->sizes.at_input && strcmp(a->loss_at, "logits") != 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--loss-at \"%.40s\": expected logits or input",
                  a->loss_at);
    PSEG_TRY(check_paths(a, err));
    PSEG_TRY(towers_of(o, a, err));
    PSEG_TRY(about_of(&o->about, a, err));
out:
    return rc;
}
