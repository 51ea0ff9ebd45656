/* Any bytes as a Parquet file: every column is read to its end, or as far as it goes. */
#include "common/base/err.h"
#include "worker/data/parquet.h"

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

enum { MOST = 20000 };

static volatile uint64_t seen; /* so that nothing is left out */

static void read_column(const parquet *p, uint32_t column)
{
    pseg_err err = PSEG_ERR_INIT;
    parquet_cursor *c;
    parquet_value v;
    bool has = true, goes_on;
    uint64_t sum = 0;

    if (parquet_cursor_open(&c, p, column, &err) != PSEG_OK)
        return;
    for (int i = 0; has && i < MOST; i++) {
        if (parquet_cursor_next(&v, &has, c, &err) != PSEG_OK ||
            parquet_cursor_goes_on(&goes_on, c, &err) != PSEG_OK)
            break;
        if (has && v.len && v.def == parquet_column_at(p, column)->max_def && !goes_on)
            sum += v.rep; /* bytes are borrowed until the next call, which goes_on is */
    }
    for (uint64_t row = 0; row < 8 && row < parquet_n_rows(p); row++) {
        if (parquet_cursor_seek(c, (row * 5) % parquet_n_rows(p), &err) != PSEG_OK)
            continue;
        if (parquet_cursor_next(&v, &has, c, &err) == PSEG_OK && has)
            for (uint32_t i = 0; i < v.len; i++)
                sum += v.bytes[i];
    }
    seen += sum;
    parquet_cursor_close(c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    pseg_err err = PSEG_ERR_INIT;
    parquet *p;

    if (parquet_from(&p, data, n, "fuzz", &err) != PSEG_OK)
        return 0;
    for (uint32_t i = 0; i < parquet_n_columns(p) && i < 24; i++)
        read_column(p, i);
    parquet_close(p);
    return 0;
}
