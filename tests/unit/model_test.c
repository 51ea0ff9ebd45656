/* Configurations and folders of models: what is read from them, how many parameters that makes, and
 * that whatever does not fit is refused by name. */
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "worker/model/config.h"
#include "worker/model/decoder.h"
#include "worker/model/interpolate.h"
#include "worker/model/neck.h"
#include "worker/model/sam.h"
#include "worker/model/text.h"
#include "worker/model/vit.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GOLDEN PSEG_TEST_SOURCE_DIR "/tests/golden/data/models/"

static char folder[] = "/tmp/pseg-model-XXXXXX";

static void write_bytes(const char *name, const void *data, size_t n)
{
    char *at = pseg_path_join(folder, name);
    pseg_err err = PSEG_ERR_INIT;

    assert_non_null(at);
    if (pseg_file_write(at, data, n, &err) != PSEG_OK)
        fail_msg("%s", err.msg);
    pseg_free(at);
}

static void write_text(const char *name, const char *text)
{
    write_bytes(name, text, strlen(text));
}

static void remove_named(const char *name)
{
    char *at = pseg_path_join(folder, name);

    assert_non_null(at);
    remove(at);
    pseg_free(at);
}

static const char *const made[] = {"config.json", "preprocessor_config.json", "pseg.json",
                                   "model.safetensors", "pseg.safetensors"};

static int setup(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof made / sizeof *made; i++)
        remove_named(made[i]);
    return rmdir(folder);
}

static void assert_reason(const pseg_err *err, pseg_reason reason, const char *part)
{
    if (err->reason != reason || !strstr(err->msg, part))
        fail_msg("%s \"%s\"; expected %s with \"%s\"", pseg_reason_name(err->reason), err->msg,
                 pseg_reason_name(reason), part);
}

/* ---- names ---- */

static const pseg_spec *spec_named(const pseg_specs *s, const char *name)
{
    for (size_t i = 0; i < s->n; i++)
        if (strcmp(s->items[i].name, name) == 0)
            return &s->items[i];
    return NULL;
}

/* Every tensor of Hugging Face's is a tensor of Meta's and of timm's or a third of one, once. */
static void other_names_are_all_of_hugging_faces(void **state)
{
    static const char *const presets[] = {"dinov2-small", "dinov2-small-reg", "dinov2-giant",
                                          "dinov2-giant-reg", "vit-base"};

    (void)state;
    for (size_t p = 0; p < 2 * sizeof presets / sizeof *presets; p++) {
        const char *preset = presets[p / 2];
        pseg_vit_names other = p % 2 ? PSEG_VIT_NAMES_TIMM : PSEG_VIT_NAMES_META;
        pseg_specs hf = {0}, theirs = {0};
        pseg_vit_config c;
        size_t n_found = 0;
        char names[3][PSEG_SPEC_NAME];

        assert_true(pseg_vit_config_preset(&c, preset));
        assert_int_equal(pseg_vit_specs(&hf, &c, PSEG_VIT_NAMES_HF, NULL), PSEG_OK);
        assert_int_equal(pseg_vit_specs(&theirs, &c, other, NULL), PSEG_OK);
        for (size_t i = 0; i < theirs.n; i++) {
            const pseg_spec *t = &theirs.items[i];
            uint32_t n = pseg_vit_hf_names(names, &c, other, t->name);

            assert_true(n == 1 || n == 3);
            for (uint32_t k = 0; k < n; k++, n_found++) {
                const pseg_spec *h = spec_named(&hf, names[k]);
                if (!h || h->rank != t->rank || h->dims[0] * n != t->dims[0])
                    fail_msg("%s: %s, part %u: %s", preset, t->name, k, names[k]);
                bool lacks_row =
                    strcmp(t->name, "pos_embed") == 0 && other == PSEG_VIT_NAMES_TIMM && c.n_regs;
                if (h->rank > 1)
                    assert_int_equal(t->dims[1], h->dims[1] - lacks_row);
            }
        }
        assert_int_equal(n_found, hf.n);
        /* What the two call differently. */
        bool is_meta = other == PSEG_VIT_NAMES_META;
        if (c.n_regs)
            assert_non_null(spec_named(&theirs, is_meta ? "register_tokens" : "reg_token"));
        if (c.has_swiglu)
            assert_non_null(spec_named(&theirs, is_meta ? "blocks.39.mlp.w12.weight"
                                                        : "blocks.39.mlp.fc1.weight"));
        pseg_specs_deinit(&hf);
        pseg_specs_deinit(&theirs);
    }
    pseg_vit_config c;
    char names[3][PSEG_SPEC_NAME];
    static const char *const none[] = {"",
                                       "head.weight",
                                       "blocks",
                                       "blocks.x.norm1.weight",
                                       "blocks.1.norm1.gamma",
                                       "blocks.1.attn.qkvs.weight",
                                       "norm.weights",
                                       "pos_embedding"};
    assert_true(pseg_vit_config_preset(&c, "vit-base"));
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        assert_int_equal(pseg_vit_hf_names(names, &c, PSEG_VIT_NAMES_TIMM, none[i]), 0);
}

