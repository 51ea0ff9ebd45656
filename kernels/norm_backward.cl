/* Gradients of normalisations. With xh = (x - mean) / deviation, z = xh w + b, out = act(z), g the
 * gradient of out and d = g act'(z):
 *
 *     gradient of w: sum d xh        of b: sum d
 *     gradient of x: (d w - mean(d w) - xh mean(d w xh)) / deviation
 *
 * with means over what was normalised together. Statistics are computed again, as in norm.cl, and kept
 * in `work` for the kernels that follow. Sums for w and b are taken in pieces, and pieces summed by
 * reduce.cl. Row kernels have norm.cl's work-groups, the others dimensions as in pointwise.cl. */

#define FOR_CHANNELS(c, n)                                                                        \
    for (uint c = (uint)get_global_id(0) * FV; c < (n); c += (uint)get_global_size(0) * FV)
#define FOR_ROWS(r, n) for (uint r = get_global_id(1); r < (n); r += (uint)get_global_size(1))

#if PSEG_CPU
#define FOR_GROUPS(r, n) for (uint r = get_group_id(0); r < (n); r += (uint)get_num_groups(0))
#else
#define FOR_GROUPS(r, n) uint r = get_group_id(0);
#endif

static inline void put(fv v, gfloat *to, uint n, uint add)
{
    if (add)
        v += fv_load(to, n);
    fv_store(v, to, n);
}

/* d of n channels. */
static inline fv through_act(fv g, fv xh, gcfloat *w, gcfloat *b, uint n,
                             const pseg_norm_grad_params *p)
{
    if (p->act == ACT_NONE)
        return g;
    return g * fv_act_grad(p->flags & HAS_AFFINE ? xh * fv_load(w, n) + fv_load(b, n) : xh, p->act);
}

static inline float inverse_deviation(float var, float eps)
{
    return 1.0f / sqrt((var < 0.0f ? 0.0f : var) + eps);
}

/* ---- layernorm: work holds mean and 1 / deviation of each row ------------------------------- */

__kernel void layernorm_stats(gfloat *work, gcfloat *x, const pseg_norm_grad_params p,
                              __local float *tmp)
{
    uint step = (uint)get_local_size(0) * FV, first = (uint)get_local_id(0) * FV;

    FOR_GROUPS(r, p.rows)
    {
        uint n = r < p.rows ? p.c : 0;
        gcfloat *row = x + p.x_off + r * p.x_stride;
        fv sum = (fv)(0.0f), squares = (fv)(0.0f);

        for (uint c = first; c < n; c += step)
            sum += fv_load(row + c, n - c);
        float mean = group_sum(fv_sum(sum), tmp) / (float)p.c;
        sum = (fv)(0.0f);
        for (uint c = first; c < n; c += step) {
            fv d = fv_first(fv_load(row + c, n - c) - mean, n - c);

            sum += d;
            squares += d * d;
        }
        float shift = group_sum(fv_sum(sum), tmp) / (float)p.c;
        float var = group_sum(fv_sum(squares), tmp) / (float)p.c - shift * shift;
        if (n > 0 && first == 0) {
            work[p.stats_off + 2 * (ulong)r] = mean + shift;
            work[p.stats_off + 2 * (ulong)r + 1] = inverse_deviation(var, p.eps);
        }
    }
}

/* work[sums][piece] = {sum d xh, sum d} over a piece of the rows. */
__kernel void layernorm_params(gfloat *work, gcfloat *g, gcfloat *x, gcfloat *w, gcfloat *b,
                               const pseg_norm_grad_params p)
{
    FOR_ROWS (q, (p.rows + p.piece - 1) / p.piece) {
        uint last = min((q + 1) * p.piece, p.rows);
        gfloat *to = work + p.sums_off + (ulong)q * 2 * p.c;

        FOR_CHANNELS (c, p.c) {
            uint n = p.c - c;
            fv of_w = (fv)(0.0f), of_b = (fv)(0.0f);

            for (uint r = q * p.piece; r < last; r++) {
                gcfloat *stats = work + p.stats_off + 2 * (ulong)r;
                fv xh = (fv_load(x + p.x_off + r * p.x_stride + c, n) - stats[0]) * stats[1];
                fv d = through_act(fv_load(g + p.g_off + r * p.g_stride + c, n), xh, w + p.w_off + c,
                                   b + p.b_off + c, n, &p);

                of_w += d * xh;
                of_b += d;
            }
            fv_store(of_w, to + c, n);
            fv_store(of_b, to + p.c + c, n);
        }
    }
}

