/* What every process tells of itself, from /proc (proc(5)). */
#include "common/base/version.h"
#include "common/metrics/metrics.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* One process has one set of these; a second registry would count the same. */
static struct {
    pseg_series *cpu, *resident, *open_fds, *max_fds;
} self;

static double resident_bytes(void)
{
    char text[128];
    long pages = 0, resident = 0;
    int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);

    if (fd >= 0)
        close(fd);
    if (n <= 0)
        return 0;
    text[n] = '\0';
    return sscanf(text, "%ld %ld", &pages, &resident) == 2
               ? (double)resident * (double)sysconf(_SC_PAGESIZE)
               : 0;
}

static double open_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    double n = 0;

    if (!d)
        return 0;
    while (readdir(d))
        n++;
    closedir(d);
    return n - 3; /* ".", "..", and the one that reads them */
}

static void measure(void *ud)
{
    struct rusage u;
    struct rlimit l;

    (void)ud;
    if (getrusage(RUSAGE_SELF, &u) == 0)
        pseg_series_set(self.cpu, (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                                      (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6);
    if (getrlimit(RLIMIT_NOFILE, &l) == 0)
        pseg_series_set(self.max_fds, (double)l.rlim_cur);
    pseg_series_set(self.resident, resident_bytes());
    pseg_series_set(self.open_fds, open_fds());
}

/* Seconds since 1970 at which the process began: field 22 of its stat counts ticks since boot. */
static double start_time(void)
{
    char text[1024];
    unsigned long long ticks = 0;
    struct timespec now, up;
    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);

    if (fd >= 0)
        close(fd);
    clock_gettime(CLOCK_REALTIME, &now);
    if (n <= 0 || clock_gettime(CLOCK_BOOTTIME, &up) != 0)
        return (double)now.tv_sec;
    text[n] = '\0';
    const char *at = strrchr(text, ')'); /* the program's name may hold anything */
    for (int field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    if (!at || sscanf(at, "%llu", &ticks) != 1)
        return (double)now.tv_sec;
    return (double)(now.tv_sec - up.tv_sec) + (double)ticks / (double)sysconf(_SC_CLK_TCK);
}

static pseg_series *only(pseg_metrics *m, const pseg_metric_desc *d)
{
    return pseg_metric_with(pseg_metrics_add(m, d), NULL);
}

void pseg_metrics_add_process(pseg_metrics *m, const char *program)
{
    static const pseg_metric_desc
        build = {"pseg_build_info", "Always 1.", PSEG_METRIC_GAUGE, {"program", "version"}},
        start = {"process_start_time_seconds", "When the process began, seconds since 1970.",
                 PSEG_METRIC_GAUGE},
        cpu = {"process_cpu_seconds_total", "User and system time of the process.",
               PSEG_METRIC_COUNTER},
        resident = {"process_resident_memory_bytes", "Memory that is resident.", PSEG_METRIC_GAUGE},
        fds = {"process_open_fds", "Open file descriptors.", PSEG_METRIC_GAUGE},
        max = {"process_max_fds", "The limit on open file descriptors.", PSEG_METRIC_GAUGE};

    pseg_series_set(
        pseg_metric_with(pseg_metrics_add(m, &build), (const char *[]){program, PSEG_VERSION}), 1);
    pseg_series_set(only(m, &start), start_time());
    self.cpu = only(m, &cpu);
    self.resident = only(m, &resident);
    self.open_fds = only(m, &fds);
    self.max_fds = only(m, &max);
    pseg_metrics_before(m, measure, NULL);
}
