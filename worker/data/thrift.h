/* Thrift's compact protocol, as far as Parquet's metadata need it: a reader over bytes that anybody
 * may have written. Private to worker/data.
 *
 * (thrift-compact-protocol.md of the Thrift project.) A fault is kept: everything read afterwards
 * is zero, and thrift_failed tells it at the end. */
#ifndef PSEG_DATA_THRIFT_H
#define PSEG_DATA_THRIFT_H

#include "common/base/err.h"

#include <stdint.h>

typedef struct thrift {
    const uint8_t *at, *end;
    uint32_t depth;
    bool failed;
} thrift;

typedef enum thrift_type {
    THRIFT_STOP,
    THRIFT_TRUE,
    THRIFT_FALSE,
    THRIFT_I8,
    THRIFT_I16,
    THRIFT_I32,
    THRIFT_I64,
    THRIFT_DOUBLE,
    THRIFT_BINARY,
    THRIFT_LIST,
    THRIFT_SET,
    THRIFT_MAP,
    THRIFT_STRUCT,
} thrift_type;

/* The next field of a struct: false at its end. id: 0 before the first field. */
bool thrift_field(int16_t *id, thrift_type *type, thrift *t);
/* A whole number of a field of type I8 to I64; fails for another type. */
int64_t thrift_int(thrift *t, thrift_type type);
bool thrift_bool(thrift *t, thrift_type type);
/* Borrowed from the bytes, without a NUL. */
const char *thrift_text(uint32_t *len, thrift *t, thrift_type type);
/* Elements of a list of `of`; fails for another type, or for more than could be there. */
uint32_t thrift_list(thrift *t, thrift_type type, thrift_type of);
/* A whole value of any type. */
void thrift_skip(thrift *t, thrift_type type);

#endif
