#include "worker/data/pickle.h"
#include "common/base/alloc.h"
#include "common/base/arena.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CORRUPT(...) PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, __VA_ARGS__)

enum { MAX_VALUES = 1 << 28, MAX_LINE = 1 << 24 };

typedef struct node {
    pickle_type type;
    uint32_t n, cap; /* LIST: elements; DICT: keys and values in turn */
    union {
        int64_t i;
        double d;
        struct {
            const char *s;
            size_t len;
        } text;
        pickle_value *items;
    } u;
} node;

struct pickle {
    const uint8_t *data, *at, *end;
    const char *name;
    node *nodes; /* [n]; 0 is none */
    uint32_t n, cap;
    pickle_value *stack, *memo;
    uint32_t depth, cap_stack, n_memo, cap_memo;
    uint32_t *marks;
    uint32_t n_marks, cap_marks;
    pickle_value root;
    pseg_arena *arena; /* texts that had to be unescaped */
};

static pseg_status no_memory(const pickle *p, pseg_err *err)
{
    return pseg_err_set(err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE, "no memory to read %s", p->name);
}

static bool grow(void *list, uint32_t *cap, uint64_t n, size_t size)
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

/* ---- the machine's parts --------------------------------------------------------------------- */

static pseg_status push(pickle *p, pickle_value v, pseg_err *err)
{
    if (!grow(&p->stack, &p->cap_stack, (uint64_t)p->depth + 1, sizeof *p->stack))
        return no_memory(p, err);
    p->stack[p->depth++] = v;
    return PSEG_OK;
}

static pseg_status push_new(pickle *p, const node *x, pseg_err *err)
{
    if (!grow(&p->nodes, &p->cap, (uint64_t)p->n + 1, sizeof *p->nodes))
        return no_memory(p, err);
    p->nodes[p->n] = *x;
    return push(p, p->n++, err);
}

static pseg_status push_int(pickle *p, int64_t i, pickle_type type, pseg_err *err)
{
    return push_new(p, &(node){.type = type, .u.i = i}, err);
}

static pseg_status take(const uint8_t **out, pickle *p, uint64_t n, pseg_err *err)
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

/* n bytes, little-endian. */
static pseg_status take_number(uint64_t *out, pickle *p, uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const uint8_t *b = NULL;

    *out = 0;
    PSEG_TRY(take(&b, p, n, err));
    for (uint32_t i = 0; i < n; i++)
        *out |= (uint64_t)b[i] << (8 * i);
out:
    return rc;
}

/* To the end of the line, without it. */
static pseg_status take_line(const char **out, size_t *len, pickle *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const uint8_t *end = memchr(p->at, '\n', (size_t)(p->end - p->at));

    if (!end || end - p->at > MAX_LINE)
        CORRUPT("%s is cut off within a line, or has one of more than %d bytes", p->name, MAX_LINE);
    *out = (const char *)p->at;
    *len = (size_t)(end - p->at);
    p->at = end + 1;
    if (*len && (*out)[*len - 1] == '\r')
        --*len;
out:
    return rc;
}

static pseg_status pop(pickle_value *out, pickle *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t floor = p->n_marks ? p->marks[p->n_marks - 1] : 0;

    if (p->depth <= floor)
        CORRUPT("%s takes a value that is not there", p->name);
    *out = p->stack[--p->depth];
out:
    return rc;
}

static pseg_status push_mark(pickle *p, pseg_err *err)
{
    if (!grow(&p->marks, &p->cap_marks, (uint64_t)p->n_marks + 1, sizeof *p->marks))
        return no_memory(p, err);
    p->marks[p->n_marks++] = p->depth;
    return PSEG_OK;
}

/* Values above the last mark, which goes: stack[*from .. *from + *n). They are off the stack. */
static pseg_status pop_marked(uint32_t *from, uint32_t *n, pickle *p, pseg_err *err)
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

static pseg_status extend(pickle *p, pickle_value list, pickle_type type, uint32_t from, uint32_t n,
                          pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    node *x = &p->nodes[list];

    if (x->type != type || (type == PICKLE_DICT && n % 2))
        CORRUPT("%s adds to what is no %s", p->name, type == PICKLE_DICT ? "dict" : "list");
    if (!grow(&x->u.items, &x->cap, (uint64_t)x->n + n, sizeof *x->u.items))
        return no_memory(p, err);
    if (n)
        memcpy(x->u.items + x->n, p->stack + from, n * sizeof *x->u.items);
    x->n += n;
out:
    return rc;
}

