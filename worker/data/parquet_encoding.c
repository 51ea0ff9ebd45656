/* Parquet's encodings of values and levels, and its codecs. */
#include "common/base/alloc.h"
#include "worker/data/parquet_impl.h"

#include <limits.h>
#include <snappy-c.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#define CORRUPT(...) PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, __VA_ARGS__)

/* ---- codecs ---------------------------------------------------------------------------------- */

static bool inflate_all(uint8_t *out, size_t out_len, const uint8_t *in, size_t len)
{
    z_stream z = {.next_in = (Bytef *)(uintptr_t)in,
                  .avail_in = (uInt)len,
                  .next_out = out,
                  .avail_out = (uInt)out_len};
    int got;

    if (inflateInit2(&z, 15 + 32) != Z_OK) /* 32: gzip or zlib, as the head says */
        return false;
    got = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    return got == Z_STREAM_END && z.avail_out == 0;
}

pseg_status parquet_decompress(uint8_t *out, size_t out_len, const uint8_t *in, size_t len,
                               parquet_codec codec, pseg_err *err)
{
    static const char *const names[] = {"none",   "Snappy", "gzip", "LZO",
                                        "Brotli", "LZ4",    "zstd", "LZ4 raw"};
    pseg_status rc = PSEG_OK;
    size_t n = out_len;
    bool good = false;

    switch (codec) {
    case PARQUET_PLAIN_BYTES:
        good = len == out_len;
        if (good && len)
            memcpy(out, in, len);
        break;
    case PARQUET_SNAPPY:
        good =
            snappy_uncompress((const char *)in, len, (char *)out, &n) == SNAPPY_OK && n == out_len;
        break;
    case PARQUET_GZIP:
        good = inflate_all(out, out_len, in, len);
        break;
    case PARQUET_ZSTD:
        good = ZSTD_decompress(out, out_len, in, len) == out_len;
        break;
    default:
        PSEG_FAIL(PSEG_R_UNSUPPORTED, 0,
                  "compressed with %s (codec %d); written again with snappy, gzip, zstd or none it "
                  "can be read",
                  (unsigned)codec < sizeof names / sizeof *names ? names[codec]
                                                                 : "something unknown",
                  (int)codec);
    }
    if (!good)
        CORRUPT("a page of %zu bytes does not decompress to %zu", len, out_len);
out:
    return rc;
}

/* ---- small numbers --------------------------------------------------------------------------- */

typedef struct bytes_in {
    const uint8_t *at, *end;
    bool failed;
} bytes_in;

static uint64_t take_varint(bytes_in *b)
{
    uint64_t x = 0;

    for (int shift = 0; shift < 64 && b->at < b->end; shift += 7) {
        uint8_t c = *b->at++;
        x |= (uint64_t)(c & 0x7F) << shift;
        if (!(c & 0x80))
            return x;
    }
    b->failed = true;
    return 0;
}

static int64_t take_zigzag(bytes_in *b)
{
    uint64_t x = take_varint(b);

    return (int64_t)(x >> 1) ^ -(int64_t)(x & 1);
}

/* Number i of packed ones, `bits` each, lowest bit first; they lie in data[0..len). */
static uint64_t unpack(const uint8_t *data, size_t len, uint64_t i, uint32_t bits)
{
    uint64_t first = i * bits, x = 0;
    size_t at = (size_t)(first / 8);
    uint32_t shift = (uint32_t)(first % 8), have = 0;

    while (have < bits + shift && have < 64 && at < len) {
        x |= (uint64_t)data[at++] << have;
        have += 8;
    }
    x >>= shift;
    if (bits + shift > 64 && at < len)
        x |= (uint64_t)data[at] << (64 - shift);
    return bits == 64 ? x : x & (((uint64_t)1 << bits) - 1);
}