/* ---- parameters ---- */

static uint64_t vit_params(const char *preset)
{
    pseg_vit_config c;
    pseg_specs s = {0};
    pseg_err err = PSEG_ERR_INIT;

    assert_true(pseg_vit_config_preset(&c, preset));
    assert_int_equal(pseg_vit_specs(&s, &c, PSEG_VIT_NAMES_HF, &err), PSEG_OK);
    uint64_t n = pseg_specs_params(&s);
    pseg_specs_deinit(&s);
    /* The same in the other namings, where q, k and v are one tensor. */
    assert_int_equal(pseg_vit_specs(&s, &c, PSEG_VIT_NAMES_META, &err), PSEG_OK);
    assert_int_equal(pseg_specs_params(&s), n);
    pseg_specs_deinit(&s);
    assert_int_equal(pseg_vit_specs(&s, &c, PSEG_VIT_NAMES_TIMM, &err), PSEG_OK);
    assert_int_equal(pseg_specs_params(&s) + (c.n_regs ? c.hidden : 0), n);
    pseg_specs_deinit(&s);
    return n;
}

static void image_encoders_have_the_published_sizes(void **state)
{
    (void)state;
    assert_int_equal(vit_params("dinov2-small"), 22056576);
    assert_int_equal(vit_params("dinov2-base"), 86580480);
    assert_int_equal(vit_params("dinov2-large"), 304368640);
    assert_int_equal(vit_params("dinov2-giant"), 1136480768);
    assert_int_equal(vit_params("dinov2-small-reg"), 22058112);
    assert_int_equal(vit_params("dinov2-base-reg"), 86583552);
    assert_int_equal(vit_params("dinov2-large-reg"), 304372736);
    assert_int_equal(vit_params("dinov2-giant-reg"), 1136486912);
    assert_int_equal(vit_params("vit-base"), 85798656); /* ViT-B/16 at 224 without head */
}

static void unknown_presets_are_refused(void **state)
{
    static const char *const bad[] = {
        "", "-reg", "dinov2", "dinov2-huge", "vit-base-reg", "dinov2-base-reg-reg", "dinov2-bas"};
    pseg_vit_config c;
    (void)state;

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(pseg_vit_config_preset(&c, bad[i]));
}

static void text_tower_and_head_have_the_published_sizes(void **state)
{
    pseg_clip_config clip;
    pseg_head_config head;
    pseg_specs s = {0};
    pseg_err err = PSEG_ERR_INIT;
    (void)state;

    pseg_clip_config_default(&clip);
    assert_int_equal(pseg_text_specs(&s, &clip, "text_model.", &err), PSEG_OK);
    assert_int_equal(pseg_specs_params(&s), 63428096);
    pseg_specs_deinit(&s);
    pseg_head_config_default(&head);
    assert_int_equal(pseg_neck_specs(&s, &head, &err), PSEG_OK);
    assert_int_equal(pseg_specs_params(&s), 3742464);
    assert_int_equal(pseg_decoder_specs(&s, &head, &err), PSEG_OK);
    assert_int_equal(pseg_specs_params(&s), 9254913);
    pseg_specs_deinit(&s);
    /* Word tokens add one projection; a fourth upsampling stage of 32 channels 4,192 and a norm. */
    head.has_word_tokens = true;
    assert_int_equal(pseg_neck_specs(&s, &head, &err), PSEG_OK);
    assert_int_equal(pseg_decoder_specs(&s, &head, &err), PSEG_OK);
    assert_int_equal(pseg_specs_params(&s), 9254913 + 131328);
    pseg_specs_deinit(&s);
    head.has_word_tokens = false;
    head.upsample[3] = 32;
    head.n_upsample = 4;
    assert_int_equal(pseg_neck_specs(&s, &head, &err), PSEG_OK);
    assert_int_equal(pseg_decoder_specs(&s, &head, &err), PSEG_OK);
    assert_int_equal(pseg_specs_params(&s), 9259105);
    pseg_specs_deinit(&s);
}

/* ---- config.json of image encoders ---- */

static pseg_status read_vit(pseg_vit_config *c, const char *json, pseg_err *err)
{
    pseg_err_clear(err);
    write_text("config.json", json);
    return pseg_vit_config_read(c, folder, err);
}

