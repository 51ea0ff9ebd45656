/* attention (see attention.cl) for a processor with AMX, whose tiles multiply 16 x 32 by 32 x 16 in
 * bfloat16. Without causality or lengths; the channels of a head are a multiple of 32.
 *
 * One item: up to QUERIES queries of one head. Keys are taken in blocks of KB, each turned once into
 * the pairs that the instruction wants,
 *
 *     kt[pair of channels][key]     for  S[query][key]   = Q K^T
 *     vp[pair of keys][channel]     for  O[query][channel] += P V
 *
 * and then used by all queries, 32 at a time, so that rows of S, P and O lie as they are stored.
 * Keys past the end are zeros with a score of -inf. */

#if PSEG_CPU && defined(AMX)

#ifndef DMAX
#define DMAX 128
#endif
#define QUERIES 288
#define KB      320

typedef struct block {
    uint kt[DMAX / 2 * KB], vp[KB / 2 * DMAX];
    ushort q[32 * DMAX], p[32 * KB];
    float s[32 * KB], o[QUERIES * DMAX];
    float m[QUERIES], l[QUERIES]; /* of each query: the running maximum and sum */
} block;

static inline void configure(void)
{
    uchar c[64];

    for (int i = 0; i < 64; i++)
        c[i] = 0;
    c[0] = 1;
    for (int t = 0; t < 8; t++) {
        c[16 + 2 * t] = 64;
        c[48 + t] = 16;
    }
    __asm__ volatile("ldtilecfg (%0)" : : "r"(c) : "memory");
}

/* c[32][32] (+)= a[32][k] b[k/2 pairs][32]; strides in bytes. */
static inline void multiply(float *c, const ushort *a, const uint *b, ulong c_stride, ulong a_stride,
                            ulong b_stride, uint k, bool is_first)
{
    float *c1 = (float *)((uchar *)c + 16 * c_stride);

    if (is_first)
        __asm__ volatile("tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n tilezero %%tmm3"
                         :
                         :
                         : "memory");
    else
        __asm__ volatile("tileloadd (%0,%4,1), %%tmm0\n tileloadd (%1,%4,1), %%tmm1\n"
                         "tileloadd (%2,%4,1), %%tmm2\n tileloadd (%3,%4,1), %%tmm3"
                         :
                         : "r"(c), "r"(c + 16), "r"(c1), "r"(c1 + 16), "r"(c_stride)
                         : "memory");
    for (uint i = 0; i < k; i += 32) {
        const ushort *a0 = a + i, *a1 = (const ushort *)((const uchar *)a0 + 16 * a_stride);
        const uint *b0 = (const uint *)((const uchar *)b + i / 2 * b_stride);

        __asm__ volatile("tileloadd (%2,%5,1), %%tmm6\n"
                         "tileloadd (%0,%4,1), %%tmm4\n"
                         "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n"
                         "tileloadd (%3,%5,1), %%tmm7\n"
                         "tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
                         "tileloadd (%1,%4,1), %%tmm5\n"
                         "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n"
                         "tdpbf16ps %%tmm7, %%tmm5, %%tmm3\n"
                         :
                         : "r"(a0), "r"(a1), "r"(b0), "r"(b0 + 16), "r"(a_stride), "r"(b_stride)
                         : "memory");
    }
    __asm__ volatile("tilestored %%tmm0, (%0,%4,1)\n tilestored %%tmm1, (%1,%4,1)\n"
                     "tilestored %%tmm2, (%2,%4,1)\n tilestored %%tmm3, (%3,%4,1)"
                     :
                     : "r"(c), "r"(c + 16), "r"(c1), "r"(c1 + 16), "r"(c_stride)
                     : "memory");
}

/* 2^x for x <= 0, to 1e-4 of it, and 2^-126 below that; NaN stays NaN. */
static inline float16 exp2_rough(float16 x)
{
    x = select(x, (float16)(-126.0f), x < -126.0f);
    float16 t = x + TO_INTEGER, f = x - (t - TO_INTEGER); /* the last bits of t are the integer */
    float16 p = 0.05517166f * f + 0.24261112f;

    p = p * f + 0.69326098f;
    p = p * f + 0.99992807f;
    return as_float16(as_int16(p) + (as_int16(t) << 23));
}

static inline float max_of(float16 v)
{
    float8 a = select(v.lo, v.hi, v.hi > v.lo);
    float4 b = select(a.lo, a.hi, a.hi > a.lo);
    float2 c = select(b.lo, b.hi, b.hi > b.lo);

    return c.y > c.x ? c.y : c.x;
}

