#include "worker/train/encoders.h"
#include "common/base/alloc.h"
#include "worker/model/text.h"
#include "worker/model/text_table.h"
#include "worker/train/encoders_parts.h"

/* ---- opening --------------------------------------------------------------------------------- */

/* The widths alone: whether words are read, and so what is loaded, is the head's matter. */
static pseg_status read_text(pseg_encoders *e, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_text_table *table = NULL;
    pseg_tensors *file = NULL;

    if (pseg_text_table_is(e->text_folder)) {
        PSEG_TRY(pseg_text_table_open(&table, e->text_folder, err));
        e->shape.dim = e->shape.hidden = pseg_text_table_dim(table);
        e->shape.is_table = true;
    } else {
        PSEG_TRY(pseg_clip_config_read(&e->clip, e->text_folder, err));
        e->shape.dim = e->clip.proj;
        e->shape.hidden = e->clip.hidden;
        PSEG_TRY(pseg_tensors_open_folder(&file, e->text_folder, err));
        PSEG_TRY(pseg_text_detect(&e->text_prefix, file, err));
    }
out:
    pseg_tensors_close(file);
    pseg_text_table_close(table);
    return rc;
}

pseg_status pseg_encoders_open(pseg_encoders **out, pseg_cl *cl, const char *vision,
                               const char *text, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_encoders *e = pseg_calloc(1, sizeof *e);

    *out = NULL;
    if (!e || !(e->text_folder = pseg_strdup(text)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for encoders");
    e->cl = cl;
    if (vision) {
        PSEG_TRY(pseg_vit_config_read(&e->vit_config, vision, err));
        PSEG_TRY(pseg_tensors_open_folder(&e->vision_file, vision, err));
        PSEG_TRY(pseg_vit_detect(&e->vision_prefix, &e->names, e->vision_file, err));
    }
    PSEG_TRY(read_text(e, err));
    *out = e;
    e = NULL;
out:
    pseg_encoders_close(e);
    return rc;
}

void pseg_encoders_close(pseg_encoders *e)
{
    if (!e)
        return;
    encoders_forget(e);
    pseg_free(e->table);
    pseg_free(e->text_folder);
    pseg_phrases_close(e->phrases);
    pseg_vit_free(e->vit);
    pseg_store_free(e->store);
    pseg_tensors_close(e->vision_file);
    pseg_free(e);
}

const pseg_vit_config *pseg_encoders_vision(const pseg_encoders *e)
{
    return e->vision_file ? &e->vit_config : NULL;
}

const pseg_text_shape *pseg_encoders_text(const pseg_encoders *e)
{
    return &e->shape;
}

const char *pseg_encoders_vision_digest(const pseg_encoders *e)
{
    return e->vision_digest;
}

const char *pseg_encoders_text_digest(const pseg_encoders *e)
{
    return pseg_phrases_get_info(e->phrases)->digest;
}

static pseg_status hash_vision(pseg_encoders *e, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t sum[PSEG_SHA256_BYTES];
    pseg_sha256 *hash = pseg_sha256_new();

    if (!hash)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a digest");
    pseg_tensors_digest(e->vision_file, hash);
    pseg_sha256_finish(hash, sum);
    pseg_hex(e->vision_digest, sum, sizeof sum);
out:
    pseg_sha256_free(hash);
    return rc;
}

static pseg_status load_vision(pseg_encoders *e, pseg_err *err)
{
    const pseg_head_config *h = &e->head;
    pseg_status rc = PSEG_OK;
    pseg_specs specs = {0};
    pseg_weights *w = NULL;
    PSEG_TRY(pseg_vit_specs(&specs, &e->vit_config, e->names, err));
    PSEG_TRY(pseg_weights_from_tensors(&w, e->vision_file, e->vision_prefix, err));
    PSEG_TRY(pseg_weights_check(w, &specs, err));
    PSEG_TRY(pseg_vit_new(&e->vit, e->store, w, e->names, &e->vit_config, h->taps, h->n_taps,
                          h->is_tap_normed, h->gh, h->gw, e->max_images, err));
    PSEG_TRY(pseg_store_scratch(&e->pixels, e->store,
                                (size_t)e->max_images * 3 * h->height * h->width, err));
    pseg_tensors_drop(e->vision_file);
out:
    pseg_specs_deinit(&specs);
    pseg_weights_free(w);
    return rc;
}

pseg_status pseg_encoders_load(pseg_encoders *e, pseg_stream *s, const pseg_head_config *head,
                               uint32_t max_images, uint32_t max_phrases, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_phrases_options o = {.max_phrases = max_phrases, .has_words = head->has_word_tokens};

    PSEG_REQUIRE(!e->phrases && max_phrases, "loaded once");
    e->stage.s = s;
    e->head = *head;
    e->max_images = max_images;
    e->max_phrases = max_phrases;
    if (e->vision_file)
        PSEG_TRY(hash_vision(e, err));
    if (e->vision_file && max_images) {
        PSEG_TRY(pseg_store_new(&e->store, e->cl, err));
        PSEG_TRY(load_vision(e, err));
    }
    PSEG_TRY(pseg_phrases_open(&e->phrases, e->cl, e->text_folder, &o, err));
    e->cap = 1024;
    e->table = pseg_calloc(e->cap, sizeof *e->table);
    if (!e->table)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for phrases");
out:
    return rc;
}

uint64_t pseg_encoders_bytes(const pseg_encoders *e)
{
    return e->store ? pseg_store_weight_bytes(e->store) + pseg_store_activation_bytes(e->store) : 0;
}

/* ---- images ---------------------------------------------------------------------------------- */

pseg_status pseg_encoders_images(pseg_encoders *e, const pseg_view *taps, const float *pixels,
                                 uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_head_config *h = &e->head;
    pseg_stream *s = e->stage.s;
    size_t one = 3 * (size_t)h->height * h->width, tap = (size_t)h->gh * h->gw * h->vision_dim;

    PSEG_REQUIRE(e->vit, "an image encoder");
    for (uint32_t at = 0; at < n; at += e->max_images) {
        uint32_t k = n - at < e->max_images ? n - at : e->max_images;

        PSEG_TRY(
            pseg_mem_write(s, e->pixels.mem, 0, pixels + at * one, k * one * sizeof *pixels, err));
        PSEG_TRY(pseg_vit_run(e->vit, &e->stage, e->pixels, k, err));
        for (uint32_t i = 0; i < h->n_taps; i++) {
            pseg_view from = pseg_vit_tap(e->vit, i);
            PSEG_TRY(pseg_mem_copy(s, taps[i].mem, (taps[i].off + at * tap) * sizeof(float),
                                   from.mem, from.off * sizeof(float), k * tap * sizeof(float),
                                   err));
        }
    }
    PSEG_TRY(pseg_stream_finish(s, err));
out:
    return rc;
}
