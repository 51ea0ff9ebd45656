/* out[B, h*w, n] = 3x3 convolution, padding 1, of x[B, h*w, c]: a product like gemm's with K = 9*c,
 * whose rows of a are put together while they are read:
 *
 *     a[pixel][tap*c + i] = x[pixel + (tap/3 - 1) * w + tap%3 - 1][i], zero outside of the map
 *
 * w is packed as gemm's, [ceil(n/32)][9*c][32]. Each sum is taken in gemm's order. Neighbours outside
 * of the map are read from `zeros`, c of them, so that the inner loop asks nothing.
 *
 * With HAS_RES the result is added to out. CPU: a tile is MR pixels x NV vectors, dimension 1 counts
 * runs of NV vectors, dimension 0 runs of tiles_per_item tiles. Portable: as gemm's, a work-group of
 * 16 x 16 makes 64 x 64. */

#if PSEG_CPU

#ifndef MR
#define MR 6
#endif
#ifndef NV
#define NV 1
#endif
#define NR (16 * NV)

static inline void conv_tile(gfloat *out, gcfloat *x, gcfloat *b, gcfloat *bias, gcfloat *zeros,
                             uint m0, uint col, const pseg_conv3_params *p)
{
    float16 acc[MR][NV];
    uint px[MR], py[MR];

#pragma unroll
    for (int i = 0; i < MR; i++) {
        px[i] = (m0 + i) % p->w;
        py[i] = (m0 + i) / p->w % p->h;
#pragma unroll
        for (int j = 0; j < NV; j++)
            acc[i][j] = (float16)(0.0f);
    }
    for (int dy = -1; dy <= 1; dy++)
        for (int dx = -1; dx <= 1; dx++) {
            gcfloat *row[MR];

#pragma unroll
            for (int i = 0; i < MR; i++) {
                int sy = (int)py[i] + dy, sx = (int)px[i] + dx;
                bool is_in = m0 + i < p->m && sy >= 0 && sy < (int)p->h && sx >= 0 && sx < (int)p->w;

                row[i] = is_in ? x + ((long)(m0 + i) + dy * (int)p->w + dx) * (long)p->c : zeros;
            }
            for (uint c = 0; c < p->c; c++) {
                float16 bv[NV];

#pragma unroll
                for (int j = 0; j < NV; j++)
                    bv[j] = vload16(0, b + 16 * j);
#pragma unroll
                for (int i = 0; i < MR; i++)
#pragma unroll
                    for (int j = 0; j < NV; j++)
                        acc[i][j] += row[i][c] * bv[j];
                b += PANEL;
            }
        }
#pragma unroll
    for (int i = 0; i < MR; i++)
#pragma unroll
        for (int j = 0; j < NV; j++) {
            uint at = col + 16 * j;

            if (m0 + i < p->m && at < p->n) {
                gfloat *to = out + (ulong)(m0 + i) * p->n + at;
                float16 v = acc[i][j];

                if (p->flags & HAS_BIAS)
                    v += fv_load(bias + at, p->n - at);
                if (p->flags & HAS_RES)
                    v += fv_load(to, p->n - at);
                fv_store(v, to, p->n - at);
            }
        }
}

__kernel void conv3(gfloat *out, gcfloat *x, gcfloat *w, gcfloat *bias, gcfloat *zeros,
                    const pseg_conv3_params p)
{
    uint col = (uint)get_global_id(1) * NR;
    uint t0 = (uint)get_global_id(0) * p.tiles_per_item;

    if (col >= p.n)
        return;
    gcfloat *b = w + p.w_off + (size_t)(col / PANEL) * 9 * p.c * PANEL + col % PANEL;
    for (uint t = t0; t < t0 + p.tiles_per_item && (ulong)t * MR < p.m; t++)
        conv_tile(out + p.out_off, x + p.x_off, b, bias + p.bias_off, zeros + p.zeros_off, t * MR, col,
                  &p);
}

#else

#define TILE 64
#define KT   16
#define PER  4 /* outputs of an item in each direction */

__kernel __attribute__((reqd_work_group_size(16, 16, 1))) void
conv3(gfloat *out, gcfloat *x, gcfloat *w, gcfloat *bias, gcfloat *zeros, const pseg_conv3_params p)
{
    __local float la[KT][TILE + 1];
    __local float lb[KT][TILE];
    uint lx = get_local_id(0), ly = get_local_id(1), lid = ly * 16 + lx;
    uint n0 = (uint)get_group_id(0) * TILE, m0 = (uint)get_group_id(1) * TILE, taps = 9 * p.c;
    float acc[PER][PER];

    for (int i = 0; i < PER; i++)
        for (int j = 0; j < PER; j++)
            acc[i][j] = 0.0f;
    for (uint k0 = 0; k0 < taps; k0 += KT) {
        for (uint e = lid; e < KT * TILE; e += 256) {
            uint m = m0 + e / KT, ka = k0 + e % KT;
            uint n = n0 + e % TILE, kb = k0 + e / TILE;
            uint tap = ka / p.c;
            int sy = (int)(m / p.w % p.h + tap / 3) - 1, sx = (int)(m % p.w + tap % 3) - 1;
            bool is_in = m < p.m && ka < taps && sy >= 0 && sy < (int)p.h && sx >= 0 && sx < (int)p.w;
            long pixel = (long)m + ((int)(tap / 3) - 1) * (int)p.w + (int)(tap % 3) - 1;

            la[e % KT][e / KT] = is_in ? x[p.x_off + pixel * p.c + ka % p.c] : 0.0f;
            lb[e / TILE][e % TILE] =
                n < p.n && kb < taps
                    ? w[p.w_off + ((size_t)(n / PANEL) * taps + kb) * PANEL + n % PANEL]
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
            gfloat *to = out + p.out_off + (ulong)m * p.n + n;
            float t = acc[i][j];

            if (p.flags & HAS_BIAS)
                t += bias[p.bias_off + n];
            if (p.flags & HAS_RES)
                t += *to;
            *to = t;
        }
}

#endif
