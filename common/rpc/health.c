/* grpc.health.v1. A status per service name, set from any thread; watchers are told of changes. */
#include "common/rpc/internal.h"

#include "common/base/alloc.h"
#include "grpc/health/v1/health.pb-c.h"

#include <string.h>

#define SERVING     GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
#define NOT_SERVING GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING
#define UNKNOWN     GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN

enum { MAX_SERVICES = 64, MAX_NAME = 128, CODE_NOT_FOUND = 5 };

typedef struct watch {
    struct watch *next, **slot; /* of the list of watches; under mu */
    pseg_rpc_call *call;
    /* What pseg_rpc_health_set may post, from any thread; NULL while it is on its way. Under mu. */
    pseg_rpc_ticket *ticket;
    char service[MAX_NAME];
    int told; /* the status last sent; -1: none */
    bool sending;
} watch;

struct pseg_rpc_health {
    const pseg_log *log;
    pthread_mutex_t mu;
    struct {
        char name[MAX_NAME];
        int status;
    } services[MAX_SERVICES];
    int n_services;
    bool ended; /* the server stops: nothing becomes SERVING any more */
    watch *watches;
};

pseg_rpc_health *pseg_rpc_health_new(const pseg_log *log)
{
    pseg_rpc_health *h = pseg_calloc(1, sizeof *h);

    if (h) {
        h->log = log;
        pthread_mutex_init(&h->mu, NULL);
    }
    return h;
}

void pseg_rpc_health_free(pseg_rpc_health *h)
{
    if (h)
        pthread_mutex_destroy(&h->mu);
    pseg_free(h);
}

static int lookup(const pseg_rpc_health *h, const char *service) /* mu is held */
{
    for (int i = 0; i < h->n_services; i++)
        if (strcmp(h->services[i].name, service) == 0)
            return h->services[i].status;
    return UNKNOWN;
}

/* Brings a watcher up to date, if nothing is in flight to it. */
static void tell(pseg_rpc_call *c)
{
    Grpc__Health__V1__HealthCheckResponse r = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    pseg_rpc_health *h = pseg_rpc_ud(c);
    watch *w = pseg_rpc_state(c);

    if (w->sending)
        return; /* on_writable comes */
    pthread_mutex_lock(&h->mu);
    int now = lookup(h, w->service);
    pthread_mutex_unlock(&h->mu);
    if (now == w->told)
        return;
    r.status = (Grpc__Health__V1__HealthCheckResponse__ServingStatus)now;
    w->told = now;
    w->sending = true;
    pseg_rpc_send(c, &r.base);
}

/* Gives the watch a ticket again and looks for changes that came while it had none. */
static void rearm(pseg_rpc_call *c, void *arg)
{
    pseg_rpc_health *h = pseg_rpc_ud(c);
    watch *w = pseg_rpc_state(c);
    pseg_err err = PSEG_ERR_INIT;

    (void)arg;
    if (pseg_rpc_is_over(c))
        return;
    pseg_rpc_ticket *t = pseg_rpc_hold(c);
    if (!t) {
        pseg_err_set(&err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE, "out of memory");
        pseg_rpc_fail(c, &err);
        return;
    }
    pthread_mutex_lock(&h->mu);
    w->ticket = t;
    pthread_mutex_unlock(&h->mu);
    tell(c);
}

static void wake(pseg_rpc_health *h, const char *service) /* mu is held; NULL: all */
{
    for (watch *w = h->watches; w; w = w->next)
        if (w->ticket && (!service || strcmp(w->service, service) == 0)) {
            pseg_rpc_post(w->ticket, rearm, NULL);
            w->ticket = NULL;
        }
}

void pseg_rpc_health_set(pseg_rpc_health *h, const char *service, bool serving)
{
    int i = 0;

    pthread_mutex_lock(&h->mu);
    while (i < h->n_services && strcmp(h->services[i].name, service) != 0)
        i++;
    if (i == MAX_SERVICES || strlen(service) >= MAX_NAME) {
        PSEG_WARN(h->log, "rpc", "health of '%s' is not kept: over %d services or %d bytes",
                  service, MAX_SERVICES, MAX_NAME - 1);
    } else {
        if (i == h->n_services)
            memcpy(h->services[h->n_services++].name, service, strlen(service) + 1);
        h->services[i].status = serving && !h->ended ? SERVING : NOT_SERVING;
        wake(h, service);
    }
    pthread_mutex_unlock(&h->mu);
}

