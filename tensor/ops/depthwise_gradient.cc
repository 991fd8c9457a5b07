// Compiled for AVX-512 (lanes.h).
#include "../runtime.h"
#include "depthwise.h"
#include "lanes.h"

namespace pupil::depthwise {

bool is_plain(const onednn::Convolution& conv) {
  const ConvGeometry& s = conv.shape;
  bool square = s.kernel_height == s.kernel_width && s.stride_h == s.stride_w;
  return cpu_has_avx512() && conv.x == Layout::nhwc && conv.y == Layout::nhwc && square &&
         s.groups == s.channels && s.outputs == s.channels && s.stride_w <= 2 &&
         s.dilation_h == 1 && s.dilation_w == 1;
}

bool has_weight_gradient(const onednn::Convolution& conv) {
  int64_t kernel = conv.shape.kernel_width;
  return is_plain(conv) && (kernel == 5 || kernel == 7);
}

#ifdef __AVX512F__
namespace {

constexpr int64_t kTile = 7;   // pixels of a row at a time: 7, 14, 28 and 56 are usual widths
constexpr int64_t kChunk = 8;  // blocks of 16 channels that take turns at a tile

// sums[row][column] += x gy of a tile, for K x K weights of 16 channels. x[r]: the pixel of the
// tile's first result under the filter's row r and column 0, null outside the image; that pixel is
// number `column` of `width`. Unless WHOLE, pixels outside and channels that `mask` lacks are 0.
template <int K, int STEP, bool WHOLE>
inline void add_tile(const float* const* x, int64_t column, int64_t width, const float* gy,
                     int64_t results, int64_t channels, __mmask16 mask, float* sums) {
  auto value_or_zero = [mask](const float* p, bool inside) {
    if constexpr (WHOLE) return _mm512_loadu_ps(p);
    return _mm512_maskz_loadu_ps(inside ? mask : __mmask16(0), p);
  };
  Lanes gradient[kTile];
#pragma GCC unroll 7
  for (int i = 0; i < kTile; i++) gradient[i] = value_or_zero(gy + i * channels, i < results);
  for (int r = 0; r < K; r++, sums += K * kLanes) {
    if (!x[r]) continue;
    Lanes sum[K];
    for (int t = 0; t < K; t++) sum[t] = _mm512_loadu_ps(sums + t * kLanes);
    const float* from = x[r];
#pragma GCC unroll 19
    for (int j = 0; j < (kTile - 1) * STEP + K; j++, from += channels) {
      Lanes value = value_or_zero(from, column + j >= 0 && column + j < width);
#pragma GCC unroll 7
      for (int t = 0; t < K; t++)
        if (j >= t && (j - t) % STEP == 0 && (j - t) / STEP < kTile)
          sum[t] = _mm512_fmadd_ps(value, gradient[(j - t) / STEP], sum[t]);
    }
    for (int t = 0; t < K; t++) _mm512_storeu_ps(sums + t * kLanes, sum[t]);
  }
}

// What the rows [begin, end) of all samples' results add to the gradient of some blocks.
template <int K, int STEP>
void add_rows(const ConvGeometry& s, int64_t begin, int64_t end, int64_t first, int64_t last,
              const float* x, const float* gy, float* sums) {
  for (int64_t i = 0; i < (last - first) * K * K * kLanes; i++) sums[i] = 0;
  for (int64_t row = begin; row < end; row++) {
    int64_t sample = row / s.out_height, top = row % s.out_height * STEP - s.padding_h;
    for (int64_t start = 0; start < s.out_width; start += kTile) {
      int64_t column = start * STEP - s.padding_w;
      bool inside =
          column >= 0 && column + (kTile - 1) * STEP + K <= s.width && start + kTile <= s.out_width;
      for (int64_t b = first; b < last; b++) {
        const float* rows[K];
        for (int64_t r = 0; r < K; r++) {
          int64_t pixel = (sample * s.height + top + r) * s.width + column;
          bool there = top + r >= 0 && top + r < s.height;
          rows[r] = there ? x + pixel * s.channels + b * kLanes : nullptr;
        }
        int64_t left = s.channels - b * kLanes;
        bool whole = inside && left >= kLanes;
        (whole
             ? add_tile<K, STEP, true>
             : add_tile<K, STEP, false>)(rows, column, s.width,
                                         gy + (row * s.out_width + start) * s.channels + b * kLanes,
                                         s.out_width - start, s.channels, mask_of(left),
                                         sums + (b - first) * K * K * kLanes);
      }
    }
  }
}

// Into how many parts the rows are cut: by their size, never by the threads.
int64_t parts_of(const ConvGeometry& s) {
  return smaller(larger(s.batch * s.out_height * s.out_width / 196, 1), 16);
}

}  // namespace

int64_t scratch(const ConvGeometry& s) {
  return parts_of(s) * blocks_of(s.channels) * kLanes * s.kernel_height * s.kernel_width;
}

void weight_gradient(const ConvGeometry& s, const float* x, const float* gy, float* gw, float beta,
                     float* scratch) {
  int64_t taps = s.kernel_height * s.kernel_width, parts = parts_of(s);
  int64_t rows = s.batch * s.out_height, blocks = blocks_of(s.channels);
  int64_t chunks = (blocks + kChunk - 1) / kChunk, part_size = blocks * taps * kLanes;
  auto add = s.kernel_width == 5 ? (s.stride_w == 1 ? add_rows<5, 1> : add_rows<5, 2>)
                                 : (s.stride_w == 1 ? add_rows<7, 1> : add_rows<7, 2>);
#pragma omp parallel num_threads(cpu_threads())
  {
#pragma omp for schedule(static)
    for (int64_t task = 0; task < parts * chunks; task++) {
      int64_t part = task / chunks, first = task % chunks * kChunk;
      add(s, rows * part / parts, rows * (part + 1) / parts, first, smaller(first + kChunk, blocks),
          x, gy, scratch + part * part_size + first * taps * kLanes);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < s.channels * taps; i++) {
      int64_t c = i / taps;
      const float* from = scratch + (c / kLanes * taps + i % taps) * kLanes + c % kLanes;
      float sum = 0;
      for (int64_t part = 0; part < parts; part++) sum += from[part * part_size];
      gw[i] = beta == 0 ? sum : sum + beta * gw[i];
    }
  }
}
#else
int64_t scratch(const ConvGeometry&) { return 0; }
void weight_gradient(const ConvGeometry&, const float*, const float*, float*, float, float*) {}
#endif

}  // namespace pupil::depthwise
