/* The host's processors: how many threads drivers of CPU devices start, and where these run.
 *
 * The threads of PoCL are pinned here and not by POCL_AFFINITY=1: that puts thread i on CPU i
 * whatever this process may use, so that two workers of one thread each share CPU 0, and a
 * container without CPU 0 is ended by PoCL. Not pinned at all, threads that take all CPUs share one
 * at times. So each gets a CPU of its own exactly where they are as many as the CPUs allowed, and
 * with fewer the kernel places them, which knows what others do. */
#include "worker/cl/internal.h"

#include "common/base/alloc.h"
#include "common/base/conf.h"
#include "worker/cl/quota.h"

#include <dirent.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define MAX_CPUS 8192
/* Threads inherit it from the one that starts them: so it tells those of drivers from others. */
#define DRIVER_THREAD "pseg-cl"
#define NAME_BYTES    16 /* of the kernel's names of threads */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned wanted_threads; /* 0: automatic */
static bool is_started;

typedef struct cpus {
    cpu_set_t *set;
    size_t bytes;
    int n;
} cpus;

static void cpus_free(cpus *c)
{
    if (c->set)
        CPU_FREE(c->set);
    c->set = NULL;
}

/* CPUs that the calling thread may use, and threads that it starts. n = 0: not known. */
static cpus cpus_allowed(void)
{
    cpus c = {CPU_ALLOC(MAX_CPUS), CPU_ALLOC_SIZE(MAX_CPUS), 0};

    if (c.set && sched_getaffinity(0, c.bytes, c.set) == 0)
        c.n = CPU_COUNT_S(c.bytes, c.set);
    return c;
}

static unsigned automatic_threads(void)
{
    cpus c = cpus_allowed();
    double n = c.n > 0 ? c.n : (double)sysconf(_SC_NPROCESSORS_ONLN);

    cpus_free(&c);
    /* A quota of 1.5 CPUs: two threads do more in it than one. */
    n = fmin(n, ceil(pseg_cpu_quota("")));
    return n >= 1 ? (unsigned)n : 1;
}

static void set_number(const char *name, unsigned n)
{
    char text[16];

    snprintf(text, sizeof text, "%u", n);
    setenv(name, text, 1);
}

/* PoCL 3.1 knows the first name alone, and all later ones look at it first; so it is not set where
 * the user gave one of the others. The last is Intel's. */
static void set_threads(void)
{
    static const char *const pocl[] = {"POCL_MAX_PTHREAD_COUNT", "POCL_CPU_MAX_CU_COUNT",
                                       "POCL_MAX_COMPUTE_UNITS"};
    static const char intel[] = "CL_CONFIG_CPU_TBB_NUM_WORKERS";
    unsigned n = wanted_threads ? wanted_threads : automatic_threads();
    bool is_set = false;

    for (size_t i = 0; i < sizeof pocl / sizeof *pocl; i++)
        is_set = is_set || pseg_conf_env(pocl[i]);
    if (wanted_threads || !is_set)
        set_number(pocl[0], n);
    if (wanted_threads || !(pseg_conf_env(intel) || pseg_conf_env("DPCPP_CPU_NUM_CUS")))
        set_number(intel, n);
}

/* PoCL asks hwloc what the machine is, and aborts the process when hwloc cannot tell, as in a
 * container or chroot without /sys. There it is told what the kernel says otherwise. */
static void set_topology(void)
{
    char machine[96];
    long long bytes = (long long)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);

    if (access("/sys/devices/system/cpu", F_OK) == 0)
        return;
    snprintf(machine, sizeof machine, "NUMANode:1(memory=%lld) pu:%ld", bytes,
             sysconf(_SC_NPROCESSORS_ONLN));
    setenv("HWLOC_SYNTHETIC", machine, 0);
}

static bool is_driver_thread(const char *tid)
{
    char path[300], name[NAME_BYTES + 1] = "";

    snprintf(path, sizeof path, "/proc/self/task/%s/comm", tid);
    FILE *f = fopen(path, "re");
    bool is_one = f && fgets(name, sizeof name, f) && strcmp(name, DRIVER_THREAD "\n") == 0;
    if (f)
        fclose(f);
    return is_one;
}

/* Threads of drivers into tids[0..cap); how many there are. */
static int driver_threads(pid_t *tids, int cap)
{
    DIR *d = opendir("/proc/self/task");
    struct dirent *e;
    int n = 0;

    while (d && n < cap && (e = readdir(d))) {
        long tid = strtol(e->d_name, NULL, 10);
        if (tid > 0 && is_driver_thread(e->d_name))
            tids[n++] = (pid_t)tid;
    }
    if (d)
        closedir(d);
    return n;
}

static void pin_driver_threads(void)
{
    cpus c = cpus_allowed();
    pid_t *tids = c.n > 0 ? pseg_calloc((size_t)c.n + 1, sizeof *tids) : NULL;
    cpu_set_t *one = CPU_ALLOC(MAX_CPUS);
    int cpu = -1;

    if (tids && one && driver_threads(tids, c.n + 1) == c.n) {
        for (int i = 0; i < c.n; i++) {
            do
                cpu++;
            while (!CPU_ISSET_S(cpu, c.bytes, c.set));
            CPU_ZERO_S(c.bytes, one);
            CPU_SET_S(cpu, c.bytes, one);
            /* One that cannot be pinned runs all the same. */
            (void)sched_setaffinity(tids[i], c.bytes, one);
        }
    }
    if (one)
        CPU_FREE(one);
    pseg_free(tids);
    cpus_free(&c);
}

/* Drivers read the environment and start their threads when they are first asked for devices. */
static void wake_drivers(void)
{
    cl_platform_id platforms[PSEG_CL_MAX_PLATFORMS];
    cl_uint n = 0, n_devices;

    if (clGetPlatformIDs(PSEG_CL_MAX_PLATFORMS, platforms, &n) != CL_SUCCESS)
        return; /* who asks next tells why */
    for (cl_uint p = 0; p < n && p < PSEG_CL_MAX_PLATFORMS; p++)
        clGetDeviceIDs(platforms[p], CL_DEVICE_TYPE_ALL, 0, NULL, &n_devices);
}

void pseg_cl_start_drivers(void)
{
    char name[NAME_BYTES + 1] = "";

    pthread_mutex_lock(&lock);
    if (!is_started) {
        is_started = true;
        set_topology();
        set_threads();
        prctl(PR_GET_NAME, name);
        prctl(PR_SET_NAME, DRIVER_THREAD);
        wake_drivers();
        prctl(PR_SET_NAME, name);
        if (!pseg_conf_env("POCL_AFFINITY"))
            pin_driver_threads();
    }
    pthread_mutex_unlock(&lock);
}

pseg_status pseg_device_set_threads(unsigned n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    pthread_mutex_lock(&lock);
    if (is_started && n != wanted_threads)
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "%u threads asked for when the drivers run already", n);
    wanted_threads = n;
out:
    pthread_mutex_unlock(&lock);
    return rc;
}
