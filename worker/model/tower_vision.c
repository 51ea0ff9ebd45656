/* The image encoder alone, opened for itself or borrowed from a model. */
#include "common/base/alloc.h"
#include "common/base/half.h"
#include "worker/model/pseg_parts.h"
#include "worker/model/towers.h"

#include <string.h>

#define MAX_SIDE 8192

struct pseg_vision {
    pseg_cl *cl;
    pseg_stage own, *stage; /* own, or the model's */
    pseg_tensors *file;     /* NULL: the model's */
    pseg_store *store;      /* likewise */
    pseg_vit *vit, *borrowed;
    pseg_view pixels;
    uint32_t max_images;
    pseg_vision_info info;
    float *host; /* a tap of max_images images; a tap in bfloat16 lies in its second half first */
};

static size_t tap_numbers(const pseg_vision *v)
{
    return (size_t)v->info.gh * v->info.gw * v->info.hidden;
}

size_t pseg_vision_numbers(const pseg_vision *v)
{
    return v->info.n_taps * tap_numbers(v);
}

const pseg_vision_info *pseg_vision_get_info(const pseg_vision *v)
{
    return &v->info;
}

void pseg_vision_close(pseg_vision *v)
{
    if (!v)
        return;
    pseg_stream_close(v->own.s);
    pseg_vit_free(v->vit);
    pseg_store_free(v->store);
    pseg_tensors_close(v->file);
    pseg_free(v->host);
    pseg_free(v);
}

static void fill_preprocess(pseg_vision_info *i, const pseg_vit_config *c)
{
    i->has_preprocess = c->has_preprocess;
    i->fit = c->fit;
    i->resize_edge = c->resize_edge;
    memcpy(i->mean, c->mean, sizeof i->mean);
    memcpy(i->std, c->std, sizeof i->std);
}

static pseg_status check_options(const pseg_vision_options *o, const pseg_vit_config *c,
                                 const pseg_vision_info *i, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (o->max_images < 1 || o->max_images > 256)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "a batch of %u images: the limits are 1..256",
                  o->max_images);
    if (o->n_taps < 1 || o->n_taps > PSEG_MAX_TAPS)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%u taps: the limits are 1..%d", o->n_taps,
                  PSEG_MAX_TAPS);
    for (uint32_t k = 0; k < o->n_taps; k++)
        if (o->taps[k] < 1 || o->taps[k] > c->layers || (k && o->taps[k] < o->taps[k - 1]))
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                      "tap %u: taps are completed blocks, ascending, 1 to %u", o->taps[k],
                      c->layers);
    if (i->height % c->patch || i->width % c->patch || i->height > MAX_SIDE || i->width > MAX_SIDE)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "image size %ux%u: each side must be a multiple of the patch, %u px, and at most "
                  "%d px",
                  i->height, i->width, c->patch, MAX_SIDE);
    if (o->precision == PSEG_PRECISION_BF16 &&
        (c->hidden % PSEG_BF16_STEP || c->mlp % PSEG_BF16_STEP))
        PSEG_FAIL(PSEG_R_MODEL_UNSUPPORTED, 0,
                  "widths of %u and %u in precision bf16: they must be multiples of %d; use fp32",
                  c->hidden, c->mlp, PSEG_BF16_STEP);
out:
    return rc;
}

static void fill_info(pseg_vision_info *i, const pseg_vit_config *c, const pseg_vision_options *o)
{
    i->hidden = c->hidden;
    i->layers = c->layers;
    i->patch = c->patch;
    i->height = o->height ? o->height : 224;
    i->width = o->width ? o->width : 224;
    i->gh = i->height / c->patch;
    i->gw = i->width / c->patch;
    i->n_taps = o->n_taps;
    memcpy(i->taps, o->taps, sizeof i->taps);
    i->is_tap_normed = o->is_tap_normed;
    i->precision = o->precision;
    fill_preprocess(i, c);
}

static pseg_status load(pseg_vision *v, const pseg_vit_config *c, const pseg_vision_options *o,
                        pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_vision_info *i = &v->info;
    pseg_weights *w = NULL;
    pseg_specs specs = {0};
    pseg_vit_names names;
    const char *prefix;

    PSEG_TRY(pseg_vit_detect(&prefix, &names, v->file, err));
    PSEG_TRY(pseg_weights_from_tensors(&w, v->file, prefix, err));
    PSEG_TRY(pseg_vit_specs(&specs, c, names, err));
    PSEG_TRY(pseg_weights_check(w, &specs, err));
    v->info.params = pseg_specs_params(&specs);
    PSEG_TRY(pseg_store_new(&v->store, v->cl, err));
    if (o->precision != PSEG_PRECISION_FP32)
        pseg_store_set_type(v->store,
                            o->precision == PSEG_PRECISION_BF16 ? PSEG_BF16 : PSEG_BF16X2);
    PSEG_TRY(pseg_vit_new(&v->vit, v->store, w, names, c, o->taps, o->n_taps, o->is_tap_normed,
                          i->gh, i->gw, o->max_images, err));
    PSEG_TRY(pseg_store_scratch(&v->pixels, v->store,
                                o->max_images * 3 * (size_t)i->height * i->width, err));
out:
    pseg_weights_free(w);
    pseg_specs_deinit(&specs);
    return rc;
}

static pseg_status make_host(pseg_vision *v, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    v->host = pseg_aligned_alloc(v->max_images * tap_numbers(v) * sizeof *v->host);
    if (!v->host)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the features of %u images",
                  v->max_images);
