/* Gradients of attention. With p_ij = softmax_j(scale q_i k_j), o_i = sum_j p_ij v_j and g_i the
 * gradient of o_i (Dao et al. 2022, appendix B.4):
 *
 *     dp_ij = g_i v_j     ds_ij = p_ij (dp_ij - g_i o_i)
 *     dv_j = sum_i p_ij g_i     dq_i = scale sum_j ds_ij k_j     dk_j = scale sum_i ds_ij q_i
 *
 * Probabilities are computed again. Nothing is shared between the samples of a batch and the heads:
 * where samples share q, k or v the host has each sample's gradient written to scratch memory and sums
 * them. Keys at or past a sample's length are never read; their gradients are zero. */

static inline uint key_count(__global const int *key_len, const pseg_attention_grad_params *p, uint b)
{
    if (!(p->flags & HAS_KEY_LEN))
        return p->n_k;
    return (uint)clamp(key_len[p->key_len_off + b], 0, (int)p->n_k);
}

#if PSEG_CPU

/* One item: a head of a sample. Queries go by TQ = 16*QV, one a lane, as in attention.cl; for each such
 * tile keys go by blocks of KB, with register tiles of KR keys x QV vectors for scores and for dp, DR
 * channels x QV vectors for dq, and KR keys x 16 channels for dk and dv, which are added to where they
 * lie, query tile after query tile. Up to KEPT keys, scores are computed once and kept; beyond that
 * once for the maximum and the sum, and again for the gradients. */
#ifndef QV
#define QV 2
#endif
#ifndef DMAX
#define DMAX 128
#endif
#define TQ   (16 * QV)
#define KR   6
#define KB   96 /* a multiple of KR */
#define KEPT 288
#define DR   6

typedef struct tile {
    float q[DMAX * TQ];    /* [channel][query], scaled */
    float g[DMAX * TQ];    /* of the output */
    float dq[(DMAX + DR) * TQ];
    float s[KEPT * TQ];    /* [key][query]: scores, then probabilities, then ds */
    float dp[KB * TQ];
} tile;

/* to[j][query] = the products of channels of rows x[j0..j0+KR] with t; rows past `n` repeat the
 * last. */
static inline void products(float *to, const float *t, gcfloat *x, ulong x_row, uint j0, uint n, uint d)
{
    float16 acc[KR][QV];
    gcfloat *row[KR];

#pragma unroll
    for (int i = 0; i < KR; i++) {
        row[i] = x + min(j0 + (uint)i, n - 1) * x_row;
#pragma unroll
        for (int j = 0; j < QV; j++)
            acc[i][j] = (float16)(0.0f);
    }
    for (uint c = 0; c < d; c++) {
        float16 tv[QV];

#pragma unroll
        for (int j = 0; j < QV; j++)
            tv[j] = vload16(0, t + c * TQ + 16 * j);
#pragma unroll
        for (int i = 0; i < KR; i++)
#pragma unroll
            for (int j = 0; j < QV; j++)
                acc[i][j] += row[i][c] * tv[j];
    }
#pragma unroll
    for (int i = 0; i < KR; i++)
#pragma unroll
        for (int j = 0; j < QV; j++)
            vstore16(acc[i][j], 0, to + (j0 + i) * TQ + 16 * j);
}

/* Scores of keys k0..k0+n, with -infinity where a query must not see a key. */
static inline void scores(float *s, tile *t, gcfloat *k, uint k0, uint n, uint q0,
                          const pseg_attention_grad_params *p)
{
    const int16 lane = (int16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);

    for (uint j0 = 0; j0 < n; j0 += KR)
        products(s, t->q, k + k0 * p->k_row, p->k_row, j0, n, p->d);
    if (!(p->flags & IS_CAUSAL) || k0 + n <= q0 + 1)
        return;
    for (uint key = 0; key < n; key++)
#pragma unroll
        for (int j = 0; j < QV; j++) {
            float16 v = vload16(0, s + key * TQ + 16 * j);
            int16 query = lane + (int)(q0 + 16 * j);

            v = select(v, (float16)(-INFINITY), (int16)((int)(k0 + key)) > query);
            vstore16(v, 0, s + key * TQ + 16 * j);
        }
}

