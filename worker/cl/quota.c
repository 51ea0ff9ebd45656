#include "worker/cl/quota.h"

#include "common/base/alloc.h"
#include "common/base/file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE (1u << 20)
#define MAX_PATH 4096u

/* Where a group's files lie: mount + group, and the same with less and less of group above it. */
typedef struct hierarchy {
    bool is_v2;
    char mount[MAX_PATH], group[MAX_PATH];
} hierarchy;

/* Caller frees with pseg_free; NULL: there is no such file, or it is not to be read. */
static char *read_text(const char *path)
{
    uint8_t *data = NULL;
    size_t n = 0;

    return pseg_file_read(&data, &n, path, MAX_FILE, NULL) == PSEG_OK ? (char *)data : NULL;
}

/* Is `word` one of those between commas? */
static bool has_word(const char *list, const char *word)
{
    size_t n = strlen(word);

    for (const char *p = list; p && *p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
        if (strncmp(p, word, n) == 0 && (p[n] == ',' || p[n] == '\0'))
            return true;
    return false;
}

/* Two numbers of microseconds: time in each period. */
static double ratio(double quota_us, double period_us)
{
    return quota_us > 0 && period_us > 0 ? quota_us / period_us : INFINITY;
}

static double number_in(const char *folder, const char *name)
{
    char path[3 * MAX_PATH];

    snprintf(path, sizeof path, "%s/%s", folder, name);
    char *text = read_text(path);
    double v = text ? strtod(text, NULL) : 0;
    pseg_free(text);
    return v;
}

/* v2: "200000 100000" or "max 100000". v1: 200000 or -1, and the period in a file of its own. */
static double limit_in(const char *folder, bool is_v2)
{
    char path[3 * MAX_PATH];
    double quota = 0, period = 0;

    if (!is_v2)
        return ratio(number_in(folder, "cpu.cfs_quota_us"), number_in(folder, "cpu.cfs_period_us"));
    snprintf(path, sizeof path, "%s/cpu.max", folder);
    char *text = read_text(path);
    if (text && strncmp(text, "max", 3) != 0) {
        char *end = NULL;
        quota = strtod(text, &end);
        period = strtod(end, NULL);
    }
    pseg_free(text);
    return ratio(quota, period);
}

/* The path of this process' group in /proc/self/cgroup, whose lines are "ID:CONTROLLERS:PATH". */
static bool find_group(char out[MAX_PATH], char *cgroups, bool is_v2)
{
    char *rest = cgroups, *line;

    while ((line = strsep(&rest, "\n"))) {
        char *id = strsep(&line, ":"), *controllers = strsep(&line, ":");
        if (!line || strlen(line) >= MAX_PATH)
            continue;
        if (is_v2 ? strcmp(id, "0") == 0 && !*controllers : has_word(controllers, "cpu")) {
            snprintf(out, MAX_PATH, "%s", line);
            return true;
        }
    }
    return false;
}

/* The mount of the hierarchy in /proc/self/mountinfo, whose lines are "ID PARENT DEVICE ROOT MOUNT
 * OPTIONS... - TYPE SOURCE OPTIONS" (man 5 proc). */
static bool find_mount(char root[MAX_PATH], char mount[MAX_PATH], char *mounts, bool is_v2)
{
    char *rest = mounts, *line;

    while ((line = strsep(&rest, "\n"))) {
        char *tail = strstr(line, " - ");
        char type[32], options[1024] = "";
        _Static_assert(MAX_PATH == 4096, "the widths below");
        if (!tail || sscanf(tail, " - %31s %*s %1023s", type, options) < 1 ||
            strcmp(type, is_v2 ? "cgroup2" : "cgroup") != 0 ||
            (!is_v2 && !has_word(options, "cpu")))
            continue;
        if (sscanf(line, "%*s %*s %*s %4095s %4095s", root, mount) == 2)
            return true;
    }
    return false;
}

static bool find_hierarchy(hierarchy *h, const char *root)
{
    char path[2 * MAX_PATH], top[MAX_PATH];

    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    char *cgroups = read_text(path);
    snprintf(path, sizeof path, "%s/proc/self/mountinfo", root);
    char *mounts = read_text(path);
    bool found = cgroups && mounts && find_group(h->group, cgroups, h->is_v2) &&
                 find_mount(top, h->mount, mounts, h->is_v2);
    if (found) {
        /* A container may see its group mounted as the top (then both name it), or have the path of
         * another namespace, which means nothing here: the top is the best that can be looked at.
         */
        size_t n = strcmp(top, "/") == 0 ? 0 : strlen(top);
        bool is_below = strncmp(h->group, top, n) == 0 && (h->group[n] == '/' || !h->group[n]) &&
                        !strstr(h->group, "/..");
        size_t len = is_below ? strlen(h->group + n) : 0;
        memmove(h->group, h->group + n, len);
        while (len > 0 && h->group[len - 1] == '/')
            len--;
        h->group[len] = '\0';
    }
    pseg_free(cgroups);
    pseg_free(mounts);
    return found;
}

double pseg_cpu_quota(const char *root)
{
    double least = INFINITY;

    for (int v2 = 0; v2 < 2; v2++) {
        hierarchy h = {.is_v2 = v2};

        if (!find_hierarchy(&h, root))
            continue;
        for (char *cut = h.group; cut;) {
            char folder[3 * MAX_PATH];
            snprintf(folder, sizeof folder, "%s%s%s", root, h.mount, h.group);
            least = fmin(least, limit_in(folder, h.is_v2));
            cut = strrchr(h.group, '/');
            if (cut)
                *cut = '\0';
        }
    }
    return least;
}
