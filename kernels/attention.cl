/* softmax(scale q k^T) v, exactly, without a score matrix in memory: keys are taken in blocks, with
 * the running maximum m, sum l and output o of each query (Milakov and Gimelshein 2018; Dao et al.
 * 2022):
 *     m' = max(m, max_j s_j)    l' = l e^(m-m') + sum_j e^(s_j-m')
 *     o' = o e^(m-m') + sum_j e^(s_j-m') v_j,   and at the end o / l
 *
 * Keys at or past a sample's length are never read. */

static inline uint key_count(__global const int *key_len, const pseg_attention_params *p, uint b)
{
    if (!(p->flags & HAS_KEY_LEN))
        return p->n_k;
    return (uint)clamp(key_len[p->key_len_off + b], 0, (int)p->n_k);
}

#if PSEG_CPU

/* One item: TQ = 16*QV queries of one head. Queries lie in the lanes of vectors, keys and channels
 * are broadcast from k and v as they lie in memory, so nothing but q (once) and o (once) is
 * transposed and softmax needs no sum across lanes. Both products are register tiles like gemm's:
 * KR keys x QV vectors, and DR channels x QV vectors. */
#ifndef QV
#define QV 2
#endif
#ifndef DMAX
#define DMAX 128
#endif
#define TQ (16 * QV)
#ifndef KR
#define KR 12
#endif
#define KB 96 /* keys of a block, a multiple of KR */
#ifndef DR
#define DR 8
#endif

typedef struct block {
#ifdef DOT
    uint q[DMAX / 2 * TQ]; /* [pair of channels][query], two bfloat16 each, not scaled */
    uint p[KB / 2 * TQ];   /* [pair of keys][query] */
    uint v[KB / 2 * DMAX]; /* [pair of keys][channel] */
#else
    float q[DMAX * TQ]; /* [channel][query], scaled */
#endif
    float o[DMAX * TQ]; /* [channel][query] */
    float s[KB * TQ];   /* [key][query] */
} block;

#ifdef DOT
/* Products of pairs of bfloat16, summed in float32 (AVX512_BF16), for an even number of channels. A
 * pair that is broadcast is an operand in memory: in registers LLVM would load all of a tile's
 * first, and spill the sums. */
