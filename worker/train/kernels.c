#include "worker/train/kernels.h"
#include "kernels/params.h"

#include <math.h>

#define NORM_CHUNK 4096u

static const pseg_kernel loss_kernel = {"train.cl", "mask_loss", NULL};
static const pseg_kernel loss_backward_kernel = {"train.cl", "mask_loss_backward", NULL};
static const pseg_kernel squares_kernel = {"train.cl", "square_sums", NULL};
static const pseg_kernel norm_kernel = {"train.cl", "grad_norm", NULL};
static const pseg_kernel adamw_kernel = {"train.cl", "adamw", NULL};
static const pseg_kernel scale_kernel = {"train.cl", "scale_rows", NULL};
static const pseg_kernel scale_sums_kernel = {"train.cl", "scale_sums", NULL};

static const pseg_kernel enlarge_kernel = {"train.cl", "enlarge", NULL};
static const pseg_kernel enlarge_rows_kernel = {"train.cl", "enlarge_rows_backward", NULL};
static const pseg_kernel enlarge_columns_kernel = {"train.cl", "enlarge_columns_backward", NULL};

#define SCALE_PIECES 32u /* of rows, whose sums are added up afterwards */

static bool is_cpu(pseg_stream *s)
{
    return pseg_cl_variant_of(pseg_stream_cl(s)) == PSEG_CL_CPU;
}

/* A work-group for each of `groups`: one item on a CPU, 64 elsewhere. The last argument is its
 * local memory, a float an item. */
static pseg_status launch_groups(pseg_stream *s, const pseg_kernel *k, size_t groups,
                                 pseg_arg *args, size_t n_args, pseg_err *err)
{
    size_t local = is_cpu(s) ? 1 : 64, global = groups * local;

    args[n_args - 1] = PSEG_ARG_LOCAL(local * sizeof(float));
    return pseg_launch(s, k, 1, &global, &local, args, n_args, err);
}

/* Items that stride over n elements. */
static pseg_status launch_flat(pseg_stream *s, const pseg_kernel *k, size_t n, const pseg_arg *args,
                               size_t n_args, pseg_err *err)
{
    size_t local = is_cpu(s) ? 1 : 64, most, global;

    most = is_cpu(s) ? 32 * (size_t)pseg_cl_device(pseg_stream_cl(s))->compute_units : 1u << 18;
    global = (n + 63) / 64 * (is_cpu(s) ? 1 : 64);
    global = global > most ? most : global;
    return pseg_launch(s, k, 1, &global, &local, args, n_args, err);
}

pseg_status pseg_train_launch_lines(pseg_stream *s, const pseg_kernel *k, size_t lines,
                                    size_t width, const pseg_arg *args, size_t n_args,
                                    pseg_err *err)
{
    size_t most = 8 * (size_t)pseg_cl_device(pseg_stream_cl(s))->compute_units;
    size_t global[2] = {is_cpu(s) ? 1 : (width + 63) / 64 * 64,
                        is_cpu(s) && lines > most ? most : lines};
    size_t local[2] = {is_cpu(s) ? 1 : 64, 1};

    global[1] = global[1] > 65535 ? 65535 : global[1];
    return pseg_launch(s, k, 2, global, local, args, n_args, err);
}

static pseg_loss_params loss_params(const pseg_mask_loss *l)
{
    return (pseg_loss_params){.stats_off = l->stats.off,
                              .logits_off = l->logits.off,
                              .target_off = l->target.off,
                              .weight_off = l->weight.off,
                              .iou_off = l->iou.off,
                              .batch = (pseg_u32)l->batch,
                              .n = (pseg_u32)l->n,
                              .w_bce = l->w.bce,
                              .w_dice = l->w.dice,
                              .w_iou = l->w.iou};
}

static pseg_status check_loss(const pseg_mask_loss *l, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_REQUIRE(l->batch > 0 && l->batch <= INT32_MAX && l->n > 0 && l->n <= INT32_MAX, "sizes");
    PSEG_REQUIRE(l->stats.mem && l->logits.mem && l->target.mem && l->weight.mem && l->iou.mem,
                 "tensors");
out:
    return rc;
}

pseg_status pseg_train_loss(pseg_stream *s, const pseg_mask_loss *l, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_loss_params p = loss_params(l);
    pseg_arg args[] = {PSEG_ARG_MEM(l->stats.mem),
                       PSEG_ARG_MEM(l->logits.mem),
                       PSEG_ARG_MEM(l->target.mem),
                       PSEG_ARG_MEM(l->weight.mem),
                       PSEG_ARG_MEM(l->iou.mem),
                       PSEG_ARG_VALUE(p),
                       PSEG_ARG_NONE};

    PSEG_TRY(check_loss(l, err));
    PSEG_TRY(launch_groups(s, &loss_kernel, l->batch, args, 7, err));
out:
    return rc;
}

