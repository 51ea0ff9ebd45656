/* out[M,N] = epilogue(a[M,K] w^T): one kernel for every linear layer.
 *
 * w is packed in panels of 32 outputs, so that all variants read it in order:
 *
 *     w[n][k]  ->  panel n/32:   k=0 | n0 n1 .. n31 |
 *                                k=1 | n0 n1 .. n31 |   ... [ceil(N/32)][K][32], zeros past N
 *
 * With the option BF16, a and w are bfloat16 and K is a multiple of 32; the panels hold pairs of k,
 * [ceil(N/32)][K/2][32][2], and a pair is one word to the instructions that multiply them.
 *
 * Epilogue: t = act(sum + bias[n]); t *= scale[n]; out = res + t.
 *
 * CPU: dimension 1 counts panels (of NV vectors), dimension 0 runs of `tiles_per_item` tiles of MR
 * rows. A tile is MR x NV vectors of 16 in registers; K is not blocked: a panel of K = 3072 (384 KB)
 * lies in the second-level cache, where the tiles of an item find it again. In the last tile rows
 * past M repeat row M-1 and are not stored. out may be res: a tile reads its part of res before it
 * writes it, and no other tile touches it.
 *
 * CPU with AMX: dimension 0 counts runs of `tiles_per_item` rows, dimension 1 runs of
 * `panels_per_item` panels; the processor multiplies tiles of 16 x 32 by 32 x 16.
 *
 * Portable: a work-group of 16 x 16 makes a tile of 64 x 64, an item 4 x 4 of it, with both operands
 * staged in local memory 16 of K at a time. */

#ifdef BF16
typedef ushort w_t;
#else
typedef float w_t;
#endif
#define gw __global const w_t

#if PSEG_CPU

#ifndef MR
#define MR 12
#endif
#ifndef NV
#define NV 2
#endif
#define NR (16 * NV)

static inline void store_row(float16 acc, gout *out, gcfloat *bias, gcfloat *res, gcfloat *scale,
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
    out_store(acc, out + p->out_off + out_row + col, n);
}

#ifdef AMX

/* The tile registers: 0 to 3 are 2 x 2 tiles of 16 x 16 sums, 4 and 5 two tiles of a, 6 and 7 two of
 * a panel. A configuration says how many rows each has (Intel, Architecture Instruction Set
 * Extensions, "LDTILECFG"); a tile of a or of sums with fewer rows costs less. */
static inline void configure(uint rows)
{
    uchar c[64];

    for (int i = 0; i < 64; i++)
        c[i] = 0;
    c[0] = 1;
    for (int t = 0; t < 8; t++) {
        bool is_lower = t == 2 || t == 3 || t == 5;

        c[16 + 2 * t] = 64;
        c[48 + t] = t >= 6 ? 16 : is_lower ? max((int)rows - 16, 1) : min(rows, 16u);
    }
    __asm__ volatile("ldtilecfg (%0)" : : "r"(c) : "memory");
}

/* sum[rows][32] (+)= a[rows][k] times k rows of a panel, rows up to 32 and as configured. With every
 * step, `ahead` is brought into the second-level cache, `lines` of 64 bytes of it. */
static inline void multiply(float *sum, __global const ushort *a, __global const ushort *w,
                            ulong a_stride, uint k, uint rows, bool is_first,
                            __global const ushort *ahead, uint lines)
{
    __global const ushort *lower = rows > 16 ? a + 16 * a_stride : a;
    float *below = rows > 16 ? sum + 16 * PANEL : sum;
    ulong a_bytes = 2 * a_stride, row_bytes = 4 * PANEL;

    if (is_first)
        __asm__ volatile("tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n tilezero %%tmm3"
                         :
                         :
                         : "memory");
    else
        __asm__ volatile("tileloadd (%0,%4,1), %%tmm0\n tileloadd (%1,%4,1), %%tmm1\n"
                         "tileloadd (%2,%4,1), %%tmm2\n tileloadd (%3,%4,1), %%tmm3"
                         :
                         : "r"(sum), "r"(sum + 16), "r"(below), "r"(below + 16), "r"(row_bytes)
                         : "memory");
    for (uint at = 0; at < k; at += 32) {
        for (uint i = 0; i < lines; i++)
            __asm__ volatile("prefetcht1 (%0)" : : "r"(ahead + 32 * i));
        ahead += 32 * lines;
        __asm__ volatile("tileloadd (%2,%5,1), %%tmm6\n"
                         "tileloadd (%0,%4,1), %%tmm4\n"
                         "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n"
                         "tileloadd (%3,%5,1), %%tmm7\n"
                         "tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
                         "tileloadd (%1,%4,1), %%tmm5\n"
                         "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n"
                         "tdpbf16ps %%tmm7, %%tmm5, %%tmm3\n"
                         :
                         : "r"(a + at), "r"(lower + at), "r"(w), "r"(w + 32), "r"(a_bytes),
                           "r"(row_bytes)
                         : "memory");
        w += 32 * PANEL;
    }
    if (rows > 16)
        __asm__ volatile("tilestored %%tmm2, (%0,%2,1)\n tilestored %%tmm3, (%1,%2,1)"
                         :
                         : "r"(below), "r"(below + 16), "r"(row_bytes)
                         : "memory");
    __asm__ volatile("tilestored %%tmm0, (%0,%2,1)\n tilestored %%tmm1, (%1,%2,1)"
                     :
                     : "r"(sum), "r"(sum + 16), "r"(row_bytes)
                     : "memory");
}

/* K is taken in blocks, so that a panel's part of 16 KB stays in the first-level cache while rows of
 * a stream by; meanwhile the next part comes nearer. */
#define KB 256

