#include "worker/train/feed.h"
#include "common/base/alloc.h"

#include <string.h>

struct pseg_feed {
    pseg_train_head *head;
    pseg_encoders *e;
    pseg_stream *s;
    pseg_head_config c;
    pseg_train_shape shape;
    size_t pixels; /* of a target */
    uint32_t *order;
    pseg_encoded_text *texts;
    float *text, *words, *target, *coarse, *weight, *stats;
    int32_t *key_len, *image_of, *ids, *ends;
    uint32_t *lens;
    bool *is_cut;
    uint64_t n_cut;
};

pseg_status pseg_feed_new(pseg_feed **out, pseg_train_head *head, pseg_encoders *e, pseg_stream *s,
                          const pseg_head_config *c, const pseg_train_shape *shape, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_feed *f = pseg_calloc(1, sizeof *f);
    size_t batch = shape->batch;

    *out = NULL;
    if (!f)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a batch");
    f->head = head;
    f->e = e;
    f->s = s;
    f->c = *c;
    f->shape = *shape;
    f->pixels = pseg_train_head_targets(head);
    f->order = pseg_calloc(f->pixels, sizeof *f->order);
    f->texts = pseg_calloc(batch, sizeof *f->texts);
    f->text = pseg_calloc(batch * c->text_dim, sizeof *f->text);
    f->words = pseg_calloc(batch * shape->max_prompt * c->text_hidden, sizeof *f->words);
    f->target = pseg_calloc(batch * f->pixels, sizeof *f->target);
    f->coarse = pseg_calloc(batch * shape->gh * shape->gw, sizeof *f->coarse);
    f->weight = pseg_calloc(batch, sizeof *f->weight);
    f->stats = pseg_calloc(batch * PSEG_LOSS_STATS, sizeof *f->stats);
    f->key_len = pseg_calloc(batch, sizeof *f->key_len);
    f->image_of = pseg_calloc(batch, sizeof *f->image_of);
    if (shape->towers && shape->towers->text) {
        f->ids = pseg_calloc(batch * shape->towers->max_tokens, sizeof *f->ids);
        f->ends = pseg_calloc(batch, sizeof *f->ends);
        f->lens = pseg_calloc(batch, sizeof *f->lens);
        f->is_cut = pseg_calloc(batch, sizeof *f->is_cut);
        if (!f->ids || !f->ends || !f->lens || !f->is_cut)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a batch of %zu", batch);
    }
    if (!f->order || !f->texts || !f->text || !f->words || !f->target || !f->coarse || !f->weight ||
        !f->stats || !f->key_len || !f->image_of)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a batch of %zu", batch);
    if (!shape->at_input)
        pseg_train_head_order(f->order, c, shape->gh, shape->gw);
    *out = f;
    f = NULL;
out:
    pseg_feed_free(f);
    return rc;
}

void pseg_feed_free(pseg_feed *f)
{
    if (!f)
        return;
    pseg_free(f->order);
    pseg_free(f->texts);
    pseg_free(f->text);
    pseg_free(f->words);
    pseg_free(f->target);
    pseg_free(f->coarse);
    pseg_free(f->weight);
    pseg_free(f->stats);
    pseg_free(f->key_len);
    pseg_free(f->image_of);
    pseg_free(f->ids);
    pseg_free(f->ends);
    pseg_free(f->lens);
    pseg_free(f->is_cut);
    pseg_free(f);
}

/* The pixels themselves, where the encoder is in the graph. */
static pseg_status put_pixels(pseg_feed *f, const pseg_train_batch *b, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_view v = pseg_train_head_views(f->head)->images;
    size_t one = 3 * (size_t)f->c.height * f->c.width, n = b->n_images;
    size_t missing = f->shape.n_images - n;

    PSEG_REQUIRE(b->pixels, "pixels");
    PSEG_TRY(pseg_mem_write(f->s, v.mem, v.off * sizeof(float), b->pixels, n * one * sizeof(float),
                            err));
    if (missing)
        PSEG_TRY(pseg_mem_zero(f->s, v.mem, (v.off + n * one) * sizeof(float),
                               missing * one * sizeof(float), err));
out:
    return rc;
}

/* Images that are not there are zeros: their place may hold anything, a NaN too, from the pass
 * before. */
static pseg_status put_images(pseg_feed *f, const pseg_train_batch *b, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_train_views *v = pseg_train_head_views(f->head);
    size_t tap = (size_t)f->shape.gh * f->shape.gw * f->c.vision_dim;
    size_t n = b->n_images, missing = f->shape.n_images - n;

    if (b->pixels)
        PSEG_TRY(pseg_encoders_images(f->e, v->taps, b->pixels, b->n_images, err));
    for (uint32_t i = 0; i < f->c.n_taps; i++) {
        if (!b->pixels)
            PSEG_TRY(pseg_mem_write(f->s, v->taps[i].mem, v->taps[i].off * sizeof(float),
                                    b->taps[i], n * tap * sizeof(float), err));
        if (missing)
            PSEG_TRY(pseg_mem_zero(f->s, v->taps[i].mem, (v->taps[i].off + n * tap) * sizeof(float),
                                   missing * tap * sizeof(float), err));
    }
out:
    return rc;
}

