// x sigma(beta x) in float32 and vector code: of silu.cc, of a batch norm that ends with it and
// of an mlp.
#pragma once
#include "vector_math.h"

namespace pupil {

template <bool quick>
struct SwishFast {
  static constexpr bool saves_x = true, saves_y = false, widest = true;
  static constexpr float beta = quick ? 1.702f : 1.0f;
  PUPIL_HD float fwd(float x) const {
    float u = beta * x, e = vector_exp(-fabsf(u));
    return x * ((u < 0 ? e : 1.0f) / (1.0f + e));
  }
  PUPIL_HD float bwd(float x, float, float gy) const {
    float u = beta * x, e = vector_exp(-fabsf(u)), r = 1.0f / (1.0f + e);
    return gy * r * fmaf(u * e, r, u < 0 ? e : 1.0f);
  }
};

}  // namespace pupil
