#include "stored.h"

namespace pupil::data {

std::shared_ptr<const Weights> open_pth(const std::string& path) {
  fail_input("weights: ", printable(path), ": PyTorch files are not supported yet");
}

std::shared_ptr<const Weights> open_weights(const std::string& path) {
  return open_safetensors(path);
}

}  // namespace pupil::data
