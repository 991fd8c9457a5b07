#pragma once
#include "../nn/nn.h"

namespace pupil::models {

enum class Activation { none, relu, relu6, hard_swish, silu, gelu, gelu_tanh, quick_gelu };
std::optional<Activation> activation_named(std::string_view name);  // "gelu_tanh"
Tensor activate(const Tensor& x, Activation);

}  // namespace pupil::models
