/* The table of operations: one row each, and every driver (tests, benchmark) is a loop over it.
 *
 * An operation's arguments are generic here: tensors in the row's slots, and numbers in i[] and f[]
 * in the order of the row's `params`. worker/ops/ops.h has the typed forms that models use.
 *
 * To add an operation: its parameters in kernels/params.h, its kernel, its row in <file>.c and in
 * table.c, its typed form in ops.h. Every test and the benchmark then know it. */
#ifndef PSEG_OPS_TABLE_H
#define PSEG_OPS_TABLE_H

#include "worker/ops/ops.h"

#define PSEG_OP_MAX_SLOTS 8
#define PSEG_OP_MAX_INTS  16
#define PSEG_OP_MAX_REALS 2
#define PSEG_OP_MAX_FIXED 4

/* For the kernel: mem and off. For the reference: host and off. Absent: both NULL. */
typedef struct pseg_tensor {
    pseg_mem *mem;
    void *host;
    size_t off;      /* elements */
    pseg_dtype type; /* of mem's elements; host has float64 (weights: in mem's layout) or int32 */
} pseg_tensor;

typedef struct pseg_op_args {
    pseg_tensor t[PSEG_OP_MAX_SLOTS];
    int64_t i[PSEG_OP_MAX_INTS];
    double f[PSEG_OP_MAX_REALS];
} pseg_op_args;

/* What goes with the arguments of a forward call to make a backward one. */
typedef struct pseg_op_grads {
    pseg_tensor t[PSEG_OP_MAX_SLOTS]; /* 0: of the output, given; n: of slot n, wanted if there */
    pseg_tensor turned;               /* weights the other way round; optional */
    uint32_t add;                     /* bit n: slot n's is added to what is there */
} pseg_op_grads;

typedef struct pseg_op_slot {
    const char *name;
    pseg_dtype type; /* F32 or I32 */
    bool is_out, is_optional, may_be_bf16, may_be_bf16x2;
} pseg_op_slot;

typedef struct pseg_op_tol {
    double abs, rel, nmse; /* |got-want| <= abs + rel*|want| for each, and NMSE over all */
} pseg_op_tol;

#define PSEG_CASE_BIG  1u /* too slow for an interpreter or a sanitizer */
#define PSEG_CASE_REAL 2u /* a shape of a real model: the benchmark's default */
#define PSEG_CASE_SLOW 4u /* its reference takes seconds: for the benchmark alone */

typedef struct pseg_op_case {
    const char *name;
    int64_t i[PSEG_OP_MAX_INTS];
    double f[PSEG_OP_MAX_REALS];
    uint32_t absent;   /* bit n: optional slot n is left out */
    uint32_t in_place; /* bit n: slot n is the same memory as slot 0 */
    uint32_t flags;
    uint32_t bf16;   /* bit n: slot n is BF16 */
    uint32_t bf16x2; /* bit n: slot n is BF16X2 */
} pseg_op_case;

/* The gradient of an operation. A slot's gradient lies as the slot does: same extent. */
typedef struct pseg_op_backward {
    uint32_t slots; /* bit n: slot n has a gradient */
    /* Bits of the forward call's slots that are read for those gradients that are wanted. */
    uint32_t (*reads)(const pseg_op_args *, const pseg_op_grads *);
    /* What else must hold; NULL: nothing. */
    pseg_status (*check)(const pseg_op_args *, const pseg_op_grads *, pseg_err *);
    /* May the gradient of `slot`, overwritten, be in the memory of the output's? NULL: none may. */
    bool (*may_alias)(const pseg_op_args *, size_t slot);
    /* Do two slots lie in turns in one buffer, so that their extents overlap and they do not? NULL:
     * none do. dist: elements from the first's offset to the second's. */
    bool (*is_apart)(const pseg_op_args *, size_t a, size_t b, size_t dist);
    size_t (*turned_elems)(const pseg_op_args *);             /* of `turned`; NULL: there is none */
    void (*ref)(const pseg_op_args *, const pseg_op_grads *); /* plain loops, in double */
    pseg_status (*launch)(pseg_stream *, const pseg_op_args *, const pseg_op_grads *, pseg_err *);
    double (*flops)(const pseg_op_args *, const pseg_op_grads *);
    double (*bytes)(const pseg_op_args *, const pseg_op_grads *);
    pseg_op_tol tol;
    const char *tol_why;
} pseg_op_backward;

/* One way to do an operation. */
typedef struct pseg_op_variant {
    const char *name; /* without spaces; its own among those of the row */
    unsigned order;   /* of its sums: variants of one order give the same bits */
    const void *way;  /* for the row: its kernel, its tile */
} pseg_op_variant;

#define PSEG_OP_MAX_CLASSES 32

/* All ways to do an operation. Of those that can do it here, pseg_op_run takes what tuning found
 * for shapes of this class (worker/ops/tune.h), else what `prefer` says. A new one is a line of
 * `list`: tests run it and tuning tries it. */
typedef struct pseg_op_variants {
    const pseg_op_variant *list;
    size_t n; /* below 256 */
    /* Does v fit the types of the arguments, the form of the kernels and the processor? */
    bool (*can)(const pseg_op_variant *v, const pseg_cl *, const pseg_op_args *);
    /* Without measuring: the index of one that can; n: none can. */
    size_t (*prefer)(const pseg_cl *, const pseg_op_args *);
    /* A class is named and measured by the case that stands for it. */
    size_t (*class_of)(const pseg_op_args *);
    const pseg_op_case *classes;
    size_t n_classes; /* at most PSEG_OP_MAX_CLASSES */
    pseg_status (*launch)(pseg_stream *, const pseg_op_variant *, const pseg_op_args *, pseg_err *);
} pseg_op_variants;

