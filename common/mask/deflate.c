/* One block with a Huffman code that is made for masks and always the same:
 *
 *     bits  symbols
 *     1     285: repeat 258 times
 *     3     literals 0 and 255
 *     6, 7  254 end of block, 257..284: repeat 3 to 257 times
 *     1     distance 1, the only one
 *
 * A run is its byte and then repetitions of it from distance 1. */
#include "common/mask/deflate.h"

enum { END = 256, FIRST_LENGTH = 257, LONGEST = 285, N_SYMBOLS = 286, MAX_MATCH = 258 };

/* Bits of a symbol's code; 0: the symbol does not occur. The lengths fill the code exactly:
 * 1/2 + 2/8 + 3/64 + 26/128 = 1. */
static int code_bits(int symbol)
{
    if (symbol == LONGEST)
        return 1;
    if (symbol == 0 || symbol == 255)
        return 3;
    if (symbol < END)
        return 0;
    return symbol >= LONGEST - 3 ? 6 : 7;
}

/* n bits, the lowest first. */
static pseg_status put_bits(mask_deflate *d, uint32_t value, int n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    d->bits |= (uint64_t)value << d->n_bits;
    d->n_bits += n;
    if (d->n_bits >= 32) {
        uint8_t four[4] = {(uint8_t)d->bits, (uint8_t)(d->bits >> 8), (uint8_t)(d->bits >> 16),
                           (uint8_t)(d->bits >> 24)};
        d->bits >>= 32;
        d->n_bits -= 32;
        PSEG_TRY(pseg_buf_append(d->out, four, sizeof four, err));
    }
out:
    return rc;
}

/* The canonical code of RFC 1951, 3.2.2: shorter codes first, then by symbol. Codes go highest bit
 * first. */
static pseg_status put_symbol(mask_deflate *d, int symbol, pseg_err *err)
{
    int bits = code_bits(symbol);
    uint32_t code, turned = 0;

    switch (bits) {
    case 1:
        code = 0;
        break;
    case 3:
        code = symbol ? 5 : 4;
        break;
    case 6:
        code = 48 + (uint32_t)(symbol - (LONGEST - 3));
        break;
    default:
        code = 102 + (uint32_t)(symbol - END);
    }
    for (int i = 0; i < bits; i++)
        turned |= (code >> i & 1) << (bits - 1 - i);
    return put_bits(d, turned, bits, err);
}

/* Repeats the byte before n times, 3 to 258 (RFC 1951, 3.2.5). */
static pseg_status put_match(mask_deflate *d, uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (n == MAX_MATCH) {
        PSEG_TRY(put_symbol(d, LONGEST, err));
    } else {
        /* From 11 on, four symbols for each doubling, with one more extra bit each time. */
        uint32_t k = n - 3;
        int extra = k < 8 ? 0 : 29 - __builtin_clz(k);
        PSEG_TRY(put_symbol(d, FIRST_LENGTH + 4 * extra + (int)(k >> extra), err));
        PSEG_TRY(put_bits(d, k & ((1U << extra) - 1), extra, err));
    }
    PSEG_TRY(put_bits(d, 0, 1, err)); /* distance 1 */
out:
    return rc;
}

static pseg_status flush_run(mask_deflate *d, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t n = d->run;

    if (n == 0)
        goto out;
    d->run = 0;
    /* Adler-32 of n equal bytes: a grows by value each time and b by every a. */
    const uint64_t mod = 65521;
    uint64_t sum = n % 2 ? (n + 1) / 2 % mod * (n % mod) : n / 2 % mod * ((n + 1) % mod);
    d->adler_b = (uint32_t)((d->adler_b + n % mod * d->adler_a + sum % mod * d->value) % mod);
    d->adler_a = (uint32_t)((d->adler_a + n % mod * d->value) % mod);
    PSEG_TRY(put_symbol(d, d->value, err));
    for (n--; n >= MAX_MATCH; n -= MAX_MATCH)
        PSEG_TRY(put_match(d, MAX_MATCH, err));
    if (n >= 3)
        PSEG_TRY(put_match(d, (uint32_t)n, err));
    else
        while (n--)
            PSEG_TRY(put_symbol(d, d->value, err));
out:
    return rc;
}

pseg_status mask_deflate_run(mask_deflate *d, uint8_t value, uint64_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (n == 0)
        goto out;
    if (value != d->value) {
        PSEG_TRY(flush_run(d, err));
        d->value = value;
    }
    d->run += n;
out:
    return rc;
}

/* The code's lengths, themselves in a code of five symbols (RFC 1951, 3.2.7). */
static pseg_status put_code(mask_deflate *d, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    /* Bits of the symbols 16, 17, 18, 0, 8, 7, 9, 6, ..., 2, 14, 1, in this order. */
    static const uint8_t order[] = {0, 0, 3, 0, 0, 1, 0, 3, 0, 0, 0, 0, 0, 3, 0, 0, 0, 3};
    /* The canonical code of these, lowest bit first. */
    enum { ONE = 1, THREE = 5, SIX = 3, SEVEN = 0, ZEROS = 7 };

    PSEG_TRY(put_bits(d, 1 | 2 << 1, 3, err));      /* last block, own code */
    PSEG_TRY(put_bits(d, N_SYMBOLS - 257, 5, err)); /* literals and lengths */
    PSEG_TRY(put_bits(d, 0, 5, err));               /* one distance */
    PSEG_TRY(put_bits(d, (uint32_t)sizeof order - 4, 4, err));
    for (size_t i = 0; i < sizeof order; i++)
        PSEG_TRY(put_bits(d, order[i], 3, err));
    PSEG_TRY(put_bits(d, THREE, 3, err)); /* literal 0 */
    for (uint32_t n = 0; n < 2; n++) {    /* literals 1..254 do not occur: 127 and 127 of them */
        PSEG_TRY(put_bits(d, ZEROS, 3, err));
        PSEG_TRY(put_bits(d, 127 - 11, 7, err));
    }
    PSEG_TRY(put_bits(d, THREE, 3, err)); /* literal 255 */
    for (int symbol = END; symbol < LONGEST; symbol++)
        PSEG_TRY(code_bits(symbol) == 7 ? put_bits(d, SEVEN, 1, err) : put_bits(d, SIX, 3, err));
    PSEG_TRY(put_bits(d, ONE, 3, err)); /* 285 */
    PSEG_TRY(put_bits(d, ONE, 3, err)); /* distance 1 */
out:
    return rc;
}

pseg_status mask_deflate_begin(mask_deflate *d, pseg_buf *out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *d = (mask_deflate){.out = out, .adler_a = 1};
    PSEG_TRY(put_bits(d, 0x0178, 16, err)); /* deflate, window of 32 kB, fastest */
    PSEG_TRY(put_code(d, err));
out:
    return rc;
}

pseg_status mask_deflate_end(mask_deflate *d, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(flush_run(d, err));
    PSEG_TRY(put_symbol(d, END, err));
    PSEG_TRY(put_bits(d, 0, -d->n_bits & 7, err));
    uint32_t adler = d->adler_b << 16 | d->adler_a;
    for (int shift = 24; shift >= 0; shift -= 8)
        PSEG_TRY(put_bits(d, adler >> shift & 0xFF, 8, err));
    while (d->n_bits > 0) {
        uint8_t byte = (uint8_t)d->bits;
        PSEG_TRY(pseg_buf_append(d->out, &byte, 1, err));
        d->bits >>= 8;
        d->n_bits -= 8;
    }
out:
    return rc;
}
