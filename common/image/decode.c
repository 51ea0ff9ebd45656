#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/image/header.h"
#include "common/image/prepare.h"

#include <string.h>
#include <vips/vips.h>

typedef int (*step_fn)(VipsImage *in, VipsImage **out);

/* libvips 8.14 converts the colours of a 16-bit picture by its profile to 8 bits, and leaves its
 * alpha channel at 16: such a picture becomes one of 8 bits first. */
static int alpha_fits(VipsImage *in, VipsImage **out)
{
    VipsInterpretation space = vips_image_get_interpretation(in);
    VipsImage *eight = NULL;

    if (!vips_image_hasalpha(in) || !vips_image_get_typeof(in, VIPS_META_ICC_NAME) ||
        (space != VIPS_INTERPRETATION_RGB16 && space != VIPS_INTERPRETATION_GREY16))
        return vips_copy(in, out, NULL);
    space = space == VIPS_INTERPRETATION_RGB16 ? VIPS_INTERPRETATION_sRGB : VIPS_INTERPRETATION_B_W;
    if (vips_cast(in, &eight, VIPS_FORMAT_UCHAR, "shift", TRUE, NULL))
        return -1;
    int rc = vips_copy(eight, out, "interpretation", space, NULL);
    g_object_unref(eight);
    return rc;
}

/* Is the embedded profile for as many channels as the picture has? ICC.1, 7.2.6: the colour space
 * stands at byte 16. libvips takes the first channel for a grey profile and keeps the others beside
 * it. */
static bool has_fitting_profile(VipsImage *in)
{
    int bands = vips_image_get_bands(in) - (vips_image_hasalpha(in) ? 1 : 0);
    const void *data;
    size_t n;

    if (!vips_image_get_typeof(in, VIPS_META_ICC_NAME) ||
        vips_image_get_blob(in, VIPS_META_ICC_NAME, &data, &n) || n < 20)
        return false;
    const char *space = (const char *)data + 16;
    return bands == (memcmp(space, "GRAY", 4) == 0 ? 1 : memcmp(space, "CMYK", 4) == 0 ? 4 : 3);
}

static int to_srgb(VipsImage *in, VipsImage **out)
{
    /* A profile that does not fit its pixels is worth less than none. Depth: libvips 8.14 gives 8
     * bits unless told, 8.16 what it got. */
    if (has_fitting_profile(in) &&
        vips_icc_transform(in, out, "srgb", "embedded", TRUE, "intent", VIPS_INTENT_PERCEPTUAL,
                           "depth", 8, NULL) == 0)
        return 0;
    vips_error_clear();
    return vips_colourspace(in, out, VIPS_INTERPRETATION_sRGB, NULL);
}

static int opaque(VipsImage *in, VipsImage **out)
{
    double white = 255;

    if (!vips_image_hasalpha(in))
        return vips_copy(in, out, NULL);
    VipsArrayDouble *background = vips_array_double_new(&white, 1);
    int rc = vips_flatten(in, out, "background", background, NULL);
    vips_area_unref(VIPS_AREA(background));
    return rc;
}

static int bytes(VipsImage *in, VipsImage **out)
{
    return vips_cast(in, out, VIPS_FORMAT_UCHAR, NULL);
}

/* Do rows become columns? */
static bool is_turned(int orientation)
{
    return orientation >= 5 && orientation <= 8;
}

/* Where pixel (x, y) of a stored picture of w x h lies in the upright one, counted in pixels. The
 * EXIF orientations: 1 as stored, 2 mirrored, 3 upside down, 4 both, 5 to 8 the same with rows and
 * columns exchanged. */
static int64_t upright_place(int orientation, int64_t w, int64_t h, int64_t x, int64_t y)
{
    switch (orientation) {
    case 2:
        return y * w + (w - 1 - x);
    case 3:
        return (h - 1 - y) * w + (w - 1 - x);
    case 4:
        return (h - 1 - y) * w + x;
    case 5:
        return x * h + y;
    case 6:
        return x * h + (h - 1 - y);
    case 7:
        return (w - 1 - x) * h + (h - 1 - y);
    case 8:
        return (w - 1 - x) * h + y;
    default:
        return y * w + x;
    }
}

/* Rows of the stored picture, n from y on; row i begins at rgb + i * stride. */
typedef void (*rows_fn)(void *ud, int y, int n, const uint8_t *rgb, size_t stride);

/* Hands over the rows as they are decoded, so that there is one copy of the picture in memory, not
 * one for each step, or none. */
