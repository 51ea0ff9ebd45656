#include "common/base/clock.h"

#include <stdio.h>
#include <time.h>

static int64_t now_us(clockid_t id)
{
    struct timespec t;

    clock_gettime(id, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

int64_t pseg_clock_mono_us(void)
{
    return now_us(CLOCK_MONOTONIC);
}

int64_t pseg_clock_mono_ms(void)
{
    return now_us(CLOCK_MONOTONIC) / 1000;
}

int64_t pseg_clock_unix_us(void)
{
    return now_us(CLOCK_REALTIME);
}

void pseg_clock_format_unix_us(char *out, int64_t unix_us)
{
    int64_t us = ((unix_us % 1000000) + 1000000) % 1000000;
    time_t s = (time_t)((unix_us - us) / 1000000);
    struct tm tm;
    char text[64];

    gmtime_r(&s, &tm);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(out, 28, "%.19s.%06dZ", text, (int)us);
}

void pseg_cond_init(pthread_cond_t *cv)
{
    pthread_condattr_t a;

    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    pthread_cond_init(cv, &a);
    pthread_condattr_destroy(&a);
}

bool pseg_cond_wait_until_us(pthread_cond_t *cv, pthread_mutex_t *mu, int64_t mono_us)
{
    struct timespec t = {.tv_sec = (time_t)(mono_us / 1000000),
                         .tv_nsec = (long)(mono_us % 1000000) * 1000};

    return pthread_cond_timedwait(cv, mu, &t) == 0;
}
