// Batch norm of float32 images whose channels are dense (nhwc, nchw16c, or a matrix), on the CPU.
#pragma once
#include "../ops.h"

namespace pupil {

// Channels in blocks of up to 16, rows of one block `pitch` floats apart.
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
void channel_moments(const ChannelBlocks&, const float* x, double* mean, double* variance);

// y = activation((x - mean) scale + shift + residual): none or relu; without residual also relu6,
// hard_swish and silu.
struct ChannelApply {
  const float *x, *residual;  // residual may be null
  const float *mean, *scale, *shift;
  Activation activation;
  float* y;
};
void channel_apply(const ChannelBlocks&, const ChannelApply&);

// The gradient of an activation: g = gy where y is positive, else 0 (y given: the output of a
// ReLU); else gy activation'(u) with u = (x - mean) scale + shift worked out again.
struct ActivationGradient {
  const float* y;  // may be null
  Activation activation;
  const float *scale, *shift;  // shift may be null where there is no activation or y
};

// sum[c] = sum of g, dot[c] = sum of g (x - mean). With `masked` g is stored there (it may be gy).
struct ChannelSums {
  const float *x, *gy, *mean;
  ActivationGradient g;
  float* masked;  // may be null
  double *sum, *dot;
};
void channel_sums(const ChannelBlocks&, const ChannelSums&);

// gx = g.scale g - offset - slope (x - mean); gx may be gy.
struct ChannelGradient {
  const float *x, *gy, *mean;
  ActivationGradient g;
  const float *offset, *slope;
  float* gx;
};
void channel_gradient(const ChannelBlocks&, const ChannelGradient&);

}  // namespace pupil
