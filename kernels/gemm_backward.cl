/* Gradients of products: that of the weight, and the weight the other way round, with which the
 * gradient of the other factor is a product of gemm.cl or conv.cl.
 *
 * taps = 1: of gemm, rows of x are those of a. taps = 9: of conv3, where the rows of tap t are those
 * of x moved by (t/3 - 1, t%3 - 1), zeros where they leave the map. */

#define FOR_ROWS(r, n) for (uint r = get_global_id(1); r < (n); r += (uint)get_global_size(1))

/* Packed w[n][taps*c] to packed out[c][taps*n], taps in reverse order:
 *
 *     panel ci/32:   row tap*n + co | w[co][(taps-1-tap)*c + ci] for 32 ci, zeros past c
 *
 * Dimension 1 strides over these rows, dimension 0 over the 32. */
__kernel void turn(gfloat *out, gcfloat *w, const pseg_turn_params p)
{
    uint rows = p.taps * p.n;

    FOR_ROWS (r, (p.c + PANEL - 1) / PANEL * rows) {
        uint first = r / rows * PANEL, co = r % rows % p.n, tap = p.taps - 1 - r % rows / p.n;
        gcfloat *from = w + p.w_off + ((ulong)(co / PANEL) * p.taps + tap) * p.c * PANEL + co % PANEL;

        for (uint i = get_global_id(0); i < PANEL; i += (uint)get_global_size(0))
            out[p.out_off + (ulong)r * PANEL + i] =
                first + i < p.c ? from[(ulong)(first + i) * PANEL] : 0.0f;
    }
}

/* Where the rows of tap `tap` come from: row m of the result's gradient meets row
 * m + row_shift of x, if that is in the map. */
typedef struct shift {
    int dy, dx;
    long rows;
} shift;

static inline shift shift_of(uint tap, const pseg_weight_grad_params *p)
{
    shift s = {0, 0, 0};

    if (p->taps > 1) {
        s.dy = (int)(tap / 3) - 1;
        s.dx = (int)(tap % 3) - 1;
        s.rows = s.dy * (long)p->w + s.dx;
    }
    return s;
}

static inline bool is_inside(shift s, uint m, const pseg_weight_grad_params *p)
{
    if (p->taps == 1)
        return true;
    int y = (int)(m / p->w % p->h) + s.dy, x = (int)(m % p->w) + s.dx;

    return y >= 0 && y < (int)p->h && x >= 0 && x < (int)p->w;
}

#if PSEG_CPU

/* out[n][k] (+)= sum_m x[m][k] g[m][n], packed; and, of the columns that are read for it anyhow,
 * bias[n] (+)= sum_m g[m][n], by the items that have the first of the blocks. Dimension 2 counts pieces of rows_per_item rows, each
 * with a result of its own, piece elements behind the last; dimension 1 columns_per_item columns,
 * COLUMNS at most; dimension 0 blocks_per_item blocks of KB of k (of one tap). MB rows at a time,
 * both factors' parts are copied to where they lie densely (rows that are 4096 bytes apart share
 * their place in a cache): the columns' into the second-level cache, where every block of k finds
 * them, a block's into the first. A tile of MR k x NV vectors of columns goes over the MB rows in
 * registers, then adds its sum to what is there. So sums are taken in blocks of MB, in order. */
#ifndef MR
#define MR 6
#endif
#ifndef NV
#define NV 1
#endif
#define NR      (16 * NV)
#define KB      48 /* a multiple of 16 and of MR */
#define MB      128
#define COLUMNS 256

static inline void weight_tile(gfloat *out, const float *x, const float *g, uint rows, uint n_k,
                               bool is_more)
{
    float16 acc[MR][NV];

#pragma unroll
    for (int i = 0; i < MR; i++)
#pragma unroll
        for (int j = 0; j < NV; j++)
            acc[i][j] = (float16)(0.0f);
    for (uint r = 0; r < rows; r++) {
        float16 gv[NV];

#pragma unroll
        for (int j = 0; j < NV; j++)
            gv[j] = vload16(0, g + 16 * j);
#pragma unroll
        for (int i = 0; i < MR; i++)
#pragma unroll
            for (int j = 0; j < NV; j++)
                acc[i][j] += x[i] * gv[j];
        x += KB;
        g += NR;
    }
#pragma unroll
    for (int i = 0; i < MR; i++)
#pragma unroll
        for (int j = 0; j < NV; j++)
            if ((uint)i < n_k) {
                gfloat *to = out + i * PANEL + 16 * j;

                vstore16(is_more ? vload16(0, to) + acc[i][j] : acc[i][j], 0, to);
            }
}

