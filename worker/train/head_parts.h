/* The inside of the head's graph, shared by head.c and head_decoder.c only. */
#ifndef PSEG_TRAIN_HEAD_PARTS_H
#define PSEG_TRAIN_HEAD_PARTS_H

#include "worker/train/head.h"

/* What building needs at hand. */
typedef struct head_builder {
    pseg_graph *g;
    const pseg_head_config *c;
    const pseg_train_shape *s;
    size_t places, t, rows, keys;        /* tokens a sample; rows of all tokens, of all keys */
    pseg_var pe, pos, key_len, image_of; /* image_of: none if sample i has image i */
    pseg_var weight, coarse; /* the loss's inputs; coarse: none without deep supervision */
} head_builder;

/* A parameter by its name. */
pseg_var head_param(pseg_graph *g, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* x w^T + b (+ res) by the tensors of a prefix. */
pseg_var head_linear(pseg_graph *g, const char *prefix, pseg_var x, pseg_var res, size_t rows,
                     size_t n, size_t k, pseg_act act);

/* The two-way blocks and the attention behind them. *q: tokens [batch, t, dim], also those of
 * b->pe; *k: of images before, where they are fewer than samples; of samples after. */
void head_build_blocks(const head_builder *b, pseg_var *q, pseg_var *k);
/* Keys [batch, places, dim] to pixels [batch, places * 4^n_upsample, the last width]. */
pseg_var head_build_upsampler(const head_builder *b, pseg_var x);
/* An MLP of token `row` of each sample: [batch, n]. */
pseg_var head_build_mlp(const head_builder *b, const char *prefix, pseg_var q, size_t row,
                        size_t n);

#endif
