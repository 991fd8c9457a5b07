// exp and the normal distribution in float32 without branches or library calls, so that compilers
// turn loops over them into vector code. Own polynomial fits; errors against f64 are tested.
#pragma once
#include "../core.h"

namespace pupil {

// Kept to one comparison, between finished values: compilers turn a chain of comparisons, or an
// operation in an arm of one, into branches, and the loop around would stay scalar. A call that is
// not inlined would keep it scalar too.

// e^x = mantissa 2^k with the logarithm of the mantissa within ln 2 / 2 of 0. k is kept as the bits
// of the float 1.5 * 2^23 + k: a sum that rounds to an integer in its low bits.
struct ExpParts {
  float mantissa;
  int32_t bits;
};
PUPIL_HD [[gnu::always_inline]] inline ExpParts exp_parts(float x) {
  float shifted = fmaf(x, 1.44269504f, 12582912.0f);
  float k = shifted - 12582912.0f;
  float r = fmaf(k, -0.693145752f, x);
  r = fmaf(k, -1.42860677e-6f, r);
  float p = 1.3814462e-3f;
  p = fmaf(p, r, 8.36878088e-3f);
  p = fmaf(p, r, 4.16683943e-2f);
  p = fmaf(p, r, 1.66665201e-1f);
  p = fmaf(p, r, 4.99999934e-1f);
  p = fmaf(p, r, 1.0f);
  p = fmaf(p, r, 1.0f);
  int32_t bits;
  memcpy(&bits, &shifted, 4);
  return {p, bits};
}

// e^x within 2 ulp; 0 below -105, infinity above 88.73, NaN stays NaN.
PUPIL_HD [[gnu::always_inline]] inline float vector_exp(float x) {
  float magnitude = fabsf(x);
  ExpParts e = exp_parts(copysignf(magnitude > 105.0f ? 105.0f : magnitude, x));
  // 2^k in two factors, each a float for every |k| <= 152.
  int32_t exponent = e.bits - 0x4b400000, half = exponent >> 1;
  int32_t low_bits = (half + 127) << 23, high_bits = (exponent - half + 127) << 23;
  float low, high;
  memcpy(&low, &low_bits, 4);
  memcpy(&high, &high_bits, 4);
  return e.mantissa * low * high;
}

// e^x from its parts where k lies between -127, for which it is 0, and 0.
PUPIL_HD [[gnu::always_inline]] inline float small_exp(ExpParts e) {
  uint32_t factor_bits = (uint32_t(e.bits) + 127) << 23;
  float factor;
  memcpy(&factor, &factor_bits, 4);
  return e.mantissa * factor;
}

// e^x in two thirds of the instructions, for x <= 0: 0 below -88 already.
PUPIL_HD [[gnu::always_inline]] inline float vector_exp_negative(float x) {
  return small_exp(exp_parts(x < -88.03f ? -88.03f : x));
}

// The upper tail of the standard normal distribution, P(X > a) for a >= 0, and e^(-a^2/2); 0 from
// a = 13.25 on, where both are below the normal floats, and a above 13.27 counts as that. tail =
// e^(-a^2/2) P(a) / Q(a), a relative minimax fit of the quotient (5e-9) on 0 <= a <= 13.3. No
// coefficient is negative: no cancellation. The rounding of a^2 / 2 remains, relative 4e-6 at 13.
struct NormalTail {
  float a, tail, kernel;
};
PUPIL_HD [[gnu::always_inline]] inline NormalTail normal_tail(float a) {
  a = a > 13.27f ? 13.27f : a;
  float p = 4.019529266e-3f, q = 1.007532264e-2f;
  p = fmaf(p, a, 3.998087523e-2f);
  q = fmaf(q, a, 1.002245686e-1f);
  p = fmaf(p, a, 1.812987184e-1f);
  q = fmaf(q, a, 4.643585829e-1f);
  p = fmaf(p, a, 4.356781538e-1f);
  q = fmaf(q, a, 1.194455141f);
  p = fmaf(p, a, 0.5f);
  q = fmaf(q, a, 1.669241222f);
  q = fmaf(q, a, 1.0f);
  float kernel = small_exp(exp_parts(-0.5f * (a * a)));
  return {a, kernel * p / q, kernel};
}

}  // namespace pupil
