/* What only training needs: the loss of a mask, the norm of all gradients, AdamW. worker/train/
 * kernels.h has the formulas.
 *
 * mask_loss and square_sums have one work-group a sample or chunk: one item on a CPU, 64 elsewhere,
 * that add up in a fixed order. The others stride over elements; any global size is right. */

#define STATS 8

/* log(1 + exp(-a)), a >= 0. */
static inline fv log_1p_exp(fv a)
{
    return log1p(fv_exp(-a));
}

static inline fv sigmoid(fv x)
{
    return 1.0f / (1.0f + fv_exp(-x));
}

static inline float sigmoid_1(float x)
{
    return 1.0f / (1.0f + exp(-x));
}

/* 1 where a > b, else 0. */
static inline fv is_above(fv a, float b)
{
    return select((fv)(0.0f), (fv)(1.0f), a > b);
}

__kernel void mask_loss(gfloat *stats, gcfloat *logits, gcfloat *target, gcfloat *weight,
                        gcfloat *iou, const pseg_loss_params p, __local float *tmp)
{
    uint b = get_group_id(0), n = b < p.batch ? p.n : 0;
    uint step = (uint)get_local_size(0) * FV, first = (uint)get_local_id(0) * FV;
    gcfloat *x = logits + p.logits_off + (ulong)b * p.n;
    gcfloat *t = target + p.target_off + (ulong)b * p.n;
    fv bce = (fv)(0.0f), pt = (fv)(0.0f), ps = (fv)(0.0f), ts = (fv)(0.0f);
    fv both = (fv)(0.0f), either = (fv)(0.0f);

    for (uint i = first; i < n; i += step) {
        uint left = n - i;
        fv xi = fv_load(x + i, left), ti = fv_load(t + i, left);
        fv pi = fv_first(sigmoid(xi), left);
        fv on = is_above(xi, 0.0f), want = is_above(ti, 0.5f);

        bce += fv_first(select(xi, (fv)(0.0f), xi < 0.0f) - xi * ti + log_1p_exp(fabs(xi)), left);
        pt += pi * ti;
        ps += pi;
        ts += ti;
        both += on * want;
        either += on + want - on * want;
    }
    float bce_sum = group_sum(fv_sum(bce), tmp);
    float pt_sum = group_sum(fv_sum(pt), tmp);
    float sum = group_sum(fv_sum(ps), tmp) + group_sum(fv_sum(ts), tmp);
    float common = group_sum(fv_sum(both), tmp);
    float all = group_sum(fv_sum(either), tmp);
    if (get_local_id(0) == 0 && b < p.batch) {
        gfloat *o = stats + p.stats_off + (ulong)b * STATS;
        float mean = bce_sum / (float)p.n;
        float dice = 1.0f - (2.0f * pt_sum + 1.0f) / (sum + 1.0f);
        float actual = common / (all < 1.0f ? 1.0f : all);
        float guess = sigmoid_1(iou[p.iou_off + b]);
        float miss = (guess - actual) * (guess - actual);

        o[0] = weight[p.weight_off + b] * (p.w_bce * mean + p.w_dice * dice + p.w_iou * miss);
        o[1] = mean;
        o[2] = dice;
        o[3] = miss;
        o[4] = actual;
        o[5] = guess;
        o[6] = pt_sum;
        o[7] = sum;
    }
}

/* d dice / d x = p (1 - p) ((2 sum pt + 1) / (s + 1)^2 - 2 t / (s + 1)), s = sum p + sum t. */
__kernel void mask_loss_backward(gfloat *d_logits, gfloat *d_iou, gcfloat *stats, gcfloat *logits,
                                 gcfloat *target, gcfloat *weight, const pseg_loss_params p)
{
    uint step = (uint)get_global_size(0), id = get_global_id(0);
    uint steps = (p.n + FV - 1) / FV;
    ulong all = (ulong)p.batch * steps;

    for (ulong j = id; j < all; j += step) {
        uint b = (uint)(j / steps), i = (uint)(j % steps) * FV, left = p.n - i;
        ulong at = (ulong)b * p.n + i;
        gcfloat *o = stats + p.stats_off + (ulong)b * STATS;
        float s = o[7] + 1.0f, ratio = (2.0f * o[6] + 1.0f) / (s * s);
        float wb = weight[p.weight_off + b] * p.w_bce / (float)p.n;
        float wd = weight[p.weight_off + b] * p.w_dice;
        fv x = fv_load(logits + p.logits_off + at, left);
        fv t = fv_load(target + p.target_off + at, left), q = sigmoid(x);

        fv_store((q - t) * wb + q * (1.0f - q) * (ratio - t * (2.0f / s)) * wd,
                 d_logits + p.d_logits_off + at, left);
    }
    for (uint b = id; b < p.batch && p.w_iou > 0.0f; b += step) {
        gcfloat *o = stats + p.stats_off + (ulong)b * STATS;
        float q = o[5];

        d_iou[p.d_iou_off + b] =
            weight[p.weight_off + b] * p.w_iou * 2.0f * (q - o[4]) * q * (1.0f - q);
    }
}

