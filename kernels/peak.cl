/* What a device does at most, for rooflines: nothing but multiply-adds, and nothing but reading.
 *
 * peak_fma: N sums in registers, as many as hide the latency; n steps of each. peak_dot and
 * peak_amx: the same by the instructions for bfloat16, on random numbers, since a processor slows
 * down with the power they take and zeros flatter. peak_read: an item adds up what lies at its
 * stride, on a CPU a run of memory of its own. */

#ifndef N
#define N 6
#endif

__kernel void peak_fma(gfloat *out, const uint n)
{
    fv acc[N], x = (fv)(0.999f), y = (fv)(1e-3f);
    uint id = (uint)get_global_id(0);

#pragma unroll
    for (int i = 0; i < N; i++)
        acc[i] = (fv)((float)(id + i));
    for (uint k = 0; k < n; k++)
#pragma unroll
        for (int i = 0; i < N; i++)
            acc[i] = acc[i] * x + y;
#pragma unroll
    for (int i = 1; i < N; i++)
        acc[0] += acc[i];
    fv_store_full(acc[0], out + (size_t)id * FV);
}

__kernel void peak_read(gfloat *out, gcfloat *x, const ulong per_item)
{
    size_t id = get_global_id(0);
#if PSEG_CPU
    gcfloat *at = x + id * per_item;
    fv a = (fv)(0.0f), b = a, c = a, d = a;

    for (ulong i = 0; i < per_item; i += 4 * FV) {
        a += fv_load_full(at + i);
        b += fv_load_full(at + i + FV);
        c += fv_load_full(at + i + 2 * FV);
        d += fv_load_full(at + i + 3 * FV);
    }
    out[id] = fv_sum((a + b) + (c + d));
#else
    float a = 0.0f;

    for (ulong i = 0; i < per_item; i++)
        a += x[i * get_global_size(0) + id];
    out[id] = a;
#endif
}

#if PSEG_CPU && defined(DOT)
__kernel void peak_dot(gfloat *out, __global const uint *pairs, const uint n)
{
    float16 acc[N];
    uint16 a = vload16(0, pairs), b = vload16(1, pairs);
    uint id = (uint)get_global_id(0);

#pragma unroll
    for (int i = 0; i < N; i++)
        acc[i] = (float16)(0.0f);
    for (uint k = 0; k < n; k++)
#pragma unroll
        for (int i = 0; i < N; i++)
            __asm__ volatile("vdpbf16ps %2, %1, %0" : "+v"(acc[i]) : "v"(a), "v"(b));
#pragma unroll
    for (int i = 1; i < N; i++)
        acc[0] += acc[i];
    vstore16(acc[0], id, out);
}
#endif

#if PSEG_CPU && defined(AMX)
/* pairs: 4 tiles of 1 kB. */
__kernel void peak_amx(gfloat *out, __global const uint *pairs, const uint n)
{
    uchar c[64];

    for (int i = 0; i < 64; i++)
        c[i] = 0;
    c[0] = 1;
    for (int t = 0; t < 8; t++) {
        c[16 + 2 * t] = 64;
        c[48 + t] = 16;
    }
    __asm__ volatile("ldtilecfg (%0)" : : "r"(c) : "memory");
    __asm__ volatile("tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n tilezero %%tmm3\n"
                     "tileloadd (%0,%1,1), %%tmm4\n tileloadd 1024(%0,%1,1), %%tmm5\n"
                     "tileloadd 2048(%0,%1,1), %%tmm6\n tileloadd 3072(%0,%1,1), %%tmm7"
                     :
                     : "r"(pairs), "r"(64ul)
                     : "memory");
    for (uint k = 0; k < n; k++)
        __asm__ volatile("tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
                         "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n tdpbf16ps %%tmm7, %%tmm5, %%tmm3"
                         :
                         :
                         : "memory");
    __asm__ volatile("tilestored %%tmm0, (%0,%1,1)\n tilerelease"
                     :
                     : "r"(out + get_global_id(0) * 256), "r"(64ul)
                     : "memory");
}
#endif
