/* Any bytes as each JSON file of a model folder: config.json of either encoder, the preprocessor's,
 * pseg.json. What is accepted is within the ranges that later code multiplies by. */
#include "tests/fuzz/fuzz_folder.h"
#include "worker/model/config.h"

#include <math.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    fuzz_folder_make();
    return 0;
}

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

    fuzz_folder_write("config.json", data, size);
    unlink(fuzz_folder_write("preprocessor_config.json", "", 0));
    if (passed(pseg_vit_config_read(&v, fuzz_folder, &e), &e))
        use_vit(&v);
    pseg_err_clear(&e);
    if (passed(pseg_clip_config_read(&t, fuzz_folder, &e), &e) &&
        (t.hidden == 0 || t.heads == 0 || t.hidden % t.heads != 0 || t.vocab == 0 || t.max_pos < 2))
        abort();
    pseg_err_clear(&e);
    passed(pseg_sam_config_check(fuzz_folder, &e), &e);

    fuzz_folder_write("config.json", plain, sizeof plain - 1);
    fuzz_folder_write("preprocessor_config.json", data, size);
    pseg_err_clear(&e);
    if (passed(pseg_vit_config_read(&v, fuzz_folder, &e), &e))
        use_vit(&v);

    fuzz_folder_write("pseg.json", data, size);
    pseg_err_clear(&e);
    if (passed(pseg_folder_read(&f, fuzz_folder, &e), &e) &&
        (strlen(f.vision) >= sizeof f.vision || strlen(f.name) >= sizeof f.name || !f.name[0]))
        abort();
    return 0;
}