__kernel void layernorm_backward(gfloat *out, gcfloat *g, gcfloat *x, gcfloat *w, gcfloat *b,
                                 gcfloat *work, const pseg_norm_grad_params p, __local float *tmp)
{
    uint step = (uint)get_local_size(0) * FV, first = (uint)get_local_id(0) * FV;

    FOR_GROUPS(r, p.rows)
    {
        uint n = r < p.rows ? p.c : 0;
        gcfloat *row = x + p.x_off + r * p.x_stride, *gr = g + p.g_off + r * p.g_stride;
        gfloat *to = out + p.out_off + r * p.x_stride;
        float mean = n > 0 ? work[p.stats_off + 2 * (ulong)r] : 0.0f;
        float inv = n > 0 ? work[p.stats_off + 2 * (ulong)r + 1] : 0.0f;
        fv sum = (fv)(0.0f), dot = (fv)(0.0f);

        for (uint c = first; c < n; c += step) {
            fv xh = (fv_load(row + c, n - c) - mean) * inv;
            fv d = through_act(fv_load(gr + c, n - c), xh, w + p.w_off + c, b + p.b_off + c, n - c,
                               &p);

            if (p.flags & HAS_AFFINE)
                d *= fv_load(w + p.w_off + c, n - c);
            d = fv_first(d, n - c);
            sum += d;
            dot += d * xh;
        }
        float of_d = group_sum(fv_sum(sum), tmp) / (float)p.c;
        float of_dx = group_sum(fv_sum(dot), tmp) / (float)p.c;
        for (uint c = first; c < n; c += step) {
            fv xh = (fv_load(row + c, n - c) - mean) * inv;
            fv d = through_act(fv_load(gr + c, n - c), xh, w + p.w_off + c, b + p.b_off + c, n - c,
                               &p);

            if (p.flags & HAS_AFFINE)
                d *= fv_load(w + p.w_off + c, n - c);
            put((d - of_d - xh * of_dx) * inv, to + c, n - c, p.add);
        }
    }
}

/* ---- groupnorm ------------------------------------------------------------------------------
 *
 * Sums go down the columns of a sample, channel by channel, whole vectors of channels at a time;
 * small kernels sum the channels of a group and give the result to each of them, so that a vector
 * need not know where groups begin. work, for each sample:
 *
 *     stats: mean | 1 / deviation | mean(d w) | mean(d w xh)     each of C
 *     sums:  two of C, for the small kernels */

#define STAT(b, k) (p.stats_off + ((ulong)(b) * 4 + (k)) * p.c)
#define SUMS(b, k) (p.sums_off + ((ulong)(b) * 2 + (k)) * p.c)

/* Sums of x (is_first), or of x - mean and its square. */
__kernel void groupnorm_sums(gfloat *work, gcfloat *x, const pseg_norm_grad_params p)
{
    bool is_first = p.piece == 0;

    FOR_ROWS (b, p.batch)
        FOR_CHANNELS (c, p.c) {
            uint n = p.c - c;
            gcfloat *at = x + p.x_off + (ulong)b * p.hw * p.c + c;
            fv sum = (fv)(0.0f), squares = (fv)(0.0f);
            fv mean = is_first ? (fv)(0.0f) : fv_load(work + STAT(b, 0) + c, n);

            for (uint t = 0; t < p.hw; t++, at += p.c) {
                fv d = fv_load(at, n) - mean;

                sum += d;
                squares += d * d;
            }
            fv_store(sum, work + SUMS(b, 0) + c, n);
            fv_store(squares, work + SUMS(b, 1) + c, n);
        }
}

/* The mean, roughly (is_first), or what it lacks and the deviation. One lane a channel. */
__kernel void groupnorm_stats(gfloat *work, const pseg_norm_grad_params p)
{
    uint cg = p.c / p.groups;
    float count = (float)cg * (float)p.hw;

    FOR_ROWS (b, p.batch)
        for (uint c = get_global_id(0); c < p.c; c += (uint)get_global_size(0)) {
            float sum = 0.0f, squares = 0.0f;

            for (uint i = c / cg * cg; i < c / cg * cg + cg; i++) {
                sum += work[SUMS(b, 0) + i];
                squares += work[SUMS(b, 1) + i];
            }
            sum /= count;
            if (p.piece == 0) {
                work[STAT(b, 0) + c] = sum;
            } else {
                work[STAT(b, 0) + c] += sum;
                work[STAT(b, 1) + c] = inverse_deviation(squares / count - sum * sum, p.eps);
            }
        }
}

