/* Python's pickle, as data alone: numbers, texts, lists, tuples and dicts of protocols 0 to 5.
 * Private to worker/data.
 *
 * (https://docs.python.org/3/library/pickletools.html.) A pickle is a program for a small machine;
 * only what makes such values is carried out here. What would look up a name, make an object or
 * call anything ends the reading with an error that names it: nothing in a file is ever run. Texts
 * lie in the bytes that were given; every size is checked, and the number of values is bounded by
 * the number of bytes. */
#ifndef PSEG_DATA_PICKLE_H
#define PSEG_DATA_PICKLE_H

#include "common/base/err.h"

#include <stdint.h>

typedef struct pickle pickle;

typedef enum pickle_type {
    PICKLE_NONE,
    PICKLE_BOOL,
    PICKLE_INT, /* of 64 bits at most */
    PICKLE_FLOAT,
    PICKLE_TEXT, /* str, bytes and Python 2's strings: their bytes */
    PICKLE_LIST, /* list or tuple */
    PICKLE_DICT,
} pickle_type;

/* data is borrowed until close. Values may hold themselves: who walks them bounds its depth.
 * Errors: PSEG_R_DATA_CORRUPT, PSEG_R_UNSUPPORTED (what is no plain data, named),
 * PSEG_R_OUT_OF_MEMORY. */
pseg_status pickle_read(pickle **out, const uint8_t *data, size_t n, const char *name,
                        pseg_err *err);
void pickle_close(pickle *p); /* NULL: nothing happens */

typedef uint32_t pickle_value; /* 0: no such value, of type NONE */
pickle_value pickle_root(const pickle *p);
pickle_type pickle_type_of(const pickle *p, pickle_value v);
/* false: it is no whole number; floats that are one count. */
bool pickle_int(int64_t *out, const pickle *p, pickle_value v);
/* Borrowed, without a NUL; NULL: it is no text. */
const char *pickle_text(size_t *len, const pickle *p, pickle_value v);
/* Elements of a list, pairs of a dict; 0 for anything else. */
uint32_t pickle_count(const pickle *p, pickle_value v);
pickle_value pickle_at(const pickle *p, pickle_value list, uint32_t i);
/* The latest value under a key of a dict. */
pickle_value pickle_get(const pickle *p, pickle_value dict, const char *key);

#endif
