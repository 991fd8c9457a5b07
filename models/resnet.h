#pragma once
#include "models.h"

namespace pupil::models {

// ResNet, ResNeXt and wide ResNet for ImageNet, names of torchvision (models/resnet.py) and timm
// (resnet.py): a stem of one 7x7 convolution or of three of 3x3, four stages. Taps: stem (after its
// pooling), layer1.0 and so on (blocks), pooled.
struct ResnetConfig {
  bool bottleneck = false;
  std::vector<int> layers{2, 2, 2, 2};             // blocks of the stages
  std::vector<int64_t> planes{64, 128, 256, 512};  // channels; at a bottleneck's end 4 times
  int groups = 1;                                  // of a bottleneck's 3x3 convolution,
  int64_t width_per_group = 64;                    // which are planes * this / 64 wide each
  int64_t stem = 64;                               // channels
  // He et al. 2019 (arXiv 1812.01187), their ResNet-C and -D: three 3x3 convolutions in place of
  // the stem's 7x7, the first two half as wide; a shortcut that shrinks is an average pooling and a
  // 1x1 convolution without stride.
  bool deep_stem = false, avg_down = false;
  double bn_eps = 1e-5, bn_momentum = 0.1;
  bool zero_last_scale = false;  // the last norm of a block begins with scale 0, as timm's do
  int64_t classes = 1000;
};
Model make_resnet(const ResnetConfig&, const nn::Scope&);

std::vector<Entry> resnets();

}  // namespace pupil::models
