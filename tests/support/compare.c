#include "tests/support/compare.h"

#include <math.h>

bool pseg_compare_f32(pseg_compare *out, const float *got, const float *want, size_t n,
                      double abs_tol, double rel_tol, double nmse_tol)
{
    pseg_compare c = {.n = n};
    double sum_d2 = 0, sum_w2 = 0, sum_g2 = 0, sum_gw = 0, worst = -1;

    for (size_t i = 0; i < n; i++) {
        double g = got[i], w = want[i], d = fabs(g - w);
        if (isinf(g) && isinf(w) && signbit(g) == signbit(w))
            continue;
        if (!isfinite(d) || !(d <= abs_tol + rel_tol * fabs(w)))
            c.n_bad++;
        double badness = isfinite(d) ? d : INFINITY;
        if (badness > worst) {
            worst = badness;
            c.worst = i;
            c.worst_got = g;
            c.worst_want = w;
        }
        if (!isfinite(d)) {
            c.nmse = NAN;
            continue;
        }
        c.max_abs = fmax(c.max_abs, d);
        if (w != 0)
            c.max_rel = fmax(c.max_rel, d / fabs(w));
        sum_d2 += d * d;
        sum_w2 += w * w;
        sum_g2 += g * g;
        sum_gw += g * w;
    }
    if (!isnan(c.nmse))
        c.nmse = sum_d2 == 0 ? 0 : sum_d2 / sum_w2;
    c.cosine = sum_g2 > 0 && sum_w2 > 0 ? sum_gw / sqrt(sum_g2 * sum_w2) : sum_d2 == 0;
    *out = c;
    return c.n_bad == 0 && (nmse_tol < 0 || c.nmse <= nmse_tol);
}

void pseg_compare_print(FILE *f, const char *name, const pseg_compare *c)
{
    fprintf(f,
            "%s: n %zu bad %zu max_abs %.3g max_rel %.3g nmse %.3g cos %.9f worst [%zu] %.9g want "
            "%.9g\n",
            name, c->n, c->n_bad, c->max_abs, c->max_rel, c->nmse, c->cosine, c->worst,
            c->worst_got, c->worst_want);
}
