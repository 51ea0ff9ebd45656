/* Which variant of an operation runs: the choice of tuning, else the row's own preference. */
#include "worker/ops/internal.h"

#include <string.h>

/* Where the choice for a class of op's shapes is kept with the device: 1 + its index, 0: none. */
static size_t slot_of(const pseg_op *op, size_t class_index)
{
    size_t row = 0;

    while (pseg_ops[row] != op)
        row++;
    return row * PSEG_OP_MAX_CLASSES + class_index;
}

static unsigned fixed_of(const pseg_op *op, const pseg_op_args *a)
{
    return op->fixed ? op->fixed(a) : 0;
}

/* Behind the choices: which operations have run on the device; two of what can be fixed to a slot.
 */
static size_t use_slot(size_t row, unsigned fixed)
{
    return PSEG_MAX_ROWS * PSEG_OP_MAX_CLASSES + row * (PSEG_OP_MAX_FIXED / 2) + fixed / 2;
}

/* The bit of such a slot: of the kinds of types there are three. */
static uint8_t use_bit(const pseg_op *op, const pseg_op_args *a)
{
    bool is_bf16 = false, is_parts = false;

    for (size_t i = 0; i < op->n_slots; i++) {
        is_bf16 = is_bf16 || a->t[i].type == PSEG_BF16;
        is_parts = is_parts || a->t[i].type == PSEG_BF16X2;
    }
    return (uint8_t)((is_parts ? 4 : is_bf16 ? 2 : 1) << 3 * (fixed_of(op, a) % 2));
}

void pseg_op_note_use(pseg_cl *cl, const pseg_op *op, const pseg_op_args *a)
{
    size_t row = 0;

    while (row < pseg_n_ops && pseg_ops[row] != op)
        row++;
    size_t slot = use_slot(row, fixed_of(op, a));
    uint8_t was = pseg_cl_choice(cl, slot), is = was | use_bit(op, a);
    if (is != was)
        pseg_cl_set_choice(cl, slot, is);
}

bool pseg_op_was_used(const pseg_cl *cl, size_t row, const pseg_op_args *a)
{
    const pseg_op *op = pseg_ops[row];

    return (pseg_cl_choice(cl, use_slot(row, fixed_of(op, a))) & use_bit(op, a)) != 0;
}

const pseg_op_variant *pseg_op_choose(const pseg_cl *cl, const pseg_op *op, const pseg_op_args *a)
{
    const pseg_op_variants *v = op->variants;

    if (!v)
        return NULL;
    size_t chosen = pseg_cl_choice(cl, slot_of(op, v->class_of(a)));
    if (chosen > 0 && chosen <= v->n && v->can(&v->list[chosen - 1], cl, a))
        return &v->list[chosen - 1];
    size_t preferred = v->prefer(cl, a);
    return preferred < v->n ? &v->list[preferred] : NULL;
}

void pseg_op_set_choice(pseg_cl *cl, const pseg_op *op, size_t class_index,
                        const pseg_op_variant *v)
{
    pseg_cl_set_choice(cl, slot_of(op, class_index),
                       v ? (uint8_t)(1 + (v - op->variants->list)) : 0);
}

void pseg_op_force(pseg_cl *cl, const pseg_op *op, const pseg_op_variant *v)
{
    for (size_t i = 0; i < op->variants->n_classes; i++)
        pseg_op_set_choice(cl, op, i, v);
}

const pseg_op_variant *pseg_op_variant_find(const pseg_op *op, const char *name, size_t name_len)
{
    for (size_t i = 0; op->variants && i < op->variants->n; i++) {
        const pseg_op_variant *v = &op->variants->list[i];
        if (strncmp(v->name, name, name_len) == 0 && v->name[name_len] == '\0')
            return v;
    }
    return NULL;
}
