/* Between the parts of `pseg bench service`. */
#ifndef PSEG_APPS_BENCH_SERVICE_H
#define PSEG_APPS_BENCH_SERVICE_H

#include "common/base/err.h"
#include "common/rpc/rpc_client.h"

#include <jansson.h>
#include <stdint.h>

typedef struct bench_service_args {
    const char *server, *image, *prompt, *model, *arrivals, *plot;
    int64_t jobs, clients, timeout_ms, seed, max_windows;
    double rate, seconds, until_stable, window_s, warm_s;
    bool distinct, by_digest, batch, json;
} bench_service_args;

/* What a batch is made of. */
typedef struct bench_load {
    const bench_service_args *a;
    pseg_rpc_channel *channel;
    uint8_t *image;
    size_t image_len;
} bench_load;

/* All jobs as one batch, of the image that the server holds already. Fills `out`; errors: of the
 * calls, and JOB_FAILED if an item did not succeed. */
pseg_status bench_service_batch(const bench_load *l, json_t *out, pseg_err *err);

#endif
