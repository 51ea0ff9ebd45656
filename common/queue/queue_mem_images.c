#include "common/queue/queue_mem_impl.h"
#include "common/base/alloc.h"

#include <stdio.h>
#include <string.h>

/* ---- images ---- */

static int64_t bytes_of_tenant(const mem_store *s, const char *tenant)
{
    size_t n = strlen(tenant);
    int64_t sum = 0;

    for (const mem_image *i = s->images; i; i = i->next)
        if (strncmp(i->name, tenant, n) == 0 && i->name[n] == ':')
            sum += (int64_t)i->len;
    return sum;
}

void mem_image_free(mem_store *s, mem_image *i)
{
    s->image_bytes -= (int64_t)i->len;
    pseg_free(i->name);
    pseg_free(i->data);
    pseg_free(i);
}

void mem_purge_images(mem_store *s)
{
    int64_t now = mem_now_us(s);

    for (mem_image **p = &s->images; *p;) {
        mem_image *i = *p;
        if (i->uses > 0 || i->expire_us > now) {
            p = &i->next;
            continue;
        }
        *p = i->next;
        mem_image_free(s, i);
    }
}

mem_image *mem_store_image(mem_store *s, const pseg_queue_options *o, const char *name,
                           pseg_bytes data, int64_t tenant_bytes, pseg_queue_reply *r)
{
    char tenant[192];

    snprintf(tenant, sizeof tenant, "%.*s", (int)strcspn(name, ":"), name);

    mem_image *i = NULL;

    if (s->image_bytes + (int64_t)data.len > o->max_bytes)
        mem_purge_images(s);
    if (s->image_bytes + (int64_t)data.len > o->max_bytes) {
        pseg_err_set(&r->err, PSEG_R_QUEUE_FULL, 0, PSEG_HERE,
                     "an image of %zu bytes does not fit: %lld of %lld bytes are held; try again "
                     "later",
                     data.len, (long long)s->image_bytes, (long long)o->max_bytes);
        return NULL;
    }
    int64_t own = bytes_of_tenant(s, tenant);
    if (tenant_bytes > 0 && own + (int64_t)data.len > tenant_bytes) {
        pseg_err_set(
            &r->err, PSEG_R_TENANT_LIMIT, 0, PSEG_HERE,
            "an image of %zu bytes does not fit: %lld of %lld bytes of tenant %s are held; "
            "try again later",
            data.len, (long long)own, (long long)tenant_bytes, tenant);
        return NULL;
    }
    i = pseg_calloc(1, sizeof *i);
    if (i) {
        i->name = pseg_strdup(name);
        i->data = pseg_memdup(data.data ? data.data : (const uint8_t *)"", data.len);
    }
    if (!i || !i->name || !i->data) {
        if (i) {
            pseg_free(i->name);
            pseg_free(i->data);
        }
        pseg_free(i);
        mem_no_memory(r);
        return NULL;
    }
    i->len = data.len;
    i->next = s->images;
    s->images = i;
    s->image_bytes += (int64_t)i->len;
    return i;
}

void mem_extend(const mem_store *s, const pseg_queue_options *o, mem_image *i)
{
    int64_t until = mem_now_us(s) + o->image_ttl_ms * 1000;

    if (until > i->expire_us)
        i->expire_us = until;
}

void mem_image_name(char out[192], const char *tenant, const char *sha256)
{
    snprintf(out, 192, "%s:%s", tenant, sha256);
}

void mem_put_image(mem_store *s, const pseg_queue_options *o, const char *tenant,
                   const char *sha256, pseg_bytes data, int64_t tenant_bytes, pseg_queue_reply *r)
{
    char name[192];

    mem_image_name(name, tenant, sha256);
    mem_image *i = mem_image_of(s, name);
    r->images = pseg_arena_calloc(r->arena, 1, sizeof *r->images);
    if (!r->images) {
        mem_no_memory(r);
        return;
    }
    r->images[0].existed = i != NULL;
    if (!i)
        i = mem_store_image(s, o, name, data, tenant_bytes, r);
    if (!i)
        return;
    mem_extend(s, o, i);
    r->n_images = 1;
    r->images[0].size_bytes = i->len;
    r->images[0].expire_unix_us = i->expire_us;
}

void mem_has_images(mem_store *s, const pseg_queue_options *o, const char *tenant,
                    const char *const *sha256, size_t n, pseg_queue_reply *r)
{
    r->images = pseg_arena_calloc(r->arena, n, sizeof *r->images);
    if (!r->images) {
        mem_no_memory(r);
        return;
    }
    r->n_images = n;
    for (size_t k = 0; k < n; k++) {
        char name[192];
        mem_image_name(name, tenant, sha256[k]);
        mem_image *i = mem_image_of(s, name);
        if (!i)
            continue;
        mem_extend(s, o, i);
        r->images[k].size_bytes = i->len;
        r->images[k].expire_unix_us = i->expire_us;
    }
}

void mem_reply_blobs(pseg_queue_reply *r, size_t n)
{
    r->blobs = pseg_arena_calloc(r->arena, n, sizeof *r->blobs);
    r->n_blobs = r->blobs ? n : 0;
    if (!r->blobs)
        mem_no_memory(r);
}

void mem_fetch_image(mem_store *s, const char *image, pseg_queue_reply *r)
{
    const mem_image *i = mem_image_of(s, image);

    mem_reply_blobs(r, 1);
    if (i && r->n_blobs)
        r->blobs[0] = mem_bytes_in(r->arena, (pseg_bytes){i->data, i->len});
}
