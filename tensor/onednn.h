// Matrix products and convolutions of oneDNN, float32 on the CPU. Only onednn.cc sees its header.
#pragma once
#include "tensor.h"

namespace pupil {

// A convolution of (n, c, h, w) images with weights (o, c / groups, kh, kw).
struct ConvGeometry {
  int64_t batch, channels, height, width, outputs, out_height, out_width, kernel_height,
      kernel_width, groups;
  int64_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int64_t group_channels, group_outputs;
};

namespace onednn {

// Every function returns false when oneDNN has no kernel for the case; the caller then runs its
// own. Primitives are built once per case and kept.

// c (batch..., m, n) = a (batch..., m, k) b (batch..., k, n) + bias (n) + beta c.
struct Matmul {
  struct Axis {
    int64_t size, in_a, in_b, in_c;  // strides; 0: this operand does not have the axis
  };
  std::vector<Axis> batch;
  Axis m, n, k;
  float beta = 0;
};
bool matmul(const Matmul&, const float* a, const float* b, const float* bias, float* c);

// Layouts of the images; strided means row-major (n, c, h, w).
struct Convolution {
  ConvGeometry shape;
  Layout x, y;
};
bool has_convolution(const Convolution&);  // an optimised kernel, not a reference loop
// What follows a convolution in the same pass: + residual (laid out as y), then ReLU.
struct Tail {
  const float* residual = nullptr;
  bool relu = false;
};
bool convolution(const Convolution&, const float* x, const float* weight, const float* bias,
                 float* y, const Tail& = {});
bool convolution_input_gradient(const Convolution&, const float* gy, const float* weight,
                                float* gx);
// gw (o, c / groups, kh, kw) = gradient + beta gw
bool convolution_weight_gradient(const Convolution&, const float* x, const float* gy, float* gw,
                                 float beta);

void convert_layout(const Tensor& from, const Tensor& to);  // dense images of one shape

}  // namespace onednn
}  // namespace pupil
