/* Gradients element by element: `g` is that of the result, `out` that of the input. Dimensions as in
 * pointwise.cl. In place is allowed where the host allows it. */

#define FOR_CHANNELS(c, n)                                                                        \
    for (uint c = (uint)get_global_id(0) * FV; c < (n); c += (uint)get_global_size(0) * FV)
#define FOR_ROWS(r, n) for (uint r = get_global_id(1); r < (n); r += (uint)get_global_size(1))

static inline void put(fv v, gfloat *to, uint n, uint add)
{
    if (add)
        v += fv_load(to, n);
    fv_store(v, to, n);
}

/* One row of c elements, c up to 2^63. */
__kernel void act_backward(gfloat *out, gcfloat *g, gcfloat *x, const pseg_rows_grad_params p)
{
    for (ulong i = (ulong)get_global_id(0) * FV; i < p.c; i += (ulong)get_global_size(0) * FV) {
        uint n = (uint)min(p.c - i, (ulong)FV);

        put(fv_load(g + p.g_off + i, n) * fv_act_grad(fv_load(x + p.x_off + i, n), p.act),
            out + p.out_off + i, n, p.add);
    }
}

__kernel void swiglu_backward(gfloat *out, gcfloat *g, gcfloat *x, const pseg_rows_grad_params p)
{
    uint n = (uint)p.c;

    FOR_ROWS (r, p.rows) {
        gcfloat *row = x + p.x_off + (ulong)r * 2 * n;
        gfloat *to = out + p.out_off + (ulong)r * 2 * n;

        FOR_CHANNELS (c, n) {
            fv d = fv_load(g + p.g_off + (ulong)r * n + c, n - c), gate = fv_load(row + c, n - c);

            put(d * fv_load(row + n + c, n - c) * fv_swish_grad(gate, 1.0f), to + c, n - c, p.add);
            put(d * fv_swish(gate, 1.0f), to + n + c, n - c, p.add);
        }
    }
}

/* out[b][n] (+)= sum_q g[b][q][n] q[b][q]. */
__kernel void maskdot_x_backward(gfloat *out, gcfloat *g, gcfloat *q,
                                 const pseg_maskdot_grad_params p)
{
    FOR_ROWS (r, p.batch * p.n) {
        uint b = r / p.n, i = r % p.n;

        FOR_CHANNELS (c, p.c) {
            fv sum = (fv)(0.0f);

            for (uint m = 0; m < p.n_q; m++) {
                ulong mask = (ulong)b * p.n_q + m;

                sum += g[p.g_off + mask * p.n + i] * fv_load(q + p.x_off + mask * p.c + c, p.c - c);
            }
            put(sum, out + p.out_off + (ulong)r * p.c + c, p.c - c, p.add);
        }
    }
}

/* out[b][q][piece] = the sum over a piece of the n of g[b][q][n] x[b][n]. */
__kernel void maskdot_q_backward(gfloat *out, gcfloat *g, gcfloat *x,
                                 const pseg_maskdot_grad_params p)
{
    uint pieces = (p.n + p.piece - 1) / p.piece;

    FOR_ROWS (r, p.batch * p.n_q * pieces) {
        uint mask = r / pieces, first = r % pieces * p.piece, last = min(first + p.piece, p.n);
        gcfloat *from = x + p.x_off + (ulong)(mask / p.n_q) * p.n * p.c;
        gcfloat *d = g + p.g_off + (ulong)mask * p.n;

        FOR_CHANNELS (c, p.c) {
            fv sum = (fv)(0.0f);

            for (uint i = first; i < last; i++)
                sum += d[i] * fv_load(from + (ulong)i * p.c + c, p.c - c);
            put(sum, out + p.out_off + (ulong)r * p.c + c, p.c - c, p.add);
        }
    }
}
