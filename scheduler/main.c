/* pseg-scheduler: gRPC in, queue out. Wiring only. */
#include "common/base/daemon.h"
#include "common/base/file.h"
#include "common/base/version.h"
#include "common/queue/queue.h"
#include "common/rpc/rpc.h"
#include "pseg/descriptors.h"
#include "scheduler/keys.h"
#include "scheduler/metrics.h"
#include "scheduler/trace.h"
#include "scheduler/service/service.h"
#include "scheduler/side.h"
#include "scheduler/tenants.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SERVICE "pseg.v1.SegmentationService"
#define BATCHES "pseg.v1.BatchService"

typedef struct config {
    const char *config, *listen, *redis, *queue, *default_model, *ready_file, *log_level;
    const char *tls_cert, *tls_key, *tls_client_ca, *keys, *tenants, *durability, *metrics_listen,
        *otlp_endpoint;
    double trace_ratio;
    const char *admin_listen, *admin_keys, *admin_ready_file;
    const char *scaler_listen, *scaler_ready_file;
    bool insecure, refuse_infeasible;
    int64_t max_jobs, max_bytes, max_image_bytes, max_upload_bytes, image_ttl_ms, max_age_ms;
    int64_t mask_threads, lease_ms, max_attempts, max_calls, max_rpc_bytes, idle_ms, grace_ms,
        stall_ms, redis_timeout_ms, loops, replicas;
} config;

#define OPTION(n, t, d, ...)                       \
    {                                              \
#n, t, offsetof(config, n), d, __VA_ARGS__ \
    }
