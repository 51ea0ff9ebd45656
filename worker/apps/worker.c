/* pseg-worker: takes jobs from the queue and runs them on an OpenCL device. Wiring only. */
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/daemon.h"
#include "common/base/file.h"
#include "common/base/hash.h"
#include "common/base/version.h"
#include "common/rpc/rpc.h"
#include "worker/apps/compiler.h"
#include "worker/apps/engine_options.h"
#include "worker/apps/worker_metrics.h"
#include "worker/apps/worker_trace.h"
#include "worker/apps/respawn.h"
#include "worker/serve/serve.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct config {
    engine_args engine;
    pseg_conf_list devices;
    const char *config, *redis, *queue, *id, *ready_file, *log_level, *metrics_listen,
        *otlp_endpoint;
    int64_t decoders, decode_images, decode_seconds, decode_memory;
    int64_t batch, batch_delay_ms, encode_batch, kept_features, kept_phrases, feature_cache;
    int64_t ahead, near_ms, lease_ms, max_attempts, redis_timeout_ms, grace_ms, watchdog_ms;
    bool respawn, share_features, trace_kernels;
} config;

static const pseg_conf_option options[] = {
    {"config", PSEG_CONF_STRING, offsetof(config, config), NULL, .unit = "FILE",
     .help = "file of `name = value` lines"},
    {"redis", PSEG_CONF_STRING, offsetof(config, redis), "redis://127.0.0.1:6379", .unit = "URL",
     .is_secret = true,
     .help = "redis://[user:password@]host[:port][/db], unix:/path, "
             "redis+sentinel://[user:password@]host[:port],.../MASTER[/db], or "
             "redis+cluster://[user:password@]host[:port],.../PARTS; several with blanks between: "
             "the queue lies on all of them"},
    {"queue", PSEG_CONF_STRING, offsetof(config, queue), "default", .unit = "NAME",
     .help = "queue within that Redis"},
    ENGINE_OPTIONS_REST(config, engine),
    {"device", PSEG_CONF_LIST, offsetof(config, devices), "auto", .unit = "NAME", .letter = 'd',
     .help = "auto, cpu, gpu, P:D or part of a name (`pseg devices` lists them); all; NAME/N for a "
             "CPU in N parts; several with commas, or given again"},
    {"ahead", PSEG_CONF_INT, offsetof(config, ahead), "4", .min = 0, .max = 60,
     .help = "jobs made ready while the device works"},
    {"batch", PSEG_CONF_INT, offsetof(config, batch), "8", .min = 1, .max = 64,
     .help = "jobs that go to the device together at most"},
    {"batch_delay_ms", PSEG_CONF_INT, offsetof(config, batch_delay_ms), "2ms", .unit = "ms",
     .min = 0, .max = 10000,
     .help = "that a batch waits for jobs being prepared when many come; none when few do"},
    {"encode_batch", PSEG_CONF_INT, offsetof(config, encode_batch), "0", .min = 0, .max = 8,
     .help = "images encoded in one pass; 0: 1 on a CPU, 8 elsewhere"},
    {"kept_features", PSEG_CONF_INT, offsetof(config, kept_features), "64M", .unit = "bytes",
     .min = 0, .max = 1e12,
     .help = "device memory for encoded images, so that their next phrases need not wait for the "
             "encoder"},
    {"kept_phrases", PSEG_CONF_INT, offsetof(config, kept_phrases), "256", .min = 0, .max = 65536,
     .help = "encoded phrases that stay on the device, for their next images; a long one takes up "
             "to 80 kB"},
    {"near_ms", PSEG_CONF_INT, offsetof(config, near_ms), "50ms", .unit = "ms", .min = 0,
     .max = 60000,
     .help = "that a job is left at most to the worker that has its image at hand; 0: jobs come in "
             "their order"},
    {"feature_cache", PSEG_CONF_INT, offsetof(config, feature_cache), "0", .unit = "bytes",
     .min = 0, .max = 1e15,
     .help = "of Redis' memory for encoded images that all workers share; 0: none"},
    {"share_features", PSEG_CONF_BOOL, offsetof(config, share_features), "false",
     .help = "tenants find what was encoded for others, images and phrases"},
    {"decoders", PSEG_CONF_INT, offsetof(config, decoders), "2", .min = 0, .max = 64,
     .help = "processes, locked in, that decode so many images at once; 0: one, in the worker "
             "itself"},
    {"decode_images", PSEG_CONF_INT, offsetof(config, decode_images), "64", .min = 1, .max = 65536,
     .help = "of one tenant that such a process decodes before the next one takes its place; 1: a "
             "process for each image"},
    {"decode_seconds", PSEG_CONF_INT, offsetof(config, decode_seconds), "30", .unit = "s", .min = 1,
     .max = 3600, .help = "processor time for decoding an image"},
    {"decode_memory", PSEG_CONF_INT, offsetof(config, decode_memory), "4G", .unit = "bytes",
     .min = 67108864, .max = 1e15, .help = "address space for decoding an image"},
    {"id", PSEG_CONF_STRING, offsetof(config, id), NULL, .unit = "TEXT",
     .help = "of this worker; default host, process and a random part"},
    {"lease_ms", PSEG_CONF_INT, offsetof(config, lease_ms), "10s", .unit = "ms", .min = 100,
     .max = 3600000, .help = "silent for longer: another worker takes the jobs"},
    {"max_attempts", PSEG_CONF_INT, offsetof(config, max_attempts), "3", .min = 1, .max = 100,
     .help = "how often a job is begun at most"},
    {"redis_timeout_ms", PSEG_CONF_INT, offsetof(config, redis_timeout_ms), "2s", .unit = "ms",
     .min = 50, .max = 60000, .help = "after which Redis counts as gone"},
    {"grace_ms", PSEG_CONF_INT, offsetof(config, grace_ms), "30s", .unit = "ms", .min = 0,
     .max = 3600000,
     .help = "after SIGTERM, for the job on the device; then it is handed back. A second SIGTERM: "
             "at once"},
    {"watchdog_ms", PSEG_CONF_INT, offsetof(config, watchdog_ms), "60s", .unit = "ms", .min = 0,
     .max = 3600000,
     .help = "a job without progress for this long, and ten times the longest stage seen, hangs; "
             "0: off"},
    {"respawn", PSEG_CONF_BOOL, offsetof(config, respawn), "false",
     .help = "start anew when killed or when the device has failed"},
    {"metrics_listen", PSEG_CONF_STRING, offsetof(config, metrics_listen), NULL, .unit = "ADDR",
     .help = "host:port of /metrics, /livez and /readyz over HTTP, for those who may read them"},
    {"otlp_endpoint", PSEG_CONF_STRING, offsetof(config, otlp_endpoint), NULL, .unit = "URL",
     .help =
         "http://host:port of a collector that takes spans by OTLP over gRPC; https:// encrypts"},
    {"trace_kernels", PSEG_CONF_BOOL, offsetof(config, trace_kernels), "false",
     .help =
         "jobs that are traced tell of each launch on the device, too; costs all jobs a little"},
    {"ready_file", PSEG_CONF_STRING, offsetof(config, ready_file), NULL, .unit = "FILE",
     .help = "gets the worker's id once jobs are taken"},
    {"log_level", PSEG_CONF_STRING, offsetof(config, log_level), "info", .unit = "LEVEL",
     .help = "error, warn, info or debug"},
    {0}};