/* A new list of what lies above: n values from stack[from] on, which are taken off. */
static pseg_status collect(pickle *p, pickle_type type, uint32_t from, uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pickle_value v = p->n;

    p->depth = from + n;
    PSEG_TRY(push_new(p, &(node){.type = type}, err));
    PSEG_TRY(extend(p, v, type, from, n, err));
    p->depth = from;
    PSEG_TRY(push(p, v, err));
out:
    return rc;
}

static pseg_status take_top(pickle *p, uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t floor = p->n_marks ? p->marks[p->n_marks - 1] : 0;

    if (p->depth - floor < n)
        CORRUPT("%s takes values that are not there", p->name);
    PSEG_TRY(collect(p, PICKLE_LIST, p->depth - n, n, err));
out:
    return rc;
}

/* The container on the stack, below n more values. */
static pseg_status below(pickle_value *out, pickle *p, uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (p->depth <= n)
        CORRUPT("%s adds to what is not there", p->name);
    *out = p->stack[p->depth - n - 1];
out:
    return rc;
}

/* ---- memory of values ------------------------------------------------------------------------ */

static pseg_status remember(pickle *p, uint64_t at, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    /* Pickles number what they keep from 0 on, so that no number is larger than their bytes. */
    if (!p->depth || at > (uint64_t)(p->end - p->data))
        CORRUPT("%s keeps a value at %llu", p->name, (unsigned long long)at);
    if (!grow(&p->memo, &p->cap_memo, at + 1, sizeof *p->memo))
        return no_memory(p, err);
    for (; p->n_memo <= at; p->n_memo++)
        p->memo[p->n_memo] = 0;
    p->memo[at] = p->stack[p->depth - 1];
out:
    return rc;
}

static pseg_status recall(pickle *p, uint64_t at, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (at >= p->n_memo || !p->memo[at])
        CORRUPT("%s asks for a value that it has not kept", p->name);
    PSEG_TRY(push(p, p->memo[at], err));
out:
    return rc;
}

static pseg_status line_number(int64_t *out, pickle *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char digits[32], *end;
    const char *s = NULL;
    size_t n = 0;

    PSEG_TRY(take_line(&s, &n, p, err));
    if (n && s[n - 1] == 'L')
        n--;
    if (n == 0 || n >= sizeof digits)
        CORRUPT("%s: a number of %zu digits", p->name, n);
    memcpy(digits, s, n);
    digits[n] = 0;
    errno = 0;
    *out = strtoll(digits, &end, 10);
    if (*end || errno)
        CORRUPT("%s: \"%.32s\" is no number of 64 bits", p->name, digits);
out:
    return rc;
}

/* ---- texts ----------------------------------------------------------------------------------- */

static pseg_status push_text(pickle *p, uint32_t len_bytes, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const uint8_t *s = NULL;
    uint64_t n = 0;

    PSEG_TRY(take_number(&n, p, len_bytes, err));
    PSEG_TRY(take(&s, p, n, err));
    PSEG_TRY(
        push_new(p, &(node){.type = PICKLE_TEXT, .u.text = {(const char *)s, (size_t)n}}, err));
out:
    return rc;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* n hexadecimal digits at s; -1: there are none. */
static int64_t hex(const char *s, const char *end, int n)
{
    int64_t x = 0;

    for (int i = 0; i < n; i++) {
        int d = s + i < end ? hex_digit(s[i]) : -1;
        if (d < 0)
            return -1;
        x = x * 16 + d;
    }
    return x;
}

static size_t put_utf8(char *out, uint32_t c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 63));
        out[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 63));
    out[2] = (char)(0x80 | (c >> 6 & 63));
    out[3] = (char)(0x80 | (c & 63));
    return 4;
}

/* A line with backslashes. is_raw: Python's raw-unicode-escape (\u and \U alone; bytes are
 * Latin-1); else a string literal between quotes. out has room for 2 bytes for each of s. Returns
 * SIZE_MAX if it is none. */
