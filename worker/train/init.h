/* Weights to begin from, where there are none: PyTorch's own initial values, by seed. */
#ifndef PSEG_TRAIN_INIT_H
#define PSEG_TRAIN_INIT_H

#include "worker/model/weights.h"

/* As PyTorch's modules begin: weight and bias of Linear, Conv2d and ConvTranspose2d are uniform in
 * +-1/sqrt(F), F the numbers that an output of the tensor sums (of a ConvTranspose2d: out channels
 * times 4, as PyTorch counts it); weights of norms 1, biases 0; iou and mask token normal with
 * deviation 1, positions with 0.02. Where SAM is the start of a decoder, what it has goes before
 * (pseg_sam_fill as overlay).
 *
 * Numbers depend on seed, name and place alone: the same on every machine. A pseg_fill_fn; ud: a
 * pseg_init. */
typedef struct pseg_init {
    uint64_t seed;
    const pseg_specs *specs; /* where shapes are looked up; borrowed */
} pseg_init;
pseg_fill_fn pseg_init_fill;

/* A number that depends on all three alone, evenly spread: for choices that a run makes. */
uint64_t pseg_hash3(uint64_t a, uint64_t b, uint64_t c);

#endif
