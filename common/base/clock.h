/* Time. Deadlines and durations use the monotonic clock; only what is stored or shown uses the
 * wall clock. */
#ifndef PSEG_BASE_CLOCK_H
#define PSEG_BASE_CLOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

int64_t pseg_clock_mono_us(void);
int64_t pseg_clock_mono_ms(void);
int64_t pseg_clock_unix_us(void);

/* RFC 3339 in UTC with microseconds, "2026-01-02T03:04:05.678901Z"; out holds >= 28 bytes. */
void pseg_clock_format_unix_us(char *out, int64_t unix_us);

/* A condition variable that waits on the monotonic clock; destroy with pthread_cond_destroy. */
void pseg_cond_init(pthread_cond_t *cv);
/* With mu held: waits until signalled or until mono_us is past; false on time-out. */
bool pseg_cond_wait_until_us(pthread_cond_t *cv, pthread_mutex_t *mu, int64_t mono_us);

#endif
