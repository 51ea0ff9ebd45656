#include "worker/train/source.h"
#include "common/base/alloc.h"

#include <math.h>
#include <string.h>

void pseg_train_source_close(pseg_train_source *s)
{
    if (!s || !s->close)
        return;
    s->close(s->ud);
    *s = (pseg_train_source){0};
}

void pseg_train_mask_size(uint32_t *h, uint32_t *w, const pseg_head_config *head,
                          const pseg_train_sizes *sizes)
{
    *h = sizes->at_input ? head->height : head->gh << head->n_upsample;
    *w = sizes->at_input ? head->width : head->gw << head->n_upsample;
}

/* Down one direction: out[i] = the mean of in over i's part; `step` numbers from one to the next,
 * and `lanes` of them side by side. */
static void average(float *out, size_t n_out, const float *in, size_t n_in, size_t lanes)
{
    double step = (double)n_in / (double)n_out;

    for (size_t i = 0; i < n_out; i++) {
        double from = (double)i * step, to = from + step;

        for (size_t c = 0; c < lanes; c++)
            out[i * lanes + c] = 0;
        for (size_t j = (size_t)from; j < n_in && (double)j < to; j++) {
            double share = fmin(to, (double)j + 1) - fmax(from, (double)j);

            for (size_t c = 0; c < lanes; c++)
                out[i * lanes + c] += (float)(share / step) * in[j * lanes + c];
        }
    }
}

pseg_status pseg_train_coarsen(float *out, uint32_t oh, uint32_t ow, const float *map, uint32_t h,
                               uint32_t w, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    float *across = pseg_malloc((size_t)h * ow * sizeof *across);

    if (!across)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a mask");
    for (uint32_t y = 0; y < h; y++)
        average(across + (size_t)y * ow, ow, map + (size_t)y * w, w, 1);
    average(out, oh, across, h, ow);
    for (size_t i = 0; i < (size_t)oh * ow; i++)
        out[i] = out[i] > 1 ? 1 : out[i];
out:
    pseg_free(across);
    return rc;
}

pseg_status pseg_train_area(float *out, uint32_t oh, uint32_t ow, const uint8_t *mask,
                            uint8_t value, uint32_t h, uint32_t w, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    float *row = pseg_malloc(w * sizeof *row);
    float *across = pseg_malloc((size_t)h * ow * sizeof *across);

    if (!row || !across)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a mask");
    for (uint32_t y = 0; y < h; y++) {
        for (uint32_t x = 0; x < w; x++)
            row[x] = mask[(size_t)y * w + x] == value ? 1 : 0;
        average(across + (size_t)y * ow, ow, row, w, 1);
    }
    average(out, oh, across, h, ow);
    /* A whole part adds up to 1 but for rounding. */
    for (size_t i = 0; i < (size_t)oh * ow; i++)
        out[i] = out[i] > 1 ? 1 : out[i];
out:
    pseg_free(row);
    pseg_free(across);
    return rc;
}
