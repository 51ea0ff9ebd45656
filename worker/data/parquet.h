/* Apache Parquet files: the columns of a table, value by value, with the levels that tell how they
 * nest. Private to worker/data; it knows nothing of what the columns mean.
 *
 * (https://parquet.apache.org/docs/file-format/, parquet.thrift.) Read are: data pages of version 1
 * and 2, dictionaries, the encodings PLAIN, RLE_DICTIONARY (and its old name), DELTA_BINARY_PACKED,
 * DELTA_LENGTH_BYTE_ARRAY, DELTA_BYTE_ARRAY and BYTE_STREAM_SPLIT, levels in RLE, and the codecs
 * none, snappy, gzip and zstd. Not read, and refused by name: LZO, Brotli, LZ4, encrypted files,
 * columns in other files, BOOLEAN and INT96 values, levels in the old BIT_PACKED form.
 *
 * Files may be anybody's: every size is checked against the file and against limits before it is
 * used. A file is mapped; one page of each column that is read is in memory. */
#ifndef PSEG_DATA_PARQUET_H
#define PSEG_DATA_PARQUET_H

#include "common/base/err.h"

#include <stdint.h>

typedef struct parquet parquet;

/* Errors: PSEG_R_FILE_NOT_FOUND, PSEG_R_FILE_IO, PSEG_R_DATA_CORRUPT, PSEG_R_UNSUPPORTED. */
pseg_status parquet_open(parquet **out, const char *path, pseg_err *err);
/* From bytes, borrowed until close. name: for messages. */
pseg_status parquet_from(parquet **out, const uint8_t *data, size_t n, const char *name,
                         pseg_err *err);
void parquet_close(parquet *p); /* NULL: nothing happens */

uint64_t parquet_n_rows(const parquet *p);
const char *parquet_name(const parquet *p);
uint64_t parquet_group_rows(const parquet *p, uint32_t group);

typedef enum parquet_type {
    PARQUET_BOOLEAN,
    PARQUET_INT32,
    PARQUET_INT64,
    PARQUET_INT96,
    PARQUET_FLOAT,
    PARQUET_DOUBLE,
    PARQUET_BYTE_ARRAY,
    PARQUET_FIXED_BYTES,
} parquet_type;

enum { PARQUET_MAX_REP = 4 };

/* A leaf of the schema. */
typedef struct parquet_column {
    const char *path; /* "samples.list.element.mask.counts" */
    /* The same without the names of repeated groups and of their only member:
     * "samples.mask.counts", whichever way the writer calls those. */
    const char *plain;
    parquet_type type;
    uint32_t fixed_len;                       /* FIXED_BYTES */
    uint32_t max_def, max_rep;                /* levels of a value that is there */
    uint32_t def_of_rep[PARQUET_MAX_REP + 1]; /* [k]: definition level from which on the k-th list
                                                  around it has an element; [0] = 0 */
} parquet_column;
uint32_t parquet_n_columns(const parquet *p);
const parquet_column *parquet_column_at(const parquet *p, uint32_t i);
/* UINT32_MAX: no column of that plain path. */
uint32_t parquet_find(const parquet *p, const char *plain);

/* ---- reading in order ------------------------------------------------------------------------ */

typedef struct parquet_value {
    uint32_t rep, def;    /* levels; there is a value if def is the column's max_def */
    int64_t i;            /* INT32, INT64 */
    double d;             /* all numbers */
    const uint8_t *bytes; /* BYTE_ARRAY, FIXED_BYTES: borrowed until the next call */
    uint32_t len;
} parquet_value;

typedef struct parquet_cursor parquet_cursor;
pseg_status parquet_cursor_open(parquet_cursor **out, const parquet *p, uint32_t column,
                                pseg_err *err);
void parquet_cursor_close(parquet_cursor *c); /* NULL: nothing happens */
/* The next value of the file; *has is false behind the last one. Errors: PSEG_R_DATA_CORRUPT,
 * PSEG_R_UNSUPPORTED, PSEG_R_OUT_OF_MEMORY. */
pseg_status parquet_cursor_next(parquet_value *out, bool *has, parquet_cursor *c, pseg_err *err);
/* Does the next value belong to the same row? False behind the last one. */
pseg_status parquet_cursor_goes_on(bool *out, parquet_cursor *c, pseg_err *err);
/* Goes to a row of a column that is in no list, forwards or back: by page. */
pseg_status parquet_cursor_seek(parquet_cursor *c, uint64_t row, pseg_err *err);

#endif
