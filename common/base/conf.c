#include "common/base/alloc.h"
#include "common/base/conf_impl.h"
#include "common/base/file.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FROM_DEFAULT, FROM_FILE, FROM_ENV, FROM_FLAG };

const char *pseg_conf_env(const char *name)
{
    return getenv(name);
}

static bool parse_int(int64_t *out, const char *s, bool is_ms)
{
    char *end;

    errno = 0;
    long long v = strtoll(s, &end, 10);
    if (end == s || errno)
        return false;
    int64_t mul = 1;
    if (is_ms && strcmp(end, "ms") == 0)
        end += 2;
    else if (is_ms && *end == 's')
        mul = 1000, end++;
    else if (is_ms && *end == 'm')
        mul = 60000, end++;
    else if (*end == 'k' || *end == 'K')
        mul = 1 << 10, end++;
    else if (*end == 'M')
        mul = 1 << 20, end++;
    else if (*end == 'G')
        mul = 1 << 30, end++;
    return *end == '\0' && !__builtin_mul_overflow((int64_t)v, mul, out);
}

static bool parse_bool(bool *out, const char *s)
{
    static const char *const yes[] = {"1", "true", "yes", "on"}, *const no[] = {"0", "false", "no",
                                                                                "off"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(s, yes[i]) == 0)
            return *out = true;
        if (strcmp(s, no[i]) == 0) {
            *out = false;
            return true;
        }
    }
    return false;
}

static pseg_status append_list(pseg_conf *c, pseg_conf_list *l, const char *value, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char **items = pseg_arena_calloc(c->arena, l->n + 1, sizeof *items);

    if (!items)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "too many values");
    if (l->n)
        memcpy(items, l->items, l->n * sizeof *items);
    items[l->n] = value;
    l->items = items;
    l->n++;
out:
    return rc;
}

/* Stores one value; `label` is how the user named the option ("--port", "PSEG_PORT", "file:3"). */
static pseg_status store(pseg_conf *c, size_t i, const char *label, const char *value, int source,
                         pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_conf_option *o = &c->table[i];
    char *at = (char *)c->target + o->offset;
    double x = 0;

    if (source < c->source[i])
        goto out;
    if (o->type == PSEG_CONF_LIST && source != c->source[i])
        *(pseg_conf_list *)(void *)at = (pseg_conf_list){NULL, 0};
    c->source[i] = (unsigned char)source;
    const char *copy = value ? pseg_arena_strdup(c->arena, value) : NULL;
    if (value && !copy)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s: value is too long", label);
    switch (o->type) {
    case PSEG_CONF_STRING:
        *(const char **)(void *)at = copy;
        goto out;
    case PSEG_CONF_LIST:
        if (copy)
            PSEG_TRY(append_list(c, (pseg_conf_list *)(void *)at, copy, err));
        goto out;
    case PSEG_CONF_BOOL:
        if (!parse_bool((bool *)(void *)at, value ? value : "false"))
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s: \"%s\" is not true or false", label, value);
        goto out;
    case PSEG_CONF_INT: {
        int64_t v = 0;
        if (!parse_int(&v, value ? value : "0", o->unit && strcmp(o->unit, "ms") == 0))
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s: \"%s\" is not a whole number", label, value);
        *(int64_t *)(void *)at = v;
        x = (double)v;
        break;
    }
    case PSEG_CONF_REAL: {
        char *end;
        x = strtod(value ? value : "0", &end);
        if ((value && (end == value || *end)) || !isfinite(x))
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s: \"%s\" is not a number", label, value);
        *(double *)(void *)at = x;
        break;
    }
    }
    if (pseg_conf_has_range(o) && !(x >= o->min && x <= o->max))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s: %s is outside %.15g to %.15g%s%s", label, value,
                  o->min, o->max, o->unit ? " " : "", o->unit ? o->unit : "");
out:
    return rc;
}

