/* The cache of features: lua/features.lua in C. */
#include "common/queue/queue_mem_impl.h"
#include "common/base/alloc.h"

#include <string.h>

struct mem_feature {
    mem_feature *next;
    char *key;
    uint8_t *data;
    size_t len;
    int64_t expire_us;
};

static void feature_free(mem_feature *f)
{
    pseg_free(f->key);
    pseg_free(f->data);
    pseg_free(f);
}

void mem_free_features(mem_store *s)
{
    while (s->features) {
        mem_feature *f = s->features;
        s->features = f->next;
        feature_free(f);
    }
}

/* Those whose time has passed go, and of the others all behind the first `budget` bytes. */
static void trim(mem_store *s, int64_t budget)
{
    int64_t now = mem_now_us(s), held = 0;

    for (mem_feature **at = &s->features; *at;) {
        mem_feature *f = *at;
        held += f->expire_us > now ? (int64_t)f->len : 0;
        if (f->expire_us > now && held <= budget) {
            at = &f->next;
            continue;
        }
        *at = f->next;
        feature_free(f);
    }
}

/* Comes first, as used now. NULL: not there. */
static mem_feature *use(mem_store *s, const char *key, int64_t ttl_ms)
{
    trim(s, INT64_MAX);
    for (mem_feature **at = &s->features; *at; at = &(*at)->next)
        if (strcmp((*at)->key, key) == 0) {
            mem_feature *f = *at;
            *at = f->next;
            f->next = s->features;
            s->features = f;
            f->expire_us = mem_now_us(s) + ttl_ms * 1000;
            return f;
        }
    return NULL;
}

void mem_get_features(mem_store *s, const char *key, int64_t ttl_ms, pseg_queue_reply *r)
{
    const mem_feature *f = use(s, key, ttl_ms);

    mem_reply_blobs(r, 1);
    if (f && r->n_blobs)
        r->blobs[0] = mem_bytes_in(r->arena, (pseg_bytes){f->data, f->len});
}

void mem_put_features(mem_store *s, const char *key, pseg_bytes data, int64_t budget,
                      int64_t ttl_ms, pseg_queue_reply *r)
{
    if ((int64_t)data.len > budget)
        return;
    r->created = true;
    if (use(s, key, ttl_ms))
        return;
    mem_feature *f = pseg_calloc(1, sizeof *f);
    if (f) {
        f->key = pseg_strdup(key);
        f->data = pseg_memdup(data.data ? data.data : (const uint8_t *)"", data.len);
    }
    if (!f || !f->key || !f->data) {
        if (f)
            feature_free(f);
        r->created = false;
        mem_no_memory(r);
        return;
    }
    f->len = data.len;
    f->expire_us = mem_now_us(s) + ttl_ms * 1000;
    f->next = s->features;
    s->features = f;
    trim(s, budget);
}
