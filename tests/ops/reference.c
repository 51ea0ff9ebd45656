#include "tests/ops/reference.h"

#include <stdlib.h>
#include <string.h>

/* Doubles in the place of t's floats, with room for n elements behind its offset; NULL: no memory.
 */
static double *widen(const pseg_tensor *t, size_t n)
{
    const float *from = t->host;
    double *to = malloc((t->off + n) * sizeof *to);

    for (size_t i = 0; to && i < t->off + n; i++)
        to[i] = from[i];
    return to;
}

/* Back, where an element has changed. */
static void narrow(const pseg_tensor *t, const double *from, size_t n)
{
    float *to = t->host;

    for (size_t i = 0; i < t->off + n; i++) {
        double was = to[i];

        if (memcmp(&was, &from[i], sizeof was) != 0)
            to[i] = (float)from[i];
    }
}

/* Tensors of op's slots in double; those that are absent or of integers as they were. */
static bool widen_all(pseg_tensor *out, const pseg_op *op, const pseg_op_args *a)
{
    const pseg_tensor *t = a->t;
    bool good = true;

    for (size_t i = 0; i < op->n_slots; i++) {
        out[i] = t[i];
        if (!t[i].host || op->slots[i].type == PSEG_I32)
            continue;
        out[i].host = widen(&t[i], op->extent(a, i));
        good = good && out[i].host;
    }
    return good;
}

static void free_all(pseg_tensor *wide, const pseg_tensor *t, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (wide[i].host != t[i].host)
            free(wide[i].host);
}

bool reference_run(const pseg_op *op, const pseg_op_args *a)
{
    pseg_op_args wide = *a;
    bool good = widen_all(wide.t, op, a);

    if (good) {
        op->ref(&wide);
        narrow(&a->t[0], wide.t[0].host, op->extent(a, 0));
    }
    free_all(wide.t, a->t, op->n_slots);
    return good;
}
