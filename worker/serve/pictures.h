/* The images that a worker has at hand: prepared or being prepared for jobs that are under way, and
 * encoded ones that were asked for last, on one device or several. Jobs whose images have the same
 * key share one of them, so that it is fetched, decoded and encoded once. A key names tenant and
 * content: what belongs to one tenant is never found by another.
 *
 *     switch (pseg_pictures_take(&p, store, key, task)) {
 *     case PSEG_PICTURE_READY: ...                     // p is prepared, perhaps encoded
 *     case PSEG_PICTURE_AWAITED: ...                   // task comes back from whoever prepares it
 *     case PSEG_PICTURE_MINE:
 *         ... fill p ...
 *         waiters = pseg_pictures_filled(store, p, is_good);
 *     }
 *     pseg_pictures_drop(store, p);
 *
 * Threads: any, but a device's features are made by the thread that owns its model, read by it
 * alone and given back by it in pseg_pictures_reap. While no device has encoded a picture, one at a
 * time may try: pseg_pictures_claim and _unclaim. What it leaves behind for the others are numbers.
 */
#ifndef PSEG_SERVE_PICTURES_H
#define PSEG_SERVE_PICTURES_H

#include "common/base/err.h"
#include "worker/model/pseg.h"

#include <pthread.h>
#include <stdint.h>

enum { PSEG_MAX_DEVICES = 16, PSEG_NO_DEVICE = -1 };

typedef struct pseg_picture {
    struct pseg_picture *next;
    char *key;                /* NULL: of one job alone */
    size_t n_refs;            /* guarded by the store's lock, as are the next two */
    struct pseg_waiter *wait; /* who waits until it is filled, the first to come first */
    bool is_filled;
    bool is_encoded; /* guarded, too: any device that asks has features, or numbers to make them of
                      */
    int at_work;     /* guarded, too: the device that may encode it now, or PSEG_NO_DEVICE */
    /* Written by whoever fills it: */
    uint32_t width, height; /* of the photo */
    float rect[4];
    float *chw; /* normalised pixels; NULL once encoded, or if features were at hand */
    /* Its features as numbers: found elsewhere, to be kept elsewhere, or for other devices. Written
     * before is_encoded is set; with one device freed as soon as they have got where they should.
     */
    float *numbers;
    bool is_fresh; /* the numbers are to be kept elsewhere, by who ends the first job on it */
    /* Of the thread that owns the device's model: */
    pseg_features *features[PSEG_MAX_DEVICES]; /* NULL: none on it */
} pseg_picture;

/* To be embedded by who waits. */
typedef struct pseg_waiter {
    struct pseg_waiter *next;
    pseg_picture *picture; /* once it is there: a reference of the waiter's own; NULL: it failed */
} pseg_waiter;

typedef struct pseg_pictures {
    pthread_mutex_t mu;
    pseg_picture *list;   /* with keys; used last first */
    pseg_picture *doomed; /* features to be given back */
    size_t n_kept, max_kept;
    size_t n_devices; /* 1 at first */
} pseg_pictures;

typedef enum pseg_picture_state {
    PSEG_PICTURE_READY,
    PSEG_PICTURE_AWAITED,
    PSEG_PICTURE_MINE,
    PSEG_PICTURE_NO_MEMORY
} pseg_picture_state;

/* max_kept: encoded pictures that stay though no job needs them. */
void pseg_pictures_init(pseg_pictures *s, size_t max_kept);
/* Before models are closed and after all pictures were dropped. */
void pseg_pictures_deinit(pseg_pictures *s);

/* READY and MINE: *out is a reference, ended by pseg_pictures_drop. AWAITED: w is queued. key NULL:
 * a picture that nobody shares. */
pseg_picture_state pseg_pictures_take(pseg_picture **out, pseg_pictures *s, const char *key,
                                      pseg_waiter *w);
/* One that would be READY, with a reference of the caller's; NULL: there is none. */
pseg_picture *pseg_pictures_find(pseg_pictures *s, const char *key);
/* Of a picture that is MINE: it can be used (is_good), or is forgotten. Returns those who waited,
 * as a list. */
pseg_waiter *pseg_pictures_filled(pseg_pictures *s, pseg_picture *p, bool is_good);
/* NULL: nothing happens. */
void pseg_pictures_drop(pseg_pictures *s, pseg_picture *p);
/* Frees what was encoded on the device and is needed no more. By the owner of its model. */
void pseg_pictures_reap(pseg_pictures *s, size_t device);

/* Before a device runs a job on it. False: another one has it at work, and it is better waited for.
 * Any thread. */
bool pseg_pictures_claim(pseg_pictures *s, pseg_picture *p, size_t device);
/* The device is done with it, whether it has encoded it or not. */
void pseg_pictures_unclaim(pseg_pictures *s, pseg_picture *p, size_t device);
bool pseg_picture_is_encoded(pseg_pictures *s, const pseg_picture *p);
/* Its numbers are needed no more. By who has them. */
void pseg_picture_forget_numbers(pseg_pictures *s, pseg_picture *p);

#endif
