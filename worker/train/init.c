#include "worker/train/init.h"

#include <math.h>
#include <string.h>

/* splitmix64 (Steele, Lea, Flood 2014), its step and its output. */
#define GOLDEN UINT64_C(0x9e3779b97f4a7c15)

static uint64_t mix(uint64_t z)
{
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

uint64_t pseg_hash3(uint64_t a, uint64_t b, uint64_t c)
{
    return mix(mix(mix(a + GOLDEN) + b + GOLDEN) + c + GOLDEN);
}

static uint64_t hash_text(const char *s) /* FNV-1a */
{
    uint64_t h = UINT64_C(0xcbf29ce484222325);

    for (; *s; s++)
        h = (h ^ (unsigned char)*s) * UINT64_C(0x100000001b3);
    return h;
}

/* 0 < u < 1, 53 bits. */
static double unit(uint64_t key, uint64_t i)
{
    return ((double)(mix(key + (i + 1) * GOLDEN) >> 11) + 0.5) * 0x1p-53;
}

static bool ends(const char *s, const char *with)
{
    size_t n = strlen(s), k = strlen(with);

    return n >= k && strcmp(s + n - k, with) == 0;
}

static const pseg_spec *find(const pseg_specs *specs, const char *name)
{
    for (size_t i = 0; i < specs->n; i++)
        if (strcmp(specs->items[i].name, name) == 0)
            return &specs->items[i];
    return NULL;
}

/* What PyTorch calls fan_in of a weight: all dimensions but the first. */
static double fan_in(const pseg_spec *s)
{
    double n = 1;

    for (uint32_t i = 1; i < s->rank; i++)
        n *= (double)s->dims[i];
    return n;
}

void pseg_init_fill(void *ud, float *out, uint64_t n, const char *name)
{
    const pseg_init *in = ud;
    const pseg_spec *s = find(in->specs, name), *weight = s;
    uint64_t key = mix(in->seed + hash_text(name));
    char other[PSEG_SPEC_NAME];

    if (ends(name, "_token") || ends(name, ".pos_embed")) { /* Box, Muller 1958 */
        double size = ends(name, ".pos_embed") ? 0.02 : 1;
        for (uint64_t i = 0; i < n; i++)
            out[i] = (float)(size * sqrt(-2 * log(unit(key, 2 * i))) *
                             cos(2 * M_PI * unit(key, 2 * i + 1)));
        return;
    }
    if (ends(name, ".bias") && strlen(name) + 3 < sizeof other) {
        size_t k = strlen(name) - strlen("bias");
        memcpy(other, name, k);
        memcpy(other + k, "weight", sizeof "weight");
        weight = find(in->specs, other);
    }
    if (!weight || weight->rank == 1) {
        for (uint64_t i = 0; i < n; i++)
            out[i] = weight && weight == s ? 1 : 0;
        return;
    }
    double bound = 1 / sqrt(fan_in(weight));
    for (uint64_t i = 0; i < n; i++)
        out[i] = (float)((2 * unit(key, i) - 1) * bound);
}
