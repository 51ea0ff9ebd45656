#include "worker/decode/jail.h"
#include "common/base/alloc.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <seccomp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IS_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define IS_SANITIZED 1
#endif
#endif
#ifndef IS_SANITIZED
#define IS_SANITIZED 0
#endif

struct pseg_jail {
    struct sock_fprog program;
};

/* What decoders and the C library do while they compute. Everything else fails with EPERM, which
 * libraries that merely look around (locale, /sys, affinity) take in their stride. */
static const int allowed[] = {
    SCMP_SYS(read),
    SCMP_SYS(write),
    SCMP_SYS(recvfrom),
    SCMP_SYS(sendto),
    SCMP_SYS(close),
    SCMP_SYS(lseek),
    SCMP_SYS(fstat),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    SCMP_SYS(brk),
    SCMP_SYS(munmap),
    SCMP_SYS(mremap),
    SCMP_SYS(madvise),
    SCMP_SYS(futex),
    SCMP_SYS(sched_yield),
    SCMP_SYS(sched_getaffinity),
    SCMP_SYS(sysinfo),
    SCMP_SYS(set_robust_list),
    SCMP_SYS(set_tid_address),
    SCMP_SYS(rseq),
    SCMP_SYS(membarrier),
    SCMP_SYS(getpid),
    SCMP_SYS(gettid),
    SCMP_SYS(getrusage),
    SCMP_SYS(getrandom),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(clock_getres),
    SCMP_SYS(clock_nanosleep),
    SCMP_SYS(nanosleep),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(sigaltstack),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
};

/* What no decoder does by mistake: the process ends at once, and the log tells why. */
static const int deadly[] = {
    SCMP_SYS(execve),      SCMP_SYS(execveat),
    SCMP_SYS(socket),      SCMP_SYS(connect),
    SCMP_SYS(bind),        SCMP_SYS(ptrace),
    SCMP_SYS(kill),        SCMP_SYS(process_vm_readv),
    SCMP_SYS(unshare),     SCMP_SYS(process_vm_writev),
    SCMP_SYS(setns),       SCMP_SYS(mount),
    SCMP_SYS(bpf),         SCMP_SYS(perf_event_open),
    SCMP_SYS(userfaultfd), SCMP_SYS(io_uring_setup),
    SCMP_SYS(keyctl),
};

static int add_rules(scmp_filter_ctx f)
{
    int bad = 0;

    for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++)
        bad |= seccomp_rule_add(f, SCMP_ACT_ALLOW, allowed[i], 0);
    for (size_t i = 0; i < sizeof deadly / sizeof *deadly; i++)
        bad |= seccomp_rule_add(f, SCMP_ACT_KILL_PROCESS, deadly[i], 0);
    /* Memory, but none that is executable. */
    bad |= seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
                            SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    bad |= seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
                            SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    /* Threads, but no processes. The flags of clone3 lie in memory, where no filter sees them: the
     * C library goes back to clone when it is not there. */
    bad |= seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
                            SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD));
    bad |= seccomp_rule_add(f, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    /* Limits may be read. */
    bad |= seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(prlimit64), 1, SCMP_A2(SCMP_CMP_EQ, 0));
    if (IS_SANITIZED) /* which reads its own /proc/self/maps */
        bad |= seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(openat), 1,
                                SCMP_A2(SCMP_CMP_MASKED_EQ, O_ACCMODE | O_CREAT, O_RDONLY));
    return bad;
}

/* The filter as the kernel takes it. */
static pseg_status export(struct sock_fprog *out, scmp_filter_ctx f, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    struct stat st;
    int fd = memfd_create("filter", MFD_CLOEXEC);

    if (fd < 0 || seccomp_export_bpf(f, fd) || fstat(fd, &st))
        PSEG_FAIL(PSEG_R_UNSUPPORTED, errno, "the filter of system calls cannot be made");
    out->filter = pseg_malloc((size_t)st.st_size);
    if (!out->filter)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the filter of system calls");
    out->len = (unsigned short)((size_t)st.st_size / sizeof *out->filter);
    if (pread(fd, out->filter, (size_t)st.st_size, 0) != st.st_size)
        PSEG_FAIL(PSEG_R_INTERNAL, errno, "the filter of system calls cannot be read");
out:
    if (fd >= 0)
        close(fd);
    return rc;
}

pseg_status pseg_jail_new(pseg_jail **out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_jail *j = pseg_calloc(1, sizeof *j);
    scmp_filter_ctx f = seccomp_init(SCMP_ACT_ERRNO(EPERM));

    *out = NULL;
    if (!j || !f)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the filter of system calls");
    (void)seccomp_attr_set(f, SCMP_FLTATR_CTL_OPTIMIZE, 2); /* a tree, not a list */
    if (add_rules(f))
        PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "libseccomp does not know a system call of the filter");
    PSEG_TRY(export(&j->program, f, err));
    *out = j;
    j = NULL;
out:
    if (f)
        seccomp_release(f);
    pseg_jail_free(j);
    return rc;
}

void pseg_jail_free(pseg_jail *j)
{
    if (!j)
        return;
    pseg_free(j->program.filter);
    pseg_free(j);
}

pseg_status pseg_jail_enter(const pseg_jail *j, int64_t cpu_s, uint64_t memory_bytes, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    struct sock_fprog program = j->program;
    const struct {
        int which;
        rlim_t soft, hard;
    } limits[] = {{RLIMIT_CPU, (rlim_t)cpu_s, (rlim_t)cpu_s + 1},
                  {RLIMIT_FSIZE, 0, 0},
                  {RLIMIT_CORE, 0, 0},
                  {RLIMIT_NOFILE, 16, 16},
                  {RLIMIT_AS, memory_bytes, memory_bytes}};

    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        struct rlimit r = {limits[i].soft, limits[i].hard};
        if (limits[i].which == RLIMIT_AS && IS_SANITIZED)
            continue;
        if (setrlimit((__rlimit_resource_t)limits[i].which, &r))
            PSEG_FAIL(PSEG_R_UNSUPPORTED, errno, "a limit cannot be set: %s", strerror(errno));
    }
    if (prctl(PR_SET_DUMPABLE, 0) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
        syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
        PSEG_FAIL(PSEG_R_UNSUPPORTED, errno, "the kernel does not take the filter: %s",
                  strerror(errno));
out:
    return rc;
}
