/* Which variant of an operation is best on a device: measured, kept in a file, and loaded.
 *
 * A file holds the choices for classes of shapes (pseg_op_variants), and the peaks that a roofline
 * is drawn with. There are two kinds. Those of kernels/tuned are part of the program and serve
 * devices of their name and driver. Those that `pseg devices --tune` leaves in the cache folder go
 * before them, and are bound to the very kernels and program that were measured:
 *
 *     pseg tuning 1
 *     device = pthread-haswell-AMD EPYC      each line a condition; a file may leave some out
 *     driver = 3.1+debian
 *     units = 2
 *     kernels = SHA-256 of all sources
 *     program = version of PSEG
 *     peak fp32_gflops 210.5
 *     choose gemm f32/1 f32-3x1 0.0514 0.0613      median ms of it, and of what is preferred
 *     end
 *
 * A file that is damaged, or whose conditions do not hold, is told in one line of the log and
 * counts as absent. */
#ifndef PSEG_OPS_TUNE_H
#define PSEG_OPS_TUNE_H

#include "worker/ops/table.h"

/* What a device does at most; 0: not measured. */
typedef struct pseg_peaks {
    double fp32_gflops; /* fused multiply-adds in registers */
    double bf16_gflops; /* by the instructions for it; without any, as fp32 */
    double read_gbytes; /* a second, from memory that no cache holds */
} pseg_peaks;

typedef struct pseg_tune_choice {
    const pseg_op *op;
    size_t class_index;
    const pseg_op_variant *best, *usual; /* best == usual: nothing is gained */
    double best_ms, usual_ms;
} pseg_tune_choice;

#define PSEG_TUNE_MAX 128

typedef struct pseg_tuning {
    pseg_peaks peaks;
    pseg_tune_choice choices[PSEG_TUNE_MAX];
    size_t n;
} pseg_tuning;

typedef struct pseg_tune_options {
    double budget_ms;    /* for each variant of each class, at least three launches */
    double max_flops;    /* classes of more are left out; 0: none */
    const pseg_op *only; /* this operation alone; NULL: all */
    void (*progress)(void *ud, const char *op, const char *shape); /* or NULL */
    void *ud;
    const pseg_log *log;
} pseg_tune_options;

/* Peaks and choices of the stream's device. A variant that does not build, or whose result is not
 * that of the preferred one, is told to the log and left out; another is taken only if it is 3 %
 * faster. Errors: device errors. */
pseg_status pseg_tune(pseg_tuning *out, pseg_stream *s, const pseg_tune_options *o, pseg_err *err);
/* The peaks alone: 0.3 seconds or so. */
pseg_status pseg_peaks_measure(pseg_peaks *out, pseg_stream *s, pseg_err *err);

/* The text of a file; with is_bound with the conditions `kernels` and `program`. Caller frees with
 * pseg_free. */
pseg_status pseg_tuning_format(char **out, const pseg_tuning *t, const pseg_cl *cl, bool is_bound,
                               pseg_err *err);
/* text: n bytes. Errors: PSEG_R_DATA_CORRUPT (damaged), PSEG_R_UNSUPPORTED (a condition does not
 * hold). */
pseg_status pseg_tuning_parse(pseg_tuning *out, const pseg_cl *cl, const char *text, size_t n,
                              pseg_err *err);
/* Into the device's file in the cache folder. No cache folder: nothing happens. */
pseg_status pseg_tuning_save(const pseg_tuning *t, const pseg_cl *cl, pseg_err *err);
/* What the file in the cache folder says; n = 0 and no peaks if there is none that can be used. */
void pseg_tuning_recall(pseg_tuning *out, const pseg_cl *cl, const pseg_log *log);

/* From now on these choices are taken. pseg_tuning_load (ops.h) does it with all that is kept. */
void pseg_tuning_apply(const pseg_tuning *t, pseg_cl *cl);

/* Peaks from the cache folder, else measured and kept there. */
pseg_status pseg_peaks_get(pseg_peaks *out, pseg_stream *s, pseg_err *err);
/* GFLOP/s that an operation with so many operations a byte can reach at most: min(peak, intensity x
 * memory). */
double pseg_attainable(double peak_gflops, double read_gbytes, double flops, double bytes);

#endif