pseg_status parquet_hybrid(uint32_t *out, uint32_t n, const uint8_t *data, size_t len,
                           uint32_t bits, uint32_t most, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    bytes_in b = {data, data + len, false};

    if (bits > 32)
        CORRUPT("numbers of %u bits", bits);
    for (uint32_t i = 0; i < n;) {
        uint64_t head = take_varint(&b), count = head >> 1, wide = (bits + 7) / 8;
        if (b.failed || count == 0)
            CORRUPT("a run of numbers is cut off");
        if (head & 1) { /* groups of 8 numbers */
            uint64_t bytes = count > SIZE_MAX / 64 ? SIZE_MAX : count * bits;
            size_t there = (size_t)(b.end - b.at);
            uint64_t k = n - i < count * 8 ? n - i : count * 8;
            /* The last group may be cut where no number is wanted any more. */
            if (bytes > there && (k * bits + 7) / 8 > there)
                CORRUPT("a run of numbers is cut off");
            for (uint64_t j = 0; j < k; j++)
                out[i++] = (uint32_t)unpack(b.at, there, j, bits);
            b.at += bytes < there ? bytes : there;
        } else {
            uint32_t value = 0;
            if ((size_t)(b.end - b.at) < wide)
                CORRUPT("a run of numbers is cut off");
            for (uint64_t j = 0; j < wide; j++)
                value |= (uint32_t)*b.at++ << (8 * j);
            for (uint64_t j = 0; j < count && i < n; j++)
                out[i++] = value;
        }
    }
    for (uint32_t i = 0; i < n; i++)
        if (out[i] > most)
            CORRUPT("a number of %u where %u is the largest", out[i], most);
out:
    return rc;
}

/* DELTA_BINARY_PACKED: n numbers; *in moves behind them. */
static pseg_status take_deltas(int64_t *out, uint32_t n, bytes_in *in, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t block = take_varint(in), n_mini = take_varint(in), total = take_varint(in);
    uint64_t last = (uint64_t)take_zigzag(in), mini;
    uint32_t i = 0;

    if (in->failed || total != n || !block || block > 1 << 24 || block % 128 || !n_mini ||
        n_mini > 512 || block % n_mini || block / n_mini % 32)
        CORRUPT("differences: %llu numbers in blocks of %llu where %u are expected",
                (unsigned long long)total, (unsigned long long)block, n);
    mini = block / n_mini;
    if (n)
        out[i++] = (int64_t)last;
    while (i < n) {
        uint64_t least = (uint64_t)take_zigzag(in);
        const uint8_t *widths = in->at;
        if (in->failed || (uint64_t)(in->end - in->at) < n_mini)
            CORRUPT("differences are cut off");
        in->at += n_mini;
        for (uint64_t m = 0; m < n_mini && i < n; m++) {
            uint64_t bytes = mini * widths[m] / 8, there = (uint64_t)(in->end - in->at);
            if (widths[m] > 64 || bytes > there)
                CORRUPT("differences are cut off");
            for (uint64_t k = 0; k < mini && i < n; k++) {
                last += least + unpack(in->at, (size_t)bytes, k, widths[m]);
                out[i++] = (int64_t)last;
            }
            in->at += bytes;
        }
    }
out:
    return rc;
}

/* ---- values ---------------------------------------------------------------------------------- */

void parquet_values_deinit(parquet_values *v)
{
    pseg_free(v->ints);
    pseg_free(v->reals);
    pseg_free(v->bytes);
    pseg_free(v->own);
    *v = (parquet_values){0};
}

pseg_status parquet_values_init(parquet_values *v, const parquet_column *c, uint32_t n,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *v = (parquet_values){.n = n};
    switch (c->type) {
    case PARQUET_INT32:
    case PARQUET_INT64:
        v->ints = pseg_calloc((size_t)n + 1, sizeof *v->ints);
        break;
    case PARQUET_FLOAT:
    case PARQUET_DOUBLE:
        v->reals = pseg_calloc((size_t)n + 1, sizeof *v->reals);
        break;
    case PARQUET_BYTE_ARRAY:
    case PARQUET_FIXED_BYTES:
        v->bytes = pseg_calloc((size_t)n + 1, sizeof *v->bytes);
        break;
    default:
        PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "column %s holds values of type %s, which are not read",
                  c->path, c->type == PARQUET_BOOLEAN ? "BOOLEAN" : "INT96");
    }
    if (!v->ints && !v->reals && !v->bytes)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u values of column %s", n, c->path);
