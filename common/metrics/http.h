/* http: serves a process's metrics and its probes over HTTP, for Prometheus and kubelets.
 *
 *     GET /metrics     everything, text format 0.0.4
 *     GET /livez       200 while is_live says so, else 503
 *     GET /readyz      200 while is_ready says so, else 503
 *
 * It answers from a thread of its own, which nothing else waits for. There is no authentication and
 * no TLS: listen where only those can reach it who may read it. */
#ifndef PSEG_METRICS_HTTP_H
#define PSEG_METRICS_HTTP_H

#include "common/base/log.h"
#include "common/metrics/metrics.h"

typedef struct pseg_metrics_http pseg_metrics_http;

/* Asked from the server's thread; must not wait long. NULL: always true. */
typedef struct pseg_metrics_probes {
    bool (*is_live)(void *ud), (*is_ready)(void *ud);
    void *ud;
} pseg_metrics_probes;

/* listen: "127.0.0.1:9464", "[::]:9464", ":9464" (every address), port 0: a free one. *port (may be
 * NULL) gets the port. m is borrowed until pseg_metrics_http_stop; probes are copied.
 * Errors: PSEG_R_CONFIG_INVALID (not an address), PSEG_R_ADDRESS_IN_USE, PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_metrics_http_start(pseg_metrics_http **out, const char *listen, pseg_metrics *m,
                                    const pseg_metrics_probes *probes, int *port, pseg_err *err);
/* Ends connections and the thread. NULL: nothing happens. */
void pseg_metrics_http_stop(pseg_metrics_http *s);

#endif
