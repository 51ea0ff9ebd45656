#include "common/base/log.h"
#include "common/base/clock.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char *const names[] = {"error", "warn", "info", "debug"};

/* len <= sizeof text. Whole lines go to make room. */
static void into_tail(pseg_log_tail *t, const char *line, size_t len)
{
    pthread_mutex_lock(&t->mu);
    while (t->len + len > sizeof t->text) {
        const char *nl = memchr(t->text, '\n', t->len);
        size_t gone = nl ? (size_t)(nl + 1 - t->text) : t->len;
        t->len -= gone;
        memmove(t->text, t->text + gone, t->len);
    }
    memcpy(t->text + t->len, line, len);
    t->len += len;
    pthread_mutex_unlock(&t->mu);
}

void pseg_log_tail_read(pseg_log_tail *t, char *out, size_t size)
{
    pthread_mutex_lock(&t->mu);
    const char *from = t->text, *end = t->text + t->len;
    while ((size_t)(end - from) >= size) {
        const char *nl = memchr(from, '\n', (size_t)(end - from));
        from = nl ? nl + 1 : end;
    }
    memcpy(out, from, (size_t)(end - from));
    out[end - from] = '\0';
    pthread_mutex_unlock(&t->mu);
}

void pseg_log_event(const pseg_log *log, pseg_log_level level, const char *component,
                    const char *fmt, ...)
{
    char line[2002], time[32];
    va_list ap;

    if (!log || level > log->level)
        return;
    pseg_clock_format_unix_us(time, pseg_clock_unix_us());
    int n = snprintf(line, sizeof line - 1, "%s %-5s %s ", time, names[level], component);
    if (n < 0 || n > (int)sizeof line - 2)
        return;
    va_start(ap, fmt);
    int m = vsnprintf(line + n, sizeof line - 1 - (size_t)n, fmt, ap);
    va_end(ap);
    if (m < 0)
        return;
    size_t len = (size_t)n + (size_t)m;
    if (len > sizeof line - 2)
        len = sizeof line - 2;
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7F)
            line[i] = '?';
    line[len++] = '\n';
    if (log->tail)
        into_tail(log->tail, line, len);
    for (size_t done = 0; done < len;) {
        ssize_t w = write(log->fd, line + done, len - done);
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0)
            return;
        done += (size_t)w;
    }
}

bool pseg_log_level_parse(pseg_log_level *out, const char *name)
{
    for (int i = 0; i <= PSEG_LOG_DEBUG; i++)
        if (strcmp(names[i], name) == 0) {
            *out = (pseg_log_level)i;
            return true;
        }
    return false;
}
