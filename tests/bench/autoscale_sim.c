/* A day of bursty load through the very function that KEDA's questions are answered with, beside
 * the same without deadlines, a count of jobs as the Redis trigger of KEDA has it, and a fixed
 * number of workers.
 *
 *     autoscale_sim [SVG]
 *
 * Simulated: arrivals, two tenants with equal shares, jobs of 0.5 to 1.5 times a mean of 2 s (5 s
 * from 13:00 on: slower devices), which the queue learns, pods that take a minute to begin, the
 * autoscaler's rules (overlays/keda-push: every 15 s, a tenth of tolerance, doubling or four more
 * in 30 s, one less in 60 s after the greatest wish of 5 minutes, from none to one by the stream,
 * to none after 5 minutes without a job). Not simulated: Redis, the network, pods that fail. No
 * clock, no libm and no random source but its own, so the plot is the same everywhere.
 * Exit status 1: the metric let a worker go to none under a job, or missed what its target says. */
#include "tests/bench/autoscale_plot.h"
#include "scheduler/service/scale.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    DAY_S = 86400,
    TICKS = 10, /* a second */
    MAX_WORKERS = 24,
    STARTUP_S = 60,
    TARGET_S = 900, /* cheap: deadlines say when more is needed */
    COST_MS = 2000,
    SLOW_MS = 5000, /* from SLOW_AT_S on, all pods run on slower devices */
    SLOW_AT_S = 13 * 3600,
    N_TENANTS = 2,
    MAX_JOBS = 200000,
    FIXED = 8,
    MAX_WISHES = 21, /* of five minutes */
};

/* ---- the load ---- */

/* Jobs an hour: people at work, with deadlines of ten minutes; and a night without anybody. */
static const int people_an_hour[24] = {0,    0,    0,    0,    0,    60,   600,  2400,
                                       6000, 7200, 7200, 6000, 4200, 6600, 7200, 6600,
                                       4800, 2400, 1200, 600,  240,  60,   0,    0};
/* Batches: at a second, so many jobs, due so many seconds later. */
static const struct {
    int at_s, n, due_s;
} batches[] = {{3 * 3600, 6000, 3600},        /* nobody is there, and an hour is left */
               {10 * 3600 + 900, 2000, 1800}, /* in the busiest hour */
               {15 * 3600, 9000, 2 * 3600},
               {23 * 3600, 300, 600}};
enum { N_BATCHES = sizeof batches / sizeof *batches, PEOPLE_DUE_S = 600 };

static uint64_t random_state;

static unsigned rnd(unsigned n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(random_state >> 33) % n;
}

typedef struct job {
    int64_t came_ms, due_ms;
    int size; /* 0 to 999: from half the mean to one and a half */
} job;

/* A tenant's line: jobs in the order of their coming, which is that of their deadlines, too. */
typedef struct line {
    job *jobs;
    int n, next;
    double time; /* virtual */
} line;

/* ---- a day ---- */

static const char *const rule_names[] = {"keda-push", "no deadlines", "keda", "fixed"};

typedef struct worker {
    int64_t ready_ms; /* it computes from then on */
    int64_t free_ms;  /* it has a job until then */
    bool is_there, is_leaving;
} worker;

typedef struct day {
    rule rule;
    line lines[N_TENANTS];
    worker workers[MAX_WORKERS];
    double cost_ms;
    double wishes[MAX_WISHES];
    int n_wishes;
    int64_t up_ms, down_ms, idle_since_ms;
    /* what came of it */
    int64_t n_late, n_done, worker_ms, *waits_ms;
    int n_none_under_job;
    int64_t first_wait_ms; /* longest wait for the first worker of all */
    autoscale_samples seen;
} day;

static int n_running(const day *d, int64_t now)
{
    int n = 0;

    for (int i = 0; i < MAX_WORKERS; i++)
        n += d->workers[i].is_there && d->workers[i].free_ms > now;
    return n;
}

static int n_there(const day *d, int64_t now, bool computing)
{
    int n = 0;

    for (int i = 0; i < MAX_WORKERS; i++)
        n += d->workers[i].is_there && !d->workers[i].is_leaving &&
             (!computing || d->workers[i].ready_ms <= now);
    return n;
}

static int n_waiting(const day *d)
{
    int n = 0;

    for (int t = 0; t < N_TENANTS; t++)
        n += d->lines[t].n - d->lines[t].next;
    return n;
}

static void come(day *d, int tenant, int64_t now, int due_s)
{
    line *l = &d->lines[tenant];

    if (l->n == MAX_JOBS)
        exit(2);
    l->jobs[l->n++] = (job){now, now + due_s * INT64_C(1000), (int)rnd(1000)};
}

static void arrive(day *d, int64_t now)
{
    int second = (int)(now / 1000);

    if (rnd(3600 * TICKS) < (unsigned)people_an_hour[second / 3600])
        come(d, 0, now, PEOPLE_DUE_S);
    for (int i = 0; i < N_BATCHES && now % 1000 == 0; i++)
        for (int k = 0; batches[i].at_s == second && k < batches[i].n; k++)
            come(d, 1, now, batches[i].due_s);
}