static int read_rows(VipsImage *v, rows_fn rows, void *ud)
{
    enum { ROWS = 16 };
    int h = vips_image_get_height(v), rc = 0;
    VipsRegion *region = vips_region_new(v);

    if (!region)
        return -1;
    for (int top = 0; top < h && rc == 0; top += ROWS) {
        VipsRect r = {0, top, vips_image_get_width(v), h - top < ROWS ? h - top : ROWS};
        rc = vips_region_prepare(region, &r);
        if (rc == 0)
            rows(ud, top, r.height, VIPS_REGION_ADDR(region, 0, top),
                 (size_t)VIPS_REGION_LSKIP(region));
    }
    g_object_unref(region);
    return rc;
}

/* A whole upright picture, of a stored one of w x h. */
typedef struct whole {
    uint8_t *rgb;
    int orientation;
    int64_t w, h;
} whole;

/* Puts each pixel where it belongs. */
static void take_whole(void *ud, int y, int n, const uint8_t *rgb, size_t stride)
{
    const whole *p = ud;
    int64_t origin = upright_place(p->orientation, p->w, p->h, 0, 0);
    int64_t right = upright_place(p->orientation, p->w, p->h, 1, 0) - origin;
    int64_t below = upright_place(p->orientation, p->w, p->h, 0, 1) - origin;
    uint8_t *q = p->rgb + 3 * upright_place(p->orientation, p->w, p->h, 0, y);

    if (right == 1) {
        for (int i = 0; i < n; i++)
            memcpy(q + 3 * below * i, rgb + (size_t)i * stride, 3 * (size_t)p->w);
        return;
    }
    /* Column by column, whose pixels lie beside each other if rows become columns. */
    for (int64_t x = 0; x < p->w; x++, q += 3 * right)
        for (int i = 0; i < n; i++)
            memcpy(q + 3 * below * i, rgb + (size_t)i * stride + 3 * x, 3);
}

/* From what the file holds to 3 bands of 8 bits. Replaces *v, which is NULL or the caller's still
 * on failure. */
static pseg_status convert(VipsImage **v, attempt *a, pseg_err *err)
{
    static const step_fn steps[] = {alpha_fits, to_srgb, opaque, bytes};
    pseg_status rc = PSEG_OK;
    VipsImage *next = NULL;

    for (size_t k = 0; k < sizeof steps / sizeof *steps; k++) {
        if (steps[k](*v, &next))
            PSEG_TRY(attempt_failed(a, err));
        g_object_unref(*v);
        *v = next;
    }
    if (vips_image_get_bands(*v) != 3)
        PSEG_FAIL(PSEG_R_IMAGE_UNDECODABLE, 0,
                  "the %s image has %d channels after conversion; save it as RGB", a->info.format,
                  vips_image_get_bands(*v));
out:
    return rc;
}

/* The upright picture of a converted v. Caller frees. */
static pseg_status read_whole(pseg_image **out, VipsImage *v, int orientation, attempt *a,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int w = vips_image_get_width(v), h = vips_image_get_height(v);
    pseg_image *i = pseg_calloc(1, sizeof *i);

    if (i)
        i->rgb = pseg_malloc(3 * (size_t)w * (size_t)h);
    if (!i || !i->rgb)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an image of %d x %d", w, h);
    i->width = (uint32_t)(is_turned(orientation) ? h : w);
    i->height = (uint32_t)(is_turned(orientation) ? w : h);
    whole all = {i->rgb, orientation, w, h};
    if (read_rows(v, take_whole, &all))
        PSEG_TRY(attempt_failed(a, err));
    *out = i;
    i = NULL;
out:
    pseg_image_free(i);
    return rc;
}

static pseg_status decode(void *ud, attempt *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_image **out = ud;
    VipsImage *v = NULL;

    PSEG_TRY(attempt_open(&v, a, err));
    int orientation = vips_image_get_orientation(v);
    PSEG_TRY(convert(&v, a, err));
    PSEG_TRY(read_whole(out, v, orientation, a, err));
out:
    if (v)
        g_object_unref(v);
    return rc;
}

pseg_status pseg_image_decode(pseg_image **out, const void *data, size_t len,
                              const pseg_image_limits *limits, pseg_err *err)
{
    attempt a = {.data = data, .len = len, .limits = limits};

    *out = NULL;
    return attempt_run(decode, out, &a, err);
}

void pseg_image_free(pseg_image *i)
{
    if (!i)
        return;
    pseg_free(i->rgb);
    pseg_free(i);
}

