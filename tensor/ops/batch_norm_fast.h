// Batch norm of images (T: float or bf16; all else is float32) whose channels are dense (nhwc,
// nchw16c, or a matrix), on the CPU.
#pragma once
#include "../ops.h"

namespace pupil {

// Channels in blocks of up to 16, rows of one block `pitch` values apart.
struct ChannelBlocks {
  int64_t groups, group_rows, last_rows, group_stride;  // rows come in groups of equal length
  int64_t blocks, block_stride, pitch, channels, rows;  // rows: of all groups together
  explicit ChannelBlocks(const Tensor& x);
  int64_t width(int64_t block) const {
    int64_t left = channels - block * 16;
    return left < 16 ? left : 16;
  }
};
bool has_channel_blocks(const Tensor& x);

// All statistics in f64 sums over short float32 sums around a local mean.
template <class T>
void channel_moments(const ChannelBlocks&, const T* x, double* mean, double* variance);

// y = activation((x - mean) scale + shift + residual): none or relu; without residual also relu6,
// hard_swish and silu.
template <class T>
struct ChannelApply {
  const T *x, *residual;  // residual may be null
  const float *mean, *scale, *shift;
  Activation activation;
  T* y;
};
template <class T>
void channel_apply(const ChannelBlocks&, const ChannelApply<T>&);

// The gradient of an activation: g = gy where y is positive, else 0 (y given: the output of a
// ReLU); else gy activation'(u) with u = (x - mean) scale + shift worked out again.
template <class T>
struct ActivationGradient {
  const T* y;  // may be null
  Activation activation;
  const float *scale, *shift;  // shift may be null where there is no activation or y
};

// sum[c] = sum of g, dot[c] = sum of g (x - mean). With `masked` g is stored there (it may be gy).
template <class T>
struct ChannelSums {
  const T *x, *gy;
  const float* mean;
  ActivationGradient<T> g;
  T* masked;  // may be null
  double *sum, *dot;
};
template <class T>
void channel_sums(const ChannelBlocks&, const ChannelSums<T>&);

// gx = g.scale g - offset - slope (x - mean); gx may be gy.
template <class T>
struct ChannelGradient {
  const T *x, *gy;
  const float* mean;
  ActivationGradient<T> g;
  const float *offset, *slope;
  T* gx;
};
template <class T>
void channel_gradient(const ChannelBlocks&, const ChannelGradient<T>&);

}  // namespace pupil