/* As facebook/dinov2-base and facebook/dinov2-with-registers-giant have it. */
static void reads_hugging_face_configs(void **state)
{
    pseg_vit_config c;
    pseg_err err = PSEG_ERR_INIT;
    (void)state;

    remove_named("preprocessor_config.json");
    assert_int_equal(read_vit(&c,
                              "{\"model_type\":\"dinov2\",\"hidden_size\":768,"
                              "\"num_hidden_layers\":12,\"num_attention_heads\":12,\"mlp_ratio\":4,"
                              "\"image_size\":518,\"patch_size\":14,\"layer_norm_eps\":1e-06}",
                              &err),
                     PSEG_OK);
    assert_int_equal(c.kind, PSEG_VIT_DINOV2);
    assert_int_equal(c.mlp, 3072);
    assert_int_equal(c.pos_h, 37);
    assert_true(c.has_layer_scale && c.has_qkv_bias && c.has_mask_token && !c.has_swiglu);
    assert_false(c.has_preprocess);
    assert_int_equal(
        read_vit(&c,
                 "{\"model_type\":\"dinov2_with_registers\",\"hidden_size\":1536,"
                 "\"num_hidden_layers\":40,\"num_attention_heads\":24,\"mlp_ratio\":4.0,"
                 "\"image_size\":[518,504],\"patch_size\":14,\"use_swiglu_ffn\":true,"
                 "\"num_register_tokens\":4}",
                 &err),
        PSEG_OK);
    assert_int_equal(c.mlp, 4096);
    assert_int_equal(c.n_regs, 4);
    assert_int_equal(c.pos_w, 36);
    assert_true(c.has_swiglu);
    write_text("preprocessor_config.json",
               "{\"do_center_crop\":true,\"crop_size\":{\"height\":224,\"width\":224},"
               "\"size\":{\"shortest_edge\":256},\"image_mean\":[0.1,0.2,0.3],"
               "\"image_std\":[0.5,0.5,0.25]}");
    assert_int_equal(read_vit(&c,
                              "{\"model_type\":\"vit\",\"hidden_size\":192,"
                              "\"num_hidden_layers\":12,\"num_attention_heads\":3,"
                              "\"intermediate_size\":768,\"image_size\":224,\"patch_size\":16,"
                              "\"qkv_bias\":false,\"image_mean\":[0.5,0.5,0.5]}",
                              &err),
                     PSEG_OK);
    assert_int_equal(c.kind, PSEG_VIT_PLAIN);
    assert_false(c.has_layer_scale || c.has_qkv_bias || c.has_mask_token);
    assert_float_equal(c.eps, 1e-12, 1e-15);
    assert_true(c.has_preprocess);
    assert_int_equal(c.fit, PSEG_MODEL_CENTRE_CROP);
    assert_int_equal(c.resize_edge, 256);
    assert_int_equal(c.height, 224);
    assert_float_equal(c.mean[1], 0.2, 1e-6);
    assert_float_equal(c.std[2], 0.25, 1e-6);
    remove_named("preprocessor_config.json");
}

#define VIT(rest)                                                           \
    "{\"model_type\":\"vit\",\"hidden_size\":192,\"num_hidden_layers\":12," \
    "\"num_attention_heads\":3,\"intermediate_size\":768" rest "}"

static void bad_configs_are_refused(void **state)
{
    static const struct {
        const char *json;
        pseg_reason reason;
        const char *part;
    } cases[] = {
        {"", PSEG_R_MODEL_CORRUPT, "JSON"},
        {"[]", PSEG_R_MODEL_CORRUPT, "JSON"},
        {"{}", PSEG_R_MODEL_UNSUPPORTED, "model_type missing"},
        {"{\"model_type\":\"swin\"}", PSEG_R_MODEL_UNSUPPORTED, "\"swin\""},
        {"{\"model_type\":\"swin\"}", PSEG_R_MODEL_UNSUPPORTED, "dinov2_with_registers"},
        {"{\"model_type\":7}", PSEG_R_MODEL_UNSUPPORTED, "missing"},
        {"{\"model_type\":\"vit\"}", PSEG_R_MODEL_CORRUPT, "hidden_size is missing"},
        {VIT(",\"hidden_size\":7"), PSEG_R_MODEL_CORRUPT, "duplicate"},
        {VIT(",\"patch_size\":0"), PSEG_R_MODEL_CORRUPT, "patch_size"},
        {VIT(",\"patch_size\":-16"), PSEG_R_MODEL_CORRUPT, "patch_size"},
        {VIT(",\"patch_size\":16.5"), PSEG_R_MODEL_CORRUPT, "patch_size"},
        {VIT(",\"patch_size\":\"16\""), PSEG_R_MODEL_CORRUPT, "patch_size"},
        {VIT(",\"image_size\":8"), PSEG_R_MODEL_CORRUPT, "image_size"},
        {VIT(",\"image_size\":[224]"), PSEG_R_MODEL_CORRUPT, "image_size"},
        {VIT(",\"image_size\":9999999999"), PSEG_R_MODEL_CORRUPT, "image_size"},
        {VIT(",\"num_channels\":1"), PSEG_R_MODEL_UNSUPPORTED, "num_channels 1"},
        {VIT(",\"hidden_act\":\"tanh\""), PSEG_R_MODEL_UNSUPPORTED, "tanh"},
        {VIT(",\"layer_norm_eps\":-1"), PSEG_R_MODEL_CORRUPT, "layer_norm_eps"},
        {VIT(",\"layer_norm_eps\":0"), PSEG_R_MODEL_CORRUPT, "layer_norm_eps"},
        {VIT(",\"layer_norm_eps\":\"x\""), PSEG_R_MODEL_CORRUPT, "layer_norm_eps"},
        {VIT(",\"image_mean\":[1,2]"), PSEG_R_MODEL_CORRUPT, "image_mean"},
        {VIT(",\"image_std\":[1,1,0]"), PSEG_R_MODEL_CORRUPT, "image_std"},
        {"{\"model_type\":\"vit\",\"hidden_size\":100,\"num_hidden_layers\":1,"
         "\"num_attention_heads\":3,\"intermediate_size\":768}",
         PSEG_R_MODEL_UNSUPPORTED, "3 heads"},
        {"{\"model_type\":\"vit\",\"hidden_size\":512,\"num_hidden_layers\":1,"
         "\"num_attention_heads\":2,\"intermediate_size\":768}",
         PSEG_R_MODEL_UNSUPPORTED, "128"},
        {"{\"model_type\":\"dinov2\",\"hidden_size\":64,\"num_hidden_layers\":1,"
         "\"num_attention_heads\":1,\"mlp_ratio\":0}",
         PSEG_R_MODEL_CORRUPT, "mlp_ratio"},
    };
    pseg_vit_config c;
    pseg_err err = PSEG_ERR_INIT;
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_not_equal(read_vit(&c, cases[i].json, &err), PSEG_OK);
        assert_reason(&err, cases[i].reason, cases[i].part);
        assert_non_null(strstr(err.msg, "config.json"));
    }
    assert_int_equal(pseg_vit_config_read(&c, "/nowhere/model", &err), PSEG_ENOTFOUND);
    assert_reason(&err, PSEG_R_MODEL_MISSING, "/nowhere/model: no such folder");
    remove_named("config.json");
    assert_int_equal(pseg_vit_config_read(&c, folder, &err), PSEG_ENOTFOUND);
    assert_reason(&err, PSEG_R_MODEL_MISSING, "config.json: no such file");
}

