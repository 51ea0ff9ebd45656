#include "scheduler/service/held_images.h"
#include "common/base/clock.h"

/* FNV-1a, 64 bits. */
static uint64_t hash(uint64_t h, const char *text)
{
    do
        h = (h ^ (unsigned char)*text) * UINT64_C(1099511628211);
    while (*text++);
    return h;
}

static uint64_t key_of(const char *tenant, const char *sha256)
{
    return hash(hash(UINT64_C(14695981039346656037), tenant), sha256);
}

static void set(held_images *h, uint64_t key, int64_t until_ms)
{
    pthread_mutex_lock(&h->mu);
    h->slots[key % HELD_IMAGES].key = key;
    h->slots[key % HELD_IMAGES].until_ms = until_ms;
    pthread_mutex_unlock(&h->mu);
}

void held_images_note(held_images *h, const char *tenant, const char *sha256)
{
    set(h, key_of(tenant, sha256), pseg_clock_mono_ms() + HELD_IMAGE_MS);
}

void held_images_forget(held_images *h, const char *tenant, const char *sha256)
{
    set(h, key_of(tenant, sha256), 0);
}

bool held_images_know(held_images *h, const char *tenant, const char *sha256)
{
    uint64_t key = key_of(tenant, sha256);

    pthread_mutex_lock(&h->mu);
    bool knows = h->slots[key % HELD_IMAGES].key == key &&
                 h->slots[key % HELD_IMAGES].until_ms > pseg_clock_mono_ms();
    pthread_mutex_unlock(&h->mu);
    return knows;
}