static const pseg_conf_option options[] = {
    OPTION(config, PSEG_CONF_STRING, NULL, .unit = "FILE", .help = "file of `name = value` lines"),
    OPTION(listen, PSEG_CONF_STRING, "127.0.0.1:7433", .unit = "ADDR",
           .help = "host:port (port 0: a free one) or unix:/path"),
    OPTION(
        redis, PSEG_CONF_STRING, "redis://127.0.0.1:6379", .unit = "URL", .is_secret = true,
        .help =
            "redis://[user:password@]host[:port][/db], unix:/path, "
            "redis+sentinel://[user:password@]host[:port],.../MASTER[/db], or "
            "redis+cluster://[user:password@]host[:port],.../PARTS; several with blanks between: "
            "the queue lies on all of them"),
    OPTION(queue, PSEG_CONF_STRING, "default", .unit = "NAME", .help = "queue within that Redis"),
    OPTION(default_model, PSEG_CONF_STRING, "scenes", .unit = "NAME",
           .help = "model of jobs that name none"),
    OPTION(tls_cert, PSEG_CONF_STRING, NULL, .unit = "FILE",
           .help = "certificate chain (PEM); read again when it changes"),
    OPTION(tls_key, PSEG_CONF_STRING, NULL, .unit = "FILE", .help = "its private key"),
    OPTION(tls_client_ca, PSEG_CONF_STRING, NULL, .unit = "FILE",
           .help = "clients must show a certificate signed by one of these"),
    OPTION(keys, PSEG_CONF_STRING, NULL, .unit = "FILE",
           .help = "clients must send a bearer key; lines of SHA-256 and tenant, read again when "
                   "they change"),
    OPTION(tenants, PSEG_CONF_STRING, NULL, .unit = "FILE",
           .help = "what tenants may have; lines of TENANT weight=N jobs=N bytes=N rate=N burst=N, "
                   "read again "
                   "when they change"),
    OPTION(
        durability, PSEG_CONF_STRING, "memory", .unit = "LEVEL",
        .help =
            "of a job before its submit is answered: memory, fsync or replicated; refused if Redis "
            "cannot give it"),
    OPTION(replicas, PSEG_CONF_INT, "1", .min = 1, .max = 16,
           .help = "which must have a job, with --durability replicated"),
    OPTION(refuse_infeasible, PSEG_CONF_BOOL, "false",
           .help = "refuse a job whose deadline would not be met as things stand "
                   "(DEADLINE_INFEASIBLE)"),
    OPTION(admin_listen, PSEG_CONF_STRING, NULL, .unit = "ADDR",
           .help = "host:port or unix:/path of AdminService; no other address serves it"),
    OPTION(admin_keys, PSEG_CONF_STRING, NULL, .unit = "FILE",
           .help = "keys of those who run the service, as --keys; needed but on a unix socket"),
    OPTION(admin_ready_file, PSEG_CONF_STRING, NULL, .unit = "FILE",
           .help = "gets the address of --admin-listen once it is served"),
    OPTION(scaler_listen, PSEG_CONF_STRING, NULL, .unit = "ADDR",
           .help = "host:port or unix:/path of KEDA's ExternalScaler; no other address serves it"),
    OPTION(scaler_ready_file, PSEG_CONF_STRING, NULL, .unit = "FILE",
           .help = "gets the address of --scaler-listen once it is served"),
    OPTION(insecure, PSEG_CONF_BOOL, "false",
           .help = "allow a public address without TLS or without authentication"),
    OPTION(max_jobs, PSEG_CONF_INT, "1000000", .min = 1, .max = 1e12,
           .help = "jobs alive at once; beyond: QUEUE_FULL"),
    OPTION(max_bytes, PSEG_CONF_INT, "4G", .unit = "bytes", .min = 1, .max = 1e15,
           .help = "image bytes held at once; beyond: QUEUE_FULL"),
    OPTION(max_image_bytes, PSEG_CONF_INT, "64M", .unit = "bytes", .min = 1024, .max = 536870912,
           .help = "one uploaded image"),
    OPTION(
        max_upload_bytes, PSEG_CONF_INT, "512M", .unit = "bytes", .min = 1024, .max = 1e12,
        .help =
            "all uploads under way in this process, and items of batches that are not stored yet"),
    OPTION(image_ttl_ms, PSEG_CONF_INT, "60m", .unit = "ms", .min = 1000, .max = 1e12,
           .help = "life of an image since its last use"),
    OPTION(max_age_ms, PSEG_CONF_INT, "1440m", .unit = "ms", .min = 1000, .max = 1e12,
           .help = "longest deadline of a job, and that of jobs which name none"),
    OPTION(lease_ms, PSEG_CONF_INT, "10s", .unit = "ms", .min = 100, .max = 3600000,
           .help = "must agree with the workers'"),
    OPTION(max_attempts, PSEG_CONF_INT, "3", .min = 1, .max = 100,
           .help = "how often a job is begun at most"),
    OPTION(max_calls, PSEG_CONF_INT, "10000", .min = 1, .max = 1000000,
           .help = "calls at once; beyond: SERVER_BUSY"),
    OPTION(max_rpc_bytes, PSEG_CONF_INT, "512M", .unit = "bytes", .min = 33554432, .max = 1e12,
           .help = "of requests that are arriving; beyond, calls are cancelled"),
    OPTION(idle_ms, PSEG_CONF_INT, "10m", .unit = "ms", .min = 100, .max = 86400000,
           .help = "after which a connection without a call ends"),
    OPTION(loops, PSEG_CONF_INT, "1", .min = 1, .max = 64,
           .help = "threads for calls; more than one wants GRPC_POLL_STRATEGY=poll"),
    OPTION(mask_threads, PSEG_CONF_INT, "2", .min = 1, .max = PSEG_MAX_MASK_THREADS,
           .help = "threads that enlarge and encode masks"),
    OPTION(grace_ms, PSEG_CONF_INT, "10s", .unit = "ms", .min = 0, .max = 3600000,
           .help = "how long calls may go on after SIGTERM"),
    OPTION(stall_ms, PSEG_CONF_INT, "60s", .unit = "ms", .min = 100, .max = 3600000,
           .help = "after which a stream ends whose client neither sends nor reads, and a "
                   "connection whose handshake stands still"),
    OPTION(redis_timeout_ms, PSEG_CONF_INT, "2s", .unit = "ms", .min = 50, .max = 60000,
           .help = "after which Redis counts as gone"),
    OPTION(metrics_listen, PSEG_CONF_STRING, NULL, .unit = "ADDR",
           .help =
               "host:port of /metrics, /livez and /readyz over HTTP, for those who may read them"),
    OPTION(otlp_endpoint, PSEG_CONF_STRING, NULL, .unit = "URL",
           .help = "http://host:port of a collector that takes spans by OTLP over gRPC; https:// "
                   "encrypts"),
    OPTION(trace_ratio, PSEG_CONF_REAL, "1", .min = 0, .max = 1,
           .help = "share of calls traced whose caller does not say; a caller's traceparent "
                   "decides for itself"),
    OPTION(ready_file, PSEG_CONF_STRING, NULL, .unit = "FILE",
           .help = "gets the address once calls are served"),
    OPTION(log_level, PSEG_CONF_STRING, "info", .unit = "LEVEL",
           .help = "error, warn, info or debug"),
    {0}};