/* Index of the option called s[0..n), with - and _ alike; -1 if there is none. */
static int find(const pseg_conf *c, const char *s, size_t n)
{
    for (size_t i = 0; i < c->n_options; i++) {
        const char *name = c->table[i].name;
        size_t k = 0;
        while (k < n && name[k] && (name[k] == s[k] || (name[k] == '_' && s[k] == '-')))
            k++;
        if (k == n && name[k] == '\0')
            return (int)i;
    }
    return -1;
}

size_t pseg_conf_slip(const char *word, size_t n, const char *name)
{
    size_t m = strlen(name), row[64];

    if (n == 0 || n >= 64 || m >= 64)
        return SIZE_MAX;
    for (size_t j = 0; j <= m; j++)
        row[j] = j;
    for (size_t i = 1; i <= n; i++) { /* Levenshtein, one row of the table at a time */
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            bool same = word[i - 1] == name[j - 1] || (word[i - 1] == '-' && name[j - 1] == '_');
            size_t change = diagonal + !same,
                   without = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = change < without ? change : without;
        }
    }
    size_t same = 0;
    while (same < n && same < m &&
           (word[same] == name[same] || (word[same] == '-' && name[same] == '_')))
        same++;
    if (same == n && n < m)
        return 1;
    return row[m] <= (n > m ? n : m) / 3 ? row[m] : SIZE_MAX;
}

/* `given` is the whole argument or line for the message, s[0..n) the name in it. */
static pseg_status fail_unknown(const pseg_conf *c, const char *label, const char *given,
                                const char *s, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_conf_option *nearest = NULL;
    size_t best = SIZE_MAX;
    char flag[80];

    for (size_t i = 0; i < c->n_options; i++) {
        size_t d = pseg_conf_slip(s, n, c->table[i].name);
        if (d < best) {
            best = d;
            nearest = &c->table[i];
        }
    }
    if (nearest && *label)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "%sunknown option %s; did you mean %s? (--help lists all)", label, given,
                  nearest->name);
    if (nearest)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "unknown option %s; did you mean %s? (--help lists all)", given,
                  pseg_conf_flag(nearest, flag));
    PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%sunknown option %s (--help lists all)", label, given);
out:
    return rc;
}

static pseg_status parse_flag(pseg_conf *c, int *k, int argc, char **argv, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *a = argv[*k], *value = NULL;
    char label[80];
    int i = -1;

    if (a[1] == '-') {
        const char *eq = strchr(a, '=');
        size_t n = eq ? (size_t)(eq - a) - 2 : strlen(a) - 2;
        i = find(c, a + 2, n);
        if (i < 0 && !eq && strncmp(a, "--no-", 5) == 0) {
            i = find(c, a + 5, n - 3);
            if (i >= 0 && c->table[i].type == PSEG_CONF_BOOL)
                value = "false";
            else
                i = -1;
        }
        if (eq)
            value = eq + 1;
    } else if (a[2] == '\0') {
        for (size_t j = 0; j < c->n_options; j++)
            if (c->table[j].letter == a[1])
                i = (int)j;
    }
    if (i < 0) {
        const char *word = a[1] == '-' ? a + 2 : "";
        PSEG_TRY(fail_unknown(c, "", a, word, strcspn(word, "="), err));
    }
    if (!value && c->table[i].type == PSEG_CONF_BOOL)
        value = "true";
    if (!value) {
        if (*k + 1 >= argc)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s needs a value", a);
        value = argv[++*k];
    }
    PSEG_TRY(store(c, (size_t)i, pseg_conf_flag(&c->table[i], label), value, FROM_FLAG, err));
out:
    return rc;
}

