#include "scheduler/service/scale.h"

/* Work is planned into half of the time to its deadline: jobs are not begun in the order of their
 * deadlines, another tenant that waits takes its share, jobs cost more or less than their mean, and
 * an autoscaler looks only every so often. In the simulated day (tests/bench/autoscale_sim.c) half
 * leaves no job late, and costs no more than nine tenths do: what is done early need not be
 * hurried. */
#define PLANNED 0.5

static double least(double a, double b)
{
    return a < b ? a : b;
}

/* Workers that have `work` seconds of compute-time done in `time`, if `now` of them compute already
 * and each further one begins startup_s later. Where new ones would come too late, those there are:
 * taking one of them away would make it worse. */
static double workers_for(double work, double time, double now, const pseg_scale_target *t)
{
    double late = time - t->startup_s;

    if (work <= now * time)
        return work / time;
    return late > 0 ? now + (work - now * time) / late : now;
}

double pseg_scale_backlog_s(const pseg_queue_backlog *b, const pseg_scale_target *t)
{
    double cost = b->cost_us > 0 ? (double)b->cost_us / 1e6 : t->assumed_s;
    double live = (double)b->live, workers = live * least(1, cost / t->target_s);

    /* The jobs that are due by the k-th deadline must be done by it. */
    for (size_t k = 0; k < b->n_due; k++) {
        double time = PLANNED * (double)(b->due[k].deadline_unix_us - b->now_unix_us) / 1e6;
        if (time <= 0)
            continue;
        double jobs = (double)b->due[k].jobs;
        double wanted = least(workers_for(jobs * cost, time, (double)b->workers, t), jobs);
        workers = wanted > workers ? wanted : workers;
    }
    return t->target_s * least(workers, live);
}
