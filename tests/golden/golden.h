/* What the golden tests share: the reference's stages, the comparison, weights by formula.
 * README.md describes the data. */
#ifndef PSEG_TESTS_GOLDEN_H
#define PSEG_TESTS_GOLDEN_H

#include "worker/model/pseg.h"
#include "worker/model/safetensors.h"
#include "worker/model/stage.h"
#include "worker/model/weights.h"

#define GOLD_DATA PSEG_TEST_SOURCE_DIR "/tests/golden/data/"

/* Stages of one file. Every comparison is counted; gold_close says what was never compared. */
typedef struct gold {
    pseg_tensors *file;
    char name[64];
    bool *is_seen; /* of each tensor */
    unsigned n_compared, n_failed;
    double worst;
    double allowance; /* factor of the tolerances; gold_open sets 1 */
    char worst_at[128];
    bool may_be_short; /* what is compared may have fewer rows than the file */
} gold;

/* Ends the test on failure: without the data nothing can be said. */
void gold_open(gold *g, const char *name);
/* Fails for tensors that nothing looked at, unless their name contains one of `ignored` (NULL ends
 * it). Prints one line. Returns true if all is well. */
bool gold_close(gold *g, const char *const *ignored);

const pseg_tensor *gold_find(gold *g, const char *name); /* marks it as seen; NULL: not there */
/* Like gold_find, but it must be there, of this type; ends the test otherwise. */
const pseg_tensor *gold_need(gold *g, const char *name, pseg_tensor_type type);

/* Compares `name`, or, if it was sampled, `name`.values and .stats, where they are in the file.
 * got: [rows, c]; is_planar: the file has [c, rows]. The file may have fewer rows (padding). */
void gold_compare(gold *g, const char *name, const float *got, size_t rows, size_t c,
                  bool is_planar);

/* A stage hook. With n_items = 0 a stage is compared whole, under prefix + name; otherwise sample i
 * under items[i] + name. */
typedef struct gold_watch {
    gold *g;
    const char *prefix;
    size_t n_items;
    char items[8][48];
} gold_watch;
pseg_stage_fn gold_hook;

/* A pseg_fill_fn: README's formula. ud: a gold_formula. */
typedef struct gold_formula {
    const char *model;
    const pseg_specs *specs; /* where shapes are looked up */
} gold_formula;
pseg_fill_fn gold_fill;
/* The formula with c and a of one's own. */
void gold_fill_as(float *out, uint64_t n, const char *key, double c, float a);

/* Ends the test with the message unless ok. */
void gold_must(bool ok, const char *what, const pseg_err *err);
/* The device of the test; ends it with 77 if there is none. */
pseg_cl *gold_cl(void);
/* Reads a view of n floats; caller frees with pseg_free. */
float *gold_read(pseg_stream *s, pseg_view v, size_t n);

#endif
