/* The gradient of a packed weight: a sum over many rows, taken in pieces. */
#include "worker/ops/weight_grad.h"
#include "worker/ops/reduce.h"

/* The kernel's own: of k in a block, rows that are packed at a time, columns of an item. */
enum { KB = 48, MB = 128, COLUMNS = 256, TILE = 64 };
/* Rows of a piece at least, pieces at most, and bytes that all their results may take: what one
 * reads of x and g is read once a piece, but each result is written and added up again. */
enum { PIECE_ROWS = 512, PIECES = 16, PIECE_BYTES = 8 << 20 };

static void credit(pseg_stream *s, const pseg_weight_grad_params *p)
{
    double m = p->m, n = p->n, c = p->c, taps = p->taps;

    pseg_stream_credit(s, 2 * m * n * c * taps, sizeof(float) * (m * n + m * c + n * c * taps));
}

/* In pieces, whose number depends on sizes alone, so that sums do too. */
static pseg_status launch_pieces(pseg_stream *s, const pseg_tensor *out, pseg_arg x,
                                 const pseg_tensor *g, pseg_weight_grad_params *p, pseg_err *err)
{
    static const pseg_kernel wide = {"gemm_backward.cl", "weight_grad", "-DMR=12 -DNV=2"};
    static const pseg_kernel narrow = {"gemm_backward.cl", "weight_grad", "-DMR=6 -DNV=1"};
    pseg_status rc = PSEG_OK;
    const pseg_device_info *d = pseg_cl_device(pseg_stream_cl(s));
    size_t elems = pseg_gemm_packed_elems(p->n, (size_t)p->c * p->taps);
    size_t pieces = p->m / PIECE_ROWS, most = PIECE_BYTES / (elems * sizeof(float));
    pseg_sum sum = {.out = *out, .groups = 1, .c = elems, .inner_stride = elems, .alpha = 1.0f};
    pseg_tensor to = *out;
    pseg_mem *mem = NULL;

    pieces = pieces > PIECES ? PIECES : pieces;
    pieces = pieces > most ? most : pieces;
    if (pieces < 1)
        pieces = 1;
    p->rows_per_item = (uint32_t)((p->m + pieces - 1) / pieces + MB - 1) / MB * MB;
    pieces = (p->m + p->rows_per_item - 1) / p->rows_per_item;
    if (pieces > 1) {
        PSEG_TRY(pseg_stream_scratch(&mem, s, pieces * elems * sizeof(float), err));
        sum.add = p->add;
        p->add = 0;
        to = (pseg_tensor){.mem = mem};
    }
    p->piece = elems;
    p->out_off = to.off;
    /* Eight items for each core, if there is so much to do: by blocks, then by columns. */
    size_t blocks = ((size_t)p->c + KB - 1) / KB * p->taps;
    size_t panels = ((size_t)p->n + PSEG_PANEL - 1) / PSEG_PANEL;
    size_t splits = (panels * PSEG_PANEL + COLUMNS - 1) / COLUMNS;
    size_t wanted = (8 * (size_t)d->compute_units + pieces - 1) / pieces;
    size_t parts = (wanted + splits - 1) / splits;
    parts = parts > blocks ? blocks : parts;
    p->blocks_per_item = (uint32_t)((blocks + parts - 1) / parts);
    parts = (blocks + p->blocks_per_item - 1) / p->blocks_per_item;
    splits = splits * parts < wanted ? (wanted + parts - 1) / parts : splits;
    splits = splits > panels ? panels : splits;
    p->columns_per_item = (uint32_t)((panels + splits - 1) / splits * PSEG_PANEL);
    splits = (panels * PSEG_PANEL + p->columns_per_item - 1) / p->columns_per_item;
    size_t global[3] = {parts, splits, pieces}, local[3] = {1, 1, 1};
    pseg_arg args[] = {PSEG_ARG_MEM(to.mem), x, PSEG_ARG_MEM(g->mem), PSEG_ARG_VALUE(*p)};
    PSEG_TRY(pseg_launch(s, d->vector_width >= 16 ? &wide : &narrow, 3, global, local, args,
                         N_OF(args), err));
    credit(s, p);
    if (pieces > 1) {
        sum.x = to;
        sum.count = pieces;
        PSEG_TRY(pseg_sum_rows(s, &sum, 0, err));
    }
out:
    return rc;
}

pseg_status pseg_weight_grad(pseg_stream *s, const pseg_tensor *out, bool add, pseg_arg x,
                             const pseg_tensor *g, pseg_weight_grad_params *p, pseg_err *err)
{
    static const pseg_kernel portable = {"gemm_backward.cl", "weight_grad", NULL};
    pseg_status rc = PSEG_OK;

    p->add = add;
    p->out_off = out->off;
    p->g_off = g->off;
    if (pseg_cl_variant_of(pseg_stream_cl(s)) != PSEG_CL_PORTABLE)
        return launch_pieces(s, out, x, g, p, err);
    pseg_arg args[] = {PSEG_ARG_MEM(out->mem), x, PSEG_ARG_MEM(g->mem), PSEG_ARG_VALUE(*p)};
    size_t global[2] = {((size_t)p->n + TILE - 1) / TILE * 16,
                        ((size_t)p->c + TILE - 1) / TILE * p->taps * 16};
    size_t local[2] = {16, 16};
    PSEG_TRY(pseg_launch(s, &portable, 2, global, local, args, N_OF(args), err));
    credit(s, p);
out:
    return rc;
}