/* ---- config.json of text encoders ---- */

static void reads_clip_configs(void **state)
{
    pseg_clip_config c;
    pseg_err err = PSEG_ERR_INIT;
    (void)state;

    /* As openai/clip-vit-large-patch14: a whole CLIP; what is absent has Hugging Face's defaults.
     */
    write_text("config.json",
               "{\"model_type\":\"clip\",\"projection_dim\":768,\"text_config\":{\"hidden_size\":"
               "768,\"intermediate_size\":3072,\"num_attention_heads\":12}}");
    assert_int_equal(pseg_clip_config_read(&c, folder, &err), PSEG_OK);
    assert_int_equal(c.proj, 768);
    assert_int_equal(c.hidden, 768);
    assert_int_equal(c.layers, 12);
    assert_int_equal(c.vocab, 49408);
    assert_int_equal(c.act, PSEG_ACT_QUICK_GELU);
    write_text("config.json",
               "{\"model_type\":\"clip_text_model\",\"vocab_size\":716,\"hidden_act\":\"gelu\","
               "\"max_position_embeddings\":32}");
    assert_int_equal(pseg_clip_config_read(&c, folder, &err), PSEG_OK);
    assert_int_equal(c.vocab, 716);
    assert_int_equal(c.max_pos, 32);
    assert_int_equal(c.act, PSEG_ACT_GELU);
    write_text("config.json", "{\"model_type\":\"bert\"}");
    assert_int_equal(pseg_clip_config_read(&c, folder, &err), PSEG_EUNSUPPORTED);
    assert_reason(&err, PSEG_R_MODEL_UNSUPPORTED, "clip_text_model");
    write_text("config.json", "{\"model_type\":\"clip\",\"text_config\":[]}");
    assert_int_equal(pseg_clip_config_read(&c, folder, &err), PSEG_ECORRUPT);
    write_text("config.json", "{\"model_type\":\"clip_text_model\",\"num_attention_heads\":7}");
    assert_int_equal(pseg_clip_config_read(&c, folder, &err), PSEG_EUNSUPPORTED);
    write_text("config.json", "{\"model_type\":\"dinov2\"}");
    assert_int_equal(pseg_sam_config_check(folder, &err), PSEG_EUNSUPPORTED);
    write_text("config.json", "{\"model_type\":\"sam\"}");
    assert_int_equal(pseg_sam_config_check(folder, &err), PSEG_OK);
}

/* ---- safetensors for the tests below ---- */

/* name (NULL: no tensor) with n floats counting from 0, shape as JSON; metadata: JSON members. */
static void write_tensor(const char *file, const char *metadata, const char *name,
                         const char *shape, size_t n)
{
    char header[2048];
    int k = name ? snprintf(header, sizeof header,
                            "{\"__metadata__\":{%s},\"%s\":{\"dtype\":\"F32\",\"shape\":%s,"
                            "\"data_offsets\":[0,%zu]}}",
                            metadata, name, shape, n * 4)
                 : snprintf(header, sizeof header, "{\"__metadata__\":{%s}}", metadata);
    uint8_t *all = pseg_calloc(1, 8 + (size_t)k + n * 4);
    assert_non_null(all);
    all[0] = (uint8_t)(k & 255);
    all[1] = (uint8_t)(k >> 8);
    memcpy(all + 8, header, (size_t)k);
    for (size_t i = 0; i < n; i++) {
        float v = (float)i;
        memcpy(all + 8 + (size_t)k + 4 * i, &v, 4);
    }
    write_bytes(file, all, 8 + (size_t)k + n * 4);
    pseg_free(all);
}

