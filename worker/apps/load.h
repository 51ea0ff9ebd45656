/* load: many clients of a running scheduler, and how long their jobs take.
 *
 * A closed loop has `clients` of them, each with one job at a time: it finds how much the service
 * does. An open loop sends at a rate that does not care for the service, as users do, and counts a
 * job's time from the moment at which it was due: what waits here because all clients are busy
 * counts too, so a service that stands still is not spared the jobs that it delayed ("coordinated
 * omission", G. Tene). */
#ifndef PSEG_APPS_LOAD_H
#define PSEG_APPS_LOAD_H

#include "common/base/err.h"
#include "worker/apps/latency.h"

typedef struct pseg_load_options {
    const char *server, *prompt, *model;
    const uint8_t *image;
    size_t image_len;
    bool is_distinct; /* each job's image is another: a few bytes follow its end; or */
    bool by_digest;   /* the image is sent with the first job, and the others name its SHA-256 */
    int64_t clients, timeout_ms;
    double rate;  /* of an open loop, jobs a second; 0: a closed loop */
    bool is_even; /* an open loop's jobs come at equal distances; else as a Poisson process */
    int64_t seed;
} pseg_load_options;

typedef struct pseg_load pseg_load;

/* Connects, and sends one job that counts nowhere. Options are borrowed until close.
 * Errors: as of a job. */
pseg_status pseg_load_open(pseg_load **out, const pseg_load_options *o, pseg_err *err);
/* Starts the clients. Until they have begun `jobs` (0: without end). */
pseg_status pseg_load_start(pseg_load *l, int64_t jobs, pseg_err *err);

/* What ended since the last call of it. */
typedef struct pseg_load_window {
    double seconds;
    int64_t failed; /* of those counted in the histogram */
    int64_t late;   /* begun more than a millisecond after they were due: all clients, or the
                       processors, were busy */
} pseg_load_window;
/* Waits until `seconds` have passed, or all jobs have ended; into (cleared) gets the times of those
 * that did meanwhile. False: all have ended. */
bool pseg_load_take(pseg_load *l, double seconds, pseg_latency *into, pseg_load_window *w);

/* No more jobs; waits for those under way. Returns the first error of a job, or PSEG_OK. */
pseg_status pseg_load_stop(pseg_load *l, pseg_err *err);
void pseg_load_close(pseg_load *l); /* NULL is accepted; stopped */

#endif
