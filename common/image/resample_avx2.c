/* The inner loops of resampling for x86 with AVX2: vpmaddwd, which compilers find only now and then
 * (gcc 12 does at a third of this speed, clang 14 not at all), multiplies and adds 16 pixels. */
#include "common/image/resample_impl.h"

#ifdef PSEG_RESAMPLE_AVX2

#include <immintrin.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2")))

_Static_assert(PSEG_RESAMPLE_STEP == 16, "a vector of 16-bit numbers");

static bool is_usable(void)
{
    return __builtin_cpu_supports("avx2");
}

AVX2 static inline __m256i load_two(const uint8_t *low, const uint8_t *high)
{
    __m128i l = _mm_loadu_si128((const __m128i *)(const void *)low);
    __m128i h = _mm_loadu_si128((const __m128i *)(const void *)high);

    return _mm256_inserti128_si256(_mm256_castsi128_si256(l), h, 1);
}

AVX2 static inline __m256i load(const int16_t *p)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}

AVX2 static inline void store(int16_t *p, __m256i v)
{
    _mm256_storeu_si256((__m256i *)(void *)p, v);
}

/* 16 pixels a round: a holds pixels 0..3 and 8..11 in the low bytes of its halves, b 4..7 and
 * 12..15. */
AVX2 static void split(int16_t *planes, size_t plane, const uint8_t *rgb, size_t n)
{
    const __m256i rg = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 3, -1, 6, -1, 9, -1, 1, -1, 4, -1, 7, -1, 10, -1));
    const __m256i b_low = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(2, -1, 5, -1, 8, -1, 11, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    const __m256i b_high = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(-1, -1, -1, -1, -1, -1, -1, -1, 2, -1, 5, -1, 8, -1, 11, -1));
    int16_t *r = planes, *g = planes + plane, *blue = planes + 2 * plane;
    size_t i = 0;

    /* The last load reads 4 bytes, less than 2 pixels, beyond its 16. */
    for (; i + 18 <= n; i += 16, rgb += 48) {
        __m256i a = load_two(rgb, rgb + 24), b = load_two(rgb + 12, rgb + 36);
        __m256i x = _mm256_shuffle_epi8(a, rg), y = _mm256_shuffle_epi8(b, rg);
        store(r + i, _mm256_unpacklo_epi64(x, y));
        store(g + i, _mm256_unpackhi_epi64(x, y));
        store(blue + i,
              _mm256_or_si256(_mm256_shuffle_epi8(a, b_low), _mm256_shuffle_epi8(b, b_high)));
    }
    for (; i < n; i++, rgb += 3) {
        r[i] = rgb[0];
        g[i] = rgb[1];
        blue[i] = rgb[2];
    }
}

/* The sums over the lanes of r, g and b as 32-bit numbers 0, 1 and 2. */
AVX2 static inline __m128i add_lanes(__m256i r, __m256i g, __m256i b)
{
    __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(r, g), _mm256_hadd_epi32(b, b));

    return _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}

AVX2 static void across(uint8_t *out, const int16_t *planes, size_t plane, uint32_t n_out,
                        const resample_axis *axis, uint32_t from)
{
    const __m128i half = _mm_set1_epi32(1 << (PSEG_RESAMPLE_BITS - 1));
    size_t n = axis->padded;

    for (uint32_t x = 0; x < n_out; x++, out += 3) {
        const int16_t *p = planes + (axis->first[x] - from);
        const int16_t *high = axis->high + x * n, *low = axis->low + x * n;
        __m256i h[3], l[3];
        for (int c = 0; c < 3; c++)
            h[c] = l[c] = _mm256_setzero_si256();
        for (size_t j = 0; j < n; j += 16) {
            __m256i kh = load(high + j), kl = load(low + j);
            for (size_t c = 0; c < 3; c++) {
                __m256i v = load(p + c * plane + j);
                h[c] = _mm256_add_epi32(h[c], _mm256_madd_epi16(v, kh));
                l[c] = _mm256_add_epi32(l[c], _mm256_madd_epi16(v, kl));
            }
        }
        for (int c = 0; c < 3; c++)
            l[c] = _mm256_add_epi32(l[c], _mm256_slli_epi32(h[c], 15));
        __m128i sum = _mm_add_epi32(add_lanes(l[0], l[1], l[2]), half);
        sum = _mm_srai_epi32(sum, PSEG_RESAMPLE_BITS);
        sum = _mm_packs_epi32(sum, sum);
        sum = _mm_packus_epi16(sum, sum);
        int pixel = _mm_cvtsi128_si32(sum);
        memcpy(out, &pixel, 4);
    }
}

AVX2 static void down(uint8_t *out, const uint8_t *in, size_t stride, const int32_t *k, size_t n,
                      int32_t *sums)
{
    resample_down(out, in, stride, k, n, sums);
}

const resample_ops resample_avx2 = {"avx2", is_usable, split, across, down};

#else
typedef int resample_avx2_is_not_for_this_machine; /* ISO C wants something in a file */
#endif
