/* The training graph and the optimiser against PyTorch: the loss and every gradient of a small
 * head, then ten steps of AdamW (golden_train.py). */
#include "common/base/alloc.h"
#include "tests/golden/train_support.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const train_case pooled = {.name = "train_pooled"};
static const train_case tokens = {.name = "train_tokens", .has_words = true};
static const train_case muon = {.name = "train_muon", .has_words = true, .is_muon = true};
static const train_case deep = {.name = "train_deep", .has_words = true, .is_deep = true};

/* Twice the same gives twice the gradient, to the last bit, and a run gives the same bits again. */
static unsigned adds_and_repeats(pseg_cl *cl)
{
    setup t;
    unsigned bad = 0;
    size_t n;
    float *once, *again, *twice;

    train_open(&t, cl, &tokens, false);
    n = pseg_params_elems(t.params);
    train_pass(&t, true);
    once = train_read_all(&t, PSEG_PARAMS_GRAD);
    train_pass(&t, true);
    again = train_read_all(&t, PSEG_PARAMS_GRAD);
    train_pass(&t, false);
    twice = train_read_all(&t, PSEG_PARAMS_GRAD);
    if (memcmp(once, again, n * sizeof *once) != 0) {
        printf("FAIL a pass gave other bits the second time\n");
        bad++;
    }
    /* Several terms are added to what is there one by one: rounding differs. */
    double off = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        off += pow((double)twice[i] - 2 * (double)once[i], 2);
        size += pow(2 * (double)once[i], 2);
    }
    if (!(off <= 1e-12 * size)) {
        printf("FAIL two passes without zeroing: NMSE %g\n", off / size);
        bad++;
    }
    pseg_free(once);
    pseg_free(again);
    pseg_free(twice);
    train_close(&t);
    return bad;
}

/* A gradient that is not a number changes nothing; the slow average follows the weights. */
static unsigned skips_and_averages(pseg_cl *cl)
{
    setup t;
    unsigned bad = 0;
    float *before, *after, *ema, norm, nan = NAN;
    size_t n;

    train_open(&t, cl, &pooled, true);
    n = pseg_params_elems(t.params);
    gold_must(pseg_params_copy(t.params, t.s, PSEG_PARAMS_EMA, PSEG_PARAMS_VALUE, &t.err) ==
                  PSEG_OK,
              "copy", &t.err);
    before = train_read_all(&t, PSEG_PARAMS_VALUE);
    train_pass(&t, true);
    train_put(&t, pseg_params_view(t.params, 3, PSEG_PARAMS_GRAD), &nan, 1);
    gold_must(pseg_optim_step(&norm, t.optim, t.s, 1, &t.err) == PSEG_OK, "step", &t.err);
    after = train_read_all(&t, PSEG_PARAMS_VALUE);
    if (isfinite(norm) || pseg_optim_steps(t.optim) != 0 ||
        memcmp(before, after, n * sizeof *after) != 0) {
        printf("FAIL a gradient of nan: norm %g, %d steps\n", norm, (int)pseg_optim_steps(t.optim));
        bad++;
    }
    pseg_free(after);
    train_pass(&t, true);
    gold_must(pseg_optim_step(&norm, t.optim, t.s, 1, &t.err) == PSEG_OK, "step", &t.err);
    after = train_read_all(&t, PSEG_PARAMS_VALUE);
    ema = train_read_all(&t, PSEG_PARAMS_EMA);
    size_t moved = 0;
    for (size_t i = 0; i < n; i++) { /* keeps 2/11 of itself in the first step */
        double want = (double)before[i] + ((double)after[i] - (double)before[i]) * (9.0 / 11.0);
        moved += before[i] != after[i];
        if (!(fabs(want - (double)ema[i]) <= 1e-6 * (1 + fabs(want)))) {
            printf("FAIL average %zu: %g, expected %g\n", i, (double)ema[i], want);
            bad++;
            break;
        }
    }
    size_t all =
        (size_t)pseg_params_total(t.params); /* in zeros that fill up panels nothing moves */
    if (moved < all * 9 / 10 || moved > all) {
        printf("FAIL %zu of %zu weights moved\n", moved, all);
        bad++;
    }
    pseg_free(before);
    pseg_free(after);
    pseg_free(ema);
    train_close(&t);
    return bad;
}

int main(void)
{
    pseg_cl *cl = gold_cl();
    unsigned bad = 0;

    bad += train_ten_steps(cl, &pooled);
    bad += train_ten_steps(cl, &tokens);
    bad += train_ten_steps(cl, &deep);
    bad += train_ten_steps(cl, &muon);
    bad += adds_and_repeats(cl);
    bad += skips_and_averages(cl);
    pseg_cl_close(cl);
    return bad ? 1 : 0;
}
