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

}  // namespace pupil::models
