/* Encoders that are parts of the graph: what their folders hold, as the graph wants it. */
#include "common/base/alloc.h"
#include "worker/model/text.h"
#include "worker/train/encoders_parts.h"
#include "worker/train/init.h"

#include <stdio.h>
#include <string.h>

pseg_status pseg_encoders_towers(pseg_train_towers *out, const pseg_encoders *e, bool has_vision,
                                 bool has_text, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (has_text && !e->text_prefix)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "%s is a table of phrases: there is no text encoder to train", e->text_folder);
    if (has_vision && !e->vision_file)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "there is no image encoder to train");
    out->vision = has_vision ? &e->vit_config : NULL;
    out->text = has_text ? &e->clip : NULL;
    out->text_prefix = e->text_prefix;
out:
    return rc;
}

/* What a folder does not have as it is needed: positions at another grid or without one for CLS,
 * LoRA's matrices. */
typedef struct filler {
    const pseg_encoders *e;
    const pseg_head_config *head;
    const char *under, *pos;
    float *positions; /* at the head's grid, with CLS' */
    pseg_init init;
} filler;

static bool ends(const char *s, const char *with)
{
    size_t n = strlen(s), k = strlen(with);

    return n >= k && strcmp(s + n - k, with) == 0;
}

static bool fill_in(void *ud, float *out, uint64_t n, const char *name)
{
    filler *f = ud;
    char full[PSEG_SPEC_NAME + 16];

    if (f->positions && strcmp(name, f->pos) == 0) {
        memcpy(out, f->positions, n * sizeof *out);
        return true;
    }
    if (ends(name, ".lora_b.weight")) {
        memset(out, 0, n * sizeof *out);
        return true;
    }
    if (!ends(name, ".lora_a.weight"))
        return false;
    snprintf(full, sizeof full, "%s%s", f->under, name);
    pseg_init_fill(&f->init, out, n, full);
    return true;
}

/* Meta's or timm's tensors under Hugging Face's names. */
typedef struct renaming {
    pseg_weights *w;
    const pseg_vit_config *c;
    pseg_vit_names names;
    const pseg_specs *specs; /* theirs, against which w was checked */
} renaming;

/* Part k of n_parts of a tensor of w. */
static void take_part(const renaming *r, float *out, uint64_t n, const pseg_spec *s, uint32_t k,
                      uint32_t n_parts)
{
    pseg_values v;

    if (pseg_weights_get(&v, r->w, n * n_parts, NULL, "%s", s->name) != PSEG_OK)
        return; /* not after the check */
    pseg_to_f32(out, (const char *)v.data + k * n * (v.type == PSEG_F32 ? 4 : 2), v.type, n);
}

static void fill_renamed(void *ud, float *out, uint64_t n, const char *name)
{
    const renaming *r = ud;
    char names[3][PSEG_SPEC_NAME];

    memset(out, 0, n * sizeof *out);
    for (size_t i = 0; i < r->specs->n; i++) {
        const pseg_spec *s = &r->specs->items[i];
        uint32_t n_parts = pseg_vit_hf_names(names, r->c, r->names, s->name);

        for (uint32_t k = 0; k < n_parts; k++)
            if (strcmp(names[k], name) == 0)
                take_part(r, out, n, s, k, n_parts);
    }
}

static pseg_status fill_vision(filler *f, pseg_params *params, pseg_stream *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_encoders *e = f->e;
    const pseg_vit_config *c = &e->vit_config;
    pseg_specs specs = {0};
    pseg_weights *w = NULL, *hf = NULL;
    renaming r = {.c = c, .names = e->names, .specs = &specs};
    char pos[PSEG_SPEC_NAME];

    f->under = "vision.";
    f->pos = pos;
    pseg_vit_part_name(pos, c, PSEG_VIT_NAMES_HF, PSEG_VIT_POS, 0);
    PSEG_TRY(pseg_vit_specs(&specs, c, e->names, err));
    PSEG_TRY(pseg_weights_from_tensors(&w, e->vision_file, e->vision_prefix, err));
    PSEG_TRY(pseg_weights_check(w, &specs, err));
    if (f->head->gh != c->pos_h || f->head->gw != c->pos_w ||
        !pseg_vit_has_cls_position(c, e->names))
        PSEG_TRY(pseg_vit_positions(&f->positions, w, e->names, c, f->head->gh, f->head->gw, err));
    r.w = w;
    if (e->names != PSEG_VIT_NAMES_HF)
        PSEG_TRY(pseg_weights_from_fn(&hf, fill_renamed, &r, err));
    pseg_weights *use = hf ? hf : w;
    pseg_weights_overlay(use, fill_in, f);
    PSEG_TRY(pseg_params_load(params, s, PSEG_PARAMS_VALUE, use, "", f->under, true, err));
out:
    pseg_free(f->positions);
    f->positions = NULL;
    pseg_weights_free(hf);
    pseg_weights_free(w);
    pseg_specs_deinit(&specs);
    return rc;
}

static pseg_status fill_text(filler *f, pseg_params *params, pseg_stream *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_encoders *e = f->e;
    pseg_tensors *file = NULL;
    pseg_specs specs = {0};
    pseg_weights *w = NULL;

    f->under = "text.";
    PSEG_TRY(pseg_text_specs(&specs, &e->clip, e->text_prefix, err));
    PSEG_TRY(pseg_tensors_open_folder(&file, e->text_folder, err));
    PSEG_TRY(pseg_weights_from_tensors(&w, file, "", err));
    PSEG_TRY(pseg_weights_check(w, &specs, err));
    pseg_weights_overlay(w, fill_in, f);
    PSEG_TRY(pseg_params_load(params, s, PSEG_PARAMS_VALUE, w, "", f->under, true, err));
out:
    pseg_specs_deinit(&specs);
    pseg_weights_free(w);
    pseg_tensors_close(file);
    return rc;
}

pseg_status pseg_encoders_fill(pseg_encoders *e, pseg_params *params, pseg_stream *s,
                               const pseg_train_towers *t, const pseg_head_config *head,
                               const pseg_specs *specs, uint64_t seed, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    filler f = {.e = e, .head = head, .init = {seed, specs}};

    if (t->vision)
        PSEG_TRY(fill_vision(&f, params, s, err));
    if (t->text)
        PSEG_TRY(fill_text(&f, params, s, err));
out:
    return rc;
}
