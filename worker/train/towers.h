/* The encoders as parts of a training graph, where they are trained too: the mathematics of
 * worker/model/vit.c and text.c, whose weights are taken and given.
 *
 * Their tensors stand behind the head's in one list, under "vision." and "text." and Hugging Face's
 * names, whatever their files' are. Frozen ones are values alone, and no gradient is computed for
 * what lies below the lowest that is trained. With a rank, LoRA (Hu et al. 2021): the encoders
 * themselves are frozen, and each of a block's query and value gets a product of two small matrices
 * added, "NAME.lora_a.weight" [rank, k] and "NAME.lora_b.weight" [n, rank], the second zero at
 * first; what is exported has them added up (export.h). */
#ifndef PSEG_TRAIN_TOWERS_H
#define PSEG_TRAIN_TOWERS_H

#include "worker/model/config.h"
#include "worker/model/vit.h"
#include "worker/train/graph.h"

#define PSEG_TRAIN_ALL UINT32_MAX

typedef struct pseg_train_towers {
    const pseg_vit_config *vision; /* NULL: the graph's inputs are taps */
    const pseg_clip_config *text;  /* NULL: they are embeddings */
    const char *text_prefix;       /* "text_model." or "" */
    uint32_t max_tokens;           /* of a phrase */
    /* The last so many blocks are trained, and the norm behind them; PSEG_TRAIN_ALL: everything. */
    uint32_t vision_layers, text_layers;
    uint32_t lora_rank; /* 0: the blocks' own weights */
} pseg_train_towers;

/* Appends the towers' tensors, those that a graph of this head reads, to specs. *is_frozen: one for
 * each of specs, the head's included; to be freed with pseg_free. Errors: PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_train_towers_specs(pseg_specs *specs, bool **is_frozen, const pseg_train_towers *t,
                                    const pseg_head_config *head, pseg_err *err);

/* taps: head->n_taps of [n_images, gh*gw, hidden]. *pixels: an input [n_images, 3, height, width].
 * Names that are missing are told by pseg_graph_plan. */
void pseg_train_vision_build(pseg_graph *g, const pseg_train_towers *t,
                             const pseg_head_config *head, uint32_t n_images, pseg_var *pixels,
                             pseg_var *taps);

/* *ids: an input int32 [batch, max_tokens], BOS first; *ends: int32 [batch], i * max_tokens + the
 * place of phrase i's EOS. *embed: [batch, proj] of length 1. *words: [batch, max_tokens - 1,
 * hidden], what follows BOS. */
void pseg_train_text_build(pseg_graph *g, const pseg_train_towers *t, uint32_t batch, pseg_var *ids,
                           pseg_var *ends, pseg_var *embed, pseg_var *words);

#endif
