#include "worker/model/interpolate.h"
#include "common/base/alloc.h"

#include <math.h>
#include <string.h>

/* For one output place: n weights from the source place `first` on. */
typedef struct taps {
    uint32_t first, n;
    double *weight; /* n, borrowed from one block */
} taps;

/* Keys' cubic kernel. PyTorch takes a = -0.75 without antialiasing, -0.5 with it. */
static double cubic(double x, double a)
{
    x = fabs(x);
    if (x < 1)
        return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2)
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
    return 0;
}

/* Four taps around (i + 1/2) * scale - 1/2; those outside count for the border's place. */
static void plain_taps(taps *t, uint32_t i, uint32_t out_n, uint32_t n)
{
    double at = (i + 0.5) * n / out_n - 0.5, base = floor(at);
    int64_t first = (int64_t)base - 1, lo = first < 0 ? 0 : first;
    int64_t hi = first + 3 > (int64_t)n - 1 ? (int64_t)n - 1 : first + 3;

    if (lo > (int64_t)n - 1)
        lo = (int64_t)n - 1;
    t->first = (uint32_t)lo;
    t->n = (uint32_t)(hi - lo + 1);
    memset(t->weight, 0, t->n * sizeof *t->weight);
    for (int64_t k = 0; k < 4; k++) {
        int64_t place = first + k;
        place = place < lo ? lo : place > hi ? hi : place;
        t->weight[place - lo] += cubic(at - base + 1 - (double)k, -0.75);
    }
}

/* ATen's _upsample_bicubic2d_aa: the kernel is as wide as the scale, weights sum to one. */
static void wide_taps(taps *t, uint32_t i, uint32_t out_n, uint32_t n)
{
    double scale = (double)n / out_n, wide = scale > 1 ? scale : 1, support = 2 * wide;
    double centre = scale * (i + 0.5), sum = 0;
    int64_t first = (int64_t)(centre - support + 0.5), end = (int64_t)(centre + support + 0.5);

    first = first < 0 ? 0 : first;
    end = end > (int64_t)n ? (int64_t)n : end;
    t->first = (uint32_t)first;
    t->n = (uint32_t)(end - first);
    for (uint32_t k = 0; k < t->n; k++) {
        t->weight[k] = cubic(((double)(k + first) - centre + 0.5) / wide, -0.5);
        sum += t->weight[k];
    }
    for (uint32_t k = 0; k < t->n; k++)
        t->weight[k] /= sum;
}

/* Taps for all out_n places; caller frees *out and *block. */
static pseg_status taps_new(taps **out, double **block, uint32_t out_n, uint32_t n, bool is_wide,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t each = is_wide && n > out_n ? 4 * ((size_t)n / out_n + 1) + 2 : 6;

    *out = pseg_calloc(out_n, sizeof **out);
    *block = pseg_calloc((size_t)out_n * each, sizeof **block);
    if (!*out || !*block)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to resize position embeddings");
    for (uint32_t i = 0; i < out_n; i++) {
        (*out)[i].weight = *block + i * each;
        if (is_wide)
            wide_taps(&(*out)[i], i, out_n, n);
        else
            plain_taps(&(*out)[i], i, out_n, n);
    }
out:
    return rc;
}

pseg_status pseg_interpolate_bicubic(float *out, uint32_t out_h, uint32_t out_w, const float *src,
                                     uint32_t h, uint32_t w, uint32_t c, bool is_antialiased,
                                     pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    taps *rows = NULL, *cols = NULL;
    double *row_block = NULL, *col_block = NULL, *sum = NULL;

    if (out_h == h && out_w == w) {
        memcpy(out, src, (size_t)h * w * c * sizeof *out);
        goto out;
    }
    PSEG_TRY(taps_new(&rows, &row_block, out_h, h, is_antialiased, err));
    PSEG_TRY(taps_new(&cols, &col_block, out_w, w, is_antialiased, err));
    sum = pseg_calloc(c, sizeof *sum);
    if (!sum)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to resize position embeddings");
    for (uint32_t y = 0; y < out_h; y++)
        for (uint32_t x = 0; x < out_w; x++) {
            memset(sum, 0, c * sizeof *sum);
            for (uint32_t j = 0; j < rows[y].n; j++)
                for (uint32_t i = 0; i < cols[x].n; i++) {
                    const float *from =
                        src + ((size_t)(rows[y].first + j) * w + cols[x].first + i) * c;
                    double weight = rows[y].weight[j] * cols[x].weight[i];
                    for (uint32_t k = 0; k < c; k++)
                        sum[k] += weight * (double)from[k];
                }
            float *to = out + ((size_t)y * out_w + x) * c;
            for (uint32_t k = 0; k < c; k++)
                to[k] = (float)sum[k];
        }
out:
    pseg_free(rows);
    pseg_free(cols);
    pseg_free(row_block);
    pseg_free(col_block);
    pseg_free(sum);
    return rc;
}