/* dq[c0..c0+DR] += sum_j ds_j k_j[c0..]; channels past d repeat the last: dq has room for them. */
static inline void add_dq(tile *t, const float *ds, gcfloat *k, ulong k_row, uint c0, uint n, uint d)
{
    float16 acc[DR][QV];

#pragma unroll
    for (int i = 0; i < DR; i++)
#pragma unroll
        for (int j = 0; j < QV; j++)
            acc[i][j] = vload16(0, t->dq + (c0 + i) * TQ + 16 * j);
    for (uint key = 0; key < n; key++) {
        gcfloat *at = k + key * k_row + c0;
        float16 sv[QV];

#pragma unroll
        for (int j = 0; j < QV; j++)
            sv[j] = vload16(0, ds + key * TQ + 16 * j);
#pragma unroll
        for (int i = 0; i < DR; i++) {
            float kv = at[min((uint)i, d - 1 - c0)];

#pragma unroll
            for (int j = 0; j < QV; j++)
                acc[i][j] += kv * sv[j];
        }
    }
#pragma unroll
    for (int i = 0; i < DR; i++)
#pragma unroll
        for (int j = 0; j < QV; j++)
            vstore16(acc[i][j], 0, t->dq + (c0 + i) * TQ + 16 * j);
}

/* to[j] += scale * sum_i w[j][i] x_i for keys 0..n of a block, over nq queries' rows x. */
static inline void add_keys(gfloat *to, ulong to_row, const float *w, gcfloat *x, ulong x_row, uint n,
                            uint nq, float scale, uint d)
{
    for (uint c0 = 0; c0 < d; c0 += 16)
        for (uint j0 = 0; j0 < n; j0 += KR) {
            float16 acc[KR];
            const float *row[KR];
            gcfloat *at = x + c0;

#pragma unroll
            for (int i = 0; i < KR; i++) {
                acc[i] = (float16)(0.0f);
                row[i] = w + min(j0 + (uint)i, n - 1) * TQ;
            }
            for (uint q = 0; q < nq; q++, at += x_row) {
                float16 xv = fv_load(at, d - c0);

#pragma unroll
                for (int i = 0; i < KR; i++)
                    acc[i] += row[i][q] * xv;
            }
#pragma unroll
            for (int i = 0; i < KR; i++)
                if (j0 + i < n) {
                    gfloat *key = to + (j0 + i) * to_row + c0;

                    fv_store(fv_load(key, d - c0) + acc[i] * scale, key, d - c0);
                }
        }
}

/* The rows of one head to zeros. */
static inline void clear(gfloat *to, ulong row, uint n, uint d)
{
    for (uint i = 0; i < n; i++)
        for (uint c = 0; c < d; c += 16)
            fv_store((float16)(0.0f), to + i * row + c, d - c);
}

