/* The inside of the Parquet reader. */
#ifndef PSEG_DATA_PARQUET_IMPL_H
#define PSEG_DATA_PARQUET_IMPL_H

#include "common/base/arena.h"
#include "common/base/file.h"
#include "worker/data/parquet.h"

enum {
    PARQUET_MAX_COLUMNS = 1024,
    PARQUET_MAX_NAME = 1024,
    PARQUET_MAX_PAGE = 1 << 30,   /* bytes, decompressed */
    PARQUET_MAX_VALUES = 1 << 24, /* of a page */
};

typedef enum parquet_codec {
    PARQUET_PLAIN_BYTES,
    PARQUET_SNAPPY,
    PARQUET_GZIP,
    PARQUET_LZO,
    PARQUET_BROTLI,
    PARQUET_LZ4,
    PARQUET_ZSTD,
    PARQUET_LZ4_RAW,
} parquet_codec;

typedef enum parquet_encoding {
    PARQUET_PLAIN = 0,
    PARQUET_PLAIN_DICTIONARY = 2,
    PARQUET_RLE = 3,
    PARQUET_BIT_PACKED = 4,
    PARQUET_DELTA_BINARY_PACKED = 5,
    PARQUET_DELTA_LENGTH = 6,
    PARQUET_DELTA_BYTES = 7,
    PARQUET_RLE_DICTIONARY = 8,
    PARQUET_BYTE_STREAM_SPLIT = 9,
} parquet_encoding;

/* A column of a row group. */
typedef struct parquet_chunk {
    uint64_t begin, end; /* of its pages, in the file */
    uint64_t n_values;
    parquet_codec codec;
} parquet_chunk;

struct parquet {
    pseg_map map;
    bool is_mapped;
    const uint8_t *data;
    size_t size;
    char *name;
    pseg_arena *arena; /* columns' names */
    parquet_column *columns;
    uint32_t n_columns, n_groups;
    uint64_t n_rows, *group_rows;
    parquet_chunk *chunks; /* [n_groups, n_columns] */
};

typedef struct parquet_bytes {
    const uint8_t *data;
    uint32_t len;
} parquet_bytes;

/* Values of a page, or of a dictionary: one of the three lists, by the column's type. */
typedef struct parquet_values {
    int64_t *ints;
    double *reals;
    parquet_bytes *bytes;
    uint32_t n;
    uint8_t *own; /* what bytes may point into */
} parquet_values;
void parquet_values_deinit(parquet_values *v);
pseg_status parquet_values_init(parquet_values *v, const parquet_column *c, uint32_t n,
                                pseg_err *err);

/* n values in `encoding` from data[0..len) to v, which has room for them and afterwards points into
 * data. dictionary: or NULL. */
pseg_status parquet_decode(parquet_values *v, const parquet_column *c, parquet_encoding encoding,
                           const uint8_t *data, size_t len, const parquet_values *dictionary,
                           pseg_err *err);

/* n numbers of `bits` bits, each at most `most`, in the hybrid of runs and packed bits. *used:
 * bytes that were read. */
pseg_status parquet_hybrid(uint32_t *out, uint32_t n, const uint8_t *data, size_t len,
                           uint32_t bits, uint32_t most, pseg_err *err);

/* Decompresses exactly out_len bytes. */
pseg_status parquet_decompress(uint8_t *out, size_t out_len, const uint8_t *in, size_t len,
                               parquet_codec codec, pseg_err *err);

typedef struct parquet_page_header {
    int32_t type; /* 0 data, 1 index, 2 dictionary, 3 data of version 2 */
    uint32_t size, compressed_size, n_values;
    parquet_encoding encoding, def_encoding, rep_encoding;
    uint32_t def_bytes, rep_bytes, n_rows; /* version 2 */
    bool is_compressed;
} parquet_page_header;
/* A page's header at `at` of a chunk; *at moves behind it, where compressed_size bytes lie. */
pseg_status parquet_read_page_header(parquet_page_header *h, const parquet *p,
                                     const parquet_chunk *chunk, uint64_t *at, pseg_err *err);

pseg_status parquet_read_footer(parquet *p, pseg_err *err);

#endif