static size_t unescape(char *out, const char *s, size_t len, bool is_raw)
{
    static const char names[] = "abfnrtv", means[] = "\a\b\f\n\r\t\v";
    const char *end = s + len, *known;
    size_t n = 0;
    int64_t x = 0;

    if (!is_raw) {
        if (len < 2 || (s[0] != '\'' && s[0] != '"') || end[-1] != s[0])
            return SIZE_MAX;
        s++;
        end--;
    }
    while (s < end) {
        char c = *s++;
        if (is_raw && (unsigned char)c >= 0x80) {
            n += put_utf8(out + n, (unsigned char)c);
        } else if (c != '\\' || s == end) {
            out[n++] = c;
        } else if (is_raw && *s != 'u' && *s != 'U') {
            out[n++] = c;
        } else if (is_raw) {
            int digits = *s == 'u' ? 4 : 8;
            x = hex(s + 1, end, digits);
            if (x < 0 || x > 0x10FFFF)
                return SIZE_MAX;
            n += put_utf8(out + n, (uint32_t)x);
            s += 1 + digits;
        } else if (*s == 'x') {
            x = hex(s + 1, end, 2);
            if (x < 0)
                return SIZE_MAX;
            out[n++] = (char)x;
            s += 3;
        } else {
            known = strchr(names, *s);
            out[n++] = known && *s ? means[known - names] : *s;
            s++;
        }
    }
    return n;
}

static pseg_status push_line_text(pickle *p, bool is_raw, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *s = NULL;
    size_t len = 0, n;
    char *copy;

    PSEG_TRY(take_line(&s, &len, p, err));
    copy = pseg_arena_alloc(p->arena, 2 * len + 1);
    if (!copy)
        return no_memory(p, err);
    n = unescape(copy, s, len, is_raw);
    if (n == SIZE_MAX)
        CORRUPT("%s: a text in a form that Python does not write", p->name);
    PSEG_TRY(push_new(p, &(node){.type = PICKLE_TEXT, .u.text = {copy, n}}, err));
out:
    return rc;
}

/* ---- numbers --------------------------------------------------------------------------------- */

static pseg_status push_long(pickle *p, uint64_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t x = 0;
    const uint8_t *b = NULL;

    PSEG_TRY(take(&b, p, n, err));
    if (n > 8)
        PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "%s holds a number of %llu bytes; 8 are the limit",
                  p->name, (unsigned long long)n);
    for (uint64_t i = 0; i < 8; i++)
        x |= (uint64_t)(i < n ? b[i] : n && b[n - 1] & 0x80 ? 0xFF : 0) << (8 * i);
    PSEG_TRY(push_int(p, (int64_t)x, PICKLE_INT, err));
out:
    return rc;
}

static pseg_status push_double(pickle *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const uint8_t *b = NULL;
    uint64_t x = 0;
    node v = {.type = PICKLE_FLOAT};

    PSEG_TRY(take(&b, p, 8, err));
    for (int i = 0; i < 8; i++)
        x = x << 8 | b[i];
    memcpy(&v.u.d, &x, 8);
    PSEG_TRY(push_new(p, &v, err));
out:
    return rc;
}

static pseg_status push_line_float(pickle *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    node v = {.type = PICKLE_FLOAT};
    char digits[64], *end;
    const char *s = NULL;
    size_t n = 0;

    PSEG_TRY(take_line(&s, &n, p, err));
    if (n == 0 || n >= sizeof digits)
        CORRUPT("%s: a number of %zu characters", p->name, n);
    memcpy(digits, s, n);
    digits[n] = 0;
    v.u.d = strtod(digits, &end);
    if (*end)
        CORRUPT("%s: \"%.60s\" is no number", p->name, digits);
    PSEG_TRY(push_new(p, &v, err));
out:
    return rc;
}

static pseg_status push_line_int(pickle *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t x = 0;
    /* I00 and I01 are Python 2's False and True. */
    bool is_bool = p->end - p->at >= 3 && p->at[0] == '0' && (p->at[1] == '0' || p->at[1] == '1') &&
                   p->at[2] == '\n';

    PSEG_TRY(line_number(&x, p, err));
    PSEG_TRY(push_int(p, x, is_bool ? PICKLE_BOOL : PICKLE_INT, err));
out:
    return rc;
}

