#include "worker/model/layers.h"

pseg_status pseg_linear_run(pseg_stream *s, const pseg_linear *l, pseg_view out, pseg_view a,
                            size_t rows, pseg_act act, pseg_err *err)
{
    pseg_gemm g = {.out = out,
                   .a = a,
                   .w = l->w,
                   .bias = l->bias,
                   .m = rows,
                   .n = l->n,
                   .k = l->k,
                   .act = act};

    return pseg_op_gemm(s, &g, err);
}

pseg_status pseg_linear_add(pseg_stream *s, const pseg_linear *l, pseg_view x, pseg_view a,
                            pseg_view scale, size_t rows, pseg_err *err)
{
    pseg_gemm g = {.out = x,
                   .a = a,
                   .w = l->w,
                   .bias = l->bias,
                   .res = x,
                   .scale = scale,
                   .m = rows,
                   .n = l->n,
                   .k = l->k};

    return pseg_op_gemm(s, &g, err);
}

pseg_status pseg_norm_run(pseg_stream *s, const pseg_norm *n, pseg_view out, pseg_view x,
                          size_t rows, size_t c, float eps, pseg_act act, pseg_err *err)
{
    pseg_layernorm l = {
        .out = out, .x = x, .w = n->w, .b = n->b, .rows = rows, .c = c, .eps = eps, .act = act};

    return pseg_op_layernorm(s, &l, err);
}
