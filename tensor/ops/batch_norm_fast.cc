#include "batch_norm_fast.h"

#include <vector>

#include "../launch.h"
#include "swish.h"

namespace pupil {
namespace {

constexpr int kWidth = 16;
constexpr int64_t kShort = 64;     // rows of one float32 sum: they stay in the first-level cache
constexpr int64_t kMaxParts = 32;  // of a sum over groups, whatever the thread count

// f(block, start, rows): `start` is the first value of a run of rows of one block. Calls of one
// part run in order on one thread.
template <class F>
void each_run(const ChannelBlocks& b, int64_t part, int64_t parts, F f) {
  int64_t first = b.groups * part / parts, last = b.groups * (part + 1) / parts;
  for (int64_t group = first; group < last; group++)
    for (int64_t block = 0; block < b.blocks; block++)
      f(block, group * b.group_stride + block * b.block_stride,
        group + 1 == b.groups ? b.last_rows : b.group_rows);
}

// f(std::integral_constant<16>) for full blocks, so that the compiler knows the trip count.
template <class F>
void with_width(int64_t width, F f) {
  if (width == kWidth)
    f(std::integral_constant<int64_t, kWidth>{});
  else
    f(width);
}

struct Linear {
  float fwd(float u) const { return u; }
  float bwd(float, float gy) const { return gy; }
};
template <bool six>
struct Rectified {
  float fwd(float u) const {
    float v = !(u > 0) && u == u ? 0.0f : u;  // NaN stays
    return six && v > 6 ? 6.0f : v;
  }
  float bwd(float u, float gy) const {
    float g = u > 0 ? gy : 0.0f;
    return six && u >= 6 ? 0.0f : g;
  }
};
struct HardSwished {
  float fwd(float u) const {
    float low = u < -3 ? -3.0f : u, gate = low > 3 ? 3.0f : low;
    return u * (gate + 3) * (1 / 6.0f);
  }
  float bwd(float u, float gy) const {
    float inside = u > 3 ? 1.0f : u * (1 / 3.0f) + 0.5f;
    return gy * (u < -3 ? 0.0f : inside);
  }
};
struct Silu {
  SwishFast<false> f;
  float fwd(float u) const { return f.fwd(u); }
  float bwd(float u, float gy) const { return f.bwd(u, 0, gy); }
};

template <class F>
void with_activation(Activation activation, F f) {
  switch (activation) {
    case Activation::none:
      return f(Linear{});
    case Activation::relu:
      return f(Rectified<false>{});
    case Activation::relu6:
      return f(Rectified<true>{});
    case Activation::hard_swish:
      return f(HardSwished{});
    case Activation::silu:
      return f(Silu{});
    default:
      PUPIL_CHECK(false, "batch_norm: an activation without a fused pass");
  }
}

int64_t parts_of(const ChannelBlocks& b) { return std::min(b.groups, kMaxParts); }

// Adds up `count` partial sums per channel in a fixed order.
void add_parts(const std::vector<double>& partial, int64_t parts, int64_t channels, int which,
               double* to) {
  for (int64_t c = 0; c < channels; c++) {
    double sum = 0;
    for (int64_t part = 0; part < parts; part++)
      sum += partial[size_t((part * 2 + which) * channels + c)];
    to[c] = sum;
  }
}

}  // namespace

bool has_channel_blocks(const Tensor& x) {
  if (x.layout() != Layout::strided) return true;
  return x.rank() == 2 && x.is_contiguous();
}

ChannelBlocks::ChannelBlocks(const Tensor& x) : channels(x.dim(1)) {
  rows = channels ? x.numel() / channels : 0;
  if (x.layout() == Layout::nchw16c) {
    groups = x.dim(0);
    group_rows = last_rows = x.dim(2) * x.dim(3);
    blocks = channels / kWidth;
    pitch = kWidth;
    block_stride = group_rows * kWidth;
  } else {
    group_rows = kShort;
    groups = (rows + kShort - 1) / kShort;
    last_rows = rows - (groups - 1) * kShort;
    blocks = (channels + kWidth - 1) / kWidth;
    pitch = channels;
    block_stride = kWidth;
  }
  group_stride = group_rows * channels;
}

template <class T>
void channel_moments(const ChannelBlocks& b, const T* x, double* mean, double* variance) {
  int64_t parts = parts_of(b), channels = b.channels;
  std::vector<double> partial(size_t(parts * 2 * channels));
#pragma omp parallel for schedule(static) if (b.rows * channels > kParallelWork)
  for (int64_t part = 0; part < parts; part++) {
    double* sums = &partial[size_t(part * 2 * channels)];
    double* squares = sums + channels;
    each_run(b, part, parts, [&](int64_t block, int64_t start, int64_t rows) {
      with_width(b.width(block), [&](auto width) {
        for (int64_t first = 0; first < rows; first += kShort) {
          int64_t n = std::min(kShort, rows - first);
          const T* p = x + start + first * b.pitch;
          float sum[kWidth] = {}, center[kWidth], square[kWidth] = {};
          for (int64_t r = 0; r < n; r++)
#pragma omp simd
            for (int64_t c = 0; c < width; c++) sum[c] += float(p[r * b.pitch + c]);
          for (int64_t c = 0; c < width; c++) center[c] = sum[c] / float(n);
          for (int64_t r = 0; r < n; r++)
#pragma omp simd
            for (int64_t c = 0; c < width; c++) {
              float d = float(p[r * b.pitch + c]) - center[c];
              square[c] += d * d;
            }
          // sum of x^2 = sum of (x - center)^2 + 2 center sum - n center^2
          for (int64_t c = 0; c < width; c++) {
            double s = sum[c], m = center[c];
            sums[block * kWidth + c] += s;
            squares[block * kWidth + c] += double(square[c]) + m * (2 * s - double(n) * m);
          }
        }
      });
    });
  }
  add_parts(partial, parts, channels, 0, mean);
  add_parts(partial, parts, channels, 1, variance);
  for (int64_t c = 0; c < channels; c++) {
    mean[c] /= double(b.rows);
    variance[c] = std::max(0.0, variance[c] / double(b.rows) - mean[c] * mean[c]);
  }
}

template <class T>
void channel_apply(const ChannelBlocks& b, const ChannelApply<T>& given) {
  auto run = [&](auto has_residual, auto activation) {
    ChannelApply<T> k = given;  // clang 14 cannot capture it through two lambdas
    int64_t tasks = b.groups * b.blocks;
#pragma omp parallel for schedule(static) if (b.rows * b.channels > kParallelWork)
    for (int64_t task = 0; task < tasks; task++) {
      int64_t group = task / b.blocks, block = task % b.blocks;
      int64_t rows = group + 1 == b.groups ? b.last_rows : b.group_rows;
      int64_t start = group * b.group_stride + block * b.block_stride;
      with_width(b.width(block), [&](auto width) {
        float mean[kWidth], scale[kWidth], shift[kWidth];
        for (int64_t c = 0; c < width; c++) {
          mean[c] = k.mean[block * kWidth + c];
          scale[c] = k.scale[block * kWidth + c];
          shift[c] = k.shift[block * kWidth + c];
        }
        const T *x = k.x + start, *residual = has_residual ? k.residual + start : nullptr;
        T* y = k.y + start;
        for (int64_t r = 0; r < rows; r++)
#pragma omp simd
          for (int64_t c = 0; c < width; c++) {
            int64_t i = r * b.pitch + c;
            float v = (float(x[i]) - mean[c]) * scale[c] + shift[c];
            if (has_residual) v += float(residual[i]);
            y[i] = T(activation.fwd(v));
          }
      });
    }
  };
  if (!given.residual)
    with_activation(given.activation, [&](auto f) { run(std::false_type{}, f); });
  else if (given.activation == Activation::relu)
    run(std::true_type{}, Rectified<false>{});
  else
    run(std::true_type{}, Linear{});
}

template <class T>
void channel_sums(const ChannelBlocks& b, const ChannelSums<T>& given) {
  int64_t parts = parts_of(b), channels = b.channels;
  std::vector<double> partial(size_t(parts * 2 * channels));
  auto run = [&](auto activation, auto has_mask, auto stores) {
    ChannelSums<T> k = given;
#pragma omp parallel for schedule(static) if (b.rows * channels > kParallelWork)
    for (int64_t part = 0; part < parts; part++) {
      double* sums = &partial[size_t(part * 2 * channels)];
      double* dots = sums + channels;
      each_run(b, part, parts, [&](int64_t block, int64_t start, int64_t rows) {
        with_width(b.width(block), [&](auto width) {
          float mean[kWidth], scale[kWidth], shift[kWidth];
          for (int64_t c = 0; c < width; c++) {
            mean[c] = k.mean[block * kWidth + c];
            scale[c] = k.g.scale[block * kWidth + c];
            shift[c] = k.g.shift ? k.g.shift[block * kWidth + c] : 0;
          }
          for (int64_t first = 0; first < rows; first += kShort) {
            int64_t n = std::min(kShort, rows - first), at = start + first * b.pitch;
            const T *x = k.x + at, *gy = k.gy + at, *y = has_mask ? k.g.y + at : nullptr;
            T* masked = stores ? k.masked + at : nullptr;
            float sum[kWidth] = {}, dot[kWidth] = {};
            for (int64_t r = 0; r < n; r++)
#pragma omp simd
              for (int64_t c = 0; c < width; c++) {
                int64_t i = r * b.pitch + c;
                float d = float(x[i]) - mean[c];
                float g = activation.bwd(d * scale[c] + shift[c], float(gy[i]));
                if (has_mask) g = float(y[i]) > 0 ? g : 0.0f;
                if (stores) masked[i] = T(g);
                sum[c] += g;
                dot[c] += g * d;
              }
            for (int64_t c = 0; c < width; c++) {
              sums[block * kWidth + c] += double(sum[c]);
              dots[block * kWidth + c] += double(dot[c]);
            }
          }
        });
      });
    }
  };
  if (!given.g.y)
    with_activation(given.g.activation,
                    [&](auto f) { run(f, std::false_type{}, std::false_type{}); });
  else if (given.masked)
    run(Linear{}, std::true_type{}, std::true_type{});
  else
    run(Linear{}, std::true_type{}, std::false_type{});
  add_parts(partial, parts, channels, 0, given.sum);
  add_parts(partial, parts, channels, 1, given.dot);
}

template <class T>
void channel_gradient(const ChannelBlocks& b, const ChannelGradient<T>& given) {
  auto run = [&](auto activation, auto has_mask) {
    ChannelGradient<T> k = given;
    int64_t tasks = b.groups * b.blocks;
#pragma omp parallel for schedule(static) if (b.rows * b.channels > kParallelWork)
    for (int64_t task = 0; task < tasks; task++) {
      int64_t group = task / b.blocks, block = task % b.blocks;
      int64_t rows = group + 1 == b.groups ? b.last_rows : b.group_rows;
      int64_t start = group * b.group_stride + block * b.block_stride;
      with_width(b.width(block), [&](auto width) {
        float mean[kWidth], scale[kWidth], shift[kWidth], offset[kWidth], slope[kWidth];
        for (int64_t c = 0; c < width; c++) {
          mean[c] = k.mean[block * kWidth + c];
          scale[c] = k.g.scale[block * kWidth + c];
          shift[c] = k.g.shift ? k.g.shift[block * kWidth + c] : 0;
          offset[c] = k.offset[block * kWidth + c];
          slope[c] = k.slope[block * kWidth + c];
        }
        const T *x = k.x + start, *gy = k.gy + start, *y = has_mask ? k.g.y + start : nullptr;
        T* gx = k.gx + start;
        for (int64_t r = 0; r < rows; r++)
#pragma omp simd
          for (int64_t c = 0; c < width; c++) {
            int64_t i = r * b.pitch + c;
            float d = float(x[i]) - mean[c];
            float g = activation.bwd(d * scale[c] + shift[c], float(gy[i]));
            if (has_mask) g = float(y[i]) > 0 ? g : 0.0f;
            gx[i] = T(scale[c] * g - offset[c] - slope[c] * d);
          }
      });
    }
  };
  if (given.g.y)
    run(Linear{}, std::true_type{});
  else
    with_activation(given.g.activation, [&](auto f) { run(f, std::false_type{}); });
}

template void channel_moments(const ChannelBlocks&, const float*, double*, double*);
template void channel_moments(const ChannelBlocks&, const bf16*, double*, double*);
template void channel_apply(const ChannelBlocks&, const ChannelApply<float>&);
template void channel_apply(const ChannelBlocks&, const ChannelApply<bf16>&);
template void channel_sums(const ChannelBlocks&, const ChannelSums<float>&);
template void channel_sums(const ChannelBlocks&, const ChannelSums<bf16>&);
template void channel_gradient(const ChannelBlocks&, const ChannelGradient<float>&);
template void channel_gradient(const ChannelBlocks&, const ChannelGradient<bf16>&);

}  // namespace pupil