static const pseg_conf_about about = {
    .name = "pseg-scheduler",
    .usage = "[options]",
    .what = "Accepts segmentation jobs over gRPC and keeps them in Redis.",
    .example = "pseg-scheduler --redis redis://127.0.0.1:6379 --listen 127.0.0.1:7433",
    .after =
        "Every option is also a variable (PSEG_LISTEN) and a line of --config (listen = ...).\n"
        "SIGTERM stops it in peace. docs/operations.md tells how to run it."};

/* Who hears of calls that have ended. */
typedef struct listeners {
    pseg_scheduler_metrics *metrics;
    pseg_trace *trace;
} listeners;

static void on_ended(void *ud, const pseg_rpc_ended *e)
{
    const listeners *l = ud;

    if (l->metrics)
        pseg_scheduler_metrics_on_ended(l->metrics, e);
    pseg_scheduler_trace_on_ended(l->trace, e);
}

static pseg_status open_trace(pseg_trace **out, const config *c, const pseg_log *log, pseg_err *err)
{
    char host[64] = "host", instance[96];

    gethostname(host, sizeof host - 1);
    snprintf(instance, sizeof instance, "%s-%ld", host, (long)getpid());
    return pseg_trace_open(out,
                           &(pseg_trace_options){.endpoint = c->otlp_endpoint,
                                                 .service = "pseg-scheduler",
                                                 .instance = instance,
                                                 .version = PSEG_VERSION,
                                                 .log = log},
                           err);
}

static _Atomic bool listener_lost, sweeping;

static void on_listener_lost(void *ud)
{
    (void)ud;
    atomic_store(&listener_lost, true);
    kill(getpid(), SIGTERM);
}

static void swept(void *ud, pseg_queue_reply *r)
{
    (void)ud;
    atomic_store(&sweeping, false);
    pseg_queue_reply_free(r);
}

/* A name may begin as an address does: "127.0.0.1.example.org:7433" is not local. */
static bool is_local(const char *address)
{
    size_t digits = strspn(address, "0123456789.");

    return (strncmp(address, "127.", 4) == 0 && strchr(":", address[digits])) ||
           strncmp(address, "localhost:", 10) == 0 || strncmp(address, "[::1]", 5) == 0 ||
           strncmp(address, "unix:", 5) == 0;
}

static pseg_status durability_of(pseg_durability *out, const char *text, pseg_err *err)
{
    static const char *const names[] = {"memory", "fsync", "replicated"};
    pseg_status rc = PSEG_OK;

    for (int i = 0; i < 3; i++)
        if (strcmp(names[i], text) == 0) {
            *out = (pseg_durability)i;
            goto out;
        }
    PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--durability \"%s\" is not memory, fsync or replicated",
              text);