out:
    return rc;
}

static pseg_status decode_plain(parquet_values *v, const parquet_column *c, const uint8_t *data,
                                size_t len, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t wide = c->type == PARQUET_INT32 || c->type == PARQUET_FLOAT ? 4
                  : c->type == PARQUET_FIXED_BYTES                     ? c->fixed_len
                                                                       : 8;

    if (c->type != PARQUET_BYTE_ARRAY && v->n > len / wide)
        CORRUPT("%u values of %zu bytes in %zu", v->n, wide, len);
    for (uint32_t i = 0; i < v->n; i++) {
        uint32_t u32;
        float f;
        if (c->type == PARQUET_INT32) {
            memcpy(&u32, data + 4 * (size_t)i, 4);
            v->ints[i] = (int32_t)u32;
        } else if (c->type == PARQUET_INT64) {
            memcpy(&v->ints[i], data + 8 * (size_t)i, 8);
        } else if (c->type == PARQUET_FLOAT) {
            memcpy(&f, data + 4 * (size_t)i, 4);
            v->reals[i] = f;
        } else if (c->type == PARQUET_DOUBLE) {
            memcpy(&v->reals[i], data + 8 * (size_t)i, 8);
        } else if (c->type == PARQUET_FIXED_BYTES) {
            v->bytes[i] = (parquet_bytes){data + i * wide, (uint32_t)wide};
        } else {
            if (len >= 4)
                memcpy(&u32, data, 4);
            if (len < 4 || u32 > len - 4)
                CORRUPT("value %u of %u leaves its page", i, v->n);
            v->bytes[i] = (parquet_bytes){data + 4, u32};
            data += 4 + (size_t)u32;
            len -= 4 + (size_t)u32;
        }
    }
out:
    return rc;
}

static void copy_value(parquet_values *v, uint32_t i, const parquet_values *from, uint32_t k)
{
    if (v->ints)
        v->ints[i] = from->ints[k];
    else if (v->reals)
        v->reals[i] = from->reals[k];
    else
        v->bytes[i] = from->bytes[k];
}

static pseg_status decode_indexes(parquet_values *v, const uint8_t *data, size_t len,
                                  const parquet_values *dictionary, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t *index = pseg_calloc((size_t)v->n + 1, sizeof *index);

    if (!index)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u values", v->n);
    if (!dictionary || (v->n && (!dictionary->n || len < 1)))
        CORRUPT("values of a dictionary that is not there");
    if (v->n)
        PSEG_TRY(parquet_hybrid(index, v->n, data + 1, len - 1, data[0], dictionary->n - 1, err));
    for (uint32_t i = 0; i < v->n; i++)
        copy_value(v, i, dictionary, index[i]);
out:
    pseg_free(index);
    return rc;
}

/* Lengths, then the bytes of all. *in stands at the lengths and moves behind the bytes. */
static pseg_status take_lengths_and_bytes(parquet_bytes *out, uint32_t n, bytes_in *in,
                                          pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t *lens = pseg_calloc((size_t)n + 1, sizeof *lens);

    if (!lens)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u values", n);
    PSEG_TRY(take_deltas(lens, n, in, err));
    for (uint32_t i = 0; i < n; i++) {
        if (lens[i] < 0 || lens[i] > in->end - in->at || lens[i] > INT32_MAX)
            CORRUPT("value %u of %u leaves its page", i, n);
        out[i] = (parquet_bytes){in->at, (uint32_t)lens[i]};
        in->at += lens[i];
    }
out:
    pseg_free(lens);
    return rc;
}