__kernel void attention_backward(gfloat *dq, gfloat *dk, gfloat *dv, gcfloat *g, gcfloat *q,
                                 gcfloat *k, gcfloat *v, gcfloat *o, __global const int *key_len,
                                 const pseg_attention_grad_params p)
{
    tile t;
    uint h = get_global_id(0), b = get_global_id(1);

    if (h >= p.heads || b >= p.batch)
        return;
    uint n_keys = key_count(key_len, &p, b);
    g += p.g_off + b * p.g_batch + h * p.d;
    o += p.o_off + b * p.g_batch + h * p.d;
    q += p.q_off + b * p.q_batch + h * p.d;
    k += p.k_off + b * p.k_batch + h * p.d;
    v += p.v_off + b * p.v_batch + h * p.d;
    dq += p.dq_off + b * p.dq_batch + h * p.d;
    dk += p.dk_off + b * p.dk_batch + h * p.d;
    dv += p.dv_off + b * p.dv_batch + h * p.d;
    if ((p.flags & WANTS_K) && !(p.flags & ADDS_K))
        clear(dk, p.dk_row, p.n_k, p.d);
    if ((p.flags & WANTS_V) && !(p.flags & ADDS_V))
        clear(dv, p.dv_row, p.n_k, p.d);
    for (uint q0 = 0; q0 < p.n_q; q0 += TQ) {
        uint nq = min((uint)TQ, p.n_q - q0);
        uint n_seen = p.flags & IS_CAUSAL ? min(n_keys, q0 + nq) : n_keys;
        bool is_kept = n_seen <= KEPT;
        gcfloat *qt = q + q0 * p.q_row, *gt = g + q0 * p.g_row, *ot = o + q0 * p.g_row;
        float16 m[QV], l[QV], along[QV];

#pragma unroll
        for (int j = 0; j < QV; j++) {
            m[j] = (float16)(-INFINITY);
            l[j] = (float16)(0.0f);
            along[j] = (float16)(0.0f);
        }
        for (uint i = 0; i < TQ; i++) { /* lanes past nq hold copies of the last query */
            uint at = min(i, nq - 1);

            for (uint c = 0; c < p.d; c++) {
                t.q[c * TQ + i] = qt[at * p.q_row + c] * p.scale;
                t.g[c * TQ + i] = gt[at * p.g_row + c];
                t.dq[c * TQ + i] = ot[at * p.g_row + c];
            }
        }
        for (uint c = 0; c < p.d; c++)
#pragma unroll
            for (int j = 0; j < QV; j++)
                along[j] += vload16(0, t.g + c * TQ + 16 * j) * vload16(0, t.dq + c * TQ + 16 * j);
        for (uint i = 0; i < (p.d + DR) * QV; i++)
            vstore16((float16)(0.0f), i, t.dq);

        for (uint k0 = 0; k0 < n_seen; k0 += KB) {
            uint n = min((uint)KB, n_seen - k0);
            float *s = t.s + (is_kept ? k0 * TQ : 0);

            scores(s, &t, k, k0, n, q0, &p);
#pragma unroll
            for (int j = 0; j < QV; j++) {
                float16 top = m[j];

                for (uint key = 0; key < n; key++) {
                    float16 sv = vload16(0, s + key * TQ + 16 * j);

                    top = select(top, sv, sv > top);
                }
                if (!is_kept) {
                    l[j] *= fv_exp(m[j] - top);
                    for (uint key = 0; key < n; key++)
                        l[j] += fv_exp(vload16(0, s + key * TQ + 16 * j) - top);
                }
                m[j] = top;
            }
        }
        for (uint key = 0; key < n_seen && is_kept; key++)
#pragma unroll
            for (int j = 0; j < QV; j++) {
                float16 e = fv_exp(vload16(0, t.s + key * TQ + 16 * j) - m[j]);

                l[j] += e;
                vstore16(e, 0, t.s + key * TQ + 16 * j);
            }
#pragma unroll
        for (int j = 0; j < QV; j++)
            l[j] = 1.0f / l[j];

        for (uint k0 = 0; k0 < n_seen; k0 += KB) {
            uint n = min((uint)KB, n_seen - k0);
            float *s = t.s + (is_kept ? k0 * TQ : 0);
            gcfloat *kb = k + k0 * p.k_row;

            if (!is_kept)
                scores(s, &t, k, k0, n, q0, &p);
            for (uint j0 = 0; j0 < n; j0 += KR)
                products(t.dp, t.g, v + k0 * p.v_row, p.v_row, j0, n, p.d);
            for (uint key = 0; key < n; key++)
#pragma unroll
                for (int j = 0; j < QV; j++) {
                    float16 e = vload16(0, s + key * TQ + 16 * j);
                    float16 dp = vload16(0, t.dp + key * TQ + 16 * j);

                    e = (is_kept ? e : fv_exp(e - m[j])) * l[j];
                    vstore16(e, 0, s + key * TQ + 16 * j);
                    vstore16(e * (dp - along[j]), 0, t.dp + key * TQ + 16 * j);
                }
            if (p.flags & WANTS_V)
                add_keys(dv + k0 * p.dv_row, p.dv_row, s, gt, p.g_row, n, nq, 1.0f, p.d);
            if (p.flags & WANTS_K)
                add_keys(dk + k0 * p.dk_row, p.dk_row, t.dp, qt, p.q_row, n, nq, p.scale, p.d);
            for (uint c0 = 0; c0 < p.d && (p.flags & WANTS_Q); c0 += DR)
                add_dq(&t, t.dp, kb, p.k_row, c0, n, p.d);
        }
        for (uint i = 0; i < nq && (p.flags & WANTS_Q); i++) {
            gfloat *to = dq + (q0 + i) * p.dq_row;

            for (uint c = 0; c < p.d; c++) {
                float sum = t.dq[c * TQ + i] * p.scale;

                to[c] = p.flags & ADDS_Q ? to[c] + sum : sum;
            }
        }
    }
}

#else

/* work holds, for samples b0.. of the batch, the matrices p and ds: [batch][heads][2][n_q][n_k]. */
#define WORK(b, h) (((ulong)(b) * p.heads + (h)) * 2 * p.n_q * p.n_k)

