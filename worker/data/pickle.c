#include "worker/data/pickle.h"
#include "common/base/alloc.h"
#include "worker/data/pickle_impl.h"

#include <math.h>
#include <string.h>

static pseg_status refuse(const pickle *p, uint8_t op, pseg_err *err)
{
    static const struct {
        uint8_t op;
        const char *name;
    } calls[] = {{'c', "GLOBAL"}, {'R', "REDUCE"},    {'b', "BUILD"},      {'i', "INST"},
                 {'o', "OBJ"},    {0x81, "NEWOBJ"},   {0x92, "NEWOBJ_EX"}, {0x93, "STACK_GLOBAL"},
                 {'P', "PERSID"}, {'Q', "BINPERSID"}, {0x82, "EXT1"},      {0x83, "EXT2"},
                 {0x84, "EXT4"}};

    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        if (calls[i].op == op)
            return pseg_err_set(err, PSEG_R_UNSUPPORTED, 0, PSEG_HERE,
                                "%s holds more than plain data: %s at byte %zu would run code, and "
                                "nothing in a file is run",
                                p->name, calls[i].name, (size_t)(p->at - p->data) - 1);
    return pseg_err_set(err, PSEG_R_DATA_CORRUPT, 0, PSEG_HERE,
                        "%s is no pickle, or damaged: unknown code 0x%02x at byte %zu", p->name, op,
                        (size_t)(p->at - p->data) - 1);
}

/* Those that begin with a number of so many bytes. */
static pseg_status run_sized(pickle *p, uint8_t op, bool *is_done, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t x = 0;

    *is_done = true;
    switch (op) {
    case 'K':
        PSEG_TRY(pickle_take_number(&x, p, 1, err));
        return pickle_push_int(p, (int64_t)x, PICKLE_INT, err);
    case 'M':
        PSEG_TRY(pickle_take_number(&x, p, 2, err));
        return pickle_push_int(p, (int64_t)x, PICKLE_INT, err);
    case 'J':
        PSEG_TRY(pickle_take_number(&x, p, 4, err));
        return pickle_push_int(p, (int32_t)(uint32_t)x, PICKLE_INT, err);
    case 0x8a:
        PSEG_TRY(pickle_take_number(&x, p, 1, err));
        return pickle_push_long(p, x, err);
    case 0x8b:
        PSEG_TRY(pickle_take_number(&x, p, 4, err));
        return pickle_push_long(p, x, err);
    case 'q':
        PSEG_TRY(pickle_take_number(&x, p, 1, err));
        return pickle_remember(p, x, err);
    case 'r':
        PSEG_TRY(pickle_take_number(&x, p, 4, err));
        return pickle_remember(p, x, err);
    case 'h':
        PSEG_TRY(pickle_take_number(&x, p, 1, err));
        return pickle_recall(p, x, err);
    case 'j':
        PSEG_TRY(pickle_take_number(&x, p, 4, err));
        return pickle_recall(p, x, err);
    case 0x80: /* protocol */
        PSEG_TRY(pickle_take_number(&x, p, 1, err));
        if (x > 5)
            PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "%s is of pickle protocol %llu; 0 to 5 are read",
                      p->name, (unsigned long long)x);
        return rc;
    case 0x95: /* frame: its length is of no use here */
        return pickle_take_number(&x, p, 8, err);
    case 'U':
    case 'C':
    case 0x8c:
        return pickle_push_text(p, 1, err);
    case 'T':
    case 'B':
    case 'X':
        return pickle_push_text(p, 4, err);
    case 0x8d:
    case 0x8e:
        return pickle_push_text(p, 8, err);
    default:
        *is_done = false;
    }
out:
    return rc;
}

static pseg_status run_line(pickle *p, uint8_t op, bool *is_done, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t x = 0;

    *is_done = true;
    switch (op) {
    case 'I':
        return pickle_push_line_int(p, err);
    case 'L':
        PSEG_TRY(pickle_take_line_number(&x, p, err));
        return pickle_push_int(p, x, PICKLE_INT, err);
    case 'F':
        return pickle_push_line_float(p, err);
    case 'S':
        return pickle_push_line_text(p, false, err);
    case 'V':
        return pickle_push_line_text(p, true, err);
    case 'p':
        PSEG_TRY(pickle_take_line_number(&x, p, err));
        return pickle_remember(p, (uint64_t)x, err);
    case 'g':
        PSEG_TRY(pickle_take_line_number(&x, p, err));
        return pickle_recall(p, (uint64_t)x, err);
    default:
        *is_done = false;
    }
out:
    return rc;
}

/* Those that make or fill lists and dicts. */
static pseg_status run_list(pickle *p, uint8_t op, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pickle_value list = 0, v = 0;
    uint32_t from = 0, n = 0;

    switch (op) {
    case ']':
    case ')':
        return pickle_push_new(p, &(pickle_node){.type = PICKLE_LIST}, err);
    case '}':
        return pickle_push_new(p, &(pickle_node){.type = PICKLE_DICT}, err);
    case 'l':
    case 't':
    case 'd':
        PSEG_TRY(pickle_pop_marked(&from, &n, p, err));
        return pickle_collect(p, op == 'd' ? PICKLE_DICT : PICKLE_LIST, from, n, err);
    case 0x85:
    case 0x86:
    case 0x87:
        return pickle_take_top(p, op - 0x84u, err);
    case 'e':
    case 'u':
        PSEG_TRY(pickle_pop_marked(&from, &n, p, err));
        PSEG_TRY(pickle_below(&list, p, 0, err));
        return pickle_extend(p, list, op == 'u' ? PICKLE_DICT : PICKLE_LIST, from, n, err);
    case 'a':
    case 's':
        n = op == 's' ? 2 : 1;
        for (uint32_t i = 0; i < n; i++)
            PSEG_TRY(pickle_pop(&v, p, err));
        PSEG_TRY(pickle_below(&list, p, 0, err));
        return pickle_extend(p, list, op == 's' ? PICKLE_DICT : PICKLE_LIST, p->depth, n, err);
    default:
        return refuse(p, op, err);
    }
out:
    return rc;
}

