#include "aft_cpu.h"

#include <algorithm>

#include "../tensor/launch.h"

#if defined(__AVX2__) && defined(__FMA__) && !defined(__CUDACC__)
#include <immintrin.h>
#define PUPIL_AFT_AVX2 1
#endif

namespace pupil::methods {
namespace {

constexpr int64_t kBlock = 32;  // columns that are transposed at a time: they stay in the L1 cache
constexpr int64_t kParts = 4;   // partial Gram matrices, whatever the thread count
constexpr int64_t kWide = 16;   // a tile is 4 x 16

int64_t padded(int64_t n) { return (n + kWide - 1) / kWide * kWide; }

// c[r][0..16) += sum over k < count of a[r * row_step + k * step] * b[k * b_step + 0..16)
inline void tile(const float* a, int64_t row_step, int64_t step, const float* b, int64_t b_step,
                 int64_t count, float* c, int64_t c_step) {
#if PUPIL_AFT_AVX2
  __m256 sum[4][2];
  for (int r = 0; r < 4; r++)
    for (int h = 0; h < 2; h++) sum[r][h] = _mm256_loadu_ps(c + r * c_step + 8 * h);
  for (int64_t k = 0; k < count; k++) {
    __m256 low = _mm256_loadu_ps(b + k * b_step), high = _mm256_loadu_ps(b + k * b_step + 8);
    for (int r = 0; r < 4; r++) {
      __m256 x = _mm256_broadcast_ss(a + r * row_step + k * step);
      sum[r][0] = _mm256_fmadd_ps(x, low, sum[r][0]);
      sum[r][1] = _mm256_fmadd_ps(x, high, sum[r][1]);
    }
  }
  for (int r = 0; r < 4; r++)
    for (int h = 0; h < 2; h++) _mm256_storeu_ps(c + r * c_step + 8 * h, sum[r][h]);
#else
  for (int64_t k = 0; k < count; k++)
    for (int64_t r = 0; r < 4; r++)
      for (int64_t j = 0; j < kWide; j++)
        c[r * c_step + j] += a[r * row_step + k * step] * b[k * b_step + j];
#endif
}

// Columns begin .. begin + kBlock of X, transposed: t[k * stride + i]. Places beyond n and d are 0.
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
  void load(int64_t begin, const float* means, float* t) const {
    int64_t count = std::min(kBlock, d - begin);
    float row[kBlock] = {};
    for (int64_t i = 0; i < n; i++) {
      const float* from = f + i * d + begin;
#pragma omp simd
      for (int64_t k = 0; k < count; k++)
        row[k] = (from[k] - means[begin + k]) * (w ? w[begin + k] : 1.0f);
      for (int64_t k = 0; k < kBlock; k++) t[k * stride + i] = row[k];
    }
    for (int64_t k = 0; k < kBlock; k++) std::fill(t + k * stride + n, t + (k + 1) * stride, 0.0f);
  }
};

Columns columns(const Tensor& f, const Tensor& w) {
  return {f.data<float>(), w ? w.data<float>() : nullptr, f.dim(0), f.dim(1), padded(f.dim(0))};
}

}  // namespace

void centred_gram(const Tensor& f, const Tensor& w, const Tensor& mean, const Tensor& gram) {
  Columns x = columns(f, w);
  int64_t n = x.n, s = x.stride, blocks = (x.d + kBlock - 1) / kBlock;
  int64_t parts = std::min(kParts, blocks);
  Tensor partial = empty({parts, s, s}), scratch = empty({parts, kBlock, s});
  float *sums = partial.data<float>(), *space = scratch.data<float>(), *means = mean.data<float>();
  parallel_for(parts, n * n * x.d, [=](int64_t part) {
    float *sum = sums + part * s * s, *t = space + part * kBlock * s;
    std::fill(sum, sum + s * s, 0.0f);
    for (int64_t b = blocks * part / parts; b < blocks * (part + 1) / parts; b++) {
      x.mean(b * kBlock, means);
      x.load(b * kBlock, means, t);
      for (int64_t i = 0; i < n; i += 4)  // the upper triangle
        for (int64_t j = i / kWide * kWide; j < n; j += kWide)
          tile(t + i, 1, s, t + j, s, kBlock, sum + i * s + j, s);
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
  // The lower triangle counts twice; panels of 16 columns, each with its rows one after another.
  Tensor panels = zeros({s, s}), scratch = empty({parts, kBlock, s});
  float *panel = panels.data<float>(), *space = scratch.data<float>(), *to = out.data<float>();
  const float *from = m.data<float>(), *means = mean.data<float>();
  for (int64_t j = 0; j < n; j++)
    for (int64_t i = j; i < n; i++)
      panel[(j / kWide * s + i) * kWide + j % kWide] = from[i * n + j] * (i == j ? 1.0f : 2.0f);
  parallel_for(parts, n * n * x.d, [=](int64_t part) {
    float* t = space + part * kBlock * s;
    for (int64_t b = blocks * part / parts; b < blocks * (part + 1) / parts; b++) {
      x.load(b * kBlock, means, t);
      for (int64_t k = 0; k < kBlock; k += 4) {
        float sum[4][kWide] = {};
        for (int64_t j = 0; j < n; j += kWide) {
          float product[4][kWide] = {};
          tile(t + k * s + j, s, 1, panel + (j / kWide * s + j) * kWide, kWide, s - j, product[0],
               kWide);
          for (int64_t r = 0; r < 4; r++)
#pragma omp simd
            for (int64_t c = 0; c < kWide; c++) sum[r][c] += product[r][c] * t[(k + r) * s + j + c];
        }
        for (int64_t r = 0; r < 4 && b * kBlock + k + r < x.d; r++) {
          float total = 0;
          for (int64_t c = 0; c < kWide; c++) total += sum[r][c];
          to[b * kBlock + k + r] = total;
        }
      }
    }
  });
}

}  // namespace pupil::methods
