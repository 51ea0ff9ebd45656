/* PSEG-1's configuration as metadata: what head_config.c reads. */
#include "worker/model/config.h"

#include <stdio.h>

typedef struct field {
    char text[160];
} field;

static field of_u32s(const uint32_t *v, size_t n)
{
    field f = {""};
    size_t at = 0;

    for (size_t i = 0; i < n && at < sizeof f.text; i++)
        at += (size_t)snprintf(f.text + at, sizeof f.text - at, "%s%u", i ? "," : "", v[i]);
    return f;
}

/* Nine digits tell every float from every other. */
static field of_floats(const float *v, size_t n)
{
    field f = {""};
    size_t at = 0;

    for (size_t i = 0; i < n && at < sizeof f.text; i++)
        at +=
            (size_t)snprintf(f.text + at, sizeof f.text - at, "%s%.9g", i ? "," : "", (double)v[i]);
    return f;
}

pseg_status pseg_head_config_each(const pseg_head_config *c, pseg_head_field_fn *fn, void *ud,
                                  pseg_err *err)
{
    static const char *const fits[] = {"squash", "letterbox", "centre_crop"};
    pseg_status rc = PSEG_OK;
    const struct {
        const char *key;
        field value;
    } fields[] = {
        {"format", {"pseg-1"}},
        {"taps", of_u32s(c->taps, c->n_taps)},
        {"tap_norm", c->is_tap_normed ? (field){"final_ln"} : (field){"none"}},
        {"dim", of_u32s(&c->dim, 1)},
        {"heads", of_u32s(&c->heads, 1)},
        {"depth", of_u32s(&c->depth, 1)},
        {"mlp_dim", of_u32s(&c->mlp, 1)},
        {"downsample", of_u32s(&c->downsample, 1)},
        {"gn_groups", of_u32s(&c->groups, 1)},
        {"gn_eps", of_floats(&c->gn_eps, 1)},
        {"grid", of_u32s((const uint32_t[]){c->gh, c->gw}, 2)},
        {"upsample", of_u32s(c->upsample, c->n_upsample)},
        {"upsample_eps", of_floats(&c->upsample_eps, 1)},
        {"layer_norm_eps", of_floats(&c->ln_eps, 1)},
        {"final_layer_norm_eps", of_floats(&c->final_ln_eps, 1)},
        {"text_mode", c->has_word_tokens ? (field){"tokens"} : (field){"pooled"}},
        {"vision_dim", of_u32s(&c->vision_dim, 1)},
        {"text_dim", of_u32s(&c->text_dim, 1)},
        {"text_hidden", of_u32s(&c->text_hidden, 1)},
        {"image_size", of_u32s((const uint32_t[]){c->height, c->width}, 2)},
        {"patch", of_u32s(&c->patch, 1)},
        {"image_mean", of_floats(c->mean, 3)},
        {"image_std", of_floats(c->std, 3)},
        {"threshold", of_floats(&c->threshold, 1)},
    };

    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        PSEG_TRY(fn(ud, fields[i].key, fields[i].value.text, err));
    PSEG_TRY(fn(ud, "preprocess", fits[c->fit], err));
out:
    return rc;
}

static pseg_status write_field(void *ud, const char *key, const char *value, pseg_err *err)
{
    return pseg_tensors_writer_meta(ud, key, value, err);
}

pseg_status pseg_head_config_write(pseg_tensors_writer *w, const pseg_head_config *c, pseg_err *err)
{
    return pseg_head_config_each(c, write_field, w, err);
}