/* ---- opcodes --------------------------------------------------------------------------------- */

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
        PSEG_TRY(take_number(&x, p, 1, err));
        return push_int(p, (int64_t)x, PICKLE_INT, err);
    case 'M':
        PSEG_TRY(take_number(&x, p, 2, err));
        return push_int(p, (int64_t)x, PICKLE_INT, err);
    case 'J':
        PSEG_TRY(take_number(&x, p, 4, err));
        return push_int(p, (int32_t)(uint32_t)x, PICKLE_INT, err);
    case 0x8a:
        PSEG_TRY(take_number(&x, p, 1, err));
        return push_long(p, x, err);
    case 0x8b:
        PSEG_TRY(take_number(&x, p, 4, err));
        return push_long(p, x, err);
    case 'q':
        PSEG_TRY(take_number(&x, p, 1, err));
        return remember(p, x, err);
    case 'r':
        PSEG_TRY(take_number(&x, p, 4, err));
        return remember(p, x, err);
    case 'h':
        PSEG_TRY(take_number(&x, p, 1, err));
        return recall(p, x, err);
    case 'j':
        PSEG_TRY(take_number(&x, p, 4, err));
        return recall(p, x, err);
    case 0x80: /* protocol */
        PSEG_TRY(take_number(&x, p, 1, err));
        if (x > 5)
            PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "%s is of pickle protocol %llu; 0 to 5 are read",
                      p->name, (unsigned long long)x);
        return rc;
    case 0x95: /* frame: its length is of no use here */
        return take_number(&x, p, 8, err);
    case 'U':
    case 'C':
    case 0x8c:
        return push_text(p, 1, err);
    case 'T':
    case 'B':
    case 'X':
        return push_text(p, 4, err);
    case 0x8d:
    case 0x8e:
        return push_text(p, 8, err);
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
        return push_line_int(p, err);
    case 'L':
        PSEG_TRY(line_number(&x, p, err));
        return push_int(p, x, PICKLE_INT, err);
    case 'F':
        return push_line_float(p, err);
    case 'S':
        return push_line_text(p, false, err);
    case 'V':
        return push_line_text(p, true, err);
    case 'p':
        PSEG_TRY(line_number(&x, p, err));
        return remember(p, (uint64_t)x, err);
    case 'g':
        PSEG_TRY(line_number(&x, p, err));
        return recall(p, (uint64_t)x, err);
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
        return push_new(p, &(node){.type = PICKLE_LIST}, err);
    case '}':
        return push_new(p, &(node){.type = PICKLE_DICT}, err);
    case 'l':
    case 't':
    case 'd':
        PSEG_TRY(pop_marked(&from, &n, p, err));
        return collect(p, op == 'd' ? PICKLE_DICT : PICKLE_LIST, from, n, err);
    case 0x85:
    case 0x86:
    case 0x87:
        return take_top(p, op - 0x84u, err);
    case 'e':
    case 'u':
        PSEG_TRY(pop_marked(&from, &n, p, err));
        PSEG_TRY(below(&list, p, 0, err));
        return extend(p, list, op == 'u' ? PICKLE_DICT : PICKLE_LIST, from, n, err);
    case 'a':
    case 's':
        n = op == 's' ? 2 : 1;
        for (uint32_t i = 0; i < n; i++)
            PSEG_TRY(pop(&v, p, err));
        PSEG_TRY(below(&list, p, 0, err));
        return extend(p, list, op == 's' ? PICKLE_DICT : PICKLE_LIST, p->depth, n, err);
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
        return push_new(p, &(node){.type = PICKLE_NONE}, err);
    case 0x88:
    case 0x89:
        return push_int(p, op == 0x88, PICKLE_BOOL, err);
    case 'G':
        return push_double(p, err);
    case '(':
        return push_mark(p, err);
    case '0':
        return pop(&v, p, err);
    case '1':
        return pop_marked(&from, &n, p, err);
    case '2':
        PSEG_TRY(below(&v, p, 0, err));
        return push(p, v, err);
    case 0x94: /* memoize */
        return remember(p, p->n_memo, err);
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
    if (!p->arena || !grow(&p->nodes, &p->cap, 1, sizeof *p->nodes)) {
        rc = no_memory(p, err);
        goto out;
    }
    p->nodes[p->n++] = (node){.type = PICKLE_NONE};
    for (;;) {
        PSEG_TRY(take(&op, p, 1, err));
        if (*op == '.')
            break;
        PSEG_TRY(run_one(p, *op, err));
    }
    PSEG_TRY(pop(&p->root, p, err));
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
