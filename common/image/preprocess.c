/* From a photo to a model's numbers, the same on every machine. */
#include "common/image/image.h"
#include "common/base/alloc.h"

#include <math.h>
#include <string.h>

enum { PRECISION_BITS = 32 - 8 - 2 };

/* One pass: for each output position the first input and `size` coefficients, of which n count. */
typedef struct kernel {
    uint32_t *first, *n;
    int32_t *k; /* [out, size] */
    uint32_t size;
} kernel;

static double bicubic(double x)
{
    const double a = -0.5;

    x = fabs(x);
    if (x < 1)
        return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2)
        return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

static void kernel_free(kernel *k)
{
    pseg_free(k->first);
    pseg_free(k->n);
    pseg_free(k->k);
}

/* For the n_out output positions from first_out on, of `in` pixels resized to `out`. */
static pseg_status kernel_make(kernel *k, uint32_t in, uint32_t out, uint32_t first_out,
                               uint32_t n_out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    double scale = (double)in / out, filter_scale = scale < 1 ? 1 : scale,
           support = 2 * filter_scale, shrink = 1 / filter_scale;
    double *w = NULL;

    k->size = (uint32_t)ceil(support) * 2 + 1;
    k->first = pseg_calloc(n_out, sizeof *k->first);
    k->n = pseg_calloc(n_out, sizeof *k->n);
    k->k = pseg_calloc((size_t)n_out * k->size, sizeof *k->k);
    w = pseg_calloc(k->size, sizeof *w);
    if (!k->first || !k->n || !k->k || !w)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to resize %u pixels to %u", in, out);
    for (uint32_t i = 0; i < n_out; i++) {
        double centre = ((double)first_out + i + 0.5) * scale, sum = 0;
        int64_t low = (int64_t)(centre - support + 0.5), high = (int64_t)(centre + support + 0.5);
        low = low < 0 ? 0 : low;
        high = high > in ? in : high;
        k->first[i] = (uint32_t)low;
        k->n[i] = (uint32_t)(high - low);
        for (uint32_t j = 0; j < k->n[i]; j++) {
            w[j] = bicubic(((double)j + (double)low - centre + 0.5) * shrink);
            sum += w[j];
        }
        for (uint32_t j = 0; j < k->n[i]; j++) {
            double x = (sum != 0 ? w[j] / sum : w[j]) * (1 << PRECISION_BITS);
            k->k[(size_t)i * k->size + j] = (int32_t)(x < 0 ? x - 0.5 : x + 0.5);
        }
    }
out:
    pseg_free(w);
    return rc;
}

static uint8_t clip(int32_t x)
{
    x >>= PRECISION_BITS;
    return x < 0 ? 0 : x > 255 ? 255 : (uint8_t)x;
}

static void pass_across(uint8_t *out, const uint8_t *in, uint32_t w, uint32_t h, uint32_t out_w,
                        const kernel *k)
{
    for (uint32_t y = 0; y < h; y++, in += 3 * (size_t)w)
        for (uint32_t x = 0; x < out_w; x++, out += 3) {
            const int32_t *c = k->k + (size_t)x * k->size;
            const uint8_t *p = in + 3 * (size_t)k->first[x];
            int32_t r = 1 << (PRECISION_BITS - 1), g = r, b = r;
            for (uint32_t j = 0; j < k->n[x]; j++, p += 3) {
                r += p[0] * c[j];
                g += p[1] * c[j];
                b += p[2] * c[j];
            }
            out[0] = clip(r);
            out[1] = clip(g);
            out[2] = clip(b);
        }
}

/* in: rows from `top` on. Row by row into sums, so that memory is read in order. */
static void pass_down(uint8_t *out, const uint8_t *in, uint32_t stride, uint32_t top,
                      uint32_t out_h, const kernel *k, int32_t *sums)
{
    for (uint32_t y = 0; y < out_h; y++, out += stride) {
        for (uint32_t i = 0; i < stride; i++)
            sums[i] = 1 << (PRECISION_BITS - 1);
        for (uint32_t j = 0; j < k->n[y]; j++) {
            const uint8_t *row = in + (size_t)(k->first[y] + j - top) * stride;
            int32_t c = k->k[(size_t)y * k->size + j];
            for (uint32_t i = 0; i < stride; i++)
                sums[i] += row[i] * c;
        }
        for (uint32_t i = 0; i < stride; i++)
            out[i] = clip(sums[i]);
    }
}

/* A part of a resized picture, in its pixels. */
typedef struct window {
    uint32_t x, y, w, h;
} window;

/* The window `part` of in[h, w] resized to rw x rh, without the rest: a line 1 pixel high would
 * become gigabytes before its middle is cut out. A pass that keeps its size changes nothing (its
 * one coefficient is 1), so both are always made. */