static pseg_status parse_argv(pseg_conf *c, int argc, char **argv, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    bool flags = true;

    for (int k = 1; k < argc; k++)
        if (strcmp(argv[k], "--") == 0)
            break;
        else if (strcmp(argv[k], "--help") == 0 || strcmp(argv[k], "-h") == 0)
            c->question = HELP;
        else if (strcmp(argv[k], "--help-markdown") == 0)
            c->question = MARKDOWN;
        else if (strcmp(argv[k], "--version") == 0)
            c->question = VERSION;
    if (c->question)
        goto out;
    for (int k = 1; k < argc; k++) {
        if (flags && strcmp(argv[k], "--") == 0)
            flags = false;
        else if (flags && argv[k][0] == '-' && argv[k][1])
            PSEG_TRY(parse_flag(c, &k, argc, argv, err));
        else
            c->args[c->n_args++] = argv[k];
    }
out:
    return rc;
}

static pseg_status parse_env(pseg_conf *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char label[80];

    for (size_t i = 0; i < c->n_options; i++) {
        const char *v = getenv(pseg_conf_variable(&c->table[i], label));
        if (v)
            PSEG_TRY(store(c, i, label, v, FROM_ENV, err));
    }
out:
    return rc;
}

static char *trim(char *s)
{
    while (isspace((unsigned char)*s))
        s++;
    char *end = s + strlen(s);
    while (end > s && isspace((unsigned char)end[-1]))
        *--end = '\0';
    return s;
}

static pseg_status parse_file(pseg_conf *c, const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t *text = NULL;
    size_t len;
    char label[160];

    PSEG_TRY(pseg_file_read(&text, &len, path, 1 << 20, err));
    int number = 0;
    for (char *line = (char *)text, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        number++;
        line = trim(line);
        if (*line == '\0' || *line == '#')
            continue;
        snprintf(label, sizeof label, "%s:%d", path, number);
        char *eq = strchr(line, '=');
        if (!eq)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s: expected `name = value`", label);
        *eq = '\0';
        char *name = trim(line);
        int i = find(c, name, strlen(name));
        if (i < 0) {
            snprintf(label, sizeof label, "%s:%d: ", path, number);
            PSEG_TRY(fail_unknown(c, label, name, name, strlen(name), err));
        }
        PSEG_TRY(store(c, (size_t)i, label, trim(eq + 1), FROM_FILE, err));
    }
out:
    pseg_free(text);
    return rc;
}

pseg_status pseg_conf_parse(pseg_conf **out, void *target, const pseg_conf_option *table, int argc,
                            char **argv, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_conf *c = pseg_calloc(1, sizeof *c);

    *out = c;
    if (!c)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the configuration");
    c->table = table;
    c->target = target;
    while (table[c->n_options].name)
        c->n_options++;
    c->arena = pseg_arena_new((size_t)16 << 20);
    c->source = c->arena ? pseg_arena_calloc(c->arena, c->n_options + 1, 1) : NULL;
    c->args = c->source ? pseg_arena_calloc(c->arena, (size_t)argc + 1, sizeof *c->args) : NULL;
    if (!c->args)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the configuration");
    for (size_t i = 0; i < c->n_options; i++)
        PSEG_TRY(store(c, i, table[i].name, table[i].value_default, FROM_DEFAULT, err));
    PSEG_TRY(parse_argv(c, argc, argv, err));
    if (c->question)
        goto out;
    PSEG_TRY(parse_env(c, err));
    int i = find(c, "config", 6);
    const char *path = i < 0 ? NULL : *(const char **)(void *)((char *)target + table[i].offset);
    if (path)
        PSEG_TRY(parse_file(c, path, err));
out:
    return rc;
}

void pseg_conf_free(pseg_conf *c)
{
    if (!c)
        return;
    pseg_arena_free(c->arena);
    pseg_free(c);
}

size_t pseg_conf_n_args(const pseg_conf *c)
{
    return c->n_args;
}

const char *pseg_conf_arg(const pseg_conf *c, size_t i)
{
    return i < c->n_args ? c->args[i] : NULL;
}

bool pseg_conf_is_set(const pseg_conf *c, const char *name)
{
    int i = find(c, name, strlen(name));

    return i >= 0 && c->source[i] != FROM_DEFAULT;
}
