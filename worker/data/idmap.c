#include "worker/data/idmap.h"
#include "common/base/alloc.h"

void idmap_deinit(idmap *m)
{
    pseg_free(m->slots);
    *m = (idmap){0};
}

uint64_t idmap_mix(uint64_t x)
{
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

uint64_t idmap_hash(const void *data, size_t n)
{
    const uint8_t *p = data;
    uint64_t h = 0xCBF29CE484222325u;

    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001B3u;
    return h;
}

/* The slot that holds id, or the free one where it would go. cap > n. */
static idmap_slot *find(const idmap *m, uint64_t id)
{
    size_t i = idmap_mix(id) & (m->cap - 1);

    while (m->slots[i].is_used && m->slots[i].id != id)
        i = (i + 1) & (m->cap - 1);
    return &m->slots[i];
}

static pseg_status grow(idmap *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    idmap bigger = {.cap = m->cap ? m->cap * 2 : 64, .n = m->n};

    bigger.slots = pseg_calloc(bigger.cap, sizeof *bigger.slots);
    if (!bigger.slots)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an index of %zu ids", bigger.cap);
    for (size_t i = 0; i < m->cap; i++)
        if (m->slots[i].is_used)
            *find(&bigger, m->slots[i].id) = m->slots[i];
    idmap_deinit(m);
    *m = bigger;
out:
    return rc;
}

pseg_status idmap_put(uint32_t *found, idmap *m, uint64_t id, uint32_t value, bool *is_new,
                      pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    idmap_slot *s;

    if (m->n * 4 >= m->cap * 3)
        PSEG_TRY(grow(m, err));
    s = find(m, id);
    *is_new = !s->is_used;
    if (*is_new) {
        *s = (idmap_slot){id, value, 1};
        m->n++;
    }
    *found = s->value;
out:
    return rc;
}

void idmap_set(idmap *m, uint64_t id, uint32_t value)
{
    find(m, id)->value = value;
}

bool idmap_get(uint32_t *value, const idmap *m, uint64_t id)
{
    const idmap_slot *s = m->cap ? find(m, id) : NULL;

    if (!s || !s->is_used)
        return false;
    *value = s->value;
    return true;
}
