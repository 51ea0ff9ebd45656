#include "worker/apps/engine_options.h"
#include "common/base/alloc.h"
#include "common/base/file.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char random_prefix[] = "random:";

/* A folder, or the name of one that came with PSEG: relative to this program in the installed tree,
 * or where the source lies in the build tree. */
static pseg_status find_model(char **out, const char *model, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char self[4096] = "", path[8192];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);

    *out = NULL;
    self[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(self, '/');
    if (slash)
        slash[1] = '\0';
    snprintf(path, sizeof path, "%s/pseg.json", model);
    bool is_folder = strchr(model, '/') || pseg_file_exists(path);
    static const char *const places[] = {"%s../share/pseg/models/%s",
                                         "%s../../share/pseg/models/%s"};
    for (size_t i = 0; i < 2 && !is_folder && !*out; i++) {
        snprintf(path, sizeof path, i == 0 ? places[0] : places[1], self, model);
        if (pseg_file_exists(path))
            *out = pseg_strdup(path);
    }
    snprintf(path, sizeof path, "%s/%s", PSEG_MODEL_SOURCE_DIR, model);
    bool is_build = strcmp(self, PSEG_BUILD_BIN_DIR) == 0;
    if (is_build && !is_folder && !*out && pseg_file_exists(path))
        *out = pseg_strdup(path);
    if (is_folder)
        *out = pseg_strdup(model);
    if (!*out)
        PSEG_FAIL(PSEG_R_MODEL_MISSING, 0,
                  "no model \"%s\": give a folder with pseg.json, or install PSEG's own (scenes)",
                  model);
out:
    return rc;
}

pseg_status precision_of(pseg_precision *out, const char *name, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (int p = 0; p < PSEG_N_PRECISIONS; p++)
        if (strcmp(name, pseg_precision_name((pseg_precision)p)) == 0) {
            *out = (pseg_precision)p;
            goto out;
        }
    PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--precision \"%s\" is not fp32, bf16x3 or bf16", name);
out:
    return rc;
}

pseg_status engine_options_of(pseg_engine_options *o, char **folder, const engine_args *a,
                              const pseg_log *log, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *folder = NULL;
    PSEG_TRY(pseg_device_set_threads((unsigned)a->threads, err));
    *o = (pseg_engine_options){.cl = PSEG_CL_OPTIONS_DEFAULT,
                               .model = PSEG_MODEL_OPTIONS_DEFAULT,
                               .limits = PSEG_IMAGE_LIMITS_DEFAULT,
                               .name = a->name,
                               .log = log};
    o->cl.device = a->device;
    o->cl.cache_dir = a->cache;
    o->cl.log = log;
    o->model.log = log;
    PSEG_TRY(precision_of(&o->model.precision, a->precision, err));
    if (strcmp(a->decode, "fast") != 0 && strcmp(a->decode, "exact") != 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--decode \"%s\" is neither exact nor fast", a->decode);
    o->shrink_on_load = strcmp(a->decode, "fast") == 0;
    o->limits.max_pixels = (uint64_t)a->max_pixels;
    o->source.vision = a->vision;
    o->source.text = a->text;
    o->source.decoder = a->decoder;
    o->source.width = o->source.height = (uint32_t)a->image_size;
    bool whole = a->vision && a->text && a->decoder;
    if (strncmp(a->model, random_prefix, sizeof random_prefix - 1) == 0) {
        o->preset = a->model + sizeof random_prefix - 1;
        if (a->vision || a->text || a->decoder || a->image_size)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                      "--model \"%s\" has all its parts: leave out --vision, --text, --decoder and "
                      "--image-size",
                      a->model);
    } else if (strcmp(a->model, PSEG_ENGINE_EMPTY) != 0 && !whole) {
        PSEG_TRY(find_model(folder, a->model, err));
        o->source.folder = *folder;
    }
out:
    return rc;
}
