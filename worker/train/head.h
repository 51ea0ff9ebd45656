/* PSEG-1's neck and decoder as a training graph: the same mathematics as worker/model/neck.c and
 * decoder.c, whose weights it takes and gives.
 *
 * A batch is `batch` samples, each one of n_images images with a phrase. Logits and targets are in
 * the upsampler's own order, in which nothing needs to be moved: pseg_train_head_order says where
 * each pixel of a mask goes. A phrase has at most max_prompt tokens in the prompt; shorter ones are
 * filled with zeros, and masked. An object of one thread. */
#ifndef PSEG_TRAIN_HEAD_H
#define PSEG_TRAIN_HEAD_H

#include "worker/model/config.h"
#include "worker/train/graph.h"
#include "worker/train/towers.h"

typedef struct pseg_train_head pseg_train_head;

typedef struct pseg_train_shape {
    uint32_t gh, gw;     /* that of the configuration's grid */
    uint32_t n_images;   /* at most batch */
    uint32_t batch;      /* samples */
    uint32_t max_prompt; /* 1 if the decoder takes pooled text alone; else 2 .. */
    bool has_backward;
    pseg_loss_weights loss;
    bool at_input; /* the loss is that of logits enlarged to the model's input, height x width */
    /* Deep supervision, in training alone: the weight of a loss of masks of gh x gw that are read
     * off the keys after each two-way block by a linear map; 0: none. Blocks have equal parts of
     * it, and within it BCE and Dice those of `loss`. */
    float deep;
    const pseg_train_towers *towers; /* encoders that are in the graph too; borrowed; or NULL */
} pseg_train_shape;

/* The tensors of neck and decoder. */
pseg_status pseg_train_head_specs(pseg_specs *out, const pseg_head_config *c, pseg_err *err);

/* Appends those of deep supervision, "probe.N.weight" and "probe.N.bias": nothing reads them but a
 * graph with shape.deep. */
pseg_status pseg_train_probe_specs(pseg_specs *out, const pseg_head_config *c, pseg_err *err);

/* params: of these tensors, and of the towers', borrowed until free. */
pseg_status pseg_train_head_new(pseg_train_head **out, pseg_cl *cl, const pseg_params *params,
                                const pseg_head_config *c, const pseg_train_shape *shape,
                                pseg_err *err);
void pseg_train_head_free(pseg_train_head *h); /* NULL: nothing happens */

/* Inputs and results, all float32 but the int32 ones. */
typedef struct pseg_train_views {
    pseg_view taps[PSEG_MAX_TAPS]; /* [n_images, gh*gw, vision_dim] */
    pseg_view image_of; /* int32 [batch]; absent if n_images == batch: sample i, image i */
    pseg_view text;     /* [batch, text_dim], each row of length 1 */
    pseg_view words;    /* [batch, max_prompt - 1, text_hidden]; absent if pooled */
    /* With towers these take the place of taps, and of text and words: */
    pseg_view images;  /* [n_images, 3, height, width] */
    pseg_view ids;     /* int32 [batch, max_tokens] */
    pseg_view ends;    /* int32 [batch]: sample * max_tokens + the place of its EOS */
    pseg_view key_len; /* int32 [batch]: tokens of the prompt, plus 2 */
    pseg_view
        target; /* [batch, pixels], 0..1, in pseg_train_head_order's order; at_input: row by row */
    pseg_view coarse; /* [batch, gh*gw], 0..1, row by row; absent without deep supervision */
    pseg_view weight; /* [batch], of each sample's loss */
    pseg_view logits; /* [batch, pixels], in that order */
    pseg_view iou;    /* [batch], before the sigmoid */
    pseg_view stats;  /* [batch, PSEG_LOSS_STATS] */
} pseg_train_views;
const pseg_train_views *pseg_train_head_views(const pseg_train_head *h);

pseg_graph *pseg_train_head_graph(pseg_train_head *h);
size_t pseg_train_head_pixels(const pseg_train_head *h);  /* of one sample's logits */
size_t pseg_train_head_targets(const pseg_train_head *h); /* and of its target */

/* order[j] = the place, row by row, of the pixel that is number j in logits and targets. */
void pseg_train_head_order(uint32_t *order, const pseg_head_config *c, uint32_t gh, uint32_t gw);

#endif
