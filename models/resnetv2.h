// Big Transfer's residual networks, Kolesnikov et al. 2020 (arXiv 1912.11370): norms before
// convolutions (He et al. 2016, arXiv 1603.05027), group norm, and standardised weights (Qiao et
// al. 2019, arXiv 1903.10520). Names of timm (resnetv2.py).
#pragma once
#include "models.h"

namespace pupil::models {

struct Resnetv2Config {
  std::vector<int> layers{3, 4, 6, 3};                  // blocks of the stages
  std::vector<int64_t> channels{256, 512, 1024, 2048};  // at the end of a block
  std::vector<int64_t> inner{64, 128, 256, 512};        // of a block's 3x3 convolution
  int64_t stem = 64;
  int groups = 32;  // of the norms
  double norm_eps = 1e-5;
  double weight_eps = 1e-8;  // added to the variance of a filter
  int64_t classes = 1000;
};
// Taps: stem (after its pooling), stages.0.0 and so on (blocks), features (the last map, behind
// norm and ReLU), pooled.
Model make_resnetv2(const Resnetv2Config&, const nn::Scope&);

std::vector<Entry> resnetv2s();

}  // namespace pupil::models