pseg_status pseg_train_loss_backward(pseg_stream *s, const pseg_mask_loss *l, pseg_view d_logits,
                                     pseg_view d_iou, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_loss_params p = loss_params(l);

    PSEG_TRY(check_loss(l, err));
    PSEG_REQUIRE(d_logits.mem && (d_iou.mem || l->w.iou <= 0), "gradients");
    p.d_logits_off = d_logits.off;
    p.d_iou_off = d_iou.off;
    pseg_arg args[] = {PSEG_ARG_MEM(d_logits.mem),
                       d_iou.mem ? PSEG_ARG_MEM(d_iou.mem) : PSEG_ARG_NONE,
                       PSEG_ARG_MEM(l->stats.mem),
                       PSEG_ARG_MEM(l->logits.mem),
                       PSEG_ARG_MEM(l->target.mem),
                       PSEG_ARG_MEM(l->weight.mem),
                       PSEG_ARG_VALUE(p)};
    PSEG_TRY(launch_flat(s, &loss_backward_kernel, l->batch * l->n, args, 7, err));
out:
    return rc;
}

static pseg_resize_params resize_params(const pseg_enlarge *e)
{
    return (pseg_resize_params){.batch = (pseg_u32)e->batch,
                                .gh = (pseg_u32)e->gh,
                                .gw = (pseg_u32)e->gw,
                                .stages = (pseg_u32)e->stages,
                                .oh = (pseg_u32)e->oh,
                                .ow = (pseg_u32)e->ow};
}

static pseg_status check_enlarge(const pseg_enlarge *e, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_REQUIRE(e->stages <= 8 && e->gh > 0 && e->gh <= 4096 && e->gw > 0 && e->gw <= 4096 &&
                     e->oh > 0 && e->oh <= 65536 && e->ow > 0 && e->ow <= 65536,
                 "sizes");
    PSEG_REQUIRE(e->batch > 0 && e->batch * e->oh <= INT32_MAX &&
                     e->batch * (e->gh << e->stages) <= INT32_MAX,
                 "batch");
out:
    return rc;
}

pseg_status pseg_train_enlarge(pseg_stream *s, const pseg_enlarge *e, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_resize_params p = resize_params(e);

    PSEG_TRY(check_enlarge(e, err));
    PSEG_REQUIRE(e->out.mem && e->x.mem, "tensors");
    p.out_off = e->out.off;
    p.x_off = e->x.off;
    pseg_arg args[] = {PSEG_ARG_MEM(e->out.mem), PSEG_ARG_MEM(e->x.mem), PSEG_ARG_VALUE(p)};
    PSEG_TRY(pseg_train_launch_lines(s, &enlarge_kernel, e->batch * e->oh, e->ow, args, 3, err));
out:
    return rc;
}

pseg_status pseg_train_enlarge_backward(pseg_stream *s, const pseg_enlarge *e, pseg_view d_x,
                                        bool add, pseg_view d_out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t lines = e->batch * (e->gh << e->stages);
    pseg_resize_params p = resize_params(e);
    pseg_mem *work = NULL;

    PSEG_TRY(check_enlarge(e, err));
    PSEG_REQUIRE(d_x.mem && d_out.mem, "tensors");
    PSEG_TRY(pseg_stream_scratch(&work, s, lines * e->ow * sizeof(float), err));
    p.x_off = d_out.off;
    p.out_off = d_x.off;
    p.add = add;
    pseg_arg rows[] = {PSEG_ARG_MEM(work), PSEG_ARG_MEM(d_out.mem), PSEG_ARG_VALUE(p)};
    pseg_arg columns[] = {PSEG_ARG_MEM(d_x.mem), PSEG_ARG_MEM(work), PSEG_ARG_VALUE(p)};
    PSEG_TRY(pseg_train_launch_lines(s, &enlarge_rows_kernel, lines, e->ow, rows, 3, err));
    PSEG_TRY(pseg_train_launch_lines(s, &enlarge_columns_kernel, lines, e->gw << e->stages, columns,
                                     3, err));
out:
    return rc;
}

static pseg_scale_params scale_params(pseg_view out, pseg_view x, pseg_view y, size_t rows,
                                      size_t c, bool add)
{
    return (pseg_scale_params){.out_off = out.off,
                               .x_off = x.off,
                               .y_off = y.off,
                               .c = c,
                               .rows = (pseg_u32)rows,
                               .piece = (pseg_u32)((rows + SCALE_PIECES - 1) / SCALE_PIECES),
                               .add = add,
                               .has_y = y.mem != NULL};
}

