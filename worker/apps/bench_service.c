/* Load for a running scheduler: jobs per second and latency from submit to result. With a worker of
 * the empty model it measures everything but the model. */
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "common/rpc/rpc.h"
#include "worker/apps/bench.h"
#include "worker/apps/bench_service.h"
#include "worker/apps/load.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef bench_service_args args;

static const pseg_conf_option options[] = {
    {"server", PSEG_CONF_STRING, offsetof(args, server), "127.0.0.1:7433", .unit = "ADDR",
     .help = "host:port or unix:/path of the scheduler"},
    {"image", PSEG_CONF_STRING, offsetof(args, image), NULL, .unit = "FILE", .letter = 'i',
     .help = "sent with every job"},
    {"distinct", PSEG_CONF_BOOL, offsetof(args, distinct), "false",
     .help = "a few bytes behind its end make each job's image another, so that none is known"},
    {"by_digest", PSEG_CONF_BOOL, offsetof(args, by_digest), "false",
     .help = "send the image once and name its SHA-256 in the jobs that count"},
    {"prompt", PSEG_CONF_STRING, offsetof(args, prompt), "a red circle", .unit = "TEXT",
     .letter = 'p'},
    {"model", PSEG_CONF_STRING, offsetof(args, model), "", .unit = "NAME",
     .help = "empty: the server's default"},
    {"jobs", PSEG_CONF_INT, offsetof(args, jobs), "1000", .min = 1, .max = 1000000000,
     .help = "in all, unless --seconds or --until-stable says when it ends"},
    {"seconds", PSEG_CONF_REAL, offsetof(args, seconds), "0", .unit = "s", .min = 0, .max = 604800,
     .help = "of load; 0: --jobs"},
    {"until_stable", PSEG_CONF_REAL, offsetof(args, until_stable), "0", .unit = "%", .min = 0,
     .max = 100,
     .help = "go on until jobs per second and median latency of three windows in a row are within "
             "this of their means, and tell of these three; 0: no"},
    {"window_s", PSEG_CONF_REAL, offsetof(args, window_s), "5", .unit = "s", .min = 0.05,
     .max = 3600, .help = "length of a window"},
    {"max_windows", PSEG_CONF_INT, offsetof(args, max_windows), "20", .min = 3, .max = 10000,
     .help = "after which --until-stable gives up, with exit status 4"},
    {"warm_s", PSEG_CONF_REAL, offsetof(args, warm_s), "0", .unit = "s", .min = 0, .max = 3600,
     .help = "of load that does not count, before --seconds or --until-stable"},
    {"clients", PSEG_CONF_INT, offsetof(args, clients), "16", .min = 1, .max = 4096,
     .help = "each with one job at a time; with --rate how many jobs may be under way at most"},
    {"rate", PSEG_CONF_REAL, offsetof(args, rate), "0", .unit = "jobs/s", .min = 0, .max = 1e6,
     .help = "an open loop: jobs come at this rate whether or not earlier ones are done, and their "
             "time counts from when they were due; 0: a closed loop"},
    {"arrivals", PSEG_CONF_STRING, offsetof(args, arrivals), "poisson", .unit = "KIND",
     .help = "poisson or even, with --rate"},
    {"seed", PSEG_CONF_INT, offsetof(args, seed), "1", .min = 0, .max = 1e15,
     .help = "of the arrivals"},
    {"batch", PSEG_CONF_BOOL, offsetof(args, batch), "false",
     .help = "--jobs jobs as one batch, through two streams"},
    {"timeout_ms", PSEG_CONF_INT, offsetof(args, timeout_ms), "60s", .unit = "ms", .min = 1,
     .max = 86400000, .help = "for one job"},
    {"plot", PSEG_CONF_STRING, offsetof(args, plot), NULL, .unit = "FILE",
     .help = "SVG of the latency by percentile"},
    {"json", PSEG_CONF_BOOL, offsetof(args, json), "false", .help = "print JSON"},
    {0}};

/* What a run has found. */
typedef struct figures {
    pseg_latency *all; /* of what counts */
    double seconds;
    int64_t failed, late;
    bool is_stable;
    json_t *windows;
} figures;

static void add_window(figures *f, const pseg_latency *h, const pseg_load_window *w)
{
    pseg_latency_merge(f->all, h);
    f->seconds += w->seconds;
    f->failed += w->failed;
    f->late += w->late;
}

static json_t *window_json(const pseg_latency *h, const pseg_load_window *w)
{
    return json_pack("{s:f, s:I, s:f, s:f, s:f}", "seconds", w->seconds, "jobs",
                     (json_int_t)pseg_latency_count(h), "jobs_per_s",
                     (double)pseg_latency_count(h) / w->seconds, "p50_ms",
                     pseg_latency_percentile(h, 50), "p99_ms", pseg_latency_percentile(h, 99));
}

/* ---- until it is stable ---- */

typedef struct past {
    pseg_latency *h[3];
    pseg_load_window w[3];
    size_t n;
} past;

static bool is_near(const double v[3], double percent)
{
    double mean = (v[0] + v[1] + v[2]) / 3;

    for (int i = 0; i < 3; i++)
        if (fabs(v[i] - mean) > mean * percent / 100)
            return false;
    return true;
}

