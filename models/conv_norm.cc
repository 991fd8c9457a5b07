#include "conv_norm.h"

#include <algorithm>

namespace pupil::models {

ConvNorm::ConvNorm(const nn::Scope& conv_scope, const nn::Scope& norm_scope, int64_t in,
                   int64_t out, const ConvNormOptions& o)
    : conv(conv_scope, in, out, o.kernel, {o.stride, (o.kernel - 1) / 2, 1, o.groups}, o.bias,
           o.weight.a > 0 ? o.weight : nn::kaiming_normal(int64_t(o.kernel) * o.kernel * out)),
      norm(norm_scope, out, o.eps, o.momentum, {o.zero_scale ? nn::Init::zeros : nn::Init::ones}),
      activation(o.activation),
      same_padding(o.same_padding) {}

Tensor ConvNorm::operator()(const Tensor& image, const nn::Call& call, const Tensor& residual) {
  Tensor x = image;
  nn::Conv2d padded = conv;
  if (same_padding) {
    ConvOptions& options = padded.options;
    int64_t kernel = conv.weight.dim(2);
    auto total = [&](int64_t side, int stride) {
      return std::max<int64_t>((side - 1) / stride * stride + kernel - side, 0);
    };
    int64_t rows = total(x.dim(2), options.stride.h), columns = total(x.dim(3), options.stride.w);
    bool even = rows % 2 == 0 && columns % 2 == 0;
    options.padding = even ? Pair(int(rows / 2), int(columns / 2)) : Pair(0);
    if (!even) x = pad(x, {columns / 2, columns - columns / 2, rows / 2, rows - rows / 2});
  }
  return nn::conv_norm(padded, norm, x, call, activation, residual);
}

Tensor in_turn(std::span<ConvNorm> units, const Tensor& image, const nn::Call& call,
               const Tensor& residual) {
  Tensor x = image;
  if (std::any_of(units.begin(), units.end(), [](auto& unit) { return unit.same_padding; })) {
    for (ConvNorm& unit : units) x = unit(x, call, &unit == &units.back() ? residual : Tensor());
    return x;
  }
  std::vector<nn::NormedConv> layers;
  for (ConvNorm& unit : units) layers.push_back({unit.conv, unit.norm, unit.activation});
  return nn::conv_norm(layers, x, call, residual);
}

Tensor pointwise(const nn::Conv2d& conv, const Tensor& rows) {
  return linear(rows, view(conv.weight, {conv.weight.dim(0), conv.weight.dim(1)}), conv.bias);
}

SqueezeExcite::SqueezeExcite(const nn::Scope& reduce_scope, const nn::Scope& expand_scope,
                             int64_t channels, int64_t squeeze, Activation activation,
                             bool hard_gate)
    : reduce(reduce_scope, channels, squeeze, 1, {}, true, nn::kaiming_normal(squeeze)),
      expand(expand_scope, squeeze, channels, 1, {}, true, nn::kaiming_normal(channels)),
      activation(activation),
      hard_gate(hard_gate) {}

Tensor SqueezeExcite::operator()(const Tensor& x) const {
  Tensor gate = pointwise(expand, activate(pointwise(reduce, global_avg_pool(x)), activation));
  gate = hard_gate ? scale(clamp(add_scalar(gate, 3), 0, 6), 1 / 6.0) : sigmoid(gate);
  return mul(x, view(gate, {x.dim(0), x.dim(1), 1, 1}));
}

}  // namespace pupil::models
