/* Which images the queue holds, as far as one scheduler has seen lately: so that a further phrase
 * on a photo that the client sends anew need not take the photo to Redis once more. A hint, which
 * may be wrong in either way: a submit without content that fails for want of it is repeated with
 * it. */
#ifndef PSEG_SERVICE_HELD_IMAGES_H
#define PSEG_SERVICE_HELD_IMAGES_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    HELD_IMAGES = 4096,       /* one in each place, the last one that came to it */
    HELD_IMAGE_MS = 60000,    /* for so long; the queue keeps them longer */
    HELD_IMAGE_BYTES = 16384, /* smaller ones are as quickly sent */
};

/* Zeroed before first use, but for the mutex. Any thread. */
typedef struct held_images {
    pthread_mutex_t mu;
    struct {
        uint64_t key; /* hash of tenant and content */
        int64_t until_ms;
    } slots[HELD_IMAGES];
} held_images;

void held_images_note(held_images *h, const char *tenant, const char *sha256);
void held_images_forget(held_images *h, const char *tenant, const char *sha256);
bool held_images_know(held_images *h, const char *tenant, const char *sha256);

#endif
