#include "scheduler/service/scale.h"

/* Of the time to a deadline a tenth is kept for what is not known: jobs cost more or less than
 * their mean, and an autoscaler looks only every so often. */
#define PLANNED 0.9

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
    for (size_t k = 0; k < b->n_deadlines; k++) {
        double time = PLANNED * (double)(b->deadlines_unix_us[k] - b->now_unix_us) / 1e6;
        if (time <= 0)
            continue;
        double jobs = (double)(k + 1);
        double wanted = least(workers_for(jobs * cost, time, (double)b->workers, t), jobs);
        workers = wanted > workers ? wanted : workers;
    }
    return t->target_s * least(workers, live);
}
