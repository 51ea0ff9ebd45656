/* A map from 64-bit numbers to 32-bit ones, for ids and hashes. Private to worker/data. */
#ifndef PSEG_DATA_IDMAP_H
#define PSEG_DATA_IDMAP_H

#include "common/base/err.h"

#include <stdint.h>

typedef struct idmap_slot {
    uint64_t id;
    uint32_t value, is_used;
} idmap_slot;

typedef struct idmap {
    idmap_slot *slots; /* cap of them, a power of two; open addressing */
    size_t n, cap;
} idmap;

void idmap_deinit(idmap *m);
/* The value of id, set to `value` if the id is new. */
pseg_status idmap_put(uint32_t *found, idmap *m, uint64_t id, uint32_t value, bool *is_new,
                      pseg_err *err);
/* Of an id that is there. */
void idmap_set(idmap *m, uint64_t id, uint32_t value);
bool idmap_get(uint32_t *value, const idmap *m, uint64_t id);

/* A good spread of all bits (splitmix64's finaliser). */
uint64_t idmap_mix(uint64_t x);
/* FNV-1a, 64 bits. */
uint64_t idmap_hash(const void *data, size_t n);

#endif
