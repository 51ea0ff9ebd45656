/* From a photo to a model's numbers, the same on every machine. */
#include "common/base/alloc.h"
#include "common/image/prepare.h"

#include <math.h>
#include <string.h>

pseg_status pseg_image_resize(uint8_t *out, uint32_t out_w, uint32_t out_h, const uint8_t *in,
                              uint32_t w, uint32_t h, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    resampler r = {0};

    PSEG_REQUIRE(w && h && out_w && out_h, "sizes");
    resample_plan plan = {w, h, 0, 0, w, h, out_w, out_h, {0, 0, out_w, out_h}};
    PSEG_TRY(resampler_init(&r, &plan, NULL, err));
    for (uint32_t y = 0; y < h; y++)
        resampler_take_row(&r, y, in + 3 * (size_t)w * y);
    resampler_finish(&r, out);
out:
    resampler_deinit(&r);
    return rc;
}

static uint32_t fitted(double x, uint32_t most)
{
    x = rint(x); /* ties to even, as Python's round */
    return x < 1 ? 1 : x > most ? most : (uint32_t)x;
}

/* The size to which the photo is resized, and where its corner lies in the model's input. */
static void place(uint32_t *rw, uint32_t *rh, int64_t *left, int64_t *top, uint32_t width,
                  uint32_t height, const pseg_preprocess *how)
{
    *rw = how->width;
    *rh = how->height;
    if (how->fit == PSEG_IMAGE_LETTERBOX) {
        double sx = (double)how->width / width, sy = (double)how->height / height,
               s = sx < sy ? sx : sy;
        *rw = fitted(width * s, how->width);
        *rh = fitted(height * s, how->height);
        *left = (how->width - *rw) / 2;
        *top = (how->height - *rh) / 2;
    } else if (how->fit == PSEG_IMAGE_CENTRE_CROP) {
        uint64_t edge = how->resize_edge, w = width, h = height;
        *rw = (uint32_t)(w <= h ? edge : edge * w / h);
        *rh = (uint32_t)(w <= h ? edge * h / w : edge);
        /* Floor, also where the photo is smaller than the crop. */
        *left = -(((int64_t)*rw - how->width) >> 1);
        *top = -(((int64_t)*rh - how->height) >> 1);
    } else {
        *left = *top = 0;
    }
}

pseg_status pseg_image_rect(float rect[4], uint32_t width, uint32_t height,
                            const pseg_preprocess *how, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t rw, rh;
    int64_t left, top;

    PSEG_REQUIRE(width && height && how->width && how->height, "sizes");
    PSEG_REQUIRE(how->fit != PSEG_IMAGE_CENTRE_CROP || how->resize_edge, "resize_edge");
    place(&rw, &rh, &left, &top, width, height, how);
    rect[0] = (float)(-(double)left * width / rw);
    rect[1] = (float)(-(double)top * height / rh);
    rect[2] = (float)(((double)how->width - (double)left) * width / rw);
    rect[3] = (float)(((double)how->height - (double)top) * height / rh);
out:
    return rc;
}

uint32_t preparer_shrink(uint32_t width, uint32_t height, const pseg_preprocess *how)
{
    uint32_t rw, rh, shrink = 8;
    int64_t left, top;

    if (width == 0 || height == 0 || (how->fit == PSEG_IMAGE_CENTRE_CROP && !how->resize_edge))
        return 1;
    place(&rw, &rh, &left, &top, width, height, how);
    while (shrink > 1 && (width < (uint64_t)2 * rw * shrink || height < (uint64_t)2 * rh * shrink))
        shrink /= 2;
    return shrink;
}

