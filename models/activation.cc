#include "activation.h"

namespace pupil::models {

std::optional<Activation> activation_named(std::string_view name) {
  constexpr std::pair<const char*, Activation> known[] = {{"relu", Activation::relu},
                                                          {"relu6", Activation::relu6},
                                                          {"hard_swish", Activation::hard_swish},
                                                          {"silu", Activation::silu},
                                                          {"gelu", Activation::gelu},
                                                          {"gelu_tanh", Activation::gelu_tanh},
                                                          {"quick_gelu", Activation::quick_gelu}};
  for (auto& [text, activation] : known)
    if (name == text) return activation;
  return std::nullopt;
}

Tensor activate(const Tensor& x, Activation activation) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return relu(x);
    case Activation::relu6:
      return clamp(x, 0, 6);
    case Activation::hard_swish:
      return hard_swish(x);
    case Activation::silu:
      return silu(x);
    case Activation::gelu:
      return gelu(x);
    case Activation::gelu_tanh:
      return gelu(x, true);
    case Activation::quick_gelu:
      return quick_gelu(x);
  }
  PUPIL_CHECK(false, "activate: no such activation");
}

}  // namespace pupil::models
