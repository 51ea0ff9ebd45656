#include "worker/data/arrays.h"
#include "common/base/alloc.h"

#include <math.h>
#include <string.h>

_Static_assert((int)PSEG_IMAGE_SQUASH == (int)PSEG_MODEL_SQUASH &&
                   (int)PSEG_IMAGE_LETTERBOX == (int)PSEG_MODEL_LETTERBOX &&
                   (int)PSEG_IMAGE_CENTRE_CROP == (int)PSEG_MODEL_CENTRE_CROP,
               "the fits of model and image");

void pseg_data_preprocess_of(pseg_preprocess *out, const pseg_model_info *info)
{
    *out = (pseg_preprocess){.fit = (pseg_image_fit)info->fit,
                             .width = info->width,
                             .height = info->height,
                             .resize_edge = info->resize_edge};
    memcpy(out->mean, info->mean, sizeof out->mean);
    memcpy(out->std, info->std, sizeof out->std);
}

/* ---- input ----------------------------------------------------------------------------------- */

static void mirror_image(pseg_image *i)
{
    for (uint32_t y = 0; y < i->height; y++) {
        uint8_t *a = i->rgb + 3 * (size_t)i->width * y, *b = a + 3 * ((size_t)i->width - 1);
        for (; a < b; a += 3, b -= 3)
            for (int c = 0; c < 3; c++) {
                uint8_t t = a[c];
                a[c] = b[c];
                b[c] = t;
            }
    }
}

pseg_status pseg_data_make_input(float *chw, uint32_t *width, uint32_t *height,
                                 const pseg_data_bytes *file, const pseg_preprocess *how,
                                 bool is_mirrored, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_image_limits limits = PSEG_IMAGE_LIMITS_DEFAULT;
    pseg_image_prepared p;
    pseg_image *i = NULL;
    float rect[4];

    if (!is_mirrored) {
        PSEG_TRY(pseg_image_prepare(&p, chw, (pseg_image_file){file->data, file->len}, &limits, how,
                                    err));
        *width = p.width;
        *height = p.height;
    } else {
        PSEG_TRY(pseg_image_decode(&i, file->data, file->len, &limits, err));
        mirror_image(i);
        PSEG_TRY(pseg_image_preprocess(chw, rect, i, how, err));
        *width = i->width;
        *height = i->height;
    }
out:
    pseg_image_free(i);
    return rc;
}

/* ---- target ---------------------------------------------------------------------------------- */

/* Cell edges of the grid in photo pixels, cut to the photo: n + 1 of them. */
static void make_edges(double *edge, uint32_t n, double lo, double hi, double most)
{
    for (uint32_t i = 0; i <= n; i++) {
        double e = lo + (hi - lo) * i / n;
        edge[i] = e < 0 ? 0 : e > most ? most : e;
    }
}

/* sum[g] += share * (pixels of the row inside cell column g). */
static void add_row(double *sum, uint32_t gw, const uint8_t *row, uint32_t width, const double *x,
                    double share)
{
    uint64_t before = 0; /* pixels inside in row[0..at) */
    uint32_t at = 0;
    double last = 0;

    for (uint32_t g = 0; g <= gw; g++) {
        uint32_t whole = (uint32_t)x[g];
        for (; at < whole; at++)
            before += row[at];
        double upto = (double)before + (whole < width ? (x[g] - whole) * row[whole] : 0);
        if (g)
            sum[g - 1] += share * (upto - last);
        last = upto;
    }
}

static void add_mask(double *sum, uint32_t gw, uint32_t gh, const pseg_mask *m, const double *x,
                     const double *y)
{
    for (uint32_t g = 0; g < gh; g++) {
        uint32_t first = (uint32_t)y[g], end = (uint32_t)ceil(y[g + 1]);
        for (uint32_t row = first; row < end; row++) {
            double top = row < y[g] ? y[g] : row, low = row + 1.0 > y[g + 1] ? y[g + 1] : row + 1.0;
            if (row >= m->box_y && row < m->box_y + m->box_height && low > top)
                add_row(sum + (size_t)g * gw, gw, m->data + (size_t)row * m->width, m->width, x,
                        low - top);
        }
    }
}

pseg_status pseg_data_make_target(float *out, uint32_t gw, uint32_t gh, const pseg_mask *m,
                                  const pseg_preprocess *how, bool is_mirrored, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    double *sum = NULL, *x = NULL, *y = NULL, cell;
    float rect[4];

    PSEG_REQUIRE(gw && gh && (uint64_t)gw * gh <= 1u << 26, "grid");
    PSEG_TRY(pseg_image_rect(rect, m->width, m->height, how, err));
    sum = pseg_calloc((size_t)gw * gh, sizeof *sum);
    x = pseg_calloc((size_t)gw + 1, sizeof *x);
    y = pseg_calloc((size_t)gh + 1, sizeof *y);
    if (!sum || !x || !y)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a target of %u x %u", gw, gh);
    /* The mirrored grid over the mask as it is; cells are exchanged when they are written. */
    if (is_mirrored)
        make_edges(x, gw, m->width - (double)rect[2], m->width - (double)rect[0], m->width);
    else
        make_edges(x, gw, rect[0], rect[2], m->width);
    make_edges(y, gh, rect[1], rect[3], m->height);
    add_mask(sum, gw, gh, m, x, y);
    cell = ((double)rect[2] - rect[0]) / gw * ((double)rect[3] - rect[1]) / gh;
    for (uint32_t r = 0; r < gh; r++)
        for (uint32_t c = 0; c < gw; c++) {
            double v = sum[(size_t)r * gw + (is_mirrored ? gw - 1 - c : c)] / cell;
            out[(size_t)r * gw + c] = v > 1 ? 1.0f : (float)v;
        }
out:
    pseg_free(sum);
    pseg_free(x);
    pseg_free(y);
    return rc;
}
