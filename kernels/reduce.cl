/* Sums over rows, for gradients of what was repeated. Dimensions as in pointwise.cl.
 *
 * out[q][c] (+)= alpha * sum of the rows r of x that belong to q, in order. Rows come in `groups`
 * groups of `count`, and each is cut into pieces of `piece`: q = group * pieces + number of the piece.
 * Row r of group g begins at g * group + r / inner * outer_stride + r % inner * inner_stride. A second
 * launch sums the pieces, so many rows cost the time of few, and the order is that of the sizes alone. */

#define FOR_CHANNELS(c, n)                                                                        \
    for (uint c = (uint)get_global_id(0) * FV; c < (n); c += (uint)get_global_size(0) * FV)
#define FOR_ROWS(r, n) for (uint r = get_global_id(1); r < (n); r += (uint)get_global_size(1))

__kernel void sum_rows(gfloat *out, gcfloat *x, const pseg_sum_params p)
{
    uint pieces = (p.count + p.piece - 1) / p.piece;

    FOR_ROWS (q, p.groups * pieces) {
        uint g = q / pieces, first = q % pieces * p.piece, last = min(first + p.piece, p.count);
        gcfloat *from = x + p.x_off + g * p.group;
        gfloat *to = out + p.out_off + q * p.out_row;

        FOR_CHANNELS (c, p.c) {
            uint n = p.c - c;
            fv sum = (fv)(0.0f);

            for (uint r = first; r < last; r++)
                sum += fv_load(from + r / p.inner * p.outer_stride + r % p.inner * p.inner_stride + c,
                               n);
            sum *= p.alpha;
            if (p.add)
                sum += fv_load(to + c, n);
            fv_store(sum, to + c, n);
        }
    }
}
