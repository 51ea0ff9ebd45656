#include "common/image/resample.h"
#include "common/base/alloc.h"
#include "common/image/resample_impl.h"

#include <math.h>
#include <string.h>

/* ---- coefficients ---- */

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

static void axis_free(resample_axis *a)
{
    pseg_free(a->first);
    pseg_free(a->n);
    pseg_free(a->k);
    pseg_free(a->high);
    pseg_free(a->low);
}

/* A pass that keeps its size: one coefficient is 1 and the others are 0. What it begins with goes
 * to `first`. */
static bool is_copy(resample_axis *a, uint32_t n_out)
{
    uint32_t from = 0;

    for (uint32_t i = 0; i < n_out; i++) {
        const int32_t *k = a->k + (size_t)i * a->size;
        uint32_t at = 0;
        while (at + 1 < a->n[i] && k[at] == 0)
            at++;
        for (uint32_t j = at + 1; j < a->n[i]; j++)
            if (k[j] != 0)
                return false;
        if (i == 0)
            from = a->first[0] + at;
        if (k[at] != 1 << PSEG_RESAMPLE_BITS || a->first[i] + at != from + i)
            return false;
    }
    for (uint32_t i = 0; i < n_out; i++) {
        a->first[i] = from + i;
        a->n[i] = 1;
        a->k[(size_t)i * a->size] = 1 << PSEG_RESAMPLE_BITS;
    }
    return true;
}

/* One direction of a plan: `in` pixels, of which those from `begin` on, `box` long, become `out`.
 */
typedef struct direction {
    uint32_t in, out;
    double begin, box;
} direction;

/* For the n_out output positions from first_out on. */
static pseg_status axis_make(resample_axis *a, const direction *d, uint32_t first_out,
                             uint32_t n_out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    double scale = d->box / d->out, filter_scale = scale < 1 ? 1 : scale,
           support = 2 * filter_scale, shrink = 1 / filter_scale;
    double *w = NULL;

    a->size = (size_t)ceil(support) * 2 + 1;
    a->first = pseg_calloc(n_out, sizeof *a->first);
    a->n = pseg_calloc(n_out, sizeof *a->n);
    a->k = pseg_calloc((size_t)n_out * a->size, sizeof *a->k);
    w = pseg_calloc(a->size, sizeof *w);
    if (!a->first || !a->n || !a->k || !w)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to resize %u pixels to %u", d->in, d->out);
    for (uint32_t i = 0; i < n_out; i++) {
        double centre = d->begin + ((double)first_out + i + 0.5) * scale, sum = 0;
        int64_t low = (int64_t)(centre - support + 0.5), high = (int64_t)(centre + support + 0.5);
        low = low < 0 ? 0 : low;
        high = high > d->in ? d->in : high;
        a->first[i] = (uint32_t)low;
        a->n[i] = (uint32_t)(high - low);
        for (uint32_t j = 0; j < a->n[i]; j++) {
            w[j] = bicubic(((double)j + (double)low - centre + 0.5) * shrink);
            sum += w[j];
        }
        for (uint32_t j = 0; j < a->n[i]; j++) {
            double x = (sum != 0 ? w[j] / sum : w[j]) * (1 << PSEG_RESAMPLE_BITS);
            a->k[(size_t)i * a->size + j] = (int32_t)(x < 0 ? x - 0.5 : x + 0.5);
        }
    }
    a->is_copy = is_copy(a, n_out);
out:
    pseg_free(w);
    return rc;
}

/* Products of 16-bit numbers are what vector units add in pairs. |low| is at most 2^14 and at most
 * |k|, so that a sum of low * byte stays within 31 bits where the sum of k * byte does. */
static pseg_status axis_split(resample_axis *a, uint32_t n_out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    a->padded = (a->size + PSEG_RESAMPLE_STEP - 1) / PSEG_RESAMPLE_STEP * PSEG_RESAMPLE_STEP;
    a->high = pseg_calloc((size_t)n_out * a->padded, sizeof *a->high);
    a->low = pseg_calloc((size_t)n_out * a->padded, sizeof *a->low);
    if (!a->high || !a->low)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to resize to %u pixels", n_out);
    for (uint32_t i = 0; i < n_out; i++)
        for (uint32_t j = 0; j < a->n[i]; j++) {
            int32_t k = a->k[i * a->size + j], high = (k + (1 << 14)) >> 15;
            a->high[i * a->padded + j] = (int16_t)high;
            a->low[i * a->padded + j] = (int16_t)(k - high * (1 << 15));
        }
out:
    return rc;
}

/* ---- plain C ---- */

static bool always(void)
{
    return true;
}

