/* The inside of a graph, shared by graph.c (building), graph_plan.c (memory) and graph_run.c
 * (running) only. */
#ifndef PSEG_TRAIN_GRAPH_PARTS_H
#define PSEG_TRAIN_GRAPH_PARTS_H

#include "worker/train/graph.h"

#define PSEG_GRAPH_MAX_INPUTS 4

typedef enum pseg_graph_kind {
    PSEG_GRAPH_LINEAR,    /* x, w, b, res */
    PSEG_GRAPH_CONV3,     /* x, w, b */
    PSEG_GRAPH_LAYERNORM, /* x, w, b */
    PSEG_GRAPH_GROUPNORM, /* x, w, b */
    PSEG_GRAPH_ACT,       /* x */
    PSEG_GRAPH_ADD,       /* x, y */
    PSEG_GRAPH_ATTENTION, /* q, k, v, key_len */
    PSEG_GRAPH_ROWS,      /* x */
    PSEG_GRAPH_REPEAT,    /* x */
    PSEG_GRAPH_GATHER,    /* x, idx */
    PSEG_GRAPH_STACK,     /* parts */
    PSEG_GRAPH_MASKDOT,   /* q, x */
    PSEG_GRAPH_LOSS,      /* logits, target, weight, iou */
    PSEG_GRAPH_PATCHES,   /* pixels */
    PSEG_GRAPH_TOKENS,    /* patch, cls, regs, pos */
    PSEG_GRAPH_SWIGLU,    /* x */
    PSEG_GRAPH_L2NORM,    /* x */
    PSEG_GRAPH_SCALE,     /* x, s */
    PSEG_GRAPH_ENLARGE,   /* x */
} pseg_graph_kind;

typedef struct pseg_graph_op {
    pseg_graph_kind kind;
    pseg_var out, in[PSEG_GRAPH_MAX_INPUTS];
    uint32_t n_in;
    /* Shapes; views in them are filled in when the operation runs. */
    union {
        pseg_gemm linear;
        pseg_conv3 conv3;
        pseg_layernorm layernorm;
        pseg_groupnorm groupnorm;
        pseg_attention attention;
        struct {
            size_t batch, n, c;
            bool y_repeats;
        } add;
        struct {
            size_t elems;
            pseg_act act;
        } act;
        struct {
            size_t batch, t, c, row, n, n_x;
        } rows; /* rows, repeat, gather */
        struct {
            size_t batch, c, t, rows[PSEG_GRAPH_MAX_PARTS];
            bool repeats[PSEG_GRAPH_MAX_PARTS];
        } stack;
        struct {
            size_t batch, n, c;
        } maskdot;
        struct {
            size_t batch, n;
            pseg_loss_weights w;
        } loss;
        struct {
            size_t batch, channels, gh, gw, p;
        } patches;
        pseg_tokens tokens;
        pseg_enlarge enlarge;
        struct {
            size_t rows, c;
            float eps;
        } flat; /* swiglu, l2norm, scale */
    } u;
} pseg_graph_op;

typedef enum pseg_var_kind { PSEG_VAR_INPUT, PSEG_VAR_PARAM, PSEG_VAR_MADE } pseg_var_kind;

#define PSEG_NO_OP UINT32_MAX

typedef struct pseg_graph_var {
    pseg_var_kind kind;
    size_t elems;
    size_t param;     /* PARAM: its number */
    uint32_t by;      /* MADE: the operation, else PSEG_NO_OP */
    uint32_t last_by; /* the last operation that takes it, or PSEG_NO_OP */
    bool is_kept, has_grad;
    size_t off;         /* INPUT, MADE: in the plan's memory, elements */
    pseg_var grad_as;   /* whose gradient lies in the same place: itself or an operation's output */
    size_t grad_off;    /* MADE with has_grad */
    bool is_grad_begun; /* while running backward: add to it from now on */
} pseg_graph_var;

struct pseg_graph {
    pseg_cl *cl;
    const pseg_params *params;
    bool has_backward;
    pseg_graph_op *ops;
    pseg_graph_var *vars;
    size_t n_ops, cap_ops, n_vars, cap_vars;
    pseg_status rc; /* of building */
    pseg_err why;
    pseg_mem *mem;
    uint64_t bytes, unshared;
};

/* The operations of graph_encoder.c: both directions of those that run.c does not know. */
pseg_status pseg_graph_forward_encoder(const pseg_graph *g, pseg_stream *s, const pseg_graph_op *op,
                                       pseg_err *err);
pseg_status pseg_graph_backward_encoder(pseg_graph *g, pseg_stream *s, const pseg_graph_op *op,
                                        pseg_err *err);

/* The same of graph_loss.c: the loss, and what goes before it. */
pseg_status pseg_graph_forward_loss(const pseg_graph *g, pseg_stream *s, const pseg_graph_op *op,
                                    pseg_err *err);
pseg_status pseg_graph_backward_loss(pseg_graph *g, pseg_stream *s, const pseg_graph_op *op,
                                     pseg_err *err);

/* Appends an operation and makes its output of `elems` numbers. The first n_required inputs must be
 * there. */
pseg_var pseg_graph_add_op(pseg_graph *g, pseg_graph_op op, uint32_t n_required, size_t elems);
/* Of a made tensor, or of a parameter. */
pseg_view pseg_graph_grad_view(const pseg_graph *g, pseg_var v);
/* Where the gradient of v goes, the first time or once more; PSEG_NO_GRAD if none is wanted. */
pseg_grad pseg_graph_wanted(pseg_graph *g, pseg_var v);

/* Does the gradient of op read the value of its input i? */
bool pseg_graph_reads(const pseg_graph *g, const pseg_graph_op *op, uint32_t i);
/* ... and that of its output? */
bool pseg_graph_reads_out(const pseg_graph_op *op);
/* The input whose gradient is the output's, number for number, or UINT32_MAX. */
uint32_t pseg_graph_passes(const pseg_graph_op *op);

static inline bool pseg_graph_wants(const pseg_graph *g, pseg_var v)
{
    return v >= 0 && g->vars[v].has_grad;
}

#endif
