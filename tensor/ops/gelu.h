// GELU in float32 and vector code: of gelu.cc and of an mlp. The tail keeps the relative error
// small on the negative side. At -infinity it is the limit, -0, where the definition's product with
// 0 gives NaN.
#pragma once
#include "vector_math.h"

namespace pupil {

struct GeluFast {
  static constexpr bool saves_x = true, saves_y = false, widest = true;
  PUPIL_HD float fwd(float x) const {
    NormalTail n = normal_tail(fabsf(x));
    return fmaf(-n.a, n.tail, x < 0 ? 0.0f : x);
  }
  PUPIL_HD float bwd(float x, float, float gy) const {
    NormalTail n = normal_tail(fabsf(x));
    float below = fmaf(-0.398942280f * n.a, n.kernel, n.tail), above = 1.0f - below;
    return gy * (x < 0 ? below : above);  // the slopes at -a and a
  }
};

// 0.5 (1 + tanh(u)) is the logistic function of 2u, which has no cancellation.
struct GeluTanhFast {
  static constexpr bool saves_x = true, saves_y = false, widest = true;
  PUPIL_HD static float twice_inner(float x) { return 1.59576912f * fmaf(0.044715f * x * x, x, x); }
  PUPIL_HD float fwd(float x) const {
    float u = twice_inner(x), e = vector_exp(-fabsf(u));
    return x * ((u < 0 ? e : 1.0f) / (1.0f + e));
  }
  PUPIL_HD float bwd(float x, float, float gy) const {
    float u = twice_inner(x), e = vector_exp(-fabsf(u)), r = 1.0f / (1.0f + e);
    float bell = e * r * r * x;  // 0 before a power of x overflows
    float slope = 1.59576912f * fmaf(0.134145f * (bell * x), x, bell);
    return gy * fmaf(u < 0 ? e : 1.0f, r, slope);
  }
};

}  // namespace pupil
