#include "worker/data/json_scan.h"

#include <string.h>

enum { DROP_EVERY = 16 << 20, MAX_KEY = 64 };

typedef struct scan {
    const char *begin, *at, *end, *dropped;
} scan;

static void skip_space(scan *s)
{
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\n' || *s->at == '\r' || *s->at == '\t'))
        s->at++;
}

/* false: the text ends before the string does. */
static bool skip_string(scan *s)
{
    for (s->at++; s->at < s->end; s->at++) {
        if (*s->at == '\\')
            s->at++;
        else if (*s->at == '"') {
            s->at++;
            return true;
        }
    }
    return false;
}

/* Any value; what it is made of is looked at when it is parsed. */
static bool skip_value(scan *s)
{
    size_t depth = 0;

    skip_space(s);
    do {
        if (s->at >= s->end)
            return false;
        char c = *s->at;
        if (c == '"') {
            if (!skip_string(s))
                return false;
            continue;
        }
        if (c == '{' || c == '[')
            depth++;
        else if (c == '}' || c == ']')
            depth--;
        else if (depth == 0) { /* a number or a word: to what ends it */
            const char *from = s->at;
            while (s->at < s->end && !strchr(",]} \n\r\t", *s->at))
                s->at++;
            return s->at > from;
        }
        s->at++;
    } while (depth);
    return true;
}

static bool take(scan *s, char c)
{
    skip_space(s);
    if (s->at >= s->end || *s->at != c)
        return false;
    s->at++;
    return true;
}

static void drop(scan *s)
{
    if (s->at - s->dropped > DROP_EVERY) {
        pseg_map_drop(s->dropped, (size_t)(s->at - s->dropped));
        s->dropped = s->at;
    }
}

static bool is_one_of(const char *key, const char *const *keys)
{
    for (; *keys; keys++)
        if (strcmp(key, *keys) == 0)
            return true;
    return false;
}

static pseg_status broken(const scan *s, const char *name, pseg_err *err)
{
    return pseg_err_set(err, PSEG_R_DATA_CORRUPT, 0, PSEG_HERE,
                        "%s is no whole JSON object: something is wrong by byte %zu", name,
                        (size_t)(s->at - s->begin));
}

/* One value, or each element of a list. fn NULL: nobody asks. */
static pseg_status scan_member(scan *s, const char *key, const char *name, json_scan_fn *fn,
                               void *ud, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    bool is_list;

    skip_space(s);
    is_list = fn && take(s, '[');
    if (is_list && take(s, ']'))
        return rc;
    do {
        skip_space(s);
        const char *from = s->at;
        if (!skip_value(s))
            return broken(s, name, err);
        if (fn)
            PSEG_TRY(fn(ud, key, from, (size_t)(s->at - from), (uint64_t)(from - s->begin), err));
        drop(s);
    } while (is_list && take(s, ','));
    if (is_list && !take(s, ']'))
        return broken(s, name, err);
out:
    return rc;
}

pseg_status json_scan(const pseg_map *map, const char *name, const char *const *keys,
                      json_scan_fn *fn, void *ud, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *data = map->size ? (const char *)map->data : ""; /* an empty map has none */
    scan s = {data, data, data + map->size, data};
    char key[MAX_KEY];

    if (!map->size || !take(&s, '{'))
        return broken(&s, name, err);
    if (take(&s, '}'))
        return rc;
    do {
        skip_space(&s);
        const char *from = s.at + 1;
        if (s.at >= s.end || *s.at != '"' || !skip_string(&s))
            return broken(&s, name, err);
        size_t n = (size_t)(s.at - from) - 1;
        n = n < MAX_KEY - 1 ? n : MAX_KEY - 1;
        memcpy(key, from, n);
        key[n] = 0;
        if (!take(&s, ':'))
            return broken(&s, name, err);
        PSEG_TRY(scan_member(&s, key, name, is_one_of(key, keys) ? fn : NULL, ud, err));
    } while (take(&s, ','));
    if (!take(&s, '}'))
        return broken(&s, name, err);
out:
    return rc;
}
