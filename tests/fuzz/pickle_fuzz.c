/* Any bytes as a pickle; what was read is walked to a depth, as cycles are allowed. */
#include "common/base/err.h"
#include "worker/data/pickle.h"

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static uint64_t walk(const pickle *p, pickle_value v, int depth)
{
    uint64_t sum = pickle_type_of(p, v);
    size_t len = 0;
    const char *s = pickle_text(&len, p, v);
    int64_t i;

    for (size_t k = 0; s && k < len; k++)
        sum += (unsigned char)s[k];
    if (pickle_int(&i, p, v))
        sum += (uint64_t)i;
    for (uint32_t k = 0; depth < 5 && k < pickle_count(p, v) && k < 20; k++)
        sum += walk(p, pickle_at(p, v, k), depth + 1);
    if (depth < 5)
        sum += walk(p, pickle_get(p, v, "sentences"), 5) + walk(p, pickle_get(p, v, "sent"), 5);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    pseg_err err = PSEG_ERR_INIT;
    pickle *p;

    if (pickle_read(&p, data, n, "fuzz", &err) != PSEG_OK)
        return 0;
    uint64_t sum = walk(p, pickle_root(p), 0);
    pickle_close(p);
    return sum == UINT64_MAX; /* looked at, so that nothing is left out */
}
