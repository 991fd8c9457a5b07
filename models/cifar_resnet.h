#pragma once
#include "models.h"

namespace pupil::models {

// ResNets for 32 x 32 images. Depth 6 n + 2: a 3x3 stem, three stages of n blocks, a linear layer.
// Taps: f0 (stem), f1 to f3 (stages), pre1 to pre3 (the sum before a stage's last ReLU), pooled.
struct CifarResnetConfig {
  int depth = 20;
  std::vector<int64_t> widths{16, 16, 32, 64};  // of the stem and the stages
  // true: shortcuts without parameters ("option A" of He et al. 2015), names of
  // github.com/akamaster/pytorch_resnet_cifar10. false: 1x1 convolutions, names of
  // github.com/HobbitLong/RepDistiller.
  bool option_a = true;
  int64_t classes = 10;
};
Model make_cifar_resnet(const CifarResnetConfig&, const nn::Scope&);

// ResNet-8 of github.com/mlcommons/tiny, for pixels of 0 to 255. Taps: f0 to f3, pooled.
Model make_mlperf_resnet8(int64_t classes, const nn::Scope&);

std::vector<Entry> cifar_resnets();

}  // namespace pupil::models