/* Keys and values j < n of a block, and zeros up to np. */
static inline void pair_up(block *t, gin *k, gin *v, ulong k_row, ulong v_row, uint n, uint np, uint d)
{
    for (uint j = 0; j < np; j++)
        for (uint c = 0; c < d; c += 16) {
            uint8 pairs = j < n ? as_uint8(vload16(0, k + j * k_row + c)) : (uint8)(0);
            uint *to = t->kt + c / 2 * KB + j;

            to[0] = pairs.s0;
            to[KB] = pairs.s1;
            to[2 * KB] = pairs.s2;
            to[3 * KB] = pairs.s3;
            to[4 * KB] = pairs.s4;
            to[5 * KB] = pairs.s5;
            to[6 * KB] = pairs.s6;
            to[7 * KB] = pairs.s7;
        }
    for (uint j = 0; j < np; j += 2)
        for (uint c = 0; c < d; c += 16) {
            uint16 even = j < n ? convert_uint16(vload16(0, v + j * v_row + c)) : (uint16)(0);
            uint16 odd = j + 1 < n ? convert_uint16(vload16(0, v + (j + 1) * v_row + c)) : (uint16)(0);

            vstore16(even | odd << 16, 0, t->vp + j / 2 * DMAX + c);
        }
}

/* Row i of s becomes row i of p; query `at` is brought up to date. scale includes log2(e). */
static inline void soften(block *t, uint i, uint at, uint n, uint np, uint d, float scale, bool is_first)
{
    float *s = t->s + i * KB;
    float16 top = (float16)(-INFINITY), sum = (float16)(0.0f);

    for (uint j = n; j < np; j++)
        s[j] = -INFINITY;
    if (scale != 1.0f)
        for (uint j = 0; j < np; j += 16) {
            float16 x = vload16(0, s + j);

            /* -inf times a scale of 0 or less would not stay -inf */
            vstore16(select(x * scale, x, x == (float16)(-INFINITY)), 0, s + j);
        }
    for (uint j = 0; j < np; j += 16) {
        float16 x = vload16(0, s + j);

        top = select(top, x, x > top);
    }
    float m = max_of(top);

    if (!is_first && t->m[at] > m)
        m = t->m[at];
    for (uint j = 0; j < np; j += 16) {
        float16 e = exp2_rough(vload16(0, s + j) - m);

        sum += e;
        *(ushort16_anywhere *)(t->p + i * KB + j) = bf_vector(e);
    }
    if (is_first) {
        t->l[at] = fv_sum(sum);
    } else {
        float fade = exp2_rough((float16)(t->m[at] - m)).s0;

        t->l[at] = t->l[at] * fade + fv_sum(sum);
        for (uint c = 0; c < d; c += 16)
            vstore16(vload16(0, t->o + at * DMAX + c) * fade, 0, t->o + at * DMAX + c);
    }
    t->m[at] = m;
}

__kernel void attention(gout *out, gin *q, gin *k, gin *v, __global const int *key_len,
                        const pseg_attention_params p)
{
    block t;
    uint q0 = (uint)get_global_id(0) * QUERIES, h = get_global_id(1), b = get_global_id(2);

    if (q0 >= p.n_q || h >= p.heads || b >= p.batch)
        return;
    uint nq = min((uint)QUERIES, p.n_q - q0);
    float scale = p.scale * 1.44269504f;

    q += p.q_off + b * p.q_batch + (ulong)q0 * p.q_row + h * p.d;
    k += p.k_off + b * p.k_batch + h * p.d;
    v += p.v_off + b * p.v_batch + h * p.d;
    out += p.out_off + b * p.out_batch + (ulong)q0 * p.out_row + h * p.d;
    configure();
    for (uint k0 = 0; k0 < p.n_k; k0 += KB) {
        uint n = min((uint)KB, p.n_k - k0), np = (n + 31) / 32 * 32;

        pair_up(&t, k + k0 * p.k_row, v + k0 * p.v_row, p.k_row, p.v_row, n, np, p.d);
        for (uint t0 = 0; t0 < nq; t0 += 32) {
            uint rows = min(32u, nq - t0);

            for (uint i = 0; i < 32; i++)
                for (uint c = 0; c < p.d; c += 16)
                    *(ushort16_anywhere *)(t.q + i * DMAX + c) =
                        i < rows ? vload16(0, q + (t0 + i) * p.q_row + c) : (ushort16)(0);
            for (uint j = 0; j < np; j += 32)
                multiply(t.s + j, t.q, t.kt + j, 4 * KB, 2 * DMAX, 4 * KB, p.d, true);
            for (uint i = 0; i < rows; i++)
                soften(&t, i, t0 + i, n, np, p.d, scale, k0 == 0);
            for (uint c = 0; c < p.d; c += 32)
                multiply(t.o + t0 * DMAX + c, t.p, t.vp + c, 4 * DMAX, 2 * KB, 4 * DMAX, np, k0 == 0);
        }
    }
    __asm__ volatile("tilerelease" : : : "memory");
    for (uint i = 0; i < nq; i++)
        for (uint c = 0; c < p.d; c += 16)
            bf_store(vload16(0, t.o + i * DMAX + c) / t.l[i], out + i * p.out_row + c, 16);
}

#endif