static pseg_status resize_part(uint8_t *out, window part, uint32_t rw, uint32_t rh,
                               const uint8_t *in, uint32_t w, uint32_t h, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    kernel across = {0}, down = {0};
    uint8_t *between = NULL;
    int32_t *sums = NULL;

    PSEG_TRY(kernel_make(&across, w, rw, part.x, part.w, err));
    PSEG_TRY(kernel_make(&down, h, rh, part.y, part.h, err));
    /* Only the rows that the second pass reads. */
    uint32_t top = down.first[0], bottom = down.first[part.h - 1] + down.n[part.h - 1];
    between = pseg_malloc(3 * (size_t)part.w * (bottom - top));
    sums = pseg_calloc(3 * (size_t)part.w, sizeof *sums);
    if (!between || !sums)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to resize an image of %u x %u", w, h);
    pass_across(between, in + 3 * (size_t)w * top, w, bottom - top, part.w, &across);
    pass_down(out, between, 3 * part.w, top, part.h, &down, sums);
out:
    kernel_free(&across);
    kernel_free(&down);
    pseg_free(between);
    pseg_free(sums);
    return rc;
}

pseg_status pseg_image_resize(uint8_t *out, uint32_t out_w, uint32_t out_h, const uint8_t *in,
                              uint32_t w, uint32_t h, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_REQUIRE(w && h && out_w && out_h, "sizes");
    PSEG_TRY(resize_part(out, (window){0, 0, out_w, out_h}, out_w, out_h, in, w, h, err));
out:
    return rc;
}

static uint32_t fitted(double x, uint32_t most)
{
    x = rint(x); /* ties to even, as Python's round */
    return x < 1 ? 1 : x > most ? most : (uint32_t)x;
}

/* The size to which the photo is resized, and where its corner lies in the model's input. */
static void place(uint32_t *rw, uint32_t *rh, int64_t *left, int64_t *top, const pseg_image *p,
                  const pseg_preprocess *how)
{
    *rw = how->width;
    *rh = how->height;
    if (how->fit == PSEG_IMAGE_LETTERBOX) {
        double sx = (double)how->width / p->width, sy = (double)how->height / p->height,
               s = sx < sy ? sx : sy;
        *rw = fitted(p->width * s, how->width);
        *rh = fitted(p->height * s, how->height);
        *left = (how->width - *rw) / 2;
        *top = (how->height - *rh) / 2;
    } else if (how->fit == PSEG_IMAGE_CENTRE_CROP) {
        uint64_t edge = how->resize_edge, w = p->width, h = p->height;
        *rw = (uint32_t)(w <= h ? edge : edge * w / h);
        *rh = (uint32_t)(w <= h ? edge * h / w : edge);
        /* Floor, also where the photo is smaller than the crop. */
        *left = -(((int64_t)*rw - how->width) >> 1);
        *top = -(((int64_t)*rh - how->height) >> 1);
    } else {
        *left = *top = 0;
    }
}

pseg_status pseg_image_preprocess(float *chw, float rect[4], const pseg_image *photo,
                                  const pseg_preprocess *how, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t rw, rh;
    int64_t left, top;
    size_t plane = (size_t)how->width * how->height;
    uint8_t *seen = NULL;

    PSEG_REQUIRE(photo->width && photo->height && how->width && how->height, "sizes");
    PSEG_REQUIRE(how->fit != PSEG_IMAGE_CENTRE_CROP || how->resize_edge, "resize_edge");
    place(&rw, &rh, &left, &top, photo, how);
    window part = {.x = left < 0 ? (uint32_t)-left : 0, .y = top < 0 ? (uint32_t)-top : 0};
    part.w = (uint32_t)(rw < how->width - left ? rw : how->width - left) - part.x;
    part.h = (uint32_t)(rh < how->height - top ? rh : how->height - top) - part.y;
    seen = pseg_malloc(3 * (size_t)part.w * part.h);
    if (!seen)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to resize an image to %u x %u", part.w,
                  part.h);
    PSEG_TRY(resize_part(seen, part, rw, rh, photo->rgb, photo->width, photo->height, err));
    for (int c = 0; c < 3; c++) {
        /* Outside a letterbox is 0 after normalisation; outside a crop is black before it. */
        float table[256],
            outside = how->fit == PSEG_IMAGE_CENTRE_CROP ? (0 - how->mean[c]) / how->std[c] : 0;
        for (int v = 0; v < 256; v++)
            table[v] = ((float)v / 255.0f - how->mean[c]) / how->std[c];
        float *out = chw + (size_t)c * plane;
        for (int64_t y = 0; y < how->height; y++)
            for (int64_t x = 0; x < how->width; x++) {
                int64_t sx = x - left - part.x, sy = y - top - part.y;
                bool in = sx >= 0 && sy >= 0 && sx < part.w && sy < part.h;
                *out++ = in ? table[seen[3 * (sy * part.w + sx) + c]] : outside;
            }
    }
    rect[0] = (float)(-(double)left * photo->width / rw);
    rect[1] = (float)(-(double)top * photo->height / rh);
    rect[2] = (float)(((double)how->width - (double)left) * photo->width / rw);
    rect[3] = (float)(((double)how->height - (double)top) * photo->height / rh);
out:
    pseg_free(seen);
    return rc;
}
