#include "tests/golden/tuned_choice.h"
#include "worker/ops/tune.h"

#include <string.h>

pseg_status tuned_choice_keep(const pseg_cl *cl, pseg_err *err)
{
    const pseg_op *op = pseg_op_find("gemm");
    static pseg_tuning t; /* too large for a stack */
    size_t k = 0;

    while (strcmp(op->variants->classes[k].name, "f32/1023") != 0)
        k++;
    t.n = 1;
    t.choices[0] = (pseg_tune_choice){.op = op,
                                      .class_index = k,
                                      .best = pseg_op_variant_find(op, "f32-2x1", 7),
                                      .usual = pseg_op_variant_find(op, "f32-6x1", 7),
                                      .best_ms = 1,
                                      .usual_ms = 2};
    return pseg_tuning_save(&t, cl, err);
}

bool tuned_choice_is_taken(const pseg_cl *cl)
{
    pseg_op_args a = {.i = {257, 64, 64, 64, 64, 64, 0}};

    return strcmp(pseg_op_choose(cl, pseg_op_find("gemm"), &a)->name, "f32-2x1") == 0;
}
