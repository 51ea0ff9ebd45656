/* out[M,N] = epilogue(a[M,K] w^T): one kernel for every linear layer.
 *
 * w is packed in panels of 32 outputs, so that both variants read it in order:
 *
 *     w[n][k]  ->  panel n/32:   k=0 | n0 n1 .. n31 |
 *                                k=1 | n0 n1 .. n31 |   ... [ceil(N/32)][K][32], zeros past N
 *
 * Epilogue: t = act(sum + bias[n]); t *= scale[n]; out = res + t.
 *
 * CPU: dimension 1 counts panels (of NV vectors), dimension 0 runs of `tiles_per_item` tiles of MR
 * rows. A tile is MR x NV vectors of 16 in registers; K is not blocked: a panel of K = 3072 (384 KB)
 * lies in the second-level cache, where the tiles of an item find it again. In the last tile rows
 * past M repeat row M-1 and are not stored. out may be res: a tile reads its part of res before it
 * writes it, and no other tile touches it.
 *
 * Portable: a work-group of 16 x 16 makes a tile of 64 x 64, an item 4 x 4 of it, with both operands
 * staged in local memory 16 of K at a time. */

#if PSEG_CPU

#ifndef MR
#define MR 12
#endif
#ifndef NV
#define NV 2
#endif
#define NR (16 * NV)

static inline void store_row(float16 acc, gfloat *out, gcfloat *bias, gcfloat *res, gcfloat *scale,
                      ulong out_row, ulong res_row, uint col, const pseg_gemm_params *p)
{
    uint n = p->n - col;

    if (p->flags & HAS_BIAS)
        acc += fv_load(bias + p->bias_off + col, n);
    acc = fv_act(acc, p->act);
    if (p->flags & HAS_SCALE)
        acc *= fv_load(scale + p->scale_off + col, n);
    if (p->flags & HAS_RES)
        acc += fv_load(res + p->res_off + res_row + col, n);
    fv_store(acc, out + p->out_off + out_row + col, n);
}

/* `last` is a constant where this is inlined: rows of a whole tile are `stride` apart, which costs
 * no registers. */
static inline void tile(gfloat *out, gcfloat *a, gcfloat *b, gcfloat *bias, gcfloat *res, gcfloat *scale,
                 uint m0, uint col, bool is_whole, const pseg_gemm_params *p)
{
    float16 acc[MR][NV];
    size_t row[MR];

#pragma unroll
    for (int i = 0; i < MR; i++) {
        row[i] = is_whole ? (size_t)i * p->a_stride
                          : (size_t)min((uint)i, p->m - 1 - m0) * p->a_stride;
#pragma unroll
        for (int j = 0; j < NV; j++)
            acc[i][j] = (float16)(0.0f);
    }
    a += p->a_off + m0 * p->a_stride;
    for (uint k = 0; k < p->k; k++) {
        float16 bv[NV];

#pragma unroll
        for (int j = 0; j < NV; j++)
            bv[j] = vload16(0, b + (size_t)k * PANEL + 16 * j);
#pragma unroll
        for (int i = 0; i < MR; i++) {
            float16 av = (float16)(a[row[i] + k]);

#pragma unroll
            for (int j = 0; j < NV; j++)
                acc[i][j] += av * bv[j];
        }
    }
#pragma unroll
    for (int i = 0; i < MR; i++) {
        if (is_whole || m0 + i < p->m) {
            ulong out_row = (ulong)(m0 + i) * p->out_stride, res_row = (ulong)(m0 + i) * p->res_stride;

#pragma unroll
            for (int j = 0; j < NV; j++)
                if (col + 16 * j < p->n)
                    store_row(acc[i][j], out, bias, res, scale, out_row, res_row, col + 16 * j, p);
        }
    }
}

__kernel void gemm(gfloat *out, gcfloat *a, gcfloat *w, gcfloat *bias, gcfloat *res, gcfloat *scale,
                   const pseg_gemm_params p)
{
    uint col = (uint)get_global_id(1) * NR;
    uint t0 = (uint)get_global_id(0) * p.tiles_per_item;

    if (col >= p.n)
        return;
    gcfloat *b = w + p.w_off + (size_t)(col / PANEL) * p.k * PANEL + col % PANEL;
    for (uint t = t0; t < t0 + p.tiles_per_item && (ulong)t * MR < p.m; t++) {
        uint m0 = t * MR;

        if (m0 + MR <= p.m)
            tile(out, a, b, bias, res, scale, m0, col, true, &p);
        else
            tile(out, a, b, bias, res, scale, m0, col, false, &p);
    }
}

#else

#define TILE 64
#define KT   16
#define PER  4 /* outputs of an item in each direction */

__kernel __attribute__((reqd_work_group_size(16, 16, 1))) void
gemm(gfloat *out, gcfloat *a, gcfloat *w, gcfloat *bias, gcfloat *res, gcfloat *scale,
     const pseg_gemm_params p)
{
    __local float la[KT][TILE + 1];
    __local float lb[KT][TILE];
    uint lx = get_local_id(0), ly = get_local_id(1), lid = ly * 16 + lx;
    uint n0 = (uint)get_group_id(0) * TILE, m0 = (uint)get_group_id(1) * TILE;
    float acc[PER][PER];

    for (int i = 0; i < PER; i++)
        for (int j = 0; j < PER; j++)
            acc[i][j] = 0.0f;
    for (uint k0 = 0; k0 < p.k; k0 += KT) {
        for (uint e = lid; e < KT * TILE; e += 256) {
            uint m = m0 + e / KT, ka = k0 + e % KT;     /* consecutive items along K of a */
            uint n = n0 + e % TILE, kb = k0 + e / TILE; /* and along N of a panel */

            la[e % KT][e / KT] = m < p.m && ka < p.k ? a[p.a_off + m * p.a_stride + ka] : 0.0f;
            lb[e / TILE][e % TILE] =
                n < p.n && kb < p.k
                    ? w[p.w_off + ((size_t)(n / PANEL) * p.k + kb) * PANEL + n % PANEL]
                    : 0.0f;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint k = 0; k < KT; k++)
#pragma unroll
            for (int i = 0; i < PER; i++)
#pragma unroll
                for (int j = 0; j < PER; j++)
                    acc[i][j] += la[k][ly + 16 * i] * lb[k][lx + 16 * j];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    for (int i = 0; i < PER; i++)
        for (int j = 0; j < PER; j++) {
            uint m = m0 + ly + 16 * i, n = n0 + lx + 16 * j;

            if (m >= p.m || n >= p.n)
                continue;
            float t = acc[i][j];
            if (p.flags & HAS_BIAS)
                t += bias[p.bias_off + n];
            t = fv_act(t, p.act);
            if (p.flags & HAS_SCALE)
                t *= scale[p.scale_off + n];
            if (p.flags & HAS_RES)
                t += res[p.res_off + m * p.res_stride + n];
            out[p.out_off + m * p.out_stride + n] = t;
        }
}

#endif
