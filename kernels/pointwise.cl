/* Element by element. Dimension 0 strides over the channels of a row, dimension 1 over rows: on a CPU
 * one item takes whole rows, elsewhere neighbouring items take neighbouring channels. Any global size
 * is right. In place is allowed where the host allows it: an item reads an element just before it
 * writes it. */

#define FOR_CHANNELS(c, n)                                                                        \
    for (uint c = (uint)get_global_id(0) * FV; c < (n); c += (uint)get_global_size(0) * FV)
#define FOR_ROWS(r, n) for (uint r = get_global_id(1); r < (n); r += (uint)get_global_size(1))

/* One row of c elements, c up to 2^63. */
__kernel void act(gfloat *out, gcfloat *x, const pseg_rows_params p)
{
    for (ulong i = (ulong)get_global_id(0) * FV; i < p.c; i += (ulong)get_global_size(0) * FV) {
        uint n = (uint)min(p.c - i, (ulong)FV);

        fv_store(fv_act(fv_load(x + p.x_off + i, n), p.act), out + p.out_off + i, n);
    }
}

/* silu of the first half of a row times the second. */
__kernel void swiglu(gout *out, gin *x, const pseg_rows_params p)
{
    uint n = (uint)p.c;

    FOR_ROWS (r, p.rows) {
        gin *row = x + p.x_off + (ulong)r * 2 * n;

        FOR_CHANNELS (c, n) {
            fv gate = in_load(row + c, n - c);

            out_store(fv_swish(gate, 1.0f) * in_load(row + n + c, n - c),
                      out + p.out_off + (ulong)r * n + c, n - c);
        }
    }
}

__kernel void copy(gout *out, gcfloat *x, const pseg_add_params p)
{
    FOR_ROWS (r, p.batch * p.n) {
        uint b = r / p.n, i = r % p.n;
        gcfloat *from = x + p.x_off + b * p.x_batch + i * p.x_row;
        gout *to = out + p.out_off + b * p.out_batch + i * p.out_row;

        FOR_CHANNELS (c, p.c)
            out_store(fv_load(from + c, p.c - c) * p.alpha, to + c, p.c - c);
    }
}

__kernel void add(gout *out, gcfloat *x, gcfloat *y, const pseg_add_params p)
{
    FOR_ROWS (r, p.batch * p.n) {
        uint b = r / p.n, i = r % p.n;
        gcfloat *fx = x + p.x_off + b * p.x_batch + i * p.x_row;
        gcfloat *fy = y + p.y_off + b * p.y_batch + i * p.y_row;
        gout *to = out + p.out_off + b * p.out_batch + i * p.out_row;

        FOR_CHANNELS (c, p.c)
            out_store(fv_load(fx + c, p.c - c) + fv_load(fy + c, p.c - c) * p.alpha, to + c,
                      p.c - c);
    }
}

/* out[b][q][n] = q[b][q] . x[b][n]; an item takes a token x and strides over the masks. */
__kernel void maskdot(gfloat *out, gcfloat *q, gin *x, const pseg_maskdot_params p)
{
    FOR_ROWS (r, p.batch * p.n) {
        uint b = r / p.n, i = r % p.n;
        gin *token = x + p.x_off + (ulong)r * p.c;

        for (uint m = get_global_id(0); m < p.n_q; m += (uint)get_global_size(0)) {
            gcfloat *mask = q + p.q_off + ((ulong)b * p.n_q + m) * p.c;
            fv sum = (fv)(0.0f);

            for (uint c = 0; c < p.c; c += FV)
                sum += in_load(token + c, p.c - c) * fv_load(mask + c, p.c - c);
            out[p.out_off + ((ulong)b * p.n_q + m) * p.n + i] = fv_sum(sum);
        }
    }
}