/* ---- enlarging ---- */

/* The place of pixel (y, x) of the enlarged grid: each stage put four pixels, (dy, dx), behind each
 * other where one was. */
static inline ulong upsampled_at(uint y, uint x, const pseg_resize_params *p)
{
    uint inside = 0;

    for (uint i = 0; i < p->stages; i++)
        inside |= (y >> i & 1) << (2 * i + 1) | (x >> i & 1) << (2 * i);
    return (((ulong)(y >> p->stages) * p->gw + (x >> p->stages)) << 2 * p->stages) + inside;
}

/* Bilinear with half-pixel centres and clamped edges (PyTorch's interpolate, align_corners=False):
 * place i of n_out lies between lo and hi of n_in, `share` of the way to hi. */
static inline void between(uint i, uint n_in, uint n_out, uint *lo, uint *hi, float *share)
{
    float at = ((float)i + 0.5f) * ((float)n_in / (float)n_out) - 0.5f;

    at = at < 0.0f ? 0.0f : at;
    *lo = min((uint)at, n_in - 1);
    *hi = min(*lo + 1, n_in - 1);
    *share = at - (float)*lo;
}

/* Dimension 1 strides over the rows of all results, dimension 0 over their pixels. */
__kernel void enlarge(gfloat *out, gcfloat *x, const pseg_resize_params p)
{
    uint h = p.gh << p.stages, w = p.gw << p.stages;

    for (uint r = get_global_id(1); r < p.batch * p.oh; r += (uint)get_global_size(1)) {
        gcfloat *from = x + p.x_off + (ulong)(r / p.oh) * h * w;
        gfloat *to = out + p.out_off + (ulong)r * p.ow;
        uint y0, y1;
        float sy;

        between(r % p.oh, h, p.oh, &y0, &y1, &sy);
        for (uint i = get_global_id(0); i < p.ow; i += (uint)get_global_size(0)) {
            uint x0, x1;
            float sx;

            between(i, w, p.ow, &x0, &x1, &sx);
            float a = from[upsampled_at(y0, x0, &p)], b = from[upsampled_at(y0, x1, &p)];
            float c = from[upsampled_at(y1, x0, &p)], d = from[upsampled_at(y1, x1, &p)];
            a += (b - a) * sx;
            c += (d - c) * sx;
            to[i] = a + (c - a) * sy;
        }
    }
}

/* What place j of n_in gives to place i of n_out. */
static inline float share_of(uint j, uint i, uint n_in, uint n_out)
{
    uint lo, hi;
    float s;

    between(i, n_in, n_out, &lo, &hi, &s);
    return (lo == j ? 1.0f - s : 0.0f) + (hi == j ? s : 0.0f);
}

/* The places of n_out that may take of place j of n_in: first .. last. */
static inline void takers(uint j, uint n_in, uint n_out, uint *first, uint *last)
{
    float step = (float)n_out / (float)n_in;
    float from = ((float)j - 0.5f) * step - 1.5f, to = ((float)j + 1.5f) * step + 1.5f;

    *first = from < 0.0f || j == 0 ? 0 : min((uint)from, n_out - 1);
    *last = j + 1 == n_in ? n_out - 1 : min((uint)to, n_out - 1);
}

/* First over rows: out[sample][y][i] = what rows of the gradient took of row y of the logits.
 * Dimension 1 strides over these rows, dimension 0 over chunks of FV columns. */
__kernel void enlarge_rows_backward(gfloat *out, gcfloat *g, const pseg_resize_params p)
{
    uint h = p.gh << p.stages;

    for (uint r = get_global_id(1); r < p.batch * h; r += (uint)get_global_size(1)) {
        gcfloat *from = g + p.x_off + (ulong)(r / h) * p.oh * p.ow;
        uint y = r % h, first, last;

        takers(y, h, p.oh, &first, &last);
        for (uint i = (uint)get_global_id(0) * FV; i < p.ow; i += (uint)get_global_size(0) * FV) {
            fv sum = (fv)(0.0f);

            for (uint a = first; a <= last; a++)
                sum += fv_load(from + (ulong)a * p.ow + i, p.ow - i) * share_of(y, a, h, p.oh);
            fv_store(sum, out + (ulong)r * p.ow + i, p.ow - i);
        }
    }
}

/* Then over columns: each number of the logits' gradient (+)= what took of it. */
__kernel void enlarge_columns_backward(gfloat *out, gcfloat *rows, const pseg_resize_params p)
{
    uint h = p.gh << p.stages, w = p.gw << p.stages;

    for (uint r = get_global_id(1); r < p.batch * h; r += (uint)get_global_size(1))
        for (uint i = get_global_id(0); i < w; i += (uint)get_global_size(0)) {
            gcfloat *from = rows + (ulong)r * p.ow;
            gfloat *to = out + p.out_off + (ulong)(r / h) * h * w + upsampled_at(r % h, i, &p);
            uint first, last;
            float sum = 0.0f;

            takers(i, w, p.ow, &first, &last);
            for (uint b = first; b <= last; b++)
                sum += share_of(i, b, w, p.ow) * from[b];
            *to = p.add ? *to + sum : sum;
        }
}