out:
    return rc;
}

pseg_status pseg_vision_open(pseg_vision **out, pseg_cl *cl, const char *folder,
                             const pseg_vision_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_vit_config c;
    pseg_vision *v = NULL;

    *out = NULL;
    v = pseg_calloc(1, sizeof *v);
    if (!v)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an image encoder");
    v->cl = cl;
    v->stage = &v->own;
    v->max_images = o->max_images;
    PSEG_TRY(pseg_vit_config_read(&c, folder, err));
    fill_info(&v->info, &c, o);
    PSEG_TRY(check_options(o, &c, &v->info, err));
    PSEG_TRY(pseg_tensors_open_folder(&v->file, folder, err));
    pseg_tuning_load(cl);
    PSEG_TRY(pseg_stream_open(&v->own.s, cl, err));
    PSEG_TRY(load(v, &c, o, err));
    PSEG_TRY(pseg_digest_part(v->info.digest, folder, false, v->file, err));
    pseg_tensors_drop(v->file);
    PSEG_TRY(make_host(v, err));
    *out = v;
    v = NULL;
out:
    pseg_vision_close(v);
    return rc;
}

pseg_status pseg_vision_of_model(pseg_vision **out, pseg_model *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_vision_options o = {.height = m->info.height,
                             .width = m->info.width,
                             .max_images = m->options.max_images,
                             .precision = m->options.precision};
    pseg_head_config head;
    pseg_vit_config c;
    pseg_vision *v = NULL;

    *out = NULL;
    if (!m->vision_file)
        PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "a model of random weights has no image encoder to share");
    v = pseg_calloc(1, sizeof *v);
    if (!v)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an image encoder");
    PSEG_TRY(pseg_vit_config_read(&c, m->vision_folder, err));
    PSEG_TRY(pseg_head_config_read(&head, m->head_file, err));
    o.n_taps = head.n_taps;
    memcpy(o.taps, head.taps, sizeof o.taps);
    o.is_tap_normed = head.is_tap_normed;
    fill_info(&v->info, &c, &o);
    v->info.params = m->info.vision_params;
    v->cl = m->cl;
    v->stage = &m->stage;
    v->borrowed = m->vit;
    v->pixels = m->pixels;
    v->max_images = o.max_images;
    PSEG_TRY(pseg_digest_part(v->info.digest, m->vision_folder, false, m->vision_file, err));
    PSEG_TRY(make_host(v, err));
    *out = v;
    v = NULL;
out:
    pseg_vision_close(v);
    return rc;
}

/* n images' numbers of a tap, those of an image `stride` halves behind those of the one before. */
static pseg_status put_halves(uint16_t *out, const float *in, size_t n, size_t each, size_t stride,
                              uint32_t tap, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < each; k++)
            /* 65520 and more rounds to infinity; not a number fails the comparison too */
            if (!(in[i * each + k] > -65520.0f && in[i * each + k] < 65520.0f))
                PSEG_FAIL(PSEG_R_MODEL_UNSUPPORTED, 0,
                          "image %zu: a feature after block %u is %g, which float16 cannot hold; "
                          "take features through the encoder's norm",
                          i, tap, (double)in[i * each + k]);
    for (size_t i = 0; i < n; i++)
        pseg_half_from_floats(out + i * stride, in + i * each, each);
out:
    return rc;
}

/* bfloat16 to float, in place from the second half on: a number is read before it is written over.
 */
static void widen(float *out, const uint8_t *in, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, in + 2 * i, sizeof half);
        uint32_t word = (uint32_t)half << 16;
        memcpy(&out[i], &word, sizeof word);
    }
}

static pseg_status run_pass(uint16_t *out, pseg_vision *v, const float *chw, uint32_t n,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_vit *vit = v->vit ? v->vit : v->borrowed;
    pseg_stream *s = v->stage->s;
    size_t image = 3 * (size_t)v->info.height * v->info.width, each = tap_numbers(v);

    PSEG_TRY(pseg_mem_write(s, v->pixels.mem, v->pixels.off * sizeof *chw, chw,
                            n * image * sizeof *chw, err));
    PSEG_TRY(pseg_vit_run(vit, v->stage, v->pixels, n, err));
    for (uint32_t t = 0; t < v->info.n_taps; t++) {
        pseg_view tap = pseg_vit_tap(vit, t);
        size_t size = tap.type == PSEG_BF16 ? sizeof(uint16_t) : sizeof(float),
               bytes = n * each * size;
        uint8_t *to = (uint8_t *)(v->host + n * each) - bytes;
        PSEG_TRY(pseg_mem_read(to, s, tap.mem, tap.off * size, bytes, err));
        PSEG_TRY(pseg_stream_finish(s, err));
        if (tap.type == PSEG_BF16)
            widen(v->host, to, n * each);
        PSEG_TRY(put_halves(out + t * each, v->host, n, each, pseg_vision_numbers(v),
                            v->info.taps[t], err));
    }
out:
    return rc == PSEG_OK ? PSEG_OK : (pseg_stream_finish(s, NULL), rc);
}

pseg_status pseg_vision_run(uint16_t *out, pseg_vision *v, const float *chw, size_t n,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t image = 3 * (size_t)v->info.height * v->info.width;

    for (size_t at = 0; at < n; at += v->max_images) {
        size_t k = n - at < v->max_images ? n - at : v->max_images;
        PSEG_TRY(
            run_pass(out + at * pseg_vision_numbers(v), v, chw + at * image, (uint32_t)k, err));
    }
out:
    return rc;
}