pseg_status preparer_init(preparer *p, const preparer_photo *photo, const pseg_preprocess *how,
                          pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *p = (preparer){.how = how, .width = photo->width, .height = photo->height};
    PSEG_REQUIRE(photo->w && photo->h && how->width && how->height, "sizes");
    PSEG_REQUIRE(how->fit != PSEG_IMAGE_CENTRE_CROP || how->resize_edge, "resize_edge");
    resample_plan plan = {.w = (double)photo->width / photo->shrink,
                          .h = photo->h,
                          .box_w = (double)photo->width / photo->shrink,
                          .box_h = (double)photo->height / photo->shrink};
    if (photo->is_first_column_partial)
        plan.box_x = photo->w - plan.box_w;
    if (photo->is_first_row_partial)
        plan.box_y = photo->h - plan.box_h;
    place(&plan.out_w, &plan.out_h, &p->left, &p->top, photo->width, photo->height, how);
    /* Only the part that the model sees: a line 1 pixel high would become gigabytes before its
     * middle is cut out. */
    plan.part.x = p->left < 0 ? (uint32_t)-p->left : 0;
    plan.part.y = p->top < 0 ? (uint32_t)-p->top : 0;
    int64_t w = how->width - p->left, h = how->height - p->top;
    plan.part.w = (uint32_t)(plan.out_w < w ? plan.out_w : w) - plan.part.x;
    plan.part.h = (uint32_t)(plan.out_h < h ? plan.out_h : h) - plan.part.y;
    PSEG_TRY(resampler_init(&p->resampler, &plan, NULL, err));
out:
    return rc;
}

void preparer_deinit(preparer *p)
{
    resampler_deinit(&p->resampler);
}

/* The window's bytes to numbers, the window at (x, y) of the model's input. */
static void normalise(float *chw, const preparer *p, const uint8_t *seen)
{
    const pseg_preprocess *how = p->how;
    size_t w = p->resampler.plan.part.w, h = p->resampler.plan.part.h;
    size_t x = p->left > 0 ? (size_t)p->left : 0, y = p->top > 0 ? (size_t)p->top : 0;
    size_t plane = (size_t)how->width * how->height;
    float table[3][256];

    for (size_t c = 0; c < 3; c++) {
        /* Outside a letterbox is 0 after normalisation; outside a crop is black before it. */
        float outside = how->fit == PSEG_IMAGE_CENTRE_CROP ? (0 - how->mean[c]) / how->std[c] : 0;
        for (int v = 0; v < 256; v++)
            table[c][v] = ((float)v / 255.0f - how->mean[c]) / how->std[c];
        for (size_t i = 0; i < plane && (w != how->width || h != how->height); i++)
            chw[c * plane + i] = outside;
    }
    for (size_t row = 0; row < h; row++) {
        float *restrict r = chw + (y + row) * how->width + x, *restrict g = r + plane,
                        *restrict b = g + plane;
        for (size_t i = 0; i < w; i++, seen += 3) {
            r[i] = table[0][seen[0]];
            g[i] = table[1][seen[1]];
            b[i] = table[2][seen[2]];
        }
    }
}

pseg_status preparer_finish(preparer *p, float *chw, float rect[4], pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const resample_plan *plan = &p->resampler.plan;
    const pseg_preprocess *how = p->how;
    uint8_t *seen = pseg_malloc(3 * (size_t)plan->part.w * plan->part.h);

    if (!seen)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to resize an image to %u x %u", plan->part.w,
                  plan->part.h);
    resampler_finish(&p->resampler, seen);
    normalise(chw, p, seen);
    PSEG_TRY(pseg_image_rect(rect, p->width, p->height, how, err));
out:
    pseg_free(seen);
    return rc;
}

pseg_status pseg_image_preprocess(float *chw, float rect[4], const pseg_image *photo,
                                  const pseg_preprocess *how, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    preparer p;

    preparer_photo whole = {photo->width, photo->height, photo->width, photo->height, 1,
                            false,        false};
    PSEG_TRY(preparer_init(&p, &whole, how, err));
    for (uint32_t y = 0; y < photo->height; y++)
        resampler_take_row(&p.resampler, y, photo->rgb + 3 * (size_t)photo->width * y);
    PSEG_TRY(preparer_finish(&p, chw, rect, err));
out:
    preparer_deinit(&p);
    return rc;
}
