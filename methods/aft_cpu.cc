#include "aft_cpu.h"

#include <algorithm>

#include "../tensor/launch.h"

#if defined(__AVX2__) && defined(__FMA__) && !defined(__CUDACC__)
#include <immintrin.h>
#define PUPIL_AFT_AVX2 1
#endif

namespace pupil::methods {
namespace {

constexpr int64_t kBlock = 48;  // columns at a time: they stay in the L1 cache
constexpr int64_t kParts = 4;   // partial Gram matrices, whatever the thread count
constexpr int64_t kWide = 16;   // a tile is 4 x 16

int64_t padded(int64_t n) { return (n + kWide - 1) / kWide * kWide; }

// c[r][0..16) += sum over k < count of a[r * row_step + k * step] * b[k * b_step + 0..16), r < R.
// R = 6: twelve sums hide the latency of a multiply-add and fit into the registers.
template <int R>
inline void tile(const float* a, int64_t row_step, int64_t step, const float* b, int64_t b_step,
                 int64_t count, float* c, int64_t c_step) {
#if PUPIL_AFT_AVX2
  __m256 sum[R][2];  // registers only where every loop over it is unrolled
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) {
    sum[r][0] = _mm256_loadu_ps(c + r * c_step);
    sum[r][1] = _mm256_loadu_ps(c + r * c_step + 8);
  }
  for (int64_t k = 0; k < count; k++) {
    __m256 low = _mm256_loadu_ps(b + k * b_step), high = _mm256_loadu_ps(b + k * b_step + 8);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      __m256 x = _mm256_broadcast_ss(a + r * row_step + k * step);
      sum[r][0] = _mm256_fmadd_ps(x, low, sum[r][0]);
      sum[r][1] = _mm256_fmadd_ps(x, high, sum[r][1]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) {
    _mm256_storeu_ps(c + r * c_step, sum[r][0]);
    _mm256_storeu_ps(c + r * c_step + 8, sum[r][1]);
  }
#else
  for (int64_t k = 0; k < count; k++)
    for (int64_t r = 0; r < R; r++)
      for (int64_t j = 0; j < kWide; j++)
        c[r * c_step + j] += a[r * row_step + k * step] * b[k * b_step + j];
#endif
}

// f(i, rows) for all rows of a tile each: six of them while there are six, then two.
template <class F>
void for_rows(int64_t n, F f) {
  int64_t i = 0;
  for (; i + 6 <= n; i += 6) f(i, std::integral_constant<int, 6>{});
  for (; i < n; i += 2) f(i, std::integral_constant<int, 2>{});
}

// Columns begin .. begin + kBlock of X, centred and weighted; what lies beyond n and d is 0.
struct Columns {
  const float *f, *w;
  int64_t n, d, stride;
  void mean(int64_t begin, float* to) const {
    int64_t count = std::min(kBlock, d - begin);
    float sum[kBlock] = {};
    for (int64_t i = 1; i < n; i++) {
      const float* row = f + i * d + begin;
#pragma omp simd
      for (int64_t k = 0; k < count; k++) sum[k] += row[k] - f[begin + k];
    }
    for (int64_t k = 0; k < count; k++) to[begin + k] = f[begin + k] + sum[k] / float(n);
  }
  // x[i * kBlock + k]
  void load(int64_t begin, const float* means, float* x) const {
    int64_t count = std::min(kBlock, d - begin);
    for (int64_t i = 0; i < n; i++) {
      const float* from = f + i * d + begin;
      float* row = x + i * kBlock;
#pragma omp simd
      for (int64_t k = 0; k < count; k++)
        row[k] = (from[k] - means[begin + k]) * (w ? w[begin + k] : 1.0f);
      std::fill(row + count, row + kBlock, 0.0f);
    }
    std::fill(x + n * kBlock, x + stride * kBlock, 0.0f);
  }
};

// t[k * n + i] = x[i * kBlock + k]
void transpose(const float* x, int64_t n, float* t) {
#if PUPIL_AFT_AVX2
  for (int64_t i = 0; i < n; i += 8)
    for (int64_t k = 0; k < kBlock; k += 8) {
      __m256 a[8], b[8];
#pragma GCC unroll 8
      for (int r = 0; r < 8; r++) a[r] = _mm256_loadu_ps(x + (i + r) * kBlock + k);
#pragma GCC unroll 4
      for (int r = 0; r < 8; r += 2) {
        b[r] = _mm256_unpacklo_ps(a[r], a[r + 1]);
        b[r + 1] = _mm256_unpackhi_ps(a[r], a[r + 1]);
      }
#pragma GCC unroll 2
      for (int r = 0; r < 8; r += 4) {
        a[r] = _mm256_shuffle_ps(b[r], b[r + 2], 0x44);
        a[r + 1] = _mm256_shuffle_ps(b[r], b[r + 2], 0xee);
        a[r + 2] = _mm256_shuffle_ps(b[r + 1], b[r + 3], 0x44);
        a[r + 3] = _mm256_shuffle_ps(b[r + 1], b[r + 3], 0xee);
      }
#pragma GCC unroll 4
      for (int r = 0; r < 4; r++) {
        _mm256_storeu_ps(t + (k + r) * n + i, _mm256_permute2f128_ps(a[r], a[r + 4], 0x20));
        _mm256_storeu_ps(t + (k + r + 4) * n + i, _mm256_permute2f128_ps(a[r], a[r + 4], 0x31));
      }
    }
#else
  for (int64_t i = 0; i < n; i++)
    for (int64_t k = 0; k < kBlock; k++) t[k * n + i] = x[i * kBlock + k];
#endif
}

Columns columns(const Tensor& f, const Tensor& w) {
  return {f.data<float>(), w ? w.data<float>() : nullptr, f.dim(0), f.dim(1), padded(f.dim(0))};
}

}  // namespace

void centred_gram(const Tensor& f, const Tensor& w, const Tensor& mean, const Tensor& gram) {
  Columns x = columns(f, w);
  int64_t n = x.n, s = x.stride, blocks = (x.d + kBlock - 1) / kBlock;
  int64_t parts = std::min(kParts, blocks);
  Tensor partial = empty({parts, s, s}), scratch = empty({parts, 2, s, kBlock});
  float *sums = partial.data<float>(), *space = scratch.data<float>(), *means = mean.data<float>();
  parallel_for(parts, n * n * x.d, [=](int64_t part) {
    float *sum = sums + part * s * s, *block = space + part * 2 * s * kBlock;
    float* t = block + s * kBlock;
    std::fill(sum, sum + s * s, 0.0f);
    for (int64_t b = blocks * part / parts; b < blocks * (part + 1) / parts; b++) {
      x.mean(b * kBlock, means);
      x.load(b * kBlock, means, block);
      transpose(block, s, t);
      for_rows(s, [&](int64_t i, auto rows) {  // the upper triangle
        for (int64_t j = i / kWide * kWide; j < n; j += kWide)
          tile<rows>(t + i, 1, s, t + j, s, kBlock, sum + i * s + j, s);
      });
    }
  });
  float* to = gram.data<float>();
  parallel_for(n, n * n * parts, [=](int64_t i) {
    for (int64_t j = 0; j < n; j++) {
      int64_t at = std::min(i, j) * s + std::max(i, j);
      float total = sums[at];
      for (int64_t part = 1; part < parts; part++) total += sums[part * s * s + at];
      to[i * n + j] = total;
    }
  });
}

void centred_quadratic(const Tensor& f, const Tensor& w, const Tensor& mean, const Tensor& m,
                       const Tensor& out) {
  Columns x = columns(f, w);
  int64_t n = x.n, s = x.stride, blocks = (x.d + kBlock - 1) / kBlock;
  int64_t parts = std::min(kParts, blocks);
  // The upper triangle, counted twice.
  Tensor triangle = zeros({s, s}), scratch = empty({parts, s, kBlock});
  float *upper = triangle.data<float>(), *space = scratch.data<float>(), *to = out.data<float>();
  const float *from = m.data<float>(), *means = mean.data<float>();
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = i; j < n; j++)
      upper[i * s + j] = i == j ? from[i * n + i] : 2 * from[j * n + i];
  parallel_for(parts, n * n * x.d, [=](int64_t part) {
    float* block = space + part * s * kBlock;
    for (int64_t b = blocks * part / parts; b < blocks * (part + 1) / parts; b++) {
      x.load(b * kBlock, means, block);
      for (int64_t k = 0; k < kBlock; k += kWide) {
        float total[kWide] = {};
        for_rows(s, [&](int64_t i, auto rows) {
          float product[rows][kWide] = {};
          tile<rows>(upper + i * s + i, s, 1, block + i * kBlock + k, kBlock, s - i, product[0],
                     kWide);
          for (int64_t r = 0; r < rows; r++)
#pragma omp simd
            for (int64_t c = 0; c < kWide; c++)
              total[c] += product[r][c] * block[(i + r) * kBlock + k + c];
        });
        std::copy_n(total, std::clamp<int64_t>(x.d - b * kBlock - k, 0, kWide),
                    to + b * kBlock + k);
      }
    }
  });
}

}  // namespace pupil::methods
