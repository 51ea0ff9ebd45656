/* Any text as the place of a queue: taken or refused in one line, and the password is in none. */
#include "common/queue/queue_parts.h"
#include "common/queue/queue_redis.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define SECRET "SecretSecretSecret"

static void check_error(const pseg_err *e, bool has_secret)
{
    if (e->reason != PSEG_R_CONFIG_INVALID && e->reason != PSEG_R_OUT_OF_MEMORY)
        abort();
    if (!*e->msg || strchr(e->msg, '\n'))
        abort();
    if (has_secret && strstr(e->msg, SECRET))
        abort();
}

static void check_one(pseg_arena *a, const char *url, bool has_secret)
{
    static redis_queue q;
    pseg_err e = PSEG_ERR_INIT;

    memset(&q, 0, sizeof q);
    q.base.arena = a;
    if (queue_parse_url(&q, url, &e) != PSEG_OK) {
        check_error(&e, has_secret);
        return;
    }
    if (!q.socket && (q.n_sentinels ? !*q.master_name : q.n_nodes == 0))
        abort();
    for (size_t i = 0; i < q.n_nodes; i++)
        if (!*q.nodes[i].host || q.nodes[i].port < 1 || q.nodes[i].port > 65535)
            abort();
    for (size_t i = 0; i < q.n_sentinels; i++)
        if (!*q.sentinels[i].host || q.sentinels[i].port < 1 || q.sentinels[i].port > 65535)
            abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const before[] = {"", "redis://user:" SECRET "@",
                                         "redis+sentinel://:" SECRET "@",
                                         "redis+cluster://u:" SECRET "@"};
    char text[1200];
    const char *const *urls;
    pseg_err e = PSEG_ERR_INIT;
    size_t n;

    if (size < 1 || size > 1000)
        return 0;
    snprintf(text, sizeof text, "%s%.*s", before[data[0] % 4], (int)(size - 1),
             (const char *)data + 1);
    /* It is before the first @, and not in what came. */
    bool has_secret = data[0] % 4 != 0 && !strstr(strchr(text, '@'), SECRET);
    pseg_arena *a = pseg_arena_new(1 << 18);
    if (!a)
        return 0;
    if (queue_split_urls(&urls, &n, a, text, &e) != PSEG_OK)
        check_error(&e, has_secret);
    else if (n < 1 || n > PSEG_QUEUE_MAX_PARTS)
        abort();
    else
        for (size_t i = 0; i < n; i++)
            check_one(a, urls[i], has_secret);
    pseg_arena_free(a);
    return 0;
}
