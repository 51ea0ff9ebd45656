/* Normalisations: mean and variance in two passes, each sum in FV partial sums. The second pass also
 * sums the deviations, which are exactly 0 only if the mean is: it corrects both (Chan, Golub,
 * LeVeque 1983), so a row far from zero costs no digits. In place is allowed: an item writes what it
 * alone reads in the last pass.
 *
 * On a CPU an item strides over rows (or groups). Elsewhere each has a work-group of 64 items, and one
 * past the end finds nothing to do but its barriers: they stand in no condition and no loop, where
 * PoCL 3.1 takes minutes to compile them or compiles them wrongly. */

#if PSEG_CPU
#define FOR_GROUPS(r, n) for (uint r = get_group_id(0); r < (n); r += (uint)get_num_groups(0))
#else
#define FOR_GROUPS(r, n) uint r = get_group_id(0);
#endif

/* A variance that rounding made negative counts as 0; nan stays nan. */
static inline float inverse_deviation(float var, float eps)
{
    return 1.0f / sqrt((var < 0.0f ? 0.0f : var) + eps);
}

/* Row r of C channels: act((x - mean) / sqrt(var + eps) * w + b). */
__kernel void layernorm(gout *out, gin *x, gcfloat *w, gcfloat *b,
                        const pseg_layernorm_params p, __local float *tmp)
{
    uint step = (uint)get_local_size(0) * FV, first = (uint)get_local_id(0) * FV;

    FOR_GROUPS(r, p.rows)
    {
        uint n = r < p.rows ? p.c : 0;
        gin *row = x + p.x_off + r * p.x_stride;
        gout *o = out + p.out_off + r * p.out_stride;
        fv sum = (fv)(0.0f);

        for (uint c = first; c < n; c += step)
            sum += in_load(row + c, n - c);
        float mean = group_sum(fv_sum(sum), tmp) / (float)p.c;
        fv squares = (fv)(0.0f);
        sum = (fv)(0.0f);
        for (uint c = first; c < n; c += step) {
            fv d = fv_first(in_load(row + c, n - c) - mean, n - c);

            sum += d;
            squares += d * d;
        }
        float shift = group_sum(fv_sum(sum), tmp) / (float)p.c;
        float var = group_sum(fv_sum(squares), tmp) / (float)p.c - shift * shift;
        float inv = inverse_deviation(var, p.eps);
        for (uint c = first; c < n; c += step) {
            fv v = (in_load(row + c, n - c) - mean - shift) * inv;

            if (p.flags & HAS_AFFINE)
                v = v * fv_load(w + p.w_off + c, n - c) + fv_load(b + p.b_off + c, n - c);
            out_store(fv_act(v, p.act), o + c, n - c);
        }
    }
}

/* Group g of sample s: channels g*cg..g*cg+cg of all HW tokens,
 *
 *      token 0 | g0 g0 .. | g1 g1 .. | ...
 *      token 1 | g0 g0 .. | g1 g1 .. |        a group is a column block of cg channels
 *
 * GV, a build option, is how many of a token's channels a vector takes on a CPU: 16 if 16 divides cg,
 * 8 (two tokens a vector) if 8 does, 4 (four tokens) if 4 does, else 0: up to 16 channels of one
 * token, one by one. */
#ifndef GV
#define GV 0
#endif

#if PSEG_CPU && GV == 8
#define TOKENS  2
#define GN_STEP 8

static inline fv gn_load(gcfloat *p, ulong stride, uint tokens, uint left)
{
    return (fv)(vload8(0, p), tokens > 1 ? vload8(0, p + stride) : (float8)(0.0f));
}
static inline uint gn_count(uint tokens, uint left)
{
    return tokens > 1 ? 16 : 8;
}
static inline void gn_store(fv v, gfloat *p, ulong stride, uint tokens, uint left)
{
    vstore8(v.lo, 0, p);
    if (tokens > 1)
        vstore8(v.hi, 0, p + stride);
}
static inline fv gn_channels(gcfloat *p, uint left)
{
    return (fv)(vload8(0, p), vload8(0, p));
}
#elif PSEG_CPU && GV == 4
#define TOKENS  4
#define GN_STEP 4