pseg_status pseg_train_scale(pseg_stream *s, pseg_view out, pseg_view x, pseg_view scale,
                             size_t rows, size_t c, bool add, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_scale_params p = scale_params(out, x, scale, rows, c, add);
    pseg_arg args[] = {PSEG_ARG_MEM(out.mem), PSEG_ARG_MEM(x.mem), PSEG_ARG_MEM(scale.mem),
                       PSEG_ARG_VALUE(p)};

    PSEG_REQUIRE(rows > 0 && rows <= INT32_MAX && c > 0 && c <= INT32_MAX && out.mem && x.mem &&
                     scale.mem,
                 "tensors");
    PSEG_TRY(launch_flat(s, &scale_kernel, rows * c, args, 4, err));
out:
    return rc;
}

pseg_status pseg_train_scale_sums(pseg_stream *s, pseg_view out, pseg_view d, pseg_view x,
                                  size_t rows, size_t c, bool add, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_mem *work = NULL;
    pseg_scale_params p = scale_params(PSEG_NO_VIEW, d, x, rows, c, false), q;
    size_t pieces;

    PSEG_REQUIRE(rows > 0 && rows <= INT32_MAX && c > 0 && c <= INT32_MAX && out.mem && d.mem &&
                     x.mem,
                 "tensors");
    pieces = (rows + p.piece - 1) / p.piece;
    PSEG_TRY(pseg_stream_scratch(&work, s, pieces * c * sizeof(float), err));
    pseg_arg sums[] = {PSEG_ARG_MEM(work), PSEG_ARG_MEM(d.mem), PSEG_ARG_MEM(x.mem),
                       PSEG_ARG_VALUE(p)};
    PSEG_TRY(launch_flat(s, &scale_sums_kernel, pieces * c, sums, 4, err));
    q = scale_params(out, PSEG_NO_VIEW, PSEG_NO_VIEW, pieces, c, add);
    q.piece = (pseg_u32)pieces;
    pseg_arg all[] = {PSEG_ARG_MEM(out.mem), PSEG_ARG_MEM(work), PSEG_ARG_NONE, PSEG_ARG_VALUE(q)};
    PSEG_TRY(launch_flat(s, &scale_sums_kernel, c, all, 4, err));
out:
    return rc;
}

size_t pseg_train_norm_work(size_t n)
{
    return (n + NORM_CHUNK - 1) / NORM_CHUNK;
}

pseg_status pseg_train_norm(pseg_stream *s, pseg_view out, pseg_view x, size_t n, float limit,
                            pseg_view work, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t chunks = pseg_train_norm_work(n), one = 1;
    pseg_sums_params p = {.out_off = out.off,
                          .x_off = x.off,
                          .work_off = work.off,
                          .n = n,
                          .chunk = NORM_CHUNK,
                          .n_chunks = (pseg_u32)chunks,
                          .limit = limit};

    PSEG_REQUIRE(n > 0 && chunks <= INT32_MAX && out.mem && x.mem && work.mem, "tensors");
    pseg_arg sums[] = {PSEG_ARG_MEM(work.mem), PSEG_ARG_MEM(x.mem), PSEG_ARG_VALUE(p),
                       PSEG_ARG_NONE};
    PSEG_TRY(launch_groups(s, &squares_kernel, chunks, sums, 4, err));
    pseg_arg norm[] = {PSEG_ARG_MEM(out.mem), PSEG_ARG_MEM(work.mem), PSEG_ARG_VALUE(p)};
    PSEG_TRY(pseg_launch(s, &norm_kernel, 1, &one, &one, norm, 3, err));
out:
    return rc;
}

pseg_status pseg_train_adamw(pseg_stream *s, const pseg_adamw *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_adamw_params p = {.value_off = a->value.off,
                           .grad_off = a->grad.off,
                           .mean_off = a->mean.off,
                           .square_off = a->square.off,
                           .ema_off = a->ema.off,
                           .norm_off = a->norm.off,
                           .n = a->n,
                           .shrink = 1.0f - a->lr * a->decay,
                           .step = a->lr / a->correct1,
                           .beta1 = a->beta1,
                           .beta2 = a->beta2,
                           .eps = a->eps,
                           .root2 = sqrtf(a->correct2),
                           .ema_keep = a->ema_keep,
                           .flags = a->ema.mem ? HAS_EMA : 0};
    pseg_arg args[] = {PSEG_ARG_MEM(a->value.mem),
                       PSEG_ARG_MEM(a->grad.mem),
                       PSEG_ARG_MEM(a->mean.mem),
                       PSEG_ARG_MEM(a->square.mem),
                       a->ema.mem ? PSEG_ARG_MEM(a->ema.mem) : PSEG_ARG_NONE,
                       PSEG_ARG_MEM(a->norm.mem),
                       PSEG_ARG_VALUE(p)};

    PSEG_REQUIRE(a->n > 0 && a->value.mem && a->grad.mem && a->mean.mem && a->square.mem &&
                     a->norm.mem,
                 "tensors");
    PSEG_TRY(launch_flat(s, &adamw_kernel, a->n, args, 7, err));
out:
    return rc;
}