/* The tenant whose virtual time is lowest; one that was away begins at the other's. */
static line *next_line(day *d)
{
    line *best = NULL;

    for (int t = 0; t < N_TENANTS; t++)
        if (d->lines[t].next < d->lines[t].n && (!best || d->lines[t].time < best->time))
            best = &d->lines[t];
    for (int t = 0; best && t < N_TENANTS; t++)
        if (d->lines[t].next == d->lines[t].n && d->lines[t].time < best->time)
            d->lines[t].time = best->time;
    return best;
}

static sample *sample_at(day *d, int64_t now)
{
    return &d->seen.at[now / (DAY_S * INT64_C(1000) / SAMPLES)];
}

static void work(day *d, int64_t now)
{
    for (int i = 0; i < MAX_WORKERS; i++) {
        worker *w = &d->workers[i];
        if (w->is_leaving && w->free_ms <= now)
            *w = (worker){0};
        line *l = w->is_there && !w->is_leaving && w->ready_ms <= now && w->free_ms <= now
                      ? next_line(d)
                      : NULL;
        if (!l)
            continue;
        job *j = &l->jobs[l->next++];
        int64_t mean = now < SLOW_AT_S * INT64_C(1000) ? COST_MS : SLOW_MS;
        int64_t cost_ms = mean / 2 + mean * j->size / 1000;
        l->time += (double)cost_ms;
        w->free_ms = now + cost_ms;
        d->cost_ms += ((double)cost_ms - d->cost_ms) / 64; /* as the queue learns it */
        d->waits_ms[d->n_done++] = now - j->came_ms;
        bool is_late = w->free_ms > j->due_ms;
        d->n_late += is_late;
        sample_at(d, now)->late += is_late;
    }
}

/* ---- the autoscaler ---- */

static double backlog_s(const day *d, int64_t now)
{
    static const pseg_scale_target target = {TARGET_S, STARTUP_S, 1};
    static pseg_queue_due due[2 * PSEG_SCALE_DEADLINES];
    int at[N_TENANTS], next = 0, waiting = n_waiting(d);
    pseg_queue_backlog b = {.live = waiting + n_running(d, now),
                            .workers = n_there(d, now, true),
                            .cost_us = (int64_t)(d->cost_ms * 1000),
                            .now_unix_us = now * 1000,
                            .due = due};

    for (int t = 0; t < N_TENANTS; t++)
        at[t] = d->lines[t].next;
    /* Those due first, and then ever fewer, as the queue tells. */
    for (int n = 1; n <= waiting; n++) {
        const job *first = NULL;
        int from = 0;
        for (int t = 0; t < N_TENANTS; t++) {
            const job *j = at[t] < d->lines[t].n ? &d->lines[t].jobs[at[t]] : NULL;
            if (j && (!first || j->due_ms < first->due_ms)) {
                first = j;
                from = t;
            }
        }
        if (n > next || n == waiting) {
            due[b.n_due++] = (pseg_queue_due){n, first->due_ms * 1000};
            next = n < PSEG_SCALE_DEADLINES ? n : n * 5 / 4;
        }
        at[from]++;
    }
    b.n_due = d->rule == RULE_NO_DEADLINES ? 0 : b.n_due;
    return pseg_scale_backlog_s(&b, &target);
}

/* Workers that the metric asks for: value over target. The other rule counts jobs: as many a worker
 * as it does in the target's time in the morning. */
static double wish(const day *d, int64_t now)
{
    if (d->rule == RULE_SECONDS || d->rule == RULE_NO_DEADLINES)
        return backlog_s(d, now) / TARGET_S;
    return (n_waiting(d) + n_running(d, now)) / (double)(TARGET_S * 1000 / COST_MS);
}

static int ceil_of(double x)
{
    int n = (int)x;

    return n < x ? n + 1 : n;
}

static void set_workers(day *d, int64_t now, int n)
{
    int have = n_there(d, now, false);

    /* Pods that are idle go first, by their deletion cost; one that has a job ends it before. */
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; have > n && i < MAX_WORKERS; i++) {
            worker *w = &d->workers[i];
            if (w->is_there && !w->is_leaving && (pass || w->free_ms <= now)) {
                w->is_leaving = true;
                have--;
            }
        }
    for (int i = 0; have < n && i < MAX_WORKERS; i++)
        if (!d->workers[i].is_there) {
            d->workers[i] = (worker){.is_there = true, .ready_ms = now + STARTUP_S * 1000};
            have++;
        }
}

