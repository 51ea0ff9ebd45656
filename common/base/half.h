/* IEEE 754 half precision. */
#ifndef PSEG_BASE_HALF_H
#define PSEG_BASE_HALF_H

#include <stddef.h>
#include <stdint.h>

float pseg_half_to_float(uint16_t h);
/* Rounds to nearest, ties to even; too large becomes infinity; NaN stays NaN, with the high bits of
 * its payload, so that every half comes back from float as it was. */
uint16_t pseg_half_from_float(float f);
void pseg_half_to_floats(float *out, const uint16_t *in, size_t n);
void pseg_half_from_floats(uint16_t *out, const float *in, size_t n);

#endif