typedef struct pseg_op {
    const char *name; /* also of the kernel, in tests and in profiles */
    const pseg_op_slot *slots;
    size_t n_slots;     /* slot 0 is the output */
    const char *params; /* names of i[], then of f[], for people */
    /* The numbers and which optional slots are there; sizes and aliasing are checked for all by
     * pseg_op_check. */
    pseg_status (*check)(const pseg_op_args *, pseg_err *);
    /* Elements that the operation may touch behind a slot's offset; SIZE_MAX on overflow. */
    size_t (*extent)(const pseg_op_args *, size_t slot);
    /* May input `slot` be the output? NULL: none may. */
    bool (*may_alias)(const pseg_op_args *, size_t slot);
    void (*ref)(const pseg_op_args *); /* plain loops, in double */
    pseg_status (*launch)(pseg_stream *, const pseg_op_args *, pseg_err *); /* the only way, or */
    const pseg_op_variants *variants;
    /* Which kernels serve what a model fixes, as the channels of a head, whatever its batches are:
     * a number below PSEG_OP_MAX_FIXED. What pseg_ops_prepare need not build is told by it. NULL:
     * all do. */
    unsigned (*fixed)(const pseg_op_args *);
    const pseg_op_backward *backward; /* NULL: not trainable */
    double (*flops)(const pseg_op_args *), (*bytes)(const pseg_op_args *);
    /* Range of a case's integers in an I32 slot, both ends inclusive; NULL: there are none. */
    void (*int_range)(const pseg_op_args *, size_t slot, int32_t *lo, int32_t *hi);
    pseg_op_tol tol; /* in float32; pseg_op_case_tol knows the others */
    const char *tol_why;
    const pseg_op_case *cases;
    size_t n_cases;
} pseg_op;

extern const pseg_op *const pseg_ops[];
extern const size_t pseg_n_ops;
const pseg_op *pseg_op_find(const char *name); /* NULL: no such operation */

/* Everything that must hold before a launch: PSEG_R_INVALID_ARGUMENT names what does not. Slots
 * without device memory pass as far as memory goes. */
pseg_status pseg_op_check(const pseg_op *op, const pseg_op_args *a, pseg_err *err);
/* Check and launch. */
pseg_status pseg_op_run(pseg_stream *s, const pseg_op *op, const pseg_op_args *a, pseg_err *err);

/* The same for the gradient: those wanted are there, large enough, and alias nothing they may not.
 * PSEG_R_UNSUPPORTED: the operation, or a type, has none. */
pseg_status pseg_op_check_backward(const pseg_op *op, const pseg_op_args *a, const pseg_op_grads *g,
                                   pseg_err *err);
pseg_status pseg_op_run_backward(pseg_stream *s, const pseg_op *op, const pseg_op_args *a,
                                 const pseg_op_grads *g, pseg_err *err);

/* What pseg_op_run takes for these arguments; NULL: the row has no variants, or none
 * that can. Any thread. */
const pseg_op_variant *pseg_op_choose(const pseg_cl *cl, const pseg_op *op, const pseg_op_args *a);
/* From now on `v` of op's list for shapes of this class, as far as it can; NULL: what is preferred.
 * Any thread. */
void pseg_op_set_choice(pseg_cl *cl, const pseg_op *op, size_t class_index,
                        const pseg_op_variant *v);
/* The same for all shapes: for tests and comparisons. */
void pseg_op_force(pseg_cl *cl, const pseg_op *op, const pseg_op_variant *v);
const pseg_op_variant *pseg_op_variant_find(const pseg_op *op, const char *name, size_t name_len);

/* What a case's output may be off by: op->tol, and where the output is BF16 its rounding and that
 * of a probability (2^-9 each), and of the cheaper GELU; where weights are BF16X2 what rounding
 * them and what they are multiplied with to 17 bits does. */
pseg_op_tol pseg_op_case_tol(const pseg_op *op, const pseg_op_case *c);
/* The numbers and types of a case; tensors all absent. */
void pseg_op_case_args(pseg_op_args *out, const pseg_op_case *c);
/* Is slot n there in this case? */
bool pseg_op_case_has(const pseg_op *op, const pseg_op_case *c, size_t slot);
/* Reproducible values for a slot: uniform in -1..1, or integers of the row's range; float32 or
 * int32, but such as BF16 can hold where the slot is BF16. */
void pseg_op_fill(void *out, const pseg_op *op, const pseg_op_args *a, size_t slot, size_t n,
                  uint64_t *seed);

typedef struct pseg_op_timing {
    double median_ms, min_ms; /* of a launch, waited for */
    double cpu_ms;            /* of all threads of this process; median */
    double gflops, gbytes;    /* per second, at the median */
    unsigned runs;
    const char *variant; /* that ran; NULL: the row has but one way */
} pseg_op_timing;

/* Times one case: warms up, then launches for about budget_ms (5 times at least).
 * Errors: PSEG_R_DEVICE_OUT_OF_MEMORY, device errors. */
pseg_status pseg_ops_bench(pseg_op_timing *out, pseg_stream *s, const pseg_op *op,
                           const pseg_op_case *c, double budget_ms, pseg_err *err);
/* The same for all gradients of a case, overwritten. PSEG_R_UNSUPPORTED: it has none. */
pseg_status pseg_ops_bench_backward(pseg_op_timing *out, pseg_stream *s, const pseg_op *op,
                                    const pseg_op_case *c, double budget_ms, pseg_err *err);

#endif