/* Rows m .. of g, columns first .. last, in panels of NR. */
static inline void pack_columns(float *to, gcfloat *g, uint rows, uint first, uint last,
                                const pseg_weight_grad_params *p)
{
    for (uint col = first; col < last; col += NR)
        for (uint r = 0; r < rows; r++, to += NR)
#pragma unroll
            for (uint j = 0; j < NV; j++) {
                uint at = col + 16 * j;

                vstore16(at < p->n ? fv_load(g + r * p->g_stride + at, p->n - at)
                                   : (float16)(0.0f),
                         j, to);
            }
}

/* KB of k of the rows that rows m .. of g meet at a tap; zeros where there are none. */
static inline void pack_rows(float *to, gcfloat *x, uint m, uint rows, uint n_k, shift s,
                             const pseg_weight_grad_params *p)
{
    uint px = m % p->w, y = m / p->w % p->h;

    for (uint r = 0; r < rows; r++, to += KB) {
        bool is_in = y + s.dy < p->h && px + s.dx < p->w; /* below 0 wraps far beyond either */
        gcfloat *from = x + (is_in ? (long)(m + r) + s.rows : 0) * (long)p->x_stride;

        if (p->taps > 1 && ++px == p->w) {
            px = 0;
            y = y + 1 < p->h ? y + 1 : 0;
        }
#pragma unroll
        for (uint i = 0; i < KB; i += 16)
            vstore16(is_in && i < n_k ? fv_load(from + i, n_k - i) : (float16)(0.0f), 0, to + i);
    }
}

/* The sums of the packed columns' rows. */
static inline void bias_sums(gfloat *bias, const float *panel, uint rows, uint first, uint last,
                             bool is_more, const pseg_weight_grad_params *p)
{
    for (uint col = first; col < last; col += 16) {
        const float *from = panel + (col - first) / NR * rows * NR + col % NR;
        float16 sum = (float16)(0.0f);

        if (col >= p->n)
            return;
        for (uint r = 0; r < rows; r++)
            sum += vload16(0, from + r * NR);
        if (is_more)
            sum += fv_load(bias + col, p->n - col);
        fv_store(sum, bias + col, p->n - col);
    }
}

__kernel void weight_grad(gfloat *out, gfloat *bias, gcfloat *x, gcfloat *g,
                          const pseg_weight_grad_params p)
{
    float xb[MB * KB], gb[MB * COLUMNS];
    uint blocks = (p.c + KB - 1) / KB, columns = (p.n + PANEL - 1) / PANEL * PANEL;
    uint b0 = (uint)get_global_id(0) * p.blocks_per_item;
    uint b1 = min(b0 + p.blocks_per_item, blocks * p.taps);
    uint first = (uint)get_global_id(1) * p.columns_per_item;
    uint last = min(first + p.columns_per_item, columns);
    uint from = (uint)get_global_id(2) * p.rows_per_item, to = min(from + p.rows_per_item, p.m);

    out += p.out_off + get_global_id(2) * p.piece;
    bias += p.bias_off + get_global_id(2) * p.piece;
    for (uint m = from; m < to; m += MB) {
        uint rows = min((uint)MB, to - m);

        pack_columns(gb, g + p.g_off + m * p.g_stride, rows, first, last, &p);
        if ((p.flags & WANTS_BIAS) && b0 == 0)
            bias_sums(bias, gb, rows, first, last, (p.flags & ADDS_BIAS) || m > from, &p);
        for (uint b = b0; b < b1; b++) {
            uint tap = b / blocks, k0 = b % blocks * KB, n_k = min((uint)KB, p.c - k0);
            const float *panel = gb;

            pack_rows(xb, x + p.x_off + k0, m, rows, n_k, shift_of(tap, &p), &p);
            for (uint col = first; col < last; col += NR, panel += rows * NR) {
                gfloat *at = out + ((ulong)(col / PANEL) * p.taps * p.c + tap * p.c + k0) * PANEL +
                             col % PANEL;

                for (uint k = 0; k < n_k; k += MR)
                    weight_tile(at + k * PANEL, xb + k, panel, rows, n_k - k,
                                (p.flags & ADDS_W) || m > from);
            }
        }
    }
}