/* Kubernetes' rules, every 15 s, while there is one worker at least. */
static void hpa(day *d, int64_t now)
{
    int have = n_there(d, now, false);
    double w = wish(d, now), most = 0;

    memmove(d->wishes + 1, d->wishes, (MAX_WISHES - 1) * sizeof *d->wishes);
    d->wishes[0] = w;
    for (int i = 0; i < MAX_WISHES; i++)
        most = d->wishes[i] > most ? d->wishes[i] : most;
    if (w > have * 1.1 && now - d->up_ms >= 30000) {
        int to = ceil_of(w), step = have > 4 ? 2 * have : have + 4;
        to = to < step ? to : step;
        set_workers(d, now, to < MAX_WORKERS ? to : MAX_WORKERS);
        d->up_ms = now;
    } else if (most < have * 0.9 && have > 1 && now - d->down_ms >= 60000) {
        int to = ceil_of(most);
        set_workers(d, now, to > have - 1 ? to : have - 1);
        d->down_ms = now;
    }
}

static void scale(day *d, int64_t now)
{
    int have = n_there(d, now, false);
    bool is_active = n_waiting(d) + n_running(d, now) > 0;

    if (d->rule == RULE_FIXED)
        return;
    if (is_active)
        d->idle_since_ms = now;
    /* From none to one: by the stream within a second, or at the next look. */
    if (is_active && have == 0 && now % (d->rule == RULE_JOBS ? 5000 : 1000) == 0)
        set_workers(d, now, 1);
    else if (have && now - d->idle_since_ms >= 300000)
        set_workers(d, now, 0);
    else if (have && now % 15000 == 0)
        hpa(d, now);
    d->n_none_under_job += have > 0 && n_there(d, now, false) == 0 && is_active;
}

static void run(day *d, rule r)
{
    *d = (day){.rule = r, .cost_ms = COST_MS, .up_ms = -1000000, .down_ms = -1000000};
    random_state = 88172645463325252u;
    for (int t = 0; t < N_TENANTS; t++)
        d->lines[t].jobs = calloc(MAX_JOBS, sizeof(job));
    d->waits_ms = calloc((size_t)N_TENANTS * MAX_JOBS, sizeof *d->waits_ms);
    if (!d->lines[0].jobs || !d->lines[1].jobs || !d->waits_ms)
        exit(2);
    if (r == RULE_FIXED)
        set_workers(d, -STARTUP_S * INT64_C(1000), FIXED);
    for (int64_t now = 0; now < DAY_S * INT64_C(1000); now += 1000 / TICKS) {
        int before = d->lines[0].n + d->lines[1].n;
        arrive(d, now);
        scale(d, now);
        work(d, now);
        for (int i = 0; i < MAX_WORKERS; i++)
            d->worker_ms += d->workers[i].is_there * (1000 / TICKS);
        sample *s = sample_at(d, now);
        s->arrivals += d->lines[0].n + d->lines[1].n - before;
        int have = n_there(d, now, false), waiting = n_waiting(d);
        s->workers = have > s->workers ? have : s->workers;
        s->waiting = waiting > s->waiting ? waiting : s->waiting;
        if (now % 60000 == 0)
            s->backlog_s = backlog_s(d, now);
    }
}

/* ---- what came of it ---- */

static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

static double wait_s(const day *d, int percent)
{
    return d->n_done ? (double)d->waits_ms[(d->n_done - 1) * percent / 100] / 1000 : 0;
}

int main(int argc, char **argv)
{
    static day days[N_RULES];

    printf("%-12s %7s %7s %6s %14s %9s %9s %9s\n", "rule", "jobs", "done", "late", "worker-hours",
           "wait p50", "p95", "longest");
    for (int r = 0; r < N_RULES; r++) {
        day *d = &days[r];
        run(d, (rule)r);
        qsort(d->waits_ms, (size_t)d->n_done, sizeof *d->waits_ms, by_size);
        printf("%-12s %7d %7" PRId64 " %6" PRId64 " %14.1f %7.1f s %7.1f s %7.1f s\n",
               rule_names[r], d->lines[0].n + d->lines[1].n, d->n_done, d->n_late,
               (double)d->worker_ms / 3.6e6, wait_s(d, 50), wait_s(d, 95), wait_s(d, 100));
    }
    const day *d = &days[RULE_SECONDS];
    bool is_good = d->n_late == 0 && d->n_none_under_job == 0 &&
                   d->n_done == d->lines[0].n + d->lines[1].n &&
                   d->worker_ms < days[RULE_FIXED].worker_ms;
    if (!is_good)
        printf("keda-push: %" PRId64 " late, %d times none under a job, %" PRId64 " of %d done\n",
               d->n_late, d->n_none_under_job, d->n_done, d->lines[0].n + d->lines[1].n);
    int drawn = 0;
    if (argc > 1) {
        const autoscale_samples *seen[N_RULES];
        for (int r = 0; r < N_RULES; r++)
            seen[r] = &days[r].seen;
        drawn = autoscale_draw(argv[1], seen, FIXED);
    }
    return drawn ? drawn : is_good ? 0 : 1;
}
