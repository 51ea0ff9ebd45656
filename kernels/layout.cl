/* Data movement: outputs are written row by row, inputs are gathered. Dimensions as in
 * pointwise.cl: 0 strides over a row, 1 over rows; any global size is right. */

#define FOR_CHANNELS(c, n)                                                                        \
    for (uint c = (uint)get_global_id(0) * FV; c < (n); c += (uint)get_global_size(0) * FV)
#define FOR_ROWS(r, n) for (uint r = get_global_id(1); r < (n); r += (uint)get_global_size(1))

/* x[B, ch, gh*p, gw*p] -> out[B*gh*gw, ch*p*p], zeros up to the next row. Dimension 0 counts the runs
 * of p pixels. */
__kernel void patches(gout *out, gcfloat *x, const pseg_patches_params p)
{
    uint runs = p.channels * p.p;

    FOR_ROWS (r, p.batch * p.gh * p.gw) {
        uint b = r / (p.gh * p.gw), gy = r / p.gw % p.gh, gx = r % p.gw;

        for (uint t = get_global_id(0); t < runs; t += (uint)get_global_size(0)) {
            ulong line = ((ulong)b * p.channels + t / p.p) * p.gh * p.p + gy * p.p + t % p.p;
            gcfloat *from = x + p.x_off + (line * p.gw + gx) * p.p;
            gout *to = out + p.out_off + r * p.out_stride + (ulong)t * p.p;

            for (uint i = 0; i < p.p; i++)
                to[i] = OUT_OF(from[i]);
        }
        for (ulong i = (ulong)runs * p.p + get_global_id(0); i < p.out_stride; i += get_global_size(0))
            out[p.out_off + r * p.out_stride + i] = 0;
    }
}

/* out[B, 1+R+P, C] = [cls + pos[0] | regs | patch + pos[1..]]; without cls no such row. */
__kernel void tokens(gfloat *out, gcfloat *patch, gcfloat *cls, gcfloat *regs, gcfloat *pos,
                     const pseg_tokens_params p)
{
    uint n_cls = p.flags & HAS_CLS ? 1 : 0, before = n_cls + p.n_regs, n = before + p.n_patches;

    FOR_ROWS (r, p.batch * n) {
        uint b = r / n, i = r % n;
        bool is_reg = i >= n_cls && i < before;
        gcfloat *from = i < n_cls ? cls + p.cls_off
                        : is_reg  ? regs + p.regs_off + (ulong)(i - n_cls) * p.c
                                  : patch + p.patch_off +
                                        ((ulong)b * p.n_patches + (i - before)) * p.c;
        gcfloat *at = pos + p.pos_off + (ulong)(i < n_cls ? 0 : i - p.n_regs) * p.c;
        bool has_pos = (p.flags & HAS_POS) && !is_reg;

        FOR_CHANNELS (c, p.c) {
            fv v = fv_load(from + c, p.c - c);

            if (has_pos)
                v += fv_load(at + c, p.c - c);
            fv_store(v, out + p.out_off + (ulong)r * p.c + c, p.c - c);
        }
    }
}

/* out[r] = x[idx[r]] + pos[r % n_pos]; an index out of range gives zeros. */
__kernel void gather(gfloat *out, gcfloat *x, __global const int *idx, gcfloat *pos,
                     const pseg_gather_params p)
{
    FOR_ROWS (r, p.rows) {
        int at = idx[p.idx_off + r];
        bool is_in = at >= 0 && (uint)at < p.n_x;
        gcfloat *from = x + p.x_off + (is_in ? (ulong)at : 0) * p.x_stride;
        gcfloat *offset = pos + p.pos_off + (p.n_pos > 0 ? (ulong)(r % p.n_pos) * p.c : 0);

        FOR_CHANNELS (c, p.c) {
            fv v = (fv)(0.0f);

            if (is_in) {
                v = fv_load(from + c, p.c - c);
                if (p.n_pos > 0)
                    v += fv_load(offset + c, p.c - c);
            }
            fv_store(v, out + p.out_off + (ulong)r * p.c + c, p.c - c);
        }
    }
}

/* Row (b, y, x) of out: the nine neighbours' channels, zeros outside the map. */
__kernel void im2col3(gout *out, gcfloat *x, const pseg_map_params p)
{
    FOR_ROWS (r, p.batch * p.h * p.w) {
        uint b = r / (p.h * p.w), y = r / p.w % p.h, col = r % p.w;

        for (uint tap = 0; tap < 9; tap++) {
            int sy = (int)(y + tap / 3) - 1, sx = (int)(col + tap % 3) - 1;
            bool is_in = sy >= 0 && sy < (int)p.h && sx >= 0 && sx < (int)p.w;
            gcfloat *from =
                x + p.x_off + (is_in ? (((ulong)b * p.h + sy) * p.w + sx) * p.c : 0);
            gout *to = out + p.out_off + ((ulong)r * 9 + tap) * p.c;

            FOR_CHANNELS (c, p.c)
                out_store(is_in ? fv_load(from + c, p.c - c) : (fv)(0.0f), to + c, p.c - c);
        }
    }
}

/* out[b][2y+dy][2x+dx][c] = x[b][y][x][(dy*2+dx)*C + c]. */
__kernel void pixel_shuffle2(gfloat *out, gcfloat *x, const pseg_map_params p)
{
    FOR_ROWS (r, p.batch * 4 * p.h * p.w) {
        uint X = r % (2 * p.w), Y = r / (2 * p.w) % (2 * p.h), b = r / (4 * p.h * p.w);
        gcfloat *from = x + p.x_off +
                        ((((ulong)b * p.h + Y / 2) * p.w + X / 2) * 4 + (Y % 2 * 2 + X % 2)) * p.c;

        FOR_CHANNELS (c, p.c)
            fv_store(fv_load(from + c, p.c - c), out + p.out_off + (ulong)r * p.c + c, p.c - c);
    }
}

/* x[B, h, w] -> out[B, w, h]. */
__kernel void transpose(gfloat *out, gcfloat *x, const pseg_map_params p)
{
    FOR_ROWS (r, p.batch * p.w) {
        uint b = r / p.w, col = r % p.w;
        gcfloat *from = x + p.x_off + (ulong)b * p.h * p.w + col;
        gfloat *to = out + p.out_off + (ulong)r * p.h;

        for (uint i = get_global_id(0); i < p.h; i += (uint)get_global_size(0))
            to[i] = from[(ulong)i * p.w];
    }
}
