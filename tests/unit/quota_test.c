/* The quota of control groups, from trees of files such as containers show. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/file.h"
#include "worker/cl/quota.h"

#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_FILES = 8 };

typedef struct tree {
    const char *name;
    struct {
        const char *path, *text;
    } files[MAX_FILES];
    double want;
} tree;

#define V2_MOUNT "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
#define V1_MOUNT                                                                 \
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"                 \
    "33 31 0:30 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n" \
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"

static const tree trees[] = {
    {"nothing to read", {{0}}, INFINITY},
    {"v2, no limit",
     {{"proc/self/cgroup", "0::/user.slice\n"},
      {"proc/self/mountinfo", V2_MOUNT},
      {"sys/fs/cgroup/user.slice/cpu.max", "max 100000\n"}},
     INFINITY},
    {"v2, a container that sees itself as the top",
     {{"proc/self/cgroup", "0::/\n"},
      {"proc/self/mountinfo", V2_MOUNT},
      {"sys/fs/cgroup/cpu.max", "150000 100000\n"}},
     1.5},
    {"v2, the least of the group and those above it",
     {{"proc/self/cgroup", "0::/kubepods/pod1/c1\n"},
      {"proc/self/mountinfo", V2_MOUNT},
      {"sys/fs/cgroup/kubepods/cpu.max", "6400000 100000\n"},
      {"sys/fs/cgroup/kubepods/pod1/cpu.max", "100000 50000\n"},
      {"sys/fs/cgroup/kubepods/pod1/c1/cpu.max", "300000 100000\n"}},
     2},
    {"v2, a group of another namespace: the top is looked at",
     {{"proc/self/cgroup", "0::/../../system.slice\n"},
      {"proc/self/mountinfo", V2_MOUNT},
      {"sys/fs/cgroup/cpu.max", "50000 100000\n"}},
     0.5},
    {"v2, mounted from the container's group",
     {{"proc/self/cgroup", "0::/docker/ab/inner\n"},
      {"proc/self/mountinfo", "9 8 0:3 /docker/ab /sys/fs/cgroup ro - cgroup2 cgroup rw\n"},
      {"sys/fs/cgroup/inner/cpu.max", "400000 100000\n"},
      {"sys/fs/cgroup/cpu.max", "300000 100000\n"}},
     3},
    {"a name that only begins as the mount's is not below it",
     {{"proc/self/cgroup", "0::/docker/abc\n"},
      {"proc/self/mountinfo", "9 8 0:3 /docker/ab /sys/fs/cgroup ro - cgroup2 cgroup rw\n"},
      {"sys/fs/cgroup/c/cpu.max", "100000 100000\n"},
      {"sys/fs/cgroup/cpu.max", "300000 100000\n"}},
     3},
    {"v1, in a group",
     {{"proc/self/cgroup", "5:cpuset:/\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/\n"},
      {"proc/self/mountinfo", V1_MOUNT},
      {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"},
      {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"},
      {"sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us", "250000\n"},
      {"sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us", "100000\n"}},
     2.5},
    {"v1, no limit",
     {{"proc/self/cgroup", "4:cpuacct,cpu:/\n"},
      {"proc/self/mountinfo", V1_MOUNT},
      {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"},
      {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"}},
     INFINITY},
    {"both: v1 has the controller, v2 is there without it",
     {{"proc/self/cgroup", "4:cpu:/a\n0::/a\n"},
      {"proc/self/mountinfo",
       V1_MOUNT "38 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n"},
      {"sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "70000\n"},
      {"sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n"}},
     0.7},
    {"cpuset is not cpu",
     {{"proc/self/cgroup", "4:cpuset:/a\n"},
      {"proc/self/mountinfo", V1_MOUNT},
      {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "70000\n"},
      {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"}},
     INFINITY},
    {"texts that are none",
     {{"proc/self/cgroup", "x\n::\n0::/a\n\n"},
      {"proc/self/mountinfo", " - \n1 2 3\n" V2_MOUNT},
      {"sys/fs/cgroup/a/cpu.max", "many\n"},
      {"sys/fs/cgroup/cpu.max", "100000\n"}},
     INFINITY},
};

static int remove_one(const char *path, const struct stat *s, int type, struct FTW *f)
{
    (void)s;
    (void)type;
    (void)f;
    return remove(path);
}

static void write_file(const char *root, const char *path, const char *text)
{
    char full[256];

    snprintf(full, sizeof full, "%s/%s", root, path);
    char *slash = strrchr(full, '/');
    *slash = '\0';
    assert_int_equal(pseg_dir_make(full, NULL), PSEG_OK);
    *slash = '/';
    assert_int_equal(pseg_file_write(full, text, strlen(text), NULL), PSEG_OK);
}

static void the_least_of_all_groups_counts(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof trees / sizeof *trees; i++) {
        char root[] = "/tmp/pseg-quota-test-XXXXXX";
        assert_non_null(mkdtemp(root));
        for (size_t k = 0; k < MAX_FILES && trees[i].files[k].path; k++)
            write_file(root, trees[i].files[k].path, trees[i].files[k].text);
        double got = pseg_cpu_quota(root);
        nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
        if (!(got == trees[i].want || fabs(got - trees[i].want) < 1e-9))
            fail_msg("%s: %g instead of %g", trees[i].name, got, trees[i].want);
    }
}

static void this_machine_has_some_time_for_us(void **state)
{
    (void)state;
    assert_true(pseg_cpu_quota("") > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_least_of_all_groups_counts),
        cmocka_unit_test(this_machine_has_some_time_for_us),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
