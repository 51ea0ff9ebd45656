/* What the host's processor can do, for kernels of CPU devices. */
#include "worker/cl/internal.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Linux keeps AMX's 8 kB of registers from a process until it asks for them
 * (Documentation/arch/x86/xstate.rst). The permission holds for all threads. */
#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA  18

/* Does the system save what bits of XCR0 say? */
static bool saves(uint32_t bits)
{
    uint32_t low, high;

    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & bits) == bits;
}

uint32_t pseg_cpu_features(void)
{
    uint32_t a, b, c, d, found = 0;

    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) /* OSXSAVE */
        return 0;
    if (!saves(0xe6) || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b >> 16 & 1)) /* AVX512F */
        return 0;
    bool has_amx = (d >> 22 & 1) && (d >> 24 & 1); /* AMX-BF16, AMX-TILE */
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1))
        found |= PSEG_CL_AVX512_BF16;
    if ((found & PSEG_CL_AVX512_BF16) && has_amx && saves(0x60000) &&
        syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0)
        found |= PSEG_CL_AMX_BF16;
    return found;
}
#else
uint32_t pseg_cpu_features(void)
{
    return 0;
}
#endif