static const pseg_conf_about about = {
    .name = "pseg-worker",
    .usage = "[options]",
    .what = "Takes segmentation jobs from Redis and runs them on an OpenCL device.",
    .example = "pseg-worker --redis redis://127.0.0.1:6379 --model scenes",
    .after = "Every option is also a variable (PSEG_REDIS) and a line of --config (redis = ...).\n"
             "SIGTERM stops it in peace. docs/operations.md tells how to run it."};

/* What the worker said last goes with its heartbeat: the evidence if it is killed. */
static pseg_log_tail tail = PSEG_LOG_TAIL_INIT;

static void make_id(char out[80], const char *wanted)
{
    char host[40] = "host", hex[9];
    uint8_t r[4] = {0};

    if (wanted) {
        snprintf(out, 80, "%s", wanted);
        return;
    }
    gethostname(host, sizeof host - 1);
    pseg_random_bytes(r, sizeof r);
    pseg_hex(hex, r, sizeof r);
    snprintf(out, 80, "%s-%ld-%s", host, (long)getpid(), hex);
}

/* What is on the device may go on for the grace period; what is left then is handed back, and since
 * the device's thread cannot be stopped the process ends there. */
static void drain(const config *c, pseg_worker *w, const sigset_t *signals, const pseg_log *log)
{
    const struct timespec tick = {0, 20000000};
    int64_t until = pseg_clock_mono_ms() + c->grace_ms;

    pseg_worker_drain(w);
    while (pseg_worker_n_held(w) > 0) {
        int sig = sigtimedwait(signals, NULL, &tick);
        if (sig != SIGTERM && sig != SIGINT && pseg_clock_mono_ms() < until)
            continue;
        pseg_worker_abandon(w);
        PSEG_INFO(log, "worker", "stopped, what was under way is handed back");
        _exit(0);
    }
}

