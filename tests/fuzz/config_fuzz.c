/* Any bytes as each JSON file of a model folder: config.json of either encoder, the preprocessor's,
 * pseg.json. What is accepted is within the ranges that later code multiplies by. */
#include "tests/fuzz/fuzz_files.h"
#include "worker/model/config.h"

#include <jansson.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool passed(pseg_status rc, const pseg_err *e)
{
    if (rc == PSEG_OK)
        return true;
    if (rc > 0 || e->code != rc || !e->msg[0] || strchr(e->msg, '\n'))
        abort();
    return false;
}

static void use_vit(const pseg_vit_config *v)
{
    pseg_clip_config t;
    pseg_head_config h;
    pseg_err e = PSEG_ERR_INIT;

    if (v->hidden == 0 || v->layers == 0 || v->heads == 0 || v->patch == 0 ||
        v->hidden % v->heads != 0 || !(v->eps > 0) || v->hidden > 1 << 16 || v->mlp > 1 << 18)
        abort();
    for (int i = 0; v->has_preprocess && i < 3; i++)
        if (!isfinite(v->mean[i]) || !(v->std[i] > 0))
            abort();
    pseg_clip_config_default(&t);
    pseg_head_config_default(&h);
    passed(pseg_config_check(v, &t, &h, &e), &e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char plain[] =
        "{\"model_type\":\"dinov2\",\"hidden_size\":32,\"num_hidden_layers\":2,"
        "\"num_attention_heads\":2,\"patch_size\":14,\"image_size\":28}";
    pseg_vit_config v;
    pseg_clip_config t;
    pseg_folder f;
    pseg_err e = PSEG_ERR_INIT;

    fuzz_files_clear();
    fuzz_files_set("config.json", data, size);
    if (passed(pseg_vit_config_read(&v, FUZZ_FILES, &e), &e))
        use_vit(&v);
    /* What is no JSON ends in the function that all of them begin with. */
    json_t *whole = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, NULL);
    if (!whole)
        return 0;
    json_decref(whole);
    pseg_err_clear(&e);
    if (passed(pseg_clip_config_read(&t, FUZZ_FILES, &e), &e) &&
        (t.hidden == 0 || t.heads == 0 || t.hidden % t.heads != 0 || t.vocab == 0 || t.max_pos < 2))
        abort();
    pseg_err_clear(&e);
    passed(pseg_sam_config_check(FUZZ_FILES, &e), &e);

    fuzz_files_set("config.json", plain, sizeof plain - 1);
    fuzz_files_set("preprocessor_config.json", data, size);
    pseg_err_clear(&e);
    if (passed(pseg_vit_config_read(&v, FUZZ_FILES, &e), &e))
        use_vit(&v);

    fuzz_files_set("pseg.json", data, size);
    pseg_err_clear(&e);
    if (passed(pseg_folder_read(&f, FUZZ_FILES, &e), &e) &&
        (strlen(f.vision) >= sizeof f.vision || strlen(f.name) >= sizeof f.name || !f.name[0]))
        abort();
    return 0;
}
