// 16 floats at a time, for files compiled for AVX-512 alone: nothing inline may be used in those
// that other files use too, since the linker keeps one copy for all processors. All here is the
// file's own.
#pragma once
#include <cstdint>

#include "../tensor.h"

#ifdef __AVX512F__
#include <immintrin.h>

namespace pupil {
namespace {

using Lanes = __m512;
constexpr int64_t kLanes = 16;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

inline Lanes load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Lanes v) { _mm512_storeu_ps(p, v); }
inline Lanes all(float v) { return _mm512_set1_ps(v); }
inline int64_t blocks_of(int64_t channels) { return (channels + kLanes - 1) / kLanes; }
// The first `count` lanes, or all.
inline __mmask16 mask_of(int64_t count) {
  return count >= kLanes ? __mmask16(0xffff) : __mmask16((1 << count) - 1);
}

// A NaN is not less than 0 and stays.
inline Lanes positive(Lanes x) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, all(0), _CMP_NLT_UQ), x);
}
inline Lanes activated(Activation activation, Lanes x) {
  switch (activation) {
    case Activation::relu:
      return positive(x);
    case Activation::relu6:
      return _mm512_maskz_min_ps(0xffff, all(6), positive(x));
    case Activation::hard_swish:
      return x * _mm512_maskz_min_ps(0xffff, all(1), positive(x * (1 / 6.0f) + all(0.5f)));
    default:
      return x;
  }
}

}  // namespace
}  // namespace pupil
#endif