/* work[i] = the sum of squares of chunk i. */
__kernel void square_sums(gfloat *work, gcfloat *x, const pseg_sums_params p, __local float *tmp)
{
    uint c = get_group_id(0);
    ulong from = (ulong)c * p.chunk;
    uint n = c < p.n_chunks ? (uint)min((ulong)p.chunk, p.n - from) : 0;
    uint step = (uint)get_local_size(0) * FV;
    fv sum = (fv)(0.0f);

    for (uint i = (uint)get_local_id(0) * FV; i < n; i += step) {
        fv v = fv_load(x + p.x_off + from + i, n - i);

        sum += v * v;
    }
    float total = group_sum(fv_sum(sum), tmp);
    if (get_local_id(0) == 0 && c < p.n_chunks)
        work[p.work_off + c] = total;
}

/* One item. The chunks are added with what rounding lost of each (Kahan 1965). */
__kernel void grad_norm(gfloat *out, gcfloat *work, const pseg_sums_params p)
{
    float sum = 0.0f, lost = 0.0f;

    if (get_global_id(0) != 0)
        return;
    for (uint i = 0; i < p.n_chunks; i++) {
        float v = work[p.work_off + i] - lost, next = sum + v;

        lost = (next - sum) - v;
        sum = next;
    }
    float norm = sqrt(sum), scale = p.limit / (norm + 1e-6f);
    out[p.out_off] = norm;
    out[p.out_off + 1] = p.limit > 0.0f && scale < 1.0f ? scale : 1.0f;
    out[p.out_off + 2] = isfinite(norm) ? 1.0f : 0.0f;
}

__kernel void adamw(gfloat *value, gcfloat *grad, gfloat *mean, gfloat *square, gfloat *ema,
                    gcfloat *norm, const pseg_adamw_params p)
{
    float scale = norm[p.norm_off + 1];

    if (norm[p.norm_off + 2] == 0.0f)
        return;
    for (ulong i = (ulong)get_global_id(0) * FV; i < p.n; i += (ulong)get_global_size(0) * FV) {
        uint left = (uint)min(p.n - i, (ulong)FV);
        fv g = fv_load(grad + p.grad_off + i, left) * scale;
        fv w = fv_load(value + p.value_off + i, left) * p.shrink;
        fv m = fv_load(mean + p.mean_off + i, left);
        fv v = fv_load(square + p.square_off + i, left) * p.beta2;

        m += (g - m) * (1.0f - p.beta1);
        v += g * g * (1.0f - p.beta2);
        w -= p.step * m / (sqrt(v) / p.root2 + p.eps);
        fv_store(m, mean + p.mean_off + i, left);
        fv_store(v, square + p.square_off + i, left);
        fv_store(w, value + p.value_off + i, left);
        if (p.flags & HAS_EMA) {
            fv e = fv_load(ema + p.ema_off + i, left);

            fv_store(e + (w - e) * (1.0f - p.ema_keep), ema + p.ema_off + i, left);
        }
    }
}

/* Chunks of FV columns of all rows, in turn. */
__kernel void scale_rows(gfloat *out, gcfloat *x, gcfloat *y, const pseg_scale_params p)
{
    uint width = ((uint)p.c + FV - 1) / FV;
    ulong all = (ulong)p.rows * width;

    for (ulong i = get_global_id(0); i < all; i += get_global_size(0)) {
        uint at = (uint)(i % width) * FV, left = (uint)p.c - at;
        ulong from = i / width * p.c + at;
        fv v = fv_load(x + p.x_off + from, left) * fv_load(y + p.y_off + at, left);

        if (p.add)
            v += fv_load(out + p.out_off + from, left);
        fv_store(v, out + p.out_off + from, left);
    }
}

/* out[i] (+)= the sum over piece i's rows of x, or of x * y. */
__kernel void scale_sums(gfloat *out, gcfloat *x, gcfloat *y, const pseg_scale_params p)
{
    uint width = ((uint)p.c + FV - 1) / FV, pieces = (p.rows + p.piece - 1) / p.piece;
    ulong all = (ulong)pieces * width;

    for (ulong i = get_global_id(0); i < all; i += get_global_size(0)) {
        uint at = (uint)(i % width) * FV, left = (uint)p.c - at;
        uint first = (uint)(i / width) * p.piece, end = min(first + p.piece, p.rows);
        gfloat *to = out + p.out_off + i / width * p.c + at;
        fv sum = p.add ? fv_load(to, left) : (fv)(0.0f);

        for (uint r = first; r < end; r++) {
            fv v = fv_load(x + p.x_off + (ulong)r * p.c + at, left);

            sum += p.has_y ? v * fv_load(y + p.y_off + (ulong)r * p.c + at, left) : v;
        }
        fv_store(sum, to, left);
    }
}
