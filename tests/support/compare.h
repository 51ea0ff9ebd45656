/* The one comparator of numeric results. It cannot be fooled by NaN: a value passes only if it is
 * shown to be within tolerance. */
#ifndef PSEG_TESTS_COMPARE_H
#define PSEG_TESTS_COMPARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

typedef struct pseg_compare {
    size_t n, n_bad, worst;  /* elements; elements out of tolerance; index of the worst */
    double max_abs, max_rel; /* over finite pairs */
    double nmse;             /* sum (a-b)^2 / sum b^2; 0/0 counts as 0 */
    double cosine;
    double worst_got, worst_want;
} pseg_compare;

/* Element i is bad unless |got-want| <= abs_tol + rel_tol*|want|, or both are the same infinity.
 * nmse_tol < 0: not asked. Returns true if all elements are good and nmse is within tolerance. */
bool pseg_compare_f32(pseg_compare *out, const float *got, const float *want, size_t n,
                      double abs_tol, double rel_tol, double nmse_tol);
/* One line: name, n, max abs, max rel, nmse, cosine, worst index with both values. */
void pseg_compare_print(FILE *f, const char *name, const pseg_compare *c);

#endif
