#include "worker/model/neck.h"
#include "common/base/alloc.h"
#include "worker/model/layers.h"

#include <stdio.h>

/* Convolution, GroupNorm, GELU. */
typedef struct unit {
    pseg_linear conv;
    pseg_norm norm;
} unit;

struct pseg_neck {
    pseg_head_config c;
    uint32_t gh, gw, max_batch;
    unit lateral[PSEG_MAX_TAPS], smooth[PSEG_MAX_TAPS], fuse;
    pseg_view level[PSEG_MAX_TAPS];
    /* cols: im2col of one map; one: a smoothed map; sum: of all of them, then the result */
    pseg_view cols, one, sum, out;
};

typedef struct unit_name {
    char s[PSEG_SPEC_NAME - 16];
} unit_name;

/* "neck.KIND.I.PART", or "neck.KIND.PART" where i < 0. */
static unit_name name_of(const char *kind, int i, const char *part)
{
    unit_name out;

    if (i < 0)
        snprintf(out.s, sizeof out.s, "neck.%s.%s", kind, part);
    else
        snprintf(out.s, sizeof out.s, "neck.%s.%d.%s", kind, i, part);
    return out;
}

static pseg_status unit_specs(pseg_specs *s, const char *kind, int i, uint64_t n, uint64_t c,
                              uint64_t kernel, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_specs_add(s, 4, (uint64_t[]){n, c, kernel, kernel}, err, "%s.weight",
                            name_of(kind, i, "conv").s));
    PSEG_TRY(pseg_specs_add(s, 1, &n, err, "%s.bias", name_of(kind, i, "conv").s));
    PSEG_TRY(pseg_specs_norm(s, name_of(kind, i, "norm").s, n, err));
out:
    return rc;
}

pseg_status pseg_neck_specs(pseg_specs *out, const pseg_head_config *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (uint32_t i = 0; i < c->n_taps; i++)
        PSEG_TRY(unit_specs(out, "lateral", (int)i, c->dim, c->vision_dim, 1, err));
    for (uint32_t i = 0; i < c->n_taps; i++)
        PSEG_TRY(unit_specs(out, "smooth", (int)i, c->dim, c->dim, 3, err));
    PSEG_TRY(unit_specs(out, "fuse", -1, c->dim, c->dim, 3, err));
out:
    return rc;
}

static pseg_status load_unit(unit *u, pseg_store *store, pseg_weights *w, const char *kind, int i,
                             size_t n, size_t c, bool is_3x3, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    unit_name conv = name_of(kind, i, "conv");

    if (is_3x3)
        PSEG_TRY(pseg_load_conv3(&u->conv, store, w, conv.s, n, c, err));
    else
        PSEG_TRY(pseg_load_linear(&u->conv, store, w, conv.s, n, c, true, err));
    PSEG_TRY(pseg_load_norm(&u->norm, store, w, name_of(kind, i, "norm").s, n, err));
out:
    return rc;
}

pseg_status pseg_neck_new(pseg_neck **out, pseg_store *store, pseg_weights *w,
                          const pseg_head_config *c, uint32_t gh, uint32_t gw, uint32_t max_batch,
                          pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_neck *n = pseg_calloc(1, sizeof *n);
    size_t map = (size_t)max_batch * gh * gw * c->dim;

    *out = NULL;
    if (!n)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the neck");
    n->c = *c;
    n->gh = gh;
    n->gw = gw;
    n->max_batch = max_batch;
    for (uint32_t i = 0; i < c->n_taps; i++) {
        PSEG_TRY(load_unit(&n->lateral[i], store, w, "lateral", (int)i, c->dim, c->vision_dim,
                           false, err));
        PSEG_TRY(load_unit(&n->smooth[i], store, w, "smooth", (int)i, c->dim, c->dim, true, err));
        PSEG_TRY(pseg_store_scratch(&n->level[i], store, map, err));
    }
    PSEG_TRY(load_unit(&n->fuse, store, w, "fuse", -1, c->dim, c->dim, true, err));
    PSEG_TRY(pseg_store_scratch_of(&n->cols, store, pseg_store_input_type(store), 9 * map, err));
    PSEG_TRY(pseg_store_scratch(&n->one, store, map, err));
    PSEG_TRY(pseg_store_scratch(&n->sum, store, map, err));
    PSEG_TRY(pseg_store_scratch(&n->out, store, map, err));
    *out = n;
    n = NULL;
out:
    pseg_neck_free(n);
    return rc;
}

