// Compiled for AVX-512 (lanes.h).
#include "depthwise.h"
#include "lanes.h"

namespace pupil::depthwise {

bool has_forward(const onednn::Convolution& conv) {
  int64_t kernel = conv.shape.kernel_width;
  return is_plain(conv) && conv.dtype == DType::f32 && (kernel == 3 || kernel == 5);
}

#ifdef __AVX512F__
namespace {

constexpr int64_t kTile = 7;   // pixels of a row at a time: 7, 14, 28 and 56 are usual widths
constexpr int64_t kChunk = 8;  // blocks of 16 channels that take turns at a tile

// ROWS rows of kTile results of 16 channels. x[r]: the pixel of the first result under the filter's
// row r and column 0, null outside the image; it is number `column` of `width`. Unless WHOLE,
// pixels outside and channels that `mask` lacks are 0, and `results` of a row are wanted.
template <int K, int STEP, int ROWS, bool WHOLE>
void forward_tile(const float* const* x, int64_t column, int64_t width, const float* w, Lanes bias,
                  Activation activation, float* y, int64_t y_row, int64_t results, int64_t channels,
                  __mmask16 mask) {
  Lanes sum[ROWS][kTile];
#pragma GCC unroll 2
  for (int o = 0; o < ROWS; o++)
#pragma GCC unroll 7
    for (int i = 0; i < kTile; i++) sum[o][i] = bias;
#pragma GCC unroll 5
  for (int r = 0; r < (ROWS - 1) * STEP + K; r++) {
    const float* from = x[r];
    if (!from) continue;
    Lanes weight[ROWS][K];  // of the filter's row that input row r meets in each row of results
#pragma GCC unroll 2
    for (int o = 0; o < ROWS; o++)
#pragma GCC unroll 5
      for (int t = 0; t < K; t++)
        if (r >= o * STEP && r - o * STEP < K)
          weight[o][t] = load(w + ((r - o * STEP) * K + t) * kLanes);
#pragma GCC unroll 17
    for (int j = 0; j < (kTile - 1) * STEP + K; j++, from += channels) {
      Lanes value = WHOLE ? load(from)
                          : _mm512_maskz_loadu_ps(
                                column + j >= 0 && column + j < width ? mask : __mmask16(0), from);
      if constexpr (ROWS > 1) asm("" : "+v"(value));  // loaded once, not by each product
#pragma GCC unroll 2
      for (int o = 0; o < ROWS; o++)
#pragma GCC unroll 5
        for (int t = 0; t < K; t++) {
          bool meets = r >= o * STEP && r - o * STEP < K && j >= t && (j - t) % STEP == 0;
          int i = (j - t) / STEP;
          if (meets && i < kTile) sum[o][i] = _mm512_fmadd_ps(value, weight[o][t], sum[o][i]);
        }
    }
  }
#pragma GCC unroll 2
  for (int o = 0; o < ROWS; o++)
#pragma GCC unroll 7
    for (int i = 0; i < kTile; i++) {
      float* to = y + o * y_row + i * channels;
      if constexpr (WHOLE)
        store(to, activated(activation, sum[o][i]));
      else if (i < results)
        _mm512_mask_storeu_ps(to, mask, activated(activation, sum[o][i]));
    }
}

// Rows from `row` on of kTile columns from `start` on, of the blocks [first, last).
template <int K, int STEP, int ROWS>
void forward_rows(const ConvGeometry& s, int64_t row, int64_t start, int64_t first, int64_t last,
                  const float* x, const float* w, const float* bias, Activation activation,
                  float* y) {
  constexpr int kInputRows = (ROWS - 1) * STEP + K;
  int64_t top = row * STEP - s.padding_h, column = start * STEP - s.padding_w;
  bool inside =
      column >= 0 && column + (kTile - 1) * STEP + K <= s.width && start + kTile <= s.out_width;
  for (int64_t b = first; b < last; b++) {
    const float* rows[kInputRows];
    for (int64_t r = 0; r < kInputRows; r++) {
      bool there = top + r >= 0 && top + r < s.height;
      rows[r] = there ? x + ((top + r) * s.width + column) * s.channels + b * kLanes : nullptr;
    }
    int64_t left = s.channels - b * kLanes;
    __mmask16 mask = mask_of(left);
    Lanes offset = bias ? _mm512_maskz_loadu_ps(mask, bias + b * kLanes) : _mm512_setzero_ps();
    (inside && left >= kLanes
         ? forward_tile<K, STEP, ROWS, true>
         : forward_tile<K, STEP, ROWS, false>)(rows, column, s.width, w + b * K * K * kLanes,
                                               offset, activation,
                                               y + (row * s.out_width + start) * s.channels +
                                                   b * kLanes,
                                               s.out_width * s.channels, s.out_width - start,
                                               s.channels, mask);
  }
}

// Down the columns of a tile, so that the rows that two results share still lie in the first cache.
template <int K, int STEP>
void forward_image(const ConvGeometry& s, const float* x, const float* w, const float* bias,
                   Activation activation, float* y) {
  constexpr int kRows = K == 3 ? 2 : 1;  // what the registers hold
  for (int64_t first = 0; first < blocks_of(s.channels); first += kChunk) {
    int64_t last = smaller(first + kChunk, blocks_of(s.channels));
    for (int64_t start = 0; start < s.out_width; start += kTile) {
      int64_t row = 0;
      for (; row + kRows <= s.out_height; row += kRows)
        forward_rows<K, STEP, kRows>(s, row, start, first, last, x, w, bias, activation, y);
      for (; row < s.out_height; row++)
        forward_rows<K, STEP, 1>(s, row, start, first, last, x, w, bias, activation, y);
    }
  }
}

}  // namespace

int64_t packed_weights(const ConvGeometry& s) {
  return blocks_of(s.channels) * kLanes * s.kernel_height * s.kernel_width;
}

void pack_weights(const ConvGeometry& s, const float* weight, float* packed) {
  int64_t taps = s.kernel_height * s.kernel_width;
  for (int64_t i = 0; i < packed_weights(s); i++) {
    int64_t c = i / kLanes / taps * kLanes + i % kLanes;
    packed[i] = c < s.channels ? weight[c * taps + i / kLanes % taps] : 0;
  }
}

void forward(const ConvGeometry& s, const float* x, const float* packed, const float* bias,
             Activation activation, float* y) {
  auto image = s.kernel_width == 3 ? (s.stride_w == 1 ? forward_image<3, 1> : forward_image<3, 2>)
                                   : (s.stride_w == 1 ? forward_image<5, 1> : forward_image<5, 2>);
  for (int64_t n = 0; n < s.batch; n++)
    image(s, x + n * s.channels * s.height * s.width, packed, bias, activation,
          y + n * s.channels * s.out_height * s.out_width);
}

#else
int64_t packed_weights(const ConvGeometry&) { return 0; }
void pack_weights(const ConvGeometry&, const float*, float*) {}
void forward(const ConvGeometry&, const float*, const float*, const float*, Activation, float*) {}
#endif

}  // namespace pupil::depthwise