/* Tells that jobs are taken once Redis has answered; then waits for a signal or the device's end.
 */
static pseg_status serve(const config *c, pseg_worker *w, const char *id, const sigset_t *signals,
                         const pseg_log *log, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const struct timespec tick = {0, 200000000};
    bool told = false;

    for (;;) {
        if (!told && pseg_worker_is_connected(w)) {
            told = true;
            PSEG_INFO(log, "worker", "ready id=%s", id);
            if (c->ready_file)
                PSEG_TRY(pseg_file_write(c->ready_file, id, strlen(id), err));
        }
        int sig = sigtimedwait(signals, NULL, &tick);
        if (sig == SIGTERM || sig == SIGINT)
            break;
        if (pseg_worker_is_hung(w)) {
            pseg_worker_abandon(w);
            PSEG_ERROR(log, "worker",
                       "a job hangs; this process ends so that a new one can start afresh");
            _exit(pseg_reason_exit_status(PSEG_R_DEVICE_HUNG));
        }
        if (pseg_worker_has_failed(w))
            PSEG_FAIL(PSEG_R_DEVICE_FAILED, 0,
                      "the device failed; this process ends so that a new one can start afresh");
    }
    PSEG_INFO(log, "worker", "stopping");
    drain(c, w, signals, log);
out:
    return rc;
}

/* While the engine opens, which takes a minute where kernels must be compiled, there is no job to
 * hand back: a signal ends the process at once. */
typedef struct early {
    pthread_t thread;
    bool runs;
    _Atomic bool is_over;
    const sigset_t *signals;
    const pseg_log *log;
} early;

static void *end_early(void *arg)
{
    early *e = arg;
    const struct timespec tick = {0, 20000000};

    while (!atomic_load(&e->is_over)) {
        int sig = sigtimedwait(e->signals, NULL, &tick);
        if (sig == SIGTERM || sig == SIGINT) {
            PSEG_INFO(e->log, "worker", "stopped before it was ready");
            _exit(0);
        }
    }
    return NULL;
}

static pseg_status open_engine(pseg_engine **out, const pseg_engine_options *o,
                               const sigset_t *signals, const pseg_log *log, pseg_err *err)
{
    early e = {.signals = signals, .log = log};

    e.runs = pthread_create(&e.thread, NULL, end_early, &e) == 0; /* else signals wait */
    pseg_status rc = pseg_engine_open(out, o, err);
    atomic_store(&e.is_over, true);
    if (e.runs)
        pthread_join(e.thread, NULL);
    return rc;
}

/* Who hears of jobs that have ended. */
typedef struct listeners {
    pseg_worker_metrics *metrics;
    pseg_trace *trace;
    const pseg_engine *engine;
} listeners;

static void on_ended(void *ud, const pseg_worker_ended *e)
{
    const listeners *l = ud;

    if (l->metrics)
        pseg_worker_metrics_on_ended(l->metrics, e);
    pseg_worker_trace_on_ended(l->trace, l->engine, e);
}

static void on_batch(void *ud, size_t device, size_t n_jobs, const pseg_engine_batch *done)
{
    const listeners *l = ud;

    if (l->metrics)
        pseg_worker_metrics_on_batch(l->metrics, device, n_jobs, done);
}

static pseg_status open_trace(listeners *l, const config *c, const char *id, const pseg_log *log,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    pseg_rpc_init(log, NULL, NULL);
    PSEG_TRY(pseg_trace_open(&l->trace,
                             &(pseg_trace_options){.endpoint = c->otlp_endpoint,
                                                   .service = "pseg-worker",
                                                   .instance = id,
                                                   .version = PSEG_VERSION,
                                                   .log = log},
                             err));
    if (l->metrics)
        pseg_trace_count_in(l->trace, pseg_worker_metrics_registry(l->metrics));
out:
    return rc;
}

/* In the second process. */
static pseg_status compile(void *ud, const char *device, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const config *c = ud;
    pseg_engine_options eo;
    char *folder = NULL;

    PSEG_TRY(engine_options_of(&eo, &folder, &c->engine, NULL, err));
    PSEG_TRY(pseg_engine_compile(&eo, device, err));
out:
    pseg_free(folder);
    return rc;
}

