/* Latency by percentile as an SVG: to the right the tail, a decade of rarity after the other. */
#include "common/base/buf.h"
#include "common/base/file.h"
#include "worker/apps/bench.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { W = 720, H = 360, LEFT = 70, RIGHT = 20, TOP = 30, BOTTOM = 45, POINTS = 400 };

typedef struct axes {
    double decades; /* on the x axis: 1 is 90 %, 2 is 99 %, ... */
    double top_ms;
} axes;

static double x_of(const axes *a, double decade)
{
    return LEFT + decade / a->decades * (W - LEFT - RIGHT);
}

static double y_of(const axes *a, double ms)
{
    return H - BOTTOM - ms / a->top_ms * (H - TOP - BOTTOM);
}

/* 1, 2 or 5 times a power of ten that is not below x. */
static double round_up(double x)
{
    double base = pow(10, floor(log10(x > 1e-6 ? x : 1e-6)));

    return x <= base ? base : x <= 2 * base ? 2 * base : x <= 5 * base ? 5 * base : 10 * base;
}

static pseg_status draw_axes(pseg_buf *b, const axes *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    static const char *const names[] = {"0 %",     "90 %",     "99 %",     "99.9 %",
                                        "99.99 %", "99.999 %", "99.9999 %"};

    for (int i = 0; i <= 5; i++) {
        double ms = a->top_ms * i / 5;
        PSEG_TRY(pseg_buf_printf(b, err, "<path d=\"M%d %.1fH%d\" stroke=\"#ddd\"/>\n", LEFT,
                                 y_of(a, ms), W - RIGHT));
        PSEG_TRY(pseg_buf_printf(b, err,
                                 "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g ms</text>\n",
                                 LEFT - 8, y_of(a, ms) + 4, ms));
    }
    for (int d = 0; d <= (int)a->decades && d < 7; d++) {
        PSEG_TRY(pseg_buf_printf(b, err, "<path d=\"M%.1f %dV%d\" stroke=\"#ddd\"/>\n", x_of(a, d),
                                 TOP, H - BOTTOM));
        PSEG_TRY(pseg_buf_printf(b, err,
                                 "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n",
                                 x_of(a, d), H - BOTTOM + 18, names[d]));
    }
out:
    return rc;
}

pseg_status bench_plot_latency(const char *path, const pseg_latency *h, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    double n = (double)pseg_latency_count(h);
    axes a = {.decades = n > 10 ? ceil(log10(n)) : 1,
              .top_ms = round_up(pseg_latency_percentile(h, 100))};
    pseg_buf b;

    pseg_buf_init(&b, 1 << 20);
    a.decades = a.decades > 6 ? 6 : a.decades;
    PSEG_TRY(
        pseg_buf_printf(&b, err,
                        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
                        "font-family=\"sans-serif\" "
                        "font-size=\"12\">\n<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n",
                        W, H, W, H));
    PSEG_TRY(pseg_buf_printf(
        &b, err,
        "<text x=\"%d\" y=\"18\">latency of %.0f jobs, by the share that is no slower</text>\n",
        LEFT, n));
    PSEG_TRY(draw_axes(&b, &a, err));
    PSEG_TRY(
        pseg_buf_printf(&b, err, "<path fill=\"none\" stroke=\"#06c\" stroke-width=\"2\" d=\""));
    for (int i = 0; i <= POINTS; i++) {
        double decade = a.decades * i / POINTS, p = 100 * (1 - pow(10, -decade));
        PSEG_TRY(pseg_buf_printf(&b, err, "%c%.1f %.1f", i ? 'L' : 'M', x_of(&a, decade),
                                 y_of(&a, pseg_latency_percentile(h, p))));
    }
    PSEG_TRY(pseg_buf_printf(&b, err, "\"/>\n</svg>\n"));
    PSEG_TRY(pseg_file_write(path, b.data, b.len, err));
out:
    pseg_buf_deinit(&b);
    return rc;
}
