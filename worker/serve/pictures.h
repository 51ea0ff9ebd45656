/* The images that a worker has at hand: prepared or being prepared for jobs that are under way, and
 * encoded ones that were asked for last. Jobs whose images have the same key share one of them, so
 * that it is fetched, decoded and encoded once. A key names tenant and content: what belongs to one
 * tenant is never found by another.
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
 * Threads: any, but features are made by the thread that owns the model, read by it alone and given
 * back by it in pseg_pictures_reap. */
#ifndef PSEG_SERVE_PICTURES_H
#define PSEG_SERVE_PICTURES_H

#include "common/base/err.h"
#include "worker/model/pseg.h"

#include <pthread.h>
#include <stdint.h>

typedef struct pseg_picture {
    struct pseg_picture *next;
    char *key;                /* NULL: of one job alone */
    size_t n_refs;            /* guarded by the store's lock, as are the next two */
    struct pseg_waiter *wait; /* who waits until it is filled, the first to come first */
    bool is_filled;
    /* Written by whoever fills it: */
    uint32_t width, height; /* of the photo */
    float rect[4];
    float *chw;   /* normalised pixels; NULL once encoded, or if features were at hand: */
    float *found; /* its features from elsewhere, on their way to the device */
    /* Of the thread that owns the model: */
    pseg_features *features; /* NULL: not encoded yet */
    float *fresh; /* the same as numbers, if they are to be kept elsewhere; then of whoever
                   * keeps them, once a job on it is done */
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
} pseg_pictures;

typedef enum pseg_picture_state {
    PSEG_PICTURE_READY,
    PSEG_PICTURE_AWAITED,
    PSEG_PICTURE_MINE,
    PSEG_PICTURE_NO_MEMORY
} pseg_picture_state;

/* max_kept: encoded pictures that stay though no job needs them. */
void pseg_pictures_init(pseg_pictures *s, size_t max_kept);
/* By the owner of the model, before it is closed and after all pictures were dropped. */
void pseg_pictures_deinit(pseg_pictures *s);

/* READY and MINE: *out is a reference, ended by pseg_pictures_drop. AWAITED: w is queued. key NULL:
 * a picture that nobody shares. */
pseg_picture_state pseg_pictures_take(pseg_picture **out, pseg_pictures *s, const char *key,
                                      pseg_waiter *w);
/* Of a picture that is MINE: it can be used (is_good), or is forgotten. Returns those who waited,
 * as a list. */
pseg_waiter *pseg_pictures_filled(pseg_pictures *s, pseg_picture *p, bool is_good);
/* NULL: nothing happens. */
void pseg_pictures_drop(pseg_pictures *s, pseg_picture *p);
/* Frees what was encoded and is needed no more. By the owner of the model. */
void pseg_pictures_reap(pseg_pictures *s);

#endif