static bool is_stable(const past *p, double percent)
{
    double rates[3], medians[3];

    if (p->n < 3)
        return false;
    for (int i = 0; i < 3; i++) {
        rates[i] = (double)pseg_latency_count(p->h[i]) / p->w[i].seconds;
        medians[i] = pseg_latency_percentile(p->h[i], 50);
        if (pseg_latency_count(p->h[i]) == 0)
            return false;
    }
    return is_near(rates, percent) && is_near(medians, percent);
}

static pseg_status run_until_stable(figures *f, pseg_load *l, const args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    past p = {0};

    for (int i = 0; i < 3; i++)
        PSEG_TRY(pseg_latency_new(&p.h[i], err));
    while (!f->is_stable && p.n < (size_t)a->max_windows) {
        size_t k = p.n++ % 3;
        pseg_load_take(l, a->window_s, p.h[k], &p.w[k]);
        json_array_append_new(f->windows, window_json(p.h[k], &p.w[k]));
        f->is_stable = is_stable(&p, a->until_stable);
    }
    for (int i = 0; i < 3; i++)
        add_window(f, p.h[i], &p.w[i]);
out:
    for (int i = 0; i < 3; i++)
        pseg_latency_free(p.h[i]);
    return rc;
}

static pseg_status run_to_the_end(figures *f, pseg_load *l, const args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_latency *h = NULL;
    pseg_load_window w;
    bool goes_on = true;

    PSEG_TRY(pseg_latency_new(&h, err));
    while (goes_on && (a->seconds <= 0 || f->seconds < a->seconds)) {
        double left = a->seconds > 0 ? a->seconds - f->seconds : a->window_s;
        goes_on = pseg_load_take(l, left < a->window_s ? left : a->window_s, h, &w);
        add_window(f, h, &w);
        if (pseg_latency_count(h))
            json_array_append_new(f->windows, window_json(h, &w));
    }
out:
    pseg_latency_free(h);
    return rc;
}

static pseg_status warm_up(pseg_load *l, const args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_latency *ignored = NULL;
    pseg_load_window w;

    if (a->warm_s <= 0)
        goto out;
    PSEG_TRY(pseg_latency_new(&ignored, err));
    pseg_load_take(l, a->warm_s, ignored, &w);
out:
    pseg_latency_free(ignored);
    return rc;
}

/* ---- telling ---- */

static const double told[] = {50, 90, 95, 99, 99.9};

static json_t *histogram_json(const pseg_latency *h)
{
    json_t *rows = json_array();
    size_t row = 0;
    double ms;
    uint64_t n;

    while (pseg_latency_next(h, &row, &ms, &n))
        json_array_append_new(rows, json_pack("[f, I]", ms, (json_int_t)n));
    return rows;
}

static void report(const args *a, const figures *f, json_t *out)
{
    uint64_t n = pseg_latency_count(f->all);
    double rate = f->seconds > 0 ? (double)n / f->seconds : 0;
    json_t *latency = json_object();
    char name[16];

    for (size_t i = 0; i < sizeof told / sizeof *told; i++) {
        snprintf(name, sizeof name, "p%g", told[i]);
        json_object_set_new(latency, name, json_real(pseg_latency_percentile(f->all, told[i])));
    }
    json_object_set_new(latency, "max", json_real(pseg_latency_percentile(f->all, 100)));
    json_object_set_new(out, "loop", json_string(a->rate > 0 ? "open" : "closed"));
    if (a->rate > 0) {
        json_object_set_new(out, "rate", json_real(a->rate));
        json_object_set_new(out, "arrivals", json_string(a->arrivals));
        json_object_set_new(out, "late", json_integer(f->late));
    }
    json_object_set_new(out, "jobs", json_integer((json_int_t)n));
    json_object_set_new(out, "clients", json_integer(a->clients));
    json_object_set_new(out, "failed", json_integer(f->failed));
    json_object_set_new(out, "seconds", json_real(f->seconds));
    json_object_set_new(out, "jobs_per_s", json_real(rate));
    json_object_set_new(out, "latency_ms", latency);
    json_object_set(out, "windows", f->windows);
    if (a->until_stable > 0)
        json_object_set_new(out, "stable", json_boolean(f->is_stable));
    json_object_set_new(out, "histogram", histogram_json(f->all));
    if (a->json)
        return;
    printf("%llu jobs by %lld clients", (unsigned long long)n, (long long)a->clients);
    if (a->rate > 0)
        printf(", %g a second due (%s), %lld of them begun over 1 ms late", a->rate, a->arrivals,
               (long long)f->late);
    printf(": %.1f jobs/s; latency p50 %.2f ms, p90 %.2f, p99 %.2f, max %.2f; %lld failed\n", rate,
           pseg_latency_percentile(f->all, 50), pseg_latency_percentile(f->all, 90),
           pseg_latency_percentile(f->all, 99), pseg_latency_percentile(f->all, 100),
           (long long)f->failed);
}

/* ---- the run ---- */

