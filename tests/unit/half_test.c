/* half.h against arithmetic in double that knows nothing of bit tricks: it is what numpy's float16
 * casts do. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/half.h"

#include <math.h>
#include <string.h>

static float value_of(uint16_t h)
{
    int exponent = h >> 10 & 0x1F, fraction = h & 0x3FF;
    double v = exponent == 0    ? ldexp(fraction, -24)
               : exponent == 31 ? (fraction ? NAN : INFINITY)
                                : ldexp(1024 + fraction, exponent - 25);

    return (float)(h & 0x8000 ? -v : v);
}

static uint32_t bits_of(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof u);
    return u;
}

/* Nearest half, ties to even, by rounding to a multiple of the place value. */
static uint16_t nearest(float f)
{
    double v = fabs((double)f);
    uint16_t sign = signbit(f) ? 0x8000 : 0;
    int e;

    if (isnan(f))
        return sign | 0x7E00;
    if (v >= 65520)
        return sign | 0x7C00;
    frexp(v, &e);
    e = v < 0x1p-14 ? -24 : e - 11;
    double n = nearbyint(ldexp(v, -e)); /* the default rounding is to even */
    double rounded = ldexp(n, e);
    if (rounded < 0x1p-14)
        return (uint16_t)(sign | (uint16_t)ldexp(rounded, 24));
    frexp(rounded, &e);
    return (uint16_t)(sign | (uint16_t)((e + 14) * 1024 + (int)(ldexp(rounded, 11 - e) - 1024)));
}

static void every_half_has_its_value_and_comes_back(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = pseg_half_to_float((uint16_t)h), want = value_of((uint16_t)h);
        if (isnan(want))
            assert_true(isnan(f) && !signbit(f) == !(h & 0x8000));
        else
            assert_int_equal(bits_of(f), bits_of(want));
        assert_int_equal(pseg_half_from_float(f), h);
    }
}

static void halfway_rounds_to_even_and_beside_it_to_the_nearest(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7C00; h++) {
        float a = value_of((uint16_t)h), b = h == 0x7BFF ? 65536 : value_of((uint16_t)(h + 1));
        float middle = (float)(((double)a + b) / 2);
        assert_int_equal(pseg_half_from_float(middle), h + (h & 1));
        assert_int_equal(pseg_half_from_float(-middle), (h + (h & 1)) | 0x8000);
        assert_int_equal(pseg_half_from_float(nextafterf(middle, 0)), h);
        assert_int_equal(pseg_half_from_float(nextafterf(middle, INFINITY)), h + 1);
    }
}

static void floats_of_every_size_round_to_the_nearest(void **state)
{
    uint32_t u = 1;

    (void)state;
    for (int i = 0; i < 500000; i++) {
        float f;
        u = u * 1664525 + 1013904223;
        uint32_t bits = u ^ u >> 13;
        memcpy(&f, &bits, sizeof f);
        uint16_t h = pseg_half_from_float(f);
        if (isnan(f))
            assert_true((h & 0x7C00) == 0x7C00 && (h & 0x3FF) != 0);
        else
            assert_int_equal(h, nearest(f));
    }
}

/* Figures that numpy 1.24.2 gave: np.float32(x).astype(np.float16).view(np.uint16). */
static void known_floats_give_numpys_halves(void **state)
{
    static const struct {
        float f;
        uint16_t h;
    } known[] = {
        {0.0F, 0x0000},           {-0.0F, 0x8000},          {1.0F, 0x3C00},
        {-2.0F, 0xC000},          {65504.0F, 0x7BFF},       {65519.996F, 0x7BFF},
        {65520.0F, 0x7C00},       {1e30F, 0x7C00},          {-INFINITY, 0xFC00},
        {6.1035156e-05F, 0x0400}, {6.0975552e-05F, 0x03FF}, {5.9604645e-08F, 0x0001},
        {2.9802322e-08F, 0x0000}, {2.9802326e-08F, 0x0001}, {8.9406967e-08F, 0x0002},
        {1e-40F, 0x0000},         {0.1F, 0x2E66},           {3.1415927F, 0x4248},
        {2049.0F, 0x6800},        {2051.0F, 0x6802},        {1.00048828F, 0x3C00},
        {1.00048840F, 0x3C01},
    };

    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        assert_int_equal(pseg_half_from_float(known[i].f), known[i].h);
}

static void arrays_are_converted_like_single_numbers(void **state)
{
    enum { N = 65536 };
    static uint16_t in[N], out[N + 1];
    static float f[N + 1];

    (void)state;
    for (uint32_t i = 0; i < N; i++)
        in[i] = (uint16_t)(i * 40503);
    f[N] = 7;
    out[N] = 7;
    pseg_half_to_floats(f, in, N);
    for (uint32_t i = 0; i < N; i++) {
        float one = pseg_half_to_float(in[i]);
        assert_memory_equal(&f[i], &one, sizeof one);
        if (!isnan(f[i]))
            f[i] *= 1.0003F;
    }
    pseg_half_from_floats(out, f, N);
    for (uint32_t i = 0; i < N; i++)
        assert_int_equal(out[i], pseg_half_from_float(f[i]));
    /* Any bits, and ends that are no whole vector. */
    for (uint32_t i = 0; i < N; i++) {
        uint32_t bits = i * 2654435761U;
        memcpy(&f[i], &bits, sizeof bits);
    }
    for (uint32_t i = 0, n = 1; i + n <= N; i += n, n = n % 67 + 1)
        pseg_half_from_floats(out + i, f + i, n);
    for (uint32_t i = 0; i < N - 67; i++)
        assert_int_equal(out[i], pseg_half_from_float(f[i]));
    assert_true(f[N] == 7 && out[N] == 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_has_its_value_and_comes_back),
        cmocka_unit_test(halfway_rounds_to_even_and_beside_it_to_the_nearest),
        cmocka_unit_test(floats_of_every_size_round_to_the_nearest),
        cmocka_unit_test(known_floats_give_numpys_halves),
        cmocka_unit_test(arrays_are_converted_like_single_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