void pseg_rpc_health_all_down(pseg_rpc_health *h)
{
    pthread_mutex_lock(&h->mu);
    h->ended = true;
    for (int i = 0; i < h->n_services; i++)
        h->services[i].status = NOT_SERVING;
    wake(h, NULL);
    pthread_mutex_unlock(&h->mu);
}

static void check(pseg_rpc_call *c, const void *msg)
{
    const Grpc__Health__V1__HealthCheckRequest *q = msg;
    Grpc__Health__V1__HealthCheckResponse r = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    pseg_rpc_health *h = pseg_rpc_ud(c);

    pthread_mutex_lock(&h->mu);
    int status = lookup(h, q->service);
    pthread_mutex_unlock(&h->mu);
    if (status == UNKNOWN) {
        pseg_rpc_fail_code(c, CODE_NOT_FOUND, "unknown service");
        return;
    }
    r.status = (Grpc__Health__V1__HealthCheckResponse__ServingStatus)status;
    pseg_rpc_reply(c, &r.base);
}

static void start_watch(pseg_rpc_call *c, const void *msg)
{
    const Grpc__Health__V1__HealthCheckRequest *q = msg;
    pseg_rpc_health *h = pseg_rpc_ud(c);
    watch *w = pseg_arena_calloc(pseg_rpc_arena(c), 1, sizeof *w);
    pseg_err err = PSEG_ERR_INIT;

    if (!w || strlen(q->service) >= MAX_NAME) {
        pseg_err_set(&err, w ? PSEG_R_INVALID_ARGUMENT : PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE, "%s",
                     w ? "the service's name is over 127 bytes" : "out of memory");
        pseg_rpc_fail(c, &err);
        return;
    }
    w->call = c;
    w->told = -1;
    memcpy(w->service, q->service, strlen(q->service) + 1);
    pseg_rpc_set_state(c, w);
    pthread_mutex_lock(&h->mu);
    w->next = h->watches;
    w->slot = &h->watches;
    if (w->next)
        w->next->slot = &w->next;
    h->watches = w;
    pthread_mutex_unlock(&h->mu);
    rearm(c, NULL);
}

static void watch_writable(pseg_rpc_call *c)
{
    watch *w = pseg_rpc_state(c);

    w->sending = false;
    tell(c);
}

static void watch_end(pseg_rpc_call *c)
{
    pseg_rpc_health *h = pseg_rpc_ud(c);
    watch *w = pseg_rpc_state(c);

    if (!w)
        return;
    pthread_mutex_lock(&h->mu);
    *w->slot = w->next;
    if (w->next)
        w->next->slot = w->slot;
    pseg_rpc_ticket *t = w->ticket;
    w->ticket = NULL;
    pthread_mutex_unlock(&h->mu);
    if (t)
        pseg_rpc_ticket_drop(t);
}

static void watch_drain(pseg_rpc_call *c)
{
    pseg_err err = PSEG_ERR_INIT;

    pseg_err_set(&err, PSEG_R_DRAINING, 0, PSEG_HERE, "the server is stopping");
    pseg_rpc_fail(c, &err);
}

const pseg_rpc_method pseg_rpc_health_methods[] = {
    {"/grpc.health.v1.Health/Check", PSEG_RPC_UNARY | PSEG_RPC_PUBLIC,
     &grpc__health__v1__health_check_request__descriptor, .on_message = check},
    {"/grpc.health.v1.Health/Watch", PSEG_RPC_SERVER_STREAM | PSEG_RPC_PUBLIC,
     &grpc__health__v1__health_check_request__descriptor, .on_message = start_watch,
     .on_writable = watch_writable, .on_drain = watch_drain, .on_end = watch_end},
    {0}};