static inline fv gn_load(gcfloat *p, ulong stride, uint tokens, uint left)
{
    float4 zero = (float4)(0.0f);

    return (fv)(vload4(0, p), tokens > 1 ? vload4(0, p + stride) : zero,
                tokens > 2 ? vload4(0, p + 2 * stride) : zero,
                tokens > 3 ? vload4(0, p + 3 * stride) : zero);
}
static inline uint gn_count(uint tokens, uint left)
{
    return 4 * min(tokens, 4u);
}
static inline void gn_store(fv v, gfloat *p, ulong stride, uint tokens, uint left)
{
    vstore4(v.lo.lo, 0, p);
    if (tokens > 1)
        vstore4(v.lo.hi, 0, p + stride);
    if (tokens > 2)
        vstore4(v.hi.lo, 0, p + 2 * stride);
    if (tokens > 3)
        vstore4(v.hi.hi, 0, p + 3 * stride);
}
static inline fv gn_channels(gcfloat *p, uint left)
{
    float4 v = vload4(0, p);

    return (fv)(v, v, v, v);
}
#else
#define TOKENS  1
#define GN_STEP FV

static inline fv gn_load(gcfloat *p, ulong stride, uint tokens, uint left)
{
    return fv_load(p, left);
}
static inline uint gn_count(uint tokens, uint left)
{
    return left;
}
static inline void gn_store(fv v, gfloat *p, ulong stride, uint tokens, uint left)
{
    fv_store(v, p, left);
}
static inline fv gn_channels(gcfloat *p, uint left)
{
    return fv_load(p, left);
}
#endif

__kernel void groupnorm(gfloat *out, gcfloat *x, gcfloat *w, gcfloat *b,
                        const pseg_groupnorm_params p, __local float *tmp)
{
    uint cg = p.c / p.groups, lid = get_local_id(0), step = (uint)get_local_size(0);
    float count = (float)cg * (float)p.hw;

    FOR_GROUPS(i, p.batch * p.groups)
    {
        uint hw = i < p.batch * p.groups ? p.hw : 0;
        ulong base = (ulong)(i / p.groups) * p.hw * p.c;
        uint c0 = i % p.groups * cg;
        gcfloat *from = x + p.x_off + base + c0;
        gfloat *to = out + p.out_off + base + c0;
        fv sum = (fv)(0.0f);

        for (uint t = lid * TOKENS; t < hw; t += step * TOKENS)
            for (uint c = 0; c < cg; c += GN_STEP)
                sum += gn_load(from + (ulong)t * p.c + c, p.c, hw - t, cg - c);
        float mean = group_sum(fv_sum(sum), tmp) / count;
        fv squares = (fv)(0.0f);
        sum = (fv)(0.0f);
        for (uint t = lid * TOKENS; t < hw; t += step * TOKENS)
            for (uint c = 0; c < cg; c += GN_STEP) {
                fv d = gn_load(from + (ulong)t * p.c + c, p.c, hw - t, cg - c) - mean;

                d = fv_first(d, gn_count(hw - t, cg - c));
                sum += d;
                squares += d * d;
            }
        float shift = group_sum(fv_sum(sum), tmp) / count;
        float var = group_sum(fv_sum(squares), tmp) / count - shift * shift;
        float inv = inverse_deviation(var, p.eps);
        for (uint t = lid * TOKENS; t < hw; t += step * TOKENS)
            for (uint c = 0; c < cg; c += GN_STEP) {
                uint left = cg - c;
                fv v = (gn_load(from + (ulong)t * p.c + c, p.c, hw - t, left) - mean - shift) * inv;

                v = v * gn_channels(w + p.w_off + c0 + c, left) +
                    gn_channels(b + p.b_off + c0 + c, left);
                gn_store(fv_act(v, p.act), to + (ulong)t * p.c + c, p.c, hw - t, left);
            }
    }
}

/* Rows divided by max(norm, eps). */
__kernel void l2norm(gfloat *out, gcfloat *x, const pseg_rows_params p, __local float *tmp)
{
    uint step = (uint)get_local_size(0) * FV, first = (uint)get_local_id(0) * FV;

    FOR_GROUPS(r, p.rows)
    {
        uint n = r < p.rows ? (uint)p.c : 0;
        gcfloat *row = x + p.x_off + (ulong)r * p.c;
        gfloat *o = out + p.out_off + (ulong)r * p.c;
        fv sum = (fv)(0.0f);

        for (uint c = first; c < n; c += step) {
            fv v = fv_load(row + c, n - c);

            sum += v * v;
        }
        float norm = sqrt(group_sum(fv_sum(sum), tmp));
        norm = norm < p.eps ? p.eps : norm; /* not fmax: a row with NaN stays NaN */
        for (uint c = first; c < n; c += step)
            fv_store(fv_load(row + c, n - c) / norm, o + c, n - c);
    }
}