/* ---- metadata of a decoder ---- */

static pseg_status read_head(pseg_head_config *c, const char *metadata, pseg_err *err)
{
    char *at = pseg_path_join(folder, "pseg.safetensors");
    pseg_tensors *t;
    pseg_status rc;

    assert_non_null(at);
    pseg_err_clear(err);
    write_tensor("pseg.safetensors", metadata, NULL, NULL, 0);
    assert_int_equal(pseg_tensors_open_file(&t, at, err), PSEG_OK);
    rc = pseg_head_config_read(c, t, err);
    pseg_tensors_close(t);
    pseg_free(at);
    return rc;
}

#define HEAD "\"format\":\"pseg-1\""

static void reads_a_decoders_metadata(void **state)
{
    pseg_head_config c, d;
    pseg_err err = PSEG_ERR_INIT;
    (void)state;

    assert_int_equal(read_head(&c, HEAD, &err), PSEG_OK);
    pseg_head_config_default(&d);
    assert_int_equal(c.dim, d.dim);
    assert_int_equal(c.n_taps, 4);
    assert_int_equal(
        read_head(&c,
                  HEAD ",\"taps\":\"2,4,5,6\",\"tap_norm\":\"final_ln\",\"dim\":\"128\","
                       "\"heads\":\"4\",\"depth\":\"4\",\"downsample\":\"1\",\"grid\":\"8,4\","
                       "\"image_size\":\"112,56\",\"upsample\":\"32,16\",\"text_mode\":\"tokens\","
                       "\"preprocess\":\"letterbox\",\"image_mean\":\"0.5,0.25,0.125\","
                       "\"gn_eps\":\"1e-05\",\"threshold\":\"0.4\",\"unknown\":\"kept out\"",
                  &err),
        PSEG_OK);
    assert_int_equal(c.taps[3], 6);
    assert_true(c.is_tap_normed && c.has_word_tokens);
    assert_int_equal(c.gh, 8);
    assert_int_equal(c.gw, 4);
    assert_int_equal(c.n_upsample, 2);
    assert_int_equal(c.fit, PSEG_MODEL_LETTERBOX);
    assert_float_equal(c.mean[2], 0.125, 1e-9);
    assert_float_equal(c.threshold, 0.4, 1e-6);
}

static void bad_metadata_is_refused(void **state)
{
    static const struct {
        const char *metadata;
        pseg_reason reason;
        const char *part;
    } cases[] = {
        {"", PSEG_R_MODEL_UNSUPPORTED, "format"},
        {"\"format\":\"pt\"", PSEG_R_MODEL_UNSUPPORTED, "format"},
        {"\"format\":\"no other\"", PSEG_R_MODEL_UNSUPPORTED, "pseg-1"},
        {HEAD ",\"taps\":\"\"", PSEG_R_MODEL_CORRUPT, "taps"},
        {HEAD ",\"taps\":\"3,2\"", PSEG_R_MODEL_CORRUPT, "fall"},
        {HEAD ",\"taps\":\"0,1\"", PSEG_R_MODEL_CORRUPT, "taps"},
        {HEAD ",\"taps\":\"1,2,3,4,5,6,7,8,9\"", PSEG_R_MODEL_CORRUPT, "taps"},
        {HEAD ",\"taps\":\"1,2,\"", PSEG_R_MODEL_CORRUPT, "taps"},
        {HEAD ",\"taps\":\"1 2\"", PSEG_R_MODEL_CORRUPT, "taps"},
        {HEAD ",\"taps\":\"1.5\"", PSEG_R_MODEL_CORRUPT, "whole"},
        {HEAD ",\"tap_norm\":\"some\"", PSEG_R_MODEL_UNSUPPORTED, "final_ln"},
        {HEAD ",\"dim\":\"nan\"", PSEG_R_MODEL_CORRUPT, "dim"},
        {HEAD ",\"dim\":\"-256\"", PSEG_R_MODEL_CORRUPT, "dim"},
        {HEAD ",\"dim\":\"1e9\"", PSEG_R_MODEL_CORRUPT, "dim"},
        {HEAD ",\"dim\":\"250\"", PSEG_R_MODEL_CORRUPT, "multiple"},
        {HEAD ",\"heads\":\"1\"", PSEG_R_MODEL_CORRUPT, "128 channels"},
        {HEAD ",\"grid\":\"16\"", PSEG_R_MODEL_CORRUPT, "grid"},
        {HEAD ",\"grid\":\"16,17\"", PSEG_R_MODEL_CORRUPT, "grid 16x17"},
        {HEAD ",\"image_size\":\"225,224\"", PSEG_R_MODEL_CORRUPT, "image_size 225x224"},
        {HEAD ",\"preprocess\":\"tile\"", PSEG_R_MODEL_UNSUPPORTED, "letterbox"},
        {HEAD ",\"text_mode\":\"words\"", PSEG_R_MODEL_UNSUPPORTED, "tokens"},
        {HEAD ",\"image_std\":\"1,1,0\"", PSEG_R_MODEL_CORRUPT, "image_std"},
        {HEAD ",\"threshold\":\"2\"", PSEG_R_MODEL_CORRUPT, "threshold"},
        {HEAD ",\"upsample\":\"1,2,3,4,5\"", PSEG_R_MODEL_CORRUPT, "upsample"},
    };
    pseg_head_config c;
    pseg_err err = PSEG_ERR_INIT;
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_not_equal(read_head(&c, cases[i].metadata, &err), PSEG_OK);
        assert_reason(&err, cases[i].reason, cases[i].part);
        assert_non_null(strstr(err.msg, "pseg.safetensors"));
    }
}