/* One item a query: its rows of both matrices, zeros for keys that it does not see. */
__kernel void attention_matrices(gfloat *work, gcfloat *g, gcfloat *q, gcfloat *k, gcfloat *v,
                                 gcfloat *o, __global const int *key_len,
                                 const pseg_attention_grad_params p)
{
    uint i = get_global_id(0), h = get_global_id(1), b = p.first + get_global_id(2);

    if (i >= p.n_q || h >= p.heads || b >= p.batch)
        return;
    uint n_keys = key_count(key_len, &p, b);
    gfloat *pi = work + WORK(b - p.first, h) + (ulong)i * p.n_k, *ds = pi + (ulong)p.n_q * p.n_k;
    float m = -INFINITY, l = 0.0f, along = 0.0f;

    if (p.flags & IS_CAUSAL)
        n_keys = min(n_keys, i + 1);
    g += p.g_off + b * p.g_batch + i * p.g_row + h * p.d;
    o += p.o_off + b * p.g_batch + i * p.g_row + h * p.d;
    q += p.q_off + b * p.q_batch + i * p.q_row + h * p.d;
    k += p.k_off + b * p.k_batch + h * p.d;
    v += p.v_off + b * p.v_batch + h * p.d;
    for (uint c = 0; c < p.d; c++)
        along += g[c] * o[c];
    for (uint j = 0; j < n_keys; j++) {
        float s = 0.0f, dp = 0.0f;

        for (uint c = 0; c < p.d; c++) {
            s += q[c] * p.scale * k[j * p.k_row + c];
            dp += g[c] * v[j * p.v_row + c];
        }
        pi[j] = s;
        ds[j] = dp;
        m = s > m ? s : m;
    }
    for (uint j = 0; j < n_keys; j++) {
        pi[j] = fv_exp(pi[j] - m);
        l += pi[j];
    }
    for (uint j = 0; j < p.n_k; j++) {
        pi[j] = j < n_keys ? pi[j] / l : 0.0f;
        ds[j] = j < n_keys ? pi[j] * (ds[j] - along) : 0.0f;
    }
}

/* One item a channel of a query: dimension 0 counts them, d to a query. */
__kernel void attention_queries(gfloat *dq, gcfloat *work, gcfloat *k, __global const int *key_len,
                                const pseg_attention_grad_params p)
{
    uint i = (uint)get_global_id(0) / p.d, c = (uint)get_global_id(0) % p.d;
    uint h = get_global_id(1), b = p.first + get_global_id(2);

    if (i >= p.n_q || h >= p.heads || b >= p.batch)
        return;
    uint n_keys = key_count(key_len, &p, b);
    gcfloat *ds = work + WORK(b - p.first, h) + (ulong)(p.n_q + i) * p.n_k;
    gfloat *to = dq + p.dq_off + b * p.dq_batch + i * p.dq_row + h * p.d + c;
    float sum = 0.0f;

    k += p.k_off + b * p.k_batch + h * p.d + c;
    for (uint j = 0; j < n_keys; j++)
        sum += ds[j] * k[j * p.k_row];
    sum *= p.scale;
    *to = p.flags & ADDS_Q ? *to + sum : sum;
}

/* One item a channel of a key. */
__kernel void attention_keys(gfloat *dk, gfloat *dv, gcfloat *work, gcfloat *g, gcfloat *q,
                             const pseg_attention_grad_params p)
{
    uint j = (uint)get_global_id(0) / p.d, c = (uint)get_global_id(0) % p.d;
    uint h = get_global_id(1), b = p.first + get_global_id(2);

    if (j >= p.n_k || h >= p.heads || b >= p.batch)
        return;
    gcfloat *pj = work + WORK(b - p.first, h) + j, *ds = pj + (ulong)p.n_q * p.n_k;
    gfloat *to_k = dk + p.dk_off + b * p.dk_batch + j * p.dk_row + h * p.d + c;
    gfloat *to_v = dv + p.dv_off + b * p.dv_batch + j * p.dv_row + h * p.d + c;
    float of_k = 0.0f, of_v = 0.0f;

    g += p.g_off + b * p.g_batch + h * p.d + c;
    q += p.q_off + b * p.q_batch + h * p.d + c;
    for (uint i = 0; i < p.n_q; i++) {
        if (p.flags & WANTS_K)
            of_k += ds[(ulong)i * p.n_k] * q[i * p.q_row];
        of_v += pj[(ulong)i * p.n_k] * g[i * p.g_row];
    }
    of_k *= p.scale;
    if (p.flags & WANTS_K)
        *to_k = p.flags & ADDS_K ? *to_k + of_k : of_k;
    if (p.flags & WANTS_V)
        *to_v = p.flags & ADDS_V ? *to_v + of_v : of_v;
}

#endif