void pseg_neck_free(pseg_neck *n)
{
    pseg_free(n);
}

pseg_view pseg_neck_out(const pseg_neck *n)
{
    return n->out;
}

/* out = GELU(GN(a w^T + bias)), [batch, gh*gw, D]. */
static pseg_status run_unit(pseg_neck *n, pseg_stream *s, const unit *u, pseg_view out, pseg_view a,
                            uint32_t batch, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t places = (size_t)n->gh * n->gw;

    PSEG_TRY(pseg_linear_run(s, &u->conv, out, a, batch * places, PSEG_ACT_NONE, err));
    PSEG_TRY(pseg_op_groupnorm(s,
                               &(pseg_groupnorm){.out = out,
                                                 .x = out,
                                                 .w = u->norm.w,
                                                 .b = u->norm.b,
                                                 .b_n = batch,
                                                 .hw = places,
                                                 .c = n->c.dim,
                                                 .groups = n->c.groups,
                                                 .eps = n->c.gn_eps,
                                                 .act = PSEG_ACT_GELU},
                               err));
out:
    return rc;
}

static pseg_status run_unit3(pseg_neck *n, pseg_stream *s, const unit *u, pseg_view out,
                             pseg_view x, uint32_t batch, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_op_im2col3(s, n->cols, x, batch, n->gh, n->gw, n->c.dim, err));
    PSEG_TRY(run_unit(n, s, u, out, n->cols, batch, err));
out:
    return rc;
}

/* a += b, whole maps. */
static pseg_status add(pseg_neck *n, pseg_stream *s, pseg_view a, pseg_view b, uint32_t batch,
                       pseg_err *err)
{
    size_t d = n->c.dim, places = (size_t)n->gh * n->gw;
    pseg_block x = pseg_block_of(a, places * d, d), y = pseg_block_of(b, places * d, d);

    return pseg_op_add(
        s, &(pseg_add){.out = x, .x = x, .y = y, .batch = batch, .n = places, .c = d, .alpha = 1},
        err);
}

pseg_status pseg_neck_run(pseg_neck *n, pseg_stage *st, const pseg_view *taps, uint32_t batch,
                          pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t d = n->c.dim, places = (size_t)n->gh * n->gw;
    uint32_t last = n->c.n_taps - 1;

    PSEG_REQUIRE(batch >= 1 && batch <= n->max_batch, "batch");
    for (uint32_t i = 0; i <= last; i++) {
        PSEG_TRY(run_unit(n, st->s, &n->lateral[i], n->level[i], taps[i], batch, err));
        pseg_stage_done(st, n->level[i], batch, places, d, "neck.lateral.%u", i);
    }
    for (uint32_t i = last; i > 0; i--)
        PSEG_TRY(add(n, st->s, n->level[i - 1], n->level[i], batch, err));
    for (uint32_t i = 0; i <= last; i++) {
        pseg_view to = i ? n->one : n->sum;
        pseg_stage_done(st, n->level[i], batch, places, d, "neck.level.%u", i);
        PSEG_TRY(run_unit3(n, st->s, &n->smooth[i], to, n->level[i], batch, err));
        pseg_stage_done(st, to, batch, places, d, "neck.smooth.%u", i);
        if (i)
            PSEG_TRY(add(n, st->s, n->sum, n->one, batch, err));
    }
    PSEG_TRY(run_unit3(n, st->s, &n->fuse, n->out, n->sum, batch, err));
    pseg_stage_done(st, n->out, batch, places, d, "neck.fuse");
out:
    return rc;
}