static inline float16 add_dot(float16 acc, uint16 x, const void *pair)
{
    __asm__("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(x), "m"(*(const uint *)pair));
    return acc;
}

static inline float16 add_dot_at(float16 acc, uint16 x, gin *pair)
{
    __asm__("vdpbf16ps %2%{1to16%}, %1, %0"
            : "+v"(acc)
            : "v"(x), "m"(*(const __global uint *)pair));
    return acc;
}

/* To bfloat16, ties to even, in the lower half; x is finite and not negative. */
static inline uint16 rounded(float16 x)
{
    uint16 u = as_uint16(x);

    return (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
}
#endif

/* Scores of keys j0..j0+KR of the block; keys past `n` repeat the last and are not kept. */
static inline void scores(block *t, gin *k, ulong k_row, uint j0, uint n, uint d, float scale,
                          bool is_whole)
{
    float16 acc[KR][QV];
    gin *row[KR]; /* pointers, not offsets: sums of offsets cost more than the products */

#pragma unroll
    for (int i = 0; i < KR; i++) {
        row[i] = k + (j0 + (is_whole ? (uint)i : min((uint)i, n - 1 - j0))) * k_row;
#pragma unroll
        for (int j = 0; j < QV; j++)
            acc[i][j] = (float16)(0.0f);
    }
#ifdef DOT
    for (uint c = 0; c < d; c += 2) {
        uint16 qv[QV];

#pragma unroll
        for (int j = 0; j < QV; j++)
            qv[j] = vload16(0, t->q + c / 2 * TQ + 16 * j);
#pragma unroll
        for (int i = 0; i < KR; i++)
#pragma unroll
            for (int j = 0; j < QV; j++)
                acc[i][j] = add_dot_at(acc[i][j], qv[j], row[i] + c);
    }
#else
    for (uint c = 0; c < d; c++) {
        float16 qv[QV];

#pragma unroll
        for (int j = 0; j < QV; j++)
            qv[j] = vload16(0, t->q + c * TQ + 16 * j);
#pragma unroll
        for (int i = 0; i < KR; i++) {
            float16 kv = (float16)(in_at(row[i], c));

#pragma unroll
            for (int j = 0; j < QV; j++)
                acc[i][j] += kv * qv[j];
        }
    }
#endif
#pragma unroll
    for (int i = 0; i < KR; i++)
#pragma unroll
        for (int j = 0; j < QV; j++)
            vstore16(acc[i][j] * scale, 0, t->s + (j0 + i) * TQ + 16 * j);
}

/* o[c0..c0+DR] = o * fade + sum_j p_j v_j[c0..]; channels past d repeat the last: o has room for
 * them and they are not read back. */
static inline void weighted_sum(block *t, gin *v, ulong v_row, uint c0, uint n, uint d,
                         const float16 *fade, bool is_whole)
{
    float16 acc[DR][QV];

#pragma unroll
    for (int i = 0; i < DR; i++) {
#pragma unroll
        for (int j = 0; j < QV; j++)
            acc[i][j] = vload16(0, t->o + (c0 + i) * TQ + 16 * j) * fade[j];
    }
#ifdef DOT
    for (uint pair = 0; pair < (n + 1) / 2; pair++) {
        uint16 pv[QV];

#pragma unroll
        for (int j = 0; j < QV; j++)
            pv[j] = vload16(0, t->p + pair * TQ + 16 * j);
#pragma unroll
        for (int i = 0; i < DR; i++) {
            const uint *at = t->v + pair * DMAX + (is_whole ? c0 + i : min(c0 + i, d - 1));

#pragma unroll
            for (int j = 0; j < QV; j++)
                acc[i][j] = add_dot(acc[i][j], pv[j], at);
        }
    }
#else
    for (uint key = 0; key < n; key++) {
        gin *at = v + key * v_row + c0;
        float16 pv[QV];

#pragma unroll
        for (int j = 0; j < QV; j++)
            pv[j] = vload16(0, t->s + key * TQ + 16 * j);
#pragma unroll
        for (int i = 0; i < DR; i++) {
            float16 vv = (float16)(in_at(at, is_whole ? (uint)i : min((uint)i, d - 1 - c0)));

#pragma unroll
            for (int j = 0; j < QV; j++)
                acc[i][j] += vv * pv[j];
        }
    }
#endif
#pragma unroll
    for (int i = 0; i < DR; i++)
#pragma unroll
        for (int j = 0; j < QV; j++)
            vstore16(acc[i][j], 0, t->o + (c0 + i) * TQ + 16 * j);
}

#ifdef DOT
/* Weights and values of n keys as pairs of keys; one that is missing is zeros. */
static inline void pair_keys(block *t, gin *v, ulong v_row, uint n, uint d)
{
    for (uint key = 0; key < n; key += 2) {
        bool is_whole = key + 1 < n;
        gin *a = v + key * v_row, *b = a + (is_whole ? v_row : 0);
        uint *to = t->v + key / 2 * DMAX;

#pragma unroll
        for (int j = 0; j < QV; j++) {
            uint16 lo = rounded(vload16(0, t->s + key * TQ + 16 * j)), hi = (uint16)(0u);

            if (is_whole)
                hi = rounded(vload16(0, t->s + (key + 1) * TQ + 16 * j)) << 16;
            vstore16(lo | hi, 0, t->p + key / 2 * TQ + 16 * j);
        }
        for (uint c = 0; c < d; c++)
            to[c] = (uint)a[c] | (is_whole ? (uint)b[c] << 16 : 0u);
    }
}
#endif

__kernel void attention(gout *out, gin *q, gin *k, gin *v,
                        __global const int *key_len, const pseg_attention_params p)
{
    block t;
    uint q0 = (uint)get_global_id(0) * TQ, h = get_global_id(1), b = get_global_id(2);

    if (q0 >= p.n_q || h >= p.heads || b >= p.batch)
        return;
    uint nq = min((uint)TQ, p.n_q - q0), n_keys = key_count(key_len, &p, b);
    if (p.flags & IS_CAUSAL)
        n_keys = min(n_keys, q0 + nq);
    q += p.q_off + b * p.q_batch + (ulong)q0 * p.q_row + h * p.d;
    k += p.k_off + b * p.k_batch + h * p.d;
    v += p.v_off + b * p.v_batch + h * p.d;
    out += p.out_off + b * p.out_batch + (ulong)q0 * p.out_row + h * p.d;

    float16 m[QV], l[QV], fade[QV];
    int16 query[QV];
    const int16 lane = (int16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma unroll
    for (int j = 0; j < QV; j++) {
        m[j] = (float16)(-INFINITY);
        l[j] = (float16)(0.0f);
        query[j] = lane + (int16)((int)q0 + 16 * j);
    }
#ifdef DOT
    const float scale = p.scale;

    for (uint i = 0; i < TQ; i++) /* lanes past nq hold copies of the last query */
        for (uint c = 0; c < p.d; c += 2) {
            gin *from = q + min(i, nq - 1) * p.q_row + c;

            t.q[c / 2 * TQ + i] = (uint)from[0] | (uint)from[1] << 16;
        }
#else
    const float scale = 1.0f; /* it is in q */

    for (uint i = 0; i < TQ; i++) /* lanes past nq hold copies of the last query */
        for (uint c = 0; c < p.d; c++)
            t.q[c * TQ + i] = in_at(q, min(i, nq - 1) * p.q_row + c) * p.scale;
#endif
    for (uint i = 0; i < (p.d + DR - 1) / DR * DR * QV; i++)
        vstore16((float16)(0.0f), i, t.o);

    for (uint k0 = 0; k0 < n_keys; k0 += KB) {
        uint n = min((uint)KB, n_keys - k0);
        gin *kb = k + k0 * p.k_row, *vb = v + k0 * p.v_row;
        float16 top[QV];

        for (uint j0 = 0; j0 < n; j0 += KR) {
            if (j0 + KR <= n)
                scores(&t, kb, p.k_row, j0, n, p.d, scale, true);
            else
                scores(&t, kb, p.k_row, j0, n, p.d, scale, false);
        }
        if ((p.flags & IS_CAUSAL) && k0 + n > q0 + 1)
            for (uint key = 0; key < n; key++)
#pragma unroll
                for (int j = 0; j < QV; j++) {
                    float16 s = vload16(0, t.s + key * TQ + 16 * j);

                    s = select(s, (float16)(-INFINITY), (int16)((int)(k0 + key)) > query[j]);
                    vstore16(s, 0, t.s + key * TQ + 16 * j);
                }
#pragma unroll
        for (int j = 0; j < QV; j++)
            top[j] = m[j];
        for (uint key = 0; key < n; key++)
#pragma unroll
            for (int j = 0; j < QV; j++) {
                float16 s = vload16(0, t.s + key * TQ + 16 * j);

                top[j] = select(top[j], s, s > top[j]);
            }
#pragma unroll
        for (int j = 0; j < QV; j++) {
            fade[j] = fv_exp(m[j] - top[j]);
            l[j] *= fade[j];
            m[j] = top[j];
        }
        for (uint key = 0; key < n; key++)
#pragma unroll
            for (int j = 0; j < QV; j++) {
                float16 e = fv_exp(vload16(0, t.s + key * TQ + 16 * j) - top[j]);

                l[j] += e;
                vstore16(e, 0, t.s + key * TQ + 16 * j);
            }
#ifdef DOT
        pair_keys(&t, vb, p.v_row, n, p.d);
#endif
        for (uint c0 = 0; c0 < p.d; c0 += DR) {
            if (c0 + DR <= p.d)
                weighted_sum(&t, vb, p.v_row, c0, n, p.d, fade, true);
            else
                weighted_sum(&t, vb, p.v_row, c0, n, p.d, fade, false);
        }
    }
    for (uint c = 0; c < p.d && n_keys > 0; c++)
#pragma unroll
        for (int j = 0; j < QV; j++)
            vstore16(vload16(0, t.o + c * TQ + 16 * j) / l[j], 0, t.o + c * TQ + 16 * j);
    for (uint i = 0; i < nq; i++)
        for (uint c = 0; c < p.d; c++)
            out[i * p.out_row + c] = OUT_OF(t.o[c * TQ + i]);
}

#else

/* One work-group of WG items: one query of one head. Items share the keys of a block, then the
 * channels. D <= 2*WG. */
#define WG 64
#define KB 256

__kernel __attribute__((reqd_work_group_size(WG, 1, 1))) void
attention(gout *out, gin *q, gin *k, gin *v, __global const int *key_len,
          const pseg_attention_params p)
{
    __local float lq[2 * WG], ls[KB], tmp[WG];
    uint lid = get_local_id(0), i = get_group_id(0), h = get_group_id(1), b = get_group_id(2);
    bool is_in = i < p.n_q && h < p.heads && b < p.batch; /* else only the barriers are for it */
    uint n_keys = is_in ? key_count(key_len, &p, b) : 0;
    float m = -INFINITY, l = 0.0f, o[2] = {0.0f, 0.0f};

    if (p.flags & IS_CAUSAL)
        n_keys = min(n_keys, i + 1);
    k += p.k_off + b * p.k_batch + h * p.d;
    v += p.v_off + b * p.v_batch + h * p.d;
    for (uint c = lid; is_in && c < p.d; c += WG)
        lq[c] = in_at(q, p.q_off + b * p.q_batch + i * p.q_row + h * p.d + c) * p.scale;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint k0 = 0; k0 < n_keys; k0 += KB) {
        uint n = min((uint)KB, n_keys - k0);
        float top = -INFINITY, sum = 0.0f;

        for (uint j = lid; j < n; j += WG) {
            float s = 0.0f;

            for (uint c = 0; c < p.d; c++)
                s += lq[c] * in_at(k, (k0 + j) * p.k_row + c);
            ls[j] = s;
            top = fmax(top, s);
        }
        top = fmax(m, group_max(top, tmp));
        for (uint j = lid; j < n; j += WG) {
            ls[j] = fv_exp(ls[j] - top);
            sum += ls[j];
        }
        float fade = fv_exp(m - top);
        l = l * fade + group_sum(sum, tmp); /* its barriers also publish ls */
        m = top;
        for (uint e = 0; e < 2; e++) {
            uint c = lid + e * WG;

            if (c < p.d) {
                float acc = o[e] * fade;

                for (uint j = 0; j < n; j++)
                    acc += ls[j] * in_at(v, (k0 + j) * p.v_row + c);
                o[e] = acc;
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE); /* before the next block overwrites ls */
    }
    for (uint e = 0; e < 2; e++) {
        uint c = lid + e * WG;

        if (is_in && c < p.d)
            out[p.out_off + b * p.out_batch + i * p.out_row + h * p.d + c] =
                OUT_OF(n_keys > 0 ? o[e] / l : 0.0f);
    }
}

#endif
