#ifndef PSEG_WORKER_DATA_PICKLE_IMPL_H
#define PSEG_WORKER_DATA_PICKLE_IMPL_H
/* The parts of the reader of pickles: the machine's stores (pickle_store.c), and the texts and
 * numbers that its codes carry (pickle_values.c). Only pickle*.c include this. Functions that fail
 * name the file; nothing of the machine is of use after one has. */
#include "worker/data/pickle.h"
#include "common/base/arena.h"

#define CORRUPT(...) PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, __VA_ARGS__)

enum { PICKLE_MAX_LINE = 1 << 24 }; /* bytes */

typedef struct pickle_node {
    pickle_type type;
    uint32_t n, cap; /* LIST: elements; DICT: keys and values in turn */
    union {
        int64_t i;
        double d;
        struct {
            const char *s;
            size_t len;
        } text;
        pickle_value *items;
    } u;
} pickle_node;

struct pickle {
    const uint8_t *data, *at, *end;
    const char *name;
    pickle_node *nodes; /* [n]; 0 is none */
    uint32_t n, cap;
    pickle_value *stack, *memo;
    uint32_t depth, cap_stack, n_memo, cap_memo;
    uint32_t *marks;
    uint32_t n_marks, cap_marks;
    pickle_value root;
    pseg_arena *arena; /* texts that had to be unescaped */
};

/* ---- stores ---------------------------------------------------------------------------------- */

pseg_status pickle_no_memory(const pickle *p, pseg_err *err);

/* Makes *list (a pointer to any type of `size` bytes) hold n elements at least; false: no memory,
 * or more than a pickle may have. */
bool pickle_grow(void *list, uint32_t *cap, uint64_t n, size_t size);

pseg_status pickle_push(pickle *p, pickle_value v, pseg_err *err);
/* A copy of *x becomes a value of its own, on the stack. */
pseg_status pickle_push_new(pickle *p, const pickle_node *x, pseg_err *err);
pseg_status pickle_push_int(pickle *p, int64_t i, pickle_type type, pseg_err *err);

/* The next n bytes, where they lie. */
pseg_status pickle_take(const uint8_t **out, pickle *p, uint64_t n, pseg_err *err);
/* n bytes as a number, little-endian; n is at most 8. */
pseg_status pickle_take_number(uint64_t *out, pickle *p, uint32_t n, pseg_err *err);
/* To the end of the line, without it. */
pseg_status pickle_take_line(const char **out, size_t *len, pickle *p, pseg_err *err);

/* The uppermost value above the last mark. */
pseg_status pickle_pop(pickle_value *out, pickle *p, pseg_err *err);
pseg_status pickle_push_mark(pickle *p, pseg_err *err);
/* Values above the last mark, which goes: stack[*from .. *from + *n). They are off the stack. */
pseg_status pickle_pop_marked(uint32_t *from, uint32_t *n, pickle *p, pseg_err *err);

/* Adds stack[from .. from + n) to a LIST, or in pairs to a DICT. */
pseg_status pickle_extend(pickle *p, pickle_value list, pickle_type type, uint32_t from, uint32_t n,
                          pseg_err *err);
/* A new list of what lies above: n values from stack[from] on, which are taken off. */
pseg_status pickle_collect(pickle *p, pickle_type type, uint32_t from, uint32_t n, pseg_err *err);
pseg_status pickle_take_top(pickle *p, uint32_t n, pseg_err *err);
/* The container on the stack, below n more values. */
pseg_status pickle_below(pickle_value *out, pickle *p, uint32_t n, pseg_err *err);

/* Keeps the uppermost value as number `at`, and brings one back. */
pseg_status pickle_remember(pickle *p, uint64_t at, pseg_err *err);
pseg_status pickle_recall(pickle *p, uint64_t at, pseg_err *err);

/* ---- texts and numbers ----------------------------------------------------------------------- */

/* A decimal number of 64 bits on a line of its own, with or without Python 2's L. */
pseg_status pickle_take_line_number(int64_t *out, pickle *p, pseg_err *err);

/* A text behind its length of len_bytes bytes, left where it lies. */
pseg_status pickle_push_text(pickle *p, uint32_t len_bytes, pseg_err *err);
/* One with backslashes, to the end of the line; is_raw: not a literal between quotes. */
pseg_status pickle_push_line_text(pickle *p, bool is_raw, pseg_err *err);
/* n bytes of two's complement, little-endian; 8 at most. */
pseg_status pickle_push_long(pickle *p, uint64_t n, pseg_err *err);
pseg_status pickle_push_double(pickle *p, pseg_err *err); /* 8 bytes, big-endian */
pseg_status pickle_push_line_float(pickle *p, pseg_err *err);
pseg_status pickle_push_line_int(pickle *p, pseg_err *err);

#endif