__kernel void gemm(gout *out, gw *a, gw *w, gcfloat *bias, gcfloat *res, gcfloat *scale,
                   const pseg_gemm_params p)
{
    float sum[AMX_ROWS * PANEL];
    uint m0 = (uint)get_global_id(0) * p.tiles_per_item, m1 = min(m0 + p.tiles_per_item, p.m);
    uint n0 = (uint)get_global_id(1) * p.panels_per_item * PANEL;
    uint n1 = min(n0 + p.panels_per_item * PANEL, p.n), set = 0, n_tiles = (m1 - m0 + 31) / 32;

    if (m0 >= p.m || n0 >= p.n)
        return;
    for (uint col = n0; col < n1; col += PANEL)
        for (uint k0 = 0; k0 < p.k; k0 += KB) {
            uint nk = min((uint)KB, p.k - k0), per_step = (32 + n_tiles - 1) / n_tiles;
            gw *part = w + p.w_off + (size_t)col * p.k + k0 * PANEL, *next = part + nk * PANEL;
            bool is_end = k0 + nk == p.k && col + PANEL >= n1;

            for (uint m = m0; m < m1; m += 32) {
                uint rows = min(32u, m1 - m), before = (m - m0) / 32 * nk / 32 * per_step;
                bool is_done = is_end || before >= nk;

                if (rows != set)
                    configure(rows);
                set = rows;
                multiply(sum + (m - m0) * PANEL, a + p.a_off + m * p.a_stride + k0, part,
                         p.a_stride, nk, rows, k0 == 0, next + (is_done ? 0 : 32 * before),
                         is_done ? 0 : per_step);
                for (uint i = 0; k0 + nk == p.k && i < rows; i++)
                    for (uint j = 0; j < PANEL && col + j < p.n; j += 16)
                        store_row(vload16(0, sum + (m - m0 + i) * PANEL + j), out, bias, res, scale,
                                  (m + i) * p.out_stride, (m + i) * p.res_stride, col + j, &p);
            }
        }
    __asm__ volatile("tilerelease" : : : "memory");
}

#else

#ifdef BF16
#define STEP 2 /* of k in a step */
typedef uint16 bv_t;
#define B_LOAD(p) as_uint16(vload16(0, (__global const uint *)(p)))
#else
#define STEP 1
typedef float16 bv_t;
#define B_LOAD(p) vload16(0, (p))
#endif

/* acc += what lies at a, one number or a pair, times b. */
static inline float16 accumulate(float16 acc, gw *a, bv_t b)
{
#if defined(BF16) && defined(DOT)
    uint16 av = (uint16)((uint)a[0] | (uint)a[1] << 16);

    __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(av), "v"(b));
    return acc;
#elif defined(BF16)
    acc += as_float((uint)a[0] << 16) * as_float16(b << 16);
    acc += as_float((uint)a[1] << 16) * as_float16(b & 0xffff0000u);
    return acc;
#else
    acc += a[0] * b;
    return acc;
#endif
}

/* `last` is a constant where this is inlined: rows of a whole tile are `stride` apart, which costs
 * no registers. */
static inline void tile(gout *out, gw *a, gw *b, gcfloat *bias, gcfloat *res, gcfloat *scale,
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
    for (uint k = 0; k < p->k; k += STEP) {
        bv_t bv[NV];

#pragma unroll
        for (int j = 0; j < NV; j++)
            bv[j] = B_LOAD(b + (size_t)k * PANEL + 16 * STEP * j);
#pragma unroll
        for (int i = 0; i < MR; i++)
#pragma unroll
            for (int j = 0; j < NV; j++)
                acc[i][j] = accumulate(acc[i][j], a + row[i] + k, bv[j]);
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

__kernel void gemm(gout *out, gw *a, gw *w, gcfloat *bias, gcfloat *res, gcfloat *scale,
                   const pseg_gemm_params p)
{
    uint col = (uint)get_global_id(1) * NR;
    uint t0 = (uint)get_global_id(0) * p.tiles_per_item;

    if (col >= p.n)
        return;
    gw *b = w + p.w_off + (size_t)(col / PANEL) * p.k * PANEL + col % PANEL * STEP;
    for (uint t = t0; t < t0 + p.tiles_per_item && (ulong)t * MR < p.m; t++) {
        uint m0 = t * MR;

        if (m0 + MR <= p.m)
            tile(out, a, b, bias, res, scale, m0, col, true, &p);
        else
            tile(out, a, b, bias, res, scale, m0, col, false, &p);
    }
}

#endif

#else

#ifdef BF16
#define VALUE(x)    as_float((uint)(x) << 16)
#define W_AT(n, ka) (((size_t)((n) / PANEL) * p.k + (ka) / 2 * 2) * PANEL + (n) % PANEL * 2 + (ka) % 2)
#else
#define VALUE(x)    (x)
#define W_AT(n, ka) (((size_t)((n) / PANEL) * p.k + (ka)) * PANEL + (n) % PANEL)
#endif

#define TILE 64
#define KT   16
#define PER  4 /* outputs of an item in each direction */

__kernel __attribute__((reqd_work_group_size(16, 16, 1))) void
gemm(gout *out, gw *a, gw *w, gcfloat *bias, gcfloat *res, gcfloat *scale,
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

            la[e % KT][e / KT] = m < p.m && ka < p.k ? VALUE(a[p.a_off + m * p.a_stride + ka]) : 0.0f;
            lb[e / TILE][e % TILE] =
                n < p.n && kb < p.k ? VALUE(w[p.w_off + W_AT(n, kb)]) : 0.0f;
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
            out[p.out_off + m * p.out_stride + n] = OUT_OF(t);
        }
}

#endif