out:
    return rc;
}

static pseg_status check(const config *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (!c->tls_cert != !c->tls_key)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--tls-cert and --tls-key belong together");
    if (c->tls_client_ca && !c->tls_cert)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--tls-client-ca needs --tls-cert and --tls-key");
    if (!is_local(c->listen) && !c->insecure && !(c->tls_cert && (c->tls_client_ca || c->keys)))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--listen %s is not a loopback address: add --tls-cert, --tls-key and "
                  "--tls-client-ca or --keys, "
                  "or --insecure behind a proxy",
                  c->listen);
    if (c->admin_listen && !c->admin_keys && strncmp(c->admin_listen, "unix:", 5) != 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--admin-listen %s needs --admin-keys, or be a unix socket in a folder that only "
                  "those who run the service can enter",
                  c->admin_listen);
    if (c->admin_listen && !is_local(c->admin_listen) && !c->tls_cert)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--admin-listen %s is not a loopback address: add --tls-cert and --tls-key",
                  c->admin_listen);
    if (c->scaler_listen && !is_local(c->scaler_listen) && !c->insecure && !c->tls_client_ca)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--scaler-listen %s is not a loopback address: add --tls-cert, --tls-key and "
                  "--tls-client-ca, or --insecure behind a network policy",
                  c->scaler_listen);
    if (c->admin_keys && !c->admin_listen)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--admin-keys needs --admin-listen");
out:
    return rc;
}

static pseg_status open_queue(pseg_queue **out, const config *c, pseg_service *s,
                              const pseg_log *log, pseg_err *err)
{
    pseg_queue_options o = PSEG_QUEUE_OPTIONS_DEFAULT;

    o.url = c->redis;
    o.name = c->queue;
    o.log = log;
    o.timeout_ms = c->redis_timeout_ms;
    o.lease_ms = c->lease_ms;
    o.max_attempts = c->max_attempts;
    o.max_jobs = c->max_jobs;
    o.max_bytes = c->max_bytes;
    o.image_ttl_ms = c->image_ttl_ms;
    o.max_age_ms = c->max_age_ms;
    o.replicas = c->replicas;
    if (durability_of(&o.durability, c->durability, err) != PSEG_OK)
        return PSEG_EINVAL;
    o.on_event = pseg_service_on_event;
    o.ud = s;
    return pseg_queue_open(out, &o, err);
}

static pseg_status open_server(pseg_rpc_server **out, const config *c, pseg_service *s,
                               pseg_auth *auth, listeners *who, const pseg_log *log, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_rpc_server_options o = PSEG_RPC_SERVER_OPTIONS_DEFAULT;
    char address[256];
    int port = 0;

    o.log = log;
    o.n_loops = (int)c->loops;
    o.max_live_calls = (int)c->max_calls;
    o.first_message_ms = c->stall_ms;
    o.max_memory_bytes = (size_t)c->max_rpc_bytes;
    o.idle_ms = c->idle_ms;
    o.cert_file = c->tls_cert;
    o.key_file = c->tls_key;
    o.client_ca_file = c->tls_client_ca;
    o.text_reason = pseg_service_text_reason;
    o.descriptors = pseg_descriptors_begin;
    o.descriptors_len = (size_t)(pseg_descriptors_end - pseg_descriptors_begin);
    if (auth->keys || auth->needs_certificate) {
        o.authorize = pseg_auth_check;
        o.authorize_ud = auth;
    }
    o.on_ended = on_ended;
    o.on_ended_ud = who;
    if (who->trace)
        o.trace_ratio = c->trace_ratio;
    PSEG_TRY(pseg_rpc_server_new(out, &o, err));
    PSEG_TRY(pseg_rpc_server_add(*out, pseg_service_methods, s, err));
    PSEG_TRY(pseg_rpc_server_add(*out, pseg_batch_methods, s, err));
    PSEG_TRY(pseg_rpc_server_add(*out, pseg_open_inference_methods, s, err));
    PSEG_TRY(pseg_rpc_server_listen(*out, c->listen, &port, err));
    PSEG_TRY(pseg_rpc_server_start(*out, err));
    pseg_rpc_server_set_serving(*out, "", true);
    pseg_rpc_server_set_serving(*out, SERVICE, false); /* until Redis has answered */
    pseg_rpc_server_set_serving(*out, BATCHES, false);
    pseg_side_address(address, c->listen, port);
    PSEG_INFO(log, "scheduler", "ready listen=%s version=%s tls=%s", address, PSEG_VERSION,
              c->tls_cert ? "on" : "off");
    if (c->ready_file)
        PSEG_TRY(pseg_file_write(c->ready_file, address, strlen(address), err));
out:
    return rc;
}