static void parts_that_do_not_belong_together_are_refused(void **state)
{
    pseg_vit_config v;
    pseg_clip_config t;
    pseg_head_config h;
    pseg_err err = PSEG_ERR_INIT;
    (void)state;

    assert_true(pseg_vit_config_preset(&v, "dinov2-base"));
    pseg_clip_config_default(&t);
    pseg_head_config_default(&h);
    assert_int_equal(pseg_config_check(&v, &t, &h, &err), PSEG_OK);
    assert_true(pseg_vit_config_preset(&v, "dinov2-small"));
    assert_int_equal(pseg_config_check(&v, &t, &h, &err), PSEG_EINVAL);
    assert_reason(&err, PSEG_R_MODEL_MISMATCH, "width 768, this one has 384");
    assert_true(pseg_vit_config_preset(&v, "vit-base"));
    assert_int_equal(pseg_config_check(&v, &t, &h, &err), PSEG_EINVAL);
    assert_reason(&err, PSEG_R_MODEL_MISMATCH, "patches of 14 px, the image encoder has 16");
    assert_true(pseg_vit_config_preset(&v, "dinov2-base"));
    v.layers = 10;
    assert_int_equal(pseg_config_check(&v, &t, &h, &err), PSEG_EINVAL);
    assert_reason(&err, PSEG_R_MODEL_MISMATCH, "block 11");
    v.layers = 12;
    t.proj = 768;
    assert_int_equal(pseg_config_check(&v, &t, &h, &err), PSEG_EINVAL);
    assert_reason(&err, PSEG_R_MODEL_MISMATCH, "text embeddings of width 512");
    t.proj = 512;
    t.hidden = 768;
    assert_int_equal(pseg_config_check(&v, &t, &h, &err), PSEG_OK);
    h.has_word_tokens = true;
    assert_int_equal(pseg_config_check(&v, &t, &h, &err), PSEG_EINVAL);
    assert_reason(&err, PSEG_R_MODEL_MISMATCH, "text encoder of width 512");
}

/* ---- weights ---- */

static void weights_of_another_shape_are_refused_by_name(void **state)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_specs s = {0};
    pseg_tensors *t;
    pseg_weights *w;
    pseg_values v;
    (void)state;

    write_tensor("model.safetensors", "", "vit.layernorm.weight", "[2,3]", 6);
    assert_int_equal(pseg_tensors_open_folder(&t, folder, &err), PSEG_OK);
    assert_int_equal(pseg_weights_from_tensors(&w, t, "vit.", &err), PSEG_OK);
    assert_true(pseg_weights_has(w, "layernorm.weight"));
    assert_false(pseg_weights_has(w, "vit.layernorm.weight"));
    assert_int_equal(pseg_specs_add(&s, 2, (uint64_t[]){2, 3}, &err, "layernorm.%s", "weight"),
                     PSEG_OK);
    assert_int_equal(pseg_weights_check(w, &s, &err), PSEG_OK);
    assert_int_equal(pseg_weights_get(&v, w, 6, &err, "layernorm.weight"), PSEG_OK);
    assert_int_equal(v.type, PSEG_F32);
    assert_int_equal(pseg_weights_get(&v, w, 5, &err, "layernorm.weight"), PSEG_EINTERNAL);
    s.items[0].dims[1] = 4;
    assert_int_equal(pseg_weights_check(w, &s, &err), PSEG_EINVAL);
    assert_reason(&err, PSEG_R_MODEL_MISMATCH,
                  "model.safetensors: tensor vit.layernorm.weight has shape [2, 3]; expected [2, "
                  "4]");
    s.items[0].rank = 1;
    s.items[0].dims[0] = 6;
    assert_int_equal(pseg_weights_check(w, &s, &err), PSEG_EINVAL);
    pseg_specs_deinit(&s);
    assert_int_equal(pseg_specs_norm(&s, "other", 6, &err), PSEG_OK);
    assert_int_equal(pseg_weights_check(w, &s, &err), PSEG_EINVAL);
    assert_reason(&err, PSEG_R_MODEL_MISMATCH, "tensor vit.other.weight is missing; expected [6]");
    s.items[0].is_unused = s.items[1].is_unused = true;
    assert_int_equal(pseg_weights_check(w, &s, &err), PSEG_OK);
    pseg_specs_deinit(&s);
    pseg_weights_free(w);
    pseg_tensors_close(t);
}

