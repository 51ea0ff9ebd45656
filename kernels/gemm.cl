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
 * With the option PARTS, numbers are sums of two bfloat16, hi + lo, good to 17 bits; a was split by
 * split() before. Both lie in groups of 32 of k, first hi, then lo: a row of a is [K/32][2][32], a
 * panel [K/32][2][16][32][2]. Where the processor multiplies tiles, hi hi + hi lo + lo hi is summed
 * (lo lo is below what a float keeps); elsewhere the numbers are put together again. Sizes and
 * strides of a count whole numbers.
 *
 * Epilogue: t = act(sum + bias[n]); t *= scale[n]; out = res + t.
 *
 * CPU: dimension 1 counts groups of `panels_per_item` panels (of NV vectors), dimension 0 runs of
 * `tiles_per_item` tiles of MR rows. A tile is MR x NV vectors of 16 in registers; K is not blocked:
 * a group's panels lie in the second-level cache, where the tiles of an item find them again, and a
 * tile's rows are near for all of the group. In the last tile rows past M repeat row M-1 and are not
 * stored. out may be res: a tile reads its part of res before it writes it, and no other tile touches
 * it.
 *
 * CPU with AMX: dimension 0 counts runs of `tiles_per_item` rows, dimension 1 runs of
 * `panels_per_item` panels; the processor multiplies tiles of 16 x 32 by 32 x 16.
 *
 * Portable: a work-group of 16 x 16 makes a tile of 64 x 64, an item 4 x 4 of it, with both operands
 * staged in local memory 16 of K at a time. */

#if defined(BF16) || defined(PARTS)
typedef ushort w_t;
#else
typedef float w_t;
#endif
#define gw __global const w_t

#ifdef PARTS
#define N_PARTS 2
#else
#define N_PARTS 1
#endif

#ifdef SPLIT /* a program of its own: no tile is built for it */

/* out[m][k/32][part][32] of x[m][k], zeros past k; a number that is not finite has no second part. */
__kernel void split(__global ushort *out, gcfloat *x, const pseg_split_params p)
{
    uint kp = (p.k + 31) / 32 * 32;

    for (uint r = get_global_id(1); r < p.m; r += (uint)get_global_size(1)) {
        gcfloat *from = x + p.x_off + (ulong)r * p.x_stride;
        __global ushort *to = out + (ulong)r * 2 * kp;

        for (uint c = (uint)get_global_id(0) * FV; c < kp; c += (uint)get_global_size(0) * FV) {
            fv v = c < p.k ? fv_load(from + c, p.k - c) : (fv)(0.0f);
            fv hi = bf_round(v), lo = select(v - hi, (fv)(0.0f), isnan(hi - hi));
            __global ushort *at = to + c / 32 * 64 + c % 32;

            bf_store(hi, at, FV);
            bf_store(lo, at + 32, FV);
        }
    }
}

#elif PSEG_CPU

#ifndef MR
#define MR 12
#endif
#ifndef NV
#define NV 2
#endif
#define NR (16 * NV)

static inline __attribute__((always_inline)) float16 epilogue(float16 acc, gcfloat *bias, gcfloat *res, gcfloat *scale,
                               ulong res_row, uint col, uint n, const pseg_gemm_params *p)
{
    if (p->flags & HAS_BIAS)
        acc += fv_load(bias + p->bias_off + col, n);
    acc = fv_act(acc, p->act);
    if (p->flags & HAS_SCALE)
        acc *= fv_load(scale + p->scale_off + col, n);
    if (p->flags & HAS_RES)
        acc += fv_load(res + p->res_off + res_row + col, n);
    return acc;
}

static inline void store_row(float16 acc, gout *out, gcfloat *bias, gcfloat *res, gcfloat *scale,
                             ulong out_row, ulong res_row, uint col, const pseg_gemm_params *p)
{
    uint n = p->n - col;

    out_store(epilogue(acc, bias, res, scale, res_row, col, n, p), out + p->out_off + out_row + col,
              n);
}

#ifdef AMX

