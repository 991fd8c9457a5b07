// ConvNeXt, Liu et al. 2022 (arXiv 2201.03545), and version 2 with global response normalisation,
// Woo et al. 2023 (arXiv 2301.00808). Names of timm (convnext.py).
#pragma once
#include "models.h"

namespace pupil::models {

struct ConvnextConfig {
  std::vector<int> depths{3, 3, 9, 3};
  std::vector<int64_t> widths{96, 192, 384, 768};
  double layer_scale = 1e-6;  // initial factor of a block's branch; 0: none
  bool response_norm = false;
  double mlp_ratio = 4, norm_eps = 1e-6, response_eps = 1e-6;
  int64_t classes = 1000;
};
// Taps: stem, stages.0.0 and so on (blocks), features (the last map), pooled (before the last
// norm).
Model make_convnext(const ConvnextConfig&, const nn::Scope&);

std::vector<Entry> convnexts();

}  // namespace pupil::models
