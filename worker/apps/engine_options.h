/* Options that every program with an engine has: which model, which device. */
#ifndef PSEG_APPS_ENGINE_OPTIONS_H
#define PSEG_APPS_ENGINE_OPTIONS_H

#include "common/base/conf.h"
#include "worker/serve/engine.h"

typedef struct engine_args {
    const char *model, *vision, *text, *decoder, *name, *device, *cache, *precision, *decode;
    int64_t image_size, max_pixels, threads;
} engine_args;

#define THREADS_HELP "of CPU devices; 0: as many as there are CPUs for this process"

/* With one device; for those with several: ENGINE_OPTIONS_REST and a list of their own. */
#define ENGINE_OPTIONS(type, member)                                                   \
    ENGINE_OPTIONS_REST(type, member),                                                 \
    {                                                                                  \
        "device", PSEG_CONF_STRING, offsetof(type, member.device), "auto",             \
            .unit = "NAME", .letter = 'd',                                             \
            .help = "auto, cpu, gpu, P:D or part of a name; `pseg devices` lists them" \
    }

#define ENGINE_OPTIONS_REST(type, member)                                                         \
    {"model",                                                                                     \
     PSEG_CONF_STRING,                                                                            \
     offsetof(type, member.model),                                                                \
     "scenes",                                                                                    \
     .unit = "DIR",                                                                               \
     .letter = 'm',                                                                               \
     .help =                                                                                      \
         "PSEG model folder; a bare name is sought among those installed; `empty` does no work, " \
         "`random:PRESET` (of `pseg bench engine`) has weights of no use, to measure with"},      \
        {"vision",                                                                                \
         PSEG_CONF_STRING,                                                                        \
         offsetof(type, member.vision),                                                           \
         NULL,                                                                                    \
         .unit = "DIR",                                                                           \
         .help = "Hugging Face folder of the image encoder, in place of the model's"},            \
        {"text",                                                                                  \
         PSEG_CONF_STRING,                                                                        \
         offsetof(type, member.text),                                                             \
         NULL,                                                                                    \
         .unit = "DIR",                                                                           \
         .help = "Hugging Face folder of the text encoder, or a table of phrases, in place of "   \
                 "the model's"},                                                                  \
        {"decoder",                                                                               \
         PSEG_CONF_STRING,                                                                        \
         offsetof(type, member.decoder),                                                          \
         NULL,                                                                                    \
         .unit = "FILE",                                                                          \
         .help = "pseg.safetensors with neck and decoder, in place of the model's"},              \
        {"name", PSEG_CONF_STRING, offsetof(type, member.name),                                   \
         NULL,   .unit = "NAME",   .help = "serve the model under this name"},                    \
        {"image_size",                                                                            \
         PSEG_CONF_INT,                                                                           \
         offsetof(type, member.image_size),                                                       \
         "0",                                                                                     \
         .unit = "px",                                                                            \
         .min = 0,                                                                                \
         .max = 4096,                                                                             \
         .help = "side of the model's input, a multiple of its patch; 0: as trained"},            \
        {"threads",   PSEG_CONF_INT,       offsetof(type, member.threads), "0", .min = 0,         \
         .max = 4096, .help = THREADS_HELP},                                                      \
        {"precision",                                                                             \
         PSEG_CONF_STRING,                                                                        \
         offsetof(type, member.precision),                                                        \
         "fp32",                                                                                  \
         .unit = "NAME",                                                                          \
         .help = "fp32, bf16x3 (17 bits) or bf16: faster in this order where there is AMX "       \
                 "(docs/speed.md)"},                                                              \
        {"decode",                                                                                \
         PSEG_CONF_STRING,                                                                        \
         offsetof(type, member.decode),                                                           \
         "exact",                                                                                 \
         .unit = "NAME",                                                                          \
         .help = "exact, or fast: large JPEGs are shrunk while they are decoded "                 \
                 "(docs/modules/image.md)"},                                                      \
        {"cache", PSEG_CONF_STRING, offsetof(type, member.cache),                                 \
         NULL,    .unit = "DIR",    .help = "compiled kernels; default ~/.cache/pseg"},           \
    {                                                                                             \
        "max_pixels", PSEG_CONF_INT, offsetof(type, member.max_pixels), "200000000",              \
            .min = 1, .max = 1000000000, .help = "largest image, from its header"                 \
    }

/* Errors: PSEG_R_CONFIG_INVALID. */
pseg_status precision_of(pseg_precision *out, const char *name, pseg_err *err);

/* *folder holds the path that o->source points to; caller frees with pseg_free after the engine is
 * open. Errors: PSEG_R_MODEL_MISSING with the places that were looked at, PSEG_R_CONFIG_INVALID. */
pseg_status engine_options_of(pseg_engine_options *o, char **folder, const engine_args *a,
                              const pseg_log *log, pseg_err *err);

#endif
