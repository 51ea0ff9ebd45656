/* Where Redis is: redis://, unix:, redis+sentinel:// for a master that Sentinels name, and
 * redis+cluster:// for the node that has the slot. */
#include "common/queue/queue_redis.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SENTINEL_PORT = 26379, REDIS_PORT = 6379 };

static bool number_of(int *out, const char *text, long min, long max)
{
    char *end;

    errno = 0;
    long x = strtol(text, &end, 10);
    *out = (int)x;
    return !errno && *text >= '0' && *text <= '9' && !*end && x >= min && x <= max;
}

/* %41 -> A, in place; false if it is not well formed. A password may hold any byte but NUL. */
static bool unescape(char *s)
{
    char *to = s;

    for (; *s; s++, to++) {
        unsigned x;
        if (*s != '%') {
            *to = *s;
        } else if (strspn(s + 1, "0123456789abcdefABCDEF") >= 2 && sscanf(s + 1, "%2x", &x) == 1 &&
                   x) {
            *to = (char)x;
            s += 2;
        } else {
            return false;
        }
    }
    *to = '\0';
    return true;
}

/* "host", "host:port" or "[v6]:port", cut up in place. */
static pseg_status parse_address(redis_address *out, char *text, int default_port, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *colon = strrchr(text, ':');

    out->port = default_port;
    if (colon && !strchr(colon, ']')) {
        *colon = '\0';
        if (!number_of(&out->port, colon + 1, 1, 65535))
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "redis port \"%s\" is not a number of 1 to 65535",
                      colon + 1);
    }
    size_t n = strlen(text);
    if (n > 2 && *text == '[' && text[n - 1] == ']') { /* IPv6 */
        text[n - 1] = '\0';
        text++;
    }
    out->host = *text ? text : "127.0.0.1";
out:
    return rc;
}

/* Takes "[user]:password@" off *rest. No message quotes the part that may hold a password. */
static pseg_status take_credentials(redis_queue *q, char **rest, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *at = strrchr(*rest, '@');

    if (!at)
        goto out;
    *at = '\0';
    char *colon = strchr(*rest, ':');
    if (colon)
        *colon = '\0';
    q->user = colon ? *rest : "";
    q->password = colon ? colon + 1 : *rest;
    if ((colon && !unescape((char *)(uintptr_t)q->user)) ||
        !unescape((char *)(uintptr_t)q->password))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "redis url: a %% in the user or password must be written %%25");
    *rest = at + 1;
out:
    return rc;
}

static pseg_status take_db(redis_queue *q, char *rest, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *slash = strchr(rest, '/');

    if (slash) {
        *slash = '\0';
        if (slash[1] && !number_of(&q->db, slash + 1, 0, 1023))
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "redis db \"%s\" is not a number of 0 to 1023",
                      slash + 1);
    }
out:
    return rc;
}

/* host:port,host:port; what: their name. */
static pseg_status parse_addresses(redis_address *out, size_t *n, char *list, int default_port,
                                   const char *what, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (char *next = list; next;) {
        char *text = next;
        next = strchr(text, ',');
        if (next)
            *next++ = '\0';
        if (*n == MAX_NODES)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "redis url names more than %d %s", MAX_NODES, what);
        PSEG_TRY(parse_address(&out[*n], text, default_port, err));
        ++*n;
    }
out:
    return rc;
}

/* host:port,host:port/MASTER[/db] */
static pseg_status parse_sentinels(redis_queue *q, char *rest, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *slash = strchr(rest, '/');

    if (!slash || !slash[1] || slash[1] == '/')
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "redis url names no master behind its sentinels: write "
                  "redis+sentinel://HOST:%d,HOST:%d/MASTER",
                  SENTINEL_PORT, SENTINEL_PORT);
    *slash = '\0';
    q->master_name = slash + 1;
    PSEG_TRY(take_db(q, slash + 1, err));
    PSEG_TRY(parse_addresses(q->sentinels, &q->n_sentinels, rest, SENTINEL_PORT, "sentinels", err));
out:
    return rc;
}

/* What a URL begins with, and what follows. */
static bool begins_with(const char **rest, const char *url, const char *scheme)
{
    size_t n = strlen(scheme);

    *rest = url + n;
    return strncmp(url, scheme, n) == 0;
}

pseg_status queue_parse_url(redis_queue *q, const char *url, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *tail;

    if (strncmp(url, "unix:", 5) == 0 && url[5]) {
        q->socket = url + 5;
        goto out;
    }
    bool has_sentinels = begins_with(&tail, url, "redis+sentinel://");
    q->is_cluster = !has_sentinels && begins_with(&tail, url, "redis+cluster://");
    if (!has_sentinels && !q->is_cluster && !begins_with(&tail, url, "redis://"))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "redis url \"%s\" must be redis://[[user]:password@]host[:port][/db], "
                  "redis+sentinel://[[user]:password@]host[:port],.../MASTER[/db], "
                  "redis+cluster://[[user]:password@]host[:port],.../PARTS or unix:/path",
                  strchr(url, '@') ? "..." : url);
    char *rest = pseg_arena_strdup(q->base.arena, tail);
    if (!rest)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "redis url is too long");
    PSEG_TRY(take_credentials(q, &rest, err));
    if (has_sentinels) {
        PSEG_TRY(parse_sentinels(q, rest, err));
    } else if (q->is_cluster) {
        *strrchr(rest, '/') = '\0'; /* it stands before the number of parts, which is known */
        PSEG_TRY(parse_addresses(q->nodes, &q->n_nodes, rest, REDIS_PORT, "nodes", err));
    } else {
        PSEG_TRY(take_db(q, rest, err));
        PSEG_TRY(parse_address(&q->nodes[0], rest, REDIS_PORT, err));
        q->n_nodes = 1;
    }
out:
    return rc;
}
