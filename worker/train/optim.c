#include "worker/train/optim.h"
#include "common/base/alloc.h"

#include <math.h>
#include <stdlib.h>

struct pseg_optim {
    pseg_params *params;
    pseg_optim_options options;
    uint64_t steps;
    pseg_mem *norm, *work;
    uint64_t bytes;
    pseg_muon *muon;           /* or NULL */
    pseg_params_range *ranges; /* AdamW's */
    size_t n_ranges;
};

#define MUON_BETA 0.95f

/* ---- whose step is AdamW's ------------------------------------------------------------------- */

static int by_place(const void *a, const void *b)
{
    const pseg_params_range *x = a, *y = b;

    return x->off < y->off ? -1 : x->off > y->off;
}

/* All neighbours that are treated alike, or, beside Muon, those of its tensors that are left: one
 * behind the other they are one range. */
static pseg_status find_ranges(pseg_optim *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_params_range *all;
    size_t n_all = pseg_params_ranges(o->params, &all), count = pseg_params_count(o->params);

    o->ranges = pseg_calloc(n_all > count ? n_all : count, sizeof *o->ranges);
    if (!o->ranges)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an optimiser");
    for (size_t i = 0; i < n_all && !o->muon; i++)
        o->ranges[o->n_ranges++] = all[i];
    for (size_t i = 0; i < count && o->muon; i++) {
        const pseg_param *p = pseg_params_at(o->params, i);

        if (!p->is_frozen && !pseg_muon_takes(p))
            o->ranges[o->n_ranges++] =
                (pseg_params_range){p->off, p->elems, p->group, p->has_decay};
    }
    qsort(o->ranges, o->n_ranges, sizeof *o->ranges, by_place);
    size_t n = 0;
    for (size_t i = 0; i < o->n_ranges; i++) {
        pseg_params_range r = o->ranges[i], *last = n ? &o->ranges[n - 1] : NULL;

        if (last && last->group == r.group && last->has_decay == r.has_decay &&
            r.off - (last->off + last->elems) < 64) /* a gap, of zeros */
            last->elems = r.off + r.elems - last->off;
        else
            o->ranges[n++] = r;
    }
    o->n_ranges = n;
out:
    return rc;
}

pseg_status pseg_optim_new(pseg_optim **out, pseg_cl *cl, pseg_params *params,
                           const pseg_optim_options *options, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_optim *o = pseg_calloc(1, sizeof *o);
    size_t work = pseg_train_norm_work(pseg_params_elems(params));

    *out = NULL;
    if (!o)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an optimiser");
    PSEG_REQUIRE(options->ema <= 0 || pseg_params_has_ema(params), "memory for the average");
    o->params = params;
    o->options = *options;
    PSEG_TRY(pseg_mem_new(&o->norm, cl, PSEG_NORM_OUT * sizeof(float), err));
    PSEG_TRY(pseg_mem_new(&o->work, cl, work * sizeof(float), err));
    o->bytes = (work + PSEG_NORM_OUT) * sizeof(float);
    if (options->lr_muon > 0) {
        pseg_muon_options m = {options->lr_muon, options->decay, MUON_BETA};

        PSEG_TRY(pseg_muon_new(&o->muon, cl, params, &m, err));
        o->bytes += pseg_muon_bytes(o->muon);
    }
    PSEG_TRY(find_ranges(o, err));
    *out = o;
    o = NULL;
out:
    pseg_optim_free(o);
    return rc;
}

void pseg_optim_free(pseg_optim *o)
{
    if (!o)
        return;
    pseg_mem_free(o->norm);
    pseg_mem_free(o->work);
    pseg_muon_free(o->muon);
    pseg_free(o->ranges);
    pseg_free(o);
}

uint64_t pseg_optim_bytes(const pseg_optim *o)
{
    return o->bytes;
}

uint64_t pseg_optim_steps(const pseg_optim *o)
{
    return o->steps;
}

void pseg_optim_set_steps(pseg_optim *o, uint64_t steps)
{
    o->steps = steps;
}

static pseg_view at(const pseg_params *p, pseg_params_buffer which, size_t off)
{
    pseg_mem *m = pseg_params_mem(p, which);

    return m ? pseg_view_of(m, off) : PSEG_NO_VIEW;
}

pseg_status pseg_optim_step(float *norm, pseg_optim *o, pseg_stream *s, float scale, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_optim_options *op = &o->options;
    const pseg_params_range *ranges = o->ranges;
    double t = (double)o->steps + 1;
    float told[PSEG_NORM_OUT], keep = (float)((1 + t) / (10 + t));
    pseg_adamw a = {.norm = pseg_view_of(o->norm, 0),
                    .beta1 = op->beta1,
                    .beta2 = op->beta2,
                    .eps = op->eps,
                    .correct1 = (float)(1 - pow(op->beta1, t)),
                    .correct2 = (float)(1 - pow(op->beta2, t)),
                    .ema_keep = op->ema < keep ? op->ema : keep};

    PSEG_TRY(pseg_train_norm(s, a.norm, at(o->params, PSEG_PARAMS_GRAD, 0),
                             pseg_params_elems(o->params), op->clip, pseg_view_of(o->work, 0),
                             err));
    for (size_t i = 0; i < o->n_ranges; i++) {
        size_t off = ranges[i].off;

        a.value = at(o->params, PSEG_PARAMS_VALUE, off);
        a.grad = at(o->params, PSEG_PARAMS_GRAD, off);
        a.mean = at(o->params, PSEG_PARAMS_MEAN, off);
        a.square = at(o->params, PSEG_PARAMS_SQUARE, off);
        a.ema = op->ema > 0 ? at(o->params, PSEG_PARAMS_EMA, off) : PSEG_NO_VIEW;
        a.n = ranges[i].elems;
        a.lr = op->lr[ranges[i].group] * scale;
        a.decay = ranges[i].has_decay ? op->decay : 0;
        PSEG_TRY(pseg_train_adamw(s, &a, err));
    }
    if (o->muon)
        PSEG_TRY(pseg_muon_step(o->muon, s, a.norm, scale, a.ema_keep, err));
    PSEG_TRY(pseg_mem_read(told, s, o->norm, 0, sizeof told, err));
    PSEG_TRY(pseg_stream_finish(s, err));
    *norm = told[PSEG_NORM_NORM];
    if (told[PSEG_NORM_IS_FINITE] > 0)
        o->steps++;
out:
    return rc;
}

float pseg_optim_schedule(uint64_t step, uint64_t warm, uint64_t total)
{
    if (step < warm)
        return (float)((double)(step + 1) / (double)warm);
    if (step >= total)
        return 0;
    return (float)(0.5 * (1 + cos(M_PI * (double)(step - warm) / (double)(total - warm))));
}