static void weights_that_are_not_numbers_are_refused(void **state)
{
    static const char header[] = "{\"a\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]}}";
    uint8_t file[8 + sizeof header - 1 + 8] = {sizeof header - 1};
    pseg_err err = PSEG_ERR_INIT;
    pseg_specs s = {0};
    pseg_tensors *t;
    pseg_weights *w;
    (void)state;

    memcpy(file + 8, header, sizeof header - 1);
    write_bytes("model.safetensors", file, sizeof file);
    assert_int_equal(pseg_tensors_open_folder(&t, folder, &err), PSEG_OK);
    assert_int_equal(pseg_weights_from_tensors(&w, t, "", &err), PSEG_OK);
    assert_int_equal(pseg_specs_add(&s, 1, (uint64_t[]){1}, &err, "a"), PSEG_OK);
    assert_int_equal(pseg_weights_check(w, &s, &err), PSEG_EINVAL);
    assert_reason(&err, PSEG_R_MODEL_MISMATCH, "tensor a holds I64");
    pseg_specs_deinit(&s);
    pseg_weights_free(w);
    pseg_tensors_close(t);
}

static void finds_prefix_and_names(void **state)
{
    static const struct {
        const char *name, *prefix;
        pseg_vit_names names;
        const char *beside; /* another tensor of the file, or NULL */
    } good[] = {
        {"embeddings.cls_token", "", PSEG_VIT_NAMES_HF},
        {"dinov2.embeddings.cls_token", "dinov2.", PSEG_VIT_NAMES_HF},
        {"dinov2_with_registers.embeddings.cls_token", "dinov2_with_registers.", PSEG_VIT_NAMES_HF},
        {"vit.embeddings.cls_token", "vit.", PSEG_VIT_NAMES_HF},
        {"cls_token", "", PSEG_VIT_NAMES_TIMM},
        {"cls_token", "", PSEG_VIT_NAMES_TIMM, "reg_token"},
        {"cls_token", "", PSEG_VIT_NAMES_TIMM, "blocks.0.mlp.fc1.weight"},
        {"cls_token", "", PSEG_VIT_NAMES_META, "register_tokens"},
        {"backbone.cls_token", "backbone.", PSEG_VIT_NAMES_META,
         "backbone.blocks.0.mlp.w12.weight"}};
    pseg_err err = PSEG_ERR_INIT;
    pseg_tensors *t;
    const char *prefix;
    pseg_vit_names names;
    (void)state;

    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        char other[160] = "";
        if (good[i].beside)
            snprintf(other, sizeof other,
                     "},\"%s\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]",
                     good[i].beside);
        write_tensor("model.safetensors", other, good[i].name, "[1]", 1);
        assert_int_equal(pseg_tensors_open_folder(&t, folder, &err), PSEG_OK);
        assert_int_equal(pseg_vit_detect(&prefix, &names, t, &err), PSEG_OK);
        assert_string_equal(prefix, good[i].prefix);
        assert_int_equal(names, good[i].names);
        assert_int_equal(pseg_text_detect(&prefix, t, &err), PSEG_EINVAL);
        assert_reason(&err, PSEG_R_MODEL_MISMATCH, "token_embedding");
        pseg_tensors_close(t);
    }
    write_tensor("model.safetensors", "", "embeddings.token_embedding.weight", "[1]", 1);
    assert_int_equal(pseg_tensors_open_folder(&t, folder, &err), PSEG_OK);
    assert_int_equal(pseg_text_detect(&prefix, t, &err), PSEG_OK);
    assert_string_equal(prefix, "");
    assert_int_equal(pseg_vit_detect(&prefix, &names, t, &err), PSEG_EINVAL);
    assert_reason(&err, PSEG_R_MODEL_MISMATCH, "not the weights of an image encoder");
    pseg_tensors_close(t);
}

static void random_weights_depend_on_seed_and_name(void **state)
{
    uint64_t one = 1, two = 2;
    float a[64], b[64];
    (void)state;

    pseg_fill_random(&one, a, 64, "x.weight");
    pseg_fill_random(&one, b, 64, "x.weight");
    assert_memory_equal(a, b, sizeof a);
    pseg_fill_random(&two, b, 64, "x.weight");
    assert_memory_not_equal(a, b, sizeof a);
    pseg_fill_random(&one, b, 64, "y.weight");
    assert_memory_not_equal(a, b, sizeof a);
    pseg_fill_random(&one, a, 64, "x.norm1.weight");
    for (size_t i = 0; i < 64; i++) {
        assert_true(fabsf(b[i]) <= 0.035f);
        assert_true(fabsf(a[i] - 1) <= 0.02f);
    }
}

/* ---- pseg.json ---- */