/* A block of up to BLOCK rows of a times a panel, K in one go. Tiles of sums: in a block of 32 rows or
 * fewer registers 0 to 3 are 2 x 2 of them, 4 and 5 two tiles of a, 6 and 7 two of the panel. A block
 * of 33 to 48 rows (257 tokens are eight blocks, if the last takes the odd row) is two columns of
 * three tiles, 0 to 2; then 3 to 5 are of a and 6 of the panel. */
#define BLOCK 48

/* A configuration says how many rows each register has (Intel, Architecture Instruction Set
 * Extensions, "LDTILECFG"); a tile of a or of sums with fewer rows costs less. */
static inline void configure(uint rows)
{
    uchar c[64];

    for (int i = 0; i < 64; i++)
        c[i] = 0;
    c[0] = 1;
    for (int t = 0; t < 8; t++) {
        bool is_third = t % 3 == 2, is_lower = t == 2 || t == 3 || t == 5;

        c[16 + 2 * t] = 64;
        if (t >= 6)
            c[48 + t] = 16;
        else if (rows > 32)
            c[48 + t] = is_third ? rows - 32 : 16;
        else
            c[48 + t] = is_lower ? max((int)rows - 16, 1) : min(rows, 16u);
    }
    __asm__ volatile("ldtilecfg (%0)" : : "r"(c) : "memory");
}

/* What a block still has to do when the next is multiplied: its rows are finished one by one between
 * the next one's steps, where vector instructions cost nothing. */
typedef struct rest {
    const float *sum; /* of the next row to finish, PANEL to the row */
    uint row, n, col; /* that row, rows left, first column */
} rest;

/* A whole line of bfloat16 at once: none of it is read before. */
static inline __attribute__((always_inline)) void store_pair(float16 lo, float16 hi, gout *out)
{
#ifdef OUT_BF16
    float16 both;

    __asm__("vcvtne2ps2bf16 %1, %2, %0" : "=v"(both) : "v"(lo), "v"(hi));
    __asm__ volatile("vmovups %1, (%0)" : : "r"(out), "v"(both) : "memory");
#else
    vstore16(lo, 0, out);
    vstore16(hi, 1, out);
#endif
}

static inline __attribute__((always_inline)) void finish(rest *r, uint n, gout *out, gcfloat *bias, gcfloat *res, gcfloat *scale,
                          const pseg_gemm_params *p)
{
    for (n = min(n, r->n); n > 0; n--) {
        ulong out_row = (ulong)r->row * p->out_stride, res_row = (ulong)r->row * p->res_stride;

        if (r->col + PANEL <= p->n) {
            float16 lo = epilogue(vload16(0, r->sum), bias, res, scale, res_row, r->col, 16, p);
            float16 hi = epilogue(vload16(0, r->sum + 16), bias, res, scale, res_row, r->col + 16, 16, p);

            store_pair(lo, hi, out + p->out_off + out_row + r->col);
        } else {
            for (uint j = 0; j < PANEL && r->col + j < p->n; j += 16)
                store_row(vload16(0, r->sum + j), out, bias, res, scale, out_row, res_row, r->col + j, p);
        }
        r->sum += PANEL;
        r->row++;
        r->n--;
    }
}

/* The part of w that comes next, brought into the second-level cache on the way. */
typedef struct ahead {
    gw *at;
    uint lines, per_step; /* of 64 bytes: left, and to fetch at each step */
} ahead;

static inline __attribute__((always_inline)) void fetch(ahead *f)
{
    for (uint i = 0; i < f->per_step && f->lines > 0; i++) {
        __asm__ volatile("prefetcht1 (%0)" : : "r"(f->at));
        f->at += 32;
        f->lines--;
    }
}

/* A processor that has not stored a tile for 600 ns or so takes 250 cycles for the next one: during
 * a long sum, one of the panel's tiles is stored now and then. */
#define KEEP_AWAKE(k)                                                                         \
    do {                                                                                      \
        if (((k) & 255) == 224)                                                               \
            __asm__ volatile("tilestored %%tmm6, (%0,%1,1)" : : "r"(scrap), "r"(64ul) : "memory"); \
    } while (0)

/* One step of 32 of k. In parts, products of one sum stand apart, since each waits for the one
 * before. */