/* AdminService, on an address of its own with keys of its own. */
static pseg_status open_admin(pseg_rpc_server **out, const config *c, pseg_service *s,
                              pseg_auth *auth, const pseg_log *log, pseg_err *err)
{
    pseg_side_options o = {.name = "admin",
                           .listen = c->admin_listen,
                           .ready_file = c->admin_ready_file,
                           .service = "pseg.v1.AdminService",
                           .methods = pseg_admin_methods,
                           .ud = s,
                           .cert_file = c->tls_cert,
                           .key_file = c->tls_key,
                           .auth = auth,
                           .first_message_ms = c->stall_ms,
                           .idle_ms = c->idle_ms};

    return pseg_side_open(out, &o, log, err);
}

/* ExternalScaler. An address of its own: KEDA can show a certificate but no key, and how much work
 * of all tenants waits is none of a tenant's business. */
static pseg_status open_scaler(pseg_rpc_server **out, const config *c, pseg_service *s,
                               const pseg_log *log, pseg_err *err)
{
    pseg_side_options o = {.name = "scaler",
                           .listen = c->scaler_listen,
                           .ready_file = c->scaler_ready_file,
                           .service = "externalscaler.ExternalScaler",
                           .methods = pseg_scaler_methods,
                           .ud = s,
                           .cert_file = c->tls_cert,
                           .key_file = c->tls_key,
                           .client_ca_file = c->tls_client_ca,
                           .first_message_ms = c->stall_ms,
                           .idle_ms = c->idle_ms};

    return pseg_side_open(out, &o, log, err);
}

/* Until a signal asks to stop: a sweep of the queue, by which deadlines bite, health by Redis'
 * answers, and the keys if they have changed. The whole server ("") stays healthy without Redis:
 * restarting it would help nobody. */
static void serve(const config *c, pseg_rpc_server *server, pseg_queue *queue, pseg_keys *keys,
                  pseg_keys *admin_keys, pseg_tenants *tenants, pseg_scheduler_metrics *metrics,
                  const sigset_t *signals)
{
    const struct timespec tick = {0, 200000000};
    const int64_t silence_ms = 2 * c->redis_timeout_ms + 1000;

    for (int n = 0;; n = (n + 1) % 5) {
        if (!atomic_exchange(&sweeping, true))
            pseg_queue_sweep(queue, swept, NULL);
        int sig = sigtimedwait(signals, NULL, &tick);
        if (sig == SIGTERM || sig == SIGINT)
            return;
        bool answers = pseg_queue_silence_ms(queue) < silence_ms;
        pseg_rpc_server_set_serving(server, SERVICE, answers);
        pseg_rpc_server_set_serving(server, BATCHES, answers);
        if (metrics && (n == 0 || !answers))
            pseg_scheduler_metrics_tick(metrics, queue, server, answers, silence_ms);
        if (keys)
            pseg_keys_refresh(keys);
        if (admin_keys)
            pseg_keys_refresh(admin_keys);
        if (tenants)
            pseg_tenants_refresh(tenants);
    }
}

