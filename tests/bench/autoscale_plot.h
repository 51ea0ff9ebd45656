/* The plot of autoscale_sim.c. */
#ifndef PSEG_TESTS_BENCH_AUTOSCALE_PLOT_H
#define PSEG_TESTS_BENCH_AUTOSCALE_PLOT_H

typedef enum rule { RULE_SECONDS, RULE_NO_DEADLINES, RULE_JOBS, RULE_FIXED, N_RULES } rule;

enum { SAMPLES = 720 }; /* of two minutes each */

typedef struct sample {
    int workers, waiting; /* the most in it */
    int arrivals, late;
    double backlog_s;
} sample;

typedef struct autoscale_samples {
    sample at[SAMPLES];
} autoscale_samples;

/* Writes an SVG of a day under each rule; n_fixed: workers of RULE_FIXED. 0, or 2: not written. */
int autoscale_draw(const char *path, const autoscale_samples *const seen[N_RULES], int n_fixed);

#endif
