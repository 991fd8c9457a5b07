// RegNet, Radosavovic et al. 2020 (arXiv 2003.13678): bottlenecks of one width with grouped 3x3
// convolutions; RegNetY with squeeze and excitation. Names of torchvision or timm.
#pragma once
#include "models.h"

namespace pupil::models {

struct RegnetBlock {
  int64_t in = 0, inner = 0, out = 0;
  int stride = 1, groups = 1;
  int64_t squeeze = 0;      // channels inside squeeze and excitation; 0: none
  bool projection = false;  // shortcut by a 1x1 convolution
};

struct RegnetConfig {
  bool timm = false;  // else names of torchvision
  int64_t stem = 32;
  std::vector<std::vector<RegnetBlock>> stages{};
  double bn_eps = 1e-5, bn_momentum = 0.1;
  int64_t classes = 1000;
};
// Taps: stem, then the blocks: s1.b1 and so on (timm), block1.0 and so on (torchvision); pooled.
Model make_regnet(const RegnetConfig&, const nn::Scope&);

std::vector<Entry> regnets();

}  // namespace pupil::models
