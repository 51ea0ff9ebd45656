/* A small model in a training graph beside what PyTorch made of it (golden_train.py: neck and
 * decoder; golden_whole.py: encoders too). */
#ifndef PSEG_TEST_TRAIN_SUPPORT_H
#define PSEG_TEST_TRAIN_SUPPORT_H

#include "tests/golden/golden.h"
#include "worker/train/head.h"
#include "worker/train/optim.h"

typedef struct train_case {
    const char *name; /* of the file, and of the formula's model */
    bool has_words;
    /* Encoders in the graph: NULL, or those of golden_whole.py. */
    const pseg_train_towers *towers;
    bool is_tap_normed;
    bool is_muon; /* its steps, and a width that has matrices for it */
    bool is_deep; /* deep supervision, and the loss at the input's size */
} train_case;

typedef struct setup {
    const char *name;
    gold g;
    pseg_head_config c;
    pseg_cl *cl;
    pseg_stream *s;
    pseg_specs specs;
    bool *is_frozen;
    pseg_params *params;
    pseg_train_head *head;
    pseg_optim *optim;
    pseg_err err;
} setup;

void train_open(setup *t, pseg_cl *cl, const train_case *which, bool has_ema);
void train_close(setup *t);
/* elements of 4 bytes to the device. Waits. */
void train_put(setup *t, pseg_view v, const void *data, size_t n);
/* A buffer of all parameters; caller frees. */
float *train_read_all(setup *t, pseg_params_buffer which);
/* Writes the inputs and runs the graph forward and backward; fresh: gradients are zeros before. */
void train_pass(setup *t, bool fresh);
/* Loss, logits, gradients of the first step and weights after ten against the case's file. Returns
 * how much differs. */
unsigned train_ten_steps(pseg_cl *cl, const train_case *which);

#endif
