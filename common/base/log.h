/* Logging: one line per event, "2026-01-02T03:04:05.678901Z info component message key=value".
 *
 * A library logs only through the pseg_log it was given; NULL is silent. Levels: error: someone
 * must act; warn: may need an eye; info: life of the process and of jobs; debug: for whoever
 * debugs. */
#ifndef PSEG_BASE_LOG_H
#define PSEG_BASE_LOG_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

typedef enum pseg_log_level {
    PSEG_LOG_ERROR,
    PSEG_LOG_WARN,
    PSEG_LOG_INFO,
    PSEG_LOG_DEBUG
} pseg_log_level;

/* The last lines that were written, for whoever asks what a process that died was doing. */
typedef struct pseg_log_tail {
    pthread_mutex_t mu;
    size_t len;
    char text[2048];
} pseg_log_tail;
#define PSEG_LOG_TAIL_INIT              \
    {                                   \
        .mu = PTHREAD_MUTEX_INITIALIZER \
    }

typedef struct pseg_log {
    pseg_log_level level; /* events above it are dropped */
    int fd;               /* where lines go; each is one write(2), so lines of threads do not mix */
    pseg_log_tail *tail;  /* gets them, too; NULL: none */
} pseg_log;

/* Control characters in the text become '?'; a line is cut at 2,000 bytes. Any thread. */
void pseg_log_event(const pseg_log *log, pseg_log_level level, const char *component,
                    const char *fmt, ...) __attribute__((format(printf, 4, 5)));
/* Copies the whole lines that fit, the latest ones, into out, with a NUL. Any thread. */
void pseg_log_tail_read(pseg_log_tail *tail, char *out, size_t size);
bool pseg_log_level_parse(pseg_log_level *out, const char *name);

#define PSEG_ERROR(log, c, ...) pseg_log_event((log), PSEG_LOG_ERROR, (c), __VA_ARGS__)
#define PSEG_WARN(log, c, ...)  pseg_log_event((log), PSEG_LOG_WARN, (c), __VA_ARGS__)
#define PSEG_INFO(log, c, ...)  pseg_log_event((log), PSEG_LOG_INFO, (c), __VA_ARGS__)
#define PSEG_DBG(log, c, ...)   pseg_log_event((log), PSEG_LOG_DEBUG, (c), __VA_ARGS__)

#endif