static pseg_status run_one(pickle *p, uint8_t op, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t from = 0, n = 0;
    pickle_value v = 0;
    bool is_done = false;

    switch (op) {
    case 'N':
        return pickle_push_new(p, &(pickle_node){.type = PICKLE_NONE}, err);
    case 0x88:
    case 0x89:
        return pickle_push_int(p, op == 0x88, PICKLE_BOOL, err);
    case 'G':
        return pickle_push_double(p, err);
    case '(':
        return pickle_push_mark(p, err);
    case '0':
        return pickle_pop(&v, p, err);
    case '1':
        return pickle_pop_marked(&from, &n, p, err);
    case '2':
        PSEG_TRY(pickle_below(&v, p, 0, err));
        return pickle_push(p, v, err);
    case 0x94: /* memoize */
        return pickle_remember(p, p->n_memo, err);
    default:
        PSEG_TRY(run_sized(p, op, &is_done, err));
        if (!is_done)
            PSEG_TRY(run_line(p, op, &is_done, err));
        if (!is_done)
            PSEG_TRY(run_list(p, op, err));
    }
out:
    return rc;
}

pseg_status pickle_read(pickle **out, const uint8_t *data, size_t n, const char *name,
                        pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const uint8_t *op = NULL;
    pickle *p = NULL;

    *out = NULL;
    p = pseg_calloc(1, sizeof *p);
    if (!p)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to read %s", name);
    p->data = p->at = data;
    p->end = data + n;
    p->name = name;
    p->arena = pseg_arena_new(2 * n + 4096);
    if (!p->arena || !pickle_grow(&p->nodes, &p->cap, 1, sizeof *p->nodes)) {
        rc = pickle_no_memory(p, err);
        goto out;
    }
    p->nodes[p->n++] = (pickle_node){.type = PICKLE_NONE};
    for (;;) {
        PSEG_TRY(pickle_take(&op, p, 1, err));
        if (*op == '.')
            break;
        PSEG_TRY(run_one(p, *op, err));
    }
    PSEG_TRY(pickle_pop(&p->root, p, err));
    *out = p;
    p = NULL;
out:
    pickle_close(p);
    return rc;
}

void pickle_close(pickle *p)
{
    if (!p)
        return;
    for (uint32_t i = 0; i < p->n; i++)
        if (p->nodes[i].type == PICKLE_LIST || p->nodes[i].type == PICKLE_DICT)
            pseg_free(p->nodes[i].u.items);
    pseg_free(p->nodes);
    pseg_free(p->stack);
    pseg_free(p->memo);
    pseg_free(p->marks);
    pseg_arena_free(p->arena);
    pseg_free(p);
}

/* ---- asking ---------------------------------------------------------------------------------- */

pickle_value pickle_root(const pickle *p)
{
    return p->root;
}

pickle_type pickle_type_of(const pickle *p, pickle_value v)
{
    return v < p->n ? p->nodes[v].type : PICKLE_NONE;
}

bool pickle_int(int64_t *out, const pickle *p, pickle_value v)
{
    pickle_type type = pickle_type_of(p, v);

    if (type == PICKLE_INT || type == PICKLE_BOOL) {
        *out = p->nodes[v].u.i;
        return true;
    }
    if (type != PICKLE_FLOAT || !(fabs(p->nodes[v].u.d) < 0x1p53) ||
        p->nodes[v].u.d != floor(p->nodes[v].u.d))
        return false;
    *out = (int64_t)p->nodes[v].u.d;
    return true;
}

const char *pickle_text(size_t *len, const pickle *p, pickle_value v)
{
    if (pickle_type_of(p, v) != PICKLE_TEXT)
        return NULL;
    *len = p->nodes[v].u.text.len;
    return p->nodes[v].u.text.s;
}

uint32_t pickle_count(const pickle *p, pickle_value v)
{
    pickle_type type = pickle_type_of(p, v);

    return type == PICKLE_LIST ? p->nodes[v].n : type == PICKLE_DICT ? p->nodes[v].n / 2 : 0;
}

pickle_value pickle_at(const pickle *p, pickle_value list, uint32_t i)
{
    return pickle_type_of(p, list) == PICKLE_LIST && i < p->nodes[list].n
               ? p->nodes[list].u.items[i]
               : 0;
}

pickle_value pickle_get(const pickle *p, pickle_value dict, const char *key)
{
    size_t n = strlen(key), len;

    if (pickle_type_of(p, dict) != PICKLE_DICT)
        return 0;
    for (uint32_t i = p->nodes[dict].n; i >= 2; i -= 2) {
        const char *s = pickle_text(&len, p, p->nodes[dict].u.items[i - 2]);
        if (s && len == n && memcmp(s, key, n) == 0)
            return p->nodes[dict].u.items[i - 1];
    }
    return 0;
}
