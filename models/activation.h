#pragma once
#include "../nn/nn.h"

namespace pupil::models {

std::optional<Activation> activation_named(std::string_view name);  // "gelu_tanh"

}  // namespace pupil::models