static void reads_a_folders_description(void **state)
{
    pseg_folder f;
    pseg_err err = PSEG_ERR_INIT;
    char json[1024], many[400];
    (void)state;

    write_text("pseg.json", "{\"name\":\"m\",\"vision\":\"v\",\"text\":\"/t\",\"decoder\":\"d\"}");
    assert_int_equal(pseg_folder_read(&f, folder, &err), PSEG_OK);
    assert_string_equal(f.name, "m");
    assert_string_equal(f.text, "/t");
    assert_string_equal(f.description, "");
    write_text("pseg.json", "{\"name\":\"m\",\"vision\":\"v\",\"text\":\"t\"}");
    assert_int_equal(pseg_folder_read(&f, folder, &err), PSEG_ECORRUPT);
    assert_reason(&err, PSEG_R_MODEL_CORRUPT, "decoder");
    /* A long description is cut between characters. */
    many[0] = 'x';
    for (size_t i = 1; i + 2 < sizeof many; i += 2)
        memcpy(many + i, "\xC3\xA9", 2);
    many[sizeof many - 1] = '\0';
    snprintf(json, sizeof json,
             "{\"name\":\"m\",\"vision\":\"v\",\"text\":\"t\",\"decoder\":\"d\",\"description\":"
             "\"%.399s\"}",
             many);
    write_text("pseg.json", json);
    assert_int_equal(pseg_folder_read(&f, folder, &err), PSEG_OK);
    assert_int_equal(strlen(f.description), 255);
    assert_int_equal((unsigned char)f.description[254], 0xA9);
}

/* ---- position embeddings ---- */

static void resizing_keeps_what_needs_no_resizing(void **state)
{
    float src[5 * 4 * 2], out[10 * 8 * 2], constant[3];
    pseg_err err = PSEG_ERR_INIT;
    (void)state;

    for (size_t i = 0; i < 40; i++)
        src[i] = (float)i;
    assert_int_equal(pseg_interpolate_bicubic(out, 5, 4, src, 5, 4, 2, true, &err), PSEG_OK);
    assert_memory_equal(out, src, sizeof src);
    for (size_t i = 0; i < 40; i++)
        src[i] = 3;
    for (int wide = 0; wide < 2; wide++) {
        assert_int_equal(pseg_interpolate_bicubic(out, 10, 8, src, 5, 4, 2, wide, &err), PSEG_OK);
        for (size_t i = 0; i < 160; i++)
            assert_float_equal(out[i], 3, 1e-6);
        assert_int_equal(pseg_interpolate_bicubic(constant, 1, 1, src, 5, 4, 2, wide, &err),
                         PSEG_OK);
        assert_float_equal(constant[1], 3, 1e-6);
        assert_int_equal(pseg_interpolate_bicubic(out, 3, 5, src, 1, 1, 2, wide, &err), PSEG_OK);
        assert_float_equal(out[29], 3, 1e-6);
    }
}

/* ---- SAM ---- */

static void a_sam_that_lacks_something_is_refused(void **state)
{
    pseg_specs s = {0};
    pseg_head_config c;
    pseg_err err = PSEG_ERR_INIT;
    pseg_sam *sam;
    (void)state;

    pseg_head_config_default(&c);
    assert_int_equal(pseg_decoder_specs(&s, &c, &err), PSEG_OK);
    write_text("config.json", "{\"model_type\":\"sam\"}");
    write_tensor("model.safetensors", "", "mask_decoder.iou_token.weight", "[1,256]", 256);
    assert_int_equal(pseg_sam_open(&sam, folder, &s, &err), PSEG_EINVAL);
    assert_reason(&err, PSEG_R_MODEL_MISMATCH, "mask_decoder.mask_tokens.weight is missing");
    assert_int_equal(pseg_sam_open(&sam, GOLDEN "dinov2_tiny", &s, &err), PSEG_EUNSUPPORTED);
    pseg_specs_deinit(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(other_names_are_all_of_hugging_faces),
        cmocka_unit_test(image_encoders_have_the_published_sizes),
        cmocka_unit_test(unknown_presets_are_refused),
        cmocka_unit_test(text_tower_and_head_have_the_published_sizes),
        cmocka_unit_test(reads_hugging_face_configs),
        cmocka_unit_test(bad_configs_are_refused),
        cmocka_unit_test(reads_clip_configs),
        cmocka_unit_test(reads_a_decoders_metadata),
        cmocka_unit_test(bad_metadata_is_refused),
        cmocka_unit_test(parts_that_do_not_belong_together_are_refused),
        cmocka_unit_test(weights_of_another_shape_are_refused_by_name),
        cmocka_unit_test(weights_that_are_not_numbers_are_refused),
        cmocka_unit_test(finds_prefix_and_names),
        cmocka_unit_test(random_weights_depend_on_seed_and_name),
        cmocka_unit_test(reads_a_folders_description),
        cmocka_unit_test(resizing_keeps_what_needs_no_resizing),
        cmocka_unit_test(a_sam_that_lacks_something_is_refused),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
