/* Muon: momentum, and what makes an update of it whose singular values are all about one. Products are
 * gemm.cl's; worker/train/muon.h has the formulas.
 *
 * A matrix [n, k] lies packed as a weight (gemm.cl), line by line of 32: line (panel, j) holds column
 * j of rows 32 panel .. 32 panel + 31. Beside it, row by row, as x [rows, cols] with rows <= cols: so
 * it is the matrix itself or, TURNED, its transpose. Dimension 1 strides over lines, dimension 0 over
 * what a line holds; any global size is right. */

#define FOR_LINES(r, n) for (uint r = get_global_id(1); r < (n); r += (uint)get_global_size(1))
#define FOR_EACH(i, n)  for (uint i = get_global_id(0); i < (n); i += (uint)get_global_size(0))
#define LINE 1024u /* of numbers that lie one behind the other */

/* grad clipped as AdamW's is; mean = beta mean + (1 - beta) grad; out = beta mean + (1 - beta) grad,
 * with the new mean (Nesterov). Nothing where the gradient's norm is no number. */
__kernel void muon_momentum(gfloat *out, gfloat *mean, gcfloat *grad, gcfloat *norm,
                            const pseg_muon_params p)
{
    float scale = norm[p.norm_off + 1];

    if (norm[p.norm_off + 2] == 0.0f)
        return;
    FOR_LINES (r, (p.n + LINE - 1) / LINE)
        FOR_EACH (c, LINE) {
            uint i = r * LINE + c;

            if (i >= p.n)
                break;
            float g = grad[p.grad_off + i] * scale, m = mean[p.mean_off + i];

            m += (g - m) * (1.0f - p.beta);
            mean[p.mean_off + i] = m;
            out[i] = g + (m - g) * p.beta;
        }
}

/* Where number `lane` of line r lies in x; rows past n of the last panel lie nowhere. */
static inline bool place_of(ulong *at, uint r, uint lane, const pseg_muon_params *p)
{
    uint row = r / p->k * PANEL + lane, col = r % p->k;

    *at = p->flags & TURNED ? (ulong)col * p->n + row : (ulong)row * p->k + col;
    return row < p->n;
}

static inline uint lines_of(const pseg_muon_params *p)
{
    return (p->n + PANEL - 1) / PANEL * p->k;
}

/* x = the packed matrix, divided by its norm. */
__kernel void muon_unpack(gfloat *x, gcfloat *packed, gcfloat *norm, const pseg_muon_params p)
{
    float scale = 1.0f / (norm[0] + 1e-7f);

    FOR_LINES (r, lines_of(&p))
        FOR_EACH (lane, PANEL) {
            ulong at;

            if (place_of(&at, r, lane, &p))
                x[at] = packed[(ulong)r * PANEL + lane] * scale;
        }
}

/* packed [n, k] = x, or its transpose. */
__kernel void muon_pack(gfloat *packed, gcfloat *x, const pseg_muon_params p)
{
    FOR_LINES (r, lines_of(&p))
        FOR_EACH (lane, PANEL) {
            ulong at;
            bool is_there = place_of(&at, r, lane, &p);

            packed[(ulong)r * PANEL + lane] = is_there ? x[at] : 0.0f;
        }
}

/* out = alpha x + beta y, of n numbers; out may be either. */
__kernel void muon_mix(gfloat *out, gcfloat *x, gcfloat *y, const pseg_muon_params p)
{
    FOR_LINES (r, (p.n + LINE - 1) / LINE)
        for (uint c = (uint)get_global_id(0) * FV; c < LINE; c += (uint)get_global_size(0) * FV) {
            uint i = r * LINE + c;

            if (i >= p.n)
                break;
            fv_store(fv_load(x + i, p.n - i) * p.alpha + fv_load(y + i, p.n - i) * p.beta, out + i,
                     p.n - i);
        }
}

/* The weight: value = alpha value - beta x, and its slow average. */
__kernel void muon_apply(gfloat *value, gfloat *ema, gcfloat *x, gcfloat *norm,
                         const pseg_muon_params p)
{
    if (norm[p.norm_off + 2] == 0.0f)
        return;
    FOR_LINES (r, lines_of(&p))
        FOR_EACH (lane, PANEL) {
            ulong at, i = (ulong)r * PANEL + lane;

            if (!place_of(&at, r, lane, &p))
                continue;
            float w = value[p.value_off + i] * p.alpha - x[at] * p.beta;

            value[p.value_off + i] = w;
            if (p.flags & HAS_EMA) {
                float e = ema[p.ema_off + i];

                ema[p.ema_off + i] = e + (w - e) * (1.0f - p.ema_keep);
            }
        }
}
