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

pseg_status pseg_bias_grad(pseg_stream *s, const pseg_tensor *bias, bool adds, const pseg_tensor *g,
                           size_t rows, size_t n, size_t stride, pseg_err *err)
{
    pseg_sum sum = {.out = *bias,
                    .x = *g,
                    .groups = 1,
                    .count = rows,
                    .c = n,
                    .inner_stride = stride,
                    .alpha = 1.0f,
                    .add = adds};

    return pseg_sum_rows(s, &sum, 0, err);
}

static size_t elems_of(const pseg_weight_grad_params *p)
{
    return pseg_gemm_packed_elems(p->n, (size_t)p->c * p->taps);
}

/* How many pieces of rows, which depends on sizes alone, so that sums do too. */
static size_t choose_pieces(pseg_weight_grad_params *p)
{
    size_t elems = elems_of(p), n = p->m / PIECE_ROWS;
    size_t most = PIECE_BYTES / (elems * sizeof(float));

    n = n > PIECES ? PIECES : n;
    n = n > most ? most : n;
    if (n < 1)
        n = 1;
    p->rows_per_item = (uint32_t)((p->m + n - 1) / n + MB - 1) / MB * MB;
    return (p->m + p->rows_per_item - 1) / p->rows_per_item;
}

/* Eight items for each core, if there is so much to do: by blocks, then by columns. */
static void choose_items(size_t global[3], pseg_weight_grad_params *p, size_t pieces, size_t units)
{
    size_t blocks = ((size_t)p->c + KB - 1) / KB * p->taps;
    size_t panels = ((size_t)p->n + PSEG_PANEL - 1) / PSEG_PANEL;
    size_t splits = (panels * PSEG_PANEL + COLUMNS - 1) / COLUMNS;
    size_t wanted = (8 * units + pieces - 1) / pieces;
    size_t parts = (wanted + splits - 1) / splits;

    parts = parts > blocks ? blocks : parts;
    p->blocks_per_item = (uint32_t)((blocks + parts - 1) / parts);
    parts = (blocks + p->blocks_per_item - 1) / p->blocks_per_item;
    splits = splits * parts < wanted ? (wanted + parts - 1) / parts : splits;
    splits = splits > panels ? panels : splits;
    p->columns_per_item = (uint32_t)((panels + splits - 1) / splits * PSEG_PANEL);
    splits = (panels * PSEG_PANEL + p->columns_per_item - 1) / p->columns_per_item;
    global[0] = parts;
    global[1] = splits;
    global[2] = pieces;
}

static pseg_arg mem_of(const pseg_tensor *t)
{
    return t->mem ? PSEG_ARG_MEM(t->mem) : PSEG_ARG_NONE;
}

static uint32_t flags_of(const pseg_weight_grads *out)
{
    return (out->adds_w ? ADDS_W : 0) | (out->bias.mem ? WANTS_BIAS : 0) |
           (out->adds_bias ? ADDS_BIAS : 0);
}

/* Each piece's results lie behind each other, the weight's and then the bias'. */
static pseg_status sum_pieces(pseg_stream *s, const pseg_weight_grads *out, pseg_mem *work,
                              const pseg_weight_grad_params *p, size_t pieces, pseg_err *err)
{
    static const pseg_kernel kernel = {"gemm_backward.cl", "weight_sum", NULL};
    pseg_weight_sum_params q = {.out_off = out->w.off,
                                .bias_off = out->bias.off,
                                .elems = elems_of(p),
                                .piece = p->piece,
                                .n = p->n,
                                .pieces = (uint32_t)pieces,
                                .flags = flags_of(out)};
    pseg_arg args[] = {PSEG_ARG_MEM(out->w.mem), mem_of(&out->bias), PSEG_ARG_MEM(work),
                       PSEG_ARG_VALUE(q)};

    return pseg_launch_rows(s, &kernel, 1, q.piece, args, N_OF(args), err);
}

static pseg_status launch_pieces(pseg_stream *s, const pseg_weight_grads *out, pseg_arg x,
                                 const pseg_tensor *g, pseg_weight_grad_params *p, pseg_err *err)
{
    static const pseg_kernel wide = {"gemm_backward.cl", "weight_grad", "-DMR=12 -DNV=2"};
    static const pseg_kernel narrow = {"gemm_backward.cl", "weight_grad", "-DMR=6 -DNV=1"};
    pseg_status rc = PSEG_OK;
    const pseg_device_info *d = pseg_cl_device(pseg_stream_cl(s));
    size_t pieces = choose_pieces(p), global[3], local[3] = {1, 1, 1};
    pseg_arg to = PSEG_ARG_MEM(out->w.mem), bias = mem_of(&out->bias);
    pseg_mem *mem = NULL;

    p->piece = elems_of(p) + (out->bias.mem ? ((size_t)p->n + 15) / 16 * 16 : 0);
    p->flags = flags_of(out);
    if (pieces > 1) {
        PSEG_TRY(pseg_stream_scratch(&mem, s, pieces * p->piece * sizeof(float), err));
        to = PSEG_ARG_MEM(mem);
        bias = out->bias.mem ? to : bias;
        p->out_off = 0;
        p->bias_off = elems_of(p);
        p->flags &= WANTS_BIAS;
    }
    choose_items(global, p, pieces, d->compute_units);
    pseg_arg args[] = {to, bias, x, PSEG_ARG_MEM(g->mem), PSEG_ARG_VALUE(*p)};
    PSEG_TRY(pseg_launch(s, d->vector_width >= 16 ? &wide : &narrow, 3, global, local, args,
                         N_OF(args), err));
    credit(s, p);
    if (pieces > 1)
        PSEG_TRY(sum_pieces(s, out, mem, p, pieces, err));
out:
    return rc;
}

pseg_status pseg_weight_grad(pseg_stream *s, const pseg_weight_grads *out, pseg_arg x,
                             const pseg_tensor *g, pseg_weight_grad_params *p, pseg_err *err)
{
    static const pseg_kernel portable = {"gemm_backward.cl", "weight_grad", NULL};
    pseg_status rc = PSEG_OK;

    p->flags = flags_of(out);
    p->out_off = out->w.off;
    p->bias_off = out->bias.off;
    p->g_off = g->off;
    if (pseg_cl_variant_of(pseg_stream_cl(s)) != PSEG_CL_PORTABLE)
        return launch_pieces(s, out, x, g, p, err);
    pseg_arg args[] = {PSEG_ARG_MEM(out->w.mem), x, PSEG_ARG_MEM(g->mem), PSEG_ARG_VALUE(*p)};
    size_t global[2] = {((size_t)p->n + TILE - 1) / TILE * 16,
                        ((size_t)p->c + TILE - 1) / TILE * p->taps * 16};
    size_t local[2] = {16, 16};
    PSEG_TRY(pseg_launch(s, &portable, 2, global, local, args, N_OF(args), err));
    credit(s, p);
    if (out->bias.mem)
        PSEG_TRY(pseg_bias_grad(s, &out->bias, out->adds_bias, g, p->m, p->n, p->g_stride, err));
out:
    return rc;
}