/* One row: dimension 0 strides over it, the weight's numbers and then the bias'. */
__kernel void weight_sum(gfloat *out, gfloat *bias, gcfloat *work, const pseg_weight_sum_params p)
{
    ulong all = p.elems + (p.flags & WANTS_BIAS ? p.n : 0); /* elems: whole panels */

    for (ulong i = (ulong)get_global_id(0) * FV; i < all; i += (ulong)get_global_size(0) * FV) {
        bool is_bias = i >= p.elems;
        uint n = (uint)min(all - i, (ulong)FV);
        gfloat *to = is_bias ? bias + p.bias_off + (i - p.elems) : out + p.out_off + i;
        fv sum = (fv)(0.0f);

        for (uint r = 0; r < p.pieces; r++)
            sum += fv_load(work + r * p.piece + i, n);
        if (p.flags & (is_bias ? ADDS_BIAS : ADDS_W))
            sum += fv_load(to, n);
        fv_store(sum, to, n);
    }
}

#else

/* A work-group of 16 x 16 makes a tile of 64 k x 64 n, an item 4 x 4 of it, with KT rows of both
 * factors at a time in local memory. Dimension 1 counts the tiles of all taps. */
#define TILE 64
#define KT   16
#define PER  4

__kernel __attribute__((reqd_work_group_size(16, 16, 1))) void
weight_grad(gfloat *out, gcfloat *x, gcfloat *g, const pseg_weight_grad_params p)
{
    __local float la[KT][TILE], lb[KT][TILE];
    uint lx = get_local_id(0), ly = get_local_id(1), lid = ly * 16 + lx;
    uint blocks = (p.c + TILE - 1) / TILE, tap = (uint)get_group_id(1) / blocks;
    uint n0 = (uint)get_group_id(0) * TILE, k0 = (uint)get_group_id(1) % blocks * TILE;
    uint columns = (p.n + PANEL - 1) / PANEL * PANEL;
    shift s = shift_of(tap, &p);
    float acc[PER][PER];

    for (int i = 0; i < PER; i++)
        for (int j = 0; j < PER; j++)
            acc[i][j] = 0.0f;
    for (uint m0 = 0; m0 < p.m; m0 += KT) {
        for (uint e = lid; e < KT * TILE; e += 256) {
            uint m = m0 + e / TILE, k = k0 + e % TILE, n = n0 + e % TILE;
            bool is_row = m < p.m && tap < p.taps;

            la[e / TILE][e % TILE] = is_row && k < p.c && is_inside(s, m, &p)
                                         ? x[p.x_off + ((long)m + s.rows) * (long)p.x_stride + k]
                                         : 0.0f;
            lb[e / TILE][e % TILE] = is_row && n < p.n ? g[p.g_off + m * p.g_stride + n] : 0.0f;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint m = 0; m < KT; m++)
#pragma unroll
            for (int i = 0; i < PER; i++)
#pragma unroll
                for (int j = 0; j < PER; j++)
                    acc[i][j] += la[m][ly + 16 * i] * lb[m][lx + 16 * j];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    for (int i = 0; i < PER; i++)
        for (int j = 0; j < PER; j++) {
            uint k = k0 + ly + 16 * i, n = n0 + lx + 16 * j;

            if (tap >= p.taps || k >= p.c || n >= columns)
                continue;
            gfloat *to = out + p.out_off +
                         (((ulong)(n / PANEL) * p.taps + tap) * p.c + k) * PANEL + n % PANEL;

            *to = p.flags & ADDS_W ? *to + acc[i][j] : acc[i][j];
        }
}

#endif