static pseg_status check(const args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (!a->image)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--image FILE is needed");
    if (strcmp(a->arrivals, "poisson") != 0 && strcmp(a->arrivals, "even") != 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--arrivals \"%s\" is not poisson or even",
                  a->arrivals);
    if (a->seconds > 0 && a->until_stable > 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--seconds and --until-stable both say when to end; give one");
    if (a->warm_s > 0 && a->seconds <= 0 && a->until_stable <= 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--warm-s %g with --jobs does not tell when to end; give --seconds or "
                  "--until-stable",
                  a->warm_s);
    if (a->batch && (a->rate > 0 || a->seconds > 0 || a->until_stable > 0 || a->warm_s > 0 ||
                     a->distinct || a->by_digest || a->plot))
        PSEG_FAIL(
            PSEG_R_CONFIG_INVALID, 0,
            "--batch sends --jobs jobs as fast as they are taken; leave out --rate, --seconds, "
            "--until-stable, --warm-s, --distinct, --by-digest and --plot");
    if (a->distinct && a->by_digest)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--distinct sends an image with each job, --by-digest with none; give one");
out:
    return rc;
}

/* After a job by itself: the image is held then. */
static pseg_status run_batch(const args *a, const pseg_load_options *o, json_t *out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_rpc_channel_options co = PSEG_RPC_CHANNEL_OPTIONS_DEFAULT;
    bench_load b = {.a = a, .image = (uint8_t *)(uintptr_t)o->image, .image_len = o->image_len};
    pseg_load *l = NULL;

    PSEG_TRY(pseg_load_open(&l, o, err));
    co.target = a->server;
    PSEG_TRY(pseg_rpc_dial(&b.channel, &co, err));
    PSEG_TRY(bench_service_batch(&b, out, err));
out:
    pseg_load_close(l);
    pseg_rpc_hangup(b.channel);
    return rc;
}

static pseg_status run(const args *a, json_t *out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    figures f = {.windows = json_array()};
    pseg_load_options o = {.server = a->server,
                           .prompt = a->prompt,
                           .model = a->model,
                           .is_distinct = a->distinct,
                           .by_digest = a->by_digest,
                           .clients = a->clients,
                           .timeout_ms = a->timeout_ms,
                           .rate = a->rate,
                           .is_even = strcmp(a->arrivals, "even") == 0,
                           .seed = a->seed};
    pseg_load *l = NULL;
    uint8_t *image = NULL;

    PSEG_TRY(check(a, err));
    PSEG_TRY(pseg_latency_new(&f.all, err));
    PSEG_TRY(pseg_file_read(&image, &o.image_len, a->image, (size_t)3 << 20, err));
    o.image = image;
    if (a->batch) {
        rc = run_batch(a, &o, out, err);
        goto out;
    }
    PSEG_TRY(pseg_load_open(&l, &o, err));
    bool has_end = a->seconds <= 0 && a->until_stable <= 0;
    rc = pseg_load_start(l, has_end ? a->jobs : 0, err);
    if (rc == PSEG_OK)
        rc = warm_up(l, a, err);
    if (rc == PSEG_OK)
        rc = a->until_stable > 0 ? run_until_stable(&f, l, a, err) : run_to_the_end(&f, l, a, err);
    pseg_err first = PSEG_ERR_INIT;
    pseg_status failed = pseg_load_stop(l, &first);
    if (rc != PSEG_OK)
        goto out;
    report(a, &f, out);
    if (a->plot)
        PSEG_TRY(bench_plot_latency(a->plot, f.all, err));
    if (failed != PSEG_OK) {
        *err = first;
        rc = failed;
    } else if (a->until_stable > 0 && !f.is_stable) {
        PSEG_FAIL(PSEG_R_DEADLINE_EXCEEDED, 0,
                  "not stable within %g %% after %lld windows; give it longer ones (--window-s)",
                  a->until_stable, (long long)a->max_windows);
    }
out:
    pseg_load_close(l);
    pseg_latency_free(f.all);
    json_decref(f.windows);
    pseg_free(image);
    return rc;
}

static pseg_status run_service(const void *given, json_t *out, pseg_err *err)
{
    pseg_rpc_init(NULL, NULL, NULL);
    pseg_status rc = run(given, out, err);
    pseg_rpc_shutdown();
    return rc;
}

int bench_service(int argc, char **argv)
{
    static const pseg_conf_about about = {
        .name = "pseg bench service",
        .usage = "--image FILE [--jobs N | --seconds S | --until-stable P] [--rate R | --batch]",
        .what = "Jobs per second and latency through a running scheduler. In a closed loop each "
                "client sends a\n"
                "job, waits for its mask, and sends the next; with --rate jobs come as users send "
                "them, and what\n"
                "waits because the service is slow counts as its latency. With --batch all are "
                "items of one batch.",
        .example = "pseg bench service --image scene.png --clients 16 --until-stable 3\n"
                   "  pseg bench service --image scene.png --rate 20 --seconds 60 --clients 256 "
                   "--plot latency.svg"};
    static const bench_program p = {options, &about, run_service, "jobs"};
    args a = {0};

    return bench_main(&a, &a.json, &p, argc, argv);
}