static pseg_status run(const void *conf, const sigset_t *signals, const pseg_log *log,
                       pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const config *c = conf;
    pseg_engine_options eo;
    pseg_worker_options wo = {.queue = PSEG_QUEUE_OPTIONS_DEFAULT, .log = log};
    pseg_engine *engine = NULL;
    pseg_worker *worker = NULL;
    compiler second = COMPILER_NONE;
    listeners who = {0};
    char *folder = NULL, id[80];
    int64_t begin = pseg_clock_mono_ms();

    pseg_log with_tail = *log;
    with_tail.tail = &tail;
    log = wo.log = &with_tail;
    if (c->respawn) {
        int status;
        PSEG_TRY(pseg_respawn(&status, signals, log, err));
        if (status >= 0)
            _exit(status); /* the parent, whose last child has ended */
    }
    compiler_begin(&second, compile, (void *)(uintptr_t)c, log);
    make_id(id, c->id);
    PSEG_TRY(pseg_image_init(err));
    if (c->metrics_listen) {
        PSEG_TRY(pseg_worker_metrics_new(
            &who.metrics, &(pseg_worker_metrics_options){c->metrics_listen, id, log}, err));
    }
    if (c->trace_kernels && !c->otlp_endpoint)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--trace-kernels needs --otlp-endpoint");
    if (c->otlp_endpoint)
        PSEG_TRY(open_trace(&who, c, id, log, err));
    wo.on_ended = on_ended;
    wo.on_batch = on_batch;
    wo.on_ended_ud = &who;
    PSEG_TRY(engine_options_of(&eo, &folder, &c->engine, log, err));
    eo.devices = c->devices.items;
    eo.n_devices = c->devices.n;
    eo.worker = id;
    eo.kept_bytes = (size_t)c->kept_features;
    eo.kept_phrases = (size_t)c->kept_phrases;
    eo.max_encode = (size_t)c->encode_batch;
    eo.reads_features = c->feature_cache > 0;
    eo.cl.profile = eo.cl.profile || c->trace_kernels;
    eo.n_decoders = (size_t)c->decoders;
    eo.decode_images = (size_t)c->decode_images;
    eo.decode_s = c->decode_seconds;
    eo.decode_memory_bytes = (uint64_t)c->decode_memory;
    eo.cl.on_compile = compiler_go;
    eo.cl.on_compile_ud = &second;
    PSEG_TRY(open_engine(&engine, &eo, signals, log, err));
    compiler_end(&second);
    for (size_t i = 0; i < pseg_engine_n_devices(engine); i++)
        PSEG_INFO(log, "worker", "model=%s digest=%.12s device=\"%s\" opened in %lld ms",
                  pseg_engine_name(engine), pseg_engine_digest(engine),
                  pseg_engine_device(engine, i), (long long)(pseg_clock_mono_ms() - begin));
    wo.queue.url = c->redis;
    wo.queue.name = c->queue;
    wo.queue.log = log;
    wo.queue.timeout_ms = c->redis_timeout_ms;
    wo.queue.lease_ms = c->lease_ms;
    wo.queue.max_attempts = c->max_attempts;
    wo.engine = engine;
    who.engine = engine;
    wo.id = id;
    wo.ahead = (size_t)c->ahead;
    wo.preparers = (size_t)c->decoders; /* each waits for one */
    wo.batch = (size_t)c->batch;
    wo.batch_delay_us = c->batch_delay_ms * 1000;
    wo.feature_bytes = c->feature_cache;
    wo.share_features = c->share_features;
    wo.near_ms = c->near_ms;
    wo.watchdog_ms = c->watchdog_ms;
    wo.times_kernels = c->trace_kernels;
    pseg_worker_metrics_runs(who.metrics, engine);
    PSEG_TRY(pseg_worker_start(&worker, &wo, err));
    pseg_worker_metrics_watch(who.metrics, worker);
    pseg_engine_keep_programs(engine); /* not before: no job shall wait for it */
    rc = serve(c, worker, id, signals, log, err);
    pseg_worker_metrics_watch(who.metrics, NULL);
    pseg_worker_stop(worker);
    PSEG_INFO(log, "worker", "stopped");
out:
    compiler_end(&second);
    pseg_trace_close(who.trace);
    pseg_worker_metrics_free(who.metrics);
    pseg_engine_close(engine);
    pseg_free(folder);
    pseg_image_shutdown();
    if (c->otlp_endpoint)
        pseg_rpc_shutdown();
    return rc;
}

int main(int argc, char **argv)
{
    config c = {0};
    const pseg_daemon daemon = {"worker", &about, options, &c, &c.log_level, run};

    return pseg_daemon_main(&daemon, argc, argv);
}
