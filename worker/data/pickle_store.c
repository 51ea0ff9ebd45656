/* The stacks and values of the machine that a pickle is a program for. */
#include "common/base/alloc.h"
#include "worker/data/pickle_impl.h"

#include <string.h>

enum { MAX_VALUES = 1 << 28 };

pseg_status pickle_no_memory(const pickle *p, pseg_err *err)
{
    return pseg_err_set(err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE, "no memory to read %s", p->name);
}

bool pickle_grow(void *list, uint32_t *cap, uint64_t n, size_t size)
{
    void **at = list;
    uint64_t bigger = *cap ? *cap : 64;
    void *more;

    if (n <= *cap)
        return true;
    while (bigger < n)
        bigger *= 2;
    more = bigger <= MAX_VALUES ? pseg_realloc(*at, bigger * size) : NULL;
    if (!more)
        return false;
    *at = more;
    *cap = (uint32_t)bigger;
    return true;
}

pseg_status pickle_push(pickle *p, pickle_value v, pseg_err *err)
{
    if (!pickle_grow(&p->stack, &p->cap_stack, (uint64_t)p->depth + 1, sizeof *p->stack))
        return pickle_no_memory(p, err);
    p->stack[p->depth++] = v;
    return PSEG_OK;
}

pseg_status pickle_push_new(pickle *p, const pickle_node *x, pseg_err *err)
{
    if (!pickle_grow(&p->nodes, &p->cap, (uint64_t)p->n + 1, sizeof *p->nodes))
        return pickle_no_memory(p, err);
    p->nodes[p->n] = *x;
    return pickle_push(p, p->n++, err);
}

pseg_status pickle_push_int(pickle *p, int64_t i, pickle_type type, pseg_err *err)
{
    return pickle_push_new(p, &(pickle_node){.type = type, .u.i = i}, err);
}

pseg_status pickle_take(const uint8_t **out, pickle *p, uint64_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (n > (uint64_t)(p->end - p->at))
        CORRUPT("%s is cut off: %llu bytes are missing", p->name,
                (unsigned long long)(n - (uint64_t)(p->end - p->at)));
    *out = p->at;
    p->at += n;
out:
    return rc;
}

pseg_status pickle_take_number(uint64_t *out, pickle *p, uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const uint8_t *b = NULL;

    *out = 0;
    PSEG_TRY(pickle_take(&b, p, n, err));
    for (uint32_t i = 0; i < n; i++)
        *out |= (uint64_t)b[i] << (8 * i);
out:
    return rc;
}

pseg_status pickle_take_line(const char **out, size_t *len, pickle *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const uint8_t *end = memchr(p->at, '\n', (size_t)(p->end - p->at));

    if (!end || end - p->at > PICKLE_MAX_LINE)
        CORRUPT("%s is cut off within a line, or has one of more than %d bytes", p->name,
                PICKLE_MAX_LINE);
    *out = (const char *)p->at;
    *len = (size_t)(end - p->at);
    p->at = end + 1;
    if (*len && (*out)[*len - 1] == '\r')
        --*len;
out:
    return rc;
}

pseg_status pickle_pop(pickle_value *out, pickle *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t floor = p->n_marks ? p->marks[p->n_marks - 1] : 0;

    if (p->depth <= floor)
        CORRUPT("%s takes a value that is not there", p->name);
    *out = p->stack[--p->depth];
out:
    return rc;
}

pseg_status pickle_push_mark(pickle *p, pseg_err *err)
{
    if (!pickle_grow(&p->marks, &p->cap_marks, (uint64_t)p->n_marks + 1, sizeof *p->marks))
        return pickle_no_memory(p, err);
    p->marks[p->n_marks++] = p->depth;
    return PSEG_OK;
}

pseg_status pickle_pop_marked(uint32_t *from, uint32_t *n, pickle *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (!p->n_marks)
        CORRUPT("%s goes back to a mark that is not there", p->name);
    *from = p->marks[--p->n_marks];
    *n = p->depth - *from;
    p->depth = *from;
out:
    return rc;
}

pseg_status pickle_extend(pickle *p, pickle_value list, pickle_type type, uint32_t from, uint32_t n,
                          pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pickle_node *x = &p->nodes[list];

    if (x->type != type || (type == PICKLE_DICT && n % 2))
        CORRUPT("%s adds to what is no %s", p->name, type == PICKLE_DICT ? "dict" : "list");
    if (!pickle_grow(&x->u.items, &x->cap, (uint64_t)x->n + n, sizeof *x->u.items))
        return pickle_no_memory(p, err);
    if (n)
        memcpy(x->u.items + x->n, p->stack + from, n * sizeof *x->u.items);
    x->n += n;
out:
    return rc;
}

pseg_status pickle_collect(pickle *p, pickle_type type, uint32_t from, uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pickle_value v = p->n;

    p->depth = from + n;
    PSEG_TRY(pickle_push_new(p, &(pickle_node){.type = type}, err));
    PSEG_TRY(pickle_extend(p, v, type, from, n, err));
    p->depth = from;
    PSEG_TRY(pickle_push(p, v, err));
out:
    return rc;
}

pseg_status pickle_take_top(pickle *p, uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t floor = p->n_marks ? p->marks[p->n_marks - 1] : 0;

    if (p->depth - floor < n)
        CORRUPT("%s takes values that are not there", p->name);
    PSEG_TRY(pickle_collect(p, PICKLE_LIST, p->depth - n, n, err));
out:
    return rc;
}

pseg_status pickle_below(pickle_value *out, pickle *p, uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (p->depth <= n)
        CORRUPT("%s adds to what is not there", p->name);
    *out = p->stack[p->depth - n - 1];
out:
    return rc;
}

pseg_status pickle_remember(pickle *p, uint64_t at, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    /* Pickles number what they keep from 0 on, so that no number is larger than their bytes. */
    if (!p->depth || at > (uint64_t)(p->end - p->data))
        CORRUPT("%s keeps a value at %llu", p->name, (unsigned long long)at);
    if (!pickle_grow(&p->memo, &p->cap_memo, at + 1, sizeof *p->memo))
        return pickle_no_memory(p, err);
    for (; p->n_memo <= at; p->n_memo++)
        p->memo[p->n_memo] = 0;
    p->memo[at] = p->stack[p->depth - 1];
out:
    return rc;
}

pseg_status pickle_recall(pickle *p, uint64_t at, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (at >= p->n_memo || !p->memo[at])
        CORRUPT("%s asks for a value that it has not kept", p->name);
    PSEG_TRY(pickle_push(p, p->memo[at], err));
out:
    return rc;
}
