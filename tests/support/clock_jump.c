/* Put before libc in a redis-server by LD_PRELOAD: wall time is ahead by the microseconds that lie
 * in the file PSEG_TEST_CLOCK, eight bytes that the test maps, too, and writes at any moment. The
 * monotonic clock stays as it is, as when an administrator or NTP sets the time. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static _Atomic int64_t *ahead_us;

__attribute__((constructor)) static void open_clock(void)
{
    const char *file = getenv("PSEG_TEST_CLOCK");
    int fd = file ? open(file, O_RDONLY | O_CLOEXEC) : -1;
    void *p = fd >= 0 ? mmap(NULL, sizeof *ahead_us, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;

    if (p == MAP_FAILED)
        abort();
    ahead_us = p;
    close(fd);
}

/* By the system call: dlsym allocates, and the allocator asks for the time. */
static int64_t wall_us(void)
{
    struct timespec t;

    syscall(SYS_clock_gettime, CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000 + (ahead_us ? atomic_load(ahead_us) : 0);
}

int gettimeofday(struct timeval *restrict t, void *restrict zone)
{
    int64_t now = wall_us();

    (void)zone;
    t->tv_sec = now / 1000000;
    t->tv_usec = now % 1000000;
    return 0;
}
