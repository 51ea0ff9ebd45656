/* What uploads and items that are not stored yet hold in memory, by tenant, and who may hold more.
 * Private to this folder.
 *
 * A tenant may hold as much as twice of what is then left free (and always one upload, if there is
 * room for it): two thirds of the whole if nobody else holds anything, two fifths each of two, and
 * so on. So there is always room for somebody who comes, however slowly the others send. */
#ifndef PSEG_SERVICE_UPLOAD_SHARE_H
#define PSEG_SERVICE_UPLOAD_SHARE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct upload_holder upload_holder; /* a tenant that holds something */

/* All functions but init and deinit: any thread. */
typedef struct upload_shares {
    pthread_mutex_t mu;
    upload_holder *first;
    int64_t total, max;
    bool is_shared; /* off: all callers are one tenant, which may have all */
} upload_shares;

typedef enum upload_answer {
    UPLOAD_TAKEN,
    UPLOAD_FULL,       /* all tenants together hold too much */
    UPLOAD_OVER_SHARE, /* this one does */
    UPLOAD_NO_MEMORY
} upload_answer;

void upload_shares_init(upload_shares *s, int64_t max, bool is_shared);
void upload_shares_deinit(upload_shares *s);

/* Takes n bytes if the tenant may hold them; *allowed (may be NULL) gets what it may hold, if that
 * is too little. */
upload_answer upload_take(upload_shares *s, const char *tenant, int64_t n, int64_t *allowed);
/* Takes them anyhow: what has come already is counted. False: memory is short, nothing is taken. */
bool upload_count(upload_shares *s, const char *tenant, int64_t n);
/* Gives back n bytes that were taken. */
void upload_give(upload_shares *s, const char *tenant, int64_t n);
/* May the tenant go on sending? True for one that holds nothing, while there is room at all. */
bool upload_has_room(upload_shares *s, const char *tenant);

#endif