static pseg_status run(const void *conf, const sigset_t *signals, const pseg_log *log,
                       pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const config *c = conf;
    pseg_service_options so = PSEG_SERVICE_OPTIONS_DEFAULT;
    pseg_auth auth = {.needs_certificate = c->tls_client_ca != NULL}, admin_auth = {0};
    pseg_service *service = NULL;
    pseg_queue *queue = NULL;
    pseg_rpc_server *server = NULL, *admin = NULL, *scaler = NULL;
    pseg_tenants *tenants = NULL;
    listeners who = {0};

    pseg_rpc_init(log, on_listener_lost, NULL);
    PSEG_TRY(check(c, err));
    if (c->keys)
        PSEG_TRY(pseg_keys_open(&auth.keys, c->keys, log, err));
    if (c->admin_keys)
        PSEG_TRY(pseg_keys_open(&admin_auth.keys, c->admin_keys, log, err));
    if (c->metrics_listen)
        PSEG_TRY(pseg_scheduler_metrics_new(&who.metrics, c->metrics_listen, log, err));
    if (c->otlp_endpoint)
        PSEG_TRY(open_trace(&who.trace, c, log, err));
    if (who.metrics)
        pseg_trace_count_in(who.trace, pseg_scheduler_metrics_registry(who.metrics));
    if (c->tenants) {
        PSEG_TRY(pseg_tenants_open(&tenants, c->tenants, log, err));
        so.limits_of = pseg_tenants_limits;
        so.each_limit = pseg_tenants_each;
        so.limits_ud = tenants;
    }
    PSEG_TRY(durability_of(&so.durability, c->durability, err));
    so.refuse_infeasible = c->refuse_infeasible;
    so.default_model = c->default_model;
    so.max_image_bytes = c->max_image_bytes;
    so.max_upload_bytes = c->max_upload_bytes;
    so.has_tenants = auth.keys || auth.needs_certificate;
    so.stall_ms = c->stall_ms;
    so.mask_threads = c->mask_threads;
    so.upload_drain_ms = c->grace_ms / 2;
    so.log = log;
    PSEG_TRY(pseg_service_new(&service, &so, err));
    PSEG_TRY(open_queue(&queue, c, service, log, err));
    PSEG_TRY(pseg_service_start(service, queue, err));
    PSEG_TRY(open_server(&server, c, service, &auth, &who, log, err));
    if (c->admin_listen)
        PSEG_TRY(open_admin(&admin, c, service, &admin_auth, log, err));
    if (c->scaler_listen)
        PSEG_TRY(open_scaler(&scaler, c, service, log, err));
    serve(c, server, queue, auth.keys, admin_auth.keys, tenants, who.metrics, signals);
    PSEG_INFO(log, "scheduler", "stopping");
    if (admin)
        pseg_rpc_server_stop(admin, c->grace_ms);
    if (scaler)
        pseg_rpc_server_stop(scaler, c->grace_ms);
    pseg_rpc_server_stop(server, c->grace_ms);
    if (atomic_load(&listener_lost))
        PSEG_FAIL(PSEG_R_INTERNAL, 0,
                  "the listener is lost (too many open files?); raise the limit and start again");
    PSEG_INFO(log, "scheduler", "stopped");
out:
    pseg_rpc_server_free(scaler);
    pseg_rpc_server_free(admin);
    pseg_rpc_server_free(server);
    pseg_queue_close(queue);
    pseg_service_free(service);
    pseg_trace_close(who.trace);
    pseg_scheduler_metrics_free(who.metrics);
    pseg_keys_free(auth.keys);
    pseg_keys_free(admin_auth.keys);
    pseg_tenants_free(tenants);
    pseg_rpc_shutdown();
    return rc;
}

int main(int argc, char **argv)
{
    config c = {0};
    const pseg_daemon daemon = {"scheduler", &about, options, &c, &c.log_level, run};

    return pseg_daemon_main(&daemon, argc, argv);
}
