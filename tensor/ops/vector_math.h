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
  float p = 1.98569961e-4f;
  p = fmaf(p, r, 1.39304355e-3f);
  p = fmaf(p, r, 8.33333333e-3f);
  p = fmaf(p, r, 4.16666667e-2f);
  p = fmaf(p, r, 1.66666667e-1f);
  p = fmaf(p, r, 0.5f);
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

// The same in two thirds of the instructions, for x <= 0: 0 below -88 already.
PUPIL_HD [[gnu::always_inline]] inline float vector_exp_negative(float x) {
  ExpParts e = exp_parts(x < -88.03f ? -88.03f : x);  // k is -127 there, and 2^k 0
  uint32_t factor_bits = (uint32_t(e.bits) + 127) << 23;
  float factor;
  memcpy(&factor, &factor_bits, 4);
  return e.mantissa * factor;
}

// The upper tail of the standard normal distribution, P(X > a) for a >= 0, and e^(-a^2/2):
// tail = e^(-a^2/2) t Q(t) with t = 1/(1 + 0.4 a), Q a relative minimax fit (1.5e-8) on 0 <= a <=
// 14.
struct NormalTail {
  float tail, kernel;
};
PUPIL_HD [[gnu::always_inline]] inline NormalTail normal_tail(float a) {
  float t = 1.0f / fmaf(0.4f, a, 1.0f);
  float q = 0.03209960460662842f;
  q = fmaf(q, t, -0.17618508636951447f);
  q = fmaf(q, t, 0.3808085024356842f);
  q = fmaf(q, t, -0.3720031976699829f);
  q = fmaf(q, t, 0.11777065694332123f);
  q = fmaf(q, t, -0.025903599336743355f);
  q = fmaf(q, t, 0.0910080298781395f);
  q = fmaf(q, t, 0.13320952653884888f);
  q = fmaf(q, t, 0.1596192717552185f);
  q = fmaf(q, t, 0.15957629680633545f);
  float kernel = vector_exp_negative(-0.5f * a * a);
  return {kernel * t * q, kernel};
}

}  // namespace pupil
