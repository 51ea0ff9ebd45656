/* The inside of the tokenizer, shared by tokenizer.c (encoding) and load.c (reading) only. */
#ifndef PSEG_TEXT_BPE_H
#define PSEG_TEXT_BPE_H

#include "worker/text/tokenizer.h"

#define PSEG_BPE_BOS "<|startoftext|>"
#define PSEG_BPE_EOS "<|endoftext|>"
/* Symbols 0..255 are bytes in CLIP's order, 256..511 the same at the end of a word. */
#define PSEG_BPE_BASE 512

/* What two neighbours become. rank UINT32_MAX: the slot is empty. */
typedef struct pseg_merge {
    uint32_t left, right, rank, made;
} pseg_merge;

struct pseg_tokenizer {
    pseg_merge *merges; /* open addressing, mask + 1 slots, at most half of them taken */
    uint32_t mask;
    int32_t *ids; /* of symbols, n_symbols of them */
    uint32_t n_symbols, vocab;
    int32_t bos, eos;
    /* Special tokens are found in the normalised text, so in any letter case. */
    bool finds_specials_late;
    uint16_t of_byte[256];
};

/* The entry for (left, right), or NULL. */
const pseg_merge *pseg_bpe_find(const pseg_tokenizer *t, uint32_t left, uint32_t right);
uint32_t pseg_bpe_hash(uint32_t left, uint32_t right);

#endif
