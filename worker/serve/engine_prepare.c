#include "worker/serve/engine_internal.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <string.h>

/* Decodes for the model alone. */
static pseg_status prepare_file(pseg_engine *e, pseg_work *w, const char *owner, pseg_bytes image,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_image_prepared p;

    pseg_image_file file = {image.data, image.len};
    if (e->decoders)
        PSEG_TRY(pseg_decoders_prepare(e->decoders, &p, w->picture->chw, owner, file, err));
    else
        PSEG_TRY(pseg_image_prepare(&p, w->picture->chw, file, &e->limits, &e->how, err));
    w->width = p.width;
    w->height = p.height;
    memcpy(w->rect, p.rect, sizeof w->rect);
    pseg_work_stage(w,
                    p.shrink == 8   ? "decode_image_eighth"
                    : p.shrink == 4 ? "decode_image_quarter"
                    : p.shrink == 2 ? "decode_image_half"
                                    : "decode_image",
                    p.decode_us);
    pseg_work_stage(w, "preprocess", p.resize_us);
out:
    return rc;
}

/* From a photo that the caller wants too, whose decoding began at begin_us. */
static pseg_status prepare_photo(pseg_engine *e, pseg_work *w, const pseg_image *i,
                                 int64_t begin_us, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t decoded = pseg_clock_mono_us();

    w->width = i->width;
    w->height = i->height;
    pseg_work_stage(w, "decode_image", decoded - begin_us);
    if (e->info) {
        PSEG_TRY(pseg_image_preprocess(w->picture->chw, w->rect, i, &e->how, err));
        pseg_work_stage(w, "preprocess", pseg_clock_mono_us() - decoded);
    }
out:
    return rc;
}

pseg_status pseg_engine_prepare(pseg_engine *e, pseg_work *w, const char *owner, pseg_bytes image,
                                pseg_image **photo, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_image *i = NULL;
    int64_t begin = pseg_clock_mono_us();

    if (!e->info && !photo) {
        /* The empty model looks at the header alone. */
        pseg_image_info info;
        PSEG_TRY(pseg_image_probe(&info, image.data, image.len, &e->limits, err));
        w->width = info.width;
        w->height = info.height;
        goto out;
    }
    if (e->info) {
        size_t bytes = 3 * sizeof(float) * e->how.width * e->how.height;
        if (w->picture ||
            pseg_pictures_take(&w->picture, &e->pictures, NULL, NULL) == PSEG_PICTURE_MINE)
            w->picture->chw = pseg_aligned_alloc(bytes);
        if (!w->picture || !w->picture->chw)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to prepare an image");
    }
    if (photo)
        PSEG_TRY(pseg_image_decode(&i, image.data, image.len, &e->limits, err));
    PSEG_TRY(e->info && (!photo || e->how.may_shrink) ? prepare_file(e, w, owner, image, err)
                                                      : prepare_photo(e, w, i, begin, err));
    if (photo) {
        *photo = i;
        i = NULL;
    }
out:
    if (!e->info) {
        w->rect[2] = (float)w->width;
        w->rect[3] = (float)w->height;
    }
    if (w->picture) {
        w->picture->width = w->width;
        w->picture->height = w->height;
        memcpy(w->picture->rect, w->rect, sizeof w->rect);
    }
    pseg_image_free(i);
    return rc;
}

/* ---- images that several works need ---- */

void pseg_engine_adopt(pseg_work *w, pseg_picture *picture)
{
    w->picture = picture;
    w->width = picture->width;
    w->height = picture->height;
    memcpy(w->rect, picture->rect, sizeof w->rect);
}

pseg_picture_state pseg_engine_share(pseg_engine *e, pseg_work *w, const char *key,
                                     pseg_waiter *waiter)
{
    pseg_picture *p = NULL;
    pseg_picture_state state = PSEG_PICTURE_MINE;

    if (e->info)
        state = pseg_pictures_take(&p, &e->pictures, key, waiter);
    if (state == PSEG_PICTURE_READY)
        pseg_engine_adopt(w, p);
    else if (state == PSEG_PICTURE_MINE)
        w->picture = p;
    return state;
}

bool pseg_engine_find(pseg_engine *e, pseg_work *w, const char *key)
{
    pseg_picture *p = e->info ? pseg_pictures_find(&e->pictures, key) : NULL;

    if (p)
        pseg_engine_adopt(w, p);
    return p != NULL;
}

pseg_waiter *pseg_engine_shared(pseg_engine *e, pseg_work *w, bool is_good)
{
    return w->picture ? pseg_pictures_filled(&e->pictures, w->picture, is_good) : NULL;
}