/* Sums of d xh and d. */
__kernel void groupnorm_params(gfloat *work, gcfloat *g, gcfloat *x, gcfloat *w, gcfloat *b,
                               const pseg_norm_grad_params p)
{
    FOR_ROWS (s, p.batch)
        FOR_CHANNELS (c, p.c) {
            uint n = p.c - c;
            ulong at = (ulong)s * p.hw * p.c + c;
            fv of_w = (fv)(0.0f), of_b = (fv)(0.0f);
            fv mean = fv_load(work + STAT(s, 0) + c, n), inv = fv_load(work + STAT(s, 1) + c, n);

            for (uint t = 0; t < p.hw; t++, at += p.c) {
                fv xh = (fv_load(x + p.x_off + at, n) - mean) * inv;
                fv d = through_act(fv_load(g + p.g_off + at, n), xh, w + p.w_off + c,
                                   b + p.b_off + c, n, &p);

                of_w += d * xh;
                of_b += d;
            }
            fv_store(of_w, work + SUMS(s, 0) + c, n);
            fv_store(of_b, work + SUMS(s, 1) + c, n);
        }
}

/* Means of d w and d w xh over a group. One lane a channel. */
__kernel void groupnorm_means(gfloat *work, gcfloat *w, const pseg_norm_grad_params p)
{
    uint cg = p.c / p.groups;
    float count = (float)cg * (float)p.hw;

    FOR_ROWS (b, p.batch)
        for (uint c = get_global_id(0); c < p.c; c += (uint)get_global_size(0)) {
            float sum = 0.0f, dot = 0.0f;

            for (uint i = c / cg * cg; i < c / cg * cg + cg; i++) {
                sum += w[p.w_off + i] * work[SUMS(b, 1) + i];
                dot += w[p.w_off + i] * work[SUMS(b, 0) + i];
            }
            work[STAT(b, 2) + c] = sum / count;
            work[STAT(b, 3) + c] = dot / count;
        }
}

__kernel void groupnorm_backward(gfloat *out, gcfloat *g, gcfloat *x, gcfloat *w, gcfloat *b,
                                 gcfloat *work, const pseg_norm_grad_params p)
{
    FOR_ROWS (r, p.batch * p.hw) {
        uint s = r / p.hw;

        FOR_CHANNELS (c, p.c) {
            uint n = p.c - c;
            ulong at = (ulong)r * p.c + c;
            fv inv = fv_load(work + STAT(s, 1) + c, n);
            fv xh = (fv_load(x + p.x_off + at, n) - fv_load(work + STAT(s, 0) + c, n)) * inv;
            fv d = through_act(fv_load(g + p.g_off + at, n), xh, w + p.w_off + c, b + p.b_off + c, n,
                               &p);

            d = d * fv_load(w + p.w_off + c, n) - fv_load(work + STAT(s, 2) + c, n) -
                xh * fv_load(work + STAT(s, 3) + c, n);
            put(d * inv, out + p.out_off + at, n, p.add);
        }
    }
}

/* ---- l2norm: y = x / norm; (g - y (y . g)) / norm, and g / eps where eps was the divisor ------ */

__kernel void l2norm_backward(gfloat *out, gcfloat *g, gcfloat *x, const pseg_rows_grad_params p,
                              __local float *tmp)
{
    uint step = (uint)get_local_size(0) * FV, first = (uint)get_local_id(0) * FV;

    FOR_GROUPS(r, p.rows)
    {
        uint n = r < p.rows ? (uint)p.c : 0;
        gcfloat *row = x + p.x_off + (ulong)r * p.c, *gr = g + p.g_off + (ulong)r * p.c;
        gfloat *to = out + p.out_off + (ulong)r * p.c;
        fv sum = (fv)(0.0f), dot = (fv)(0.0f);

        for (uint c = first; c < n; c += step) {
            fv v = fv_load(row + c, n - c);

            sum += v * v;
        }
        float norm = sqrt(group_sum(fv_sum(sum), tmp));
        bool is_eps = norm < p.eps;
        float inv = 1.0f / (is_eps ? p.eps : norm);
        for (uint c = first; c < n; c += step)
            dot += fv_load(row + c, n - c) * inv * fv_load(gr + c, n - c);
        float along = group_sum(fv_sum(dot), tmp);
        along = is_eps ? 0.0f : along;
        for (uint c = first; c < n; c += step)
            put((fv_load(gr + c, n - c) - fv_load(row + c, n - c) * inv * along) * inv, to + c,
                n - c, p.add);
    }
}