/* ---- straight to a model's input ---- */

typedef struct job {
    pseg_image_prepared *out;
    float *chw;
    const pseg_preprocess *how;
    preparer preparer;
    int orientation;
    uint8_t *mirrored; /* a row; NULL: rows are taken as they are */
} job;

static void take_into(void *ud, int y, int n, const uint8_t *rgb, size_t stride)
{
    job *j = ud;
    size_t w = j->preparer.resampler.plan.w;
    int64_t begin = pseg_clock_mono_us();

    for (int i = 0; i < n; i++, rgb += stride) {
        uint32_t row = (uint32_t)(y + i);
        const uint8_t *from = rgb;
        if (j->mirrored) {
            for (size_t x = 0; x < w; x++)
                memcpy(j->mirrored + 3 * (w - 1 - x), rgb + 3 * x, 3);
            from = j->mirrored;
        }
        if (j->orientation == 3 || j->orientation == 4)
            row = j->preparer.resampler.plan.h - 1 - row;
        resampler_take_row(&j->preparer.resampler, row, from);
    }
    j->out->resize_us += pseg_clock_mono_us() - begin;
}

/* Rows go to the resampler as they are decoded, unless they are to become columns. */
static pseg_status read_and_resample(job *j, VipsImage *v, attempt *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_image *i = NULL;

    if (is_turned(j->orientation)) {
        PSEG_TRY(read_whole(&i, v, j->orientation, a, err));
        j->orientation = 1;
        take_into(j, 0, (int)i->height, i->rgb, 3 * (size_t)i->width);
        goto out;
    }
    if (j->orientation == 2 || j->orientation == 3) {
        j->mirrored = pseg_malloc(3 * (size_t)vips_image_get_width(v));
        if (!j->mirrored)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a row of %d pixels",
                      vips_image_get_width(v));
    }
    if (read_rows(v, take_into, j))
        PSEG_TRY(attempt_failed(a, err));
out:
    pseg_image_free(i);
    pseg_free(j->mirrored);
    j->mirrored = NULL;
    return rc;
}

/* What the rows of a stored picture of w x h will be once upright. */
static preparer_photo photo_of(const job *j, const attempt *a, int w, int h)
{
    bool turned = is_turned(j->orientation);
    int64_t width = turned ? h : w, corner = upright_place(j->orientation, w, h, 0, 0);

    return (preparer_photo){.width = a->info.width,
                            .height = a->info.height,
                            .w = (uint32_t)width,
                            .h = (uint32_t)(turned ? w : h),
                            .shrink = j->out->shrink,
                            .is_first_column_partial = corner % width != 0,
                            .is_first_row_partial = corner / width != 0};
}

static pseg_status prepare(void *ud, attempt *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    job *j = ud;
    VipsImage *v = NULL;
    int64_t begin = pseg_clock_mono_us();

    *j->out = (pseg_image_prepared){.shrink = 1};
    PSEG_TRY(attempt_open(&v, a, err));
    j->out->width = a->info.width;
    j->out->height = a->info.height;
    j->orientation = vips_image_get_orientation(v);
    if (j->how->may_shrink && strcmp(a->info.format, "JPEG") == 0)
        j->out->shrink = preparer_shrink(a->info.width, a->info.height, j->how);
    if (j->out->shrink > 1)
        PSEG_TRY(attempt_reopen_shrunk(&v, a, j->out->shrink, err));
    PSEG_TRY(convert(&v, a, err));
    preparer_photo photo = photo_of(j, a, vips_image_get_width(v), vips_image_get_height(v));
    PSEG_TRY(preparer_init(&j->preparer, &photo, j->how, err));
    PSEG_TRY(read_and_resample(j, v, a, err));
    int64_t read = pseg_clock_mono_us();
    PSEG_TRY(preparer_finish(&j->preparer, j->chw, j->out->rect, err));
    int64_t end = pseg_clock_mono_us();
    j->out->decode_us = read - begin - j->out->resize_us;
    j->out->resize_us += end - read;
out:
    preparer_deinit(&j->preparer);
    if (v)
        g_object_unref(v);
    return rc;
}

pseg_status pseg_image_prepare(pseg_image_prepared *out, float *chw, pseg_image_file file,
                               const pseg_image_limits *limits, const pseg_preprocess *how,
                               pseg_err *err)
{
    attempt a = {.data = file.data, .len = file.len, .limits = limits};
    job j = {.out = out, .chw = chw, .how = how};

    return attempt_run(prepare, &j, &a, err);
}