static inline void multiply_square(gw *upper, gw *lower, gw *b, ulong a_bytes)
{
#ifdef PARTS
    __asm__ volatile("tileloadd (%0,%4,1), %%tmm4\n tileloadd (%2,%5,1), %%tmm6\n"
                     "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n"
                     "tileloadd (%3,%5,1), %%tmm7\n"
                     "tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
                     "tileloadd (%1,%4,1), %%tmm5\n"
                     "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n"
                     "tdpbf16ps %%tmm7, %%tmm5, %%tmm3\n"
                     "tileloadd 2048(%2,%5,1), %%tmm6\n"
                     "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n"
                     "tileloadd 2048(%3,%5,1), %%tmm7\n"
                     "tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
                     "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n"
                     "tdpbf16ps %%tmm7, %%tmm5, %%tmm3\n"
                     "tileloadd 64(%0,%4,1), %%tmm4\n tileloadd (%2,%5,1), %%tmm6\n"
                     "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n"
                     "tileloadd (%3,%5,1), %%tmm7\n"
                     "tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
                     "tileloadd 64(%1,%4,1), %%tmm5\n"
                     "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n"
                     "tdpbf16ps %%tmm7, %%tmm5, %%tmm3\n"
#else
    __asm__ volatile("tileloadd (%2,%5,1), %%tmm6\n"
                     "tileloadd (%0,%4,1), %%tmm4\n"
                     "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n"
                     "tileloadd (%3,%5,1), %%tmm7\n"
                     "tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
                     "tileloadd (%1,%4,1), %%tmm5\n"
                     "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n"
                     "tdpbf16ps %%tmm7, %%tmm5, %%tmm3\n"
#endif
                     :
                     : "r"(upper), "r"(lower), "r"(b), "r"(b + 32), "r"(a_bytes), "r"(4ul * PANEL)
                     : "memory");
}

static inline void multiply_column(gw *upper, gw *lower, gw *third, gw *b, ulong a_bytes)
{
    __asm__ volatile("tileloadd (%3,%5,1), %%tmm6\n"
                     "tileloadd (%0,%4,1), %%tmm3\n"
                     "tdpbf16ps %%tmm6, %%tmm3, %%tmm0\n"
                     "tileloadd (%1,%4,1), %%tmm4\n"
                     "tdpbf16ps %%tmm6, %%tmm4, %%tmm1\n"
                     "tileloadd (%2,%4,1), %%tmm5\n"
                     "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n"
#ifdef PARTS
                     "tileloadd 2048(%3,%5,1), %%tmm7\n"
                     "tdpbf16ps %%tmm7, %%tmm3, %%tmm0\n"
                     "tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
                     "tdpbf16ps %%tmm7, %%tmm5, %%tmm2\n"
                     "tileloadd 64(%0,%4,1), %%tmm3\n"
                     "tdpbf16ps %%tmm6, %%tmm3, %%tmm0\n"
                     "tileloadd 64(%1,%4,1), %%tmm4\n"
                     "tdpbf16ps %%tmm6, %%tmm4, %%tmm1\n"
                     "tileloadd 64(%2,%4,1), %%tmm5\n"
                     "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n"
#endif
                     :
                     : "r"(upper), "r"(lower), "r"(third), "r"(b), "r"(a_bytes), "r"(4ul * PANEL)
                     : "memory");
}

__kernel void gemm(gout *out, gw *a, gw *w, gcfloat *bias, gcfloat *res, gcfloat *scale,
                   const pseg_gemm_params p)
{
    float sums[2 * BLOCK * PANEL] __attribute__((aligned(64)));
    float scrap[256] __attribute__((aligned(64)));
    uint m0 = (uint)get_global_id(0) * p.tiles_per_item, m1 = min(m0 + p.tiles_per_item, p.m);
    uint n0 = (uint)get_global_id(1) * p.panels_per_item * PANEL;
    uint n1 = min(n0 + p.panels_per_item * PANEL, p.n), set = 0, turn = 0;
    ulong a_row = N_PARTS * p.a_stride, a_bytes = 2 * a_row, s_bytes = 4 * PANEL;
    rest r = {sums, 0, 0, 0};

    if (m0 >= p.m || n0 >= p.n)
        return;
    uint n_steps = p.k / 32, n_blocks = max((m1 - m0) / 32, 1u);
    a += N_PARTS * p.a_off;
    w += N_PARTS * p.w_off;
    for (uint col = n0; col < n1; col += PANEL) {
        gw *panel = w + (size_t)col * p.k * N_PARTS;
        ahead f = {panel + (size_t)p.k * PANEL * N_PARTS, col + PANEL < p.n ? p.k * N_PARTS : 0,
                   (32 * N_PARTS + n_blocks - 1) / n_blocks};

        for (uint m = m0, rows; m < m1; m += rows) {
            float *sum = sums + (turn++ % 2) * BLOCK * PANEL, *below = sum + 16 * PANEL;
            uint left = m1 - m;
            rows = left > BLOCK ? 32 : left;
            uint each = (r.n * (rows > 32 ? 1 : 2) + 2 * n_steps - 1) / (2 * n_steps);
            gw *upper = a + m * a_row, *b = panel;
            gw *lower = rows > 16 ? upper + 16 * a_row : upper;

            if (rows != set)
                configure(rows);
            set = rows;
            if (rows <= 32) {
                each = (r.n + n_steps - 1) / n_steps;
                __asm__ volatile("tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n"
                                 "tilezero %%tmm3"
                                 :
                                 :
                                 : "memory");
                for (uint k = 0; k < p.k; k += 32) {
                    fetch(&f);
                    multiply_square(upper + N_PARTS * k, lower + N_PARTS * k, b, a_bytes);
                    b += N_PARTS * 32 * PANEL;
                    KEEP_AWAKE(k);
                    finish(&r, each, out, bias, res, scale, &p);
                }
                if (rows > 16)
                    __asm__ volatile("tilestored %%tmm2, (%0,%2,1)\n tilestored %%tmm3, (%1,%2,1)"
                                     :
                                     : "r"(below), "r"(below + 16), "r"(s_bytes)
                                     : "memory");
                __asm__ volatile("tilestored %%tmm0, (%0,%2,1)\n tilestored %%tmm1, (%1,%2,1)"
                                 :
                                 : "r"(sum), "r"(sum + 16), "r"(s_bytes)
                                 : "memory");
            } else {
                gw *third = lower + 16 * a_row;

                for (uint side = 0; side < 2; side++) {
                    b = panel + 32 * side;
                    __asm__ volatile("tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2"
                                     :
                                     :
                                     : "memory");
                    for (uint k = 0; k < p.k; k += 32) {
                        fetch(&f);
                        multiply_column(upper + N_PARTS * k, lower + N_PARTS * k, third + N_PARTS * k,
                                        b, a_bytes);
                        b += N_PARTS * 32 * PANEL;
                        KEEP_AWAKE(k);
                        finish(&r, each, out, bias, res, scale, &p);
                    }
                    __asm__ volatile("tilestored %%tmm0, (%0,%3,1)\n tilestored %%tmm1, (%1,%3,1)\n"
                                     "tilestored %%tmm2, (%2,%3,1)"
                                     :
                                     : "r"(sum + 16 * side), "r"(below + 16 * side),
                                       "r"(below + 16 * PANEL + 16 * side), "r"(s_bytes)
                                     : "memory");
                }
            }
            finish(&r, r.n, out, bias, res, scale, &p);
            r = (rest){sum, m, rows, col};
        }
    }
    finish(&r, r.n, out, bias, res, scale, &p);
    __asm__ volatile("tilerelease" : : : "memory");
}

#else

#if defined(BF16) || defined(PARTS)
#define STEP 2 /* of k in a step */
typedef uint16 bv_t;
#define B_LOAD(p) as_uint16(vload16(0, (__global const uint *)(p)))
#else
#define STEP 1
typedef float16 bv_t;
#define B_LOAD(p) vload16(0, (p))
#endif

/* Where k lies in a row of a and in a panel: with PARTS in groups of hi and lo. */
#define GROUPED(k) ((k) / 32 * 32 * N_PARTS + (k) % 32)

/* acc += what lies at a, one number or a pair, times b; lo: of b, in parts. */
static inline float16 accumulate(float16 acc, gw *a, bv_t b, bv_t lo)
{
#ifdef PARTS
    acc += (as_float((uint)a[0] << 16) + as_float((uint)a[32] << 16)) *
           (as_float16(b << 16) + as_float16(lo << 16));
    acc += (as_float((uint)a[1] << 16) + as_float((uint)a[33] << 16)) *
           (as_float16(b & 0xffff0000u) + as_float16(lo & 0xffff0000u));
    return acc;
#elif defined(BF16) && defined(DOT)
    /* From memory, not a register: LLVM would load all rows of the tile first, and spill the sums. */
    __asm__("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(b), "m"(*(const __global uint *)a));
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
        row[i] = (is_whole ? (size_t)i : (size_t)min((uint)i, p->m - 1 - m0)) * p->a_stride * N_PARTS;
#pragma unroll
        for (int j = 0; j < NV; j++)
            acc[i][j] = (float16)(0.0f);
    }
    a += N_PARTS * (p->a_off + m0 * p->a_stride);
    for (uint k = 0; k < p->k; k += STEP) {
        bv_t bv[NV], lo[NV];

#pragma unroll
        for (int j = 0; j < NV; j++) {
            gw *at = b + (size_t)GROUPED(k) * PANEL + 16 * STEP * j;

            bv[j] = B_LOAD(at);
#ifdef PARTS
            lo[j] = B_LOAD(at + 32 * PANEL);
#else
            lo[j] = bv[j];
#endif
        }
#pragma unroll
        for (int i = 0; i < MR; i++)
#pragma unroll
            for (int j = 0; j < NV; j++)
                acc[i][j] = accumulate(acc[i][j], a + row[i] + GROUPED(k), bv[j], lo[j]);
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
    uint t0 = (uint)get_global_id(0) * p.tiles_per_item;
    uint n0 = (uint)get_global_id(1) * p.panels_per_item * NR;
    uint n1 = min(n0 + p.panels_per_item * NR, p.n);

    for (uint t = t0; t < t0 + p.tiles_per_item && (ulong)t * MR < p.m; t++) {
        uint m0 = t * MR;

        for (uint col = n0; col < n1; col += NR) {
            gw *b = w + N_PARTS * (p.w_off + (size_t)(col / PANEL) * p.k * PANEL) + col % PANEL * STEP;

            if (m0 + MR <= p.m)
                tile(out, a, b, bias, res, scale, m0, col, true, &p);
            else
                tile(out, a, b, bias, res, scale, m0, col, false, &p);
        }
    }
}

#endif

#else

#ifdef PARTS
#define VALUE(at, lo) (as_float((uint)*(at) << 16) + as_float((uint)(at)[lo] << 16))
#define A_AT(m, ka)   (2 * (p.a_off + (m) * p.a_stride + (ka) / 32 * 32) + (ka) % 32)
#define W_AT(n, ka)                                                                           \
    (2 * (p.w_off + (size_t)((n) / PANEL) * p.k * PANEL + (ka) / 32 * 32 * PANEL) +           \
     (ka) % 32 / 2 * 2 * PANEL + (n) % PANEL * 2 + (ka) % 2)
#elif defined(BF16)
#define VALUE(at, lo) as_float((uint)*(at) << 16)
#define A_AT(m, ka)   (p.a_off + (m) * p.a_stride + (ka))
#define W_AT(n, ka)                                                                           \
    (p.w_off + ((size_t)((n) / PANEL) * p.k + (ka) / 2 * 2) * PANEL + (n) % PANEL * 2 + (ka) % 2)
#else
#define VALUE(at, lo) (*(at))
#define A_AT(m, ka)   (p.a_off + (m) * p.a_stride + (ka))
#define W_AT(n, ka)   (p.w_off + ((size_t)((n) / PANEL) * p.k + (ka)) * PANEL + (n) % PANEL)
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

            la[e % KT][e / KT] = m < p.m && ka < p.k ? VALUE(a + A_AT(m, ka), 32) : 0.0f;
            lb[e / TILE][e % TILE] =
                n < p.n && kb < p.k ? VALUE(w + W_AT(n, kb), 32 * PANEL) : 0.0f;
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
