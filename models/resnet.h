#pragma once
#include "models.h"

namespace pupil::models {

// ResNet, ResNeXt and wide ResNet for ImageNet, names of torchvision (models/resnet.py): a 7x7
// stem, four stages. Taps: stem (after its pooling), layer1.0 and so on (blocks), pooled.
struct ResnetConfig {
  bool bottleneck = false;
  std::vector<int> layers{2, 2, 2, 2};             // blocks of the stages
  std::vector<int64_t> planes{64, 128, 256, 512};  // channels; at a bottleneck's end 4 times
  int groups = 1;                                  // of a bottleneck's 3x3 convolution,
  int64_t width_per_group = 64;                    // which are planes * this / 64 wide each
  int64_t classes = 1000;
};
Model make_resnet(const ResnetConfig&, const nn::Scope&);

std::vector<Entry> resnets();

}  // namespace pupil::models