/* Host copies of everything that belongs to a sample. */
static void gather(pseg_feed *f, const pseg_train_batch *b, uint32_t group)
{
    size_t dim = f->c.text_dim, width = f->c.text_hidden, room = f->shape.max_prompt - 1;

    memset(f->text, 0, f->shape.batch * dim * sizeof *f->text);
    memset(f->words, 0, f->shape.batch * room * width * sizeof *f->words);
    memset(f->target, 0, f->shape.batch * f->pixels * sizeof *f->target);
    for (uint32_t i = 0; i < f->shape.batch; i++) {
        bool is_there = i < b->n_samples;
        size_t words = 0;

        if (is_there) {
            const pseg_encoded_text *t = &f->texts[i];
            const float *mask = b->target + i * f->pixels;
            float *to = f->target + i * f->pixels;

            if (f->ids) {
                words = f->c.has_word_tokens ? f->lens[i] - 1 : 0;
                f->n_cut += f->is_cut[i];
            } else {
                memcpy(f->text + i * dim, t->embed, dim * sizeof *f->text);
            }
            if (!f->ids && t->words) {
                words = t->n_tokens - 1;
                f->n_cut += t->is_cut || words > room;
                words = words < room ? words : room;
                memcpy(f->words + i * room * width, t->words, words * width * sizeof *f->words);
            }
            if (f->shape.at_input)
                memcpy(to, mask, f->pixels * sizeof *to);
            for (size_t j = 0; j < f->pixels && !f->shape.at_input; j++)
                to[j] = mask[f->order[j]];
        }
        if (f->ids)
            f->ends[i] =
                (int32_t)(i * f->shape.towers->max_tokens + (is_there ? f->lens[i] - 1 : 0));
        f->key_len[i] = (int32_t)words + 3;
        f->image_of[i] = is_there ? (int32_t)b->image_of[i] : 0;
        f->weight[i] = is_there ? 1.0f / ((float)b->n_samples * (float)group) : 0;
    }
}

/* What deep supervision compares with: the shares of the grid's places. */
static pseg_status put_coarse(pseg_feed *f, const pseg_train_batch *b, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_train_shape *s = &f->shape;
    pseg_view to = pseg_train_head_views(f->head)->coarse;
    size_t places = (size_t)s->gh * s->gw;
    uint32_t h = s->at_input ? f->c.height : s->gh << f->c.n_upsample;
    uint32_t w = s->at_input ? f->c.width : s->gw << f->c.n_upsample;

    if (!to.mem)
        goto out;
    memset(f->coarse, 0, s->batch * places * sizeof *f->coarse);
    for (uint32_t i = 0; i < b->n_samples; i++)
        PSEG_TRY(pseg_train_coarsen(f->coarse + i * places, s->gh, s->gw, b->target + i * f->pixels,
                                    h, w, err));
    PSEG_TRY(pseg_mem_write(f->s, to.mem, to.off * sizeof(float), f->coarse,
                            s->batch * places * sizeof(float), err));
out:
    return rc;
}

static pseg_status put(pseg_feed *f, pseg_view to, const void *from, size_t n, pseg_err *err)
{
    return to.mem ? pseg_mem_write(f->s, to.mem, to.off * 4, from, n * 4, err) : PSEG_OK;
}

pseg_status pseg_feed_put(pseg_feed *f, const pseg_train_batch *b, uint32_t group, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_train_views *v = pseg_train_head_views(f->head);
    size_t batch = f->shape.batch;

    PSEG_REQUIRE(b->n_images >= 1 && b->n_images <= f->shape.n_images && b->n_samples >= 1 &&
                     b->n_samples <= batch,
                 "batch");
    for (uint32_t i = 0; i < b->n_samples && !v->image_of.mem; i++)
        PSEG_REQUIRE(b->image_of[i] == i, "a sample whose image is not its own");
    if (v->images.mem)
        PSEG_TRY(put_pixels(f, b, err));
    else
        PSEG_TRY(put_images(f, b, err));
    if (f->ids) {
        uint32_t row = f->shape.towers->max_tokens;
        memset(f->ids, 0, batch * row * sizeof *f->ids);
        PSEG_TRY(pseg_encoders_tokens(f->ids, f->lens, f->is_cut, f->e, row, b->phrases,
                                      b->n_samples, err));
    } else {
        PSEG_TRY(pseg_encoders_phrases(f->texts, f->e, b->phrases, b->n_samples, err));
    }
    gather(f, b, group);
    PSEG_TRY(put_coarse(f, b, err));
    PSEG_TRY(put(f, v->text, f->text, batch * f->c.text_dim, err));
    PSEG_TRY(put(f, v->words, f->words, batch * (f->shape.max_prompt - 1) * f->c.text_hidden, err));
    if (f->ids) {
        PSEG_TRY(put(f, v->ids, f->ids, batch * f->shape.towers->max_tokens, err));
        PSEG_TRY(put(f, v->ends, f->ends, batch, err));
    }
    PSEG_TRY(put(f, v->target, f->target, batch * f->pixels, err));
    PSEG_TRY(put(f, v->weight, f->weight, batch, err));
    PSEG_TRY(put(f, v->key_len, f->key_len, batch, err));
    PSEG_TRY(put(f, v->image_of, f->image_of, batch, err));
    PSEG_TRY(pseg_stream_finish(f->s, err));
out:
    return rc;
}

pseg_status pseg_feed_read_stats(pseg_feed *f, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_view v = pseg_train_head_views(f->head)->stats;

    PSEG_TRY(pseg_mem_read(f->stats, f->s, v.mem, v.off * sizeof(float),
                           (size_t)f->shape.batch * PSEG_LOSS_STATS * sizeof(float), err));
    PSEG_TRY(pseg_stream_finish(f->s, err));
out:
    return rc;
}

const float *pseg_feed_stats(const pseg_feed *f)
{
    return f->stats;
}

uint64_t pseg_feed_cut(const pseg_feed *f)
{
    return f->n_cut;
}
