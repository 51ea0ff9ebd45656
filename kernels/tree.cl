/* Causal attention of phrases that share their beginnings: k and v have a row for each node of trees,
 *
 *     row       0     1     2     3     4       back[row]: how many rows before it its parent lies;
 *             "the"  "red" "dog" "blue" "dog"    0, or more than there are: it has none
 *     back      0     1     1     3     1
 *
 * and a query at node 4 sees 4, 3 and 0. An item takes one query of one head after another; keys are
 * taken in blocks on the way up, with a running maximum, sum and output as in attention.cl. What a
 * query gets depends on its own path alone, to the last bit. */
#ifndef DMAX
#define DMAX 128
#endif
#define VECTORS (DMAX / FV)
#define BLOCK   16

__kernel void tree_attention(gout *out, gin *q, gin *k, gin *v, __global const int *from,
                             __global const int *back, const pseg_tree_params p)
{
    ulong total = (ulong)p.n_q * p.heads, step = get_global_size(0) * get_global_size(1);

    for (ulong i = get_global_id(1) * get_global_size(0) + get_global_id(0); i < total; i += step) {
        uint r = (uint)(i / p.heads), h = (uint)(i % p.heads);
        int at = p.flags & HAS_FROM ? from[p.from_off + r] : (int)r;
        gin *qr = q + p.q_off + r * p.q_row + h * p.d;
        gin *kh = k + p.k_off + h * p.d, *vh = v + p.v_off + h * p.d;
        gout *to = out + p.out_off + r * p.out_row + h * p.d;
        float m = -INFINITY;
        fv l = (fv)(0.0f), qv[VECTORS], o[VECTORS];

#pragma unroll
        for (uint j = 0; j < VECTORS; j++) {
            qv[j] = j * FV < p.d ? in_load(qr + j * FV, p.d - j * FV) * p.scale : (fv)(0.0f);
            o[j] = (fv)(0.0f);
        }
        if (at >= (int)p.n_k)
            at = -1;
        bool is_empty = at < 0;
        while (at >= 0) {
            int row[BLOCK];
            float s[BLOCK], top = m;
            uint n = 0;

            for (; n < BLOCK && at >= 0; n++) {
                gin *kr = kh + (uint)at * p.k_row;
                fv sum = (fv)(0.0f);

#pragma unroll
                for (uint j = 0; j < VECTORS; j++)
                    if (j * FV < p.d)
                        sum += qv[j] * in_load(kr + j * FV, p.d - j * FV);
                row[n] = at;
                s[n] = fv_sum(sum);
                top = s[n] > top ? s[n] : top;
                int up = back[p.back_off + at];
                at = up > 0 && up <= at ? at - up : -1;
            }
            for (uint j = n; j < BLOCK; j++)
                s[j] = -INFINITY;
            fv fade = fv_exp((fv)(m - top)), sum = (fv)(0.0f);
            for (uint j = 0; j < BLOCK; j += FV) {
                fv e = fv_exp(fv_load_full(s + j) - top);

                sum += e;
                fv_store_full(e, s + j);
            }
            l = l * fade + fv_sum(sum);
            m = top;
#pragma unroll
            for (uint j = 0; j < VECTORS; j++)
                o[j] *= fade;
            for (uint key = 0; key < n; key++) {
                gin *vr = vh + (uint)row[key] * p.v_row;

#pragma unroll
                for (uint j = 0; j < VECTORS; j++)
                    if (j * FV < p.d)
                        o[j] += s[key] * in_load(vr + j * FV, p.d - j * FV);
            }
        }
#pragma unroll
        for (uint j = 0; j < VECTORS; j++)
            if (j * FV < p.d)
                out_store(is_empty ? (fv)(0.0f) : o[j] / l, to + j * FV, p.d - j * FV);
    }
}
