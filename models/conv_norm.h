// What many convolutional networks are made of: a convolution with its batch norm and activation,
// and squeeze and excitation.
#pragma once
#include <span>

#include "activation.h"
#include "models.h"

namespace pupil::models {

struct ConvNormOptions {
  int kernel = 1, stride = 1, groups = 1;
  Activation activation = Activation::none;
  // TensorFlow's padding, by the size of the image: as many results as every stride-th pixel, the
  // smaller half of the zeros above and on the left. Else (kernel - 1) / 2 on all sides.
  bool same_padding = false;
  double eps = 1e-5, momentum = 0.1;
  nn::Init weight{nn::Init::normal};  // deviation 0: sqrt(2 / (kernel^2 outputs))
  bool zero_scale = false;            // the norm's weight is 0 at first
  bool bias = false;                  // of the convolution
};

struct ConvNorm {
  ConvNorm(const nn::Scope& conv, const nn::Scope& norm, int64_t in, int64_t out,
           const ConvNormOptions& = {});
  // activation(norm(conv(x)) + residual)
  Tensor operator()(const Tensor& x, const nn::Call&, const Tensor& residual = {});

  nn::Conv2d conv;
  nn::BatchNorm norm;
  Activation activation;
  bool same_padding;
};
// One after the other, the residual at the last.
Tensor in_turn(std::span<ConvNorm>, const Tensor& x, const nn::Call&, const Tensor& residual = {});

// A 1x1 convolution of (n, in) as one pixel: a linear layer whose weight is (out, in, 1, 1).
Tensor pointwise(const nn::Conv2d&, const Tensor& rows);

// Hu et al. 2018 (arXiv 1709.01507): x gate(expand(activation(reduce(mean x)))), two 1x1
// convolutions with bias; the gate is a sigmoid or relu6(x + 3) / 6.
struct SqueezeExcite {
  SqueezeExcite(const nn::Scope& reduce, const nn::Scope& expand, int64_t channels, int64_t squeeze,
                Activation, bool hard_gate);
  Tensor operator()(const Tensor& x) const;

  nn::Conv2d reduce, expand;
  Activation activation;
  bool hard_gate;
};

}  // namespace pupil::models
