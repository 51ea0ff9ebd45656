/* Gradients of data movement: `g` is that of the result, `out` that of the input, which gathers what
 * it became. Dimensions as in pointwise.cl. */

#define FOR_CHANNELS(c, n)                                                                        \
    for (uint c = (uint)get_global_id(0) * FV; c < (n); c += (uint)get_global_size(0) * FV)
#define FOR_ROWS(r, n) for (uint r = get_global_id(1); r < (n); r += (uint)get_global_size(1))

static inline void put(fv v, gfloat *to, uint n, uint add)
{
    if (add)
        v += fv_load(to, n);
    fv_store(v, to, n);
}

/* Pixel (b, y, x): the sum over the nine columns that it stands in. */
__kernel void im2col3_backward(gfloat *out, gcfloat *g, const pseg_map_grad_params p)
{
    FOR_ROWS (r, p.batch * p.h * p.w) {
        uint b = r / (p.h * p.w), y = r / p.w % p.h, x = r % p.w;

        FOR_CHANNELS (c, p.c) {
            fv sum = (fv)(0.0f);

            for (uint tap = 0; tap < 9; tap++) {
                int oy = (int)(y - tap / 3) + 1, ox = (int)(x - tap % 3) + 1;

                if (oy >= 0 && oy < (int)p.h && ox >= 0 && ox < (int)p.w)
                    sum += fv_load(g + p.g_off +
                                       ((((ulong)b * p.h + oy) * p.w + ox) * 9 + tap) * p.c + c,
                                   p.c - c);
            }
            put(sum, out + p.out_off + (ulong)r * p.c + c, p.c - c, p.add);
        }
    }
}

/* out[b][y][x][(dy*2+dx)*C + c] = g[b][2y+dy][2x+dx][c]; a row here is one tap. */
__kernel void pixel_shuffle2_backward(gfloat *out, gcfloat *g, const pseg_map_grad_params p)
{
    FOR_ROWS (r, p.batch * 4 * p.h * p.w) {
        uint tap = r % 4, x = r / 4 % p.w, y = r / 4 / p.w % p.h, b = r / 4 / p.w / p.h;
        gcfloat *from = g + p.g_off +
                        (((ulong)b * 2 * p.h + 2 * y + tap / 2) * 2 * p.w + 2 * x + tap % 2) * p.c;

        FOR_CHANNELS (c, p.c)
            put(fv_load(from + c, p.c - c), out + p.out_off + (ulong)r * p.c + c, p.c - c, p.add);
    }
}

/* g[B, w, h] -> out[B, h, w]. */
__kernel void transpose_backward(gfloat *out, gcfloat *g, const pseg_map_grad_params p)
{
    FOR_ROWS (r, p.batch * p.h) {
        uint b = r / p.h, row = r % p.h;
        gcfloat *from = g + p.g_off + (ulong)b * p.h * p.w + row;
        gfloat *to = out + p.out_off + (ulong)r * p.w;

        for (uint i = get_global_id(0); i < p.w; i += (uint)get_global_size(0))
            to[i] = p.add ? to[i] + from[(ulong)i * p.h] : from[(ulong)i * p.h];
    }
}

/* Row x[at] gets the sum of the rows whose index is at, by the item of the first of them. */
__kernel void gather_x_backward(gfloat *out, gcfloat *g, __global const int *idx,
                                const pseg_gather_grad_params p)
{
    idx += p.idx_off;
    FOR_ROWS (r, p.rows) {
        int at = idx[r];
        bool is_first = at >= 0 && (uint)at < p.n_x;

        for (uint i = 0; i < r && is_first; i++)
            is_first = idx[i] != at;
        if (!is_first)
            continue;
        FOR_CHANNELS (c, p.c) {
            fv sum = (fv)(0.0f);

            for (uint i = r; i < p.rows; i++)
                if (idx[i] == at)
                    sum += fv_load(g + p.g_off + (ulong)i * p.c + c, p.c - c);
            put(sum, out + p.out_off + at * p.x_stride + c, p.c - c, p.add);
        }
    }
}

/* Position i gets the sum of the rows i, i + n_pos ... whose index was in range. */
__kernel void gather_pos_backward(gfloat *out, gcfloat *g, __global const int *idx,
                                  const pseg_gather_grad_params p)
{
    idx += p.idx_off;
    FOR_ROWS (i, p.n_pos)
        FOR_CHANNELS (c, p.c) {
            fv sum = (fv)(0.0f);

            for (uint r = i; r < p.rows; r += p.n_pos)
                if (idx[r] >= 0 && (uint)idx[r] < p.n_x)
                    sum += fv_load(g + p.g_off + (ulong)r * p.c + c, p.c - c);
            put(sum, out + p.out_off + (ulong)i * p.c + c, p.c - c, p.add);
        }
}

/* n_x rows of zeros. */
__kernel void zero_rows(gfloat *out, const pseg_gather_grad_params p)
{
    FOR_ROWS (r, p.n_x)
        FOR_CHANNELS (c, p.c)
            fv_store((fv)(0.0f), out + p.out_off + r * p.x_stride + c, p.c - c);
}