static void split(int16_t *planes, size_t plane, const uint8_t *rgb, size_t n)
{
    int16_t *restrict r = planes, *restrict g = planes + plane, *restrict b = planes + 2 * plane;

    for (size_t i = 0; i < n; i++, rgb += 3) {
        r[i] = rgb[0];
        g[i] = rgb[1];
        b[i] = rgb[2];
    }
}

static void across(uint8_t *out, const int16_t *planes, size_t plane, uint32_t n_out,
                   const resample_axis *axis, uint32_t from)
{
    /* Said again for the compiler, which else makes a loop for the rest. */
    size_t n = axis->padded / PSEG_RESAMPLE_STEP * PSEG_RESAMPLE_STEP;

    for (uint32_t x = 0; x < n_out; x++, out += 3) {
        const int16_t *high = axis->high + x * n, *low = axis->low + x * n;
        for (int c = 0; c < 3; c++) {
            const int16_t *p = planes + (size_t)c * plane + (axis->first[x] - from);
            int32_t h = 0, l = 1 << (PSEG_RESAMPLE_BITS - 1);
            for (size_t j = 0; j < n; j++) {
                h += p[j] * high[j];
                l += p[j] * low[j];
            }
            out[c] = resample_clip((int32_t)((uint32_t)h * 32768U + (uint32_t)l));
        }
    }
}

static void down(uint8_t *out, const uint8_t *in, size_t stride, const int32_t *k, size_t n,
                 int32_t *sums)
{
    resample_down(out, in, stride, k, n, sums);
}

const resample_ops resample_portable = {"portable", always, split, across, down};

const resample_ops *const *resample_variants(size_t *n)
{
    static const resample_ops *const all[] = {
        &resample_portable,
#ifdef PSEG_RESAMPLE_AVX2
        &resample_avx2,
#endif
    };

    *n = sizeof all / sizeof *all;
    return all;
}

static const resample_ops *fastest(void)
{
    size_t n;
    const resample_ops *const *all = resample_variants(&n);

    while (n > 1 && !all[n - 1]->is_usable())
        n--;
    return all[n - 1];
}

/* ---- rows in, window out ---- */

pseg_status resampler_init(resampler *r, const resample_plan *plan, const resample_ops *ops,
                           pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t nx = plan->part.w, ny = plan->part.h;

    *r = (resampler){.plan = *plan, .ops = ops ? ops : fastest()};
    direction x = {plan->w, plan->out_w, plan->box_x, plan->box_w};
    direction y = {plan->h, plan->out_h, plan->box_y, plan->box_h};
    PSEG_TRY(axis_make(&r->across, &x, plan->part.x, nx, err));
    PSEG_TRY(axis_split(&r->across, nx, err));
    PSEG_TRY(axis_make(&r->down, &y, plan->part.y, ny, err));
    r->left = r->across.first[0];
    r->right = r->across.first[nx - 1] + r->across.n[nx - 1];
    r->top = r->down.first[0];
    r->bottom = r->down.first[ny - 1] + r->down.n[ny - 1];
    r->stride = 3 * (size_t)nx;
    r->plane = (size_t)(r->right - r->left) + r->across.padded;
    r->between = pseg_malloc(r->stride * (r->bottom - r->top) + 1);
    r->planes = pseg_calloc(3 * r->plane, sizeof *r->planes);
    r->sums = pseg_calloc(r->stride, sizeof *r->sums);
    if (!r->between || !r->planes || !r->sums)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to resize an image of %u x %u", plan->w,
                  plan->h);
out:
    return rc;
}

void resampler_deinit(resampler *r)
{
    axis_free(&r->across);
    axis_free(&r->down);
    pseg_free(r->between);
    pseg_free(r->planes);
    pseg_free(r->sums);
    *r = (resampler){0};
}

void resampler_take_row(resampler *r, uint32_t y, const uint8_t *rgb)
{
    if (y < r->top || y >= r->bottom)
        return;
    uint8_t *row = r->between + r->stride * (y - r->top), next = row[r->stride];
    if (r->across.is_copy) {
        memcpy(row, rgb + 3 * (size_t)r->left, r->stride);
        return;
    }
    r->ops->split(r->planes, r->plane, rgb + 3 * (size_t)r->left, r->right - r->left);
    r->ops->across(row, r->planes, r->plane, r->plan.part.w, &r->across, r->left);
    row[r->stride] = next; /* rows may come in any order */
}

void resampler_finish(resampler *r, uint8_t *out)
{
    if (r->down.is_copy) {
        memcpy(out, r->between, r->stride * r->plan.part.h);
        return;
    }
    for (uint32_t y = 0; y < r->plan.part.h; y++, out += r->stride)
        r->ops->down(out, r->between + r->stride * (r->down.first[y] - r->top), r->stride,
                     r->down.k + y * r->down.size, r->down.n[y], r->sums);
}