/* DELTA_BYTE_ARRAY: each value is a beginning of the one before and the rest. */
static pseg_status decode_prefixed(parquet_values *v, const uint8_t *data, size_t len,
                                   pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    bytes_in in = {data, data + len, false};
    int64_t *shared = pseg_calloc((size_t)v->n + 1, sizeof *shared);
    uint64_t all = 0, before = 0;
    uint8_t *to;

    if (!shared)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u values", v->n);
    PSEG_TRY(take_deltas(shared, v->n, &in, err));
    PSEG_TRY(take_lengths_and_bytes(v->bytes, v->n, &in, err));
    for (uint32_t i = 0; i < v->n; i++) {
        if (shared[i] < 0 || (uint64_t)shared[i] > before)
            CORRUPT("value %u of %u begins with more than the one before it has", i, v->n);
        before = (uint64_t)shared[i] + v->bytes[i].len;
        all += before;
        if (all > PARQUET_MAX_PAGE)
            CORRUPT("a page of more than %d MiB", PARQUET_MAX_PAGE >> 20);
    }
    v->own = to = pseg_malloc((size_t)all + 1);
    if (!to)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u values", v->n);
    for (uint32_t i = 0; i < v->n; i++) {
        parquet_bytes rest = v->bytes[i];
        if (shared[i])
            memcpy(to, v->bytes[i - 1].data, (size_t)shared[i]);
        if (rest.len)
            memcpy(to + shared[i], rest.data, rest.len);
        v->bytes[i] = (parquet_bytes){to, (uint32_t)shared[i] + rest.len};
        to += v->bytes[i].len;
    }
out:
    pseg_free(shared);
    return rc;
}

/* First bytes of all values, then second ones... */
static pseg_status decode_split(parquet_values *v, const parquet_column *c, const uint8_t *data,
                                size_t len, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t wide = c->type == PARQUET_INT32 || c->type == PARQUET_FLOAT ? 4 : 8, n = v->n;
    uint8_t one[8];

    if (v->bytes || n > len / wide)
        CORRUPT("%zu split values in %zu bytes", n, len);
    for (size_t i = 0; i < n; i++) {
        parquet_values single = {
            .ints = v->ints ? v->ints + i : NULL, .reals = v->reals ? v->reals + i : NULL, .n = 1};
        for (size_t k = 0; k < wide; k++)
            one[k] = data[k * n + i];
        PSEG_TRY(decode_plain(&single, c, one, wide, err));
    }
out:
    return rc;
}

pseg_status parquet_decode(parquet_values *v, const parquet_column *c, parquet_encoding encoding,
                           const uint8_t *data, size_t len, const parquet_values *dictionary,
                           pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    bytes_in in = {data, data + len, false};

    if (encoding == PARQUET_PLAIN)
        return decode_plain(v, c, data, len, err);
    if (encoding == PARQUET_RLE_DICTIONARY || encoding == PARQUET_PLAIN_DICTIONARY)
        return decode_indexes(v, data, len, dictionary, err);
    if (encoding == PARQUET_DELTA_BINARY_PACKED && v->ints) {
        PSEG_TRY(take_deltas(v->ints, v->n, &in, err));
        /* Differences of 32-bit numbers are reckoned in 32 bits. */
        for (uint32_t i = 0; c->type == PARQUET_INT32 && i < v->n; i++)
            v->ints[i] = (int32_t)(uint32_t)(uint64_t)v->ints[i];
        return rc;
    }
    if (encoding == PARQUET_DELTA_LENGTH && c->type == PARQUET_BYTE_ARRAY)
        return take_lengths_and_bytes(v->bytes, v->n, &in, err);
    if (encoding == PARQUET_DELTA_BYTES && v->bytes)
        return decode_prefixed(v, data, len, err);
    if (encoding == PARQUET_BYTE_STREAM_SPLIT && !v->bytes)
        return decode_split(v, c, data, len, err);
    PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "column %s: values in encoding %d, which is not read", c->path,
              (int)encoding);
out:
    return rc;
}
